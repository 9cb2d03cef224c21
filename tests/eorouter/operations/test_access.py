"""Keys are made within their maker's power, shown without their secret, and end at once."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from eorouter import identity
from eorouter.errors import InvalidCursor, InvalidInput, MissingScope, NotFound, Unauthenticated
from eorouter.operation import Context, Registry
from eorouter.operations import access, auth, projects
from eorouter.operations.access import ApiKeysCreateInput, ApiKeysListInput, ApiKeysRevokeInput
from eorouter.storage import Stores
from eorouter.storage.tables import api_keys, organisations
from eorouter.storage.tables import projects as project_rows
from eorouter.types import Mode, Principal, new_id, utc_now

REGISTRY = Registry.of([access, auth, projects])
Make = Callable[..., Context]


@pytest.fixture
def make(context: Make) -> Make:
    """A context that knows the operations."""
    return lambda *arguments, **changes: context(*arguments, registry=REGISTRY, **changes)


@pytest.fixture
async def owner(stores: Stores) -> Principal:
    return await new_owner(stores)


async def new_owner(stores: Stores) -> Principal:
    org_id, user_id = new_id("org"), new_id("usr")
    async with stores.db.write() as tx:
        row = {"id": org_id, "name": "o", "quota_bytes": 1, "used_bytes": 0, "created_at": utc_now()}
        await tx.execute(organisations.insert().values(row))
    return Principal(kind="user", id=user_id, user_id=user_id, org_id=org_id, scopes=frozenset(REGISTRY.scopes))


async def new_project(stores: Stores, org_id: str) -> str:
    project_id = new_id("prj")
    row = {"id": project_id, "org_id": org_id, "name": "p", "description": "", "created_at": utc_now()}
    async with stores.db.write() as tx:
        await tx.execute(project_rows.insert().values(row))
    return project_id


async def create(ctx: Context, **changes: Any) -> access.NewApiKey:
    request = {"name": "k", "scopes": ("projects:read",)} | changes
    return await access.create(ctx, ApiKeysCreateInput(**request))


async def authenticated(ctx: Context, key: access.NewApiKey, **clock: Any) -> Principal:
    now = utc_now() + timedelta(**clock)
    return await identity.authenticate(ctx.stores, ctx.settings, f"Bearer {key.secret}", registry=REGISTRY, now=now)


def shown(key: access.NewApiKey) -> access.ApiKey:
    fields = {field: getattr(key, field) for field in access.ApiKey.__struct_fields__}
    return access.ApiKey(**fields)


async def test_created_key_lets_in_with_what_it_was_given(make, stores, owner):
    ctx = make(owner)
    project_id = await new_project(stores, owner.org_id)
    end = utc_now() + timedelta(days=1)
    key = await create(
        ctx, name=" CI ", mode=Mode.TEST, project_id=project_id, expires_at=end,
        scopes=("projects:write", "projects:read", "projects:read"),
    )  # fmt: skip
    assert key.name == "CI"
    assert key.secret.startswith(key.prefix)
    assert key.prefix.startswith("eor_test_sk_")
    assert key.secret.endswith(key.last4)
    assert key.scopes == ("projects:read", "projects:write")
    assert (key.created_by, key.expires_at, key.revoked_at) == (owner.id, end, None)
    principal = await authenticated(ctx, key)
    assert (principal.kind, principal.id, principal.org_id) == ("key", key.key_id, owner.org_id)
    assert principal.scopes == {"projects:read", "projects:write"}
    assert (principal.project_id, principal.mode) == (project_id, Mode.TEST)
    with pytest.raises(Unauthenticated):
        await authenticated(ctx, key, days=1, seconds=1)


async def test_secret_is_stored_nowhere(make, stores, owner):
    key = await create(make(owner))
    async with stores.db.read() as tx:
        row = (await tx.execute(sa.select(api_keys))).one()
    assert row.verifier.startswith("$2b$04$")
    assert key.secret[24:54] not in " ".join(str(value) for value in row)
    page = await access.list_(make(owner), ApiKeysListInput())
    assert key.secret[24:54] not in msgspec.json.encode(page).decode()


async def test_create_with_an_unknown_scope_names_it_and_those_there_are(make, owner):
    with pytest.raises(InvalidInput, match=r"'projects:fly' is no scope; there are .*projects:read") as refusal:
        await create(make(owner), scopes=("projects:read", "projects:fly", "public"))
    assert [fault.pointer for fault in refusal.value.errors] == ["/scopes/1", "/scopes/2"]


async def test_create_with_an_end_in_the_past_is_refused(make, owner):
    with pytest.raises(InvalidInput) as refusal:
        await create(make(owner), expires_at=utc_now() - timedelta(seconds=1))
    assert refusal.value.errors[0].pointer == "/expires_at"


@pytest.mark.parametrize("field", [{"scopes": []}, {"expires_at": "2030-01-01T00:00:00"}, {"name": " "}, {"mode": "x"}])
def test_create_of_the_wrong_form_does_not_decode(field):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "k", "scopes": ["projects:read"]} | field, ApiKeysCreateInput)


async def test_create_for_a_foreign_or_absent_project_is_not_found(make, stores, owner):
    foreign = await new_project(stores, (await new_owner(stores)).org_id)
    for project_id in (foreign, new_id("prj")):
        with pytest.raises(NotFound):
            await create(make(owner), project_id=project_id)
    assert (await access.list_(make(owner), ApiKeysListInput())).api_keys == ()


async def test_key_cannot_make_a_key_of_more_scopes(make, owner):
    parent = await create(make(owner), scopes=("api_keys:write", "projects:read"))
    ctx = make(await authenticated(make(owner), parent))
    with pytest.raises(MissingScope, match="projects:write"):
        await create(ctx, scopes=("projects:read", "projects:write"))
    child = await create(ctx, scopes=("projects:read",))
    assert child.created_by == parent.key_id


async def test_test_key_cannot_make_a_live_key(make, owner):
    parent = await create(make(owner), mode=Mode.TEST, scopes=("api_keys:write",))
    ctx = make(await authenticated(make(owner), parent))
    with pytest.raises(MissingScope, match="test key cannot make a live key"):
        await create(ctx, scopes=("api_keys:write",))
    assert (await create(ctx, scopes=("api_keys:write",), mode=Mode.TEST)).mode is Mode.TEST


async def test_key_of_a_project_makes_keys_of_that_project_only(make, stores, owner):
    project_id, other_id = await new_project(stores, owner.org_id), await new_project(stores, owner.org_id)
    parent = await create(make(owner), project_id=project_id, scopes=("api_keys:write", "projects:read"))
    ctx = make(await authenticated(make(owner), parent))
    with pytest.raises(NotFound):
        await create(ctx, project_id=other_id)
    assert (await create(ctx)).project_id == project_id
    assert (await create(ctx, project_id=project_id)).project_id == project_id


async def test_key_makes_no_key_that_outlives_it(make, owner):
    end = utc_now() + timedelta(days=1)
    parent = await create(make(owner), expires_at=end, scopes=("api_keys:write",))
    ctx = make(await authenticated(make(owner), parent))
    for late in (None, end + timedelta(seconds=1)):
        with pytest.raises(MissingScope, match="outlives"):
            await create(ctx, scopes=("api_keys:write",), expires_at=late)
    assert (await create(ctx, scopes=("api_keys:write",), expires_at=end)).expires_at == end


async def test_list_pages_through_all_keys_newest_first(make, owner):
    ctx = make(owner)
    made = [await create(ctx, name=f"k{i}") for i in range(5)]
    request, found = ApiKeysListInput(limit=2), []
    while True:
        page = await access.list_(ctx, request)
        found.extend(page.api_keys)
        if page.next_cursor is None:
            break
        assert len(page.api_keys) == 2
        request = ApiKeysListInput(limit=2, cursor=page.next_cursor)
    assert found == sorted((shown(key) for key in made), key=lambda key: key.key_id, reverse=True)
    assert len(found) == 5


async def test_list_of_a_full_last_page_has_no_cursor(make, owner):
    for _ in range(2):
        await create(make(owner))
    assert (await access.list_(make(owner), ApiKeysListInput(limit=2))).next_cursor is None


async def test_list_filters_by_mode_and_binds_its_cursor_to_that(make, owner):
    ctx = make(owner)
    for mode in (Mode.LIVE, Mode.TEST, Mode.TEST):
        await create(ctx, mode=mode)
    page = await access.list_(ctx, ApiKeysListInput(mode=Mode.TEST, limit=1))
    assert [key.mode for key in page.api_keys] == [Mode.TEST]
    assert page.next_cursor is not None
    with pytest.raises(InvalidCursor):
        await access.list_(ctx, ApiKeysListInput(cursor=page.next_cursor))
    with pytest.raises(InvalidCursor):
        await access.list_(ctx, ApiKeysListInput(mode=Mode.TEST, cursor="x" + page.next_cursor))


async def test_list_shows_only_what_the_caller_may_know(make, stores, owner):
    stranger = await new_owner(stores)
    project_id = await new_project(stores, owner.org_id)
    live, test = await create(make(owner)), await create(make(owner), mode=Mode.TEST)
    bound = await create(make(owner), project_id=project_id)
    foreign = await create(make(stranger))

    async def seen(principal: Principal) -> set[str]:
        return {key.key_id for key in (await access.list_(make(principal), ApiKeysListInput())).api_keys}

    assert await seen(owner) == {live.key_id, test.key_id, bound.key_id}
    assert await seen(stranger) == {foreign.key_id}
    assert await seen(msgspec.structs.replace(owner, project_id=project_id)) == {bound.key_id}
    assert await seen(msgspec.structs.replace(owner, mode=Mode.TEST)) == {test.key_id}


async def test_revoked_key_is_refused_at_once_and_stays_in_the_list(make, owner):
    ctx = make(owner)
    key = await create(ctx)
    await authenticated(ctx, key)
    await access.revoke(ctx, ApiKeysRevokeInput(key_id=key.key_id))
    with pytest.raises(Unauthenticated, match="revoked"):
        await authenticated(ctx, key)
    first = (await access.list_(ctx, ApiKeysListInput())).api_keys[0].revoked_at
    assert first is not None
    later = make(owner, clock=lambda: utc_now() + timedelta(hours=1))
    await access.revoke(later, ApiKeysRevokeInput(key_id=key.key_id))
    assert (await access.list_(ctx, ApiKeysListInput())).api_keys[0].revoked_at == first


async def test_revoking_takes_the_key_out_of_memory(make, owner):
    ctx = make(owner)
    key, other = await create(ctx), await create(ctx)
    await authenticated(ctx, key)
    await authenticated(ctx, other)
    await access.revoke(ctx, ApiKeysRevokeInput(key_id=key.key_id))
    assert key.key_id not in identity.verified_keys._known
    assert other.key_id in identity.verified_keys._known


async def test_revoked_key_is_refused_to_all_who_ask_afterwards_at_the_same_time(make, owner):
    ctx = make(owner)
    key = await create(ctx)
    await asyncio.gather(*(authenticated(ctx, key) for _ in range(10)))
    await access.revoke(ctx, ApiKeysRevokeInput(key_id=key.key_id))
    answers = await asyncio.gather(*(authenticated(ctx, key) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(answer, Unauthenticated) for answer in answers)


async def test_revoke_of_a_key_the_caller_may_not_know_is_not_found_and_harmless(make, stores, owner):
    stranger = await new_owner(stores)
    project_id = await new_project(stores, owner.org_id)
    key = await create(make(owner))
    for principal in (
        stranger,
        msgspec.structs.replace(owner, project_id=project_id),
        msgspec.structs.replace(owner, mode=Mode.TEST),
    ):
        with pytest.raises(NotFound):
            await access.revoke(make(principal), ApiKeysRevokeInput(key_id=key.key_id))
    with pytest.raises(NotFound):
        await access.revoke(make(owner), ApiKeysRevokeInput(key_id=new_id("key")))
    assert (await authenticated(make(owner), key)).id == key.key_id
