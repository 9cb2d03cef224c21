"""Covered fractions: drawn cases, the twin, shapely's areas, exactextract, and the laws that any window must keep."""

import numpy as np
import pytest
import shapely
import shapely.affinity
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_kernels import coverage
from eorouter_kernels.reference import zonal as reference

SEEDED = settings(deadline=None, derandomize=True, max_examples=60)


def outlines_of(*shapes: shapely.Geometry) -> coverage.Outlines:
    """Zones from shapely polygons whose coordinates are pixel coordinates."""
    parts = shapely.orient_polygons(np.array([shapely.MultiPolygon(list(shapely.get_parts(s))) for s in shapes]))
    _, vertices, (rings, polygons, zones) = shapely.to_ragged_array(parts)
    return coverage.outlines(vertices, rings.astype(np.int64), polygons[zones].astype(np.int64))


def covered(shape: shapely.Geometry, rows: int, cols: int) -> np.ndarray:
    return coverage.coverage(outlines_of(shape), (0, 0, rows, cols))[0]


def rings_of(shape: shapely.Geometry) -> list[np.ndarray]:
    return [shapely.get_coordinates(ring)[:-1] for ring in shapely.get_rings(shapely.orient_polygons(shape))]


def star(seed: int, size: float, centre: tuple[float, float], corners: int = 12) -> shapely.Polygon:
    """A polygon that sees its centre, with sharp and flat corners."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = size * rng.uniform(0.2, 1.0, corners)
    points = np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=1)
    return shapely.make_valid(shapely.Polygon(points)).buffer(0)


SQUARE = [[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (shapely.box(0.5, 0.5, 2.5, 2.5), SQUARE),
        (shapely.reverse(shapely.box(0.5, 0.5, 2.5, 2.5)), SQUARE),
        (shapely.box(0, 0, 3, 3), np.ones((3, 3))),
        (shapely.box(1, 1, 2, 2), [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        (shapely.box(-5, -5, 8, 8), np.ones((3, 3))),
        (shapely.box(-5, 1.25, 8, 1.5), [[0, 0, 0], [0.25, 0.25, 0.25], [0, 0, 0]]),
        (shapely.box(-9, -9, -3, 9), np.zeros((3, 3))),
        (shapely.box(5, 0, 9, 3), np.zeros((3, 3))),
        (shapely.box(-9, 0, 0, 3), np.zeros((3, 3))),
        (shapely.Polygon([(0, 0), (3, 0), (0, 3)]), [[1, 1, 0.5], [1, 0.5, 0], [0.5, 0, 0]]),
        (shapely.Polygon([(1.25, 1.25), (1.75, 1.25), (1.75, 1.75)]), [[0, 0, 0], [0, 0.125, 0], [0, 0, 0]]),
        (
            shapely.box(0, 0, 3, 3).difference(shapely.box(1, 1, 2, 2.5)),
            [[1, 1, 1], [1, 0, 1], [1, 0.5, 1]],
        ),
        (
            shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(1, 1, 2.5, 2), shapely.box(2, 2, 3, 3)]),
            [[1, 0, 0], [0, 1, 0.5], [0, 0, 1]],
        ),
    ],
)
def test_coverage_of_drawn_shapes_is_exact(shape: shapely.Geometry, expected: list[list[float]]):
    np.testing.assert_array_equal(covered(shape, 3, 3), np.array(expected, float))


def test_coverage_of_many_zones_keeps_them_apart():
    found = coverage.coverage(
        outlines_of(shapely.box(0, 0, 1, 2), shapely.MultiPolygon(), shapely.box(1, 0, 2, 2)), (0, 0, 2, 2)
    )
    np.testing.assert_array_equal(found, [[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 1]]])


@SEEDED
@given(seed=st.integers(0, 10_000), size=st.floats(0.05, 9), x=st.floats(-2, 8), y=st.floats(-2, 8))
def test_coverage_equals_twin_and_exactextract(seed: int, size: float, x: float, y: float):
    shape = star(seed, size, (x, y))
    ours = covered(shape, 7, 6)
    parts = list(shapely.get_parts(shape))
    twin = sum((reference.coverage(rings_of(part), (7, 6)) for part in parts), np.zeros((7, 6)))
    np.testing.assert_allclose(ours, twin, atol=1e-12)
    # Rows of exactextract run from the top, where y is largest.
    source = NumPyRasterSource(np.ones((7, 6)), xmin=0, ymin=-7, xmax=6, ymax=0)
    flipped = shapely.transform(shape, lambda points: points * [1, -1])
    feature = {"type": "Feature", "geometry": shapely.geometry.mapping(flipped)}
    found = exact_extract(source, [feature], ["cell_id", "coverage"])[0]["properties"]
    foreign = np.zeros(42)
    foreign[np.asarray(found["cell_id"], int)] = found["coverage"]
    np.testing.assert_allclose(ours.ravel(), foreign, atol=2e-6)


@SEEDED
@given(seed=st.integers(0, 10_000), size=st.floats(0.5, 600), corners=st.integers(3, 400))
def test_coverage_sums_to_the_area_of_the_polygon(seed: int, size: float, corners: int):
    shape = star(seed, size, (730.3, 610.7), corners)
    shapes = outlines_of(shape)
    total = sum(
        float((batch.length * batch.weight).sum())
        for batch in coverage.spans(shapes, coverage.pairs(shapes, (0, 0, 1536, 1536)))
    )
    assert shapes.areas[0] == pytest.approx(shape.area, rel=1e-12)
    assert total == pytest.approx(shape.area, rel=1e-12)


@SEEDED
@given(seed=st.integers(0, 10_000), row=st.integers(0, 6), col=st.integers(0, 6))
def test_coverage_of_any_window_is_that_part_of_the_whole(seed: int, row: int, col: int):
    shape = star(seed, 8, (5.2, 4.1), 20)
    shapes = outlines_of(shape)
    whole = coverage.coverage(shapes, (0, 0, 12, 12))[0]
    part = coverage.coverage(shapes, (row, col, row + 4, col + 5))[0]
    np.testing.assert_allclose(part, whole[row : row + 4, col : col + 5], atol=1e-14)


@SEEDED
@given(seed=st.integers(0, 10_000), dx=st.integers(-3, 600), dy=st.integers(-3, 600))
def test_coverage_moves_with_the_polygon(seed: int, dx: int, dy: int):
    shape = star(seed, 6, (6.5, 6.25))
    moved = shapely.transform(shape, lambda points: points + np.array([dx, dy]))
    here = coverage.coverage(outlines_of(shape), (3, 3, 12, 12))[0]
    there = coverage.coverage(outlines_of(moved), (3 + dy, 3 + dx, 12 + dy, 12 + dx))[0]
    np.testing.assert_allclose(here, there, atol=1e-11)


@SEEDED
@given(seed=st.integers(0, 10_000))
def test_coverage_is_mirrored_and_transposed_with_the_polygon(seed: int):
    shape = star(seed, 6, (5.1, 4.9))
    straight = covered(shape, 10, 10)
    mirrored = covered(shapely.transform(shape, lambda points: points * [-1, 1] + [10, 0]), 10, 10)
    transposed = covered(shapely.transform(shape, lambda points: points[:, ::-1]), 10, 10)
    np.testing.assert_allclose(mirrored, straight[:, ::-1], atol=1e-12)
    np.testing.assert_allclose(transposed, straight.T, atol=1e-12)


@SEEDED
@given(seed=st.integers(0, 10_000))
def test_coverage_of_a_partition_adds_up_to_one(seed: int):
    rng = np.random.default_rng(seed)
    points = shapely.MultiPoint(rng.uniform(-2, 14, (15, 2)))
    cells = shapely.get_parts(shapely.voronoi_polygons(points, extend_to=shapely.box(-3, -3, 15, 15)))
    total = coverage.coverage(outlines_of(*cells), (0, 0, 12, 12)).sum(axis=0)
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_interior_of_a_large_polygon_is_a_span_per_row_and_exactly_one():
    shape = shapely.Point(300.3, 251.7).buffer(200.1, quad_segs=64)
    shapes = outlines_of(shape)
    for batch in coverage.spans(shapes, coverage.pairs(shapes, (0, 0, 512, 600))):
        long = batch.length > 8
        assert long.any()
        np.testing.assert_array_equal(batch.weight[long & (batch.weight > 0.999)], 1.0)
    # Some 1,500 cells lie on the outline of 1,257 px; 125,700 lie inside.
    assert len(batch.row) < 4000


def test_coverage_of_a_polygon_left_of_the_window_with_a_long_outline_costs_no_cells():
    ring = shapely.Point(-400, 50).buffer(300, quad_segs=500)
    bar = shapely.union(ring, shapely.box(-400, 10.5, 20.25, 12))
    found = covered(bar, 20, 30)
    expected = np.zeros((20, 30))
    expected[10, :20], expected[11, :20], expected[10, 20], expected[11, 20] = 0.5, 1.0, 0.125, 0.25
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_polygons_that_touch_themselves_are_covered_once():
    bow = shapely.make_valid(shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)]))
    found = covered(bow, 4, 4)
    assert found.sum() == pytest.approx(8.0, rel=1e-15)
    assert found.max() <= 1.0
    pinched = shapely.Polygon(
        [(0, 0), (6, 0), (6, 6), (0, 6)], holes=[[(0, 3), (2, 2), (2, 4)], [(3, 3), (4, 2), (4, 4)]]
    )
    assert shapely.is_valid(pinched)
    assert covered(pinched, 6, 6).sum() == pytest.approx(36 - 2 - 1, rel=1e-15)


def test_slanted_edges_shared_by_neighbours_leave_neither_gap_nor_overlap():
    line = [(0.1 * i, 3 + 2.9 * np.sin(i)) for i in range(121)]
    upper = shapely.Polygon([*line, (12, -1), (0, -1)])
    lower = shapely.Polygon([*line, (12, 9), (0, 9)])
    total = coverage.coverage(outlines_of(upper, lower), (0, 0, 8, 12)).sum(axis=0)
    np.testing.assert_allclose(total, 1.0, atol=1e-14)


def test_pairs_are_sorted_by_block_and_cut_at_the_raster():
    shapes = outlines_of(shapely.box(500.5, -3, 1100, 520), shapely.box(-20, -20, -10, -10), shapely.box(0, 0, 2, 2))
    found = coverage.pairs(shapes, (0, 0, 600, 1050))
    assert found.zone.tolist() == [0, 2, 0, 0, 0, 0, 0]
    assert found.block.tolist() == [[0, 0], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert found.window[0].tolist() == [0, 500, 512, 512]
    assert found.window[1].tolist() == [0, 0, 2, 2]
    assert found.window[-1].tolist() == [512, 1024, 520, 1050]


def test_spans_come_in_bounded_batches_of_whole_pairs():
    comb = shapely.union_all([shapely.box(x + 0.25, -1, x + 0.75, 2000) for x in range(512)])
    shapes = outlines_of(comb)
    batches = [
        (batch.start, len(batch.first) - 1, len(batch.row))
        for batch in coverage.spans(shapes, coverage.pairs(shapes, (0, 0, 1536, 512)))
    ]
    assert batches == [(0, 2, 2 * 512 * 512), (2, 1, 512 * 512)]


@SEEDED
@given(st.integers(0, 10_000), st.integers(3, 60))
def test_centres_are_those_shapely_finds_inside_in_any_window(seed, corners):
    rng = np.random.default_rng(seed)
    area = star(seed, 30.0, (25.0, 20.0), corners).union(shapely.box(60.3, 5.2, 70.7, 30.1))
    area = area.difference(star(seed + 1, 8.0, (25.0, 20.0)))
    col, row = np.meshgrid(np.arange(80) + 0.5, np.arange(50) + 0.5)
    whole = coverage.centers(outlines_of(area), (0, 0, 50, 80))
    np.testing.assert_array_equal(whole, shapely.contains_xy(area, col, row))
    top, left = int(rng.integers(0, 40)), int(rng.integers(0, 70))
    part = coverage.centers(outlines_of(area), (top, left, top + 10, left + 10))
    np.testing.assert_array_equal(part, whole[top : top + 10, left : left + 10])


def test_centres_on_an_edge_belong_to_the_area_on_its_left_and_to_one_alone():
    left, right = shapely.box(0, 0, 1.5, 2), shapely.box(1.5, 0, 4, 2)
    assert coverage.centers(outlines_of(left), (0, 0, 2, 4)).tolist() == [[True, True, False, False]] * 2
    assert coverage.centers(outlines_of(right), (0, 0, 2, 4)).tolist() == [[False, False, True, True]] * 2


def test_a_row_with_many_crossings_is_filled_between_each_two():
    teeth = [(i, 0.2 if i % 2 else 0.9) for i in range(200)]
    comb = shapely.Polygon([*teeth, (199, 3), (0, 3)])
    col, row = np.meshgrid(np.arange(200) + 0.5, np.arange(3) + 0.51)
    found = coverage.centers(outlines_of(shapely.affinity.translate(comb, 0, -0.01)), (0, 0, 3, 200))
    np.testing.assert_array_equal(found, shapely.contains_xy(comb, col, row))
