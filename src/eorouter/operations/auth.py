"""Accounts and log-ins.

`auth.signup` opens an account, `auth.login` a session, `auth.refresh` keeps it open, `auth.logout` ends it; `auth.me`
says who is asking, `auth.update` and `auth.password.change` change what an account says and how it is entered.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import identity
from eorouter.errors import (
    Conflict,
    EmailTaken,
    Fault,
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    MissingScope,
    TooManyTries,
    Unauthenticated,
    WrongPassword,
)
from eorouter.identity import SessionTokens
from eorouter.operation import ANY, PUBLIC, Context, Example, Route, Tier, operation
from eorouter.storage import log_ins
from eorouter.storage.tables import memberships, organisations, users
from eorouter.types import Input, Mode, Output, Role, new_id

DOMAINS = ("auth",)

Email = Annotated[str, Meta(min_length=3, max_length=320, description="E-mail address; upper and lower case are one.")]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S", description="Name, as others shall read it.")]
CountryCode = Annotated[
    str, Meta(pattern="^[A-Z]{2}$", description="Country of residence, ISO 3166-1 alpha-2, such as DE.")
]
NewPassword = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=identity.PASSWORD_LENGTH_MAX,
        description="At least 12 characters of any kind; not the e-mail address, not one of the commonest passwords.",
    ),
]
Password = Annotated[str, Meta(max_length=identity.PASSWORD_LENGTH_MAX, description="The password.")]

# ISO 3166-1 alpha-2 as of 2024: export rules hang on this field, so a UK or an XX must not slip in.
_COUNTRIES = frozenset(
    """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC
    CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD
    GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH
    KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW
    MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC
    SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY
    UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
    """.split()  # noqa: SIM905 - two hundred and forty-nine pairs of quotes help nobody
)


class User(Output):
    """A person with an account."""

    user_id: str
    email: str
    name: str
    country_code: str | None
    created_at: datetime


class Membership(Output):
    """The organisation a session works in, and what the user may do there."""

    organisation_id: str
    name: str
    role: Role


class Session(Output):
    """An open log-in: send the access token with every call, keep the refresh token for the next one."""

    session_id: str
    token_type: Literal["Bearer"]
    access_token: str
    access_token_expires_at: datetime
    refresh_token: str
    refresh_token_expires_at: datetime
    user: User
    organisation: Membership


class Identity(Output):
    """Who is asking: a user in a session, or an API key."""

    kind: Literal["user", "key"]
    user: User | None
    key_id: str | None
    organisation_id: str
    organisation_name: str
    role: Role | None
    project_id: str | None
    mode: Mode
    scopes: tuple[str, ...]


class AuthSignupInput(Input):
    """A new account."""

    email: Email
    password: NewPassword
    name: Name
    country_code: CountryCode | None = None
    organisation_name: Name | None = None


@operation(
    "auth.signup",
    tier=Tier.WRITE,
    scope=PUBLIC,
    errors=(EmailTaken, InvalidInput),
    routes=(Route("POST", "/v1/auth/signup"),),
    examples=(
        Example(
            summary="Open an account",
            request={
                "email": "ada@example.org",
                "password": "four unrelated words here",
                "name": "Ada Example",
                "country_code": "DE",
            },
        ),
    ),
    status=201,
)
async def signup(ctx: Context, request: AuthSignupInput) -> Session:
    """Open an account with an organisation of your own, and log in.

    You become the owner of the organisation, which is named after you unless `organisation_name` says otherwise.
    Answers `email_taken` where the address has an account, and `invalid_input` for an address or a password that
    cannot be used, with every rule it breaks.
    """
    email = identity.normalise_email(request.email)
    identity.check_password(request.password, email=email)
    _check_country(request.country_code)
    password_hash = await identity.hash_password(request.password)
    now = ctx.clock()
    user_id, org_id, db = new_id("usr"), new_id("org"), ctx.stores.db
    user = {
        "id": user_id,
        "email": email,
        "name": request.name.strip(),
        "password_hash": password_hash,
        "country_code": request.country_code,
        "created_at": now,
    }
    async with db.write() as tx:
        # The unique index decides, so of simultaneous sign-ups exactly one finds the address free.
        # RETURNING tells whether it was this one: SQLAlchemy keeps no rowcount of an INSERT on PostgreSQL.
        added = db.insert(users).values(user).on_conflict_do_nothing(index_elements=["email"]).returning(users.c.id)
        if (await tx.execute(added)).first() is None:
            raise EmailTaken("An account with this e-mail exists. Log in, or use another address.")
        await tx.execute(
            organisations.insert().values(
                id=org_id,
                name=(request.organisation_name or request.name).strip(),
                quota_bytes=ctx.settings.quota_bytes,
                used_bytes=0,
                created_at=now,
            )
        )
        await tx.execute(memberships.insert().values(org_id=org_id, user_id=user_id, role=Role.OWNER.value))
        tokens = await identity.begin_session(tx, ctx.settings, user_id=user_id, org_id=org_id, now=now)
        return await _session(tx, tokens)


class AuthLoginInput(Input):
    """What proves who you are."""

    email: Email
    password: Password


@operation(
    "auth.login",
    tier=Tier.WRITE,
    scope=PUBLIC,
    errors=(InvalidCredentials, TooManyTries),
    routes=(Route("POST", "/v1/auth/login"),),
    examples=(
        Example(summary="Log in", request={"email": "ada@example.org", "password": "four unrelated words here"}),
    ),
)
async def login(ctx: Context, request: AuthLoginInput) -> Session:
    """Log in with e-mail and password.

    Answers `invalid_credentials` where the two do not belong together; the answer and the time it takes do not tell
    whether the address has an account. After five failed tries with one account, or thirty with any, from one network
    address it answers `too_many_tries` until a quarter of an hour has passed.
    """
    now, account = ctx.clock(), request.email.strip().lower()
    try:
        async with log_ins.trying(ctx.stores.db, account, ctx.address, now=now):
            tokens = await identity.log_in(ctx.stores, ctx.settings, request.email, request.password, now=now)
    except log_ins.TooMany as error:
        wait_s = int(error.wait_s) + 1
        raise TooManyTries(
            f"Too many failed log-ins from your network. Try again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        ) from None
    async with ctx.stores.db.read() as tx:
        return await _session(tx, tokens)


class AuthRefreshInput(Input):
    """The refresh token of an open session."""

    refresh_token: Annotated[str, Meta(min_length=1, max_length=1024, description="The latest one; each is good once.")]


@operation(
    "auth.refresh",
    tier=Tier.WRITE,
    scope=PUBLIC,
    errors=(InvalidToken,),
    routes=(Route("POST", "/v1/auth/refresh"),),
    examples=(Example(summary="Keep a session open", request={"refresh_token": "eor_rt_…"}),),
)
async def refresh(ctx: Context, request: AuthRefreshInput) -> Session:
    """Exchange a refresh token for a new access token and the next refresh token.

    Each refresh token is good for one exchange. Answers `invalid_token` for one that is unknown or expired; one that
    was exchanged before also ends its session, because somebody else may hold a copy.
    """
    tokens = await identity.refresh_session(ctx.stores, ctx.settings, request.refresh_token, now=ctx.clock())
    async with ctx.stores.db.read() as tx:
        return await _session(tx, tokens)


class AuthLogoutInput(Input):
    """Which sessions to end."""

    is_everywhere: Annotated[bool, Meta(description="End every session of the account, on all devices.")] = False


@operation(
    "auth.logout",
    tier=Tier.WRITE,
    scope=ANY,
    errors=(MissingScope,),
    routes=(Route("POST", "/v1/auth/logout"),),
    examples=(
        Example(summary="End this session", request={}),
        Example(summary="End all sessions", request={"is_everywhere": True}),
    ),
)
async def logout(ctx: Context, request: AuthLogoutInput) -> None:
    """End this session, or all sessions of the account.

    The access and refresh tokens of an ended session are refused at once. API keys have no session; revoke a key with
    `api_keys.revoke`.
    """
    user_id = _user_id(ctx)
    now = ctx.clock()
    async with ctx.stores.db.write() as tx:
        if request.is_everywhere or ctx.principal.session_id is None:
            await identity.end_sessions(tx, user_id, now=now)
        else:
            await identity.end_session(tx, ctx.principal.session_id, now=now)


class AuthMeInput(Input):
    """Nothing to say: the credentials tell."""


@operation(
    "auth.me",
    tier=Tier.READ,
    scope=ANY,
    routes=(Route("GET", "/v1/auth/me"),),
    examples=(Example(summary="Who am I", request={}),),
)
async def me(ctx: Context, request: AuthMeInput) -> Identity:
    """Tell who is asking, in which organisation, and with which scopes.

    For an API key, `user` and `role` are null, and `project_id` names the project it is restricted to.
    """
    del request
    principal = ctx.principal
    is_member = (memberships.c.org_id == organisations.c.id) & (memberships.c.user_id == principal.user_id)
    query = (
        sa.select(organisations.c.name, memberships.c.role)
        .select_from(organisations.outerjoin(memberships, is_member))
        .where(organisations.c.id == principal.org_id)
    )
    async with ctx.stores.db.read() as tx:
        organisation = (await tx.execute(query)).one_or_none()
        if organisation is None or principal.kind not in {"user", "key"}:
            raise Unauthenticated("Nobody is logged in. Send an API key or an access token.")
        return Identity(
            kind="user" if principal.kind == "user" else "key",
            user=None if principal.user_id is None else await _user(tx, principal.user_id),
            key_id=principal.id if principal.kind == "key" else None,
            organisation_id=principal.org_id,
            organisation_name=organisation.name,
            role=None if organisation.role is None else Role(organisation.role),
            project_id=principal.project_id,
            mode=principal.mode,
            scopes=tuple(sorted(principal.scopes)),
        )


class AuthUpdateInput(Input):
    """What to change; what is absent or null stays."""

    name: Name | None = None
    country_code: CountryCode | None = None


@operation(
    "auth.update",
    tier=Tier.WRITE,
    scope=ANY,
    errors=(MissingScope, InvalidInput),
    routes=(Route("PATCH", "/v1/auth/me"),),
    examples=(
        Example(summary="Change the name", request={"name": "Ada L. Example"}),
        Example(summary="State the country", request={"country_code": "FR"}),
    ),
)
async def update(ctx: Context, request: AuthUpdateInput) -> User:
    """Change the name or the country of the account.

    A country once stated can be changed but not taken back. Only the person logged in can do this: API keys are
    refused with `missing_scope`.
    """
    user_id = _user_id(ctx)
    _check_country(request.country_code)
    changes: dict[str, Any] = {}
    if request.name is not None:
        changes["name"] = request.name.strip()
    if request.country_code is not None:
        changes["country_code"] = request.country_code
    async with ctx.stores.db.write() as tx:
        if changes:
            await tx.execute(users.update().where(users.c.id == user_id).values(changes))
        return await _user(tx, user_id)


class AuthPasswordChangeInput(Input):
    """The password that is, and the one that shall be."""

    current_password: Password
    new_password: NewPassword


@operation(
    "auth.password.change",
    tier=Tier.WRITE,
    scope=ANY,
    errors=(WrongPassword, InvalidInput, MissingScope, Conflict),
    routes=(Route("POST", "/v1/auth/password"),),
    examples=(
        Example(
            summary="Change the password",
            request={"current_password": "four unrelated words here", "new_password": "another four rare words"},
        ),
    ),
)
async def password_change(ctx: Context, request: AuthPasswordChangeInput) -> None:
    """Change the password; every other session of the account ends.

    Answers `wrong_password` where the current one is wrong, `invalid_input` with every rule that the new one breaks,
    and `conflict` where the password was changed by somebody else in the same moment. API keys stay as they are.
    """
    user_id = _user_id(ctx)
    async with ctx.stores.db.read() as tx:
        user = (await tx.execute(sa.select(users).where(users.c.id == user_id))).one()
    if not await identity.verify_password(request.current_password, user.password_hash):
        raise WrongPassword("The current password is wrong.")
    identity.check_password(request.new_password, email=user.email, pointer="/new_password")
    password_hash = await identity.hash_password(request.new_password)
    async with ctx.stores.db.write() as tx:
        is_same = (users.c.id == user_id) & (users.c.password_hash == user.password_hash)
        if (await tx.execute(users.update().where(is_same).values(password_hash=password_hash))).rowcount != 1:
            raise Conflict("The password was changed in the meantime. Log in again and retry.")
        await identity.end_sessions(tx, user_id, now=ctx.clock(), kept_id=ctx.principal.session_id)


def _user_id(ctx: Context) -> str:
    """The user who is logged in; keys act for an organisation and own no account."""
    if ctx.principal.user_id is None:
        raise MissingScope("Only a user who is logged in can do this, an API key cannot. Log in at /v1/auth/login.")
    return ctx.principal.user_id


def _check_country(code: str | None) -> None:
    if code is not None and code not in _COUNTRIES:
        message = f"{code} is no ISO 3166-1 country code; the United Kingdom is GB, Germany is DE."
        raise InvalidInput(message, errors=[Fault(pointer="/country_code", message=message, received=code)])


async def _user(tx: AsyncConnection, user_id: str) -> User:
    row = (await tx.execute(sa.select(users).where(users.c.id == user_id))).one()
    return User(
        user_id=row.id, email=row.email, name=row.name, country_code=row.country_code, created_at=row.created_at
    )


async def _session(tx: AsyncConnection, tokens: SessionTokens) -> Session:
    query = (
        sa.select(organisations.c.name, memberships.c.role)
        .join(memberships, memberships.c.org_id == organisations.c.id)
        .where(memberships.c.org_id == tokens.org_id, memberships.c.user_id == tokens.user_id)
    )
    row = (await tx.execute(query)).one()
    return Session(
        session_id=tokens.session_id,
        token_type="Bearer",  # noqa: S106 - the kind of token, RFC 6750
        access_token=tokens.access_token,
        access_token_expires_at=tokens.access_expires_at,
        refresh_token=tokens.refresh_token,
        refresh_token_expires_at=tokens.refresh_expires_at,
        user=await _user(tx, tokens.user_id),
        organisation=Membership(organisation_id=tokens.org_id, name=row.name, role=Role(row.role)),
    )
