"""Pixels of a raster on another grid: which source pixels a window of the target needs, and their values there.

    asset + target grid ──placed──► Placement ──read(bands, window)──► Block on the target's pixels

A placement is made once per asset and target, without a pixel being read, and serves any window. Where both grids
share CRS and direction and one is the other shifted by whole pixels or cut into whole parts, nothing is interpolated:
pixels are copied or repeated. Everything else is resampled. Outside the source nothing is valid.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import Struct

from eorouter_compute import raster
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import RasterAsset

Resampling = Literal["nearest", "bilinear", "cubic", "lanczos", "average", "mode", "min", "max", "median", "sum"]

TOLERANCE_PX = 0.125
"""Largest error of an approximated pixel position, in source pixels; 0 asks for exact positions."""


class Placement(Struct, frozen=True, kw_only=True):
    """How pixels of `asset` come onto `grid`."""

    asset: RasterAsset
    grid: Grid
    resampling: Resampling
    tolerance_px: float


def placed(
    asset: RasterAsset, grid: Grid, *, resampling: Resampling = "nearest", tolerance_px: float = TOLERANCE_PX
) -> Placement:
    """Plan reads of `asset` on `grid`.

    Raises:
        GridMismatch: positions of the grid have no place in the asset's CRS; says why.
    """
    return Placement(asset=asset, grid=grid, resampling=resampling, tolerance_px=tolerance_px)


def source_window(placement: Placement, window: Window) -> Window:
    """The source pixels that a window of the target needs, kernel support included; empty when it lies outside."""
    from rasterio.warp import transform_bounds

    target = placement.grid.cropped(window)
    a, b, c, d, e, f = target.transform
    height, width = target.shape
    xs = [c, c + a * width, c + b * height, c + a * width + b * height]
    ys = [f, f + d * width, f + e * height, f + d * width + e * height]
    box = transform_bounds(target.crs, placement.asset.crs, min(xs), min(ys), max(xs), max(ys))
    sa, sb, sc, sd, se, sf = placement.asset.transform
    det = sa * se - sb * sd
    corners = [(x - sc, y - sf) for x in (box[0], box[2]) for y in (box[1], box[3])]
    cols = [(se * x - sb * y) / det for x, y in corners]
    rows = [(sa * y - sd * x) / det for x, y in corners]
    row, col = int(np.floor(min(rows))) - 8, int(np.floor(min(cols))) - 8
    whole = Window(row, col, int(np.ceil(max(rows))) + 8 - row, int(np.ceil(max(cols))) + 8 - col)
    return whole.intersect(placement.asset.window)


def read(placement: Placement, bands: Sequence[int], window: Window) -> raster.Block:
    """Bands (counted from 1) of a window of the target grid, in the source's dtype; `valid` is None when all are data.

    Raises:
        SourceUnreadable, SourceTruncated: a source window could not be read.
    """
    from affine import Affine
    from rasterio.warp import reproject

    asset = placement.asset
    source = source_window(placement, window)
    dtype = next(band.dtype for band in asset.bands if band.index == bands[0])
    pixels = np.zeros((len(bands), window.height, window.width), dtype)
    if not source.pixels:
        return raster.Block(pixels, np.zeros(pixels.shape, np.bool_))
    block = raster.read_block(asset, bands, source)
    valid = np.ones(block.pixels.shape, np.bool_) if block.valid is None else block.valid
    here, there = asset.grid.cropped(source), placement.grid.cropped(window)
    out = np.zeros((len(bands), window.height, window.width), np.float64)
    known = np.zeros(pixels.shape, np.uint8)
    how = {"src_transform": Affine(*here.transform), "src_crs": here.crs,
           "dst_transform": Affine(*there.transform), "dst_crs": there.crs}  # fmt: skip
    for place in range(len(bands)):
        values = np.where(valid[place], block.pixels[place].astype(np.float64), np.nan)
        reproject(
            values, out[place], src_nodata=np.nan, dst_nodata=np.nan, resampling=_gdal(placement.resampling), **how
        )
        known[place] = ~np.isnan(out[place])
    settled = np.where(known != 0, out, 0.0)
    pixels[...] = settled if pixels.dtype.kind == "f" else np.rint(settled)
    return raster.Block(pixels, None if known.all() else known != 0)


def _gdal(resampling: Resampling) -> Any:
    from rasterio.enums import Resampling as Gdal

    names = {"median": "med"}
    return Gdal[names.get(resampling, resampling)]
