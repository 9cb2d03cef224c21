"""The container: what is written is read back, and damaged files are refused without harm."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile
from rio_cogeo import cog_validate

from eorouter_compute import sources, tiff
from eorouter_compute.testing import asymmetric
from eorouter_compute.tiff import Code

PLACE = Affine(10.0, 0.0, 500.0, 0.0, -10.0, 900.0)


def parsed(data):
    return tiff.directories(lambda start, stop: data[start:stop], len(data))


@pytest.mark.parametrize("is_big", [False, True])
def test_written_directories_read_back(is_big):
    first = [tiff.longs(256, [7]), tiff.shorts(258, 8, 16, 32), tiff.offsets(324, np.array([1, 2, 3]), is_big=is_big)]
    second = [tiff.longs(256, [9]), tiff.Tag(42113, 2, b"-9999\0")]
    data = tiff.header([first, second], b"ghost of some length", is_big=is_big)
    found = parsed(data)
    assert [list(each.tags.values()) for each in found] == [first, second]
    assert found[1].tags[42113].text == "-9999"
    assert b"ghost of some length" in data[: found[0].offset]


def test_tags_out_of_order_are_refused():
    with pytest.raises(ValueError, match="ascending"):
        tiff.header([[tiff.longs(257, [1]), tiff.longs(256, [1])]], b"", is_big=False)


@pytest.mark.parametrize("options", [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}])
def test_gdals_files_are_understood(options):
    pixels = asymmetric((300, 200), dtype="uint16")
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=200, height=300, count=1, dtype="uint16", tiled=True, blockxsize=64,
                         blockysize=64, crs="EPSG:3857", nodata=7, transform=PLACE, **options) as target:  # fmt: skip
            target.write(pixels)
        data = bytes(memory.getbuffer())
    (found,) = parsed(data)
    assert (found.value(Code.IMAGE_LENGTH), found.value(Code.IMAGE_WIDTH)) == (300, 200)
    assert found.tags[Code.GDAL_NODATA].text == "7"
    assert len(found.tile_spans[0]) == 5 * 4
    assert not tiff.ends_early([found], len(data))
    assert tiff.ends_early([found], len(data) - 1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0"]))
def test_any_bytes_are_read_or_refused(data, start):
    try:
        assert parsed(start + data)
    except tiff.Malformed as error:
        assert str(error)  # noqa: PT017 - either outcome is right, silence is not


def test_a_circle_of_directories_is_refused():
    data = bytearray(tiff.header([[tiff.longs(256, [1])]], b"", is_big=False))
    data[-4:] = data[4:8]
    with pytest.raises(tiff.Malformed, match="circle"):
        parsed(bytes(data))


def test_layout_verdict_agrees_with_rio_cogeo_on_real_files(data_dir):
    paths = sorted(p for p in data_dir.glob("**/*") if p.suffix.lower() in {".tif", ".tiff"})
    kept = [path for number, path in enumerate(paths) if number % 6 == 0 or path.parent.name == "formats"]
    assert len(kept) > 50
    verdicts = set()
    for path in kept:
        with rasterio.open(path) as source:
            is_stripped = not source.profile.get("tiled", False)
        faults = sources.layout_faults(str(path))
        if path.name == "corrupt.tif":
            assert faults == ["it has 298232 bytes, its pixels reach to byte 307086"]
            continue
        expected = cog_validate(str(path), strict=True, quiet=True)[0]
        # Small strips count as cloud-optimised there; here a COG is tiled.
        assert (not faults) == (expected and not is_stripped), (path, faults)
        verdicts.add(bool(faults))
    assert verdicts == {True, False}
