"""The harness on small scenes: rows run, answers are compared, what cannot be run is said. No times are asserted."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import rasterio
from benchmarks.rows import ROWS, cogs
from benchmarks.rows.looking import same_pixels

from benchmarks import bounds, harness, report
from eorouter_compute.testing import asymmetric, write_raster

ROOT = Path(__file__).resolve().parents[2]
CLIP = next(row for row in ROWS if row.id == "clip-cog")
SIDE = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, made once."""
    return tmp_path_factory.mktemp("bench")


def test_a_row_has_numbers_of_both_sides_and_a_bound(folder):
    measured = harness.measure(CLIP, folder, SIDE, 1)
    assert measured.agrees, measured.note
    assert len(measured.ours_s) == len(measured.peer_s) == 1
    assert measured.ratio_min == measured.ratio_median == measured.peer_s[0] / measured.ours_s[0]
    assert 0 < measured.bound_s < measured.ours_s[0]
    assert measured.peak_rss_mb > 50
    assert measured.peer_peak_rss_mb > 50
    assert not list(folder.glob("tmp*")), "outputs are left behind"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_answers_of_every_row_agree(row, folder):
    measured = harness.measure(row, folder, 1024, 1)
    if "not installed" in measured.note and row.needs == ("hdstats",):
        return  # the one peer that is not in the extra: it has to be compiled
    assert measured.agrees, measured.note


def test_a_method_or_a_peer_that_is_not_here_is_said(folder):
    absent = msgspec.structs.replace(CLIP, needs=("no_such_library",))
    assert harness.measure(absent, folder, SIDE, 1).note == "the peer is not installed: no_such_library"
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.side", "no-such-row|peer", "ours", str(folder), "512"],
        input="run\n", capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "error" in json.loads(told.stdout)


def test_answers_that_differ_are_told_apart(folder):
    write_raster(folder / "differs.tif", asymmetric((700, 600)), nodata=0)
    found = cogs.cuts(folder / "differs.tif")
    same_pixels(found, found)
    other = dict(found)
    other["pixels_c"] = found["pixels_c"].copy()
    other["pixels_c"][0, 3, 4] += 1
    with pytest.raises(AssertionError):
        same_pixels(found, other)
    with pytest.raises(AssertionError, match=r"1\.030 times"):
        cogs.not_larger({"bytes": np.array(103)}, {"bytes": np.array(100)})


def test_bound_decodes_the_tiles_of_the_window_only(folder):
    place = folder / "bound.tif"
    write_raster(place, asymmetric((1500, 2048)), blockxsize=512, blockysize=512, predictor=2, nodata=0)
    found = bounds.tiles(place, None, is_whole=True)
    assert len(found) == 12
    assert len(bounds.tiles(place, (500, 500, 100, 20), is_whole=False)) == 4
    pixels = bounds.unpacked(found[5], bounds.INFLATE[0])
    with rasterio.open(place) as source:
        with_gdal = source.read(1, window=((512, 1024), (512, 1024)))
    np.testing.assert_array_equal(pixels, with_gdal)
    assert bounds.unpacked((bounds.packed(pixels, 2), *found[5][1:]), bounds.INFLATE[1]).tobytes() == pixels.tobytes()
    assert bounds.seconds([bounds.Read(path=place)], [place], [], 2) > 0


def test_table_is_drawn_between_its_marks_and_says_what_is_missing():
    row = harness.Measured(
        id="cog", peer="peer", agrees=True, ours_s=[1.0, 2.0, 3.0], peer_s=[8.0, 8.0, 9.0], ratio_median=4.0,
        ratio_min=3.0, mpixel_per_s=60.0, peak_rss_mb=100.0, peer_peak_rss_mb=200.0, bound_s=0.5, floor=2.5,
    )  # fmt: skip
    recorded = report.Recorded(
        machine=harness.machine(), rows=[row, harness.not_run("irmad", "NumPy", 8.0, "there is no method")]
    )
    page = f"# Title\n\n{report.START}\nyesterday\n{report.END}\n\nEnd.\n"
    drawn = report.drawn(page, recorded, is_short=False)
    assert "| cog | peer | 2.00 | 8.00 | 4.0× | 3.0 … 8.0 | 2.5× | 60 | 100 / 200 | 4.0 |" in drawn
    assert "| irmad | NumPy | not run |  | **absent** |" in drawn
    assert "yesterday" not in drawn
    assert drawn.endswith("\n\nEnd.\n")
    assert report.drawn(drawn, recorded, is_short=False) == drawn
    with pytest.raises(ValueError, match="no place for the table"):
        report.drawn("# Title\n", recorded, is_short=True)
