"""Elementary functions against the C library's, which is within one unit in the last place."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eorouter_kernels._jit import kernel
from eorouter_kernels.elementary import exp_minus, fma


def exponential(x):
    out = np.empty_like(x)
    exp_minus(x, np.empty_like(x), out)
    return out


def test_exponential_is_within_a_unit_in_the_last_place():
    x = np.concatenate([np.linspace(0, 599.9, 600_001), np.logspace(-320, 2.7, 100_000), [0.0, math.log(2) / 2]])
    expected = np.exp(-x)
    assert np.abs((exponential(x) - expected) / np.spacing(expected)).max() <= 1.5


def test_exponential_at_its_ends():
    x = np.array([0.0, 600.0, 1e300, np.inf, np.nan])
    np.testing.assert_array_equal(exponential(x), [1.0, 0.0, 0.0, 0.0, np.nan])
    assert exponential(np.empty(0)).size == 0


@given(st.lists(st.floats(0, 700), min_size=1, max_size=40))
def test_exponential_of_a_number_does_not_depend_on_its_neighbours(values):
    x = np.array(values)
    np.testing.assert_array_equal(exponential(x), [exponential(x[k : k + 1])[0] for k in range(x.size)])


def test_fma_is_rounded_once():
    @kernel
    def fused(a: float, b: float, c: float) -> float:
        return fma(a, b, c)

    a = 1.0 + 2.0**-30
    assert a * a - (1.0 + 2.0**-29) == 0.0
    assert fused(a, a, -(1.0 + 2.0**-29)) == 2.0**-60
