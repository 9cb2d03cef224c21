"""Statistics of rasters under polygons, every cell weighted by the exact fraction a polygon covers.

A shard is a window of whole canonical blocks (`eorouter_kernels.coverage.BLOCK`) of one grid; it reads the blocks that
zones touch, in strips one block high, and hands on one accumulator per zone, block and band. The merge folds them in
the order of zone and block, so the bytes of the answer depend on neither the shards nor the workers. Bands that lie on
different grids (10 m beside 20 m) are measured each on their own, without resampling.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import msgspec
import numpy as np
import pyarrow as pa
import shapely
from msgspec import Meta, Struct
from numpy.typing import NDArray
from pyarrow import csv
from pyproj import Transformer

from eorouter_compute import raster, vector
from eorouter_compute.attempt import Attempt, local_path, read_object
from eorouter_compute.errors import AoiOutside, InvalidGeometry, InvalidParameter
from eorouter_compute.grid import Window
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
from eorouter_kernels import coverage, zonal

SHARD_PIXELS = 16 << 20
"""Pixels times bands of one shard, at most, but never less than one canonical block."""

BODY_BYTES_MAX = 256 << 10
"""Accumulators larger than this travel as an object of the attempt."""

EDGE_TOLERANCE_PX = 0.01
"""How far the edge of a zone may stray from its projected course."""

PREVIEW_ROWS = 20
CACHE_ENTRIES = 4
NAME = "zonal_statistics"

T = TypeVar("T")
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
        found: dict[str, tuple[RasterAsset, list[int]]] = {}
        for column in self.columns:
            found.setdefault(column.asset.key, (column.asset, []))[1].append(column.band.index)
        return list(found.values())


class _Piece(Struct, frozen=True, array_like=True):
    """Body of a shard: which grid, and the window of blocks."""

    grid: int
    window: Window


class _Values(Struct, frozen=True, array_like=True):
    """`zonal.Runs` of one band as bytes, values in the file's dtype."""

    dtype: str
    full_zone: bytes
    full_value: bytes
    full_count: bytes
    part_zone: bytes
    part_value: bytes
    part_weight: bytes


class _Partials(Struct, frozen=True, array_like=True):
    """What a shard found: accumulators per zone and block, and values where quantiles are asked for."""

    grid: int
    zone: bytes
    block: bytes
    state: bytes
    values: list[_Values]


def _raster_item(inputs: Sequence[InputItem]) -> InputItem:
    for item in inputs:
        if item.rasters:
            return item
    raise InvalidParameter("None of the inputs has a raster to measure.", pointer="/inputs")


def _grids(params: ZonalStatisticsParams, item: InputItem) -> tuple[_Grid, ...]:
    """The bands asked for, by grid, in the order of their first band."""
    if params.bands is None:
        pairs = [(asset, band) for asset in item.rasters for band in asset.bands]
    else:
        pairs = [item.band(name) for name in params.bands]
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
        if "area" in params.statistics and (b or d) and vector.as_crs(grid.asset.crs).is_geographic:
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


# --- zones on a grid, once per process ------------------------------------------------------------------------------

_cache: OrderedDict[Any, Any] = OrderedDict()
_cache_lock = threading.Lock()
_load_lock = threading.Lock()


def _cached(key: Any, make: Callable[[], T]) -> T:
    """Zones are parsed once per process, not once per shard; a few of the latest are kept."""
    with _load_lock:
        with _cache_lock:
            if key in _cache:
                _cache.move_to_end(key)
                return _cache[key]
        value = make()
        with _cache_lock:
            _cache[key] = value
            while len(_cache) > CACHE_ENTRIES:
                _cache.popitem(last=False)
    return value


def _load(
    params: ZonalStatisticsParams, asset: VectorAsset | None, grid: _Grid
) -> tuple[vector.Zones, coverage.Outlines]:
    """The zones, and their outlines in pixel coordinates of a grid."""
    source: VectorAsset | bytes
    if asset is None:
        source = msgspec.json.encode(params.zones)
        identity: Any = hashlib.sha256(source).hexdigest()
    else:
        source = asset
        path = local_path(asset.href)
        changed = (path.stat().st_mtime_ns, path.stat().st_size) if path is not None and path.exists() else None
        identity = (asset.href, asset.layer, asset.sha256, changed)
    lies = (grid.asset.crs, grid.asset.transform)
    key = (identity, params.crs, params.zone_id, params.include, lies)

    def make() -> tuple[vector.Zones, coverage.Outlines]:
        a, b, _, d, e, _ = grid.asset.transform
        zones = vector.read_zones(
            source,
            target_crs=grid.asset.crs,
            crs=params.crs,
            id_field=params.zone_id,
            fields=params.include,
            edge_tolerance=EDGE_TOLERANCE_PX * min(float(np.hypot(a, d)), float(np.hypot(b, e))),
        )
        rings = zones.rings
        shapes = coverage.outlines(_to_pixels(rings.vertices, grid), rings.rings, rings.polygons[rings.zones])
        return zones, shapes

    return _cached(key, make)


def _to_pixels(points: NDArray[np.float64], grid: _Grid) -> NDArray[np.float64]:
    a, b, c, d, e, f = grid.asset.transform
    x, y = points[:, 0] - c, points[:, 1] - f
    if b == 0.0 and d == 0.0:
        return np.stack([x / a, y / e], axis=1)
    determinant = a * e - b * d
    return np.stack([(e * x - b * y) / determinant, (a * y - d * x) / determinant], axis=1)


def _row_areas(grid: _Grid, row: int, height: int) -> NDArray[np.float64]:
    """Area in m² of a cell of each row: on the ellipsoid for degrees, on the plane of the projection otherwise."""
    a, b, _, d, e, f = grid.asset.transform
    crs = vector.as_crs(grid.asset.crs)
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    if not crs.is_geographic or crs.ellipsoid is None:
        return np.full(height, abs(a * e - b * d) * unit * unit)
    # Area between two parallels: Snyder 1987, "Map Projections: A Working Manual", USGS PP 1395, eq. 3-12 (q).
    radius, flattening = crs.ellipsoid.semi_major_metre, 1.0 / crs.ellipsoid.inverse_flattening
    eccentricity = float(np.sqrt(flattening * (2.0 - flattening)))
    sine = np.sin(np.clip((f + e * np.arange(row, row + height + 1)) * unit, -np.pi / 2, np.pi / 2))
    if eccentricity == 0.0:
        zone = 2.0 * sine
    else:
        zone = (1 - eccentricity**2) * (
            sine / (1 - (eccentricity * sine) ** 2) + np.arctanh(eccentricity * sine) / eccentricity
        )
    return np.abs(np.diff(zone)) * radius**2 / 2.0 * abs(a) * unit


def _plan(params: ZonalStatisticsParams, inputs: Sequence[InputItem]) -> Plan:
    item = _raster_item(inputs)
    grids = _grids(params, item)
    _check_names(params, grids)
    asset = _vector_asset(params, inputs)
    shards: list[Shard] = []
    misses: list[str] = []
    count = 0
    for number, grid in enumerate(grids):
        if asset is None:
            zones, shapes = _load(params, None, grid)
            count = len(zones)
            if not any(status in vector.USABLE for status in zones.status):
                raise InvalidGeometry(_why_unusable(zones), pointer="/zones")
            windows = list(_touched(shapes, grid, len(grid.columns)))
            box = _box(shapes)
        else:
            count = asset.feature_count
            box = _asset_box(asset, grid)
            windows = list(_overlap(box, grid, len(grid.columns)))
        if not windows:
            misses.append(_how_far(box, grid))
        for window in windows:
            body = msgspec.msgpack.encode(_Piece(number, window))
            shards.append(Shard(body=body, bound=_bound(params, grid, window, count)))
    if not shards:
        raise AoiOutside(misses[0], pointer="/zones")
    columns = len(_column_names(params, grids))
    bytes_out = count * (24 * columns + 2048) * 3
    merge = Bound(bytes_written=bytes_out, memory_bytes=bytes_out * 2 + (64 << 20), seconds=0.2 + count * 1e-4)
    if _levels(params):
        values = sum(shard.bound.bytes_written for shard in shards)
        merge = msgspec.structs.replace(
            merge, bytes_read=values, memory_bytes=merge.memory_bytes + 4 * values, seconds=merge.seconds + values / 5e7
        )
    return Plan(shards=tuple(shards), merge_bound=merge)


def _why_unusable(zones: vector.Zones) -> str:
    reasons = [detail for detail in zones.detail if detail]
    return f"None of the {len(zones)} zones is a polygon with an area. {reasons[0] if reasons else ''}".strip()


def _touched(shapes: coverage.Outlines, grid: _Grid, bands: int) -> Iterator[Window]:
    """Windows of whole canonical blocks around the blocks that boxes of zones touch."""
    whole = grid.asset.window
    work = coverage.pairs(shapes, (0, 0, whole.height, whole.width))
    if not len(work.block):
        return
    side = _shard_blocks(bands)
    blocks = np.unique(work.block, axis=0)
    tile = blocks // side
    for at in np.unique(tile, axis=0):
        inside = blocks[(tile == at).all(axis=1)]
        low, high = inside.min(axis=0) * coverage.BLOCK, (inside.max(axis=0) + 1) * coverage.BLOCK
        yield Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])).intersect(whole)


def _overlap(box: NDArray[np.float64], grid: _Grid, bands: int) -> Iterator[Window]:
    """Windows of whole canonical blocks around a box, a little widened: the box of a layer is projected roughly."""
    whole = grid.asset.window
    if not np.isfinite(box).all():
        box = np.array([0.0, 0.0, whole.width, whole.height])
    spare = 0.02 * max(box[2] - box[0], box[3] - box[1]) + 1.0
    limit = np.array([whole.width, whole.height], np.float64)
    low = np.clip(np.floor(box[:2] - spare), 0, limit).astype(int)
    high = np.clip(np.ceil(box[2:] + spare), 0, limit).astype(int)
    if (low >= high).any():
        return
    side = _shard_blocks(bands) * coverage.BLOCK
    first, last = low // coverage.BLOCK * coverage.BLOCK, -(-high // coverage.BLOCK) * coverage.BLOCK
    area = Window(int(first[1]), int(first[0]), int(last[1] - first[1]), int(last[0] - first[0])).intersect(whole)
    for row in range(area.row - area.row % side, area.row_stop, side):
        for col in range(area.col - area.col % side, area.col_stop, side):
            yield Window(row, col, side, side).intersect(area)


def _shard_blocks(bands: int) -> int:
    """Side of a shard in canonical blocks."""
    return max(int(np.sqrt(SHARD_PIXELS / bands)) // coverage.BLOCK, 1)


def _box(shapes: coverage.Outlines) -> NDArray[np.float64]:
    with_area = shapes.boxes[~np.isnan(shapes.boxes[:, 0])]
    return np.concatenate([with_area[:, :2].min(axis=0), with_area[:, 2:].max(axis=0)])


def _asset_box(asset: VectorAsset, grid: _Grid) -> NDArray[np.float64]:
    """Bounds of a layer in pixels, from its description alone."""
    source, target = vector.as_crs(asset.crs), vector.as_crs(grid.asset.crs)
    bounds = asset.bounds
    if source != target:
        bounds = Transformer.from_crs(source, target, always_xy=True).transform_bounds(*bounds, densify_pts=21)
    x_min, y_min, x_max, y_max = bounds
    corners = _to_pixels(np.array([[x_min, y_min], [x_min, y_max], [x_max, y_min], [x_max, y_max]]), grid)
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def _how_far(box: NDArray[np.float64], grid: _Grid) -> str:
    height, width = grid.asset.shape
    right, left = max(box[0] - width, 0.0), max(-box[2], 0.0)
    below, above = max(box[1] - height, 0.0), max(-box[3], 0.0)
    a, b, _, d, e, _ = grid.asset.transform
    crs = vector.as_crs(grid.asset.crs)
    across, down = float(np.hypot(a, d)), float(np.hypot(b, e))
    unit = crs.axis_info[0].unit_name if crs.axis_info else "unit"
    gaps = [
        f"{gap * size:.6g} {unit} ({gap:.0f} px) {side}"
        for gap, size, side in (
            (left, across, "left of"), (right, across, "right of"), (above, down, "above"), (below, down, "below")
        )
        if gap > 0.0
    ]  # fmt: skip
    where = " and ".join(gaps) or "between the cells of"
    return f"No zone touches the raster: the nearest lies {where} {grid.asset.key} ({crs.name}, {width} × {height} px)."


def _bound(params: ZonalStatisticsParams, grid: _Grid, window: Window, zones: int) -> Bound:
    sizes = [np.dtype(column.band.dtype).itemsize for column in grid.columns]
    strip = coverage.BLOCK * window.width * (sum(sizes) + len(sizes))
    blocks = max(window.pixels // coverage.BLOCK**2, 1)
    rows = min(zones * blocks, zones + window.pixels // 4) * len(sizes) * zonal.STATE * 8
    values = window.pixels * sum(20 + size for size in sizes) if _levels(params) else 0
    return Bound(
        pixels=window.pixels * len(sizes),
        bytes_read=window.pixels * sum(sizes),
        bytes_written=rows + values,
        memory_bytes=(64 << 20) + 2 * strip + zones * 4096 + 2 * rows + 2 * values,
        seconds=0.05 + window.pixels * len(sizes) / 5e7 + zones * 2e-5 + values / 1e8,
    )


def _run(params: ZonalStatisticsParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    piece = msgspec.msgpack.decode(body, type=_Piece)
    grid = _grids(params, _raster_item(inputs))[piece.grid]
    _, shapes = _load(params, _vector_asset(params, inputs), grid)
    window = piece.window
    work = coverage.pairs(shapes, (window.row, window.col, window.row_stop, window.col_stop))
    states = [zonal.empty((len(work.zone), len(indices))) for _, indices in grid.reads]
    values: list[list[tuple[zonal.Runs, np.dtype[Any]]]] = [[] for _ in grid.columns]
    report = ReadReport()
    for begin, end in _strips(work):
        read = _strip_window(work, begin, end)
        corner, areas = (read.row, read.col), _row_areas(grid, read.row, read.height)
        blocks, seen = _read(grid, read)
        report += seen
        some = coverage.Pairs(work.zone[begin:end], work.block[begin:end], work.window[begin:end])
        for batch in coverage.spans(shapes, some):
            column = 0
            for (pixels, valid), state in zip(blocks, states, strict=True):
                zonal.update(batch, pixels, valid, corner, areas, state[begin:end])
                for band in range(len(pixels) if _levels(params) else 0):
                    found = zonal.collect(batch, pixels, valid, corner, band)
                    owned = found._replace(full_pair=some.zone[found.full_pair], part_pair=some.zone[found.part_pair])
                    values[column + band].append((owned, pixels.dtype))
                column += len(pixels)
        attempt.advance(seen.pixels)
    state = np.concatenate(states, axis=1)
    touched = (state[..., zonal.WEIGHT] + state[..., zonal.MASKED] > 0.0).any(axis=1)
    data = msgspec.msgpack.encode(
        _Partials(
            piece.grid,
            work.zone[touched].astype(np.int32).tobytes(),
            work.block[touched].astype(np.int32).tobytes(),
            state[touched].tobytes(),
            [_pack(found) for found in values] if _levels(params) else [],
        )
    )
    if len(data) <= BODY_BYTES_MAX:
        return Part(body=data, report=report)
    return Part(objects={"partials": attempt.write("partials.msgpack", data)}, report=report)


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


def _pack(found: list[tuple[zonal.Runs, np.dtype[Any]]]) -> _Values:
    if not found:
        return _Values("f8", b"", b"", b"", b"", b"", b"")
    dtype = found[0][1]
    runs = zonal.Runs(*(np.concatenate(arrays) for arrays in zip(*(runs for runs, _ in found), strict=True)))
    return _Values(
        dtype.str,
        runs.full_pair.astype(np.int32).tobytes(),
        runs.full_value.astype(dtype).tobytes(),
        runs.full_count.astype(np.int32).tobytes(),
        runs.part_pair.astype(np.int32).tobytes(),
        runs.part_value.astype(dtype).tobytes(),
        runs.part_weight.tobytes(),
    )


def _unpack(packed: Sequence[_Values]) -> zonal.Runs:
    def join(field: str, stored: str | None, kind: type) -> NDArray[Any]:
        arrays = [np.frombuffer(getattr(v, field), stored or v.dtype).astype(kind) for v in packed]
        return np.concatenate(arrays) if arrays else np.empty(0, kind)

    return zonal.Runs(
        join("full_zone", "i4", np.int64),
        join("full_value", None, np.float64),
        join("full_count", "i4", np.int64),
        join("part_zone", "i4", np.int64),
        join("part_value", None, np.float64),
        join("part_weight", "f8", np.float64),
    )


def _merge(
    params: ZonalStatisticsParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt
) -> Result:
    item = _raster_item(inputs)
    grids = _grids(params, item)
    asset = _vector_asset(params, inputs)
    partials = [_partials(part) for part in parts]
    zones, _ = _load(params, asset, grids[0])
    usable = np.array([status in vector.USABLE for status in zones.status], np.bool_)
    touched = np.zeros(len(zones), np.bool_)
    valid = np.zeros(len(zones), np.bool_)
    columns: dict[str, pa.Array] = {}
    for number, grid in enumerate(grids):
        _, shapes = _load(params, asset, grid)
        mine = [partial for partial in partials if partial.grid == number]
        state = _fold(mine, len(zones), len(grid.columns))
        touched |= (state[..., zonal.WEIGHT] + state[..., zonal.MASKED] > 0.0).any(axis=1)
        valid |= (state[..., zonal.WEIGHT] > 0.0).any(axis=1)
        columns |= _columns(params, grid, mine, shapes, state)
    if usable.any() and not touched.any():
        _, shapes = _load(params, asset, grids[0])
        raise AoiOutside(_how_far(_box(shapes), grids[0]), pointer="/zones")
    status, detail = _statuses(zones, touched, valid)
    table = pa.table({
        "zone_id": zones.ids,
        **{name: zones.attributes[name] for name in params.include},
        "status": pa.array(status),
        "detail": pa.array(detail, pa.string()),
        **columns,
    })  # fmt: skip
    report = sum((part.report for part in parts), ReadReport())
    output = _output(zones, table, item, attempt)
    return Result(items=(output,), summary=_summary(params, grids, table, status), report=report)


def _partials(part: Part) -> _Partials:
    data = read_object(part.objects["partials"].href) if "partials" in part.objects else part.body
    return msgspec.msgpack.decode(data, type=_Partials)


def _fold(partials: Sequence[_Partials], zones: int, bands: int) -> NDArray[np.float64]:
    """Accumulators of the zones, folded by block whatever order the shards came in."""
    state = zonal.empty((zones, bands))
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
            runs = _unpack([partial.values[number] for partial in partials])
            # A falling scale turns the order of values around.
            asked = [1.0 - level if scale[number] < 0 else level for level in levels.values()]
            stored = zonal.quantiles(runs, len(state), asked)
            found |= {name: stored[:, at] * scale[number] + offset[number] for at, name in enumerate(levels)}
        for suffix in _suffixes(params):
            values = found[suffix]
            columns[_name(column, suffix)] = pa.array(values, mask=np.isnan(values) | ~(shapes.areas > 0.0))
    return columns


def _statuses(
    zones: vector.Zones, touched: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> tuple[list[str], list[str | None]]:
    status: list[str] = [str(value) for value in zones.status]
    detail = list(zones.detail)
    for i, value in enumerate(zones.status):
        if value not in vector.USABLE or valid[i]:
            continue
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


def _output(zones: vector.Zones, table: pa.Table, item: InputItem, attempt: Attempt) -> OutputItem:
    present = shapely.total_bounds(zones.geometries)
    lonlat = vector.to_wgs84(zones.geometries, zones.crs)
    bbox = cast("vector.Bounds", tuple(float(value) for value in shapely.total_bounds(lonlat)))
    x_min, y_min, x_max, y_max = bbox
    with attempt.create(f"{NAME}.parquet") as target:
        vector.write_geoparquet(target, table, zones.geometries, zones.crs)
    with attempt.create(f"{NAME}.csv") as target:
        csv.write_csv(table, target)
    with attempt.create(f"{NAME}.geojson") as target:
        vector.write_geojson(target, table, lonlat)
    endings = {"table": "parquet", "csv": "csv", "geojson": "geojson"}
    written = {key: attempt.refs[f"{NAME}.{ending}"] for key, ending in endings.items()}
    described = {
        key: VectorAsset(
            key=key,
            href=written[key].href,
            crs=zones.crs if key == "table" else vector.WGS84,
            feature_count=table.num_rows,
            bounds=cast("vector.Bounds", tuple(float(value) for value in present)) if key == "table" else bbox,
            fields=tuple(table.column_names),
        )
        for key in ("table", "geojson")
    }
    kinds = {
        "table": ("application/vnd.apache.parquet", "Zones with statistics, GeoParquet"),
        "csv": ("text/csv", "Statistics without geometries"),
        "geojson": ("application/geo+json", "Zones with statistics, longitude and latitude"),
    }
    assets = tuple(
        OutputAsset(
            key=key,
            object=written[key],
            media_type=media_type,
            roles=("data",),
            filename=f"{NAME}.{endings[key]}",
            title=title,
            vector=described.get(key),
        )
        for key, (media_type, title) in kinds.items()
    )
    return OutputItem(
        name=NAME,
        assets=assets,
        footprint=msgspec.json.decode(shapely.to_geojson(shapely.box(x_min, y_min, x_max, y_max))),
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
