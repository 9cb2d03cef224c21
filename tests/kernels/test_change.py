import numpy as np
import pytest
from scipy import stats

from eorouter_kernels import change
from eorouter_kernels.reference import change as twin


@pytest.mark.parametrize("dof", [1, 2, 3, 6, 7, 24])
def test_tail_is_that_of_scipy(dof):
    z = np.concatenate([np.linspace(0, 300, 601), [1199, 1300, 1e308, np.inf, np.nan]])
    out, same = np.empty_like(z), np.empty_like(z)
    change.chi_square_tail(z, dof, np.empty((3, z.size)), out)
    twin.chi_square_tail(z, dof, same)
    np.testing.assert_allclose(out, stats.chi2.sf(z, dof), rtol=1e-10, atol=1e-255)
    np.testing.assert_allclose(same, out, rtol=1e-9, atol=1e-255)


@pytest.mark.parametrize(("bands", "pixels"), [(1, 7), (3, 256), (6, 2501)])
def test_weighted_sums_and_chi_squares_are_those_of_numpy(bands, pixels):
    rng = np.random.default_rng(bands)
    before, after = (rng.normal(50, 3, (bands, pixels)).astype("float32") for _ in range(2))
    centre, none = np.full(2 * bands, 50.0), change.padded(np.empty((0, 2 * bands)), np.empty(0))
    matrix = change.padded(rng.normal(size=(bands, 2 * bands)), rng.normal(size=bands))
    span = (pixels // 5, pixels - 1)
    for variates in (none, matrix):
        out, same = np.zeros((2 * bands + 1, 2 * bands + 1)), np.empty((2 * bands + 1, 2 * bands + 1))
        change.reweighted_sums(before, after, span, centre, variates, out)
        twin.reweighted_sums(before, after, span, centre, variates, same)
        np.testing.assert_allclose(out, same, rtol=1e-9, atol=1e-9)
    values = np.vstack([before, after])[:, slice(*span)]
    change.reweighted_sums(before, after, span, centre, none, out)
    spread = out[:-1, :-1] / out[-1, -1] - np.outer(out[:-1, -1], out[:-1, -1]) / out[-1, -1] ** 2
    np.testing.assert_allclose(np.triu(spread), np.triu(np.cov(values.astype(float), ddof=0)), atol=1e-9)
    before[0, 3] = np.nan
    found, expected = np.empty((2, pixels), "float32"), np.empty((2, pixels), "float32")
    near = change.padded(matrix[:, : 2 * bands], matrix[:, : 2 * bands] @ centre + 0.5)
    change.chi_squares(before, after, near, found)
    twin.chi_squares(before, after, near, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], stats.chi2.cdf(found[0], bands), atol=1e-6)


def test_a_pixel_does_not_look_at_its_neighbours():
    rng = np.random.default_rng(8)
    before, after = (rng.normal(size=(4, 700)).astype("float32") for _ in range(2))
    matrix = change.padded(rng.normal(size=(4, 8)), rng.normal(size=4))
    whole, part = np.empty((2, 700), "float32"), np.empty((2, 37), "float32")
    change.chi_squares(before, after, matrix, whole)
    change.chi_squares(*(np.ascontiguousarray(each[:, 301:338]) for each in (before, after)), matrix, part)
    assert np.array_equal(whole[:, 301:338], part)


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


def test_omnibus_of_equal_dates_is_nought_and_certain_never_less():
    rng = np.random.default_rng(4)
    stack = np.repeat(rng.gamma(5, 1 / 5, (1, 2, 4_000)).astype("float32"), 5, axis=0)
    out = np.empty((5, 4_000), "float32")
    change.omnibus(stack, 7.3, 0.01, out)
    assert out[0].min() >= 0
    assert out[0].max() < 1e-9
    assert (out[1] == 1).all()
    assert not out[2:].any()


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
