"""Harmonised reflectance: the published lines on real scenes, both scales once, any sharding, refusals."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eorouter_compute import method, raster, testing
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import BandNotFound, InvalidParameter, SourceFault
from eorouter_compute.method import InputItem, RasterAsset
from eorouter_compute.methods.harmonize_sr import METHOD, NODATA, HarmonizeSrParams

HLS_2A = {"red": (0.9765, 0.0009), "nir": (0.9983, -0.0001), "swir16": (0.9987, -0.0011), "blue": (0.9778, -0.004)}


def asked(**fields: Any) -> HarmonizeSrParams:
    return msgspec.convert({"method": "harmonize_sr", **fields}, HarmonizeSrParams)


def read(asset) -> np.ndarray:
    with rasterio.open(local_path(asset.object.href)) as source:
        return source.read()


def made(params: HarmonizeSrParams, items: list[InputItem], **options: Any) -> np.ndarray:
    return read(testing.run_local(params, items, **options).items[0].assets[0])


def scaled(asset: RasterAsset, scale: float, offset: float = 0.0) -> RasterAsset:
    bands = tuple(msgspec.structs.replace(band, scale=scale, offset=offset) for band in asset.bands)
    return msgspec.structs.replace(asset, bands=bands)


def sentinel_2(tmp_path, shape=(500, 700), **properties) -> InputItem:
    """10 m red and near infrared, 20 m narrow near infrared and SWIR, of baseline 05.10, with a hole."""
    fine = testing.asymmetric(shape, bands=2, seed=1) // 4 + 1000
    coarse = testing.asymmetric((shape[0] // 2, shape[1] // 2), bands=2, seed=2) // 4 + 1000
    fine[:, 100:130, 200:260] = 0
    a, b, c, d, e, f = testing.UTM_TRANSFORM
    ten = testing.write_raster(tmp_path / "ten.tif", fine, nodata=0, names=("B04", "B08"))
    twenty = testing.write_raster(
        tmp_path / "twenty.tif", coarse, nodata=0, names=("B8A", "B11"), transform=(2 * a, b, c, d, 2 * e, f)
    )
    kept = {"platform": "sentinel-2a", "s2:processing_baseline": "05.10"} | properties
    return testing.input_item(ten, twenty, id="s2", at=datetime(2024, 5, 17, 10, tzinfo=UTC), properties=kept)


def stored(item: InputItem, place: int) -> np.ndarray:
    asset = item.rasters[place]
    return raster.read_block(asset, [band.index for band in asset.bands], asset.window).pixels


def expected(stored_pixels: np.ndarray, scale: float, offset: float, line: tuple[float, float]) -> np.ndarray:
    reflectance = stored_pixels * scale + offset
    return np.where(stored_pixels == 0, NODATA, np.rint((line[0] * reflectance + line[1]) / 1e-4))


def near(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal, but where the two ways of rounding meet a tie."""
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
    assert (got != wanted).mean() < 1e-3


def test_sentinel_2_on_two_grids_is_hlss_line_with_its_offset_taken_once(tmp_path):
    item = sentinel_2(tmp_path)
    result = testing.run_local(asked(), [item], shard_pixels=512 * 512)
    fine, coarse = result.items[0].assets[:2]
    assert [band.name for band in fine.raster.bands] == ["red"]
    assert [band.name for band in coarse.raster.bands] == ["nir", "swir16"]
    assert (fine.key, coarse.key) == ("data", "data_2")
    near(read(fine)[0], expected(stored(item, 0)[0], 1e-4, -0.1, HLS_2A["red"]))
    near(read(coarse)[0], expected(stored(item, 1)[0], 1e-4, -0.1, HLS_2A["nir"]))
    near(read(coarse)[1], expected(stored(item, 1)[1], 1e-4, -0.1, HLS_2A["swir16"]))
    assert (read(fine)[0, 100:130, 200:260] == NODATA).all()
    with rasterio.open(local_path(fine.object.href)) as written:
        assert (written.nodata, written.scales, written.dtypes[0]) == (NODATA, (1e-4,), "int16")
    said = result.items[0].properties["eorouter:harmonized"]
    assert said["tables"] == ["hls"]
    assert said["bands"]["nir"]["band"] == "data1:B8A"
    assert said["bands"]["red"]["stored_offset"] == -0.1


def test_offset_that_earth_search_took_away_is_not_taken_again(tmp_path):
    item = sentinel_2(tmp_path, **{"earthsearch:boa_offset_applied": True})
    near(made(asked(bands=["red"]), [item])[0], expected(stored(item, 0)[0], 1e-4, 0.0, HLS_2A["red"]))
    forced = asked(bands=["red"], stored={"scale": 2e-4, "offset": 0.05})
    near(made(forced, [item])[0], expected(stored(item, 0)[0], 2e-4, 0.05, HLS_2A["red"]))


def test_worked_number_of_the_page(tmp_path):
    """Sentinel-2A red stored as 2,600 at baseline 05.10 is 0.16; 0.9765 × 0.16 + 0.0009 = 0.15714, stored 1571."""
    asset = testing.write_raster(tmp_path / "a.tif", np.full((1, 3, 3), 2600, np.uint16), names=["B04"])
    properties = {"platform": "sentinel-2a", "s2:processing_baseline": "05.10"}
    item = testing.input_item(asset, properties=properties)
    assert (made(asked(), [item]) == 1571).all()
    plain = made(asked(dtype="float32"), [item])
    np.testing.assert_allclose(plain, 0.15714, rtol=1e-6)
    in_b = made(asked(platform="sentinel-2b", dtype="float32"), [item])
    np.testing.assert_allclose(in_b, 0.9761 * 0.16 + 0.0010, rtol=1e-6)


def landsat(tmp_path, data_dir, platform: str) -> InputItem:
    folder = data_dir / "optical" / "landsat8_zion"
    assets = []
    for number, name in ((4, "red"), (5, "nir")):
        described = raster.describe((folder / f"landsat_b{number}.tif").as_uri(), name)
        bands = (msgspec.structs.replace(described.bands[0], name=name, common_name=name, scale=2e-5, offset=-0.1),)
        assets.append(msgspec.structs.replace(described, bands=bands))
    return InputItem(id="zion", assets=tuple(assets), properties={"platform": platform})


@pytest.mark.parametrize(
    ("platform", "fields", "red"),
    [
        ("landsat-8", {"target": "etm"}, lambda r: (r + 0.0022) / 0.9825),
        ("landsat-8", {"target": "etm", "etm_oli": "roy-2016-ols"}, lambda r: 0.0123 + 0.9372 * r),
        ("landsat-7", {}, lambda r: 0.9825 * r - 0.0022),
        ("landsat-7", {"etm_oli": "roy-2016-ols"}, lambda r: 0.0061 + 0.9047 * r),
        ("landsat-9", {"target": "msi"}, lambda r: (r - 0.0009) / 0.9765),
        ("landsat-9", {"target": "msi", "target_platform": "sentinel-2b"}, lambda r: (r - 0.0010) / 0.9761),
        ("landsat-8", {"target": "msi", "msi_oli": "chastain-2019"}, lambda r: 1.0524 * r - 0.0015),
        ("landsat-7", {"target": "msi"}, lambda r: (0.9825 * r - 0.0022 - 0.0009) / 0.9765),
        ("landsat-8", {}, lambda r: r),
    ],
)
def test_real_landsat_scene_by_every_table(tmp_path, data_dir, platform, fields, red):
    item = landsat(tmp_path, data_dir, platform)
    got = made(asked(bands=["red"], dtype="float32", **fields), [item], shard_pixels=600_000)[0]
    with rasterio.open(data_dir / "optical" / "landsat8_zion" / "landsat_b4.tif") as source:
        wanted = red(np.where(source.read_masks(1) > 0, source.read(1) * 2e-5 - 0.1, np.nan))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-8)
    with_integers = made(asked(bands=["red"], **fields), [item])[0]
    known = ~np.isnan(wanted)
    near(with_integers[known], np.rint(wanted[known] / 1e-4))
    assert (with_integers[~known] == NODATA).all()


def test_near_infrared_of_msi_is_the_one_the_table_means(tmp_path):
    item = sentinel_2(tmp_path, shape=(60, 80))
    by_table = {
        table: testing.run_local(asked(bands=["nir"], msi_oli=table), [item]).items[0]
        for table in ("hls", "chastain-2019")
    }
    bands = {
        table: made_item.properties["eorouter:harmonized"]["bands"]["nir"]["band"]
        for table, made_item in by_table.items()
    }
    assert bands == {"hls": "data1:B8A", "chastain-2019": "data:B08"}


@pytest.mark.parametrize(
    ("fields", "common_name"),
    [
        ({"target": "oli"}, "nir08"),
        ({"target": "etm"}, "nir"),
        ({"target": "msi"}, "nir08"),
        ({"target": "msi", "msi_oli": "chastain-2019"}, "nir"),
    ],
)
def test_near_infrared_is_called_as_it_is_asked_for_and_its_common_name_says_which(tmp_path, fields, common_name):
    item = sentinel_2(tmp_path, shape=(40, 60))
    made_item = testing.run_local(asked(bands=["red", "nir"], resampling="bilinear", **fields), [item]).items[0]
    bands = made_item.assets[0].raster.bands
    assert [(band.name, band.common_name) for band in bands] == [("red", "red"), ("nir", common_name)]
    with rasterio.open(local_path(made_item.assets[0].object.href)) as written:
        assert written.descriptions[1].startswith("nir")


def test_saturated_numbers_stay_at_the_end_and_no_value_becomes_nodata(tmp_path):
    # 0.9765 × ρ + 0.0009 = −0.9999 at ρ = −1.0248…; stored −9999 there would read as missing.
    low = (-0.9999 - 0.0009) / 0.9765
    pixels = np.array([[[65535, 1, 30000]]], np.uint16)
    asset = scaled(testing.write_raster(tmp_path / "a.tif", pixels, names=["B04"]), 1e-4)
    item = testing.input_item(asset, properties={"platform": "sentinel-2a"})
    assert made(asked(), [item])[0, 0].tolist()[0] == 32767
    deep = scaled(asset, 1e-9, low)
    near_nodata = made(asked(), [testing.input_item(deep, properties={"platform": "sentinel-2a"})])[0, 0]
    assert near_nodata[1] == NODATA + 1


def test_all_bands_on_one_grid(tmp_path):
    item = sentinel_2(tmp_path, shape=(120, 160))
    result = testing.run_local(asked(grid={"resolution": 30}, resampling="average"), [item])
    data = result.items[0].assets[0]
    assert [band.name for band in data.raster.bands] == ["red", "nir", "swir16"]
    assert data.raster.transform[0] == 30.0
    fine = testing.run_local(asked(resampling="bilinear"), [item]).items[0].assets[0]
    assert fine.raster.shape == (120, 160)
    assert len(fine.raster.bands) == 3


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", (0.001, 0.0, 179.95, 0.0, -0.001, 60.0)),
        ("EPSG:3413", (40.0, 0.0, -900_000.0, 0.0, -40.0, -1_200_000.0)),
    ],
)
def test_grids_across_the_antimeridian_and_at_the_pole_keep_their_place(tmp_path, crs, transform):
    pixels = testing.asymmetric((90, 120), seed=2)
    asset = scaled(testing.write_raster(tmp_path / "a.tif", pixels, names=["red"], crs=crs, transform=transform), 1e-4)
    item = testing.run_local(asked(platform="landsat-7"), [testing.input_item(asset)]).items[0]
    assert item.assets[0].raster is not None
    assert item.assets[0].raster.grid == asset.grid
    if crs == "EPSG:4326":
        assert item.bbox[0] > item.bbox[2]


def test_quality_mask_drops_pixels(tmp_path):
    item = sentinel_2(tmp_path, shape=(60, 80))
    scl = np.full((1, 30, 40), 4, np.uint8)
    scl[0, :10] = 9
    a, b, c, d, e, f = testing.UTM_TRANSFORM
    quality = testing.write_raster(tmp_path / "scl.tif", scl, names=["SCL"], transform=(2 * a, b, c, d, 2 * e, f))
    masked = msgspec.structs.replace(item, assets=(*item.assets, msgspec.structs.replace(quality, key="scl")))
    got = made(asked(bands=["red"], mask="sentinel-2-scl"), [masked])[0]
    assert (got[:20] == NODATA).all()
    assert (got[20:] != NODATA).all()


def test_condition_of_a_mask_sees_reflectance_by_what_stored_numbers_are_said_to_be_worth(tmp_path):
    """0.3 is kept by "> 0.5" and dropped by "> 0.25", whoever says that 3,000 is 0.3."""
    red, wide, narrow, edge = (np.full((1, 4, 6), number, np.uint16) for number in (3000, 4000, 2000, 6000))
    quality = np.full((1, 4, 6), 30, np.uint8)
    quality[0, 0] = 90
    bands = [("B04", red), ("B08", wide), ("B8A", narrow), ("B05", edge), ("cldprb", quality)]
    assets = [
        msgspec.structs.replace(testing.write_raster(tmp_path / f"{name}.tif", pixels, names=[name]), key=name)
        for name, pixels in bands
    ]
    plain = testing.input_item(*assets, properties={"platform": "sentinel-2a"})
    declaring = msgspec.structs.replace(plain, assets=(*(scaled(each, 1e-4) for each in assets[:4]), assets[4]))

    def kept(condition: str, item: InputItem = plain, **fields: Any) -> float:
        params = asked(bands=["red"], mask={"expression": condition}, **fields)
        return float((made(params, [item])[0] != NODATA).mean())

    given_scale = {"stored": {"scale": 1e-4}}
    for condition, share in (
        ("B04 > 0.5", 1.0), ("B04 > 0.25", 0.0), ("B08 > 0.35", 0.0), ("B08 > 0.45", 1.0), ("B8A > 0.25", 1.0),
        ("B05 > 0.55", 0.0), ("B05 > 0.65", 1.0), ("cldprb > 50", 0.75),
    ):  # fmt: skip
        assert kept(condition, **given_scale) == share, condition
        assert kept(condition, declaring) == share, condition
    # An offset moves the limit, too: 3,000 is 0.2.
    assert kept("B04 > 0.25", stored={"scale": 1e-4, "offset": -0.1}) == 1.0
    baseline = msgspec.structs.replace(plain, properties={"platform": "sentinel-2a", "s2:processing_baseline": "05.10"})
    assert kept("B04 > 0.25", baseline) == 1.0
    assert kept("B04 > 0.15", baseline) == 0.0


def test_any_sharding_gives_the_same_bytes(tmp_path):
    item = sentinel_2(tmp_path, shape=(1100, 1300))
    params = asked(resampling="cubic")
    digests = {
        testing.run_local(params, [item], shard_pixels=s, threads=t).items[0].assets[0].object.sha256
        for s, t in ((512 * 512, 2), (1 << 24, 1))
    }
    assert len(digests) == 1


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), flip=st.sampled_from([(1, -1), (-1, 1), (-1, -1)]))
def test_flipped_pixels_give_the_flipped_result(tmp_path, seed, flip):
    pixels = testing.asymmetric((60, 70), bands=2, seed=seed)
    pixels[:, 5:9, 3:20] = 0
    rows, cols = flip
    results = []
    for name, numbers in (("a", pixels), ("b", np.ascontiguousarray(pixels[:, ::rows, ::cols]))):
        asset = scaled(testing.write_raster(tmp_path / f"{name}.tif", numbers, nodata=0, names=("red", "nir")), 1e-4)
        raster.forget(asset.href)
        results.append(made(asked(platform="landsat-7"), [testing.input_item(asset)]))
    np.testing.assert_array_equal(results[0][:, ::rows, ::cols], results[1])


def test_bounds_hold_against_a_measured_process(tmp_path):
    item = sentinel_2(tmp_path, shape=(1600, 1800))
    found = testing.measured(asked(resampling="bilinear"), [item], tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= max(found.job_bytes_bound, found.shard_bytes_bound)
    assert found.written_bytes <= found.written_bytes_bound
    assert found.pixels <= found.pixels_bound


def test_broken_source_fails_by_name_or_is_missing_where_that_is_allowed(tmp_path):
    item = sentinel_2(tmp_path, shape=(100, 120))
    (tmp_path / "twenty.tif").unlink()
    with pytest.raises(SourceFault, match=r"twenty\.tif"):
        testing.run_local(asked(resampling="nearest"), [item])
    result = testing.run_local(asked(resampling="nearest", allow_missing=True), [item])
    got = read(result.items[0].assets[0])
    assert (got[1:] == NODATA).all()
    assert (got[0] != NODATA).any()
    assert {failed.source.rpartition("/")[2] for failed in result.report.failed} == {"twenty.tif"}


def test_refusals_say_what_and_where(tmp_path):
    item = sentinel_2(tmp_path, shape=(40, 60))

    def refused(kind, why, pointer, subject=item, **fields):
        with pytest.raises(kind, match=why) as error:
            method.plan(asked(**fields), [subject])
        assert error.value.pointer == pointer

    replace = msgspec.structs.replace
    refused(
        InvalidParameter, "platform sentinel-2c", "/platform", replace(item, properties={"platform": "Sentinel-2C"})
    )
    refused(InvalidParameter, "platform unknown", "/platform", replace(item, properties={}))
    refused(InvalidParameter, "declares no scale", "/stored", replace(item, properties={"platform": "sentinel-2b"}))
    refused(InvalidParameter, "coastal is not a band", "/bands", bands=["coastal"], target="etm")
    refused(InvalidParameter, "already harmonised", "/inputs", replace(item, properties={"eorouter:harmonized": {}}))
    refused(BandNotFound, "B04.*names", "/bands/1", bands=["red", "green"])
    refused(BandNotFound, "no band 'x'", "/names/green", names={"green": "x"})
    refused(InvalidParameter, "not a band", "/names/coastal", names={"coastal": "B04"}, target="etm")
    nothing = replace(item, assets=(item.assets[0],), properties=item.properties)
    renamed = replace(item.rasters[0], bands=tuple(replace(b, name=f"x{b.index}") for b in item.rasters[0].bands))
    refused(BandNotFound, "none of coastal", "/names", replace(nothing, assets=(renamed,)))
    with pytest.raises(InvalidParameter, match="at least one"):
        method.plan(asked(), [])


def test_notes_say_what_was_left_out_and_which_reflectance_a_table_is_of(tmp_path):
    item = sentinel_2(tmp_path, shape=(40, 60))
    notes = " ".join(method.plan(asked(msi_oli="chastain-2019"), [item]).notes)
    assert "top of the atmosphere" in notes
    assert "Left out, as the items have no such band: blue, green, swir22." in notes
    same = msgspec.structs.replace(item, properties={"platform": "landsat-8"})
    assert "only scales change" in " ".join(
        method.plan(asked(stored={"scale": 1e-4}, names={"nir": "B08"}), [same]).notes
    )


def test_method_is_registered():
    assert method.get("harmonize_sr") is METHOD
