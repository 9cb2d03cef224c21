"""Curves of zones against NumPy by hand: composites of every pixel first, then weighted by the fraction of a pixel."""

import warnings
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from eorouter_compute import method, raster, zone_curves
from eorouter_compute.attempt import read_object
from eorouter_compute.errors import TooLarge
from eorouter_compute.methods.time_series import TimeSeriesParams
from eorouter_compute.testing import UTM_TRANSFORM, input_item, measured, run_local, write_raster

SHAPE = (40, 50)
DAYS = [datetime(2021, 1, 4, 10, tzinfo=UTC) + timedelta(days=12 * n) for n in range(6)]
LEFT, TOP = 7.5, 4.0


def task(**fields):
    return msgspec.convert({"method": "time_series", **fields}, TimeSeriesParams)


def box(left, top, right, bottom):
    """A ring in the grid's CRS from corners in pixels."""
    a, _, c, _, e, f = UTM_TRANSFORM
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    return [[c + a * x, f + e * y] for x, y in corners]


ZONES = {
    "zones": {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {"id": name}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
            for name, ring in (("a", box(LEFT, TOP, 21, 30)), ("b", box(30, 10, 31, 11)))
        ],
    },
    "zones_crs": "EPSG:32632",
    "zone_id": "id",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six dates of two bands with holes of their own, and a date of January and February that is all holes."""
    folder = tmp_path_factory.mktemp("zones")
    rng = np.random.default_rng(8)
    stored = rng.integers(1, 4000, (6, 2, *SHAPE)).astype("uint16")
    stored[rng.random(stored.shape) < 0.2] = 0
    items = [
        input_item(
            write_raster(folder / f"{n}.tif", pixels, nodata=0, names=["red", "nir"], blockxsize=16, blockysize=16),
            id=f"s{n}", at=at, properties={"eo:cloud_cover": float(cover)},
        )
        for n, (pixels, at, cover) in enumerate(zip(stored, DAYS, (40, 10, 70, 20, 90, 5), strict=True))
    ]  # fmt: skip
    return items, np.where(stored == 0, np.nan, stored.astype("float64"))


def rows_of(result, place=0):
    asset = next(asset for asset in result.items[place].assets if asset.key == "geojson")
    return [feature["properties"] for feature in msgspec.json.decode(read_object(asset.object.href))["features"]]


WEIGHTS = np.zeros(SHAPE)
WEIGHTS[4:30, 7:21] = 1.0
WEIGHTS[4:30, 7] = 0.5


def weighed(picture):
    """What the table says of zone a: mean, stdev of the population, extremes, count, valid fraction."""
    known = np.isfinite(picture) & (WEIGHTS > 0)
    values, weights = picture[known], WEIGHTS[known]
    mean = np.average(values, weights=weights)
    spread = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    return {
        "mean": mean, "stdev": spread, "min": values.min(), "max": values.max(), "count": weights.sum(),
        "valid_fraction": weights.sum() / WEIGHTS.sum(),
    }  # fmt: skip


REDUCERS = {
    "median": np.nanmedian,
    "mean": np.nanmean,
    "min": np.nanmin,
    "max": np.nanmax,
    "stdev": np.nanstd,
    "count": lambda values, axis: np.isfinite(values).sum(axis=axis).astype(float),
    "valid_fraction": lambda values, axis: np.isfinite(values).mean(axis=axis),
}
MONTHS = {"2021-01": slice(0, 3), "2021-02": slice(3, 5), "2021-03": slice(5, 6)}


def assert_rows(rows, expected):
    """Rows of zone a by band and period are `weighed` of the picture (y, x) that is expected for them."""
    found = {(row.get("band"), row["period"]): row for row in rows if row["zone_id"] == "a"}
    assert found.keys() == expected.keys()
    for key, picture in expected.items():
        for name, number in weighed(picture).items():
            assert found[key][name] == pytest.approx(number, rel=1e-5, abs=1e-9), (key, name)


@pytest.mark.parametrize("statistics", [["max"], ["min"], ["mean"], ["stdev"], ["count"], list(REDUCERS)])
def test_statistics_of_a_composite_are_those_of_the_pixels_averaged(made, statistics):
    items, values = made
    analysis = {"type": "composite", "statistics": statistics, "percentiles": [25] if len(statistics) > 1 else []}
    rows = rows_of(run_local(task(value={"band": "red"}, group={"by": "month"}, analysis=analysis, **ZONES), items))
    expected = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for month, dates in MONTHS.items():
            for name in statistics:
                expected[f"red_{name}", month] = REDUCERS[name](values[dates, 0], axis=0)
            if analysis["percentiles"]:
                expected["red_p25", month] = np.nanpercentile(values[dates, 0], 25, axis=0)
    assert_rows(rows, expected)


def test_bands_of_one_date_are_chosen_per_pixel_and_then_averaged(made):
    items, values = made
    analysis = {"type": "composite", "medoid": True, "best": {"by": "least_cloud"}}
    rows = rows_of(
        run_local(task(value={"bands": ["red", "nir"]}, group={"by": "all"}, analysis=analysis, **ZONES), items)
    )
    whole = np.isfinite(values).all(axis=1)
    order = [5, 1, 3, 0, 2, 4]
    date = np.array(order)[whole[order].argmax(axis=0)].astype(float)
    date[~whole.any(axis=0)] = np.nan
    nearest = np.full(SHAPE, np.nan)
    for y, x in np.argwhere(whole.any(axis=0)):
        own = np.flatnonzero(whole[:, y, x])
        points = values[own, :, y, x]
        nearest[y, x] = own[np.linalg.norm(points[:, None] - points[None], axis=2).sum(axis=1).argmin()]

    def of(dates, band):
        at = np.nan_to_num(dates).astype(int)[None]
        return np.where(np.isnan(dates), np.nan, np.take_along_axis(values[:, band], at, axis=0)[0])

    days = np.array([at.timetuple().tm_yday for at in DAYS])
    expected = {(f"{name}_best", "all"): of(date, band) for band, name in enumerate(("red", "nir"))}
    expected |= {(f"{name}_medoid", "all"): of(nearest, band) for band, name in enumerate(("red", "nir"))}
    expected["best_day", "all"] = np.where(np.isnan(date), np.nan, days[np.nan_to_num(date).astype(int)])
    assert_rows(rows, expected)


def test_the_clearest_date_is_that_of_the_rasters(made, tmp_path):
    items, _ = made
    best = {"type": "composite", "best": {"by": "clearest", "reach_px": 4}}
    fields = {"value": {"band": "red"}, "group": {"by": "all"}, "analysis": best}
    masks = [{"expression": "nir > 3500"}]
    rows = rows_of(run_local(task(**fields, masks=masks, **ZONES), items))
    asset = run_local(task(**fields, masks=masks), items, tmp_path).items[0].assets[0].raster
    pixels = raster.read_block(asset, [1, 2], asset.window).pixels.astype(float)
    assert_rows(rows, {("red_best", "all"): pixels[0], ("best_day", "all"): pixels[1]})


def test_worked_number_of_the_page(tmp_path):
    """Two pixels with 1, 3 and 8, 4 on two days: the maxima are 3 and 8."""
    items = [
        input_item(
            write_raster(tmp_path / f"{n}.tif", np.array([[pixels]], "uint8"), names=["v"]), id=f"{n}",
            at=datetime(2021, 1, 1 + n, 10, tzinfo=UTC),
        )
        for n, pixels in enumerate(([1, 8], [3, 4]))
    ]  # fmt: skip
    zone = {"zones": {"type": "Polygon", "coordinates": [box(0, 0, 2, 1)]}, "zones_crs": "EPSG:32632"}
    highest = {"type": "composite", "statistics": ["max"]}
    (row,) = rows_of(run_local(task(value={"band": "v"}, group={"by": "all"}, analysis=highest, **zone), items))
    assert (row["band"], row["mean"], row["max"], row["count"]) == ("v_max", 5.5, 8.0, 2.0)
    days = rows_of(run_local(task(value={"band": "v"}, **zone), items))
    assert [each["mean"] for each in days] == [4.5, 3.5]


def test_the_median_asked_for_is_the_default_without_a_column_of_its_own(made):
    items, _ = made
    median = {"type": "composite", "statistics": ["median"]}
    fields = {"value": {"band": "red"}, "group": {"by": "month"}, **ZONES}
    asked, silent = (rows_of(run_local(task(**fields, **extra), items)) for extra in ({"analysis": median}, {}))
    assert asked == silent
    assert "band" not in asked[0]


def test_composites_of_zones_do_not_depend_on_shards_order_or_tiles(made, monkeypatch):
    items, _ = made
    analysis = {"type": "composite", "statistics": ["max", "count"], "percentiles": [10], "best": {"by": "lowest"}}
    params = task(value={"band": "nir"}, group={"by": "month"}, analysis=analysis, smooth={}, **ZONES)

    def digests(inputs, **options):
        found = run_local(params, inputs, **options).items[0].assets
        return [asset.object.sha256 for asset in found]

    whole = digests(items)
    assert digests(items[::-1], shard_pixels=512 * 512, threads=2) == whole
    monkeypatch.setattr(zone_curves, "STACK_BYTES", 1)
    monkeypatch.setattr(zone_curves, "_SIDE_MIN", 8)
    assert digests(items) == whole


def test_pixels_outside_the_area_of_interest_are_missing_in_zones_too(made):
    items, values = made
    area = {"aoi": {"type": "Polygon", "coordinates": [box(10, 0, 50, 40)]}, "aoi_crs": "EPSG:32632"}
    for analysis in ({"type": "series"}, {"type": "composite", "statistics": ["max"]}):
        rows = rows_of(run_local(task(value={"band": "red"}, analysis=analysis, **area, **ZONES), items))
        for number, row in enumerate(rows[:6]):
            inside = values[number, 0, 4:30, 10:21]
            known = np.isfinite(inside)
            assert row["mean"] == pytest.approx(inside[known].mean(), rel=1e-6)
            assert row["count"] == known.sum()
            assert row["valid_fraction"] == pytest.approx(known.sum() / WEIGHTS.sum(), rel=1e-9)


def test_an_area_of_interest_masks_within_its_bounds(made):
    items, values = made
    a, _, c, _, e, f = UTM_TRANSFORM
    # The pixels of the zone whose centres lie left of a diagonal; the grid keeps its bounds.
    ring = [[c, f], [c + a * 40.2, f], [c, f + e * 40.2], [c, f]]
    area = {"aoi": {"type": "Polygon", "coordinates": [ring]}, "aoi_crs": "EPSG:32632"}
    rows = rows_of(run_local(task(value={"band": "red"}, **area, **ZONES), items))
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    for number, row in enumerate(rows[:6]):
        known = np.isfinite(values[number, 0]) & (x + y < 40.2)
        mean = np.average(values[number, 0][known], weights=WEIGHTS[known])
        assert row["mean"] == pytest.approx(mean, rel=1e-6)
        assert row["valid_fraction"] == pytest.approx(WEIGHTS[known].sum() / WEIGHTS.sum(), rel=1e-9)


def test_a_chart_per_band_of_the_composite(made):
    items, _ = made
    analysis = {"type": "composite", "statistics": ["min", "max"]}
    result = run_local(task(value={"band": "red"}, group={"by": "month"}, analysis=analysis, **ZONES), items)
    titles = [asset.title for asset in result.items[0].assets if asset.key.startswith("chart")]
    assert titles == ["Curves of the zones: red_min", "Curves of the zones: red_max"]


def test_rows_are_counted_by_bands_of_the_composite(made, monkeypatch):
    items, _ = made
    monkeypatch.setattr(zone_curves, "ROWS_MAX", 17)
    analysis = {"type": "composite", "statistics": ["min", "max", "mean"]}
    with pytest.raises(TooLarge, match="2 zones with 3 bands at 3 periods are 18 rows") as caught:
        method.plan(task(value={"band": "red"}, group={"by": "month"}, analysis=analysis, **ZONES), items)
    assert caught.value.pointer == "/zones"


@pytest.mark.parametrize(
    "analysis",
    [
        {"type": "composite"},
        {"type": "composite", "statistics": ["max", "count"], "percentiles": [5, 95], "geometric_median": True},
    ],
)
def test_a_deep_stack_stays_within_its_bound(tmp_path, analysis):
    rng = np.random.default_rng(4)
    items = [
        input_item(
            write_raster(tmp_path / f"{n}.tif", rng.integers(1, 3000, (2, 600, 700), "uint16"), names=["red", "nir"]),
            id=f"s{n}", at=datetime(2021, 1, 1, 10, tzinfo=UTC) + timedelta(days=n),
        )
        for n in range(40)
    ]  # fmt: skip
    zone = {"zones": {"type": "Polygon", "coordinates": [box(3, 4, 690, 580)]}, "zones_crs": "EPSG:32632"}
    params = task(value={"bands": ["red", "nir"]}, group={"by": "all"}, analysis=analysis, **zone)
    found = measured(params, items, tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= found.job_bytes_bound
    assert found.written_bytes <= found.written_bytes_bound
