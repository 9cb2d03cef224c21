"""Warp: GDAL's pixels on real scenes, PROJ's positions pixel by pixel, and the same bits however the target is cut."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform_bounds

from eorouter_compute import raster, warp
from eorouter_compute.errors import GridMismatch, SourceFault
from eorouter_compute.grid import Grid, Window
from eorouter_compute.testing import UTM_TRANSFORM, asymmetric, write_raster

# GDAL's warped virtual rasters need its VRT driver, which our process never registers; and only they take a tolerance.
GDAL = """
import pickle, sys, rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
found = []
for job in pickle.load(sys.stdin.buffer):
    with rasterio.open(job.pop("path")) as source, WarpedVRT(
        source, transform=Affine(*job.pop("transform")), resampling=Resampling[job.pop("resampling")], **job
    ) as target:
        found.append((target.read(), target.read_masks() > 0))
pickle.dump(found, sys.stdout.buffer)
"""


def by_gdal(path, grid, kinds, nodata, scale=1.0):
    jobs = [
        {"path": str(path), "transform": grid.transform, "resampling": "med" if kind == "median" else kind,
         "crs": grid.crs, "width": grid.shape[1], "height": grid.shape[0], "tolerance": 1e-6, "nodata": nodata,
         "add_alpha": nodata is None, "XSCALE": scale, "YSCALE": scale}
        for kind in kinds
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GDAL], input=pickle.dumps(jobs), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def facing(asset, crs, *, factor=1.0):
    """A grid of `crs` over the asset, of nearly its number of pixels along each side."""
    west, south, east, north = transform_bounds(asset.crs, crs, *asset.grid.geobox.boundingbox)
    x, y = (east - west) / asset.shape[1] * factor, (north - south) / asset.shape[0] * factor
    shape = (min(math.ceil((north - south) / y), 500), min(math.ceil((east - west) / x), 500))
    return Grid(crs=crs, transform=(x, 0.0, west, 0.0, -y, north), shape=shape)


@pytest.mark.parametrize(
    ("path", "crs", "factor"),
    [
        ("dem/elev_vinschgau.tif", "EPSG:4326", 1.0),
        ("landcover/prodes_amazonia.tif", "EPSG:3857", 1.0),
        ("sar/umbra_mount_yasur.tiff", "EPSG:4326", 0.7),
        ("optical/landsat8_zion/landsat_b4.tif", "EPSG:3857", 0.9),
    ],
)
def test_interpolation_is_gdals(data_dir, path, crs, factor):
    asset = raster.describe((data_dir / path).as_uri())
    grid = facing(asset, crs, factor=factor)
    kinds = ("nearest", "bilinear", "cubic")
    theirs = by_gdal(data_dir / path, grid, kinds, asset.bands[0].nodata)
    for kind, (pixels, known) in zip(kinds, theirs, strict=True):
        block = warp.read(warp.placed(asset, grid, resampling=kind, tolerance_px=0), [1], grid.window)
        ours = np.ones(grid.shape, bool) if block.valid is None else block.valid[0]
        there = known[0] & (pixels[0] == pixels[0])
        assert (ours != there).mean() <= 1e-3
        both = ours & there
        assert both.sum() > 1000
        away = np.abs(block.pixels[0].astype(float) - pixels[0].astype(float))[both]
        assert (away > (0 if kind == "nearest" else 1)).mean() <= 1e-3


@pytest.mark.parametrize("kind", ["bilinear", "cubic", "lanczos", "average", "sum", "min", "max", "mode"])
def test_coarser_pixels_of_the_same_crs_are_gdals(tmp_path, kind):
    """Where grids run alike there is nothing to interpret about footprints."""
    smooth = asymmetric((96, 120), dtype="uint8", noise=0.0) // 40
    asset = write_raster(tmp_path / "a.tif", smooth if kind == "mode" else asymmetric((96, 120), dtype="float32"))
    grid = Grid(crs=asset.crs, transform=(40.0, 0.0, 399960.0, 0.0, -40.0, 4500000.0), shape=(24, 30))
    [(pixels, _)] = by_gdal(tmp_path / "a.tif", grid, [kind], None, 0.25)
    block = warp.read(warp.placed(asset, grid, resampling=kind), [1], grid.window)
    inner = (slice(3, -3), slice(3, -3))
    if kind == "mode":
        assert (block.pixels[0] == pixels[0]).mean() > 0.8  # GDAL takes the first of equally frequent values
        return
    np.testing.assert_allclose(block.pixels[0][inner], pixels[0][inner], rtol=1e-4, atol=1e-4)


def test_positions_are_projs_to_the_tolerance():
    source = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(300, 300))
    ramp = np.stack(np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5)).astype(np.float64)
    target = Grid(crs="EPSG:4326", transform=(9e-5, 0.0, 7.83, 0.0, -9e-5, 40.64), shape=(250, 270))
    cols, rows = np.meshgrid(np.arange(270) + 0.5, np.arange(250) + 0.5)
    x, y = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform(7.83 + 9e-5 * cols, 40.64 - 9e-5 * rows)
    expected = np.stack([(x - 399960.0) / 10, (4500000.0 - y) / 10])
    inside = ((expected > 1) & (expected < 299)).all(axis=0)
    for tolerance, most in ((0.0, 1e-9), (0.125, 0.125), (1.0, 1.0)):
        block = warp.in_memory(ramp, None, source, target, resampling="bilinear", tolerance_px=tolerance)
        assert np.abs(block.pixels - expected)[:, inside].max() <= most


PAIRS = [
    ("EPSG:32632", UTM_TRANSFORM, "EPSG:3857", (30.0, 0.0, 872_000.0, 0.0, -30.0, 4_960_000.0)),
    ("EPSG:32632", UTM_TRANSFORM, "EPSG:4326", (0.0004, 0.0, 7.81, 0.0, -0.0003, 40.645)),
    ("EPSG:4326", (0.7, 0.0, -180.0, 0.0, -0.7, 90.0), "EPSG:3413", (3e4, 0.0, -3e6, 0.0, -3e4, 3e6)),
    ("EPSG:3413", (2e4, 0.0, -3e6, 0.0, -2e4, 3e6), "EPSG:4326", (1.5, 0.0, -180.0, 0.0, -0.2, 90.0)),
]


@settings(max_examples=25)
@given(
    pair=st.sampled_from(PAIRS),
    kind=st.sampled_from(["nearest", "bilinear", "cubic", "average"]),
    cut=st.tuples(st.integers(0, 290), st.integers(0, 290), st.integers(1, 300), st.integers(1, 300)),
    tolerance=st.sampled_from([0.125, 0.0]),
)
def test_a_window_is_cut_from_the_whole(pair, kind, cut, tolerance):
    source = Grid(crs=pair[0], transform=pair[1], shape=(256, 515 if pair[0] == "EPSG:4326" else 300))
    target = Grid(crs=pair[2], transform=pair[3], shape=(300, 300))
    pixels = asymmetric(source.shape, bands=2)
    valid = np.random.default_rng(2).random(pixels.shape) > 0.01
    how = {"resampling": kind, "tolerance_px": tolerance}
    whole = warp.in_memory(pixels, valid, source, target, **how)
    window = Window(*cut).intersect(target.window)
    part = warp.in_memory(pixels, valid, source, target, window=window, **how)
    rows, cols = window.relative_to(target.window)
    assert part.pixels.tobytes() == whole.pixels[:, rows, cols].tobytes()
    known = np.ones(whole.pixels.shape, bool) if whole.valid is None else whole.valid
    np.testing.assert_array_equal(np.ones(part.pixels.shape, bool) if part.valid is None else part.valid,
                                  known[:, rows, cols])  # fmt: skip


def test_files_and_arrays_threads_and_small_reads_agree(tmp_path, monkeypatch):
    pixels = asymmetric((400, 500), bands=2)
    pixels[:, 100:150, 200:300] = 0
    asset = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    grid = Grid(crs="EPSG:4326", transform=(3e-4, 0.0, 7.81, 0.0, -3e-4, 40.65), shape=(190, 220))
    for kind in ("nearest", "cubic", "average"):
        whole = warp.in_memory(pixels, pixels != 0, asset.grid, grid, resampling=kind, threads=2)
        for most in (1 << 26, 1 << 15):
            monkeypatch.setattr(warp, "READ_BYTES", most)
            block = warp.read(warp.placed(asset, grid, resampling=kind), [1, 2], grid.window)
            assert block.pixels.tobytes() == whole.pixels.tobytes()
            np.testing.assert_array_equal(block.valid, whole.valid)


def test_whole_shifts_are_copies_and_whole_parts_replicate(tmp_path):
    pixels = asymmetric((60, 70), dtype="int16")
    asset = write_raster(tmp_path / "a.tif", pixels)
    shifted = Grid(crs=asset.crs, transform=(10.0, 0.0, 399960.0 - 50.0, 0.0, -10.0, 4500000.0 - 200.0), shape=(50, 60))
    for kind in ("cubic", "sum"):
        block = warp.read(warp.placed(asset, shifted, resampling=kind), [1], shifted.window)
        np.testing.assert_array_equal(block.pixels[0, :40, 5:], pixels[0, 20:60, :55])
        assert block.valid[0].sum() == 40 * 55
    for factor in (2, 3, 6):
        step = 10.0 / factor
        fine = Grid(
            crs=asset.crs, transform=(step, 0.0, 399960.0, 0.0, -step, 4500000.0), shape=(60 * factor, 70 * factor)
        )
        block = warp.read(warp.placed(asset, fine), [1], fine.window)
        np.testing.assert_array_equal(block.pixels[0], pixels[0].repeat(factor, 0).repeat(factor, 1))
        assert block.valid is None


@pytest.mark.parametrize("start", [-180.0, 0.0])
def test_the_globe_has_no_seam(start):
    lon = start + (np.arange(720) + 0.5) / 2
    world = np.broadcast_to(1000 + 500 * np.cos(np.deg2rad(lon)), (1, 360, 720)).astype(np.float32).copy()
    source = Grid(crs="EPSG:4326", transform=(0.5, 0.0, start, 0.0, -0.5, 90.0), shape=(360, 720))
    for first in (-10.0, 170.0, 350.0):
        target = Grid(crs="EPSG:4326", transform=(0.3, 0.0, first, 0.0, -0.3, 10.0), shape=(60, 66))
        block = warp.in_memory(world, None, source, target, resampling="bilinear")
        assert block.valid is None
        expected = 1000 + 500 * np.cos(np.deg2rad(first + 0.3 * (np.arange(66) + 0.5)))
        assert np.abs(block.pixels[0] - expected).max() < 0.05
    across = Grid(crs="EPSG:32601", transform=(5e3, 0.0, 1e5, 0.0, -5e3, 1e6), shape=(100, 120))
    assert warp.in_memory(world, None, source, across, resampling="cubic").valid is None


def test_a_pole_is_whole_and_places_off_the_map_are_missing():
    world = np.broadcast_to(np.arange(180, dtype=np.float32)[:, None], (1, 180, 360)).copy()
    source = Grid(crs="EPSG:4326", transform=(1.0, 0.0, -180.0, 0.0, -1.0, 90.0), shape=(180, 360))
    arctic = Grid(crs="EPSG:3413", transform=(2e4, 0.0, -1e6, 0.0, -2e4, 1e6), shape=(100, 100))
    block = warp.in_memory(world, None, source, arctic, resampling="nearest")
    assert block.valid is None
    assert block.pixels[0, 48:52, 48:52].max() == 0
    disc = Grid(crs="+proj=sinu +lon_0=0 +R=6371007.181 +units=m +type=crs",
                transform=(1e5, 0.0, -2.1e7, 0.0, -1e5, 1.05e7), shape=(210, 420))  # fmt: skip
    block = warp.in_memory(world, None, source, disc, resampling="nearest")
    assert not block.valid[0, :20, :100].any()
    assert block.valid[0, 100:110, 15:405].all()


@given(shift=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), factor=st.floats(1.5, 6.0))
@settings(max_examples=20)
def test_sums_are_conserved(shift, factor):
    pixels = asymmetric((40, 50), dtype="float64") + 2
    source = Grid(crs="EPSG:32632", transform=(10.0, 0.0, 5e5, 0.0, -10.0, 5e6), shape=(40, 50))
    step = 10.0 * factor
    target = Grid(crs=source.crs, transform=(step, 0.0, 5e5 - shift[0] * step, 0.0, -step, 5e6 + shift[1] * step),
                  shape=(math.ceil(40 / factor) + 2, math.ceil(50 / factor) + 2))  # fmt: skip
    block = warp.in_memory(pixels, None, source, target, resampling="sum")
    assert block.pixels.sum() == pytest.approx(pixels.sum(), rel=1e-5)


def test_unreadable_windows_raise_or_are_named(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((300, 300)))
    (tmp_path / "a.tif").unlink()
    grid = Grid(crs="EPSG:4326", transform=(3e-4, 0.0, 7.82, 0.0, -3e-4, 40.64), shape=(20, 20))
    placement = warp.placed(asset, grid, resampling="bilinear")
    with pytest.raises(SourceFault, match=r"a\.tif"):
        warp.read(placement, [1], grid.window)
    failed = []
    block = warp.read(placement, [1], grid.window, failed=failed)
    assert not block.valid.any()
    assert failed
    assert "a.tif" in failed[0].source


def test_a_grid_with_no_place_in_the_source_is_refused(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((30, 30)))
    nowhere = Grid(crs="EPSG:4326", transform=(1.0, 0.0, 0.0, 0.0, -1.0, 300.0), shape=(10, 10))
    with pytest.raises(GridMismatch, match="has a place in EPSG:32632"):
        warp.placed(asset, nowhere)


def test_source_windows_hold_what_is_read(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((600, 600)))
    grid = Grid(crs="EPSG:4326", transform=(1e-4, 0.0, 7.85, 0.0, -1e-4, 40.62), shape=(100, 100))
    window = warp.source_window(warp.placed(asset, grid, resampling="cubic"), Window(10, 20, 30, 40))
    assert 30 < window.height < 60
    assert 30 < window.width < 60
    assert warp.source_window(warp.placed(asset, Grid(crs="EPSG:4326", transform=(1e-4, 0.0, 9.0, 0.0, -1e-4, 40.6),
                                                      shape=(9, 9))), Window(0, 0, 9, 9)).pixels == 0  # fmt: skip


def test_blocks_are_read_once_only_where_squares_of_the_target_lie_on_them(tmp_path):
    asset = write_raster(tmp_path / "a.tif", asymmetric((600, 600)), blockxsize=128, blockysize=256)
    grid = asset.grid
    assert warp.overlap(warp.placed(asset, grid), 256) == 1.0
    assert warp.overlap(warp.placed(asset, grid), 128) == 3.0 * 2.0
    moved = grid.cropped(Window(256, 128, 300, 300))
    assert warp.overlap(warp.placed(asset, moved), 512) == 1.0
    askew = grid.cropped(Window(256, 130, 300, 300))
    assert warp.overlap(warp.placed(asset, askew), 512) == 1.5 * 1.25
    assert warp.overlap(warp.placed(asset, askew), 16) == 16.0
