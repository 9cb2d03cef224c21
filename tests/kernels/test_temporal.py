import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from eorouter_kernels import temporal
from eorouter_kernels.reference import temporal as twin


def gappy(shape, seed, share=0.3, dtype="float32"):
    rng = np.random.default_rng(seed)
    out = rng.normal(0.4, 0.2, shape).astype(dtype)
    out[rng.random(shape) < share] = np.nan
    return out


@pytest.mark.parametrize("count", range(1, 10))
def test_the_network_sorts_every_row_of_zeros_and_ones(count):
    # The 0-1 principle: a network that sorts these sorts everything (Knuth 3, 5.3.4, theorem Z).
    moves, places = temporal.network(count)
    for values in itertools.product((0, 1), repeat=count):
        rows = np.array([*values, -1, -1])
        for a, b, low, high in moves:
            assert not {a, b} & {low, high}
            rows[low], rows[high] = min(rows[a], rows[b]), max(rows[a], rows[b])
        assert (np.diff(rows[places]) >= 0).all()


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_ranks_and_moments_are_numpys(times, pixels, seed, share):
    stack = gappy((times, pixels), seed, share)
    levels = np.array([0.0, 0.1, 0.5, 0.73, 1.0])
    out = np.empty((5, pixels), "float32")
    temporal.ranks(stack, levels, out)
    np.testing.assert_allclose(out, twin.ranks(stack, levels), rtol=2e-7, atol=1e-7)
    temporal.moments(stack, out)
    np.testing.assert_allclose(out, twin.moments(stack), rtol=1e-6, atol=1e-7)


def test_infinite_values_are_missing_values():
    stack = np.array([[np.inf], [1.0], [-np.inf], [3.0]], "float32")
    out = np.empty((1, 1), "float32")
    temporal.ranks(stack, np.array([0.5]), out)
    assert out == 2.0


@given(st.permutations(range(9)), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_dates_does_not_matter_to_ranks(order, seed):
    stack = gappy((9, 33), seed)
    one, two = np.empty((2, 33), "float32"), np.empty((2, 33), "float32")
    levels = np.array([0.25, 0.5])
    temporal.ranks(stack, levels, one)
    temporal.ranks(np.ascontiguousarray(stack[list(order)]), levels, two)
    assert np.array_equal(one, two, equal_nan=True)


@pytest.mark.parametrize(("times", "bands"), [(1, 2), (5, 1), (12, 6)])
def test_medoid_and_geometric_median_are_those_of_the_twin(times, bands):
    stack = gappy((times, bands, 45), times, 0.1)
    out = np.empty((bands, 45), "float32")
    temporal.medoid(stack, out)
    assert np.array_equal(out, twin.medoid(stack), equal_nan=True)
    temporal.geometric_median(stack, out)
    assert excess(stack, out) <= 5e-4


def excess(stack, found):
    """How much larger the sum of distances is than with the twin's point, relatively; at most."""

    def away(y):
        return np.nansum(np.sqrt(((stack - y[None]) ** 2).sum(axis=1)), axis=0)

    return np.max(away(found.astype(float)) / np.maximum(away(twin.geometric_median(stack).astype(float)), 1e-9) - 1)


@pytest.mark.parametrize("times", [3, 4, 5, 12])
def test_the_geometric_median_has_the_least_sum_of_distances(times):
    stack = np.random.default_rng(times).uniform(0.02, 0.4, (times, 2, 200)).astype("float32")
    out = np.empty((2, 200), "float32")
    temporal.geometric_median(stack, out)
    assert excess(stack, out) <= (5e-4 if times < 12 else 1e-7)


def test_geometric_median_is_what_a_general_minimiser_finds_and_does_not_look_at_neighbours():
    stack = gappy((12, 6, 64), 5, 0.0)
    stack[3, :, ::5] = np.nan
    out = np.empty((6, 64), "float32")
    temporal.geometric_median(stack, out)
    for p in range(0, 64, 4):
        points = stack[:, :, p][~np.isnan(stack[:, 0, p])].astype(np.float64)
        found = optimize.minimize(
            lambda middle, points=points: np.linalg.norm(points - middle, axis=1).sum(),
            np.median(points, axis=0), method="BFGS", options={"gtol": 1e-9, "maxiter": 10_000},
        )  # fmt: skip
        np.testing.assert_allclose(out[:, p], found.x, atol=5e-4)
    alone = np.empty((6, 1), "float32")
    for p in (0, 17, 63):
        temporal.geometric_median(np.ascontiguousarray(stack[:, :, p : p + 1]), alone)
        assert np.array_equal(alone[:, 0], out[:, p])


def test_the_geometric_median_of_a_majority_is_the_majority():
    stack = np.array([0.2, 0.2, 0.2, 0.9, 0.1], "float32")[:, None, None] * np.ones((1, 3, 1), "float32")
    out = np.empty((3, 1), "float32")
    temporal.geometric_median(stack, out)
    np.testing.assert_allclose(out, 0.2, atol=1e-5)


def test_pick_takes_the_highest_score_that_has_every_band():
    stack, score = gappy((7, 2, 50), 1, 0.3), gappy((7, 50), 2, 0.2)
    out, date = np.empty((2, 50), "float32"), np.empty(50, "float32")
    for scores in (score, np.arange(7, dtype="float32")[:, None]):
        temporal.pick(stack, scores, out, date)
        expected, place = twin.pick(stack, scores)
        assert np.array_equal(out, expected, equal_nan=True)
        assert np.array_equal(date, place, equal_nan=True)


@pytest.mark.parametrize("shift", [-2.0, -2.5, 0.0])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_values_of_stored_numbers(dtype, shift):
    rng = np.random.default_rng(4)
    top = 60_000 if dtype == "uint16" else 120
    a, b = (np.concatenate([rng.integers(0, top, 300), [5, 1, 0]]).astype(dtype) for _ in range(2))
    if dtype == "float32":
        a[7] = np.nan
    clear, missing = np.append(rng.random(300) < 0.8, [True] * 3), np.array([a[3], np.nan], "float64")
    out = np.empty(303, "float32")
    count = temporal.normalized_difference(a, b, missing, shift, clear, out)
    assert np.array_equal(out, twin.normalized_difference(a, b, missing, shift, clear), equal_nan=True)
    assert count == np.count_nonzero(~np.isnan(out)) == twin.count_whole(out[None])
    temporal.to_values(a, float(a[3]), 1e-4, -0.1, clear, out)
    assert np.array_equal(out, twin.to_values(a, float(a[3]), 1e-4, -0.1, clear), equal_nan=True)
    for nodata in (float(a[3]), float(a[3]) + 0.5, np.nan, -1e12):
        temporal.to_values(a, nodata, 1.0, 0.0, clear, out)
        assert np.array_equal(out, twin.to_values(a, nodata, 1.0, 0.0, clear), equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_that_float32_cannot_hold_are_missing(dtype):
    with np.errstate(over="ignore"):
        stored = np.array([1.0, np.inf, -np.inf, np.nan, 3e38, 1e200]).astype(dtype)
    clear, out = np.ones(6, bool), np.empty(6, "float32")
    temporal.to_values(stored, np.nan, 1.0, 0.0, clear, out)
    assert np.flatnonzero(np.isfinite(out)).tolist() == [0, 4]
    assert np.isnan(out[[1, 2, 3, 5]]).all()
    assert np.array_equal(out, twin.to_values(stored, np.nan, 1.0, 0.0, clear), equal_nan=True)
    temporal.to_values(stored, np.nan, 10.0, 0.0, clear, out)
    assert np.flatnonzero(~np.isnan(out)).tolist() == [0]
    assert np.array_equal(out, twin.to_values(stored, np.nan, 10.0, 0.0, clear), equal_nan=True)


def test_single_precision_divides_16_bit_numbers_as_double_precision_does():
    # Every quotient of a sweep over the corners of the type, where float32 has the fewest bits to spare.
    a, b = (
        each.ravel().astype("uint16") for each in np.meshgrid(np.r_[0:300, 65_000:65_536], np.r_[1:300, 65_300:65_536])
    )
    clear, missing, out = np.ones(a.size, bool), np.full(2, np.nan), np.empty(a.size, "float32")
    temporal.normalized_difference(a, b, missing, -2000.0, clear, out)
    assert np.array_equal(out, twin.normalized_difference(a, b, missing, -2000.0, clear), equal_nan=True)


@given(st.integers(1, 5), st.integers(1, 3000), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_whole_pixels_are_counted_and_looked_up(bands, pixels, seed):
    values = gappy((bands, pixels), seed)
    assert temporal.count_whole(values) == twin.count_whole(values)
    rng = np.random.default_rng(seed)
    for dtype in ("uint8", "uint16"):
        stored, known = rng.integers(0, np.iinfo(dtype).max + 1, pixels, dtype), rng.random(pixels) < 0.7
        few, many = np.ones(np.iinfo(dtype).max + 1, np.bool_), rng.random(np.iinfo(dtype).max + 1) < 0.5
        few[stored[: rng.integers(0, 12)]] = False
        for table in (few, many):
            clear, expected = known.copy(), twin.look_up(stored, table, known)
            temporal.look_up(stored, table, clear)
            assert np.array_equal(clear, expected)


@pytest.mark.parametrize("times", [1, 2, 3, 12, 31])
@pytest.mark.parametrize("levels", [[0.5], [0.0], [1.0], [0.1, 0.37, 0.9]])
def test_ranks_that_are_offered_are_those_that_are_fetched(times, levels, monkeypatch):
    stack = gappy((times, 3000), times, 0.4)
    stack[:, :5] = np.nan
    one, two = (np.empty((len(levels), 3000), "float32") for _ in range(2))
    temporal.ranks(stack, np.array(levels), one)
    # Sorted whole, and one pixel after the other.
    monkeypatch.setattr(temporal, "network", lambda count, wanted, whole=temporal.network: whole(count))
    padded = np.concatenate([stack, np.full((40, 3000), np.nan, "float32")])
    temporal.ranks(padded, np.array(levels), two)
    assert np.array_equal(one, two, equal_nan=True)
