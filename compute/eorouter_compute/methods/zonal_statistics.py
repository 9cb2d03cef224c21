"""Statistics of rasters under polygons, every cell weighted by the exact fraction a polygon covers.

A shard is a window of whole canonical blocks (`eorouter_kernels.coverage.BLOCK`) of one grid; it reads the blocks that
zones touch, in strips one block high, and hands on one accumulator per zone, block and band. The merge folds them in
the order of zone and block, so the bytes of the answer depend on neither the shards nor the workers. Bands that lie on
different grids (10 m beside 20 m) are measured each on their own, without resampling.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import shapely
from msgspec import Meta, Struct
from numpy.typing import NDArray

from eorouter_compute import polygons, ranks, raster, tables, vector, zones
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.errors import AoiOutside, InvalidGeometry, InvalidParameter, TooLarge
from eorouter_compute.grid import Window
from eorouter_compute.method import (
    Band,
    Bound,
    InputItem,
    Kind,
    Method,
    OutputItem,
    Params,
    Part,
    Plan,
    RasterAsset,
    ReadReport,
    Result,
    Shard,
    VectorAsset,
    by_asset,
)
from eorouter_compute.polygons import as_crs
from eorouter_kernels import coverage, quantiles, zonal

SHARD_PIXELS = 16 << 20
"""Pixels times bands of one shard, at most, but never less than one canonical block."""

BODY_BYTES_MAX = 256 << 10
"""Accumulators larger than this travel as an object of the attempt."""

NUMBERS_MAX = 50_000_000
"""Zones times columns of a result, at most."""

SHARDS_MAX = 20_000
PREVIEW_ROWS = 20
NAME = "zonal_statistics"

Statistic = Literal["count", "sum", "mean", "min", "max", "stdev", "variance", "median", "valid_fraction", "area"]

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
    cannot be measured keep their row and say why in `status`.
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
        Meta(description="Band names; all bands of the item by default."),
    ] = None
    statistics: Annotated[
        tuple[Statistic, ...],
        Meta(
            max_length=20,
            description="What to compute; `area` is the covered valid area in m², `count` the covered valid cells.",
        ),
    ] = ("count", "mean", "min", "max", "stdev", "valid_fraction")
    quantiles: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=1)], ...], Meta(max_length=20, description="Further quantiles, 0 to 1.")
    ] = ()
    zone_id: Annotated[str | None, Meta(description="Field that names the zones in the column `zone_id`.")] = None
    include: Annotated[tuple[str, ...], Meta(max_length=256, description="Fields of the zones to carry over.")] = ()
    use_scale: Annotated[bool, Meta(description="Give physical values: stored × scale + offset.")] = True


class _Column(NamedTuple):
    """A band to measure and the prefix of its columns, empty when it is the only one."""

    prefix: str
    asset: RasterAsset
    band: Band


class _Grid(NamedTuple):
    """Bands that lie on one grid; bands of one asset follow each other."""

    asset: RasterAsset
    columns: tuple[_Column, ...]

    @property
    def reads(self) -> list[tuple[RasterAsset, list[int]]]:
        """Each asset once, with the bands to read from it."""
        return by_asset((column.asset, column.band.index) for column in self.columns)


class _Piece(Struct, frozen=True, array_like=True):
    """Body of a shard: which grid, and the window of blocks."""

    grid: int
    window: Window


class _Partials(Struct, frozen=True, array_like=True):
    """What a shard found: accumulators per zone and block, and values where quantiles are asked for."""

    grid: int
    zone: bytes
    block: bytes
    state: bytes
    ranks: ranks.Ranks | None


def _raster_item(inputs: Sequence[InputItem]) -> InputItem:
    for item in inputs:
        if item.rasters:
            return item
    raise InvalidParameter("None of the inputs has a raster to measure.", pointer="/inputs")


def _grids(params: ZonalStatisticsParams, item: InputItem) -> tuple[_Grid, ...]:
    """The bands asked for, by grid, in the order of their first band."""
    pairs = item.bands if params.bands is None else tuple(item.band(name) for name in params.bands)
    names = [band.name for _, band in pairs]
    columns: dict[str, tuple[RasterAsset, Band]] = {}
    for asset, band in pairs:
        prefix = band.name if names.count(band.name) == 1 else f"{asset.key}_{band.name}"
        if prefix in columns:
            raise InvalidParameter(f"Band {prefix} is asked for twice.", pointer="/bands")
        columns[prefix] = (asset, band)
    found: dict[Any, list[_Column]] = {}
    for prefix, (asset, band) in columns.items():
        key = (asset.crs, asset.transform, asset.shape)
        found.setdefault(key, []).append(_Column(prefix if len(columns) > 1 else "", asset, band))
    return tuple(
        _Grid(group[0].asset, tuple(sorted(group, key=lambda column: _position(item, column.asset))))
        for group in found.values()
    )


def _position(item: InputItem, asset: RasterAsset) -> int:
    """Position of an asset in its item."""
    return [other.key for other in item.rasters].index(asset.key)


def _vector_asset(params: ZonalStatisticsParams, inputs: Sequence[InputItem]) -> VectorAsset | None:
    """The layer that `zones` refers to; None for inline zones."""
    if "type" in params.zones:
        return None
    unknown = set(params.zones) - {"item_id", "asset"}
    if "item_id" not in params.zones or unknown:
        raise InvalidParameter(
            'zones must be GeoJSON (with a `type`) or {"item_id": …, "asset": …};'
            f" it has {', '.join(sorted(params.zones)) or 'nothing'}.",
            pointer="/zones",
        )
    wanted, key = params.zones["item_id"], params.zones.get("asset")
    for item in inputs:
        if item.id == wanted:
            found = [asset for asset in item.vectors if key in (None, asset.key)]
            if len(found) == 1:
                return found[0]
            keys = ", ".join(asset.key for asset in item.vectors) or "none"
            raise InvalidParameter(
                f"Item {wanted} has {len(found)} vector assets that fit; name one in zones.asset. Its own: {keys}.",
                pointer="/zones/asset",
            )
    given = ", ".join(item.id for item in inputs)
    raise InvalidParameter(f"zones refers to item {wanted!r}, the inputs are: {given}.", pointer="/zones/item_id")


def _check_names(params: ZonalStatisticsParams, grids: Sequence[_Grid]) -> None:
    taken = {"zone_id", "status", "detail", "geometry", *_column_names(params, grids)}
    for name in params.include:
        if name in taken:
            raise InvalidParameter(f"The field {name!r} has the name of a column of the result.", pointer="/include")
    if not params.statistics and not params.quantiles:
        raise InvalidParameter("Ask for one statistic or quantile at least.", pointer="/statistics")
    for grid in grids:
        _, b, _, d, _, _ = grid.asset.transform
        if "area" in params.statistics and (b or d) and as_crs(grid.asset.crs).is_geographic:
            raise InvalidParameter("`area` is not defined on a rotated grid of degrees.", pointer="/statistics")


def _levels(params: ZonalStatisticsParams) -> dict[str, float]:
    """Quantiles to compute, by column suffix."""
    levels = {"median": 0.5} if "median" in params.statistics else {}
    return levels | {f"q{100 * level:.10g}": level for level in params.quantiles}


def _suffixes(params: ZonalStatisticsParams) -> list[str]:
    names = ["area_m2" if name == "area" else name for name in dict.fromkeys(params.statistics)]
    return list(dict.fromkeys([*names, *_levels(params)]))


def _column_names(params: ZonalStatisticsParams, grids: Sequence[_Grid]) -> list[str]:
    return [_name(column, suffix) for grid in grids for column in grid.columns for suffix in _suffixes(params)]


def _name(column: _Column, suffix: str) -> str:
    return f"{column.prefix}_{suffix}" if column.prefix else suffix


def _place(
    params: ZonalStatisticsParams, layer: VectorAsset | None, grid: _Grid
) -> tuple[zones.Zones, coverage.Outlines]:
    source = params.zones if layer is None else layer
    return zones.place(source, grid.asset, crs=params.crs, id_field=params.zone_id, fields=params.include)


def _plan(params: ZonalStatisticsParams, inputs: Sequence[InputItem]) -> Plan:
    item = _raster_item(inputs)
    grids = _grids(params, item)
    _check_names(params, grids)
    layer = _vector_asset(params, inputs)
    if layer is not None:
        vector.refuse_unknown([params.zone_id] if params.zone_id else [], layer.fields, layer.key, "/zone_id")
        vector.refuse_unknown(params.include, layer.fields, layer.key, "/include")
    else:
        _check_size(params, grids, _count_inline(params.zones))
    shards: list[Shard] = []
    misses: list[str] = []
    count = 0
    for number, grid in enumerate(grids):
        side = _shard_blocks(params, grid)
        if layer is None:
            placed, shapes = _place(params, None, grid)
            count = len(placed)
            if not placed.usable.any():
                raise InvalidGeometry(zones.why_unusable(placed), pointer="/zones")
            work = coverage.pairs(shapes, (0, 0, *grid.asset.shape))
            windows, box = zones.touched(work, grid.asset, side), zones.box_of(shapes)
        else:
            count = layer.feature_count
            _check_size(params, grids, count)
            box = zones.box_of_layer(layer, grid.asset)
            windows = zones.overlap(box, grid.asset, side)
        before = len(shards)
        for window in windows:
            body = msgspec.msgpack.encode(_Piece(number, window))
            shards.append(Shard(body=body, bound=_bound(params, grid, window, count)))
            if len(shards) > SHARDS_MAX:
                raise TooLarge(
                    f"The zones cover more than {SHARDS_MAX:,} shards of {side * coverage.BLOCK} × "
                    f"{side * coverage.BLOCK} px, which is the most of one job. Ask for fewer bands or a smaller area.",
                    pointer="/zones",
                )
        if len(shards) == before:
            misses.append(zones.how_far(box, grid.asset))
    if not shards:
        raise AoiOutside(misses[0], pointer="/zones")
    return Plan(shards=tuple(shards), merge_bound=_merge_bound(params, grids, shards, count))


def _count_inline(document: dict[str, Any]) -> int:
    features = document.get("features")
    return len(features) if isinstance(features, list) else 1


def _check_size(params: ZonalStatisticsParams, grids: Sequence[_Grid], count: int) -> None:
    columns = len(_column_names(params, grids))
    if count * columns > NUMBERS_MAX:
        raise TooLarge(
            f"{count:,} zones with {columns} columns each are {count * columns:,} numbers; one job gives at most "
            f"{NUMBERS_MAX:,}. Ask for fewer zones, bands or statistics.",
            pointer="/zones",
        )


def _merge_bound(params: ZonalStatisticsParams, grids: Sequence[_Grid], shards: Sequence[Shard], count: int) -> Bound:
    columns = len(_column_names(params, grids))
    written = count * (24 * columns + 2048) * 3
    read = sum(shard.bound.bytes_written for shard in shards)
    held = min(read, ranks.RUNS_BYTES_MAX)
    return Bound(
        bytes_read=read,
        bytes_written=written,
        memory_bytes=(96 << 20) + 2 * written + count * 4096 + 4 * held,
        seconds=0.2 + count * 1e-4 + read / 1e8,
    )


def _shard_blocks(params: ZonalStatisticsParams, grid: _Grid) -> int:
    """Side of a shard in canonical blocks; wide values weigh on the memory of quantiles."""
    wide = sum(np.dtype(column.band.dtype).itemsize > 2 for column in grid.columns) if _levels(params) else 0
    return max(int(np.sqrt(SHARD_PIXELS / (len(grid.columns) + 3 * wide))) // coverage.BLOCK, 1)


def _bound(params: ZonalStatisticsParams, grid: _Grid, window: Window, count: int) -> Bound:
    """An upper bound for zones that do not overlap; what overlapping ones hold for quantiles is capped by the run."""
    sizes = [np.dtype(column.band.dtype).itemsize for column in grid.columns]
    strip = coverage.BLOCK * window.width * (sum(sizes) + len(sizes))
    blocks = max(window.pixels // coverage.BLOCK**2, 1)
    rows = min(count * blocks, count + window.pixels // 4) * len(sizes) * zonal.STATE * 8
    values = scratch = 0
    if _levels(params):
        widths = [_key_bytes(size) for size in sizes]
        values = window.pixels * sum(12 + width for width in widths)
        # Keys of a strip, and the runs of a batch before they are cut to size.
        scratch = coverage.BLOCK * window.width * (max(widths) * 3 + 2 * (16 + max(widths)))
    return Bound(
        pixels=window.pixels * len(sizes),
        bytes_read=window.pixels * sum(sizes),
        bytes_written=rows + values,
        memory_bytes=(96 << 20) + 2 * strip + count * 8192 + 3 * rows + 3 * values + scratch,
        seconds=0.05 + window.pixels * len(sizes) / 5e7 + count * 2e-5 + values / 2e8,
    )


def _key_bytes(size: int) -> int:
    """Width of the keys of values of so many bytes, see `quantiles.keys`."""
    return max(size, 2)


def _run(params: ZonalStatisticsParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    piece = msgspec.msgpack.decode(body, type=_Piece)
    grid = _grids(params, _raster_item(inputs))[piece.grid]
    _, shapes = _place(params, _vector_asset(params, inputs), grid)
    window = piece.window
    work = coverage.pairs(shapes, (window.row, window.col, window.row_stop, window.col_stop))
    states = [zonal.empty((len(work.zone), len(indices))) for _, indices in grid.reads]
    harvest = None
    if _levels(params):
        bands = [(column.band.dtype, _asked(params, column)) for column in grid.columns]
        harvest = ranks.Harvest(bands, coverage.block_counts(shapes, (0, 0, *grid.asset.shape)), work)
    report = ReadReport()
    for begin, end in _strips(work):
        read = _strip_window(work, begin, end)
        corner, areas = (read.row, read.col), zones.row_areas(grid.asset, read.row, read.height)
        blocks, seen = _read(grid, read)
        report += seen
        some = coverage.Pairs(work.zone[begin:end], work.block[begin:end], work.window[begin:end])
        keys = [quantiles.keys(pixels) for pixels, _ in blocks] if harvest else []
        for batch in coverage.spans(shapes, some):
            for (pixels, valid), state in zip(blocks, states, strict=True):
                zonal.update(batch, pixels, valid, corner, areas, state[begin:end])
            if harvest:
                planes = [
                    (key, None if valid is None else valid[band])
                    for each, (_, valid) in zip(keys, blocks, strict=True)
                    for band, key in enumerate(each)
                ]
                harvest.gather(batch, some.zone, planes, corner)
        attempt.advance(seen.pixels)
    state = np.concatenate(states, axis=1)
    touched = (state[..., zonal.WEIGHT] + state[..., zonal.MASKED] > 0.0).any(axis=1)
    partials = _Partials(
        piece.grid,
        work.zone[touched].astype(np.int32).tobytes(),
        work.block[touched].astype(np.int32).tobytes(),
        state[touched].tobytes(),
        harvest.finish() if harvest else None,
    )
    data = msgspec.msgpack.encode(partials)
    if len(data) <= BODY_BYTES_MAX:
        return Part(body=data, report=report)
    return Part(objects={"partials": attempt.write("partials.msgpack", data)}, report=report)


def _asked(params: ZonalStatisticsParams, column: _Column) -> list[float]:
    """Levels of the stored values; a falling scale turns their order around."""
    is_falling = params.use_scale and column.band.scale < 0
    return [1.0 - level if is_falling else level for level in _levels(params).values()]


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


def _read(grid: _Grid, window: Window) -> tuple[list[tuple[NDArray[Any], NDArray[np.bool_] | None]], ReadReport]:
    """The window of every asset of a grid; no mask where all is valid."""
    blocks, report = [], ReadReport()
    for asset, indices in grid.reads:
        pixels, valid = raster.read_block(asset, indices, window)
        seen = pixels.size if valid is None else int(np.count_nonzero(valid))
        blocks.append((pixels, None if seen == pixels.size else valid))
        report += ReadReport(reads=1, pixels=pixels.size, valid_pixels=seen)
    return blocks, report


def _merge(
    params: ZonalStatisticsParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt
) -> Result:
    item = _raster_item(inputs)
    grids = _grids(params, item)
    layer = _vector_asset(params, inputs)
    partials = [_partials(part) for part in parts]
    placed, first_shapes = _place(params, layer, grids[0])
    touched = np.zeros(len(placed), np.bool_)
    valid = np.zeros(len(placed), np.bool_)
    columns: dict[str, pa.Array] = {}
    for number, grid in enumerate(grids):
        _, shapes = _place(params, layer, grid)
        mine = [partial for partial in partials if partial.grid == number]
        state = _fold(mine, len(placed), len(grid.columns))
        touched |= (state[..., zonal.WEIGHT] + state[..., zonal.MASKED] > 0.0).any(axis=1)
        valid |= (state[..., zonal.WEIGHT] > 0.0).any(axis=1)
        columns |= _columns(params, grid, mine, shapes, state)
    if placed.usable.any() and not touched.any():
        raise AoiOutside(zones.how_far(zones.box_of(first_shapes), grids[0].asset), pointer="/zones")
    status, detail = _statuses(placed, touched, valid)
    table = pa.table({
        "zone_id": placed.ids,
        **{name: placed.attributes[name] for name in params.include},
        "status": pa.array(status),
        "detail": pa.array(detail, pa.string()),
        **columns,
    })  # fmt: skip
    report = sum((part.report for part in parts), ReadReport())
    output = _output(placed, table, item, attempt)
    return Result(items=(output,), summary=_summary(params, grids, table, status), report=report)


def _partials(part: Part) -> _Partials:
    data = read_object(part.objects["partials"].href) if "partials" in part.objects else part.body
    return msgspec.msgpack.decode(data, type=_Partials)


def _fold(partials: Sequence[_Partials], count: int, bands: int) -> NDArray[np.float64]:
    """Accumulators of the zones, folded by block whatever order the shards came in."""
    state = zonal.empty((count, bands))
    if not partials:
        return state
    zone = np.concatenate([np.frombuffer(partial.zone, np.int32) for partial in partials])
    block = np.concatenate([np.frombuffer(partial.block, np.int32).reshape(-1, 2) for partial in partials])
    rows = np.concatenate([np.frombuffer(partial.state).reshape(-1, bands, zonal.STATE) for partial in partials])
    order = np.lexsort((block[:, 1], block[:, 0], zone))
    zonal.merge(zone[order].astype(np.int64), rows[order], state)
    return state


def _columns(
    params: ZonalStatisticsParams,
    grid: _Grid,
    partials: Sequence[_Partials],
    shapes: coverage.Outlines,
    state: NDArray[np.float64],
) -> dict[str, pa.Array]:
    """The columns of the bands of a grid; null where a zone has no such number."""
    height, width = grid.asset.shape
    seen = (state[..., zonal.WEIGHT] + state[..., zonal.MASKED])[:, 0]
    boxes = shapes.boxes
    reaches_out = (boxes[:, :2] < 0.0).any(axis=1) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
    outside = np.where(reaches_out, np.maximum(shapes.areas - seen, 0.0), 0.0)
    scale = np.array([column.band.scale if params.use_scale else 1.0 for column in grid.columns])
    offset = np.array([column.band.offset if params.use_scale else 0.0 for column in grid.columns])
    results = zonal.finish(state, outside, scale, offset)
    levels = _levels(params)
    columns: dict[str, pa.Array] = {}
    for number, column in enumerate(grid.columns):
        found = {("area_m2" if name == "area" else name): values[:, number] for name, values in results.items()}
        if levels:
            known = [partial.ranks for partial in partials if partial.ranks is not None]
            stored = ranks.joined(known, number, column.band.dtype, _asked(params, column), len(state))
            found |= {name: stored[:, at] * scale[number] + offset[number] for at, name in enumerate(levels)}
        for suffix in _suffixes(params):
            values = found[suffix]
            columns[_name(column, suffix)] = pa.array(values, mask=np.isnan(values) | ~(shapes.areas > 0.0))
    return columns


def _statuses(
    placed: zones.Zones, touched: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> tuple[list[str], list[str | None]]:
    status: list[str] = [value.value for value in placed.status]
    detail = list(placed.detail)
    for i in np.flatnonzero(placed.usable & ~valid):
        status[i] = "no_data" if touched[i] else "outside"
        why = "No valid pixel lies in the zone." if touched[i] else "The zone lies outside the raster."
        detail[i] = why if detail[i] is None else f"{detail[i]} {why}"
    return status, detail


def _summary(
    params: ZonalStatisticsParams, grids: Sequence[_Grid], table: pa.Table, status: Sequence[str]
) -> dict[str, Any]:
    units = {"count": "cells", "valid_fraction": "1", "area_m2": "m²"}
    listed = []
    for grid in grids:
        for column in grid.columns:
            own = column.band.unit if params.use_scale or column.band.scale == 1.0 else None
            for suffix in _suffixes(params):
                unit = units.get(suffix, f"({own})²" if own and suffix == "variance" else own)
                listed.append({"name": _name(column, suffix), "band": column.band.name, "unit": unit})
    return {
        "rows": table.num_rows,
        "statuses": {value: list(status).count(value) for value in sorted(set(status))},
        "columns": listed,
        "preview": table.slice(0, PREVIEW_ROWS).to_pylist(),
    }


def _output(placed: zones.Zones, table: pa.Table, item: InputItem, attempt: Attempt) -> OutputItem:
    assets, bbox = tables.write_all(attempt, NAME, table, placed.geometries, placed.crs)
    return OutputItem(
        name=NAME,
        assets=assets,
        footprint=msgspec.json.decode(shapely.to_geojson(polygons.box_of(bbox))),
        bbox=bbox,
        at=item.at,
        title=f"Zonal statistics of {item.id}",
    )


METHOD = Method(
    id=NAME,
    title="Zonal statistics",
    makes=Kind.TABLE,
    params=ZonalStatisticsParams,
    plan=_plan,
    run=_run,
    merge=_merge,
    item_limit=2,
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
    ),
)
