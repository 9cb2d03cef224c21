"""Composites as pixels: one picture per period, of which rasters are made and zones are measured.

days of a period + window ──pixels──► bands of the composite (band, pixel)
"""

from collections.abc import Sequence

import numpy as np

from eorouter_compute import observations, series
from eorouter_compute.grid import Window
from eorouter_compute.observations import Day, Seen
from eorouter_compute.series import Composite

MEDIAN = Composite(statistics=("median",))
"""What a series has for a period, too."""


def pixels(
    analysis: Composite,
    days: Sequence[Day],
    members: Sequence[int],
    window: Window,
    seen: Seen,
    *,
    names: Sequence[str],
) -> np.ndarray:
    """Bands (band, pixel) of the composite of some of the days in a window of the grid; good until the next call.

    Args:
        analysis: which bands; `series.bands` has them in this order.
        days: all days.
        members: which of them belong to the period, one at least.
        window: of the grid.
        seen: what the shard reads with.
        names: of the value's bands.
    """
    best, rank = analysis.best, None
    if best is not None and best.by == "clearest":
        rank = seen.reader.room("away", (len(members), window.height, window.width), np.float32)
    stack = observations.stack(days, members, window, seen, rank)
    if best is not None and best.by == "least_cloud":
        rank = np.array([-observations.cloud_cover(days[member].scenes[0]) for member in members], np.float32)
    out = seen.reader.room("composite", (len(series.bands(analysis, names, ())), window.pixels), np.float32)
    if rank is not None:
        rank = rank.reshape(len(members), -1)
    series.composite(analysis, stack, [days[member].day for member in members], names, out, rank=rank)
    return out


def depth(analysis: Composite, names: Sequence[str]) -> int:
    """Values held per pixel and date."""
    return len(names) + (analysis.best is not None and analysis.best.by == "clearest")
