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


def footprint(
    crs: str, shape: tuple[int, int], transform: Transform
) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
    """Where a raster lies, in longitude and latitude: GeoJSON geometry and bbox.

    Edges are densified before they are projected. A raster across the antimeridian gives a MultiPolygon cut at ±180 and
    a bbox whose west is greater than its east (RFC 7946 §5.2); one around a pole reaches the pole.
    """
    import pyproj
    import shapely

    to_lonlat = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    ring = outline(shape, transform)
    lon, lat = to_lonlat.transform(ring[:, 0], ring[:, 1])
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise NoCrs(f"The raster's edge has no longitude and latitude in its CRS {crs[:80]}.")
    lon, lat = np.asarray(lon), np.clip(np.asarray(lat), -90.0, 90.0)
    if not pyproj.CRS.from_user_input(crs).is_geographic:
        # A projected edge is short against the globe: a step of more than half a turn is the wrap, not the edge.
        lon = lon[0] + np.concatenate([[0.0], np.cumsum((np.diff(lon) + 180.0) % 360.0 - 180.0)])
    if abs(lon[-1] - lon[0]) > 180.0:
        pole = 90.0 if lat.mean() > 0 else -90.0
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    shape_lonlat = shapely.make_valid(shapely.Polygon(np.stack([lon, lat], axis=1)))
    parts = []
    for turn in range(int(np.floor((lon.min() + 180) / 360)), int(np.ceil((lon.max() + 180) / 360))):
        cut = shapely.clip_by_rect(shape_lonlat, 360.0 * turn - 180, -90, 360.0 * turn + 180, 90)
        if cut.area > 0:
            parts.append(shapely.transform(cut, lambda xy, turn=turn: xy - [360.0 * turn, 0.0]))
    polygons = [
        shapely.orient_polygons(p) for part in parts for p in shapely.get_parts(part) if p.geom_type == "Polygon"
    ]
    polygons.sort(key=lambda polygon: polygon.bounds[0])
    whole = shapely.set_precision(shapely.MultiPolygon(polygons) if len(polygons) > 1 else polygons[0], 1e-9)
    west, south, east, north = whole.bounds
    if len(parts) > 1 and lon.max() - lon.min() < 360:
        west, east = parts[0].bounds[0], parts[-1].bounds[2]
    return json.loads(shapely.to_geojson(whole)), (float(west), float(south), float(east), float(north))
