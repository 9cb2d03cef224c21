"""Windows, shards and footprints."""

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_compute import raster
from eorouter_compute.errors import NoCrs
from eorouter_compute.grid import Window, footprint, outline, shifted, tiles
from eorouter_compute.testing import ROTATED_TRANSFORM

WINDOWS = st.builds(Window, st.integers(0, 99), st.integers(0, 99), st.integers(1, 99), st.integers(1, 99))


@settings(deadline=None)
@given(WINDOWS, st.integers(1, 40))
def test_tiles_cover_an_area_once(area, step):
    seen = np.zeros((200, 200), int)
    for tile in tiles(area, step):
        assert tile.row // step == (tile.row_stop - 1) // step
        seen[tile.relative_to(Window(0, 0, 200, 200))] += 1
    inside = np.zeros_like(seen)
    inside[area.relative_to(Window(0, 0, 200, 200))] = 1
    np.testing.assert_array_equal(seen, inside)


def test_a_shifted_grid_has_its_corner_where_the_window_begins():
    a, b, c, d, e, f = ROTATED_TRANSFORM
    moved = shifted(ROTATED_TRANSFORM, Window(10, 3, 5, 5))
    assert moved == (a, b, a * 3 + b * 10 + c, d, e, d * 3 + e * 10 + f)


def test_outline_passes_all_corners():
    ring = outline((20, 30), (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert {(0, 0), (30, 0), (30, -20), (0, -20)} <= {tuple(point) for point in ring}
    assert tuple(ring[0]) == tuple(ring[-1])


def test_a_dateline_scene_is_cut_in_two(data_dir):
    asset = raster.describe(str(data_dir / "formats" / "cog_dateline.tif"))
    geometry, bbox = footprint(asset.crs, asset.shape, asset.transform)
    assert geometry["type"] == "MultiPolygon"
    west, south, east, north = bbox
    assert west > 177
    assert east < -178
    assert south < north
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    area = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shape)[0])
    a, _, _, _, e, _ = asset.transform
    # UTM's scale is 0.9996 on its central meridian and a little more beside it.
    assert area == pytest.approx(abs(a * e) * asset.shape[0] * asset.shape[1], rel=2e-3)


def test_a_whole_globe_is_one_rectangle():
    geometry, bbox = footprint("EPSG:4326", (180, 360), (1.0, 0.0, -180.0, 0.0, -1.0, 90.0))
    assert bbox == (-180, -90, 180, 90)
    assert geometry["type"] == "Polygon"


def test_a_raster_around_the_pole_reaches_it():
    geometry, bbox = footprint("EPSG:3413", (100, 100), (10_000.0, 0.0, -500_000.0, 0.0, -10_000.0, 500_000.0))
    assert bbox[0] == -180
    assert bbox[2:] == (180, 90)
    assert shapely.geometry.shape(geometry).contains(shapely.Point(33.0, 89.5))


def test_a_raster_that_counts_longitude_to_360_is_cut():
    geometry, bbox = footprint("EPSG:4326", (10, 20), (1.0, 0.0, 170.0, 0.0, -1.0, 10.0))
    assert (bbox[0], bbox[2]) == (170, -170)
    assert geometry["type"] == "MultiPolygon"


def test_a_raster_off_the_earth_has_no_footprint():
    with pytest.raises(NoCrs, match="no longitude and latitude"):
        footprint("EPSG:32632", (10, 10), (1e9, 0.0, 1e12, 0.0, -1e9, 1e12))


@pytest.mark.parametrize(
    ("crs", "shape", "transform", "south", "north"),
    [
        ("EPSG:3857", (402, 402), (1e5, 0.0, -201e5, 0.0, -1e5, 201e5), -85.1, 85.1),
        ("EPSG:4326", (26, 52), (7.0, 0.0, -182.0, 0.0, -7.0, 91.0), -90, 90),
        ("EPSG:4326", (3, 721), (0.5, 0.0, -180.2, 0.0, -0.5, -88.5), -90, -88.5),
        ("ESRI:54030", (173, 341), (1e5, 0.0, -170.5e5, 0.0, -1e5, 86.5e5), -90, 90),
        ("+proj=ortho +lat_0=40", (128, 128), (1e5, 0.0, -64e5, 0.0, -1e5, 64e5), -50, 90),
        ("EPSG:3413", (320, 320), (2e5, 0.0, -320e5, 0.0, -2e5, 320e5), -59.69, 90),
    ],
)
def test_a_grid_as_wide_as_the_world_has_a_footprint(crs, shape, transform, south, north):
    geometry, bbox = footprint(crs, shape, transform)
    assert shapely.geometry.shape(geometry).is_valid
    assert (bbox[0], bbox[2]) == (-180, 180)
    assert bbox[1::2] == pytest.approx((south, north), abs=0.5 if "ortho" not in crs else 6)


@pytest.mark.parametrize("crs", ["EPSG:4978", "EPSG:5773"])
def test_a_crs_without_a_map_has_no_footprint(crs):
    with pytest.raises(NoCrs, match="neither geographic nor projected"):
        footprint(crs, (8, 8), (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
