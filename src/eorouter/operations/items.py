"""Items and their files.

`items.create` takes files in from addresses; `get`, `search` and `delete` do what they say; `items.assets.download`
gives a file to whoever may read the item, `assets.download` to whoever has an address of `assets.signed_url`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from eorouter import remote, signing
from eorouter.errors import (
    ApiError,
    ComputeRefused,
    Conflict,
    Fault,
    InvalidCursor,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    SignatureInvalid,
    SourceRefused,
    Unavailable,
)
from eorouter.jobs import ingest
from eorouter.jobs.ingest import TEXT, BandNote, SceneProperties
from eorouter.operation import PUBLIC, Blob, Context, Example, Route, Tier, operation
from eorouter.storage import items, pages, uploads
from eorouter.types import Id, Input, Json, Output, PageInput, new_id

DOMAINS = ("items", "assets")

ASSETS_MAX = 32
FETCH_LIFE = timedelta(hours=2)
ADDRESS_LIFE_MAX_S = 7 * 86400
INGEST_WAIT_S = 600.0
"""Longest that creating an item waits for its ingest, once all its files are here."""

_FETCHES_AT_ONCE = 4
_RESERVE_STEP = 64 << 20
_ASSET_KEY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_RESERVED_KEYS = ("preview",)
"""Keys of what the service itself adds."""

AssetKey = Annotated[str, Meta(min_length=1, max_length=64, description="Name of an asset within its item.")]


class Item(Output):
    """A STAC item; `links` and the hrefs of `assets` are absolute."""

    kind: Literal["Feature"] = msgspec.field(name="type")
    stac_version: str
    stac_extensions: list[str]
    id: str
    geometry: Json
    bbox: list[float]
    properties: Json
    links: list[Json]
    assets: dict[str, Json]


class ItemPage(Output):
    """Items, newest first."""

    items: list[Item]
    next_cursor: str | None


class AssetAddress(Output):
    """An address of a file that needs no credentials; whoever has it may read the file until it expires."""

    url: str
    expires_at: datetime


class AssetSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file to take in."""

    href: Annotated[str, Meta(min_length=1, max_length=2048, description="Its http or https address.")]
    bands: Annotated[
        tuple[BandNote, ...], Meta(max_length=1000, description="Notes on its bands, in the file's order.")
    ] = ()


class ItemsCreateInput(Input):
    """Which files make the item, and what they do not say themselves."""

    project_id: Id
    assets: Annotated[
        dict[str, AssetSource], Meta(min_length=1, max_length=ASSETS_MAX, description="Files by asset key.")
    ]
    title: Annotated[str, Meta(max_length=500, pattern=TEXT, description="What people call the item.")] | None = None
    at: Annotated[datetime, Meta(tz=True, description="Time of acquisition, RFC 3339.")] | None = msgspec.field(
        default=None, name="datetime"
    )
    properties: SceneProperties = SceneProperties()


@operation(
    "items.create",
    tier=Tier.WRITE,
    scope="items:write",
    status=201,
    errors=(NotFound, QuotaExceeded, SourceRefused, ComputeRefused, Conflict, Unavailable),
    routes=(Route("POST", "/v1/items"),),
    examples=(
        Example(
            summary="Two bands of a scene, one file each",
            request={
                "project_id": "prj_01hv8e7m3k9q2w4r6t8y0a1b2c",
                "title": "Sentinel-2, 1 May 2024",
                "datetime": "2024-05-01T10:20:31Z",
                "properties": {"platform": "sentinel-2a", "s2:processing_baseline": "05.10", "eo:cloud_cover": 3.2},
                "assets": {
                    "red": {
                        "href": "https://data.example/scene/B04.tif",
                        "bands": [{"name": "B04", "common_name": "red"}],
                    },
                    "nir": {
                        "href": "https://data.example/scene/B08.tif",
                        "bands": [{"name": "B08", "common_name": "nir"}],
                    },
                },
            },
        ),
    ),
)
async def create(ctx: Context, request: ItemsCreateInput) -> Item:
    """Make an item of files at public addresses.

    The files are copied into the project, checked and stored as cloud-optimised GeoTIFFs; the addresses are not needed
    afterwards. All or nothing: if one file is refused, none is kept and no quota is used.
    """
    faults = [
        Fault(pointer=f"/assets/{_pointer(key)}", message=f"{key!r} must match {_ASSET_KEY}.", received=key)
        for key in request.assets
        if not re.fullmatch(_ASSET_KEY, key) or key in _RESERVED_KEYS
    ]
    if faults:
        raise InvalidInput(
            "Asset keys are letters, digits, dots, dashes and underscores, at most 64, the first a letter or digit; "
            f"taken already: {', '.join(_RESERVED_KEYS)}.",
            errors=faults,
        )
    ingest.check_time(request.at)
    allowed = remote.allowed_hosts(ctx.settings.remote_hosts)
    for key, source in request.assets.items():
        with _located(key):
            remote.check(source.href, allowed)
    rows = await _open(ctx, request)
    try:
        rows = await _fetch_all(ctx, request, rows, allowed)
        title = request.title or rows[0].filename
        params = ingest.task(ctx, rows, list(request.assets), title=title, at=request.at)
        job_id = await ingest.start(ctx, rows, params, name=f"Ingest {title}"[:200])
    except BaseException as error:
        problem = {"code": getattr(error, "code", "interrupted"), "message": str(error)}
        async with ctx.stores.db.write() as tx:
            await uploads.fail(tx, [row.id for row in rows], problem=problem, now=ctx.clock())
        raise
    await ingest.wait(ctx, job_id, INGEST_WAIT_S)
    return await _made(ctx, rows[0].id)


async def _open(ctx: Context, request: ItemsCreateInput) -> list[uploads.Row]:
    """An upload per file, all or none; their sizes are not known yet."""
    now, rows = ctx.clock(), []
    async with ctx.stores.db.write() as tx:
        for source in request.assets.values():
            description = {
                "title": request.title, "datetime": request.at, "bands": source.bands, "sha256": None,
                "source": remote.display(source.href), "properties": request.properties,
            }  # fmt: skip
            row = await uploads.create(
                tx, ctx.principal, upload_id=new_id("upl"), project_id=request.project_id,
                filename=remote.filename(source.href), declared_bytes=0, sha256=None,
                description=msgspec.to_builtins(description), now=now, expires_at=now + FETCH_LIFE,
            )  # fmt: skip
            rows.append(row)
    return rows


async def _fetch_all(
    ctx: Context, request: ItemsCreateInput, rows: Sequence[uploads.Row], allowed: frozenset[tuple[str, int]]
) -> list[uploads.Row]:
    """The uploads with their bytes; the first refusal stops the others."""
    gate = asyncio.Semaphore(_FETCHES_AT_ONCE)

    async def fetch(key: str, source: AssetSource, row: uploads.Row) -> uploads.Row:
        async with gate:
            with _located(key):
                return await remote.fetch(
                    source.href,
                    lambda found: _take(ctx, row, found),
                    bytes_max=ctx.settings.upload_bytes_max,
                    allowed=allowed,
                )

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(fetch(key, source, row))
                for (key, source), row in zip(request.assets.items(), rows, strict=True)
            ]
    except BaseExceptionGroup as several:
        raise next(
            (error for error in several.exceptions if isinstance(error, ApiError)), several.exceptions[0]
        ) from None
    return [task.result() for task in tasks]


async def _take(ctx: Context, row: uploads.Row, found: remote.Source) -> uploads.Row:
    """Store the bytes of a source, taking quota for them as they come."""
    db, objects = ctx.stores.db, ctx.stores.objects
    async with db.write() as tx:
        row = await uploads.get(tx, ctx.principal, row.id)
        key = await uploads.open_attempt(tx, row)
        missing = (found.size_bytes or 0) - row.declared_bytes
        if missing > 0:
            await uploads.grow(tx, row, missing)
    held = max(row.declared_bytes, found.size_bytes or 0)

    async def under_quota() -> AsyncIterator[bytes]:
        nonlocal held
        seen = 0
        async for chunk in found.chunks:
            seen += len(chunk)
            if seen > held:
                async with db.write() as tx:
                    held += await uploads.grow_some(tx, row, at_least=seen - held, at_most=_RESERVE_STEP)
            yield chunk

    size, sha256 = await objects.put_stream(key, under_quota(), bytes_max=ctx.settings.upload_bytes_max)
    if not size:
        raise SourceRefused(f"{found.name} is empty.")
    async with db.write() as tx:
        await uploads.grow(tx, row, size - held)
        await uploads.receive(tx, row.id, key=key, size_bytes=size, sha256=sha256)
        return await uploads.get(tx, ctx.principal, row.id)


@contextmanager
def _located(key: str) -> Iterator[None]:
    """Say in a refusal which of the request's addresses it is about."""
    try:
        yield
    except SourceRefused as error:
        pointer = f"/assets/{_pointer(key)}/href"
        raise SourceRefused(
            error.message, errors=[Fault(pointer=pointer, message=error.message, code=error.code)]
        ) from error


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


async def _made(ctx: Context, upload_id: str) -> Item:
    async with ctx.stores.db.read() as tx:
        row = await uploads.get(tx, ctx.principal, upload_id)
        if row.problem is not None:
            raise ingest.refusal(row.problem)
        if row.item_id is None:
            raise Unavailable(
                f"The files are here, but job {row.job_id} has not made the item of them yet. Look at the job; "
                "the item appears in the project when it completes.",
                headers={"Retry-After": "60"},
            )
        document = (await items.get(tx, ctx.principal, row.item_id)).document
    return _item(ctx, document)


class ItemsGetInput(Input):
    """Which item."""

    item_id: Id


@operation(
    "items.get",
    tier=Tier.READ,
    scope="items:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/items/{item_id}"),),
    examples=(Example(summary="One item", request={"item_id": "itm_01hv8e7m3k9q2w4r6t8y0a1b2c"}),),
)
async def get(ctx: Context, request: ItemsGetInput) -> Item:
    """Get an item as STAC 1.1: where it lies, when it was taken, its bands, files and provenance."""
    async with ctx.stores.db.read() as tx:
        return _item(ctx, (await items.get(tx, ctx.principal, request.item_id)).document)


class ItemsSearchInput(PageInput):
    """Where, when and which; conditions hold together."""

    project_id: Id | None = None
    bbox: Annotated[
        tuple[float, ...] | None,
        Meta(description="West, south, east, north in degrees; west > east crosses the antimeridian. 6 with heights."),
    ] = None
    datetime: (
        Annotated[str, Meta(max_length=100, description="An RFC 3339 instant, or start/end, with .. for an open end.")]
        | None
    ) = None
    ids: Annotated[tuple[Id, ...], Meta(max_length=1000, description="Only these items.")] | None = None


@operation(
    "items.search",
    tier=Tier.READ,
    scope="items:read",
    errors=(NotFound, InvalidCursor),
    routes=(Route("POST", "/v1/items/search"), Route("GET", "/v1/items")),
    examples=(
        Example(
            summary="A place in spring",
            request={
                "bbox": [11.0, 46.0, 11.5, 46.5],
                "datetime": "2024-03-01T00:00:00Z/2024-06-01T00:00:00Z",
                "limit": 20,
            },
        ),
        Example(summary="Across the antimeridian", request={"bbox": [175, -20, -175, -10]}),
    ),
)
async def search(ctx: Context, request: ItemsSearchInput) -> ItemPage:
    """Find items by place, time, project or id, newest first.

    An item whose time nobody stated is not found by a time.
    """
    before = pages.start(ctx.settings, "items", request)
    query = items.Query(project_id=request.project_id, bbox=request.bbox, datetime=request.datetime, ids=request.ids)
    async with ctx.stores.db.read() as tx:
        page = await items.search(tx, ctx.stores.db, ctx.principal, query, limit=request.limit, before_id=before)
    return ItemPage(
        items=[_item(ctx, document) for document in page.documents],
        next_cursor=pages.following(ctx.settings, "items", request, page.next_id),
    )


class ItemsDeleteInput(Input):
    """Which item."""

    item_id: Id


@operation(
    "items.delete",
    tier=Tier.DESTRUCTIVE,
    scope="items:write",
    errors=(NotFound, Conflict),
    routes=(Route("DELETE", "/v1/items/{item_id}"),),
    examples=(Example(summary="One item", request={"item_id": "itm_01hv8e7m3k9q2w4r6t8y0a1b2c"}),),
)
async def delete(ctx: Context, request: ItemsDeleteInput) -> None:
    """Delete an item and its files for good; their bytes go back to the quota.

    Refused while a job that has not ended reads the item.
    """
    async with ctx.stores.db.write() as tx:
        await items.delete(tx, ctx.principal, request.item_id, ctx.clock())


class ItemsAssetsDownloadInput(Input):
    """Which file of which item."""

    item_id: Id
    asset_key: AssetKey


@operation(
    "items.assets.download",
    tier=Tier.READ,
    scope="items:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/items/{item_id}/assets/{asset_key}"),),
    examples=(
        Example(summary="The pixels", request={"item_id": "itm_01hv8e7m3k9q2w4r6t8y0a1b2c", "asset_key": "data"}),
    ),
)
async def assets_download(ctx: Context, request: ItemsAssetsDownloadInput) -> Blob:
    """Download a file of an item, whole or by ranges."""
    async with ctx.stores.db.read() as tx:
        row = await items.get(tx, ctx.principal, request.item_id)
    return _blob(row.document, request.asset_key)


class AssetsSignedUrlInput(Input):
    """Which file of which item, and for how long."""

    item_id: Id
    asset_key: AssetKey
    life_s: Annotated[int, Meta(ge=1, le=ADDRESS_LIFE_MAX_S, description="How long the address is good, seconds.")] = (
        3600
    )


@operation(
    "assets.signed_url",
    tier=Tier.EXPORT,
    scope="items:read",
    errors=(NotFound,),
    routes=(Route("POST", "/v1/items/{item_id}/assets/{asset_key}/signed_url"),),
    examples=(
        Example(
            summary="An hour, for QGIS",
            request={"item_id": "itm_01hv8e7m3k9q2w4r6t8y0a1b2c", "asset_key": "data", "life_s": 3600},
        ),
    ),
)
async def assets_signed_url(ctx: Context, request: AssetsSignedUrlInput) -> AssetAddress:
    """Get an address of a file that needs no credentials, for GDAL's /vsicurl/, QGIS or a browser.

    It ends with the file's name, as readers that look at suffixes expect. Deleting the item ends it.
    """
    async with ctx.stores.db.read() as tx:
        blob = _blob((await items.get(tx, ctx.principal, request.item_id)).document, request.asset_key)
    expires_at = ctx.clock() + timedelta(seconds=request.life_s)
    token = signing.sign(ctx.settings, "asset", [request.item_id, request.asset_key], expires_at=expires_at)
    return AssetAddress(url=f"{ctx.base_url}/v1/assets/{token}/{quote(blob.filename)}", expires_at=expires_at)


class AssetsDownloadInput(Input):
    """A signed address."""

    token: Annotated[str, Meta(min_length=1, max_length=512, description="Signature of the address.")]
    filename: Annotated[str, Meta(max_length=255, description="Name of the file.")]


@operation(
    "assets.download",
    tier=Tier.READ,
    scope=PUBLIC,
    errors=(SignatureInvalid, NotFound),
    routes=(Route("GET", "/v1/assets/{token}/{filename}"),),
    examples=(
        Example(
            summary="As a signed address carries it", request={"token": "bXkgc2lnbmF0dXJl", "filename": "ndvi.tif"}
        ),
    ),
)
async def download(ctx: Context, request: AssetsDownloadInput) -> Blob:
    """Download a file by its signed address, whole or by ranges."""
    item_id, asset_key = signing.verify(ctx.settings, "asset", request.token, now=ctx.clock())
    async with ctx.stores.db.read() as tx:
        blob = _blob((await items.get_signed(tx, item_id)).document, asset_key)
    if request.filename != blob.filename:  # readers look for side files such as .aux.xml beside the address
        raise NotFound(f"There is no file {request.filename!r} at this address.")
    return blob


def _blob(document: Json, asset_key: str) -> Blob:
    asset = document["assets"].get(asset_key)
    if asset is None:
        names = ", ".join(document["assets"])
        raise NotFound(f"Item {document['id']} has no asset {asset_key!r}. It has: {names}.")
    return Blob(
        key=asset["href"],
        media_type=asset["type"],
        filename=asset["href"].rpartition("/")[2],
        size=asset["file:size"],
        etag=f'"{asset["file:checksum"][4:]}"',
    )


def _item(ctx: Context, document: Json) -> Item:
    """The stored document with absolute addresses."""
    here = f"{ctx.base_url}/v1/items"
    address = f"{here}/{document['id']}"
    links = [{"rel": "self", "type": "application/geo+json", "href": address}]
    links += [
        {"rel": "derived_from", "type": "application/geo+json", "href": f"{here}/{source['item_id']}"}
        for source in document["properties"].get("eorouter:inputs", ())
    ]
    assets = {
        key: asset | {"href": f"{address}/assets/{quote(key, safe='')}"} for key, asset in document["assets"].items()
    }
    return Item(
        kind="Feature",
        **{key: document[key] for key in ("stac_version", "stac_extensions", "id", "geometry", "bbox", "properties")},
        links=links,
        assets=assets,
    )
