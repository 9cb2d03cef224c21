import numpy as np
import pytest

from eorouter_compute import sources
from eorouter_compute.errors import SourceUnreadable
from eorouter_compute.testing import asymmetric, write_raster


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff\xe0", "JPEG picture"), (b"GIF89a", "GIF"),
        (b"CDF\x01", "netCDF"), (b"\x89HDF\r\n", "HDF5"), (b"GRIB\0\0", "GRIB"), (b"%PDF-1.7", "PDF"),
        (b"\xef\xbb\xbf \n<VRTDataset rasterXSize='1'", "virtual raster"), (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b\x08", "gzip"), (b"NITF02.10", "NITF"), (b"EHFA_HEADER_TAG", "Erdas"),
    ],
)  # fmt: skip
def test_what_is_plainly_something_else_is_called_by_name(tmp_path, start, word):
    path = tmp_path / "a.tif"
    path.write_bytes(start + bytes(100))
    assert word in sources.kind(path.as_uri())
    assert not sources.is_raster(path.as_uri())


def test_tiff_of_either_byte_order_and_size_and_jpeg_2000_are_rasters(tmp_path):
    for number, start in enumerate((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  \r\n\x87\n")):
        path = tmp_path / f"{number}"
        path.write_bytes(start + bytes(60))
        assert sources.is_raster(str(path))
        assert sources.kind(str(path)) is None


def test_what_is_not_there_has_no_start_and_no_size(tmp_path):
    assert sources.start_of(str(tmp_path / "none")) == b""
    assert sources.truncated_at(str(tmp_path / "none")) == ""
    with pytest.raises(SourceUnreadable, match="does not exist"):
        sources.object_size(str(tmp_path / "none"))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_what_a_cut_file_lacks_is_said(tmp_path, keep):
    write_raster(tmp_path / "a.tif", asymmetric((300, 400), noise=0.3), compress="deflate")
    data = (tmp_path / "a.tif").read_bytes()
    assert sources.truncated_at(str(tmp_path / "a.tif")) == ""
    (tmp_path / "b.tif").write_bytes(data[: int(len(data) * keep)])
    assert sources.truncated_at(str(tmp_path / "b.tif"))


def test_a_plain_file_is_told_from_one_that_can_be_served(tmp_path):
    write_raster(tmp_path / "a.tif", np.zeros((1, 700, 800), np.uint8), tiled=False, blockxsize=800, blockysize=1)
    assert sources.layout_faults(str(tmp_path / "a.tif"))
    (tmp_path / "b.tif").write_bytes(b"II*\0\xff\xff\xff\x7f")
    assert sources.layout_faults(str(tmp_path / "b.tif"))
