"""What is missing in a raster: by nodata and NaN, and by what the file itself hides, with a mask or an alpha band.

An alpha band is no data. Whichever band it is, and however many there are, a pixel is missing in all bands where one
of them is 0; any other alpha is data, be it ever so faint. GDAL's own masks heed alpha only as the last of two or four
bands, and only where no nodata is declared; so alpha bands are looked at here. A file that has nothing but alpha bands
is a raster of those.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags

from eorouter_compute.method import RasterAsset
from eorouter_kernels import blocks as kernels


def storable(nodata: float | None, dtype: str) -> float | None:
    """`nodata` if the pixel type can hold it, else None: GDAL lets files declare −9999 for bytes."""
    if nodata is None:
        return None
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):  # the type may round a number a little beyond its largest back to it
            return nodata if not np.isfinite(nodata) or np.isfinite(np.dtype(dtype).type(nodata)) else None
    info = np.iinfo(dtype)
    return nodata if float(nodata).is_integer() and info.min <= nodata <= info.max else None


def alpha_bands(dataset: Any) -> list[int]:
    """The bands of an open dataset, counted from 1, that say where the others have data."""
    found = [number for number, color in enumerate(dataset.colorinterp, start=1) if color is ColorInterp.alpha]
    return found if len(found) < dataset.count else []


def hides(dataset: Any) -> bool:
    """Whether an open dataset hides pixels beside declaring nodata."""
    return bool(alpha_bands(dataset)) or any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)


def shown(
    dataset: Any,
    bands: Sequence[int],
    read: Callable[[int], np.ndarray],
    read_mask: Callable[[int], np.ndarray],
) -> np.ndarray:
    """Where an open dataset does not hide `bands`: bool (1 or band, y, x), pixels and masks read as the caller does."""
    masks = [read(band) != 0 for band in alpha_bands(dataset)]
    flags = [each for each in dataset.mask_flag_enums if MaskFlags.alpha not in each]
    if any(MaskFlags.per_dataset in each for each in flags):
        masks.append(read_mask(bands[0]) != 0)
    if masks:
        return np.logical_and.reduce(masks)[None]
    return np.stack([read_mask(band) != 0 for band in bands])


def valid(asset: RasterAsset, bands: Sequence[int], pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """Where there is data (band, y, x), by what the file shows, nodata and NaN; None for everywhere."""
    nodata = {band.index: storable(band.nodata, str(pixels.dtype)) for band in asset.bands}
    known = None if mask is None or mask.all() else np.array(np.broadcast_to(mask, pixels.shape))
    for number, band in enumerate(bands):
        value = nodata.get(band)
        if value is None or np.isnan(value):
            if pixels.dtype.kind != "f":
                continue
            value = np.nan
        # Most blocks are whole; to see that is cheaper than to write it down.
        if kernels.first_missing(pixels[number : number + 1], pixels.dtype.type(value)) < 0:
            continue
        if known is None:
            known = np.ones(pixels.shape, np.bool_)
        known[number] &= pixels[number] != pixels.dtype.type(value)
        if pixels.dtype.kind == "f":
            known[number] &= ~np.isnan(pixels[number])
    return known
