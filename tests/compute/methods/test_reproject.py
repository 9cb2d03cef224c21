"""Reproject: every asset on its grid, the same bytes for any shards, within its bound, and clear refusals."""

from typing import get_args

import msgspec
import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from eorouter_compute import method, raster, warp
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import AoiOutside, BandNotFound, InvalidParameter, SourceFault
from eorouter_compute.methods.reproject import METHOD, ReprojectParams
from eorouter_compute.target_grid import GridChoice
from eorouter_compute.testing import asymmetric, input_item, measured, run_local, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def params(grid, **more):
    return msgspec.convert({"method": "reproject", "grid": grid, **more}, ReprojectParams)


def path(result, item=0, asset=0):
    return local_path(result.items[item].assets[asset].object.href)


def scene(folder, *, shape=(300, 330), bands=2, dtype="uint16", name="a", **options):
    asset = write_raster(folder / f"{name}.tif", asymmetric(shape, bands=bands, dtype=dtype), **options)
    return msgspec.structs.replace(asset, key=name)


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "average"])
def test_a_real_scene_across_the_antimeridian_in_any_shards(data_dir, kind):
    asset = raster.describe((data_dir / "formats/cog_dateline.tif").as_uri())
    task = params({"crs": "EPSG:4326", "resolution": 0.004}, resampling=kind)
    results = [run_local(task, [input_item(asset)], shard_pixels=pixels, threads=2) for pixels in (1 << 22, 512 * 512)]
    assert len({each.items[0].assets[0].object.sha256 for each in results}) == 1
    west, _, east, _ = results[0].items[0].bbox
    assert (west > 177, east < -178) == (True, True)
    assert cog_validate(path(results[0]), quiet=True)[0]
    with rasterio.open(path(results[0])) as out:
        grid = asset_of(results[0]).grid
        block = warp.read(warp.placed(asset, grid, resampling=kind), [1], grid.window)
        known = out.read_masks(1) > 0
        np.testing.assert_array_equal(known, block.valid[0])
        np.testing.assert_array_equal(out.read(1)[known], block.pixels[0][known])


def asset_of(result, item=0, asset=0):
    return result.items[item].assets[asset].raster


def test_assets_keep_their_resolution_unless_one_is_given(tmp_path):
    fine = scene(tmp_path, name="fine")
    coarse = scene(tmp_path, shape=(150, 165), name="coarse", transform=(20.0, 0.0, 399960.0, 0.0, -20.0, 4500000.0))
    item = input_item(fine, coarse)
    own = run_local(params({"crs": "EPSG:3857"}), [item])
    steps = [asset_of(own, asset=n).transform[0] for n in (0, 1)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=1e-4)
    one = run_local(params({"crs": "EPSG:3857", "resolution": 25}), [item])
    assert asset_of(one, asset=0).grid == asset_of(one, asset=1).grid
    assert asset_of(one).transform[:2] == (25.0, 0.0)


def test_like_aligns_and_leaves_the_pattern_alone(tmp_path):
    pattern = scene(
        tmp_path, name="p", transform=(0.0003, 0.0, 7.82, 0.0, -0.0003, 40.64), crs="EPSG:4326", shape=(60, 70)
    )
    items = [input_item(scene(tmp_path), id="s2"), input_item(pattern, id="grid")]
    result = run_local(params({"like": "grid"}, resampling="cubic", bands=["band_2"]), items)
    assert [each.properties["derived_from"] for each in result.items] == ["s2"]
    assert asset_of(result).grid == pattern.grid
    assert [band.name for band in asset_of(result).bands] == ["band_2"]


def test_data_that_equals_nodata_moves_by_one(tmp_path):
    pixels = np.full((1, 40, 40), 100, np.uint8)
    pixels[:, :, 20:] = 104
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=102)
    grid = {"resolution": 7.5, "bounds": [399960, 4499600, 400360, 4500000], "crs": "EPSG:32632"}
    result = run_local(params(grid, resampling="average"), [input_item(asset)])
    with rasterio.open(path(result)) as out:
        found = out.read(1)
        assert out.nodata == 102
    assert (found != 102).all()
    masked = run_local(params(grid, mask="band"), [input_item(asset)])
    with rasterio.open(path(masked)) as out:
        assert out.nodata is None
        assert (out.read_masks(1)[:-1, :-1] == 255).all()


@pytest.mark.parametrize("resampling", get_args(warp.Resampling))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_that_meet_nodata_stay_data(tmp_path, resampling, dtype):
    pixels = np.full((1, 40, 40), 5.0, dtype)
    pixels[:, 20:] = -9999.0
    asset = write_raster(tmp_path / "a.tif", pixels)
    factor = 4 if resampling == "sum" else 1  # of 10 m pixels onto 5 m ones
    grid = {"resolution": 5, "bounds": [399960, 4499600, 400360, 4500000], "crs": "EPSG:32632"}
    result = run_local(params(grid, resampling=resampling, nodata=-9999 / factor), [input_item(asset)])
    with rasterio.open(path(result)) as out:
        assert out.nodata == -9999 / factor
        assert out.read_masks(1).all()
        assert out.dataset_mask().all()
        np.testing.assert_allclose(out.read(1)[-20:], -9999 / factor, rtol=1.1e-6)
    block = raster.read_block(asset_of(result), [1], asset_of(result).window)
    assert block.valid is None


def test_means_that_meet_a_float_nodata_stay_data_and_missing_pixels_stay_missing(tmp_path):
    pixels = np.where(np.arange(40) % 2, 1.0, -1.0).astype("float32")[None, None].repeat(40, axis=1)
    pixels[:, :10] = 0
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    result = run_local(params({"resolution": 20}, resampling="average"), [input_item(asset)])
    with rasterio.open(path(result)) as out:
        assert out.nodata == 0
        np.testing.assert_array_equal(out.read_masks(1)[:, 0] > 0, np.arange(20) >= 5)
        np.testing.assert_allclose(out.read(1)[5:], 0, atol=1e-37)


def test_a_stored_nodata_may_be_given(tmp_path):
    result = run_local(params({"crs": "EPSG:4326"}, nodata=65535), [input_item(scene(tmp_path))])
    with rasterio.open(path(result)) as out:
        assert out.nodata == 65535
        assert (out.read(1) == 65535).any()


def test_missing_windows_fail_the_job_or_are_listed(tmp_path):
    asset = scene(tmp_path, shape=(600, 600))
    file = tmp_path / "a.tif"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SourceFault, match=r"a\.tif"):
        run_local(params({"crs": "EPSG:4326"}), [input_item(asset)])
    result = run_local(params({"crs": "EPSG:4326"}, allow_missing=True), [input_item(asset)])
    assert result.report.failed
    assert 0 < result.report.valid_pixels < result.report.pixels


def test_the_bound_holds(tmp_path):
    asset = scene(tmp_path, shape=(1500, 1600), bands=3)
    found = measured(params({"crs": "EPSG:4326"}, resampling="bilinear"), [input_item(asset)], tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= found.job_bytes_bound
    assert found.written_bytes <= found.written_bytes_bound
    assert found.pixels == found.pixels_bound


@pytest.mark.parametrize(
    ("task", "error", "pointer", "says"),
    [
        (params({}), InvalidParameter, "/grid", "Nothing says where to"),
        (params({"crs": "EPSG:4326"}, bands=["x"]), BandNotFound, "/bands/0", "It has"),
        (params({"crs": "EPSG:4326"}, assets=["x"]), InvalidParameter, "/assets", "It has: a"),
        (params({"crs": "nowhere"}), InvalidParameter, "/grid/crs", "Item scene, asset a: .*not known"),
        (params({"crs": "EPSG:4326"}, mask="nodata"), InvalidParameter, "/mask", "Give `nodata`"),
        (params({"crs": "EPSG:4326"}, nodata=-1), InvalidParameter, "/nodata", "uint16 cannot hold"),
        (params({"crs": "EPSG:4326"}, nodata=1, mask="band"), InvalidParameter, "/nodata", "leave one out"),
        (params({"crs": "EPSG:32632", "bounds": [0, 0, 1000, 1000]}), AoiOutside, "/grid", "off the grid asked for"),
    ],
)
def test_refusals(tmp_path, task, error, pointer, says):
    with pytest.raises(error, match=says) as caught:
        method.plan(task, [input_item(scene(tmp_path))])
    assert caught.value.pointer == pointer


def test_a_nodata_beyond_the_range_of_floats_is_refused(tmp_path):
    with pytest.raises(InvalidParameter, match="float32 cannot hold"):
        method.plan(params({"crs": "EPSG:4326"}, nodata=1e300), [input_item(scene(tmp_path, dtype="float32"))])


def test_no_inputs_and_mixed_types_are_refused(tmp_path):
    with pytest.raises(InvalidParameter, match="at least one input"):
        METHOD.plan(params({"crs": "EPSG:4326"}), [])
    bands = list(scene(tmp_path).bands)
    mixed = msgspec.structs.replace(
        scene(tmp_path), bands=(bands[0], msgspec.structs.replace(bands[1], dtype="float32"))
    )
    with pytest.raises(InvalidParameter, match="different types"):
        method.plan(params({"crs": "EPSG:4326"}), [input_item(mixed)])


def test_the_worked_number_of_the_page(tmp_path):
    """A ramp of 100 per pixel, averaged over blocks of 2 × 2."""
    pixels = (np.arange(8, dtype=np.uint16) * 100)[None, None, :].repeat(8, 1)
    asset = write_raster(tmp_path / "a.tif", pixels, blockxsize=16, blockysize=16)
    result = run_local(ReprojectParams(grid=GridChoice(resolution=20.0), resampling="average"), [input_item(asset)])
    with rasterio.open(path(result)) as out:
        assert out.read(1)[0].tolist() == [50, 250, 450, 650]
