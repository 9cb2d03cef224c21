"""The method, whole: against exactextract on every real pair of raster and polygons, and against itself cut otherwise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas
import msgspec
import numpy as np
import pyarrow.csv
import pytest
import rasterio
import shapely
from exactextract import exact_extract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from rasterio.transform import from_origin

from eorouter_compute import method, raster, vector
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.errors import (
    AoiOutside,
    BandNotFound,
    InvalidGeometry,
    InvalidParameter,
    NotAVector,
    SourceUnreadable,
)
from eorouter_compute.grid import Window
from eorouter_compute.method import InputItem, Plan, RasterAsset, Result
from eorouter_compute.methods import zonal_statistics

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


def write_raster(path: Path, pixels: np.ndarray, *, crs: str = "EPSG:32632", origin=(0.0, 0.0), size=1.0, **options: Any) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype, crs=crs, transform=from_origin(*origin, size, size), **options,
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


@pytest.mark.parametrize(("scene", "zones"), REAL, ids=[Path(scene).stem for scene, _ in REAL])
def test_statistics_of_real_scenes_equal_exactextract(data_dir: Path, tmp_path: Path, scene: str, zones: str):
    if not (data_dir / scene).exists():
        pytest.skip(f"{scene} is not among the real scenes")
    item, layer = raster_item(data_dir / scene), zones_item(data_dir / zones)
    task = {
        "zones": {"item_id": "zones"},
        "statistics": [*MOMENTS, "median"],
        "quantiles": [0.1, 0.9],
        "use_scale": False,
    }
    rows = rows_of(execute(task, [item, layer], tmp_path)[0])
    asset = item.rasters[0]
    a, b, _, d, e, _ = asset.transform
    read = vector.read_zones(
        layer.vectors[0],
        target_crs=asset.crs,
        edge_tolerance=zonal_statistics.EDGE_TOLERANCE_PX * min(np.hypot(a, d), np.hypot(b, e)),
    )
    features = geopandas.GeoDataFrame(geometry=read.projected(), crs=asset.crs)
    foreign = exact_extract(str(data_dir / scene), features, list(MOMENTS), output="pandas").to_dict("records")
    # Exactextract cuts quantiles of integer rasters to integers, so it gets the same pixels as float64.
    wide = exact_extract(
        str(as_float64(data_dir / scene, tmp_path / "wide.tif")), features,
        ["quantile(q=0.1)", "quantile(q=0.5)", "quantile(q=0.9)"], output="pandas",
    ).to_dict("records")  # fmt: skip
    compared = 0
    for row, other, floats in zip(rows, foreign, wide, strict=True):
        for number, band in enumerate(asset.bands, 1):
            many = len(asset.bands) > 1
            ours = lambda name: row[f"{band.name}_{name}" if many else name]  # noqa: B023, E731
            theirs = lambda name: other[f"band_{number}_{name}" if many else name]  # noqa: B023, E731
            for name in MOMENTS:
                compare(name, ours(name), theirs(name))
            for name, level in (("q10", 10), ("median", 50), ("q90", 90)):
                key = f"quantile_{level}"
                compare(name, ours(name), floats[f"band_{number}_{key}" if many else key])
            compared += 1
    assert compared == len(rows) * len(asset.bands)


def compare(name: str, ours: float | None, theirs: float) -> None:
    if ours is None:
        assert theirs is None or np.isnan(theirs) or (name == "sum" and theirs == 0.0), name
    else:
        assert ours == pytest.approx(theirs, rel=RELATIVE, abs=1e-9), name



def as_float64(source: Path, target: Path) -> Path:
    with rasterio.open(source) as opened:
        profile = opened.profile | {"dtype": "float64", "nodata": np.nan, "driver": "GTiff"}
        pixels = opened.read(masked=True).astype(np.float64).filled(np.nan)
    with rasterio.open(target, "w", **{key: profile[key] for key in ("driver", "width", "height", "count", "dtype", "crs", "transform", "nodata")}) as copy:
        copy.write(pixels)
    return target
