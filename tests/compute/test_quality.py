import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_compute import quality
from eorouter_compute.catalogue import Scaling
from eorouter_compute.errors import BandNotFound, InvalidExpression, InvalidParameter, RequestFault
from eorouter_compute.grid import Window
from eorouter_compute.quality import PRESETS, BitFlag, MaskChoice, QualityMask
from eorouter_compute.testing import input_item, write_raster


def test_presets_drop_what_the_product_guides_call_unfit():
    scl = np.arange(12, dtype="uint8")[None]
    assert np.flatnonzero(quality.clear(PRESETS["sentinel-2-scl"], scl)).tolist() == [2, 4, 5, 6, 7]
    # LSDS-1619, table 5-4: clear with lows set 21824, cloud high confidence 22280, high cirrus confidence 54596,
    # cloud shadow 23888, snow 30048, fill 1, water 21952.
    pixels = np.array([[21824, 22280, 54596, 23888, 30048, 1, 21952]], "uint16")
    clear = quality.clear(PRESETS["landsat-qa-pixel"], pixels)
    assert clear[0].tolist() == [True, False, False, False, False, False, True]
    cmask = np.array([[0, 1, 2, 3, 4, 127, 255]], "uint8")
    assert np.flatnonzero(quality.clear(PRESETS["cbers-cmask"], cmask)[0]).tolist() == [0, 1, 5]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32"])
def test_bits_are_those_of_shifting_and_masking(dtype):
    values = np.arange(-200 if dtype.startswith("i") else 0, 250).astype(dtype)[None]
    mask = QualityMask(band="q", bits=(BitFlag(first=2, count=2, values=(1, 3)), BitFlag(first=6)))
    for value, is_clear in zip(values[0].tolist(), quality.clear(mask, values)[0], strict=True):
        assert is_clear == (not ((value >> 2 & 3) in (1, 3) or value >> 6 & 1))


def test_missing_quality_is_not_clear_and_does_not_grow(tmp_path):
    pixels = np.full((1, 9, 9), 4, "uint8")
    pixels[0, 4, 4] = 0
    asset = write_raster(tmp_path / "scl.tif", pixels, nodata=0, names=["SCL"])
    placed = quality.place(QualityMask(band="scl", classes=(0, 9), dilate_px=2), input_item(asset), asset.grid)
    clear = quality.read(placed, asset.window)
    assert np.argwhere(~clear).tolist() == [[4, 4]]


def test_a_condition_over_bands_uses_physical_values(tmp_path):
    import rasterio

    pixels = np.array([[[1000, 3000, 5000]], [[100, 4000, 100]]], "uint16")
    asset = write_raster(tmp_path / "bands.tif", pixels, names=["blue", "swir"])
    with rasterio.open(tmp_path / "bands.tif", "r+") as target:
        target.scales = (1e-4, 1e-4)
    from eorouter_compute import raster

    asset = raster.describe(asset.href)
    placed = quality.place(QualityMask(expression="blue > 0.2 and swir < 0.1"), input_item(asset), asset.grid)
    assert quality.read(placed, asset.window)[0].tolist() == [True, True, False]


def test_a_condition_sees_what_numbers_are_worth_to_the_method_and_classes_stay_as_stored(tmp_path):
    bands = np.array([[[1000, 3000, 5000]], [[1000, 1000, 9000]]], "uint16")
    asset = write_raster(tmp_path / "bands.tif", bands, names=["blue", "q"])
    item = input_item(asset)

    def worth(_, band):
        return Scaling(1e-4, -0.1 if band.name == "blue" else 0.0, "given")

    placed = quality.place(QualityMask(expression="blue > 0.15 and q < 0.5"), item, asset.grid, worth=worth)
    assert quality.read(placed, asset.window)[0].tolist() == [True, False, True]
    classes = quality.place(QualityMask(band="q", classes=(9000,)), item, asset.grid, worth=worth)
    assert quality.read(classes, asset.window)[0].tolist() == [True, True, False]


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.tuples(st.integers(0, 20), st.integers(0, 20)), st.integers(1, 20)
)
@settings(max_examples=60, deadline=None)
def test_growth_is_the_distance_to_the_nearest_flag(seed, radius, at, side):
    flags = np.random.default_rng(seed).random((23, 21)) < 0.02
    y, x = np.mgrid[0:23, 0:21]
    points = np.argwhere(flags)
    near = np.zeros(flags.shape, bool)
    for row, col in points:
        near |= (y - row) ** 2 + (x - col) ** 2 <= radius**2
    assert np.array_equal(quality.dilated(flags, radius), near)


def test_growth_does_not_depend_on_the_window_and_reaches_in_from_outside(tmp_path):
    rng = np.random.default_rng(3)
    pixels = np.where(rng.random((1, 40, 44)) < 0.01, 9, 4).astype("uint8")
    asset = write_raster(tmp_path / "scl.tif", pixels, names=["SCL"])
    item = input_item(asset)
    grid = asset.grid.cropped(Window(5, 6, 30, 31))
    placed = quality.place(QualityMask(band="SCL", classes=(9,), dilate_px=4), item, grid)
    whole = quality.read(placed, grid.window)
    assert np.array_equal(whole, ~quality.dilated(pixels[0] == 9, 4)[5:35, 6:37])
    for window in (Window(0, 0, 7, 9), Window(11, 3, 9, 20), Window(25, 28, 5, 3)):
        assert np.array_equal(quality.read(placed, window), whole[window.relative_to(grid.window)])


def test_a_coarse_quality_band_serves_a_fine_grid(tmp_path):
    fine = write_raster(tmp_path / "b.tif", np.ones((1, 8, 8), "uint16"), names=["red"])
    t = fine.transform
    coarse = write_raster(
        tmp_path / "q.tif",
        np.array([[[4, 9], [4, 4]]], "uint8"),
        names=["SCL"],
        transform=(40.0, 0.0, t[2], 0.0, -40.0, t[5]),
    )
    placed = quality.place("sentinel-2-scl", input_item(fine, coarse), fine.grid)
    clear = quality.read(placed, fine.window)
    assert (~clear).sum() == 16
    assert not clear[:4, 4:].any()


def test_real_scene_classification_of_a_crop_field(data_dir):
    from eorouter_compute import raster

    path = sorted((data_dir / "timeseries/s2_crops_lombardy/SCL").glob("*.tif"))[3]
    asset = raster.describe(path.as_uri(), "scl")
    item = input_item(asset)
    block = raster.read_block(asset, [1], asset.window)
    placed = quality.place("sentinel-2-scl", item, asset.grid)
    assert np.array_equal(
        quality.read(placed, asset.window), ~np.isin(block.pixels[0], PRESETS["sentinel-2-scl"].classes)
    )


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (QualityMask(band="SCL"), InvalidParameter, "exactly one of classes"),
        (QualityMask(band="SCL", classes=(1,), keep_classes=(2,)), InvalidParameter, "classes and keep_classes"),
        (QualityMask(classes=(1,)), InvalidParameter, "needs the quality band"),
        (QualityMask(band="SCL", expression="SCL > 1"), InvalidParameter, "names its bands itself"),
        (QualityMask(band="fmask", classes=(1,)), BandNotFound, "It has: SCL, ndvi"),
        (QualityMask(band="ndvi", classes=(1,)), InvalidParameter, "holds float32"),
        (QualityMask(expression="SCL >"), InvalidExpression, "At character"),
        (QualityMask(expression="fmask > 1"), InvalidExpression, "known are SCL"),
        (QualityMask(band="SCL", bits=(BitFlag(first=3, values=(2,)),)), InvalidParameter, "cannot hold"),
    ],
)
def test_refusals_say_what_and_where(tmp_path, mask, error, words):
    scl = write_raster(tmp_path / "scl.tif", np.full((1, 4, 4), 4, "uint8"), names=["SCL"])
    ndvi = write_raster(tmp_path / "ndvi.tif", np.zeros((1, 4, 4), "float32"), names=["ndvi"])
    with pytest.raises(error, match=words) as caught:
        quality.place(mask, input_item(scl, ndvi), scl.grid, pointer="/masks/0")
    assert isinstance(caught.value, RequestFault)
    assert caught.value.pointer.startswith("/masks/0")


def test_schema_offers_presets_and_rules():
    schema = msgspec.json.schema(MaskChoice)
    assert "sentinel-2-scl" in str(schema)
    assert "exactly one of" in schema["$defs"]["QualityMask"]["description"]
    assert msgspec.convert("cbers-cmask", MaskChoice) == "cbers-cmask"
