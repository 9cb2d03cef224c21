"""Passwords, keys, sessions and principals: what is let in, what is not, and what ends when."""

import asyncio
import base64
import binascii
import json
import string
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import bcrypt
import jwt
import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from eorouter import identity
from eorouter.errors import InvalidCredentials, InvalidInput, InvalidToken, Unauthenticated
from eorouter.identity import VerifiedKeys, authenticate
from eorouter.operation import Registry
from eorouter.operations import access, projects
from eorouter.settings import Settings
from eorouter.storage import Stores
from eorouter.storage.tables import api_keys, memberships, organisations, sessions, users
from eorouter.types import ANONYMOUS, Mode, Role, new_id, utc_now

REGISTRY = Registry.of([access, projects])
NOW = utc_now()
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
NO_STORES: Any = None  # touching it is an AttributeError


async def member(stores: Stores, role: Role = Role.OWNER) -> tuple[str, str]:
    """A user and an organisation."""
    user_id, org_id = new_id("usr"), new_id("org")
    async with stores.db.write() as tx:
        await tx.execute(
            users.insert().values(
                id=user_id, email=f"{user_id}@example.org", name="n", password_hash="-", created_at=NOW
            )
        )
        await tx.execute(
            organisations.insert().values(id=org_id, name="o", quota_bytes=1, used_bytes=0, created_at=NOW)
        )
        await tx.execute(memberships.insert().values(org_id=org_id, user_id=user_id, role=role.value))
    return user_id, org_id


async def log_in(
    stores: Stores, settings: Settings, role: Role = Role.OWNER, now: datetime = NOW
) -> identity.SessionTokens:
    user_id, org_id = await member(stores, role)
    async with stores.db.write() as tx:
        return await identity.begin_session(tx, settings, user_id=user_id, org_id=org_id, now=now)


async def make_key(stores: Stores, mode: Mode = Mode.LIVE, **changes: Any) -> tuple[str, identity.ApiKeySecret]:
    _, org_id = await member(stores)
    key, key_id = identity.new_api_key(mode), new_id("key")
    row = {
        "id": key_id,
        "org_id": org_id,
        "public_id": key.public_id,
        "name": "k",
        "mode": mode.value,
        "scopes": ["projects:read"],
        "verifier": await identity.api_key_verifier(key, cost=4),
        "last4": key.last4,
        "created_by": "usr_1",
        "created_at": NOW,
    }
    async with stores.db.write() as tx:
        await tx.execute(api_keys.insert().values(row | changes))
    return key_id, key


@pytest.fixture
def ask(stores: Stores, settings: Settings) -> Callable[..., Any]:
    """Authenticate a bearer credential."""

    async def ask(credential: str, now: datetime = NOW) -> Any:
        return await authenticate(stores, settings, f"Bearer {credential}", registry=REGISTRY, now=now)

    return ask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ada@example.org", "ada@example.org"),
        ("  Ada.Lovelace+eo@Example.ORG ", "ada.lovelace+eo@example.org"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("a@" + "b" * 63 + ".example", "a@" + "b" * 63 + ".example"),
        ("o'neill@sub.example.co.uk", "o'neill@sub.example.co.uk"),
    ],
)
def test_address_is_brought_to_one_form(text: str, expected: str):
    assert identity.normalise_email(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ada", "with an @"),
        ("", "with an @"),
        ("@example.org", "before the @"),
        ("a b@example.org", "before the @"),
        ("a..b@example.org", "before the @"),
        (".a@example.org", "before the @"),
        ("a\x00@example.org", "before the @"),
        ("a@b@example.org", "before the @"),
        ("x" * 65 + "@example.org", "before the @"),
        ("ada@localhost", "full domain"),
        ("ada@example..org", "full domain"),
        ("ada@-example.org", "full domain"),
        ("ada@exa mple.org", "full domain"),
        ("ada@127.0.0.1", "full domain"),
        ("ada@" + "b" * 64 + ".org", "full domain"),
        ("ada@example.org\nbcc: x@example.org", "before the @"),
        ("ada@" + ".".join(["b" * 60] * 5), "at most 254"),
    ],
)
def test_text_that_is_no_address_is_refused_with_the_reason(text: str, reason: str):
    with pytest.raises(InvalidInput, match=reason) as refusal:
        identity.normalise_email(text)
    assert refusal.value.errors[0].pointer == "/email"


@given(st.one_of(st.emails(), st.text(max_size=40)))
def test_normal_form_is_its_own_normal_form(text: str):
    try:
        normal = identity.normalise_email(text)
    except InvalidInput:
        return
    assert identity.normalise_email(normal) == normal
    assert identity.normalise_email(text.upper()) == normal or not text.isascii()
    assert normal.isascii()
    assert normal == normal.lower()


@pytest.mark.parametrize(
    "password",
    ["four unrelated words", "x7#kQ!m2pL9z", "пароль из слов", "a" * 11 + "b", "w" + "0123456789" * 20],
)
def test_password_that_keeps_the_rules_is_taken(password: str):
    identity.check_password(password, email="ada@example.org")


@pytest.mark.parametrize(
    ("password", "email", "reasons"),
    [
        ("short", "a@b.org", ["5 characters; add at least 7 more"]),
        ("", "a@b.org", ["0 characters; add at least 12 more"]),
        ("Ada@Example.org", "ada@example.org", ["is the e-mail"]),
        ("ada.lovelace.1815", "ada.lovelace.1815@example.org", ["is the e-mail"]),
        ("Password1234", "a@b.org", ["tried first"]),
        ("correct horse battery staple", "a@b.org", ["tried first"]),
        ("abcabcabcabc", "a@b.org", ["repeats one short piece"]),
        ("aaaa", "a@b.org", ["add at least 8 more", "repeats one short piece"]),
        ("x" + "y" * 1024, "a@b.org", ["at most 1024"]),
    ],
)
def test_password_that_breaks_rules_is_told_every_one(password: str, email: str, reasons: list[str]):
    with pytest.raises(InvalidInput) as refusal:
        identity.check_password(password, email=email)
    faults = refusal.value.errors
    assert len(faults) == len(reasons)
    for fault, reason in zip(faults, reasons, strict=True):
        assert reason in fault.message
        assert fault.pointer == "/password"
    assert not password or password not in refusal.value.message


async def test_hash_is_argon2id_and_verifies_only_its_password():
    stored = await identity.hash_password("four unrelated words")
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await identity.verify_password("four unrelated words", stored)
    assert not await identity.verify_password("four unrelated word", stored)
    assert not identity.is_outdated(stored)
    assert identity.is_outdated(stored.replace("t=3", "t=2"))


async def test_composed_and_decomposed_letters_are_the_same_password():
    stored = await identity.hash_password("müde Grüße aus Köln")
    assert await identity.verify_password("mu\u0308de Gru\u0308ße aus Ko\u0308ln", stored)


async def test_unknown_account_costs_the_same_hash_as_a_known_one(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    class Spy:
        def verify(self, stored: str, password: str) -> bool:
            seen.append(stored)
            return real.verify(stored, password)

    real = identity._argon2
    stored = await identity.hash_password("four unrelated words")
    monkeypatch.setattr(identity, "_argon2", Spy())
    assert not await identity.verify_password("wrong", None)
    assert not await identity.verify_password("wrong", stored)
    cost = [text.rsplit("$", 2)[0] for text in seen]
    assert cost[0] == cost[1]
    assert [len(text) for text in seen] == [len(stored)] * 2


@given(st.sampled_from(Mode))
def test_new_key_parses_to_itself_and_fits_bcrypt(mode: Mode):
    key = identity.new_api_key(mode)
    assert identity.parse_api_key(key.text) == key
    assert key.text.startswith(f"eor_{mode.value}_sk_{key.public_id}")
    assert len(key.text.encode()) == 60


@given(st.text(alphabet=BASE62, min_size=42, max_size=42), st.sampled_from(Mode))
def test_checksum_is_crc32_in_base_62(drawn: str, mode: Mode):
    body = f"eor_{mode.value}_sk_{drawn}"
    checksum, rest = "", binascii.crc32(body.encode())
    while rest:
        checksum, rest = BASE62[rest % 62] + checksum, rest // 62
    text = body + checksum.rjust(6, "0")
    assert identity.parse_api_key(text).public_id == drawn[:12]


@given(st.sampled_from(Mode), st.integers(12, 59), st.sampled_from(BASE62))
def test_one_mistyped_character_is_noticed(mode: Mode, place: int, other: str):
    text = identity.new_api_key(mode).text
    changed = text[:place] + other + text[place + 1 :]
    if changed == text:
        return
    with pytest.raises(Unauthenticated, match="typing error"):
        identity.parse_api_key(changed)


def test_test_key_does_not_become_live_by_its_prefix():
    key = identity.new_api_key(Mode.TEST)
    with pytest.raises(Unauthenticated, match="typing error"):
        identity.parse_api_key(key.text.replace("_test_", "_live_"))


@given(st.one_of(st.text(max_size=80), st.from_regex(r"eor_(live|test)_sk_[0-9A-Za-z]{0,60}\n?", fullmatch=True)))
def test_any_other_text_is_refused_as_a_credential(text: str):
    with pytest.raises(Unauthenticated):
        identity.parse_api_key(text)


def test_keys_do_not_repeat():
    keys = {identity.new_api_key(Mode.LIVE).public_id for _ in range(2000)}
    assert len(keys) == 2000


@pytest.mark.parametrize("damage", [lambda text: text[:-1], lambda text: text[:-1] + "-", lambda text: text + "0"])
async def test_key_of_bad_form_is_refused_without_the_database(settings: Settings, damage: Callable[[str], str]):
    text = damage(identity.new_api_key(Mode.LIVE).text)
    with pytest.raises(Unauthenticated, match="incomplete"):
        await authenticate(NO_STORES, settings, f"Bearer {text}", registry=REGISTRY, now=NOW)


async def test_key_of_bad_checksum_is_refused_without_the_database(settings: Settings):
    text = identity.new_api_key(Mode.LIVE).text
    text = text[:-1] + ("0" if text[-1] != "0" else "1")
    with pytest.raises(Unauthenticated, match="checksum"):
        await authenticate(NO_STORES, settings, f"Bearer {text}", registry=REGISTRY, now=NOW)


class Checks:
    """Counts bcrypt checks and can hold them up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.gate = threading.Event()
        self.gate.set()
        real = bcrypt.checkpw

        def checkpw(password: bytes, hashed: bytes) -> bool:
            self.count += 1
            assert self.gate.wait(20)
            return real(password, hashed)

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    return Checks(monkeypatch)


async def test_second_use_costs_no_bcrypt_until_the_time_is_over(checks: Checks):
    cache, key = VerifiedKeys(), identity.new_api_key(Mode.LIVE)
    verifier = await identity.api_key_verifier(key, cost=4)
    assert await cache.verify("key_1", key, verifier, now=NOW)
    assert await cache.verify("key_1", key, verifier, now=NOW + timedelta(seconds=299))
    assert checks.count == 1
    assert await cache.verify("key_1", key, verifier, now=NOW + timedelta(seconds=300))
    assert checks.count == 2


async def test_wrong_secret_is_refused_whatever_is_remembered(checks: Checks):
    cache, key, other = VerifiedKeys(), identity.new_api_key(Mode.LIVE), identity.new_api_key(Mode.LIVE)
    verifier = await identity.api_key_verifier(key, cost=4)
    assert await cache.verify("key_1", key, verifier, now=NOW)
    assert not await cache.verify("key_1", other, verifier, now=NOW)
    assert not await cache.verify("key_1", other, verifier, now=NOW)
    assert checks.count == 3
    assert await cache.verify("key_1", key, verifier, now=NOW)
    assert checks.count == 3


async def test_another_verifier_is_checked_anew(checks: Checks):
    cache, key = VerifiedKeys(), identity.new_api_key(Mode.LIVE)
    assert await cache.verify("key_1", key, await identity.api_key_verifier(key, cost=4), now=NOW)
    assert await cache.verify("key_1", key, await identity.api_key_verifier(key, cost=4), now=NOW)
    assert checks.count == 2


async def test_purged_key_is_forgotten(checks: Checks):
    cache, key = VerifiedKeys(), identity.new_api_key(Mode.LIVE)
    verifier = await identity.api_key_verifier(key, cost=4)
    assert await cache.verify("key_1", key, verifier, now=NOW)
    cache.purge("key_1")
    cache.purge("key_2")
    assert len(cache) == 0
    assert await cache.verify("key_1", key, verifier, now=NOW)
    assert checks.count == 2


async def test_key_purged_while_it_is_checked_is_not_remembered(checks: Checks):
    cache, key = VerifiedKeys(), identity.new_api_key(Mode.LIVE)
    verifier = await identity.api_key_verifier(key, cost=4)
    checks.gate.clear()
    running = asyncio.create_task(cache.verify("key_1", key, verifier, now=NOW))
    await asyncio.sleep(0)
    cache.purge("key_1")
    checks.gate.set()
    assert await running
    assert len(cache) == 0


async def test_simultaneous_uses_share_one_bcrypt_even_if_one_goes_away(checks: Checks):
    cache, key = VerifiedKeys(), identity.new_api_key(Mode.LIVE)
    verifier = await identity.api_key_verifier(key, cost=4)
    checks.gate.clear()
    running = [asyncio.create_task(cache.verify("key_1", key, verifier, now=NOW)) for _ in range(8)]
    await asyncio.sleep(0)
    running[0].cancel()
    await asyncio.sleep(0)
    checks.gate.set()
    answers = await asyncio.gather(*running, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [True] * 7
    assert checks.count == 1


async def test_memory_is_bounded_and_keeps_what_was_used_last(checks: Checks):
    cache, key = VerifiedKeys(size_max=2), identity.new_api_key(Mode.LIVE)
    verifier = await identity.api_key_verifier(key, cost=4)
    for key_id in ("key_1", "key_2", "key_1", "key_3"):
        assert await cache.verify(key_id, key, verifier, now=NOW)
    assert len(cache) == 2
    assert checks.count == 3
    assert await cache.verify("key_1", key, verifier, now=NOW)
    assert checks.count == 3
    assert await cache.verify("key_2", key, verifier, now=NOW)
    assert checks.count == 4


async def test_no_header_is_anonymous(settings: Settings):
    assert await authenticate(NO_STORES, settings, None, registry=REGISTRY, now=NOW) is ANONYMOUS


@pytest.mark.parametrize("header", ["", " ", "Bearer", "Bearer ", "Basic YTpi", "eor_live_sk_x", "Token abc"])
async def test_other_header_is_refused_and_told_the_form(settings: Settings, header: str):
    with pytest.raises(Unauthenticated, match="Authorization: Bearer") as refusal:
        await authenticate(NO_STORES, settings, header, registry=REGISTRY, now=NOW)
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer")


async def test_key_becomes_a_principal_with_its_own_scopes_and_mode(stores: Stores, settings: Settings):
    key_id, key = await make_key(stores, Mode.TEST)
    principal = await authenticate(stores, settings, f"bearer  {key.text}", registry=REGISTRY, now=NOW)
    assert (principal.kind, principal.id, principal.mode) == ("key", key_id, Mode.TEST)
    assert principal.scopes == {"projects:read"}
    assert principal.user_id is None
    assert principal.session_id is None


async def test_unknown_key_of_good_form_is_refused(ask: Callable[..., Any]):
    with pytest.raises(Unauthenticated, match="unknown, expired or revoked"):
        await ask(identity.new_api_key(Mode.LIVE).text)


async def test_key_with_a_known_public_id_and_another_secret_is_refused(stores: Stores, ask: Callable[..., Any]):
    _, key = await make_key(stores)
    body = key.text[:24] + identity.new_api_key(Mode.LIVE).text[24:54]
    with pytest.raises(Unauthenticated, match="unknown, expired or revoked"):
        await ask(body + identity._checksum(body))
    assert (await ask(key.text)).kind == "key"


async def test_key_is_refused_from_the_moment_it_expires(stores: Stores, ask: Callable[..., Any]):
    _, key = await make_key(stores, expires_at=NOW + timedelta(minutes=1))
    assert (await ask(key.text)).kind == "key"
    with pytest.raises(Unauthenticated, match="expired"):
        await ask(key.text, NOW + timedelta(minutes=1))


async def test_key_revoked_by_another_process_is_refused_although_its_bcrypt_is_remembered(
    stores: Stores, ask: Callable[..., Any], checks: Checks
):
    key_id, key = await make_key(stores)
    await ask(key.text)
    await ask(key.text)
    assert checks.count == 1
    async with stores.db.write() as tx:  # as another process does it: this one's memory is not told
        await tx.execute(api_keys.update().where(api_keys.c.id == key_id).values(revoked_at=NOW))
    with pytest.raises(Unauthenticated, match="revoked"):
        await ask(key.text)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (Role.OWNER, set(REGISTRY.scopes)),
        (Role.MEMBER, set(REGISTRY.scopes)),
        (Role.VIEWER, {"api_keys:read", "projects:read", "organisations:read"}),
    ],
)
async def test_user_gets_the_scopes_of_the_role(
    stores: Stores, settings: Settings, ask: Callable[..., Any], role: Role, expected: set[str]
):
    tokens = await log_in(stores, settings, role)
    principal = await ask(tokens.access_token)
    assert principal.scopes == expected
    assert (principal.kind, principal.id, principal.user_id) == ("user", tokens.user_id, tokens.user_id)
    assert (principal.org_id, principal.session_id) == (tokens.org_id, tokens.session_id)


async def test_access_token_expires_with_the_given_clock(stores: Stores, settings: Settings, ask: Callable[..., Any]):
    tokens = await log_in(stores, settings)
    assert (await ask(tokens.access_token, tokens.access_expires_at - timedelta(seconds=1))).kind == "user"
    with pytest.raises(Unauthenticated, match="has expired"):
        await ask(tokens.access_token, tokens.access_expires_at)


async def test_access_token_of_an_ended_session_is_refused_at_once(
    stores: Stores, settings: Settings, ask: Callable[..., Any]
):
    tokens = await log_in(stores, settings)
    await ask(tokens.access_token)
    async with stores.db.write() as tx:
        await identity.end_session(tx, tokens.session_id, now=NOW)
    with pytest.raises(Unauthenticated, match="session of this access token has ended"):
        await ask(tokens.access_token)


async def test_user_who_left_the_organisation_is_refused(stores: Stores, settings: Settings, ask: Callable[..., Any]):
    tokens = await log_in(stores, settings)
    async with stores.db.write() as tx:
        await tx.execute(memberships.delete().where(memberships.c.user_id == tokens.user_id))
    with pytest.raises(Unauthenticated):
        await ask(tokens.access_token)


async def test_tampered_and_foreign_tokens_are_refused_without_the_database(stores: Stores, settings: Settings):
    tokens = await log_in(stores, settings)
    key = identity._access_key(settings)
    claims = jwt.decode(
        tokens.access_token, key, algorithms=["HS256"], audience="eorouter/api", options={"verify_exp": False}
    )
    head, body, mac = tokens.access_token.split(".")
    richer = base64.urlsafe_b64encode(json.dumps(claims | {"org": "org_other"}).encode()).decode().rstrip("=")
    without_session = {name: value for name, value in claims.items() if name != "sid"}
    forged = [
        f"{head}.{richer}.{mac}",
        f"{head}.{body}.",
        jwt.encode(claims, None, algorithm="none"),
        jwt.encode(claims, settings.secret, algorithm="HS256"),
        jwt.encode(claims, b"x" * 32, algorithm="HS256"),
        jwt.encode(claims | {"aud": "elsewhere"}, key, algorithm="HS256"),
        jwt.encode(claims | {"iss": "elsewhere"}, key, algorithm="HS256"),
        jwt.encode(without_session, key, algorithm="HS256"),
        "a.b.c",
        "x",
    ]
    for token in forged:
        with pytest.raises(Unauthenticated, match="not made by this service"):
            await authenticate(NO_STORES, settings, f"Bearer {token}", registry=REGISTRY, now=NOW)


async def test_refresh_token_is_no_access_token(stores: Stores, settings: Settings):
    tokens = await log_in(stores, settings)
    with pytest.raises(Unauthenticated):
        await authenticate(NO_STORES, settings, f"Bearer {tokens.refresh_token}", registry=REGISTRY, now=NOW)


async def test_refresh_hands_out_new_tokens_and_prolongs_the_session(
    stores: Stores, settings: Settings, ask: Callable[..., Any]
):
    first = await log_in(stores, settings)
    later = NOW + timedelta(days=29)
    second = await identity.refresh_session(stores, settings, first.refresh_token, now=later)
    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.refresh_expires_at == later + timedelta(days=30)
    assert (await ask(second.access_token, later)).id == first.user_id


async def test_only_the_hash_of_the_token_is_stored(stores: Stores, settings: Settings):
    tokens = await log_in(stores, settings)
    async with stores.db.read() as tx:
        row = (await tx.execute(sa.select(sessions))).one()
    assert len(row.token_sha256) == 64
    assert tokens.refresh_token not in {str(value) for value in row}


async def test_reuse_ends_the_session_for_thief_and_owner(stores: Stores, settings: Settings, ask: Callable[..., Any]):
    first = await log_in(stores, settings)
    second = await identity.refresh_session(stores, settings, first.refresh_token, now=NOW)
    await ask(second.access_token)
    with pytest.raises(InvalidToken, match="used before, so its session was ended"):
        await identity.refresh_session(stores, settings, first.refresh_token, now=NOW)
    with pytest.raises(InvalidToken, match="has ended"):
        await identity.refresh_session(stores, settings, second.refresh_token, now=NOW)
    for tokens in (first, second):
        with pytest.raises(Unauthenticated):
            await ask(tokens.access_token)


async def test_reuse_leaves_other_sessions_alone(stores: Stores, settings: Settings, ask: Callable[..., Any]):
    first = await log_in(stores, settings)
    async with stores.db.write() as tx:
        other = await identity.begin_session(tx, settings, user_id=first.user_id, org_id=first.org_id, now=NOW)
    await identity.refresh_session(stores, settings, first.refresh_token, now=NOW)
    with pytest.raises(InvalidToken):
        await identity.refresh_session(stores, settings, first.refresh_token, now=NOW)
    assert (await ask(other.access_token)).session_id == other.session_id


async def test_simultaneous_uses_of_one_token_give_one_exchange_and_end_the_session(
    stores: Stores, settings: Settings, ask: Callable[..., Any]
):
    first = await log_in(stores, settings)
    answers = await asyncio.gather(
        *(identity.refresh_session(stores, settings, first.refresh_token, now=NOW) for _ in range(10)),
        return_exceptions=True,
    )
    exchanged = [answer for answer in answers if isinstance(answer, identity.SessionTokens)]
    assert len(exchanged) == 1
    assert sum(isinstance(answer, InvalidToken) for answer in answers) == 9
    with pytest.raises(Unauthenticated):
        await ask(exchanged[0].access_token)


async def test_expired_token_is_refused(stores: Stores, settings: Settings):
    tokens = await log_in(stores, settings)
    with pytest.raises(InvalidToken, match="expired"):
        await identity.refresh_session(
            stores, settings, tokens.refresh_token, now=tokens.refresh_expires_at + timedelta(seconds=1)
        )


async def test_made_up_token_for_a_known_session_neither_works_nor_ends_it(
    stores: Stores, settings: Settings, ask: Callable[..., Any]
):
    tokens = await log_in(stores, settings)
    stranger = msgspec.structs.replace(settings, secret="t" * 40)
    forged = identity._session_tokens(
        stranger, session_id=tokens.session_id, user_id=tokens.user_id, org_id=tokens.org_id, now=NOW
    )
    for token in (forged.refresh_token, tokens.refresh_token[:-2], tokens.access_token, "", "eor_rt_", "é"):
        with pytest.raises(InvalidToken, match="not a refresh token"):
            await identity.refresh_session(NO_STORES, settings, token, now=NOW)
    assert (await ask(tokens.access_token)).session_id == tokens.session_id


async def test_ending_all_sessions_can_keep_one(stores: Stores, settings: Settings, ask: Callable[..., Any]):
    kept = await log_in(stores, settings)
    stranger = await log_in(stores, settings)
    async with stores.db.write() as tx:
        other = await identity.begin_session(tx, settings, user_id=kept.user_id, org_id=kept.org_id, now=NOW)
        await identity.end_sessions(tx, kept.user_id, now=NOW, kept_id=kept.session_id)
    await ask(kept.access_token)
    await ask(stranger.access_token)
    with pytest.raises(Unauthenticated):
        await ask(other.access_token)


async def test_log_in_as_operator_takes_the_flag_and_refuses_as_for_a_wrong_password(
    stores: Stores, settings: Settings
):
    user_id, _ = await member(stores)
    mine = users.c.id == user_id

    async def mark(**values: Any) -> None:
        async with stores.db.write() as tx:
            await tx.execute(users.update().where(mine).values(values))

    async def refusal(email: str, password: str) -> str:
        with pytest.raises(InvalidCredentials) as caught:
            await identity.log_in(stores, settings, email, password, now=NOW, as_operator=True)
        return caught.value.message

    email = f"{user_id.replace('_', '-')}@example.org"
    await mark(password_hash=await identity.hash_password("four unrelated words"), email=email)
    told = {await refusal(email, "four unrelated words"), await refusal(email, "x"), await refusal("nobody", "x")}
    assert len(told) == 1
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(sessions))).scalar_one() == 0
    await mark(is_operator=True)
    tokens = await identity.log_in(stores, settings, email, "four unrelated words", now=NOW, as_operator=True)
    assert tokens.user_id == user_id
