"""Projects are made whole or not at all, seen by their own, and deleted only when empty."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from obstore.exceptions import GenericError

from eorouter.errors import Conflict, InvalidCursor, MissingScope, NotFound, Unavailable
from eorouter.operation import Context, Registry
from eorouter.operations import access, auth, projects
from eorouter.operations.projects import (
    OrganisationsGetInput,
    OrganisationsPauseInput,
    OrganisationsResumeInput,
    ProjectsCreateInput,
    ProjectsDeleteInput,
    ProjectsGetInput,
    ProjectsListInput,
    ProjectsUpdateInput,
)
from eorouter.storage import Stores
from eorouter.storage.tables import (
    api_keys,
    items,
    job_events,
    jobs,
    memberships,
    organisations,
    outbox,
    uploads,
    users,
)
from eorouter.storage.tables import projects as project_rows
from eorouter.types import Mode, Principal, Role, new_id, utc_now

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
    org_id, user_id, now = new_id("org"), new_id("usr"), utc_now()
    async with stores.db.write() as tx:
        await tx.execute(
            organisations.insert().values(id=org_id, name="Vineyards", quota_bytes=100, used_bytes=7, created_at=now)
        )
        await tx.execute(
            users.insert().values(
                id=user_id, email=f"{user_id}@example.org", name="Ada", password_hash="-", created_at=now
            )
        )
        await tx.execute(memberships.insert().values(org_id=org_id, user_id=user_id, role=Role.OWNER.value))
    return Principal(kind="user", id=user_id, user_id=user_id, org_id=org_id, scopes=frozenset(REGISTRY.scopes))


def new(ctx: Context, name: str = "p", **changes: Any):
    return projects.create(ctx, ProjectsCreateInput(name=name, **changes))


async def keys_of(stores: Stores, prefix: str) -> list[str]:
    return sorted([key async for key, _ in stores.objects.list(prefix)])


async def count(stores: Stores, table: sa.Table) -> int:
    async with stores.db.read() as tx:
        return (await tx.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()


async def test_create_makes_the_row_and_the_marker(make, stores, owner):
    project = await new(make(owner), " Mosel ", description="water stress")
    assert (project.name, project.description) == ("Mosel", "water stress")
    assert await projects.get(make(owner), ProjectsGetInput(project_id=project.project_id)) == project
    marker = f"{owner.org_id}/{project.project_id}/.project"
    assert await keys_of(stores, owner.org_id) == [marker]
    assert msgspec.json.decode(await stores.objects.read(marker)) == {"project_id": project.project_id}


async def test_create_on_a_store_that_cannot_be_written_is_unavailable_and_leaves_nothing(make, stores, owner):
    stores.objects.root.mkdir(parents=True, exist_ok=True)
    (stores.objects.root / owner.org_id).write_text("a file where the organisation's folder should be")
    with pytest.raises(Unavailable, match="project was not made"):
        await new(make(owner))
    assert await count(stores, project_rows) == 0


@pytest.mark.parametrize("problem", [GenericError("503 Slow Down"), OSError("no route"), TimeoutError()])
async def test_create_on_a_store_that_fails_is_unavailable_and_leaves_nothing(
    make, stores, owner, problem, monkeypatch
):
    async def put(*_arguments: object, **_options: object) -> None:
        raise problem

    monkeypatch.setattr(stores.objects, "put", put)
    with pytest.raises(Unavailable):
        await new(make(owner))
    assert await count(stores, project_rows) == 0


async def test_create_on_a_store_that_hangs_is_given_up(make, stores, owner, monkeypatch):
    async def put(*_arguments: object, **_options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(stores.objects, "put", put)
    monkeypatch.setattr(projects, "_STORE_TIMEOUT_S", 0.01)
    with pytest.raises(Unavailable):
        await new(make(owner))


async def test_create_takes_the_marker_back_when_the_database_refuses(make, stores, owner):
    stranger = msgspec.structs.replace(owner, org_id="org_absent")
    with pytest.raises(sa.exc.IntegrityError):
        await new(make(stranger))
    assert await keys_of(stores, "org_absent") == []


async def test_create_with_a_key_of_one_project_is_refused(make, stores, owner):
    with pytest.raises(MissingScope, match="restricted to project prj_1"):
        await new(make(msgspec.structs.replace(owner, project_id="prj_1")))
    assert await keys_of(stores, owner.org_id) == []


async def test_list_pages_newest_first_and_only_own(make, stores, owner):
    stranger = await new_owner(stores)
    made = [await new(make(owner), f"p{i}") for i in range(5)]
    await new(make(stranger))
    found: list[projects.Project] = []
    cursor = None
    for length in (2, 2, 1):
        page = await projects.list_(make(owner), ProjectsListInput(limit=2, cursor=cursor))
        assert len(page.projects) == length
        found.extend(page.projects)
        cursor = page.next_cursor
    assert cursor is None
    assert found == sorted(made, key=lambda project: project.project_id, reverse=True)


async def test_list_continues_where_it_was_while_projects_come_and_go(make, owner):
    first, _second, third = [await new(make(owner), f"p{i}") for i in range(3)]
    ids = sorted([first.project_id, _second.project_id, third.project_id], reverse=True)
    page = await projects.list_(make(owner), ProjectsListInput(limit=1))
    await new(make(owner), "newer")
    await projects.delete(make(owner), ProjectsDeleteInput(project_id=ids[0]))
    rest = await projects.list_(make(owner), ProjectsListInput(cursor=page.next_cursor))
    assert [project.project_id for project in rest.projects] == ids[1:]


async def test_list_refuses_a_cursor_of_another_list(make, owner):
    for _ in range(2):
        await access.create(make(owner), access.ApiKeysCreateInput(name="k", scopes=("projects:read",)))
    page = await access.list_(make(owner), access.ApiKeysListInput(limit=1))
    with pytest.raises(InvalidCursor):
        await projects.list_(make(owner), ProjectsListInput(limit=1, cursor=page.next_cursor))


async def test_update_changes_what_is_given(make, owner):
    ctx = make(owner)
    project = await new(ctx, description="old")
    changed = await projects.update(ctx, ProjectsUpdateInput(project_id=project.project_id, name=" New "))
    assert (changed.name, changed.description) == ("New", "old")
    changed = await projects.update(ctx, ProjectsUpdateInput(project_id=project.project_id, description=""))
    assert (changed.name, changed.description) == ("New", "")
    assert await projects.update(ctx, ProjectsUpdateInput(project_id=project.project_id)) == changed


async def test_project_of_others_is_not_found_and_untouched(make, stores, owner):
    project, other = await new(make(owner)), await new(make(owner))
    for principal in (await new_owner(stores), msgspec.structs.replace(owner, project_id=other.project_id)):
        ctx, one = make(principal), {"project_id": project.project_id}
        with pytest.raises(NotFound):
            await projects.get(ctx, ProjectsGetInput(**one))
        with pytest.raises(NotFound):
            await projects.update(ctx, ProjectsUpdateInput(**one, name="stolen"))
        with pytest.raises(NotFound):
            await projects.delete(ctx, ProjectsDeleteInput(**one))
        assert project not in (await projects.list_(ctx, ProjectsListInput())).projects
    assert await projects.get(make(owner), ProjectsGetInput(project_id=project.project_id)) == project


async def test_key_of_a_project_sees_that_one(make, owner):
    project, _ = await new(make(owner)), await new(make(owner))
    ctx = make(msgspec.structs.replace(owner, project_id=project.project_id))
    assert (await projects.list_(ctx, ProjectsListInput())).projects == (project,)
    assert await projects.get(ctx, ProjectsGetInput(project_id=project.project_id)) == project


def item_row(owner: Principal, project_id: str, now: datetime) -> dict[str, Any]:
    return {"title": "t", "document": {}, "input": {}, "size_bytes": 1}


def upload_row(state: str) -> Callable[..., dict[str, Any]]:
    def row(owner: Principal, project_id: str, now: datetime) -> dict[str, Any]:
        return {
            "filename": "f.tif", "state": state, "declared_bytes": 1, "received_bytes": 1,
            "object_key": f"{owner.org_id}/{project_id}/uploads/u", "description": {}, "expires_at": now,
        }  # fmt: skip

    return row


def job_row(state: str) -> Callable[..., dict[str, Any]]:
    def row(owner: Principal, project_id: str, now: datetime) -> dict[str, Any]:
        return {
            "mode": "live", "name": "j", "method": "clip", "task": {}, "inputs": [], "state": state, "bound": {},
            "is_interactive": False, "pixels_done": 0, "shards_total": 1, "shards_done": 0, "is_cancelling": False,
            "created_by": owner.id, "request_id": "req_1",
        }  # fmt: skip

    return row


def key_row(**changes: Any) -> Callable[..., dict[str, Any]]:
    def row(owner: Principal, project_id: str, now: datetime) -> dict[str, Any]:
        return {
            "public_id": new_id("pub")[-16:], "name": "k", "mode": "live", "scopes": [], "verifier": "-",
            "last4": "1234", "created_by": owner.id, **changes,
        }  # fmt: skip

    return row


async def fill(stores: Stores, owner: Principal, project_id: str, table: sa.Table, row: Callable[..., Any]) -> str:
    row_id, now = new_id("row"), utc_now()
    own = {"id": row_id, "org_id": owner.org_id, "project_id": project_id, "created_at": now}
    async with stores.db.write() as tx:
        await tx.execute(table.insert().values(own | row(owner, project_id, now)))
    return row_id


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ((items, item_row), "items: 1"),
        ((uploads, upload_row("initiated")), "open uploads: 1"),
        ((uploads, upload_row("ingesting")), "open uploads: 1"),
        ((jobs, job_row("created")), "jobs that have not ended: 1"),
        ((jobs, job_row("publishing")), "jobs that have not ended: 1"),
        ((api_keys, key_row()), "API keys that still work: 1"),
        ((api_keys, key_row(expires_at=utc_now() + timedelta(days=1))), "API keys that still work: 1"),
    ],
)
async def test_delete_of_a_project_in_use_is_a_conflict_that_names_what_it_holds(make, stores, owner, held, message):
    project, (table, row) = await new(make(owner)), held
    await fill(stores, owner, project.project_id, table, row)
    with pytest.raises(Conflict, match=message):
        await projects.delete(make(owner), ProjectsDeleteInput(project_id=project.project_id))
    assert await projects.get(make(owner), ProjectsGetInput(project_id=project.project_id)) == project
    assert await count(stores, table) == 1
    assert await count(stores, outbox) == 0


async def test_delete_removes_the_project_its_records_and_has_its_objects_deleted(make, stores, owner, monkeypatch):
    monkeypatch.setattr(projects, "_DELETED_AT_ONCE", 2)
    kept, project = await new(make(owner)), await new(make(owner))
    await fill(stores, owner, kept.project_id, uploads, upload_row("failed"))
    for state in ("completed", "failed"):
        await fill(stores, owner, project.project_id, uploads, upload_row(state))
    for state in ("completed", "failed", "cancelled"):
        job_id = await fill(stores, owner, project.project_id, jobs, job_row(state))
        async with stores.db.write() as tx:
            await tx.execute(job_events.insert().values(job_id=job_id, type="job.ended", data={}, at=utc_now()))
    await fill(stores, owner, project.project_id, api_keys, key_row(revoked_at=utc_now()))
    await fill(stores, owner, project.project_id, api_keys, key_row(expires_at=utc_now() - timedelta(days=1)))
    for name in ("a.tif", "b.tif"):
        await stores.objects.put(f"{owner.org_id}/{project.project_id}/jobs/j/attempts/0/1/{name}", b"x")

    await projects.delete(make(owner), ProjectsDeleteInput(project_id=project.project_id))

    with pytest.raises(NotFound):
        await projects.get(make(owner), ProjectsGetInput(project_id=project.project_id))
    assert (await projects.list_(make(owner), ProjectsListInput())).projects == (kept,)
    assert [await count(stores, table) for table in (uploads, jobs, job_events, api_keys)] == [1, 0, 0, 0]
    async with stores.db.read() as tx:
        effects = (await tx.execute(sa.select(outbox).order_by(outbox.c.id))).all()
    assert [effect.topic for effect in effects] == ["objects.delete"] * 2
    assert {effect.org_id for effect in effects} == {owner.org_id}
    named = [key for effect in effects for key in effect.payload["keys"]]
    assert sorted(named) == await keys_of(stores, f"{owner.org_id}/{project.project_id}")
    assert len(named) == 3


async def test_delete_of_an_absent_project_is_not_found(make, owner):
    with pytest.raises(NotFound):
        await projects.delete(make(owner), ProjectsDeleteInput(project_id=new_id("prj")))


async def test_simultaneous_deletes_succeed_once(make, stores, owner):
    project = await new(make(owner))
    request = ProjectsDeleteInput(project_id=project.project_id)
    answers = await asyncio.gather(*(projects.delete(make(owner), request) for _ in range(5)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["NoneType"] + ["NotFound"] * 4
    assert await count(stores, outbox) == 1


async def test_key_made_while_its_project_is_deleted_either_holds_it_or_finds_it_gone(make, stores, owner):
    for _ in range(8):
        project = await new(make(owner))
        wish = access.ApiKeysCreateInput(name="k", scopes=("projects:read",), project_id=project.project_id)
        made, deleted = await asyncio.gather(
            access.create(make(owner), wish),
            projects.delete(make(owner), ProjectsDeleteInput(project_id=project.project_id)),
            return_exceptions=True,
        )
        key_won = isinstance(made, access.NewApiKey) and isinstance(deleted, Conflict)
        delete_won = isinstance(made, NotFound) and deleted is None
        assert key_won or delete_won, (made, deleted)


async def test_organisation_tells_quota_use_and_members(make, stores, owner):
    await new_owner(stores)
    found = await projects.organisations_get(make(owner), OrganisationsGetInput())
    assert (found.organisation_id, found.name) == (owner.org_id, "Vineyards")
    assert (found.quota_bytes, found.used_bytes) == (100, 7)
    assert [(member.user_id, member.role) for member in found.members] == [(owner.id, Role.OWNER)]


async def test_organisation_is_not_shown_to_a_key_of_one_project(make, owner):
    key = Principal(kind="key", id="key_1", org_id=owner.org_id, scopes=owner.scopes, project_id="p", mode=Mode.TEST)
    with pytest.raises(MissingScope):
        await projects.organisations_get(make(key), OrganisationsGetInput())


async def test_organisation_that_is_gone_is_not_found(make, owner):
    with pytest.raises(NotFound):
        await projects.organisations_get(make(msgspec.structs.replace(owner, org_id="o")), OrganisationsGetInput())


async def test_owner_pauses_the_organisation_and_lets_it_go_on(make, owner):
    paused = await projects.organisations_pause(make(owner), OrganisationsPauseInput())
    assert paused.paused_at is not None
    again = await projects.organisations_pause(make(owner), OrganisationsPauseInput())
    assert again.paused_at == paused.paused_at
    resumed = await projects.organisations_resume(make(owner), OrganisationsResumeInput())
    assert resumed.paused_at is None


async def test_pause_by_a_key_counts_as_its_makers(make, stores, owner):
    scopes = frozenset({"organisations:write"})
    creator = msgspec.structs.replace(owner, scopes=scopes)
    wish = access.ApiKeysCreateInput(name="k", scopes=("organisations:write",))
    key = await access.create(make(creator), wish)
    principal = Principal(kind="key", id=key.key_id, org_id=owner.org_id, scopes=scopes)
    assert (await projects.organisations_pause(make(principal), OrganisationsPauseInput())).paused_at is not None
    async with stores.db.write() as tx:
        await tx.execute(memberships.update().values(role=Role.MEMBER.value))
    for who in (principal, owner):
        with pytest.raises(MissingScope, match="Only an owner"):
            await projects.organisations_resume(make(who), OrganisationsResumeInput())
    bound = msgspec.structs.replace(principal, project_id="prj_x")
    with pytest.raises(MissingScope, match="restricted to project"):
        await projects.organisations_pause(make(bound), OrganisationsPauseInput())
