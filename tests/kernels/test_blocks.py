"""The block kernels against their NumPy twins and against imagecodecs."""

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_kernels import blocks
from eorouter_kernels.reference import blocks as reference

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


def words(shape, size, seed):
    return np.random.default_rng(seed).integers(0, 256, (*shape, size), np.uint8).view(f"<u{size}")[..., 0].copy()


def taken(module, name, block, bands, window):
    _, _, rows, cols = window
    size = block.shape[1] if name == "take_planes" else block.dtype.itemsize
    out = np.zeros((len(bands), rows + 3, cols + 2), blocks.WORDS[size])
    getattr(module, name)(block, np.array(bands, np.int64), window, out, (2, 1))
    return out


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1, 2, 4, 8]), st.sampled_from(["take", "take_sums", "take_planes"]), st.data())
def test_windows_taken_from_blocks_equal_the_twins(shape, size, name, data):
    rows, cols, samples = shape
    if name == "take_planes":
        block = np.random.default_rng(1).integers(0, 256, (rows, size, cols, samples), np.uint8)
    else:
        block = words(shape, size, 1)
    bands = data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=3))
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    window = (top, left, data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, cols - left)))
    ours = taken(blocks, name, block, bands, window)
    np.testing.assert_array_equal(ours, taken(reference, name, block, bands, window))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1, 2, 4, 8]), st.sampled_from(["put", "put_differences", "put_planes"]), st.data())
def test_filled_blocks_equal_the_twins(shape, size, name, data):
    pixels = words((shape[2], *shape[:2]), size, 2)
    row, col = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    side = data.draw(st.integers(1, 12))
    made = []
    for module in (blocks, reference):
        if name == "put_planes":
            block = np.zeros((side, size, side, shape[2]), np.uint8)
        else:
            block = np.zeros((side, side, shape[2]), pixels.dtype)
        getattr(module, name)(pixels, row, col, block)
        made.append(block)
    np.testing.assert_array_equal(made[0], made[1])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("samples", [1, 3])
def test_predictors_are_those_of_imagecodecs(dtype, samples):
    pixels = np.random.default_rng(0).normal(0, 50, (samples, 16, 16)).astype(dtype)
    plain = pixels.view(blocks.WORDS[pixels.dtype.itemsize])
    tile = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    every, out = np.arange(samples), np.empty_like(plain)
    if pixels.dtype.kind == "f":
        theirs = imagecodecs.floatpred_encode(tile, axis=1)
        block = np.empty((16, pixels.dtype.itemsize, 16, samples), np.uint8)
        blocks.put_planes(plain, 0, 0, block)
        blocks.take_planes(block, every, (0, 0, 16, 16), out, (0, 0))
    else:
        theirs = imagecodecs.delta_encode(tile, axis=1)
        block = np.empty((16, 16, samples), plain.dtype)
        blocks.put_differences(plain, 0, 0, block)
        blocks.take_sums(block, every, (0, 0, 16, 16), out, (0, 0))
    assert block.tobytes() == theirs.tobytes()
    np.testing.assert_array_equal(out, plain)


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    st.sampled_from(["uint8", "int8", "uint16", "int32", "float32", "float64"]),
    st.sampled_from([0.0, 3.0, float("nan")]),
    st.integers(0, 99),
)
def test_the_first_row_with_something_missing_equals_the_twin(shape, dtype, nodata, seed):
    if np.isnan(nodata) and "float" not in dtype:
        nodata = 1.0
    pixels = np.random.default_rng(seed).integers(0, 40, shape).astype(dtype)
    if "float" in dtype and seed % 2:
        pixels[pixels == 7] = np.nan
    value = pixels.dtype.type(nodata)
    assert blocks.first_missing(pixels, value) == reference.first_missing(pixels, value)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 9)), st.integers(0, 99))
def test_occupied_words_equal_the_twin(shape, seed):
    rng = np.random.default_rng(seed)
    lines = rng.integers(0, 3, shape).astype(np.uint64) * (rng.random(shape) < 0.3)
    lines[seed % (len(lines) + 1) :] = lines[-1]
    assert blocks.occupied(lines) == reference.occupied(lines)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["uint8", "int16", "float32", "float64"]),
    st.sampled_from([0.0, 3.0, float("nan")]),
    st.sampled_from(["none", "one", "each"]),
    st.integers(0, 99),
)
def test_settled_pixels_equal_the_twin(shape, dtype, nodata, flags, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 6, shape).astype(dtype)
    if "float" in dtype:
        pixels[rng.random(shape) < 0.2] = np.nan
    elif np.isnan(nodata):
        nodata = 1.0
    valid = rng.random({"none": (0, 0, 0), "one": (1, *shape[1:]), "each": shape}[flags]) < 0.7
    made = []
    for module in (blocks, reference):
        out, known = np.empty_like(pixels), np.empty(shape, np.bool_)
        module.settle(pixels, valid, pixels.dtype.type(nodata), out, known)
        made.append((out, known))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1], made[1][1])
