"""Uploads: a local file becomes an item.

`initiate` reserves the bytes and says where to put them, the bytes go to that address, `complete` turns them into an
item. `progress` and `list` look, `signed_url` gives a fresh address, `fail` gives up.
"""

import hashlib
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import signing
from eorouter.errors import (
    ComputeRefused,
    Conflict,
    Fault,
    InvalidCursor,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    SignatureInvalid,
)
from eorouter.jobs import ingest
from eorouter.jobs.ingest import TEXT, BandNote, SceneProperties
from eorouter.operation import PUBLIC, Context, Example, Route, Tier, operation
from eorouter.storage import uploads
from eorouter.storage.objects import ObjectMissing, Objects
from eorouter.storage.pages import page
from eorouter.storage.tables import jobs
from eorouter.storage.tables import uploads as table
from eorouter.types import Id, Input, Json, Output, PageInput, new_id

DOMAINS = ("uploads",)

UPLOAD_LIFE = timedelta(days=1)
ADDRESS_LIFE = timedelta(hours=1)
DIRECT_BYTES_MAX = 5 << 30
"""Most bytes that S3 takes in one PUT and copies in one request; larger files come through us, in parts."""

_PROGRESS_S = 1.0

Filename = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern=TEXT, description="Name of the file, for its format and for people."),
]
Title = Annotated[str, Meta(max_length=500, pattern=TEXT, description="What people call the item.")]
When = Annotated[datetime, Meta(tz=True, description="Time of acquisition, RFC 3339 with a zone.")]


class UploadJob(Output):
    """How far the job is that turns the file into an item."""

    job_id: str
    state: str
    shards_done: int
    shards_total: int


class Upload(Output):
    """A file on its way to becoming an item."""

    upload_id: str
    project_id: str
    filename: str
    state: Literal["initiated", "received", "ingesting", "completed", "failed"]
    declared_bytes: int
    received_bytes: int
    sha256: str | None
    job: UploadJob | None
    item_id: str | None
    problem: Json | None
    created_at: datetime
    expires_at: datetime


class UploadAddress(Output):
    """Where and how to send the bytes; whoever has the address may."""

    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    expires_at: datetime


class UploadTicket(Output):
    """A new upload and the address for its bytes."""

    upload: Upload
    address: UploadAddress


class UploadPage(Output):
    """Uploads, newest first."""

    uploads: list[Upload]
    next_cursor: str | None


class UploadsInitiateInput(Input):
    """Which file will come, and what it does not say itself."""

    project_id: Id
    filename: Filename
    size_bytes: Annotated[int, Meta(ge=1, description="Exact size of the file, bytes.")]
    sha256: (
        Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file in hex, checked when it came.")]
        | None
    ) = None
    title: Title | None = None
    at: When | None = msgspec.field(default=None, name="datetime")
    bands: Annotated[
        tuple[BandNote, ...], Meta(max_length=1000, description="Notes on the bands, in the file's order.")
    ] = ()
    properties: SceneProperties = SceneProperties()


@operation(
    "uploads.initiate",
    tier=Tier.WRITE,
    scope="uploads:write",
    status=201,
    errors=(NotFound, QuotaExceeded),
    routes=(Route("POST", "/v1/uploads"),),
    examples=(
        Example(
            summary="A scene with four bands",
            request={
                "project_id": "prj_01hv8e7m3k9q2w4r6t8y0a1b2c",
                "filename": "naip_2020.tif",
                "size_bytes": 2621440,
                "datetime": "2020-08-31T17:00:00Z",
                "bands": [
                    {"name": "R", "common_name": "red"},
                    {"name": "G", "common_name": "green"},
                    {"name": "B", "common_name": "blue"},
                    {"name": "N", "common_name": "nir", "nodata": 0},
                ],
            },
        ),
    ),
)
async def initiate(ctx: Context, request: UploadsInitiateInput) -> UploadTicket:
    """Reserve room for a file and get the address to send it to.

    The declared size counts against the storage quota until the upload ends. An upload that is not completed within a
    day ends by itself.
    """
    if request.size_bytes > ctx.settings.upload_bytes_max:
        message = f"A file has at most {ctx.settings.upload_bytes_max} bytes here; {request.size_bytes} were declared."
        raise InvalidInput(message, errors=[Fault(pointer="/size_bytes", message=message, code="too_large")])
    now = ctx.clock()
    ingest.check_time(request.at)
    description = {
        "title": request.title, "datetime": request.at, "bands": request.bands, "sha256": request.sha256,
        "properties": request.properties,
    }  # fmt: skip
    async with ctx.stores.db.write() as tx:
        row = await uploads.create(
            tx, ctx.principal, upload_id=new_id("upl"), project_id=request.project_id, filename=request.filename,
            declared_bytes=request.size_bytes, sha256=request.sha256, description=msgspec.to_builtins(description),
            now=now, expires_at=now + UPLOAD_LIFE,
        )  # fmt: skip
    return UploadTicket(upload=_upload(row, None), address=_address(ctx, row))


class UploadsSignedUrlInput(Input):
    """Which upload."""

    upload_id: Id


@operation(
    "uploads.signed_url",
    tier=Tier.WRITE,
    scope="uploads:write",
    errors=(NotFound, Conflict),
    routes=(Route("POST", "/v1/uploads/{upload_id}/signed_url"),),
    examples=(Example(summary="A fresh address", request={"upload_id": "upl_01hv8e7m3k9q2w4r6t8y0a1b2c"}),),
)
async def signed_url(ctx: Context, request: UploadsSignedUrlInput) -> UploadAddress:
    """Get a fresh address for the bytes of an upload; earlier addresses stay good until they expire."""
    async with ctx.stores.db.read() as tx:
        row = await uploads.get(tx, ctx.principal, request.upload_id)
    _refuse_closed(row, ctx.clock())
    return _address(ctx, row)


class UploadsReceiveInput(Input):
    """Which upload, by its signed address; the bytes are the body."""

    upload_id: Id
    token: Annotated[str, Meta(min_length=1, max_length=512, description="Signature of the address.")]


@operation(
    "uploads.receive",
    tier=Tier.WRITE,
    scope=PUBLIC,
    errors=(SignatureInvalid, NotFound, Conflict),
    routes=(Route("PUT", "/v1/uploads/{upload_id}/content"),),
    examples=(
        Example(
            summary="As an address of this service carries it",
            request={"upload_id": "upl_01hv8e7m3k9q2w4r6t8y0a1b2c", "token": "bXkgc2lnbmF0dXJl"},
        ),
    ),
    receives_bytes=True,
)
async def receive(ctx: Context, request: UploadsReceiveInput) -> Upload:
    """Send the bytes of an upload, all at once; may be repeated until the upload is completed.

    More or fewer bytes than declared, or another checksum, are refused, and nothing of them is kept; what an earlier
    request sent stays.
    """
    signed_id = signing.verify(ctx.settings, "upload", request.token, now=ctx.clock())
    if signed_id != request.upload_id:
        raise SignatureInvalid("The signature of this address belongs to another upload. Ask for a new address.")
    db, objects = ctx.stores.db, ctx.stores.objects
    async with db.write() as tx:
        row = await uploads.get_signed(tx, request.upload_id)
        _refuse_closed(row, ctx.clock())
        key = await uploads.open_attempt(tx, row)
    kept = False
    try:
        size, sha256 = await objects.put_stream(key, _counted(ctx, row), bytes_max=row.declared_bytes)
        _check_content(row, size, sha256)
        async with db.write() as tx:
            await uploads.receive(tx, row.id, key=key, size_bytes=size, sha256=sha256)
        kept = True
    finally:
        if not kept:
            await objects.delete([key])
    async with db.read() as tx:
        return _upload(await uploads.get_signed(tx, row.id), None)


async def _counted(ctx: Context, row: uploads.Row) -> AsyncIterator[bytes]:
    """The body; refused as soon as it is too long; its progress is noted once a second."""
    seen, due = 0, time.monotonic() + _PROGRESS_S
    if ctx.content is None:
        return
    async for chunk in ctx.content:
        seen += len(chunk)
        if seen > row.declared_bytes:
            raise _mismatch(row, f"more than {row.declared_bytes} bytes came", "size_mismatch", "at least " + str(seen))
        yield chunk
        if time.monotonic() >= due:
            due = time.monotonic() + _PROGRESS_S
            async with ctx.stores.db.write() as tx:
                await uploads.note_received(tx, row.id, seen)


def _check_content(row: uploads.Row, size: int, sha256: str | None) -> None:
    if size != row.declared_bytes:
        raise _mismatch(row, f"{size} bytes came", "size_mismatch", str(size))
    declared = row.description["sha256"]
    if declared and sha256 and sha256 != declared:
        raise _mismatch(row, f"the checksum of what came is {sha256}", "checksum_mismatch", sha256)


def _mismatch(row: uploads.Row, what: str, code: str, received: str) -> InvalidInput:
    expected = f"{row.declared_bytes} bytes" if code == "size_mismatch" else row.description["sha256"]
    message = (
        f"Upload {row.id} was declared with {expected}, but {what}. Nothing of it was kept: send the whole file again, "
        "or start an upload with the right numbers."
    )
    fault = Fault(pointer="", message=message, code=code, expected=expected, received=received)
    return InvalidInput(message, errors=[fault])


def _refuse_closed(row: uploads.Row, now: datetime) -> None:
    if row.state not in uploads.OPEN:
        raise Conflict(f"Upload {row.id} is {row.state} and takes no more bytes.")
    if now >= row.expires_at:
        raise Conflict(f"Upload {row.id} has expired. Start a new one.")


class UploadsProgressInput(Input):
    """Which upload."""

    upload_id: Id


@operation(
    "uploads.progress",
    tier=Tier.READ,
    scope="uploads:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/uploads/{upload_id}"),),
    examples=(Example(summary="One upload", request={"upload_id": "upl_01hv8e7m3k9q2w4r6t8y0a1b2c"}),),
)
async def progress(ctx: Context, request: UploadsProgressInput) -> Upload:
    """See how far an upload is: bytes received, the job that reads it, and the item or the problem it ended with."""
    return await _look(ctx, request.upload_id)


class UploadsCompleteInput(Input):
    """Which upload."""

    upload_id: Id


@operation(
    "uploads.complete",
    tier=Tier.WRITE,
    scope="uploads:write",
    errors=(NotFound, Conflict, ComputeRefused),
    routes=(Route("POST", "/v1/uploads/{upload_id}/complete"),),
    examples=(Example(summary="All bytes are sent", request={"upload_id": "upl_01hv8e7m3k9q2w4r6t8y0a1b2c"}),),
)
async def complete(ctx: Context, request: UploadsCompleteInput) -> Upload:
    """Turn the received bytes into an item.

    Waits for the item for some seconds; after that the answer says which job is still at work, and the same call waits
    on. A file that is no usable raster is refused with the reason; its bytes and its quota are given back. Repeating
    the call repeats the answer.
    """
    async with ctx.stores.db.read() as tx:
        row = await uploads.get(tx, ctx.principal, request.upload_id)
    if row.state in uploads.OPEN:
        try:
            await _start(ctx, await _received(ctx, row))
        except Conflict:
            async with ctx.stores.db.read() as tx:
                row = await uploads.get(tx, ctx.principal, request.upload_id)
            if row.state in uploads.OPEN:
                raise
            # Otherwise another request was quicker: wait with it.
        async with ctx.stores.db.read() as tx:
            row = await uploads.get(tx, ctx.principal, request.upload_id)
    if row.state == "ingesting":
        await ingest.wait(ctx, row.job_id, ctx.settings.ingest_wait_s)
    upload = await _look(ctx, request.upload_id)
    if upload.problem is not None:
        raise ingest.refusal(upload.problem)
    return upload


async def _start(ctx: Context, row: uploads.Row) -> None:
    at = row.description["datetime"]
    params = ingest.task(
        ctx,
        [row],
        ["data"],
        title=row.description["title"] or row.filename,
        at=None if at is None else datetime.fromisoformat(at),
    )
    await ingest.start(ctx, [row], params, name=f"Ingest {row.filename}"[:200])


async def _received(ctx: Context, row: uploads.Row) -> uploads.Row:
    """The upload with its bytes under a key that no signed address leads to, checked.

    Raises:
        Conflict: no bytes have come, or the upload's time is over.
        InvalidInput: size or checksum are not those declared.
    """
    _refuse_closed(row, ctx.clock())
    if row.state == "received":
        return row
    db, objects = ctx.stores.db, ctx.stores.objects
    try:
        _check_content(row, await objects.size(row.object_key), None)
    except ObjectMissing as error:
        raise Conflict(f"No bytes of upload {row.id} have arrived. Send them to its address first.") from error
    except InvalidInput:
        await objects.delete([row.object_key])
        raise
    async with db.write() as tx:
        key = await uploads.open_attempt(tx, row)
    await objects.copy(row.object_key, key)
    size = await objects.size(key)
    try:
        sha256 = await _digest(objects, key, size)
        _check_content(row, size, sha256)
    except InvalidInput:
        await objects.delete([key, row.object_key])
        raise
    async with db.write() as tx:
        await uploads.receive(tx, row.id, key=key, size_bytes=size, sha256=sha256)
        return await uploads.get(tx, ctx.principal, row.id)


async def _digest(objects: Objects, key: str, size: int) -> str:
    digest = hashlib.sha256()
    async for chunk in objects.stream(key, 0, size):
        digest.update(chunk)
    return digest.hexdigest()


class UploadsFailInput(Input):
    """Which upload, and why it will not come."""

    upload_id: Id
    reason: Annotated[str, Meta(max_length=500, pattern=TEXT, description="For people.")] = "Given up by the caller."


@operation(
    "uploads.fail",
    tier=Tier.WRITE,
    scope="uploads:write",
    errors=(NotFound, Conflict),
    routes=(Route("POST", "/v1/uploads/{upload_id}/fail"),),
    examples=(Example(summary="Give up", request={"upload_id": "upl_01hv8e7m3k9q2w4r6t8y0a1b2c"}),),
)
async def fail(ctx: Context, request: UploadsFailInput) -> Upload:
    """Give up an upload: its bytes are deleted and its quota is given back."""
    problem = {"code": "upload_given_up", "message": request.reason}
    async with ctx.stores.db.write() as tx:
        row = await uploads.get(tx, ctx.principal, request.upload_id)
        ended = await uploads.fail(tx, [row.id], problem=problem, now=ctx.clock())
        if not ended:
            row = await uploads.get(tx, ctx.principal, row.id)
            if row.state == "ingesting":
                raise Conflict(f"Upload {row.id} is being read by job {row.job_id}. Cancel that job instead.")
            if row.state == "completed":
                raise Conflict(f"Upload {row.id} has become item {row.item_id}. Delete that item instead.")
    return await _look(ctx, request.upload_id)


class UploadsListInput(PageInput):
    """Which uploads; conditions hold together."""

    project_id: Id | None = None
    state: Literal["initiated", "received", "ingesting", "completed", "failed"] | None = None


@operation(
    "uploads.list",
    tier=Tier.READ,
    scope="uploads:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/uploads"),),
    examples=(Example(summary="Those still open", request={"state": "initiated", "limit": 20}),),
)
async def list_(ctx: Context, request: UploadsListInput) -> UploadPage:
    """List uploads, newest first."""
    query = uploads.select(ctx.principal, project_id=request.project_id, state=request.state)
    async with ctx.stores.db.read() as tx:
        rows, cursor = await page(tx, ctx.settings, "uploads", request, query, by=table.c.id)
        progress_of = await _jobs(tx, [row.job_id for row in rows if row.job_id])
    return UploadPage(uploads=[_upload(row, progress_of.get(row.job_id)) for row in rows], next_cursor=cursor)


async def _look(ctx: Context, upload_id: str) -> Upload:
    async with ctx.stores.db.read() as tx:
        row = await uploads.get(tx, ctx.principal, upload_id)
        found = await _jobs(tx, [row.job_id] if row.job_id else [])
    return _upload(row, found.get(row.job_id))


async def _jobs(tx: AsyncConnection, job_ids: list[str]) -> dict[str, UploadJob]:
    if not job_ids:
        return {}
    c = jobs.c
    rows = await tx.execute(sa.select(c.id, c.state, c.shards_done, c.shards_total).where(c.id.in_(job_ids)))
    return {
        row.id: UploadJob(job_id=row.id, state=row.state, shards_done=row.shards_done, shards_total=row.shards_total)
        for row in rows
    }


def _upload(row: uploads.Row, job: UploadJob | None) -> Upload:
    return Upload(
        upload_id=row.id, project_id=row.project_id, filename=row.filename, state=row.state,
        declared_bytes=row.declared_bytes, received_bytes=row.received_bytes, sha256=row.sha256, job=job,
        item_id=row.item_id, problem=row.problem, created_at=row.created_at, expires_at=row.expires_at,
    )  # fmt: skip


def _address(ctx: Context, row: uploads.Row) -> UploadAddress:
    """At the store itself where it signs and takes the file in one request, else here."""
    now = ctx.clock()
    expires_at = min(now + ADDRESS_LIFE, row.expires_at)
    direct = row.description["keys"][0]
    url = None
    if row.declared_bytes <= DIRECT_BYTES_MAX:
        url = ctx.stores.objects.sign(direct, "PUT", expires_at - now)
    if url is None:
        token = signing.sign(ctx.settings, "upload", row.id, expires_at=expires_at)
        url = f"{ctx.base_url}/v1/uploads/{row.id}/content?token={token}"
    return UploadAddress(method="PUT", url=url, headers={}, expires_at=expires_at)
