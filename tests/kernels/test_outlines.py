import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import shapes as gdal_shapes

from eorouter_kernels import labels, outlines
from eorouter_kernels.reference import outlines as twin


def traced(module, areas, parts):
    count = module.vertices_most(areas)
    xy, ends = np.empty((count, 2), np.int32), np.empty(count // 4, np.int64)
    owners, holes = np.empty(count // 4, np.int32), np.empty(count // 4, np.bool_)
    rings = module.trace(areas, parts, xy, ends, owners, holes)
    begins = np.concatenate([[0], ends[:rings]])
    found = [(int(owners[k]), bool(holes[k]), shapely.LinearRing(xy[begins[k] : begins[k + 1]])) for k in range(rings)]
    return count, found


def polygons(found):
    out = {}
    for owner in {owner for owner, _, _ in found}:
        own = [(is_hole, ring) for number, is_hole, ring in found if number == owner]
        (shell,) = [ring for is_hole, ring in own if not is_hole]
        out[owner] = shapely.Polygon(shell, [ring for is_hole, ring in own if is_hole])
    return out


def parts_of(areas):
    parts = np.empty(areas.shape, np.int32)
    labels.label(areas.astype(np.uint8), False, parts)
    return parts


def check(areas):
    parts = parts_of(areas)
    count, found = traced(outlines, areas, parts)
    assert count == twin.vertices_most(areas)
    _, same = traced(twin, areas, parts)

    def canonical(rings):
        return sorted((o, h, shapely.normalize(r).wkt) for o, h, r in rings)

    assert canonical(found) == canonical(same)
    drawn = polygons(found)
    expected = {}
    for shape, value in gdal_shapes(parts, mask=parts > 0, connectivity=4):
        expected[int(value)] = shapely.geometry.shape(shape)
    assert drawn.keys() == expected.keys()
    for number, polygon in drawn.items():
        assert polygon.is_valid, shapely.is_valid_reason(polygon)
        assert polygon.equals(expected[number])
        assert polygon.area == (parts == number).sum()
        assert len(polygon.interiors) == len(expected[number].interiors)


@given(arrays("int32", st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 2)))
def test_rings_are_those_of_twin_and_gdal(areas):
    check(areas)


@pytest.mark.parametrize(
    "drawing",
    [
        ["#"],
        ["##.", "#.#", ".##"],  # a ring that closes at corners only
        ["#####", "#.#.#", "##.##", "#.#.#", "#####"],  # holes that meet at corners
        ["###.", "#.##", "##.#", ".###"],
        ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"],  # areas within holes
        [".#.", "#.#", ".#."],
        ["##..", "##..", "..##", "..##"],
    ],
)
def test_drawn_areas_at_their_corners(drawing):
    check(np.array([[cell == "#" for cell in row] for row in drawing], np.int32))


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_has_the_outlines_of_gdal(seed):
    rng = np.random.default_rng(seed)
    areas = (rng.random((120, 150)) < 0.55).astype(np.int32)
    parts = parts_of(areas)
    drawn = polygons(traced(outlines, areas, parts)[1])
    expected = {int(v): shapely.geometry.shape(s) for s, v in gdal_shapes(parts, mask=parts > 0, connectivity=4)}
    assert drawn.keys() == expected.keys()
    assert all(drawn[number].equals(expected[number]) and drawn[number].is_valid for number in drawn)


def test_sides_along_the_rim_have_every_lattice_point():
    areas = np.ones((3, 4), np.int32)
    _, ((_, is_hole, ring),) = traced(outlines, areas, areas)
    assert not is_hole
    assert len(ring.coords) == 2 * (3 + 4) + 1


def test_most_corners_possible_fit():
    areas = (np.add.outer(np.arange(40), np.arange(41)) % 2).astype(np.int32)
    count, found = traced(outlines, areas, parts_of(areas))
    assert len(found) == areas.sum()
    assert count == 5 * areas.sum() + 2 * (40 + 41)


@pytest.mark.parametrize("seed", range(5))
def test_stitched_rings_are_those_of_the_twin(seed):
    """Sides of all pixels, shared ones gone: the outlines of areas from the smallest pieces there are."""
    rng = np.random.default_rng(seed)
    mask = rng.random((12, 14)) < 0.6
    parts = parts_of(mask.astype(np.int32))
    inside = np.pad(mask, 1)
    sides, owners = [], []
    for y, x in np.argwhere(mask):
        corners = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]
        for k, (dy, dx) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            if not inside[1 + y + dy, 1 + x + dx]:
                sides.append((corners[k], corners[(k + 1) % 4], k))
                owners.append(parts[y, x])
    leaving = {}
    for number, (start, _, heading) in enumerate(sides):
        leaving.setdefault(start, {})[heading] = number
    after = np.array([
        next(leaving[end][turn % 4] for turn in (k + 1, k, k - 1) if turn % 4 in leaving[end]) for _, end, k in sides
    ])  # fmt: skip
    knots = np.array(
        [next((n for n in leaving[start].values() if n != me), -1) for me, (start, _, _) in enumerate(sides)]
    )
    points, owners = np.array([start for start, _, _ in sides], np.int32), np.array(owners, np.int64)
    found = []
    for module in (outlines, twin):
        most = len(sides) + len(sides) // 4
        xy, ends = np.zeros((most, 2), np.int32), np.empty(len(sides), np.int64)
        own, holes = np.empty(len(sides), np.int64), np.empty(len(sides), np.bool_)
        count = module.stitch(after, knots, points, owners, xy, ends, own, holes)
        rings = np.split(xy[: ends[count - 1]], ends[: count - 1])
        found.append([(int(own[k]), bool(holes[k]), shapely.LinearRing(rings[k])) for k in range(count)])
    assert [(o, h, r.wkt) for o, h, r in found[0]] == [(o, h, r.wkt) for o, h, r in found[1]]
    drawn = polygons(found[0])
    for shape, value in gdal_shapes(parts, mask=parts > 0, connectivity=4):
        assert drawn.pop(int(value)).equals(shapely.geometry.shape(shape))
    assert drawn == {}
