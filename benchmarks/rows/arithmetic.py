"""NDVI of a two-band COG, as a float32 COG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from benchmarks import data
from benchmarks.bounds import Read
from benchmarks.harness import THREADS, Row
from benchmarks.rows.cogs import CACHE_BYTES, copy_cog
from benchmarks.rows.looking import cuts, near_pixels, pixels

CHUNK = 2048


def two_bands(folder: Path, side: int) -> Path:
    """Red and near infrared in one COG."""
    return data.scene(folder, side, "ndvi", 4, bands=2, is_cog=True)


def ours(place: Path, folder: Path) -> Path:
    """The index of the catalogue."""
    from benchmarks.ours import item, output, run

    task = {"method": "spectral_index", "indices": ["NDVI"], "bands": {"R": "red", "N": "nir"}}
    return output(run(task, [item(place, "red", "nir")], folder))


def band_math(place: Path, folder: Path) -> Path:
    """The formula as a caller writes it."""
    from benchmarks.ours import item, output, run

    task = {"method": "band_math", "outputs": [{"name": "ndvi", "expression": "(nir - red) / (nir + red)"}]}
    return output(run(task, [item(place, "red", "nir")], folder))


def numexpr_rasterio(place: Path, folder: Path) -> Path:
    """Read with two threads, one compiled expression on two threads, GDAL's COG driver with two threads."""
    import numexpr

    numexpr.set_num_threads(THREADS)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(place, num_threads=2) as source:
        profile = source.profile
        red, nir = source.read()
    with np.errstate(all="ignore"):
        # `one` keeps the arithmetic in float32: numexpr would take 16-bit integers to int32 and divide those.
        names = {"red": red, "nir": nir, "one": np.float32(1), "nan": np.float32(np.nan)}
        index = numexpr.evaluate(
            "where((red == 0) | (nir == 0), nan, (nir * one - red * one) / (nir * one + red * one))", local_dict=names
        )
    return write_bands(index[None], profile, folder)


def xarray_dask(place: Path, folder: Path) -> Path:
    """Chunks of whole blocks on Dask's two threads, one reader per thread, GDAL's COG driver with two threads."""
    import dask
    import rioxarray

    with dask.config.set(scheduler="threads", num_workers=THREADS), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        with rioxarray.open_rasterio(place, chunks={"band": 1, "y": CHUNK, "x": CHUNK}, lock=False) as source:
            red, nir = source[0].astype(np.float32), source[1].astype(np.float32)
            index = ((nir - red) / (nir + red)).where((source[0] != 0) & (source[1] != 0))
            made = index.compute().to_numpy()
        with rasterio.open(place) as source:
            return write_bands(made[None], source.profile, folder)


def write_bands(made: np.ndarray, profile: Mapping[str, Any], folder: Path) -> Path:
    """Float32 bands (band, y, x) as a COG, by way of a dataset in memory; `profile` says where they lie."""
    plain = {
        "driver": "GTiff", "height": made.shape[1], "width": made.shape[2], "count": made.shape[0],
        "dtype": "float32", "nodata": np.nan, "crs": profile["crs"], "transform": profile["transform"],
        "tiled": True, "blockxsize": 512, "blockysize": 512, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    with rasterio.MemoryFile() as memory:
        with memory.open(**plain) as target:
            target.write(made.astype(np.float32, copy=False))
        with memory.open() as source:
            copy_cog(source, folder / "out.tif", predictor=3)
    return folder / "out.tif"


def _row(peer: str, floor: float, mine: Any, theirs: Any, method: str, *needs: str) -> Row:
    return Row(
        id="ndvi-cog", peer=peer, floor=floor, pixels=pixels, prepare=two_bands, ours=mine, theirs=theirs, look=cuts,
        agree=near_pixels, reads=lambda place: [Read(path=place)], method=method, needs=needs,
    )  # fmt: skip


DASK, NUMEXPR = "xarray + Dask (2 threads), GDAL COG driver", "numexpr + rasterio (2 threads), GDAL COG driver"

ROWS = [
    _row(DASK, 4.0, ours, xarray_dask, "spectral_index", "rioxarray", "dask"),
    _row(NUMEXPR, 3.0, band_math, numexpr_rasterio, "band_math", "numexpr"),
]
