"""Polygons made ready to be measured: repaired, carried over the antimeridian, projected with their edges bent.

Coordinates are always (x, y) = (longitude, latitude) or (easting, northing), whatever axis order a CRS declares. Around
the antimeridian polygons may come drawn past ±180, with a jump from 180 to −180, or cut in two: all are the same place.
"""

from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from eorouter_compute.aoi import COORDINATE_MAX, known_crs
from eorouter_compute.errors import InvalidGeometry, InvalidParameter
from eorouter_compute.vetting import count_overlaps

WGS84 = "OGC:CRS84"
"""Longitude and latitude in this order, the CRS of GeoJSON."""

CROSSINGS_MAX = 20_000
"""Most pairs of edges with overlapping boxes in the polygons to be made valid, besides eight neighbours of each."""

SPLITS_MAX = 12
"""Most halvings of an edge when it is projected: 4,096 pieces."""

TURN_TOLERANCE = 1e-9
"""Degrees by which a polygon may overstep a turn and still lie within it."""

Bounds = tuple[float, float, float, float]
Shapes = NDArray[np.object_]


class Status(StrEnum):
    """What became of a feature."""

    OK = "ok"
    REPAIRED = "repaired"
    EMPTY = "empty"
    NOT_POLYGONAL = "not_polygonal"
    ZERO_AREA = "zero_area"


USABLE = (Status.OK, Status.REPAIRED)


class Rings(NamedTuple):
    """Multipolygons as flat arrays: zone z owns polygons `zones[z] … zones[z + 1] - 1`, and so on down to vertices.

    Attributes:
        vertices: (vertex, 2) x, y; rings are closed, holes wound against their shell.
        rings: (ring + 1) first vertex of each ring.
        polygons: (polygon + 1) first ring of each polygon, the shell.
        zones: (zone + 1) first polygon of each zone.
    """

    vertices: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    zones: NDArray[np.int64]


@lru_cache(maxsize=256)
def as_crs(text: str) -> pyproj.CRS:
    """A CRS from WKT, PROJJSON, an authority code or a URN.

    Raises:
        InvalidParameter: PROJ does not know it.
    """
    return known_crs(text, pointer="/crs")


def crs_name(crs: pyproj.CRS) -> str:
    """The authority code of a CRS where it surely has one, its WKT otherwise."""
    authority = crs.to_authority(min_confidence=100)
    return ":".join(authority) if authority else crs.to_wkt()


def repair(geometries: Shapes, crs: pyproj.CRS) -> tuple[Shapes, tuple[Status, ...], tuple[str | None, ...]]:
    """Valid, oriented polygons (None where there is none), what became of each, and why.

    Raises:
        InvalidGeometry: a coordinate is no finite number or lies nowhere on Earth, or edges cross too often to be
            mended; names the feature.
    """
    _refuse_astray(geometries, is_geographic=crs.is_geographic)
    shapes = _unwrapped(geometries) if crs.is_geographic else geometries.copy()
    status = np.full(len(shapes), Status.OK, object)
    detail = np.full(len(shapes), None, object)
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    status[empty], detail[empty] = Status.EMPTY, "The feature has no geometry."
    kinds = shapely.get_type_id(shapes)
    mixed = ~empty & (kinds == shapely.GeometryType.GEOMETRYCOLLECTION)
    for i in np.flatnonzero(mixed):
        shapes[i] = _polygons_of(shapes[i])
        status[i], detail[i] = Status.REPAIRED, "Members that are no polygons were left out."
    is_area = np.isin(shapely.get_type_id(shapes), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    for i in np.flatnonzero(~empty & (~is_area | shapely.is_empty(shapes))):
        status[i], detail[i] = Status.NOT_POLYGONAL, f"A {geometries[i].geom_type} has no area."
    usable = np.isin(status, USABLE)
    broken, allowed = usable & ~shapely.is_valid(shapes), CROSSINGS_MAX
    for i in np.flatnonzero(broken):
        reason = shapely.is_valid_reason(shapes[i])
        allowed -= _crossings(shapes[i], int(i), allowed)
        shapes[i] = _polygons_of(shapely.make_valid(shapes[i]))
        status[i], detail[i] = Status.REPAIRED, f"Made valid: {reason}."
    flat = usable & ~(shapely.area(shapes) > 0.0)
    status[flat], detail[flat] = Status.ZERO_AREA, "The polygon has no area."
    shapes[~np.isin(status, USABLE)] = None
    return _oriented(shapes), tuple(map(Status, status)), tuple(detail)


def _oriented(shapes: Shapes) -> Shapes:
    """Shells anticlockwise and holes clockwise. Most come so; to see that costs a tenth of making it so."""
    rings = ragged(shapes)
    first = rings.rings[:-1]
    if not len(first):
        return shapes
    # Shoelace about the first vertex of each ring; its last vertex repeats the first, so the step to the next ring
    # begins and ends at terms that are zero.
    x, y = (rings.vertices - np.repeat(rings.vertices[first], np.diff(rings.rings), axis=0)).T
    area = np.add.reduceat(x * np.roll(y, -1) - np.roll(x, -1) * y, first)
    is_shell = np.zeros(len(first), np.bool_)
    is_shell[rings.polygons[:-1]] = True
    astray = np.flatnonzero((area > 0.0) != is_shell)
    polygon = np.searchsorted(rings.polygons, astray, side="right") - 1
    wrong = np.unique(np.searchsorted(rings.zones, polygon, side="right") - 1)
    if len(wrong):
        shapes = shapes.copy()
        shapes[wrong] = shapely.orient_polygons(shapes[wrong])
    return shapes


def _crossings(shape: Any, feature: int, allowed: int) -> int:
    """Pairs of edges that may cross, less the usual neighbours; refused where mending would take time without end."""
    points, owner = shapely.get_coordinates(shapely.get_parts(shapely.boundary(shape)), return_index=True)
    a, b = points[:-1], points[1:]
    edges = np.concatenate([np.minimum(a, b), np.maximum(a, b)], axis=1)[owner[:-1] == owner[1:]]
    limit = allowed + 8 * len(edges)
    found = count_overlaps(edges, at_most=limit)
    if found > limit:
        raise InvalidGeometry(
            f"Feature {feature} is not valid, and its edges may cross too often to mend it here. Mend it first.",
            pointer=f"/zones/features/{feature}/geometry",
            feature=feature,
        )
    return max(found - 8 * len(edges), 0)


def _polygons_of(geometry: Any) -> Any:
    """The polygons of a geometry as one multipolygon, made of valid parts that do not overlap."""
    parts = shapely.get_parts(geometry)
    while (shapely.get_type_id(parts) >= shapely.GeometryType.MULTIPOINT).any():
        parts = np.concatenate([shapely.get_parts(part) for part in parts]) if len(parts) else parts
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    if len(polygons) <= 1:
        return shapely.MultiPolygon(list(polygons))
    return shapely.union_all(shapely.make_valid(polygons))


def _refuse_astray(geometries: NDArray[np.object_], *, is_geographic: bool) -> None:
    coordinates, owner = shapely.get_coordinates(geometries, return_index=True)
    limits = (360.0, 90.0) if is_geographic else (COORDINATE_MAX, COORDINATE_MAX)
    bad = ~(np.abs(coordinates) <= limits).all(axis=1)  # NaN is no less than anything
    if not bad.any():
        return
    at = int(np.argmax(bad))
    x, y = coordinates[at].tolist()
    if not np.isfinite(coordinates[at]).all():
        why = "has a coordinate that is not a finite number"
    elif is_geographic:
        why = f"has [{x:g}, {y:g}], which is no longitude and latitude in degrees; set `crs` if they are projected"
    else:
        why = f"has [{x:g}, {y:g}]; no place on Earth lies there"
    _raise_astray(int(owner[at]), why)


def _raise_astray(feature: int, why: str) -> None:
    raise InvalidGeometry(f"Feature {feature} {why}.", pointer=f"/zones/features/{feature}/geometry", feature=feature)


def transformer(source: pyproj.CRS, target: pyproj.CRS) -> pyproj.Transformer | None:
    """From one CRS to another, x before y; None where nothing is to be done, axis order aside.

    Raises:
        InvalidParameter: PROJ has no way between them.
    """
    if source == target or source.equals(target, ignore_axis_order=True):
        return None
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise InvalidParameter(f"PROJ has no way from {source.name} to {target.name}: {error}") from error


def project(
    shapes: Shapes, source: pyproj.CRS, target: pyproj.CRS, tolerance: float | None = None, west: float = -180.0
) -> Rings:
    """Polygons in another CRS, as flat arrays.

    Straight edges stay straight in the CRS they were drawn in: where the projection bends one by more than the
    tolerance, it is halved until it does not, at most `SPLITS_MAX` times. Shared edges are halved alike.

    Args:
        shapes: what `repair` gave.
        source: where they lie.
        target: where they shall lie.
        tolerance: in units of the target; None projects vertices only.
        west: where the turn of longitudes begins that geographic results are brought into, by whole turns, cut in two
            where need be; degrees.

    Raises:
        InvalidGeometry: the target has no place for a vertex; names the feature.
    """
    change = transformer(source, target)
    if change is None:
        return ragged(within_turn(shapes, west) if target.is_geographic else shapes)
    rings = ragged(shapes)
    if not len(rings.vertices):
        return rings
    projected = _bend(rings, change, tolerance, is_geographic=target.is_geographic)
    _refuse_lost(projected, target.name)
    if not target.is_geographic:
        return projected
    multi = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, projected.vertices, projected[1:])
    return ragged(within_turn(_unwrapped(multi), west))


def _refuse_lost(rings: Rings, crs: str) -> None:
    bad = ~np.isfinite(rings.vertices).all(axis=1)
    if bad.any():
        ring = np.searchsorted(rings.rings, np.argmax(bad), side="right") - 1
        polygon = np.searchsorted(rings.polygons, ring, side="right") - 1
        feature = int(np.searchsorted(rings.zones, polygon, side="right") - 1)
        _raise_astray(feature, f"lies where {crs} is not defined")


def to_lonlat(shapes: Shapes, crs: str) -> Rings:
    """Polygons in longitude and latitude, vertex by vertex; cut at the antimeridian, as RFC 7946 wants it (§3.1.9).

    Raises:
        InvalidGeometry: a vertex has no longitude and latitude; names the feature.
    """
    rings = ragged(shapes)
    change = transformer(as_crs(crs), as_crs(WGS84))
    if change is not None and len(rings.vertices):
        rings = rings._replace(vertices=np.stack(change.transform(*rings.vertices.T), axis=1))
        _refuse_lost(rings, "WGS 84")
    boxes = _boxes(rings)
    if (boxes[:, 2] - boxes[:, 0] <= 180.0).all() and (np.abs(boxes[:, ::2]) <= 180.0).all():
        return rings
    multi = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, rings.vertices, rings[1:])
    if change is not None:
        drawn, multi = multi, _unwrapped(multi)
        for i in np.flatnonzero(np.diff(shapely.bounds(drawn)[:, ::2], axis=1)[:, 0] > 180.0):
            if any(_turns(ring) for ring in _rings(drawn[i])):
                multi[i] = _around_pole(drawn[i])
    return ragged(within_turn(multi, -180.0))


def _boxes(rings: Rings) -> NDArray[np.float64]:
    """Box around each polygon, (polygon, 4)."""
    first = rings.rings[rings.polygons[:-1]]
    if not len(first):
        return np.empty((0, 4))
    low, high = np.minimum.reduceat(rings.vertices, first), np.maximum.reduceat(rings.vertices, first)
    return np.concatenate([low, high], axis=1)


def lonlat_bounds(rings: Rings) -> Bounds:
    """Box around polygons in longitude and latitude; its west is greater than its east across the antimeridian."""
    boxes = _boxes(rings)
    south, north = boxes[:, 1].min(), boxes[:, 3].max()
    west, east = boxes[:, 0].min(), boxes[:, 2].max()
    if east - west > 180.0:
        eastern = boxes[:, 0] >= 0.0
        low, high = boxes[eastern, 0].min(initial=180.0), boxes[~eastern, 2].max(initial=-180.0)
        if high + 360.0 - low < east - west:
            west, east = low, high
    return float(west), float(south), float(east), float(north)


def box_of(bounds: Bounds) -> Any:
    """The polygon of a box in longitude and latitude, two where its west is greater than its east."""
    west, south, east, north = bounds
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.MultiPolygon([shapely.box(west, south, 180.0, north), shapely.box(-180.0, south, east, north)])


def ragged(shapes: Shapes) -> Rings:
    """Polygons and multipolygons as flat arrays; what is missing owns nothing."""
    filled = shapes.copy()
    filled[shapely.is_missing(shapes)] = shapely.MultiPolygon()
    if not len(filled):
        return Rings(np.empty((0, 2)), *(np.zeros(1, np.int64) for _ in range(3)))
    kind, vertices, offsets = shapely.to_ragged_array(filled, include_z=False)
    if kind == shapely.GeometryType.POLYGON:
        offsets = (*offsets, np.arange(len(filled) + 1))
    return Rings(vertices, *(np.asarray(offset, np.int64) for offset in offsets))


def _bend(rings: Rings, change: pyproj.Transformer, tolerance: float | None, *, is_geographic: bool) -> Rings:
    """Project vertices, and halve edges that the projection bends by more than the tolerance."""

    def forward(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(change.transform(points[:, 0], points[:, 1]), axis=1)

    def apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """From one point to the other, the short way around the Earth."""
        steps = other - one
        if is_geographic:
            steps[:, 0] -= 360.0 * np.rint(steps[:, 0] / 360.0)
        return steps

    drawn, offsets = rings.vertices, rings.rings
    placed = forward(drawn)
    starts = np.ones(len(drawn), np.bool_)
    starts[offsets[1:] - 1] = False
    pending = np.flatnonzero(starts)
    for _ in range(SPLITS_MAX if tolerance is not None else 0):
        a, b = drawn[pending], drawn[pending + 1]
        # Tested off the middle, where an S-shaped curve would pass, and from the same end whichever way a ring runs, so
        # that two neighbours halve their common edge alike.
        is_forward = (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] < b[:, 1]))
        part = np.where(is_forward, 0.4, 0.6)[:, None]
        with np.errstate(invalid="ignore"):  # infinite where the target CRS ends; refused by the caller
            straight = placed[pending] + apart(placed[pending], placed[pending + 1]) * part
            off = np.hypot(*apart(straight, forward(a * (1 - part) + b * part)).T)
        bent = pending[off > cast("float", tolerance)]
        if not len(bent):
            break
        middle = (drawn[bent] + drawn[bent + 1]) / 2
        drawn = np.insert(drawn, bent + 1, middle, axis=0)
        placed = np.insert(placed, bent + 1, forward(middle), axis=0)
        offsets = offsets + np.searchsorted(bent + 1, offsets, side="left")
        first = bent + np.arange(len(bent))
        pending = np.sort(np.concatenate([first, first + 1]))
    return rings._replace(vertices=placed, rings=offsets)


# Around the antimeridian ----------------------------------------------------------------------------------------------


def _unwrapped(shapes: Shapes) -> Shapes:
    """Rings that jump from 180 to −180 drawn on past 180; a new array."""
    shapes = shapes.copy()
    boxes = shapely.bounds(shapes)
    for i in np.flatnonzero(boxes[:, 2] - boxes[:, 0] > 180.0):
        shapes[i] = _unwrapped_one(shapes[i])
    return shapes


def _unwrapped_one(shape: Any) -> Any:
    if shape.geom_type in {"MultiPolygon", "GeometryCollection"}:
        return type(shape)([_unwrapped_one(part) for part in shape.geoms])
    if shape.geom_type != "Polygon" or shape.is_empty:
        return shape
    shell, *holes = (_unwrapped_ring(np.array(ring.coords)) for ring in (shape.exterior, *shape.interiors))
    middle = (shell[:, 0].min() + shell[:, 0].max()) / 2
    for hole in holes:
        hole[:, 0] += 360.0 * np.rint((middle - hole[:, 0].mean()) / 360.0)
    return shapely.Polygon(shell, holes)


def _unwrapped_ring(points: NDArray[np.float64]) -> NDArray[np.float64]:
    # More than half a turn between neighbours is a jump over the antimeridian, unless the ring then fails to close or
    # grows: areas wider than half the globe have such edges too.
    steps = np.diff(points[:, 0])
    jumps = np.where((np.abs(steps) > 180.0) & (np.abs(steps) < 360.0), -np.sign(steps), 0.0)
    turns = np.concatenate([[0.0], np.cumsum(jumps)])
    lon = points[:, 0] + 360.0 * turns
    if turns[-1] == 0.0 and np.ptp(lon) < np.ptp(points[:, 0]):
        points[:, 0] = lon
    return points


def _rings(shape: Any) -> list[NDArray[np.float64]]:
    return [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(shape))]


def _turns(ring: NDArray[np.float64]) -> int:
    """How many times a ring of longitudes and latitudes goes around the Earth, eastwards, by its shortest steps."""
    steps = np.diff(ring[:, 0])
    return round(float((steps - 360.0 * np.rint(steps / 360.0)).sum()) / 360.0)


def _around_pole(shape: Any) -> Any:
    """Polygons around a pole in longitude and latitude: with an edge along it, within ±180."""
    parts = []
    for part in shapely.get_parts(shape):
        areas: list[Any] = []
        for ring in _rings(part):
            points = ring.copy()
            steps = np.diff(ring[:, 0])
            points[1:, 0] = ring[0, 0] + np.cumsum(steps - 360.0 * np.rint(steps / 360.0))
            if _turns(ring):
                pole = float(np.copysign(90.0, ring[:, 1].mean()))
                points = np.concatenate([points, [[points[-1, 0], pole], [points[0, 0], pole]]])
            areas.append(shapely.make_valid(shapely.Polygon(points)))
        shell, *holes = within_turn(np.array(areas, np.object_), -180.0)
        parts.append(shapely.difference(shell, shapely.union_all(holes)))
    return shapely.orient_polygons(_polygons_of(shapely.union_all(parts)))


def within_turn(shapes: Shapes, west: float) -> Shapes:
    """Polygons in longitude and latitude brought into [west, west + 360] by whole turns, cut in two where need be."""
    boxes = shapely.bounds(shapes)
    turn = np.floor((boxes[:, 0] - west + TURN_TOLERANCE) / 360.0)
    astray = np.flatnonzero((turn != 0.0) & np.isfinite(turn) | (boxes[:, 2] > west + 360.0 + TURN_TOLERANCE))
    if not len(astray):
        return shapes
    shapes = shapes.copy()
    for i in astray:
        if not shapely.is_valid(shapes[i]):  # around a pole, vertices alone draw lines that cross
            shapes[i] = _polygons_of(shapely.make_valid(shapes[i]))
        last = np.ceil((boxes[i, 2] - west - TURN_TOLERANCE) / 360.0)
        parts = []
        for number in range(int(turn[i]), max(int(last), int(turn[i]) + 1)):
            begin = west + 360.0 * number
            is_whole = boxes[i, 0] >= begin - TURN_TOLERANCE and boxes[i, 2] <= begin + 360.0 + TURN_TOLERANCE
            cut = shapes[i] if is_whole else shapely.intersection(shapes[i], shapely.box(begin, -90, begin + 360.0, 90))
            parts.append(shapely.transform(cut, lambda xy, number=number: xy - [360.0 * number, 0.0]))
        whole = parts[0] if len(parts) == 1 else _polygons_of(shapely.union_all(parts))
        shapes[i] = shapely.orient_polygons(whole)
    return shapes
