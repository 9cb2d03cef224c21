"""What is taken for nodata: as GDAL's masks take it, and data that steps aside stays visible to them."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from eorouter_kernels import nodata
from eorouter_kernels.reference import nodata as reference

FLOATS = ("float32", "float64")
VALUES = [
    0.0, -0.0, 1.0, -1.0, 1.9999999, 0.1, 255.0, -9999.0, -32768.0, 1e-30, 1e38, 1.7e38, 1.8e38, 2e38,
    float(np.finfo("float32").max), float(np.finfo("float32").min), float(np.finfo("float32").tiny), 1e-42, 1e-45,
    float("inf"), float("-inf"),
]  # fmt: skip
EXTREMES = [float(np.finfo("float64").max), float(np.finfo("float64").min), float(np.finfo("float64").tiny)]


def hidden_by_gdal(pixels, value):
    """Whether GDAL masks each pixel of a raster that declares `value`."""
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=len(pixels), height=1, count=1, dtype=pixels.dtype, nodata=value, crs="EPSG:3857",
            transform=Affine(1, 0, 1, 0, -1, 1),
        ) as target:  # fmt: skip
            target.write(pixels[None], 1)
        with memory.open() as source:
            assert (source.read_masks(1) == source.dataset_mask()).all()
            return source.read_masks(1)[0] == 0


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(dtype, value) for dtype in FLOATS for value in VALUES] + [("float64", value) for value in EXTREMES],
)
def test_what_gdal_hides_is_taken_for_nodata_and_data_aside_is_not_hidden(dtype, value):
    stored = np.dtype(dtype).type(value)
    found = nodata.around(value, dtype)
    ends = np.array([found.value, found.first, found.last, found.aside], dtype)
    assert ends.astype(float).tolist() == [found.value, found.first, found.last, found.aside]
    steps = np.ldexp(1.0, -np.arange(16, 53))
    with np.errstate(over="ignore"):
        near = [stored, *(float(stored) * (1 + steps)), *(float(stored) * (1 - steps)), found.aside]
        pixels = np.array(near).astype(dtype)
    is_hidden, taken = hidden_by_gdal(pixels, float(stored)), nodata.are_taken(pixels, found)
    assert (taken | ~is_hidden).all()
    assert taken[:-1].any()
    assert not is_hidden[-1]
    assert not taken[-1]


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, width=32), st.sampled_from(FLOATS))
def test_the_step_is_short_and_leads_towards_zero(value, dtype):
    found = nodata.around(value, dtype)
    assert found.first <= found.value <= found.last
    assert abs(found.aside) < abs(value) or value == 0
    if np.finfo(dtype).tiny < abs(value) < np.finfo(dtype).max / 2:
        assert abs(found.aside - value) < abs(value) * 2.0**-19
        assert found.last - found.first < abs(value) * 2.0**-18


@pytest.mark.parametrize(
    ("dtype", "value", "aside"),
    [("uint8", 0, 1), ("uint8", 255, 254), ("int16", -32768, -32767), ("int16", 32767, 32766), ("uint32", 7, 8)],
)
def test_integers_move_by_one(dtype, value, aside):
    assert nodata.around(float(value), dtype) == (value, value, value, aside)


@pytest.mark.parametrize(
    ("value", "dtype"), [(None, "float32"), (float("nan"), "float64"), (-1, "uint8"), (0.5, "int16")]
)
def test_where_there_is_no_nodata_nothing_is_taken_for_it(value, dtype):
    assert np.isnan(nodata.around(value, dtype)).all()
    pixels = np.array([0, 1, 2], dtype)
    assert nodata.kept_clear(pixels, None, value) is pixels
    assert pixels.tolist() == [0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(("uint8", "int16", "int32", *FLOATS)),
    st.integers(0, 40),
    st.sampled_from([0.0, 1.0, 100.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_step_aside_equals_twin(dtype, count, value, with_valid, seed):
    rng = np.random.default_rng(seed)
    ours = rng.choice([0, 1, 2, 100], count).astype(dtype)
    if ours.dtype.kind == "f":
        ours += ours * rng.choice([0, 2.0**-22, -(2.0**-21), 2.0**-15, np.nan], count).astype(dtype)
    valid = rng.random(count) > 0.5 if with_valid else np.empty(0, np.bool_)
    assume(count or not with_valid)
    twin, before = ours.copy(), ours.copy()
    nodata.step_aside(ours, valid, nodata.around(value, dtype))
    reference.step_aside(twin, valid, nodata.around(value, dtype))
    np.testing.assert_array_equal(ours, twin)
    known = valid if with_valid else np.ones(count, np.bool_)
    np.testing.assert_array_equal(ours[~known], before[~known])
    assert not nodata.are_taken(ours[known], nodata.around(value, dtype)).any()


def test_pixels_that_do_not_lie_in_a_row_are_moved_too():
    pixels = np.zeros((2, 6, 6), "float32")[:, ::2, ::3]
    valid = np.zeros((2, 6, 6), np.bool_)[:, ::2, ::3]
    valid[1] = True
    moved = nodata.kept_clear(pixels, valid, 0.0)
    assert (moved[0] == 0).all()
    assert (moved[1] > 0).all()
