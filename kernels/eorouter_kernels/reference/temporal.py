"""Plain-NumPy twins of `eorouter_kernels.temporal`."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def _known(stack: Array) -> NDArray[np.float64]:
    return np.where(np.isfinite(stack), stack, np.nan).astype(np.float64)


def ranks(stack: Array, levels: Array) -> Array:
    """Twin of `ranks`: (level, pixel)."""
    out = np.full((len(levels), stack.shape[1]), np.nan)
    values = _known(stack)
    for p in range(stack.shape[1]):
        kept = values[~np.isnan(values[:, p]), p]
        if len(kept):
            out[:, p] = np.quantile(kept, levels)
    return out.astype(np.float32)


def moments(stack: Array) -> Array:
    """Twin of `moments`: (5, pixel)."""
    values = _known(stack)
    out = np.full((5, stack.shape[1]), np.nan)
    out[0] = np.count_nonzero(~np.isnan(values), axis=0)
    some = out[0] > 0
    for row, of in ((1, np.nanmean), (2, np.nanstd), (3, np.nanmin), (4, np.nanmax)):
        out[row, some] = of(values[:, some], axis=0)
    return out.astype(np.float32)


def _dates(stack: Array, pixel: int) -> NDArray[np.float64]:
    values = _known(stack)[:, :, pixel]
    return values[~np.isnan(values).any(axis=1)]


def medoid(stack: Array) -> Array:
    """Twin of `medoid`: (band, pixel)."""
    out = np.full(stack.shape[1:], np.nan)
    for p in range(stack.shape[2]):
        values = _dates(stack, p)
        if len(values):
            away = np.sqrt(((values[:, None] - values[None]) ** 2).sum(axis=2)).sum(axis=1)
            out[:, p] = values[np.argmin(away)]
    return out.astype(np.float32)


def geometric_median(stack: Array, *, rounds: int = 5000) -> Array:
    """Twin of `geometric_median`, iterated to the end in float64: (band, pixel)."""
    out = np.full(stack.shape[1:], np.nan)
    for p in range(stack.shape[2]):
        values = _dates(stack, p)
        if not len(values):
            continue
        y = values.mean(axis=0)
        for _ in range(rounds):
            away = np.linalg.norm(values - y, axis=1)
            apart = away > 1e-15
            if not apart.any():
                break
            weight = 1 / away[apart]
            goal = (weight[:, None] * values[apart]).sum(axis=0) / weight.sum()
            pull = weight.sum() * np.linalg.norm(goal - y)
            held = np.count_nonzero(~apart)
            share = 1.0 if not held else max(0.0, 1.0 - held / pull) if pull else 0.0
            if share * np.linalg.norm(goal - y) < 1e-14:
                break
            y = y + share * (goal - y)
        out[:, p] = y
    return out.astype(np.float32)


def pick(stack: Array, score: Array) -> tuple[Array, Array]:
    """Twin of `pick`: (band, pixel) and (pixel)."""
    times, bands, pixels = stack.shape
    whole = np.isfinite(stack).all(axis=1) & np.isfinite(np.broadcast_to(score, (times, pixels)))
    ranked = np.where(whole, np.broadcast_to(score, (times, pixels)), -np.inf)
    best = np.argmax(ranked, axis=0)
    # A score of −∞ cannot win over one that counts, and where none counts the answer is NaN.
    some = whole.any(axis=0)
    out = np.where(some, np.take_along_axis(stack, best[None, None, :].repeat(bands, 1), axis=0)[0], np.nan)
    return out.astype(np.float32), np.where(some, best, np.nan).astype(np.float32)


def normalized_difference(a: Array, b: Array, missing: Array, shift: float, clear: NDArray[np.bool_]) -> Array:
    """Twin of `normalized_difference`: (pixel)."""
    p, q = a.astype(np.float64), b.astype(np.float64)
    below = p + q + shift
    is_data = clear & (below != 0) & ~np.isnan(below) & (p != missing[0]) & (q != missing[1])
    return np.where(is_data, (p - q) / np.where(is_data, below, 1.0), np.nan).astype(np.float32)


def to_values(stored: Array, missing: float, scale: float, offset: float, clear: NDArray[np.bool_]) -> Array:
    """Twin of `to_values`: (pixel)."""
    with np.errstate(over="ignore"):
        physical = (stored.astype(np.float64) * scale + offset).astype(np.float32)
    return np.where(clear & (stored != missing) & np.isfinite(physical), physical, np.float32(np.nan))


def look_up(stored: Array, table: NDArray[np.bool_], clear: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Twin of `look_up`: (pixel)."""
    return clear & table[stored.astype(np.int64)]


def count_whole(values: Array) -> int:
    """Twin of `count_whole`."""
    return int(np.count_nonzero(np.isfinite(values).all(axis=0)))
