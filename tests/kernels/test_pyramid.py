"""The pyramid kernels against their NumPy twins and against GDAL's overviews."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from scipy.ndimage import rank_filter

from eorouter_kernels import pyramid
from eorouter_kernels.nodata import are_taken, around
from eorouter_kernels.reference import pyramid as reference

PLACE = Affine(10.0, 0.0, 500.0, 0.0, -10.0, 900.0)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def drawn(shape, dtype, seed, *, with_valid, few=False):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        pixels = rng.normal(size=shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        low, high = (0, 3) if few else (info.min, info.max)
        pixels = rng.integers(low, high, shape, endpoint=True, dtype=dtype)
    valid = rng.random(shape) > 0.4 if with_valid else np.empty((0, 0, 0), np.bool_)
    return pixels, valid


def halved(module, name, pixels, valid, nodata):
    shape = (pixels.shape[0], -(-pixels.shape[1] // 2), -(-pixels.shape[2] // 2))
    out, out_valid = np.empty(shape, pixels.dtype), np.zeros(shape if valid.size else (0, 0, 0), np.bool_)
    getattr(module, name)(pixels, valid, nodata, out, out_valid)
    return out, out_valid


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    st.sampled_from([d for d in pyramid.DTYPES if "float" not in d]),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
)
def test_halve_mean_of_integers_equals_twin(shape, dtype, seed, with_valid, few):
    pixels, valid = drawn(shape, dtype, seed, with_valid=with_valid, few=few)
    for nodata in (0, int(np.iinfo(dtype).max)):
        ours = halved(pyramid, "halve_mean_integers", pixels, valid, nodata)
        twin = halved(reference, "halve_mean_integers", pixels, valid, nodata)
        np.testing.assert_array_equal(ours[0], twin[0])
        np.testing.assert_array_equal(ours[1], twin[1])


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["float32", "float64"]), st.integers(0, 99), st.booleans())
def test_halve_mean_of_floats_equals_twin(shape, dtype, seed, with_valid):
    pixels, valid = drawn(shape, dtype, seed, with_valid=with_valid)
    for nodata in (np.nan, -9999.0):
        ours = halved(pyramid, "halve_mean_floats", pixels, valid, around(nodata, dtype))
        twin = halved(reference, "halve_mean_floats", pixels, valid, around(nodata, dtype))
        np.testing.assert_allclose(ours[0], twin[0], rtol=1e-6 if dtype == "float32" else 1e-14, atol=1e-15)
        np.testing.assert_array_equal(ours[1], twin[1])


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["float32", "float64"]), st.integers(0, 99), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_means_of_floats_that_meet_nodata_step_aside(shape, dtype, seed, with_valid, nodata):
    _, valid = drawn(shape, dtype, seed, with_valid=with_valid)
    pixels = np.random.default_rng(seed).choice([nodata - 1, nodata + 1], shape).astype(dtype)
    around_it = around(nodata, dtype)
    ours, known = halved(pyramid, "halve_mean_floats", pixels, valid, around_it)
    twin, _ = halved(reference, "halve_mean_floats", pixels, valid, around_it)
    np.testing.assert_array_equal(ours, twin)
    if not with_valid:
        known = np.ones(ours.shape, np.bool_)
    assert (ours[~known] == nodata).all()
    assert not are_taken(ours[known], around_it).any()
    plain, _ = halved(pyramid, "halve_mean_floats", pixels, valid, around(None, dtype))
    np.testing.assert_array_equal(ours[known], np.where(plain == nodata, around_it.aside, plain).astype(dtype)[known])


@pytest.mark.parametrize("nodata", [0.0, 1.0, -9999.0])
@pytest.mark.parametrize("rank", [None, pyramid.LEAST, pyramid.MEDIAN, pyramid.GREATEST])
def test_modes_and_ranks_of_floats_never_meet_nodata(rank, nodata):
    rng = np.random.default_rng(8)
    pixels = (nodata + rng.choice([-1, 0, 1], (2, 9, 11))).astype("float32")
    valid = pixels != nodata
    out, known = halved(pyramid, "halve_mode", pixels, valid, nodata) if rank is None else ranked(
        pyramid, pixels, valid, rank, nodata
    )  # fmt: skip
    assert (out[~known] == nodata).all()
    assert not are_taken(out[known], around(nodata, "float32")).any()


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["uint8", "int16", "float32"]), st.integers(0, 99), st.booleans())
def test_halve_mode_equals_twin(shape, dtype, seed, with_valid):
    pixels, valid = drawn(shape, dtype, seed, with_valid=with_valid, few=True)
    ours = halved(pyramid, "halve_mode", pixels, valid, 9.0)
    twin = halved(reference, "halve_mode", pixels, valid, 9.0)
    np.testing.assert_array_equal(ours[0], twin[0])
    np.testing.assert_array_equal(ours[1], twin[1])


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(pyramid.DTYPES), st.integers(0, 99), st.booleans(), st.integers(1, 5))
def test_tile_moments_equal_twin(shape, dtype, seed, with_valid, tile):
    pixels, valid = drawn(shape, dtype, seed, with_valid=with_valid)
    ours = np.empty((-(-shape[1] // tile), -(-shape[2] // tile), shape[0], pyramid.MOMENTS))
    twin = np.empty_like(ours)
    pyramid.tile_moments(pixels, valid, tile, ours)
    reference.tile_moments(pixels, valid, tile, twin)
    np.testing.assert_allclose(ours, twin, rtol=1e-9, atol=1e-9)


def ranked(module, pixels, valid, rank, nodata):
    shape = (pixels.shape[0], -(-pixels.shape[1] // 2), -(-pixels.shape[2] // 2))
    out, out_valid = np.empty(shape, pixels.dtype), np.zeros(shape if valid.size else (0, 0, 0), np.bool_)
    module.halve_ranked(pixels, valid, rank, nodata, out, out_valid)
    return out, out_valid


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    st.sampled_from(["uint8", "int16", "float32"]),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from([pyramid.LEAST, pyramid.MEDIAN, pyramid.GREATEST]),
)
def test_halve_ranked_equals_twin(shape, dtype, seed, with_valid, rank):
    pixels, valid = drawn(shape, dtype, seed, with_valid=with_valid, few=True)
    for ours, twin in zip(*(ranked(module, pixels, valid, rank, 7) for module in (pyramid, reference)), strict=True):
        np.testing.assert_array_equal(ours, twin)


@pytest.mark.parametrize(("rank", "place"), [(pyramid.LEAST, 0), (pyramid.MEDIAN, 1), (pyramid.GREATEST, 3)])
def test_halve_ranked_is_scipys_rank_filter(rank, place):
    pixels = np.random.default_rng(1).integers(0, 99, (1, 40, 60), dtype=np.uint16)
    wanted = rank_filter(pixels[0], place, size=2, origin=-1)[::2, ::2]
    np.testing.assert_array_equal(ranked(pyramid, pixels, np.empty((0, 0, 0), np.bool_), rank, 0)[0][0], wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 99))
def test_merged_moments_are_those_of_the_whole(count, seed):
    rng = np.random.default_rng(seed)
    pixels, valid = rng.normal(50, 9, (2, 4, 4 * count)), rng.random((2, 4, 4 * count)) > 0.5
    tiles, whole = np.empty((1, count, 2, 5)), np.empty((1, 1, 2, 5))
    pyramid.tile_moments(pixels, valid, 4, tiles)
    reference.tile_moments(pixels, valid, 4 * count, whole)
    np.testing.assert_allclose(pyramid.merge_moments(tiles[0]), whole[0, 0], rtol=1e-10)


def test_merge_of_empty_tiles_stays_empty():
    empty = np.array([[[0, np.nan, np.nan, np.nan, np.nan]]] * 3)
    merged = pyramid.merge_moments(empty)
    assert merged[0, 0] == 0
    assert np.isnan(merged[0, 1:]).all()


def test_halves_round_to_even_and_step_away_from_nodata():
    pixels = np.array([[[0, 1, 1, 2, 255, 255], [0, 1, 2, 1, 254, 254]]], np.uint8)
    out, _ = halved(pyramid, "halve_mean_integers", pixels, np.empty((0, 0, 0), np.bool_), 0)
    assert out.tolist() == [[[0, 2, 254]]]
    out, valid = halved(pyramid, "halve_mean_integers", pixels, np.ones(pixels.shape, np.bool_), 0)
    assert out.tolist() == [[[1, 2, 254]]]
    assert valid.all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_halve_mean_agrees_with_gdal_overviews(dtype):
    rng = np.random.default_rng(4)
    pixels = (rng.random((1, 64, 64)) * 200 + 1).astype(dtype)
    hole = rng.random((64, 64)) < 0.3
    pixels[0, hole] = 0
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=64, height=64, count=1, dtype=dtype, nodata=0, crs="EPSG:3857", transform=PLACE
        ) as target:
            target.write(pixels)
            target.build_overviews([2], Resampling.average)
        with memory.open() as source, rasterio.Env():
            theirs = source.read(out_shape=(1, 32, 32))
    name = "halve_mean_floats" if dtype == "float32" else "halve_mean_integers"
    ours, _ = halved(pyramid, name, pixels, pixels != 0, around(0.0, dtype) if dtype == "float32" else 0)
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    # GDAL rounds halves up where we round them to even: at most one apart, and only there.
    assert np.abs(ours.astype(float) - theirs.astype(float)).max() <= (1e-4 if dtype == "float32" else 1)
