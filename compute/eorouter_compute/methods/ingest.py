"""Ingest: open an uploaded file safely, find out what it is, and make an item of it. Internal; callers upload."""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime as Datetime  # noqa: N812 - the parameter is called datetime, as in STAC
from math import isqrt
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import cog, product, raster, sources, verbatim
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.cog import CogSpec, Stored
from eorouter_compute.errors import (
    ComputeError,
    DecompressionBomb,
    InvalidParameter,
    NoCrs,
    NotARaster,
    NotAVector,
    SourceFault,
    SourceTruncated,
    SourceUnreadable,
    UnsupportedFormat,
)
from eorouter_compute.grid import Transform, Window, footprint, tiles
from eorouter_compute.method import (
    Band,
    Bound,
    InputItem,
    Kind,
    Method,
    OutputAsset,
    OutputItem,
    Params,
    Part,
    Plan,
    RasterAsset,
    ReadReport,
    Result,
    Shard,
    VectorAsset,
)
from eorouter_kernels.nodata import around

RATIO_MAX = 2000
"""Unpacked bytes per stored byte. DEFLATE cannot exceed 1032; the rest is room for sparse files."""

RATIO_FROM_BYTES = 1 << 30
"""Files that unpack to less than this are harmless whatever their ratio."""

_CHUNK = 8 << 20
_MEMORY_BYTES = raster.TILE_BYTES_MAX + product.PIECE_BYTES + (320 << 20)
_WIDE = frozenset({"int64", "uint64"})
_NARROWER = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_VECTOR_MEDIA_TYPES = {
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".geoparquet": "application/vnd.apache.parquet",
    ".geojson": "application/geo+json",
    ".json": "application/geo+json",
    ".fgb": "application/vnd.flatgeobuf",
}


class BandHint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the uploader knows about a band better than the file; None keeps the file's word."""

    name: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    common_name: str | None = None
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    unit: str | None = None
    description: str | None = None


class IngestFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further file of the same item; the fields mean what they mean in `IngestParams`."""

    key: Annotated[str, Meta(min_length=1, max_length=64)]
    href: str
    filename: Annotated[str, Meta(min_length=1, max_length=255)]
    declared_bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    bands: Annotated[tuple[BandHint, ...], Meta(max_length=raster.BANDS_MAX)] = ()


class IngestParams(Params, frozen=True, kw_only=True, tag="ingest"):
    """Check an uploaded file and make an item of it.

    A raster becomes a COG, or stays byte for byte what it is when it is one already; a vector file stays as it is.
    Every pixel is read once, so a file that is damaged inside is found here and not in somebody's job.

    Attributes:
        href: where the uploaded object is.
        filename: what the uploader calls it.
        declared_bytes: size that was announced and accounted for.
        sha256: digest that was announced, in hex.
        pixels_max: most pixels (width × height) this installation accepts.
        bands: what the uploader says about the bands, in the file's order, alpha left out; empty, or one per band.
        datetime: when the image was taken.
        key: the asset's key in the item.
        title: what people call the item; the file's name when absent.
        others: further files, each a raster with a key of its own, that become assets of the same item.
        properties: what the files do not say of the scene, under STAC's names.
    """

    href: str
    filename: Annotated[str, Meta(min_length=1, max_length=255)]
    declared_bytes: Annotated[int, Meta(ge=0)]
    pixels_max: Annotated[int, Meta(gt=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    bands: Annotated[tuple[BandHint, ...], Meta(max_length=raster.BANDS_MAX)] = ()
    datetime: Datetime | None = None
    key: Annotated[str, Meta(min_length=1, max_length=64)] = "data"
    title: str | None = None
    others: tuple[IngestFile, ...] = ()
    properties: dict[str, Any] = msgspec.field(default_factory=dict)


class Verdict(Struct, frozen=True, kw_only=True):
    """What `run` found out, for `merge`: `spec` with `segment` or `statistics`, or else `vector`."""

    asset: RasterAsset | None = None
    spec: CogSpec | None = None
    segment: cog.Segment | None = None
    statistics: tuple[cog.BandStatistics, ...] = ()
    vector: VectorAsset | None = None
    reasons: tuple[str, ...] = ()


def plan(params: IngestParams, inputs: Sequence[InputItem]) -> Plan:
    """One shard per file: one that nobody has looked into cannot be cut up."""
    if inputs:
        raise InvalidParameter("ingest takes no input items.", pointer="/inputs")
    files = [_file(params, number) for number in range(1 + len(params.others))]
    keys = [file.key for file in files]
    if len(set(keys)) < len(keys):
        raise InvalidParameter(f"Two files have the same key; the keys are {', '.join(keys)}.", pointer="/others")
    shards = tuple(
        Shard(
            body=str(number).encode(),
            bound=Bound(
                pixels=params.pixels_max,
                bytes_read=4 * file.declared_bytes + (1 << 20),
                bytes_written=16 * params.pixels_max + file.declared_bytes,
                memory_bytes=_MEMORY_BYTES,
                seconds=1.0 + file.declared_bytes * 4e-8 + params.pixels_max * 4e-8,
            ),
        )
        for number, file in enumerate(files)
    )
    merge_bound = Bound(
        bytes_read=16 * params.pixels_max * len(files),
        bytes_written=16 * params.pixels_max * len(files),
        memory_bytes=256 << 20,
        seconds=1.0 + params.pixels_max * len(files) * 4e-8,
    )
    return Plan(shards=shards, merge_bound=merge_bound)


def _file(params: IngestParams, number: int) -> IngestParams:
    """The parameters as if file `number` were the only one."""
    if not number:
        return msgspec.structs.replace(params, others=())
    return msgspec.structs.replace(params, **msgspec.structs.asdict(params.others[number - 1]), others=())


def run(params: IngestParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    """Open the file, judge it, read every pixel and encode what must be written anew."""
    params = _file(params, int(body or b"0"))
    try:
        return _taken_in(params, attempt)
    except SourceFault as error:
        raise type(error)(_named(params, error.message), pointer=error.pointer, **error.data) from error


def _taken_in(params: IngestParams, attempt: Attempt) -> Part:
    _check_bytes(params)
    try:
        found = raster.inspect(params.href)
    except (NotARaster, UnsupportedFormat) as error:
        return Part(body=msgspec.msgpack.encode(Verdict(vector=_vector(params, error))))
    _check_expansion(params, found)
    if found.asset is None:
        raise NoCrs(_named(params, found.problem), source=params.href)
    asset = _hinted(params, found.asset)
    reasons = _reasons_to_rewrite(found, asset)
    source, indexes = asset, [band.index for band in asset.bands]
    if asset.bands[0].dtype in _WIDE:
        asset = _narrowed(params, source, attempt)
        reasons.append(f"its 64-bit integers all have a place in {asset.bands[0].dtype}")
    spec = _spec(asset, found)
    report = ReadReport()

    def compute(window: Window) -> Stored:
        nonlocal report
        made = verbatim.read(spec, asset, indexes, window) if source is asset else _narrow(source, spec, window)
        valid = window.pixels if made.valid is None else int(np.count_nonzero(made.valid.any(axis=0)))
        report += ReadReport(reads=1, pixels=window.pixels, valid_pixels=valid)
        return made

    if not reasons:
        statistics = cog.measure(spec, lambda window: compute(window)[:2], advance=attempt.advance)
        verdict = Verdict(asset=asset, spec=spec, statistics=statistics)
        return Part(body=msgspec.msgpack.encode(verdict), report=report)
    samples = (raster.read_block(source, indexes, place).pixels.astype(spec.dtype) for place in _samples(asset))
    spec = cog.with_best_predictor(spec, tuple(samples))
    size = len(spec.bands) * np.dtype(source.bands[0].dtype).itemsize
    side = product.piece_side(spec, 2.0 * (size + len(spec.bands)))
    segment, objects = product.encode(spec, spec.window, side, attempt, compute)
    verdict = Verdict(asset=asset, spec=spec, segment=segment, reasons=tuple(reasons))
    return Part(body=msgspec.msgpack.encode(verdict), objects=objects, report=report)


def merge(params: IngestParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """Write the item's files."""
    verdicts = [msgspec.msgpack.decode(part.body, type=Verdict) for part in parts]
    report = sum((part.report for part in parts), start=ReadReport())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(params.filename).stem)[:80].strip("-.") or "upload"
    if verdicts[0].vector is not None and not params.others:
        made = _vector_item(params, verdicts[0].vector, attempt, name)
        summary: dict[str, Any] = {"kind": "vector", "features": verdicts[0].vector.feature_count}
        return Result(items=(made,), summary=summary, report=report)
    files = [_file(params, number) for number in range(len(parts))]
    for file, verdict in zip(files, verdicts, strict=True):
        if verdict.vector is not None:
            raise NotARaster(
                f"{file.filename} is a vector file; an item of several files has rasters only.", source=file.href
            )
    assets = [
        _raster_asset(file, verdict, attempt, f"{name}/{file.key}.tif")
        for file, verdict in zip(files, verdicts, strict=True)
    ]
    names = [file.filename for file in files]
    is_classes = verdicts[0].spec is not None and verdicts[0].spec.overview_resampling == "mode"
    made = product.item(
        assets,
        attempt,
        name=name,
        at=params.datetime,
        title=params.title or params.filename,
        properties=params.properties | ({"filename": names[0]} if len(names) == 1 else {"filenames": names}),
        style="class" if is_classes else None,
    )
    summary = {
        "kind": "raster",
        "is_unchanged": all(verdict.segment is None for verdict in verdicts),
        "rewritten_because": [reason for verdict in verdicts for reason in verdict.reasons],
    }
    return Result(items=(made,), summary=summary, report=report)


def _raster_asset(params: IngestParams, verdict: Verdict, attempt: Attempt, path: str) -> OutputAsset:
    """Write a raster's file: the upload itself, or the COG made of it."""
    assert verdict.spec is not None and verdict.asset is not None, "run gives a vector or a raster"  # noqa: PT018, S101
    if verdict.segment is None:
        _copy(params.href, attempt, path)
        info = cog.CogInfo(size=attempt.refs[path].size, is_big_tiff=False, statistics=verdict.statistics)
        asset = product.cog_asset(verdict.spec, info, attempt, path=path, asset_key=params.key)
        kept = msgspec.structs.replace(
            verdict.asset, key=params.key, href=asset.object.href, sha256=asset.object.sha256
        )
        return msgspec.structs.replace(asset, raster=kept)
    return product.assemble(verdict.spec, [verdict.segment], attempt, path=path, asset_key=params.key)


# Judging --------------------------------------------------------------------------------------------------------------


def _named(params: IngestParams, message: str) -> str:
    """The uploader knows the file by its name, not by where it was put."""
    return message.replace(params.href, params.filename)


def _check_bytes(params: IngestParams) -> None:
    size = sources.object_size(params.href)
    if size == 0:
        raise NotARaster(f"{params.filename} is empty.", source=params.href)
    if size < params.declared_bytes:
        raise SourceTruncated(
            f"{params.filename} was announced with {params.declared_bytes} bytes, {size} arrived. Upload it again.",
            source=params.href,
        )
    if size > params.declared_bytes:
        raise SourceUnreadable(
            f"{params.filename} was announced with {params.declared_bytes} bytes and has {size}. Announce that.",
            source=params.href,
        )
    if params.sha256 is not None:
        digest = hashlib.sha256()
        for chunk in _chunks(params.href, size):
            digest.update(chunk)
        if digest.hexdigest() != params.sha256:
            raise SourceUnreadable(
                f"{params.filename}: its SHA-256 is {digest.hexdigest()}, announced was "
                f"{params.sha256}. Upload it again.",
                source=params.href,
            )


def _check_expansion(params: IngestParams, found: raster.Inspection) -> None:
    """Refuse before anything is unpacked."""
    pixels = found.shape[0] * found.shape[1]
    if pixels > params.pixels_max:
        raise DecompressionBomb(
            f"{params.filename} declares {found.shape[1]} × {found.shape[0]} = {pixels} pixels; at most "
            f"{params.pixels_max} are accepted.",
            source=params.href,
        )
    unpacked = pixels * sum(np.dtype(dtype).itemsize for dtype in found.dtypes)
    if unpacked > RATIO_FROM_BYTES and unpacked > RATIO_MAX * params.declared_bytes:
        raise DecompressionBomb(
            f"{params.filename} has {params.declared_bytes} bytes and unpacks to {unpacked}, more than "
            f"{RATIO_MAX} times as much.",
            source=params.href,
        )


def _hinted(params: IngestParams, asset: RasterAsset) -> RasterAsset:
    """The asset with the uploader's word on its bands."""
    if not params.bands:
        return asset
    if len(params.bands) != len(asset.bands):
        raise InvalidParameter(
            f"{params.filename} has {len(asset.bands)} bands, {len(params.bands)} were described.", pointer="/bands"
        )
    bands: list[Band] = []
    for number, (band, hint) in enumerate(zip(asset.bands, params.bands, strict=True)):
        said = {key: value for key, value in msgspec.structs.asdict(hint).items() if value is not None}
        if "nodata" in said and raster.storable(said["nodata"], band.dtype) is None:
            raise InvalidParameter(
                f"{band.dtype} cannot hold the nodata value {said['nodata']}.", pointer=f"/bands/{number}/nodata"
            )
        bands.append(msgspec.structs.replace(band, **said))
    names = [band.name for band in bands]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InvalidParameter(f"Two bands are called {name!r}.", pointer=f"/bands/{number}/name")
    return msgspec.structs.replace(asset, bands=tuple(bands))


def _reasons_to_rewrite(found: raster.Inspection, asset: RasterAsset) -> list[str]:
    """Why the file cannot be kept as it is; empty when it can."""
    if found.driver != "GTiff":
        return [f"it is {found.driver}"]
    reasons = sources.layout_faults(asset.href)
    if "alpha" in found.color_interpretation:
        reasons.append("it has an alpha band, which becomes a mask")
    before = found.asset.bands if found.asset is not None else ()
    if [repr(band.nodata) for band in before] != [repr(band.nodata) for band in asset.bands]:
        reasons.append("its nodata value was corrected")
    if len({repr(band.nodata) for band in asset.bands}) > 1:
        reasons.append("its bands have different nodata values")
    return reasons


def _spec(asset: RasterAsset, found: raster.Inspection) -> CogSpec:
    dtype = asset.bands[0].dtype
    declared = {repr(band.nodata): band.nodata for band in asset.bands}
    nodata = next(iter(declared.values())) if len(declared) == 1 else None
    has_mask = asset.has_mask or (len(declared) > 1 and not dtype.startswith("float"))
    if nodata is None and not has_mask and dtype.startswith("float"):
        nodata = float("nan")
    return CogSpec(
        shape=asset.shape,
        transform=asset.transform,
        crs=asset.crs,
        dtype=dtype,
        bands=asset.bands,
        nodata=None if has_mask else nodata,
        has_mask=has_mask,
        overview_resampling="mode" if "palette" in found.color_interpretation else "average",
    )


def _narrowed(params: IngestParams, asset: RasterAsset, attempt: Attempt) -> RasterAsset:
    """The asset in the narrowest type that holds every number of it; what hides pixels, but has no place, is a mask's.

    Raises:
        UnsupportedFormat: numbers beyond ±2⁵³ that no other type holds either.
    """
    low, high = 0, 0
    indexes = [band.index for band in asset.bands]
    side = max(isqrt(product.PIECE_BYTES // (20 * len(indexes))) // 16 * 16, 16)
    for place in tiles(asset.window, side):
        block = raster.read_block(asset, indexes, place)
        known = block.pixels if block.valid is None else block.pixels[block.valid]
        if known.size:
            low, high = min(low, int(known.min())), max(high, int(known.max()))
        attempt.advance(0)
    holding = (dtype for dtype in _NARROWER if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)
    dtype = next(holding, "float64" if max(-low, high) <= 1 << 53 else None)
    if dtype is None:
        raise UnsupportedFormat(
            f"{params.filename} holds whole numbers from {low} to {high}; 64-bit integers are kept up to ±2⁵³. Number "
            "them anew, or spread them over two bands.",
            source=params.href,
        )
    narrow = tuple(
        msgspec.structs.replace(band, dtype=dtype, nodata=_placed(band.nodata, dtype)) for band in asset.bands
    )
    hides = any(old.nodata is not None and new.nodata is None for old, new in zip(asset.bands, narrow, strict=True))
    return msgspec.structs.replace(asset, bands=narrow, has_mask=asset.has_mask or hides)


def _placed(nodata: float | None, dtype: str) -> float | None:
    """`nodata` if the type can hold it, and no other whole number of the type is taken for it."""
    beside = around(nodata, dtype)
    return nodata if beside.last - beside.first < 2 else None


def _narrow(source: RasterAsset, spec: CogSpec, window: Window) -> Stored:
    """Pixels of a window in the type they go to; those that are missing are anything."""
    block = raster.read_block(source, [band.index for band in source.bands], window)
    pixels = block.pixels if block.valid is None else np.where(block.valid, block.pixels, 0)
    return Stored(pixels.astype(spec.dtype), block.valid, {})


def _samples(asset: RasterAsset) -> list[Window]:
    """Nine small places spread over the raster; their pixels decide on the predictor."""
    height, width = min(asset.shape[0], 256), min(asset.shape[1], 256)
    rows = sorted({(asset.shape[0] - height) * third // 2 for third in range(3)})
    cols = sorted({(asset.shape[1] - width) * third // 2 for third in range(3)})
    return [Window(row, col, height, width) for row in rows for col in cols]


# Files that stay as they are ------------------------------------------------------------------------------------------


def _vector(params: IngestParams, not_a_raster: NotARaster | UnsupportedFormat) -> VectorAsset:
    from eorouter_compute import vector

    try:
        return vector.describe(params.href)
    except NotAVector:
        if isinstance(not_a_raster, UnsupportedFormat):
            raise type(not_a_raster)(_named(params, not_a_raster.message), **not_a_raster.data) from None
        raise NotARaster(
            f"{params.filename} is neither a raster ({', '.join(raster.DRIVERS)}) nor a vector file that is read "
            "(GeoPackage, GeoParquet, GeoJSON).",
            source=params.href,
        ) from not_a_raster
    except ComputeError as error:
        raise type(error)(_named(params, error.message), pointer=error.pointer, **error.data) from error


def _vector_item(params: IngestParams, vector: VectorAsset, attempt: Attempt, name: str) -> OutputItem:
    suffix = PurePosixPath(params.filename).suffix.lower()
    path = f"{name}/data{suffix}"
    _copy(params.href, attempt, path)
    ref = attempt.refs[path]
    x_min, y_min, x_max, y_max = vector.bounds
    # A single point has no extent; give it a little, or it has no outline either.
    width, height = max(x_max - x_min, 1e-9), max(y_max - y_min, 1e-9)
    transform: Transform = (width, 0.0, x_min, 0.0, -height, y_min + height)
    geometry, bbox = footprint(vector.crs, (1, 1), transform)
    asset = OutputAsset(
        key=params.key,
        object=ref,
        media_type=_VECTOR_MEDIA_TYPES.get(suffix, "application/octet-stream"),
        roles=("data",),
        filename=params.filename,
        title=params.filename,
        vector=msgspec.structs.replace(vector, key=params.key, href=ref.href, sha256=ref.sha256),
    )
    return OutputItem(
        name=name,
        assets=(asset,),
        footprint=geometry,
        bbox=bbox,
        at=params.datetime,
        title=params.title or params.filename,
        properties=params.properties | {"filename": params.filename},
    )


def _copy(href: str, attempt: Attempt, path: str) -> None:
    with attempt.create(path) as out:
        for chunk in _chunks(href, sources.object_size(href)):
            out.write(chunk)
            attempt.advance(0)


def _chunks(href: str, size: int) -> Any:
    for start in range(0, size, _CHUNK):
        yield read_object(href, start, min(start + _CHUNK, size))


METHOD = Method(
    id="ingest",
    title="Ingest an uploaded file",
    makes=Kind.RASTER,
    params=IngestParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=0,
    is_internal=True,
    is_blind=True,
)
