"""How a file is cut: pixels put together by the layout alone are rasterio's, and what is rare is left to GDAL."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from eorouter_compute import layout, tiff
from eorouter_compute.layout import NotOurs
from eorouter_compute.testing import UTM_TRANSFORM, asymmetric
from eorouter_compute.tiff import Code, Directory, Tag


def directories(path: Path) -> list[Directory]:
    data = path.read_bytes()
    return tiff.directories(lambda start, stop: data[start:stop], len(data))


def written(path: Path, pixels: np.ndarray, **options) -> Path:
    bands, height, width = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=pixels.dtype.name,
                       crs="EPSG:32632", transform=rasterio.Affine(*UTM_TRANSFORM), **options) as target:  # fmt: skip
        target.write(pixels)
    return path


def block_of(data: bytes, cut: layout.Layout, number: int) -> np.ndarray:
    """One block (rows, columns, samples) without its predictor, by NumPy's sums and byte orders."""
    kind = cut.dtype.newbyteorder(">" if cut.is_swapped else "<")
    rows = cut.block[0]
    if cut.is_stripped:
        rows = min(rows, cut.shape[0] - (number % cut.grid[0]) * cut.block[0])
    raw = data[cut.starts[number] : cut.starts[number] + cut.lengths[number]]
    if cut.unpack is not None:
        out = np.empty(rows * cut.row_bytes, np.uint8)
        assert cut.unpack(raw, out) == out.size
        raw = out.tobytes()
    assert len(raw) == rows * cut.row_bytes
    depth = cut.samples_per_block
    if cut.predictor == 3:
        planes = np.frombuffer(raw, np.uint8).reshape(rows, -1, depth)
        planes = np.cumsum(planes, axis=1, dtype=np.uint8).reshape(rows, kind.itemsize, -1)
        return planes.transpose(0, 2, 1).copy().view(kind.newbyteorder(">")).reshape(rows, -1, depth)
    pixels = np.frombuffer(raw, kind).reshape(rows, -1, depth)
    return np.cumsum(pixels, axis=1, dtype=cut.dtype) if cut.predictor == 2 else pixels


def put_together(path: Path) -> np.ndarray:
    """All pixels (band, y, x) by nothing but the file's layout and its bytes."""
    data, cut = path.read_bytes(), layout.layout_of(directories(path)).image
    (down, across), (rows, cols) = cut.grid, cut.block
    out = np.zeros((cut.samples, down * rows, across * cols), cut.dtype)
    for number in range(len(cut.starts)):
        plane, place = divmod(number, down * across)
        row, col = (place // across) * rows, (place % across) * cols
        block = block_of(data, cut, number).transpose(2, 0, 1)
        out[plane : plane + block.shape[0], row : row + block.shape[1], col : col + cols] = block
    return out[:, : cut.shape[0], : cut.shape[1]]


@pytest.mark.parametrize("compress", ["none", "deflate", "zstd", "lzw"])
@pytest.mark.parametrize(
    ("dtype", "predictor"), [("uint8", 2), ("int16", 2), ("uint32", 1), ("float32", 3), ("float64", 1)]
)
@pytest.mark.parametrize(
    "cut",
    [{"tiled": True, "blockxsize": 32, "blockysize": 48, "interleave": "pixel"},
     {"tiled": True, "blockxsize": 64, "blockysize": 16, "interleave": "band", "endianness": "big"},
     {"blockysize": 7, "interleave": "pixel", "endianness": "big"},
     {"blockysize": 9, "interleave": "band", "bigtiff": "yes"}],
    ids=["tiles", "planes-big-endian", "strips-big-endian", "strips-of-planes-bigtiff"],
)  # fmt: skip
def test_pixels_put_together_by_the_layout_are_rasterios(tmp_path, compress, dtype, predictor, cut):
    pixels = asymmetric((61, 83), bands=3, dtype=dtype)
    extra = {} if compress == "none" else {"compress": compress, "predictor": predictor}
    path = written(tmp_path / "0.tif", pixels, photometric="minisblack", **cut, **extra)
    np.testing.assert_array_equal(put_together(path), pixels)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.integers(1, 4), st.integers(1, 80), st.booleans())
def test_every_shape_and_strip_is_accounted_for(tmp_path, shape, bands, rows, is_separate):
    pixels = asymmetric(shape, bands=bands, dtype="uint16")
    path = written(tmp_path / "0.tif", pixels, blockysize=rows, interleave="band" if is_separate else "pixel",
                   photometric="minisblack", compress="deflate")  # fmt: skip
    found = layout.layout_of(directories(path)).image
    with rasterio.open(path) as source:
        assert found.shape == source.shape
        assert found.samples == source.count
        assert {found.block} == set(source.block_shapes)
    assert found.is_separate == (is_separate and bands > 1)
    assert found.is_stripped
    assert found.is_deflated
    np.testing.assert_array_equal(put_together(path), pixels)


def test_a_mask_of_the_file_is_found_and_read_bit_by_bit(tmp_path):
    shown = np.broadcast_to(np.arange(43) % 3 > 0, (50, 43))
    path = written(tmp_path / "0.tif", asymmetric((50, 43), dtype="uint8"), nodata=7)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(shown)
    found = layout.layout_of(directories(path))
    assert found.mask is not None
    assert found.mask.dtype is None
    assert found.mask.shape == (50, 43)
    assert (found.image.fill, found.mask.fill) == (7.0, 0.0)
    data, rows = path.read_bytes(), []
    for start, length in zip(found.mask.starts, found.mask.lengths, strict=True):
        out = np.zeros(found.mask.block[0] * found.mask.row_bytes, np.uint8)
        size = found.mask.unpack(data[start : start + length], out)
        rows.append(np.unpackbits(out[:size].reshape(-1, found.mask.row_bytes), axis=1)[:, :43])
    np.testing.assert_array_equal(np.concatenate(rows), shown)


def test_only_a_band_that_says_so_hides_others(tmp_path):
    four = asymmetric((8, 8), bands=4, dtype="uint8")
    for alpha, hides in (("yes", True), ("premultiplied", True), ("no", False)):
        path = written(tmp_path / f"{alpha}.tif", four, photometric="rgb", alpha=alpha)
        assert layout.layout_of(directories(path)).has_alpha == hides
    path = written(tmp_path / "first.tif", asymmetric((8, 8), bands=2, dtype="uint8"))
    assert not layout.layout_of(directories(path)).has_alpha
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.alpha, ColorInterp.gray]
    assert Code.EXTRA_SAMPLES not in directories(path)[0].tags or not directories(path)[0].value(Code.EXTRA_SAMPLES)
    assert layout.layout_of(directories(path)).has_alpha


@pytest.mark.parametrize(
    ("dtype", "nodata", "fill"),
    [("uint8", None, 0.0), ("uint8", "7", 7.0), ("uint8", "-1", None), ("uint8", "256", None), ("uint8", "1.5", None),
     ("uint8", "nan", None), ("int16", "-32768", -32768.0), ("float32", "nan", np.nan), ("float32", "1e300", None),
     ("float32", "-3.40282346638529e+38", -3.40282346638529e38),
     ("float32", "-inf", -np.inf), ("float64", "1e300", 1e300), ("uint16", "none", None)],
)  # fmt: skip
def test_blocks_never_written_hold_what_the_type_can_of_nodata(tmp_path, dtype, nodata, fill):
    path = written(tmp_path / "0.tif", np.zeros((1, 32, 32), dtype), tiled=True, blockxsize=16, blockysize=16,
                   sparse_ok="true")  # fmt: skip
    (directory,) = directories(path)
    if nodata is not None:
        directory.tags[Code.GDAL_NODATA] = Tag(Code.GDAL_NODATA, 2, nodata.encode() + b"\0")
    found = layout.layout_of([directory]).image
    assert not found.starts.any()
    assert not found.lengths.any()
    np.testing.assert_equal(found.fill, fill)


def test_gdal_reads_the_fill_where_nothing_was_written(tmp_path):
    path = tmp_path / "0.tif"
    with rasterio.open(path, "w", driver="GTiff", count=1, height=32, width=32, dtype="int16", nodata=-9999,
                       transform=rasterio.Affine(*UTM_TRANSFORM), crs="EPSG:32632", sparse_ok="true"):  # fmt: skip
        pass
    with rasterio.open(path) as source:
        assert set(np.unique(source.read(1))) == {layout.layout_of(directories(path)).image.fill}


@pytest.mark.parametrize(
    ("pixels", "options"),
    [(asymmetric((16, 16), bands=3, dtype="uint8"), {"photometric": "ycbcr", "compress": "jpeg"}),
     (asymmetric((16, 16), bands=4, dtype="uint8"), {"photometric": "cmyk"}),
     (asymmetric((16, 16), dtype="uint16"), {"nbits": 12}),
     (asymmetric((16, 16), dtype="uint8"), {"nbits": 1}),
     (np.zeros((1, 16, 16), "int64"), {}),
     (np.zeros((1, 16, 16), "complex64"), {}),
     (asymmetric((16, 16), dtype="float32"), {"nbits": 16}),
     (asymmetric((16, 16), dtype="uint8"), {"compress": "packbits"}),
     (asymmetric((16, 16), dtype="float32"), {"compress": "lerc"})],
    ids=["ycbcr", "cmyk", "12-bits", "1-bit", "int64", "complex", "half", "packbits", "lerc"],
)  # fmt: skip
def test_files_of_rare_kinds_are_left_to_gdal(tmp_path, pixels, options):
    with pytest.raises(NotOurs):
        layout.layout_of(directories(written(tmp_path / "0.tif", pixels, **options)))


BYTES = tiff.shorts(Code.BITS_PER_SAMPLE, 8)
PLAIN = (tiff.longs(Code.IMAGE_WIDTH, [40]), tiff.longs(Code.IMAGE_LENGTH, [30]), BYTES,
         tiff.longs(Code.ROWS_PER_STRIP, [10]), tiff.longs(Code.STRIP_OFFSETS, [8, 408, 808]),
         tiff.longs(Code.STRIP_BYTE_COUNTS, [400, 400, 400]))  # fmt: skip


def changed(*tags: Tag) -> Directory:
    return Directory(8, {tag.code: tag for tag in (*PLAIN, *tags)})


def test_what_a_file_leaves_out_has_the_standards_value():
    found = layout.layout_of([changed()])
    image = found.image
    assert (image.shape, image.samples, image.dtype, image.block) == ((30, 40), 1, np.uint8, (10, 40))
    assert (image.unpack, image.predictor, image.is_separate, image.is_swapped) == (None, 1, False, False)
    assert (found.mask, found.has_alpha, image.fill) == (None, False, 0.0)
    one = changed(tiff.longs(Code.STRIP_OFFSETS, [8]), tiff.longs(Code.STRIP_BYTE_COUNTS, [1200]))
    del one.tags[Code.ROWS_PER_STRIP]
    assert layout.layout_of([one]).image.block == (30, 40)


def test_pixels_stored_as_they_are_have_no_predictor():
    assert layout.layout_of([changed(tiff.shorts(Code.PREDICTOR, 2))]).image.predictor == 1


def test_bytes_are_never_swapped():
    assert not layout.layout_of([changed()._replace(is_big_endian=True)]).image.is_swapped


@pytest.mark.parametrize(
    ("tags", "why"),
    [([tiff.shorts(Code.BITS_PER_SAMPLE, 8, 16)], "differs"), ([tiff.shorts(Code.SAMPLE_FORMAT, 3)], "format 3"),
     ([tiff.shorts(Code.PREDICTOR, 4)], "predictor 4"), ([tiff.shorts(Code.PREDICTOR, 3)], "predictor 3"),
     ([tiff.shorts(Code.FILL_ORDER, 2)], "unusual"), ([tiff.shorts(Code.PLANAR_CONFIGURATION, 3)], "unusual"),
     ([tiff.longs(Code.IMAGE_LENGTH, [0])], "unusual"), ([tiff.longs(Code.ROWS_PER_STRIP, [0])], "unusual"),
     ([tiff.shorts(Code.SAMPLES_PER_PIXEL, 0)], "unusual"), ([tiff.shorts(Code.TILE_WIDTH, 16)], "unusual"),
     ([tiff.longs(Code.IMAGE_LENGTH, [31])], "accounted"), ([tiff.longs(Code.ROWS_PER_STRIP, [9])], "accounted"),
     ([tiff.longs(Code.STRIP_BYTE_COUNTS, [400, 400])], "accounted"),
     ([tiff.shorts(Code.PLANAR_CONFIGURATION, 2), tiff.shorts(Code.SAMPLES_PER_PIXEL, 2)], "accounted"),
     ([Tag(Code.STRIP_OFFSETS, 16, np.array([8, 1 << 63, 8], "<u8").tobytes())], "accounted")],
)  # fmt: skip
def test_directories_that_leave_something_open_are_refused_and_say_why(tags, why):
    with pytest.raises(NotOurs, match=why):
        layout.layout_of([changed(*tags)])


def test_the_largest_block_is_still_read():
    width = layout.BLOCK_BYTES_MAX // 8
    lines = (tiff.longs(Code.IMAGE_LENGTH, [24]), tiff.longs(Code.ROWS_PER_STRIP, [8]))
    assert layout.layout_of([changed(*lines, tiff.longs(Code.IMAGE_WIDTH, [width]))]).image.row_bytes == width
    with pytest.raises(NotOurs, match="giants"):
        layout.layout_of([changed(*lines, tiff.longs(Code.IMAGE_WIDTH, [width + 1]))])


@pytest.mark.parametrize(
    "tag",
    [tiff.shorts(Code.BITS_PER_SAMPLE, 8), tiff.shorts(Code.SAMPLES_PER_PIXEL, 2), tiff.shorts(Code.PHOTOMETRIC, 1),
     tiff.longs(Code.IMAGE_WIDTH, [41])],
    ids=["bytes", "two", "grey", "wider"],
)  # fmt: skip
def test_a_mask_that_is_none_leaves_the_file_to_gdal(tag):
    bits = (tiff.shorts(Code.NEW_SUBFILE_TYPE, 4), tiff.shorts(Code.BITS_PER_SAMPLE, 1),
            tiff.shorts(Code.PHOTOMETRIC, 4))  # fmt: skip
    assert layout.layout_of([changed(), changed(*bits)]).mask is not None
    with pytest.raises(NotOurs, match="mask"):
        layout.layout_of([changed(), changed(*bits, tag)])
