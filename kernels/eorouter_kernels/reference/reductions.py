"""Mode, minimum, maximum and median of what lies under a pixel, with NumPy."""

import numpy as np

from eorouter_kernels.reductions import MEDIAN, MIN, MODE
from eorouter_kernels.reference.resample import overlaps


def ordered(kind: int, where: np.ndarray, source: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and known (band, row, column)."""
    bands, height, width = source.shape
    out = np.zeros((bands, *where.shape[:2]), source.dtype)
    known = np.zeros(out.shape, np.bool_)
    for row, col in np.ndindex(*where.shape[:2]):
        x, y, sx, sy, _ = where[row, col]
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        weights = np.outer(overlaps(y, sy, height), overlaps(x, sx, width))
        for b in range(bands):
            used = (weights > 0) & valid[b]
            if not used.any():
                continue
            known[b, row, col] = True
            values, each = np.unique(source[b][used], return_inverse=True)
            heavy = np.bincount(each, weights=weights[used])
            if kind == MODE:
                found = values[np.flatnonzero(heavy >= heavy.max() * (1 - 1e-9))[0]]
            elif kind == MEDIAN:
                found = values[np.searchsorted(np.cumsum(heavy), heavy.sum() / 2 * (1 - 1e-9))]
            else:
                found = values[0] if kind == MIN else values[-1]
            out[b, row, col] = found
    return out, known
