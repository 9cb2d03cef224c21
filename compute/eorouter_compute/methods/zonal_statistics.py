"""Statistics of rasters under polygons, every cell weighted by the exact fraction a polygon covers.

A shard is a window of whole canonical blocks (`eorouter_kernels.coverage.BLOCK`) of one grid; it reads the blocks that
zones touch, in strips one block high, and hands on one accumulator per zone, block and band. The merge folds them in
the order of zone and block, so the bytes of the answer depend on neither the shards nor the workers. Bands that lie on
different grids (10 m beside 20 m, one scene beside the next) are measured each on their own, without resampling.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from eorouter_compute import ranks, strata, vector, warp, zone_table, zones
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.errors import AoiOutside, InvalidGeometry, InvalidParameter, TooLarge
from eorouter_compute.grid import Window
from eorouter_compute.measures import Histogram, Request, Seen, Statistic, class_suffix
from eorouter_compute.method import (
    Bound,
    InputItem,
    Kind,
    Method,
    Params,
    Part,
    Plan,
    ReadReport,
    Result,
    Shard,
    VectorAsset,
)
from eorouter_compute.polygons import as_crs
from eorouter_compute.quality import MaskChoice
from eorouter_compute.strata import Reading, Stratum, Weights
from eorouter_kernels import coverage, weighted, zonal

SHARD_PIXELS = 16 << 20
"""Pixels times bands of one shard, at most, but never less than one canonical block."""

BODY_BYTES_MAX = 256 << 10
"""Accumulators larger than this travel as an object of the attempt."""

NUMBERS_MAX = 50_000_000
"""Rows times columns of a result, at most."""

SHARDS_MAX = 20_000
ITEMS_MAX = 200
"""Most items that are measured in one job; one more may hold the zones and one more the weights."""

NAME = "zonal_statistics"

_ZONES_SCHEMA = {
    "oneOf": [
        {
            "title": "GeoJSON",
            "description": "FeatureCollection, Feature or geometry, in WGS 84 unless `crs` says otherwise.",
            "required": ["type"],
            "properties": {
                "type": {
                    "enum": ["FeatureCollection", "Feature", "Polygon", "MultiPolygon", "GeometryCollection"],
                }
            },
        },
        {
            "title": "Reference",
            "description": "An input item with a vector asset.",
            "required": ["item_id"],
            "properties": {"item_id": {"type": "string"}, "asset": {"type": "string"}},
            "additionalProperties": False,
        },
    ]
}


class ZonalStatisticsParams(Params, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=NAME):
    """Statistics of raster bands under polygons, each cell weighted by the exact fraction the polygon covers.

    Variance and standard deviation are those of the population. Quantiles are weighted and interpolated. Zones that
    cannot be measured keep their row and say why in `status`. Several items give a row per zone and item.
    """

    zones: Annotated[
        dict[str, Any],
        Meta(
            description="GeoJSON, or a reference to an input item with a vector asset.", extra_json_schema=_ZONES_SCHEMA
        ),
    ]
    crs: Annotated[str | None, Meta(description="CRS of inline coordinates, as x, y; GeoJSON's WGS 84 by default.")] = (
        None
    )
    bands: Annotated[
        Annotated[tuple[str, ...], Meta(min_length=1, max_length=1024)] | None,
        Meta(description="Band names; all bands of each item by default."),
    ] = None
    statistics: Annotated[
        tuple[Statistic, ...],
        Meta(
            max_length=20,
            description="What to compute; `area` is the covered valid area in m², `count` the covered valid cells, "
            "`class_fractions` the share of each class. Those that begin with `weighted_` need `weights`.",
        ),
    ] = ("count", "mean", "min", "max", "stdev", "valid_fraction")
    quantiles: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=1)], ...], Meta(max_length=20, description="Further quantiles, 0 to 1.")
    ] = ()
    classes: Annotated[
        Annotated[tuple[int, ...], Meta(min_length=1, max_length=256)] | None,
        Meta(description="Stored values that `class_fractions` gives a column each; all that are found by default."),
    ] = None
    histogram: Annotated[
        Histogram | None, Meta(description="Covered cells by bin: `edges`, or `bins` over a `range`.")
    ] = None
    weights: Annotated[Weights | None, Meta(description="A band that says how much each cell weighs, on any grid.")] = (
        None
    )
    mask: Annotated[
        MaskChoice | None, Meta(description="Pixels to leave out, by a quality band of each item or by a preset.")
    ] = None
    zone_id: Annotated[str | None, Meta(description="Field that names the zones in the column `zone_id`.")] = None
    include: Annotated[tuple[str, ...], Meta(max_length=256, description="Fields of the zones to carry over.")] = ()
    use_scale: Annotated[bool, Meta(description="Give physical values: stored × scale + offset.")] = True
    allow_missing: Annotated[
        bool, Meta(description="Count unreadable windows as missing, and list them, instead of failing.")
    ] = False


class _Piece(Struct, frozen=True, array_like=True):
    """Body of a shard: which stratum, and the window of blocks."""

    stratum: int
    window: Window


class _Partials(Struct, frozen=True, array_like=True):
    """What a shard found: accumulators per zone and block, and values where they are asked for."""

    stratum: int
    zone: bytes
    block: bytes
    state: bytes
    weighed: bytes
    values: list[ranks.Values]


class _Task(Struct, frozen=True):
    """Everything about the job but its pixels."""

    request: Request
    strata: tuple[Stratum, ...]
    items: tuple[InputItem, ...]
    layer: VectorAsset | None


def _task(params: ZonalStatisticsParams, inputs: Sequence[InputItem]) -> _Task:
    statistics = params.statistics
    quantiles = [f"q{100 * level:.10g}" for level in params.quantiles]
    classes = [class_suffix(value) for value in params.classes or ()]
    for field, columns in (("statistics", statistics), ("quantiles", quantiles), ("classes", classes)):
        for place, name in enumerate(columns):
            if name in columns[:place]:
                raise InvalidParameter(f"The column {name} is asked for twice.", pointer=f"/{field}/{place}")
    levels = {"median": 0.5} if "median" in statistics else {}
    request = Request(
        statistics=statistics,
        levels=levels | dict(zip(quantiles, params.quantiles, strict=True)),
        classes=None if params.classes is None else tuple(sorted(params.classes)),
        edges=None if params.histogram is None else params.histogram.resolved(),
        use_scale=params.use_scale,
        skips_unweighed=params.weights is not None and params.weights.missing == "skip",
    )
    if not statistics and not params.quantiles and params.histogram is None:
        raise InvalidParameter("Ask for one statistic or quantile at least.", pointer="/statistics")
    if params.classes is not None and "class_fractions" not in statistics:
        raise InvalidParameter("`classes` says of what `class_fractions` are given; ask for it.", pointer="/classes")
    if request.is_weighted != (params.weights is not None):
        name = next((name for name in statistics if name.startswith("weighted_")), None)
        why = f"`{name}` needs `weights`." if name else "`weights` are for statistics that begin with `weighted_`."
        raise InvalidParameter(why, pointer="/statistics" if name else "/weights")
    items = strata.measured(inputs, params.weights)
    if len(items) > ITEMS_MAX:
        raise InvalidParameter(f"At most {ITEMS_MAX} items are measured, {len(items)} were given.", pointer="/inputs")
    found = strata.strata(inputs, params.bands, params.mask, params.weights)
    return _Task(request, found, tuple(items), zones.layer_of(params.zones, inputs))


def _check(params: ZonalStatisticsParams, task: _Task) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    for stratum in task.strata:
        for column in stratum.columns:
            task.request.check(column.band)
        _, b, _, d, _, _ = stratum.asset.transform
        if "area" in params.statistics and (b or d) and as_crs(stratum.asset.crs).is_geographic:
            raise InvalidParameter("`area` is not defined on a rotated grid of degrees.", pointer="/statistics")
    zone_table.check(params.include, task.request, task.strata)
    if task.layer is not None:
        fields, key = task.layer.fields, task.layer.key
        vector.refuse_unknown([params.zone_id] if params.zone_id else [], fields, key, "/zone_id")
        vector.refuse_unknown(params.include, fields, key, "/include")


def _place(
    params: ZonalStatisticsParams, layer: VectorAsset | None, stratum: Stratum
) -> tuple[zones.Zones, coverage.Outlines]:
    source = params.zones if layer is None else layer
    return zones.place(source, stratum.asset, crs=params.crs, id_field=params.zone_id, fields=params.include)


# Planning -------------------------------------------------------------------------------------------------------------


def _plan(params: ZonalStatisticsParams, inputs: Sequence[InputItem]) -> Plan:
    task = _task(params, inputs)
    _check(params, task)
    features = params.zones.get("features")
    count = task.layer.feature_count if task.layer else len(features) if isinstance(features, list) else 1
    columns = zone_table.width(task.request, task.strata)
    if count * len(task.items) * columns > NUMBERS_MAX:
        times = f" at {len(task.items)} items" if len(task.items) > 1 else ""
        raise TooLarge(
            f"{count:,} zones{times} with {columns} columns each are {count * len(task.items) * columns:,} numbers; "
            f"one job gives at most {NUMBERS_MAX:,}. Ask for fewer zones, items, bands or statistics.",
            pointer="/zones",
        )
    shards: list[Shard] = []
    misses: list[str] = []
    for number, stratum in enumerate(task.strata):
        side = _shard_blocks(task.request, stratum)
        if task.layer is None:
            placed, shapes = _place(params, None, stratum)
            count = len(placed)
            if not placed.usable.any():
                raise InvalidGeometry(zones.why_unusable(placed), pointer="/zones")
            work = coverage.pairs(shapes, (0, 0, *stratum.asset.shape))
            windows, box = zones.touched(work, stratum.asset, side), zones.box_of(shapes)
        else:
            box = zones.box_of_layer(task.layer, stratum.asset)
            windows = zones.overlap(box, stratum.asset, side)
        before = len(shards)
        for window in windows:
            body = msgspec.msgpack.encode(_Piece(number, window))
            shards.append(Shard(body=body, bound=_bound(task.request, stratum, window, count)))
            if len(shards) > SHARDS_MAX:
                raise TooLarge(
                    f"The zones cover more than {SHARDS_MAX:,} shards of {side * coverage.BLOCK} × "
                    f"{side * coverage.BLOCK} px, which is the most of one job. Ask for fewer bands or a smaller area.",
                    pointer="/zones",
                )
        if len(shards) == before:
            misses.append(zones.how_far(box, stratum.asset))
    if not shards:
        raise AoiOutside(misses[0], pointer="/zones")
    return Plan(shards=tuple(shards), merge_bound=_merge_bound(task, columns, shards, count))


def _merge_bound(task: _Task, columns: int, shards: Sequence[Shard], count: int) -> Bound:
    rows = count * len(task.items)
    written = rows * (24 * columns + 2048) * 3
    read = sum(shard.bound.bytes_written for shard in shards)
    held = min(read, ranks.RUNS_BYTES_MAX)
    return Bound(
        bytes_read=read,
        bytes_written=written,
        memory_bytes=(96 << 20) + 2 * written + count * 4096 + 4 * held,
        seconds=0.2 + rows * 1e-4 + read / 1e8,
    )


def _shard_blocks(request: Request, stratum: Stratum) -> int:
    """Side of a shard in canonical blocks; wide values and weights weigh on the memory."""
    wide = sum(plane.key_dtype.itemsize > 2 for column in stratum.columns for plane in request.planes(column.band))
    load = len(stratum.columns) + 3 * wide + 4 * len(stratum.extras)
    return max(int(np.sqrt(SHARD_PIXELS / load)) // coverage.BLOCK, 1)


def _bound(request: Request, stratum: Stratum, window: Window, count: int) -> Bound:
    """An upper bound for zones that do not overlap; what overlapping ones hold of values is capped by the run."""
    sizes = [np.dtype(column.band.dtype).itemsize for column in stratum.columns]
    planes = [plane for column in stratum.columns for plane in request.planes(column.band)]
    # Pixels and their validity, as doubles too where they are weighed; masks and weights on their way to this grid.
    cell = sum(sizes) + len(sizes) + 8 * len(sizes) * request.is_weighted + 24 * len(stratum.extras)
    strip = coverage.BLOCK * window.width * cell
    blocks = max(window.pixels // coverage.BLOCK**2, 1)
    numbers = zonal.STATE + weighted.STATE * request.is_weighted
    rows = min(count * blocks, count + window.pixels // 4) * len(sizes) * numbers * 8
    values = window.pixels * sum(12 + plane.key_dtype.itemsize for plane in planes) + count * 8 * sum(
        plane.width for plane in planes
    )
    # Keys of a strip, and the runs of a batch before they are cut to size.
    widest = max((plane.key_dtype.itemsize for plane in planes), default=0)
    scratch = coverage.BLOCK * window.width * (widest * 3 + 2 * (16 + widest) + 10) if planes else 0
    extra = 0
    for placement, bands in stratum.extras.values():
        band = placement.asset.bands[0]
        source = warp.source_window(placement, window)
        extra += source.pixels * bands * np.dtype(band.dtype).itemsize
    warped = warp.READ_BYTES * bool(stratum.extras)
    return Bound(
        pixels=window.pixels * len(sizes),
        bytes_read=window.pixels * sum(sizes) + extra,
        bytes_written=rows + values,
        memory_bytes=(96 << 20) + 2 * strip + count * 8192 + 3 * rows + 3 * values + scratch + 2 * warped,
        seconds=0.05 + window.pixels * (len(sizes) + 2 * len(stratum.extras)) / 5e7 + count * 2e-5 + values / 2e8,
    )


# Running --------------------------------------------------------------------------------------------------------------


def _run(params: ZonalStatisticsParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    piece = msgspec.msgpack.decode(body, type=_Piece)
    task = _task(params, inputs)
    request, stratum, window = task.request, task.strata[piece.stratum], piece.window
    _, shapes = _place(params, task.layer, stratum)
    work = coverage.pairs(shapes, (window.row, window.col, window.row_stop, window.col_stop))
    state = [zonal.empty((len(work.zone), len(source.columns))) for source in stratum.sources]
    weighed = [weighted.empty(each.shape[:2]) for each in state] if request.is_weighted else []
    planes = [plane for column in stratum.columns for plane in request.planes(column.band)]
    blocks = coverage.block_counts(shapes, (0, 0, *stratum.asset.shape)) if planes else np.empty(0, np.int64)
    harvest = ranks.Harvest(planes, blocks, work) if planes else None
    report = ReadReport()
    for begin, end in _strips(work):
        place = _strip_window(work, begin, end)
        corner, areas = (place.row, place.col), zones.row_areas(stratum.asset, place.row, place.height)
        readings, seen = strata.read(stratum, place, allow_missing=params.allow_missing)
        report += seen
        some = coverage.Pairs(work.zone[begin:end], work.block[begin:end], work.window[begin:end])
        keys = _keys(request, stratum, readings) if harvest else []
        wide = {at: each.pixels.astype(np.float64) for at, each in enumerate(readings) if each.weights is not None}
        for batch in coverage.spans(shapes, some):
            for number, reading in enumerate(readings):
                zonal.update(batch, reading.pixels, reading.valid, corner, areas, state[number][begin:end])
                if reading.weights is not None:
                    rows = weighed[number][begin:end]
                    weighted.update(batch, wide[number], reading.valid, reading.weights, corner, rows)
            if harvest:
                harvest.gather(batch, some.zone, keys, corner)
        attempt.advance(seen.pixels)
    found = np.concatenate(state, axis=1)
    touched = (found[..., zonal.WEIGHT] + found[..., zonal.MASKED] > 0.0).any(axis=1)
    data = msgspec.msgpack.encode(
        _Partials(
            piece.stratum,
            work.zone[touched].astype(np.int32).tobytes(),
            work.block[touched].astype(np.int32).tobytes(),
            found[touched].tobytes(),
            np.concatenate(weighed, axis=1)[touched].tobytes() if weighed else b"",
            harvest.finish() if harvest else [],
        )
    )
    if len(data) <= BODY_BYTES_MAX:
        return Part(body=data, report=report)
    return Part(objects={"partials": attempt.write("partials.msgpack", data)}, report=report)


def _keys(
    request: Request, stratum: Stratum, readings: Sequence[Reading]
) -> list[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
    """Keys and validity of every plane, in the order of columns."""
    found = []
    for reading in readings:
        for at, column in enumerate(reading.source.columns):
            valid = None if reading.valid is None else reading.valid[at]
            keys = request.keys(stratum.columns[column].band, reading.pixels[at])
            found.extend((key, valid) for key in keys)
    return found


def _strips(work: coverage.Pairs) -> Iterator[tuple[int, int]]:
    """Ranges of pairs whose blocks lie side by side in one row of blocks: one read each."""
    if not len(work.zone):
        return
    row, col = work.block[:, 0], work.block[:, 1]
    cuts = np.flatnonzero((np.diff(row) != 0) | (np.diff(col) > 1)) + 1
    edges = [0, *cuts.tolist(), len(row)]
    yield from pairwise(edges)


def _strip_window(work: coverage.Pairs, begin: int, end: int) -> Window:
    """The cells that the pairs of a strip need, whole rows between the outermost."""
    low, high = work.window[begin:end, :2].min(axis=0), work.window[begin:end, 2:].max(axis=0)
    return Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))


# Merging --------------------------------------------------------------------------------------------------------------


def _merge(
    params: ZonalStatisticsParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt
) -> Result:
    task = _task(params, inputs)
    partials = [_partials(part) for part in parts]
    placed, first_shapes = _place(params, task.layer, task.strata[0])
    found = zone_table.Found.empty(len(task.items), len(placed))
    for number, stratum in enumerate(task.strata):
        _, shapes = _place(params, task.layer, stratum)
        mine = [partial for partial in partials if partial.stratum == number]
        for column, seen in zip(stratum.columns, _seen(task.request, stratum, mine, shapes), strict=True):
            found.add(task.request, column, seen)
    if placed.usable.any() and not found.touched.any():
        raise AoiOutside(zones.how_far(zones.box_of(first_shapes), task.strata[0].asset), pointer="/zones")
    lacking = strata.lacking(task.items, params.bands)
    output, summary = zone_table.write(
        found,
        task.request,
        placed,
        name=NAME,
        items=task.items,
        lacking=lacking,
        include=params.include,
        attempt=attempt,
    )
    report = sum((part.report for part in parts), ReadReport())
    return Result(items=(output,), summary=summary, report=report)


def _partials(part: Part) -> _Partials:
    data = read_object(part.objects["partials"].href) if "partials" in part.objects else part.body
    return msgspec.msgpack.decode(data, type=_Partials)


def _seen(
    request: Request, stratum: Stratum, partials: Sequence[_Partials], shapes: coverage.Outlines
) -> Iterator[Seen]:
    """What was found of each band of a stratum, folded by block whatever order the shards came in."""
    count, bands = len(shapes.areas), len(stratum.columns)
    state, weighed = zonal.empty((count, bands)), weighted.empty((count, bands))
    if partials:
        zone = np.concatenate([np.frombuffer(each.zone, np.int32) for each in partials])
        block = np.concatenate([np.frombuffer(each.block, np.int32).reshape(-1, 2) for each in partials])
        order = np.lexsort((block[:, 1], block[:, 0], zone))
        owner = zone[order].astype(np.int64)
        rows = np.concatenate([np.frombuffer(each.state).reshape(-1, bands, zonal.STATE) for each in partials])
        zonal.merge(owner, rows[order], state)
        if request.is_weighted:
            rows = np.concatenate([np.frombuffer(each.weighed).reshape(-1, bands, weighted.STATE) for each in partials])
            weighted.merge(owner, rows[order], weighed)
    height, width = stratum.asset.shape
    covered = (state[..., zonal.WEIGHT] + state[..., zonal.MASKED])[:, 0]
    reaches_out = (shapes.boxes[:, :2] < 0.0).any(axis=1) | (shapes.boxes[:, 2] > width) | (shapes.boxes[:, 3] > height)
    outside = np.where(reaches_out, np.maximum(shapes.areas - covered, 0.0), 0.0)
    first = 0
    for number, column in enumerate(stratum.columns):
        planes = request.planes(column.band)
        values = [each.values for each in partials]
        found = [ranks.joined(values, first + at, plane, count) for at, plane in enumerate(planes)]
        first += len(planes)
        mine = weighed[:, number] if request.is_weighted else None
        yield Seen(state[:, number], mine, found, outside, shapes.areas > 0.0)


METHOD = Method(
    id=NAME,
    title="Zonal statistics",
    makes=Kind.TABLE,
    params=ZonalStatisticsParams,
    plan=_plan,
    run=_run,
    merge=_merge,
    item_limit=ITEMS_MAX + 2,
    examples=(
        {
            "method": NAME,
            "zones": {
                "type": "Polygon",
                "coordinates": [[[6.0, 49.6], [6.2, 49.6], [6.2, 49.8], [6.0, 49.8], [6.0, 49.6]]],
            },
            "statistics": ["count", "mean", "stdev", "median", "valid_fraction"],
        },
        {
            "method": NAME,
            "zones": {"item_id": "item_fields", "asset": "zones"},
            "bands": ["nir"],
            "statistics": ["mean"],
            "quantiles": [0.1, 0.9],
            "zone_id": "field_id",
            "include": ["crop"],
        },
        {
            "method": NAME,
            "zones": {"item_id": "item_districts"},
            "bands": ["landcover"],
            "statistics": ["mode", "variety", "class_fractions"],
        },
        {
            "method": NAME,
            "zones": {"item_id": "item_fields"},
            "bands": ["nir"],
            "statistics": ["mean", "weighted_mean"],
            "histogram": {"bins": 20, "range": [0.0, 1.0]},
            "weights": {"item_id": "item_soil", "band": "depth", "resampling": "bilinear", "missing": "skip"},
            "mask": "sentinel-2-scl",
        },
    ),
)
