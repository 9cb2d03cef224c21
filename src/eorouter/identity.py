"""Who is asking: passwords, API keys, sessions, and the principal behind an `Authorization` header.

    Bearer eor_live_sk_…  ─ checksum ─ row by public id ─ revoked? expired? ─ bcrypt, or cached proof of it ─► key
    Bearer <JWT>          ─ signature, issuer, audience, expiry ─ session row still open ─ role ────────────► user
    (no header)           ───────────────────────────────────────────────────────────────────────────────► ANONYMOUS

What can end is read from the database on every request: a revoked key and an ended session are refused at once, by
every process. Only the costly part, bcrypt, is remembered, and only for minutes. Slow hashes run in a small pool of
threads of their own, so that a flood of log-ins takes neither the event loop nor all of the memory.
"""

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import threading
import unicodedata
import zlib
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import argon2
import bcrypt
import jwt
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import signing
from eorouter.errors import (
    Fault,
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    MissingScope,
    SignatureInvalid,
    Unauthenticated,
)
from eorouter.operation import Registry
from eorouter.settings import Settings
from eorouter.storage import Stores
from eorouter.storage.tables import api_keys, memberships, sessions, users
from eorouter.types import ANONYMOUS, Mode, Principal, Role, new_id

T = TypeVar("T")

# One Argon2 takes 64 MiB: the number of threads is also the bound of the memory.
_hashers = ThreadPoolExecutor(max_workers=max(2, min(os.cpu_count() or 2, 8)), thread_name_prefix="eorouter-hash")


async def _hashing(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.wrap_future(_hashers.submit(work, *arguments))


EMAIL_LENGTH_MAX = 254  # RFC 5321, section 4.5.3.1.3, less the angle brackets

_LOCAL_PART = re.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_DOMAIN_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def normalise_email(text: str) -> str:
    """The one form of an e-mail address: lower case, domain in ASCII (IDNA); two spellings of it are one account.

    Raises:
        InvalidInput: not an address mail could be sent to; the message says which part is wrong.
    """
    local, at, domain = text.strip().rpartition("@")
    local = local.lower()
    try:
        domain = domain.encode("idna").decode().lower()
    except UnicodeError:
        domain = ""
    labels = domain.split(".")
    if not at:
        expected = "an address with an @, like name@example.org"
    elif not _LOCAL_PART.fullmatch(local) or len(local) > 64:
        expected = "before the @ up to 64 letters of a to z, digits and signs, without spaces"
    elif len(labels) < 2 or not all(_DOMAIN_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        expected = "behind the @ a full domain, like example.org"
    elif len(local) + 1 + len(domain) > EMAIL_LENGTH_MAX:
        expected = f"at most {EMAIL_LENGTH_MAX} characters"
    else:
        return f"{local}@{domain}"
    message = f"This is not an e-mail address: expected {expected}."
    raise InvalidInput(message, errors=[Fault(pointer="/email", message=message, expected=expected, received=text)])


PASSWORD_LENGTH_MIN = 12
PASSWORD_LENGTH_MAX = 1024

# What people type first when twelve characters are asked for; shorter favourites need no list.
_COMMON = frozenset(
    """
    123456789012 1234567890123 12345678901234 123456789123456789 1234567890qwerty 1234567890-= 1q2w3e4r5t6y
    1q2w3e4r5t6y7u 1q2w3e4r5t6y7u8i 1qaz2wsx3edc 1qaz2wsx3edc4rfv !qaz2wsx3edc 1qazxsw23edc 0987654321qwerty
    098765432109 987654321098 qwertyuiop12 qwertyuiop123 qwertyuiop1234 qwerty123456 qwerty1234567 qwerty12345678
    qwerty123456789 qwertyuiop[] qwertyuiopasdfgh qwertyuiopasdfghjkl qwertyuiopasdfghjklzxcvbnm qazwsxedcrfv
    qazwsxedcrfvtgb asdfghjkl123 asdfghjkl;' zxcvbnm12345 abcdefghijkl abcdefghijklm abcdefg12345 abcdef123456
    abc123456789 a1b2c3d4e5f6 aa123456789012 password1234 password12345 password123456 password1234567
    password123456789 password2023 password2024 password2025 password2026 passw0rd1234 p@ssw0rd1234 p@ssword1234
    p@$$w0rd1234 password123! password1234! mypassword123 newpassword1 newpassword123 thisismypassword
    administrator administrator1 admin1234567 admin12345678 adminadmin123 changeme1234 changemeplease welcome12345
    welcome123456 letmein12345 letmein123456 iloveyou1234 iloveyou12345 iloveyouforever iloveyousomuch
    trustno1trustno1 football1234 baseball1234 superman1234 princess1234 sunshine1234 liverpool123 manchester123
    spongebob123 pokemon12345 starwars1234 jesuschrist1 correcthorsebatterystaple
    eorouter1234 earthobservation
    """.split()  # noqa: SIM905 - a word list reads better without ninety pairs of quotes
)


def _base64(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")


_argon2 = argon2.PasswordHasher()  # argon2id with RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes
# Of no password; verified when the e-mail is unknown, so that the answer takes as long as for a known one.
_NOBODY = (
    f"$argon2id$v=19$m={_argon2.memory_cost},t={_argon2.time_cost},p={_argon2.parallelism}"
    f"${_base64(secrets.token_bytes(_argon2.salt_len))}${_base64(secrets.token_bytes(_argon2.hash_len))}"
)


def _plain(password: str) -> str:
    """The password in the one form in which it is hashed: keyboards differ in how they compose letters."""
    return unicodedata.normalize("NFKC", password)


def check_password(password: str, *, email: str, pointer: str = "/password") -> None:
    """Hold a new password against the rules: long enough, not the e-mail, not one that everybody tries first.

    Raises:
        InvalidInput: with every rule the password breaks; the password itself is not repeated.
    """
    plain = _plain(password)
    folded = plain.casefold()
    faults: list[str] = []
    if len(plain) < PASSWORD_LENGTH_MIN:
        missing = PASSWORD_LENGTH_MIN - len(plain)
        faults.append(f"It has {len(plain)} characters; add at least {missing} more ({PASSWORD_LENGTH_MIN} or more).")
    if len(plain) > PASSWORD_LENGTH_MAX:
        faults.append(f"It has {len(plain)} characters; use at most {PASSWORD_LENGTH_MAX}.")
    if folded in {email.casefold(), email.casefold().rpartition("@")[0]}:
        faults.append("It is the e-mail address; choose something that is not known of you.")
    if "".join(folded.split()) in _COMMON:
        faults.append("It is among the passwords that are tried first; choose a rarer one, say four unrelated words.")
    if folded and folded in (folded + folded)[1:-1]:
        faults.append("It repeats one short piece; choose something without a pattern.")
    if faults:
        raise InvalidInput(
            "The password cannot be used. " + " ".join(faults),
            errors=[Fault(pointer=pointer, message=fault, code="weak_password") for fault in faults],
        )


async def hash_password(password: str) -> str:
    """Argon2id hash to store, with its salt and parameters in it."""
    return await _hashing(_argon2.hash, _plain(password))


async def verify_password(password: str, stored: str | None) -> bool:
    """The password belongs to the stored hash; with `None` (no such account) it takes as long and is false."""

    def verify() -> bool:
        try:
            return _argon2.verify(stored or _NOBODY, _plain(password))
        except argon2.exceptions.VerifyMismatchError:
            return False

    return await _hashing(verify)


def is_outdated(stored: str) -> bool:
    """The hash was made with other parameters than today's; hash again when the password is next at hand."""
    return _argon2.check_needs_rehash(stored)


_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_API_KEY = re.compile(r"(eor_(live|test)_sk_([0-9A-Za-z]{12})[0-9A-Za-z]{30})([0-9A-Za-z]{6})")


class ApiKeySecret(msgspec.Struct, frozen=True, kw_only=True):
    """A whole key `eor_<mode>_sk_<12 public><30 secret><6 checksum>`; 60 ASCII bytes, so bcrypt takes all of it."""

    text: str
    mode: Mode
    public_id: str

    @property
    def last4(self) -> str:
        """What lists show, so that people recognise a key."""
        return self.text[-4:]


def new_api_key(mode: Mode) -> ApiKeySecret:
    """A fresh key: 71 random bits to look it up by, 178 to prove it."""
    drawn = "".join(secrets.choice(_BASE62) for _ in range(42))
    body = f"eor_{mode.value}_sk_{drawn}"
    return ApiKeySecret(text=body + _checksum(body), mode=mode, public_id=drawn[:12])


def parse_api_key(text: str) -> ApiKeySecret:
    """Read a key as a client sent it; form and checksum are looked at, nothing else.

    Raises:
        Unauthenticated: not a key, or one that was mistyped or cut off.
    """
    match = _API_KEY.fullmatch(text)
    if match is None:
        raise _refused("The API key is incomplete: expected eor_live_sk_ or eor_test_sk_ and 48 letters and digits.")
    body, mode, public_id, checksum = match.groups()
    if not hmac.compare_digest(checksum, _checksum(body)):
        raise _refused("The API key has a typing error: its checksum does not fit. Copy it again.")
    return ApiKeySecret(text=text, mode=Mode(mode), public_id=public_id)


def _checksum(body: str) -> str:
    """CRC-32 in six digits of base 62: catches typing errors and lets secret scanners do without a database."""
    value = zlib.crc32(body.encode())
    digits = ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = _BASE62[digit] + digits
    return digits


async def api_key_verifier(key: ApiKeySecret, *, cost: int) -> str:
    """The bcrypt hash to store for a key."""
    return (await _hashing(bcrypt.hashpw, key.text.encode(), bcrypt.gensalt(cost))).decode()


class VerifiedKeys:
    """Remembers for some minutes that a key fits its verifier, as an HMAC under a secret of this process.

    It never says that a key is *valid*: revocation and expiry are read from the row first, on every request.
    """

    def __init__(self, *, lifetime: timedelta = timedelta(minutes=5), size_max: int = 10_000) -> None:
        self._lifetime = lifetime
        self._size_max = size_max
        self._secret = secrets.token_bytes(32)
        self._known: OrderedDict[str, tuple[bytes, datetime]] = OrderedDict()
        self._running: dict[bytes, Future[bool]] = {}
        self._purges = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    async def verify(self, key_id: str, key: ApiKeySecret, verifier: str, *, now: datetime) -> bool:
        """The key fits the verifier; costs a bcrypt unless that was found out lately, or is being found out."""
        digest = hmac.digest(self._secret, f"{key_id} {verifier} {key.text}".encode(), "sha256")
        with self._lock:
            known, until = self._known.get(key_id, (b"", now))
            if until > now and hmac.compare_digest(known, digest):
                self._known.move_to_end(key_id)
                return True
            purges = self._purges
            running = self._running.get(digest)
            if running is None:
                running = _hashers.submit(bcrypt.checkpw, key.text.encode(), verifier.encode())
                self._running[digest] = running
        try:
            # Shielded: a caller that goes away must not take the answer from others who wait for the same key.
            fits = await asyncio.shield(asyncio.wrap_future(running))
        finally:
            with self._lock:
                self._running.pop(digest, None)
        with self._lock:
            if fits and purges == self._purges:
                self._known[key_id] = (digest, now + self._lifetime)
                self._known.move_to_end(key_id)
                while len(self._known) > self._size_max:
                    self._known.popitem(last=False)
        return fits

    def purge(self, key_id: str) -> None:
        """Forget a key, also one whose check is under way."""
        with self._lock:
            self._purges += 1
            self._known.pop(key_id, None)


verified_keys = VerifiedKeys()

_ISSUER = "eorouter"
_AUDIENCE = "eorouter/api"
_REFRESH_PREFIX = "eor_rt_"
_REFRESH_PURPOSE = "refresh"


class SessionTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a log-in or a refresh hands out, once."""

    session_id: str
    user_id: str
    org_id: str
    access_token: str
    access_expires_at: datetime
    refresh_token: str
    refresh_expires_at: datetime


async def log_in(
    stores: Stores, settings: Settings, email: str, password: str, *, now: datetime, as_operator: bool = False
) -> SessionTokens:
    """Open a session for whoever knows the password; the time this takes does not tell whether there is an account.

    Raises:
        InvalidCredentials: address and password do not belong together, or, `as_operator`, not to an operator.
    """
    refusal = InvalidCredentials("E-mail and password do not belong together.")
    try:
        email = normalise_email(email)
    except InvalidInput:
        email = ""  # no account has it; told apart from a wrong password it would only help a guesser
    async with stores.db.read() as tx:
        user = (await tx.execute(sa.select(users.c.id, users.c.password_hash).where(users.c.email == email))).first()
    stored = None if user is None else user.password_hash
    if not await verify_password(password, stored) or user is None or stored is None:
        raise refusal
    renewed = await hash_password(password) if is_outdated(stored) else stored
    async with stores.db.write() as tx:
        # Asked again under a lock: a change of password ends all sessions, and this one must not slip in behind it.
        mine = users.c.id == user.id
        query = sa.select(users.c.password_hash, users.c.is_operator).where(mine).with_for_update()
        row = (await tx.execute(query)).one_or_none()
        if row is None or row.password_hash != stored or (as_operator and not row.is_operator):
            raise refusal
        if renewed != stored:
            await tx.execute(users.update().where(mine).values(password_hash=renewed))
        first = sa.select(sa.func.min(memberships.c.org_id)).where(memberships.c.user_id == user.id)
        org_id = (await tx.execute(first)).scalar_one()
        return await begin_session(tx, settings, user_id=user.id, org_id=org_id, now=now)


async def begin_session(
    tx: AsyncConnection, settings: Settings, *, user_id: str, org_id: str, now: datetime
) -> SessionTokens:
    """Open a session for a user whose credentials were verified."""
    tokens = _session_tokens(settings, session_id=new_id("ses"), user_id=user_id, org_id=org_id, now=now)
    await tx.execute(
        sessions.insert().values(
            id=tokens.session_id,
            user_id=user_id,
            org_id=org_id,
            token_sha256=_sha256(tokens.refresh_token),
            created_at=now,
            expires_at=tokens.refresh_expires_at,
        )
    )
    return tokens


async def refresh_session(stores: Stores, settings: Settings, refresh_token: str, *, now: datetime) -> SessionTokens:
    """Exchange a refresh token for the next one and a new access token.

    A token is good for one exchange. If one that this service issued comes back after its exchange, then two parties
    hold it and nobody can tell which is the thief: the whole session ends (RFC 9700, section 4.14.2).

    Raises:
        InvalidToken: unknown, expired, ended, or used before; in the last case the session is over from now on.
    """
    session_id = _session_of(settings, refresh_token, now=now)
    is_open = (sessions.c.id == session_id) & sessions.c.ended_at.is_(None)
    current = _sha256(refresh_token)
    async with stores.db.write() as tx:
        query = sa.select(sessions.c.user_id, sessions.c.org_id).where(is_open, sessions.c.expires_at > now)
        row = (await tx.execute(query.with_for_update())).one_or_none()
        tokens = None
        if row is not None:
            fresh = _session_tokens(settings, session_id=session_id, user_id=row.user_id, org_id=row.org_id, now=now)
            rotation = sessions.update().where(is_open, sessions.c.token_sha256 == current)
            values = {"token_sha256": _sha256(fresh.refresh_token), "expires_at": fresh.refresh_expires_at}
            if (await tx.execute(rotation.values(values))).rowcount == 1:
                tokens = fresh
            else:
                await tx.execute(sessions.update().where(is_open).values(ended_at=now))
    if row is None:
        raise InvalidToken("This session has ended or expired. Log in again.")
    if tokens is None:  # raised out here: the end of the session is committed
        raise InvalidToken("This refresh token was used before, so its session was ended. Log in again.")
    return tokens


async def end_session(tx: AsyncConnection, session_id: str, *, now: datetime) -> None:
    """End one session; its access tokens are refused from the commit on."""
    ended = sessions.update().where(sessions.c.id == session_id, sessions.c.ended_at.is_(None))
    await tx.execute(ended.values(ended_at=now))


async def end_sessions(tx: AsyncConnection, user_id: str, *, now: datetime, kept_id: str | None = None) -> None:
    """End every session of a user, except the one to keep."""
    ended = sessions.update().where(sessions.c.user_id == user_id, sessions.c.ended_at.is_(None))
    if kept_id is not None:
        ended = ended.where(sessions.c.id != kept_id)
    await tx.execute(ended.values(ended_at=now))


def _session_tokens(settings: Settings, *, session_id: str, user_id: str, org_id: str, now: datetime) -> SessionTokens:
    access_expires_at = now + timedelta(seconds=settings.access_token_s)
    refresh_expires_at = now + timedelta(days=settings.refresh_token_days)
    claims = {
        "iss": _ISSUER,
        "aud": _AUDIENCE,
        "sub": user_id,
        "org": org_id,
        "sid": session_id,
        "jti": secrets.token_urlsafe(12),
        "iat": int(now.timestamp()),
        "exp": int(access_expires_at.timestamp()),
    }
    # The token carries our signature, so that a made-up one cannot pass for a used one and end somebody's session.
    refresh_token = _REFRESH_PREFIX + signing.sign(
        settings, _REFRESH_PURPOSE, [session_id, secrets.token_bytes(24)], expires_at=refresh_expires_at
    )
    return SessionTokens(
        session_id=session_id,
        user_id=user_id,
        org_id=org_id,
        access_token=jwt.encode(claims, _access_key(settings), algorithm="HS256"),
        access_expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        refresh_token=refresh_token,
        refresh_expires_at=refresh_expires_at,
    )


def _session_of(settings: Settings, refresh_token: str, *, now: datetime) -> str:
    try:
        session_id, _ = signing.verify(settings, _REFRESH_PURPOSE, refresh_token.removeprefix(_REFRESH_PREFIX), now=now)
    except SignatureInvalid as error:
        raise InvalidToken("This is not a refresh token of this service, or it has expired. Log in again.") from error
    return session_id


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _access_key(settings: Settings) -> bytes:
    """Key of the access tokens; derived, so that no token of another kind can be mistaken for one."""
    return hmac.digest(settings.secret.encode(), b"eorouter access token", "sha256")


def scopes_of(role: Role, registry: Registry) -> frozenset[str]:
    """What a member of that role may do: owners and members everything, viewers read."""
    return frozenset(scope for scope in registry.scopes if role is not Role.VIEWER or scope.endswith(":read"))


async def authenticate(
    stores: Stores, settings: Settings, authorization: str | None, *, registry: Registry, now: datetime
) -> Principal:
    """The principal behind an `Authorization` header; `ANONYMOUS` without one.

    Raises:
        Unauthenticated: the header is there but nothing that is valid now.
    """
    if authorization is None:
        return ANONYMOUS
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not credential:
        raise _refused("Expected `Authorization: Bearer <API key or access token>`.")
    if credential.startswith("eor_"):
        return await _key_principal(stores, parse_api_key(credential), now=now)
    return await _user_principal(stores, settings, credential, registry=registry, now=now)


async def _key_principal(stores: Stores, key: ApiKeySecret, *, now: datetime) -> Principal:
    async with stores.db.read() as tx:
        row = (await tx.execute(sa.select(api_keys).where(api_keys.c.public_id == key.public_id))).one_or_none()
    is_usable = row is not None and row.revoked_at is None and (row.expires_at is None or row.expires_at > now)
    if row is None or not is_usable or not await verified_keys.verify(row.id, key, row.verifier, now=now):
        raise _refused("This API key is unknown, expired or revoked. Make another under /v1/keys.")
    return Principal(
        kind="key",
        id=row.id,
        org_id=row.org_id,
        scopes=frozenset(row.scopes),
        project_id=row.project_id,
        mode=Mode(row.mode),
    )


async def _user_principal(
    stores: Stores, settings: Settings, token: str, *, registry: Registry, now: datetime
) -> Principal:
    claims = _claims(settings, token, now=now)
    is_member = (memberships.c.user_id == sessions.c.user_id) & (memberships.c.org_id == sessions.c.org_id)
    query = (
        sa.select(sessions.c.id, sessions.c.user_id, sessions.c.org_id, memberships.c.role)
        .join(memberships, is_member)
        .where(sessions.c.id == claims["sid"], sessions.c.user_id == claims["sub"], sessions.c.org_id == claims["org"])
        .where(sessions.c.ended_at.is_(None), sessions.c.expires_at > now)
    )
    async with stores.db.read() as tx:
        row = (await tx.execute(query)).one_or_none()
    if row is None:
        raise _refused("The session of this access token has ended. Log in again.")
    return Principal(
        kind="user",
        id=row.user_id,
        user_id=row.user_id,
        org_id=row.org_id,
        scopes=scopes_of(Role(row.role), registry),
        session_id=row.id,
    )


def _claims(settings: Settings, token: str, *, now: datetime) -> dict[str, Any]:
    required = ["iss", "aud", "sub", "org", "sid", "jti", "iat", "exp"]
    try:
        claims = jwt.decode(
            token,
            _access_key(settings),
            algorithms=["HS256"],
            issuer=_ISSUER,
            audience=_AUDIENCE,
            # Expiry is compared below, with the caller's clock.
            options={"require": required, "verify_exp": False, "verify_iat": False},
        )
    except jwt.InvalidTokenError as error:
        raise _refused("The access token was not made by this service.") from error
    if now.timestamp() >= claims["exp"]:
        raise _refused("The access token has expired. Exchange the refresh token at /v1/auth/refresh.")
    return claims


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, headers={"WWW-Authenticate": 'Bearer realm="eorouter"'})


async def check_owner(tx: AsyncConnection, principal: Principal, deed: str) -> None:
    """Let nobody pass but owners of the organisation; a key may do what whoever made it may do.

    Raises:
        MissingScope: says who may do the `deed`.
    """
    if principal.project_id is not None:
        raise MissingScope(f"This key is restricted to project {principal.project_id}; that is the organisation's.")
    person = principal.user_id
    if principal.kind == "key":
        person = (await tx.execute(sa.select(api_keys.c.created_by).where(api_keys.c.id == principal.id))).scalar()
    mine = memberships.c.org_id == principal.org_id, memberships.c.user_id == person
    role = (await tx.execute(sa.select(memberships.c.role).where(*mine))).scalar_one_or_none()
    if role != Role.OWNER:
        raise MissingScope(f"Only an owner of the organisation may {deed}.")
