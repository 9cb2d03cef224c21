"""Reading: what is missing, what is refused and why, and threads."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from eorouter_compute import raster, tiff
from eorouter_compute.errors import (
    ComputeError,
    DecompressionBomb,
    NoCrs,
    NotARaster,
    SourceTruncated,
    SourceUnreadable,
    TooLarge,
    UnsupportedFormat,
)
from eorouter_compute.grid import Window
from eorouter_compute.testing import ROTATED_TRANSFORM, asymmetric, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def whole(asset):
    return raster.read_block(asset, [band.index for band in asset.bands], asset.window)


def test_windows_read_as_they_were_written(tmp_path):
    pixels = asymmetric((500, 700), bands=3)
    asset = write_raster(tmp_path / "a.tif", pixels, transform=ROTATED_TRANSFORM, names=["red", "B8", "red"])
    assert asset.transform == ROTATED_TRANSFORM
    assert [band.name for band in asset.bands] == ["red", "B8", "red_3"]
    assert asset.bands[0].common_name == "red"
    assert asset.block_shape == (256, 256)
    block = raster.read_block(asset, [3, 1], Window(123, 45, 300, 211))
    np.testing.assert_array_equal(block.pixels, pixels[[2, 0], 123:423, 45:256])
    assert block.valid is None


@pytest.mark.parametrize(
    ("dtype", "nodata", "hidden"),
    [("uint8", 0, 0), ("int16", -9999, -9999), ("float32", -3.4e38, np.float32(-3.4e38)), ("float64", 0.1, 0.1)],
)
def test_nodata_is_missing(tmp_path, dtype, nodata, hidden):
    pixels = asymmetric((40, 60), dtype=dtype)
    hole = np.random.default_rng(0).random((40, 60)) < 0.2
    pixels[0, hole] = hidden
    block = whole(write_raster(tmp_path / "a.tif", pixels, nodata=nodata))
    np.testing.assert_array_equal(block.valid[0], (pixels[0] != np.dtype(dtype).type(nodata)))
    assert not block.valid[0][hole].any()


def test_nan_is_missing_whatever_nodata_says(tmp_path):
    pixels = asymmetric((40, 60), dtype="float32")
    pixels[0, 3, 4], pixels[0, 5, 6] = np.nan, -1
    for number, nodata in enumerate((None, float("nan"), -1.0)):
        valid = whole(write_raster(tmp_path / f"{number}.tif", pixels, nodata=nodata)).valid
        assert not valid[0, 3, 4]
        assert valid[0, 5, 6] == (nodata != -1.0)


def test_nodata_that_the_type_cannot_hold_hides_nothing(tmp_path):
    pixels = asymmetric((40, 60), dtype="uint8")
    asset = write_raster(tmp_path / "a.tif", pixels)
    odd = msgspec.structs.replace(asset, bands=(msgspec.structs.replace(asset.bands[0], nodata=-9999.0),))
    assert whole(odd).valid is None
    assert raster.storable(-9999.0, "uint8") is None
    assert raster.storable(0.5, "int16") is None
    assert raster.storable(0.5, "float32") == 0.5
    assert raster.storable(1e300, "float32") is None
    assert raster.storable(1e300, "float64") == 1e300
    assert raster.storable(-3.40282346638529e38, "float32") == -3.40282346638529e38
    assert raster.storable(float("inf"), "float32") == float("inf")


def test_mask_and_alpha_are_missing(tmp_path, data_dir):
    pixels = asymmetric((40, 60), bands=2, dtype="uint8")
    seen = np.random.default_rng(0).random((40, 60)) > 0.3
    block = whole(write_raster(tmp_path / "a.tif", pixels, mask=seen))
    np.testing.assert_array_equal(block.valid, np.broadcast_to(seen, pixels.shape))
    rgba = raster.describe(str(data_dir / "formats" / "rgba.tif"))
    assert [band.name for band in rgba.bands] == ["red", "green", "blue"]
    with rasterio.open(data_dir / "formats" / "rgba.tif") as source:
        np.testing.assert_array_equal(whole(rgba).valid[1], source.read(4) > 0)


@pytest.mark.parametrize("name", ["rgb_mask.tif", "cog_nodata_nan.tif", "RGB.byte.tif", "cog_scale_offset.tif"])
def test_valid_agrees_with_gdals_masks(data_dir, name):
    asset = raster.describe(str(data_dir / "formats" / name))
    block = whole(asset)
    with rasterio.open(data_dir / "formats" / name) as source:
        theirs = source.read_masks([band.index for band in asset.bands]) > 0
    theirs &= ~np.isnan(block.pixels) if block.pixels.dtype.kind == "f" else True
    np.testing.assert_array_equal(block.valid if block.valid is not None else np.ones_like(theirs), theirs)


def test_scale_offset_custom_crs_and_south_up_grids_are_described(data_dir):
    scaled = raster.describe(str(data_dir / "formats" / "cog_scale_offset.tif"))
    assert (scaled.bands[0].scale, scaled.bands[0].offset) == (0.0001, 1000.0)
    assert "PROJCRS" in scaled.crs
    south_up = raster.describe(str(data_dir / "formats" / "inverted_lat.tif"))
    assert south_up.transform[4] > 0
    sinusoidal = raster.describe(str(next((data_dir / "timeseries" / "modis_ndvi_sinop").glob("*.jp2"))))
    assert sinusoidal.shape == (147, 255)


def test_ground_control_points_alone_are_no_place(data_dir):
    with pytest.raises(NoCrs, match="210 ground control points"):
        raster.describe(str(data_dir / "formats" / "gcps_only.tif"))


def test_a_file_without_crs_is_no_place(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=5, height=5, count=1, dtype="uint8") as target:
        target.write(np.ones((1, 5, 5), np.uint8))
    with pytest.raises(NoCrs, match="no coordinate reference system"):
        raster.describe(str(tmp_path / "a.tif"))


def test_corrupt_pixels_are_a_truncated_source(data_dir):
    asset = raster.describe(str(data_dir / "formats" / "corrupt.tif"))
    with pytest.raises(SourceTruncated, match="reach to byte 307086"):
        whole(asset)


def test_scrambled_pixels_name_source_and_window(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((512, 512)))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (found,) = tiff.directories(lambda start, stop: bytes(data[start:stop]), len(data))
    start, size = (int(each[3]) for each in found.tile_spans)
    data[start : start + size] = bytes(size)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(SourceUnreadable, match=r"a\.tif could not be read in rows 256…511, columns 200…511") as caught:
        raster.read_block(asset, [1], Window(256, 200, 256, 312))
    # A cause of rasterio's cannot be rebuilt where distributed has changed how exceptions are pickled; ours can.
    caught.value.__cause__ = caught.value.__context__ = None
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.message, again.data["window"]) == (caught.value.message, Window(256, 200, 256, 312))


def scramble(path, *numbers):
    """Zero the bytes of some tiles of the file's first image."""
    data = bytearray(path.read_bytes())
    starts, sizes = tiff.directories(lambda start, stop: bytes(data[start:stop]), len(data))[0].tile_spans
    for number in numbers:
        data[starts[number] : starts[number] + sizes[number]] = bytes(sizes[number])
    path.write_bytes(data)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_tolerant_read_loses_the_broken_tiles_alone(tmp_path, interleave, dtype):
    pixels = asymmetric((700, 600), bands=2, dtype=dtype)
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=3, interleave=interleave)
    scramble(tmp_path / "a.tif", 1, 4)  # of 3 × 3 tiles, band-interleaved those of band 1
    window, failed = Window(100, 50, 560, 500), []
    block = raster.read_tolerant(asset, [1, 2], window, failed)
    broken = np.zeros((700, 600), bool)
    broken[:512, 256:512] = True
    broken = broken[window.row : window.row_stop, window.col : window.col_stop]
    lost = np.stack([broken, broken if interleave == "pixel" else np.zeros_like(broken)])
    np.testing.assert_array_equal(block.valid, ~lost)
    expected = pixels[:, window.row : window.row_stop, window.col : window.col_stop]
    np.testing.assert_array_equal(block.pixels, np.where(lost, np.array(3, dtype), expected))
    assert block.pixels.dtype == dtype
    assert [each.window for each in failed] == [Window(100, 256, 412, 256)]
    assert {each.source for each in failed} == {asset.href}
    assert all(each.reason and "rows" not in each.reason for each in failed)


def test_a_tolerant_read_of_a_healthy_file_reports_nothing(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((300, 300)))
    failed = []
    assert raster.read_tolerant(asset, [1], asset.window, failed).valid is None
    assert failed == []


def test_a_tolerant_read_keeps_what_a_truncated_file_still_has(data_dir):
    asset = raster.describe(str(data_dir / "formats" / "corrupt.tif"))
    failed = []
    block = raster.read_tolerant(asset, [1], asset.window, failed)
    assert failed
    assert all("reach to byte 307086" in each.reason for each in failed)
    assert sum(each.window.pixels for each in failed) == np.count_nonzero(~block.valid)
    assert block.valid.any()


def test_a_tolerant_read_of_a_file_that_is_gone_is_all_missing(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((600, 300)))
    (tmp_path / "a.tif").unlink()
    failed = []
    block = raster.read_tolerant(asset, [1], asset.window, failed)
    assert not block.valid.any()
    assert block.pixels.dtype == np.uint16
    assert [(each.window, each.reason) for each in failed] == [(asset.window, f"{asset.href} does not exist.")]


@pytest.mark.parametrize("keep", [3, 7, 100, 2000, 50_000, -1])
def test_truncated_copies_end_in_a_clean_error(tmp_path, keep):
    write_raster(tmp_path / "a.tif", asymmetric((512, 512)))
    data = (tmp_path / "a.tif").read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(data[:keep])
    with pytest.raises((SourceTruncated, SourceUnreadable, NotARaster)) as caught:
        whole(raster.describe(str(path)))
    assert "cut.tif" in caught.value.message


@pytest.mark.parametrize(
    ("start", "error", "word"),
    [
        (b"\x89PNG\r\n\x1a\n", UnsupportedFormat, "PNG"),
        (b"\xff\xd8\xff\xe0", UnsupportedFormat, "JPEG"),
        (b"<VRTDataset rasterXSize='5'>", UnsupportedFormat, "virtual"),
        (b"PK\x03\x04", UnsupportedFormat, "ZIP"),
        (b"\x89HDF\r\n", UnsupportedFormat, "HDF5"),
        (b"hello, world", NotARaster, "not a raster"),
        (b"", NotARaster, "not a raster"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, start, error, word):
    (tmp_path / "x").write_bytes(start + b"\0" * 200 * bool(start))
    with pytest.raises(error, match=word):
        raster.describe(str(tmp_path / "x"))


def test_a_real_vrt_is_not_opened(tmp_path):
    write_raster(tmp_path / "a.tif", asymmetric((20, 20)))
    (tmp_path / "a.vrt").write_text(
        "<VRTDataset rasterXSize='20' rasterYSize='20'><VRTRasterBand dataType='UInt16' band='1'><SimpleSource>"
        f"<SourceFilename>{tmp_path}/a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(UnsupportedFormat, match="points to other files"):
        raster.describe(str(tmp_path / "a.vrt"))


def test_overviews_kept_elsewhere_are_refused(tmp_path):
    write_raster(tmp_path / "a.tif", asymmetric((20, 20)))
    with rasterio.open(tmp_path / "a.tif", "r+") as target:
        target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/vsicurl/http://169.254.169.254/x.tif")
    with pytest.raises(UnsupportedFormat, match="overviews in another file"):
        raster.describe(str(tmp_path / "a.tif"))


@pytest.mark.parametrize(
    "href", ["http://example.com/a.tif", "https://x/a.tif", "ftp://x/a", "s3:///a", "s3://b/a?x=1", "/vsicurl/http://x"]
)
def test_other_addresses_are_refused(href):
    with pytest.raises(SourceUnreadable, match=r"expected file://|virtual file systems"):
        raster.describe(href)


def test_addresses_map_to_gdals_file_systems():
    assert raster.gdal_path("s3://bucket/a/b%20c.tif") == "/vsis3/bucket/a/b c.tif"
    assert raster.gdal_path("gs://bucket/a.tif") == "/vsigs/bucket/a.tif"
    assert raster.gdal_path("az://box/a.tif") == "/vsiaz/box/a.tif"
    assert raster.gdal_path("file:///tmp/a%20b.tif") == "/tmp/a b.tif"


def test_a_file_that_changed_is_not_read_with_an_old_description(tmp_path):
    old = write_raster(tmp_path / "a.tif", asymmetric((40, 60)))
    whole(old)
    write_raster(tmp_path / "a.tif", asymmetric((41, 60), dtype="int16"))
    with pytest.raises(SourceUnreadable, match="not what its description says"):
        whole(old)


def test_absent_files_and_huge_reads_are_refused(tmp_path):
    with pytest.raises(SourceUnreadable, match="does not exist"):
        raster.describe(str(tmp_path / "no.tif"))
    asset = write_raster(tmp_path / "a.tif", asymmetric((40, 60)))
    big = msgspec.structs.replace(asset, shape=(100_000, 100_000))
    with pytest.raises(TooLarge, match="exceeds the limit"):
        raster.read_block(big, [1], big.window)


def test_a_giant_tile_is_a_bomb(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=40_000, height=40_000, count=1, dtype="uint8",
                       crs="EPSG:3857", tiled=True, blockxsize=32768, blockysize=32768, SPARSE_OK=True,
                       transform=rasterio.Affine(1, 0, 0, 0, -1, 0)):  # fmt: skip
        pass
    with pytest.raises(DecompressionBomb, match="32768 × 32768"):
        raster.describe(str(tmp_path / "a.tif"))


def test_complex_pixels_are_not_read(tmp_path):
    with pytest.raises(UnsupportedFormat, match="complex64"):
        write_raster(tmp_path / "a.tif", np.ones((1, 8, 8), np.complex64))


def test_remote_reads_are_repeated_and_then_name_the_source(monkeypatch):
    pauses, tries = [], []

    def fails(href, path):
        tries.append(path)
        raise OSError("connection reset by peer")

    monkeypatch.setattr(raster, "_open", fails)
    monkeypatch.setattr(raster.time, "sleep", pauses.append)
    monkeypatch.setattr(raster.sources, "start_of", lambda href, length=64: b"II*\0")
    monkeypatch.setattr(raster.sources, "truncated_at", lambda href: "")
    with pytest.raises(SourceUnreadable, match=r"s3://bucket/a\.tif.*after 5 tries: connection reset by peer"):
        raster.describe("s3://bucket/a.tif")
    assert tries == ["/vsis3/bucket/a.tif"] * 5
    assert pauses == [0.5, 1.0, 2.0, 4.0]


# Deflate is unpacked here, PackBits by GDAL: both ways lead to the store.
@pytest.mark.parametrize("compress", ["deflate", "packbits"])
class TestFromS3:
    def stored(self, s3, tmp_path, compress, cut=None):
        pixels = asymmetric((1500, 1400), bands=2, noise=0.3)
        path = tmp_path / "a.tif"
        write_raster(path, pixels, compress=compress)
        data = path.read_bytes()
        assert len(data) > 6_000_000
        href = s3.put(f"{tmp_path.name}-{compress}-{cut}.tif", data[:cut])
        return href, pixels, len(data)

    def test_a_window_takes_the_header_and_its_own_tiles_and_no_more(self, s3, tmp_path, compress):
        href, pixels, size = self.stored(s3, tmp_path, compress)
        asset = raster.describe(href)
        assert asset.shape == (1500, 1400)
        window = Window(520, 700, 200, 150)
        block = raster.read_block(asset, [2, 1], window)
        assert np.array_equal(block.pixels, pixels[::-1, 520:720, 700:850])
        asked = s3.ranges()
        assert asked
        assert len(asked) == len([None for method, _, _ in s3.asked if method == "GET"])  # nothing without a range
        spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for span in asked]
        assert sum(stop - start + 1 for start, stop in spans) < size / 2

    def test_refusals_of_a_busy_store_are_waited_for(self, s3, tmp_path, compress):
        href, pixels, _ = self.stored(s3, tmp_path, compress)
        s3.faults = [503, 503]
        asset = raster.describe(href)
        assert s3.faults == []
        s3.faults = [503, 500, 503]
        block = raster.read_block(asset, [1], Window(0, 0, 300, 300))
        assert np.array_equal(block.pixels[0], pixels[0, :300, :300])
        assert s3.faults == []

    @pytest.mark.slow
    def test_a_store_that_goes_on_refusing_is_named(self, s3, tmp_path, compress, monkeypatch):
        href, _, _ = self.stored(s3, tmp_path, compress)
        asset = raster.describe(href)
        monkeypatch.setitem(raster.gdal.OPTIONS, "GDAL_HTTP_MAX_RETRY", 0)
        pauses = []
        monkeypatch.setattr(raster.time, "sleep", pauses.append)
        s3.faults = [503] * 10_000
        with pytest.raises(SourceUnreadable, match=r"s3://rasters/.*rows 600…899.* after 5 tries") as caught:
            raster.read_block(asset, [1], Window(600, 600, 300, 300))
        assert caught.value.data["source"] == href
        assert pauses == [0.5, 1.0, 2.0, 4.0]

    @pytest.mark.slow
    def test_an_object_that_ends_too_early_is_called_so(self, s3, tmp_path, compress, monkeypatch):
        monkeypatch.setattr(raster.time, "sleep", lambda _: None)
        href, pixels, _ = self.stored(s3, tmp_path, compress, cut=-1_000_000)
        asset = raster.describe(str(tmp_path / "a.tif"))
        asset = msgspec.structs.replace(asset, href=href)
        first = Window(0, 0, 100, 100)
        assert np.array_equal(raster.read_block(asset, [1], first).pixels[0], pixels[0, :100, :100])
        with pytest.raises(SourceTruncated, match=r"s3://rasters/.*ends too early"):
            raster.read_block(asset, [1, 2], Window(1200, 1100, 300, 300))
        failed = []
        block = raster.read_tolerant(asset, [1, 2], asset.window, failed)
        assert {each.source for each in failed} == {href}
        valid = np.ones(pixels.shape, bool) if block.valid is None else block.valid
        assert 0 < (~valid).sum() < valid.size / 2
        assert np.array_equal(block.pixels[valid], pixels[valid])

    def test_an_absent_object_is_said_to_be_absent(self, s3, tmp_path, compress, monkeypatch):
        monkeypatch.setattr(raster.time, "sleep", lambda _: None)
        with pytest.raises(SourceUnreadable, match=r"s3://rasters/nothing.*could not be found"):
            raster.describe(f"s3://rasters/nothing-{compress}-{tmp_path.name}.tif")


def test_many_threads_read_the_same_pixels(tmp_path):
    pixels = asymmetric((600, 600))
    # PackBits is left to GDAL, which keeps datasets by thread.
    options = [{"compress": "packbits"}, {"compress": "deflate"}] * 2
    assets = [write_raster(tmp_path / f"{n}.tif", pixels + n, nodata=200, **each) for n, each in enumerate(options)]
    barrier = threading.Barrier(8)

    def storm(number):
        barrier.wait()
        rng = np.random.default_rng(number)
        for _ in range(30):
            n, row, col = (int(v) for v in rng.integers((4, 500, 500)))
            block = raster.read_block(assets[n], [1], Window(row, col, 100, 90))
            np.testing.assert_array_equal(block.pixels, pixels[:, row : row + 100, col : col + 90] + n)
        return len(raster._datasets.held)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(storm, range(8))) == {2}


def test_a_thread_keeps_few_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "_DATASETS_PER_THREAD", 2)
    raster._datasets.held.clear()
    for n in range(5):
        whole(write_raster(tmp_path / f"{n}.tif", asymmetric((20, 20)), compress="packbits"))
    assert len(raster._datasets.held) == 2


def test_random_bytes_behind_a_tiff_header_never_escape_as_something_else(tmp_path):
    rng = np.random.default_rng(0)
    write_raster(tmp_path / "a.tif", asymmetric((64, 64)), blockxsize=64, blockysize=64)
    good = (tmp_path / "a.tif").read_bytes()
    outcomes = set()
    for number in range(60):
        data = bytearray(good)
        for place in rng.integers(4, 900, 12):
            data[place] = int(rng.integers(256))
        path = tmp_path / f"x{number}.tif"
        path.write_bytes(data)
        try:
            outcomes.add(whole(raster.describe(str(path))).pixels.shape[0] > 0)
        except ComputeError as error:
            outcomes.add(error.code)
    assert len(outcomes) > 1


def test_previews_shrink_to_the_side_asked_for(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((300, 500), bands=2), nodata=0)
    assert raster.read_preview(asset, [2], 100).pixels.shape == (1, 60, 100)
    assert raster.read_preview(asset, [1, 2], 1000).pixels.shape == (2, 300, 500)


def test_previews_are_an_overview_of_more_than_half_the_side(tmp_path):
    pixels = np.arange(301 * 500, dtype="uint32").reshape(1, 301, 500) % 9001
    asset = write_raster(tmp_path / "a.tif", pixels.astype("uint16"))
    with rasterio.open(tmp_path / "a.tif", "r+") as target:
        target.build_overviews([2, 4], Resampling.average)
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as level:
        halved = level.read()
    asset = raster.describe(asset.href)
    np.testing.assert_array_equal(raster.read_preview(asset, [1], 250).pixels, halved)
    np.testing.assert_array_equal(raster.read_preview(asset, [1], 400).pixels, halved)
    assert raster.read_preview(asset, [1], 600).pixels.shape == (1, 301, 500)
    assert raster.read_preview(asset, [1], 249).pixels.shape == (1, 76, 125)
    assert raster.read_preview(asset, [1], 50).pixels.shape == (1, 31, 50)
