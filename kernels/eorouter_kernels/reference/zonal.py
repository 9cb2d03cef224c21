"""Twins of the coverage and zonal kernels.

Polygons are lists of rings, a ring is an array (vertex, 2) of x, y; shells and holes wind against each other. The twin
clips every ring to every cell, where the kernel accumulates heights of edges.
"""

from fractions import Fraction

import numpy as np


def coverage(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Covered fraction of each cell of a window that begins at (0, 0): area of the rings clipped to the cell."""
    out = np.zeros(shape)
    for row in range(shape[0]):
        for col in range(shape[1]):
            out[row, col] = abs(sum(_signed_area(_clip(ring, row, col)) for ring in rings))
    return out


def _clip(ring: np.ndarray, row: int, col: int) -> np.ndarray:
    """Sutherland and Hodgman 1974, "Reentrant Polygon Clipping", CACM 17(1): one half-plane after the other."""
    for axis, limit, sign in ((0, col, 1.0), (0, col + 1, -1.0), (1, row, 1.0), (1, row + 1, -1.0)):
        kept: list[np.ndarray] = []
        for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            inside_a, inside_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                kept.append(a + (b - a) * ((limit - a[axis]) / (b[axis] - a[axis])))
        ring = np.array(kept).reshape(-1, 2)
        if not len(ring):
            break
    return ring


def _signed_area(ring: np.ndarray) -> float:
    if len(ring) < 3:
        return 0.0
    x, y = (ring - ring[0]).T
    return float(0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def zonal_moments(weight: np.ndarray, values: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Statistics of one zone and band by the textbook; NaN where nothing is valid."""
    chosen = valid & (weight > 0)
    w, x = weight[chosen], values[chosen].astype(np.float64)
    total = w.sum()
    if total == 0:
        return {"count": 0.0, **dict.fromkeys(("sum", "mean", "min", "max", "variance", "stdev"), np.nan)}
    mean = (w * x).sum() / total
    variance = (w * (x - mean) ** 2).sum() / total
    return {
        "count": total,
        "sum": (w * x).sum(),
        "mean": mean,
        "min": x.min(),
        "max": x.max(),
        "variance": variance,
        "stdev": np.sqrt(variance),
    }


def zonal_quantile(weight: np.ndarray, values: np.ndarray, valid: np.ndarray, level: float) -> float:
    """Quantile of one zone and band: linear between distinct values that stand at k·w_k + (n − 1)·Σ_{i<k} w_i."""
    chosen = valid & (weight > 0)
    x, cell = np.unique(values[chosen].astype(np.float64), return_inverse=True)
    if not len(x):
        return np.nan
    # Exact sums: between neighbours of hardly any weight, the rounding of doubles is as large as the weight.
    w = [Fraction(0)] * len(x)
    for at, part in zip(cell.tolist(), weight[chosen].tolist(), strict=True):
        w[at] += Fraction(part)
    n, total = len(x), sum(w)
    goal = Fraction(level) * (n - 1) * total
    before, left, passed = None, Fraction(0), Fraction(0)
    for k in range(n):
        stands = k * w[k] + (n - 1) * passed
        if stands >= goal:
            if before is None or stands == left:
                return float(x[k])
            return float(x[k - 1] + float((goal - left) / (stands - left)) * (x[k] - x[k - 1]))
        before, left, passed = k, stands, passed + w[k]
    return float(x[-1])


def zonal_frequent(weight: np.ndarray, values: np.ndarray, valid: np.ndarray) -> tuple[float, float, float]:
    """Mode, minority and variety of one zone and band; of values held alike the greatest and the least."""
    chosen = valid & (weight > 0)
    x, cell = np.unique(values[chosen].astype(np.float64), return_inverse=True)
    if not len(x):
        return np.nan, np.nan, np.nan
    w = np.bincount(cell, weight[chosen])
    return float(x[np.flatnonzero(w == w.max())[-1]]), float(x[np.argmin(w)]), float(len(x))
