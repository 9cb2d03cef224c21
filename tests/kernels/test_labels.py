import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from eorouter_kernels import labels
from eorouter_kernels.reference import labels as twin


@given(arrays("uint8", st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)), st.booleans())
def test_labels_are_those_of_twin_and_scipy(groups, is_eight):
    out, same = np.empty(groups.shape, "int32"), np.empty(groups.shape, "int32")
    count = labels.label(groups, is_eight, out)
    assert count == twin.label(groups, is_eight, same)
    np.testing.assert_array_equal(out, same)
    structure = np.ones((3, 3)) if is_eight else None
    assert count == sum(ndimage.label(groups == group, structure)[1] for group in (1, 2))


def test_tally_and_unite_are_their_twins():
    rng = np.random.default_rng(0)
    found = rng.integers(0, 9, (30, 40)).astype("int32")
    classes = rng.integers(0, 3, found.shape).astype("uint8")
    score, area = rng.integers(0, 10_000, found.shape), rng.integers(1, 100, 30)
    results = []
    for each in (labels, twin):
        counts, sums = np.zeros((9, 3), np.int64), np.full((9, 4), 10**9)
        each.tally(found, classes, score, area, counts, sums)
        parent = np.arange(50)
        each.unite(rng.integers(0, 1, (1, 2)), parent)
        results.append((counts, sums))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    pairs = rng.integers(0, 200, (120, 2))
    one, other = np.arange(200), np.arange(200)
    labels.unite(pairs, one)
    twin.unite(pairs, other)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (33, 35)])
def test_most_labels_possible_fit(shape):
    groups = (np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 2).astype("uint8")
    assert labels.label(groups, False, np.empty(shape, "int32")) == groups.sum()
