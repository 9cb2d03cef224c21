# ruff: noqa: PLR0917  arguments as the kernels take them
"""Plain-NumPy twins of `eorouter_kernels.smoothing`; each gives a new series."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def fill_linear(series: Array, times: Array, widest: float) -> Array:
    """Twin of `fill_linear`."""
    out = np.where(np.isfinite(series), series, np.nan).astype(np.float64)
    for p in range(series.shape[1]):
        known = np.flatnonzero(~np.isnan(out[:, p]))
        for a, b in pairwise(known):
            if times[b] - times[a] <= widest:
                out[a : b + 1, p] = np.interp(times[a : b + 1], times[[a, b]], out[[a, b], p])
    return out


def whittaker(series: Array, times: Array, roughness: float) -> Array:
    """Twin of `whittaker`, with dense matrices."""
    out = series.astype(np.float64)
    steps = np.diff(times) / np.diff(times).mean()
    first = np.diff(np.eye(len(times)), axis=0) / steps[:, None]
    second = np.diff(first, axis=0) / ((steps[:-1] + steps[1:]) / 2)[:, None]
    for p in range(series.shape[1]):
        known = np.isfinite(out[:, p])
        if known.sum() < 3:
            continue
        z = np.linalg.solve(
            np.diag(known.astype(float)) + roughness * second.T @ second, np.where(known, out[:, p], 0.0)
        )
        inside = np.flatnonzero(known)
        z[: inside[0]], z[inside[-1] + 1 :] = np.nan, np.nan
        out[:, p] = z
    return out


def savitzky_golay(series: Array, times: Array, window: int, order: int) -> Array:
    """Twin of `savitzky_golay`, with a polynomial fit per sample."""
    out = series.astype(np.float64)
    width = min(window, len(times))
    for p in range(series.shape[1]):
        known = np.flatnonzero(np.isfinite(series[:, p]))
        for t in range(known[0], known[-1] + 1) if len(known) else ():
            begin = min(max(t - window // 2, 0), len(times) - width)
            near = known[(known >= begin) & (known < begin + width)]
            if len(near) > order:
                x = times[near] - times[t]
                scale = np.abs(x).max() or 1.0
                out[t, p] = np.polynomial.polynomial.polyfit(x / scale, series[near, p].astype(np.float64), order)[0]
    return out


def phenology(series: Array, times: Array, start: float, end: float, fraction: float, least: float) -> Array:
    """Twin of `phenology`, by a fine search instead of crossings: start, peak, end and the rest to 1e-3 of time."""
    out = np.full((8, series.shape[1]), np.nan)
    for p in range(series.shape[1]):
        inside = (times >= start) & (times < end) & np.isfinite(series[:, p])
        x, y = times[inside], series[inside, p].astype(np.float64)
        if len(x) < 3:
            continue
        peak = int(np.argmax(y))
        left, right = y[: peak + 1].min(), y[peak:].min()
        at, top = x[peak], y[peak]
        if top - (left + right) / 2 < max(least, 1e-12):
            continue
        if 0 < peak < len(x) - 1:
            c, b, a = np.polynomial.polynomial.polyfit(x[peak - 1 : peak + 2] - at, y[peak - 1 : peak + 2], 2)
            if a < 0:
                shift = np.clip(-b / (2 * a), x[peak - 1] - at, x[peak + 1] - at)
                at, top = at + shift, c + b * shift + a * shift**2
        fine = np.linspace(x[0], x[-1], 400_001)
        curve = np.interp(fine, x, y)
        low = fine[(fine < x[peak]) & (curve <= left + fraction * (top - left))]
        high = fine[(fine > x[peak]) & (curve <= right + fraction * (top - right))]
        begin = low[-1] if left < top and len(low) else np.nan
        stop = high[0] if right < top and len(high) else np.nan
        base = (left + right) / 2
        season = (fine >= begin) & (fine <= stop)
        area = np.trapezoid(curve[season], fine[season]) if season.any() else np.nan
        out[:, p] = begin - start, at - start, stop - start, stop - begin, base, top, top - base, area
    return out
