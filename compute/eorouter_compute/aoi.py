"""Areas of interest: from the JSON a caller sends to a mask on a raster's pixels.

    GeoJSON or bbox ──parse──► polygons in their CRS ──onto──► polygons in the raster's CRS ──Coverage──► booleans

An edge is straight in the CRS the caller drew it in, so it is bent as it is projected: split until it is off by less
than a tenth of a pixel. Areas across the antimeridian may be drawn past ±180, with a jump from 180 to −180, or cut in
two.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import CRSError
from shapely import MultiPolygon, Polygon
from shapely.geometry.polygon import orient
from shapely.ops import nearest_points

from eorouter_compute.errors import AoiOutside, InvalidGeometry, InvalidParameter, TooLarge
from eorouter_compute.grid import Transform, Window, footprint, shifted, tiles, to_pixels
from eorouter_compute.vetting import count_overlaps
from eorouter_kernels import coverage

PixelRule = Literal["center", "all_touched", "coverage"]
"""Which pixels belong to an area: those whose centre is inside, all that it touches, or those it covers enough of."""

Bbox = tuple[float, float, float, float]

CRS84 = "OGC:CRS84"
TOLERANCE_PIXELS = 0.1
VERTICES_MAX = 1_000_000
POSITIONS_MAX = 200_000
"""Most positions that a caller may draw an area with; each is looked at one by one, while the caller waits."""

COORDINATE_MAX = 1e12
"""Beyond it no CRS has a place, and products of coordinates overflow."""

OVERLAPS_MAX = 20_000
"""Most pairs of polygons of one area that may overlap, besides eight neighbours of each."""

_LOOKED_AT_MAX = 1 << 16
"""Pixels within an area's bounds up to which it may cover none; one with more that does has no width to speak of."""

_MASK_TILE = 512
_CLIP_VERTICES = 5_000
_MARGIN_DEGREES = 5.0
_TOUCHING_PIXELS = 1e-6  # bounds drawn on a pixel edge come back with noise in the twelfth digit


def parse(area: dict[str, Any] | Bbox, crs: str = CRS84, *, pointer: str = "/aoi") -> MultiPolygon:
    """Polygons in `crs` from a GeoJSON Polygon, MultiPolygon, Feature, FeatureCollection, or a bbox (w, s, e, n).

    In longitude and latitude the result lies within ±180: what crosses the antimeridian is cut there.

    Raises:
        InvalidGeometry: says what is wrong and, by JSON pointer, where.
        InvalidParameter: `crs` is not known.
    """
    in_degrees = is_geographic(crs)
    if isinstance(area, dict):
        _refuse_many_positions(area, pointer)
        polygons = [each for each, _ in _polygons(area, pointer, is_geographic=in_degrees)]
    else:
        polygons = [_bbox(area, pointer, is_geographic=in_degrees)]
    if len(polygons) > 1:
        _refuse_tangle(polygons, pointer)
    whole = shapely.union_all(polygons) if len(polygons) > 1 else polygons[0]
    if not np.abs(whole.bounds).max() < COORDINATE_MAX:
        raise InvalidGeometry(
            f"The area reaches from {whole.bounds[:2]} to {whole.bounds[2:]}; no place on Earth lies there.",
            pointer=pointer,
        )
    return _within_turn(whole) if in_degrees else _multi(whole)


def _refuse_tangle(polygons: list[Polygon], pointer: str) -> None:
    """Refuse polygons whose union would have crossings without number."""
    limit = OVERLAPS_MAX + 8 * len(polygons)
    if count_overlaps(shapely.bounds(polygons), at_most=limit) > limit:
        raise TooLarge(
            f"More than {limit} pairs of the area's {len(polygons)} polygons overlap. Unite them first.",
            pointer=pointer,
        )


def known_crs(crs: str, *, pointer: str) -> pyproj.CRS:
    """The CRS of that name, one that a map can be drawn in.

    Raises:
        InvalidParameter: PROJ does not know it, or it is vertical, geocentric or the like.
    """
    try:
        known = pyproj.CRS.from_user_input(crs)
    except CRSError as error:
        raise InvalidParameter(
            f"The CRS {crs[:80]!r} is not known. Give an authority code such as EPSG:32632, or WKT.", pointer=pointer
        ) from error
    if not (known.is_geographic or known.is_projected):
        raise InvalidParameter(
            f"The CRS {crs[:80]!r} ({known.name}, {known.type_name}) is neither geographic nor projected. "
            "Give one of a map, such as EPSG:32632.",
            pointer=pointer,
        )
    return known


@lru_cache(maxsize=256)
def is_geographic(crs: str) -> bool:
    """Whether a CRS has degrees; remembered, for each thread's first CRS takes ten milliseconds to make.

    Raises:
        InvalidParameter: as `known_crs`.
    """
    return known_crs(crs, pointer="/crs").is_geographic


def _refuse_many_positions(area: dict[str, Any], pointer: str) -> None:
    """Count lists of lists of numbers by level, before any of them is looked at."""
    level: list[Any] = [area]
    while level:
        if len(level) > POSITIONS_MAX:
            raise TooLarge(
                f"The area has more than {POSITIONS_MAX} positions. Simplify it to the size of a pixel.",
                pointer=pointer,
            )
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]


def _bbox(area: Bbox, pointer: str, *, is_geographic: bool) -> Polygon:
    west, south, east, north = area
    if not np.isfinite(area).all():
        raise InvalidGeometry(f"The bbox {list(area)} has numbers that are not finite.", pointer=pointer)
    if is_geographic:
        _check_degrees(np.array([[west, south], [east, north]]), pointer)
        if west > east:
            east += 360.0
    if not (south < north and west < east):
        raise InvalidGeometry(
            f"The bbox {list(area)} is empty. Expected [west, south, east, north] with south < north"
            + (" and west ≠ east." if is_geographic else " and west < east."),
            pointer=pointer,
        )
    return shapely.box(west, south, east, north)


def _polygons(area: Any, pointer: str, *, is_geographic: bool) -> Iterator[tuple[Polygon, str]]:
    kind = area.get("type") if isinstance(area, dict) else None
    if kind in {"Feature", "FeatureCollection"}:
        inner = [("geometry", area.get("geometry"))]
        if kind == "FeatureCollection":
            features = area.get("features")
            if not isinstance(features, list) or not features:
                raise InvalidGeometry("A FeatureCollection needs at least one feature.", pointer=f"{pointer}/features")
            inner = [(f"features/{number}", feature) for number, feature in enumerate(features)]
        for place, member in inner:
            yield from _polygons(member, f"{pointer}/{place}", is_geographic=is_geographic)
        return
    if kind not in {"Polygon", "MultiPolygon"}:
        raise InvalidGeometry(
            f"Expected a Polygon or MultiPolygon, got {kind or ('null' if area is None else type(area).__name__)}.",
            pointer=pointer,
        )
    coordinates = area.get("coordinates")
    listed = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(listed, list) or not listed:
        raise InvalidGeometry(f"A {kind} needs coordinates.", pointer=f"{pointer}/coordinates")
    for number, rings in enumerate(listed):
        place = f"{pointer}/coordinates" + (f"/{number}" if kind == "MultiPolygon" else "")
        yield _polygon(rings, place, is_geographic=is_geographic), place


def _polygon(rings: Any, pointer: str, *, is_geographic: bool) -> Polygon:
    if not isinstance(rings, list) or not rings:
        raise InvalidGeometry("A polygon needs at least one ring.", pointer=pointer)
    arrays = [_ring(ring, f"{pointer}/{number}", is_geographic=is_geographic) for number, ring in enumerate(rings)]
    if is_geographic:
        middle = (arrays[0][:, 0].min() + arrays[0][:, 0].max()) / 2
        for hole in arrays[1:]:
            hole[:, 0] += 360.0 * np.rint((middle - hole[:, 0].mean()) / 360.0)
    polygon = Polygon(arrays[0], arrays[1:])
    if not polygon.is_valid:
        raise InvalidGeometry(
            f"The polygon is not valid: {shapely.is_valid_reason(polygon)}. Mend it, with ST_MakeValid say.",
            pointer=f"{pointer}/{_ring_at_fault(polygon)}",
        )
    if polygon.area == 0:
        raise InvalidGeometry("The polygon has no area.", pointer=f"{pointer}/0")
    return polygon


def _ring_at_fault(polygon: Polygon) -> int:
    """The first ring with which a polygon is not valid: alone, or beside those before it.

    What one ring spoils no further one mends, so it is found by halves: rings may be many.
    """
    rings = np.array([polygon.exterior, *polygon.interiors], object)
    alone = shapely.is_valid(shapely.polygons(rings))
    if not alone.all():
        return int(np.argmin(alone))
    low, high = 1, len(rings) - 1
    while low < high:
        middle = (low + high) // 2
        if shapely.polygons(rings[0], rings[1 : middle + 1]).is_valid:
            low = middle + 1
        else:
            high = middle
    return low


def _ring(ring: Any, pointer: str, *, is_geographic: bool) -> np.ndarray:
    if not isinstance(ring, list) or len(ring) < 4:
        raise InvalidGeometry("A ring needs at least four positions, the last equal to the first.", pointer=pointer)
    for number, position in enumerate(ring):
        if (
            not isinstance(position, list | tuple)
            or len(position) < 2
            or not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in position[:2])
        ):
            raise InvalidGeometry(f"Expected [x, y], got {position!r}.", pointer=f"{pointer}/{number}")
    points = np.array([position[:2] for position in ring], np.float64)
    if (points[0] != points[-1]).any():
        raise InvalidGeometry(
            f"The ring is not closed: it begins at {ring[0]} and ends at {ring[-1]}.", pointer=pointer
        )
    if not is_geographic:
        return points
    _check_degrees(points, pointer)
    steps = np.diff(points[:, 0])
    # More than half a turn between neighbours is a jump over the antimeridian, unless the ring then fails to close or
    # grows: areas wider than half the globe have such edges too.
    steps -= np.where((np.abs(steps) > 180.0) & (np.abs(steps) < 360.0), np.sign(steps) * 360.0, 0.0)
    lon = points[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])
    if abs(lon[-1] - lon[0]) < 1e-9 and np.ptp(lon) < np.ptp(points[:, 0]):
        points[:-1, 0] = lon[:-1]
    return points


def _check_degrees(points: np.ndarray, pointer: str) -> None:
    beyond = (np.abs(points[:, 0]) > 360.0) | (np.abs(points[:, 1]) > 90.0)
    if beyond.any():
        raise InvalidGeometry(
            f"{points[beyond][0].tolist()} is not a longitude and latitude in degrees. Set `crs` if the coordinates "
            "are projected; the order is longitude first.",
            pointer=pointer,
        )


def _within_turn(geometry: Any) -> MultiPolygon:
    west, _, east, _ = geometry.bounds
    if west >= -180.0 and east <= 180.0:
        return _multi(geometry)
    parts = []
    for turn in range(int(np.floor((west + 180) / 360)), int(np.ceil((east + 180) / 360))):
        cut = shapely.clip_by_rect(geometry, 360.0 * turn - 180, -90.0, 360.0 * turn + 180, 90.0)
        if cut.area > 0:
            parts.append(shapely.transform(cut, lambda xy, turn=turn: xy - [360.0 * turn, 0.0]))
    return _multi(shapely.union_all(parts))


def _multi(geometry: Any) -> MultiPolygon:
    return MultiPolygon([part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and part.area > 0])


# Onto a raster --------------------------------------------------------------------------------------------------------


def onto(
    area: MultiPolygon,
    crs: str,
    raster_crs: str,
    transform: Transform,
    shape: tuple[int, int],
    *,
    pointer: str = "/aoi",
) -> MultiPolygon:
    """The area in the CRS of a raster, its edges bent to a tenth of a pixel.

    Raises:
        AoiOutside: the area does not meet the raster; says how far away it is and where the raster lies.
        InvalidGeometry: the area leaves the part of the Earth that the raster's CRS can show.
    """
    source, target = known_crs(crs, pointer="/crs"), pyproj.CRS.from_user_input(raster_crs)
    if source.equals(target, ignore_axis_order=True):
        projected = area
    else:
        if source.is_geographic:
            area = _near(area, raster_crs, transform, shape, pointer)
        a, b, _, d, e, _ = transform
        tolerance = TOLERANCE_PIXELS * min(np.hypot(a, d), np.hypot(b, e))
        projector = pyproj.Transformer.from_crs(source, target, always_xy=True)
        projected = _multi(shapely.union_all([_projected(part, projector, tolerance, pointer) for part in area.geoms]))
    if target.is_geographic:
        # Rasters of the globe may count longitude from 0 to 360, or begin anywhere else.
        meeting = [
            part
            for turn in (-360.0, 0.0, 360.0)
            for part in _meeting(
                shapely.transform(projected, lambda xy, turn=turn: xy + np.array([turn, 0.0])), transform, shape
            )
        ]
        projected = _multi(shapely.union_all(meeting)) if meeting else projected
    if not window_of(projected, transform, shape).pixels:
        _refuse_touching(projected, raster_crs, transform, shape, pointer=pointer)
        _refuse(area, crs, raster_crs, transform, shape, pointer=pointer)
    return projected


def _near(
    area: MultiPolygon, raster_crs: str, transform: Transform, shape: tuple[int, int], pointer: str
) -> MultiPolygon:
    """Cut off what is far from the raster: projections fold or fail a quarter of the globe away."""
    _, (west, south, east, north) = footprint(raster_crs, shape, transform)
    if east < west or east - west > 180 or abs(south) > 80 or abs(north) > 80:
        return area
    m = _MARGIN_DEGREES
    bounds = area.bounds
    if bounds[0] >= west - m and bounds[1] >= south - m and bounds[2] <= east + m and bounds[3] <= north + m:
        return area
    cut = _multi(
        shapely.union_all(
            [
                shapely.clip_by_rect(area, west - m + turn, south - m, east + m + turn, north + m)
                for turn in (-360.0, 0.0, 360.0)
            ]
        )
    )
    if cut.is_empty:
        _refuse(area, CRS84, raster_crs, transform, shape, pointer=pointer)
    return cut


def _projected(polygon: Polygon, projector: pyproj.Transformer, tolerance: float, pointer: str) -> Any:
    rings = [
        _bent(np.asarray(ring.coords), projector, tolerance, pointer) for ring in (polygon.exterior, *polygon.interiors)
    ]
    bent = Polygon(rings[0], rings[1:])
    return bent if bent.is_valid else shapely.make_valid(bent)


def _bent(ring: np.ndarray, projector: pyproj.Transformer, tolerance: float, pointer: str) -> np.ndarray:
    """A ring projected, with points added until no quarter of an edge is off the chord by more than `tolerance`."""

    def project(points: np.ndarray) -> np.ndarray:
        x, y = projector.transform(points[:, 0], points[:, 1])
        out = np.stack([np.asarray(x), np.asarray(y)], axis=1)
        if not np.isfinite(out).all():
            at = points[~np.isfinite(out).all(axis=1)][0]
            raise InvalidGeometry(
                f"{at.tolist()} cannot be shown in the raster's CRS. Draw the area closer to the raster.",
                pointer=pointer,
            )
        return out

    image = project(ring)
    open_edges = np.ones(len(ring) - 1, np.bool_)
    while open_edges.any():
        if len(ring) > VERTICES_MAX:
            raise InvalidGeometry(
                f"The area needs more than {VERTICES_MAX} vertices on this raster. Draw it closer to it.",
                pointer=pointer,
            )
        start, stop = ring[:-1][open_edges], ring[1:][open_edges]
        t = np.array([0.25, 0.5, 0.75])[:, None, None]
        inner = start + t * (stop - start)
        inner_image = project(inner.reshape(-1, 2)).reshape(inner.shape)
        chord = image[:-1][open_edges] + t * (image[1:][open_edges] - image[:-1][open_edges])
        is_off = (np.hypot(*(inner_image - chord).transpose(2, 0, 1)) > tolerance).any(axis=0)
        split = np.flatnonzero(open_edges)[is_off]
        ring = np.insert(ring, split + 1, inner[1][is_off], axis=0)
        image = np.insert(image, split + 1, inner_image[1][is_off], axis=0)
        open_edges = np.zeros(len(ring) - 1, np.bool_)
        first = split + np.arange(len(split))
        open_edges[first] = open_edges[first + 1] = True
    return image


def window_of(area: Any, transform: Transform, shape: tuple[int, int]) -> Window:
    """The pixels of the raster that the area's bounds touch; empty when there are none."""
    if area.is_empty:
        return Window(0, 0, 0, 0)
    x_min, y_min, x_max, y_max = in_pixels(area, transform).bounds
    noise = _TOUCHING_PIXELS  # which must not add a row
    col, row = int(np.floor(x_min + noise)), int(np.floor(y_min + noise))
    col_stop, row_stop = int(np.ceil(x_max - noise)), int(np.ceil(y_max - noise))
    return Window(row, col, max(row_stop - row, 1), max(col_stop - col, 1)).intersect(Window(0, 0, *shape))


def _meeting(area: MultiPolygon, transform: Transform, shape: tuple[int, int]) -> list[Any]:
    """The polygons of an area that meet the raster: one a turn away would stretch the bounds across the globe."""
    x_min, y_min, x_max, y_max = shapely.bounds(shapely.get_parts(in_pixels(area, transform))).T
    meets = (x_max > 0) & (y_max > 0) & (x_min < shape[1]) & (y_min < shape[0])
    return [part for part, is_near in zip(area.geoms, meets, strict=True) if is_near]


def in_pixels(area: Any, transform: Transform) -> Any:
    """The area in pixel coordinates (column, row) of the raster."""
    return shapely.transform(area, lambda xy: np.stack(to_pixels(transform, xy[:, 0], xy[:, 1]), axis=1))


def _refuse(
    area: MultiPolygon, crs: str, raster_crs: str, transform: Transform, shape: tuple[int, int], *, pointer: str
) -> None:
    geometry, bbox = footprint(raster_crs, shape, transform)
    place = shapely.geometry.shape(geometry)
    if not known_crs(crs, pointer="/crs").equals(pyproj.CRS(CRS84), ignore_axis_order=True):
        to_lonlat = pyproj.Transformer.from_crs(crs, CRS84, always_xy=True)
        area = shapely.transform(area, lambda xy: np.stack(to_lonlat.transform(xy[:, 0], xy[:, 1]), axis=1))
    geod = pyproj.Geod(ellps="WGS84")
    distances = []
    for turn in (-360.0, 0.0, 360.0):
        near, far = nearest_points(place, shapely.transform(area, lambda xy, turn=turn: xy + np.array([turn, 0.0])))
        distances.append(geod.inv(near.x, near.y, far.x, far.y)[2] / 1000.0)
    km = min(distances)
    raise AoiOutside(
        f"The area of interest does not meet the raster: it is {km:.4g} km away. The raster lies within "
        f"{_spelled(bbox)}.",
        pointer=pointer,
        distance_km=round(km, 3),
        bbox=list(bbox),
    )


def refuse_empty(
    area: MultiPolygon,
    transform: Transform,
    shape: tuple[int, int],
    rule: PixelRule,
    *,
    of: str,
    mend: str,
    pointer: str,
    min_coverage: float = 0.5,
) -> None:
    """Refuse an area, as `onto` gives it, between pixel centres: it would give an empty raster without a word.

    Args:
        area: in the raster's CRS.
        transform: the raster's.
        shape: the raster's.
        rule: as of `Coverage`, and so is `min_coverage`.
        of: what the pixels are of, for the message.
        mend: the advice that ends it.
        pointer: to the parameter that mends it.
        min_coverage: see `rule`.

    Raises:
        InvalidParameter: no pixel belongs to the area.
    """
    where = window_of(area, transform, shape)
    if rule == "all_touched" or where.pixels > _LOOKED_AT_MAX:
        return
    if not Coverage(area, transform, shape, rule, min_coverage=min_coverage).covered(where).any():
        raise InvalidParameter(
            f"The area of interest covers no pixel of {of} by the rule {rule}. {mend}", pointer=pointer
        )


def _refuse_touching(
    projected: MultiPolygon, raster_crs: str, transform: Transform, shape: tuple[int, int], *, pointer: str
) -> None:
    """Refuse an area that shares an edge or a corner with the raster, and no pixel: it is no distance away."""
    turns = (-360.0, 0.0, 360.0) if pyproj.CRS.from_user_input(raster_crs).is_geographic else (0.0,)
    extent = shapely.box(0, 0, shape[1], shape[0])
    for turn in turns:
        moved = shapely.transform(projected, lambda xy, turn=turn: xy + np.array([turn, 0.0]))
        if in_pixels(moved, transform).distance(extent) <= _TOUCHING_PIXELS:
            _, bbox = footprint(raster_crs, shape, transform)
            raise AoiOutside(
                "The area of interest touches the raster's edge, but covers none of its pixels. The raster lies within "
                f"{_spelled(bbox)}.",
                pointer=pointer,
                distance_km=0.0,
                bbox=list(bbox),
            )


def _spelled(bbox: Bbox) -> str:
    where = ", ".join(f"{value:.5g}" for value in bbox)
    return f"longitude and latitude [{where}] (west, south, east, north)"


def _outlines(pixels: MultiPolygon) -> coverage.Outlines:
    """An area in pixel coordinates as one zone of the exact rasteriser, holes wound against shells."""
    rings = [
        np.asarray(ring.coords)
        for part in (orient(each) for each in pixels.geoms)
        for ring in (part.exterior, *part.interiors)
    ]
    offsets = np.cumsum([0, *(len(ring) for ring in rings)])
    return coverage.outlines(np.concatenate(rings), offsets, np.array([0, len(rings)]))


class Coverage:
    """Which pixels of a raster belong to an area, window by window.

    The answer for a pixel never depends on the window it is asked in. "all_touched" is what GDAL's rasteriser says; it
    is run on tiles that lie fixed on the raster, because its running sums depend on where a polygon enters the window.
    Tiles wholly inside or outside are not rasterised.
    """

    def __init__(
        self,
        area: MultiPolygon,
        transform: Transform,
        shape: tuple[int, int],
        rule: PixelRule,
        *,
        min_coverage: float = 0.5,
    ) -> None:
        """For the rule "coverage", `min_coverage` is the fraction, above 0, of a pixel that must be covered."""
        self._area = area
        self._transform = transform
        self._limit = Window(0, 0, *shape)
        self._rule: PixelRule = rule
        self._pixels = in_pixels(area, transform)
        self._min_coverage = min_coverage
        self._outlines = None if rule == "all_touched" else _outlines(self._pixels)
        self._is_large = shapely.get_num_coordinates(area) > _CLIP_VERTICES
        shapely.prepare(self._pixels)

    def covered(self, window: Window) -> np.ndarray:
        """True (y, x) where the pixel belongs to the area."""
        if self._rule == "center" and self._outlines is not None:
            return coverage.centers(self._outlines, (window.row, window.col, window.row_stop, window.col_stop))
        out = np.empty((window.height, window.width), np.bool_)
        for part in tiles(window, _MASK_TILE):
            tile = Window(
                part.row - part.row % _MASK_TILE, part.col - part.col % _MASK_TILE, _MASK_TILE, _MASK_TILE
            ).intersect(self._limit)
            answer = self._tile(tile)
            out[part.relative_to(window)] = answer[part.relative_to(tile)] if isinstance(answer, np.ndarray) else answer
        return out

    def _tile(self, tile: Window) -> np.ndarray | bool:
        from affine import Affine
        from rasterio.features import geometry_mask

        box = shapely.box(tile.col - 1, tile.row - 1, tile.col_stop + 1, tile.row_stop + 1)
        if not self._pixels.intersects(box):
            return False
        if self._pixels.contains_properly(box):
            return True
        if self._outlines is not None:
            window = (tile.row, tile.col, tile.row_stop, tile.col_stop)
            return coverage.coverage(self._outlines, window)[0] >= self._min_coverage
        area: Any = self._area
        if self._is_large:
            corners = shapely.transform(shapely.box(*box.buffer(8).bounds), self._outward)
            area = shapely.clip_by_rect(area, *corners.bounds)
        if area.is_empty:
            return False
        return geometry_mask(
            [area],
            out_shape=(tile.height, tile.width),
            transform=Affine(*shifted(self._transform, tile)),
            all_touched=True,
            invert=True,
        )

    def _outward(self, pixels: np.ndarray) -> np.ndarray:
        a, b, c, d, e, f = self._transform
        return np.stack([a * pixels[:, 0] + b * pixels[:, 1] + c, d * pixels[:, 0] + e * pixels[:, 1] + f], axis=1)
