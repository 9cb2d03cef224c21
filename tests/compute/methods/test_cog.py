"""Conversion: identical pixels in every encoding, and everything a file says about itself carried over."""

import itertools

import msgspec
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rio_cogeo import cog_validate

from eorouter_compute import grid, method, raster
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import BandNotFound, GridMismatch, InvalidParameter, SourceFault
from eorouter_compute.methods.cog import METHOD, CogParams
from eorouter_compute.testing import asymmetric, input_item, measured, run_local, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

REAL = [
    "formats/cogeo_webmercator.tif",
    "formats/rgb_mask.tif",
    "formats/rgba.tif",
    "formats/RGB.byte.tif",
    "formats/inverted_lat.tif",
    "formats/cog_nodata_nan.tif",
    "optical/landsat7_olinda/L7_ETMs.tif",
    "optical/s2_l2a_amazon/sen2_12bands.tif",
    "dem/elev_vinschgau.tif",
    "landcover/prodes_amazonia.tif",
    "zonal/luxembourg/sent2_L2A_2024-08-24.tif",
]


def output(result, number=0):
    return local_path(result.items[0].assets[number].object.href)


def assert_same_pixels(source, made, bands=None, atol=0.0):
    """By GDAL: the same values where the source has data, and missing where it has none."""
    with rasterio.open(source) as theirs, rasterio.open(made) as ours:
        alpha = [n for n, color in enumerate(theirs.colorinterp, 1) if color is ColorInterp.alpha]
        bands = bands or [n for n in theirs.indexes if n not in alpha]
        expected, found = theirs.read(bands), ours.read()
        there = theirs.read_masks(bands) > 0
        here = ours.read_masks() > 0
        if found.dtype.kind == "f":
            there, here = there & ~np.isnan(expected), here & ~np.isnan(found)
        np.testing.assert_array_equal(here, there)
        np.testing.assert_allclose(found[there], expected[there], rtol=0, atol=atol)


@pytest.mark.parametrize("name", REAL)
def test_real_scenes_come_through_whole(tmp_path, data_dir, name):
    asset = raster.describe(str(data_dir / name))
    result = run_local(CogParams(block_size=256), [input_item(asset)], tmp_path / "a")
    made = output(result)
    assert cog_validate(str(made), strict=True, quiet=True) == (True, [], [])
    assert_same_pixels(data_dir / name, made)
    again = run_local(CogParams(block_size=256), [input_item(asset)], tmp_path / "b", shard_pixels=256 * 256, threads=2)
    assert again.items[0].assets[0].object.sha256 == result.items[0].assets[0].object.sha256
    with rasterio.open(data_dir / name) as source, rasterio.open(made) as ours:
        dropped = {"OVR_RESAMPLING_ALG"}
        assert {k: v for k, v in ours.tags().items() if k not in dropped} == {
            k: v for k, v in source.tags().items() if k not in dropped
        }
        count = ours.count
        assert ours.colorinterp == source.colorinterp[:count]
        assert (ours.scales, ours.offsets, ours.units) == (
            source.scales[:count],
            source.offsets[:count],
            source.units[:count],
        )
        assert (ours.transform, ours.crs) == (source.transform, source.crs)


COMPRESSIONS = ["deflate", "lzw", "zstd", "lerc", "none"]
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_encoding_reads_back_the_same(tmp_path, dtype, compression):
    rng = np.random.default_rng(3)
    pixels = asymmetric((300, 290), bands=2, dtype=dtype)
    mask = rng.random((300, 290)) > 0.2
    assets = {
        "plain": write_raster(tmp_path / "plain.tif", pixels),
        "mask": write_raster(tmp_path / "mask.tif", pixels, mask=mask),
        "nodata": write_raster(tmp_path / "nodata.tif", np.where(mask, pixels, 7).astype(dtype), nodata=7),
    }
    if "float" in dtype:
        holes = pixels.copy()
        holes[:, ~mask] = np.nan
        holes[1, 5:9] = np.nan
        assets["nan"] = write_raster(tmp_path / "nan.tif", holes, nodata=float("nan"))
    predictors = ["auto"]
    if compression in {"deflate", "lzw", "zstd"}:
        predictors += ["none", "horizontal"] + (["floating_point"] if "float" in dtype else [])
    runs = itertools.product(assets, predictors if compression != "lzw" else predictors[:2])
    for number, (kind, predictor) in enumerate(runs):
        params = CogParams(compression=compression, predictor=predictor, block_size=256)
        if compression == "lerc" and kind == "nan":
            with pytest.raises(InvalidParameter, match="missing in one band"):
                run_local(params, [input_item(assets[kind])], tmp_path / str(number))
            continue
        result = run_local(params, [input_item(assets[kind])], tmp_path / str(number))
        assert cog_validate(str(output(result)), strict=True, quiet=True) == (True, [], []), (kind, predictor)
        assert_same_pixels(tmp_path / f"{kind}.tif", output(result))


def test_lossy_lerc_stays_within_its_error(tmp_path):
    pixels = asymmetric((300, 290), dtype="float32")
    mask = np.random.default_rng(1).random((300, 290)) > 0.2
    asset = write_raster(tmp_path / "a.tif", np.where(mask, pixels, -9999).astype("float32"), nodata=-9999)
    sizes = []
    for error in (0.0, 0.01):
        params = CogParams(compression="lerc", max_z_error=error, block_size=256)
        result = run_local(params, [input_item(asset)], tmp_path / str(error))
        assert_same_pixels(tmp_path / "a.tif", output(result), atol=error * 1.001)
        sizes.append(output(result).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_a_colour_table_and_tags_survive_and_make_classes(tmp_path):
    classes = (np.arange(300 * 300).reshape(1, 300, 300) // 977 % 3).astype("uint8")
    table = {0: (10, 20, 30, 255), 1: (200, 100, 0, 255), 2: (0, 0, 255, 255)}
    write_raster(tmp_path / "a.tif", classes, photometric="palette")
    with rasterio.open(tmp_path / "a.tif", "w", **rasterio.open(tmp_path / "a.tif").profile) as target:
        target.write_colormap(1, table)
        target.write(classes)
        target.update_tags(AREA_OR_POINT="Point", TIFFTAG_DATETIME="2020:02:03 04:05:06", ACQUIRED="noon <é>")
        target.update_tags(1, SENSOR="MSI")
        target.set_band_description(1, "cover")
    asset = raster.describe(str(tmp_path / "a.tif"))
    result = run_local(CogParams(block_size=256), [input_item(asset)], tmp_path / "out")
    assert cog_validate(str(output(result)), strict=True, quiet=True) == (True, [], [])
    with rasterio.open(tmp_path / "a.tif") as source, rasterio.open(output(result)) as ours:
        assert ours.colormap(1) == source.colormap(1)
        assert ours.colorinterp == (ColorInterp.palette,)
        assert ours.tags() == source.tags()
        assert ours.tags(1)["SENSOR"] == "MSI"
        assert ours.tags(1)["STATISTICS_MAXIMUM"] == "2"
        assert ours.descriptions == ("cover",)
        assert ours.transform == source.transform
    with rasterio.open(output(result), overview_level=0) as overview:
        assert set(np.unique(overview.read())) <= {0, 1, 2}
        assert overview.colormap(1)[1] == (200, 100, 0, 255)


def test_bands_of_several_assets_are_stacked(tmp_path):
    pixels = asymmetric((300, 290), bands=3)
    assets = [
        msgspec.structs.replace(write_raster(tmp_path / f"{key}.tif", pixels[n : n + 1], nodata=n), key=key)
        for n, key in enumerate(("B02", "B03", "B04"))
    ]
    item = input_item(*assets)
    result = run_local(CogParams(stack=True, bands=("B04", "B02")), [item], tmp_path / "out")
    with rasterio.open(output(result)) as ours:
        assert ours.descriptions == ("B04", "B02")
        np.testing.assert_array_equal(ours.read(), pixels[[2, 0]])
    other = msgspec.structs.replace(assets[1], transform=(20.0, 0.0, 1.0, 0.0, -20.0, 2.0))
    with pytest.raises(GridMismatch, match="their transform differs"):
        method.plan(CogParams(stack=True), [input_item(assets[0], other)])


HOLED = np.array([[0, 1, 2, 3], [255, 9, 5, 0]], "uint8")[None]


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ({"nodata": 0}, {"nodata": 255}, {"mask": "band"}),
        ({"nodata": 255}, {}, {"mask": "band"}),
        ({"mask": HOLED[0] > 1}, {"mask": HOLED[0] < 9}, {}),
        ({"mask": HOLED[0] > 1}, {}, {}),
    ],
    ids=["two nodata values", "one nodata value", "two masks", "one mask"],
)
def test_what_one_stacked_source_lacks_does_not_turn_into_data(tmp_path, first, second, fields):
    assets = [
        msgspec.structs.replace(write_raster(tmp_path / f"{key}.tif", HOLED, **options), key=key)
        for key, options in (("a", first), ("b", second))
    ]
    with pytest.raises(InvalidParameter, match=r"missing in one asset \(a\) and not in another") as caught:
        run_local(CogParams(stack=True, **fields), [input_item(*assets)], tmp_path / "1")
    assert caught.value.pointer == "/stack"
    result = run_local(CogParams(stack=True, nodata=77.0), [input_item(*assets)], tmp_path / "2")
    with rasterio.open(output(result)) as ours:
        for number, asset in enumerate(assets, 1):
            with rasterio.open(local_path(asset.href)) as source:
                np.testing.assert_array_equal(ours.read_masks(number), source.read_masks(1))


def test_stacked_sources_that_lack_the_same_share_a_mask(tmp_path):
    mask = HOLED[0] > 1
    assets = [write_raster(tmp_path / f"{key}.tif", HOLED, mask=mask) for key in "ab"]
    with rasterio.open(output(run_local(CogParams(stack=True), [input_item(*assets)], tmp_path / "out"))) as ours:
        np.testing.assert_array_equal(ours.dataset_mask() > 0, mask)


def test_nan_that_one_stacked_source_has_needs_no_mask(tmp_path):
    holed = HOLED.astype("float32")
    holed[0, 0, 1] = np.nan
    assets = [write_raster(tmp_path / f"{key}.tif", p) for key, p in (("a", holed), ("b", HOLED.astype("float32")))]
    made = output(run_local(CogParams(stack=True, mask="band"), [input_item(*assets)], tmp_path / "out"))
    with rasterio.open(made) as ours:
        np.testing.assert_array_equal(ours.read(1), holed[0])


def test_a_dark_channel_of_one_file_stays_what_it_is_beside_a_mask(tmp_path):
    pixels = np.stack([HOLED[0], np.where(HOLED[0] == 3, 0, HOLED[0])])
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    with rasterio.open(output(run_local(CogParams(mask="band"), [input_item(asset)], tmp_path / "out"))) as ours:
        np.testing.assert_array_equal(ours.dataset_mask() > 0, HOLED[0] > 0)
        assert ours.read(2)[0, 3] == 0


def spoil(path):
    """Damage the block in the second row and column of a file."""
    with rasterio.open(path) as source:
        place = int(source.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[place : place + 400] = b"\xff" * 400
    path.write_bytes(data)


def test_a_stacked_source_that_cannot_be_read_does_not_turn_into_data(tmp_path):
    whole = write_raster(tmp_path / "a.tif", asymmetric((600, 600), noise=0.5))
    broken = write_raster(tmp_path / "b.tif", asymmetric((600, 600), noise=0.5))
    spoil(tmp_path / "b.tif")
    item = input_item(whole, msgspec.structs.replace(broken, key="b"))
    with pytest.raises(InvalidParameter, match=r"missing in one asset \(b\)"):
        run_local(CogParams(stack=True, allow_missing=True), [item], tmp_path / "1")
    result = run_local(CogParams(stack=True, allow_missing=True, nodata=65535.0), [item], tmp_path / "2")
    with rasterio.open(output(result)) as ours:
        assert [(ours.read_masks(number) == 0).sum() for number in (1, 2)] == [0, 256 * 256]


def test_nodata_is_set_changed_or_refused(tmp_path):
    pixels = asymmetric((100, 120), dtype="int16")
    pixels[0, :10] = -9999
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=-9999)
    result = run_local(CogParams(nodata=-32768), [input_item(asset)], tmp_path / "1")
    with rasterio.open(output(result)) as ours:
        assert ours.nodata == -32768
        assert (ours.read(1)[:10] == -32768).all()
    taken = float(pixels[0, 50, 50])
    with pytest.raises(InvalidParameter, match="would become missing"):
        run_local(CogParams(nodata=taken), [input_item(asset)], tmp_path / "2")
    result = run_local(CogParams(mask="band"), [input_item(asset)], tmp_path / "3")
    with rasterio.open(output(result)) as ours:
        assert ours.nodata is None
        assert not ours.dataset_mask()[:10].any()


def test_a_new_nodata_is_refused_where_gdal_would_hide_data_beside_it(tmp_path):
    pixels = asymmetric((100, 120), dtype="float32")
    pixels[0, 50, 50] = np.nextafter(np.float32(-9999), np.float32(0))
    asset = write_raster(tmp_path / "a.tif", pixels)
    with pytest.raises(InvalidParameter, match="would become missing"):
        run_local(CogParams(nodata=-9999), [input_item(asset)], tmp_path / "1")
    with pytest.raises(InvalidParameter, match="cannot hold"):
        run_local(CogParams(nodata=1e300), [input_item(asset)], tmp_path / "1")
    result = run_local(CogParams(nodata=-9998), [input_item(asset)], tmp_path / "2")
    with rasterio.open(output(result)) as ours:
        assert ours.dataset_mask().all()


def test_geotiff_may_go_without_overviews_and_nitf_is_read_by_gdal(tmp_path):
    pixels = asymmetric((700, 600), bands=2, dtype="int16")
    asset = write_raster(tmp_path / "a.tif", pixels)
    result = run_local(CogParams(format="geotiff", overview_levels=0), [input_item(asset)], tmp_path / "1")
    with rasterio.open(output(result)) as ours:
        assert ours.overviews(1) == []
    result = run_local(CogParams(format="nitf"), [input_item(asset), input_item(asset, id="b")], tmp_path / "2")
    again = run_local(CogParams(format="nitf"), [input_item(asset), input_item(asset, id="b")], tmp_path / "3")
    made = {each.key: each for each in result.items[1].assets}
    assert set(made) == {"data", "preview", "data_nitf"}
    assert made["data_nitf"].object.sha256 == again.items[1].assets[-1].object.sha256
    with rasterio.open(local_path(made["data_nitf"].object.href)) as ours:
        assert ours.driver == "NITF"
        np.testing.assert_array_equal(ours.read(), pixels)
        assert ours.crs.to_epsg() == 32632
        assert ours.transform.almost_equals(rasterio.open(tmp_path / "a.tif").transform, 0.01)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", (0.01, 0.0, 11.0, 0.0, -0.01, 47.0)),
        ("EPSG:4326", (0.0001, 0.0, 11.00003, 0.0, -0.0001, 47.00004)),
        ("EPSG:4326", (0.01, 0.0, -180.0, 0.0, -0.01, -87.0)),
        ("EPSG:32733", (10.0, 0.0, 500_003.0, 0.0, -10.0, 8_000_007.0)),
    ],
)
def test_nitf_lies_where_its_corners_allow(tmp_path, crs, transform):
    pixels = asymmetric((300, 410))
    asset = write_raster(tmp_path / "a.tif", pixels, crs=crs, transform=transform)
    item = input_item(asset)
    plan = method.plan(CogParams(format="nitf"), [item])
    made = run_local(CogParams(format="nitf"), [item], tmp_path / "out").items[0].assets[-1]
    step = 1.0 if crs.startswith("EPSG:327") else 0.001
    with rasterio.open(local_path(made.object.href)) as ours:
        np.testing.assert_array_equal(ours.read(), pixels)
        assert ours.crs == rasterio.crs.CRS.from_user_input(crs)
        got, wanted = (grid.outline(asset.shape, tuple(t)[:6]) for t in (ours.transform, transform))
    off = np.abs(got - wanted).max()
    assert off <= step / 2 + 1e-9
    assert bool(plan.notes) == (step / 2 / transform[0] > 0.5)


def test_nitf_across_the_antimeridian_is_refused_in_degrees(tmp_path):
    pixels = asymmetric((30, 40))
    asset = write_raster(tmp_path / "a.tif", pixels, crs="EPSG:4326", transform=(0.01, 0.0, 179.9, 0.0, -0.01, 47.0))
    with pytest.raises(InvalidParameter, match="within ±180°") as caught:
        method.plan(CogParams(format="nitf"), [input_item(asset)])
    assert caught.value.pointer == "/format"


def test_a_broken_source_fails_by_name_or_is_missing(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((600, 600), noise=0.5))
    spoil(tmp_path / "a.tif")
    with pytest.raises(SourceFault, match=r"a\.tif"):
        run_local(CogParams(), [input_item(asset)], tmp_path / "1")
    result = run_local(CogParams(allow_missing=True), [input_item(asset)], tmp_path / "2")
    assert [failed.window[:2] for failed in result.report.failed] == [(256, 256)]
    with rasterio.open(output(result)) as ours:
        assert (ours.dataset_mask() == 0).sum() == 256 * 256


def test_memory_stays_far_below_the_raster(tmp_path):
    row = asymmetric((1, 8192), bands=1, dtype="uint16")
    pixels = np.broadcast_to(row, (1, 8192, 8192))
    asset = write_raster(tmp_path / "a.tif", pixels, compress="zstd", zstd_level=1)
    item = input_item(asset, msgspec.structs.replace(asset, key="again"))
    found = measured(CogParams(stack=True, compression="zstd", level=1), [item], tmp_path)
    assert found.pixels <= found.pixels_bound
    assert found.written_bytes <= found.written_bytes_bound
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= found.job_bytes_bound
    assert found.job_bytes < 2 * pixels.size * 2  # both bands


@pytest.mark.parametrize(
    ("fields", "pointer", "says"),
    [
        ({"compression": "lzw", "level": 5}, "/level", "no level"),
        ({"compression": "zstd", "level": 0}, "/level", "levels 1 to 22"),
        ({"max_z_error": 0.1}, "/max_z_error", "only lerc"),
        ({"compression": "lerc", "max_z_error": 0.5}, "/max_z_error", "below 1"),
        ({"compression": "none", "predictor": "horizontal"}, "/predictor", "none has none"),
        ({"predictor": "floating_point"}, "/predictor", "for floats"),
        ({"overview_levels": 0}, "/overview_levels", "geotiff"),
        ({"mask": "band", "nodata": 0.0}, "/nodata", "not both"),
        ({"nodata": 70000.0}, "/nodata", "cannot hold"),
        ({"mask": "nodata"}, "/mask", "no nodata value"),
    ],
)
def test_refusals_say_where(tmp_path, fields, pointer, says):
    asset = write_raster(tmp_path / "a.tif", asymmetric((40, 50)), names=["red"])
    with pytest.raises(InvalidParameter, match=says) as caught:
        method.plan(CogParams(**fields), [input_item(asset)])
    assert caught.value.pointer == pointer


def test_what_is_not_there_or_does_not_fit_is_named(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((40, 50), dtype="int8"), names=["red"])
    with pytest.raises(BandNotFound, match="It has: red"):
        method.plan(CogParams(bands=("nir",)), [input_item(asset)])
    with pytest.raises(InvalidParameter, match="no int8"):
        method.plan(CogParams(format="nitf"), [input_item(asset)])
    with pytest.raises(InvalidParameter, match="at least one"):
        method.plan(CogParams(), [])
    for example in METHOD.examples:
        assert isinstance(msgspec.convert(example, CogParams), CogParams)


@pytest.mark.parametrize(
    ("resampling", "value"), [("average", 3), ("mode", 1), ("nearest", 1), ("min", 1), ("median", 1), ("max", 8)]
)
def test_the_worked_number_of_overviews(tmp_path, resampling, value):
    asset = write_raster(tmp_path / "a.tif", np.tile(np.array([[[1, 1], [2, 8]]], "uint8"), (1, 150, 150)))
    params = CogParams(block_size=256, overview_resampling=resampling)
    result = run_local(params, [input_item(asset)], tmp_path / "out")
    with rasterio.open(output(result), overview_level=0) as ours:
        assert np.unique(ours.read()).tolist() == [value]
