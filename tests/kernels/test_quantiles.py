"""Keys keep the order, runs do not see how they were cut, and quantiles are the usual ones where there are such."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_kernels import quantiles
from eorouter_kernels.coverage import Spans
from eorouter_kernels.reference import zonal as reference

SEEDED = settings(deadline=None, derandomize=True, max_examples=60)

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def spans_of(weight: np.ndarray) -> Spans:
    """Every cell of weight (y, x) a span of its own, in two pairs: the upper and the lower half."""
    row, col = (place.ravel().astype(np.int32) for place in np.indices(weight.shape))
    first = np.array([0, weight.shape[0] // 2 * weight.shape[1], weight.size])
    return Spans(0, first, row, col, np.ones(weight.size, np.int32), weight.ravel())


def drawn(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], distinct: int) -> np.ndarray:
    """Values of the whole range of a type, the extremes and both zeros among them."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        pool = np.concatenate([[0.0, -0.0, -np.inf, 1e-40], rng.normal(0, 1, distinct) * 10.0 ** rng.integers(-9, 9)])
    else:
        info = np.iinfo(kind)
        pool = np.concatenate(
            [np.array([info.min, info.max], kind), rng.integers(info.min, info.max, distinct, dtype=kind)]
        )
    return rng.choice(pool, shape).astype(kind)


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.6, 1.0, rng.random(shape) * 10.0 ** rng.integers(-8, 1, shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_keep_the_order_and_give_the_values_back(dtype: str):
    pixels = np.unique(drawn(np.random.default_rng(1), dtype, (4000,), 500))
    key = quantiles.keys(pixels)
    assert key.dtype == ("uint16" if pixels.itemsize <= 2 else f"uint{8 * pixels.itemsize}")
    assert (np.diff(key.astype(object)) > 0).all()
    np.testing.assert_array_equal(quantiles.values(key, pixels.dtype), pixels.astype(np.float64))


def test_the_two_zeros_are_one_value():
    key = quantiles.keys(np.array([0.0, -0.0], np.float32))
    assert key[0] == key[1]


@SEEDED
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(DTYPES),
    distinct=st.integers(1, 400),
    masked=st.none() | st.just(0.3),
)
def test_quantiles_equal_twin(seed: int, dtype: str, distinct: int, masked: float | None):
    rng = np.random.default_rng(seed)
    shape = (2 * int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    pixels, weight = drawn(rng, dtype, shape, distinct), weights(rng, shape)
    pixels[np.isinf(pixels.astype(np.float64))] = 1
    valid = None if masked is None else rng.random(shape) >= masked
    levels = (0.77, 0.0, 0.5, 0.1, 1.0)
    runs = quantiles.collect(spans_of(weight), quantiles.keys(pixels), valid, (0, 0))
    found = quantiles.quantiles(runs, pixels.dtype, levels)
    half = shape[0] // 2
    scale = float(np.abs(pixels.astype(np.float64)).max())
    for pair, part in enumerate((slice(0, half), slice(half, None))):
        seen = np.ones(shape, bool) if valid is None else valid
        chosen = np.where(weight[part] >= 1e-9, weight[part], 0.0)
        # Between neighbours of hardly any weight a quantile moves far within the rounding of its level.
        low, high = (
            [
                reference.zonal_quantile(chosen, pixels[part], seen[part], min(max(level + off, 0), 1))
                for level in levels
            ]
            for off in (-1e-13, 1e-13)
        )
        assert (np.isnan(found[pair]) == np.isnan(low)).all()
        assert not (found[pair] < np.subtract(low, 1e-9 * scale)).any()
        assert not (found[pair] > np.add(high, 1e-9 * scale)).any()


@SEEDED
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(("uint16", "int32", "float64")), cuts=st.integers(1, 6))
def test_joined_runs_do_not_see_how_cells_were_cut_or_in_which_order_they_came(seed: int, dtype: str, cuts: int):
    rng = np.random.default_rng(seed)
    n = 300
    pixels, weight, owner = drawn(rng, dtype, (n,), 40), weights(rng, (n,)), rng.integers(0, 3, n)
    key = quantiles.keys(pixels)

    def piece(cells: np.ndarray) -> tuple[np.ndarray, quantiles.Runs]:
        """Runs of some cells, which are sorted by owner first."""
        cells = cells[np.argsort(owner[cells], kind="stable")]
        first = np.searchsorted(owner[cells], np.arange(4))
        place = np.arange(len(cells), dtype=np.int32)
        batch = Spans(0, first, place * 0, place, np.ones(len(cells), np.int32), weight[cells])
        return np.arange(3), quantiles.collect(batch, key[cells][None], None, (0, 0))

    _, whole = piece(np.arange(n))
    pieces = [piece(cells) for cells in np.array_split(rng.permutation(n), cuts)]
    joined = quantiles.join(*zip(*pieces, strict=True), 3)
    for ours, theirs in zip(joined, whole, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert (whole.part < quantiles.STEPS).all()
    total = whole.whole.sum() + whole.part.sum(dtype=object) / quantiles.STEPS
    assert float(total) == pytest.approx(weight[weight >= 1e-9].sum(), rel=1e-14)


@SEEDED
@given(seed=st.integers(0, 10_000), n=st.integers(1, 400), dtype=st.sampled_from(DTYPES))
def test_quantiles_of_different_values_in_whole_cells_are_the_usual_ones(seed: int, n: int, dtype: str):
    pixels = np.random.default_rng(seed).permutation(127)[:n].astype(dtype).reshape(1, -1)
    batch = Spans(0, np.array([0, 1]), *(np.array([at], np.int32) for at in (0, 0, pixels.size)), np.ones(1))
    runs = quantiles.collect(batch, quantiles.keys(pixels), None, (0, 0))
    levels = [0.0, 0.1, 0.5, 0.9, 1.0]
    expected = np.quantile(pixels.astype(np.float64), levels)
    np.testing.assert_allclose(quantiles.quantiles(runs, pixels.dtype, levels)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("n", [0, 1, 48, 49, 3000])
def test_long_and_short_pairs_are_sorted_alike(dtype: str, n: int):
    rng = np.random.default_rng(n)
    for top in (3, 1 << 12, np.iinfo(dtype).max):
        pixels = rng.integers(0, top, (1, n), dtype=dtype, endpoint=True)
        place = np.arange(n, dtype=np.int32)
        batch = Spans(0, np.array([0, n]), place * 0, place, np.ones(n, np.int32), np.ones(n))
        runs = quantiles.collect(batch, pixels, None, (0, 0))
        value, count = np.unique(pixels, return_counts=True)
        np.testing.assert_array_equal(runs.key, value)
        np.testing.assert_array_equal(runs.whole, count)


def test_take_keeps_the_runs_of_some_owners():
    runs = quantiles.Runs(np.array([0, 2, 2, 3]), np.array([4, 5, 6], np.uint16), np.arange(3), np.zeros(3, np.int64))
    taken = runs.take(np.array([False, True, True]))
    assert (taken.first.tolist(), taken.key.tolist(), taken.whole.tolist()) == ([0, 0, 1], [6], [2])


def test_warm_up_compiles_every_kernel():
    quantiles.warm_up()
    assert quantiles._interpolate.signatures


@SEEDED
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(DTYPES), distinct=st.integers(1, 12))
def test_mode_minority_and_variety_are_the_twins(seed: int, dtype: str, distinct: int):
    rng = np.random.default_rng(seed)
    pixels = drawn(rng, dtype, (8, 10), distinct)
    weight = rng.choice([0.25, 0.5, 1.0], (8, 10))  # sums of these are exact, so ties are ties on both sides
    runs = quantiles.collect(spans_of(weight), quantiles.keys(pixels), None, (0, 0))
    found = quantiles.frequent(runs, pixels.dtype)
    for half, rows in enumerate((slice(0, 4), slice(4, 8))):
        expected = reference.zonal_frequent(weight[rows], pixels[rows], np.ones_like(pixels[rows], np.bool_))
        assert tuple(found[half]) == expected


@SEEDED
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(("uint8", "int16", "int32", "float32")))
def test_cells_by_bin_are_numpys_histogram(seed: int, dtype: str):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 100, (8, 10)).astype(dtype)
    weight = weights(rng, (8, 10))
    edges = np.unique(rng.integers(0, 60, 5) * 0.5 - 3.0)
    if len(edges) < 2:
        return
    key = quantiles.bins(pixels, edges, 0.5, -3.0)
    runs = quantiles.collect(spans_of(weight), key, None, (0, 0))
    found, total = quantiles.counts(runs, np.arange(len(edges) + 1, dtype=np.uint16))
    physical = pixels * 0.5 - 3.0
    for half, rows in enumerate((slice(0, 4), slice(4, 8))):
        expected, _ = np.histogram(physical[rows], edges, weights=weight[rows])
        np.testing.assert_allclose(found[half, 1:-1], expected, rtol=1e-12, atol=1e-7)
        below, above = physical[rows] < edges[0], physical[rows] > edges[-1]
        np.testing.assert_allclose(
            found[half, [0, -1]], [weight[rows][below].sum(), weight[rows][above].sum()], atol=1e-7
        )
        assert total[half] == pytest.approx(found[half].sum(), rel=1e-12)
