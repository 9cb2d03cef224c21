import warnings
from datetime import UTC, date, datetime, timedelta
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from eorouter_compute import method, quality, raster
from eorouter_compute.errors import (
    AoiOutside,
    BandNotFound,
    InvalidExpression,
    InvalidParameter,
    SourceTruncated,
    UnknownIndex,
)
from eorouter_compute.landscape import generate
from eorouter_compute.methods import time_series
from eorouter_compute.methods.time_series import TimeSeriesParams
from eorouter_compute.testing import input_item, measured, run_local, write_raster
from eorouter_kernels import temporal
from eorouter_kernels.reference import smoothing as smoothing_twin
from eorouter_kernels.reference import temporal as temporal_twin


def task(**fields):
    return msgspec.convert({"method": "time_series", **fields}, TimeSeriesParams)


def pixels_of(item):
    asset = item.assets[0].raster
    return raster.read_block(asset, [band.index for band in asset.bands], asset.window).pixels


def scenes(folder, count=5, shape=(70, 90), *, start=date(2021, 1, 5), step=16, seed=0, bands=("red", "nir")):
    """Two-band scenes with holes, and their scene classification."""
    rng = np.random.default_rng(seed)
    out, stack, classes = [], [], []
    for number in range(count):
        stored = rng.integers(200, 4000, (len(bands), *shape)).astype("uint16")
        stored[:, rng.random(shape) < 0.1] = 0
        scl = rng.choice([4, 5, 8, 9], (1, *shape)).astype("uint8")
        day = start + timedelta(days=step * number)
        out.append(
            input_item(
                write_raster(folder / f"b{number}.tif", stored, nodata=0, names=bands, blockxsize=64, blockysize=64),
                write_raster(folder / f"q{number}.tif", scl, names=["SCL"], blockxsize=64, blockysize=64),
                id=f"scene-{number}",
                at=datetime(day.year, day.month, day.day, 10, tzinfo=UTC),
            )
        )
        stack.append(stored)
        classes.append(scl[0])
    return out, np.array(stack), np.array(classes)


def values_of(stack, classes):
    """NDVI per date, NaN where nodata or cloud."""
    red, nir = stack[:, 0].astype(float), stack[:, 1].astype(float)
    with np.errstate(invalid="ignore"):
        ndvi = (nir - red) / (nir + red)
    ndvi[(stack == 0).any(axis=1) | np.isin(classes, (8, 9))] = np.nan
    return ndvi.astype("float32")


NDVI = {"expression": "(nir - red) / (nir + red)", "name": "ndvi"}
WHOLE = {"value": NDVI, "masks": ["sentinel-2-scl"], "group": {"by": "all"}}


def test_the_median_of_a_masked_ratio_is_numpys(tmp_path):
    items, stack, classes = scenes(tmp_path)
    result = run_local(
        task(**WHOLE, analysis={"type": "composite", "statistics": ["median", "mean", "stdev", "min", "max", "count"]}),
        items,
    )
    values = values_of(stack, classes)
    found = pixels_of(result.items[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for row, of in enumerate((np.nanmedian, np.nanmean, np.nanstd, np.nanmin, np.nanmax)):
            np.testing.assert_allclose(found[row], of(values.astype(float), axis=0), rtol=1e-6, atol=1e-7)
    assert np.array_equal(found[5], np.isfinite(values).sum(axis=0))
    assert [band.name for band in result.items[0].assets[0].raster.bands][:2] == ["ndvi_median", "ndvi_mean"]
    assert result.report.valid_pixels == np.isfinite(values).sum()
    assert result.report.pixels == values.size


@pytest.mark.parametrize(
    "fields",
    [
        {**WHOLE, "masks": [{"band": "SCL", "classes": [9], "dilate_px": 3}]},
        {"value": {"bands": ["red", "nir"]}, "group": {"by": "all"}, "analysis": {"type": "composite", "medoid": True}},
        {"value": NDVI, "analysis": {"type": "trend"}},
        {"value": NDVI, "analysis": {"type": "series"}, "fill": {"by": "harmonic", "harmonics": 1}},
    ],
)
def test_the_bytes_depend_on_neither_shards_nor_order_nor_threads(tmp_path, fields):
    items, *_ = scenes(tmp_path, shape=(600, 530), count=6)
    digests = {
        run_local(task(**fields), inputs, shard_pixels=pixels, threads=threads).items[0].assets[0].object.sha256
        for inputs, pixels, threads in ((items, 1 << 20, 1), (items[::-1], 512 * 512, 2))
    }
    assert len(digests) == 1


def test_parts_of_a_deep_stack_are_those_of_the_whole(tmp_path, monkeypatch):
    items, *_ = scenes(tmp_path, shape=(150, 140))
    one = run_local(task(**WHOLE), items).items[0].assets[0].object.sha256
    monkeypatch.setattr(time_series, "STACK_BYTES", 1)
    assert run_local(task(**WHOLE), items).items[0].assets[0].object.sha256 == one


def test_several_bands_by_every_way_to_choose_a_pixel(tmp_path):
    items, stack, _ = scenes(tmp_path, shape=(20, 30))
    names = {"bands": ["red", "nir"]}
    analysis = {
        "type": "composite",
        "percentiles": [25],
        "medoid": True,
        "geometric_median": True,
        "best": {"by": "highest", "band": "nir"},
    }
    found = pixels_of(run_local(task(value=names, group={"by": "all"}, analysis=analysis), items).items[0])
    values = np.where(stack == 0, np.nan, stack.astype("float32")).reshape(5, 2, 600)
    assert np.array_equal(found[0].ravel(), temporal_twin.ranks(values[:, 0], np.array([0.25]))[0], equal_nan=True)
    assert np.array_equal(found[2:4].reshape(2, -1), temporal_twin.medoid(values), equal_nan=True)
    kernel_out = np.empty((2, 600), "float32")
    temporal.geometric_median(values, kernel_out)
    assert np.array_equal(found[4:6].reshape(2, -1), kernel_out, equal_nan=True)
    best, place = temporal_twin.pick(values, values[:, 1])
    assert np.array_equal(found[6:8].reshape(2, -1), best, equal_nan=True)
    days = np.array([item.at.timetuple().tm_yday for item in items])
    assert np.array_equal(
        found[8].ravel(), np.where(np.isnan(place), np.nan, days[np.nan_to_num(place).astype(int)]), equal_nan=True
    )
    near = {"type": "composite", "best": {"by": "nearest", "day": "2021-02-07"}}
    found = pixels_of(run_local(task(value=names, group={"by": "all"}, analysis=near), items).items[0])
    first_choice = stack[2].astype("float32")
    whole = (first_choice > 0).all(axis=0)
    assert np.array_equal(found[:2, whole], first_choice[:, whole])


@pytest.mark.parametrize("dilate", [0, 2])
@pytest.mark.parametrize("side", [32, 512])
def test_the_clearest_date_is_that_farthest_from_a_cloud(tmp_path, dilate, side):
    rng = np.random.default_rng(9)
    shape, reach = (60, 75), 12
    items, stack, classes = [], [], []
    for number in range(4):
        stored = np.full((2, *shape), 1000 * (number + 1), "uint16")
        stored[:, rng.random(shape) < 0.05] = 0
        scl = np.full((1, *shape), 4, "uint8")
        for y, x in rng.integers(0, 70, (5, 2)):
            scl[0, y : y + 9, x : x + 6] = 9
        stack.append(stored)
        classes.append(scl[0])
        items.append(
            input_item(
                write_raster(tmp_path / f"b{number}.tif", stored, nodata=0, names=["red", "nir"], blockxsize=32,
                             blockysize=32),
                write_raster(tmp_path / f"q{number}.tif", scl, names=["SCL"], blockxsize=32, blockysize=32),
                id=f"scene-{number}", at=datetime(2021, 1, 10 + number, 10, tzinfo=UTC),
            )
        )  # fmt: skip
    params = task(
        value={"bands": ["red", "nir"]}, masks=[{"band": "scl", "classes": [9], "dilate_px": dilate}],
        group={"by": "all"}, analysis={"type": "composite", "best": {"by": "clearest", "reach_px": reach}},
    )  # fmt: skip
    found = pixels_of(run_local(params, items, shard_pixels=side * side).items[0])
    away, known = [], []
    for stored, scl in zip(stack, classes, strict=True):
        cloud = scl == 9
        grown = ndimage.distance_transform_edt(~cloud) <= dilate
        away.append(np.minimum(ndimage.distance_transform_edt(~grown), reach).astype("float32"))
        known.append((stored[0] > 0) & ~grown)
    score = np.where(known, away, -1)
    best, seen = score.argmax(axis=0), np.any(known, axis=0)
    assert np.array_equal(np.isfinite(found[0]), seen)
    assert np.array_equal(found[2][seen], (10 + best)[seen])
    assert np.array_equal(found[1][seen], (1000 * (best + 1))[seen])
    assert len(np.unique(best[seen])) == 4


def test_the_least_cloudy_date_comes_first_and_the_next_fills_its_gaps(tmp_path):
    items, stack, _ = scenes(tmp_path, shape=(20, 30), count=3)
    cover = [40.0, None, 3.5]
    items = [
        msgspec.structs.replace(item, properties={} if percent is None else {"eo:cloud_cover": percent})
        for item, percent in zip(items, cover, strict=True)
    ]
    analysis = {"type": "composite", "best": {"by": "least_cloud"}}
    found = pixels_of(
        run_local(task(value={"bands": ["red", "nir"]}, group={"by": "all"}, analysis=analysis), items).items[0]
    )
    whole = (stack > 0).all(axis=1)
    order = [2, 0, 1]
    place = np.array(order)[whole[order].argmax(axis=0)]
    expected = np.take_along_axis(stack, place[np.newaxis, np.newaxis], axis=0)[0].astype("float32")
    assert np.array_equal(found[:2], np.where(whole.any(axis=0), expected, np.nan), equal_nan=True)


def test_a_composite_per_period_and_none_where_there_is_no_date(tmp_path):
    items, stack, classes = scenes(tmp_path, count=4, shape=(12, 15), step=20)
    items[3] = msgspec.structs.replace(items[3], at=datetime(2021, 6, 3, tzinfo=UTC))
    params = task(**{**WHOLE, "group": {"by": "month"}})
    plan = method.plan(params, items)
    assert any("2021-03, 2021-04, 2021-05" in note for note in plan.notes)
    result = run_local(params, items)
    assert [item.name for item in result.items] == [
        "ndvi_composite_2021-01", "ndvi_composite_2021-02", "ndvi_composite_2021-06"
    ]  # fmt: skip
    values = values_of(stack, classes)
    assert np.array_equal(pixels_of(result.items[2])[0], values[3], equal_nan=True)
    assert result.items[0].at == datetime(2021, 1, 16, 12, tzinfo=UTC)
    assert result.items[1].properties["derived_from"] == ["scene-2"]


def test_scenes_of_one_solar_day_fill_each_others_gaps(tmp_path):
    rng = np.random.default_rng(3)
    stored = rng.integers(1, 100, (3, 1, 16, 16)).astype("uint16")
    stored[rng.random(stored.shape) < 0.4] = 0
    items = [
        input_item(
            write_raster(tmp_path / f"{n}.tif", stored[n], nodata=0, names=["b"]),
            id=f"s{n}",
            at=datetime(2021, 5, 1, 10, n, tzinfo=UTC),
            properties={"eo:cloud_cover": cover},
        )
        for n, cover in enumerate((50, 20, 90))
    ]
    for order, chosen in (("first", (0, 1, 2)), ("last", (2, 1, 0)), ("clearest", (1, 0, 2))):
        result = run_local(task(value={"band": "b"}, same_day=order), items)
        expected = np.full((16, 16), np.nan)
        for n in chosen[::-1]:
            expected = np.where(stored[n, 0] > 0, stored[n, 0], expected)
        assert np.array_equal(pixels_of(result.items[0])[0], expected, equal_nan=True)
        assert result.items[0].at == items[0].at


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_a_mirrored_scene_gives_a_mirrored_answer(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    items, stack, classes = scenes(folder / "a", count=3, shape=(17, 23), seed=seed)
    mirrored = []
    for number, item in enumerate(items):
        mirrored.append(
            input_item(
                write_raster(
                    folder / "b" / f"b{number}.tif", stack[number][:, ::-1, ::-1], nodata=0, names=["red", "nir"]
                ),
                write_raster(folder / "b" / f"q{number}.tif", classes[number][None, ::-1, ::-1], names=["SCL"]),
                at=item.at,
                id=item.id,
            )
        )
    one, other = (pixels_of(run_local(task(**WHOLE), each).items[0]) for each in (items, mirrored))
    assert np.array_equal(one[:, ::-1, ::-1], other, equal_nan=True)


def test_an_area_crops_and_masks(tmp_path):
    items, stack, classes = scenes(tmp_path)
    a, _, c, _, e, f = items[0].rasters[0].transform
    west, north = c + 10 * a, f + 20 * e
    ring = [[west, north], [west + 30.4 * a, north], [west, north + 30.4 * e], [west, north]]
    result = run_local(task(**WHOLE, aoi={"type": "Polygon", "coordinates": [ring]}, aoi_crs="EPSG:32632"), items)
    found = pixels_of(result.items[0])[0]
    assert found.shape == (31, 31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = np.nanmedian(values_of(stack, classes).astype(float), axis=0)[20:51, 10:41]
    y, x = np.mgrid[0:31, 0:31]
    np.testing.assert_allclose(found, np.where(x + y < 30, expected, np.nan), rtol=1e-6, atol=1e-7)


def test_what_cannot_be_read_fails_by_name_or_is_missing_and_listed(tmp_path):
    items, stack, classes = scenes(tmp_path)
    path = tmp_path / "b2.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(SourceTruncated, match=r"b2\.tif"):
        run_local(task(**WHOLE), items)
    result = run_local(task(**WHOLE, allow_missing=True), items)
    assert {failed.source.rpartition("/")[2] for failed in result.report.failed} == {"b2.tif"}
    values = values_of(stack, classes)
    found = pixels_of(result.items[0])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        without = np.nanmedian(np.delete(values, 2, axis=0).astype(float), axis=0)
        whole = np.nanmedian(values.astype(float), axis=0)
    is_either = np.isclose(found, without, atol=1e-6, equal_nan=True) | np.isclose(
        found, whole, atol=1e-6, equal_nan=True
    )
    assert is_either.all()


# Real scenes


def lombardy(data_dir, stop=None):
    folder = data_dir / "timeseries/s2_crops_lombardy"
    out = []
    for path in sorted((folder / "NDVI").glob("*.tif"), key=lambda path: path.name.split("_")[1])[:stop]:
        day = datetime.strptime(path.name.split("_")[1], "%Y%m%d").replace(hour=10, tzinfo=UTC)
        ndvi = raster.describe(path.as_uri(), "ndvi")
        scl = raster.describe((folder / "SCL" / path.name.replace("NDVI", "SCL")).as_uri(), "scl")
        out.append(input_item(ndvi, scl, id=path.stem, at=day))
    return out


def test_sixty_dates_masked_by_a_coarser_classification(data_dir):
    items = lombardy(data_dir)
    fields = {"value": {"band": "ndvi"}, "masks": ["sentinel-2-scl"]}
    result = run_local(task(**fields, group={"by": "season"}), items)
    grid = items[0].rasters[0].grid
    seasons: dict[str, list[np.ndarray]] = {}
    for item in items:
        ndvi = item.rasters[0]
        clear = quality.read(quality.place("sentinel-2-scl", item, grid), grid.window)
        block = raster.read_block(ndvi, [1], ndvi.window)
        known = clear if block.valid is None else clear & block.valid[0]
        name = ("DJF", "MAM", "JJA", "SON")[item.at.month % 12 // 3]
        seasons.setdefault(name, []).append(np.where(known, block.pixels[0].astype("float32"), np.nan))
    for item in result.items:
        values = np.array(seasons[item.name.rpartition("-")[2]]).reshape(-1, grid.window.pixels)
        expected = temporal_twin.ranks(values, np.array([0.5]))[0].reshape(grid.shape)
        assert np.array_equal(pixels_of(item)[0], expected, equal_nan=True)


def test_smoothed_dekads_of_a_meadow_are_those_of_the_twin(data_dir):
    folder = data_dir / "timeseries/s2_meadow/geotiff"
    items = [
        input_item(
            raster.describe(path.as_uri(), "red"),
            raster.describe(path.with_name(path.name.replace("B04", "B08")).as_uri(), "nir"),
            id=path.stem,
            at=datetime.fromisoformat(path.name[:10]).replace(hour=10, tzinfo=UTC),
        )
        for path in sorted(folder.glob("*_B04.tif"))
    ]
    value = {"expression": "(nir - red) / (nir + red)"}
    raw = pixels_of(run_local(task(value=value, analysis={"type": "series"}), items).items[0])
    smooth = {"by": "whittaker", "roughness": 50}
    done = pixels_of(run_local(task(value=value, analysis={"type": "series"}, smooth=smooth), items).items[0])
    days = np.array([(item.at.date() - date(1970, 1, 1)).days for item in items], float)
    expected = smoothing_twin.whittaker(raw.reshape(len(items), -1), days, 50.0).reshape(raw.shape)
    np.testing.assert_allclose(done, expected, atol=2e-5)
    assert np.isnan(raw).any()


def test_trends_in_modis_sinusoidal_are_scipys(data_dir):
    paths = sorted((data_dir / "timeseries/modis_ndvi_sinop").glob("*.jp2"))
    items = [
        input_item(
            raster.describe(path.as_uri(), "ndvi"),
            id=path.stem,
            at=datetime.fromisoformat(path.stem.rpartition("_")[2]).replace(tzinfo=UTC),
        )
        for path in paths
    ]
    found = pixels_of(run_local(task(value={"band": "ndvi"}, analysis={"type": "trend"}), items).items[0])
    sen = pixels_of(
        run_local(task(value={"band": "ndvi"}, analysis={"type": "trend", "model": "theil_sen"}), items).items[0]
    )
    stack = np.array([raster.read_block(i.rasters[0], [1], i.rasters[0].window).pixels[0] for i in items]).astype(float)
    years = np.array([(item.at - items[0].at).days for item in items]) / 365.25
    for row, col in ((0, 0), (33, 120), (146, 254)):
        line = stats.linregress(years, stack[:, row, col])
        np.testing.assert_allclose(
            found[:4, row, col], [line.slope, line.intercept, line.rvalue**2, line.pvalue], rtol=1e-4
        )
        assert sen[0, row, col] == pytest.approx(stats.theilslopes(stack[:, row, col], years)[0], rel=1e-5)


def test_landsat_scenes_that_each_have_their_own_grid(data_dir):
    import rasterio
    from affine import Affine
    from rasterio.warp import Resampling, reproject

    items = []
    for path in sorted((data_dir / "timeseries/landsat8_ny_2018").glob("*/*_B4.TIF")):
        red, qa = raster.describe(path.as_uri(), "red"), raster.describe(str(path).replace("B4", "BQA"), "bqa")
        red = msgspec.structs.replace(red, bands=(msgspec.structs.replace(red.bands[0], nodata=0.0),))
        day = datetime.strptime(path.name.split("_")[3], "%Y%m%d").replace(hour=15, tzinfo=UTC)
        items.append(input_item(red, qa, id=path.stem, at=day))
    assert len({item.rasters[0].transform for item in items}) > 3
    fields = {
        "value": {"band": "red"},
        "masks": [{"band": "bqa", "bits": [{"first": 0}, {"first": 4}]}],
        "group": {"by": "all"},
        "grid": {"crs": "EPSG:32618", "resolution": 6000.0},
        "resampling": "nearest",
        "analysis": {"type": "composite", "statistics": ["median", "count"]},
    }
    result = run_local(task(**fields), items)
    asset = result.items[0].assets[0].raster
    days: dict[date, list[np.ndarray]] = {}
    for item in items:
        both = []
        for source in item.rasters:
            with rasterio.open(source.href) as dataset:
                out = np.zeros(asset.shape, "uint16")
                reproject(
                    dataset.read(1), out, src_transform=dataset.transform, src_crs=dataset.crs, src_nodata=None,
                    dst_transform=Affine(*asset.transform), dst_crs=asset.crs, resampling=Resampling.nearest,
                    tolerance=0.0,
                )  # fmt: skip
            both.append(out)
        red, qa = both
        clear = (qa & 0b10001) == 0
        days.setdefault(item.at.date(), []).append(
            np.where(clear & (red > 0) & (qa > 0), red.astype("float32"), np.nan)
        )
    merged = []
    for layers in days.values():
        out = layers[0]
        for layer in layers[1:]:
            out = np.where(np.isnan(out), layer, out)
        merged.append(out)
    stack = np.array(merged).reshape(len(merged), -1)
    found = pixels_of(result.items[0])
    expected = temporal_twin.ranks(stack, np.array([0.5]))[0].reshape(asset.shape)
    # Nearest neighbours of a centre that lies on the line between two pixels may be either.
    assert (np.isclose(found[0], expected, equal_nan=True)).mean() > 0.97
    assert (found[1] == np.isfinite(stack).sum(axis=0).reshape(asset.shape)).mean() > 0.97


def test_cbers_composite_by_month(data_dir):
    folder = data_dir / "timeseries/cbers4_awfi_022024"
    items = [
        input_item(
            raster.describe(path.as_uri(), "nir"),
            raster.describe(path.with_name(path.name.replace("B16", "CMASK")).as_uri(), "cmask"),
            id=path.stem,
            at=datetime.fromisoformat(path.stem.rpartition("_")[2]).replace(tzinfo=UTC),
        )
        for path in sorted(folder.glob("*_B16_*.tif"))
    ]
    result = run_local(task(value={"band": "nir"}, masks=["cbers-cmask"], group={"by": "month"}), items)
    assert [item.name[-7:] for item in result.items] == [f"2018-{month:02d}" for month in range(2, 9)]
    first, second = (raster.read_block(i.rasters[0], [1], i.rasters[0].window).pixels[0] for i in items[:2])
    assert np.array_equal(pixels_of(result.items[0])[0], (first.astype("float32") + second) / 2)


# The generated landscape: what was planted comes back


@pytest.fixture(scope="session")
def year(tmp_path_factory):
    dates = [date(2024, 1, 6) + timedelta(days=10 * n) for n in range(36)]
    shares = [(0.0, 0.3, 0.1, 0.5, 0.05)[n % 5] for n in range(36)]
    return generate(tmp_path_factory.mktemp("year"), seed=5, size_px=256, dates=dates, cloud_shares=shares)


def test_crop_calendars_come_back_within_five_days(year):
    fields = msgspec.json.decode(year.fields.read_bytes())
    params = task(
        value={"index": "NDVI"},
        masks=["sentinel-2-scl"],
        zones=fields,
        zone_id="id",
        smooth={"by": "whittaker", "roughness": 0.5},
        analysis={"type": "phenology", "threshold": 0.5},
    )
    result = run_local(params, year.items())
    table = msgspec.json.decode(_text(result.items[1], "geojson"))
    truth = {f["properties"]["id"]: f["properties"] for f in fields["features"]}
    starts, ends, peaks = [], [], []
    for feature in table["features"]:
        row = feature["properties"]
        planted = truth[row["zone_id"]]
        # The fire cuts the season of the burnt; grass has no harvest; rapeseed in flower looks less green than it is.
        if planted["is_burnt"] or planted["crop"] in ("grassland", "rapeseed") or planted["area_ha"] < 1.0:
            continue
        starts.append(row["start"] - planted["green_up_day"])
        ends.append(row["end"] - planted["harvest_day"])
        peaks.append(row["peak"] - planted["peak_day"])
    assert len(starts) >= 5
    assert np.abs(np.median(starts)) <= 3
    assert np.percentile(np.abs(starts), 90) <= 5
    assert np.percentile(np.abs(ends), 90) <= 5
    assert np.abs(np.median(peaks)) <= 5


def test_the_declining_stand_is_found_within_the_confidence_of_its_slope(year):
    truth = msgspec.json.decode(year.truth.read_bytes())["trend"]
    if truth is None:
        pytest.fail("the landscape of this seed has no declining stand; choose another")
    params = task(value={"index": "NDVI"}, masks=["sentinel-2-scl"], analysis={"type": "trend"})
    found = pixels_of(run_local(params, year.items()).items[0])
    top, left, bottom, right = truth["window_rows_cols"]
    rows, cols = slice(top + 2, bottom - 2), slice(left + 2, right - 2)
    slope, p_value, error = found[0, rows, cols], found[3, rows, cols], found[4, rows, cols]
    declining = slope < -0.3
    assert declining.mean() > 0.3
    assert np.median(p_value[declining]) < 1e-6
    assert abs(np.median(slope[declining]) - truth["ndvi_per_year"]) < 3 * np.median(error[declining]) + 0.02


def _text(item, key):
    from eorouter_compute.attempt import read_object

    return read_object(next(asset for asset in item.assets if asset.key == key).object.href)


def test_a_table_by_zone_and_date_with_its_chart(tmp_path):
    items, stack, classes = scenes(tmp_path, count=4)
    a, _, c, _, e, f = items[0].rasters[0].transform

    def box(left, top, width, height, **properties):
        x, y = c + left * a, f + top * e
        ring = [[x, y], [x + width * a, y], [x + width * a, y + height * e], [x, y + height * e], [x, y]]
        return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}

    zones = {
        "type": "FeatureCollection",
        "features": [box(10, 5, 20, 30, field="a"), box(60.5, 40, 10, 10, field="b"), box(500, 0, 5, 5, field="far")],
    }
    params = task(
        value=NDVI, masks=["sentinel-2-scl"], zones=zones, zone_id="field", zones_crs="EPSG:32632", smooth={},
        analysis={"type": "trend"},
    )  # fmt: skip
    result = run_local(params, items)
    rows = [f["properties"] for f in msgspec.json.decode(_text(result.items[0], "geojson"))["features"]]
    assert len(rows) == 12
    values = values_of(stack, classes)
    for number, row in enumerate(rows[:4]):
        inside = values[number, 5:35, 10:30].astype(float)
        assert row["zone_id"] == "a"
        assert row["date"] == items[number].at.date().isoformat()
        assert row["mean"] == pytest.approx(np.nanmean(inside), rel=1e-6)
        assert row["valid_fraction"] == pytest.approx(np.isfinite(inside).mean(), rel=1e-9)
    weights = np.ones((10, 11))
    weights[:, [0, -1]] = 0.5
    inside = values[1, 40:50, 60:71].astype(float)
    known = np.isfinite(inside)
    assert rows[5]["mean"] == pytest.approx((inside[known] * weights[known]).sum() / weights[known].sum(), rel=1e-6)
    assert {row["status"] for row in rows[8:]} == {"outside"}
    assert all(row["mean"] is None and row["valid_fraction"] in (0, None) for row in rows[8:])
    chart = ElementTree.fromstring(_text(result.items[0], "chart"))
    assert len([node for node in chart.iter() if node.tag.endswith("circle")]) == 8
    trend = [f["properties"] for f in msgspec.json.decode(_text(result.items[1], "geojson"))["features"]]
    smoothed = [row["smoothed"] for row in rows[:4]]
    years = np.arange(4) * 16 / 365.25
    assert trend[0]["slope"] == pytest.approx(stats.linregress(years, smoothed).slope, rel=1e-4)
    again = run_local(params, items[::-1], shard_pixels=512 * 512, threads=2)
    assert again.items[0].assets[1].object.sha256 == result.items[0].assets[1].object.sha256


def test_curves_of_several_bands_are_those_of_each_alone(tmp_path):
    items, *_ = scenes(tmp_path, count=4)
    a, _, c, _, e, f = items[0].rasters[0].transform
    ring = [[c + x * a, f + y * e] for x, y in ((3, 4), (40.5, 6), (30, 50.2), (3, 4))]
    fields = {
        "masks": ["sentinel-2-scl"], "zones": {"type": "Polygon", "coordinates": [ring]}, "zones_crs": "EPSG:32632",
        "smooth": {}, "analysis": {"type": "trend"}, "group": {"by": "month"},
    }  # fmt: skip
    both = run_local(task(value={"bands": ["red", "nir"]}, **fields), items)
    table, trend = ([f["properties"] for f in msgspec.json.decode(_text(i, "geojson"))["features"]] for i in both.items)
    assert [row["band"] for row in table] == sorted((row["band"] for row in table), reverse=True)
    for place, band in enumerate(("red", "nir"), 1):
        alone = run_local(task(value={"band": band}, **fields), items)
        rows, line = (
            [f["properties"] for f in msgspec.json.decode(_text(i, "geojson"))["features"]] for i in alone.items
        )
        assert [{k: v for k, v in row.items() if k != "band"} for row in table if row["band"] == band] == rows
        assert {f"{band}_{k}": v for k, v in line[0].items() if k not in {"zone_id", "status"}}.items() <= trend[
            0
        ].items()
        assert _text(both.items[0], f"chart_{place}") == _text(alone.items[0], "chart")
    again = run_local(task(value={"bands": ["red", "nir"]}, **fields), items[::-1], shard_pixels=512 * 512, threads=2)
    assert [a.object.sha256 for a in again.items[0].assets] == [a.object.sha256 for a in both.items[0].assets]


@pytest.mark.parametrize("analysis", [{"type": "trend"}, {"type": "series"}, {"type": "harmonic", "harmonics": 1}])
def test_an_analysis_of_several_bands_is_that_of_each_alone(tmp_path, analysis):
    items, *_ = scenes(tmp_path, count=6, shape=(40, 30))
    fields = {"masks": ["sentinel-2-scl"], "fill": {"by": "linear"}, "group": {"by": "month"}, "analysis": analysis}
    both = run_local(task(value={"bands": ["red", "nir"]}, **fields), items).items[0]
    parts = [run_local(task(value={"band": band}, **fields), items).items[0] for band in ("red", "nir")]
    np.testing.assert_array_equal(pixels_of(both), np.concatenate([pixels_of(part) for part in parts]))
    names = [f"{name}_{row.name}" for name, part in zip(("red", "nir"), parts, strict=True)
             for row in part.assets[0].raster.bands]  # fmt: skip
    assert [band.name for band in both.assets[0].raster.bands] == names


def test_anomalies_of_a_month_against_earlier_years(tmp_path):
    items, values = [], []
    for number, (y, m) in enumerate([(y, m) for y in (2018, 2019, 2020, 2021) for m in (5, 6)]):
        pixels = np.full((1, 8, 8), 100 * m + (y - 2018) ** 2, "float32")
        asset = write_raster(tmp_path / f"{number}.tif", pixels, names=["v"])
        items.append(input_item(asset, id=f"{number}", at=datetime(y, m, 10, tzinfo=UTC)))
        values.append(pixels[0, 0, 0])
    params = task(
        value={"band": "v"},
        group={"by": "month"},
        analysis={"type": "anomaly", "baseline": ["2018-01-01", "2020-12-31"]},
    )
    result = run_local(params, items)
    names = [band.name for band in result.items[0].assets[0].raster.bands]
    found = dict(zip(names, pixels_of(result.items[0])[:, 0, 0], strict=True))
    base = np.array([0, 1, 4.0])
    assert found["2021-05_anomaly"] == pytest.approx(9 - base.mean(), rel=1e-5)
    assert found["2021-06_z_score"] == pytest.approx((9 - base.mean()) / base.std(ddof=1), rel=1e-5)
    assert np.isnan(found["2021-03_anomaly"]) if "2021-03_anomaly" in found else True


@pytest.mark.parametrize(
    ("fields", "error", "words", "pointer"),
    [
        ({"value": {}}, InvalidParameter, "exactly one of band", "/value"),
        ({"value": {"band": "swir"}}, BandNotFound, "It has: red, nir", "/value/band"),
        ({"value": {"index": "NDVY"}}, UnknownIndex, "Near: NDYI", "/value/index"),
        ({"value": {"expression": "nir +"}}, InvalidExpression, "At character", "/value/expression"),
        ({"value": {"expression": "1 + 2"}}, InvalidExpression, "reads no band", "/value/expression"),
        (
            {"value": {"band": "red"}, "masks": ["landsat-qa-pixel"]},
            BandNotFound,
            "no band 'qa_pixel'",
            "/masks/0/band",
        ),
        ({"value": {"band": "red"}, "aoi": [0, 0, 1, 1]}, AoiOutside, "km", "/aoi"),
        (
            {"value": {"band": "red"}, "aoi": [399963, 4499936, 399964, 4499964], "aoi_crs": "EPSG:32632"},
            InvalidParameter,
            "covers no pixel of the grid by the rule center",
            "/aoi",
        ),
        ({"value": {"bands": ["red", "nir", "red"]}}, InvalidParameter, "red is asked for twice", "/value/bands/2"),
        ({"value": {"band": "red"}, "smooth": {}}, InvalidParameter, "a composite has none", "/smooth"),
        (
            {"value": {"band": "red"}, "analysis": {"type": "trend"}, "group": {"by": "all"}},
            InvalidParameter,
            "two periods",
            "/group",
        ),
        (
            {"value": {"band": "red"}, "analysis": {"type": "series"}, "smooth": {"by": "savitzky_golay", "window": 4}},
            InvalidParameter,
            "odd",
            "/smooth/window",
        ),
        (
            {"value": {"bands": ["red", "nir"]}, "analysis": {"type": "composite", "best": {}}},
            InvalidParameter,
            "one of red, nir",
            "/analysis/best/band",
        ),
        (
            {"value": {"band": "red"}, "analysis": {"type": "composite", "best": {"by": "nearest"}}},
            InvalidParameter,
            "nearest",
            "/analysis/best/day",
        ),
        (
            {"value": {"band": "red"}, "analysis": {"type": "composite", "best": {"by": "clearest"}}},
            InvalidParameter,
            "there are none",
            "/analysis/best/by",
        ),
        (
            {"value": {"band": "red"}, "analysis": {"type": "anomaly", "baseline": ["1990-01-01", "1991-01-01"]}},
            InvalidParameter,
            "No date lies in the baseline",
            "/analysis/baseline",
        ),
        (
            {"value": {"band": "red"}, "analysis": {"type": "anomaly", "baseline": ["2021-01-01", "2022-01-01"]}},
            InvalidParameter,
            "nothing is left",
            "/analysis/baseline",
        ),
        (
            {"value": {"band": "red"}, "zones": {"item_id": "none"}},
            InvalidParameter,
            "the inputs are",
            "/zones/item_id",
        ),
    ],
)
def test_refusals_say_what_where_and_how_to_mend(tmp_path, fields, error, words, pointer):
    items, *_ = scenes(tmp_path, count=2, shape=(8, 8))
    with pytest.raises(error, match=words) as caught:
        method.plan(task(**fields), items)
    assert caught.value.pointer == pointer


def test_an_item_without_a_date_is_refused(tmp_path):
    items, *_ = scenes(tmp_path, count=1, shape=(8, 8))
    with pytest.raises(InvalidParameter, match="no date"):
        method.plan(task(value={"band": "red"}), [msgspec.structs.replace(items[0], at=None)])


@pytest.mark.parametrize("kind", ["composite", "zones"])
def test_a_job_stays_within_its_bound(tmp_path, kind):
    items, *_ = scenes(tmp_path, count=12, shape=(700, 900))
    extra = {}
    if kind == "zones":
        a, _, c, _, e, f = items[0].rasters[0].transform
        ring = [[c, f], [c + 800 * a, f], [c + 800 * a, f + 600 * e], [c, f]]
        extra = {"zones": {"type": "Polygon", "coordinates": [ring]}, "zones_crs": "EPSG:32632"}
    found = measured(task(**WHOLE, **extra), items, tmp_path)
    assert found.pixels <= found.pixels_bound
    assert found.written_bytes <= found.written_bytes_bound
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= found.job_bytes_bound


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fields",
    [
        {"group": {"by": "all"}, "analysis": {"type": "composite", "statistics": ["median"],
                                              "best": {"by": "clearest", "reach_px": 20}}},
        {"analysis": {"type": "trend"}},
        {"group": {"by": "dekad"}, "smooth": {}, "analysis": {"type": "phenology"}},
    ],
)  # fmt: skip
def test_two_hundred_and_forty_dates_stay_within_the_bound(tmp_path, fields):
    items, stack, classes = scenes(tmp_path, count=240, shape=(500, 400), step=3)
    params = task(value=NDVI, masks=["sentinel-2-scl"], **fields)
    found = measured(params, items, tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= found.job_bytes_bound
    # Parts of the raster are held at a time, not every date of all of it.
    assert found.shard_bytes < 4 * stack[:, 0].size
    if "best" in fields["analysis"]:
        crop = [399960.0 + 1000, 4500000.0 - 1600, 399960.0 + 1400, 4500000.0 - 1000]
        ring = [[crop[i], crop[j]] for i, j in ((0, 1), (2, 1), (2, 3), (0, 3), (0, 1))]
        part = task(value=NDVI, masks=["sentinel-2-scl"], **fields, aoi_crs="EPSG:32632",
                    aoi={"type": "Polygon", "coordinates": [ring]})  # fmt: skip
        pixels = pixels_of(run_local(part, items, tmp_path / "part").items[0])
        values = values_of(stack[:, :, 100:160, 100:140], classes[:, 100:160, 100:140])
        expected = temporal_twin.ranks(values.reshape(240, -1), np.array([0.5]))[0]
        assert np.array_equal(pixels[0].ravel(), expected, equal_nan=True)
