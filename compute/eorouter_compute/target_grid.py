"""The grid that a job's outputs lie on: as the caller names it, or as the inputs suggest.

GridChoice + rasters ──choose──► Grid
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import shapely
from msgspec import Meta, Struct

from eorouter_compute import aoi
from eorouter_compute.errors import GridMismatch, InvalidParameter, TooLarge
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import InputItem, RasterAsset

PIXELS_MAX = 1 << 36
"""Most pixels of one band of an output."""


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
    # Not tuple[…, …]: beside a bounded float, msgspec 0.22 crashes the process when Python collects garbage.
    resolution: (
        Annotated[float, Meta(gt=0)]
        | Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=2, max_length=2)]
        | None
    ) = None
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
    if choice.like is not None:
        whole = _like(choice, inputs, pointer)
    else:
        if not rasters:
            raise InvalidParameter("The inputs have no raster to take a grid from.", pointer="/inputs")
        finest = min(rasters, key=lambda asset: (asset.pixel_area, asset.key))
        is_own = choice.resolution is None and choice.bounds is None and _same_crs(choice.crs, finest.crs)
        whole = _union(finest, rasters) if is_own else _new(choice, finest, rasters, pointer)
    if whole.window.pixels > PIXELS_MAX:
        height, width = whole.shape
        raise TooLarge(
            f"The output would have {height:,} × {width:,} pixels; at most {PIXELS_MAX:,} are made. "
            "Ask for coarser pixels or a smaller area.",
            pointer=pointer,
        )
    if area is None:
        return whole
    placed = aoi.onto(area, area_crs, whole.crs, whole.transform, whole.shape)
    return whole.cropped(aoi.window_of(placed, whole.transform, whole.shape))


def aligned(grid: Grid, other: Grid, *, tolerance_px: float = 1e-3) -> tuple[int, int] | None:
    """Rows and columns by which `other` begins after `grid`, when both have the same pixels; None when they do not."""
    if not _same_crs(grid.crs, other.crs):
        return None
    a, b, c, d, e, f = grid.transform
    steps, others = np.array([a, b, d, e]), np.array([other.transform[i] for i in (0, 1, 3, 4)])
    reach = max(*grid.shape, *other.shape)
    if np.abs(steps - others).max() * reach > tolerance_px * np.abs(steps).max():
        return None
    det = a * e - b * d
    x, y = other.transform[2] - c, other.transform[5] - f
    col, row = (e * x - b * y) / det, (a * y - d * x) / det
    if max(abs(col - round(col)), abs(row - round(row))) > tolerance_px:
        return None
    return round(row), round(col)


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
    aoi.known_crs(crs, pointer=f"{pointer}/crs")
    width, height = _resolution(choice, finest, crs)
    x_min, y_min, x_max, y_max = choice.bounds or _bounds(rasters, crs, pointer)
    if not (np.isfinite([x_min, y_min, x_max, y_max]).all() and x_min < x_max and y_min < y_max):
        raise InvalidParameter(
            f"bounds are {[x_min, y_min, x_max, y_max]}; expected [x_min, y_min, x_max, y_max], not empty.",
            pointer=f"{pointer}/bounds",
        )
    if choice.snap:
        x_min, y_max = np.floor(x_min / width + 1e-6) * width, np.ceil(y_max / height - 1e-6) * height
    cols, rows = max(round((x_max - x_min) / width + 0.49), 1), max(round((y_max - y_min) / height + 0.49), 1)
    return Grid(crs=crs, transform=(width, 0.0, float(x_min), 0.0, -height, float(y_max)), shape=(rows, cols))


def _resolution(choice: GridChoice, finest: RasterAsset, crs: str) -> tuple[float, float]:
    if choice.resolution is not None:
        across, down = choice.resolution if isinstance(choice.resolution, tuple) else [choice.resolution] * 2
        return across, down
    if _same_crs(crs, finest.crs):
        a, b, _, d, e, _ = finest.transform
        return float(np.hypot(a, d)), float(np.hypot(b, e))
    from rasterio.warp import calculate_default_transform

    left, bottom, right, top = finest.grid.geobox.boundingbox
    suggested, _, _ = calculate_default_transform(
        finest.crs, crs, finest.shape[1], finest.shape[0], left, bottom, right, top
    )
    return float(suggested.a), float(-suggested.e)


def _bounds(rasters: Sequence[RasterAsset], crs: str, pointer: str) -> tuple[float, float, float, float]:
    from rasterio.warp import transform_bounds

    boxes = [transform_bounds(asset.crs, crs, *asset.grid.geobox.boundingbox, densify_pts=21) for asset in rasters]
    every = np.array(boxes)
    if not np.isfinite(every).all():
        raise GridMismatch(f"The inputs have no place in {crs[:60]}. Give `bounds`.", pointer=pointer)
    return (
        float(every[:, 0].min()), float(every[:, 1].min()), float(every[:, 2].max()), float(every[:, 3].max())
    )  # fmt: skip
