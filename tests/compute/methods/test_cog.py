"""Conversion: identical pixels in every encoding, and everything a file says about itself carried over."""

import itertools

import msgspec
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rio_cogeo import cog_validate

from eorouter_compute import method, raster
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
        result = run_local(params, [input_item(assets[kind])], tmp_path / str(number))
        assert cog_validate(str(output(result)), strict=True, quiet=True) == (True, [], []), (kind, predictor)
        assert_same_pixels(tmp_path / f"{kind}.tif", output(result))
