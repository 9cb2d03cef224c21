"""The main job on real pixels, through HTTP, the dispatcher and Dask: taken in, clipped, indexed, summarised.

Each answer is compared with a foreign tool on the file as it came: rasterio.mask, NumPy, exactextract, rio-cogeo.
"""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.mask
import shapely
from exactextract import exact_extract
from pyarrow import parquet
from rio_cogeo.cogeo import cog_validate

from eorouter.client import EoRouterClient, InvalidInput

# rasterio.mask multiplies affine matrices in a way that affine 3 is about to give up.
RASTERIO_MASK = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

SCENES = [
    "optical/s2_l2a_amazon/sen2_12bands.tif",
    "optical/s2_l2a_amazon/srtm.tif",
    "optical/landsat7_olinda/L7_ETMs.tif",
    "optical/landsat7_olinda/olinda_dem_utm25s.tif",
    "optical/landsat8_zion/landsat_b4.tif",
    "optical/landsat8_zion/nlcd2011.tif",
    "optical/landsat8_zion/srtm.tif",
    "zonal/luxembourg/elev.tif",
    "zonal/luxembourg/sent2_L2A_2024-08-24.tif",
    "sar/umbra_mount_yasur.tiff",
    "sar/S1A__IW___A_20150309T173017_VV_grd_mli_geo_norm_db.tif",
    "dem/elev_vinschgau.tif",
    "landcover/prodes_amazonia.tif",
    "change/landsat_ucayali/2015.tif",
    "change/naip_wetlands/m_4709963_se_14_1_20150926.tif",
    "change/oscd_norcia/after/T33TUH_20171018T100031_B04.tif",
    "formats/cog_valid_uint16.tif",
    "formats/not_cog_stripped.tif",
    "formats/cog_dateline.tif",
    "formats/cog_nodata_nan.tif",
    "formats/cog_scale_offset.tif",
    "formats/rgb_mask.tif",
    "formats/rgba.tif",
    "formats/cogeo_webmercator.tif",
    "formats/RGB.byte.tif",
]

PAIRS = [
    ("zonal/luxembourg/elev.tif", "zonal/luxembourg/lux.gpkg"),
    ("zonal/luxembourg/sent2_L2A_2024-08-24.tif", "zonal/luxembourg/lux.gpkg"),
    ("optical/landsat8_zion/landsat_b5.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/landsat8_zion/nlcd2011.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/landsat8_zion/srtm.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/s2_l2a_amazon/sen2_12bands.tif", "optical/s2_l2a_amazon/classes.gpkg"),
    ("optical/s2_l2a_amazon/srtm.tif", "optical/s2_l2a_amazon/classes.gpkg"),
]

REFUSED = {
    "formats/corrupt.tif": {"source_truncated", "source_unreadable"},
    "formats/gcps_only.tif": {"no_crs"},
}

STATISTICS = ["count", "sum", "mean", "min", "max", "stdev", "median"]


@pytest.fixture(scope="module")
def client(service):
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def taken_in(client: EoRouterClient, service, data_dir: Path):
    """Upload a file of the data folder once; its item's id."""
    known: dict[str, str] = {}

    def take_in(name: str, **fields: Any) -> str:
        if name not in known:
            upload = client.uploads.upload(data_dir / name, project_id=service.project_id, **fields)
            known[name] = upload["item_id"]
        return known[name]

    return take_in


def download(client: EoRouterClient, item_id: str, media: str, folder: Path) -> Path:
    """The one asset of an item whose media type starts with `media`."""
    assets = client.items.get(item_id)["assets"]
    (key,) = [key for key, asset in assets.items() if asset["type"].startswith(media) and "data" in asset["roles"]]
    return client.items.download(item_id, key, to=folder)


def inner_shape(source: rasterio.DatasetReader) -> shapely.Polygon:
    """A five-cornered area inside a raster, in its CRS; no edge passes exactly through a pixel's centre."""
    corners = np.array([[0.1317, 0.2153], [0.5231, 0.0829], [0.9119, 0.3707], [0.7433, 0.8861], [0.2239, 0.7907]])
    a, b, c, d, e, f = source.transform[:6]
    x, y = corners.T * [[source.width], [source.height]]
    return shapely.polygons(np.stack([a * x + b * y + c, d * x + e * y + f], axis=1))


def as_doubles(path: Path, folder: Path) -> Path:
    """The same raster with float64 pixels: exactextract cuts quantiles of integer rasters down to integers."""
    with rasterio.open(path) as source:
        pixels = source.read(masked=True).astype(np.float64).filled(np.nan)
        profile = {"crs": source.crs, "transform": source.transform, "count": source.count}
    profile |= {"height": pixels.shape[1], "width": pixels.shape[2], "dtype": "float64", "nodata": np.nan}
    with rasterio.open(folder / "doubles.tif", "w", driver="GTiff", **profile) as target:
        target.write(pixels)
    return folder / "doubles.tif"


@RASTERIO_MASK
@pytest.mark.parametrize("name", SCENES)
def test_scene_taken_in_and_clipped_equals_rasterio_mask(client, taken_in, data_dir, tmp_path, name):
    item_id = taken_in(name)
    with rasterio.open(data_dir / name) as source:
        shape = inner_shape(source)
        expected, transform = rasterio.mask.mask(source, [shape], crop=True, filled=False)
        crs = source.crs.to_wkt()
        colour = source.count if source.colorinterp[-1].name != "alpha" else source.count - 1
    job = client.execute(item_id, method="clip", aoi=json.loads(shapely.to_geojson(shape)), crs=crs).wait()
    path = download(client, job.item_ids[0], "image/tiff", tmp_path)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(path) as ours:
        assert ours.transform.almost_equals(transform, 1e-6)
        assert ours.count == colour
        pixels, valid = ours.read(), ours.read_masks() > 0
    theirs = ~np.ma.getmaskarray(expected[:colour])
    if pixels.dtype.kind == "f":
        theirs &= ~np.isnan(expected.data[:colour])
        valid &= ~np.isnan(pixels)
    np.testing.assert_array_equal(valid, theirs)
    np.testing.assert_array_equal(pixels[valid], expected.data[:colour][theirs])


@pytest.mark.parametrize(
    "scene",
    [
        ("optical/s2_l2a_amazon/sen2_12bands.tif", 4, 8),
        ("optical/landsat7_olinda/L7_ETMs.tif", 3, 4),
        ("change/naip_wetlands/m_4709963_se_14_1_20150926.tif", 1, 4),
    ],
    ids=lambda scene: scene[0],
)
def test_ndvi_of_a_scene_equals_numpy_bit_for_bit(client, taken_in, data_dir, tmp_path, scene):
    name, red, nir = scene
    item = client.items.get(taken_in(name))
    bands = item["assets"]["data"]["bands"]
    chosen = {"R": bands[red - 1]["name"], "N": bands[nir - 1]["name"]}
    job = client.execute(item["id"], method="spectral_index", indices=["NDVI"], bands=chosen).wait()
    path = download(client, job.item_ids[0], "image/tiff", tmp_path)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(data_dir / name) as source:
        r, n = (source.read(band).astype(np.float64) for band in (red, nir))
        seen = (source.read_masks(red) > 0) & (source.read_masks(nir) > 0)
    with np.errstate(all="ignore"):
        expected = ((n - r) / (n + r)).astype(np.float32)
    expected[~seen | ~np.isfinite(expected)] = np.nan
    with rasterio.open(path) as ours:
        np.testing.assert_array_equal(ours.read(1), expected)


def test_saved_formula_over_two_scenes_equals_numpy(client, service, taken_in, data_dir, tmp_path):
    name = "optical/landsat7_olinda/L7_ETMs.tif"
    formula = client.call("band_formulas.create", name="Contrast", expression="(a - b) / (a + b)")
    item_id = taken_in(name)
    other_id = client.uploads.upload(data_dir / name, project_id=service.project_id)["item_id"]
    bands = client.items.get(item_id)["assets"]["data"]["bands"]
    task = {
        "method": "band_math",
        "variables": {"a": {"band": bands[3]["name"], "item": 0}, "b": {"band": bands[2]["name"], "item": 1}},
        "outputs": [
            {"name": "c", "formula_id": formula["formula_id"], "dtype": "int16", "scale": 1e-3, "nodata": -9999}
        ],
    }
    inputs = [{"item_id": item_id}, {"item_id": other_id}]
    asked = {"project_id": service.project_id, "task": task, "inputs": inputs, "wait_s": 60}
    job = client.call("analytics.execute", **asked)
    assert job["state"] == "completed", job
    path = download(client, next(iter(job["result"]["items"].values())), "image/tiff", tmp_path)
    with rasterio.open(data_dir / name) as source:
        a, b = (source.read(band).astype(np.float64) for band in (4, 3))
        seen = (source.read_masks(4) > 0) & (source.read_masks(3) > 0) & (a + b > 0)
    with rasterio.open(path) as ours:
        got = ours.read(1)
        assert (ours.nodata, ours.scales[0]) == (-9999, 1e-3)
    assert (got[~seen] == -9999).all()
    np.testing.assert_array_equal(got[seen], np.rint(((a - b)[seen] / (a + b)[seen]) / 1e-3))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_zonal_statistics_agree_with_exactextract(client, taken_in, data_dir, tmp_path, pair):
    name, polygons = pair
    raster_id, zones_id = taken_in(name), taken_in(polygons)
    job = client.execute(
        raster_id, zones_id, method="zonal_statistics", zones={"item_id": zones_id}, statistics=STATISTICS,
        use_scale=False,
    ).wait()  # fmt: skip
    table = parquet.read_table(download(client, job.item_ids[0], "application/vnd.apache.parquet", tmp_path))
    with rasterio.open(data_dir / name) as source:
        zones = geopandas.read_file(data_dir / polygons)
        placed = zones.to_crs(source.crs) if zones.crs != source.crs else zones
        count = source.count
    oracle = str(as_doubles(data_dir / name, tmp_path))
    theirs = exact_extract(oracle, placed, STATISTICS, output="pandas", strategy="feature-sequential")
    assert table.num_rows == len(zones)
    ours = table.to_pandas()
    for band in range(1, count + 1):
        prefix = "" if count == 1 else f"{client.items.get(raster_id)['assets']['data']['bands'][band - 1]['name']}_"
        for statistic in STATISTICS:
            column = statistic if count == 1 else f"band_{band}_{statistic}"
            np.testing.assert_allclose(
                ours[f"{prefix}{statistic}"].astype(float), theirs[column].astype(float), rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_cannot_be_used_is_refused_by_name_and_leaves_nothing(client, service, data_dir, name):
    before = client.call("organisations.get")["used_bytes"]
    with pytest.raises(InvalidInput) as refusal:
        client.uploads.upload(data_dir / name, project_id=service.project_id)
    assert refusal.value.code in REFUSED[name]
    assert client.call("organisations.get")["used_bytes"] == before
