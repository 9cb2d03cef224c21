"""Projects and the organisation they belong to.

`projects.create`, `.get`, `.list`, `.update` and `.delete` keep the folders that items, uploads and jobs live in;
`organisations.get` tells who shares them and how much storage is left.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from msgspec import Meta
from obstore.exceptions import BaseError as StoreError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import identity
from eorouter.errors import Conflict, InvalidCursor, MissingScope, NotFound, Unavailable
from eorouter.jobs.wakeup import notify
from eorouter.operation import Context, Example, Route, Tier, operation
from eorouter.storage import allotments
from eorouter.storage import projects as stored
from eorouter.storage.deletions import delete_later
from eorouter.storage.pages import page
from eorouter.storage.tables import (
    api_keys,
    items,
    jobs,
    memberships,
    organisations,
    owned,
    projects,
    uploads,
    users,
)
from eorouter.types import Id, Input, Output, PageInput, Role, new_id

DOMAINS = ("projects", "organisations")

ProjectName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S", description="Name of the project.")]
ProjectDescription = Annotated[str, Meta(max_length=2000, description="What the project is about.")]

_STORE_TIMEOUT_S = 20
_DELETED_AT_ONCE = 500
_UPLOADS_ENDED = ("completed", "failed")
_JOBS_ENDED = ("completed", "failed", "cancelled")


class Project(Output):
    """A folder of items, uploads and jobs."""

    project_id: str
    name: str
    description: str
    created_at: datetime


class ProjectPage(Output):
    """Projects, newest first."""

    projects: tuple[Project, ...]
    next_cursor: str | None


class ProjectsCreateInput(Input):
    """A new project."""

    name: ProjectName
    description: ProjectDescription = ""


@operation(
    "projects.create",
    tier=Tier.WRITE,
    scope="projects:write",
    errors=(MissingScope, Unavailable),
    routes=(Route("POST", "/v1/projects"),),
    examples=(
        Example(summary="Make a project", request={"name": "Vineyards", "description": "Water stress along the Mosel"}),
    ),
    status=201,
)
async def create(ctx: Context, request: ProjectsCreateInput) -> Project:
    """Make a project and the place in the object store where its imagery will lie.

    Answers `unavailable` where the store cannot be written to; then there is no project either, and the call can be
    repeated. A key that is restricted to a project is refused with `missing_scope`.
    """
    principal = ctx.principal
    if principal.project_id is not None:
        raise MissingScope(f"This key is restricted to project {principal.project_id} and cannot make another.")
    project = Project(
        project_id=new_id("prj"),
        name=request.name.strip(),
        description=request.description,
        created_at=ctx.clock(),
    )
    marker = _marker_key(principal.org_id, project.project_id)
    # The marker comes first: a store that hangs must hold up neither a transaction nor, on SQLite, all other writers.
    async with _store_problems("The project was not made"):
        await ctx.stores.objects.put(marker, msgspec.json.encode({"project_id": project.project_id}))
    try:
        async with ctx.stores.db.write() as tx:
            await tx.execute(
                projects.insert().values(
                    id=project.project_id,
                    org_id=principal.org_id,
                    name=project.name,
                    description=project.description,
                    created_at=project.created_at,
                )
            )
    except BaseException:
        await ctx.stores.objects.delete([marker])
        raise
    return project


class ProjectsGetInput(Input):
    """Which project."""

    project_id: Id


@operation(
    "projects.get",
    tier=Tier.READ,
    scope="projects:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/projects/{project_id}"),),
    examples=(Example(summary="One project", request={"project_id": "prj_01k0d5f3q8y7x2w9v4t6s1r0pn"}),),
)
async def get(ctx: Context, request: ProjectsGetInput) -> Project:
    """Show one project.

    Answers `not_found` for a project that is not yours, or not the one your key is restricted to.
    """
    async with ctx.stores.db.read() as tx:
        return _project(await stored.get(tx, ctx.principal, request.project_id))


class ProjectsListInput(PageInput):
    """How many projects to show at once."""


@operation(
    "projects.list",
    tier=Tier.READ,
    scope="projects:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/projects"),),
    examples=(Example(summary="The twenty newest", request={"limit": 20}),),
)
async def list_(ctx: Context, request: ProjectsListInput) -> ProjectPage:
    """List the organisation's projects, newest first.

    A key that is restricted to a project sees that one only.
    """
    query = sa.select(projects).where(owned(projects, ctx.principal))
    async with ctx.stores.db.read() as tx:
        rows, cursor = await page(tx, ctx.settings, "projects", request, query, by=projects.c.id)
    return ProjectPage(projects=tuple(_project(row) for row in rows), next_cursor=cursor)


class ProjectsUpdateInput(Input):
    """What to change; what is absent or null stays."""

    project_id: Id
    name: ProjectName | None = None
    description: ProjectDescription | None = None


@operation(
    "projects.update",
    tier=Tier.WRITE,
    scope="projects:write",
    errors=(NotFound,),
    routes=(Route("PATCH", "/v1/projects/{project_id}"),),
    examples=(
        Example(
            summary="Rename a project",
            request={"project_id": "prj_01k0d5f3q8y7x2w9v4t6s1r0pn", "name": "Vineyards 2026"},
        ),
    ),
)
async def update(ctx: Context, request: ProjectsUpdateInput) -> Project:
    """Change the name or the description of a project.

    Answers `not_found` for a project that is not yours.
    """
    changes: dict[str, Any] = {}
    if request.name is not None:
        changes["name"] = request.name.strip()
    if request.description is not None:
        changes["description"] = request.description
    async with ctx.stores.db.write() as tx:
        if changes:
            one = (projects.c.id == request.project_id) & owned(projects, ctx.principal)
            await tx.execute(projects.update().where(one).values(changes))
        return _project(await stored.get(tx, ctx.principal, request.project_id))


class ProjectsDeleteInput(Input):
    """Which project to delete."""

    project_id: Id


@operation(
    "projects.delete",
    tier=Tier.DESTRUCTIVE,
    scope="projects:write",
    errors=(NotFound, Conflict, Unavailable),
    routes=(Route("DELETE", "/v1/projects/{project_id}"),),
    examples=(Example(summary="Delete a project", request={"project_id": "prj_01k0d5f3q8y7x2w9v4t6s1r0pn"}),),
)
async def delete(ctx: Context, request: ProjectsDeleteInput) -> None:
    """Delete an empty project for good, with the records of its ended jobs and uploads and its dead keys.

    Answers `conflict` while it holds items, open uploads, jobs that have not ended, or keys that still work, and says
    how many of each; `not_found` for a project that is not yours.
    """
    principal, now, project_id = ctx.principal, ctx.clock(), request.project_id
    async with ctx.stores.db.read() as tx:
        await stored.get(tx, principal, project_id)
    async with _store_problems("The project was not deleted"):
        leftovers = [key async for key, _ in ctx.stores.objects.list(f"{principal.org_id}/{project_id}")]
    async with ctx.stores.db.write() as tx:
        await stored.get(tx, principal, project_id, held="alone")
        await _check_empty(tx, project_id, now)
        for table in (jobs, uploads, api_keys):
            await tx.execute(table.delete().where(table.c.project_id == project_id))
        await tx.execute(projects.delete().where(projects.c.id == project_id))
        for start in range(0, len(leftovers), _DELETED_AT_ONCE):
            await delete_later(tx, principal.org_id, now=now, keys=leftovers[start : start + _DELETED_AT_ONCE])


async def _check_empty(tx: AsyncConnection, project_id: str, now: datetime) -> None:
    is_usable = api_keys.c.revoked_at.is_(None) & (api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > now))
    holdings = (
        ("items", items, sa.true()),
        ("open uploads", uploads, uploads.c.state.not_in(_UPLOADS_ENDED)),
        ("jobs that have not ended", jobs, jobs.c.state.not_in(_JOBS_ENDED)),
        ("API keys that still work", api_keys, is_usable),
    )
    held: list[str] = []
    for noun, table, condition in holdings:
        query = sa.select(sa.func.count()).select_from(table).where(table.c.project_id == project_id, condition)
        count = (await tx.execute(query)).scalar_one()
        if count:
            held.append(f"{noun}: {count}")
    if held:
        raise Conflict(f"The project is not empty ({', '.join(held)}). Delete, cancel or revoke these first.")


class Member(Output):
    """A user of an organisation."""

    user_id: str
    name: str
    email: str
    role: Role


class Organisation(Output):
    """Who shares projects, storage and the bill."""

    organisation_id: str
    name: str
    quota_bytes: int
    used_bytes: int
    members: tuple[Member, ...]
    created_at: datetime
    paused_at: datetime | None


class OrganisationsGetInput(Input):
    """Nothing to say: it is the caller's organisation."""


@operation(
    "organisations.get",
    tier=Tier.READ,
    scope="organisations:read",
    errors=(NotFound, MissingScope),
    routes=(Route("GET", "/v1/organisation"),),
    examples=(Example(summary="The organisation of the caller", request={}),),
)
async def organisations_get(ctx: Context, request: OrganisationsGetInput) -> Organisation:
    """Show your organisation: its storage, how much of it is used, and who belongs to it.

    `used_bytes` counts items at their size and open uploads at the size they declared. A key that is restricted to a
    project is refused with `missing_scope`.
    """
    del request
    principal = ctx.principal
    if principal.project_id is not None:
        raise MissingScope(f"This key is restricted to project {principal.project_id}.")
    async with ctx.stores.db.read() as tx:
        return await _organisation(tx, principal.org_id)


class OrganisationsPauseInput(Input):
    """Nothing to say: it is the caller's organisation."""


@operation(
    "organisations.pause",
    tier=Tier.WRITE,
    scope="organisations:write",
    errors=(NotFound, MissingScope),
    routes=(Route("POST", "/v1/organisation/pause"),),
    examples=(Example(summary="Begin nothing more for now", request={}),),
)
async def organisations_pause(ctx: Context, request: OrganisationsPauseInput) -> Organisation:
    """Pause your organisation's jobs: shards under way finish, nothing more is begun until `organisations.resume`.

    Jobs can still be created and cancelled. Only an owner, or a key that an owner made, may do this.
    """
    del request
    async with ctx.stores.db.write() as tx:
        await identity.check_owner(tx, ctx.principal, "pause its jobs and let them go on")
        await allotments.pause(tx, ctx.principal.org_id, at=ctx.clock())
        return await _organisation(tx, ctx.principal.org_id)


class OrganisationsResumeInput(Input):
    """Nothing to say: it is the caller's organisation."""


@operation(
    "organisations.resume",
    tier=Tier.WRITE,
    scope="organisations:write",
    errors=(NotFound, MissingScope),
    routes=(Route("POST", "/v1/organisation/resume"),),
    examples=(Example(summary="Go on with everything that waits", request={}),),
)
async def organisations_resume(ctx: Context, request: OrganisationsResumeInput) -> Organisation:
    """Let your organisation's jobs go on after a pause. Only an owner, or a key that an owner made, may do this."""
    del request
    async with ctx.stores.db.write() as tx:
        await identity.check_owner(tx, ctx.principal, "pause its jobs and let them go on")
        await allotments.pause(tx, ctx.principal.org_id, at=None)
        await notify(tx)
        return await _organisation(tx, ctx.principal.org_id)


async def _organisation(tx: AsyncConnection, org_id: str) -> Organisation:
    members = (
        sa.select(users.c.id, users.c.name, users.c.email, memberships.c.role)
        .join(memberships, memberships.c.user_id == users.c.id)
        .where(memberships.c.org_id == org_id)
        .order_by(users.c.id)
    )
    row = (await tx.execute(sa.select(organisations).where(organisations.c.id == org_id))).one_or_none()
    if row is None:
        raise NotFound("There is no such organisation.")
    return Organisation(
        organisation_id=row.id,
        name=row.name,
        quota_bytes=row.quota_bytes,
        used_bytes=row.used_bytes,
        members=tuple(
            Member(user_id=user.id, name=user.name, email=user.email, role=Role(user.role))
            for user in (await tx.execute(members)).all()
        ),
        created_at=row.created_at,
        paused_at=row.paused_at,
    )


def _marker_key(org_id: str, project_id: str) -> str:
    return f"{org_id}/{project_id}/.project"


@asynccontextmanager
async def _store_problems(consequence: str) -> AsyncIterator[None]:
    """Turn a store that fails or hangs into `unavailable`, saying what that means for the request."""
    try:
        async with asyncio.timeout(_STORE_TIMEOUT_S):
            yield
    except (StoreError, OSError) as error:
        raise Unavailable(f"{consequence}: the object store does not answer as it should. Try again later.") from error


def _project(row: Row) -> Project:
    return Project(project_id=row.id, name=row.name, description=row.description, created_at=row.created_at)
