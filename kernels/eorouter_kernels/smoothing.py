# ruff: noqa: PLR0917  numba passes arguments by position
"""Fill and smooth series: linear, Whittaker, Savitzky–Golay; and read the season off the curve.

Series are (time, pixel) float32 with NaN for what is missing, changed in place; `times` is (time) float64, ascending.
Nothing is ever made up before the first value of a pixel or after its last.
"""

import math

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SEASON = ("start", "peak", "end", "length", "base", "peak_value", "amplitude", "integral")
"""What `phenology` gives, in this order."""


@kernel
def fill_linear(series: Floats, times: Doubles, widest: float) -> None:
    """Put values on the straight line between the neighbours of a gap.

    Shapes: series (time, pixel); times (time).
    Units: `widest` in units of time: gaps whose neighbours lie further apart stay.
    Nodata: missing values before the first and after the last stay missing.
    Reference: numpy.interp.
    """
    size, pixels = series.shape
    for p in range(pixels):
        last = -1
        for t in range(size):
            value = series[t, p]
            if value - value != np.float32(0.0):
                series[t, p] = np.nan
                continue
            if last >= 0 and last < t - 1 and times[t] - times[last] <= widest:
                low, step = np.float64(series[last, p]), times[t] - times[last]
                rise = np.float64(value) - low
                for i in range(last + 1, t):
                    series[i, p] = low + rise * ((times[i] - times[last]) / step)
            last = t


@allocating_kernel
def whittaker(series: Floats, times: Doubles, roughness: float) -> None:
    """Smooth with a penalty on second differences; what is missing between first and last value is filled.

    Minimises Σ wᵢ (yᵢ − zᵢ)² + λ Σ (Δ²z)², w 1 where there is a value and 0 elsewhere. Differences are divided ones, in
    units of the mean step, so that on an even grid they are the paper's.

    Shapes: series (time, pixel); times (time).
    Units: λ (`roughness`) none.
    Nodata: a series with fewer than three values is left as it is; outside first … last it stays missing.
    Reference: Eilers 2003, "A Perfect Smoother", Analytical Chemistry 75(14), 3631-3636, equations 3 to 8.
    """
    size, pixels = series.shape
    if size < 3:
        return
    mean = (times[size - 1] - times[0]) / (size - 1)
    penalty = np.zeros((3, size))
    for i in range(size - 2):
        left, right = (times[i + 1] - times[i]) / mean, (times[i + 2] - times[i + 1]) / mean
        whole = 0.5 * (left + right)
        d0, d2 = 1.0 / (left * whole), 1.0 / (right * whole)
        d1 = -(d0 + d2)
        penalty[0, i] += roughness * d0 * d0
        penalty[0, i + 1] += roughness * d1 * d1
        penalty[0, i + 2] += roughness * d2 * d2
        penalty[1, i] += roughness * d0 * d1
        penalty[1, i + 1] += roughness * d1 * d2
        penalty[2, i] += roughness * d0 * d2
    diagonal, one, two, z = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    for p in range(pixels):
        count, first, last = 0, size, -1
        for t in range(size):
            value = series[t, p]
            if value - value == np.float32(0.0):
                count += 1
                first, last = min(first, t), t
        if count < 3:
            continue
        # L D Lᵀ of a band matrix: `one` and `two` are the sub-diagonals of L.
        for i in range(size):
            value = np.float64(series[i, p])
            is_data = value - value == 0.0
            d = penalty[0, i] + (1.0 if is_data else 0.0)
            z[i] = value if is_data else 0.0
            if i >= 1:
                d -= one[i - 1] * one[i - 1] * diagonal[i - 1]
                z[i] -= one[i - 1] * z[i - 1]
            if i >= 2:
                d -= two[i - 2] * two[i - 2] * diagonal[i - 2]
                z[i] -= two[i - 2] * z[i - 2]
            diagonal[i] = d
            step = penalty[1, i] - (one[i - 1] * diagonal[i - 1] * two[i - 1] if i >= 1 else 0.0)
            one[i], two[i] = step / d, penalty[2, i] / d
        for i in range(size - 1, -1, -1):
            z[i] /= diagonal[i]
            if i + 1 < size:
                z[i] -= one[i] * z[i + 1]
            if i + 2 < size:
                z[i] -= two[i] * z[i + 2]
        for t in range(size):
            series[t, p] = z[t] if first <= t <= last else np.nan


@allocating_kernel
def savitzky_golay(series: Floats, times: Doubles, window: int, order: int) -> None:
    """Replace every value by that of the least-squares polynomial through the samples around it.

    Shapes: series (time, pixel); times (time).
    Units: `window` in samples, odd; at both ends the outermost whole window serves all its samples. Real times are
        used, so an even grid gives the classical filter and an uneven one its generalisation.
    Nodata: missing samples take no part; a sample whose window has fewer than order + 1 values is left as it is, and
        outside first … last it stays missing.
    Reference: Savitzky and Golay 1964, "Smoothing and Differentiation of Data by Simplified Least Squares Procedures",
        Analytical Chemistry 36(8), 1627-1639.
    """
    size, pixels = series.shape
    width = min(window, size)
    terms = order + 1
    a, b, powers, y = np.empty((terms, terms)), np.empty(terms), np.empty(terms), np.empty(size)
    for p in range(pixels):
        first, last = size, -1
        for t in range(size):
            y[t] = np.float64(series[t, p])
            if y[t] - y[t] == 0.0:
                first, last = min(first, t), t
        for t in range(first, last + 1):
            begin = min(max(t - window // 2, 0), size - width)
            reach = max(times[begin + width - 1] - times[t], times[t] - times[begin], 1e-300)
            a[:], b[:] = 0.0, 0.0
            n = 0
            for i in range(begin, begin + width):
                if y[i] - y[i] != 0.0:
                    continue
                n += 1
                u = (times[i] - times[t]) / reach
                powers[0] = 1.0
                for k in range(1, terms):
                    powers[k] = powers[k - 1] * u
                for k in range(terms):
                    b[k] += powers[k] * y[i]
                    for j in range(terms):
                        a[k, j] += powers[k] * powers[j]
            if n < terms:
                continue
            # The polynomial's value at u = 0 is its first coefficient; elimination from the last row up leaves it.
            for k in range(terms - 1, 0, -1):
                for j in range(k):
                    factor = a[j, k] / a[k, k]
                    b[j] -= factor * b[k]
                    for i in range(k):
                        a[j, i] -= factor * a[k, i]
            series[t, p] = b[0] / a[0, 0]


@kernel
def _crossing(series: Floats, times: Doubles, p: int, peak: int, stop: int, level: float) -> float:
    """Time at which the curve, followed from the peak towards `stop`, first falls to a level; NaN if it never does."""
    step = 1 if stop > peak else -1
    t = peak
    while t != stop:
        high, low = np.float64(series[t, p]), np.float64(series[t + step, p])
        if low - low != 0.0:
            return np.nan
        if low <= level:
            share = max((high - level) / (high - low), 0.0) if high > low else 0.0
            return times[t] + share * (times[t + step] - times[t])
        t += step
    return np.nan


@kernel
def phenology(series: Floats, times: Doubles, start: float, end: float, fraction: float, least: float,
              out: Floats) -> None:  # fmt: skip
    """The season of a curve: where it begins, culminates and ends.

    The peak is the vertex of the parabola through the highest sample in start … end and its neighbours. Left and right
    base are the least values on either side inside start … end. The season begins where the curve, followed from the
    peak backwards, has come down to left base + fraction × (peak − left base); it ends likewise on the right. Between
    samples the curve is straight.

    Shapes: series (time, pixel), filled; times (time); out (8, pixel), in the order of SEASON.
    Units: start, peak and end in units of time since `start`; length in units of time; base (mean of both), peak value
        and amplitude (peak − base) in values; integral in values × time under the curve from start to end.
    Nodata: NaN where fewer than three samples are there or the amplitude is below `least`; start or end alone are NaN
        where the curve does not come down.
    Reference: Jönsson and Eklundh 2004, "TIMESAT - a program for analyzing time-series of satellite sensor data",
        Computers & Geosciences 30(8), 833-845, section 4 and figure 4.
    """
    size, pixels = series.shape
    for p in range(pixels):
        out[:, p] = np.nan
        first, last, peak, count = size, -1, -1, 0
        for t in range(size):
            value = series[t, p]
            if start <= times[t] < end and value - value == np.float32(0.0):
                first, last = min(first, t), t
                count += 1
                peak = t if peak < 0 or value > series[peak, p] else peak
        if count < 3:
            continue
        top, at = np.float64(series[peak, p]), times[peak]
        left, right = top, top
        for t in range(first, last + 1):
            value = np.float64(series[t, p])
            if t < peak and value < left:
                left = value
            if t > peak and value < right:
                right = value
        base = 0.5 * (left + right)
        if not (top - base >= least and top > base):
            continue
        if first < peak < last:
            before, after = np.float64(series[peak - 1, p]), np.float64(series[peak + 1, p])
            u, v = times[peak - 1] - at, times[peak + 1] - at
            bend = ((after - top) / v - (before - top) / u) / (v - u)
            if bend < 0.0:
                rise = (before - top) / u - bend * u
                shift = min(max(-rise / (2.0 * bend), u), v)
                at, top = at + shift, top + rise * shift + bend * shift * shift
        begin = _crossing(series, times, p, peak, first, left + fraction * (top - left)) if left < top else np.nan
        stop = _crossing(series, times, p, peak, last, right + fraction * (top - right)) if right < top else np.nan
        out[0, p], out[1, p], out[2, p] = begin - start, at - start, stop - start
        out[3, p], out[4, p], out[5, p], out[6, p] = stop - begin, base, top, top - base
        area = 0.0
        for t in range(first, last):
            # The part of this straight piece that lies in the season.
            low, high = max(times[t], begin), min(times[t + 1], stop)
            if high > low:
                step = (np.float64(series[t + 1, p]) - series[t, p]) / (times[t + 1] - times[t])
                middle = series[t, p] + step * (0.5 * (low + high) - times[t])
                area += middle * (high - low)
        out[7, p] = area if not math.isnan(stop - begin) else np.nan


def warm_up() -> None:
    """Compile, or load from the cache."""
    series, times = np.ones((5, 1), np.float32), np.arange(5.0)
    fill_linear(series, times, 2.0)
    whittaker(series, times, 1.0)
    savitzky_golay(series, times, 3, 1)
    phenology(series, times, 0.0, 5.0, 0.5, 0.1, np.empty((8, 1), np.float32))
