"""Blocks read without GDAL: the bytes GDAL gives, on real files and over every way to store them; no harm by others."""

import itertools
import zlib

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window as RasterioWindow

from eorouter_compute import blocks, raster, tiff
from eorouter_compute.attempt import read_object
from eorouter_compute.errors import SourceFault
from eorouter_compute.grid import Window
from eorouter_compute.testing import asymmetric, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def windows_of(shape):
    """The whole, a corner, an odd piece, the last pixel."""
    height, width = shape
    yield Window(0, 0, height, width)
    yield Window(height // 3, width // 4, max(height // 2, 1), max(width // 3, 1))
    yield Window(height - 1, width - 1, 1, 1)


def assert_as_gdal(path, *, with_mask=False):
    """Whether the file was read without GDAL; if so, every window must be GDAL's."""
    with rasterio.open(path) as source:
        bands, is_ours = list(source.indexes), False
        for window, chosen in itertools.product(windows_of(source.shape), {(1,), tuple(bands), (bands[-1], 1)}):
            found = blocks.read(str(path), source.shape, source.dtypes[0], chosen, window, with_mask=with_mask)
            if found is None:
                continue
            is_ours = True
            where = RasterioWindow(window.col, window.row, window.width, window.height)
            theirs = source.read(list(chosen), window=where)
            assert found[0].dtype == theirs.dtype
            assert found[0].tobytes() == theirs.tobytes(), (path, window, chosen)
            if with_mask:
                np.testing.assert_array_equal(found[1], source.read_masks(1, window=where) > 0)
    return is_ours


def test_real_files_give_the_bytes_gdal_gives(data_dir):
    paths = [p for p in sorted(data_dir.glob("**/*")) if p.suffix.lower() in {".tif", ".tiff"}]
    kept = [path for number, path in enumerate(paths) if number % 5 == 0 or path.parent.name == "formats"]
    read = 0
    for path in kept:
        if path.name != "corrupt.tif":
            read += assert_as_gdal(path)
    assert read > 0.7 * len(kept) > 50


def test_real_masks_are_gdals(data_dir):
    assert assert_as_gdal(data_dir / "formats" / "rgb_mask.tif", with_mask=True)
    with rasterio.open(data_dir / "formats" / "rgba.tif") as source:
        window = Window(0, 0, *source.shape)
        assert blocks.read(source.name, source.shape, "uint8", [1], window, with_mask=True) is None


LAYOUTS = [
    {"tiled": True, "blockxsize": 32, "blockysize": 16},
    {"tiled": False, "blockysize": 7},
]


@pytest.mark.parametrize("dtype", sorted(set(raster.DTYPES) - {"int64", "uint64"}))  # which are GDAL's to read
@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "zstd"])
def test_every_way_gdal_stores_pixels_is_read(tmp_path, dtype, compress):
    is_ours = dtype not in {"int64", "uint64"}  # those are read once, when they are taken in, by GDAL
    pixels = asymmetric((75, 101), bands=3, dtype=dtype)
    mask = np.random.default_rng(0).random((75, 101)) > 0.3
    predictors = [1] if compress == "none" else ([1, 3] if "float" in dtype else [1, 2])
    ways = itertools.product(LAYOUTS, predictors, ["pixel", "band"], ["LITTLE", "BIG"])
    for number, (layout, predictor, interleave, order) in enumerate(ways):
        path = tmp_path / f"{number}.tif"
        options = {"predictor": predictor} if predictor > 1 else {}
        where = {"interleave": interleave, "endianness": order, "bigtiff": "YES" if number % 3 else "NO"}
        write_raster(path, pixels, compress=compress, **where, **options, **layout)
        assert assert_as_gdal(path) == is_ours
        np.testing.assert_array_equal(rasterio.open(path).read(), pixels)
    write_raster(tmp_path / "mask.tif", pixels, compress=compress, mask=mask)
    assert assert_as_gdal(tmp_path / "mask.tif", with_mask=True) == is_ours


@pytest.mark.parametrize("nodata", [None, 7, -9999])
def test_blocks_never_written_hold_nodata(tmp_path, nodata):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "width": 100, "height": 90, "count": 2, "dtype": "int16", "nodata": nodata}
    with rasterio.open(
        path, "w", **profile, tiled=True, blockxsize=32, blockysize=32, compress="deflate", SPARSE_OK=True
    ) as target:
        target.write(np.full((2, 32, 32), 5, np.int16), window=RasterioWindow(32, 32, 32, 32))
    assert assert_as_gdal(path)


def test_a_replaced_file_is_read_anew(tmp_path):
    path = tmp_path / "a.tif"
    for seed in range(3):
        pixels = asymmetric((300, 300), seed=seed)
        asset = write_raster(path, pixels)
        part = raster.read_block(asset, [1], Window(10, 10, 200, 200)).pixels  # ends inside a block, which is kept
        np.testing.assert_array_equal(part, pixels[:, 10:210, 10:210])


def test_what_is_kept_stays_within_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_KEPT_BYTES", 300_000)
    monkeypatch.setattr(blocks, "_files", blocks._Files())
    pixels = asymmetric((600, 600))
    asset = write_raster(tmp_path / "a.tif", pixels)
    for row, col in itertools.product(range(0, 600, 50), range(0, 600, 50)):
        part = raster.read_block(asset, [1], Window(row, col, 50, 50)).pixels
        np.testing.assert_array_equal(part, pixels[:, row : row + 50, col : col + 50])
    assert 0 < blocks._files._bytes <= 300_000


def spans(path):
    data = path.read_bytes()
    return tiff.directories(lambda a, b: data[a:b], len(data))[0].tile_spans


def test_blocks_that_lie_are_left_to_gdal_and_end_in_its_errors(tmp_path):
    """A block that unpacks to less or more than promised, one cut short, one outside the file."""
    path = tmp_path / "a.tif"
    asset = write_raster(path, asymmetric((512, 512)))
    good = path.read_bytes()
    starts, sizes = spans(path)
    for content in (zlib.compress(bytes(100)), zlib.compress(bytes(50_000_000)), b"\0" * 10, b""):
        data = bytearray(good)
        data[starts[0] : starts[0] + sizes[0]] = content.ljust(int(sizes[0]), b"\0")[: int(sizes[0])]
        path.write_bytes(data)
        found = blocks.read(asset.href, asset.shape, "uint16", [1], asset.window, with_mask=False)
        assert found is None
    path.write_bytes(good[: int(starts[3])])
    assert blocks.read(asset.href, asset.shape, "uint16", [1], asset.window, with_mask=False) is None
    with pytest.raises(SourceFault, match="ends too early"):
        raster.read_block(asset, [1], asset.window)


def test_files_left_to_gdal_are_known(tmp_path):
    pixels = asymmetric((64, 64), dtype="uint8", bands=3)
    for number, options in enumerate(({"compress": "packbits"}, {"compress": "jpeg"}, {"nbits": 4})):
        path = tmp_path / f"{number}.tif"
        write_raster(path, pixels // 16, blockxsize=64, blockysize=64, **options)
        with pytest.raises(blocks.NotOurs):
            blocks.layout_of(tiff.directories(lambda a, b, p=path: read_object(str(p), a, b), path.stat().st_size))
        assert not assert_as_gdal(path)
