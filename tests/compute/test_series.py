"""What is made of a series: names, units and numbers of every analysis, by NumPy, SciPy and pandas on the same days."""

from datetime import date, timedelta

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import signal, stats

from eorouter_compute import series
from eorouter_compute.calendars import YEARS, Grouping, periods
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.series import Anomaly, BestPixel, Composite, Curve, Fill, Line, Phenology, Smooth, Waves

DAYS = [date(2019, 2, 3) + timedelta(days=9 * n + n % 4) for n in range(120)]
BY_DAY = periods(DAYS, Grouping())


def holed(shape, seed=0, holes=0.15):
    rng = np.random.default_rng(seed)
    values = rng.normal(0.5, 0.2, shape).astype(np.float32)
    values[rng.random(shape) < holes] = np.nan
    return values


def named(analysis, values, days=BY_DAY, names=("ndvi",)):
    rows = series.analyse(analysis, values, days)
    found = series.bands(analysis, names, days)
    assert len(rows) == len(found)
    return dict(zip((name for name, _ in found), rows, strict=True))


def composed(analysis, stack, days, names, rank=None):
    found = series.bands(analysis, names, ())
    out = np.full((len(found), stack.shape[2]), -99, np.float32)
    series.composite(analysis, stack, days, names, out, rank=rank)
    return dict(zip((name for name, _ in found), out, strict=True))


# Time


def test_moments_are_the_middles_of_periods_and_a_days_own_beginning():
    dekads = periods([date(2020, 2, 21), date(2020, 3, 4)], Grouping(by="dekad"))
    expected = [pd.Timestamp("2020-02-25 12:00"), pd.Timestamp("2020-03-06")]  # nine days, and ten
    assert series.moments_of(dekads).tolist() == [each.timestamp() / 86_400 for each in expected]
    assert series.moments_of(BY_DAY).tolist() == [(day - date(1970, 1, 1)).days for day in DAYS]


@settings(max_examples=60)
@example(1, 1, [0, 10, 245])  # the third lies on the first day of the next year
@given(st.integers(1, 12), st.integers(1, 28), st.lists(st.integers(0, 1200), min_size=3, max_size=40, unique=True))
def test_a_year_of_growth_counts_where_it_holds_three_days(month, day, offsets):
    days = periods([date(2018, 5, 1) + timedelta(days=n) for n in sorted(offsets)], Grouping())
    analysis = Phenology(year_begins=f"{month:02}-{day:02}")
    years = [each.start.year - ((each.start.month, each.start.day) < (month, day)) for each in days]
    kept = sorted(year for year in set(years) if years.count(year) >= 3)
    if not kept:
        with pytest.raises(InvalidParameter, match="three") as caught:
            series.seasons(analysis, days)
        assert caught.value.pointer == "/analysis/year_begins"
        return
    for (year, start, stop), expected in zip(series.seasons(analysis, days), kept, strict=True):
        assert year == expected
        assert start == pd.Timestamp(year, month, day).timestamp() / 86_400
        assert stop == pd.Timestamp(year + 1, month, day).timestamp() / 86_400


@pytest.mark.parametrize("year", [YEARS[0], YEARS[1]])
@pytest.mark.parametrize("year_begins", ["01-01", "07-01", "12-28"])
@pytest.mark.parametrize("grouping", [Grouping(), Grouping(by="rolling", days=3660, step_days=5)])
def test_the_first_and_the_last_year_of_series_have_their_years_of_growth(year, year_begins, grouping):
    days = periods([date(year, 8, 1) + timedelta(days=10 * n) for n in range(9)], grouping)
    assert series.seasons(Phenology(year_begins=year_begins), days)


# Lines and waves


def test_lines_are_scipys_per_year():
    values = holed((len(DAYS), 20)) + np.linspace(0, 0.4, len(DAYS), dtype=np.float32)[:, None]
    years = (np.array([(day - DAYS[0]).days for day in DAYS])) / 365.25
    for analysis in (Line(), Line(model="theil_sen")):
        found = named(analysis, values)
        for pixel in range(20):
            known = np.isfinite(values[:, pixel])
            x, y = years[known], values[known, pixel].astype(np.float64)
            assert found["count"][pixel] == known.sum()
            if analysis.model == "least_squares":
                fit = stats.linregress(x, y)
                own = [found[name][pixel] for name in ("slope", "intercept", "p_value", "stderr")]
                np.testing.assert_allclose(own, [fit.slope, fit.intercept, fit.pvalue, fit.stderr], rtol=1e-5)
                assert found["r2"][pixel] == pytest.approx(fit.rvalue**2, rel=1e-5)
            else:
                fit = stats.theilslopes(y, x)
                np.testing.assert_allclose([found["slope"][pixel], found["intercept"][pixel]], fit[:2], rtol=1e-5)
                assert found["tau"][pixel] == pytest.approx(stats.kendalltau(x, y).statistic, rel=1e-5)
    units = dict(series.bands(Line(), ["ndvi"], BY_DAY))
    assert units == {"slope": "1/year", "intercept": None, "r2": None, "p_value": None, "stderr": "1/year",
                     "count": None}  # fmt: skip


def test_too_few_values_make_no_line():
    values = holed((len(DAYS), 1), holes=0.0)
    values[9:] = np.nan
    assert np.isfinite(named(Line(at_least=9), values)["slope"]).all()
    assert np.isnan(named(Line(at_least=10), values)["slope"]).all()
    assert np.isnan(named(Line(model="theil_sen", at_least=10), values)["slope"]).all()


@settings(max_examples=30)
@given(st.floats(0.0, 364.0), st.floats(0.05, 2.0), st.floats(0.0, 180.0), st.floats(-0.5, 0.5), st.booleans())
def test_waves_come_back_with_their_amplitudes_crests_and_slope(crest, amplitude, second, slope, has_slope):
    since = np.array([(day - date(2019, 1, 1)).days for day in DAYS], np.float64)
    turn = 2 * np.pi / 365.25
    curve = 0.4 + amplitude * np.cos(turn * (since - crest)) + 0.03 * np.cos(2 * turn * (since - second))
    if has_slope:
        curve = curve + slope * since / 365.25
    found = named(Waves(harmonics=2, has_slope=has_slope), curve[:, None].astype(np.float32))
    assert found["mean"][0] == pytest.approx(0.4, abs=1e-4)
    assert found["amplitude_1"][0] == pytest.approx(amplitude, abs=1e-4)
    assert found["amplitude_2"][0] == pytest.approx(0.03, abs=1e-4)
    assert abs((found["crest_1"][0] - crest + 182.625) % 365.25 - 182.625) < 0.5
    assert abs((found["crest_2"][0] - second + 91.3125) % 182.625 - 91.3125) < 1.0
    assert found["rmse"][0] < 1e-4
    assert found["count"][0] == len(DAYS)
    if has_slope:
        assert found["slope"][0] == pytest.approx(slope, abs=1e-4)
    units = dict(series.bands(Waves(harmonics=2, has_slope=has_slope), ["ndvi"], BY_DAY))
    assert units["crest_2"] == "day"
    assert units.get("slope", "1/year") == "1/year"


# Seasons and anomalies


def test_seasons_are_counted_from_the_beginning_of_each_year_of_growth():
    days = [date(2020, 7, 1) + timedelta(days=5 * n) for n in range(146)]  # two southern years
    curve = [max(1 - abs((day - date(day.year + (day.month > 6), 1, 10)).days) / 80, 0) for day in days]
    found = named(Phenology(year_begins="07-01"), np.array(curve, np.float32)[:, None], periods(days, Grouping()))
    for year in (2020, 2021):
        crest = (date(year + 1, 1, 10) - date(year, 7, 1)).days
        assert found[f"start_{year}"][0] == pytest.approx(crest - 40, abs=1.5)
        assert found[f"peak_{year}"][0] == pytest.approx(crest, abs=2.5)
        assert found[f"end_{year}"][0] == pytest.approx(crest + 40, abs=1.5)
        assert found[f"length_{year}"][0] == pytest.approx(80, abs=3)
        assert found[f"amplitude_{year}"][0] == pytest.approx(1, abs=0.05)
    units = dict(series.bands(Phenology(), ["ndvi"], periods(days[40:80], Grouping())))
    assert units["peak"] == "day"
    assert units["peak_value"] is None


def test_a_season_of_too_little_amplitude_is_none():
    curve = (0.5 + 0.05 * np.sin(np.arange(len(DAYS)) / 5)).astype(np.float32)[:, None]
    assert np.isfinite(named(Phenology(least_amplitude=0.01), curve)["peak_2020"]).all()
    assert np.isnan(named(Phenology(least_amplitude=0.2), curve)["peak_2020"]).all()


@pytest.mark.parametrize("includes", [False, True])
def test_anomalies_are_pandas_differences_from_the_month(includes):
    values = holed((len(DAYS), 7), seed=3)
    analysis = Anomaly(baseline=(DAYS[0], date(2020, 12, 31)), include_baseline=includes, at_least=6)
    found = named(analysis, values)
    frame = pd.DataFrame(values.astype(np.float64), index=pd.to_datetime(DAYS))
    months = frame[:"2020-12-31"].groupby(lambda day: day.month)
    mean, spread, count = months.mean(), months.std(ddof=1), months.count()
    shown = DAYS if includes else [day for day in DAYS if day.year > 2020]
    assert len(found) == 2 * len(shown)
    for day in shown:
        own = frame.loc[pd.Timestamp(day)]
        away = (own - mean.loc[day.month]).where(count.loc[day.month] >= 6)
        np.testing.assert_allclose(found[f"{day}_anomaly"], away, atol=1e-6)
        np.testing.assert_allclose(found[f"{day}_z_score"], away / spread.loc[day.month], rtol=1e-4, atol=1e-5)


def test_a_baseline_without_days_or_of_all_days_is_refused():
    for baseline, word in (((date(1990, 1, 1), date(1999, 1, 1)), "1990"), ((DAYS[0], DAYS[-1]), "nothing is left")):
        with pytest.raises(InvalidParameter, match=word) as caught:
            series.bands(Anomaly(baseline=baseline), ["ndvi"], BY_DAY)
        assert caught.value.pointer == "/analysis/baseline"
    assert len(series.bands(Anomaly(baseline=(DAYS[0], DAYS[-1]), include_baseline=True), ["b"], BY_DAY)) == 240


def test_a_series_itself_is_a_band_per_period():
    values = holed((len(DAYS), 3))
    found = named(Curve(), values)
    np.testing.assert_array_equal(found[DAYS[7].isoformat()], values[7])


def test_several_bands_carry_their_names():
    one = series.bands(Line(), ["a"], BY_DAY)
    two = series.bands(Line(), ["a", "b"], BY_DAY)
    assert two == tuple((f"{name}_{row}", unit) for name in "ab" for row, unit in one)


# Composites


@pytest.mark.filterwarnings("ignore:(All-NaN|Mean of empty|Degrees of freedom)")
def test_composites_are_numpys():
    stack, days = holed((9, 2, 50), seed=5, holes=0.3), DAYS[:9]
    stack[:, :, 4] = np.nan
    analysis = Composite(statistics=("max", "median", "count", "mean", "valid_fraction", "stdev", "min"),
                         percentiles=(10.0, 50.0, 97.5))  # fmt: skip
    found = composed(analysis, stack, days, ["a", "b"])
    for band, name in enumerate("ab"):
        values = stack[:, band].astype(np.float64)
        for row, own in (("max", np.nanmax), ("median", np.nanmedian), ("mean", np.nanmean), ("min", np.nanmin),
                         ("stdev", np.nanstd)):  # fmt: skip
            np.testing.assert_allclose(found[f"{name}_{row}"], own(values, axis=0), rtol=1e-5)
        for level in (10, 50, 97.5):
            own = np.nanpercentile(values, level, axis=0)
            np.testing.assert_allclose(found[f"{name}_p{level:g}"], own, rtol=1e-5)
        np.testing.assert_array_equal(found[f"{name}_count"], np.isfinite(values).sum(axis=0))
        np.testing.assert_allclose(found[f"{name}_valid_fraction"], np.isfinite(values).mean(axis=0), rtol=1e-6)


def test_whole_dates_by_distance_and_by_value_stand_behind_the_statistics():
    stack, days = holed((7, 2, 30), seed=6, holes=0.0), DAYS[:7]
    stack[:, :, 3] = np.nan
    analysis = Composite(statistics=("count",), medoid=True, geometric_median=True,
                         best=BestPixel(by="lowest", band="b"))  # fmt: skip
    found = composed(analysis, stack, days, ["a", "b"])
    assert list(found) == ["a_count", "b_count", "a_medoid", "b_medoid", "a_geometric_median", "b_geometric_median",
                           "a_best", "b_best", "best_day"]  # fmt: skip
    apart = np.linalg.norm(stack[:, None] - stack[None], axis=2).sum(axis=1)
    for pixel in set(range(30)) - {3}:
        middle, low = apart[:, pixel].argmin(), stack[:, 1, pixel].argmin()
        assert [found["a_medoid"][pixel], found["b_medoid"][pixel]] == stack[middle, :, pixel].tolist()
        assert [found["a_best"][pixel], found["b_best"][pixel]] == stack[low, :, pixel].tolist()
        assert found["best_day"][pixel] == days[low].timetuple().tm_yday
        settled = np.array([found["a_geometric_median"][pixel], found["b_geometric_median"][pixel]])
        own = np.linalg.norm(stack[:, :, pixel] - settled, axis=1).sum()
        nudged = [np.linalg.norm(stack[:, :, pixel] - settled - step, axis=1).sum() for step in 1e-3 * np.eye(2)]
        assert own <= min(nudged) + 1e-5
    assert all(np.isnan(found[name][3]) for name in list(found)[2:])


@pytest.mark.parametrize(
    ("best", "place"),
    [(BestPixel(by="highest"), 2), (BestPixel(by="lowest"), 0), (BestPixel(by="nearest", day=date(2021, 3, 9)), 3),
     (BestPixel(by="nearest", day=date(2021, 2, 26)), 2), (BestPixel(by="clearest"), 1)],
)  # fmt: skip
def test_the_best_date_is_taken_whole(best, place):
    days = [date(2020, 12, 30), date(2021, 2, 1), date(2021, 2, 25), date(2021, 3, 11)]
    stack = np.array([0.1, 0.4, 0.9, 0.3], np.float32).reshape(4, 1, 1).repeat(2, 2)
    stack[place, :, 1] = np.nan
    rank = np.array([[0.0], [5.0], [2.0], [5.0]], np.float32) if best.by == "clearest" else None
    found = composed(Composite(best=best), stack, days, ["v"], rank)
    assert found["v_best"][0] == stack[place, 0, 0]
    assert found["best_day"][0] == days[place].timetuple().tm_yday
    assert found["v_best"][1] in np.delete(stack[:, 0, 0], place)


# Filling and smoothing


@pytest.mark.parametrize("gap_days", [12.0, 25.0, 1e9])
def test_gaps_are_filled_as_pandas_does_where_they_are_narrow(gap_days):
    values = holed((len(DAYS), 12), seed=8, holes=0.5)
    values[:3, 2], values[-4:, 5], values[:, 7] = np.nan, np.nan, np.nan
    frame = pd.DataFrame(values.astype(np.float64), index=pd.DatetimeIndex(pd.to_datetime(DAYS)))
    expected = frame.interpolate(method="time", limit_area="inside")
    stamps = frame.index.to_series()
    for column in frame:
        known = stamps.where(frame[column].notna())
        width = (known.bfill() - known.ffill()).dt.days
        expected.loc[frame[column].isna() & (width > gap_days), column] = np.nan
    series.prepare(values, series.moments_of(BY_DAY), Fill(gap_days=gap_days), None)
    np.testing.assert_allclose(values, expected.to_numpy(), rtol=1e-5)


def test_waves_fill_between_the_first_and_the_last_value_and_leave_values_alone():
    since = series.moments_of(BY_DAY) - series.moments_of(BY_DAY)[0]
    curve = (0.5 + 0.3 * np.cos(2 * np.pi * (since - 80) / 365.25)).astype(np.float32)
    values = np.stack([curve, curve], axis=1)
    gaps = np.zeros_like(values, np.bool_)
    gaps[:4, 0] = gaps[30:50, 0] = gaps[115:, 0] = gaps[20:40, 1] = True
    values[gaps] = np.nan
    values[60, 0] += 0.2
    series.prepare(values, series.moments_of(BY_DAY), Fill(by="harmonic"), None)
    assert np.isnan(values[:4, 0]).all()
    assert np.isnan(values[115:, 0]).all()
    assert values[60, 0] == pytest.approx(curve[60] + 0.2, abs=1e-6)
    np.testing.assert_allclose(values[30:50, 0], curve[30:50], atol=0.02)
    np.testing.assert_allclose(values[:, 1], curve, atol=1e-4)


def test_an_even_series_is_smoothed_as_scipy_does():
    days = periods([DAYS[0] + timedelta(days=8 * n) for n in range(60)], Grouping())
    values = holed((60, 5), holes=0.0)
    expected = signal.savgol_filter(values.astype(np.float64), 9, 3, axis=0)
    series.prepare(values, series.moments_of(days), None, Smooth(by="savitzky_golay", window=9, order=3))
    np.testing.assert_allclose(values, expected, atol=1e-5)
    values, weights = holed((60, 5), seed=1), None
    weights = np.isfinite(values).astype(np.float64)
    steps = np.diff(np.eye(60), 2, axis=0)
    expected = np.stack([np.linalg.solve(np.diag(w) + 50 * steps.T @ steps, w * np.nan_to_num(y))
                         for w, y in zip(weights.T, values.T.astype(np.float64), strict=True)], axis=1)  # fmt: skip
    first, last = weights.argmax(axis=0), 60 - weights[::-1].argmax(axis=0)
    series.prepare(values, series.moments_of(days), None, Smooth(roughness=50.0))
    for pixel in range(5):
        own = slice(first[pixel], last[pixel])
        np.testing.assert_allclose(values[own, pixel], expected[own, pixel], atol=1e-4)


def test_gaps_are_filled_before_the_series_is_smoothed():
    values = holed((len(DAYS), 4), seed=2, holes=0.4)
    times, both = series.moments_of(BY_DAY), values.copy()
    smooth = Smooth(by="savitzky_golay")
    series.prepare(both, times, Fill(), smooth)
    series.prepare(values, times, Fill(), None)
    series.prepare(values, times, None, smooth)
    np.testing.assert_array_equal(both, values)


# What is refused


@pytest.mark.parametrize(
    ("analysis", "smooth", "pointer"),
    [(Curve(), Smooth(by="savitzky_golay", window=8), "/smooth/window"),
     (Curve(), Smooth(by="savitzky_golay", window=3, order=3), "/smooth/window"),
     (Composite(best=BestPixel(by="nearest")), None, "/analysis/best/day"),
     (Composite(best=BestPixel(by="lowest", day=DAYS[0])), None, "/analysis/best/day"),
     (Composite(best=BestPixel()), None, "/analysis/best/band"),
     (Composite(best=BestPixel(band="c")), None, "/analysis/best/band"),
     (Anomaly(baseline=(DAYS[1], DAYS[0])), None, "/analysis/baseline")],
)  # fmt: skip
def test_contradictions_are_refused_where_they_stand(analysis, smooth, pointer):
    with pytest.raises(InvalidParameter) as caught:
        series.checked(analysis, ["a", "b"], smooth)
    assert caught.value.pointer == pointer


def test_what_is_left_out_has_its_default_and_the_rest_stays():
    assert series.checked(Composite(), ["a"], None) == Composite(statistics=("median",))
    for analysis in (Composite(best=BestPixel()), Composite(percentiles=(5.0,)), Composite(medoid=True),
                     Composite(geometric_median=True), Line(), Anomaly(baseline=(DAYS[0], DAYS[0]))):  # fmt: skip
        assert series.checked(analysis, ["a"], Smooth(window=8)) == analysis


@pytest.mark.parametrize(
    "document",
    [{"type": "trend", "at_least": 2}, {"type": "harmonic", "harmonics": 5}, {"type": "phenology", "threshold": 0.95},
     {"type": "phenology", "year_begins": "02-29"}, {"type": "composite", "percentiles": [101]},
     {"type": "composite", "best": {"by": "most"}}, {"type": "trend", "colour": 1}, {"type": "unheard"},
     {"type": "anomaly"}, {"type": "harmonic", "period_days": 0}],
)  # fmt: skip
def test_documents_out_of_bounds_do_not_decode(document):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, series.Analysis)
