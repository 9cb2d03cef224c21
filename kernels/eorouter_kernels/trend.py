# ruff: noqa: PLR0917  numba passes arguments by position
"""Lines and waves through a series: least squares, Theil–Sen with Mann–Kendall, harmonics; and their probabilities.

Series are (time, pixel) float32 with NaN (or any number that is not finite) for what is missing, `times` is (time)
float64, ascending; each pixel is worked on alone, in float64.
"""

import math

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LINE = ("slope", "intercept", "r2", "p_value", "stderr", "count")
"""What `least_squares` gives, in this order."""

SEN = ("slope", "intercept", "tau", "s", "p_value", "count")
"""What `theil_sen` gives, in this order."""

HARMONICS_MAX = 4

ROUNDING = 4.0 * 2.0**-24
"""Waves are noise up to so much of the largest value, times the error that coefficients have of values with error 1.

A value in float32 is off by 2⁻²⁴ of itself at most; four times that is seven standard deviations.
"""


@kernel
def student_p(t: float, freedom: float) -> float:
    """Two-sided probability of a value of Student's t at least as far from 0.

    Units: none. Accuracy: 1e-12 relative, by the test against scipy.
    Nodata: NaN gives NaN.
    Reference: NIST DLMF 8.17.9 and the continued fraction 8.17.22, I_x(a, b) with x = ν / (ν + t²), a = ν/2, b = 1/2.
    """
    if math.isnan(t):
        return np.nan
    if math.isinf(t):
        return 0.0
    x = freedom / (freedom + t * t)
    a, b = 0.5 * freedom, 0.5
    is_turned = x > (a + 1.0) / (a + b + 2.0)
    if is_turned:
        a, b = b, a
        x = t * t / (freedom + t * t)
    if x <= 0.0:
        return 1.0 if is_turned else 0.0
    # The fraction 1 / (1 + d₁/(1 + d₂/(1 + …))), evaluated forward (Lentz, as modified by Thompson and Barnett 1986).
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 400):
        m = step // 2
        if step % 2 == 1:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d = 1.0 + part * d
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = 1.0 + part / c
        c = c if abs(c) > tiny else tiny
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) - math.log(a) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    )
    tail = front / value
    return 1.0 - tail if is_turned else tail


@kernel
def normal_p(z: float) -> float:
    """Two-sided probability of a value of the standard normal distribution at least as far from 0.

    Units: none. Nodata: NaN gives NaN. Reference: NIST DLMF 7.2.2.
    """
    return math.erfc(abs(z) / math.sqrt(2.0))


@kernel
def _gathered(series: Floats, times: Doubles, pixel: int, x: Doubles, y: Doubles) -> int:
    n = 0
    for t in range(series.shape[0]):
        value = np.float64(series[t, pixel])
        if value - value == 0.0:
            x[n], y[n] = times[t], value
            n += 1
    return n


@allocating_kernel
def least_squares(series: Floats, times: Doubles, least: int, out: Floats) -> None:
    """The straight line of least squares, with the two-sided probability of its slope if there were none.

    Shapes: series (time, pixel); times (time); out (6, pixel), in the order of LINE.
    Units: slope and its standard error in values per unit of time; the intercept is the value at time 0.
    Nodata: NaN (count aside) with fewer than max(least, 3) values. A series without any spread has r² and p NaN.
    Reference: Draper and Smith 1998, Applied Regression Analysis, 3rd ed., ch. 1, equations 1.2.9 and 1.4.9.
    """
    size, pixels = series.shape
    x, y = np.empty(size), np.empty(size)
    for p in range(pixels):
        n = _gathered(series, times, p, x, y)
        out[:5, p] = np.nan
        out[5, p] = n
        if n < max(least, 3):
            continue
        mx, my = 0.0, 0.0
        for i in range(n):
            mx += x[i]
            my += y[i]
        mx, my = mx / n, my / n
        sxx, sxy, syy = 0.0, 0.0, 0.0
        for i in range(n):
            dx, dy = x[i] - mx, y[i] - my
            sxx += dx * dx
            sxy += dx * dy
            syy += dy * dy
        slope = sxy / sxx
        rest = 0.0
        for i in range(n):
            e = (y[i] - my) - slope * (x[i] - mx)
            rest += e * e
        error = math.sqrt(rest / (n - 2) / sxx)
        out[0, p], out[1, p], out[4, p] = slope, my - slope * mx, error
        if syy > 0.0:
            out[2, p] = 1.0 - rest / syy
            out[3, p] = student_p(slope / error, n - 2.0) if error > 0.0 else 0.0


@allocating_kernel
def _middle(values: Doubles) -> float:
    """Median, by sorting in place."""
    values.sort()
    n = values.size
    return values[n // 2] if n % 2 else 0.5 * (values[n // 2 - 1] + values[n // 2])


@allocating_kernel
def theil_sen(series: Floats, times: Doubles, least: int, out: Floats) -> None:
    """Median of the slopes of all pairs, and the Mann–Kendall test for a trend, ties counted.

    Shapes: series (time, pixel); times (time), all different; out (6, pixel), in the order of SEN.
    Units: slope in values per unit of time; the intercept is median(value) − slope × median(time); tau is Kendall's
        tau-b; p is two-sided from the normal approximation with continuity correction.
    Nodata: NaN (count aside) with fewer than max(least, 3) values. All values equal: slope 0, tau NaN, p 1.
    Reference: Sen 1968, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63(324), 1379-1389;
        Kendall 1975, Rank Correlation Methods, 4th ed., for the variance with ties (equation 4.4 with no ties in time).
    """
    size, pixels = series.shape
    x, y, ordered = np.empty(size), np.empty(size), np.empty(size)
    slopes = np.empty(max(size * (size - 1) // 2, 1))
    for p in range(pixels):
        n = _gathered(series, times, p, x, y)
        out[:5, p] = np.nan
        out[5, p] = n
        if n < max(least, 3):
            continue
        score, count = 0.0, 0
        for i in range(n):
            for j in range(i + 1, n):
                d = y[j] - y[i]
                score += 1.0 if d > 0.0 else (-1.0 if d < 0.0 else 0.0)
                slopes[count] = d / (x[j] - x[i])
                count += 1
        slope = _middle(slopes[:count])
        ordered[:n] = y[:n]
        middle = _middle(ordered[:n])
        tied_pairs, tied, run = 0.0, 0.0, 1
        for i in range(1, n + 1):
            if i < n and ordered[i] == ordered[i - 1]:
                run += 1
                continue
            tied_pairs += run * (run - 1) / 2.0
            tied += run * (run - 1.0) * (2.0 * run + 5.0)
            run = 1
        variance = (n * (n - 1.0) * (2.0 * n + 5.0) - tied) / 18.0
        pairs = n * (n - 1.0) / 2.0
        z = 0.0
        if variance > 0.0 and score != 0.0:
            z = (score - 1.0 if score > 0.0 else score + 1.0) / math.sqrt(variance)
        out[0, p] = slope
        out[1, p] = middle - slope * (x[n // 2] if n % 2 else 0.5 * (x[n // 2 - 1] + x[n // 2]))
        out[2, p] = score / math.sqrt(pairs * (pairs - tied_pairs)) if pairs > tied_pairs else np.nan
        out[3, p], out[4, p] = score, normal_p(z)


@kernel
def _solve(a: Doubles, b: Doubles, n: int) -> bool:
    """Solve a x = b for symmetric positive definite a, in place, by Cholesky; False when a is singular."""
    for j in range(n):
        pivot = a[j, j]
        for k in range(j):
            pivot -= a[j, k] * a[j, k]
        if not pivot > 1e-10 * a[j, j]:
            return False
        root = math.sqrt(pivot)
        for i in range(j + 1, n):
            value = a[i, j]
            for k in range(j):
                value -= a[i, k] * a[j, k]
            a[i, j] = value / root
        a[j, j] = root
    for i in range(n):
        for k in range(i):
            b[i] -= a[i, k] * b[k]
        b[i] /= a[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= a[k, i] * b[k]
        b[i] /= a[i, i]
    return True


@kernel
def _inverse_at(root: Doubles, place: int, column: Doubles) -> float:
    """A diagonal element of a⁻¹ = L⁻ᵀL⁻¹, with L the lower half that `_solve` leaves: the square of a column of L⁻¹."""
    total = 0.0
    for i in range(place, column.size):
        value = 1.0 if i == place else 0.0
        for k in range(place, i):
            value -= root[i, k] * column[k]
        column[i] = value / root[i, i]
        total += column[i] * column[i]
    return total


@allocating_kernel
def harmonic(series: Floats, basis: Doubles, harmonics: int, period: float, out: Floats, fitted: Floats) -> None:
    """Least squares of a mean, a slope (optional) and waves.

    Shapes: series (time, pixel); basis (time, term): 1, perhaps time, then cosine and sine of each harmonic; out
        (terms before the waves + 2 per harmonic + 3, pixel): their values; per harmonic amplitude and the time of its
        first crest after time 0; then r², root mean square error, count. fitted (time, pixel), or (0, 0) when it is
        not wanted: the curve at every time.
    Units: amplitudes in values; crests and `period` in units of time.
    Nodata: NaN (count aside) with fewer values than terms + 1, or when the dates cannot tell the terms apart. A wave no
        higher than what rounding the values to float32 can make has amplitude 0 and no crest (NaN).
    Reference: Zhu and Woodcock 2014, "Continuous change detection and classification of land cover using all available
        Landsat data", RSE 144, 152-171, equation 2.
    """
    size, pixels = series.shape
    terms = basis.shape[1]
    lead = terms - 2 * harmonics
    a, b, column = np.empty((terms, terms)), np.empty(terms), np.empty(terms)
    for p in range(pixels):
        out[:, p] = np.nan
        if fitted.size > 0:
            fitted[:, p] = np.nan
        a[:], b[:] = 0.0, 0.0
        n, total = 0, 0.0
        for t in range(size):
            value = np.float64(series[t, p])
            if value - value == 0.0:
                n += 1
                total += value
                for i in range(terms):
                    b[i] += basis[t, i] * value
                    for j in range(i + 1):
                        a[i, j] += basis[t, i] * basis[t, j]
        out[lead + 2 * harmonics + 2, p] = n
        if n < terms + 1 or not _solve(a, b, terms):
            continue
        mean, rest, spread, largest = total / n, 0.0, 0.0, 0.0
        for t in range(size):
            curve = 0.0
            for i in range(terms):
                curve += basis[t, i] * b[i]
            if fitted.size > 0:
                fitted[t, p] = curve
            value = np.float64(series[t, p])
            if value - value == 0.0:
                rest += (value - curve) ** 2
                spread += (value - mean) ** 2
                largest = max(largest, abs(value))
        for i in range(lead):
            out[i, p] = b[i]
        for h in range(harmonics):
            c, s = b[lead + 2 * h], b[lead + 2 * h + 1]
            length = period / (h + 1)
            carried = _inverse_at(a, lead + 2 * h, column) + _inverse_at(a, lead + 2 * h + 1, column)
            amplitude = math.sqrt(c * c + s * s)
            if amplitude <= ROUNDING * largest * math.sqrt(carried):
                out[lead + 2 * h, p] = 0.0
                continue
            out[lead + 2 * h, p] = amplitude
            out[lead + 2 * h + 1, p] = (math.atan2(s, c) / (2.0 * math.pi) * length) % length
        out[lead + 2 * harmonics, p] = 1.0 - rest / spread if spread > 0.0 else np.nan
        out[lead + 2 * harmonics + 1, p] = math.sqrt(rest / n)


def basis(times: Doubles, harmonics: int, period: float, *, has_slope: bool) -> Doubles:
    """The terms of `harmonic` at every time, (time, term)."""
    columns = [np.ones_like(times)] + ([times] if has_slope else [])
    for number in range(1, harmonics + 1):
        angle = 2.0 * np.pi * number * times / period
        columns += [np.cos(angle), np.sin(angle)]
    return np.ascontiguousarray(np.stack(columns, axis=1))


@allocating_kernel
def anomaly(series: Floats, season: npt.NDArray[np.int64], baseline: npt.NDArray[np.bool_], least: int,
            out: Floats, score: Floats) -> None:  # fmt: skip
    """How far each value lies from the mean of its season in the baseline, and in standard deviations of it.

    Shapes: series, out, score (time, pixel); season (time), 0 ≤ season; baseline (time), which times make the mean.
    Units: out those of the series; score in sample standard deviations (divided by n − 1) of the season's baseline.
    Nodata: NaN where the value or the mean is missing; a season needs `least` baseline values for a mean, and two that
        differ for a score.
    Reference: WMO-No. 1203 (2017), Guidelines on the Calculation of Climate Normals, section 4.
    """
    size, pixels = series.shape
    seasons = season.max() + 1
    count, mean, square = np.empty(seasons), np.empty(seasons), np.empty(seasons)
    for p in range(pixels):
        count[:], mean[:], square[:] = 0.0, 0.0, 0.0
        for t in range(size):
            value = np.float64(series[t, p])
            if baseline[t] and value - value == 0.0:
                s = season[t]
                count[s] += 1.0
                d = value - mean[s]
                mean[s] += d / count[s]
                square[s] += d * (value - mean[s])
        for t in range(size):
            s, value = season[t], np.float64(series[t, p])
            out[t, p], score[t, p] = np.nan, np.nan
            if value - value == 0.0 and count[s] >= max(least, 1):
                out[t, p] = value - mean[s]
                if count[s] > 1.0 and square[s] > 0.0:
                    score[t, p] = (value - mean[s]) / math.sqrt(square[s] / (count[s] - 1.0))


def warm_up() -> None:
    """Compile, or load from the cache."""
    series, times, out = np.ones((4, 1), np.float32), np.arange(4.0), np.empty((9, 1), np.float32)
    least_squares(series, times, 3, out[:6])
    theil_sen(series, times, 3, out[:6])
    harmonic(series, basis(times, 1, 4.0, has_slope=False), 1, 4.0, out[:6], series.copy())
    anomaly(series, np.zeros(4, np.int64), np.ones(4, np.bool_), 1, series.copy(), series.copy())
