"""The rows of the design's speed table that can be run today, each against its peer."""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import rasterio

from benchmarks import data
from benchmarks.harness import THREADS, Row

if TYPE_CHECKING:  # our modules are imported by our side only: they keep GDAL drivers away that the peers may want
    from eorouter_compute.method import InputItem, Part, Result


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for one run's output."""
    path = Path(tempfile.mkdtemp(dir=folder))
    yield path
    shutil.rmtree(path)


def run_method(task: dict[str, Any], inputs: "list[InputItem]", folder: Path) -> "Result":
    """Plan, run the shards on two threads, merge: what the dispatcher has workers do, without the dispatcher."""
    from eorouter_compute import method
    from eorouter_compute.attempt import Attempt

    found = method.get(task["method"])
    params = msgspec.convert(task, found.params)
    shards = method.plan(params, inputs).shards

    def run(number: int) -> "Part":
        return found.run(params, inputs, shards[number].body, Attempt((folder / str(number)).as_uri()))

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(run, range(len(shards))))
    return found.merge(params, inputs, parts, Attempt((folder / "merge").as_uri()))


def output(result: "Result", key: str) -> Path:
    """The file of one asset of the first item."""
    from eorouter_compute.attempt import local_path

    asset = next(asset for asset in result.items[0].assets if asset.key == key)
    path = local_path(asset.object.href)
    assert path is not None
    return path


def scene_item(path: Path, *names: str) -> "InputItem":
    """The item of a scene, its bands renamed."""
    from eorouter_compute import raster
    from eorouter_compute.method import InputItem

    asset = raster.describe(path.as_uri())
    if names:
        bands = tuple(msgspec.structs.replace(b, name=n) for b, n in zip(asset.bands, names, strict=True))
        asset = msgspec.structs.replace(asset, bands=bands)
    return InputItem(id="scene", assets=(asset,))


def decode(path: Path) -> None:
    """Read a raster once on two threads: the least that any method on it costs."""
    from eorouter_compute import raster
    from eorouter_compute.grid import tiles

    item = scene_item(path)
    (asset,) = item.rasters
    indexes = [band.index for band in asset.bands]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda window: raster.read_block(asset, indexes, window).pixels.sum(), tiles(asset.window, 2048)))


STATISTICS = ["count", "sum", "mean", "min", "max", "stdev"]


def zonal_inputs(kind: str, count: int) -> Any:
    """Scene and polygons of a zonal row."""

    def prepare(folder: Path, side: int) -> tuple[Path, Path]:
        zones_count = max(10, count * side * side // 10_980**2)
        return data.scene(folder, side, "zonal", 1, is_cog=True), data.polygons(folder, side, kind, zones_count)

    return prepare


def zonal_ours(inputs: tuple[Path, Path], folder: Path) -> np.ndarray:
    """File to table; the zones are read anew each time."""
    from eorouter_compute import vector, zones
    from eorouter_compute.method import InputItem

    zones.forget()
    place, polygons = inputs
    items = [scene_item(place), InputItem(id="zones", assets=(vector.describe(polygons.as_uri()),))]
    task = {"method": "zonal_statistics", "zones": {"item_id": "zones"}, "statistics": STATISTICS}
    with scratch(folder) as path:
        from pyarrow import parquet

        table = parquet.read_table(output(run_method(task, items, path), "table"))
        return np.column_stack([table[name].to_numpy() for name in STATISTICS])


def zonal_exactextract(inputs: tuple[Path, Path], folder: Path) -> np.ndarray:
    """Its fastest strategy for one raster and many small polygons."""
    import geopandas
    from exactextract import exact_extract

    place, polygons = inputs
    layer = geopandas.read_file(polygons, use_arrow=True)
    table = exact_extract(
        str(place), layer, STATISTICS, output="pandas", strategy="raster-sequential", max_cells_in_memory=2**27
    )
    return table[STATISTICS].to_numpy(float)


def zonal_rasterstats(inputs: tuple[Path, Path], folder: Path) -> np.ndarray:
    """Centre-in-polygon statistics: another definition, so only the means are compared, loosely."""
    from rasterstats import zonal_stats

    place, polygons = inputs
    rows = zonal_stats(str(polygons), str(place), stats=["count", "sum", "mean", "min", "max", "std"])
    return np.array([[row[n] or np.nan for n in ("count", "sum", "mean", "min", "max", "std")] for row in rows], float)


def same_numbers(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal to 1e-6, zone by zone."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, equal_nan=True)


def near_means(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Means within 5 %: the other side counts whole pixels."""
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=0.05)


def clip_inputs(folder: Path, side: int) -> tuple[Path, dict[str, Any]]:
    """A one-band COG and an area over a twelfth of it (1,000 km² of a tile), not along its pixels."""
    corners = np.array([[0.366, 0.547], [0.639, 0.465], [0.575, 0.192], [0.302, 0.264], [0.366, 0.547]])
    ring = data.ORIGIN + corners * [1, -1] * side * data.PIXEL_M
    return data.scene(folder, side, "clip", 2, is_cog=True), {"type": "Polygon", "coordinates": [ring.tolist()]}


def clip_ours(inputs: tuple[Path, dict[str, Any]], folder: Path) -> np.ndarray:
    """COG to COG."""
    place, area = inputs
    task = {"method": "clip", "aoi": area, "crs": data.CRS}
    with scratch(folder) as path, rasterio.open(output(run_method(task, [scene_item(place)], path), "data")) as made:
        return made.read(1, out_shape=(1024, 1024))


def clip_rasterio(inputs: tuple[Path, dict[str, Any]], folder: Path) -> np.ndarray:
    """rasterio.mask, then rio-cogeo with two threads."""
    import rasterio.mask
    from rio_cogeo.cogeo import cog_translate
    from rio_cogeo.profiles import cog_profiles

    place, area = inputs
    with scratch(folder) as path:
        with rasterio.open(place) as source:
            pixels, transform = rasterio.mask.mask(source, [area], crop=True)
            profile = source.profile | {"height": pixels.shape[1], "width": pixels.shape[2], "transform": transform}
        with rasterio.MemoryFile() as memory:
            with memory.open(**profile) as plain:
                plain.write(pixels)
            with memory.open() as plain:
                cog_translate(
                    plain, path / "out.tif", cog_profiles.get("deflate"), quiet=True, config={"GDAL_NUM_THREADS": 2},
                    nodata=0, in_memory=True,
                )  # fmt: skip
        with rasterio.open(path / "out.tif") as made:
            return made.read(1, out_shape=(1024, 1024))


def same_picture(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The overviews differ in how they round and which pixels they take; most of the picture must not."""
    both = (ours != 0) & (theirs != 0)
    assert both.mean() > 0.3
    assert abs(float(np.mean(ours[both].astype(float) - theirs[both]))) < 5


def plain_scene(folder: Path, side: int) -> Path:
    """A tiled GeoTIFF without overviews."""
    return data.scene(folder, side, "plain", 3)


def cog_ours(place: Path, folder: Path) -> np.ndarray:
    """The ingest of an uploaded file."""
    task = {
        "method": "ingest", "href": place.as_uri(), "filename": place.name, "declared_bytes": place.stat().st_size,
        "pixels_max": 10**10,
    }  # fmt: skip
    with scratch(folder) as path, rasterio.open(output(run_method(task, [], path), "data")) as made:
        return made.read(1, out_shape=(1024, 1024))


def cog_rio_cogeo(place: Path, folder: Path) -> np.ndarray:
    """rio-cogeo, deflate, two threads."""
    from rio_cogeo.cogeo import cog_translate
    from rio_cogeo.profiles import cog_profiles

    with scratch(folder) as path:
        profile = cog_profiles.get("deflate") | {"predictor": 2}
        cog_translate(
            str(place),
            path / "out.tif",
            profile,
            quiet=True,
            config={"GDAL_NUM_THREADS": 2},
            overview_resampling="average",
        )
        with rasterio.open(path / "out.tif") as made:
            return made.read(1, out_shape=(1024, 1024))


def cog_gdal(place: Path, folder: Path) -> np.ndarray:
    """GDAL's COG driver, deflate, two threads."""
    from rasterio.shutil import copy

    with scratch(folder) as path:
        copy(
            place, path / "out.tif", driver="COG", compress="DEFLATE", predictor=2, num_threads=2,
            overview_resampling="average", bigtiff="IF_SAFER",
        )  # fmt: skip
        with rasterio.open(path / "out.tif") as made:
            return made.read(1, out_shape=(1024, 1024))


def two_bands(folder: Path, side: int) -> Path:
    """Red and near infrared in one COG."""
    return data.scene(folder, side, "ndvi", 4, bands=2, is_cog=True)


def ndvi_ours(place: Path, folder: Path) -> np.ndarray:
    """COG to float32 COG."""
    task = {"method": "spectral_index", "indices": ["NDVI"], "bands": {"R": "red", "N": "nir"}}
    item = scene_item(place, "red", "nir")
    with scratch(folder) as path, rasterio.open(output(run_method(task, [item], path), "data")) as made:
        return made.read(1, window=((0, 1024), (0, 1024)))


def ndvi_numpy(place: Path, folder: Path) -> np.ndarray:
    """Window by window with NumPy on two threads, then GDAL's COG driver with two threads."""
    from rasterio.shutil import copy

    with scratch(folder) as path:
        with rasterio.open(place, num_threads=2) as source:
            profile = source.profile | {"count": 1, "dtype": "float32", "nodata": np.nan, "driver": "GTiff"}
            red, nir = source.read().astype(np.float32)
        with np.errstate(all="ignore"):
            index = (nir - red) / (nir + red)
        with rasterio.open(path / "plain.tif", "w", **(profile | {"compress": None})) as plain:
            plain.write(index, 1)
        copy(path / "plain.tif", path / "out.tif", driver="COG", compress="DEFLATE", predictor=3, num_threads=2)
        with rasterio.open(path / "out.tif") as made:
            return made.read(1, window=((0, 1024), (0, 1024)))


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal to the last digits of float32."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def pixels(side: int) -> int:
    """Of a whole scene."""
    return side * side


def zonal_row(row: str, kind: str, count: int, floor: float) -> Row:
    """A zonal row against exactextract."""
    return Row(
        id=row, peer="exactextract (raster-sequential)", floor=floor, pixels=pixels, prepare=zonal_inputs(kind, count),
        ours=zonal_ours, theirs=zonal_exactextract, agree=same_numbers, bound=lambda inputs, _: decode(inputs[0]),
    )  # fmt: skip


ROWS = [
    zonal_row("zonal-20k", "blobs", 20_000, 5.0),
    zonal_row("zonal-2k", "large", 2_000, 3.0),
    Row(
        id="zonal-2k", peer="rasterstats", floor=10.0, pixels=pixels, prepare=zonal_inputs("large", 2_000),
        ours=zonal_ours, theirs=zonal_rasterstats, agree=near_means, bound=lambda inputs, _: decode(inputs[0]),
    ),
    zonal_row("zonal-partition", "partition", 1_500, 5.0),
    Row(
        id="cog", peer="rio-cogeo (2 threads)", floor=4.5, pixels=pixels, prepare=plain_scene, ours=cog_ours,
        theirs=cog_rio_cogeo, agree=same_picture, bound=lambda place, _: decode(place),
    ),
    Row(
        id="cog", peer="GDAL COG driver (2 threads)", floor=2.5, pixels=pixels, prepare=plain_scene, ours=cog_ours,
        theirs=cog_gdal, agree=same_picture, bound=lambda place, _: decode(place),
    ),
    Row(
        id="clip-cog", peer="rasterio.mask + rio-cogeo (2 threads)", floor=4.0, pixels=lambda side: side * side // 12,
        prepare=clip_inputs, ours=clip_ours, theirs=clip_rasterio, agree=same_picture,
        bound=lambda inputs, _: decode(inputs[0]),
    ),
    Row(
        id="ndvi-cog", peer="NumPy + GDAL COG driver (2 threads)", floor=3.0, pixels=pixels, prepare=two_bands,
        ours=ndvi_ours, theirs=ndvi_numpy, agree=near, bound=lambda place, _: decode(place),
    ),
]  # fmt: skip
