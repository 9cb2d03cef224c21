"""Bands by name on one grid: pixels as rasterio and GDAL give them, each asset read once, bounds above what is read."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.vrt import WarpedVRT
from rasterio.warp import Resampling

from eorouter_compute import operands, witness
from eorouter_compute.catalogue import Scaling
from eorouter_compute.errors import SourceTruncated
from eorouter_compute.grid import Grid, Window
from eorouter_compute.operands import Named
from eorouter_compute.testing import input_item, write_raster

GRID = Grid(crs="EPSG:32632", transform=(10.0, 0.0, 600_000.0, 0.0, -10.0, 5_200_000.0), shape=(200, 300))


@pytest.fixture
def item(tmp_path):
    rng = np.random.default_rng(3)
    fine = write_raster(tmp_path / "fine.tif", rng.integers(1, 9000, (2, 200, 300)).astype("uint16"),
                        crs=GRID.crs, transform=GRID.transform, nodata=0, names=["red", "nir"])  # fmt: skip
    halved = (20.0, 0.0, 600_000.0, 0.0, -20.0, 5_200_000.0)
    coarse = write_raster(tmp_path / "coarse.tif", rng.integers(1, 9000, (1, 100, 150)).astype("int16"),
                          crs=GRID.crs, transform=halved, names=["swir"])  # fmt: skip
    return input_item(fine, coarse)


def entries(item, *names):
    """The named bands of an item, scaled by their place so that they are told apart."""
    found = {band.name: (asset, band) for asset in item.rasters for band in asset.bands}
    return [Named(name, item, *found[name], Scaling(1.0 + n, float(n), "test")) for n, name in enumerate(names)]


def test_every_band_comes_by_its_name_and_scaling(item):
    sources = operands.placed(entries(item, "nir", "swir", "red"), GRID)
    window = Window(33, 41, 90, 80)
    found = operands.read(sources, window)
    assert list(found) == ["nir", "red", "swir"]
    assert [(each.scale, each.offset) for each in found.values()] == [(1.0, 0.0), (3.0, 2.0), (2.0, 1.0)]
    inside = rasterio.windows.Window(window.col, window.row, window.width, window.height)
    with rasterio.open(item.rasters[0].href.removeprefix("file://")) as source:
        np.testing.assert_array_equal(found["red"].pixels, source.read(1, window=inside))
        np.testing.assert_array_equal(found["nir"].pixels, source.read(2, window=inside))
    with (
        rasterio.open(item.rasters[1].href.removeprefix("file://")) as source,
        WarpedVRT(source, crs=GRID.crs, transform=rasterio.Affine(*GRID.transform), width=300, height=200,
                  resampling=Resampling.nearest) as warped,
    ):  # fmt: skip
        np.testing.assert_array_equal(found["swir"].pixels, warped.read(1, window=inside))


def test_an_asset_is_one_source_however_often_its_bands_are_named(item):
    sources = operands.placed([*entries(item, "red", "nir"), *entries(item, "red")], GRID)
    assert len(sources) == 1
    assert sources[0].is_direct
    assert [name for name, _, _ in sources[0].bands] == ["red", "nir", "red"]
    assert not operands.placed(entries(item, "swir"), GRID)[0].is_direct


def test_bounds_hold_what_is_read(item):
    sources = operands.placed(entries(item, "red", "nir", "swir"), GRID)
    with witness.Witness() as notes:
        operands.read(sources, GRID.window)
    assert notes.read_bytes <= sum(operands.bytes_read(source) for source in sources) * GRID.window.pixels
    assert operands.bytes_beside(sources) > 0
    assert operands.bytes_beside(operands.placed(entries(item, "red"), GRID)) == 0


def test_a_report_counts_pixels_that_every_band_shows(item):
    sources = operands.placed(entries(item, "red", "nir"), GRID)
    window = Window(0, 0, 4, 5)
    found = operands.read(sources, window)
    assert operands.report(sources, found, window).valid_pixels == 20
    mask = np.ones((4, 5), np.bool_)
    mask[0] = False
    other = mask.T.reshape(4, 5).copy()
    found = {"red": found["red"]._replace(valid=mask), "nir": found["nir"]._replace(valid=other)}
    report = operands.report(sources, found, window)
    assert (report.pixels, report.valid_pixels, report.reads) == (20, int((mask & other).sum()), 1)


def test_what_cannot_be_read_is_raised_or_named_and_missing(item):
    sources = operands.placed(entries(item, "red", "swir"), GRID)
    with Path(item.rasters[0].href.removeprefix("file://")).open("r+b") as file:
        file.truncate(400)
    with pytest.raises(SourceTruncated):
        operands.read(sources, GRID.window)
    failed = []
    found = operands.read(sources, GRID.window, failed=failed)
    assert {each.source for each in failed} == {item.rasters[0].href}
    assert not found["red"].valid.any()
    assert found["swir"].valid is None or found["swir"].valid.all()
