import numpy as np
import pytest
from scipy import stats

from eorouter_kernels import change
from eorouter_kernels.reference import change as twin


@pytest.mark.parametrize("dof", [1, 2, 3, 6, 7, 24])
def test_tail_is_that_of_scipy(dof):
    z = np.concatenate([np.linspace(0, 300, 601), [np.nan]])
    out, same = np.empty_like(z), np.empty_like(z)
    change.chi_square_tail(z, dof, out)
    twin.chi_square_tail(z, dof, same)
    np.testing.assert_allclose(out, stats.chi2.sf(z, dof), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(same, out, rtol=1e-9)


def test_moments_and_lengths_are_those_of_numpy():
    rng = np.random.default_rng(1)
    values, weights = rng.normal(50, 3, (5, 2501)).astype("float32"), rng.random(2501)
    mean, covariance, out = np.empty(5), np.empty((5, 5)), np.empty(2501)
    change.weighted_moments(values, weights, mean, covariance)
    np.testing.assert_allclose(mean, np.average(values, axis=1, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(values, aweights=weights, ddof=0), rtol=1e-6)
    same, also = np.empty(5), np.empty((5, 5))
    twin.weighted_moments(values, weights, same, also)
    np.testing.assert_allclose(covariance, also, rtol=1e-9)
    matrix, shift, expected = rng.normal(size=(2, 5)), rng.normal(size=2), np.empty(2501)
    change.squared_length(values, matrix, shift, out)
    twin.squared_length(values, matrix, shift, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-10)


def test_omnibus_is_its_twin():
    rng = np.random.default_rng(2)
    stack = rng.gamma(5, 1 / 5, (6, 2, 150)).astype("float32")
    stack[3:, :, :80] *= 4
    stack[5, :, :40] /= 8
    stack[0, 0, 7], stack[1, 1, 8] = np.nan, 0
    out, same = np.empty((5, 150), "float32"), np.empty((5, 150), "float32")
    change.omnibus(stack, 5.0, 0.01, out)
    twin.omnibus(stack, 5.0, 0.01, same)
    np.testing.assert_allclose(out, same, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dates", "bands", "looks"), [(2, 1, 4.0), (2, 2, 9.0), (6, 2, 5.0)])
def test_omnibus_has_uniform_probabilities_without_change_and_power_with_it(dates, bands, looks):
    rng = np.random.default_rng(3)
    stack = rng.gamma(looks, 1 / looks, (dates, bands, 20_000)).astype("float32")
    out = np.empty((5, 20_000), "float32")
    change.omnibus(stack, looks, 0.01, out)
    assert stats.kstest(out[1], "uniform").statistic < 0.015
    stack[dates // 2 :] *= 20
    change.omnibus(stack, looks, 0.01, out)
    assert (out[1] < 0.01).mean() > 0.6
    changed = out[4] > 0
    assert (out[2][changed] == dates // 2).mean() > 0.85
