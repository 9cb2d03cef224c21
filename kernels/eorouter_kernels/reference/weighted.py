"""Twin of the weighted zonal kernel: the textbook, over all cells at once."""

import numpy as np


def weighted_moments(
    fraction: np.ndarray, weights: np.ndarray, values: np.ndarray, valid: np.ndarray, *, skips_unknown: bool
) -> dict[str, float]:
    """Statistics of one zone and band (all y, x); NaN where nothing weighs anything, or a weight is not known."""
    chosen = valid & (fraction > 0)
    is_known = weights >= 0
    names = ("weighted_count", "weighted_sum", "weighted_mean", "weighted_variance", "weighted_stdev")
    if not skips_unknown and (chosen & ~is_known).any():
        return dict.fromkeys(names, np.nan)
    chosen &= is_known
    w, x = fraction[chosen] * weights[chosen], values[chosen].astype(np.float64)
    total = w.sum()
    if total == 0:
        return dict.fromkeys(names, np.nan) | {"weighted_count": 0.0}
    mean = (w * x).sum() / total
    variance = (w * (x - mean) ** 2).sum() / total
    return dict(zip(names, (total, (w * x).sum(), mean, variance, np.sqrt(variance)), strict=True))
