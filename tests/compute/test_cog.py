"""The COG writer: the same bytes for any plan, and what GDAL and rio-cogeo say of them."""

import hashlib
import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rio_cogeo import cog_validate

from eorouter_compute import cog, tiff
from eorouter_compute.cog import CogSpec
from eorouter_compute.grid import tiles
from eorouter_compute.method import Band
from eorouter_compute.testing import ROTATED_TRANSFORM, asymmetric
from eorouter_compute.tiff import Code
from eorouter_kernels.nodata import around
from eorouter_kernels.reference import pyramid as reference


def spec_for(pixels, **fields):
    dtype = pixels.dtype.name
    bands = tuple(Band(name=f"b{n}", index=n, dtype=dtype) for n in range(1, pixels.shape[0] + 1))
    given = {"crs": "EPSG:32632", "transform": ROTATED_TRANSFORM, "bands": bands, "dtype": dtype}
    return CogSpec(**{**given, "shape": pixels.shape[1:], **fields})


def written(folder: Path, spec, pixels, valid=None, *, piece_side=None, shard_side=None):
    """Write in shards of `shard_side`, encoded last to first, and give the file's path and info."""
    piece_side = piece_side or spec.block_size
    shards = list(tiles(spec.window, shard_side or max(spec.shape) + piece_side))
    segments = []
    for number, shard in reversed(list(enumerate(shards))):
        path = folder / f"segment-{piece_side}-{shard_side}-{number}"

        def compute(window):
            cut = (slice(window.row, window.row_stop), slice(window.col, window.col_stop))
            return pixels[(slice(None), *cut)], None if valid is None else valid[(..., *cut)]

        with path.open("wb") as target:
            made = cog.encode(spec, shard, compute, target, href=str(path), piece_side=piece_side)
        segments.append(msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=cog.Segment))
    out = folder / f"out-{piece_side}-{shard_side}.tif"
    with out.open("wb") as target:
        info = cog.assemble(spec, segments, target)
    assert info.size == out.stat().st_size
    return out, info


def assert_strictly_valid(path):
    assert cog_validate(str(path), strict=True, quiet=True) == (True, [], [])


def pyramid_of(spec, pixels, valid):
    """All levels by the NumPy twins: (pixels, valid) with valid always given."""
    levels = [(pixels, valid)]
    name = "halve_mean_floats" if pixels.dtype.kind == "f" else "halve_mean_integers"
    for _ in range(spec.level_count):
        above, above_valid = levels[-1]
        shape = (above.shape[0], -(-above.shape[1] // 2), -(-above.shape[2] // 2))
        out, out_valid = np.empty(shape, pixels.dtype), np.empty(shape, np.bool_)
        fill = spec.nodata if spec.nodata is not None else (np.nan if pixels.dtype.kind == "f" else 0)
        # A level without missing pixels never steps away from a nodata value it cannot be mistaken for.
        known = np.empty((0, 0, 0), np.bool_) if above_valid.all() else above_valid
        nodata = around(fill, spec.dtype) if pixels.dtype.kind == "f" else fill
        getattr(reference, name)(above, known, nodata, out, out_valid)
        levels.append((out, np.ones(shape, np.bool_) if known.size == 0 else out_valid))
    return levels


@settings(max_examples=25, deadline=None)
@given(
    # rio-cogeo takes the overviews of a raster one pixel wide for undecimated.
    shape=st.tuples(st.integers(1, 3), st.integers(2, 300), st.integers(2, 300)),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    missing=st.sampled_from(["none", "nodata", "mask", "nan"]),
    compression=st.sampled_from(["deflate", "zstd", "lzw", "none"]),
    resampling=st.sampled_from(["average", "nearest", "mode", "min", "max", "median"]),
    seed=st.integers(0, 9),
)
def test_bytes_do_not_depend_on_the_plan(tmp_path_factory, *, shape, dtype, missing, compression, resampling, seed):
    if missing == "nan" and "float" not in dtype:
        missing = "nodata"
    folder = tmp_path_factory.mktemp("cog")
    pixels = asymmetric(shape[1:], bands=shape[0], dtype=dtype, seed=seed)
    valid = None if missing == "none" else np.random.default_rng(seed).random(shape[1:]) > 0.3
    spec = spec_for(
        pixels,
        block_size=32,
        nodata={"nodata": 7.0, "nan": float("nan")}.get(missing),
        has_mask=missing == "mask",
        compression=compression,
        overview_resampling=resampling,
    )
    digests = set()
    for piece_side, shard_side in ((32, None), (64, 64), (32, 96), (128, 128), (512, None)):
        path, _ = written(folder, spec, pixels, valid, piece_side=piece_side, shard_side=shard_side)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert_strictly_valid(path)
    with rasterio.open(path) as source:
        data = source.read()
        if valid is None:
            np.testing.assert_array_equal(data, pixels)
        else:
            np.testing.assert_array_equal(data[:, valid], pixels[:, valid])
            hidden = source.read_masks(1) == 0
            hidden |= np.isnan(data[0])
            np.testing.assert_array_equal(hidden, ~valid | (pixels[0] == spec.nodata))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("missing", ["none", "nodata", "mask"])
def test_every_overview_reads_back_as_the_twins_make_it(tmp_path, dtype, missing):
    pixels = asymmetric((333, 257), bands=2, dtype=dtype)
    valid = np.random.default_rng(1).random((333, 257)) > 0.35
    valid[:140, :90] = False
    if missing == "none":
        valid[:] = True
    spec = spec_for(pixels, block_size=32, nodata=0.0 if missing == "nodata" else None, has_mask=missing == "mask")
    path, _ = written(tmp_path, spec, pixels, valid, piece_side=64)
    every = np.broadcast_to(valid, pixels.shape)
    fill = spec.nodata if spec.nodata is not None else (np.nan if dtype == "float32" else 0)
    levels = pyramid_of(spec, np.where(every, pixels, np.array(fill, dtype)), every)
    assert len(levels) == 5
    for number, (expected, expected_valid) in enumerate(levels[1:]):
        with rasterio.open(path, overview_level=number) as source:
            data = source.read()
            np.testing.assert_allclose(data, expected, rtol=1e-6 if dtype == "float32" else 0)
            if missing != "none":
                np.testing.assert_array_equal(source.read_masks(1) > 0, expected_valid[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("missing", [False, True])
def test_overviews_of_floats_hide_no_mean_that_meets_nodata(tmp_path, dtype, missing):
    pixels = np.where(np.arange(600) % 2, 1.0, -1.0).astype(dtype)[None, None].repeat(600, axis=1)
    if missing:
        pixels[:, :64] = 0
    spec = spec_for(pixels, nodata=0.0, block_size=128)
    path, _ = written(tmp_path, spec, pixels, pixels != 0)
    for level in range(spec.level_count):
        with rasterio.open(path, OVERVIEW_LEVEL=level) as overview:
            known = np.arange(overview.height) >= (64 >> (level + 1) if missing else 0)
            np.testing.assert_array_equal(overview.read_masks(1) > 0, np.broadcast_to(known[:, None], overview.shape))


def test_georeference_and_metadata_are_gdals(tmp_path):
    pixels = asymmetric((40, 50), bands=2, dtype="int16")
    bands = (
        Band(name="NDVI", index=1, dtype="int16", scale=0.0001, offset=0.5, unit="1"),
        Band(name="äöü <&>", index=2, dtype="int16"),
    )
    spec = spec_for(pixels, bands=bands, nodata=-9999.0, tags={"PROCESSING": "a & b"})
    path, info = written(tmp_path, spec, pixels, piece_side=512)
    with rasterio.open(path) as source:
        assert source.crs.to_epsg() == 32632
        assert source.transform.almost_equals(Affine(*ROTATED_TRANSFORM), 1e-12)
        assert source.descriptions == ("NDVI", "äöü <&>")
        assert source.scales == (0.0001, 1.0)
        assert source.offsets == (0.5, 0.0)
        assert source.units[0] == "1"
        assert source.nodata == -9999
        assert source.tags()["PROCESSING"] == "a & b"
        assert float(source.tags(1)["STATISTICS_MEAN"]) == pytest.approx(float(pixels[0].mean()), rel=1e-12)
    assert info.statistics[0].minimum == pixels[0].min()
    assert info.statistics[1].maximum == pixels[1].max()
    assert info.statistics[1].stdev == pytest.approx(float(pixels[1].std()), rel=1e-12)


def test_statistics_leave_out_what_is_missing(tmp_path):
    pixels = asymmetric((70, 90), dtype="float32")
    valid = np.random.default_rng(0).random((70, 90)) > 0.5
    _, info = written(tmp_path, spec_for(pixels, nodata=float("nan"), block_size=16), pixels, valid)
    seen = pixels[0][valid].astype(np.float64)
    assert info.statistics[0].mean == pytest.approx(seen.mean(), rel=1e-12)
    assert info.statistics[0].stdev == pytest.approx(seen.std(), rel=1e-12)
    assert info.statistics[0].valid_fraction == seen.size / valid.size


@pytest.mark.parametrize("nodata", [-9999.1, float("nan"), None])
@pytest.mark.parametrize("value", [-9999.1, float("nan"), 0.5])
def test_a_single_missing_float_is_found_among_others(tmp_path, nodata, value):
    """Its place is neither the first nor an extreme; -9999.1 is another number in float32 than in float64."""
    pixels = asymmetric((96, 64), dtype="float32")
    pixels[0, 50, 40] = value
    path, info = written(tmp_path, spec_for(pixels, nodata=nodata, block_size=32), pixels)
    is_missing = bool(np.isnan(value)) or value == nodata
    assert info.statistics[0].valid_fraction == (1 - 1 / pixels.size if is_missing else 1)
    with rasterio.open(path) as source:
        assert (source.read_masks(1) == 0).sum() == (is_missing and nodata is not None)


def test_a_raster_without_any_data_has_no_statistics(tmp_path):
    pixels = np.zeros((1, 40, 40), np.uint8)
    path, info = written(tmp_path, spec_for(pixels, nodata=0.0), pixels, piece_side=512)
    assert info.statistics[0] == cog.BandStatistics(minimum=None, maximum=None, mean=None, stdev=None, valid_fraction=0)
    assert_strictly_valid(path)


def test_measure_gives_the_statistics_of_the_writer(tmp_path):
    pixels = asymmetric((300, 200), bands=2)
    valid = np.random.default_rng(0).random((300, 200)) > 0.5
    spec = spec_for(pixels, nodata=0.0, block_size=64)
    _, info = written(tmp_path, spec, pixels, valid)
    measured = cog.measure(
        spec,
        lambda w: (pixels[:, w.row : w.row_stop, w.col : w.col_stop], valid[w.row : w.row_stop, w.col : w.col_stop]),
    )
    assert measured == info.statistics


def test_image_and_mask_tiles_stand_side_by_side_with_leader_and_trailer(tmp_path):
    pixels = asymmetric((200, 150), dtype="uint8")
    path, _ = written(tmp_path, spec_for(pixels, has_mask=True, block_size=64), pixels, pixels[0] > 99)
    data = path.read_bytes()
    found = tiff.directories(lambda start, stop: data[start:stop], len(data))
    assert [d.value(Code.NEW_SUBFILE_TYPE) for d in found] == [0, 4, 1, 5, 1, 5]
    for image, mask in zip(found[::2], found[1::2], strict=True):
        for start, size, mask_start, mask_size in zip(*image.tile_spans, *mask.tile_spans, strict=True):
            assert int.from_bytes(data[start - 4 : start], "little") == size
            assert data[start + size : start + size + 4] == data[start + size - 4 : start + size]
            assert mask_start == start + size + 8
            assert int.from_bytes(data[mask_start - 4 : mask_start], "little") == mask_size
    assert tiff.layout_faults(found, data[:512]) == []
    assert b"MASK_INTERLEAVED_WITH_IMAGERY=YES" in data[:300]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_lerc_is_lossless(tmp_path, dtype):
    pixels = asymmetric((100, 130), dtype=dtype)
    path, _ = written(tmp_path, spec_for(pixels, compression="lerc", block_size=64), pixels)
    with rasterio.open(path) as source:
        assert source.compression.name == "lerc"
        np.testing.assert_array_equal(source.read(), pixels)


def test_redundant_tiles_are_packed_as_small_as_libdeflate_does():
    classes = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 9, (64, 64)), 8, 0), 8, 1).astype(np.uint8)[None]
    spec = spec_for(classes)
    small = cog._encode_tile(msgspec.structs.replace(spec, level=6), classes)
    assert len(cog._encode_tile(spec, classes)) == len(small)
    assert len(small) < len(cog._encode_tile(msgspec.structs.replace(spec, level=3), classes))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_rim_does_not_make_a_tile_redundant(monkeypatch, dtype):
    pixels = asymmetric((512, 512), dtype=dtype, noise=0.05)
    levels, pack_at = [], cog.deflate.pack_at

    def noted(data, level):
        levels.append(level)
        return pack_at(data, level)

    monkeypatch.setattr(cog.deflate, "pack_at", noted)
    spec = spec_for(pixels)
    for rows, cols in ((512, 60), (60, 512), (60, 60)):
        cog._encode_tile(spec, pixels[:, :rows, :cols])
    empty_left = np.zeros_like(pixels)
    empty_left[..., 400:] = pixels[..., 400:]
    cog._encode_tile(spec, empty_left)
    assert set(levels) == {2}
    cog._encode_tile(spec, np.repeat(pixels[..., :128], 4, axis=2))
    assert levels[-1] == 6


def test_the_predictor_is_kept_where_it_helps():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-2, 3, (1, 256, 256)), axis=2).astype(np.int16)
    classes = rng.choice([3, 90, 200, 17], (1, 256, 256)).astype(np.uint8)
    assert cog.with_best_predictor(spec_for(smooth), [smooth]).prediction == 2
    assert cog.with_best_predictor(spec_for(classes), [classes]).prediction == 1


def test_gaps_and_foreign_pieces_are_refused(tmp_path):
    pixels = asymmetric((100, 100), dtype="uint8")
    spec = spec_for(pixels, block_size=32)
    path = tmp_path / "segment"
    with path.open("wb") as target:

        def compute(w):
            return pixels[:, w.row : w.row_stop, w.col : w.col_stop], None

        whole = cog.encode(spec, spec.window, compute, target, href=str(path), piece_side=32)
    gap = msgspec.structs.replace(whole, pieces=whole.pieces[1:])
    for wrong in ([gap], [whole, whole], []):
        with pytest.raises(ValueError, match=r"pieces|segments"):
            cog.assemble(spec, wrong, io.BytesIO())
    with pytest.raises(ValueError, match="expected uint8 of"):
        cog.encode(
            spec, spec.window, lambda w: (np.zeros((1, 3, 3), np.uint8), None), io.BytesIO(), href="x", piece_side=32
        )


def test_missing_integers_need_a_place_to_say_so():
    pixels = asymmetric((20, 20), dtype="uint8")
    with pytest.raises(ValueError, match="neither nodata nor mask"):
        cog.encode(spec_for(pixels), spec_for(pixels).window, lambda w: (pixels, np.eye(20) > 0), io.BytesIO(),
                   href="x", piece_side=512)  # fmt: skip
