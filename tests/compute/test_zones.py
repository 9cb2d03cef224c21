"""Zones around the antimeridian, however they are drawn, and where a layer lies by its description alone."""

from typing import Any

import msgspec
import numpy as np
import pytest
import shapely

from eorouter_compute import aoi, polygons, zones
from eorouter_compute.grid import Transform
from eorouter_compute.method import Band, RasterAsset, VectorAsset

# One and the same place: 177 … 183 degrees east.
PAST = shapely.box(177, -2, 183, 2)
JUMPING = shapely.Polygon([(177, -2), (-177, -2), (-177, 2), (177, 2)])
CUT = shapely.MultiPolygon([shapely.box(177, -2, 180, 2), shapely.box(-180, -2, -177, 2)])
NEGATIVE = shapely.box(-183, -2, -177, 2)
DRAWN = {"past": PAST, "jumping": JUMPING, "cut": CUT, "negative": NEGATIVE}


def raster(crs: str, transform: Transform, shape: tuple[int, int]) -> RasterAsset:
    bands = (Band(name="B1", index=1, dtype="uint8"),)
    return RasterAsset(
        key="r", href="r.tif", crs=crs, transform=transform, shape=shape, bands=bands, block_shape=(256, 256)
    )  # fmt: skip


GLOBE = raster("EPSG:4326", (0.5, 0, -180, 0, -0.5, 90), (360, 720))
PACIFIC = raster("EPSG:4326", (0.5, 0, 0, 0, -0.5, 90), (360, 720))
BEHIND = raster("EPSG:4326", (0.5, 0, -190, 0, -0.5, 10), (40, 40))
UTM_60 = raster("EPSG:32660", (1000, 0, 400_000, 0, -1000, 300_000), (600, 1000))


def place(shape: Any, grid: RasterAsset, crs: str | None = None) -> tuple[zones.Zones, Any]:
    return zones.place(shapely.geometry.mapping(shape), grid, crs=crs)


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("grid", [GLOBE, PACIFIC, BEHIND], ids=["globe", "pacific", "behind"])
def test_a_zone_across_the_antimeridian_is_one_place_on_any_grid_of_degrees(drawn: str, grid: RasterAsset):
    _, outlines = place(DRAWN[drawn], grid)
    assert outlines.areas[0] == pytest.approx(6 * 4 / 0.25)
    box = outlines.boxes[0]
    if grid is GLOBE:
        assert box.tolist() == [0.0, 176.0, 720.0, 184.0]
    else:
        first = 354.0 if grid is PACIFIC else 14.0
        assert box[[0, 2]].tolist() == [first, first + 12.0]


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_zone_across_the_antimeridian_is_whole_in_a_projection(drawn: str):
    found = place(DRAWN[drawn], UTM_60)[0].projected()[0]
    whole = place(PAST, UTM_60)[0].projected()[0]
    assert whole.area == pytest.approx(6 * 4 * 111_000**2, rel=0.02)
    assert shapely.union_all(shapely.make_valid(found)).symmetric_difference(whole).area < 1e-4 * whole.area


def test_a_projected_zone_across_the_antimeridian_is_whole_in_degrees():
    zone = shapely.box(800_000, 0, 900_000, 50_000)
    _, globe = place(zone, GLOBE, "EPSG:32660")
    _, pacific = place(zone, PACIFIC, "EPSG:32660")
    assert globe.areas[0] == pytest.approx(pacific.areas[0], rel=1e-9)
    assert pacific.boxes[0, 2] - pacific.boxes[0, 0] < 3.0
    assert globe.boxes[0, [0, 2]].tolist() == [0.0, 720.0]


def test_holes_follow_their_shell_over_the_antimeridian():
    hole = [(-179, -1), (-179, 1), (-178, 1), (-178, -1)]
    shape = shapely.Polygon(JUMPING.exterior.coords, [hole])
    assert place(shape, PACIFIC)[1].areas[0] == pytest.approx((24 - 2) / 0.25)


WIDE = {
    "corners": shapely.box(-170, 0, 170, 10),
    "stepped": shapely.segmentize(shapely.box(-170, 0, 170, 10), 90),
    "world": shapely.box(-180, -90, 180, 90),
    "jumping": JUMPING,
}


@pytest.mark.parametrize("drawn", WIDE)
def test_what_crosses_and_what_is_wide_is_told_apart_as_for_areas_of_interest(drawn: str):
    own = aoi.parse(msgspec.json.decode(shapely.to_geojson(WIDE[drawn])))
    assert place(WIDE[drawn], GLOBE)[1].areas[0] == pytest.approx(own.area / 0.25)


def test_geojson_is_cut_and_its_box_runs_from_west_to_east_over_the_antimeridian():
    lonlat = polygons.to_lonlat(np.array([PAST, None, shapely.box(170, 0, 171, 1)]), "OGC:CRS84")
    assert shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, lonlat.vertices, lonlat[1:])[0].equals(CUT)
    box = polygons.lonlat_bounds(lonlat)
    assert box == (170.0, -2.0, -177.0, 2.0)
    assert shapely.area(polygons.box_of(box)) == 13 * 4
    both = np.array([shapely.box(-10, 0, 5, 1), shapely.box(100, 0, 105, 1)])
    assert polygons.lonlat_bounds(polygons.ragged(both)) == (-10.0, 0.0, 105.0, 1.0)


@pytest.mark.parametrize(
    ("bounds", "crs", "grid", "cols"),
    [
        ((-180, -1, 180, 1), "EPSG:4326", BEHIND, (0, 40)),
        ((-179, -1, 179, 1), "EPSG:4326", GLOBE, (0, 720)),
        ((177, -1, 178, 1), "EPSG:4326", BEHIND, (14, 16)),
        ((177, -1, 183, 1), "EPSG:4326", PACIFIC, (354, 366)),
        ((10, -1, 11, 1), "EPSG:4326", PACIFIC, (20, 22)),
        ((800_000, 0, 900_000, 50_000), "EPSG:32660", GLOBE, (0, 720)),
    ],
)
def test_bounds_of_a_layer_hold_its_zones_wherever_the_raster_begins(
    bounds: polygons.Bounds, crs: str, grid: RasterAsset, cols: tuple[int, int]
):
    layer = VectorAsset(key="z", href="z", crs=crs, feature_count=1, bounds=bounds)
    box = zones.box_of_layer(layer, grid)
    assert (box[0], box[2]) == pytest.approx(cols)


def test_a_layer_around_the_earth_says_nothing_of_a_projection():
    layer = VectorAsset(key="z", href="z", crs="EPSG:4326", feature_count=2, bounds=(-179, -1, 179, 1))
    (window,) = zones.overlap(zones.box_of_layer(layer, UTM_60), UTM_60, 8)
    assert window == UTM_60.window


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((12, 3, 14, 5), "the nearest lies 2 metre (2 px) right of r"),
        ((-9, 11, -7, 12), "7 metre (7 px) left of and 1 metre (1 px) below r"),
        ((10, 3, 14, 5), "they touch its edge, lie on either side of it, or are that thin"),
        ((-4, 3, 14, 5), "No zone covers as much as a billionth of a cell of r"),
    ],
)
def test_how_far_zones_lie_is_told_only_where_they_lie_apart(box: tuple[float, ...], says: str):
    assert says in zones.how_far(np.array(box, np.float64), raster("EPSG:32632", (1, 0, 0, 0, -1, 0), (10, 10)))
