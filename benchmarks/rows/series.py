"""Composites of many dates: the median of a cloud-masked NDVI, and the geometric median of six bands."""

import sys
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from benchmarks import data
from benchmarks.bounds import Read
from benchmarks.harness import THREADS, Answer, Row
from benchmarks.rows.arithmetic import write_bands
from benchmarks.rows.cogs import CACHE_BYTES
from benchmarks.rows.looking import compare, cuts, near_pixels

if TYPE_CHECKING:
    from eorouter_compute.method import InputItem

DATES = 12
SIDE_MAX = 4096
BANDS = ("red", "nir", "scl")
SIX = ("blue", "green", "red", "nir", "swir16", "swir22")
START = datetime(2024, 3, 1, 10, tzinfo=UTC)
CHUNK = 2048
SCALE = np.float32(1e-4)
# Steps below this many reflectance units end the iteration on both sides.
GEOMEDIAN_EPS = 1e-5
GEOMEDIAN_STEPS = 1000

Dates = list[tuple[datetime, dict[str, Path]]]


def side_of(side: int) -> int:
    """4,096 pixels, and half the scene's side where scenes are small."""
    return SIDE_MAX if side > SIDE_MAX else side // 2


def masked_dates(folder: Path, side: int, *, dates: int = DATES) -> Dates:
    """Red, near infrared and scene classification of some dates, each a COG of its own."""
    across, place = side_of(side), folder / "dates"
    found = []
    for number in range(dates):
        paths = {
            name: data.written(
                place / f"{name}-{number}-{across}.tif", across, [data.fields(across, 20 + number, band)]
            )
            for band, name in enumerate(BANDS[:2])
        }
        scl = place / f"scl-{number}-{across}.tif"
        paths["scl"] = data.written(scl, across, [data.classes(across, 20 + number)], dtype="uint8")
        found.append((START + timedelta(days=10 * number), paths))
    return found


def six_band_dates(folder: Path, across: int) -> Dates:
    """Six bands of twelve dates in one COG each, of so many pixels across."""
    found = []
    for number in range(DATES):
        bands = [data.fields(across, 40 + number, band) for band in range(len(SIX))]
        path = data.written(folder / "dates" / f"six-{number}-{across}.tif", across, bands)
        found.append((START + timedelta(days=10 * number), {"data": path}))
    return found


def reads(dates: Dates) -> list[Read]:
    """Everything of every date."""
    return [Read(path=path) for _, paths in dates for path in paths.values()]


# Median of NDVI -------------------------------------------------------------------------------------------------------


def stac_items(dates: Dates) -> list[Any]:
    """The dates as STAC items with the projection and band properties that odc-stac plans its reads by."""
    import pystac
    from rasterio.warp import transform_bounds
    from shapely.geometry import box, mapping

    items = []
    for number, (at, paths) in enumerate(dates):
        with rasterio.open(next(iter(paths.values()))) as source:
            bounds = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
            shape, transform = list(source.shape), list(source.transform)
        item = pystac.Item(
            id=f"date-{number}", geometry=mapping(box(*bounds)), bbox=list(bounds), datetime=at,
            properties={"proj:code": data.CRS, "proj:shape": shape, "proj:transform": transform},
            stac_extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        )  # fmt: skip
        for name, path in paths.items():
            kind = {"data_type": "uint8" if name == "scl" else "uint16", "nodata": 0}
            asset = pystac.Asset(href=str(path), media_type=pystac.MediaType.COG, roles=["data"])
            asset.extra_fields = {"raster:bands": [kind]} | kind
            item.add_asset(name, asset)
        items.append(item)
    return items


def median_xarray(dates: Dates, folder: Path) -> Path:
    """odc-stac on Dask's two threads and xarray's own median, as it is commonly written."""
    return _odc(dates, folder, lambda columns: columns.median("time", skipna=True))


def median_bottleneck(dates: Dates, folder: Path) -> Path:
    """The same with bottleneck's median put in place of xarray's, which goes through NumPy's."""
    import bottleneck
    import xarray as xr

    return _odc(
        dates, folder,
        lambda columns: xr.apply_ufunc(
            bottleneck.nanmedian, columns, input_core_dims=[["time"]], kwargs={"axis": -1}, dask="parallelized",
            output_dtypes=[np.float32],
        ),
    )  # fmt: skip


def _odc(dates: Dates, folder: Path, median: Callable[[Any], Any]) -> Path:
    """Chunks of whole blocks, whole columns of time for the median, GDAL's COG driver at the end."""
    import dask
    import odc.stac

    with dask.config.set(scheduler="threads", num_workers=THREADS), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        cube = odc.stac.load(stac_items(dates), bands=list(BANDS), chunks={"time": 1, "y": CHUNK, "x": CHUNK})
        red, nir = cube.red.astype(np.float32), cube.nir.astype(np.float32)
        ndvi = (nir - red) / (nir + red)
        seen = ndvi.where((cube.red != 0) & (cube.nir != 0) & ~cube.scl.isin([0, *data.CLOUDY]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # pixels that are cloudy on every date
            made = median(seen.chunk({"time": -1, "y": CHUNK // 4, "x": CHUNK})).compute().to_numpy()
    with rasterio.open(next(iter(dates[0][1].values()))) as source:
        return write_bands(made[None], source.profile, folder)


# Geometric median -----------------------------------------------------------------------------------------------------

Work = tuple[tuple[str, ...], int, int]


def strips(dates: Dates, count: int) -> list[Work]:
    """The composite cut into strips: files, first row, rows."""
    paths = tuple(str(paths["data"]) for _, paths in dates)
    with rasterio.open(paths[0]) as source:
        height = source.height
    step = -(-height // count)
    return [(paths, row, min(step, height - row)) for row in range(0, height, step)]


def strip(work: Work) -> np.ndarray:
    """Reflectance (y, x, band, date) as float32 with NaN for no data: the layout that hdstats wants."""
    paths, row, rows = work
    stack = []
    for path in paths:
        with rasterio.open(path) as source:
            pixels = source.read(window=((row, row + rows), (0, source.width)))
        stack.append(np.where(pixels == 0, np.float32(np.nan), pixels.astype(np.float32) * SCALE))
    return np.ascontiguousarray(np.stack(stack).transpose(2, 3, 1, 0))


def hdstats_strip(work: Work) -> np.ndarray:
    """Hdstats' compiled Weiszfeld iteration on one strip; (y, x, band)."""
    return _hdstats().nangeomedian_pcm(strip(work), eps=GEOMEDIAN_EPS, maxiters=GEOMEDIAN_STEPS)


@cache
def _hdstats() -> Any:
    # Its package imports a function that SciPy gave up in 1.15; the compiled module that we want does not need it.
    spec = find_spec("hdstats")
    assert spec is not None
    package = types.ModuleType("hdstats")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["hdstats"] = package
    return import_module("hdstats.geomedian")


@cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(THREADS)


def geomedian_hdstats(dates: Dates, folder: Path) -> Path:
    """Two processes, for it holds the interpreter's lock between pixels; GDAL's COG driver with two threads."""
    made = np.concatenate(list(_processes().map(hdstats_strip, strips(dates, 8))))
    return _write_six(made, dates, folder)


def numpy_strip(work: Work) -> np.ndarray:
    """The same iteration, all pixels of a strip at once, those that came to rest left out; (y, x, band)."""
    stack = strip(work)
    shape, points = stack.shape[:3], stack.reshape(-1, *stack.shape[2:]).transpose(0, 2, 1)
    seen = ~np.isnan(points).any(axis=2)
    points = np.where(seen[:, :, None], points, 0)
    with np.errstate(all="ignore"):
        centre = points.sum(axis=1) / seen.sum(axis=1, dtype=np.float32)[:, None]
    moving = np.flatnonzero(seen.any(axis=1))
    for _ in range(GEOMEDIAN_STEPS):
        if not len(moving):
            break
        here, known, now = points[moving], seen[moving], centre[moving]
        distance = np.sqrt(np.square(here - now[:, None, :]).sum(axis=2))
        with np.errstate(divide="ignore"):
            weight = np.where(known & (distance > 1e-9), 1 / distance, 0).astype(np.float32)
        following = np.einsum("nd,ndb->nb", weight, here) / weight.sum(axis=1)[:, None]
        centre[moving] = following
        moving = moving[np.sqrt(np.square(following - now).sum(axis=1)) > GEOMEDIAN_EPS]
    return centre.reshape(shape)


def geomedian_numpy(dates: Dates, folder: Path) -> Path:
    """Strips that fit the cache, on two processes."""
    made = np.concatenate(list(_processes().map(numpy_strip, strips(dates, 64))))
    return _write_six(made, dates, folder)


def _write_six(made: np.ndarray, dates: Dates, folder: Path) -> Path:
    with rasterio.open(dates[0][1]["data"]) as source:
        profile = {"crs": source.crs, "transform": source.transform}
    return write_bands(made.transpose(2, 0, 1), profile, folder)


# Ours -----------------------------------------------------------------------------------------------------------------


def items_of(dates: Dates, *, scale: float = 1.0) -> "list[InputItem]":
    """An item per date, one asset per file."""
    from benchmarks.ours import asset
    from eorouter_compute.method import InputItem

    items = []
    for number, (at, paths) in enumerate(dates):
        assets = [
            asset(path, *(SIX if name == "data" else (name,)), key=name, scale=scale) for name, path in paths.items()
        ]
        items.append(InputItem(id=f"date-{number}", assets=tuple(assets), at=at))
    return items


MEDIAN = {
    "method": "time_series",
    "value": {"index": "NDVI", "letters": {"R": "red", "N": "nir"}},
    "masks": [{"band": "scl", "classes": [0, *data.CLOUDY]}],
    "group": {"by": "all"},
    "analysis": {"type": "composite", "statistics": ["median"]},
}


GEOMEDIAN = {
    "method": "time_series",
    "value": {"bands": list(SIX)},
    "group": {"by": "all"},
    "analysis": {"type": "composite", "geometric_median": True},
}


def median_ours(dates: Dates, folder: Path) -> Path:
    """Index, mask and median in one pass."""
    from benchmarks.ours import output, run

    return output(run(MEDIAN, items_of(dates), folder))


def geomedian_ours(dates: Dates, folder: Path) -> Path:
    """Six bands of every date, read once."""
    from benchmarks.ours import output, run

    return output(run(GEOMEDIAN, items_of(dates, scale=float(SCALE)), folder))


def near_geomedian(ours: Answer, theirs: Answer) -> None:
    """Within a thousandth of reflectance: both sides stop when their steps are small, not when they are there."""
    compare(ours, theirs, atol=1e-3)


def _quarter(folder: Path, side: int) -> Dates:
    """A quarter of the other composites' side."""
    return six_band_dates(folder, side_of(side) // 4)


def _geomedian(peer: str, theirs: Any, needs: tuple[str, ...]) -> Row:
    return Row(
        id="geomedian-12", peer=peer, floor=3.0, pixels=lambda side: DATES * (side_of(side) // 4) ** 2,
        prepare=_quarter, ours=geomedian_ours, theirs=theirs, look=cuts, agree=near_geomedian, reads=reads,
        method="time_series", needs=needs,
    )  # fmt: skip


def _median(peer: str, floor: float, theirs: Any, needs: tuple[str, ...]) -> Row:
    return Row(
        id="median-12", peer=peer, floor=floor, pixels=lambda side: DATES * side_of(side) ** 2, prepare=masked_dates,
        ours=median_ours, theirs=theirs, look=cuts, agree=near_pixels, reads=reads, method="time_series",
        needs=("odc.stac", "pystac", "xarray", *needs),
    )  # fmt: skip


ROWS = [
    _median("odc-stac + xarray on Dask (2 threads), GDAL COG driver", 8.0, median_xarray, ()),
    # Not what the floor was set against, but as fast as that peer can be made: we must not be slower.
    _median("the same with bottleneck's median", 1.0, median_bottleneck, ("bottleneck",)),
    _geomedian("hdstats (2 processes), GDAL COG driver", geomedian_hdstats, ("hdstats",)),
    _geomedian("NumPy (vectorised Weiszfeld, 2 processes), GDAL COG driver", geomedian_numpy, ()),
]  # fmt: skip
