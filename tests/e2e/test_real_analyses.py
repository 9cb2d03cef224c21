"""The methods that need several files, dates or grids, on real pixels, from addresses through HTTP and Dask to a COG.

Scenes whose bands are files of their own come in as items of several assets, fetched from a web server. Each answer is
compared with a foreign tool or plain NumPy on the files as they came.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from exactextract import exact_extract
from pyarrow import parquet
from rio_cogeo.cogeo import cog_validate

from eorouter.client import EoRouterClient

# Only GDAL's warped virtual rasters take a tolerance, and the process of our own raster driver never registers those.
GDAL_WARP = """
import sys
import numpy, rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
source, grid, resampling, out = sys.argv[1:]
with rasterio.open(grid) as like, rasterio.open(source) as file, WarpedVRT(
    file, crs=like.crs, transform=like.transform, width=like.width, height=like.height, tolerance=1e-6,
    resampling=Resampling[resampling], nodata=file.nodata, add_alpha=file.nodata is None,
) as warped:
    numpy.save(out, numpy.stack([warped.read(1), warped.read_masks(1)]).astype(float))
"""

CROPS = "timeseries/s2_crops_lombardy"
NORCIA = "change/oscd_norcia"
MONTHS = (4, 5, 6)
UNCLEAR = (0, 1, 3, 8, 9, 10, 11)
"""Scene classes that the preset `sentinel-2-scl` drops."""


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files(data_dir: Path) -> Iterator[str]:
    """A web server of the real scenes: its host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(data_dir))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class World:
    """A service that may fetch from the files' server, and the items made there."""

    def __init__(self, client: EoRouterClient, project_id: str, files: str, data_dir: Path) -> None:
        self.client = client
        self.project_id = project_id
        self.data_dir = data_dir
        self._files = files
        self._known: dict[str, str] = {}

    def item(self, title: str, at: str, files: dict[str, tuple[str, dict[str, Any]]]) -> str:
        """Id of the item of these files, by asset: path below the data folder, and notes on its one band."""
        if title not in self._known:
            assets = {
                key: {"href": f"http://{self._files}/{path}", "bands": [{"name": key} | notes]}
                for key, (path, notes) in files.items()
            }
            made = self.client.call("items.create", project_id=self.project_id, title=title, datetime=at, assets=assets)
            self._known[title] = made["id"]
        return self._known[title]

    def upload(self, path: str) -> str:
        """Id of the item of one file."""
        if path not in self._known:
            self._known[path] = self.client.uploads.upload(self.data_dir / path, project_id=self.project_id)["item_id"]
        return self._known[path]

    def rasters(self, job: Any, folder: Path) -> list[Path]:
        """The COGs of a job's items, by title."""
        items = sorted((self.client.items.get(item_id) for item_id in job.item_ids), key=lambda item: item["id"])
        found = []
        for item in items:
            for key, asset in item["assets"].items():
                if asset["type"].startswith("image/tiff") and "data" in asset["roles"]:
                    found.append(self.client.items.download(item["id"], key, to=folder / f"{item['id']}.{key}.tif"))
        return found


@pytest.fixture(scope="module")
def world(start, files: str, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("analyses")
    with start(folder, workers=2, remote_hosts=files) as service, service.client() as client:
        yield World(client, service.project_id, files, data_dir)


def crops(world: World) -> list[tuple[str, str, np.ndarray]]:
    """Item, month and NDVI (y, x) of each date, NaN where the preset drops it."""
    found = []
    for path in sorted((world.data_dir / CROPS / "NDVI").glob("*.tif"), key=lambda path: path.name.split("_")[1]):
        year, month, day = re.search(r"_(\d{4})(\d\d)(\d\d)_", path.name).groups()
        if int(month) not in MONTHS:
            continue
        scl = f"{CROPS}/SCL/{path.name.replace('NDVI', 'SCL')}"
        item_id = world.item(
            path.stem,
            f"{year}-{month}-{day}T10:15:00Z",
            {"ndvi": (f"{CROPS}/NDVI/{path.name}", {"scale": 1e-4}), "scl": (scl, {})},
        )
        with rasterio.open(path) as source:
            ndvi = source.read(1)
            a, _, c, _, e, f = source.transform[:6]
            columns, rows = c + a * (np.arange(source.width) + 0.5), f + e * (np.arange(source.height) + 0.5)
        with rasterio.open(world.data_dir / scl) as source:
            classes = source.read(1)
            a, _, c, _, e, f = source.transform[:6]
        at = np.ix_(np.floor((rows - f) / e).astype(int), np.floor((columns - c) / a).astype(int))
        clear = ~np.isin(classes[at], UNCLEAR) & (ndvi != -32768)
        found.append((item_id, month, np.where(clear, ndvi * 1e-4, np.nan)))
    return found


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_monthly_medians_of_cloud_masked_crops_equal_numpy(world: World, tmp_path: Path) -> None:
    dates = crops(world)
    job = world.client.execute(
        *[item_id for item_id, _, _ in dates], method="time_series", value={"band": "ndvi"}, masks=["sentinel-2-scl"],
        group={"by": "month"}, analysis={"type": "composite", "statistics": ["median", "count"]},
    ).wait()  # fmt: skip
    by_month = {}
    for item_id in job.item_ids:
        item = world.client.items.get(item_id)
        start = item["properties"].get("start_datetime") or item["properties"]["datetime"]
        by_month[start[5:7]] = item
    assert sorted(by_month) == [f"{month:02}" for month in MONTHS]
    for month, item in by_month.items():
        (key,) = [key for key, asset in item["assets"].items() if asset["type"].startswith("image/tiff")]
        path = world.client.items.download(item["id"], key, to=tmp_path / f"{month}.tif")
        stack = np.array([ndvi for _, at, ndvi in dates if at == month])
        with rasterio.open(path) as ours:
            np.testing.assert_allclose(ours.read(1), np.nanmedian(stack, axis=0), atol=1e-6)
            np.testing.assert_array_equal(ours.read(2), np.isfinite(stack).sum(axis=0))


def test_curves_of_crop_fields_equal_exactextract(world: World, tmp_path: Path) -> None:
    dates = crops(world)
    fields = geopandas.read_file(world.data_dir / CROPS / "fields.gpkg")
    zones = json.loads(fields.to_json())
    job = world.client.execute(
        *[item_id for item_id, _, _ in dates], method="time_series", value={"band": "ndvi"}, masks=["sentinel-2-scl"],
        group={"by": "day"}, analysis={"type": "series"}, zones=zones, zones_crs=fields.crs.to_wkt(),
    ).wait()  # fmt: skip
    assets = world.client.items.get(job.item_ids[0])["assets"]
    (key,) = [key for key, asset in assets.items() if "parquet" in asset["type"]]
    table = parquet.read_table(world.client.items.download(job.item_ids[0], key, to=tmp_path / "t.parquet"))
    ours = table.to_pandas().pivot(index="zone_id", columns="period", values=["mean", "count"])
    with rasterio.open(next((world.data_dir / CROPS / "NDVI").glob("*.tif"))) as source:
        profile = source.profile | {"dtype": "float64", "nodata": np.nan}
    theirs = []
    for number, (_, _, ndvi) in enumerate(dates):
        with rasterio.open(tmp_path / f"{number}.tif", "w", **profile) as target:
            target.write(ndvi, 1)
        theirs.append(exact_extract(str(tmp_path / f"{number}.tif"), fields, ["mean", "count"], output="pandas"))
    for statistic in ("mean", "count"):
        expected = np.array([date[statistic] for date in theirs], float).T
        assert np.isfinite(expected).sum() >= len(dates)
        np.testing.assert_allclose(ours[statistic].to_numpy(float), expected, atol=1e-6)


def norcia(world: World) -> tuple[str, str]:
    """Items before and after, of red, near infrared and (half as fine) shortwave infrared."""
    found = []
    for when, at in (("before", "2015-07-11T10:00:00Z"), ("after", "2017-10-18T10:00:31Z")):
        files = {}
        for name, band in (("red", "B04"), ("nir", "B08"), ("swir22", "B12")):
            (path,) = (world.data_dir / NORCIA / when).glob(f"*_{band}.tif")
            notes = {"common_name": name, "scale": 1e-4}
            files[name] = (f"{NORCIA}/{when}/{path.name}", notes)
        found.append(world.item(f"norcia {when}", at, files))
    return found[0], found[1]


def test_change_of_a_real_pair_equals_numpy_and_its_areas_add_up(world: World, tmp_path: Path) -> None:
    job = world.client.execute(
        *norcia(world), method="change_detection", statistic={"type": "difference"}, value={"index": "NDVI"},
        threshold={"by": "otsu"},
    ).wait()  # fmt: skip
    item = world.client.items.get(job.item_ids[0])
    path = {key: world.client.items.download(item["id"], key, to=tmp_path / key) for key in ("change", "classes")}
    ndvi = []
    for when in ("before", "after"):
        red, nir = (
            rasterio.open(next((world.data_dir / NORCIA / when).glob(f"*_{band}.tif"))).read(1).astype(float)
            for band in ("B04", "B08")
        )
        ndvi.append((nir - red) / (nir + red))
    expected = ndvi[1] - ndvi[0]
    with rasterio.open(path["change"]) as ours, rasterio.open(path["classes"]) as classes:
        np.testing.assert_allclose(ours.read(1), expected, atol=1e-6)
        found = classes.read(1)
    sizes = {value: int((found == value).sum()) for value in np.unique(found)}
    assert len(sizes) >= 2
    areas = {row["class"]: row["pixels"] for row in job.document["result"]["summary"]["classes"]}
    assert {value: count for value, count in areas.items() if count} == sizes


@pytest.mark.parametrize(
    "case",
    [
        ("dem/elev_vinschgau.tif", {"crs": "EPSG:4326", "resolution": 0.002}, "bilinear"),
        ("optical/landsat8_zion/landsat_b4.tif", {"crs": "EPSG:3857"}, "cubic"),
        ("landcover/prodes_amazonia.tif", {"crs": "EPSG:4326"}, "nearest"),
        ("change/landsat_ucayali/2015.tif", {"crs": "EPSG:32718"}, "bilinear"),
    ],
    ids=lambda case: Path(case[0]).stem,
)
def test_scene_on_another_grid_equals_gdal_warp(
    world: World, tmp_path: Path, case: tuple[str, dict[str, Any], str]
) -> None:
    """Pixels of the source's size or finer: what a coarser one takes in, GDAL reckons once for all of the raster."""
    name, grid, resampling = case
    item_id = world.upload(name)
    job = world.client.execute(
        item_id, method="reproject", grid=grid, resampling=resampling, tolerance_px=0.0, mask="band"
    ).wait()
    (path,) = world.rasters(job, tmp_path)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    warped = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GDAL_WARP, world.data_dir / name, path, resampling, tmp_path / "warped"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert warped.returncode == 0, warped.stderr
    theirs, seen = np.load(tmp_path / "warped.npy")
    with rasterio.open(path) as ours:
        pixels, valid = ours.read(1).astype(float), ours.read_masks(1) > 0
    assert np.mean(valid != (seen > 0)) <= 1e-3
    both = valid & (seen > 0)
    assert both.mean() > 0.3
    assert np.mean(np.abs(pixels - theirs)[both] > (0.0 if resampling == "nearest" else 1.0)) <= 1e-3


@pytest.mark.parametrize(
    "name",
    ["optical/s2_l2a_amazon/sen2_12bands.tif", "formats/not_cog_stripped.tif", "formats/cog_dateline.tif",
     "landcover/prodes_amazonia.tif", "formats/RGB.byte.tif"],
    ids=lambda name: Path(name).stem,
)  # fmt: skip
def test_scene_rewritten_as_cog_keeps_every_pixel(world: World, tmp_path: Path, name: str) -> None:
    job = world.client.execute(world.upload(name), method="cog", compression="zstd", block_size=256).wait()
    (path,) = world.rasters(job, tmp_path)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(path) as ours, rasterio.open(world.data_dir / name) as source:
        assert (ours.compression.name, ours.block_shapes[0]) == ("zstd", (256, 256))
        theirs = source.read(masked=True)
        np.testing.assert_array_equal(ours.read_masks() > 0, ~np.ma.getmaskarray(theirs))
        np.testing.assert_array_equal(ours.read()[~theirs.mask], theirs.data[~theirs.mask])
