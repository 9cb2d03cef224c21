"""The harness has every row of the design's table, and the pages show the run that was recorded."""

import json
import re
from pathlib import Path

import pytest
from benchmarks.rows import ROWS

from benchmarks import load, report, service

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "benchmarks" / "recorded.json"
EVERY = (*ROWS, *service.ROWS, *load.ROWS)
PAGES = {"README.md": True, "docs/benchmarks.md": False}

# The design's table: least ratio to each peer, in its order; a row of the service has one floor and no peer.
FLOORS = {
    "zonal-20k": {5.0}, "zonal-2k": {3.0, 10.0}, "zonal-partition": {5.0},
    "reproject-bilinear": {5.0}, "reproject-cubic": {5.0}, "reproject-cog": {4.0},
    "cog": {4.5, 2.5}, "clip-cog": {4.0}, "ndvi-cog": {4.0, 3.0},
    "median-12": {8.0, 1.0},  # 1: against the peer with another library's median in place of its own
    "geomedian-12": {3.0}, "irmad": {8.0},
    "job-latency": {1.0}, "shards": {1.0}, "scale-2": {1.85}, "memory": {1.0},
    "backlog-100k": {1.0}, "api-reads": {0.0}, "restart": {0.0},  # the last two are shown, and have no floor
}  # fmt: skip

WIRE = {
    "id", "peer", "agrees", "ours_s", "peer_s", "ratio_median", "ratio_min", "mpixel_per_s", "peak_rss_mb",
    "peer_peak_rss_mb", "bound_s",
}  # fmt: skip


def test_rows_are_those_of_the_design():
    floors: dict[str, set[float]] = {}
    for row in EVERY:
        floors.setdefault(row.id, set()).add(row.floor)
    assert floors == FLOORS
    assert list(floors) == list(FLOORS)


def test_rows_are_told_apart():
    assert len({row.key for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("page", PAGES)
def test_table_of_the_page_is_the_recorded_run(page):
    text = (ROOT / page).read_text()
    assert report.drawn(text, report.load(RECORDED), is_short=PAGES[page]) == text, (
        f"python -m benchmarks --readme {page} draws it anew"
    )


def test_recorded_rows_are_all_rows_of_the_harness_each_once():
    document = json.loads(RECORDED.read_text())
    assert [(row["id"], row["peer"]) for row in document["rows"]] == [(row.id, row.peer) for row in EVERY]
    assert all(set(row) >= WIRE for row in document["rows"])
    assert all(row["agrees"] and row["ours_s"] for row in document["rows"])


def test_page_names_every_row():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [row for row in FLOORS if not re.search(rf"`{row}`", page)] == []
