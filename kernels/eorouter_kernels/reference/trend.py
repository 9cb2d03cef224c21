"""Plain-NumPy twins of `eorouter_kernels.trend`; probabilities have scipy as their oracle in the tests."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def least_squares(series: Array, times: Array, least: int) -> Array:
    """Twin of `least_squares` without the probability: slope, intercept, r², NaN, standard error, count."""
    out = np.full((6, series.shape[1]), np.nan)
    for p in range(series.shape[1]):
        known = np.isfinite(series[:, p])
        x, y = times[known], series[known, p].astype(np.float64)
        out[5, p] = len(x)
        if len(x) >= max(least, 3):
            design = np.stack([x, np.ones_like(x)], axis=1)
            (slope, intercept), *_ = np.linalg.lstsq(design, y, rcond=None)
            rest = ((y - design @ [slope, intercept]) ** 2).sum()
            spread = ((y - y.mean()) ** 2).sum()
            out[:3, p] = slope, intercept, 1 - rest / spread if spread else np.nan
            out[4, p] = math.sqrt(rest / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return out


def theil_sen(series: Array, times: Array, least: int) -> Array:
    """Twin of `theil_sen`."""
    out = np.full((6, series.shape[1]), np.nan)
    for p in range(series.shape[1]):
        known = np.isfinite(series[:, p])
        x, y = times[known], series[known, p].astype(np.float64)
        n = out[5, p] = len(x)
        if n < max(least, 3):
            continue
        i, j = np.triu_indices(len(x), 1)
        slope, score = np.median((y[j] - y[i]) / (x[j] - x[i])), np.sign(y[j] - y[i]).sum()
        ties = np.unique(y, return_counts=True)[1]
        variance = (n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
        pairs = n * (n - 1) / 2
        free = pairs - (ties * (ties - 1) / 2).sum()
        z = (score - np.sign(score)) / math.sqrt(variance) if variance > 0 else 0.0
        tau = score / math.sqrt(pairs * free) if free else np.nan
        out[:5, p] = slope, np.median(y) - slope * np.median(x), tau, score, math.erfc(abs(z) / math.sqrt(2))
    return out


def harmonic(series: Array, basis: Array, harmonics: int, period: float) -> tuple[Array, Array]:
    """Twin of `harmonic`: the numbers, and the curve."""
    terms = basis.shape[1]
    lead = terms - 2 * harmonics
    out, fitted = np.full((terms + 3, series.shape[1]), np.nan), np.full(series.shape, np.nan)
    for p in range(series.shape[1]):
        known = np.isfinite(series[:, p])
        y = series[known, p].astype(np.float64)
        out[-1, p] = len(y)
        if len(y) < terms + 1 or np.linalg.matrix_rank(basis[known]) < terms:
            continue
        found, *_ = np.linalg.lstsq(basis[known], y, rcond=None)
        fitted[:, p] = basis @ found
        rest = ((y - fitted[known, p]) ** 2).sum()
        out[:lead, p] = found[:lead]
        carried = np.diag(np.linalg.inv(basis[known].T @ basis[known]))
        for h in range(harmonics):
            wave = complex(*found[lead + 2 * h : lead + 2 * h + 2])
            length = period / (h + 1)
            noise = 4 * 2.0**-24 * np.abs(y).max() * math.sqrt(carried[lead + 2 * h : lead + 2 * h + 2].sum())
            if abs(wave) <= noise:
                out[lead + 2 * h, p] = 0
                continue
            out[lead + 2 * h, p] = abs(wave)
            out[lead + 2 * h + 1, p] = np.angle(wave) / (2 * np.pi) * length % length
        spread = ((y - y.mean()) ** 2).sum()
        out[-3, p], out[-2, p] = 1 - rest / spread if spread else np.nan, math.sqrt(rest / len(y))
    return out, fitted


def anomaly(series: Array, season: NDArray[np.int64], baseline: NDArray[np.bool_], least: int) -> tuple[Array, Array]:
    """Twin of `anomaly`."""
    out, score = np.full(series.shape, np.nan), np.full(series.shape, np.nan)
    for p in range(series.shape[1]):
        for t in range(series.shape[0]):
            own = series[(season == season[t]) & baseline, p].astype(np.float64)
            own = own[np.isfinite(own)]
            if np.isfinite(series[t, p]) and len(own) >= max(least, 1):
                out[t, p] = series[t, p] - own.mean()
                if len(own) > 1 and own.std() > 0:
                    score[t, p] = out[t, p] / own.std(ddof=1)
    return out, score
