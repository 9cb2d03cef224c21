"""Classes, histograms and weighted statistics against exactextract and NumPy on real scenes, and done by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import msgspec
import numpy as np
import pytest
import rasterio
import shapely
from exactextract import exact_extract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from eorouter_compute import method, raster, vector, zones
from eorouter_compute.errors import BandNotFound, ComputeError, InvalidParameter, TooLarge
from eorouter_compute.method import InputItem, RasterAsset, Result
from eorouter_compute.methods import zonal_statistics
from eorouter_compute.testing import asymmetric, input_item, run_local, write_raster

UTM = "EPSG:32632"
PLAIN = (1.0, 0.0, 0.0, 0.0, -1.0, 3.0)

REAL = [
    ("zonal/luxembourg/elev.tif", "zonal/luxembourg/lux.gpkg"),
    ("zonal/luxembourg/sent2_L2A_2024-08-24.tif", "zonal/luxembourg/lux.gpkg"),
    ("optical/landsat8_zion/nlcd2011.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/s2_l2a_amazon/sen2_12bands.tif", "optical/s2_l2a_amazon/classes.gpkg"),
    (
        "timeseries/s2_crops_lombardy/NDVI/S2B2A_20200513_022_sampleroi_NDVI_10.tif",
        "timeseries/s2_crops_lombardy/fields.gpkg",
    ),
    (
        "timeseries/landsat8_ny_2018/LC08_L1TP_014031_20180530_20180614_01_T1/LC08_L1TP_014031_20180530_B4.TIF",
        "timeseries/landsat8_ny_2018/nycd.gpkg",
    ),
    ("change/oscd_norcia", "change/oscd_norcia/norcia.geojson"),
]
IDS = [Path(scene).stem for scene, _ in REAL]
WEIGHTED = ("weighted_mean", "weighted_sum", "weighted_stdev", "weighted_variance")


def execute(task: dict[str, Any], *items: InputItem) -> Result:
    params = msgspec.convert({"method": "zonal_statistics"} | task, zonal_statistics.ZonalStatisticsParams)
    return run_local(params, items)


def rows(task: dict[str, Any], *items: InputItem) -> list[dict[str, Any]]:
    result = execute(task, *items)
    table = next(asset for asset in result.items[0].assets if asset.key == "table")
    return parquet.read_table(table.object.href.removeprefix("file://")).to_pylist()


def inline(*geometries: Any) -> dict[str, Any]:
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(each), "properties": {}} for each in geometries
    ]
    return {"type": "FeatureCollection", "features": features}


def first_band(scene: Path, folder: Path, dtype: str | None = None) -> Path:
    """The first band alone: as many numbers as the other side can hand over in a moment."""
    scene = next(iter(sorted(scene.rglob("*.tif")))) if scene.is_dir() else scene
    with rasterio.open(scene) as opened:
        pixels = opened.read(1, masked=True)
        profile = {name: opened.profile[name] for name in ("crs", "transform", "width", "height")}
        nodata = opened.nodata
    if dtype is not None:
        pixels, nodata = pixels.astype(dtype), np.nan
    path = folder / f"first{dtype or ''}.tif"
    with rasterio.open(path, "w", driver="GTiff", count=1, dtype=pixels.dtype.name, nodata=nodata, **profile) as target:
        target.write(pixels.filled(np.nan) if dtype else pixels.data, 1)
    return path


def seen_by_exactextract(layer: InputItem, asset: RasterAsset) -> geopandas.GeoDataFrame:
    a, b, _, d, e, _ = asset.transform
    tolerance = zones.EDGE_TOLERANCE_PX * min(np.hypot(a, d), np.hypot(b, e))
    read = zones.read(layer.vectors[0], target_crs=asset.crs, edge_tolerance=tolerance)
    return geopandas.GeoDataFrame(geometry=read.projected(), crs=asset.crs)


@pytest.mark.parametrize(("scene", "layer_path"), REAL, ids=IDS)
def test_classes_and_histograms_of_real_scenes_are_exactextracts(
    data_dir: Path, tmp_path: Path, scene: str, layer_path: str
):
    item = input_item(raster.describe(first_band(data_dir / scene, tmp_path).as_uri()))
    layer = InputItem(id="zones", assets=(vector.describe(str(data_dir / layer_path)),))
    features = seen_by_exactextract(layer, item.rasters[0])
    foreign = exact_extract(
        str(tmp_path / "first.tif"), features,
        ["coefficient_of_variation", "unique", "frac", "count", "values", "coverage"], output="pandas",
    ).to_dict("records")  # fmt: skip
    every = np.concatenate([row["values"] for row in foreign])
    edges = np.unique(np.quantile(every, [0.02, 0.3, 0.55, 0.9])).tolist()
    edges = edges if len(edges) > 1 else [edges[0], edges[0] + 1]
    is_classes = every.dtype.kind in "iu" and len(np.unique(every)) <= 200
    statistics = ["coefficient_of_variation", "mode", "minority", "variety", "count"]
    task = {
        "zones": {"item_id": "zones"}, "use_scale": False, "histogram": {"edges": edges},
        "statistics": [*statistics, *(["class_fractions"] if is_classes else [])],
    }  # fmt: skip
    compared = 0
    for ours, theirs in zip(rows(task, item, layer), foreign, strict=True):
        if not theirs["count"]:
            assert ours["mode"] is None
            continue
        # Its fractions of cells are of 32 bits, so values that tie may be told apart there.
        shares = {value: share for value, share in zip(theirs["unique"], theirs["frac"], strict=True) if share > 1e-7}
        assert shares[ours["mode"]] == pytest.approx(max(shares.values()), abs=1e-6)
        assert shares.get(ours["minority"], 0.0) <= min(shares.values()) + 1e-6
        assert abs(ours["variety"] - len(theirs["unique"])) <= len(theirs["unique"]) - len(shares)
        variation = theirs["coefficient_of_variation"]
        expected_variation = pytest.approx(variation, rel=1e-6, abs=1e-9) if np.isfinite(variation) else None
        assert ours["coefficient_of_variation"] == expected_variation
        expected, _ = np.histogram(theirs["values"], edges, weights=theirs["coverage"].astype(np.float64))
        found = [ours[f"hist_{number}"] for number in range(1, len(edges))]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)
        assert sum(found) + ours["hist_below"] + ours["hist_above"] == pytest.approx(ours["count"], rel=1e-12)
        if is_classes:
            for value in np.unique(every):
                assert ours[f"frac_{value}"] == pytest.approx(shares.get(value, 0.0), abs=1e-6)
        compared += 1
    assert compared > 0
    assert is_classes or "nlcd" not in scene


@pytest.mark.parametrize(
    ("scene", "layer_path", "missing"), [*((*pair, "null") for pair in REAL), *((*pair, "skip") for pair in REAL[3:])]
)
def test_weighted_statistics_of_real_scenes_are_exactextracts(
    data_dir: Path, tmp_path: Path, scene: str, layer_path: str, missing: str
):
    value = raster.describe(first_band(data_dir / scene, tmp_path, "float64").as_uri())
    rng = np.random.default_rng(5)
    heavy = rng.gamma(2.0, 3.0, (1, *value.shape)).astype(np.float32)
    heavy[0, :: max(value.shape[0] // 9, 1), ::7] = np.nan
    weights = write_raster(tmp_path / "w.tif", heavy, transform=value.transform, crs=value.crs, nodata=np.nan)
    layer = InputItem(id="zones", assets=(vector.describe(str(data_dir / layer_path)),))
    task = {
        "zones": {"item_id": "zones"}, "use_scale": False, "statistics": [*WEIGHTED, "weighted_count", "count"],
        "weights": {"item_id": "heavy", "band": "band_1", "missing": missing},
    }  # fmt: skip
    found = rows(task, input_item(value), layer, input_item(weights, id="heavy"))
    features = seen_by_exactextract(layer, value)
    if missing == "skip":  # the other side has no such choice, but a value that is missing has no weight there either
        with rasterio.open(tmp_path / "firstfloat64.tif", "r+") as opened:
            opened.write(np.where(np.isnan(heavy[0]), np.nan, opened.read(1)), 1)
    foreign = exact_extract(
        str(tmp_path / "firstfloat64.tif"), features, list(WEIGHTED), weights=str(tmp_path / "w.tif"), output="pandas"
    ).to_dict("records")
    for ours, theirs in zip(found, foreign, strict=True):
        for name in WEIGHTED:
            if ours[name] is None:
                assert np.isnan(theirs[name]) or (name == "weighted_sum" and theirs[name] == 0.0), name
            else:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), name
    assert any(row["weighted_mean"] is not None for row in found) or missing == "null"


@pytest.fixture
def drawn(tmp_path: Path) -> InputItem:
    """Classes 1, 1, 2 / 1, 2, 2 / 3, 2, 2 on cells of one metre; weights 1 … 9 beside them."""
    classes = np.array([[[1, 1, 2], [1, 2, 2], [3, 2, 2]]], np.uint8)
    heavy = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3)
    return input_item(
        write_raster(tmp_path / "c.tif", classes, transform=PLAIN, names=["cover"]),
        write_raster(tmp_path / "h.tif", heavy, transform=PLAIN, names=["people"]),
    )


SQUARE = inline(shapely.box(0.5, 0.5, 2.5, 2.5))


def test_the_drawn_classes_give_the_numbers_done_by_hand(drawn: InputItem):
    task = {
        "zones": SQUARE, "crs": UTM, "bands": ["cover"],
        "statistics": [
            "mode", "minority", "variety", "class_fractions", "weighted_mean", "weighted_count", "weighted_sum",
            "weighted_variance", "weighted_stdev",
        ],
        "histogram": {"edges": [1, 2, 3]}, "weights": {"band": "people"},
    }  # fmt: skip
    result = execute(task, drawn)
    (row,) = result.summary["preview"]
    # Corners ¼, sides ½, the middle 1: class 1 has ¼ + ½ + ½, class 2 has ¼ + 1 + ½ + ½ + ¼, class 3 has ¼.
    assert (row["mode"], row["minority"], row["variety"]) == (2.0, 3.0, 3.0)
    assert (row["frac_1"], row["frac_2"], row["frac_3"]) == (1.25 / 4, 2.5 / 4, 0.25 / 4)
    assert (row["hist_below"], row["hist_1"], row["hist_2"], row["hist_above"]) == (0.0, 1.25, 2.75, 0.0)
    assert row["weighted_count"] == 20.0
    class_1, class_3 = 0.25 * 1 + 0.5 * 2 + 0.5 * 4, 0.25 * 7
    assert row["weighted_mean"] == pytest.approx((class_1 + 2 * (20 - class_1 - class_3) + 3 * class_3) / 20)
    assert row["weighted_sum"] == 38.5
    assert row["weighted_variance"] == pytest.approx(0.244375)
    assert row["weighted_stdev"] == pytest.approx(0.494343, abs=1e-6)
    assert result.summary["histogram_edges"] == [1.0, 2.0, 3.0]
    assert {"name": "frac_1", "band": "cover", "unit": "1"} in result.summary["columns"]


def test_named_classes_are_columns_whether_they_are_there_or_not(drawn: InputItem):
    task = {"zones": SQUARE, "crs": UTM, "bands": ["cover"], "statistics": ["class_fractions"], "classes": [9, 3, 2]}
    (row,) = rows(task, drawn)
    assert [name for name in row if name.startswith("frac_")] == ["frac_2", "frac_3", "frac_9"]
    assert (row["frac_2"], row["frac_3"], row["frac_9"]) == (0.625, 0.0625, 0.0)


def test_bins_over_a_range_count_what_lies_below_and_above(drawn: InputItem):
    task = {
        "zones": SQUARE,
        "crs": UTM,
        "bands": ["people"],
        "statistics": [],
        "histogram": {"bins": 2, "range": [2, 8]},
    }
    (row,) = rows(task, drawn)
    assert [row[name] for name in ("hist_below", "hist_1", "hist_2", "hist_above")] == [0.25, 1.25, 2.25, 0.25]


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32"])
def test_histograms_are_those_of_numpy_for_scaled_values(tmp_path: Path, dtype: str):
    pixels = asymmetric((90, 70), dtype=dtype)
    asset = write_raster(tmp_path / "s.tif", pixels)
    (band,) = asset.bands
    asset = msgspec.structs.replace(asset, bands=(msgspec.structs.replace(band, scale=-0.01, offset=3.0),))
    physical = pixels.astype(np.float64) * -0.01 + 3.0
    edges = np.unique(np.quantile(physical, [0.1, 0.4, 0.7, 0.95]))
    a, _, x, _, e, y = asset.transform
    zone = inline(shapely.box(x, y + 90 * e, x + 70 * a, y))
    task = {"zones": zone, "crs": UTM, "statistics": ["mode"], "histogram": {"edges": edges.tolist()}}
    (row,) = rows(task, input_item(asset))
    expected, _ = np.histogram(physical, edges)
    assert [row[f"hist_{number}"] for number in range(1, len(edges))] == expected.tolist()
    assert (row["hist_below"], row["hist_above"]) == ((physical < edges[0]).sum(), (physical > edges[-1]).sum())


LATTICE = st.integers(0, 60).map(lambda step: step / 2.0)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=LATTICE, y=LATTICE, seed=st.integers(0, 99))
def test_parts_of_a_zone_add_up_and_a_zone_twice_is_twice_the_same(tmp_path: Path, x: float, y: float, seed: int):
    classes = np.random.default_rng(seed).integers(0, 5, (1, 30, 30)).astype(np.uint8)
    scene = input_item(write_raster(tmp_path / f"{seed}.tif", classes, transform=(1, 0, 0, 0, -1, 30), nodata=0))
    x, y = min(max(x, 1.0), 29.0), min(max(y, 1.0), 29.0)
    whole = shapely.box(0.3, 0.6, 29.7, 29.1)
    quarters = [
        shapely.box(*corners)
        for corners in ((0.3, 0.6, x, y), (x, 0.6, 29.7, y), (0.3, y, x, 29.1), (x, y, 29.7, 29.1))
    ]
    task = {
        "zones": inline(whole, *quarters, whole), "crs": UTM,
        "statistics": ["count", "sum", "class_fractions", "weighted_sum", "mode", "variety"],
        "histogram": {"edges": [1, 2, 4]}, "weights": {"band": "band_1"},
    }  # fmt: skip
    first, *parts, last = rows(task, scene)
    assert first | {"zone_id": 5} == last
    for name in ("count", "sum", "weighted_sum", "hist_1", "hist_2"):
        assert sum(part[name] or 0.0 for part in parts) == pytest.approx(first[name], rel=1e-12)
    cells = sum((part["frac_3"] or 0.0) * part["count"] for part in parts)
    assert cells == pytest.approx(first["frac_3"] * first["count"], rel=1e-12)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_picture_turned_over_with_its_zones_gives_the_same_numbers(tmp_path: Path, axis: int):
    pixels = asymmetric((80, 60), dtype="int16")
    zone = shapely.Polygon([(3.2, 4.1), (55.7, 9.9), (41.3, 71.2), (20.1, 33.3), (7.7, 70.6)])
    turned = shapely.transform(zone, lambda xy: xy * [-1, 1] + [60, 0] if axis == 2 else xy * [1, -1] + [0, 80])
    task = {
        "crs": UTM,
        "statistics": ["count", "mode", "minority", "variety", "weighted_mean"],
        "weights": {"band": "band_1"},
    }
    found = []
    for number, (image, shape) in enumerate(((pixels, zone), (np.flip(pixels, axis), turned))):
        classes = np.ascontiguousarray(np.abs(image) // 50)
        scene = input_item(write_raster(tmp_path / f"{number}.tif", classes, transform=(1, 0, 0, 0, -1, 80)))
        found.append(rows(task | {"zones": inline(shape)}, scene)[0])
    for name in ("count", "mode", "variety", "weighted_mean"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-9), name


def test_thousands_of_zones_upon_each_other_are_each_measured_as_if_alone(tmp_path: Path):
    pixels = asymmetric((600, 700), bands=1, dtype="uint8") // 32
    scene = input_item(write_raster(tmp_path / "r.tif", pixels, nodata=0))
    rng = np.random.default_rng(8)
    a, _, x, _, e, y = scene.rasters[0].transform
    centres = np.column_stack([x + rng.uniform(0, 700 * a, 1500), y + rng.uniform(600 * e, 0, 1500)])
    shapes = shapely.buffer(shapely.points(centres), rng.uniform(20, 900, 1500), quad_segs=4)
    task = {"crs": UTM, "statistics": ["count", "mean", "mode", "class_fractions", "median", "valid_fraction"]}
    found = rows(task | {"zones": inline(*shapes)}, scene)
    assert len(found) == 1500
    features = geopandas.GeoDataFrame(geometry=shapes, crs=UTM)
    foreign = exact_extract(str(tmp_path / "r.tif"), features, ["count", "mean"], output="pandas")
    np.testing.assert_allclose([row["count"] for row in found], foreign["count"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose([row["mean"] or np.nan for row in found], foreign["mean"], rtol=1e-6)
    for chosen in rng.choice(1500, 3, replace=False):
        (alone,) = rows(task | {"zones": inline(shapes[chosen])}, scene)
        own = {name: value for name, value in found[chosen].items() if value != 0.0 or name in alone}
        assert own | {"zone_id": 0} == alone


@pytest.mark.parametrize(
    ("task", "error", "pointer", "says"),
    [
        ({"statistics": ["weighted_mean"]}, InvalidParameter, "/statistics", "needs `weights`"),
        ({"weights": {"band": "people"}}, InvalidParameter, "/weights", "begin with `weighted_`"),
        (
            {"statistics": ["weighted_sum"], "weights": {"band": "sheep"}},
            BandNotFound, "/weights/band", "It has: cover, people",
        ),
        (
            {"statistics": ["weighted_sum"], "weights": {"band": "people", "item_id": "nowhere"}},
            InvalidParameter, "/weights/item_id", "the inputs are: scene",
        ),
        ({"statistics": ["class_fractions"], "bands": ["people"]}, InvalidParameter, "/statistics", "holds float32"),
        ({"classes": [1]}, InvalidParameter, "/classes", "ask for it"),
        (
            {"statistics": ["class_fractions"], "bands": ["cover"], "classes": [1, 256]},
            InvalidParameter, "/classes/1", "Class 256 is no value of band cover, which holds uint8",
        ),
        ({"histogram": {}}, InvalidParameter, "/histogram", "either `edges`, or `bins`"),
        ({"histogram": {"bins": 3}}, InvalidParameter, "/histogram", "range of the data is not known"),
        ({"histogram": {"edges": [1, 1]}}, InvalidParameter, "/histogram", "numbers that rise"),
        ({"mask": "sentinel-2-scl"}, BandNotFound, "/mask/band", "It has: cover, people"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_done_are_refused_with_a_reason(
    drawn: InputItem, task: dict[str, Any], error: type[ComputeError], pointer: str, says: str
):
    params = msgspec.convert(
        {"method": "zonal_statistics", "zones": SQUARE, "crs": UTM} | task, zonal_statistics.ZonalStatisticsParams
    )
    with pytest.raises(error) as caught:
        method.plan(params, [drawn])
    assert says in caught.value.message
    assert caught.value.pointer == pointer


def test_more_classes_than_a_map_has_are_refused_when_that_shows(tmp_path: Path):
    scene = input_item(write_raster(tmp_path / "r.tif", np.arange(900, dtype=np.uint16).reshape(1, 30, 30)))
    a, _, x, _, e, y = scene.rasters[0].transform
    task = {"zones": inline(shapely.box(x, y + 30 * e, x + 30 * a, y)), "crs": UTM, "statistics": ["class_fractions"]}
    with pytest.raises(TooLarge, match="900 different values"):
        execute(task, scene)


def widths(task: dict[str, Any], items: Sequence[InputItem]) -> int:
    params = msgspec.convert({"method": "zonal_statistics"} | task, zonal_statistics.ZonalStatisticsParams)
    return method.plan(params, items).merge_bound.bytes_written


def test_the_bound_of_the_table_grows_with_classes_and_bins(drawn: InputItem):
    plain = {"zones": SQUARE, "crs": UTM, "bands": ["cover"]}
    few, many = ({"statistics": ["class_fractions"], "classes": list(range(size))} for size in (2, 200))
    assert widths(plain | few, [drawn]) < widths(plain | many, [drawn])
    assert widths(plain, [drawn]) < widths(plain | {"histogram": {"bins": 99, "range": [0, 9]}}, [drawn])
