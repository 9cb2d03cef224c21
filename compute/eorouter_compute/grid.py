"""Where pixels are: windows, shard plans and alignment, as pure functions.

The grid of a raster is an odc-geo `GeoBox` (CRS, pixel-to-world affine, shape). Windows are half-open in rows and
columns, counted from the raster's upper-left pixel. No function here opens a file.
"""

import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from eorouter_compute.errors import NoCrs

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a·col + b·row + c, y = d·col + e·row + f, of pixel corners."""

SHARD_PIXELS: ContextVar[int] = ContextVar("SHARD_PIXELS", default=2048 * 2048)
"""How many output pixels a plan puts into a shard; results do not depend on it, tests prove that by setting it."""


class Window(NamedTuple):
    """A rectangle of pixels: rows `row … row + height - 1`, columns `col … col + width - 1`."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def pixels(self) -> int:
        """Area in pixels, 0 for an empty window."""
        return max(self.height, 0) * max(self.width, 0)

    def intersect(self, other: "Window") -> "Window":
        """The common rectangle; `pixels == 0` when there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(
            row, col, max(min(self.row_stop, other.row_stop) - row, 0), max(min(self.col_stop, other.col_stop) - col, 0)
        )

    def relative_to(self, outer: "Window") -> tuple[slice, slice]:
        """Slices `(y, x)` that cut this window out of an array holding `outer`."""
        return (
            slice(self.row - outer.row, self.row_stop - outer.row),
            slice(self.col - outer.col, self.col_stop - outer.col),
        )


class Grid(Struct, frozen=True, kw_only=True):
    """Where the pixels of a raster lie, as bytes can carry it; `geobox` is the same as odc-geo knows it.

    Attributes:
        crs: authority code or WKT.
        transform: (a, b, c, d, e, f) from pixel corners to the CRS.
        shape: (height, width) in pixels.
    """

    crs: str
    transform: Transform
    shape: tuple[int, int]

    @property
    def window(self) -> Window:
        """The whole grid as a window."""
        return Window(0, 0, *self.shape)

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in units of the CRS."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    @property
    def geobox(self) -> Any:
        """The grid as an odc-geo GeoBox."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        return GeoBox(self.shape, Affine(*self.transform), self.crs)

    def cropped(self, window: Window) -> "Grid":
        """The part of the grid that `window` cuts out; its pixels lie where they lay."""
        return Grid(crs=self.crs, transform=shifted(self.transform, window), shape=(window.height, window.width))


def tiles(area: Window, step: int) -> Iterator[Window]:
    """Cut `area` into windows of at most `step × step`, row by row.

    The cuts lie on multiples of `step` of the raster, not of the area, so that two plans over overlapping areas share
    their tiles.
    """
    for row in range(area.row - area.row % step, area.row_stop, step):
        for col in range(area.col - area.col % step, area.col_stop, step):
            window = Window(row, col, step, step).intersect(area)
            if window.pixels:
                yield window


def shifted(transform: Transform, window: Window) -> Transform:
    """Transform of the raster that `window` cuts out."""
    a, b, c, d, e, f = transform
    return (a, b, a * window.col + b * window.row + c, d, e, d * window.col + e * window.row + f)


def outline(shape: tuple[int, int], transform: Transform, *, points_per_side: int = 21) -> np.ndarray:
    """The raster's edge as a closed ring (point, xy) in its CRS, starting at the upper left corner."""
    height, width = shape
    t = np.linspace(0.0, 1.0, points_per_side)[:-1]
    cols = np.concatenate([t, np.ones_like(t), 1 - t, np.zeros_like(t), [0.0]]) * width
    rows = np.concatenate([np.zeros_like(t), t, np.ones_like(t), 1 - t, [0.0]]) * height
    a, b, c, d, e, f = transform
    return np.stack([a * cols + b * rows + c, d * cols + e * rows + f], axis=1)


def to_pixels(transform: Transform, x: Any, y: Any) -> tuple[Any, Any]:
    """Columns and rows, in pixels from the outer corner of the first, of places in the CRS; numbers or arrays."""
    a, b, c, d, e, f = transform
    x, y, determinant = x - c, y - f, a * e - b * d
    return (e * x - b * y) / determinant, (a * y - d * x) / determinant


def footprint(
    crs: str, shape: tuple[int, int], transform: Transform
) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
    """Where a raster lies, in longitude and latitude: GeoJSON geometry and bbox.

    Edges are densified before they are projected. A raster across the antimeridian gives a MultiPolygon cut at ±180 and
    a bbox whose west is greater than its east (RFC 7946 §5.2); one around a pole reaches the pole. Of a raster that
    reaches beyond what its CRS can show, such as the corners of a whole world in Robinson, the box around its places.

    Raises:
        NoCrs: the CRS is neither geographic nor projected, or no part of the raster has a place on the Earth.
    """
    import pyproj
    import shapely

    system = pyproj.CRS.from_user_input(crs)
    if not (system.is_geographic or system.is_projected):
        raise NoCrs(
            f"The raster's CRS {crs[:80]} ({system.type_name}) is neither geographic nor projected, so its pixels have "
            "no place on a map. Warp it onto a map grid (gdalwarp) and upload the result."
        )
    to_lonlat = pyproj.Transformer.from_crs(system, "OGC:CRS84", always_xy=True)
    lon, lat = _edge(to_lonlat, shape, transform, wraps=not system.is_geographic)
    if not len(lon):
        lon, lat = _around_places(to_lonlat, shape, transform)
    if not len(lon):
        raise NoCrs(f"The raster has no longitude and latitude in its CRS {crs[:80]}.")
    if abs(lon[-1] - lon[0]) > 180.0:
        pole = _pole_within(to_lonlat, shape, transform) or (90.0 if lat.mean() > 0 else -90.0)
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    shape_lonlat = shapely.make_valid(shapely.Polygon(np.stack([lon, lat], axis=1)))
    parts = []
    for turn in range(int(np.floor((lon.min() + 180) / 360)), int(np.ceil((lon.max() + 180) / 360))):
        cut = shapely.clip_by_rect(shape_lonlat, 360.0 * turn - 180, -90, 360.0 * turn + 180, 90)
        if cut.area > 0:
            parts.append(shapely.transform(cut, lambda xy, turn=turn: xy - [360.0 * turn, 0.0]))
    # A grid that goes further than once around meets itself: its parts overlap until they are united.
    is_whole_turn = lon.max() - lon.min() >= 360 - 1e-9
    united = [shapely.union_all(parts)] if is_whole_turn else parts
    polygons = [
        shapely.orient_polygons(p) for part in united for p in shapely.get_parts(part) if p.geom_type == "Polygon"
    ]
    polygons.sort(key=lambda polygon: polygon.bounds[0])
    whole = shapely.set_precision(shapely.MultiPolygon(polygons) if len(polygons) > 1 else polygons[0], 1e-9)
    west, south, east, north = whole.bounds
    if len(parts) > 1 and not is_whole_turn:
        west, east = parts[0].bounds[0], parts[-1].bounds[2]
    return json.loads(shapely.to_geojson(whole)), (float(west), float(south), float(east), float(north))


def _edge(
    to_lonlat: Any, shape: tuple[int, int], transform: Transform, *, wraps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The raster's edge in longitude, unwrapped, and latitude; empty where the CRS cannot show all of it."""
    x, y = outline(shape, transform).T
    lon, lat = to_lonlat.transform(x, y)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return np.empty(0), np.empty(0)
    if not wraps:
        return np.asarray(lon), np.clip(np.asarray(lat), -90.0, 90.0)
    # A projected edge is short against the globe: a step of more than half a turn is the wrap, not the edge.
    lon = lon[0] + np.concatenate([[0.0], np.cumsum((np.diff(lon) + 180.0) % 360.0 - 180.0)])
    return lon, np.clip(np.asarray(lat), -90.0, 90.0)


def _pole_within(to_lonlat: Any, shape: tuple[int, int], transform: Transform) -> float | None:
    """Latitude of the one pole that lies on the raster; None when none does, or both."""
    x, y = to_lonlat.transform(np.zeros(2), np.array([90.0, -90.0]), direction="INVERSE")
    cols, rows = to_pixels(transform, x, y)
    north, south = ((cols >= 0) & (cols <= shape[1]) & (rows >= 0) & (rows <= shape[0])).tolist()
    return None if north == south else 90.0 if north else -90.0


def _around_places(to_lonlat: Any, shape: tuple[int, int], transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """A box, as a ring, around those pixels that have a place and are found again from it; empty when none is."""
    side = 129
    rows, cols = np.mgrid[0:side, 0:side] / (side - 1.0)
    a, b, c, d, e, f = transform
    cols, rows = cols * shape[1], rows * shape[0]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    lon, lat = to_lonlat.transform(x, y)
    back_x, back_y = to_lonlat.transform(lon, lat, direction="INVERSE")
    step = max(np.hypot(a, d) * shape[1], np.hypot(b, e) * shape[0]) / (side - 1.0)
    known = np.isfinite(lon) & np.isfinite(lat) & (np.hypot(back_x - x, back_y - y) < 0.5 * step)
    if not known.any():
        return np.empty(0), np.empty(0)
    lon, lat = np.where(known, lon, np.nan), np.where(known, lat, np.nan)
    # Places between the samples lie no further out than the widest step between two of them.
    turned = [np.abs((np.diff(lon, axis=axis) + 180.0) % 360.0 - 180.0) for axis in (0, 1)]
    steep = [np.abs(np.diff(lat, axis=axis)) for axis in (0, 1)]
    spare_lon, spare_lat = (
        np.nanmax(np.append(np.concatenate([s.ravel() for s in each]), 0.0)) for each in (turned, steep)
    )
    along = np.sort(lon[known])
    gaps = np.append(np.diff(along), along[0] + 360.0 - along[-1])
    widest = int(gaps.argmax())
    west, east = along[(widest + 1) % len(along)], along[widest]
    east += 360.0 if east < west else 0.0
    west, east = (west - spare_lon, east + spare_lon) if gaps[widest] > 2 * spare_lon else (-180.0, 180.0)
    south, north = max(np.nanmin(lat) - spare_lat, -90.0), min(np.nanmax(lat) + spare_lat, 90.0)
    return np.array([west, east, east, west, west]), np.array([south, south, north, north, south])
