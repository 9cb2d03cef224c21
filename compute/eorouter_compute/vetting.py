"""What is asked of a stranger's vector file before a library opens it that would trust it.

SQLite is a language as much as a format: a view or a generated column computes, for ever if its author likes, and pages
that refer to each other in circles hold more rows than could be counted. A geometry may be nested deeper than the
stack of its reader, and areas can cross each other more often than there is memory for.
"""

import sqlite3
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from eorouter_compute.errors import NotAVector, SourceUnreadable, UnsupportedFormat

NESTING_MAX = 32
"""Deepest geometry in geometry that is read; OGR's own limit."""

CHECK_SECONDS = 300.0
"""Longest that a look through a GeoPackage may take; its pages are read at the speed of the store in a fraction."""

_HARMLESS_BYTES = 9 * NESTING_MAX  # a level takes nine bytes, so that shorter ones cannot be nested too deep
_PAIRS_AT_ONCE = 1 << 22
_STEPS = 100_000  # of SQLite's machine, between two looks at the clock
_NAMED = "SELECT type, name FROM sqlite_master WHERE type = 'view' OR (type = 'table' AND rootpage = 0)"
_COMPUTED = (
    "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_xinfo(m.name) AS c"
    " WHERE m.type = 'table' AND m.rootpage > 0 AND c.hidden IN (2, 3)"
)
_VIRTUAL = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage = 0 AND sql NOT LIKE '%using rtree%(%'"


def check_geopackage(source: Path | bytes, name: str) -> None:
    """Refuse a GeoPackage that computes instead of storing, or whose pages are not a tree.

    Raises:
        UnsupportedFormat: it has views, generated columns, or virtual tables other than R-trees.
        NotAVector: it is damaged, or so made that it cannot be looked through.
    """
    connection = sqlite3.connect(
        ":memory:" if isinstance(source, bytes) else f"{source.absolute().as_uri()}?immutable=1", uri=True
    )
    deadline = time.monotonic() + CHECK_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        if isinstance(source, bytes):
            connection.deserialize(source)
        for pragma in ("trusted_schema=OFF", "query_only=ON", "cell_size_check=ON", "ignore_check_constraints=ON"):
            connection.execute(f"PRAGMA {pragma}")
        _refuse_programs(connection, name)
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise NotAVector(f"{name} is a broken GeoPackage: {error}.") from error
    finally:
        connection.close()
    if verdict != "ok":
        raise NotAVector(f"{name} is a damaged GeoPackage: {verdict.strip().splitlines()[-1]}.")


def _refuse_programs(connection: sqlite3.Connection, name: str) -> None:
    views = [view for kind, view in connection.execute(_NAMED) if kind == "view"]
    if views:
        shown = ", ".join(views[:5])
        raise UnsupportedFormat(f"{name} has views ({shown}), which are not read. Export the layer as a table.")
    virtual = [table for (table,) in connection.execute(_VIRTUAL)]
    if virtual:
        raise UnsupportedFormat(f"{name} has virtual tables ({', '.join(virtual[:5])}), which are not read.")
    computed = [f"{table}.{column}" for table, column in connection.execute(_COMPUTED)]
    if computed:
        raise UnsupportedFormat(
            f"{name} has generated columns ({', '.join(computed[:5])}), which are not read. Export it with values."
        )


def count_overlaps(boxes: NDArray[np.float64], *, at_most: int) -> int:
    """Pairs of boxes (n, 4) that meet, counted up to a little over `at_most`.

    Where areas or edges are overlaid, every such pair may be a crossing, and time and memory go with the crossings: a
    few thousand bars laid across each other take gigabytes.
    """
    tree = shapely.STRtree(shapely.box(*boxes.T))
    pairs, step = 0, max(1, _PAIRS_AT_ONCE // max(len(boxes), 1))
    for start in range(0, len(boxes), step):
        pairs += tree.query(tree.geometries[start : start + step]).shape[1]
        if (pairs - len(boxes)) // 2 > at_most:
            break
    return max(pairs - len(boxes), 0) // 2


def check_nesting(geometries: Iterable[bytes | None], name: str) -> None:
    """Refuse well-known binary that is nested deeper than `NESTING_MAX`: GEOS descends as deep as its stack, and dies.

    Raises:
        SourceUnreadable: says which feature.
    """
    for number, wkb in enumerate(geometries):
        if wkb is not None and len(wkb) > _HARMLESS_BYTES and _is_nested_too_deep(wkb):
            raise SourceUnreadable(f"{name}: the geometry of feature {number} is nested deeper than {NESTING_MAX}.")


def _is_nested_too_deep(wkb: bytes) -> bool:
    """Walk as GEOS does, without its recursion; what cannot be walked is left to GEOS to refuse."""
    at, pending = 0, [1]  # members still to come, by level
    try:
        while pending:
            if not pending[-1]:
                pending.pop()
                continue
            pending[-1] -= 1
            order = "<" if wkb[at] else ">"
            (code,) = struct.unpack_from(f"{order}I", wkb, at + 1)
            at += 5 + (4 if code & 0x20000000 else 0)
            kind, dimensions = (code & 0x1FFFFFFF) % 1000, (code & 0x1FFFFFFF) // 1000
            width = 8 * (2 + (dimensions in {1, 2}) + 2 * (dimensions == 3))
            width += 8 * bool(code & 0x80000000) + 8 * bool(code & 0x40000000)
            if kind == 1:
                at += width
                continue
            (count,) = struct.unpack_from(f"{order}I", wkb, at)
            at += 4
            if kind in {2, 8}:
                at += count * width
            elif kind in {3, 17}:
                for _ in range(count):
                    (points,) = struct.unpack_from(f"{order}I", wkb, at)
                    at += 4 + points * width
            else:
                pending.append(count)
                if len(pending) > NESTING_MAX + 1:
                    return True
    except (struct.error, IndexError):
        return False
    return False
