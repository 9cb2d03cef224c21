"""Stored numbers of a window: rasterio's pixels and masks on any cut of a grid, in memory that only a slot reuses."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.vrt import WarpedVRT

from eorouter_compute import warp, witness
from eorouter_compute.errors import SourceTruncated
from eorouter_compute.grid import Grid, Window
from eorouter_compute.stored import EVERY, Reader, Stored
from eorouter_compute.testing import UTM_TRANSFORM, asymmetric, write_raster

SHAPE = (90, 110)


def local(asset) -> str:
    return asset.href.removeprefix("file://")


def rasterios(asset, bands, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, and where GDAL and NaN say there is data."""
    where = rasterio.windows.Window(window.col, window.row, window.width, window.height)
    with rasterio.open(local(asset)) as source:
        pixels = source.read(bands, window=where)
        known = source.read_masks(bands, window=where) > 0
    return pixels, known & ~np.isnan(pixels) if pixels.dtype.kind == "f" else known


def shifted(asset, rows: int, cols: int, shape: tuple[int, int]) -> Grid:
    """A grid of the same pixels that begins elsewhere."""
    a, b, c, d, e, f = asset.transform
    return Grid(crs=asset.crs, transform=(a, b, c + a * cols + b * rows, d, e, f + d * cols + e * rows), shape=shape)


def known(found: Stored) -> np.ndarray:
    return np.ones(found.pixels.shape, np.bool_) if found.known is None else found.known


@pytest.mark.parametrize("has_mask", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", None), ("uint8", 9.0), ("int16", -9999.0), ("uint16", 0.0), ("float32", np.nan), ("float32", -9999.0),
     ("float32", 0.1), ("float64", -3.4e38)],
)  # fmt: skip
def test_pixels_and_what_is_missing_are_rasterios(tmp_path, dtype, nodata, has_mask):
    rng = np.random.default_rng(4)
    pixels = asymmetric(SHAPE, bands=2, dtype=dtype)
    if nodata is not None:
        pixels[rng.random(pixels.shape) < 0.2] = nodata
    if np.dtype(dtype).kind == "f":
        pixels[0][rng.random(SHAPE) < 0.1] = np.nan
    mask = rng.random(SHAPE) > 0.3 if has_mask else None
    # GDAL lets one of the two decide; here both are asked, so the mask covers what nodata says.
    asset = write_raster(tmp_path / "0.tif", pixels, nodata=None if has_mask else nodata, mask=mask, blockxsize=32)
    reader, window = Reader(None), Window(13, 21, 50, 60)
    found = reader.read(warp.placed(asset, asset.grid), [asset.bands[1], asset.bands[0]], window, "slot")
    theirs, valid = rasterios(asset, [2, 1], window)
    for own, other, there in zip(found, theirs, valid, strict=True):
        assert own.pixels.dtype == other.dtype
        np.testing.assert_array_equal(own.pixels, other)
        np.testing.assert_array_equal(known(own), there)


def test_a_number_the_type_cannot_hold_stands_for_nothing(tmp_path):
    asset = write_raster(tmp_path / "0.tif", asymmetric(SHAPE, dtype="uint8"), nodata=9)
    band = msgspec.structs.replace(asset.bands[0], nodata=-9999.0)
    (found,) = Reader(None).read(warp.placed(asset, asset.grid), [band], asset.window, "slot")
    assert np.isnan(found.nodata)
    assert found.known is None


def test_a_number_in_single_precision_is_looked_for_as_the_file_holds_it(tmp_path):
    pixels = asymmetric(SHAPE, dtype="float32")
    pixels[0, :30] = 0.1
    asset = write_raster(tmp_path / "0.tif", pixels)
    band = msgspec.structs.replace(asset.bands[0], nodata=0.1)
    (found,) = Reader(None).read(warp.placed(asset, asset.grid), [band], asset.window, "slot")
    assert (found.pixels[:30].astype(np.float64) == found.nodata).all()
    np.testing.assert_array_equal(known(found), np.arange(SHAPE[0])[:, None] * np.ones(SHAPE) >= 30)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.integers(-40, 40)] * 2), st.tuples(*[st.integers(0, 50)] * 2), st.data())
def test_any_window_of_any_grid_of_the_same_pixels(shared, shift, corner, data):
    (asset, pixels), (down, right), (row, col) = shared, shift, corner
    grid = shifted(asset, down, right, (100, 100))
    window = Window(row, col, data.draw(st.integers(1, 100 - row)), data.draw(st.integers(1, 100 - col)))
    (found,) = Reader(None).read(warp.placed(asset, grid), asset.bands, window, "slot")
    padded = np.zeros((300, 300), pixels.dtype)
    inside = np.zeros((300, 300), np.bool_)
    padded[100 : 100 + SHAPE[0], 100 : 100 + SHAPE[1]] = pixels
    inside[100 : 100 + SHAPE[0], 100 : 100 + SHAPE[1]] = pixels != 7
    cut = (
        slice(100 + down + row, 100 + down + window.row_stop),
        slice(100 + right + col, 100 + right + window.col_stop),
    )
    np.testing.assert_array_equal(known(found), inside[cut])
    np.testing.assert_array_equal(found.pixels[inside[cut]], padded[cut][inside[cut]])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 60, (1, *SHAPE)).astype("uint16")
    asset = write_raster(tmp_path_factory.mktemp("shared") / "0.tif", pixels, nodata=7, blockxsize=32, blockysize=16)
    return asset, pixels[0]


def test_another_grid_is_resampled_as_gdal_does(shared):
    asset, _ = shared
    a, _, c, _, e, f = UTM_TRANSFORM
    grid = Grid(crs=asset.crs, transform=(a * 0.5, 0.0, c + 50, 0.0, e * 0.5, f - 30), shape=(120, 130))
    window = Window(11, 17, 80, 90)
    (found,) = Reader(None).read(warp.placed(asset, grid), asset.bands, window, "slot")
    with (
        rasterio.open(local(asset)) as source,
        WarpedVRT(source, crs=grid.crs, transform=rasterio.Affine(*grid.transform), height=120, width=130) as warped,
    ):
        where = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        there = warped.read_masks(1, window=where) > 0
        np.testing.assert_array_equal(known(found), there)
        np.testing.assert_array_equal(found.pixels[there], warped.read(1, window=where)[there])


def test_the_memory_of_a_slot_is_used_again_and_no_other(shared):
    asset, pixels = shared
    reader, placement = Reader(None), warp.placed(asset, asset.grid)
    (first,) = reader.read(placement, asset.bands, Window(0, 0, 40, 50), "one")
    (other,) = reader.read(placement, asset.bands, Window(5, 5, 40, 50), "two")
    assert not np.shares_memory(first.pixels, other.pixels)
    np.testing.assert_array_equal(first.pixels, pixels[:40, :50])
    (again,) = reader.read(placement, asset.bands, Window(20, 30, 30, 20), "one")
    assert np.shares_memory(first.pixels, again.pixels)
    np.testing.assert_array_equal(again.pixels, pixels[20:50, 30:50])
    np.testing.assert_array_equal(other.pixels, pixels[5:45, 5:55])


def test_a_room_has_the_shape_and_type_asked_for_and_grows():
    reader = Reader(None)
    small = reader.room("a", (2, 3), "float32")
    assert (small.shape, small.dtype, small.flags.c_contiguous) == ((2, 3), np.float32, True)
    same = reader.room("a", (3, 4), np.int16)
    assert (same.shape, same.dtype) == ((3, 4), np.int16)
    assert np.shares_memory(small, same)
    large = reader.room("a", (50, 50), np.float64)
    large[:] = 1.5
    assert large.shape == (50, 50)
    assert np.shares_memory(large, reader.room("a", (2, 3), "float32"))
    assert not np.shares_memory(large, reader.room("b", (2, 3), "float32"))
    assert reader.room("c", (0, 3), np.uint8).size == 0


def test_reading_is_witnessed_in_bytes_and_time(shared):
    asset, _ = shared
    placement, window = warp.placed(asset, asset.grid), Window(10, 10, 30, 40)
    with witness.Witness() as notes:
        (found,) = Reader(None).read(placement, asset.bands, window, "slot")
    assert notes.read_bytes == found.pixels.nbytes
    assert notes.read_s > 0


def test_what_cannot_be_read_is_an_error_or_named_and_missing(tmp_path):
    asset = write_raster(tmp_path / "0.tif", asymmetric((512, 512)), compress="none")
    whole = warp.placed(asset, asset.grid)
    path = Path(local(asset))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 300_000)
    with pytest.raises(SourceTruncated):
        Reader(None).read(whole, asset.bands, asset.window, "slot")
    reader = Reader([])
    (found,) = reader.read(whole, asset.bands, asset.window, "slot")
    assert {each.source for each in reader.failed} == {asset.href}
    lost = np.zeros((512, 512), np.bool_)
    for each in reader.failed:
        lost[each.window.row : each.window.row_stop, each.window.col : each.window.col_stop] = True
    assert 0 < lost.mean() < 1
    np.testing.assert_array_equal(found.valid, ~lost)
    np.testing.assert_array_equal(found.pixels[~lost], asymmetric((512, 512))[0][~lost])


@settings(max_examples=60)
@given(st.integers(0, 6), st.integers(1, 6), st.integers(0, 6), st.integers(1, 6), st.booleans())
def test_a_cut_knows_what_the_whole_knew(row, height, col, width, has_mask):
    pixels = np.array([[np.nan, -9, 3], [4, 5, -9]], np.float32).repeat(6, 0).repeat(4, 1)
    valid = np.arange(pixels.size).reshape(pixels.shape) % 5 > 0 if has_mask else None
    whole = Stored(pixels, valid, -9.0)
    at = (slice(row, row + height), slice(col, col + width))
    part = whole.cut(at)
    assert part.pixels.flags.c_contiguous
    np.testing.assert_array_equal(part.pixels, pixels[at])
    np.testing.assert_array_equal(known(part), known(whole)[at])
    np.testing.assert_array_equal(known(whole.cut(EVERY)), known(whole))
    np.testing.assert_array_equal(known(whole), ~np.isnan(pixels) & (pixels != -9) & (True if valid is None else valid))
