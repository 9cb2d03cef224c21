import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eorouter_kernels import trend
from eorouter_kernels.reference import trend as twin


def gappy(times, pixels, seed=0, share=0.3, ties=False):
    rng = np.random.default_rng(seed)
    out = rng.normal(0, 1, (times, pixels)) + np.linspace(0, 2, times)[:, None] * rng.normal(0, 1, pixels)
    out = np.round(out) if ties else out
    out[rng.random(out.shape) < share] = np.nan
    return out.astype("float32")


def test_probabilities_are_scipys():
    for freedom in (1.0, 2.0, 3.0, 7.0, 30.0, 498.0):
        for t in (0.0, 1e-6, 0.3, 1.0, 2.5, 9.0, 60.0):
            expected = 2 * stats.t.sf(t, freedom)
            assert trend.student_p(t, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-300)
            assert trend.student_p(-t, freedom) == trend.student_p(t, freedom)
    for z in (0.0, 0.5, 1.96, 5.0, 12.0):
        assert trend.normal_p(z) == pytest.approx(2 * stats.norm.sf(z), rel=1e-12)
    assert math.isnan(trend.student_p(math.nan, 3.0))


def test_least_squares_is_that_of_the_twin_and_of_scipy():
    series, times = gappy(15, 40), np.sort(np.random.default_rng(1).random(15)) * 6
    out = np.empty((6, 40), "float32")
    trend.least_squares(series, times, 3, out)
    expected = twin.least_squares(series, times, 3)
    np.testing.assert_allclose(out[[0, 1, 2, 4, 5]], expected[[0, 1, 2, 4, 5]], rtol=1e-5, atol=1e-6)
    for p in range(40):
        known = np.isfinite(series[:, p])
        line = stats.linregress(times[known], series[known, p].astype(float))
        np.testing.assert_allclose(
            out[:5, p], [line.slope, line.intercept, line.rvalue**2, line.pvalue, line.stderr], rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("ties", [False, True])
def test_theil_sen_is_that_of_the_twin_and_of_scipy(ties):
    series, times = gappy(14, 30, 2, ties=ties), np.arange(14.0) / 2
    out = np.empty((6, 30), "float32")
    trend.theil_sen(series, times, 3, out)
    np.testing.assert_allclose(out, twin.theil_sen(series, times, 3), rtol=1e-5, atol=1e-6)
    for p in range(30):
        known = np.isfinite(series[:, p])
        x, y = times[known], series[known, p].astype(float)
        slope, intercept, _, _ = stats.theilslopes(y, x)
        tau = stats.kendalltau(x, y, variant="b").statistic
        np.testing.assert_allclose(out[:3, p], [slope, intercept, tau], rtol=1e-5, atol=1e-6)


def test_mann_kendall_of_the_precipitation_at_a_textbook_station():
    # Gilbert 1987, Statistical Methods for Environmental Pollution Monitoring, the arithmetic of chapter 16.4 by hand:
    # 10, 22, 21, 30, 22, 30, 40, 41 has S = 22 with two pairs of ties, VAR(S) = (8·7·21 − 18 − 18) / 18 = 63.333.
    series = np.array([10, 22, 21, 30, 22, 30, 40, 41], "float32")[:, None]
    out = np.empty((6, 1), "float32")
    trend.theil_sen(series, np.arange(8.0), 3, out)
    score = sum(np.sign(series[j, 0] - series[i, 0]) for i in range(8) for j in range(i + 1, 8))
    assert out[3, 0] == score == 22
    assert out[4, 0] == pytest.approx(0.0083, abs=5e-5)  # as docs/methods/time_series.md says
    assert out[4, 0] == pytest.approx(2 * stats.norm.sf(21 / math.sqrt((8 * 7 * 21 - 36) / 18)), rel=1e-6)


def test_too_few_values_and_flat_series():
    series = np.array([[1.0, np.nan], [1.0, 2.0], [1.0, np.nan], [1.0, 3.0]], "float32")
    out = np.empty((6, 2), "float32")
    trend.least_squares(series, np.arange(4.0), 3, out)
    assert out[0, 0] == 0
    assert np.isnan(out[[2, 3], 0]).all()
    assert np.isnan(out[:5, 1]).all()
    assert out[5, 1] == 2
    trend.theil_sen(series, np.arange(4.0), 3, out)
    assert out[0, 0] == 0
    assert out[4, 0] == 1
    assert np.isnan(out[2, 0])


@pytest.mark.parametrize(("harmonics", "has_slope"), [(1, False), (2, True), (4, False)])
def test_harmonics_are_those_of_the_twin(harmonics, has_slope):
    times = np.sort(np.random.default_rng(3).random(40)) * 3
    series = gappy(40, 25, 5)
    basis = trend.basis(times, harmonics, 1.0, has_slope=has_slope)
    out, fitted = np.empty((basis.shape[1] + 3, 25), "float32"), np.empty_like(series)
    trend.harmonic(series, basis, harmonics, 1.0, out, fitted)
    expected, curve = twin.harmonic(series, basis, harmonics, 1.0)
    np.testing.assert_allclose(fitted, curve, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-5)


def test_a_wave_comes_back_with_its_crest():
    times = np.arange(0, 2, 1 / 12)
    series = (0.4 + 0.3 * np.cos(2 * np.pi * (times - 0.55)))[:, None].astype("float32")
    out = np.empty((6, 1), "float32")
    trend.harmonic(series, trend.basis(times, 1, 1.0, has_slope=False), 1, 1.0, out, np.empty((0, 0), "float32"))
    np.testing.assert_allclose(out[:, 0], [0.4, 0.3, 0.55, 1.0, 0.0, 24], atol=1e-6)


@st.composite
def dates_and_values(draw):
    """Uneven dates of one to four years that tell up to three waves apart, and the values of a line at them."""
    count, years = draw(st.integers(16, 60)), draw(st.floats(1.0, 4.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    times = (np.arange(count) + rng.random(count)) * years / count
    size = 10.0 ** draw(st.floats(-6, 6))
    return times, size * draw(st.floats(-1, 1)), size * draw(st.floats(-1, 1))


@settings(max_examples=150, deadline=None)
@given(dates_and_values(), st.integers(1, 3), st.booleans(), st.booleans())
def test_a_series_without_a_wave_has_amplitude_zero_and_no_crest(drawn, harmonics, is_sloped, has_slope):
    times, level, slope = drawn
    line = level + (slope if is_sloped and has_slope else 0.0) * times
    series = np.stack([line, np.full_like(times, np.nan)], axis=1).astype("float32")
    series[3, 0] = np.nan
    basis = trend.basis(times, harmonics, 1.0, has_slope=has_slope)
    out = np.empty((basis.shape[1] + 3, 2), "float32")
    trend.harmonic(series, basis, harmonics, 1.0, out, np.empty((0, 0), "float32"))
    waves = out[1 + has_slope : -3, 0]
    assert (waves[::2] == 0).all()
    assert np.isnan(waves[1::2]).all()
    expected, _ = twin.harmonic(series[:, :1], basis, harmonics, 1.0)
    np.testing.assert_array_equal(waves, expected[1 + has_slope : -3, 0])


@settings(max_examples=60, deadline=None)
@given(dates_and_values(), st.floats(1e-5, 1.0))
def test_a_small_wave_is_kept_with_its_crest_and_only_it(drawn, share):
    times, *_ = drawn
    series = (1.0 + share * np.cos(2 * np.pi * (times - 0.3)))[:, None].astype("float32")
    basis = trend.basis(times, 2, 1.0, has_slope=False)
    out = np.empty((8, 1), "float32")
    trend.harmonic(series, basis, 2, 1.0, out, np.empty((0, 0), "float32"))
    assert out[1, 0] == pytest.approx(share, rel=0.05)
    assert out[2, 0] == pytest.approx(0.3, abs=0.01)
    assert out[3, 0] == 0
    assert np.isnan(out[4, 0])


def test_terms_that_the_dates_cannot_tell_apart_give_nothing():
    times = np.arange(8.0)  # whole periods: every cosine is 1
    out = np.empty((6, 1), "float32")
    series = np.ones((8, 1), "float32")
    trend.harmonic(series, trend.basis(times, 1, 1.0, has_slope=False), 1, 1.0, out, np.empty((0, 0), "float32"))
    assert np.isnan(out[:5]).all()
    assert out[5, 0] == 8


def test_anomalies_are_those_of_the_twin():
    series = gappy(36, 20, 9)
    season, baseline = np.arange(36) % 12, np.arange(36) < 24
    out, score = np.empty_like(series), np.empty_like(series)
    trend.anomaly(series, season, baseline, 2, out, score)
    expected, scores = twin.anomaly(series, season, baseline, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(score, scores, rtol=2e-4, atol=1e-5)
