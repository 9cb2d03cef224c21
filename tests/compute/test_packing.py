"""Results as stored numbers: integers by the kernel, floats here."""

import numpy as np
import pytest
from rasterio.io import MemoryFile

from eorouter_compute.packing import Packing, pack
from eorouter_kernels.nodata import around

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

VALUES = np.array([[0.0, 1.25, -1.25, np.nan], [1e39, -9999.0, 0.5, 2.5]])


def test_pack_integers_round_half_to_even_and_clamp():
    stored, valid = pack(VALUES, Packing(dtype="int8", nodata=-128))
    np.testing.assert_array_equal(stored, [[0, 1, -1, -128], [127, -127, 0, 2]])
    np.testing.assert_array_equal(valid, [[True, True, True, False], [True] * 4])


@pytest.mark.parametrize("nodata", [None, -9999.0])
def test_pack_floats_that_overflow_are_missing(nodata):
    stored, valid = pack(VALUES, Packing(dtype="float32", nodata=nodata))
    np.testing.assert_array_equal(valid, [[True, True, True, False], [False, True, True, True]])
    assert np.isnan(stored[0, 3]) if nodata is None else stored[0, 3] == nodata
    assert stored[1, 1] == np.float32(-9999.0 if nodata is None else around(-9999.0, "float32").aside)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [0.0, 2.5, -9999.0])
def test_pack_floats_that_meet_nodata_are_not_hidden_by_gdal(dtype, nodata):
    stored, valid = pack(
        np.append(VALUES, [[nodata, nodata * (1 + 2**-22), 7, 8]], axis=0), Packing(dtype=dtype, nodata=nodata)
    )
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=4, height=3, count=1, dtype=dtype, nodata=nodata) as target:
            target.write(stored, 1)
        with memory.open() as source:
            np.testing.assert_array_equal(source.read_masks(1) > 0, valid)


def test_pack_scale_and_offset_come_back():
    stored, _ = pack(VALUES[:1], Packing(dtype="int16", scale=0.25, offset=1.0))
    np.testing.assert_array_equal(stored[0, :3] * 0.25 + 1.0, [0.0, 1.25, -1.25])
