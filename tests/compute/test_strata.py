"""Many items in one table, masks and weights on other grids, and files that break: each on its own grid."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.csv
import pytest
import rasterio
import rasterio.warp
import shapely
from exactextract import exact_extract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from eorouter_compute import method, raster, vector, zones
from eorouter_compute.errors import BandNotFound, InvalidParameter, SourceTruncated
from eorouter_compute.method import InputItem, Result
from eorouter_compute.methods import zonal_statistics
from eorouter_compute.testing import asymmetric, input_item, measured, run_local, write_raster

UTM = "EPSG:32632"


def execute(task: dict[str, Any], *items: InputItem, **options: Any) -> Result:
    return run_local(params_of(task), items, **options)


def params_of(task: dict[str, Any]) -> zonal_statistics.ZonalStatisticsParams:
    return msgspec.convert({"method": "zonal_statistics"} | task, zonal_statistics.ZonalStatisticsParams)


def rows_of(result: Result) -> list[dict[str, Any]]:
    table = next(asset for asset in result.items[0].assets if asset.key == "table")
    return parquet.read_table(table.object.href.removeprefix("file://")).to_pylist()


def rows(task: dict[str, Any], *items: InputItem) -> list[dict[str, Any]]:
    return rows_of(execute(task, *items))


def inline(*geometries: Any) -> dict[str, Any]:
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(each), "properties": {}} for each in geometries
    ]
    return {"type": "FeatureCollection", "features": features}


def lombardy(folder: Path) -> list[InputItem]:
    """A year of NDVI at 10 m with the scene classification at 20 m beside it."""
    items = []
    for ndvi in sorted((folder / "NDVI").glob("*.tif")):
        day = ndvi.name.split("_")[1]
        (scl,) = (folder / "SCL").glob(f"*_{day}_*.tif")
        assets = (raster.describe(str(ndvi), "ndvi"), raster.describe(str(scl), "scl"))
        at = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
        items.append(InputItem(id=f"S2-{day}", assets=assets, at=at))
    return items


def test_a_year_of_real_scenes_becomes_a_table_by_zone_and_date(data_dir: Path, tmp_path: Path):
    folder = data_dir / "timeseries" / "s2_crops_lombardy"
    items = lombardy(folder)
    fields = InputItem(id="fields", assets=(vector.describe(str(folder / "fields.gpkg")),))
    task = {
        "zones": {"item_id": "fields"}, "bands": ["ndvi"], "mask": "sentinel-2-scl", "use_scale": False,
        "statistics": ["count", "mean", "median", "valid_fraction"],
    }  # fmt: skip
    result = execute(task, fields, *items)
    found = rows_of(result)
    assert len(items) == 60
    assert [(row["zone_id"], row["item_id"]) for row in found] == [(z, item.id) for z in range(2) for item in items]
    assert [row["datetime"] for row in found] == [item.at for item in items] * 2
    assert result.items[0].at is None
    features = zones.read(fields.vectors[0], target_crs=items[0].rasters[0].crs, edge_tolerance=0.1).projected()
    import geopandas

    frame = geopandas.GeoDataFrame(geometry=features, crs=items[0].rasters[0].crs)
    clouded = 0
    for number in range(0, len(items), 4):
        expected = masked_by_hand(items[number], tmp_path / f"{number}.tif", frame)
        for zone in range(2):
            row = found[zone * len(items) + number]
            assert row["count"] == pytest.approx(expected[zone]["count"], abs=1e-5)
            assert (
                row["mean"] == pytest.approx(expected[zone]["mean"], rel=1e-6) if row["count"] else row["mean"] is None
            )
            assert row["status"] == ("ok" if row["count"] else "no_data")
            clouded += row["valid_fraction"] < 1.0
    assert 4 < clouded < 30
    csv = next(asset for asset in result.items[0].assets if asset.key == "csv")
    assert pyarrow.csv.read_csv(csv.object.href.removeprefix("file://")).num_rows == 120
    document = next(asset for asset in result.items[0].assets if asset.key == "geojson")
    features = msgspec.json.decode(Path(document.object.href.removeprefix("file://")).read_bytes())["features"]
    assert features[0]["geometry"] == features[59]["geometry"] != features[60]["geometry"]
    assert features[1]["properties"]["datetime"].startswith("2020-01-")


def masked_by_hand(item: InputItem, path: Path, frame: Any) -> list[dict[str, float]]:
    ndvi, scl = (asset.href.removeprefix("file://") for asset in item.rasters)
    with rasterio.open(ndvi) as values, rasterio.open(scl) as classes:
        on_grid = np.zeros(values.shape, np.uint8)
        rasterio.warp.reproject(
            classes.read(1), on_grid, src_transform=classes.transform, src_crs=classes.crs,
            dst_transform=values.transform, dst_crs=values.crs, resampling=rasterio.warp.Resampling.nearest,
        )  # fmt: skip
        pixels = values.read(1, masked=True).astype(np.float64).filled(np.nan)
        pixels[np.isin(on_grid, (0, 1, 3, 8, 9, 10, 11))] = np.nan
        profile = {"driver": "GTiff", "count": 1, "dtype": "float64", "nodata": np.nan, "crs": values.crs}
        with rasterio.open(
            path, "w", height=values.height, width=values.width, transform=values.transform, **profile
        ) as target:
            target.write(pixels, 1)
    return exact_extract(str(path), frame, ["count", "mean"], output="pandas").to_dict("records")


def scattered(folder: Path) -> tuple[list[InputItem], dict[str, Any]]:
    """Items on three grids and two CRSs, one of them far away, with zones over all."""
    near = write_raster(folder / "near.tif", asymmetric((700, 900), dtype="uint16"), names=["nir"], nodata=0)
    again = write_raster(folder / "again.tif", asymmetric((700, 900), dtype="uint16", seed=3), names=["nir"], nodata=0)
    box = rasterio.warp.transform_bounds(UTM, "EPSG:4326", 399960, 4493000, 408960, 4500000)
    step = 0.00025
    degrees = write_raster(
        folder / "degrees.tif", asymmetric((300, 500), dtype="float32"), crs="EPSG:4326", names=["nir"],
        transform=(step, 0, box[0], 0, -step, box[3]),
    )  # fmt: skip
    far = write_raster(
        folder / "far.tif", asymmetric((64, 64)), transform=(10, 0, 800000, 0, -10, 4500000), names=["nir"]
    )
    at = datetime(2024, 5, 1, tzinfo=UTC)
    items = [
        input_item(asset, id=f"item-{n}", at=at.replace(day=n + 1))
        for n, asset in enumerate((near, degrees, far, again))
    ]
    rng = np.random.default_rng(2)
    centres = rng.uniform((399_000, 4_493_500), (408_000, 4_500_300), (25, 2))
    shapes = shapely.buffer(shapely.points(centres), rng.uniform(40, 900, 25), quad_segs=5)
    return items, {"zones": inline(*shapes), "crs": UTM}


def test_items_on_other_grids_are_each_measured_as_if_alone(tmp_path: Path):
    items, where = scattered(tmp_path)
    task = where | {
        "bands": ["nir"],
        "statistics": ["count", "mean", "mode", "median", "area"],
        "histogram": {"bins": 3, "range": [0, 9000]},
    }
    together = rows(task, *items)
    for number, item in enumerate(items):
        mine = [dict(row) for row in together if row["item_id"] == item.id]
        if item.id == "item-2":
            assert {row["status"] for row in mine} == {"outside"}
            continue
        alone = rows(task, item)
        for row in mine:
            assert (row.pop("item_id"), row.pop("datetime")) == (item.id, item.at), number
        assert mine == alone


def test_an_item_without_a_band_of_the_others_has_nothing_there(tmp_path: Path):
    a, b = (
        input_item(
            write_raster(
                tmp_path / f"{name}.tif",
                np.full((1, 9, 9), value, np.uint8),
                transform=(1, 0, 0, 0, -1, 9),
                names=[name],
            ),
            id=name,
        )
        for value, name in ((3, "red"), (5, "nir"))
    )
    task = {"zones": inline(shapely.box(1, 1, 3, 3)), "crs": UTM, "statistics": ["mean", "class_fractions"]}
    first, second = rows(task, a, b)
    assert (first["red_mean"], first["nir_mean"], first["red_frac_3"], first["nir_frac_5"]) == (3.0, None, 1.0, None)
    assert (second["red_mean"], second["nir_mean"]) == (None, 5.0)
    named = [InputItem(id=item.id, assets=(msgspec.structs.replace(item.rasters[0], key="red"),)) for item in (a, b)]
    first, second = rows(task | {"bands": ["red"]}, *named)
    assert (first["mean"], second["mean"]) == (3.0, 5.0)
    assert (second["frac_5"], second["frac_3"], first["frac_5"]) == (1.0, 0.0, 0.0)


@pytest.fixture
def red_and_nir(tmp_path: Path) -> list[InputItem]:
    """Items on one place: `both` has red 3 and nir 5, `red` and `nir` one of them each."""
    grid = {"transform": (1, 0, 0, 0, -1, 9)}
    assets = {
        name: msgspec.structs.replace(
            write_raster(tmp_path / f"{name}.tif", np.full((1, 9, 9), value, np.uint8), names=[name], **grid), key=name
        )
        for value, name in ((3, "red"), (5, "nir"))
    }
    return [
        input_item(*(assets[key] for key in keys), id=name)
        for name, keys in (("both", ["red", "nir"]), ("red", ["red"]), ("nir", ["nir"]))
    ]


HERE = {"zones": inline(shapely.box(1, 1, 3, 3)), "crs": UTM, "statistics": ["mean", "count"]}


def test_an_item_that_lacks_the_one_band_asked_for_has_nulls_and_its_rows_say_so(red_and_nir: list[InputItem]):
    found = rows(HERE | {"bands": ["red"]}, *red_and_nir)
    assert [(row["item_id"], row["status"], row["mean"], row["count"]) for row in found] == [
        ("both", "ok", 3.0, 4.0), ("red", "ok", 3.0, 4.0), ("nir", "no_band", None, None)
    ]  # fmt: skip
    assert [row["detail"] for row in found] == [None, None, "The item has no band red."]


def test_items_that_lack_some_bands_are_measured_in_the_others(red_and_nir: list[InputItem]):
    found = rows(HERE | {"bands": ["nir", "red"]}, *red_and_nir)
    assert [(row["status"], row["nir_mean"], row["red_mean"]) for row in found] == [
        ("ok", 5.0, 3.0), ("ok", None, 3.0), ("ok", 5.0, None)
    ]  # fmt: skip
    assert [row["detail"] for row in found] == [None, "The item has no band nir.", "The item has no band red."]
    outside = rows(HERE | {"zones": inline(shapely.box(1, 1, 3, 3), shapely.box(20, 1, 22, 3)), "bands": ["red"]},
                   *red_and_nir[1:])  # fmt: skip
    assert [row["status"] for row in outside] == ["ok", "no_band", "outside", "no_band"]


def test_a_band_that_no_item_has_is_refused_naming_those_there_are(red_and_nir: list[InputItem]):
    with pytest.raises(BandNotFound, match=r"None of the 3 items has a band 'swir'\. They have: red, nir\.") as caught:
        method.plan(params_of(HERE | {"bands": ["red", "swir"]}), red_and_nir)
    assert caught.value.pointer == "/bands/1"


def test_a_name_that_fits_two_bands_of_an_item_is_refused_though_others_have_one(tmp_path: Path):
    asset = write_raster(tmp_path / "a.tif", np.ones((2, 9, 9), np.uint8), names=["B05", "B06"])
    twin = [msgspec.structs.replace(band, common_name="rededge") for band in asset.bands]
    many = input_item(msgspec.structs.replace(asset, bands=tuple(twin)), id="many")
    one = input_item(msgspec.structs.replace(asset, bands=(twin[0],)), id="one")
    with pytest.raises(BandNotFound, match="Item many has several bands called 'rededge'") as caught:
        method.plan(params_of(HERE | {"bands": ["rededge"]}), [one, many])
    assert caught.value.pointer == "/bands/0"


@pytest.mark.parametrize("bands", [["red", "red"], ["red", "red:red"], ["red:red", "red_red"]])
def test_a_band_asked_for_twice_by_any_name_is_refused(red_and_nir: list[InputItem], bands: list[str]):
    red = red_and_nir[1].rasters[0]
    again = msgspec.structs.replace(red, key="x", bands=(msgspec.structs.replace(red.bands[0], name="red_red"),))
    item = input_item(red, again, id="twice")
    with pytest.raises(InvalidParameter, match="asked for twice") as caught:
        method.plan(params_of(HERE | {"bands": bands}), [item, red_and_nir[0]])
    assert caught.value.pointer == "/bands/1"


EVERYTHING = {
    "bands": ["nir"],
    "statistics": [
        "count", "sum", "mean", "stdev", "min", "max", "coefficient_of_variation", "median", "mode", "minority",
        "variety", "valid_fraction", "area", "weighted_mean", "weighted_sum", "weighted_stdev", "weighted_count",
    ],
    "quantiles": [0.1],
    "histogram": {"edges": [100, 2000, 5000, 9000]},
    "weights": {"item_id": "heavy", "band": "band_1", "resampling": "bilinear", "missing": "skip"},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[InputItem], dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("whole")
    items, where = scattered(folder)
    heavy = np.abs(asymmetric((120, 150), dtype="float32"))
    weights = write_raster(folder / "heavy.tif", heavy, transform=(70, 0, 399_000, 0, -70, 4_500_500))
    everything = [*items, input_item(weights, id="heavy")]
    task = where | EVERYTHING
    result = execute(task, *everything)
    return everything, task, [asset.object.sha256 for asset in result.items[0].assets]


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard_pixels=st.sampled_from([1, 2 << 18, 4 << 20]), threads=st.integers(1, 3))
def test_any_cut_and_any_number_of_threads_gives_the_same_bytes(
    whole: tuple[list[InputItem], dict[str, Any], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    shard_pixels: int,
    threads: int,
):
    items, task, expected = whole
    monkeypatch.setattr(zonal_statistics, "SHARD_PIXELS", shard_pixels)
    result = execute(task, *items, threads=threads)
    assert [asset.object.sha256 for asset in result.items[0].assets] == expected


def test_weights_on_any_grid_that_are_all_alike_change_nothing(tmp_path: Path):
    items, where = scattered(tmp_path)
    box = rasterio.warp.transform_bounds(UTM, "EPSG:4326", 390_000, 4_480_000, 420_000, 4_510_000)
    same = write_raster(
        tmp_path / "same.tif", np.full((1, 60, 60), 2, np.uint8), crs="EPSG:4326",
        transform=((box[2] - box[0]) / 60, 0, box[0], 0, -(box[3] - box[1]) / 60, box[3]),
    )  # fmt: skip
    task = where | {
        "statistics": ["count", "mean", "stdev", "weighted_count", "weighted_mean", "weighted_stdev"],
        "weights": {"item_id": "same", "band": "band_1", "resampling": "average"},
    }
    for row in rows(task, items[0], input_item(same, id="same")):
        if row["count"]:
            assert row["weighted_count"] == pytest.approx(2 * row["count"], rel=1e-12)
            assert row["weighted_mean"] == pytest.approx(row["mean"], rel=1e-12)
            assert row["weighted_stdev"] == pytest.approx(row["stdev"], rel=1e-9)


def test_coarser_weights_that_nest_weigh_as_in_exactextract(tmp_path: Path):
    values = write_raster(tmp_path / "v.tif", asymmetric((90, 120), dtype="int16"))
    heavy = np.random.default_rng(1).gamma(2, 2, (1, 30, 40))
    a, _, x, _, e, y = values.transform
    weights = write_raster(tmp_path / "w.tif", heavy, transform=(3 * a, 0, x, 0, 3 * e, y))
    zone = shapely.Point(x + 600, y - 430).buffer(377)
    task = {
        "zones": inline(zone), "crs": UTM, "statistics": ["weighted_mean", "weighted_variance"],
        "weights": {"item_id": "w", "band": "band_1"},
    }  # fmt: skip
    (row,) = rows(task, input_item(values), input_item(weights, id="w"))
    import geopandas

    frame = geopandas.GeoDataFrame(geometry=[zone], crs=UTM)
    foreign = exact_extract(
        str(tmp_path / "v.tif"), frame, ["weighted_mean", "weighted_variance"], weights=str(tmp_path / "w.tif"),
        output="pandas",
    )  # fmt: skip
    assert row["weighted_mean"] == pytest.approx(foreign["weighted_mean"][0], rel=1e-6)
    assert row["weighted_variance"] == pytest.approx(foreign["weighted_variance"][0], rel=1e-6)


def test_a_missing_weight_spoils_its_zone_or_is_left_out_as_asked(tmp_path: Path):
    values = write_raster(tmp_path / "v.tif", np.array([[[1, 2], [3, 4]]], np.uint8), transform=(1, 0, 0, 0, -1, 2))
    heavy = write_raster(
        tmp_path / "w.tif", np.array([[[1, np.nan], [2, -5]]], np.float32), transform=(1, 0, 0, 0, -1, 2), nodata=np.nan
    )
    items = (input_item(values), input_item(heavy, id="w"))
    task = {"zones": inline(shapely.box(0, 0, 2, 2), shapely.box(0, 0, 1, 2)), "crs": UTM,
            "statistics": ["mean", "weighted_mean", "weighted_count"]}  # fmt: skip
    for missing, expected in (("null", [(None, None), (7 / 3, 3.0)]), ("skip", [(7 / 3, 3.0)] * 2)):
        found = rows(task | {"weights": {"item_id": "w", "band": "band_1", "missing": missing}}, *items)
        assert [(row["weighted_mean"], row["weighted_count"]) for row in found] == [
            (None if mean is None else pytest.approx(mean), count) for mean, count in expected
        ]
    assert found[0]["mean"] == 2.5


def test_what_cannot_be_read_fails_by_name_or_is_missing_and_listed(data_dir: Path):
    broken = input_item(raster.describe(str(data_dir / "formats" / "corrupt.tif")))
    asset = broken.rasters[0]
    x, y = asset.transform[2], asset.transform[5]
    height, width = asset.shape
    box = shapely.box(x, y + height * asset.transform[4], x + width * asset.transform[0], y)
    task = {
        "zones": inline(box),
        "crs": asset.crs,
        "bands": [asset.bands[0].name],
        "statistics": ["count", "valid_fraction"],
    }
    with pytest.raises(SourceTruncated, match=r"corrupt\.tif"):
        execute(task, broken)
    result = execute(task | {"allow_missing": True}, broken)
    (row,) = rows_of(result)
    assert result.report.failed
    assert all(failure.source.endswith("corrupt.tif") for failure in result.report.failed)
    lost = sum(failure.window.pixels for failure in result.report.failed)
    assert row["count"] == pytest.approx(asset.shape[0] * asset.shape[1] - lost)
    assert row["valid_fraction"] < 1.0


def test_more_items_than_a_table_holds_are_refused(tmp_path: Path):
    scene = input_item(write_raster(tmp_path / "r.tif", asymmetric((8, 8))))
    items = [msgspec.structs.replace(scene, id=f"item-{number}") for number in range(201)]
    with pytest.raises(InvalidParameter, match="At most 200 items") as caught:
        method.plan(params_of({"zones": inline(shapely.box(0, 0, 1, 1)), "crs": UTM}), items)
    assert caught.value.pointer == "/inputs"
    with pytest.raises(InvalidParameter, match="raster to measure"):
        method.plan(params_of({"zones": inline(shapely.box(0, 0, 1, 1))}), [InputItem(id="none", assets=())])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_bounds_of_many_items_with_weights_hold_against_a_measured_process(tmp_path: Path):
    items = [
        input_item(write_raster(tmp_path / f"{number}.tif", asymmetric((1100, 1300), seed=number)), id=f"item-{number}")
        for number in range(4)
    ]
    heavy = np.abs(asymmetric((200, 300), dtype="float32"))
    weights = write_raster(tmp_path / "w.tif", heavy, transform=(60, 0, 399_000, 0, -60, 4_500_500))
    a, _, x, _, e, y = items[0].rasters[0].transform
    shapes = [
        shapely.box(x + c * a, y + (r + 90) * e, x + (c + 90) * a, y + r * e)
        for r in range(3, 990, 99)
        for c in range(3, 1190, 99)
    ]
    task = {
        "zones": inline(*shapes), "crs": UTM, "statistics": ["mean", "mode", "weighted_mean"],
        "histogram": {"bins": 20, "range": [0, 20000]},
        "weights": {"item_id": "w", "band": "band_1", "resampling": "bilinear", "missing": "skip"},
    }  # fmt: skip
    seen = measured(params_of(task), [*items, input_item(weights, id="w")], tmp_path)
    assert 0 < seen.shard_bytes <= seen.shard_bytes_bound
    assert seen.job_bytes <= seen.job_bytes_bound
    assert 4 * 1100 * 1300 * 0.75 < seen.pixels <= seen.pixels_bound
    assert seen.written_bytes <= seen.written_bytes_bound
