"""Plain-NumPy twins of `eorouter_kernels.distance`."""

from typing import Any

import numpy as np


def distance(flags: Any, reach: int, out: Any) -> None:
    """Twin: the flags moved by every step within reach."""
    height, width = flags.shape
    out[...] = reach
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            length = np.hypot(dy, dx)
            if length > reach or abs(dy) >= height or abs(dx) >= width:
                continue
            here = np.s_[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
            there = np.s_[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
            out[here] = np.where(flags[there], np.minimum(out[here], length), out[here])
