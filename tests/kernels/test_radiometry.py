"""The radiometry kernels against their NumPy twins, SciPy's interpolation, and ESA's formula worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from eorouter_kernels import radiometry
from eorouter_kernels.reference import radiometry as reference

NOWHERE, QUIET = np.empty((0, 0), np.bool_), np.empty((0, 0))


def drawn(seed, shape, lines, *, dtype="uint16", with_valid=True, with_noise=True):
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(np.arange(-20, shape[0] + 20), lines, replace=False)).astype(float)
    table = rng.uniform(200, 600, (lines, shape[1]))
    pixels = rng.integers(0, 900, shape).astype(dtype)
    valid = rng.random(shape) > 0.2 if with_valid else NOWHERE
    noise = rng.uniform(0, 2e5, shape) if with_noise else QUIET
    return pixels, valid, table, at, noise


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 6), st.integers(-30, 30))
def test_between_lines_equals_twin(seed, shape, lines, row):
    _, _, table, at, _ = drawn(seed, shape, lines)
    ours, twin = np.empty(shape), np.empty(shape)
    radiometry.between_lines(table, at, row, ours)
    reference.between_lines(table, at, row, twin)
    np.testing.assert_allclose(ours, twin, rtol=1e-14)


def test_between_lines_equals_scipy():
    rng = np.random.default_rng(3)
    lines, table = np.array([0.0, 7.0, 20.0]), rng.uniform(1, 2, (3, 11))
    out = np.empty((12, 11))
    radiometry.between_lines(table, lines, 5, out)
    y, x = np.mgrid[5:17, 0:11]
    wanted = RegularGridInterpolator((lines, np.arange(11.0)), table)(np.stack([y, x], axis=-1))
    np.testing.assert_allclose(out, wanted, rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 5),
    st.sampled_from(["uint16", "float32"]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_calibrate_equals_twin(seed, shape, lines, dtype, flags):
    with_valid, with_noise, in_db = flags
    pixels, valid, table, at, noise = drawn(
        seed, shape, lines, dtype=dtype, with_valid=with_valid, with_noise=with_noise
    )
    table[0, 0] = 0.0
    ours, twin = np.empty(shape, np.float32), np.empty(shape, np.float32)
    radiometry.calibrate(pixels, valid, table, at, 2, noise, in_db, ours)
    reference.calibrate(pixels, valid, table, at, 2, noise, in_db, twin)
    np.testing.assert_allclose(ours, twin, rtol=3e-7, atol=3e-6)


def test_calibrate_is_esas_formula_by_hand():
    # A is 300 and 310 at columns 0 and 1 of line 0, 320 and 330 of line 10; at line 4 it is 308 and 318.
    table, lines = np.array([[300.0, 310.0], [320.0, 330.0]]), np.array([0.0, 10.0])
    pixels = np.array([[154, 159]], np.uint16)
    out = np.empty((1, 2), np.float32)
    radiometry.calibrate(pixels, NOWHERE, table, lines, 4, QUIET, False, out)
    np.testing.assert_array_equal(out, np.float32([[0.25, 0.25]]))
    noise = np.array([[154**2 - 3 * 308.0, 1e9]])
    radiometry.calibrate(pixels, NOWHERE, table, lines, 4, noise, False, out)
    np.testing.assert_array_equal(out, np.float32([[3 / 308, 0.0]]))
    radiometry.calibrate(pixels, NOWHERE, table, lines, 4, noise, True, out)
    assert out[0, 0] == pytest.approx(10 * np.log10(3 / 308), rel=1e-7)
    assert np.isnan(out[0, 1])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    st.floats(-3, 3),
    st.floats(-500, 500),
    st.booleans(),
)
def test_rescale_equals_twin_and_keeps_clear_of_nodata(seed, dtype, gain, offset, with_valid):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 250, (6, 7)).astype(dtype)
    if dtype == "float32":
        pixels[0, 0] = np.nan
    valid = rng.random((6, 7)) > 0.3 if with_valid else NOWHERE
    found = []
    for module in (radiometry, reference):
        out, known = np.empty((6, 7), np.int16), np.empty((6, 7), np.bool_)
        module.rescale(pixels, valid, gain, offset, -400.0, 300.0, 7.0, out, known)
        found.append((out, known))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][0] == 7, ~found[0][1])
