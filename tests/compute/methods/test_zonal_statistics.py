"""The method, whole: against exactextract on every real pair of raster and polygons, and against itself cut anew."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import msgspec
import numpy as np
import pyarrow.csv
import pyproj
import pytest
import rasterio
import shapely
from exactextract import exact_extract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from scipy import ndimage

from eorouter_compute import method, ranks, raster, vector, zones
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.errors import (
    AoiOutside,
    BandNotFound,
    InvalidGeometry,
    InvalidParameter,
    NotAVector,
    SourceTruncated,
    TooLarge,
)
from eorouter_compute.grid import Window
from eorouter_compute.method import InputItem, Plan, RasterAsset, Result, VectorAsset
from eorouter_compute.methods import zonal_statistics
from eorouter_compute.testing import measured

MOMENTS = ("count", "sum", "mean", "min", "max", "stdev", "variance")
RELATIVE = 1e-6


def execute(
    task: dict[str, Any],
    inputs: Sequence[InputItem],
    folder: Path,
    order: Callable[[list[Any]], list[Any]] = list,
) -> tuple[Result, Plan]:
    """Plan, run and merge as the dispatcher does, parameters and shards passing through bytes."""
    found = method.get("zonal_statistics")
    text = msgspec.json.encode({"method": "zonal_statistics"} | task)
    params = msgspec.json.decode(text, type=found.params)
    plan = method.plan(params, inputs)
    shards = order(list(enumerate(plan.shards)))
    parts = [found.run(params, inputs, shard.body, Attempt(f"{folder.as_uri()}/{at}")) for at, shard in shards]
    return found.merge(params, inputs, parts, Attempt(f"{folder.as_uri()}/merge")), plan


def rows_of(result: Result) -> list[dict[str, Any]]:
    table = next(asset for asset in result.items[0].assets if asset.key == "table")
    return parquet.read_table(table.object.href.removeprefix("file://")).to_pylist()


def digests(result: Result) -> list[str]:
    return [asset.object.sha256 for asset in result.items[0].assets]


def raster_item(*paths: Path) -> InputItem:
    return InputItem(id="scene", assets=tuple(raster.describe(str(path), path.stem) for path in paths))


def zones_item(path: Path) -> InputItem:
    return InputItem(id="zones", assets=(vector.describe(str(path)),))


def write_raster(
    path: Path, pixels: np.ndarray, *, crs: str = "EPSG:32632", origin=(0.0, 0.0), size=1.0, **options: Any
) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype, crs=crs, transform=rasterio.Affine(size, 0, origin[0], 0, -size, origin[1]), **options,
    ) as target:  # fmt: skip
        target.write(pixels)
    return path


def inline(*geometries: Any, **properties: Sequence[Any]) -> dict[str, Any]:
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": None if shape is None else shapely.geometry.mapping(shape),
                "properties": {name: values[i] for name, values in properties.items()},
            }
            for i, shape in enumerate(geometries)
        ],
    }


REAL = [
    ("zonal/luxembourg/elev.tif", "zonal/luxembourg/lux.gpkg"),
    ("zonal/luxembourg/sent2_L2A_2024-08-24.tif", "zonal/luxembourg/lux.gpkg"),
    ("optical/landsat8_zion/landsat_b4.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/landsat8_zion/landsat_b5.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/landsat8_zion/nlcd2011.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/landsat8_zion/srtm.tif", "optical/landsat8_zion/zion.gpkg"),
    ("optical/s2_l2a_amazon/sen2_12bands.tif", "optical/s2_l2a_amazon/classes.gpkg"),
    ("optical/s2_l2a_amazon/srtm.tif", "optical/s2_l2a_amazon/classes.gpkg"),
    (
        "timeseries/s2_crops_lombardy/NDVI/S2B2A_20200513_022_sampleroi_NDVI_10.tif",
        "timeseries/s2_crops_lombardy/fields.gpkg",
    ),
    (
        "timeseries/landsat8_ny_2018/LC08_L1TP_013032_20180405_20180417_01_T1/LC08_L1TP_013032_20180405_B5.TIF",
        "timeseries/landsat8_ny_2018/nycd.gpkg",
    ),
    (
        "timeseries/landsat8_ny_2018/LC08_L1TP_014031_20180530_20180614_01_T1/LC08_L1TP_014031_20180530_B4.TIF",
        "timeseries/landsat8_ny_2018/nycd.gpkg",
    ),
]


@pytest.mark.parametrize(("scene", "layer_path"), REAL, ids=[Path(scene).stem for scene, _ in REAL])
def test_statistics_of_real_scenes_equal_exactextract(data_dir: Path, tmp_path: Path, scene: str, layer_path: str):
    assert assert_equals_exactextract([data_dir / scene], data_dir / layer_path, tmp_path) > 0


@pytest.mark.parametrize(
    "layer_path",
    [
        "change/oscd_norcia/norcia.geojson",
        "timeseries/s2_crops_lombardy/fields.gpkg",
        "timeseries/landsat8_ny_2018/nycd.gpkg",
    ],
)
def test_statistics_of_every_scene_beside_its_polygons_equal_exactextract(
    data_dir: Path, tmp_path: Path, layer_path: str
):
    scenes = sorted(path for path in (data_dir / layer_path).parent.rglob("*") if path.suffix.lower() == ".tif")
    assert len(scenes) > 25
    # The scenes of one grid are bands of one job, and of one raster for the oracle: the zones are placed once.
    grids: dict[Any, list[Path]] = {}
    for scene in scenes:
        with rasterio.open(scene) as source:
            grids.setdefault((str(source.crs), source.transform, source.shape), []).append(scene)
    compared = 0
    for number, ((crs, transform, shape), members) in enumerate(grids.items()):
        try:
            compared += assert_equals_exactextract(members, data_dir / layer_path, tmp_path / str(number))
        except AoiOutside:
            box = shapely.box(*rasterio.transform.array_bounds(*shape, transform))
            assert not geopandas.read_file(data_dir / layer_path).to_crs(crs).intersects(box).any()
    assert compared >= len(scenes)


def assert_equals_exactextract(scenes: Sequence[Path], layer_path: Path, tmp_path: Path) -> int:
    """Every statistic of every band and zone, to 1e-6; how many zones and bands were compared."""
    tmp_path.mkdir(exist_ok=True)
    item, layer = raster_item(*scenes), zones_item(layer_path)
    levels = (0.1, 0.5, 0.9)
    task = {"zones": {"item_id": "zones"}, "statistics": list(MOMENTS), "quantiles": levels, "use_scale": False}
    rows = rows_of(execute(task, [item, layer], tmp_path)[0])
    asset = item.rasters[0]
    a, b, _, d, e, _ = asset.transform
    read = zones.read(
        layer.vectors[0],
        target_crs=asset.crs,
        edge_tolerance=zones.EDGE_TOLERANCE_PX * min(np.hypot(a, d), np.hypot(b, e)),
    )
    features = geopandas.GeoDataFrame(geometry=read.projected(), crs=asset.crs)
    asked = {name: name for name in MOMENTS} | {f"q{100 * level:g}": f"quantile_{100 * level:g}" for level in levels}
    foreign = exact_extract(
        str(as_float64(scenes, tmp_path / "wide.tif")), features,
        [*MOMENTS, *(f"quantile(q={level})" for level in levels)], output="pandas",
    ).to_dict("records")  # fmt: skip
    names = [band.name for _, band in item.bands]
    prefixes = [
        f"{band.name}_" if names.count(band.name) == 1 else f"{asset.key}_{band.name}_" for asset, band in item.bands
    ]
    many = len(prefixes) > 1
    for row, other in zip(rows, foreign, strict=True):
        for number, prefix in enumerate(prefixes, 1):
            for ours, theirs in asked.items():
                compare(
                    ours, row[f"{prefix if many else ''}{ours}"], other[f"band_{number}_{theirs}" if many else theirs]
                )
    return len(rows) * len(prefixes)


def compare(name: str, ours: float | None, theirs: float) -> None:
    if ours is None:
        assert theirs is None or np.isnan(theirs) or (name == "sum" and theirs == 0.0), name
    else:
        assert ours == pytest.approx(theirs, rel=RELATIVE, abs=1e-9), name


def as_float64(sources: Sequence[Path], target: Path) -> Path:
    """The bands of rasters on one grid, in one: exactextract cuts quantiles of integer rasters down to integers."""
    bands = []
    for path in sources:
        with rasterio.open(path) as opened:
            grid = {"crs": opened.crs, "transform": opened.transform}
            bands.append(opened.read(masked=True).astype(np.float64).filled(np.nan))
    pixels = np.concatenate(bands)
    count, height, width = pixels.shape
    with rasterio.open(
        target, "w", driver="GTiff", count=count, height=height, width=width, dtype="float64", nodata=np.nan, **grid
    ) as copy:
        copy.write(pixels)
    return target


@pytest.fixture
def drawn(tmp_path: Path) -> InputItem:
    """Three by three cells of one metre, 1 … 9, upper-left corner at (0, 3)."""
    pixels = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    return raster_item(write_raster(tmp_path / "drawn.tif", pixels, origin=(0.0, 3.0)))


def test_the_drawn_square_gives_the_numbers_done_by_hand_in_every_view(drawn: InputItem, tmp_path: Path):
    task = {
        "zones": inline(shapely.box(0.5, 0.5, 2.5, 2.5), name=["square"]),
        "crs": "EPSG:32632",
        "zone_id": "name",
        "statistics": ["count", "sum", "mean", "min", "max", "variance", "median", "area", "valid_fraction",
            "coefficient_of_variation"],
    }  # fmt: skip
    result, _ = execute(task, [drawn], tmp_path)
    expected = {
        "zone_id": "square", "status": "ok", "detail": None, "count": 4.0, "sum": 20.0, "mean": 5.0, "min": 1.0,
        "max": 9.0, "variance": 5.0, "median": 5.0, "area_m2": 4.0, "valid_fraction": 1.0,
        "coefficient_of_variation": np.sqrt(5.0) / 5.0,
    }  # fmt: skip
    (row,) = rows_of(result)
    assert shapely.from_wkb(row.pop("geometry")).area == pytest.approx(4.0)
    assert row == expected
    assert result.summary["preview"] == [expected]
    assert result.summary["statuses"] == {"ok": 1}
    assert {"name": "area_m2", "band": "band_1", "unit": "m²"} in result.summary["columns"]
    files = {asset.key: asset.object.href.removeprefix("file://") for asset in result.items[0].assets}
    assert pyarrow.csv.read_csv(files["csv"]).to_pylist()[0]["mean"] == 5
    document = msgspec.json.decode(Path(files["geojson"]).read_bytes())
    assert document["features"][0]["properties"] == expected
    frame = geopandas.read_parquet(files["table"])
    assert frame.crs.to_epsg() == 32632
    assert frame["mean"].tolist() == [5.0]
    found = vector.describe(files["table"])
    described = next(asset.vector for asset in result.items[0].assets if asset.key == "table")
    assert described is not None
    assert (found.feature_count, found.fields, found.crs) == (1, described.fields, "EPSG:32632")
    assert result.report.pixels == result.report.valid_pixels == 9


def test_zones_that_cannot_be_measured_keep_their_row_and_say_why(tmp_path: Path):
    pixels = np.full((1, 8, 8), 5, np.int16)
    pixels[0, :4, :4] = -1
    scene = raster_item(write_raster(tmp_path / "r.tif", pixels, origin=(0.0, 8.0), nodata=-1))
    shapes = [
        shapely.box(4, 0, 8, 4),
        shapely.Polygon([(4, 4), (8, 8), (8, 4), (4, 8)]),
        shapely.box(100, 100, 101, 101),
        shapely.box(0, 4, 4, 8),
        shapely.box(2, 2, 6, 12),
        shapely.Point(1, 1),
        shapely.Polygon([(1, 1), (2, 2), (1, 1), (1, 1)]),
        None,
        shapely.GeometryCollection([shapely.Point(1, 1), shapely.box(0, 0, 1, 1)]),
    ]
    task = {"zones": inline(*shapes), "crs": "EPSG:32632", "statistics": ["count", "mean", "valid_fraction"]}
    rows = rows_of(execute(task, [scene], tmp_path)[0])
    assert [row["status"] for row in rows] == [
        "ok", "repaired", "outside", "no_data", "ok", "not_polygonal", "zero_area", "empty", "repaired",
    ]  # fmt: skip
    assert [row["count"] for row in rows] == [16.0, 8.0, 0.0, 0.0, 16.0, None, None, None, 1.0]
    assert [row["mean"] for row in rows] == [5.0, 5.0, None, None, 5.0, None, None, None, 5.0]
    # Zone 4: 40 cells, of which 16 beyond the raster and 8 without data.
    assert [row["valid_fraction"] for row in rows] == [1.0, 1.0, 0.0, 0.0, 0.4, None, None, None, 1.0]
    assert [row["zone_id"] for row in rows] == list(range(9))
    assert "Self-intersection" in rows[1]["detail"]
    assert [row["geometry"] is None for row in rows] == [False] * 5 + [True] * 3 + [False]


def mosaic(folder: Path, bands: int = 2) -> tuple[InputItem, dict[str, Any]]:
    rng = np.random.default_rng(7)
    pixels = rng.integers(1, 4000, (bands, 1300, 1700)).astype(np.uint16)
    pixels[:, 600:640, 300:900] = 0
    scene = raster_item(write_raster(folder / "m.tif", pixels, origin=(500_000, 5_000_000), size=10.0, nodata=0))
    centres = rng.uniform((499_900, 4_986_800), (517_200, 5_000_300), (60, 2))
    shapes = [shapely.Point(x, y).buffer(rng.uniform(5, 900), quad_segs=7) for x, y in centres]
    shapes.append(shapely.box(500_003, 4_987_007, 517_000, 5_000_000).difference(shapely.unary_union(shapes[:9])))
    return scene, inline(*shapes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[InputItem, dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("whole")
    scene, zones = mosaic(folder)
    task = {"zones": zones, "crs": "EPSG:32632", "statistics": [*MOMENTS, "median", "area"], "quantiles": [0.05]}
    result, plan = execute(task, [scene], folder)
    assert len(plan.shards) == 1
    return scene, task, digests(result)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard_pixels=st.sampled_from([1, 2 << 18, 4 << 19, 9 << 19]), seed=st.integers(0, 1000))
def test_any_cut_into_shards_in_any_order_gives_the_same_bytes(
    whole: tuple[InputItem, dict[str, Any], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    shard_pixels: int,
    seed: int,
):
    scene, task, expected = whole
    monkeypatch.setattr(zonal_statistics, "SHARD_PIXELS", shard_pixels)

    def shuffled(shards: list[Any]) -> list[Any]:
        return [shards[i] for i in np.random.default_rng(seed).permutation(len(shards))]

    result, plan = execute(task, [scene], tmp_path_factory.mktemp("cut"), shuffled)
    assert len(plan.shards) > 1 or shard_pixels >= 9 << 19
    assert digests(result) == expected


def test_a_layer_and_inline_zones_give_the_same_numbers(
    whole: tuple[InputItem, dict[str, Any], list[str]], tmp_path: Path
):
    scene, task, _ = whole
    frame = geopandas.GeoDataFrame.from_features(task["zones"], crs="EPSG:32632")
    frame.to_file(tmp_path / "zones.gpkg")
    asked = task | {"zones": {"item_id": "zones", "asset": "zones"}, "crs": None}
    rows = rows_of(execute(asked, [scene, zones_item(tmp_path / "zones.gpkg")], tmp_path / "a")[0])
    assert rows == rows_of(execute(task, [scene], tmp_path / "b")[0])


def test_bands_on_different_grids_are_each_measured_on_their_own(tmp_path: Path):
    fine = write_raster(tmp_path / "fine.tif", np.full((1, 20, 20), 3.5, np.float32), origin=(0, 200), size=10)
    coarse = write_raster(tmp_path / "coarse.tif", np.full((1, 10, 10), 8, np.uint8), origin=(0, 200), size=20)
    task = {"zones": inline(shapely.box(0, 0, 100, 100)), "crs": "EPSG:32632", "statistics": ["count", "mean", "area"]}
    (row,) = rows_of(execute(task, [raster_item(fine, coarse)], tmp_path)[0])
    assert (row["fine_band_1_count"], row["coarse_band_1_count"]) == (100.0, 25.0)
    assert (row["fine_band_1_mean"], row["coarse_band_1_mean"]) == (3.5, 8.0)
    assert row["fine_band_1_area_m2"] == row["coarse_band_1_area_m2"] == 10_000.0


@pytest.mark.parametrize("use_scale", [True, False])
def test_scale_and_offset_are_applied_when_asked(tmp_path: Path, use_scale: bool):
    path = write_raster(tmp_path / "s.tif", np.array([[[100, 200], [300, 400]]], np.int16), origin=(0, 2))
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (0.01,), (-1.0,)
    statistics = ["sum", "mean", "min", "max", "stdev", "median"]
    task = {"zones": inline(shapely.box(0, 0, 2, 2)), "crs": "EPSG:32632", "statistics": statistics}
    (row,) = rows_of(execute(task | {"use_scale": use_scale}, [raster_item(path)], tmp_path)[0])
    stored = np.array([100.0, 200.0, 300.0, 400.0])
    values = stored * 0.01 - 1.0 if use_scale else stored
    expected = [values.sum(), values.mean(), values.min(), values.max(), values.std(), np.median(values)]
    assert [row[name] for name in statistics] == pytest.approx(expected, rel=1e-12)


def test_area_of_degrees_is_that_of_the_ellipsoid(tmp_path: Path):
    from pyproj import Geod

    path = write_raster(tmp_path / "d.tif", np.ones((1, 40, 30), np.uint8), crs="EPSG:4326", origin=(6, 50), size=0.01)
    zone = shapely.box(6.005, 49.703, 6.25, 49.95)
    (row,) = rows_of(execute({"zones": inline(zone), "statistics": ["area"]}, [raster_item(path)], tmp_path)[0])
    # Parallels are no geodesics: walk along them in small steps.
    expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(shapely.segmentize(zone, 1e-4))[0])
    assert row["area_m2"] == pytest.approx(expected, rel=1e-6)


def test_south_up_and_rotated_grids_are_measured_where_they_lie(tmp_path: Path):
    pixels = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    for name, transform in (
        ("south_up", rasterio.Affine(1, 0, 10, 0, 1, 20)),
        ("rotated", rasterio.Affine(0, 1, 10, 1, 0, 20)),
    ):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", count=1, height=3, width=3, dtype="uint8",
            crs="EPSG:32632", transform=transform,
        ) as target:  # fmt: skip
            target.write(pixels)
        task = {"zones": inline(shapely.box(12, 20, 13, 21)), "crs": "EPSG:32632", "statistics": ["count", "mean"]}
        (row,) = rows_of(execute(task, [raster_item(tmp_path / f"{name}.tif")], tmp_path / name)[0])
        assert (row["count"], row["mean"]) == (1.0, 3.0 if name == "south_up" else 7.0)


def test_large_accumulators_travel_as_objects_of_the_attempt(
    whole: tuple[InputItem, dict[str, Any], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(zonal_statistics, "BODY_BYTES_MAX", 1000)
    scene, task, _ = whole
    found = method.get("zonal_statistics")
    params = msgspec.convert(task | {"method": "zonal_statistics"}, found.params)
    part = found.run(params, [scene], method.plan(params, [scene]).shards[0].body, Attempt(tmp_path.as_uri()))
    assert part.body == b""
    assert part.objects["partials"].size == len(read_object(part.objects["partials"].href)) > 1000


def test_only_touched_blocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pixels = np.ones((1, 2048, 2048), np.uint8)
    scene = raster_item(write_raster(tmp_path / "r.tif", pixels, origin=(0, 2048)))
    windows: list[Window] = []
    read = raster.read_block

    def spy(asset: RasterAsset, bands: Sequence[int], window: Window) -> Any:
        windows.append(window)
        return read(asset, bands, window)

    monkeypatch.setattr(raster, "read_block", spy)
    zones = inline(shapely.box(3.5, 2030, 20, 2040), shapely.box(2000, 10, 2040, 20))
    execute({"zones": zones, "crs": "EPSG:32632"}, [scene], tmp_path)
    assert windows == [Window(8, 3, 10, 17), Window(2028, 2000, 10, 40)]


def test_plan_is_bounded_and_small(whole: tuple[InputItem, dict[str, Any], list[str]]):
    scene, task, _ = whole
    params = msgspec.convert(task | {"method": "zonal_statistics"}, zonal_statistics.ZonalStatisticsParams)
    plan = method.plan(params, [scene])
    assert all(len(shard.body) < 100 for shard in plan.shards)
    assert plan.bound.pixels >= 2 * 1300 * 1700
    assert plan.bound.memory_bytes > 0
    assert plan.bound.seconds > 0


FAR = inline(shapely.box(500_000, 0, 500_010, 10))


@pytest.mark.parametrize(
    ("task", "error", "pointer", "says"),
    [
        ({"zones": FAR, "crs": "EPSG:32632"}, AoiOutside, "/zones", "499997 metre (499997 px) right of"),
        ({"zones": inline(shapely.Point(1, 1)), "crs": "EPSG:32632"}, InvalidGeometry, "/zones", "A Point has no area"),
        ({"zones": inline()}, InvalidGeometry, "/zones", "None of the 0 zones"),
        ({"zones": {"item_id": "nowhere"}}, InvalidParameter, "/zones/item_id", "the inputs are: scene"),
        ({"zones": {"item_id": "scene"}}, InvalidParameter, "/zones/asset", "0 vector assets"),
        ({"zones": {"id": "x"}}, InvalidParameter, "/zones", "it has id"),
        ({"zones": {"type": "Hexagon"}}, InvalidGeometry, "/zones/features/0/geometry", "cannot be read"),
        ({"zones": {"type": "FeatureCollection"}}, NotAVector, "/zones/features", "needs `features`"),
        ({"zones": FAR, "bands": ["red"]}, BandNotFound, "/bands/0", "It has: band_1"),
        ({"zones": FAR, "bands": ["band_1", "band_1"]}, InvalidParameter, "/bands/1", "twice"),
        ({"zones": FAR, "statistics": ["mean", "sum", "mean"]}, InvalidParameter, "/statistics/2", "mean is asked"),
        ({"zones": FAR, "quantiles": [0.1, 0.1 + 1e-15]}, InvalidParameter, "/quantiles/1", "q10 is asked for twice"),
        (
            {"zones": FAR, "statistics": ["class_fractions"], "classes": [3, 4, 3]},
            InvalidParameter, "/classes/2", "frac_3 is asked for twice",
        ),
        (
            {"zones": inline(shapely.box(0, 0, 1, 1), n=[1]), "include": ["n", "n"]},
            InvalidParameter, "/include/1", "'n' is asked for twice",
        ),
        ({"zones": FAR, "statistics": []}, InvalidParameter, "/statistics", "one statistic"),
        ({"zones": FAR, "crs": "EPSG:0"}, InvalidParameter, "/crs", "is not known"),
        ({"zones": FAR, "zone_id": "name"}, InvalidParameter, "", "has no field 'name'"),
        (
            {"zones": inline(shapely.box(0, 0, 1, 1), count=[1]), "include": ["count"]},
            InvalidParameter, "/include/0", "name of a column",
        ),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_done_are_refused_with_a_reason(
    drawn: InputItem, task: dict[str, Any], error: type[Exception], pointer: str, says: str
):
    params = msgspec.convert({"method": "zonal_statistics"} | task, zonal_statistics.ZonalStatisticsParams)
    with pytest.raises(error) as caught:
        method.plan(params, [drawn])
    assert says in caught.value.message  # pyright: ignore[reportAttributeAccessIssue]
    assert caught.value.pointer == pointer  # pyright: ignore[reportAttributeAccessIssue]


def test_a_layer_that_misses_the_raster_is_refused_before_anything_is_read(drawn: InputItem, tmp_path: Path):
    geopandas.GeoDataFrame(geometry=[shapely.box(9, 48, 10, 49)], crs="EPSG:4326").to_file(tmp_path / "z.gpkg")
    params = zonal_statistics.ZonalStatisticsParams(zones={"item_id": "zones"})
    with pytest.raises(AoiOutside, match="above"):
        method.plan(params, [drawn, zones_item(tmp_path / "z.gpkg")])


def test_a_window_that_cannot_be_read_fails_the_shard_by_name(data_dir: Path, tmp_path: Path):
    broken = raster_item(data_dir / "formats" / "corrupt.tif")
    x, y = broken.rasters[0].transform[2], broken.rasters[0].transform[5]
    task = {"zones": inline(shapely.box(x, y - 1e6, x + 1e6, y)), "crs": "EPSG:3857"}
    with pytest.raises(SourceTruncated, match=r"corrupt\.tif"):
        execute(task, [broken], tmp_path)


def test_zones_across_the_antimeridian_are_measured_and_written_cut(tmp_path: Path):
    pixels = np.arange(360, dtype=np.int16)[None, None, :].repeat(180, axis=1)
    path = write_raster(tmp_path / "globe.tif", pixels, crs="EPSG:4326", origin=(-180, 90), size=1.0)
    jumping = shapely.Polygon([(178, 0), (-179, 0), (-179, 2), (178, 2)])
    task = {"zones": inline(jumping), "statistics": ["count", "sum", "min", "max", "valid_fraction", "median"]}
    result, _ = execute(task, [raster_item(path)], tmp_path)
    (row,) = rows_of(result)
    assert (row["count"], row["sum"], row["min"], row["max"]) == (6.0, 2.0 * (358 + 359 + 0), 0.0, 359.0)
    assert (row["valid_fraction"], row["median"]) == (1.0, 358.0)
    assert result.items[0].bbox == (178.0, 0.0, -179.0, 2.0)
    geojson = next(asset for asset in result.items[0].assets if asset.key == "geojson")
    document = msgspec.json.decode(read_object(geojson.object.href))
    assert document["features"][0]["geometry"]["type"] == "MultiPolygon"


@pytest.mark.parametrize(
    ("crs", "origin"), [("EPSG:3413", (-400_000.0, 300_000.0)), ("EPSG:3031", (-150_000.0, 450_000.0))]
)
def test_zones_on_a_polar_grid_equal_exactextract(tmp_path: Path, crs: str, origin: tuple[float, float]):
    """The pole and the antimeridian lie within the raster, and within zones; holes, slivers, and what lies beyond."""
    rng = np.random.default_rng(10)
    pixels = rng.normal(250, 40, (1, 600, 640)).astype(np.float32)
    pixels[0, 200:230, 100:400] = -9999
    path = write_raster(tmp_path / "polar.tif", pixels, crs=crs, origin=origin, size=1000.0, nodata=-9999)
    west, north = origin
    centres = rng.uniform((west - 20_000, north - 610_000), (west + 650_000, north + 20_000), (80, 2))
    shapes = [shapely.Point(x, y).buffer(rng.uniform(300, 70_000), quad_segs=5) for x, y in centres]
    shapes += [
        shapely.Point(0, 0).buffer(150_000).difference(shapely.Point(2_000, 500).buffer(700)),  # the pole in a ring
        shapely.box(-350, -250, 90, 410),
        shapely.box(west + 10, north - 500_000, west + 600_000, north - 499_900),
    ]
    geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(tmp_path / "zones.gpkg")
    (tmp_path / "job").mkdir()
    assert assert_equals_exactextract([path], tmp_path / "zones.gpkg", tmp_path / "job") == len(shapes)


def test_a_zone_drawn_along_a_parallel_covers_the_cap_of_a_polar_grid(tmp_path: Path):
    """In degrees, all around the pole: the cap beyond 87° N, as much as its circle on the polar plane."""
    pixels = np.ones((1, 800, 800), np.uint8)
    path = write_raster(tmp_path / "polar.tif", pixels, crs="EPSG:3413", origin=(-400_000, 400_000), size=1000.0)
    strips = [shapely.box(west, 87.0, west + 60.0, 90.0) for west in range(-180, 180, 60)]
    dense = [shapely.segmentize(strip, 0.5) for strip in strips]
    task = {"zones": inline(*dense), "statistics": ["count", "valid_fraction"]}
    rows = rows_of(execute(task, [raster_item(path)], tmp_path)[0])
    radius = abs(pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:3413", always_xy=True).transform(-45.0, 87.0)[1])
    assert sum(row["count"] for row in rows) == pytest.approx(np.pi * (radius / 1000) ** 2, rel=1e-4)
    for row in rows:
        assert row["count"] == pytest.approx(np.pi * (radius / 1000) ** 2 / 6, rel=1e-3)
        assert row["valid_fraction"] == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_zones_of_several_items_are_a_table_by_zone_and_date(tmp_path: Path):
    rng = np.random.default_rng(11)
    side, columns, rows = 1100, 320, 320
    scenes, sums = [], []
    for number in range(3):
        pixels = rng.integers(1, 5000, (1, side, side)).astype(np.uint16)
        path = write_raster(tmp_path / f"day-{number}.tif", pixels, origin=(0.0, float(side)), tiled=True)
        item = raster_item(path)
        scenes.append(msgspec.structs.replace(item, id=f"day-{number}", at=datetime(2024, 5, 1 + number, tzinfo=UTC)))
        # Sums over the corner of the raster; between cells they are bilinear, so that of any box is exact.
        sums.append(np.pad(pixels[0].astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1))
    x = np.sort(rng.uniform(0, side, columns + 1))
    y = np.sort(rng.uniform(0, side, rows + 1))
    left, top = (each.ravel() for each in np.meshgrid(x[:-1], y[:-1]))
    right, bottom = (each.ravel() for each in np.meshgrid(x[1:], y[1:]))
    boxes = shapely.box(left, side - bottom, right, side - top)
    assert len(boxes) > 100_000
    geopandas.GeoDataFrame({"name": np.arange(len(boxes))}, geometry=boxes, crs="EPSG:32632").to_parquet(
        tmp_path / "zones.parquet"
    )
    task = {"zones": {"item_id": "zones"}, "zone_id": "name", "statistics": ["count", "sum", "mean"]}
    result, _ = execute(task, [*scenes, zones_item(tmp_path / "zones.parquet")], tmp_path)
    table = parquet.read_table(
        next(asset for asset in result.items[0].assets if asset.key == "table").object.href.removeprefix("file://"),
        columns=["zone_id", "item_id", "datetime", "status", "count", "sum"],
    )
    assert table.num_rows == 3 * len(boxes)
    assert table["zone_id"].to_numpy().tolist() == np.repeat(np.arange(len(boxes)), 3).tolist()
    assert table["item_id"].to_pylist()[:6] == ["day-0", "day-1", "day-2"] * 2
    assert [at.day for at in table["datetime"].to_pylist()[:3]] == [1, 2, 3]
    assert set(table["status"].to_pylist()) == {"ok"}
    area = (right - left) * (bottom - top)
    for number, whole in enumerate(sums):

        def corner(x, y, whole=whole):
            return ndimage.map_coordinates(whole, [y, x], order=1)

        expected = corner(right, bottom) - corner(left, bottom) - corner(right, top) + corner(left, top)
        np.testing.assert_allclose(table["sum"].to_numpy()[number::3], expected, rtol=1e-6, atol=2e-3)
        np.testing.assert_allclose(table["count"].to_numpy()[number::3], area, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("field", "value"), [("zone_id", "nome"), ("include", ["nome"])])
def test_fields_of_a_layer_are_checked_before_anything_is_read(
    drawn: InputItem, tmp_path: Path, field: str, value: Any
):
    frame = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:32632")
    frame.to_file(tmp_path / "z.gpkg")
    inputs = [drawn, zones_item(tmp_path / "z.gpkg")]
    (tmp_path / "z.gpkg").unlink()
    task = {"method": "zonal_statistics", "zones": {"item_id": "zones"}, field: value}
    with pytest.raises(InvalidParameter, match=r"no field 'nome'\. It has: name") as caught:
        method.plan(msgspec.convert(task, zonal_statistics.ZonalStatisticsParams), inputs)
    assert caught.value.pointer == f"/{field}"


def test_absurd_sizes_are_refused_in_the_plan(drawn: InputItem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layer = VectorAsset(
        key="z", href="z.gpkg", crs="EPSG:32632", feature_count=10_000_000, bounds=(0.0, 0.0, 3.0, 3.0), fields=()
    )
    params = zonal_statistics.ZonalStatisticsParams(zones={"item_id": "zones"})
    with pytest.raises(TooLarge, match="10,000,000 zones with 6 columns") as caught:
        method.plan(params, [drawn, InputItem(id="zones", assets=(layer,))])
    assert caught.value.pointer == "/zones"
    monkeypatch.setattr(zonal_statistics, "NUMBERS_MAX", 11)
    square = {"zones": inline(shapely.box(0, 0, 1, 1), shapely.box(0, 0, 2, 2)), "crs": "EPSG:32632"}
    with pytest.raises(TooLarge, match="2 zones"):
        execute(square, [drawn], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(zonal_statistics, "SHARDS_MAX", 0)
    with pytest.raises(TooLarge, match="more than 0 shards"):
        execute(square, [drawn], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(ranks, "RUNS_BYTES_MAX", 10)
    scene, zones_drawn = mosaic(tmp_path, bands=1)
    with pytest.raises(TooLarge, match="Quantiles, classes and histograms of these zones"):
        execute({"zones": zones_drawn, "crs": "EPSG:32632", "statistics": ["median"]}, [scene], tmp_path)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_bounds_hold_against_a_measured_process(tmp_path: Path, dtype: str):
    pixels = np.random.default_rng(3).integers(1, 60_000, (1, 3000, 3000)).astype(dtype)
    write_raster(tmp_path / "m.tif", pixels, origin=(500_000, 5_000_000), size=10.0)
    step = 2500
    shapes = [
        shapely.box(x + 3, y + 3, x + step, y + step)
        for x in range(500_000, 530_000, step)
        for y in range(4_970_000, 5_000_000, step)
    ]
    task = {"method": "zonal_statistics", "zones": inline(*shapes), "crs": "EPSG:32632", "statistics": ["median"]}
    params = msgspec.convert(task, zonal_statistics.ZonalStatisticsParams)
    seen = measured(params, [raster_item(tmp_path / "m.tif")], tmp_path)
    assert 0 < seen.shard_bytes <= seen.shard_bytes_bound
    assert seen.job_bytes <= seen.job_bytes_bound
    assert seen.pixels <= seen.pixels_bound <= 1.2 * pixels.size
    assert seen.written_bytes <= seen.written_bytes_bound


@pytest.mark.parametrize(
    ("field", "values"), [("statistics", ["mean"] * 21), ("bands", ["b"] * 1025), ("include", ["a"] * 257)]
)
def test_lists_without_end_do_not_decode(field, values):
    with pytest.raises(msgspec.ValidationError, match="length"):
        msgspec.convert(
            {"method": "zonal_statistics", "zones": {}, field: values}, method.get("zonal_statistics").params
        )
