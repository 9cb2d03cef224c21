"""Temporary reader of rasters; replaced at merge."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window as RioWindow

from eorouter_compute.errors import SourceUnreadable
from eorouter_compute.grid import Window
from eorouter_compute.method import Band, RasterAsset


class Block(NamedTuple):
    """Pixels (band, y, x) and what of them is data."""

    pixels: np.ndarray
    valid: np.ndarray | None


def describe(href: str, key: str = "data") -> RasterAsset:
    """Grid and bands of a file."""
    with warnings.catch_warnings(), rasterio.open(href.removeprefix("file://")) as source:
        warnings.simplefilter("ignore")
        bands = tuple(
            Band(
                name=source.descriptions[i] or f"B{i + 1}",
                index=i + 1,
                dtype=source.dtypes[i],
                nodata=source.nodatavals[i],
                scale=source.scales[i],
                offset=source.offsets[i],
            )
            for i in range(source.count)
        )
        return RasterAsset(
            key=key,
            href=href,
            crs=source.crs.to_wkt(),
            transform=tuple(source.transform)[:6],
            shape=source.shape,
            bands=bands,
            block_shape=source.block_shapes[0],
        )


def read_block(asset: RasterAsset, bands: Sequence[int], window: Window) -> Block:
    """Pixels of some bands in a window."""
    try:
        with rasterio.open(asset.href.removeprefix("file://")) as source:
            pixels = source.read(list(bands), window=RioWindow(window.col, window.row, window.width, window.height))
            nodata = [source.nodatavals[i - 1] for i in bands]
    except rasterio.errors.RasterioIOError as error:
        raise SourceUnreadable(f"{asset.href}: {window} could not be read: {error}") from error
    valid = None
    if pixels.dtype.kind == "f":
        valid = ~np.isnan(pixels)
    if any(value is not None for value in nodata):
        valid = np.ones(pixels.shape, bool) if valid is None else valid
        for band, value in enumerate(nodata):
            if value is not None and not np.isnan(value):
                valid[band] &= pixels[band] != value
    return Block(pixels, None if valid is None or valid.all() else valid)
