"""API keys: `api_keys.create` makes one, `api_keys.list` shows what there is, `api_keys.revoke` ends one.

A key never gives more than its maker has: scopes, project, mode and expiry of a new key lie within the caller's.
"""

from datetime import datetime
from typing import Annotated

import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import identity
from eorouter.errors import Fault, InvalidCursor, InvalidInput, MissingScope, NotFound
from eorouter.operation import Context, Example, Route, Tier, operation
from eorouter.storage import projects
from eorouter.storage.pages import page
from eorouter.storage.tables import api_keys, owned
from eorouter.types import Id, Input, Mode, Output, PageInput, Principal, new_id

DOMAINS = ("api_keys",)


class ApiKey(Output):
    """An API key without its secret; `prefix` and `last4` are what people recognise it by."""

    key_id: str
    name: str
    mode: Mode
    scopes: tuple[str, ...]
    project_id: str | None
    prefix: str
    last4: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewApiKey(ApiKey):
    """A key just made, with the secret that is never shown again."""

    secret: str


class ApiKeyPage(Output):
    """API keys, newest first."""

    api_keys: tuple[ApiKey, ...]
    next_cursor: str | None


class ApiKeysCreateInput(Input):
    """What the key shall be good for."""

    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S", description="What the key is for.")]
    scopes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100, description="What the key may do.")]
    mode: Annotated[Mode, Meta(description="`live` spends money, `test` does not.")] = Mode.LIVE
    project_id: Annotated[Id | None, Meta(description="Restrict the key to this project.")] = None
    expires_at: Annotated[datetime, Meta(tz=True, description="When the key ends by itself.")] | None = None


@operation(
    "api_keys.create",
    tier=Tier.WRITE,
    scope="api_keys:write",
    errors=(InvalidInput, MissingScope, NotFound),
    routes=(Route("POST", "/v1/keys"),),
    examples=(
        Example(summary="A key that reads", request={"name": "Dashboard", "scopes": ["projects:read"]}),
        Example(
            summary="A test key for one project, until the end of 2030",
            request={
                "name": "Continuous integration",
                "mode": "test",
                "scopes": ["projects:read", "projects:write"],
                "project_id": "prj_01k0d5f3q8y7x2w9v4t6s1r0pn",
                "expires_at": "2030-12-31T23:59:59Z",
            },
        ),
    ),
    status=201,
)
async def create(ctx: Context, request: ApiKeysCreateInput) -> NewApiKey:
    """Make an API key; its secret is in this answer and nowhere else afterwards.

    A key can do no more than its maker: `missing_scope` answers a wish for a scope, mode, project or life beyond the
    caller's own, `invalid_input` a scope that does not exist, `not_found` a project that is not yours. A key made by a
    key that is restricted to a project has the same restriction.
    """
    principal, now = ctx.principal, ctx.clock()
    scopes = _scopes(ctx, request)
    if principal.mode is Mode.TEST and request.mode is Mode.LIVE:
        raise MissingScope("A test key cannot make a live key. Ask for mode `test`, or use a live key.")
    if request.expires_at is not None and request.expires_at <= now:
        message = f"The key would have ended before it began: expected a time after {now:%Y-%m-%dT%H:%M:%SZ}."
        raise InvalidInput(message, errors=[Fault(pointer="/expires_at", message=message)])
    project_id = request.project_id or principal.project_id
    key = identity.new_api_key(request.mode)
    values = {
        "id": new_id("key"),
        "org_id": principal.org_id,
        "project_id": project_id,
        "public_id": key.public_id,
        "name": request.name.strip(),
        "mode": request.mode.value,
        "scopes": scopes,
        "verifier": await identity.api_key_verifier(key, cost=ctx.settings.bcrypt_cost),
        "last4": key.last4,
        "created_by": principal.id,
        "created_at": now,
        "expires_at": request.expires_at,
    }
    async with ctx.stores.db.write() as tx:
        if project_id is not None:
            await projects.get(tx, principal, project_id, held="shared")
        await _check_life(tx, principal, request.expires_at)
        await tx.execute(api_keys.insert().values(values))
        row = (await tx.execute(sa.select(api_keys).where(api_keys.c.id == values["id"]))).one()
    return NewApiKey(**_fields(row), secret=key.text)


def _scopes(ctx: Context, request: ApiKeysCreateInput) -> list[str]:
    """The scopes to give, sorted, each of which exists and is the caller's."""
    known = ctx.registry.scopes
    unknown = [
        Fault(
            pointer=f"/scopes/{index}",
            message=f"{scope!r} is no scope; there are {', '.join(known)}.",
            code="unknown_scope",
            received=scope,
        )
        for index, scope in enumerate(request.scopes)
        if scope not in known
    ]
    if unknown:
        raise InvalidInput(unknown[0].message, errors=unknown)
    beyond = sorted(set(request.scopes) - ctx.principal.scopes)
    if beyond:
        raise MissingScope(f"You cannot give what you do not have: {', '.join(beyond)}.")
    return sorted(set(request.scopes))


async def _check_life(tx: AsyncConnection, principal: Principal, expires_at: datetime | None) -> None:
    """A key made by a key ends no later than its maker."""
    if principal.kind != "key":
        return
    query = sa.select(api_keys.c.expires_at).where(api_keys.c.id == principal.id)
    end = (await tx.execute(query)).scalar_one_or_none()
    if end is not None and (expires_at is None or expires_at > end):
        raise MissingScope(
            f"This key ends at {end:%Y-%m-%dT%H:%M:%SZ} and cannot make one that outlives it. "
            "Give an expires_at that is no later."
        )


class ApiKeysListInput(PageInput):
    """Which keys to show."""

    mode: Annotated[Mode | None, Meta(description="Keys of one mode only.")] = None


@operation(
    "api_keys.list",
    tier=Tier.READ,
    scope="api_keys:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/keys"),),
    examples=(
        Example(summary="All keys", request={}),
        Example(summary="Test keys", request={"mode": "test", "limit": 20}),
    ),
)
async def list_(ctx: Context, request: ApiKeysListInput) -> ApiKeyPage:
    """List the organisation's API keys, newest first, expired and revoked ones included.

    A key that is restricted to a project sees the keys of that project, a test key sees test keys.
    """
    query = sa.select(api_keys).where(_visible(ctx.principal))
    if request.mode is not None:
        query = query.where(api_keys.c.mode == request.mode.value)
    async with ctx.stores.db.read() as tx:
        rows, cursor = await page(tx, ctx.settings, "api_keys", request, query, by=api_keys.c.id)
    return ApiKeyPage(api_keys=tuple(ApiKey(**_fields(row)) for row in rows), next_cursor=cursor)


class ApiKeysRevokeInput(Input):
    """Which key to end."""

    key_id: Id


@operation(
    "api_keys.revoke",
    tier=Tier.DESTRUCTIVE,
    scope="api_keys:write",
    errors=(NotFound,),
    routes=(Route("DELETE", "/v1/keys/{key_id}"),),
    examples=(Example(summary="End a key", request={"key_id": "key_01k0d5f3q8y7x2w9v4t6s1r0pn"}),),
)
async def revoke(ctx: Context, request: ApiKeysRevokeInput) -> None:
    """End an API key; every call with it is refused from now on.

    Revoking a key twice changes nothing. Keys that it made stay: list and revoke them if it leaked. Answers
    `not_found` for a key that is not yours.
    """
    one = (api_keys.c.id == request.key_id) & _visible(ctx.principal)
    async with ctx.stores.db.write() as tx:
        ended = api_keys.update().where(one).values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, ctx.clock()))
        if (await tx.execute(ended)).rowcount != 1:
            raise NotFound(f"There is no API key {request.key_id}.")
    identity.verified_keys.purge(request.key_id)


def _visible(principal: Principal) -> sa.ColumnElement[bool]:
    """Keys that the caller may know of; what holds a test key has no business with live ones."""
    condition = owned(api_keys, principal)
    return condition & (api_keys.c.mode == Mode.TEST.value) if principal.mode is Mode.TEST else condition


def _fields(row: Row) -> dict:
    return {
        "key_id": row.id,
        "name": row.name,
        "mode": Mode(row.mode),
        "scopes": tuple(row.scopes),
        "project_id": row.project_id,
        "prefix": f"eor_{row.mode}_sk_{row.public_id}",
        "last4": row.last4,
        "created_by": row.created_by,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }
