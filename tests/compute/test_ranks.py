"""Values under zones, gathered shard by shard: the same numbers as NumPy finds with everything at hand."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_compute import ranks
from eorouter_compute.errors import TooLarge
from eorouter_kernels import coverage, quantiles

SIDE = 2 * coverage.BLOCK
WINDOWS = [(row, col, row + coverage.BLOCK, col + coverage.BLOCK)
           for row in (0, coverage.BLOCK) for col in (0, coverage.BLOCK)]  # fmt: skip
WHOLE = (0, 0, SIDE, SIDE)
# In one block, across two, across all four, one with nothing in it, and one that overlaps another.
BOXES = [(3, 5, 40, 60), (500, 20, 530, 90), (480, 490, 560, 600), (900, 900, 901, 901), (490, 495, 520, 610)]


def outlines() -> coverage.Outlines:
    parts = shapely.orient_polygons(shapely.box(*np.array(BOXES, float).T))
    _, vertices, (rings, polygons) = shapely.to_ragged_array(parts)
    return coverage.outlines(vertices, rings.astype(np.int64), polygons.astype(np.int64))


def pixels(dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 60, (SIDE, SIDE)).astype(dtype)
    return data, rng.random((SIDE, SIDE)) > 0.2


def harvested(plane: ranks.Plane, data: np.ndarray, valid: np.ndarray, windows: list) -> list[list[ranks.Values]]:
    shapes = outlines()
    blocks = np.bincount(coverage.pairs(shapes, WHOLE).zone, minlength=len(BOXES))
    parts = []
    for row, col, row_stop, col_stop in windows:
        work = coverage.pairs(shapes, (row, col, row_stop, col_stop))
        harvest = ranks.Harvest([plane], blocks, work)
        part = np.ascontiguousarray(data[row:row_stop, col:col_stop])
        known = np.ascontiguousarray(valid[row:row_stop, col:col_stop])
        for batch in coverage.spans(shapes, work):
            harvest.gather(batch, work.zone, [(quantiles.keys(part), known)], (row, col))
        parts.append(harvest.finish())
    return parts


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "int32"])
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_numbers_are_numpys_and_do_not_depend_on_the_shards(dtype, seed):
    plane = ranks.Plane(dtype=dtype, levels=(0.0, 1.0), is_frequent=True)
    data, valid = pixels(dtype, seed)
    whole = ranks.joined(harvested(plane, data, valid, [WHOLE]), 0, plane, len(BOXES))
    cut = ranks.joined(harvested(plane, data, valid, WINDOWS), 0, plane, len(BOXES))
    np.testing.assert_array_equal(whole.numbers, cut.numbers)
    for (left, top, right, bottom), found in zip(BOXES, cut.numbers, strict=True):
        inside = data[top:bottom, left:right][valid[top:bottom, left:right]]
        if not inside.size:
            assert np.isnan(found[:4]).all()
            continue
        kinds, counts = np.unique(inside, return_counts=True)
        names = dict(zip(("low", "high", *quantiles.FREQUENT), found, strict=True))
        assert (names["low"], names["high"]) == (inside.min(), inside.max())
        assert names["mode"] in kinds[counts == counts.max()]
        assert names["minority"] in kinds[counts == counts.min()]
        assert names["variety"] == len(kinds)


def test_a_zone_travels_only_where_it_is_not_whole():
    plane = ranks.Plane(dtype="uint8", levels=(0.5,))
    data, valid = pixels("uint8")
    first, second, third, fourth = (part[0] for part in harvested(plane, data, valid, WINDOWS))
    assert np.frombuffer(first.done, np.int32).tolist() == [0]
    assert np.frombuffer(first.open, np.int32).tolist() == [1, 2, 4]
    assert np.frombuffer(second.open, np.int32).tolist() == [1, 2, 4]
    assert np.frombuffer(third.open, np.int32).tolist() == [2, 4]
    assert np.frombuffer(fourth.done, np.int32).tolist() == [3]
    assert first.size > 0


def test_counted_zones_come_back_with_the_cells_of_every_value():
    plane = ranks.Plane(dtype="uint8", is_counted=True)
    data, valid = pixels("uint8")
    found = ranks.joined(harvested(plane, data, valid, WINDOWS), 0, plane, len(BOXES))
    assert plane.width == 0
    for owner, zone in enumerate(found.owners):
        left, top, right, bottom = BOXES[zone]
        inside = data[top:bottom, left:right][valid[top:bottom, left:right]]
        own = slice(found.runs.first[owner], found.runs.first[owner + 1])
        cells = dict(zip(found.runs.key[own].tolist(), found.runs.whole[own].tolist(), strict=True))
        assert cells == dict(zip(*(each.tolist() for each in np.unique(inside, return_counts=True)), strict=True))


def test_more_values_than_a_process_may_hold_are_refused_in_shard_and_merge(monkeypatch):
    plane = ranks.Plane(dtype="uint8", levels=(0.5,))
    data, valid = pixels("uint8")
    parts = harvested(plane, data, valid, WINDOWS)
    monkeypatch.setattr(ranks, "RUNS_BYTES_MAX", 100)
    with pytest.raises(TooLarge, match="overlap less") as caught:
        ranks.joined(parts, 0, plane, len(BOXES))
    assert caught.value.pointer == "/zones"
    with pytest.raises(TooLarge):
        harvested(plane, data, valid, WINDOWS)
