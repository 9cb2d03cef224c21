"""The method spectral_index: exact values on real scenes, any sharding, grids, scaling and refusals."""

import io
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
import pytest
import rasterio

from eorouter_compute import method, raster, testing
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import BandNotFound, GridMismatch, InvalidParameter, SourceFault, UnknownIndex
from eorouter_compute.grid import SHARD_PIXELS
from eorouter_compute.method import Band, InputItem, RasterAsset
from eorouter_compute.methods.spectral_index import METHOD, SpectralIndexParams
from eorouter_compute.quality import QualityMask


def read(asset) -> np.ndarray:
    with rasterio.open(local_path(asset.object.href)) as source:
        return source.read()


def ndvi(nir: np.ndarray, red: np.ndarray) -> np.ndarray:
    """The index as anybody would write it: float64 throughout, rounded once."""
    with np.errstate(all="ignore"):
        out = ((nir - red) / (nir + red)).astype(np.float32)
    out[~np.isfinite(out)] = np.nan
    return out


def assert_same_bits(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    known = ~np.isnan(wanted)
    np.testing.assert_array_equal(got[known].view(np.uint32), wanted[known].view(np.uint32))


def renamed(asset: RasterAsset, key: str, **band_fields) -> RasterAsset:
    bands = tuple(msgspec.structs.replace(band, **band_fields) for band in asset.bands)
    return msgspec.structs.replace(asset, key=key, bands=bands)


@pytest.fixture
def scene(tmp_path) -> InputItem:
    return two_resolutions(tmp_path, (700, 900))


def two_resolutions(tmp_path, shape: tuple[int, int]) -> InputItem:
    """Two 10 m bands and one 20 m band, uint16 with offset, holes in each."""
    fine = testing.asymmetric(shape, bands=2, seed=1)
    coarse = testing.asymmetric((shape[0] // 2, shape[1] // 2), bands=1, seed=2)
    fine[:, 100:130, 200:260] = 0
    coarse[:, 20:30, 300:340] = 0
    a, b, c, d, e, f = testing.UTM_TRANSFORM
    ten = testing.write_raster(tmp_path / "ten.tif", fine, nodata=0, names=("B04", "B08"))
    twenty = testing.write_raster(
        tmp_path / "twenty.tif", coarse, nodata=0, names=("B12",), transform=(2 * a, b, c, d, 2 * e, f)
    )
    return testing.input_item(
        renamed(ten, "ten", scale=1e-4, offset=-0.1),
        renamed(twenty, "twenty", scale=1e-4, offset=-0.1),
        at=datetime(2024, 5, 17, 10, tzinfo=UTC),
        properties={"platform": "sentinel-2a", "s2:processing_baseline": "05.10"},
    )


def stored(item: InputItem, key: str) -> np.ndarray:
    asset = next(asset for asset in item.rasters if asset.key == key)
    return raster.read_block(asset, [band.index for band in asset.bands], asset.window).pixels


def test_ndvi_of_landsat_equals_numpy_bit_for_bit(data_dir):
    folder = data_dir / "optical" / "landsat8_zion"
    red = renamed(raster.describe((folder / "landsat_b4.tif").as_uri()), "b4", name="SR_B4")
    nir = renamed(raster.describe((folder / "landsat_b5.tif").as_uri()), "b5", name="SR_B5")
    item = InputItem(id="zion", assets=(red, nir), properties={"platform": "landsat-8"})
    result = testing.run_local(SpectralIndexParams(indices=("NDVI",)), [item], shard_pixels=600_000)
    pixels = [stored(item, key)[0] for key in ("b5", "b4")]
    n, r = (np.where(band == 65535, np.nan, band.astype(np.float64)) for band in pixels)
    wanted = ndvi(n, r)
    assert_same_bits(read(result.items[0].assets[0])[0], wanted)
    assert result.report.valid_pixels == int((~np.isnan(n + r)).sum()) == wanted.size


def test_indices_of_a_reflectance_chip_equal_numpy(data_dir):
    asset = raster.describe((data_dir / "optical" / "s2_l2a_amazon" / "sen2_12bands.tif").as_uri())
    item = InputItem(id="amazon", assets=(asset,), properties={"constellation": "sentinel-2"})
    indices = ("NDVI", "NDWI", "EVI", "NBR")
    result = testing.run_local(SpectralIndexParams(indices=indices), [item])
    got = read(result.items[0].assets[0])
    band = dict(zip((b.name for b in asset.bands), stored(item, asset.key).astype(np.float64), strict=True))
    n, r, g, b, s2 = (band[name] for name in ("B8", "B4", "B3", "B2", "B12"))
    assert_same_bits(got[0], ndvi(n, r))
    assert_same_bits(got[1], ndvi(g, n))
    assert_same_bits(got[2], (2.5 * (n - r) / (n + 6.0 * r - 7.5 * b + 1.0)).astype(np.float32))
    assert_same_bits(got[3], ndvi(n, s2))


def test_ndvi_of_the_meadow_equals_the_cube_openeo_made(data_dir):
    folder = data_dir / "timeseries" / "s2_meadow"
    # The raster module keeps GDAL from netCDF in this process, so another one reads the oracle.
    script = (
        "import io, sys, rasterio, numpy; out = io.BytesIO(); "
        "numpy.save(out, rasterio.open(f'netcdf:{sys.argv[1]}:NDVI').read()); sys.stdout.buffer.write(out.getvalue())"
    )
    clean = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LD_LIBRARY_PATH"}}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "s2_meadow.nc")],
        env=clean, cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    cube = np.load(io.BytesIO(done.stdout))
    dates = sorted({path.name[:10] for path in (folder / "geotiff").glob("*_B08.tif")})
    assert len(dates) == len(cube) == 58
    items = []
    for date in dates[:50]:
        assets = [
            raster.describe((folder / "geotiff" / f"{date}_{name}.tif").as_uri(), name) for name in ("B04", "B08")
        ]
        items.append(InputItem(id=date, assets=tuple(assets), properties={"platform": "sentinel-2a"}))
    result = testing.run_local(SpectralIndexParams(indices=("NDVI",)), items)
    seen = 0
    for item, wanted in zip(result.items, cube, strict=False):
        got = read(item.assets[0])[0]
        # openEO keeps single precision all the way; one rounding of each operand and of the result apart, it is equal.
        np.testing.assert_allclose(got, wanted, rtol=3e-7, atol=1e-7)
        seen += int(np.isfinite(got).sum())
    assert seen > 50_000


def test_mixed_resolutions_use_the_finest_grid_by_replication(scene):
    result = testing.run_local(SpectralIndexParams(indices=("NBR", "NDVI")), [scene])
    fine, coarse = stored(scene, "ten"), stored(scene, "twenty")
    red, nir, swir = (
        np.where(band == 0, np.nan, band * 1e-4 + -0.1)
        for band in (*fine, coarse[0].repeat(2, axis=0).repeat(2, axis=1))
    )
    item = result.items[0]
    got = read(item.assets[0])
    assert_same_bits(got[0], ndvi(nir, swir))
    assert_same_bits(got[1], ndvi(nir, red))
    assert np.isnan(got[0, 45, 620])
    assert not np.isnan(got[1, 45, 620]), "a hole of B12 is no hole of NDVI"
    assert item.at == scene.at
    made = item.assets[0].raster
    assert made is not None
    assert [band.name for band in made.bands] == ["NBR", "NDVI"]
    assert made.shape == (700, 900)
    assert item.properties["eorouter:bands"]["S2"]["band"] == "twenty:B12"
    assert item.properties["eorouter:indices"][1]["formula"] == "(N - R)/(N + R)"
    with rasterio.open(local_path(item.assets[0].object.href)) as source:
        assert source.descriptions == ("NBR", "NDVI")
        assert np.isnan(source.nodata)


def test_any_sharding_gives_the_same_bytes(tmp_path):
    scene = two_resolutions(tmp_path, (1_100, 1_300))
    params = SpectralIndexParams(indices=("NBR", "NDVI"))
    other = msgspec.structs.replace(scene, id="other/../scene")
    digests = set()
    for shard_pixels, shards in ((512 * 512, 9), (1024 * 1024, 4), (1 << 24, 1)):
        token = SHARD_PIXELS.set(shard_pixels)
        plan = method.plan(params, [scene, other])
        SHARD_PIXELS.reset(token)
        assert len(plan.shards) == 2 * shards
        result = testing.run_local(params, [scene, other], shard_pixels=shard_pixels)
        assert result.report.pixels == 2 * 1_100 * 1_300
        assert [item.name for item in result.items] == ["scene", "other-..-scene"]
        digests |= {item.assets[0].object.sha256 for item in result.items}
    assert len(digests) == 1, "whatever the shards, whichever the item"


def test_plan_bound_covers_what_is_read_and_written(scene):
    plan = method.plan(SpectralIndexParams(indices=("NBR",)), [scene])
    assert plan.bound.pixels == 700 * 900
    assert plan.bound.bytes_read >= sum(
        Path(unquote(urlsplit(asset.href).path)).stat().st_size for asset in scene.rasters
    )
    result = testing.run_local(SpectralIndexParams(indices=("NBR",)), [scene])
    assert plan.bound.bytes_written > result.items[0].assets[0].object.size
    assert plan.bound.memory_bytes > 700 * 900 * 8
    assert plan.notes == ("Pixels of S2 are 2 times as wide as the finest and are replicated.",)


def test_offset_flag_of_earth_search_wins_over_the_declared_offset(scene):
    flagged = msgspec.structs.replace(scene, properties=scene.properties | {"earthsearch:boa_offset_applied": True})
    params = SpectralIndexParams(indices=("NDVI",))
    got = read(testing.run_local(params, [flagged]).items[0].assets[0])[0]
    red, nir = (np.where(band == 0, np.nan, band * 1e-4 + 0.0) for band in stored(scene, "ten"))
    assert_same_bits(got, ndvi(nir, red))
    bare = msgspec.structs.replace(
        scene, assets=tuple(renamed(asset, asset.key, scale=1.0, offset=0.0) for asset in scene.rasters)
    )
    with_baseline = read(testing.run_local(params, [bare]).items[0].assets[0])[0]
    declared = read(testing.run_local(params, [scene]).items[0].assets[0])[0]
    assert_same_bits(with_baseline, declared)
    unknown = msgspec.structs.replace(bare, properties={"platform": "sentinel-2a"})
    assert any("No scale is declared" in note for note in method.plan(params, [unknown]).notes)


def test_parameters_and_kernel_reach_the_formula_and_the_properties(scene):
    params = SpectralIndexParams(indices=("SAVI", "kNDVI"), parameters={"L": 0.5, "sigma": 0.3})
    item = testing.run_local(params, [scene]).items[0]
    got = read(item.assets[0])
    red, nir = (np.where(band == 0, np.nan, band * 1e-4 + -0.1) for band in stored(scene, "ten"))
    assert_same_bits(got[0], ((1.0 + 0.5) * (nir - red) / (nir + red + 0.5)).astype(np.float32))
    np.testing.assert_allclose(got[1], np.tanh((nir - red) ** 2 / (4 * 0.09)), rtol=1e-5, atol=1e-7)
    savi, kndvi = item.properties["eorouter:indices"]
    assert savi["parameters"] == {"L": 0.5}
    assert kndvi["kernel"] == "RBF"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"transform": (25.0, 0.0, 399960.0, 0.0, -25.0, 4500000.0)}, "2.5 times"),
        ({"transform": (20.0, 0.0, 399963.0, 0.0, -20.0, 4500000.0)}, "corners are 0.3 pixels"),
        ({"transform": (20.0, 0.1, 399960.0, 0.0, -20.0, 4500000.0)}, "whole number"),
        ({"transform": (20.0, 0.0, 399960.0, 0.0, 20.0, 4500000.0)}, "whole number"),
        ({"crs": "EPSG:32633"}, "EPSG:32632"),
        ({"shape": (349, 450)}, "covers"),
        ({"transform": testing.UTM_TRANSFORM, "shape": (701, 900)}, "700, 900"),
    ],
)
def test_grids_that_do_not_fit_are_refused_and_say_why(scene, change, why):
    ten, twenty = scene.rasters
    item = msgspec.structs.replace(scene, assets=(ten, msgspec.structs.replace(twenty, **change)))
    with pytest.raises(GridMismatch, match="resampling") as caught:
        method.plan(SpectralIndexParams(indices=("NBR",)), [item])
    assert why in caught.value.message
    assert method.plan(SpectralIndexParams(indices=("NDVI",)), [item]).shards, "the odd band is not needed here"


def test_requests_that_cannot_be_done_are_refused_before_a_pixel_is_read(scene):
    def refused(**fields):
        with pytest.raises((BandNotFound, InvalidParameter, UnknownIndex)) as caught:
            method.plan(SpectralIndexParams(**fields), [scene])
        return caught.value

    error = refused(indices=("NDVI", "NDWI"))
    assert isinstance(error, BandNotFound)
    assert error.pointer == "/bands/G"
    assert "NDWI needs G" in error.message
    assert "ten:B04" in error.message
    assert refused(indices=("NDVI", "NDVX")).pointer == "/indices/1"
    assert refused(indices=("NDVI", "NDVI")).pointer == "/indices/1"
    assert refused(indices=("NDVI",), bands={"Q": "B04"}).pointer == "/bands/Q"
    assert refused(indices=("NDVI",), parameters={"L": 1.0}).pointer == "/parameters/L"
    assert refused(indices=("NIRvP",)).pointer == "/parameters/PAR"
    with pytest.raises(InvalidParameter, match="at most 50"):
        method.plan(SpectralIndexParams(indices=("NDVI",)), [scene] * 51)


def test_a_callers_map_overrides_what_names_say(scene):
    swapped = SpectralIndexParams(indices=("NDVI",), bands={"N": "B04", "R": "ten:B08"})
    straight = SpectralIndexParams(indices=("NDVI",))
    one, two = (read(testing.run_local(params, [scene]).items[0].assets[0])[0] for params in (swapped, straight))
    np.testing.assert_array_equal(one, -two)
    assert np.nanmax(np.abs(one)) > 0.5


def test_a_source_that_vanished_is_a_named_fault(scene):
    gone = tuple(msgspec.structs.replace(asset, href=asset.href + ".gone") for asset in scene.rasters)
    with pytest.raises(SourceFault, match=r"\.gone"):
        testing.run_local(SpectralIndexParams(indices=("NDVI",)), [msgspec.structs.replace(scene, assets=gone)])


def test_items_whose_ids_look_alike_in_a_path_get_names_of_their_own(scene):
    twins = [msgspec.structs.replace(scene, id=name) for name in ("a-2", "a", "/a", "../..", "a/")]
    result = testing.run_local(SpectralIndexParams(indices=("NDVI",)), twins)
    assert [item.name for item in result.items] == ["a-2", "a", "a-3", "item", "a-4"]
    assert set(result.summary["statistics"]) == {item.name for item in result.items}
    told = result.summary["statistics"]["a"]["NDVI"]
    shown = read(result.items[1].assets[0])
    assert told["maximum"] == float(np.nanmax(shown))
    assert told["valid_percent"] == pytest.approx(100 * float(np.isfinite(shown).mean()))


def test_method_is_registered_with_examples_that_decode():
    assert method.get("spectral_index") is METHOD
    for example in METHOD.examples:
        assert msgspec.convert(example, SpectralIndexParams).indices
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"method": "spectral_index", "indices": []}, SpectralIndexParams)
    assert Band(name="x", index=1, dtype="uint8").scale == 1.0


def test_resampling_brings_grids_together_that_do_not_nest(tmp_path):
    pixels = testing.asymmetric((120, 160), bands=1, seed=3)
    _, b, c, d, _, f = testing.UTM_TRANSFORM
    red = renamed(testing.write_raster(tmp_path / "red.tif", pixels, names=("red",)), "red")
    moved = (15.0, b, c + 4.0, d, -15.0, f - 7.0)
    nir = renamed(
        testing.write_raster(tmp_path / "nir.tif", pixels[:, :90, :110], names=("nir",), transform=moved), "nir"
    )
    item = testing.input_item(red, nir)
    with pytest.raises(GridMismatch, match="resampling"):
        method.plan(SpectralIndexParams(indices=("NDVI",)), [item])
    params = SpectralIndexParams(indices=("NDVI",), resampling="bilinear")
    assert any("N are brought" in note for note in method.plan(params, [item]).notes)
    got = read(testing.run_local(params, [item]).items[0].assets[0])[0]
    assert got.shape == pixels.shape[1:]
    from affine import Affine
    from rasterio.warp import Resampling, reproject

    moved_nir = np.full(got.shape, np.nan)
    source = np.where(pixels[0, :90, :110] > 0, pixels[0, :90, :110], np.nan).astype(np.float64)
    reproject(
        source, moved_nir, src_transform=Affine(*moved), src_crs="EPSG:32632", src_nodata=np.nan,
        dst_transform=Affine(*testing.UTM_TRANSFORM), dst_crs="EPSG:32632", dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )  # fmt: skip
    wanted = ndvi(np.rint(moved_nir), pixels[0].astype(float))
    inner = np.s_[3:-3, 3:-3]
    close = np.isclose(got[inner], wanted[inner], atol=2e-3, equal_nan=True)
    assert close.mean() > 0.99


def test_grid_puts_every_item_where_the_caller_says(scene):
    task = {"method": "spectral_index", "indices": ["NBR"], "grid": {"crs": "EPSG:4326"}}
    params = msgspec.convert(task, SpectralIndexParams)
    asset = testing.run_local(params, [scene]).items[0].assets[0]
    assert asset.raster.crs == "EPSG:4326"
    assert np.isfinite(read(asset)).mean() > 0.5


def test_quality_mask_drops_pixels_and_says_so(scene, tmp_path):
    classes = np.full((1, 350, 450), 4, np.uint8)
    classes[0, 40:60, 50:90] = 9
    a, b, c, d, e, f = testing.UTM_TRANSFORM
    scl = testing.write_raster(tmp_path / "scl.tif", classes, names=("SCL",), transform=(2 * a, b, c, d, 2 * e, f))
    item = msgspec.structs.replace(scene, assets=(*scene.assets, renamed(scl, "scl")))
    plain = testing.run_local(SpectralIndexParams(indices=("NDVI",)), [item])
    masked = testing.run_local(SpectralIndexParams(indices=("NDVI",), mask="sentinel-2-scl"), [item])
    wanted = read(plain.items[0].assets[0])[0]
    wanted[80:120, 100:180] = np.nan
    assert_same_bits(read(masked.items[0].assets[0])[0], wanted)
    assert masked.report.valid_pixels < plain.report.valid_pixels


def test_condition_of_a_mask_is_over_the_reflectance_that_the_index_is_of(tmp_path):
    """Sentinel-2 stored 2,600 at baseline 05.10 is 0.16, in the formula and in the mask."""
    pixels = np.array([[[2600, 3600]], [[4600, 4600]]], np.uint16)
    asset = testing.write_raster(tmp_path / "a.tif", pixels, names=["red", "nir"])
    item = testing.input_item(asset, properties={"s2:processing_baseline": "05.10"})
    params = SpectralIndexParams(indices=("NDVI",), mask=QualityMask(expression="red > 0.2"))
    found = read(testing.run_local(params, [item]).items[0].assets[0])[0, 0]
    np.testing.assert_allclose(found, [(0.36 - 0.16) / 0.52, np.nan], rtol=1e-6)


def test_broken_source_is_missing_where_that_is_allowed(scene, tmp_path):
    (tmp_path / "twenty.tif").unlink()
    result = testing.run_local(SpectralIndexParams(indices=("NBR", "NDVI"), allow_missing=True), [scene])
    got = read(result.items[0].assets[0])
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).any()
    assert result.report.failed


def test_bounds_hold_against_a_measured_process(tmp_path):
    item = two_resolutions(tmp_path, (1600, 1800))
    found = testing.measured(SpectralIndexParams(indices=("NBR", "NDVI"), resampling="bilinear"), [item], tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.written_bytes <= found.written_bytes_bound
    assert found.pixels <= found.pixels_bound


def test_worked_number_of_the_page(tmp_path):
    """Blue 1,400, red 1,500 and near infrared 5,000 of baseline 05.10: NDVI 0.7778 and EVI 0.625."""
    pixels = np.array([1400, 1500, 5000], np.uint16)[:, None, None].repeat(4, axis=1).repeat(4, axis=2)
    asset = testing.write_raster(tmp_path / "a.tif", pixels, names=["blue", "red", "nir"])
    properties = {"platform": "sentinel-2a", "s2:processing_baseline": "05.10"}
    item = testing.input_item(asset, properties=properties)
    params = msgspec.convert({"method": "spectral_index", "indices": ["NDVI", "EVI"]}, SpectralIndexParams)
    found = read(testing.run_local(params, [item], tmp_path / "job").items[0].assets[0])
    np.testing.assert_allclose(found[:, 2, 2], [0.35 / 0.45, 0.625], rtol=1e-6)
