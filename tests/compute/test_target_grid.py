"""Target grids: as named, as the inputs suggest, across the antimeridian and around the poles."""

import msgspec
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from eorouter_compute import raster
from eorouter_compute.errors import GridMismatch, InvalidParameter, TooLarge
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import Band, RasterAsset
from eorouter_compute.target_grid import GridChoice, aligned, apart, choose
from eorouter_compute.testing import ROTATED_TRANSFORM, UTM_TRANSFORM, input_item


def asset(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(300, 400), key="data"):
    band = Band(name="b", index=1, dtype="uint8")
    return RasterAsset(
        key=key,
        href="file:///none.tif",
        crs=crs,
        transform=transform,
        shape=shape,
        bands=(band,),
        block_shape=(256, 256),
    )


def bounds(grid):
    a, _, c, _, e, f = grid.transform
    return c, f + e * grid.shape[0], c + a * grid.shape[1], f


def test_nothing_chosen_is_the_grid_of_the_finest():
    fine, coarse = (
        asset(),
        asset(key="coarse", transform=(20.0, 0.0, 399960.0, 0.0, -20.0, 4500000.0), shape=(150, 200)),
    )
    assert choose(GridChoice(), [], [coarse, fine]) == fine.grid


def test_degrees_and_metres_are_compared_on_the_ground():
    metres, degrees = asset(), asset("EPSG:4326", (0.01, 0.0, 7.0, 0.0, -0.01, 41.0), (100, 100), "coarse")
    assert choose(GridChoice(), [], [degrees, metres]) == metres.grid


def test_aligned_inputs_are_united():
    other = asset(transform=(10.0, 0.0, 399960.0 - 500.0, 0.0, -10.0, 4500000.0 + 200.0), shape=(100, 100))
    grid = choose(GridChoice(), [], [asset(), other])
    assert grid.shape == (320, 450)
    assert grid.transform == (10.0, 0.0, 399460.0, 0.0, -10.0, 4500200.0)


@given(
    resolution=st.floats(1.0, 500.0),
    x=st.floats(-1e6, 1e6),
    y=st.floats(-1e6, 1e6),
    size=st.tuples(st.floats(1e3, 1e5), st.floats(1e3, 1e5)),
    snap=st.booleans(),
)
def test_bounds_are_covered_with_less_than_two_pixels_to_spare(resolution, x, y, size, snap):
    choice = GridChoice(crs="EPSG:3035", resolution=resolution, bounds=(x, y, x + size[0], y + size[1]), snap=snap)
    west, south, east, north = bounds(choose(choice, [], [asset()]))
    slack = 2e-3 * resolution + 1e-6
    assert west <= x + slack
    assert south <= y + slack
    assert east >= x + size[0] - slack
    assert north >= y + size[1] - slack
    assert max(x - west, y - south, east - x - size[0], north - y - size[1]) < 2 * resolution + slack
    if snap:
        assert abs(west / resolution - round(west / resolution)) < 1e-6
        assert abs(north / resolution - round(north / resolution)) < 1e-6


def test_a_scene_across_the_antimeridian_stays_narrow(data_dir):
    scene = raster.describe((data_dir / "formats/cog_dateline.tif").as_uri())
    west, _, east, _ = bounds(choose(GridChoice(crs="EPSG:4326"), [], [scene]))
    assert 177.9 < west < 180 < east < 181.6
    west, _, east, _ = bounds(choose(GridChoice(crs="EPSG:3857"), [], [scene]))
    assert west < 20037508.34 < east < west + 500_000


def test_scenes_on_both_sides_of_the_antimeridian_lie_on_one_narrow_grid():
    east = asset("EPSG:4326", (0.01, 0.0, 178.0, 0.0, -0.01, 52.0), (100, 100), "east")
    west = asset("EPSG:4326", (0.01, 0.0, -179.5, 0.0, -0.01, 52.0), (100, 100), "west")
    found = bounds(choose(GridChoice(resolution=0.01), [], [east, west]))
    np.testing.assert_allclose(found, (178.0, 51.0, 181.5, 52.0), atol=1e-6)


def test_a_pole_takes_every_longitude():
    arctic = asset("EPSG:3413", (1000.0, 0.0, -2e6, 0.0, -1000.0, 2e6), (4000, 4000))
    found = bounds(choose(GridChoice(crs="EPSG:4326", snap=False), [], [arctic]))
    np.testing.assert_allclose(found, (-180.0, 64.3, 180.0, 90.0), atol=0.05)


def test_the_whole_world_becomes_the_mercator_square():
    world = asset("EPSG:4326", (0.1, 0.0, -180.0, 0.0, -0.1, 90.0), (1800, 3600))
    found = bounds(choose(GridChoice(crs="EPSG:3857", resolution=10_000), [], [world]))
    np.testing.assert_allclose(found, (-2.004e7, -2.004e7, 2.004e7, 2.004e7), atol=1e4)


def test_a_turned_raster_gets_a_grid_that_is_not():
    grid = choose(GridChoice(resolution=10.0), [], [asset(transform=ROTATED_TRANSFORM)])
    assert grid.transform[1] == grid.transform[3] == 0
    box = shapely.box(*bounds(grid))
    assert box.contains(shapely.Polygon(asset(transform=ROTATED_TRANSFORM).grid.geobox.extent.exterior.points[:-1]))


def test_resolution_keeps_the_area_of_a_pixel():
    grid = choose(GridChoice(crs="EPSG:3857"), [], [asset()])
    stretch = 1 / np.cos(np.deg2rad(40.6))
    assert grid.transform[0] == pytest.approx(10 * stretch, rel=0.005)
    assert grid.transform[0] == -grid.transform[4] == float(f"{grid.transform[0]:.6g}")


def test_like_is_taken_pixel_for_pixel():
    items = [input_item(asset(), id="a"), input_item(asset(transform=ROTATED_TRANSFORM), id="b")]
    assert choose(GridChoice(like="b"), items, [asset()]) == items[1].rasters[0].grid


def test_an_area_cuts_the_grid():
    area = shapely.MultiPolygon([shapely.box(400500.0, 4498000.0, 401003.0, 4498505.0)])
    grid = choose(GridChoice(), [], [asset()], area=area, area_crs="EPSG:32632")
    assert grid.shape == (51, 51)
    assert aligned(asset().grid, grid) == (149, 54)


@given(row=st.integers(-5000, 5000), col=st.integers(-5000, 5000), shift=st.sampled_from([0.0, 0.01, 0.4]))
def test_aligned_finds_whole_steps_only(row, col, shift):
    whole = asset(transform=ROTATED_TRANSFORM).grid
    other = whole.cropped(Window(row, col, 7, 9))
    a, b, c, d, e, f = other.transform
    moved = Grid(crs=whole.crs, transform=(a, b, c + shift * a, d, e, f + shift * d), shape=other.shape)
    assert aligned(whole, moved) == ((row, col) if shift == 0.0 else None)


def test_apart_tells_how_far():
    grid = Grid(crs="EPSG:32632", transform=(10.0, 0.0, 403960.0 + 5000.0, 0.0, -10.0, 4500000.0), shape=(10, 10))
    assert apart(grid, asset()) == pytest.approx(5000.0)
    assert apart(asset().grid, asset()) == 0.0
    across = Grid(crs="EPSG:4326", transform=(0.01, 0.0, -180.5, 0.0, -0.01, 52.0), shape=(100, 100))
    assert apart(across, asset("EPSG:4326", (0.01, 0.0, 179.0, 0.0, -0.01, 52.0), (100, 100))) == 0.0


@pytest.mark.parametrize(
    ("choice", "error", "pointer", "says"),
    [
        ({"like": "x"}, InvalidParameter, "/grid/like", "the inputs are: scene"),
        ({"like": "scene", "crs": "EPSG:4326"}, InvalidParameter, "/grid/like", "as it is"),
        ({"like": "scene", "like_asset": "x"}, InvalidParameter, "/grid/like_asset", "It has: data"),
        ({"like_asset": "x"}, InvalidParameter, "/grid/like_asset", "needs `like`"),
        ({"crs": "EPSG:0"}, InvalidParameter, "/grid/crs", "not known"),
        ({"bounds": [5, 0, 1, 1]}, InvalidParameter, "/grid/bounds", "not empty"),
        ({"resolution": 1e-9}, TooLarge, "/grid", "coarser pixels"),
    ],
)
def test_refusals(choice, error, pointer, says):
    inputs = [input_item(asset())]
    with pytest.raises(error, match=says) as caught:
        choose(msgspec.convert(choice, GridChoice), inputs, inputs[0].rasters)
    assert caught.value.pointer == pointer


def test_no_place_at_all_is_refused():
    with pytest.raises(GridMismatch, match="no place in EPSG:3413"):
        choose(GridChoice(crs="EPSG:3413"), [], [asset("EPSG:4326", (0.1, 0.0, 0.0, 0.0, -0.1, 190.0), (10, 10))])


WORLD = ("EPSG:4326", (1.0, 0.0, -180.0, 0.0, -1.0, 90.0), (180, 360))


@pytest.mark.parametrize(("crs", "edge"), [("EPSG:3413", 60.0), ("EPSG:3031", -60.0)])
def test_the_whole_world_becomes_the_half_that_a_polar_crs_is_for(crs, edge):
    around_pole = bounds(choose(GridChoice(crs=crs, resolution=50_000), [], [asset(*WORLD)]))
    assert -around_pole[0] == pytest.approx(around_pole[2], abs=50_000)
    lon = np.linspace(-180, 180, 721)
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(lon, np.full_like(lon, edge))
    assert around_pole == pytest.approx((x.min(), y.min(), x.max(), y.max()), abs=50_000)


def test_a_pole_has_no_place_in_mercator():
    with pytest.raises(GridMismatch, match="beyond its y of ±20037508"):
        choose(GridChoice(crs="EPSG:3857"), [], [asset("EPSG:3031", (1e3, 0.0, -1e5, 0.0, -1e3, 1e5), (200, 200))])
