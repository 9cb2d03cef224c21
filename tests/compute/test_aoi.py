"""Areas of interest: what is accepted, where it lands, which pixels belong to it."""

import json

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask

from eorouter_compute import aoi
from eorouter_compute.errors import AoiOutside, InvalidGeometry, InvalidParameter
from eorouter_compute.grid import Window
from eorouter_compute.testing import ROTATED_TRANSFORM

UTM60 = "EPSG:32660"
SQUARE = [[10, 45], [11, 45], [11, 46], [10, 46], [10, 45]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [list(map(list, ring)) for ring in rings]}


def test_all_spellings_of_an_area_are_the_same():
    plain = polygon(SQUARE)
    feature = {"type": "Feature", "properties": {}, "geometry": plain}
    spellings = [
        plain,
        {"type": "MultiPolygon", "coordinates": [plain["coordinates"]]},
        feature,
        {"type": "FeatureCollection", "features": [feature]},
        (10.0, 45.0, 11.0, 46.0),
        polygon([[*point, 812.5] for point in SQUARE]),
    ]
    for spelling in spellings:
        assert aoi.parse(spelling).equals(shapely.box(10, 45, 11, 46))


@pytest.mark.parametrize(
    "crossing",
    [
        (179.0, -18.0, -179.0, -17.0),
        polygon([[179, -18], [181, -18], [181, -17], [179, -17], [179, -18]]),
        polygon([[-181, -18], [-179, -18], [-179, -17], [-181, -17], [-181, -18]]),
        polygon([[179, -18], [-179, -18], [-179, -17], [179, -17], [179, -18]]),
    ],
)
def test_areas_across_the_antimeridian_are_cut_there(crossing):
    area = aoi.parse(crossing)
    assert area.bounds == (-180, -18, 180, -17)
    assert area.area == pytest.approx(2.0)
    assert len(area.geoms) == 2


def test_half_the_globe_is_not_taken_for_a_jump():
    wide = polygon([[-120, -50], [125, -60], [140, 40], [-10, 60], [-120, -50]])
    assert aoi.parse(wide).equals(shapely.Polygon(wide["coordinates"][0]))
    assert aoi.parse((-180.0, -90.0, 180.0, 90.0)).area == 360 * 180


@pytest.mark.parametrize(
    ("wrong", "pointer", "word"),
    [
        (polygon(SQUARE[:-1]), "/aoi/coordinates/0", "not closed"),
        (polygon(SQUARE[:3]), "/aoi/coordinates/0", "four positions"),
        (polygon([[10, 45], [11, 46], [11, 45], [10, 46], [10, 45]]), "/aoi/coordinates/0", "Self-intersection"),
        (polygon([[10, 45], [11, float("nan")], [11, 46], [10, 45]]), "/aoi/coordinates/0/1", "Expected"),
        (polygon([[10, 45], [11, 45], [12, 45], [10, 45]]), "/aoi/coordinates/0", "not valid|no area"),
        (polygon([[500000, 5e6], [500100, 5e6], [500100, 5e6 + 9], [500000, 5e6]]), "/aoi/coordinates/0", "degrees"),
        ({"type": "Point", "coordinates": [1, 2]}, "/aoi", "got Point"),
        ({"type": "FeatureCollection", "features": []}, "/aoi/features", "at least one"),
        (
            {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": polygon(SQUARE)},
                                                       {"type": "Feature", "geometry": None}]},
            "/aoi/features/1/geometry",
            "Polygon or MultiPolygon",
        ),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE[:-1]]]}, "/aoi/coordinates/1/0", "not closed"),
        ((10.0, 46.0, 11.0, 45.0), "/aoi", "empty"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_place(wrong, pointer, word):
    with pytest.raises(InvalidGeometry, match=word) as caught:
        aoi.parse(wrong)
    assert caught.value.pointer == pointer


def _square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


SHELL = _square(10, 45, 1)
HOLES = {
    "along an edge": [[10, 45.2], [10.2, 45.2], [10.2, 45.4], [10, 45.4], [10, 45.2]],
    "outside": _square(20, 45, 0.1),
    "across": _square(10.95, 45.4, 0.2),
    "on another": _square(10.41, 45.41, 0.05),
    "bowtie": [[10.8, 45.8], [10.9, 45.9], [10.9, 45.8], [10.8, 45.9], [10.8, 45.8]],
}


@pytest.mark.parametrize("fault", HOLES)
@pytest.mark.parametrize("place", [1, 2, 5, 9])
def test_the_ring_at_fault_is_the_one_pointed_to(fault, place):
    others = [_square(10.4, 45.4, 0.1), *(_square(10.05 + 0.1 * n, 45.05, 0.05) for n in range(8))]
    if fault == "on another" and place == 1:
        place = 2
    rings = [SHELL, *others[: place - 1], HOLES[fault], *others[place - 1 :]]
    with pytest.raises(InvalidGeometry, match="The polygon is not valid") as caught:
        aoi.parse({"type": "MultiPolygon", "coordinates": [[_square(30, 45, 1)], rings]})
    assert caught.value.pointer == f"/aoi/coordinates/1/{place}"


def test_of_rings_that_only_touch_none_is_at_fault():
    corner = [[10, 45.2], [10.2, 45.1], [10.2, 45.3], [10, 45.2]]
    assert aoi.parse(polygon(SHELL, corner)).area == pytest.approx(1 - 0.02)


def test_the_ring_at_fault_is_found_among_very_many():
    holes = [_square(10 + 0.004 * (n % 240 + 1), 45 + 0.004 * (n // 240 + 1), 0.002) for n in range(30_000)]
    holes[20_000] = holes[19_999]
    with pytest.raises(InvalidGeometry) as caught:
        aoi.parse(polygon(SHELL, *holes))
    assert caught.value.pointer == "/aoi/coordinates/20001"


def test_an_unknown_crs_is_a_bad_parameter():
    with pytest.raises(InvalidParameter, match="not known"):
        aoi.parse((0.0, 0.0, 1.0, 1.0), "EPSG:999999")


@pytest.mark.parametrize(("crs", "kind"), [("EPSG:4978", "Geocentric CRS"), ("EPSG:5773", "Vertical CRS")])
def test_a_crs_without_a_map_is_refused(crs, kind):
    with pytest.raises(InvalidParameter, match=kind):
        aoi.parse((0.0, 0.0, 1.0, 1.0), crs)


def test_bent_edges_stay_within_a_tenth_of_a_pixel():
    area = aoi.parse(polygon([[5, 44], [13, 44], [13, 49], [5, 49], [5, 44]]))
    transform, shape = (10.0, 0.0, 0.0, 0.0, -10.0, 5_600_000.0), (120_000, 120_000)
    placed = aoi.onto(area, aoi.CRS84, "EPSG:32632", transform, shape)
    dense = np.stack([np.linspace(5, 13, 100_001), np.full(100_001, 44.0)], axis=1)
    to_utm = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32632", always_xy=True)
    truth = np.stack(to_utm.transform(dense[:, 0], dense[:, 1]), axis=1)
    edge = placed.boundary
    distances = shapely.distance(shapely.points(truth[::97]), edge)
    assert distances.max() <= 1.0
    assert shapely.get_num_coordinates(placed) < 2000


def test_an_area_across_the_antimeridian_lands_whole_on_a_utm_grid():
    area = aoi.parse((179.5, 51.0, -179.5, 51.2))
    transform, shape = (100.0, 0.0, 570_585.0, 0.0, -100.0, 5_847_615.0), (2355, 2325)
    placed = aoi.onto(area, aoi.CRS84, UTM60, transform, shape)
    true_area = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.box(179.5, 51.0, 180.5, 51.2))[0])
    assert placed.area == pytest.approx(true_area, rel=2e-3)
    covered = aoi.Coverage(placed, transform, shape, "center").covered(aoi.window_of(placed, transform, shape))
    assert covered.sum() * 1e4 == pytest.approx(true_area, rel=1e-2)


def test_an_area_across_the_antimeridian_is_cropped_to_itself_on_degrees():
    transform, shape = (0.01, 0.0, 179.0, 0.0, -0.01, 10.0), (120, 200)
    placed = aoi.onto(aoi.parse((179.5, 9.2, -179.5, 9.7)), aoi.CRS84, "EPSG:4326", transform, shape)
    assert aoi.window_of(placed, transform, shape) == (30, 50, 50, 100)


def test_a_raster_that_counts_to_360_meets_western_longitudes():
    area = aoi.parse((-100.0, 10.0, -90.0, 20.0))
    placed = aoi.onto(area, aoi.CRS84, "EPSG:4326", (1.0, 0.0, 0.0, 0.0, -1.0, 90.0), (180, 360))
    assert placed.bounds == (260, 10, 270, 20)


def test_an_area_that_spans_the_globe_lands_on_a_small_raster():
    shape = (100, 100)
    placed = aoi.onto(aoi.parse((-180.0, -80.0, 180.0, 84.0)), aoi.CRS84, "EPSG:32632", ROTATED_TRANSFORM, shape)
    assert aoi.Coverage(placed, ROTATED_TRANSFORM, shape, "center").covered(Window(0, 0, *shape)).all()


def test_a_distant_area_says_how_far_and_where():
    with pytest.raises(AoiOutside, match=r"km away.*within longitude and latitude \[7\.9") as caught:
        aoi.onto(aoi.parse((8.0, 41.0, 8.1, 41.1)), aoi.CRS84, "EPSG:32632", ROTATED_TRANSFORM, (50, 50))
    expected = pyproj.Geod(ellps="WGS84").inv(8.0, 41.0, 7.96, 40.75)[2] / 1000
    assert caught.value.data["distance_km"] == pytest.approx(expected, abs=8)
    with pytest.raises(AoiOutside, match="km away"):
        aoi.onto(aoi.parse((-100.0, 41.0, -99.0, 42.0)), aoi.CRS84, "EPSG:32632", ROTATED_TRANSFORM, (50, 50))


@pytest.mark.parametrize(
    ("crs", "transform", "box"),
    [
        ("EPSG:32632", (10.0, 0.0, 399960.0, 0.0, -10.0, 4500000.0), (399000.0, 4499600.0, 399960.0, 4500000.0)),
        ("EPSG:32632", (10.0, 0.0, 399960.0, 0.0, -10.0, 4500000.0), (400360.0, 4499000.0, 401000.0, 4499500.0)),
        ("EPSG:4326", (0.1, 0.0, 175.0, 0.0, -0.1, 10.0), (179.0, 5.0, 180.0, 10.0)),
        ("EPSG:4326", (0.1, 0.0, 176.0, 0.0, -0.1, 10.0), (-180.0, 5.0, -179.0, 10.0)),
    ],
    ids=["side", "corner", "degrees", "a turn away"],
)
def test_an_area_beside_the_raster_is_told_that_it_only_touches_it(crs, transform, box):
    shape = (50, 40)
    with pytest.raises(
        AoiOutside, match=r"touches the raster's edge, but covers none.*lies within longitude"
    ) as caught:
        aoi.onto(aoi.parse(box, crs), crs, crs, transform, shape)
    assert (caught.value.pointer, caught.value.data["distance_km"]) == ("/aoi", 0.0)


def test_an_area_a_tenth_of_a_pixel_from_the_raster_is_that_far_away():
    transform, shape = (10.0, 0.0, 399960.0, 0.0, -10.0, 4500000.0), (50, 40)
    area = aoi.parse((399000.0, 4499600.0, 399959.0, 4500000.0), "EPSG:32632")
    with pytest.raises(AoiOutside, match="km away") as caught:
        aoi.onto(area, "EPSG:32632", "EPSG:32632", transform, shape)
    assert caught.value.data["distance_km"] == pytest.approx(0.001, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["center", "all_touched"]), st.booleans())
def test_coverage_is_gdals_and_does_not_depend_on_the_window(seed, rule, is_rotated):
    rng = np.random.default_rng(seed)
    transform = ROTATED_TRANSFORM if is_rotated else (10.0, 0.0, 399960.0, 0.0, -10.0, 4500000.0)
    shape = (700, 1100)
    angles = np.sort(rng.random(9)) * 2 * np.pi
    reach = rng.uniform(0.1, 0.6, 9) * 700
    pixels = np.stack(
        [rng.uniform(200, 900) + reach * np.cos(angles), rng.uniform(100, 600) + reach * np.sin(angles)], 1
    )
    corners = [Affine(*transform) @ (float(x), float(y)) for x, y in pixels]
    area = aoi._multi(shapely.make_valid(shapely.Polygon(corners)))
    coverage = aoi.Coverage(area, transform, shape, rule)
    whole = coverage.covered(Window(0, 0, *shape))
    theirs = geometry_mask([area], shape, Affine(*transform), all_touched=rule == "all_touched", invert=True)
    np.testing.assert_array_equal(whole, theirs)
    row, col = int(rng.integers(0, 600)), int(rng.integers(0, 1000))
    part = Window(row, col, 100, 100)
    np.testing.assert_array_equal(coverage.covered(part), whole[row : row + 100, col : col + 100])


def test_areas_of_many_vertices_are_cut_without_changing_a_pixel():
    t = np.linspace(0, 2 * np.pi, 20_001)[:-1]
    ring = np.stack([5000 + 4000 * np.cos(t) + 31 * np.cos(97 * t), -5000 + 3500 * np.sin(t) + 29 * np.sin(89 * t)], 1)
    area = shapely.MultiPolygon([shapely.Polygon(ring)])
    transform, shape = (7.3, 0.0, 0.0, 0.0, -7.1, 0.0), (1400, 1400)
    for rule in ("center", "all_touched"):
        ours = aoi.Coverage(area, transform, shape, rule).covered(Window(0, 0, *shape))
        theirs = geometry_mask([area], shape, Affine(*transform), all_touched=rule == "all_touched", invert=True)
        np.testing.assert_array_equal(ours, theirs)


def test_real_polygons_parse(data_dir):
    text = (data_dir / "change" / "oscd_norcia" / "norcia.geojson").read_text()
    assert aoi.parse(json.loads(text)).area > 0


@pytest.mark.parametrize(
    ("box", "rule", "least", "is_empty"),
    [
        ((3.1, 2.0, 3.4, 9.0), "center", 0.5, True),  # between two columns of centres
        ((3.1, 2.0, 3.6, 9.0), "center", 0.5, False),
        ((3.1, 2.0, 3.4, 9.0), "all_touched", 0.5, False),
        ((3.1, 2.0, 3.4, 9.0), "coverage", 0.5, True),
        ((3.1, 2.0, 3.4, 9.0), "coverage", 0.25, False),
        ((0.0, 0.0, 400.0, 400.0), "center", 0.5, False),
    ],
)
def test_an_area_that_covers_no_pixel_is_refused_by_its_rule(box, rule, least, is_empty):
    drawn = shapely.MultiPolygon([shapely.box(*box)])

    def ask():
        aoi.refuse_empty(
            drawn, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (500, 500), rule, of="the grid", mend="Draw it larger.",
            pointer="/aoi", min_coverage=least,
        )  # fmt: skip

    if not is_empty:
        ask()
        return
    with pytest.raises(
        InvalidParameter, match=rf"no pixel of the grid by the rule {rule}\. Draw it larger\."
    ) as caught:
        ask()
    assert caught.value.pointer == "/aoi"


def test_the_worked_number_of_covered_fractions():
    area = shapely.MultiPolygon([shapely.box(0.0, -4.0, 2.3, 0.0)])
    for least, columns in ((0.25, 3), (0.5, 2)):
        inside = aoi.Coverage(area, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), (4, 5), "coverage", min_coverage=least)
        assert inside.covered(Window(0, 0, 4, 5)).sum(axis=1).tolist() == [columns] * 4
