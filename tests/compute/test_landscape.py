"""The generated landscape: what the truth says is what the pixels show, and the same seed gives the same bytes."""

import hashlib
import json
from datetime import date

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.features import rasterize

from eorouter_compute import catalogue, countryside, landscape, raster
from eorouter_compute.countryside import CROPS

SIZE = 512
DATES = (date(2024, 4, 24), date(2024, 5, 19), date(2024, 6, 23), date(2024, 8, 12), date(2024, 10, 26))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> landscape.Landscape:
    return landscape.generate(
        tmp_path_factory.mktemp("world"), seed=3, size_px=SIZE, dates=DATES, cloud_shares=(0.1, 0, 0, 0.3, 0)
    )


def bands(item, *names: str) -> list[np.ndarray]:
    """Reflectance, NaN where missing."""
    out = []
    for name in names:
        asset, band = item.band(name)
        block = raster.read_block(asset, [band.index], asset.window)
        out.append(np.where(block.pixels[0] == 0, np.nan, block.pixels[0] * band.scale + band.offset))
    return out


def ndvi(item) -> np.ndarray:
    red, nir = bands(item, "B04", "B08")
    return (nir - red) / (nir + red)


def scl(item) -> np.ndarray:
    asset, band = item.band("SCL")
    return raster.read_block(asset, [band.index], asset.window).pixels[0]


def fields(world) -> list[dict]:
    return json.loads(world.fields.read_text())["features"]


def interiors(world) -> np.ndarray:
    """Field id of every pixel well inside a field (25 m from its edge), 0 elsewhere."""
    project = Transformer.from_crs("OGC:CRS84", world.crs, always_xy=True).transform
    shapes = [
        (
            shapely.transform(shapely.geometry.shape(one["geometry"]), lambda xy: np.column_stack(project(*xy.T))),
            one["id"],
        )
        for one in fields(world)
    ]
    inner = [(shape.buffer(-25), number) for shape, number in shapes]
    return rasterize(
        [pair for pair in inner if not pair[0].is_empty],
        out_shape=world.shape,
        transform=rasterio.Affine(*world.transform),
        dtype="int32",
    )


def test_pixels_show_the_ndvi_the_truth_says(world):
    truth = json.loads(world.truth.read_text())
    inside = interiors(world)
    count = np.bincount(inside.ravel())
    chosen = np.nonzero(count >= 30)[0][1:]
    assert len(chosen) > 40
    for place, item in enumerate(world.items()):
        if truth["scenes"][place]["cloud_share"] > 0:
            continue
        shown = ndvi(item)
        wanted = np.array(truth["fields"]["ndvi"][DATES[place].isoformat()])
        seen = np.isfinite(shown) & (inside > 0)
        counts = np.bincount(inside[seen], minlength=len(wanted) + 1)[chosen]
        sums = np.bincount(inside[seen], shown[seen], minlength=len(wanted) + 1)[chosen]
        whole = counts == count[chosen]
        assert whole.sum() > 40
        away = np.abs(sums[whole] / counts[whole] - wanted[chosen - 1][whole])
        assert np.median(away) < 0.01, DATES[place]
        assert away.max() < 0.05, DATES[place]


def test_crops_peak_when_their_calendar_says(world):
    truth = json.loads(world.truth.read_text())["fields"]["ndvi"]
    for place, one in enumerate(fields(world)):
        properties = one["properties"]
        calendar = CROPS[properties["crop"]]
        assert abs(properties["peak_day"] - calendar.peak_day) < 30
        assert properties["green_up_day"] < properties["peak_day"] < properties["harvest_day"]
        assert abs(properties["peak_ndvi"] - calendar.peak) < 0.12
        if properties["crop"] == "winter_wheat":
            assert truth["2024-05-19"][place] > 0.75
            assert truth["2024-08-12"][place] < 0.45
        if properties["crop"] == "maize":
            assert truth["2024-05-19"][place] < 0.35
            assert truth["2024-08-12"][place] > 0.7
    days = np.arange(1, 366)
    for name, calendar in CROPS.items():
        values = calendar.ndvi(days, 0.0, calendar.peak)
        assert values.max() == pytest.approx(calendar.peak, abs=0.1), name
        assert values.min() >= calendar.low - 1e-9


def test_the_burn_lowers_nbr_on_burnt_fields_only(world):
    inside = interiors(world)
    before, after = world.items()[2], world.items()[3]
    clear = np.isin(scl(after), (4, 5)) & np.isin(scl(before), (4, 5))
    asset, band = after.band("B12")
    assert asset.shape == (SIZE // 2, SIZE // 2)

    def nbr(item):
        nir, swir = bands(item, "B8A", "B12")
        return ((nir - swir) / (nir + swir)).repeat(2, axis=0).repeat(2, axis=1)

    burnt = [one["id"] for one in fields(world) if one["properties"]["is_burnt"]]
    assert burnt == json.loads(world.truth.read_text())["burn"]["field_ids"]
    assert len(burnt) >= 2
    crops = {one["id"]: one["properties"]["crop"] for one in fields(world)}
    cereals = [number for number, crop in crops.items() if crop.startswith("winter") and number not in burnt]
    is_burnt, is_cereal = np.isin(inside, burnt) & clear, np.isin(inside, cereals) & clear
    assert is_burnt.sum() > 50
    assert np.nanmedian(nbr(after)[is_burnt]) < -0.2
    assert np.nanmedian(nbr(after)[is_cereal]) > -0.15
    assert band.name == "B12"


def test_the_trend_is_the_planted_one(tmp_path):
    dates = [date(year, 6, 20) for year in (2022, 2023, 2024)]
    world = landscape.generate(tmp_path, seed=7, size_px=512, dates=dates, cloud_shares=(0, 0, 0))
    trend = json.loads(world.truth.read_text())["trend"]
    top, left, bottom, right = trend["window_rows_cols"]
    stand = np.s_[(top + bottom) // 2 - 5 : (top + bottom) // 2 + 5, (left + right) // 2 - 5 : (left + right) // 2 + 5]
    means = [float(np.nanmedian(ndvi(item)[stand])) for item in world.items()]
    slope = np.polyfit([(day - dates[0]).days / 365.25 for day in dates[:2]], means[:2], 1)[0]
    assert slope == pytest.approx(trend["ndvi_per_year"], abs=0.06)


def test_clouds_shadows_and_gaps_are_where_the_classes_say(world):
    truth = json.loads(world.truth.read_text())
    clear = bands(world.items()[1], "B02")[0]
    assert truth["scenes"][1]["valid_share"] < 1, "one date lies at the edge of the swath"
    for place, item in enumerate(world.items()):
        blue, classes = bands(item, "B02")[0], scl(item)
        np.testing.assert_array_equal(np.isnan(blue), classes == 0)
        share = np.isin(classes, (8, 9, 10)).sum() / (classes > 0).sum()
        assert share == pytest.approx(truth["scenes"][place]["cloud_share"], abs=1e-3)
        assert share == pytest.approx((0.1, 0, 0, 0.3, 0)[place], abs=0.04)
        if share:
            assert blue[classes == 9].min() > 0.2
            dark = np.isin(classes, (3,)) & np.isfinite(clear)
            assert np.nanmedian(blue[dark]) < 0.75 * np.nanmedian(clear[dark])
    water = scl(world.items()[2]) == 6
    assert 0.01 < water.mean() < 0.15
    assert np.nanmedian(ndvi(world.items()[2])[water]) < 0


def test_items_describe_their_files_and_resolve_letters(world):
    for item in world.items():
        for asset in item.rasters:
            told = raster.describe(asset.href)
            assert (told.shape, told.crs, told.transform) == (asset.shape, asset.crs, asset.transform)
            assert told.block_shape == asset.block_shape
            for one, other in zip(told.bands, asset.bands, strict=True):
                assert (one.name, one.dtype, one.nodata) == (other.name, other.dtype, other.nodata)
                assert (one.scale, one.offset) == (other.scale, other.offset)
        found = {letter: catalogue.resolve(item, letter)[1].name for letter in ("B", "N", "N2", "RE1", "S1", "S2")}
        assert found == {"B": "B02", "N": "B08", "N2": "B8A", "RE1": "B05", "S1": "B11", "S2": "B12"}
        assert catalogue.scaling(item, item.band("B08")[1]) == (1e-4, -0.1, "declared")


def test_fields_lie_apart_inside_the_picture(world):
    project = Transformer.from_crs("OGC:CRS84", world.crs, always_xy=True).transform
    shapes = [
        shapely.transform(shapely.geometry.shape(one["geometry"]), lambda xy: np.column_stack(project(*xy.T)))
        for one in fields(world)
    ]
    assert len(shapes) > 150
    assert all(shape.is_valid and shape.geom_type == "Polygon" for shape in shapes)
    x, y = countryside.ORIGIN
    outline = shapely.box(x, y - SIZE * 10, x + SIZE * 10, y).buffer(0.1)
    assert all(outline.contains(shape) for shape in shapes)
    tree = shapely.STRtree(shapes)
    pairs = tree.query(shapes, predicate="intersects")
    assert (pairs[0] == pairs[1]).all()
    for shape, one in zip(shapes, fields(world), strict=True):
        assert shape.area / 10_000 == pytest.approx(one["properties"]["area_ha"], rel=1e-3)
    assert {one["properties"]["crop"] for one in fields(world)} == set(CROPS)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    def digest(name: str, seed: int) -> str:
        made = landscape.generate(tmp_path / name, seed=seed, size_px=256, dates=DATES[:2])
        files = sorted(path for path in made.folder.iterdir())
        assert len(files) == 2 * 3 + 2
        assert not any(path.suffix == ".segment" for path in files)
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    one, same, other = digest("one", 5), digest("same", 5), digest("other", 6)
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"size_px": 255}, "even number"),
        ({"size_px": 100}, "even number"),
        ({"dates": ()}, "ascending"),
        ({"dates": (DATES[1], DATES[0])}, "ascending"),
        ({"dates": DATES[:2], "cloud_shares": (0.1,)}, "one number"),
        ({"dates": DATES[:1], "cloud_shares": (1.5,)}, "one number"),
    ],
)
def test_generate_refuses_what_it_cannot_make(tmp_path, fields, why):
    with pytest.raises(ValueError, match=why):
        landscape.generate(tmp_path, **fields)
    assert not list(tmp_path.iterdir())
