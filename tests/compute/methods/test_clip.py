"""Clip: pixel for pixel what rasterio.mask gives, in the same bytes for any sharding."""

import json

import msgspec
import numpy as np
import pytest
import rasterio
import rasterio.mask
import shapely
from affine import Affine
from rio_cogeo import cog_validate

from eorouter_compute import aoi, method, raster
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import AoiOutside, BandNotFound, InvalidGeometry, InvalidParameter
from eorouter_compute.methods.clip import METHOD, ClipParams
from eorouter_compute.testing import ROTATED_TRANSFORM, asymmetric, input_item, measured, run_local, write_raster

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    # rasterio.mask, the oracle, still multiplies affines the old way.
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]


def star(asset, seed=0):
    """A polygon with a hole that covers much of a raster; its corners avoid pixel centres and edges."""
    rng = np.random.default_rng(seed)
    height, width = asset.shape
    angles = np.linspace(0, 2 * np.pi, 12)[:-1] + rng.uniform(0, 0.3, 11)
    reach = rng.uniform(0.22, 0.47, 11)
    rings = []
    for scale in (1.0, 0.3):
        columns = width * (0.5137 + scale * reach * np.cos(angles))
        rows = height * (0.4871 + scale * reach * np.sin(angles))
        rings.append([Affine(*asset.transform) @ (float(x), float(y)) for x, y in zip(columns, rows, strict=True)])
    return shapely.Polygon(rings[0], [rings[1]])


def geojson(shape):
    return json.loads(shapely.to_geojson(shape))


def output(result, number=0):
    return local_path(result.items[0].assets[number].object.href)


def assert_equals_rasterio_mask(path, asset, shape, rule, out):
    with rasterio.open(path) as source, rasterio.open(out) as ours:
        indexes = [band.index for band in asset.bands]
        theirs, transform = rasterio.mask.mask(
            source, [shape], crop=True, all_touched=rule == "all_touched", filled=False, indexes=indexes
        )
        data = ours.read(masked=True)
        assert ours.transform.almost_equals(transform, 1e-6)
        hidden, expected = np.ma.getmaskarray(data), np.ma.getmaskarray(theirs)
        if data.dtype.kind == "f":
            hidden, expected = hidden | np.isnan(data.data), expected | np.isnan(theirs.data)
        np.testing.assert_array_equal(hidden, expected)
        np.testing.assert_array_equal(data.data[~hidden], theirs.data[~hidden])


REAL = [
    "formats/cog_valid_uint16.tif",
    "formats/cog_dateline.tif",
    "formats/cog_nodata_nan.tif",
    "formats/cog_scale_offset.tif",
    "formats/rgb_mask.tif",
    "formats/RGB.byte.tif",
    "formats/inverted_lat.tif",
    "optical/landsat7_olinda/L7_ETMs.tif",
    "optical/landsat8_zion/landsat_b4.tif",
    "optical/landsat8_zion/nlcd2011.tif",
    "optical/s2_l2a_amazon/sen2_12bands.tif",
    "sar/umbra_mount_yasur.tiff",
    "dem/elev_vinschgau.tif",
    "landcover/prodes_amazonia.tif",
    "change/naip_wetlands/m_4709963_se_14_1_20090818.tif",
    "change/landsat_ucayali/1985.tif",
    "zonal/luxembourg/elev.tif",
]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("rule", ["center", "all_touched"])
def test_real_scenes_are_clipped_as_rasterio_does(tmp_path, data_dir, name, rule):
    asset = raster.describe(str(data_dir / name))
    shape = star(asset)
    params = ClipParams(aoi=geojson(shape), crs=asset.crs, pixel_rule=rule)
    result = run_local(params, [input_item(asset)], tmp_path / "a")
    assert cog_validate(str(output(result)), strict=True, quiet=True) == (True, [], [])
    assert_equals_rasterio_mask(data_dir / name, asset, shape, rule, output(result))
    again = run_local(params, [input_item(asset)], tmp_path / "b", shard_pixels=512 * 512)
    assert again.items[0].assets[0].object.sha256 == result.items[0].assets[0].object.sha256
    assert again.report.valid_pixels == result.report.valid_pixels


@pytest.mark.parametrize(
    ("scene", "polygons"),
    [
        ("zonal/luxembourg/elev.tif", "zonal/luxembourg/lux.gpkg"),
        ("optical/landsat8_zion/landsat_b5.tif", "optical/landsat8_zion/zion.gpkg"),
        ("optical/s2_l2a_amazon/sen2_12bands.tif", "optical/s2_l2a_amazon/classes.gpkg"),
    ],
)
def test_real_polygons_in_another_crs_land_where_they_should(tmp_path, data_dir, scene, polygons):
    import geopandas

    frame = geopandas.read_file(data_dir / polygons).to_crs("OGC:CRS84")
    whole = frame.geometry.make_valid().union_all()
    asset = raster.describe(str(data_dir / scene))
    result = run_local(ClipParams(aoi=geojson(whole), mask="band"), [input_item(asset)], tmp_path)
    placed = aoi.onto(aoi.parse(geojson(whole)), aoi.CRS84, asset.crs, asset.transform, asset.shape)
    with rasterio.open(data_dir / scene) as source, rasterio.open(output(result)) as ours:
        theirs, _ = rasterio.mask.mask(source, [placed], crop=True, filled=False)
        expected = ~np.ma.getmaskarray(theirs).all(axis=0)
        if theirs.dtype.kind == "f":
            expected &= ~np.isnan(theirs.data).all(axis=0)
        np.testing.assert_array_equal(ours.dataset_mask() > 0, expected)


def test_an_area_across_the_antimeridian_keeps_both_sides(tmp_path, data_dir):
    asset = raster.describe(str(data_dir / "formats" / "cog_dateline.tif"))
    result = run_local(ClipParams(aoi=(179.6, 51.2, -179.6, 51.5)), [input_item(asset)], tmp_path)
    item = result.items[0]
    assert item.footprint["type"] == "MultiPolygon"
    assert item.bbox[0] > 179
    assert item.bbox[2] < -179
    assert result.report.pixels > 100_000


def test_without_crop_the_extent_stays(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((700, 900)), nodata=0, transform=ROTATED_TRANSFORM)
    shape = star(asset)
    params = ClipParams(aoi=geojson(shape), crs=asset.crs, crop=False)
    result = run_local(params, [input_item(asset)], tmp_path / "out", shard_pixels=512 * 512)
    made = result.items[0].assets[0].raster
    assert (made.shape, made.transform) == (asset.shape, asset.transform)
    with rasterio.open(tmp_path / "a.tif") as source, rasterio.open(output(result)) as ours:
        theirs, _ = rasterio.mask.mask(source, [shape], crop=False)
        np.testing.assert_array_equal(ours.read(), theirs)


def test_bands_are_chosen_by_name_and_keep_their_order(tmp_path):
    pixels = asymmetric((100, 120), bands=3)
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=0, names=["red", "green", "nir"])
    params = ClipParams(aoi=geojson(star(asset)), crs=asset.crs, bands=("nir", "red"))
    result = run_local(params, [input_item(asset)], tmp_path / "out")
    made = result.items[0].assets[0].raster
    assert [(band.name, band.index) for band in made.bands] == [("nir", 1), ("red", 2)]
    block = raster.read_block(made, [1, 2], made.window)
    window = aoi.window_of(star(asset), asset.transform, asset.shape)
    cut = pixels[[2, 0], window.row : window.row_stop, window.col : window.col_stop]
    np.testing.assert_array_equal(block.pixels[block.valid], cut[block.valid])


def test_assets_on_different_grids_become_assets_of_one_item(tmp_path):
    fine = write_raster(tmp_path / "fine.tif", asymmetric((400, 400)), nodata=0)
    coarse = write_raster(tmp_path / "coarse.tif", asymmetric((200, 200)), nodata=0,
                          transform=(20.0, 0.0, 399960.0, 0.0, -20.0, 4500000.0))  # fmt: skip
    item = input_item(fine, coarse, id="S2 scene/1")
    area = (400_500.0, 4_497_000.0, 402_500.0, 4_499_000.0)
    result = run_local(
        ClipParams(aoi=area, crs="EPSG:32632"), [item, msgspec.structs.replace(item, id="two")], tmp_path / "o"
    )
    assert [made.name for made in result.items] == ["S2-scene-1_clip_0", "two_clip_1"]
    for made in result.items:
        assert [asset.key for asset in made.assets] == ["data", "data1", "preview"]
        assert [asset.raster.shape for asset in made.assets[:2]] == [(200, 200), (100, 100)]
    only = run_local(ClipParams(aoi=area, crs="EPSG:32632", assets=("data1",)), [item], tmp_path / "p")
    assert [asset.key for asset in only.items[0].assets] == ["data1", "preview"]


def test_mask_choices(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((100, 120), dtype="uint8"))
    area = {"aoi": geojson(star(asset)), "crs": asset.crs}
    made = run_local(ClipParams(**area), [input_item(asset)], tmp_path / "1").items[0].assets[0].raster
    assert (made.has_mask, made.bands[0].nodata) == (True, None)
    with pytest.raises(InvalidParameter, match='"mask": "band"') as caught:
        method.plan(ClipParams(**area, mask="nodata"), [input_item(asset)])
    assert caught.value.pointer == "/mask"
    floats = write_raster(tmp_path / "b.tif", asymmetric((100, 120), dtype="float32"))
    made = run_local(ClipParams(**area), [input_item(floats)], tmp_path / "2").items[0].assets[0].raster
    assert not made.has_mask
    assert np.isnan(made.bands[0].nodata)


def test_bounds_hold_against_a_measured_process(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((1600, 1700), bands=2, noise=0.2), nodata=0)
    params = ClipParams(aoi=geojson(star(asset)), crs=asset.crs, mask="band")
    found = measured(params, [input_item(asset)], tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= max(found.job_bytes_bound, found.shard_bytes_bound)
    assert found.written_bytes <= found.written_bytes_bound
    assert 0 < found.pixels <= found.pixels_bound


def test_what_the_file_says_beside_its_pixels_is_carried_over(tmp_path):
    path = tmp_path / "a.tif"
    classes = (np.arange(700 * 700).reshape(1, 700, 700) // 977 % 3).astype("uint8") * 5
    asset = write_raster(path, classes, photometric="palette", names=["cover"], blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {0: (10, 20, 30, 255), 5: (200, 100, 0, 255), 10: (0, 0, 255, 255)})
        target.update_tags(AREA_OR_POINT="Point", TIFFTAG_DATETIME="2020:02:03 04:05:06", ACQUIRED="noon <é>")
        target.update_tags(1, SENSOR="MSI", STATISTICS_MAXIMUM="77")
        target.scales, target.offsets, target.units = (0.5,), (-3.0,), ("class",)
    raster.forget(asset.href)
    asset = raster.describe(asset.href)
    params = ClipParams(aoi=geojson(star(asset)), crs=asset.crs)
    result = run_local(params, [input_item(asset)], tmp_path / "out", shard_pixels=512 * 512)
    with rasterio.open(path) as source, rasterio.open(output(result)) as ours:
        assert ours.colormap(1) == source.colormap(1)
        assert ours.tags() == source.tags()
        assert (ours.tags(1)["SENSOR"], ours.tags(1)["STATISTICS_MAXIMUM"]) == ("MSI", "10")
        assert (ours.descriptions, ours.scales, ours.offsets, ours.units) == (("cover",), (0.5,), (-3.0,), ("class",))
    with rasterio.open(output(result), overview_level=0) as overview:
        assert set(np.unique(overview.read())) <= {0, 5, 10}  # classes are not averaged


def test_bands_keep_their_colours(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((60, 80), bands=3, dtype="uint8"), photometric="rgb", nodata=0)
    params = ClipParams(aoi=geojson(star(asset)), crs=asset.crs, bands=("blue", "red"))
    with rasterio.open(output(run_local(params, [input_item(asset)], tmp_path / "out"))) as ours:
        assert [color.name for color in ours.colorinterp] == ["blue", "red"]


def test_the_plan_bounds_what_is_written(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((1500, 1500), noise=0.5), nodata=0)
    params = ClipParams(aoi=geojson(star(asset)), crs=asset.crs)
    plan = METHOD.plan(params, [input_item(asset)])
    result = run_local(params, [input_item(asset)], tmp_path / "out")
    segments = sum(p.stat().st_size for p in (tmp_path / "out").rglob("segment.bin"))
    written = sum(asset.object.size for asset in result.items[0].assets)
    assert segments <= sum(shard.bound.bytes_written for shard in plan.shards)
    assert written <= plan.merge_bound.bytes_written
    assert result.report.pixels <= plan.bound.pixels


@pytest.mark.parametrize(
    "name", ["formats/cog_nodata_nan.tif", "formats/inverted_lat.tif", "zonal/luxembourg/elev.tif"]
)
@pytest.mark.parametrize("least", [0.3, 1.0])
def test_covered_enough_is_what_exactextract_says(tmp_path, data_dir, name, least):
    exactextract = pytest.importorskip("exactextract")
    asset = raster.describe(str(data_dir / name))
    shape = star(asset)
    params = ClipParams(aoi=geojson(shape), crs=asset.crs, pixel_rule="coverage", min_coverage=least, mask="band")
    result = run_local(params, [input_item(asset)], tmp_path)
    window = aoi.window_of(shape, asset.transform, asset.shape)
    in_pixels = aoi.in_pixels(shape, asset.transform)
    height, width = asset.shape
    grid = exactextract.raster.NumPyRasterSource(np.zeros(asset.shape), 0, 0, width, height)
    flipped = shapely.transform(in_pixels, lambda xy: np.stack([xy[:, 0], height - xy[:, 1]], axis=1))
    feature = {"type": "Feature", "properties": {}, "geometry": geojson(flipped)}
    answer = exactextract.exact_extract(grid, [feature], ["cell_id", "coverage"])[0]["properties"]
    fractions = np.zeros(height * width)
    fractions[np.asarray(answer["cell_id"], int)] = answer["coverage"]
    fractions = fractions.reshape(asset.shape)[window.relative_to(asset.window)]
    with rasterio.open(data_dir / name) as source, rasterio.open(output(result)) as ours:
        where = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        data = source.read(1, window=where, masked=True)
        there = ~np.ma.getmaskarray(data) & ~np.isnan(data.data)
        sure = np.abs(fractions - least) > 1e-6 if least < 1 else np.ones(there.shape, bool)
        expected = there & (fractions >= least - (1e-6 if least == 1 else 0))
        np.testing.assert_array_equal((ours.dataset_mask() > 0)[sure], expected[sure])


def test_what_the_area_does_not_meet_is_skipped_with_a_note(tmp_path):
    near = write_raster(tmp_path / "a.tif", asymmetric((100, 120)), nodata=0)
    far = write_raster(tmp_path / "b.tif", asymmetric((100, 120)), nodata=0, transform=(10, 0, 499960, 0, -10, 4500000))
    area = {"aoi": geojson(star(near)), "crs": near.crs}
    inputs = [input_item(far, id="far"), input_item(near, id="near")]
    with pytest.raises(AoiOutside, match="Item far"):
        method.plan(ClipParams(**area), inputs)
    assert "item far" in method.plan(ClipParams(**area, outside="skip"), inputs).notes[0]
    result = run_local(ClipParams(**area, outside="skip"), inputs, tmp_path / "out")
    assert [item.properties["derived_from"] for item in result.items] == ["near"]
    assert "km away" in result.summary["skipped"][0]
    with pytest.raises(AoiOutside, match="none of the rasters"):
        method.plan(ClipParams(**area, outside="skip"), inputs[:1])


def test_refusals_say_where(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((100, 120)), nodata=0, names=["red"])
    item = input_item(asset)
    inside = {"aoi": geojson(star(asset)), "crs": asset.crs}
    with pytest.raises(AoiOutside, match=r"Item scene, asset data.*km away"):
        method.plan(ClipParams(aoi=(20.0, 20.0, 21.0, 21.0)), [item])
    with pytest.raises(BandNotFound, match="red") as caught:
        method.plan(ClipParams(**inside, bands=("red", "swir")), [item])
    assert caught.value.pointer == "/bands/1"
    with pytest.raises(InvalidParameter, match=r"no raster asset b\. It has: data") as caught:
        method.plan(ClipParams(**inside, assets=("b",)), [item])
    assert caught.value.pointer == "/assets"
    with pytest.raises(InvalidParameter, match="at least one"):
        method.plan(ClipParams(**inside), [])
    with pytest.raises(InvalidParameter, match="at most 50"):
        method.plan(ClipParams(**inside), [item] * 51)
    with pytest.raises(InvalidGeometry, match="got LineString"):
        method.plan(ClipParams(aoi={"type": "LineString", "coordinates": []}), [item])
    x, y = Affine(*asset.transform) @ (50.1, 50.1)
    speck = geojson(shapely.box(x, y - 2, x + 2, y))
    with pytest.raises(InvalidParameter, match="all_touched"):
        method.plan(ClipParams(aoi=speck, crs=asset.crs), [item])
    with pytest.raises(InvalidParameter, match='Lower "min_coverage"'):
        method.plan(ClipParams(aoi=speck, crs=asset.crs, pixel_rule="coverage"), [item])
    kept = run_local(ClipParams(aoi=speck, crs=asset.crs, pixel_rule="all_touched"), [item], tmp_path / "speck")
    assert kept.items[0].assets[0].raster.shape == (1, 1)


def test_examples_decode_and_the_summary_is_the_first_line():
    for example in METHOD.examples:
        assert isinstance(msgspec.convert(example, ClipParams), ClipParams)
    assert METHOD.summary.startswith("Cut rasters")
