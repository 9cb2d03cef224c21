"""What a file hides: an alpha band wherever it stands, with masks and nodata beside it, in every way a file is read."""

import msgspec
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from eorouter_compute import blocks, missing, raster
from eorouter_compute.attempt import local_path
from eorouter_compute.grid import Window
from eorouter_compute.methods.clip import ClipParams
from eorouter_compute.methods.cog import CogParams
from eorouter_compute.methods.ingest import IngestParams
from eorouter_compute.methods.reproject import ReprojectParams
from eorouter_compute.testing import UTM_TRANSFORM, asymmetric, input_item, run_local

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LAYOUTS = {
    "the last of two": "gray alpha",
    "the last of four": "red green blue alpha",
    "the last of five": "red green blue undefined alpha",
    "the fourth of five": "red green blue alpha undefined",
    "the last of three": "gray undefined alpha",
    "the last of six": "red green blue undefined undefined alpha",
    "the first of three": "alpha gray undefined",
    "two of five": "red green blue alpha alpha",
}
SHAPE = (70, 90)


def described(path, colors, *, dtype="uint8", alpha=None, **options):
    """A raster of these colours, its alpha bands 0 in two corners and faint elsewhere; and where it has data."""
    colors = [ColorInterp[name] for name in colors.split()]
    pixels = asymmetric(SHAPE, bands=len(colors), dtype=dtype)
    pixels[pixels == 0] = 1
    rows, cols = np.indices(SHAPE)
    known = np.ones(SHAPE, np.bool_)
    for number, band in enumerate(n for n, color in enumerate(colors) if color is ColorInterp.alpha):
        pixels[band] = 1 + (rows + cols) % 255
        pixels[band][(rows < 20 + number) & (cols < 30)] = 0
        known &= pixels[band] != 0
    mask = options.pop("mask", None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", width=SHAPE[1], height=SHAPE[0], count=len(colors), dtype=dtype,
            crs="EPSG:32632", transform=rasterio.Affine(*UTM_TRANSFORM), tiled=True, blockxsize=32, blockysize=32,
            compress="deflate", **options,
        ) as target,
    ):  # fmt: skip
        target.colorinterp = colors
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    bands = [n for n, color in enumerate(colors, start=1) if color is not ColorInterp.alpha]
    return raster.describe(path.as_uri()), pixels[[band - 1 for band in bands]], known


def assert_read_as(asset, pixels, known):
    bands = [band.index for band in asset.bands]
    assert (asset.has_mask, len(bands)) == (True, len(pixels))
    block = raster.read_block(asset, bands, asset.window)
    np.testing.assert_array_equal(block.pixels, pixels)
    np.testing.assert_array_equal(block.valid, np.broadcast_to(known, pixels.shape))
    cut = Window(7, 5, 40, 50)
    at = (slice(cut.row, cut.row_stop), slice(cut.col, cut.col_stop))
    for place, band in enumerate(bands):
        part = raster.read_block(asset, [band], cut)
        np.testing.assert_array_equal(part.pixels[0], pixels[place][at])
        np.testing.assert_array_equal(part.valid[0], known[at])
    out = np.empty((len(bands), cut.height, cut.width), pixels.dtype)
    np.testing.assert_array_equal(raster.read_stored(asset, bands, cut, out)[0], known[at])
    np.testing.assert_array_equal(out, pixels[(..., *at)])
    tiles = blocks.Tiles(32, 2, {})
    np.testing.assert_array_equal(raster.read_with_tiles(asset, bands, asset.window, tiles).valid[0], known)
    np.testing.assert_array_equal(raster.read_tolerant(asset, bands, asset.window, []).valid[0], known)
    np.testing.assert_array_equal(raster.read_preview(asset, bands, 90).valid[0], known)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("colors", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_alpha_hides_whichever_band_it_is(tmp_path, colors, interleave):
    assert_read_as(*described(tmp_path / "a.tif", colors, interleave=interleave))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_alpha_of_any_type_hides(tmp_path, dtype):
    assert_read_as(*described(tmp_path / "a.tif", LAYOUTS["the last of three"], dtype=dtype))
    assert_read_as(*described(tmp_path / "b.tif", LAYOUTS["the last of four"], dtype=dtype))


@pytest.mark.parametrize("colors", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_alpha_hides_beside_a_mask(tmp_path, colors):
    mask = np.indices(SHAPE)[1] < 60
    asset, pixels, known = described(tmp_path / "a.tif", colors, mask=mask)
    assert_read_as(asset, pixels, known & mask)


@pytest.mark.parametrize("colors", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_alpha_hides_beside_nodata(tmp_path, colors):
    asset, pixels, known = described(tmp_path / "a.tif", colors, nodata=77)
    assert (pixels == 77).any()
    block = raster.read_block(asset, [band.index for band in asset.bands], asset.window)
    np.testing.assert_array_equal(block.valid, known & (pixels != 77))


def test_alpha_of_jpeg_2000_hides(tmp_path):
    asset, pixels, known = described(tmp_path / "a.tif", LAYOUTS["the last of four"])
    with rasterio.open(local_path(asset.href)) as source:
        rasterio.shutil.copy(source, tmp_path / "a.jp2", driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE=True)
    assert_read_as(raster.describe((tmp_path / "a.jp2").as_uri()), pixels, known)


def test_a_file_of_alpha_alone_is_a_raster_of_it(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=9, height=8, count=1, dtype="uint8",
                       crs="EPSG:32632", transform=rasterio.Affine(*UTM_TRANSFORM)) as target:  # fmt: skip
        target.colorinterp = [ColorInterp.alpha]
        target.write(np.zeros((1, 8, 9), np.uint8))
    with rasterio.open(tmp_path / "a.tif") as source:
        assert missing.alpha_bands(source) == []
    asset = raster.describe((tmp_path / "a.tif").as_uri())
    assert raster.read_block(asset, [1], asset.window).valid is None


def results(asset, path):
    item = input_item(asset)
    left, top = UTM_TRANSFORM[2], UTM_TRANSFORM[5]
    whole = [left, top - 10 * SHAPE[0], left + 10 * SHAPE[1], top]
    yield run_local(CogParams(), [item])
    yield run_local(ClipParams(aoi=whole, crs="EPSG:32632"), [item])
    yield run_local(msgspec.convert({"method": "reproject", "grid": {"bounds": whole, "crs": "EPSG:32632"}},
                                    ReprojectParams), [item])  # fmt: skip
    yield run_local(IngestParams(href=path.as_uri(), filename=path.name, declared_bytes=path.stat().st_size,
                                 pixels_max=10**6), [])  # fmt: skip


@pytest.mark.parametrize("colors", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_what_alpha_hides_is_hidden_from_gdal_in_whatever_is_made_of_it(tmp_path, colors):
    asset, pixels, known = described(tmp_path / "a.tif", colors)
    for result in results(asset, tmp_path / "a.tif"):
        with rasterio.open(local_path(result.items[0].assets[0].object.href)) as out:
            np.testing.assert_array_equal(out.dataset_mask() > 0, known)
            np.testing.assert_array_equal(out.read()[:, known], pixels[:, known])
            assert ColorInterp.alpha not in out.colorinterp
        preview = next(each for each in result.items[0].assets if each.key == "preview")
        with rasterio.open(local_path(preview.object.href)) as shown:
            np.testing.assert_array_equal(shown.dataset_mask() > 0, known)
