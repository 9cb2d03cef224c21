"""Time goes to the outermost stage, lines are bounded, and without a shard nothing is noted."""

import logging
import time

from eorouter_compute import witness
from eorouter_compute.witness import LINES_MAX, Overhearing, Witness


def test_time_belongs_to_the_outermost_stage():
    with Witness(keeps_spans=True) as notes, witness.reading():
        with witness.writing():
            time.sleep(0.02)
        witness.count_read(5)
    assert notes.read_s >= 0.02
    assert (notes.write_s, notes.read_bytes, len(notes.spans)) == (0.0, 5, 1)


def test_without_a_shard_nothing_is_noted():
    with witness.reading():
        witness.count_read(5)
        witness.count_written(5)
    assert witness.current() is None
    assert witness.overhear(None, "info", {"event": "x", "level": "info"}) == {"event": "x", "level": "info"}


def test_lines_are_bounded_in_number_and_length():
    with Witness() as notes:
        for _ in range(LINES_MAX + 3):
            witness.overhear(None, "info", {"event": "x" * 9999, "level": "info", "big": 1 << 80, "nan": float("nan")})
        witness.overhear(None, "debug", {"event": "quiet", "level": "debug"})
    assert (len(notes.lines), notes.lines_lost) == (LINES_MAX, 3)
    assert len(notes.lines[0].event) == 2000
    assert notes.lines[0].data["big"] == str(1 << 80)


def test_warnings_of_libraries_are_overheard():
    record = logging.LogRecord("rasterio", logging.WARNING, "", 1, "a %s", ("tile",), None)
    with Witness() as notes:
        Overhearing().emit(record)
    assert [(line.event, line.level, line.logger) for line in notes.lines] == [("a tile", "warning", "rasterio")]
