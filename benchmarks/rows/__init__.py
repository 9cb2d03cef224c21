"""The rows of the design's speed table, each piece of work against each of its peers."""

from benchmarks.harness import Row
from benchmarks.rows import arithmetic, change, cogs, series, warping, zones

ROWS: list[Row] = [
    *zones.ROWS,
    *warping.ROWS,
    *cogs.ROWS,
    *arithmetic.ROWS,
    *series.ROWS,
    *change.ROWS,
]
