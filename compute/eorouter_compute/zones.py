"""Features as zones, placed on the grid of a raster: what is measured where, and how large a cell is.

    layer or GeoJSON ──read──► Zones ──place──► Outlines in pixel coordinates ──touched──► windows to measure

Nothing is dropped in silence: every feature is a zone, and `Zones.status` says what became of it. Zones are placed once
per process and grid, not once per shard.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray

from eorouter_compute import geojson, polygons, vector
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Window
from eorouter_compute.method import InputItem, RasterAsset, VectorAsset
from eorouter_compute.polygons import Rings, Status, as_crs, crs_name
from eorouter_kernels import coverage

EDGE_TOLERANCE_PX = 0.01
"""How far the edge of a zone may stray from its projected course."""

CACHE_ENTRIES = 4

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Zones:
    """Features ready to be measured, in the order of their source.

    Attributes:
        ids: values of the id field; else GeoJSON's `id`, and the position of a feature that has none. Of several types
            they are text.
        attributes: the fields that were asked for, one column each.
        geometries: (zone) polygons as measured, in `crs`: repaired, 2-D; None where there is nothing to measure.
        crs: where `geometries` lie, as WKT or authority code.
        rings: the same polygons in the target CRS.
        status: (zone) what became of each feature.
        detail: (zone) why, for a reader; None where there is nothing to say.
    """

    ids: pa.Array
    attributes: pa.Table
    geometries: NDArray[np.object_]
    crs: str
    rings: Rings
    status: tuple[Status, ...]
    detail: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.geometries)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(zone) whether there is something to measure."""
        return ~shapely.is_missing(self.geometries)

    def projected(self) -> NDArray[np.object_]:
        """The polygons in the target CRS as shapely multipolygons."""
        offsets = (self.rings.rings, self.rings.polygons, self.rings.zones)
        return shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, self.rings.vertices, offsets)


def read(
    source: VectorAsset | dict[str, Any] | bytes,
    *,
    target_crs: str,
    crs: str | None = None,
    id_field: str | None = None,
    fields: Sequence[str] = (),
    edge_tolerance: float | None = None,
    west: float = -180.0,
) -> Zones:
    """Read features, repair them and project them; see `polygons.project`.

    Args:
        source: a described layer, or GeoJSON (FeatureCollection, Feature or geometry) as a document or as its bytes.
        target_crs: where `Zones.rings` lie.
        crs: where inline coordinates lie, when they do not follow GeoJSON.
        id_field: field that names the zones.
        fields: fields to carry over.
        edge_tolerance: in units of the target CRS; None projects vertices only.
        west: longitude that a geographic target begins at.

    Raises:
        InvalidGeometry: coordinates that are no numbers, or that the target CRS has no place for; names the feature.
        InvalidParameter: a field or CRS that does not exist; names those that do.
        NotAVector: inline data is not GeoJSON, or the file is broken.
    """
    drawn = _draw(msgspec.json.encode(source) if isinstance(source, dict) else source, crs, id_field, tuple(fields))
    return _onto(drawn, target_crs, edge_tolerance, west)


class _Drawn(NamedTuple):
    """Features mended, where they were drawn."""

    ids: pa.Array
    attributes: pa.Table
    crs: pyproj.CRS
    shapes: NDArray[np.object_]
    status: tuple[Status, ...]
    detail: tuple[str | None, ...]


def _draw(source: VectorAsset | bytes, crs: str | None, id_field: str | None, fields: tuple[str, ...]) -> _Drawn:
    wanted: tuple[str, ...] = tuple(dict.fromkeys((id_field, *fields) if id_field else fields))
    found = vector.read(source, wanted, crs)
    shapes, status, detail = polygons.repair(found.geometries, found.crs)
    if id_field is None and found.ids is not None:
        nameless = "The feature has no id; its position stands for it."
        detail = tuple(
            f"{why} {nameless}" if why and own is None else nameless if own is None else why
            for why, own in zip(detail, found.ids, strict=True)
        )
    return _Drawn(_ids(found, id_field), found.table.select(list(fields)), found.crs, shapes, status, detail)


def _onto(drawn: _Drawn, target_crs: str, edge_tolerance: float | None, west: float) -> Zones:
    return Zones(
        ids=drawn.ids,
        attributes=drawn.attributes,
        geometries=drawn.shapes,
        crs=crs_name(drawn.crs),
        rings=polygons.project(drawn.shapes, drawn.crs, as_crs(target_crs), edge_tolerance, west),
        status=drawn.status,
        detail=drawn.detail,
    )


def _ids(layer: vector.Layer, id_field: str | None) -> pa.Array:
    if id_field is None:
        own = layer.ids or [None] * len(layer.geometries)
        return geojson.identifiers([at if value is None else value for at, value in enumerate(own)])
    column = layer.table[id_field]
    if id_field in layer.mixed:
        texts = column.to_pylist()
        return geojson.identifiers([None if text is None else msgspec.json.decode(text) for text in texts])
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# On a grid, once per process ------------------------------------------------------------------------------------------

_placed: OrderedDict[Any, Any] = OrderedDict()
_drawn: OrderedDict[Any, Any] = OrderedDict()
_cache_lock = threading.Lock()
_load_lock = threading.RLock()


def forget() -> None:
    """Empty the process cache, for measurements that count the reading of zones."""
    with _cache_lock:
        _placed.clear()
        _drawn.clear()


def _cached(cache: OrderedDict[Any, T], key: Any, entries: int, make: Callable[[], T]) -> T:
    """A few of the latest are kept; one thread makes, the others wait for it."""
    with _cache_lock:
        if key in cache:
            cache.move_to_end(key)
            return cache[key]
    with _load_lock:
        with _cache_lock:
            if key in cache:
                return cache[key]
        value = make()
        with _cache_lock:
            cache[key] = value
            while len(cache) > entries:
                cache.popitem(last=False)
    return value


def place(
    source: VectorAsset | dict[str, Any],
    grid: RasterAsset,
    *,
    crs: str | None = None,
    id_field: str | None = None,
    fields: tuple[str, ...] = (),
) -> tuple[Zones, coverage.Outlines]:
    """The zones, and their outlines in pixel coordinates of a raster; raises as `read`."""
    content: VectorAsset | bytes
    if isinstance(source, VectorAsset):
        content = source
        path = local_path(source.href)
        changed = (path.stat().st_mtime_ns, path.stat().st_size) if path is not None and path.exists() else None
        identity: Any = (source.href, source.layer, source.sha256, changed)
    else:
        content = msgspec.json.encode(source)
        identity = hashlib.sha256(content).hexdigest()
    asked = (identity, crs, id_field, fields)

    def make() -> tuple[Zones, coverage.Outlines]:
        a, b, _, d, e, _ = grid.transform
        tolerance = EDGE_TOLERANCE_PX * min(float(np.hypot(a, d)), float(np.hypot(b, e)))
        # Items on many grids share one layer: it is read and mended once.
        drawn = _cached(_drawn, asked, 1, lambda: _draw(content, crs, id_field, fields))
        zones = _onto(drawn, grid.crs, tolerance, _west(grid))
        rings = zones.rings
        return zones, coverage.outlines(to_pixels(rings.vertices, grid), rings.rings, rings.polygons[rings.zones])

    return _cached(_placed, (asked, grid.crs, grid.transform, grid.shape), CACHE_ENTRIES, make)


def layer_of(document: dict[str, Any], inputs: Sequence[InputItem]) -> VectorAsset | None:
    """The layer that `zones` refers to; None for inline zones.

    Raises:
        InvalidParameter: neither GeoJSON nor a reference to an input item with one layer that fits.
    """
    if "type" in document:
        return None
    if "item_id" not in document or set(document) - {"item_id", "asset"}:
        raise InvalidParameter(
            'zones must be GeoJSON (with a `type`) or {"item_id": …, "asset": …}; '
            f"it has {', '.join(sorted(document)) or 'nothing'}.",
            pointer="/zones",
        )
    wanted, key = document["item_id"], document.get("asset")
    item = next((each for each in inputs if each.id == wanted), None)
    if item is None:
        given = ", ".join(each.id for each in inputs)
        raise InvalidParameter(f"zones refers to item {wanted!r}, the inputs are: {given}.", pointer="/zones/item_id")
    found = [asset for asset in item.vectors if key in (None, asset.key)]
    if len(found) != 1:
        keys = ", ".join(asset.key for asset in item.vectors) or "none"
        raise InvalidParameter(
            f"Item {wanted} has {len(found)} vector assets that fit; name one in zones.asset. Its own: {keys}.",
            pointer="/zones/asset",
        )
    return found[0]


def _extent(grid: RasterAsset) -> NDArray[np.float64]:
    """Box around a raster in its CRS."""
    a, b, c, d, e, f = grid.transform
    rows, cols = np.array([0, 0, grid.shape[0], grid.shape[0]]), np.array([0, grid.shape[1], 0, grid.shape[1]])
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    return np.array([x.min(), y.min(), x.max(), y.max()])


def _west(grid: RasterAsset) -> float:
    """The longitude half a turn west of a raster's middle: the turn from there holds it whole, unless it is wider."""
    box = _extent(grid)
    return float((box[0] + box[2]) / 2.0 - 180.0)


def to_pixels(points: NDArray[np.float64], grid: RasterAsset) -> NDArray[np.float64]:
    """Points (point, xy) of the raster's CRS as columns and rows."""
    a, b, c, d, e, f = grid.transform
    x, y = points[:, 0] - c, points[:, 1] - f
    if b == 0.0 and d == 0.0:
        return np.stack([x / a, y / e], axis=1)
    determinant = a * e - b * d
    return np.stack([(e * x - b * y) / determinant, (a * y - d * x) / determinant], axis=1)


def row_areas(grid: RasterAsset, row: int, height: int) -> NDArray[np.float64]:
    """Area in m² of a cell of each row: on the ellipsoid for degrees, on the plane of the projection otherwise."""
    a, b, _, d, e, f = grid.transform
    crs = as_crs(grid.crs)
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


# Where there is something to measure ----------------------------------------------------------------------------------


def touched(work: coverage.Pairs, grid: RasterAsset, side: int) -> Iterator[Window]:
    """Windows of at most side × side canonical blocks around the blocks that boxes of zones touch."""
    if not len(work.block):
        return
    blocks = np.unique(work.block, axis=0)
    tile = blocks // side
    for at in np.unique(tile, axis=0):
        inside = blocks[(tile == at).all(axis=1)]
        low, high = inside.min(axis=0) * coverage.BLOCK, (inside.max(axis=0) + 1) * coverage.BLOCK
        yield Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])).intersect(grid.window)


def overlap(box: NDArray[np.float64], grid: RasterAsset, side: int) -> Iterator[Window]:
    """Windows of whole canonical blocks around a box, a little widened: the box of a layer is projected roughly."""
    whole = grid.window
    if not np.isfinite(box).all():
        box = np.array([0.0, 0.0, whole.width, whole.height])
    spare = 0.02 * max(box[2] - box[0], box[3] - box[1]) + 1.0
    limit = np.array([whole.width, whole.height], np.float64)
    low = np.clip(np.floor(box[:2] - spare), 0, limit).astype(int)
    high = np.clip(np.ceil(box[2:] + spare), 0, limit).astype(int)
    if (low >= high).any():
        return
    step = side * coverage.BLOCK
    first, last = low // coverage.BLOCK * coverage.BLOCK, -(-high // coverage.BLOCK) * coverage.BLOCK
    area = Window(int(first[1]), int(first[0]), int(last[1] - first[1]), int(last[0] - first[0])).intersect(whole)
    for row in range(area.row - area.row % step, area.row_stop, step):
        for col in range(area.col - area.col % step, area.col_stop, step):
            yield Window(row, col, step, step).intersect(area)


def box_of(shapes: coverage.Outlines) -> NDArray[np.float64]:
    """Box around all zones, in pixels."""
    with_area = shapes.boxes[~np.isnan(shapes.boxes[:, 0])]
    return np.concatenate([with_area[:, :2].min(axis=0), with_area[:, 2:].max(axis=0)])


def box_of_layer(layer: VectorAsset, grid: RasterAsset) -> NDArray[np.float64]:
    """Bounds of a layer in pixels, from its description alone; not finite where they say nothing."""
    source, target = as_crs(layer.crs), as_crs(grid.crs)
    x_min, y_min, x_max, y_max = layer.bounds
    # A layer on both sides of the antimeridian has the bounds of one around the Earth.
    is_around = source.is_geographic and x_max - x_min > 180.0
    change = polygons.transformer(source, target)
    if change is not None and not (is_around and not target.is_geographic):
        x_min, y_min, x_max, y_max = change.transform_bounds(x_min, y_min, x_max, y_max, densify_pts=21)
    if target.is_geographic:
        extent = _extent(grid)
        x_max += 360.0 if x_max < x_min else 0.0
        turns = [turn for turn in (-360.0, 0.0, 360.0) if x_min + turn < extent[2] and x_max + turn > extent[0]]
        if is_around or len(turns) > 1:
            x_min, x_max = extent[0], extent[2]
        else:
            middle, own = (extent[0] + extent[2]) / 2, (x_min + x_max) / 2
            turn = turns[0] if turns else 360.0 * np.rint((middle - own) / 360.0)
            x_min, x_max = x_min + turn, x_max + turn
    elif is_around:
        return np.full(4, np.inf)
    corners = to_pixels(np.array([[x_min, y_min], [x_min, y_max], [x_max, y_min], [x_max, y_max]]), grid)
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def how_far(box: NDArray[np.float64], grid: RasterAsset) -> str:
    """Why a raster has nothing of zones whose box, in pixels, this is."""
    height, width = grid.shape
    right, left = max(box[0] - width, 0.0), max(-box[2], 0.0)
    below, above = max(box[1] - height, 0.0), max(-box[3], 0.0)
    a, b, _, d, e, _ = grid.transform
    crs = as_crs(grid.crs)
    across, down = float(np.hypot(a, d)), float(np.hypot(b, e))
    unit = crs.axis_info[0].unit_name if crs.axis_info else "unit"
    gaps = [
        f"{gap * size:.6g} {unit} ({gap:.0f} px) {side}"
        for gap, size, side in (
            (left, across, "left of"), (right, across, "right of"), (above, down, "above"), (below, down, "below")
        )
        if gap > 0.0
    ]  # fmt: skip
    named = f"{grid.key} ({crs.name}, {width} × {height} px)"
    if gaps:
        return f"No zone touches the raster: the nearest lies {' and '.join(gaps)} {named}."
    return (
        f"No zone covers as much as a billionth of a cell of {named}: "
        "they touch its edge, lie on either side of it, or are that thin."
    )


def why_unusable(zones: Zones) -> str:
    """Why none of the zones can be measured."""
    reasons = [detail for detail in zones.detail if detail]
    which = "The zone is no polygon" if len(zones) == 1 else f"None of the {len(zones)} zones is a polygon"
    return f"{which} with an area. {reasons[0] if reasons else ''}".strip()
