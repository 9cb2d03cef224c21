from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import shapes as gdal_shapes
from scipy import ndimage

from eorouter_compute import regions
from eorouter_compute.errors import TooLarge
from eorouter_compute.grid import Grid, Window, tiles
from eorouter_compute.regions import Rule
from eorouter_compute.testing import UTM_TRANSFORM


def grid_of(shape):
    return Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=shape)


def rule(**fields):
    return Rule(**{"connectivity": 8, "kinds": 3, "least_pixels": 0, "least_area": 0, "is_drawn": True, **fields})


def gone_through(classes, score, side, rule):
    """All that happens to a class map: what stays, the shapes, class counts, sums, and how many are left out."""
    grid = grid_of(classes.shape)
    whole = Window(0, 0, *classes.shape)
    pieces = []
    for window in tiles(whole, side):
        own = [np.ascontiguousarray(each[window.relative_to(whole)]) for each in (classes, score)]
        pieces.append(regions.looked_at(grid, window, own[0], own[0] * (own[0] < 9), own[1], rule))
    settled, left_out = regions.settle(grid, [regions.survey(piece, rule) for piece in pieces], rule)
    kept, found = classes.copy(), []
    for piece, each in zip(pieces, settled, strict=True):
        regions.sieve(piece, each, kept[piece.window.relative_to(whole)], 0)
        outlines = regions.outlines(piece, each, rule)
        if outlines is not None:
            found.append(outlines)
    return kept, regions.drawn(found, rule.kinds) if found else None, left_out


def by_scipy(classes, rule):
    """Masks of the areas that stay, by first pixel."""
    structure = np.ones((3, 3)) if rule.connectivity == 8 else None
    masks = []
    for kind in (1, 2):
        labels, count = ndimage.label(classes == kind, structure)
        masks += [labels == number for number in range(1, count + 1)]
    masks = [mask for mask in masks if mask.sum() >= max(rule.least_pixels, 1)
             and 100 * mask.sum() / regions.AREA_UNIT_M2 >= rule.least_area]  # fmt: skip
    return sorted(masks, key=lambda mask: np.flatnonzero(mask)[0])


def by_gdal(mask):
    parts = [shapely.geometry.shape(each) for each, _ in gdal_shapes(mask.astype("uint8"), mask=mask, connectivity=4)]
    return shapely.MultiPolygon(parts) if len(parts) > 1 else parts[0]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30), share=st.sampled_from([0.2, 0.5, 0.8]), side=st.sampled_from([3, 5, 8, 64]),
    connectivity=st.sampled_from([4, 8]), least=st.sampled_from([0, 1, 3, 7]),
)  # fmt: skip
def test_areas_are_those_of_scipy_and_their_shapes_those_of_gdal(seed, share, side, connectivity, least):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 25)), int(rng.integers(1, 25)))
    classes = np.where(rng.random(shape) < share, rng.integers(1, 3, shape), 0).astype(np.uint8)
    classes[rng.random(shape) < 0.05] = 255
    score = rng.integers(0, 10_000, shape)
    chosen = rule(connectivity=connectivity, least_pixels=least)
    kept, drawn, left_out = gone_through(classes, score, side, chosen)
    masks = by_scipy(classes, chosen)
    assert left_out == 0
    stays = np.any(masks, axis=0) if masks else np.zeros(shape, bool)
    np.testing.assert_array_equal(kept, np.where(stays | (classes == 255), classes, 0))
    if not masks:
        assert drawn is None
        return
    shapes, counts, sums = drawn
    assert len(shapes) == len(masks)
    for number, mask in enumerate(masks):
        expected = by_gdal(mask)
        assert shapes[number].is_valid
        assert shapes[number].geom_type == expected.geom_type
        assert shapes[number].equals(expected)
        assert shapely.get_num_coordinates(shapes[number]) == shapely.get_num_coordinates(expected.simplify(0))
        assert counts[number].sum() == counts[number, classes[mask][0]] == mask.sum()
        assert sums[number].tolist() == [mask.sum() * 100_000, score[mask].sum()]
    # The same to the last byte, however it was cut.
    again = gone_through(classes, score, 7, chosen)[1][0]
    assert shapely.to_wkb(again).tolist() == shapely.to_wkb(shapes).tolist()


def test_a_smallest_area_in_square_metres():
    rng = np.random.default_rng(3)
    classes = (rng.random((60, 60)) < 0.4).astype(np.uint8)
    chosen = rule(connectivity=4, least_area=round(700 / regions.AREA_UNIT_M2))
    kept, (shapes, _, _), _ = gone_through(classes, np.zeros(classes.shape, np.int64), 16, chosen)
    assert (shapely.area(shapes) >= 7).all()
    np.testing.assert_array_equal(kept > 0, np.any(by_scipy(classes, chosen), axis=0))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_the_largest_are_drawn_first_and_the_rest_is_counted(monkeypatch, connectivity):
    rng = np.random.default_rng(4)
    classes = (rng.random((90, 80)) < 0.4).astype(np.uint8)
    score = np.zeros(classes.shape, np.int64)
    chosen = rule(connectivity=connectivity)
    masks = by_scipy(classes, chosen)
    sizes = sorted((int(mask.sum()) for mask in masks), reverse=True)
    monkeypatch.setattr(regions, "POLYGONS_MAX", 25)
    found = [gone_through(classes, score, side, chosen) for side in (8, 16, 128)]
    for kept, (shapes, counts, _), left_out in found:
        np.testing.assert_array_equal(kept, classes)
        assert sorted(counts.sum(axis=1).tolist(), reverse=True) == sizes[:25]
        assert left_out == len(masks) - 25
        assert shapely.to_wkb(shapes).tolist() == shapely.to_wkb(found[0][1][0]).tolist()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("connectivity", [4, 8])
def test_noise_is_drawn_within_its_bound(connectivity):
    """Half of the pixels changed at random: what made a polygon per pair of pixels of it took minutes."""
    rng = np.random.default_rng(1)
    classes = (rng.random((1500, 1500)) < 0.5).astype(np.uint8)
    chosen, score = rule(connectivity=connectivity, kinds=2), np.zeros(classes.shape, np.int64)
    gone_through(classes[:300, :300], score[:300, :300], 128, chosen)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept, (shapes, counts, _), left_out = gone_through(classes, score, 512, chosen)
    assert resident("VmHWM") - before <= regions.memory_bound(grid_of(classes.shape), chosen)
    np.testing.assert_array_equal(kept, classes)
    labels, count = ndimage.label(classes, np.ones((3, 3)) if connectivity == 8 else None)
    assert len(shapes) + left_out == count
    np.testing.assert_array_equal(shapely.area(shapes), counts[:, 1])
    assert shapely.is_valid(shapes).all()
    sizes = np.bincount(labels.reshape(-1))[1:]
    if connectivity == 8:
        # It runs together into one area, whose outline is too long to draw.
        assert left_out == 1
        sizes = np.delete(sizes, sizes.argmax())
    assert sorted(counts[:, 1].tolist(), reverse=True) == sorted(sizes.tolist(), reverse=True)[: len(shapes)]


def resident(name):
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def sides_of(mask):
    return int(sum(np.abs(np.diff(np.pad(mask, 1).astype(int), axis=axis)).sum() for axis in (0, 1)))


def test_outlines_too_long_to_draw_are_left_out_and_counted(monkeypatch):
    classes = np.zeros((40, 40), np.uint8)
    classes[1:39:2, 1:30] = 1
    classes[1:39, 1] = 1  # a comb: by far the largest area, and the longest outline
    classes[3:9, 32:38] = classes[12:17, 32:37] = classes[20:24, 32:36] = 1
    score = np.zeros(classes.shape, np.int64)
    for most, expected in ((5000, 4), (sides_of(classes) - 1, 3), (24 + 20, 2), (24 + 19, 1), (23, 1), (15, 0)):
        monkeypatch.setattr(regions, "SIDES_MAX", most)
        for side in (8, 64):
            _, drawn, left_out = gone_through(classes, score, side, rule())
            assert (0 if drawn is None else len(drawn[0])) == expected, (most, side)
            assert left_out == 4 - expected


def test_more_labels_on_rims_than_are_sorted_are_refused(monkeypatch):
    monkeypatch.setattr(regions, "REGIONS_MAX", 10)
    classes = (np.add.outer(np.arange(20), np.arange(20)) % 2).astype(np.uint8)
    with pytest.raises(TooLarge, match="Raise the threshold") as caught:
        gone_through(classes, np.zeros(classes.shape, np.int64), 8, rule(connectivity=4))
    assert caught.value.pointer == "/threshold"


def test_rows_of_degrees_have_the_area_of_the_ellipsoid():
    from pyproj import Geod

    grid = Grid(crs="EPSG:4326", transform=(0.5, 0, -20, 0, -0.5, 70), shape=(260, 10))
    found = regions.row_areas(grid, Window(0, 0, 260, 10)) * regions.AREA_UNIT_M2
    for row in (0, 139, 140, 259):
        north = 70 - 0.5 * row
        lon = np.linspace(0, 0.5, 60)
        ring = np.concatenate(
            [np.column_stack([lon, np.full(60, north)]), np.column_stack([lon[::-1], np.full(60, north - 0.5)])]
        )
        area = abs(Geod(ellps="WGS84").polygon_area_perimeter(*ring.T)[0])
        assert found[row] == pytest.approx(area, rel=2e-5)


def test_rows_of_feet_have_the_area_of_metres():
    grid = Grid(crs="EPSG:2263", transform=(100.0, 0, 1e6, 0, -100.0, 2e5), shape=(3, 3))
    assert regions.row_areas(grid, Window(0, 0, 3, 3)) * regions.AREA_UNIT_M2 == pytest.approx((100 * 1200 / 3937) ** 2)
