"""Weighted moments against the textbook and against NumPy's weighted average, however the blocks are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_kernels import weighted
from eorouter_kernels.coverage import Spans
from eorouter_kernels.reference import weighted as reference

ONE, ZERO = np.ones(1), np.zeros(1)


def spans_of(fraction: np.ndarray, parts: int = 1) -> Spans:
    """Every cell of fraction (y, x) a span of its own; rows dealt out to `parts` pairs."""
    row, col = (place.ravel().astype(np.int32) for place in np.indices(fraction.shape))
    cuts = np.linspace(0, fraction.shape[0], parts + 1).astype(int) * fraction.shape[1]
    return Spans(0, cuts, row, col, np.ones(fraction.size, np.int32), fraction.ravel())


def drawn(seed: int, dtype: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shape = (12, 9)
    fraction = np.where(rng.random(shape) < 0.5, 1.0, rng.random(shape)) * (rng.random(shape) < 0.9)
    weights = rng.gamma(1.0, 4.0, shape) * (rng.random(shape) < 0.8)
    weights[rng.random(shape) < 0.1] = rng.choice([np.nan, -1.0])
    values = (rng.normal(50, 9, (1, *shape)) + 1000 * (dtype == "float64")).astype(dtype)
    return fraction, weights, values, rng.random((1, *shape)) < 0.8


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(["uint8", "uint16", "float32", "float64"]),
    parts=st.integers(1, 6),
    skips=st.booleans(),
)
def test_moments_are_those_of_the_textbook_however_they_are_cut(seed: int, dtype: str, parts: int, skips: bool):
    fraction, weights, values, valid = drawn(seed, dtype)
    state = weighted.empty((parts, 1))
    weighted.update(spans_of(fraction, parts), values, valid, weights, (0, 0), state)
    folded = weighted.empty((1, 1))
    weighted.merge(np.zeros(parts, np.int64), state, folded)
    found = {name: each[0, 0] for name, each in weighted.finish(folded, ONE, ZERO, skips_unknown=skips).items()}
    expected = reference.weighted_moments(fraction, weights, values[0], valid[0], skips_unknown=skips)
    assert tuple(found) == weighted.MOMENTS
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name


def test_scale_and_offset_are_applied_to_what_was_summed():
    fraction, weights, values, valid = drawn(3, "uint16")
    weights = np.abs(np.nan_to_num(weights))
    state = weighted.empty((1, 1))
    weighted.update(spans_of(fraction), values, valid, weights, (0, 0), state)
    found = weighted.finish(state, np.array([0.5]), np.array([-7.0]), skips_unknown=False)
    w, x = (fraction * weights)[valid[0]], values[0][valid[0]] * 0.5 - 7.0
    assert found["weighted_mean"][0, 0] == pytest.approx(np.average(x, weights=w), rel=1e-12)
    assert found["weighted_sum"][0, 0] == pytest.approx((w * x).sum(), rel=1e-12)
    assert found["weighted_stdev"][0, 0] == pytest.approx(np.sqrt(np.cov(x, aweights=w, ddof=0)), rel=1e-9)


def test_a_small_spread_about_a_large_mean_keeps_its_digits():
    values = 1e9 + np.array([[[0.0, 1.0], [2.0, 3.0]]])
    state = weighted.empty((1, 1))
    weighted.update(spans_of(np.ones((2, 2))), values, None, np.ones((2, 2)), (0, 0), state)
    found = weighted.finish(state, ONE, ZERO, skips_unknown=False)
    assert found["weighted_variance"][0, 0] == 1.25


def test_weights_of_nothing_give_nothing_and_are_no_unknown():
    state = weighted.empty((1, 1))
    weighted.update(spans_of(np.ones((2, 2))), np.ones((1, 2, 2)), None, np.zeros((2, 2)), (0, 0), state)
    found = weighted.finish(state, ONE, ZERO, skips_unknown=False)
    assert found["weighted_count"][0, 0] == 0.0
    assert np.isnan(found["weighted_mean"][0, 0])
