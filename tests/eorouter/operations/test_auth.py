"""From sign-up to log-out, by calling the handlers."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import argon2
import msgspec
import pytest
import sqlalchemy as sa

from eorouter import identity
from eorouter.errors import (
    Conflict,
    EmailTaken,
    InvalidCredentials,
    InvalidInput,
    InvalidToken,
    MissingScope,
    TooManyTries,
    Unauthenticated,
    WrongPassword,
)
from eorouter.operation import Context, Registry
from eorouter.operations import access, auth, projects
from eorouter.operations.auth import (
    AuthLoginInput,
    AuthLogoutInput,
    AuthMeInput,
    AuthPasswordChangeInput,
    AuthRefreshInput,
    AuthSignupInput,
    AuthUpdateInput,
)
from eorouter.storage import log_ins
from eorouter.storage.tables import memberships, organisations, sessions, users
from eorouter.types import Mode, Principal, Role, utc_now

REGISTRY = Registry.of([access, auth, projects])
PASSWORD = "four unrelated words"
Make = Callable[..., Context]


@pytest.fixture(autouse=True)
def _cheap_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_argon2", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
def make(context: Make) -> Make:
    """A context that knows the operations."""
    return lambda *arguments, **changes: context(*arguments, registry=REGISTRY, **changes)


@pytest.fixture
def sign_up(make: Make) -> Callable[..., Awaitable[auth.Session]]:
    async def sign_up(email: str = "ada@example.org", **changes: Any) -> auth.Session:
        request = {"email": email, "password": PASSWORD, "name": "Ada Example"} | changes
        return await auth.signup(make(), AuthSignupInput(**request))

    return sign_up


@pytest.fixture
def enter(make: Make) -> Callable[..., Awaitable[Context]]:
    """A context of the principal behind a session's access token."""

    async def enter(session: auth.Session) -> Context:
        ctx = make()
        principal = await identity.authenticate(
            ctx.stores, ctx.settings, f"Bearer {session.access_token}", registry=REGISTRY, now=utc_now()
        )
        return make(principal)

    return enter


def log_in(ctx: Context, password: str = PASSWORD, email: str = "ada@example.org") -> Awaitable[auth.Session]:
    return auth.login(ctx, AuthLoginInput(email=email, password=password))


def key_principal(session: auth.Session) -> Principal:
    return Principal(kind="key", id="key_1", org_id=session.organisation.organisation_id, scopes=frozenset())


async def test_signup_makes_user_organisation_and_open_session(make, sign_up, enter):
    session = await sign_up(" Ada@Example.ORG", country_code="DE")
    assert session.token_type == "Bearer"
    assert session.user.email == "ada@example.org"
    assert session.user.country_code == "DE"
    assert session.organisation.name == "Ada Example"
    assert session.organisation.role is Role.OWNER
    assert (await enter(session)).principal.scopes == set(REGISTRY.scopes)
    async with make().stores.db.read() as tx:
        organisation = (await tx.execute(sa.select(organisations))).one()
        stored = (await tx.execute(sa.select(users.c.password_hash))).scalar_one()
    assert organisation.quota_bytes == make().settings.quota_bytes
    assert organisation.used_bytes == 0
    assert stored.startswith("$argon2id$")


async def test_signup_names_the_organisation_as_asked(sign_up):
    assert (await sign_up(organisation_name=" Vineyards Ltd ")).organisation.name == "Vineyards Ltd"


async def test_signup_with_a_taken_email_is_refused_in_any_spelling(make, sign_up):
    await sign_up("ada@example.org")
    with pytest.raises(EmailTaken):
        await sign_up("ADA@example.ORG")
    async with make().stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(organisations))).scalar_one() == 1


async def test_simultaneous_signups_with_one_email_open_exactly_one_account(make, sign_up):
    answers = await asyncio.gather(*(sign_up() for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, auth.Session) for answer in answers) == 1
    assert sum(isinstance(answer, EmailTaken) for answer in answers) == 19
    async with make().stores.db.read() as tx:
        for table in (users, organisations, memberships, sessions):
            assert (await tx.execute(sa.select(sa.func.count()).select_from(table))).scalar_one() == 1, table


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"email": "ada"}, "/email"),
        ({"password": "short"}, "/password"),
        ({"password": "ada@example.org"}, "/password"),
        ({"country_code": "UK"}, "/country_code"),
        ({"country_code": "XX"}, "/country_code"),
    ],
)
async def test_signup_with_unusable_input_points_at_the_field_and_makes_nothing(make, sign_up, changes, pointer):
    with pytest.raises(InvalidInput) as refusal:
        await sign_up(**changes)
    assert refusal.value.errors[0].pointer == pointer
    async with make().stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(users))).scalar_one() == 0


@pytest.mark.parametrize("field", [{"name": "  "}, {"name": ""}, {"country_code": "de"}, {"password": ""}, {"age": 3}])
def test_signup_of_the_wrong_form_does_not_decode(field):
    request = {"email": "ada@example.org", "password": PASSWORD, "name": "Ada"} | field
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(request, AuthSignupInput)


def test_country_codes_are_those_of_the_standard():
    table = Path("/usr/share/zoneinfo/iso3166.tab")
    if not table.is_file():
        pytest.skip("the system has no table of ISO 3166 to compare with")
    lines = table.read_text().splitlines()
    assert {line[:2] for line in lines if line and not line.startswith("#")} == auth._COUNTRIES


async def test_login_opens_another_session(make, sign_up, enter):
    first = await sign_up()
    second = await log_in(make(), email="ADA@example.org")
    assert second.session_id != first.session_id
    assert second.user == first.user
    assert second.organisation == first.organisation
    assert (await enter(first)).principal.id == (await enter(second)).principal.id


async def test_login_with_wrong_password_or_unknown_or_odd_address_gets_one_and_the_same_answer(make, sign_up):
    await sign_up()
    messages = set()
    for email, password in (
        ("ada@example.org", "wrong"),
        ("ada@example.org", ""),
        ("bob@example.org", PASSWORD),
        ("no address", PASSWORD),
    ):
        with pytest.raises(InvalidCredentials) as refusal:
            await log_in(make(), password, email)
        messages.add(refusal.value.message)
    assert len(messages) == 1


async def test_login_after_many_failures_from_one_address_waits_and_says_how_long(make, sign_up):
    await sign_up()
    begun = utc_now()
    here = {"address": "192.0.2.1", "clock": lambda: begun}
    for _ in range(log_ins.PAIR_LIMIT):
        with pytest.raises(InvalidCredentials):
            await log_in(make(**here), "wrong")
    with pytest.raises(TooManyTries) as refusal:
        await log_in(make(**here), email="ADA@example.org")
    assert 0 < int(refusal.value.headers["Retry-After"]) <= log_ins.WINDOW.total_seconds() + 1
    assert (await log_in(make(address="192.0.2.2", clock=lambda: begun))).user.email == "ada@example.org"
    later = begun + log_ins.WINDOW
    assert (await log_in(make(address="192.0.2.1", clock=lambda: later))).user.email == "ada@example.org"


async def test_login_that_goes_well_counts_for_nothing(make, sign_up):
    await sign_up()
    for _ in range(log_ins.PAIR_LIMIT + 1):
        await log_in(make(address="192.0.2.1"))


async def test_many_logins_at_once_that_go_well_are_all_let_in(make, sign_up):
    await sign_up()
    at_once = (log_in(make(address="192.0.2.1")) for _ in range(2 * log_ins.PAIR_LIMIT + 2))
    assert len({session.session_id for session in await asyncio.gather(*at_once)}) == 2 * log_ins.PAIR_LIMIT + 2
    failing = (log_in(make(address="192.0.2.1"), "wrong") for _ in range(2 * log_ins.PAIR_LIMIT))
    kinds = [type(error) for error in await asyncio.gather(*failing, return_exceptions=True)]
    assert kinds.count(InvalidCredentials) == kinds.count(TooManyTries) == log_ins.PAIR_LIMIT


async def test_login_of_an_unknown_address_verifies_a_hash_all_the_same(make, monkeypatch):
    asked: list[str | None] = []
    real = identity.verify_password

    async def verify(password: str, stored: str | None) -> bool:
        asked.append(stored)
        return await real(password, stored)

    monkeypatch.setattr(identity, "verify_password", verify)
    for email in ("bob@example.org", "no address"):
        with pytest.raises(InvalidCredentials):
            await log_in(make(), email=email)
    assert asked == [None, None]


async def test_login_renews_a_hash_of_outdated_cost(make, sign_up, monkeypatch):
    await sign_up()
    monkeypatch.setattr(identity, "_argon2", argon2.PasswordHasher(time_cost=2, memory_cost=64, parallelism=1))
    await log_in(make())
    async with make().stores.db.read() as tx:
        assert "t=2" in (await tx.execute(sa.select(users.c.password_hash))).scalar_one()
    await log_in(make())


async def test_login_is_refused_when_the_password_changes_in_between(make, sign_up, monkeypatch):
    await sign_up()
    ctx, real = make(), identity.verify_password

    async def verify(password: str, stored: str | None) -> bool:
        answer = await real(password, stored)
        async with ctx.stores.db.write() as tx:
            await tx.execute(users.update().values(password_hash="$argon2id$another"))
        return answer

    monkeypatch.setattr(identity, "verify_password", verify)
    with pytest.raises(InvalidCredentials):
        await log_in(ctx)


async def test_refresh_answers_with_new_tokens_of_the_same_session(make, sign_up, enter):
    first = await sign_up()
    second = await auth.refresh(make(), AuthRefreshInput(refresh_token=first.refresh_token))
    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.user == first.user
    assert (await enter(second)).principal.session_id == first.session_id


async def test_refresh_with_a_used_token_ends_the_session(make, sign_up, enter):
    first = await sign_up()
    second = await auth.refresh(make(), AuthRefreshInput(refresh_token=first.refresh_token))
    with pytest.raises(InvalidToken):
        await auth.refresh(make(), AuthRefreshInput(refresh_token=first.refresh_token))
    with pytest.raises(InvalidToken):
        await auth.refresh(make(), AuthRefreshInput(refresh_token=second.refresh_token))
    with pytest.raises(Unauthenticated):
        await enter(second)


async def test_refresh_with_a_token_that_lay_too_long_is_refused(make, sign_up):
    session = await sign_up()
    late = make(clock=lambda: utc_now() + timedelta(days=31))
    with pytest.raises(InvalidToken, match="expired"):
        await auth.refresh(late, AuthRefreshInput(refresh_token=session.refresh_token))


async def test_logout_ends_this_session_and_no_other(make, sign_up, enter):
    first = await sign_up()
    second = await log_in(make())
    await auth.logout(await enter(first), AuthLogoutInput())
    with pytest.raises(Unauthenticated):
        await enter(first)
    with pytest.raises(InvalidToken):
        await auth.refresh(make(), AuthRefreshInput(refresh_token=first.refresh_token))
    assert (await enter(second)).principal.session_id == second.session_id


async def test_logout_everywhere_ends_all_sessions_of_the_account_only(make, sign_up, enter):
    first = await sign_up()
    second = await log_in(make())
    stranger = await sign_up("bob@example.org")
    await auth.logout(await enter(first), AuthLogoutInput(is_everywhere=True))
    for session in (first, second):
        with pytest.raises(Unauthenticated):
            await enter(session)
    assert (await enter(stranger)).principal.id == stranger.user.user_id


async def test_me_tells_a_user_who_they_are(sign_up, enter):
    session = await sign_up()
    found = await auth.me(await enter(session), AuthMeInput())
    assert found.kind == "user"
    assert found.user == session.user
    assert found.key_id is None
    assert found.role is Role.OWNER
    assert found.organisation_id == session.organisation.organisation_id
    assert found.organisation_name == "Ada Example"
    assert found.scopes == REGISTRY.scopes


async def test_me_tells_a_key_what_it_is(make, sign_up):
    session = await sign_up()
    principal = msgspec.structs.replace(
        key_principal(session), scopes=frozenset({"projects:read"}), project_id="prj_1", mode=Mode.TEST
    )
    found = await auth.me(make(principal), AuthMeInput())
    assert (found.kind, found.key_id, found.user, found.role) == ("key", "key_1", None, None)
    assert (found.project_id, found.mode, found.scopes) == ("prj_1", Mode.TEST, ("projects:read",))


async def test_me_of_nobody_is_unauthenticated(make):
    with pytest.raises(Unauthenticated):
        await auth.me(make(), AuthMeInput())


async def test_update_changes_what_is_given_and_keeps_the_rest(sign_up, enter):
    session = await sign_up(country_code="DE")
    ctx = await enter(session)
    assert (await auth.update(ctx, AuthUpdateInput())) == session.user
    assert (await auth.update(ctx, AuthUpdateInput(name=" Ada L. "))).name == "Ada L."
    changed = await auth.update(ctx, AuthUpdateInput(country_code="FR"))
    assert (changed.name, changed.country_code) == ("Ada L.", "FR")
    assert (await auth.me(ctx, AuthMeInput())).user == changed


async def test_update_to_a_country_that_is_none_is_refused(sign_up, enter):
    ctx = await enter(await sign_up())
    with pytest.raises(InvalidInput, match="GB"):
        await auth.update(ctx, AuthUpdateInput(name="New", country_code="UK"))
    found = await auth.me(ctx, AuthMeInput())
    assert found.user is not None
    assert found.user.name == "Ada Example"


async def test_password_change_takes_effect_and_ends_other_sessions(make, sign_up, enter):
    first = await sign_up()
    second = await log_in(make())
    request = AuthPasswordChangeInput(current_password=PASSWORD, new_password="another four rare words")
    await auth.password_change(await enter(first), request)
    assert (await enter(first)).principal.session_id == first.session_id
    with pytest.raises(Unauthenticated):
        await enter(second)
    with pytest.raises(InvalidCredentials):
        await log_in(make())
    await log_in(make(), "another four rare words")


async def test_password_change_with_the_wrong_password_changes_nothing(make, sign_up, enter):
    ctx = await enter(await sign_up())
    second = await log_in(make())
    request = AuthPasswordChangeInput(current_password="wrong", new_password="another four rare words")
    with pytest.raises(WrongPassword):
        await auth.password_change(ctx, request)
    await log_in(make())
    await enter(second)


async def test_password_change_to_a_weak_one_is_refused(make, sign_up, enter):
    ctx = await enter(await sign_up())
    with pytest.raises(InvalidInput) as refusal:
        await auth.password_change(ctx, AuthPasswordChangeInput(current_password=PASSWORD, new_password="short"))
    assert refusal.value.errors[0].pointer == "/new_password"
    await log_in(make())


async def test_simultaneous_password_changes_have_one_winner(make, sign_up, enter):
    ctx = await enter(await sign_up())
    requests = [AuthPasswordChangeInput(current_password=PASSWORD, new_password=f"rare words {i:02}") for i in range(5)]
    answers = await asyncio.gather(
        *(auth.password_change(ctx, request) for request in requests), return_exceptions=True
    )
    winners = [request for request, answer in zip(requests, answers, strict=True) if answer is None]
    assert len(winners) == 1
    assert all(answer is None or isinstance(answer, Conflict | WrongPassword) for answer in answers)
    await log_in(make(), winners[0].new_password)


async def test_keys_cannot_act_on_an_account(make, sign_up):
    ctx = make(key_principal(await sign_up()))
    change = AuthPasswordChangeInput(current_password=PASSWORD, new_password="another four rare words")
    for handler, request in (
        (auth.update, AuthUpdateInput(name="x")),
        (auth.logout, AuthLogoutInput()),
        (auth.password_change, change),
    ):
        with pytest.raises(MissingScope, match="API key cannot"):
            await handler(ctx, request)
