"""Tiles that pass as they are: which ones, what they hold, and that neither the cut nor the cache decides."""

import hashlib
import zlib

import numpy as np
import pytest
import rasterio

from eorouter_compute import blocks, raster, tiff
from eorouter_compute.attempt import local_path, read_object
from eorouter_compute.errors import SourceUnreadable
from eorouter_compute.grid import Window
from eorouter_compute.methods.clip import ClipParams
from eorouter_compute.methods.cog import CogParams
from eorouter_compute.testing import UTM_TRANSFORM, asymmetric, input_item, run_local, write_raster

SIDE = 256


def packed_tiles(path):
    """The packed tiles of the full resolution, in reading order."""
    data = read_object(str(path))
    found = tiff.directories(lambda start, stop: data[start:stop], len(data))[0]
    return [data[start : start + length] for start, length in zip(*found.tile_spans, strict=True)]


def converted(asset, folder, *, params=None, **options):
    result = run_local(params or CogParams(block_size=SIDE), [input_item(asset)], folder, **options)
    made = local_path(result.items[0].assets[0].object.href)
    assert made is not None
    return made


def passed(source, made):
    """Which tiles, by number, are the same bytes in both files."""
    pairs = zip(packed_tiles(source), packed_tiles(made), strict=True)
    return [number for number, (one, other) in enumerate(pairs) if one == other]


def source_of(tmp_path, pixels, **options):
    path = tmp_path / "source.tif"
    return path, write_raster(path, pixels, **{"predictor": 2, "zlevel": 6, **options})


@pytest.mark.parametrize(
    ("dtype", "bands", "options"),
    [
        ("uint16", 1, {}),
        ("uint8", 3, {"interleave": "pixel"}),
        ("float32", 1, {"predictor": 3}),
        ("int16", 1, {"zlevel": 9, "nodata": -32768}),
    ],
)
def test_whole_tiles_pass_and_those_at_the_rim_are_packed_anew(tmp_path, dtype, bands, options):
    pixels = asymmetric((600, 520), bands=bands, dtype=dtype)
    path, asset = source_of(tmp_path, pixels, **options)
    made = converted(asset, tmp_path / "a")
    assert passed(path, made) == [0, 1, 3, 4]
    with rasterio.open(made) as found:
        np.testing.assert_array_equal(found.read(), pixels)
        assert found.overviews(1) == [2, 4]


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({"zlevel": 1}, CogParams(block_size=SIDE)),
        ({"predictor": 1}, CogParams(block_size=SIDE)),
        ({"endianness": "big"}, CogParams(block_size=SIDE)),
        ({"compress": "lzw"}, CogParams(block_size=SIDE)),
        ({}, CogParams(block_size=SIDE, level=5)),
        ({}, CogParams(block_size=SIDE, compression="zstd")),
        ({}, CogParams(block_size=512)),
        ({"tiled": False, "blockysize": 256}, CogParams(block_size=SIDE)),
    ],
)
def test_tiles_stored_otherwise_do_not_pass(tmp_path, options, params):
    pixels = asymmetric((512, 512), dtype="uint16")
    path, asset = source_of(tmp_path, pixels, **options)
    made = converted(asset, tmp_path / "a", params=params)
    assert not set(packed_tiles(path)) & set(packed_tiles(made))
    with rasterio.open(made) as found:
        np.testing.assert_array_equal(found.read(), pixels)


def test_bands_in_another_order_do_not_pass(tmp_path):
    pixels = asymmetric((256, 256), bands=2, dtype="uint8")
    path, asset = source_of(tmp_path, pixels, interleave="pixel", names=("one", "two"))
    for number, order in enumerate((("two", "one"), ("one",))):
        made = converted(asset, tmp_path / str(number), params=CogParams(block_size=SIDE, bands=order))
        assert passed(path, made) == []
    made = converted(asset, tmp_path / "same", params=CogParams(block_size=SIDE, bands=("one", "two")))
    assert passed(path, made) == [0]


def test_a_planar_file_gives_the_tiles_of_one_band(tmp_path):
    pixels = asymmetric((256, 512), bands=2, dtype="uint8")
    path, asset = source_of(tmp_path, pixels, interleave="band", names=("one", "two"))
    made = converted(asset, tmp_path / "a", params=CogParams(block_size=SIDE, bands=("two",)))
    assert packed_tiles(made) == packed_tiles(path)[2:]


def test_only_tiles_whose_missing_pixels_move_are_packed_anew(tmp_path):
    pixels = asymmetric((512, 512), dtype="uint16")
    pixels[0, 300:310, 20:40] = 0
    path, asset = source_of(tmp_path, pixels, nodata=0)
    kept = converted(asset, tmp_path / "a")
    moved = converted(asset, tmp_path / "b", params=CogParams(block_size=SIDE, nodata=65535))
    assert passed(path, kept) == [0, 1, 2, 3]
    assert passed(path, moved) == [0, 1, 3]
    with rasterio.open(moved) as found:
        np.testing.assert_array_equal(found.read(1) == 65535, pixels[0] == 0)


def test_what_a_mask_hides_does_not_pass(tmp_path):
    pixels, mask = asymmetric((256, 512), dtype="uint8"), np.ones((256, 512), np.bool_)
    mask[:9, 300:] = False
    path, asset = source_of(tmp_path, pixels, mask=mask)
    made = converted(asset, tmp_path / "a")
    assert packed_tiles(path)[0] in packed_tiles(made)
    assert packed_tiles(path)[1] not in packed_tiles(made)


def test_neither_shards_nor_blocks_kept_from_other_reads_change_the_bytes(tmp_path):
    pixels = asymmetric((900, 1100), dtype="uint16")
    pixels[0, 100:700, 400:410] = 0
    _, asset = source_of(tmp_path, pixels, nodata=0)
    digests = set()
    for number, shard_pixels in enumerate((SIDE * SIDE, 4 * SIDE * SIDE, 1 << 24)):
        raster.read_block(asset, [1], Window(10, 10, 300, 300))
        made = converted(asset, tmp_path / str(number), shard_pixels=shard_pixels, threads=2)
        digests.add(hashlib.sha256(made.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_our_own_files_pass_again(tmp_path):
    _, asset = source_of(tmp_path, asymmetric((512, 512), dtype="uint16"), zlevel=1)
    first = converted(asset, tmp_path / "a")
    second = converted(raster.describe(str(first)), tmp_path / "b")
    assert packed_tiles(first) == packed_tiles(second)
    assert all(zlib.decompress(tile) for tile in packed_tiles(first))


def test_clip_that_keeps_the_grid_passes_what_lies_inside(tmp_path):
    path, asset = source_of(tmp_path, asymmetric((768, 768), dtype="uint16"), nodata=0, blockxsize=512, blockysize=512)
    a, _, c, _, e, f = UTM_TRANSFORM
    box = (c + a * -1, f + e * 600, c + a * 600, f - e)
    params = ClipParams(aoi=box, crs="EPSG:32632", crop=False)
    assert passed(path, converted(asset, tmp_path / "a", params=params)) == [0]


def test_a_tile_that_only_gdal_reads_leaves_the_others_passing(tmp_path, monkeypatch):
    """Whatever the size of the pieces: a refusal is one tile's affair."""
    pixels = asymmetric((512, 512), dtype="uint16")
    path, asset = source_of(tmp_path, pixels)
    refused = packed_tiles(path)[2]
    unpack = blocks._unpack

    def unpack_some(layout, data, out):
        if bytes(data) == refused:
            raise blocks.NotOurs("for GDAL")
        return unpack(layout, data, out)

    monkeypatch.setattr(blocks, "_unpack", unpack_some)
    made = [converted(asset, tmp_path / str(shard), shard_pixels=shard) for shard in (SIDE * SIDE, 1 << 22)]
    assert [passed(path, each) for each in made] == [[0, 1, 3], [0, 1, 3]]
    with rasterio.open(made[0]) as found:
        np.testing.assert_array_equal(found.read(), pixels)


def test_a_file_that_cannot_be_reached_fails_by_name(tmp_path, monkeypatch):
    _, asset = source_of(tmp_path, asymmetric((256, 256), dtype="uint16"))

    def ranges(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(blocks._LocalBytes, "ranges", ranges)
    with pytest.raises(SourceUnreadable, match="the disk is gone"):
        raster.read_with_tiles(asset, [1], asset.window, blocks.Tiles(SIDE, 2, {}))
