"""Resampling pixel by pixel with NumPy."""

import numpy as np

from eorouter_kernels.lobes import AVERAGE, BILINEAR, CUBIC, SCALE_MIN, SLIVER, SUM
from eorouter_kernels.resample import SHARE_MIN


def nearest(where: np.ndarray, source: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and known (band, row, column) of the pixel under each place of `where`, as `positions` gives it."""
    out = np.zeros((len(source), *where.shape[:2]), source.dtype)
    known = np.zeros(out.shape, np.bool_)
    for row, col in np.ndindex(*where.shape[:2]):
        x, y = np.floor(where[row, col, :2] + 1e-10)
        if 0 <= x < source.shape[2] and 0 <= y < source.shape[1]:
            known[:, row, col] = valid[:, int(y), int(x)]
            out[:, row, col] = np.where(known[:, row, col], source[:, int(y), int(x)], 0)
    return out, known


def kernel_at(kind: int, d: np.ndarray) -> np.ndarray:
    """A kernel at distances `d` from its centre."""
    d = np.abs(d)
    if kind == BILINEAR:
        return np.maximum(1 - d, 0)
    if kind == CUBIC:
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        return np.where(d < 1, near, np.where(d < 2, far, 0))
    return np.where(d < 3, np.sinc(d) * np.sinc(d / 3), 0)


def overlaps(centre: float, size: float, count: int) -> np.ndarray:
    """How much of each of `count` pixels lies within `size` around `centre`."""
    low, high = centre - size / 2, centre + size / 2
    cut = np.minimum(np.arange(count) + 1, high) - np.maximum(np.arange(count), low)
    return np.where(cut > SLIVER, cut, 0)


def weighted(kind: int, where: np.ndarray, source: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real values, not rounded, and known (band, row, column)."""
    bands, height, width = source.shape
    out = np.zeros((bands, *where.shape[:2]))
    known = np.zeros(out.shape, np.bool_)
    for row, col in np.ndindex(*where.shape[:2]):
        x, y, sx, sy, area = where[row, col]
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        weights = full = triangle = np.zeros((1, 1))
        if kind >= AVERAGE:
            wide = np.outer(overlaps(y, sy, height), overlaps(x, sx, width))
            weights = wide * area / (sx * sy) if kind == SUM else wide
            reach = 0.0
        else:
            sx, sy = (s if s > SCALE_MIN else 1.0 for s in (sx, sy))
            # A frame of pixels that are never there, so that a kernel over the edge is seen to miss some.
            reach = int(np.ceil(3 * max(sx, sy))) + 1
            ys, xs = np.arange(-reach, height + reach) + 0.5, np.arange(-reach, width + reach) + 0.5
            full = np.outer(kernel_at(kind, (ys - y) / sy), kernel_at(kind, (xs - x) / sx))
            weights = full / full.sum() if full.any() else full
            triangle = np.outer(kernel_at(BILINEAR, (ys - y) / sy), kernel_at(BILINEAR, (xs - x) / sx))
        for b in range(bands):
            values, there = source[b].astype(np.float64), valid[b]
            if kind >= AVERAGE:
                used = np.where(there, weights, 0)
                got = used.sum()
                known[b, row, col] = got > 0
                total = (used * np.where(there, values, 0)).sum()
                out[b, row, col] = total if kind == SUM else total / got if got > 0 else 0
                continue
            there = np.pad(there, int(reach))
            values = np.where(there, np.pad(values, int(reach)), 0)
            if there[np.abs(weights) > 1e-6 / (sx * sy)].all() and full.any():
                out[b, row, col], known[b, row, col] = (weights * values).sum(), True
                continue
            share = triangle[there].sum()
            c, r = int(np.floor(x + 1e-10)), int(np.floor(y + 1e-10))
            centre = 0 <= c < width and 0 <= r < height and valid[b, r, c]
            is_known = share >= SHARE_MIN * triangle.sum() if max(sx, sy) > 1 else centre
            known[b, row, col] = is_known and share > 0
            out[b, row, col] = (triangle * values).sum() / share if known[b, row, col] else 0
    return out, known
