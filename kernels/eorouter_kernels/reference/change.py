# ruff: noqa: PLR0917  numba passes arguments by position
"""Plain-NumPy twins of `eorouter_kernels.change`."""

import math
from typing import Any

import numpy as np


def chi_square_tail(z: Any, dof: int, out: Any) -> None:
    """Twin: the finite sums of Abramowitz & Stegun 26.4.4 and 26.4.5, term by term."""
    x = np.minimum(np.maximum(z, 0.0) / 2.0, 1e9)  # far beyond where anything is left
    start = 0.0 if dof % 2 == 0 else 0.5
    total = np.zeros_like(x) if dof % 2 == 0 else np.vectorize(math.erfc)(np.sqrt(x))
    for step in range(dof // 2):
        a = start + step
        total = total + x**a * np.exp(-x) / math.gamma(a + 1.0)
    out[...] = np.minimum(total, 1.0)


def reweighted_sums(before: Any, after: Any, span: tuple[int, int], centre: Any, matrix: Any, out: Any) -> None:
    """Twin."""
    values = np.vstack([before, after]).astype(np.float64)[:, slice(*span)] - centre[:, None]
    rows = np.vstack([values, np.ones(values.shape[1])])
    weights = np.ones(values.shape[1])
    if len(matrix):
        chi_square_tail(((matrix[:, : len(rows)] @ rows) ** 2).sum(axis=0), len(matrix), weights)
    out[...] = np.triu((rows * weights) @ rows.T)


def chi_squares(before: Any, after: Any, matrix: Any, out: Any) -> None:
    """Twin."""
    values = np.vstack([before, after]).astype(np.float64)
    both = len(values)
    out[0] = ((matrix[:, :both] @ values + matrix[:, both : both + 1]) ** 2).sum(axis=0)
    tail = np.empty(values.shape[1])
    chi_square_tail(out[0].astype(np.float64), len(matrix), tail)
    out[1] = 1.0 - tail


def omnibus(stack: Any, looks: float, level: float, out: Any) -> None:
    """Twin: pixel by pixel, with determinants of diagonal matrices written as products."""
    out[...] = np.nan
    for n in range(stack.shape[2]):
        x = stack[:, :, n].astype(np.float64)
        if not ((x > 0) & (x < np.inf)).all():
            continue
        dates, _ = x.shape
        statistic, tail = _whole(x, looks)
        changes, start, current = [], 0, tail
        while start < dates - 1 and current <= level:
            marginal = [j for j in range(2, dates - start + 1) if _marginal(x[start:], j, looks) <= level]
            if not marginal:
                break
            start += marginal[0] - 1
            changes.append(start)
            current = _whole(x[start:], looks)[1] if start < dates - 1 else 1.0
        out[:, n] = statistic, tail, changes[0] if changes else 0, changes[-1] if changes else 0, len(changes)


def _tail(z: float, rho: float, omega: float, dof: int) -> float:
    found = np.empty(2)
    chi_square_tail(np.array([rho * z]), dof, found[:1])
    chi_square_tail(np.array([rho * z]), dof + 4, found[1:])
    return float(np.clip(found[0] + omega * (found[1] - found[0]), 0.0, 1.0))


def _whole(x: Any, looks: float) -> tuple[float, float]:
    k, p = x.shape
    log_q = looks * (p * k * math.log(k) + np.log(x).sum() - k * np.log(x.sum(axis=0)).sum())
    rho = 1 - (k / looks - 1 / (looks * k)) / (6 * (k - 1))
    omega = -p * (k - 1) / 4 * (1 - 1 / rho) ** 2
    return -2 * log_q, _tail(-2 * log_q, rho, omega, (k - 1) * p)


def _marginal(x: Any, j: int, looks: float) -> float:
    p = x.shape[1]
    before = x[: j - 1].sum(axis=0)
    log_r = looks * (
        p * (j * math.log(j) - (j - 1) * math.log(j - 1))
        + ((j - 1) * np.log(before) + np.log(x[j - 1]) - j * np.log(before + x[j - 1])).sum()
    )
    rho = 1 - (1 + 1 / (j * (j - 1))) / (6 * looks)
    return _tail(-2 * log_r, rho, -p / 4 * (1 - 1 / rho) ** 2, p)
