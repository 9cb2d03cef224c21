"""Resampling kernels against their plain twins, on meshes that are straight, bent, dense and full of holes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter_kernels import lobes, positions, reductions, resample
from eorouter_kernels.reference import positions as plain_positions
from eorouter_kernels.reference import reductions as plain_reductions
from eorouter_kernels.reference import resample as plain

NONE = np.empty((0, 0, 0), np.bool_)
WEIGHTED = [lobes.BILINEAR, lobes.CUBIC, lobes.LANCZOS, lobes.AVERAGE, lobes.SUM]
ORDERED = [reductions.MODE, reductions.MIN, reductions.MAX, reductions.MEDIAN]


def mesh(shape, matrix, *, bend=0.0, is_dense=False, hole=False):
    """One leaf over a target of `shape`: source (x, y) = matrix · (col, row, 1), bent at the lower right."""

    def at(row, col):
        x, y = matrix @ [col + 0.5, row + 0.5, 1.0]
        return x + bend * row * col / 20, y - bend * row * col / 30

    height, width = shape
    if not is_dense:
        rows, cols = (0, height), (0, width)
    else:
        rows, cols = range(height + 1), range(width + 1)
    nodes = np.array([at(row, col) for row in rows for col in cols])
    if hole:
        nodes[5:9] = np.nan
    return np.array([[0, 0, height, width, height, width, int(is_dense), 0]]), nodes


def pixels(dtype, bands=2, shape=(23, 29), seed=3):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, (bands, *shape)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -3000), min(info.max, 4000), (bands, *shape), dtype=dtype)


def run_weighted(kind, leaves, nodes, source, valid, shape, clip=None):  # noqa: PLR0917 - as kernels take them
    clip = clip or (0, 0, *shape)
    out = np.full((len(source), clip[2] - clip[0], clip[3] - clip[1]), 77, source.dtype)
    missing = np.zeros(out.shape, np.bool_)
    is_float = source.dtype.kind == "f"
    limits = (1.0, 0.0) if is_float else (float(np.iinfo(source.dtype).min), float(np.iinfo(source.dtype).max))
    total = np.empty(0, resample.sum_type(source.dtype))
    lost = resample.weighted(
        kind, leaves, nodes, clip, 0.0, source, valid, (0, 0), clip[:2], limits, total, out, missing
    )
    assert lost == missing.sum()
    return out, ~missing


def both_and_twins(kind, leaves, nodes, source, valid, shape):  # noqa: PLR0917 - as kernels take them
    """Values and known of the kernel, then of the twin: with what is missing, and as if nothing were."""
    where = plain_positions.positions(leaves, nodes, shape)
    for each in (valid, np.ones_like(valid)):
        out, known = run_weighted(kind, leaves, nodes, source, NONE if each.all() else each, shape)
        expected, expected_known = plain.weighted(kind, where, source, each)
        np.testing.assert_array_equal(known, expected_known)
        yield out, known, expected


SAME = np.array([[1.0, 0.02, 2.3137], [-0.03, 0.99, 1.7241]])
SHRINK = np.array([[2.4, 0.1, -3.0717], [0.05, 1.6, 0.4291]])
GROW = np.array([[0.4, 0.0, 9.0173], [0.0, 0.3, 6.0419]])
TURNED = np.array([[0.1, -1.3, 24.0631], [1.7, 0.1, -2.0377]])


@pytest.mark.parametrize("matrix", [SAME, SHRINK, GROW, TURNED], ids=["same", "shrink", "grow", "turned"])
@pytest.mark.parametrize("kind", WEIGHTED)
@pytest.mark.parametrize("how", ["straight", "dense"])
def test_weighted_is_its_twin(matrix, kind, how):
    shape = (17, 13)
    leaves, nodes = mesh(shape, matrix, bend=0.3, is_dense=how == "dense", hole=how == "dense")
    source = pixels("uint16")
    valid = np.random.default_rng(1).random(source.shape) > 0.15
    for out, known, expected in both_and_twins(kind, leaves, nodes, source, valid, shape):
        # Half a step of rounding and what float32 sums are off by.
        assert np.abs(out - np.where(known, np.clip(expected, 0, 65535), 0)).max() < 0.51


@pytest.mark.parametrize("down", [1.0, 1.2, 1.4, 1.7, 2.6])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_weighted_is_its_twin_for_any_number_of_rows(kind, down):
    """Columns are not widened, rows more and more: neighbourhoods of two to sixteen rows."""
    shape = (9, 13)
    leaves, nodes = mesh(shape, np.array([[1.0, 0.02, 7.3137], [-0.03, down, 1.7241]]))
    source = pixels("uint16", shape=(31, 29))
    out, known = run_weighted(kind, leaves, nodes, source, NONE, shape)
    expected, expected_known = plain.weighted(
        kind, plain_positions.positions(leaves, nodes, shape), source, np.ones(source.shape, np.bool_)
    )
    np.testing.assert_array_equal(known, expected_known)
    assert np.abs(out - np.where(known, np.clip(expected, 0, 65535), 0)).max() < 0.51


@pytest.mark.parametrize("matrix", [SAME, SHRINK], ids=["same", "shrink"])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_weighted_is_its_twin_where_much_is_missing(matrix, kind):
    """Tiles of the source that are void, clear and mixed, and a target that reaches beyond it."""
    shape = (60, 50)
    leaves, nodes = mesh(shape, matrix)
    source = pixels("uint16", shape=(75, 70))
    valid = np.random.default_rng(1).random(source.shape) > 0.05
    valid[0, :40], valid[1, :, 35:], valid[:, 40:, :33] = False, False, True
    out, known = run_weighted(kind, leaves, nodes, source, valid, shape)
    expected, expected_known = plain.weighted(kind, plain_positions.positions(leaves, nodes, shape), source, valid)
    np.testing.assert_array_equal(known, expected_known)
    assert np.abs(out - np.where(known, np.clip(expected, 0, 65535), 0)).max() < 0.51


@pytest.mark.parametrize("kind", WEIGHTED[:4])
def test_what_is_missing_is_missed_among_a_million_pixels(kind):
    """The weight of each of so many is next to nothing, and yet a third of them are a third of the answer."""
    leaves, nodes = mesh((1, 1), np.array([[1100.0, 0.0, 600.0], [0.0, 1100.0, 600.0]]))
    source = np.full((1, 2300, 2300), 100.0, np.float32)
    valid = np.ones(source.shape, np.bool_)
    valid[:, :, ::3], source[:, :, ::3] = False, 0.0
    out, known = run_weighted(kind, leaves, nodes, source, valid, (1, 1))
    assert known.all()
    np.testing.assert_allclose(out, 100.0, rtol=1e-5)
    valid[:] = False
    valid[:, 1701, 1701] = True  # one more than an average takes, in a tile that it touches
    _, known = run_weighted(kind, leaves, nodes, source, valid, (1, 1))
    assert not known.any()


VAST = np.array([[170.0, 0.0, -71.0], [0.0, 90.0, -44.0]])
LONG = np.array([[52.0, 0.0, -6.0], [0.0, 1.3, 1.0]])


@pytest.mark.parametrize("matrix", [VAST, LONG], ids=["both", "columns"])
@pytest.mark.parametrize("kind", WEIGHTED)
@pytest.mark.parametrize("how", ["straight", "dense"])
def test_pixels_far_larger_than_the_source_are_the_twins(matrix, kind, how):
    shape = (4, 3)
    leaves, nodes = mesh(shape, matrix, bend=4.0, is_dense=how == "dense")
    source = pixels("float32", shape=(15, 40))
    valid = np.random.default_rng(1).random(source.shape) > 0.1
    for out, known, expected in both_and_twins(kind, leaves, nodes, source, valid, shape):
        assert known.any() == (kind >= lobes.AVERAGE or matrix is LONG)
        np.testing.assert_allclose(out, np.where(known, expected, 0), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_pixels_are_as_vast_as_they_are_whoever_is_beside_them(kind):
    """A dense row, from pixels of the source's own size to some a hundred times as wide."""
    shape = (2, 9)
    edges = np.array([-5.0, -4.0, -3.0, -1.0, 2.0, 4.0, 9.0, 60.0, 300.0, 900.0])
    nodes = np.array([(x, y) for y in (0.4, 1.5, 2.7) for x in edges])
    leaves = np.array([[0, 0, 2, 9, 2, 9, 1, 0]])
    source = pixels("float32", shape=(4, 7))
    whole, known = run_weighted(kind, leaves, nodes, source, NONE, shape)
    assert known.any()
    for row in range(2):
        for col in range(9):
            clip = (row, col, row + 1, col + 1)
            alone, alone_known = run_weighted(kind, leaves, nodes, source, NONE, shape, clip)
            np.testing.assert_array_equal(alone[:, 0, 0], whole[:, row, col])
            np.testing.assert_array_equal(alone_known[:, 0, 0], known[:, row, col])


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_pixel_of_a_hundred_million_is_made_of_the_few_there_are(kind):
    """As many weights would not fit into the memory, nor their products into a year."""
    leaves, nodes = mesh((1, 1), np.array([[1e8, 0.0, -5e7], [0.0, 1e8, -5e7]]))
    source = pixels("float32", bands=1, shape=(20, 30))
    out, known = run_weighted(kind, leaves, nodes, source, NONE, (1, 1))
    assert known.all() == (kind >= lobes.AVERAGE)
    if kind >= lobes.AVERAGE:
        expected = source.sum(dtype=np.float64) if kind == lobes.SUM else source.mean(dtype=np.float64)
        np.testing.assert_allclose(out[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_weighted_takes_every_type(dtype):
    shape = (11, 12)
    leaves, nodes = mesh(shape, SAME)
    source = pixels(dtype)
    out, known = run_weighted(lobes.CUBIC, leaves, nodes, source, NONE, shape)
    expected, expected_known = plain.weighted(
        lobes.CUBIC, plain_positions.positions(leaves, nodes, shape), source, np.ones(source.shape, np.bool_)
    )
    np.testing.assert_array_equal(known, expected_known)
    if source.dtype.kind == "f":
        np.testing.assert_allclose(out[known], expected[known], rtol=1e-5, atol=1e-4)
    else:
        info = np.iinfo(dtype)
        assert np.abs(out[known] - np.clip(expected[known], info.min, info.max)).max() < 0.51


@pytest.mark.parametrize("matrix", [SAME, SHRINK, GROW, TURNED], ids=["same", "shrink", "grow", "turned"])
@pytest.mark.parametrize("kind", ORDERED)
def test_ordered_is_its_twin(matrix, kind):
    shape = (17, 13)
    source = pixels("uint8") % 5
    valid = np.random.default_rng(1).random(source.shape) > 0.15
    for is_dense in (False, True):
        leaves, nodes = mesh(shape, matrix, bend=0.3, is_dense=is_dense, hole=is_dense)
        out, missing = np.empty((2, *shape), np.uint8), np.zeros((2, *shape), np.bool_)
        lost = reductions.ordered(kind, leaves, nodes, (0, 0, *shape), 0.0, source, valid, (0, 0), (0, 0), out, missing)
        expected, known = plain_reductions.ordered(kind, plain_positions.positions(leaves, nodes, shape), source, valid)
        np.testing.assert_array_equal(~missing, known)
        np.testing.assert_array_equal(out, expected)
        assert lost == missing.sum()


@pytest.mark.parametrize("is_dense", [False, True])
def test_nearest_is_its_twin(is_dense):
    shape = (17, 13)
    source = pixels("uint16")
    valid = np.random.default_rng(1).random(source.shape) > 0.15
    leaves, nodes = mesh(shape, SHRINK, bend=0.3, is_dense=is_dense, hole=is_dense)
    where = plain_positions.positions(leaves, nodes, shape)
    for each in (valid, np.ones_like(valid)):
        out, missing = np.empty((2, *shape), np.uint16), np.zeros((2, *shape), np.bool_)
        lost = resample.nearest(
            leaves, nodes, (0, 0, *shape), source, NONE if each.all() else each, (0, 0), (0, 0), out, missing
        )
        expected, known = plain.nearest(where, source, each)
        np.testing.assert_array_equal(~missing, known)
        np.testing.assert_array_equal(out, expected)
        assert lost == missing.sum()


@given(
    kind=st.sampled_from(WEIGHTED),
    scale=st.floats(0.3, 3.0),
    turn=st.floats(-0.2, 0.2),
    cut=st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(9, 17), st.integers(9, 13)),
    share=st.sampled_from([0.0, 0.03, 0.5]),
)
def test_a_part_is_cut_from_the_whole(kind, scale, turn, cut, share):
    """The path a pixel takes depends on its neighbours in the row; the value must not, to the last bit."""
    shape = (17, 13)
    leaves, nodes = mesh(shape, np.array([[scale, turn, 1.1], [-turn, scale, 2.2]]))
    for dtype in ("uint16", "float32"):
        source = pixels(dtype)
        valid = np.random.default_rng(5).random(source.shape) >= share
        whole, known = run_weighted(kind, leaves, nodes, source, valid, shape)
        part, part_known = run_weighted(kind, leaves, nodes, source, valid, shape, cut)
        rows, cols = slice(cut[0], cut[2]), slice(cut[1], cut[3])
        assert part.tobytes() == whole[:, rows, cols].tobytes()
        np.testing.assert_array_equal(part_known, known[:, rows, cols])


def test_bounds_hold_every_pixel_that_is_touched():
    shape = (17, 13)
    for matrix in (SAME, SHRINK, GROW, TURNED):
        leaves, nodes = mesh(shape, matrix)
        where = plain_positions.positions(leaves, nodes, shape)[3:9, 2:11].reshape(-1, 5)
        low_y, high_y, low_x, high_x = positions.source_bounds(leaves, nodes, (3, 2, 9, 11), 3.0, 0.0)
        reach = 3.0 * np.maximum(where[:, 2:4], 1.0)
        assert low_x <= (where[:, 0] - reach[:, 0]).min()
        assert high_x >= (where[:, 0] + reach[:, 0]).max()
        assert low_y <= (where[:, 1] - reach[:, 1]).min()
        assert high_y >= (where[:, 1] + reach[:, 1]).max()


def test_half_way_values_go_to_the_even_number():
    leaves, nodes = mesh((1, 3), np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]))
    source = np.array([[[0, 1, 2, 3]]], np.int16)
    out, _ = run_weighted(lobes.BILINEAR, leaves, nodes, source, NONE, (1, 3))
    assert out.tolist() == [[[0, 2, 2]]]
