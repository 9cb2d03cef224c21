# ruff: noqa: PLR0917  numba passes arguments by position
"""Change between dates, pixel by pixel: chi-square tails, weighted moments, canonical variates, the omnibus test.

Values are (band, pixel) or (time, band, pixel) float32 with NaN for what is missing; a pixel with a missing value has
no result (NaN). Every sum is made in a fixed order, so a pixel's result depends on its own values alone.
"""

import math

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel
from eorouter_kernels.elementary import exp_minus, fma

_FAR = 1e300  # no further, so that nought times it is nought

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LANES = 64
"""Sums that are kept side by side."""

BLOCK = 4 * LANES
"""Pixels that are worked on together: what they need of a dozen bands stays in the first-level cache."""


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
def chi_square_tail(z: Doubles, dof: int, room: Doubles, out: Doubles) -> None:
    """Probability that a chi-square variable of `dof` degrees of freedom exceeds z; NaN stays NaN.

    Shapes: z, out (n,); room (3, n), worked in.
    By the recurrence Q(a + 1, x) = Q(a, x) + x^a e^-x / Γ(a + 1), Abramowitz & Stegun 26.4.4 and 26.4.5, a step of it
    for all z at once.
    """
    x, term = room[0], room[1]
    for k in range(z.size):
        x[k] = 0.0 if z[k] <= 0.0 else _FAR if z[k] > _FAR else 0.5 * z[k]
    exp_minus(x, room[2], term)
    a = 0.5 if dof % 2 else 1.0
    for k in range(z.size):
        out[k] = term[k]
    if dof % 2:
        for k in range(z.size):
            out[k] = math.erfc(math.sqrt(x[k]))
            term[k] = 0.0 if x[k] == 0.0 else term[k] / math.sqrt(math.pi * x[k])
    while 2.0 * a + 0.5 < dof:
        for k in range(z.size):
            term[k] *= x[k] / a
            out[k] += term[k]
        a += 1.0
    for k in range(z.size):
        out[k] = 1.0 if out[k] > 1.0 else out[k]  # noqa: FURB136 - min would lose NaN


def rows_of(bands: int) -> int:
    """Rows that `bands` values of both dates take with a row of ones, made up to a multiple of four with zeros."""
    return (2 * bands + 1 + 3) // 4 * 4


def padded(matrix: Doubles, shift: Doubles) -> Doubles:
    """Matrix and shift as the kernels take them: (variate, row), the shift on the row of ones."""
    variates, both = matrix.shape
    out = np.zeros((variates, rows_of(both // 2)))
    out[:, :both] = matrix
    out[:, both] = -shift
    return out


@kernel
def _centred(before: Floats, after: Floats, centre: Doubles, start: int, size: int, rows: Doubles) -> None:
    """Values of pixels from `start` on less their centres, (row, pixel); beyond `size` all is 0, the ones, too."""
    bands = before.shape[0]
    for i in range(2 * bands):
        values = before[i, start : start + size] if i < bands else after[i - bands, start : start + size]
        row, middle = rows[i], centre[i]
        for k in range(size):
            row[k] = values[k] - middle
        row[size:] = 0.0
    rows[2 * bands, :size] = 1.0
    rows[2 * bands, size:] = 0.0


@kernel
def _lengths(rows: Doubles, matrix: Doubles, variate: Doubles, z: Doubles) -> None:
    """|matrix · rows|² of each pixel. Four rows at a time: what is added to is fetched and put back less often."""
    z[:] = 0.0
    for i in range(matrix.shape[0]):
        variate[:] = 0.0
        for j in range(0, matrix.shape[1], 4):
            a, b, c, d = matrix[i, j], matrix[i, j + 1], matrix[i, j + 2], matrix[i, j + 3]
            p, q, r, s = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
            for k in range(variate.size):
                variate[k] = fma(a, p[k], fma(b, q[k], fma(c, r[k], fma(d, s[k], variate[k]))))
        for k in range(variate.size):
            z[k] = fma(variate[k], variate[k], z[k])


@kernel
def _products(rows: Doubles, weighted: Doubles, used: int, lanes: Doubles) -> None:
    """Add row × weighted row, for every pair of the first `used`, to lanes (pair, lane): pixel k to lane k % LANES.

    A sum of its own for every lane: one sum alone waits for itself, and its terms could not be added several at once
    without another order.
    """
    pair = 0
    for i in range(used):
        x0, x1 = rows[i, :LANES], rows[i, LANES : 2 * LANES]
        x2, x3 = rows[i, 2 * LANES : 3 * LANES], rows[i, 3 * LANES :]
        for j in range(i, used):
            y0, y1 = weighted[j, :LANES], weighted[j, LANES : 2 * LANES]
            y2, y3 = weighted[j, 2 * LANES : 3 * LANES], weighted[j, 3 * LANES :]
            sums = lanes[pair]
            for k in range(LANES):
                sums[k] = fma(x0[k], y0[k], fma(x1[k], y1[k], fma(x2[k], y2[k], fma(x3[k], y3[k], sums[k]))))
            pair += 1


@allocating_kernel
def reweighted_sums(
    before: Floats, after: Floats, span: tuple[int, int], centre: Doubles, matrix: Doubles, out: Doubles
) -> None:
    """Sums over pixels of weight × value × value, each pixel weighted by how likely it is unchanged.

    Shapes: before, after (band, pixel); span: first pixel, and the one behind the last; centre (2 × band), taken off
        the values first; matrix (variate, row) as `padded` gives it, for centred values; out (2 × band + 1,
        2 × band + 1), the upper triangle of the sums, the last row standing for 1: the values' sums and the weights'.
    Units: those of the values, squared.
    Nodata: there must be none. Without variates every weight is 1.
    Reference: Nielsen 2007, doi:10.1109/TIP.2006.888195, equations 10 and 14: the weight is the tail of the chi-square
        distribution with as many degrees of freedom as there are variates, at the squared length of the variates.
    """
    used, variates = 2 * before.shape[0] + 1, matrix.shape[0]
    rows, weighted = np.zeros((matrix.shape[1], BLOCK)), np.empty((used, BLOCK))
    z, weight, variate, room = np.empty(BLOCK), np.ones(BLOCK), np.empty(BLOCK), np.empty((3, BLOCK))
    lanes = np.zeros((used * (used + 1) // 2, LANES))
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        _centred(before, after, centre, start, size, rows)
        if variates > 0:
            _lengths(rows, matrix, variate, z)
            chi_square_tail(z, variates, room, weight)
        for j in range(used):
            row, target = rows[j], weighted[j]
            for k in range(BLOCK):
                target[k] = row[k] * weight[k]
        _products(rows, weighted, used, lanes)
    pair = 0
    for i in range(used):
        for j in range(i, used):
            out[i, j] = lanes[pair].sum()
            pair += 1


@allocating_kernel
def chi_squares(before: Floats, after: Floats, matrix: Doubles, out: Floats) -> None:
    """Squared length of the variates of each pixel, and the probability that so much is change.

    Shapes: before, after (band, pixel); matrix (variate, row) as `padded` gives it; out (2, pixel).
    Units: out[0] is chi-square with as many degrees of freedom as there are variates, where nothing changed.
    Nodata: NaN where a value is NaN or infinite.
    Reference: as `reweighted_sums`.
    """
    pixels = before.shape[1]
    rows, centre = np.zeros((matrix.shape[1], BLOCK)), np.zeros(2 * before.shape[0])
    z, tail, variate, room = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty((3, BLOCK))
    for start in range(0, pixels, BLOCK):
        size = min(BLOCK, pixels - start)
        _centred(before, after, centre, start, size, rows)
        _lengths(rows, matrix, variate, z)
        chi_square_tail(z, matrix.shape[0], room, tail)
        for k in range(size):
            is_number = z[k] < np.inf
            out[0, start + k] = z[k] if is_number else np.nan
            out[1, start + k] = 1.0 - tail[k] if is_number else np.nan


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
    # Q is at most 1; where all dates are equal, rounding may say a little more.
    statistic = max(-2.0 * log_q, 0.0)
    return statistic, _probability(statistic, rho, omega, (k - 1) * bands)


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


@allocating_kernel
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
                logs[t, b] = math.log(values[t, b]) if v > 0.0 else 0.0
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
    one = np.ones((1, 8), np.float32)
    matrix, out = padded(np.ones((1, 2)), np.zeros(1)), np.empty((3, 3))
    reweighted_sums(one, one, (0, 8), np.zeros(2), matrix, out)
    chi_squares(one, one, matrix, np.empty((2, 8), np.float32))
    omnibus(np.ones((2, 1, 8), np.float32), 4.0, 0.01, np.empty((5, 8), np.float32))
