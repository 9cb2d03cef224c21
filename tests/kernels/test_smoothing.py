import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import savgol_filter

from eorouter_kernels import smoothing
from eorouter_kernels.reference import smoothing as twin


def gappy(times, pixels, seed, share=0.3):
    rng = np.random.default_rng(seed)
    out = np.sin(np.linspace(0, 5, times))[:, None] + rng.normal(0, 0.2, (times, pixels))
    out[rng.random(out.shape) < share] = np.nan
    return out.astype("float32")


@given(st.integers(3, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_every_filter_is_its_twin(times, seed, share):
    series = gappy(times, 6, seed, share)
    days = np.cumsum(np.random.default_rng(seed).integers(1, 9, times)).astype(float)
    for name, arguments in (
        ("fill_linear", (11.0,)),
        ("whittaker", (3.0,)),
        ("savitzky_golay", (5, 2)),
        ("savitzky_golay", (9, 3)),
    ):
        out = series.copy()
        getattr(smoothing, name)(out, days, *arguments)
        expected = getattr(twin, name)(series, days, *arguments)
        np.testing.assert_allclose(out, expected, rtol=2e-3, atol=2e-4, err_msg=name)


def test_whittaker_on_an_even_grid_is_that_of_the_paper():
    # Eilers 2003, equation 6: z = (W + λ D'D)⁻¹ W y with plain second differences.
    series = gappy(50, 8, 1, 0.0)
    out = series.copy()
    smoothing.whittaker(out, np.arange(50.0) * 10, 100.0)
    d = np.diff(np.eye(50), 2, axis=0)
    np.testing.assert_allclose(
        out, np.linalg.solve(np.eye(50) + 100 * d.T @ d, series.astype(float)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("window", "order"), [(5, 2), (7, 3), (11, 2)])
def test_savitzky_golay_on_an_even_grid_is_scipys(window, order):
    series = gappy(30, 7, 2, 0.0)
    out = series.copy()
    smoothing.savitzky_golay(out, np.arange(30.0), window, order)
    np.testing.assert_allclose(out, savgol_filter(series.astype(float), window, order, axis=0), rtol=1e-4, atol=1e-5)


def test_nothing_is_made_up_outside_the_data():
    series = np.array([np.nan, 1, np.nan, 3, 2, 4, np.nan], "float32")[:, None]
    for name, arguments in (("fill_linear", (9.0,)), ("whittaker", (1.0,)), ("savitzky_golay", (3, 1))):
        out = series.copy()
        getattr(smoothing, name)(out, np.arange(7.0), *arguments)
        assert np.isnan(out[[0, 6]]).all()
        assert np.isfinite(out[1:6]).all(), name


def test_a_line_is_left_alone_by_every_filter():
    days = np.array([0, 3, 10, 11, 25, 40, 41.0])
    series = (0.2 + 0.01 * days)[:, None].astype("float32")
    for name, arguments in (("whittaker", (500.0,)), ("savitzky_golay", (5, 1))):
        out = series.copy()
        getattr(smoothing, name)(out, days, *arguments)
        np.testing.assert_allclose(out, series, atol=1e-5)


def test_phenology_is_its_twin():
    rng = np.random.default_rng(3)
    days = np.arange(0, 365.0, 10)
    shift = rng.uniform(-30, 30, 12)
    rise = 1 / (1 + np.exp(-0.08 * (days[:, None] - 110 - shift)))
    series = (0.2 + 0.6 * rise / (1 + np.exp(0.1 * (days[:, None] - 220 - shift)))).astype("float32")
    series[:, 3] = np.nan
    series[:, 4] = 0.3
    series[:, 5] = np.linspace(0.1, 0.9, len(days))
    out = np.empty((8, 12), "float32")
    for fraction in (0.2, 0.5):
        smoothing.phenology(series, days, 0.0, 365.0, fraction, 0.1, out)
        expected = twin.phenology(series, days, 0.0, 365.0, fraction, 0.1)
        np.testing.assert_allclose(out, expected, rtol=1e-3, atol=5e-3)
    assert np.isnan(out[:, 3:5]).all()
    assert np.isnan(out[2, 5])
    # Half the amplitude of a double logistic is reached near its turning points.
    keep = [0, 1, 2, *range(6, 12)]
    np.testing.assert_allclose(out[0, keep], 110 + shift[keep], atol=2)
    np.testing.assert_allclose(out[2, keep], 220 + shift[keep], atol=2)


def test_phenology_of_a_triangle_by_hand():
    days = np.arange(0, 11.0)
    series = np.array([0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0], "float32")[:, None]
    out = np.empty((8, 1), "float32")
    smoothing.phenology(series, days, 0.0, 11.0, 0.5, 0.1, out)
    # Base 0, peak 5 on day 5; half of it on days 2.5 and 7.5; the area between is 25 − 2 · 2.5² / 2.
    np.testing.assert_allclose(out[:, 0], [2.5, 5, 7.5, 5, 0, 5, 5, 18.75], rtol=1e-6)
