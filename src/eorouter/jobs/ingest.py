"""Raw files become one item: a job over all its files, and what came of it for those who wait."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from eorouter.errors import ApiError, ComputeRefused, Conflict, Fault, InvalidInput
from eorouter.jobs import queue
from eorouter.jobs.feed import place_of
from eorouter.operation import Context
from eorouter.storage import uploads
from eorouter.storage.stac import CommonName
from eorouter_compute.errors import ComputeError, RequestFault, SourceFault
from eorouter_compute.method import Params

_FIRST, _LAST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)

TEXT = r"^(?![\s\S]*[\x00-\x1f\x7f])"
"""Pattern of a line of text: no control characters."""


class BandNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the file does not say of a band; fields left out are taken from the file."""

    name: Annotated[
        str, Meta(min_length=1, max_length=64, pattern=TEXT, description="Name by which the band is asked for.")
    ]
    common_name: Annotated[
        CommonName | None, Meta(description="Common name after the STAC eo extension, such as red or nir.")
    ] = None
    scale: Annotated[float | None, Meta(description="Physical value = stored value × scale + offset.")] = None
    offset: Annotated[float | None, Meta(description="Physical value = stored value × scale + offset.")] = None
    nodata: Annotated[
        float | Literal["nan", "inf", "-inf"] | None, Meta(description="Stored value that means: no data.")
    ] = None


_Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=TEXT)]


class SceneProperties(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the files do not say of their scene, under the names of STAC's extensions; methods look at them.

    Which bands a sensor has, which offset a processing baseline brought, how much is cloud, how high the sun stood.
    """

    platform: Annotated[_Word, Meta(description="Spacecraft, such as sentinel-2a.")] | None = None
    constellation: Annotated[_Word, Meta(description="Its family, such as sentinel-2.")] | None = None
    instruments: Annotated[tuple[_Word, ...], Meta(max_length=16, description="Its instruments, such as msi.")] = ()
    gsd: Annotated[float, Meta(gt=0, le=1e6, description="Ground sample distance, m.")] | None = None
    cloud_cover: Annotated[float, Meta(ge=0, le=100, description="Share of clouds, %.")] | None = msgspec.field(
        default=None, name="eo:cloud_cover"
    )
    sun_elevation: Annotated[float, Meta(ge=-90, le=90, description="Above the horizon, °.")] | None = msgspec.field(
        default=None, name="view:sun_elevation"
    )
    sun_azimuth: Annotated[float, Meta(ge=0, le=360, description="From north, clockwise, °.")] | None = msgspec.field(
        default=None, name="view:sun_azimuth"
    )
    off_nadir: Annotated[float, Meta(ge=0, le=90, description="Angle of view from nadir, °.")] | None = msgspec.field(
        default=None, name="view:off_nadir"
    )
    processing_baseline: (
        Annotated[str, Meta(pattern=r"^\d{2}\.\d{2}$", description="Of a Sentinel-2 product, such as 05.10.")] | None
    ) = msgspec.field(default=None, name="s2:processing_baseline")
    is_offset_applied: (
        Annotated[bool, Meta(description="Whether this copy of a Sentinel-2 product has its 1,000 taken off already.")]
        | None
    ) = msgspec.field(default=None, name="earthsearch:boa_offset_applied")
    orbit_state: (
        Annotated[Literal["ascending", "descending", "geostationary"], Meta(description="Direction of flight.")] | None
    ) = msgspec.field(default=None, name="sat:orbit_state")
    relative_orbit: Annotated[int, Meta(ge=1, le=100_000, description="Number of the track.")] | None = msgspec.field(
        default=None, name="sat:relative_orbit"
    )
    instrument_mode: Annotated[_Word, Meta(description="Of a radar, such as IW.")] | None = msgspec.field(
        default=None, name="sar:instrument_mode"
    )
    frequency_band: (
        Annotated[Literal["P", "L", "S", "C", "X", "Ku", "K", "Ka"], Meta(description="Of a radar.")] | None
    ) = msgspec.field(default=None, name="sar:frequency_band")


def check_time(at: datetime | None) -> None:
    """Refuse a time that no zone conversion survives.

    Raises:
        InvalidInput: within a day of the ends of the calendar.
    """
    if at is not None and not _FIRST <= at <= _LAST:
        message = "/datetime must lie between the years 1 and 9999 in every time zone."
        raise InvalidInput(message, errors=[Fault(pointer="/datetime", message=message)])


def task(ctx: Context, rows: Sequence[uploads.Row], keys: Sequence[str], *, title: str, at: datetime | None) -> Params:
    """The parameters of the job that makes one item of received uploads; `keys` are the asset keys to be."""
    from eorouter_compute.methods.ingest import IngestParams

    first, *others = [
        {
            "key": key,
            "href": ctx.stores.objects.href(row.object_key),
            "filename": row.filename,
            "declared_bytes": row.declared_bytes,
            "bands": row.description["bands"],
        }
        for row, key in zip(rows, keys, strict=True)
    ]
    fields = {"others": others, "pixels_max": ctx.settings.raster_pixels_max, "title": title, "datetime": at}
    fields["properties"] = rows[0].description.get("properties", {})
    return msgspec.convert(first | fields | {"method": "ingest"}, IngestParams, strict=False)


async def start(ctx: Context, rows: Sequence[uploads.Row], params: Params, *, name: str) -> str:
    """Claim uploads of one project and start their job, in one transaction; returns its id.

    Raises:
        Conflict: another request claimed one of them.
        RequestFault: compute refuses them before any is read.
    """
    ids, now = [row.id for row in rows], ctx.clock()
    async with ctx.stores.db.write() as tx:
        await uploads.claim(tx, ids)
        job_id = await queue.create(
            tx, principal=ctx.principal, project_id=rows[0].project_id, task=params, inputs=[],
            name=name, is_interactive=True, request_id=ctx.request_id, now=now, dispatches=True,
        )  # fmt: skip
        await uploads.assign(tx, ids, job_id)
    return job_id


async def wait(ctx: Context, job_id: str, timeout_s: float) -> None:
    """Wait for the end of an ingest, at most `timeout_s`; its uploads have ended too when it has."""
    job = await queue.wait(ctx.stores.db, job_id, timeout_s, place=place_of(ctx))
    if job.state in {"failed", "cancelled"}:  # settled with the job, unless it was cancelled before anything ran
        problem = job.problem or {"code": "cancelled", "message": f"Job {job_id}, which read the file, was cancelled."}
        async with ctx.stores.db.write() as tx:
            await uploads.settle(tx, job_id, item_id=None, problem=problem, now=ctx.clock())


def refusal(problem: Mapping[str, Any]) -> ApiError:
    """The error to answer with when an upload has failed: the file's fault under its own code, else a conflict."""
    code, message = problem["code"], problem["message"]
    if code in _FILE_FAULTS:
        return ComputeRefused(message, code=code, pointer=problem.get("pointer") or "")
    return Conflict(f"The upload has failed ({code}): {message}")


def _codes(kind: type[ComputeError]) -> frozenset[str]:
    """The codes of an error class and of all below it."""
    return frozenset({kind.code}).union(*(_codes(below) for below in kind.__subclasses__()))


_FILE_FAULTS = _codes(RequestFault) | _codes(SourceFault)
