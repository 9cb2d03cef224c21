"""The grid that a job's outputs lie on: as the caller names it, or as the inputs suggest.

    GridChoice + rasters ──choose──► Grid

A grid made for inputs across the antimeridian goes on past ±180° (or past the edge of a Mercator map): it is as narrow
as the scene. Inputs around a pole, in degrees, take all longitudes. A resolution that was not given is the side of the
square that has a pixel's area, to six digits.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import shapely
from msgspec import Meta, Struct

from eorouter_compute import aoi, positions
from eorouter_compute.errors import GridMismatch, InvalidParameter, TooLarge
from eorouter_compute.grid import Grid, Window, outline, to_pixels
from eorouter_compute.method import InputItem, RasterAsset

PIXELS_MAX = 1 << 36
"""Most pixels of one band of an output."""

_EARTH_RADIUS_M = 6_371_008.8
_SLACK_PX = 1e-3
"""Overhang that earns no pixel of its own: rounding of coordinates."""
_ENDLESS = 2e8
"""Units of a plane, five times around the globe: what is wider reaches a place that its CRS sends to infinity."""


Size = Annotated[float, Meta(gt=0)]


class GridChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which grid outputs lie on; what is left out is taken from the inputs.

    Attributes:
        like: id of an input item whose grid is taken as it is, pixel for pixel.
        like_asset: which of its raster assets, where it has several.
        crs: authority code or WKT of the output.
        resolution: pixel size in units of the CRS, one number or [x, y].
        bounds: [x_min, y_min, x_max, y_max] in the CRS of the output.
        snap: edges lie on multiples of the resolution (true), or begin where the data does (false).
    """

    like: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    like_asset: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    crs: Annotated[str, Meta(min_length=1, max_length=20_000)] | None = None
    # Two numbers are not spelt tuple[Size, Size]: msgspec 0.22 crashes on it, a bounded number beside a fixed tuple.
    resolution: Size | Annotated[tuple[Size, ...], Meta(min_length=2, max_length=2)] | None = None
    bounds: tuple[float, float, float, float] | None = None
    snap: bool = True


def choose(
    choice: GridChoice,
    inputs: Sequence[InputItem],
    rasters: Sequence[RasterAsset],
    *,
    area: shapely.MultiPolygon | None = None,
    area_crs: str = aoi.CRS84,
    pointer: str = "/grid",
) -> Grid:
    """The grid of a job's outputs.

    With nothing chosen: the grid of the finest of `rasters`, widened to the union of all that lie on grids aligned with
    it; `area` crops it to the pixels the area touches.

    Args:
        choice: what the caller said.
        inputs: the job's items, for `like`.
        rasters: what the outputs are made of.
        area: polygons that bound the output.
        area_crs: their CRS.
        pointer: where `choice` stands in the parameters.

    Raises:
        GridMismatch: the choice contradicts itself or the inputs; says how.
        InvalidParameter: an item or asset that is not there, a CRS that is not known.
        AoiOutside: the area does not meet the grid.
        TooLarge: the grid has too many pixels.
    """
    if choice.like_asset is not None and choice.like is None:
        raise InvalidParameter("`like_asset` needs `like`, the item it belongs to.", pointer=f"{pointer}/like_asset")
    if choice.crs is not None:
        aoi.known_crs(choice.crs, pointer=f"{pointer}/crs")
    if choice.like is not None:
        whole = _like(choice, inputs, pointer)
    else:
        if not rasters:
            raise InvalidParameter("The inputs have no raster to take a grid from.", pointer="/inputs")
        finest = min(rasters, key=lambda asset: (round(_ground_area(asset), 6), asset.key))
        is_own = choice.resolution is None and choice.bounds is None and _same_crs(choice.crs, finest.crs)
        whole = _union(finest, rasters) if is_own else _new(choice, finest, rasters, pointer)
    if whole.window.pixels > PIXELS_MAX:
        raise _too_large(*whole.shape, pointer)
    if area is None:
        return whole
    placed = aoi.onto(area, area_crs, whole.crs, whole.transform, whole.shape)
    return whole.cropped(aoi.window_of(placed, whole.transform, whole.shape))


def aligned(grid: Grid, other: Grid, *, tolerance_px: float = 1e-3) -> tuple[int, int] | None:
    """Rows and columns by which `other` begins after `grid`, when both have the same pixels; None when they do not.

    Grids in degrees that together go further than once around share places that no one shift brings together: None.
    """
    if not _same_crs(grid.crs, other.crs):
        return None
    steps, others = (np.array([each.transform[i] for i in (0, 1, 3, 4)]) for each in (grid, other))
    reach = max(*grid.shape, *other.shape)
    if np.abs(steps - others).max() * reach > tolerance_px * np.abs(steps).max():
        return None
    col, row = to_pixels(grid.transform, other.transform[2], other.transform[5])
    if max(abs(col - round(col)), abs(row - round(row))) > tolerance_px:
        return None
    around = positions.around(grid.crs)
    if around and (col + other.shape[1] > grid.shape[1] or col < 0):
        sides = np.concatenate([outline(each.shape, each.transform, points_per_side=2)[:, 0] for each in (grid, other)])
        if np.ptp(sides) > around + 0.5 * abs(grid.transform[0]):
            return None
    return round(row), round(col)


def apart(grid: Grid, asset: RasterAsset, *, pointer: str = "/grid") -> float:
    """How far a raster lies from a grid, in units of the grid's CRS; 0 when their bounds meet.

    Raises:
        GridMismatch: the raster has no place in the grid's CRS.
    """
    west, south, east, north = _bounds([asset], grid.crs, pointer)
    x, y = outline(grid.shape, grid.transform, points_per_side=2).T
    around = positions.around(grid.crs)
    turns = (-around, 0.0, around) if around else (0.0,)
    away_x = min(max(west + turn - x.max(), x.min() - east - turn, 0.0) for turn in turns)
    return float(np.hypot(away_x, max(south - y.max(), y.min() - north, 0.0)))


def _same_crs(one: str | None, other: str) -> bool:
    if one is None or one == other:
        return True
    return aoi.known_crs(one, pointer="/crs").equals(aoi.known_crs(other, pointer="/crs"), ignore_axis_order=True)


def _like(choice: GridChoice, inputs: Sequence[InputItem], pointer: str) -> Grid:
    if choice.crs is not None or choice.resolution is not None or choice.bounds is not None:
        raise InvalidParameter(
            "`like` takes another item's grid as it is; `crs`, `resolution` and `bounds` cannot change it.",
            pointer=f"{pointer}/like",
        )
    item = next((each for each in inputs if each.id == choice.like), None)
    if item is None:
        given = ", ".join(each.id for each in inputs)
        raise InvalidParameter(
            f"`like` names item {choice.like!r}, the inputs are: {given}.", pointer=f"{pointer}/like"
        )
    found = [asset for asset in item.rasters if choice.like_asset in {None, asset.key}]
    if not found:
        keys = ", ".join(asset.key for asset in item.rasters) or "none"
        raise InvalidParameter(
            f"Item {item.id} has no raster asset {choice.like_asset!r}. It has: {keys}.",
            pointer=f"{pointer}/like_asset",
        )
    return min(found, key=lambda asset: (asset.pixel_area, asset.key)).grid


def _union(finest: RasterAsset, rasters: Sequence[RasterAsset]) -> Grid:
    places = [
        Window(*offset, *asset.shape) for asset in rasters if (offset := aligned(finest.grid, asset.grid)) is not None
    ]
    row, col = min(place.row for place in places), min(place.col for place in places)
    row_stop, col_stop = max(place.row_stop for place in places), max(place.col_stop for place in places)
    return finest.grid.cropped(Window(row, col, row_stop - row, col_stop - col))


def _new(choice: GridChoice, finest: RasterAsset, rasters: Sequence[RasterAsset], pointer: str) -> Grid:
    crs = choice.crs or finest.crs
    width, height = _resolution(choice, finest, crs, pointer)
    x_min, y_min, x_max, y_max = choice.bounds or _bounds(rasters, crs, pointer)
    if not (np.isfinite([x_min, y_min, x_max, y_max]).all() and x_min < x_max and y_min < y_max):
        raise InvalidParameter(
            f"bounds are {[x_min, y_min, x_max, y_max]}; expected [x_min, y_min, x_max, y_max], not empty.",
            pointer=f"{pointer}/bounds",
        )
    if choice.snap:
        x_min, y_max = np.floor(x_min / width + _SLACK_PX) * width, np.ceil(y_max / height - _SLACK_PX) * height
    cols, rows = (x_max - x_min) / width - _SLACK_PX, (y_max - y_min) / height - _SLACK_PX
    if max(cols, rows) > PIXELS_MAX:
        raise _too_large(int(rows), int(cols), pointer)
    shape = (max(int(np.ceil(rows)), 1), max(int(np.ceil(cols)), 1))
    return Grid(crs=crs, transform=(width, 0.0, float(x_min), 0.0, -height, float(y_max)), shape=shape)


def _too_large(rows: int, cols: int, pointer: str) -> TooLarge:
    return TooLarge(
        f"The output would have {rows:,} × {cols:,} pixels; at most {PIXELS_MAX:,} are made. "
        "Ask for coarser pixels or a smaller area.",
        pointer=pointer,
    )


def _ground_area(asset: RasterAsset) -> float:
    """Square metres of the pixel in the raster's middle: degrees and metres can be compared by it."""
    height, width = asset.shape
    cols, rows = np.array([0.5, 1.5, 0.5]) + width // 2, np.array([0.5, 0.5, 1.5]) + height // 2
    lon, lat = positions.moved(asset.crs, aoi.CRS84, *_placed(asset, cols, rows))
    east = (lon[1:] - lon[0] + 180.0) % 360.0 - 180.0
    east, north = np.deg2rad(east) * np.cos(np.deg2rad(lat[0])), np.deg2rad(lat[1:] - lat[0])
    area = abs(float(east[0] * north[1] - east[1] * north[0])) * _EARTH_RADIUS_M**2
    return area if np.isfinite(area) else asset.pixel_area


def _placed(asset: RasterAsset, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = asset.transform
    return a * cols + b * rows + c, d * cols + e * rows + f


def _resolution(choice: GridChoice, finest: RasterAsset, crs: str, pointer: str) -> tuple[float, float]:
    """As chosen, as the raster has it, or the square whose area a pixel has in the new CRS, in the median."""
    if choice.resolution is not None:
        sizes = choice.resolution if isinstance(choice.resolution, tuple) else (choice.resolution, choice.resolution)
        return float(sizes[0]), float(sizes[1])
    if _same_crs(crs, finest.crs):
        a, b, _, d, e, _ = finest.transform
        return float(np.hypot(a, d)), float(np.hypot(b, e))
    height, width = finest.shape
    rows, cols = (each.ravel() for each in np.mgrid[0:9, 0:9])
    rows, cols = (rows + 0.5) * height / 9, (cols + 0.5) * width / 9
    x, y = positions.moved(finest.crs, crs, *_placed(finest, cols, rows))
    ax, ay = (one - other for one, other in zip(positions.moved(finest.crs, crs, *_placed(finest, cols + 0.5, rows)),
                                                positions.moved(finest.crs, crs, *_placed(finest, cols - 0.5, rows)),
                                                strict=True))  # fmt: skip
    bx, by = (one - other for one, other in zip(positions.moved(finest.crs, crs, *_placed(finest, cols, rows + 0.5)),
                                                positions.moved(finest.crs, crs, *_placed(finest, cols, rows - 0.5)),
                                                strict=True))  # fmt: skip
    around = positions.around(crs)
    if around:
        ax, bx = ax - around * np.rint(ax / around), bx - around * np.rint(bx / around)
    areas = np.abs(ax * by - bx * ay)
    areas = areas[np.isfinite(areas + x + y) & (areas > 0)]
    if not len(areas):
        raise GridMismatch(f"The inputs have no place in {crs[:60]}. Choose another CRS.", pointer=f"{pointer}/crs")
    # Six digits: what PROJ adds in the sixteenth must not move a grid from one machine to the next.
    side = float(f"{np.sqrt(np.median(areas)):.6g}")
    return side, side


def _bounds(rasters: Sequence[RasterAsset], crs: str, pointer: str) -> tuple[float, float, float, float]:
    """What all rasters cover together, in `crs`; past ±180° where they lie across the antimeridian."""
    around = positions.around(crs)
    boxes: list[tuple[float, float, float, float]] = []
    for asset in rasters:
        x, y = _sampled(asset, crs)
        if not around and len(x) and max(np.ptp(x), np.ptp(y)) > _ENDLESS:
            # A polar or transverse projection runs to infinity at the other end of the globe.
            x, y = _within_use(asset, crs)
        if not len(x):
            raise GridMismatch(
                f"Asset {asset.key} has no place in {crs[:60]}. Give `bounds`, or choose another CRS.", pointer=pointer
            )
        box = _around_globe(asset, crs, around, y) if around else None
        if box is None:
            if around:
                middle = boxes[0][0] + boxes[0][2] if boxes else 2 * float(x[0])
                x = x - around * np.floor((x - middle / 2) / around + 0.5)
                # The first point stands for the raster's middle; the scene follows it, whole.
                x = x[0] + (x - x[0] + around / 2) % around - around / 2
            box = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        boxes.append(box)
    west, south, east, north = np.array(boxes).T
    x_min, y_min, x_max, y_max = float(west.min()), float(south.min()), float(east.max()), float(north.max())
    if around:
        if x_max - x_min > around:
            x_min, x_max = -around / 2, around / 2
        elif x_min >= around / 2 or x_max <= -around / 2:
            turn = around * round((x_min + x_max) / 2 / around)
            x_min, x_max = x_min - turn, x_max - turn
        # Of a Mercator map the square is taken, of degrees all there are.
        limit = around / 4 if aoi.is_geographic(crs) else around / 2
        if y_min >= limit or y_max <= -limit:
            raise GridMismatch(
                f"The inputs lie where {crs[:60]} has no place: beyond its y of ±{limit:.10g}. Choose another CRS.",
                pointer=pointer,
            )
        y_min, y_max = max(y_min, -limit), min(y_max, limit)
    return x_min, y_min, x_max, y_max


def _within_use(asset: RasterAsset, crs: str) -> tuple[np.ndarray, np.ndarray]:
    """Points in `crs` of that part of the raster for which the CRS is published; none where it does not say."""
    use = aoi.known_crs(crs, pointer="/crs").area_of_use
    if use is None:
        return np.empty(0), np.empty(0)
    east = use.east + (360.0 if use.east < use.west else 0.0)
    lat, lon = (each.ravel() for each in np.mgrid[use.south : use.north : 65j, use.west : east : 257j])
    x, y = positions.moved(aoi.CRS84, asset.crs, lon, lat)
    height, width = asset.shape
    around = positions.around(asset.crs)
    inside = np.zeros(len(lon), np.bool_)
    for turn in (-around, 0.0, around) if around else (0.0,):
        cols, rows = to_pixels(asset.transform, x + turn, y)
        inside |= (cols >= 0) & (cols <= width) & (rows >= 0) & (rows <= height)
    x, y = positions.moved(aoi.CRS84, crs, lon[inside], lat[inside])
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _sampled(asset: RasterAsset, crs: str) -> tuple[np.ndarray, np.ndarray]:
    """Points of the raster in `crs`, its middle first, then a lattice and its edge; those with no place left out."""
    height, width = asset.shape
    ring = outline(asset.shape, asset.transform, points_per_side=65)
    rows, cols = (each.ravel() for each in np.mgrid[0:17, 0:17])
    inner = np.stack(_placed(asset, cols * width / 16, rows * height / 16), axis=1)
    middle = np.stack(_placed(asset, np.array([width / 2]), np.array([height / 2])), axis=1)
    points = np.concatenate([middle, inner, ring])
    x, y = positions.moved(asset.crs, crs, points[:, 0], points[:, 1])
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _around_globe(
    asset: RasterAsset, crs: str, around: float, y: np.ndarray
) -> tuple[float, float, float, float] | None:
    """Bounds of a raster that goes round the globe or holds a pole; None for all others."""
    height, width = asset.shape
    own = positions.around(asset.crs)
    if own and abs(asset.transform[0]) * width >= own * (1 - 1e-6):
        return -around / 2, float(y.min()), around / 2, float(y.max())
    low, high, found = float(y.min()), float(y.max()), False
    for pole in (-90.0, 90.0):
        x, v = positions.moved(aoi.CRS84, asset.crs, np.array([0.0]), np.array([pole]))
        col, row = to_pixels(asset.transform, x, v)
        if own == 0 and 0 <= col[0] <= width and 0 <= row[0] <= height:
            found = True
            reach = around / 4 if aoi.is_geographic(crs) else around / 2
            low, high = (-reach, high) if pole < 0 else (low, reach)
    return (-around / 2, low, around / 2, high) if found else None
