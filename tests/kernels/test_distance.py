import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from eorouter_kernels.distance import distance
from eorouter_kernels.reference import distance as twin


@given(
    st.integers(0, 1 << 30), st.integers(1, 12), st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([0.0, 0.02, 0.2, 1.0]),
)  # fmt: skip
def test_distances_are_those_of_twin_and_scipy(seed, reach, shape, share):
    flags = np.random.default_rng(seed).random(shape) < share
    out, same = np.empty(shape, np.float32), np.empty(shape, np.float32)
    distance(flags, reach, out)
    twin.distance(flags, reach, same)
    np.testing.assert_array_equal(out, same)
    known = ndimage.distance_transform_edt(~flags) if flags.any() else np.full(shape, np.inf)
    np.testing.assert_array_equal(out, np.minimum(known, reach).astype(np.float32))


@pytest.mark.parametrize("reach", [1, 64])
def test_a_flag_is_at_distance_nought_and_its_corner_at_root_two(reach):
    flags = np.zeros((9, 9), np.bool_)
    flags[4, 4] = True
    out = np.empty(flags.shape, np.float32)
    distance(flags, reach, out)
    assert out[4, 4] == 0
    assert out[3, 5] == pytest.approx(min(np.sqrt(2), reach))
    assert out[4, 8] == min(4, reach)
