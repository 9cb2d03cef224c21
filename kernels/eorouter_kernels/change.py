"""Change between dates, pixel by pixel: chi-square tails, weighted moments, canonical variates, the omnibus test.

Values are (band, pixel) or (time, band, pixel) float32 with NaN for what is missing; a pixel with a missing value has
no result (NaN). Every sum is made in a fixed order, so a pixel's result depends on its own values alone.
"""

import math

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import kernel

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

BLOCK = 1024
"""Pixels that are worked on together: what they need stays in the first-level cache."""


@kernel
def _tail(z: float, dof: int) -> float:
    if z <= 0.0:
        return 1.0
    x = 0.5 * z
    if dof % 2 == 0:
        a, term = 1.0, math.exp(-x)
        out = term
    else:
        a, out = 0.5, math.erfc(math.sqrt(x))
        term = math.exp(-x) / math.sqrt(math.pi * x)
    while 2.0 * a + 0.5 < dof:
        term *= x / a
        out += term
        a += 1.0
    return min(out, 1.0)


@kernel
def chi_square_tail(z: Doubles, dof: int, out: Doubles) -> None:
    """Probability that a chi-square variable of `dof` degrees of freedom exceeds z; NaN stays NaN.

    By the recurrence Q(a + 1, x) = Q(a, x) + x^a e^-x / Γ(a + 1), Abramowitz & Stegun 26.4.4 and 26.4.5.
    """
    for k in range(z.size):
        out[k] = math.nan if math.isnan(z[k]) else _tail(z[k], dof)


@kernel
def weighted_moments(values: Floats, weights: Doubles, mean: Doubles, covariance: Doubles) -> None:
    """Weighted mean (band) and covariance (band, band; divided by the sum of weights) of values (band, pixel)."""
    bands, pixels = values.shape
    total = 0.0
    for k in range(pixels):
        total += weights[k]
    for i in range(bands):
        s = 0.0
        for k in range(pixels):
            s += weights[k] * values[i, k]
        mean[i] = s / total
    plain = np.empty((bands, BLOCK), np.float64)
    weighted = np.empty((bands, BLOCK), np.float64)
    covariance[:, :] = 0.0
    for start in range(0, pixels, BLOCK):
        size = min(BLOCK, pixels - start)
        full = (size + 3) // 4 * 4
        for i in range(bands):
            for k in range(size):
                plain[i, k] = values[i, start + k] - mean[i]
                weighted[i, k] = plain[i, k] * weights[start + k]
            for k in range(size, full):
                plain[i, k] = 0.0
                weighted[i, k] = 0.0
        for i in range(bands):
            for j in range(i, bands):
                # Four sums side by side: one alone waits for itself.
                s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
                for k in range(0, full, 4):
                    s0 += plain[i, k] * weighted[j, k]
                    s1 += plain[i, k + 1] * weighted[j, k + 1]
                    s2 += plain[i, k + 2] * weighted[j, k + 2]
                    s3 += plain[i, k + 3] * weighted[j, k + 3]
                covariance[i, j] += (s0 + s1) + (s2 + s3)
    for i in range(bands):
        for j in range(i, bands):
            covariance[i, j] /= total
            covariance[j, i] = covariance[i, j]


@kernel
def squared_length(values: Floats, matrix: Doubles, shift: Doubles, out: Doubles) -> None:
    """|matrix · values − shift|² of each pixel: values (band, pixel), matrix (variate, band), shift (variate)."""
    bands, pixels = values.shape
    variates = matrix.shape[0]
    row = np.empty(BLOCK, np.float64)
    for start in range(0, pixels, BLOCK):
        size = min(BLOCK, pixels - start)
        out[start : start + size] = 0.0
        for i in range(variates):
            row[:] = -shift[i]
            for j in range(bands):
                weight = matrix[i, j]
                for k in range(size):
                    row[k] += weight * values[j, start + k]
            for k in range(size):
                out[start + k] += row[k] * row[k]


@kernel
def _probability(z: float, rho: float, omega: float, dof: int) -> float:
    """Tail of −2 ln Q, corrected to second order: Conradsen et al. 2003, equations 22 to 25."""
    one = _tail(rho * z, dof)
    two = _tail(rho * z, dof + 4)
    return min(max(one + omega * (two - one), 0.0), 1.0)


@kernel
def _omnibus_probability(logs: Doubles, values: Doubles, first: int, looks: float) -> tuple[float, float]:
    """−2 ln Q and its tail for the dates from `first` on; channels are independent, so Q is a product over them."""
    dates, bands = values.shape
    k = dates - first
    log_q = 0.0
    for b in range(bands):
        total, log_sum = 0.0, 0.0
        for t in range(first, dates):
            total += values[t, b]
            log_sum += logs[t, b]
        log_q += looks * (k * math.log(k) + log_sum - k * math.log(total))
    rho = 1.0 - (k / looks - 1.0 / (looks * k)) / (6.0 * (k - 1))
    omega = -0.25 * bands * (k - 1) * (1.0 - 1.0 / rho) ** 2
    return -2.0 * log_q, _probability(-2.0 * log_q, rho, omega, (k - 1) * bands)


@kernel
def _next_change(logs: Doubles, values: Doubles, start: int, looks: float, level: float) -> int:
    """First date after `start` that differs from those since `start`, by the factors R_j; 0 when there is none."""
    dates, bands = values.shape
    for j in range(2, dates - start + 1):
        log_r = 0.0
        now = start + j - 1
        for b in range(bands):
            before = 0.0
            for t in range(start, now):
                before += values[t, b]
            steps = j * math.log(j) - (j - 1) * math.log(j - 1)
            log_r += looks * (steps + (j - 1) * math.log(before) + logs[now, b] - j * math.log(before + values[now, b]))
        rho = 1.0 - (1.0 + 1.0 / (j * (j - 1))) / (6.0 * looks)
        omega = -0.25 * bands * (1.0 - 1.0 / rho) ** 2
        if _probability(-2.0 * log_r, rho, omega, bands) <= level:
            return now
    return 0


@kernel
def omnibus(stack: Floats, looks: float, level: float, out: Floats) -> None:
    """Wishart test for equal intensities at all dates, and when they changed.

    Args:
        stack: intensities (time, band, pixel), linear, positive; bands are taken as independent.
        looks: equivalent number of looks.
        level: significance at which a change is one.
        out: (5, pixel): −2 ln Q; its tail probability; first and last interval with a change, counted from 1; how many.

    Reference: Conradsen et al. 2003, doi:10.1109/TGRS.2002.808066 (two dates); Conradsen, Nielsen & Skriver 2016,
    doi:10.1109/TGRS.2015.2510160, equations 9 to 16 (series), diagonal case.
    """
    dates, bands, pixels = stack.shape
    values = np.empty((dates, bands), np.float64)
    logs = np.empty((dates, bands), np.float64)
    for n in range(pixels):
        is_known = True
        for t in range(dates):
            for b in range(bands):
                v = float(stack[t, b, n])
                is_known = is_known and v > 0.0 and v < math.inf
                values[t, b] = v
                logs[t, b] = math.log(v) if v > 0.0 else 0.0
        if not is_known:
            out[:, n] = math.nan
            continue
        statistic, tail = _omnibus_probability(logs, values, 0, looks)
        out[0, n] = statistic
        out[1, n] = tail
        start, first, last, count = 0, 0, 0, 0
        while start < dates - 1 and tail <= level:
            found = _next_change(logs, values, start, looks, level)
            if found == 0:
                break
            count += 1
            first = found if first == 0 else first
            last = found
            start = found
            if start < dates - 1:
                _, tail = _omnibus_probability(logs, values, start, looks)
        out[2, n], out[3, n], out[4, n] = first, last, count


def warm_up() -> None:
    """Compile for float32 values."""
    values = np.ones((2, 8), np.float32)
    out = np.empty(8)
    weighted_moments(values, np.ones(8), np.empty(2), np.empty((2, 2)))
    squared_length(values, np.ones((1, 2)), np.zeros(1), out)
    chi_square_tail(out, 2, out)
    omnibus(np.ones((2, 1, 8), np.float32), 4.0, 0.01, np.empty((5, 8), np.float32))
