import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from eorouter_compute import polygons
from eorouter_compute.errors import InvalidGeometry, InvalidParameter
from eorouter_compute.polygons import Status


def shapes(*each):
    out = np.empty(len(each), np.object_)
    out[:] = each
    return out


def lonlat(shape, crs):
    rings = polygons.to_lonlat(shapes(shape), crs)
    return shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, rings.vertices, rings[1:])[0]


@given(st.floats(-179, 179), st.floats(-80, 80), st.floats(0.01, 40), st.sampled_from(["past", "jump"]))
def test_a_box_is_the_same_place_however_it_is_drawn_over_the_antimeridian(west, south, width, how):
    def at(lon):
        return (lon + 180) % 360 - 180 if how == "jump" and lon > 180 else lon

    north, east = min(south + 5, 85), west + width
    drawn = shapely.Polygon([(at(x), y) for x, y in [(west, south), (east, south), (east, north), (west, north)]])
    repaired, (status,), _ = polygons.repair(shapes(drawn), polygons.as_crs(polygons.WGS84))
    assert status == Status.OK
    (found,) = polygons.within_turn(repaired, -180.0)
    assert found.is_valid
    assert found.area == pytest.approx(width * (north - south), rel=1e-6)
    assert found.bounds[0] >= -180 - 1e-9
    assert found.bounds[2] <= 180 + 1e-9


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_areas_of_a_polar_plane_come_out_valid_in_degrees(crs, sign):
    rng = np.random.default_rng(4)
    for x, y in rng.uniform(-600_000, 600_000, (60, 2)):
        found = lonlat(shapely.Point(x, y).buffer(rng.uniform(500, 400_000), quad_segs=4), crs)
        assert found.is_valid
        assert (sign * shapely.get_coordinates(found)[:, 1] > 70).all()
        assert np.abs(shapely.get_coordinates(found)[:, 0]).max() <= 180 + 1e-9


@pytest.mark.parametrize(("crs", "pole"), [("EPSG:3413", 90), ("EPSG:3031", -90)])
def test_a_ring_around_the_pole_has_an_edge_along_it_and_its_hole_too(crs, pole):
    cap = shapely.Point(0, 0).buffer(400_000, quad_segs=90)
    inner = shapely.Point(30_000, 10_000).buffer(100_000, quad_segs=90)
    aside = shapely.Point(250_000, 0).buffer(50_000, quad_segs=90)
    areas = [abs(Geod(ellps="WGS84").geometry_area_perimeter(each)[0]) for each in (
        shapely.transform(each, lambda xy: np.stack(polygons.transformer(
            polygons.as_crs(crs), polygons.as_crs(polygons.WGS84)).transform(*xy.T), axis=1))
        for each in (cap, inner, aside)
    )]  # fmt: skip
    for shape, area in ((cap, areas[0]), (cap.difference(inner).difference(aside), areas[0] - areas[1] - areas[2])):
        found = lonlat(shape, crs)
        assert found.is_valid
        assert abs(found.bounds[1 if pole < 0 else 3]) == pytest.approx(90 if shape is cap else abs(pole), abs=4)
        # Equal-area cylinder: degrees of longitude times the sine of authalic latitude, near enough the sphere's.
        sphere = shapely.transform(
            shapely.segmentize(found, 0.2),
            lambda xy: np.stack([np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1]))], axis=1),
        )
        assert sphere.area * 6_399_594**2 == pytest.approx(area, rel=0.005)


def test_what_cannot_be_measured_says_why():
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    mixed = shapely.GeometryCollection([shapely.Point(0, 0), shapely.box(0, 0, 1, 1)])
    flat = shapely.Polygon([(0, 0), (1, 1), (0, 0)])
    given = shapes(shapely.box(0, 0, 1, 1), bow, mixed, flat, shapely.Point(0, 0), shapely.Polygon(), None)
    found, status, detail = polygons.repair(given, polygons.as_crs("EPSG:32632"))
    assert [str(each) for each in status] == [
        "ok", "repaired", "repaired", "zero_area", "not_polygonal", "empty", "empty",
    ]  # fmt: skip
    assert [shape is None for shape in found] == [False] * 3 + [True] * 4
    assert found[1].area == 2.0
    assert "Self-intersection" in detail[1]
    assert detail[0] is None
    assert all(detail[1:])


def test_numbers_that_are_none_name_the_feature():
    with pytest.raises(InvalidGeometry) as caught:
        polygons.repair(shapes(shapely.box(0, 0, 1, 1), shapely.box(0, 0, np.inf, 1)), polygons.as_crs("EPSG:32632"))
    assert caught.value.data["feature"] == 1


@pytest.mark.parametrize(
    ("crs", "x", "y", "why"),
    [
        ("EPSG:32632", 1e308, 0.0, r"has \[1e\+308, 0\]; no place on Earth"),
        ("EPSG:32632", 0.0, -2e12, "no place on Earth"),
        ("OGC:CRS84", 1e308, 1e308, "no longitude and latitude in degrees"),
        ("OGC:CRS84", -361.0, 0.0, "no longitude and latitude in degrees"),
        ("EPSG:4326", 0.0, 90.1, "set `crs`"),
        ("OGC:CRS84", float("inf"), 0.0, "not a finite number"),
    ],
)
def test_coordinates_of_nowhere_name_the_feature_and_what_it_has(crs, x, y, why):
    astray = shapely.Polygon([(0, 0), (x, y), (1, 0)])
    with pytest.raises(InvalidGeometry, match=f"Feature 1 {why}|Feature 1 has.*{why}") as caught:
        polygons.repair(shapes(shapely.box(0, 0, 1, 1), astray), polygons.as_crs(crs))
    assert caught.value.pointer == "/zones/features/1/geometry"


def test_an_unknown_crs_is_refused():
    with pytest.raises(InvalidParameter):
        polygons.as_crs("EPSG:0")


@pytest.mark.parametrize("tolerance", [1.0, 50.0])
def test_edges_are_bent_within_the_tolerance_and_shared_ones_alike(tolerance):
    crs, target = polygons.as_crs(polygons.WGS84), polygons.as_crs("EPSG:3035")
    pair = shapes(shapely.box(5, 50, 10, 55), shapely.box(10, 50, 15, 55))
    rings = polygons.project(pair, crs, target, tolerance)
    one, other = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, rings.vertices, rings[1:])
    assert one.intersection(other).area == 0
    along = np.linspace(50, 55, 999)
    change = polygons.transformer(crs, target)
    edge = shapely.LineString(np.stack(change.transform(np.full(999, 10.0), along), axis=1))
    assert shapely.hausdorff_distance(edge, one.intersection(other)) <= 1.1 * tolerance


@given(st.floats(-179, 179), st.floats(0.1, 300))
def test_bounds_in_degrees_are_the_short_way_around(west, width):
    given = shapes(shapely.box(west, 0, west + width, 1))
    rings = polygons.ragged(polygons.within_turn(given, -180.0))
    left, south, right, north = polygons.lonlat_bounds(rings)
    assert (south, north) == (0, 1)
    found = right - left if right >= left else right + 360 - left
    assert found >= width - 1e-6
    assert polygons.box_of((left, south, right, north)).area == pytest.approx(found, rel=1e-9)
