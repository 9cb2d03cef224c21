"""Multivariate alteration detection and principal components: what a sample says about two many-band pictures.

    sample (both dates, pixel) ──irmad / components──► Projection ──chi_squares / dot──► any pixel

A projection is a matrix and a shift, found once and applied to every pixel on its own.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from eorouter_compute.errors import InvalidParameter
from eorouter_kernels import change

_RUN = 1 << 16
_FLOAT32 = 2.0**-24
"""Most that rounding to float32 takes a number off, as a share of it."""

_SUMS = 1e-13
"""Share of the variance of all bands that may be the error of sums over millions of pixels."""

# The sample is looked at between rounds, when a worker's threads have no shards of the job.
_THREADS = 2


class Projection(Struct, frozen=True, kw_only=True):
    """Variates are matrix · (before, after) − shift; a row of `matrix` each. And how many rounds it took."""

    matrix: tuple[tuple[float, ...], ...]
    shift: tuple[float, ...]
    rounds: int = 0
    correlations: tuple[float, ...] = ()


Tolerance = Annotated[float, Meta(gt=0, le=0.1)]


def irmad(sample: np.ndarray, *, tolerance: float, rounds: int) -> Projection:
    """Iteratively reweighted MAD: variates divided by their standard deviations.

    The squared length of the variates is chi-square with as many degrees of freedom as there are bands where nothing
    changed; its tail is a pixel's weight in the next round, until no canonical correlation moves by `tolerance`.

    Args:
        sample: (2 × band, pixel) float32 without NaN, before above after.
        tolerance: see above.
        rounds: most rounds.

    Raises:
        InvalidParameter: too few pixels, or bands that are linear combinations of others.

    Reference: Nielsen 2007, doi:10.1109/TIP.2006.888195, section II.
    """
    both, pixels = sample.shape
    bands = both // 2
    if pixels < 10 * both:
        raise InvalidParameter(
            f"IR-MAD of {bands} bands needs {10 * both} valid pixels at least; the sample has {pixels}.",
            pointer="/statistic",
        )
    before, after = sample[:bands], sample[bands:]
    centre = _near_mean(sample)
    mean, covariance = _moments(before, after, centre, change.padded(np.empty((0, both)), np.empty(0)))
    known, number = np.zeros(bands), 0
    matrix, shift = np.empty((0, both)), np.empty(0)
    for number in range(1, rounds + 1):
        matrix, correlations = _variates(covariance, bands)
        shift = matrix @ mean
        moved = float(np.abs(correlations - known).max())
        known = correlations
        if moved < tolerance or number == rounds:
            break
        mean, covariance = _moments(before, after, centre, change.padded(matrix, shift - matrix @ centre))
    return Projection(
        matrix=tuple(tuple(map(float, row)) for row in matrix),
        shift=tuple(map(float, shift)),
        rounds=number,
        correlations=tuple(map(float, known)),
    )


def _near_mean(sample: np.ndarray) -> np.ndarray:
    """Near enough to the mean that sums of squares about it lose no digits; where exactly does not matter."""
    return sample[:, :: max(sample.shape[1] // 1000, 1)].mean(axis=1, dtype=np.float64)


def _moments(
    before: np.ndarray, after: np.ndarray, centre: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and covariance, in runs of pixels that any thread may take: their sums are added in order."""
    both, pixels = 2 * len(before), before.shape[1]
    spans = [(start, min(start + _RUN, pixels)) for start in range(0, pixels, _RUN)]

    def sums(span: tuple[int, int]) -> np.ndarray:
        out = np.zeros((both + 1, both + 1))
        change.reweighted_sums(before, after, span, centre, matrix, out)
        return out

    if len(spans) == 1:
        total = sums(spans[0])
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            total = np.zeros((both + 1, both + 1))
            for each in pool.map(sums, spans):
                total += each
    weight = total[-1, -1]
    away = total[:-1, -1] / weight
    upper = total[:-1, :-1] / weight - np.outer(away, away)
    return centre + away, np.triu(upper) + np.triu(upper, 1).T


def _variates(covariance: np.ndarray, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (a, −b) / σ of the MAD variates, and the canonical correlations, largest first."""
    one, two = covariance[:bands, :bands], covariance[bands:, bands:]
    for name, part in (("before", one), ("after", two)):
        scale = np.sqrt(np.diag(part))
        if not (scale > 0).all() or np.linalg.cond(part / np.outer(scale, scale)) > 1e12:
            raise InvalidParameter(
                f"The bands {name} are linear combinations of each other, or constant; leave some out.",
                pointer="/value/bands",
            )
    left, right = np.linalg.cholesky(one), np.linalg.cholesky(two)
    whitened = np.linalg.solve(right, np.linalg.solve(left, covariance[:bands, bands:]).T).T
    u, correlations, vt = np.linalg.svd(whitened)
    correlations = np.minimum(correlations, 1.0)
    a, b = np.linalg.solve(left.T, u).T, np.linalg.solve(right.T, vt.T).T
    # Var(a'x − b'y) = 2 (1 − ρ); two pictures that are the same but for scale have ρ = 1 and no variate at all.
    sigma = np.sqrt(np.maximum(2.0 * (1.0 - correlations), 1e-12))
    return np.hstack([a, -b]) / sigma[:, None], correlations


def component(sample: np.ndarray, *, number: int, is_stacked: bool) -> Projection:
    """One principal component, centred: of the difference after − before, or of both dates stacked.

    Its sign is such that the weights of the later date sum to something positive.

    Raises:
        InvalidParameter: there is no such component, fewer than two pixels, or nothing in the component but rounding.

    Reference: Byrne, Crapper & Mayo 1980, doi:10.1016/0034-4257(80)90021-8 (stacked).
    """
    both, pixels = sample.shape
    bands = both // 2
    size = both if is_stacked else bands
    if number > size or pixels < 2:
        raise InvalidParameter(
            f"There is no component {number}: {size} bands, {pixels} sampled pixels.", pointer="/statistic/component"
        )
    plain = change.padded(np.empty((0, both)), np.empty(0))
    mean, covariance = _moments(sample[:bands], sample[bands:], _near_mean(sample), plain)
    # A row per component looked for: the values themselves, or after − before.
    rows = np.eye(both) if is_stacked else np.hstack([-np.eye(bands), np.eye(bands)])
    variances, vectors = np.linalg.eigh(rows @ covariance @ rows.T)
    row = vectors[:, ::-1][:, number - 1] @ rows
    # A threshold would be found in the noise, and call what is equal changed.
    rounding = _FLOAT32**2 * float(row**2 @ (mean**2 + np.diag(covariance)))
    if variances[::-1][number - 1] <= max(rounding, _SUMS * float(np.trace(covariance))):
        raise InvalidParameter(
            f"Component {number} of the {'stacked dates' if is_stacked else 'difference'} has no two different values "
            "beyond rounding: the dates are equal, or a band is a linear combination of others. Ask for a component "
            "before it, or leave such bands out.",
            pointer="/statistic/component",
        )
    if row[bands:].sum() < 0:
        row = -row
    return Projection(matrix=(tuple(map(float, row)),), shift=(float(row @ mean),))
