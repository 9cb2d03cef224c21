"""Ingest: every file gets the verdict it deserves, and a COG stays the bytes it was."""

import hashlib

import msgspec
import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from eorouter_compute import method, raster
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import (
    ComputeError,
    DecompressionBomb,
    InvalidParameter,
    NoCrs,
    NotARaster,
    SourceTruncated,
    SourceUnreadable,
    UnsupportedFormat,
)
from eorouter_compute.method import RasterAsset
from eorouter_compute.methods.ingest import BandHint, IngestParams
from eorouter_compute.orders import Outcome, ShardOrder, run_order
from eorouter_compute.testing import asymmetric, run_local, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def ingest(path, folder, **fields):
    known = {"declared_bytes": path.stat().st_size, "pixels_max": 10**8, "filename": path.name, "href": path.as_uri()}
    return run_local(IngestParams(**{**known, **fields}), [], folder)


def assert_same_pixels(path, asset: RasterAsset):
    source = raster.describe(str(path))
    before = raster.read_block(source, [band.index for band in source.bands], source.window)
    after = raster.read_block(asset, [band.index for band in asset.bands], asset.window)
    if before.valid is None:
        assert after.valid is None
        np.testing.assert_array_equal(after.pixels, before.pixels)
    else:
        seen = before.valid if not asset.has_mask else np.broadcast_to(before.valid.any(axis=0), before.valid.shape)
        np.testing.assert_array_equal(after.valid if after.valid is not None else np.ones_like(seen), seen)
        np.testing.assert_array_equal(after.pixels[before.valid], before.pixels[before.valid])


KEPT = ["cog_valid_uint16", "cog_dateline", "cog_nodata_nan", "cog_scale_offset", "rgb_mask", "cogeo_webmercator"]
REWRITTEN = ["not_cog_stripped", "rgba", "inverted_lat", "RGB.byte"]


@pytest.mark.parametrize("stem", KEPT)
def test_a_cog_stays_the_bytes_it_was(tmp_path, data_dir, stem):
    path = data_dir / "formats" / f"{stem}.tif"
    result = ingest(path, tmp_path)
    data = result.items[0].assets[0]
    assert result.summary["is_unchanged"]
    assert data.object.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with rasterio.open(path) as source:
        values = source.read(1, masked=True).astype(np.float64)
    values = np.ma.masked_invalid(values)
    assert data.statistics[0]["mean"] == pytest.approx(float(values.mean()), rel=1e-9)
    assert data.statistics[0]["stdev"] == pytest.approx(float(values.std()), rel=1e-7)
    assert result.items[0].assets[1].media_type == "image/png"


@pytest.mark.parametrize("stem", REWRITTEN)
def test_other_rasters_become_cogs_with_the_same_pixels(tmp_path, data_dir, stem):
    path = data_dir / "formats" / f"{stem}.tif"
    result = ingest(path, tmp_path)
    data = result.items[0].assets[0]
    assert result.summary["rewritten_because"]
    assert cog_validate(str(local_path(data.object.href)), strict=True, quiet=True) == (True, [], [])
    assert_same_pixels(path, data.raster)


@pytest.mark.parametrize("stem", [KEPT[0], REWRITTEN[0]])
def test_the_shard_tells_the_pixels_that_it_read_and_not_those_it_may(tmp_path, data_dir, stem):
    path = data_dir / "formats" / f"{stem}.tif"
    size = path.stat().st_size
    params = IngestParams(href=path.as_uri(), filename=path.name, declared_bytes=size, pixels_max=10**9)
    (shard,) = method.plan(params, []).shards
    order = ShardOrder(
        job_id="job_1", number=0, token=1, label="ingest", prefix=f"{tmp_path.as_uri()}/0/1/",
        task=msgspec.json.encode(params), inputs=msgspec.msgpack.encode(()), body=shard.body,
    )  # fmt: skip
    outcome = msgspec.msgpack.decode(run_order(msgspec.msgpack.encode(order)), type=Outcome)
    with rasterio.open(path) as source:
        assert outcome.pixels == source.width * source.height


@pytest.mark.parametrize(
    ("stem", "error", "word"),
    [
        ("corrupt", SourceTruncated, "^corrupt.tif ends too early: .*reach to byte 307086"),
        ("gcps_only", NoCrs, "gcps_only.tif is placed by 210"),
    ],
)
def test_unusable_files_say_why(tmp_path, data_dir, stem, error, word):
    with pytest.raises(error, match=word):
        ingest(data_dir / "formats" / f"{stem}.tif", tmp_path)


def test_every_format_has_a_verdict_here(data_dir):
    assert {path.stem for path in (data_dir / "formats").iterdir()} == {*KEPT, *REWRITTEN, "corrupt", "gcps_only"}


def test_jpeg_2000_becomes_a_cog(tmp_path, data_dir):
    path = min((data_dir / "timeseries" / "modis_ndvi_sinop").glob("*.jp2"))
    result = ingest(path, tmp_path)
    assert result.summary["rewritten_because"] == ["it is JP2OpenJPEG"]
    assert_same_pixels(path, result.items[0].assets[0].raster)


def test_vector_files_are_kept_as_vectors(tmp_path, data_dir):
    result = ingest(data_dir / "zonal" / "luxembourg" / "lux.gpkg", tmp_path)
    (asset,) = result.items[0].assets
    assert asset.vector.feature_count == 12
    assert asset.media_type == "application/geopackage+sqlite3"
    assert result.items[0].bbox == pytest.approx((5.74, 49.45, 6.53, 50.18), abs=0.01)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NotARaster),
        (b"hello" * 99, NotARaster),
        (bytes(range(256)) * 40, NotARaster),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 99, UnsupportedFormat),
    ],
)
def test_other_bytes_are_no_item(tmp_path, data, error):
    path = tmp_path / "upload.tif"
    path.write_bytes(data)
    with pytest.raises(error, match=r"upload\.tif"):
        ingest(path, tmp_path / "out")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.999])
@pytest.mark.parametrize(
    "name", ["formats/cog_valid_uint16.tif", "formats/RGB.byte.tif", "formats/cogeo_webmercator.tif"]
)
def test_truncated_uploads_are_found(tmp_path, data_dir, name, part):
    data = (data_dir / name).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises((SourceTruncated, SourceUnreadable)):
        ingest(path, tmp_path / "out")


def test_lies_about_size_and_digest_are_found(tmp_path):
    path = tmp_path / "a.tif"
    write_raster(path, asymmetric((50, 50)))
    size = path.stat().st_size
    with pytest.raises(SourceTruncated, match=f"announced with {size + 1} bytes, {size} arrived"):
        ingest(path, tmp_path / "1", declared_bytes=size + 1)
    with pytest.raises(SourceUnreadable, match="announced with"):
        ingest(path, tmp_path / "2", declared_bytes=size - 1)
    with pytest.raises(SourceUnreadable, match="SHA-256"):
        ingest(path, tmp_path / "3", sha256="0" * 64)
    ingest(path, tmp_path / "4", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def sparse(path, side):
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", driver="GTiff", width=side, height=side, count=1, dtype="uint8", crs="EPSG:3857",
                       transform=rasterio.Affine(1, 0, 0, 0, -1, 0), **options):  # fmt: skip
        pass


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "bomb.tif"
    sparse(path, 200_000)
    with pytest.raises(DecompressionBomb, match="40000000000 pixels; at most 100000000"):
        ingest(path, tmp_path / "1")
    sparse(path, 40_000)
    with pytest.raises(DecompressionBomb, match="2000 times as much"):
        ingest(path, tmp_path / "2", pixels_max=10**10)
    assert not list(tmp_path.rglob("segment.bin"))


def test_the_uploader_knows_the_bands_better(tmp_path):
    path = tmp_path / "a b.tif"
    write_raster(path, asymmetric((600, 700), bands=2), nodata=0)
    hints = (BandHint(name="B04", common_name="red", scale=1e-4), BandHint(name="B08", common_name="nir", nodata=300.0))
    with pytest.raises(InvalidParameter, match="has 2 bands, 1 were described"):
        ingest(path, tmp_path / "1", bands=hints[:1])
    with pytest.raises(InvalidParameter, match="cannot hold") as caught:
        ingest(path, tmp_path / "2", bands=(BandHint(nodata=-1.0), BandHint()))
    assert caught.value.pointer == "/bands/0/nodata"
    with pytest.raises(InvalidParameter, match="Two bands"):
        ingest(path, tmp_path / "3", bands=(BandHint(name="x"), BandHint(name="x")))
    hints = (hints[0], msgspec.structs.replace(hints[1], nodata=0.0))
    result = ingest(path, tmp_path / "4", bands=hints)
    made = result.items[0].assets[0].raster
    assert [(b.name, b.common_name, b.scale) for b in made.bands] == [("B04", "red", 1e-4), ("B08", "nir", 1.0)]
    assert result.items[0].name == "a-b"


def test_a_corrected_nodata_value_is_written(tmp_path):
    path = tmp_path / "a.tif"
    pixels = asymmetric((100, 90))
    pixels[0, :30] = 7
    write_raster(path, pixels, nodata=0)
    made = ingest(path, tmp_path / "out", bands=(BandHint(nodata=7.0),)).items[0].assets[0]
    with rasterio.open(local_path(made.object.href)) as source:
        assert source.nodata == 7
        np.testing.assert_array_equal(source.dataset_mask() > 0, pixels[0] != 7)


def test_damaged_headers_never_escape_as_something_else(tmp_path):
    good_path = tmp_path / "good.tif"
    write_raster(good_path, asymmetric((64, 64)), blockxsize=64, blockysize=64)
    good = good_path.read_bytes()
    rng = np.random.default_rng(3)
    codes = set()
    for number in range(25):
        data = bytearray(good)
        for place in rng.integers(0, 600, 10):
            data[place] = int(rng.integers(256))
        path = tmp_path / f"{number}.tif"
        path.write_bytes(data)
        try:
            ingest(path, tmp_path / str(number))
        except ComputeError as error:
            codes.add(error.code)
    assert codes


def test_the_plan_is_one_shard_and_pure():
    params = IngestParams(href="s3://nowhere/x", filename="x", declared_bytes=100, pixels_max=1000)
    assert len(method.plan(params, []).shards) == 1
    assert method.get("ingest").is_internal


@pytest.mark.parametrize(
    ("numbers", "dtype", "kept"),
    [
        ([0, 3, 255], "int64", "uint8"),
        ([-128, 5, 127], "int64", "int8"),
        ([0, 256], "uint64", "uint16"),
        ([-1, 300], "int64", "int16"),
        ([0, 1 << 31], "int64", "uint32"),
        ([-1, 1 << 20], "int64", "int32"),
        ([-1, 1 << 40], "int64", "float64"),
        ([0, 1 << 53], "uint64", "float64"),
    ],
)
def test_64_bit_integers_become_the_narrowest_type_that_holds_them(tmp_path, numbers, dtype, kept):
    pixels = np.resize(np.array(numbers, dtype), (1, 300, 270))
    write_raster(tmp_path / "a.tif", pixels, nodata=None)
    result = ingest(tmp_path / "a.tif", tmp_path / "out")
    asset = result.items[0].assets[0].raster
    assert asset.bands[0].dtype == kept
    assert any("64-bit" in reason for reason in result.summary["rewritten_because"])
    block = raster.read_block(asset, [1], asset.window)
    assert block.valid is None
    assert block.pixels.dtype == kept
    assert (block.pixels.astype(dtype) == pixels).all()


@pytest.mark.parametrize("nodata", [-(2**40), -9999, 7])
def test_missing_pixels_of_64_bit_integers_stay_missing(tmp_path, nodata):
    pixels = np.resize(np.array([1, 2, nodata, 9], "int64"), (1, 64, 64))
    write_raster(tmp_path / "a.tif", pixels, nodata=nodata)
    asset = ingest(tmp_path / "a.tif", tmp_path / "out").items[0].assets[0].raster
    assert asset.bands[0].dtype == "uint8"
    block = raster.read_block(asset, [1], asset.window)
    np.testing.assert_array_equal(block.valid, pixels != nodata)
    np.testing.assert_array_equal(block.pixels[block.valid], pixels[pixels != nodata])
    assert asset.has_mask is (nodata != 7)


@pytest.mark.parametrize(("nodata", "is_kept"), [(-(2**50) - 4, False), (-(2**40), False), (-9999, True)])
def test_whole_numbers_beside_a_nodata_of_floats_are_not_hidden(tmp_path, nodata, is_kept):
    pixels = np.resize(np.array([2**50, nodata + 1, nodata, nodata - 1], "int64"), (1, 64, 64))
    write_raster(tmp_path / "a.tif", pixels, nodata=nodata)
    asset = ingest(tmp_path / "a.tif", tmp_path / "out").items[0].assets[0].raster
    assert (asset.bands[0].dtype, asset.has_mask) == ("float64", not is_kept)
    with rasterio.open(local_path(asset.href)) as out:
        np.testing.assert_array_equal(out.read_masks(1) > 0, pixels[0] != nodata)
        np.testing.assert_array_equal(out.read(1)[pixels[0] != nodata], pixels[pixels != nodata])


def test_whole_numbers_that_no_other_type_holds_are_refused(tmp_path):
    write_raster(tmp_path / "a.tif", np.full((1, 20, 20), (1 << 53) + 1, "int64"), nodata=None)
    with pytest.raises(UnsupportedFormat, match="2⁵³"):
        ingest(tmp_path / "a.tif", tmp_path / "out")


def test_complex_pixels_say_what_to_upload_instead(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="complex64",
                       crs="EPSG:32632", transform=rasterio.Affine(10, 0, 0, 0, -10, 0)) as target:  # fmt: skip
        target.write(np.ones((1, 8, 8), "complex64"))
    with pytest.raises(UnsupportedFormat, match="intensity"):
        ingest(tmp_path / "a.tif", tmp_path / "out")
