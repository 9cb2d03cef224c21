# ruff: noqa: PLR0917  numba passes arguments by position
"""Reduce a stack of dates to one picture: order statistics, moments, medoid, geometric median, best date.

Every function works pixel by pixel, so nothing depends on how a raster was cut. Stacks are (time, pixel) or
(time, band, pixel) float32 with NaN (or any number that is not finite) for what is missing. Order statistics sort a
block of pixels at once through a sorting network: every comparison is a pair of vector instructions without a branch,
which sorts twelve dates in a few nanoseconds per pixel.
"""

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

MOMENTS = ("count", "mean", "stdev", "min", "max")
"""What `moments` gives, in this order."""

LANES = 16
"""Pixels that the geometric median iterates together."""

GEOMEDIAN_STEP = 1e-5
"""The geometric median stops when a step is shorter than this share of the length of its vector."""

GEOMEDIAN_ROUNDS = 200

_WORK_VALUES = 8192

_SELECTED_MAX = 32
"""Up to so many sorted rows, every row is offered to every pixel, which is vectorised; else each pixel fetches two."""

_COMPARED_MAX = 16
"""Up to so many dropped classes, comparing every pixel with each of them is quicker than looking it up in a table."""


def network(count: int, wanted: int | None = None) -> tuple[Ints, Ints]:
    """How to sort `count` rows of numbers, whatever they are, and where the sorted rows then lie.

    Shapes: moves (comparison, 4): rows (a, b) to read, rows (low, high) to write, which are never the rows read: there
        are two rows to spare, because loops that work in place are not vectorised. Places (count): the row that holds
        the smallest numbers, the next smallest …; row i holds the unsorted numbers i at first. Only the first `wanted`
        of them are sorted, all by default: comparisons whose outcome none of them hangs on are left out.
    Reference: Batcher's odd-even merge exchange, Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M.
    """
    moves: list[tuple[int, int, int, int]] = []
    places, spare = list(range(count)), [count, count + 1]
    top = 1 << max(count - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            for i in range(count - d):
                if i & p == r:
                    a, b = places[i], places[i + d]
                    moves.append((a, b, spare[0], spare[1]))
                    places[i], places[i + d] = spare
                    spare = [a, b]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, kept = set(places[:wanted]), []
    for a, b, low, high in reversed(moves):
        if low in needed or high in needed:
            needed = needed - {low, high} | {a, b}
            kept.append((a, b, low, high))
    return np.array(kept[::-1], np.int64).reshape(-1, 4), np.array(places, np.int64)


@kernel
def _exchange(a: Floats, b: Floats, low: Floats, high: Floats) -> None:
    for k in range(low.size):
        # As selections, not min and max: those ask about NaN, which is not here, and are not vectorised.
        low[k] = a[k] if a[k] < b[k] else b[k]  # noqa: FURB136
        high[k] = b[k] if a[k] < b[k] else a[k]  # noqa: FURB136


@kernel
def _fetched(rows: Floats, places: Ints, level: float, count: Counts, out: Floats) -> None:
    """The quantile of each pixel of sorted rows (row, pixel), of which `count` hold numbers."""
    for k in range(out.size):
        if count[k] == 0:
            out[k] = np.nan
            continue
        place = level * (count[k] - 1)
        low = np.int64(place)
        high = min(low + 1, np.int64(count[k]) - 1)
        a, b = np.float64(rows[places[low], k]), np.float64(rows[places[high], k])
        out[k] = a + (b - a) * (place - low)


@kernel
def _selected(
    rows: Floats, places: Ints, level: float, count: Counts, low: Counts, ends: tuple[Floats, Floats], out: Floats
) -> None:
    """`_fetched` without a fetch: `low` (pixel) and `ends` (pixel) are for its own use."""
    w, most = out.size, np.int32(0)
    below, above = ends[0][:w], ends[1][:w]
    for k in range(w):
        low[k] = np.int32(level * max(count[k] - np.int32(1), np.int32(0)))
        most = max(most, low[k])
    first, second = places[0], places[min(1, places.size - 1)]
    for k in range(w):
        below[k] = rows[first, k]
    for k in range(w):
        above[k] = rows[second, k]
    for j in range(1, min(np.int64(most) + 2, places.size)):
        row, at, before = rows[places[j]], np.int32(j), np.int32(j - 1)
        for k in range(w):
            # Both are fetched before the choice: what is fetched in one branch only is not vectorised.
            offered, a, b = row[k], below[k], above[k]
            below[k] = offered if low[k] == at else a
            above[k] = offered if low[k] == before else b
    for k in range(w):
        a, b = np.float64(below[k]), np.float64(above[k])
        # Above the highest number lies nothing, and infinity where rows are short of numbers.
        b = b if low[k] + np.int32(1) < count[k] else a
        value = a + (b - a) * (level * (count[k] - np.int32(1)) - low[k])
        out[k] = np.float32(value) if count[k] > 0 else np.float32(np.nan)


@allocating_kernel
def _ranks(stack: Floats, moves: Ints, places: Ints, levels: Doubles, work: Floats, out: Floats) -> None:
    times, pixels = stack.shape
    width = work.shape[1]
    count, low = np.zeros(width, np.int32), np.zeros(width, np.int32)
    ends = (np.zeros(width, np.float32), np.zeros(width, np.float32))
    infinity = np.float32(np.inf)
    for start in range(0, pixels, width):
        w = min(width, pixels - start)
        count[:] = 0
        for t in range(times):
            values, row = stack[t, start : start + w], work[t]
            for k in range(w):
                is_data = values[k] - values[k] == np.float32(0.0)
                row[k] = values[k] if is_data else infinity
                count[k] += np.int32(1) if is_data else np.int32(0)
        for c in range(moves.shape[0]):
            m = moves[c]
            _exchange(work[m[0]], work[m[1]], work[m[2]], work[m[3]])
        for number in range(levels.size):
            target = out[number, start : start + w]
            if times <= _SELECTED_MAX:
                _selected(work, places, levels[number], count, low, ends, target)
            else:
                _fetched(work, places, levels[number], count, target)


def ranks(stack: Floats, levels: Doubles, out: Floats) -> None:
    """Quantiles over time of what is not missing, linearly interpolated between values.

    Shapes: stack (time, pixel); levels (level), 0 … 1; out (level, pixel).
    Units: those of the stack.
    Nodata: missing values are left out; NaN where all are missing.
    Reference: Hyndman and Fan 1996, "Sample Quantiles in Statistical Packages", American Statistician 50(4), type 7.
    """
    times = stack.shape[0]
    # Lines of the work space stay in the first-level cache for a dozen dates, in the second for hundreds.
    width = max(min(_WORK_VALUES // times // 16 * 16, 1024), 32)
    wanted = min(int(levels.max(initial=0.0) * (times - 1)) + 2, times)
    _ranks(stack, *network(times, wanted), levels, np.zeros((times + 2, width), np.float32), out)


@allocating_kernel
def moments(stack: Floats, out: Floats) -> None:
    """Count, mean, standard deviation, minimum and maximum over time.

    Shapes: stack (time, pixel); out (5, pixel), in the order of MOMENTS.
    Units: those of the stack; the deviation is that of the population (divided by n), in two passes in float64.
    Nodata: missing values are left out; without any, count is 0 and the others NaN.
    Reference: Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample Variance", The American Statistician
        37(3), the two-pass algorithm.
    """
    times, pixels = stack.shape
    width = 512
    total, squares, count = np.zeros(width), np.zeros(width), np.zeros(width)
    low, high = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for start in range(0, pixels, width):
        w = min(width, pixels - start)
        total[:], squares[:], count[:] = 0.0, 0.0, 0.0
        low[:], high[:] = np.inf, -np.inf
        for t in range(times):
            values = stack[t, start : start + w]
            for k in range(w):
                v = values[k]
                is_data = v - v == np.float32(0.0)
                total[k] += v if is_data else 0.0
                count[k] += 1.0 if is_data else 0.0
                low[k] = v if is_data and v < low[k] else low[k]
                high[k] = v if is_data and v > high[k] else high[k]
        for k in range(w):
            total[k] /= count[k]
        for t in range(times):
            values = stack[t, start : start + w]
            for k in range(w):
                v = values[k]
                d = v - total[k]
                squares[k] += d * d if v - v == np.float32(0.0) else 0.0
        for k in range(w):
            has_any = count[k] > 0.0
            out[0, start + k] = count[k]
            out[1, start + k] = total[k] if has_any else np.nan
            out[2, start + k] = np.sqrt(squares[k] / count[k]) if has_any else np.nan
            out[3, start + k] = low[k] if has_any else np.nan
            out[4, start + k] = high[k] if has_any else np.nan


@kernel
def _complete(stack: Floats, pixel: int, values: Doubles) -> int:
    """Copy the dates on which a pixel has every band to `values` (time, band); how many there are."""
    times, bands, _ = stack.shape
    n = 0
    for t in range(times):
        is_whole = True
        for b in range(bands):
            v = np.float64(stack[t, b, pixel])
            values[n, b] = v
            is_whole = is_whole and v - v == 0.0
        if is_whole:
            n += 1
    return n


@allocating_kernel
def medoid(stack: Floats, out: Floats) -> None:
    """The date whose bands have the least sum of distances to those of all other dates; the earliest of equals.

    Shapes: stack (time, band, pixel); out (band, pixel).
    Units: those of the stack; distances are Euclidean.
    Nodata: a date counts when it has every band; NaN where none has.
    Reference: Flood 2013, "Seasonal Composite Landsat TM/ETM+ Images Using the Medoid", Remote Sensing 5(12),
        6481-6500, equation 2.
    """
    times, bands, pixels = stack.shape
    values, sums = np.empty((times + 1, bands)), np.empty(times)
    for p in range(pixels):
        n = _complete(stack, p, values)
        sums[:n] = 0.0
        for i in range(n):
            for j in range(i + 1, n):
                square = 0.0
                for b in range(bands):
                    d = values[i, b] - values[j, b]
                    square += d * d
                distance = np.sqrt(square)
                sums[i] += distance
                sums[j] += distance
        best = 0
        for i in range(1, n):
            best = i if sums[i] < sums[best] else best
        for b in range(bands):
            out[b, p] = values[best, b] if n > 0 else np.nan


@allocating_kernel
def _settle(x: Floats, known: Floats, y: Floats) -> None:
    """Move the point onto the date next to it, if that date is the median: the iteration creeps up to such a date.

    Reference: Vardi and Zhang 2000, theorem 1: a date is the median when the pull of the others is at most its own.
    """
    nearest, least = -1, np.inf
    for t in range(x.shape[0]):
        square = 0.0
        for b in range(x.shape[1]):
            square += (np.float64(x[t, b]) - y[b]) ** 2
        if known[t] > 0 and square < least:
            nearest, least = t, square
    if known.sum() < 3:
        return  # between two dates every point is a median; the middle one is kept
    pull, own = np.zeros(x.shape[1]), 0.0
    for t in range(x.shape[0]):
        square = 0.0
        for b in range(x.shape[1]):
            square += (np.float64(x[t, b]) - x[nearest, b]) ** 2
        if known[t] > 0 and square > 0.0:
            for b in range(x.shape[1]):
                pull[b] += (np.float64(x[t, b]) - x[nearest, b]) / np.sqrt(square)
        elif known[t] > 0:
            own += 1.0
    if np.sqrt((pull * pull).sum()) <= own:
        y[:] = x[nearest]


@kernel
def _load(stack: Floats, start: int, x: Floats, known: Floats, y: Floats, count: Floats) -> None:
    """Dates (time, band, lane) of LANES pixels from `start` on, which are whole, how many, and their mean."""
    times, bands, pixels = stack.shape
    zero, one = np.float32(0.0), np.float32(1.0)
    lanes = min(LANES, pixels - start)
    count[:], y[:] = zero, zero
    for t in range(times):
        known[t] = one
        for b in range(bands):
            for k in range(lanes):
                v = stack[t, b, start + k]
                is_data = v - v == zero
                x[t, b, k] = v if is_data else zero
                known[t, k] = known[t, k] if is_data else zero
        for k in range(LANES):
            count[k] += known[t, k]
        for b in range(bands):
            for k in range(LANES):
                y[b, k] += x[t, b, k] * known[t, k]
    for b in range(bands):
        for k in range(LANES):
            y[b, k] = y[b, k] / max(count[k], one)


@allocating_kernel
def _pull(x: Floats, known: Floats, y: Floats, target: Floats, total: Floats, same: Floats) -> None:
    """Where the dates pull the point: their mean weighted by 1 / distance, the sum of weights, how many lie upon it."""
    times, bands, _ = x.shape
    zero, one = np.float32(0.0), np.float32(1.0)
    square, weight = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    total[:], same[:], target[:] = zero, zero, zero
    for t in range(times):
        square[:] = zero
        for b in range(bands):
            for k in range(LANES):
                d = x[t, b, k] - y[b, k]
                square[k] += d * d
        for k in range(LANES):
            is_apart = square[k] > np.float32(1e-30)
            weight[k] = known[t, k] / np.sqrt(square[k] if is_apart else one)
            same[k] += zero if is_apart else known[t, k]
            weight[k] = weight[k] if is_apart else zero
            total[k] += weight[k]
        for b in range(bands):
            for k in range(LANES):
                target[b, k] += weight[k] * x[t, b, k]


@allocating_kernel
def geometric_median(stack: Floats, out: Floats) -> None:
    """The point of band space with the least sum of distances to all dates.

    Shapes: stack (time, band, pixel); out (band, pixel).
    Units: those of the stack; distances are Euclidean.
    Nodata: a date counts when it has every band; NaN where none has.
    Accuracy: float32; iterates until a step is shorter than GEOMEDIAN_STEP of the vector, GEOMEDIAN_ROUNDS at most;
        the sum of distances is then within 5e-4 of the least (four dates), and with a dozen dates within 1e-8.
        LANES pixels go together, each stopping for itself, so that neighbours do not change a result.
    Reference: Roberts, Mueller, McIntyre 2017, "High-Dimensional Pixel Composites From Earth Observation Time Series",
        IEEE TGRS 55(11), 6254-6264; Weiszfeld's iteration as mended by Vardi and Zhang 2000, "The multivariate
        L1-median and associated data depth", PNAS 97(4), 1423-1426, equations 2.5 and 2.6.
    """
    times, bands, pixels = stack.shape
    zero, one = np.float32(0.0), np.float32(1.0)
    x = np.zeros((times, bands, LANES), np.float32)
    known = np.zeros((times, LANES), np.float32)
    y, target = np.zeros((bands, LANES), np.float32), np.zeros((bands, LANES), np.float32)
    weight, total = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    same, step, size = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    active, count = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for start in range(0, pixels, LANES):
        lanes = min(LANES, pixels - start)
        _load(stack, start, x, known, y, count)
        for k in range(LANES):
            active[k] = one if count[k] > one and k < lanes else zero
        for _ in range(GEOMEDIAN_ROUNDS):
            _pull(x, known, y, target, total, same)
            step[:], size[:] = zero, zero
            for b in range(bands):
                for k in range(LANES):
                    target[b, k] = target[b, k] / total[k] if total[k] > zero else y[b, k]
                    d = target[b, k] - y[b, k]
                    step[k] += d * d
                    size[k] += y[b, k] * y[b, k]
            moving = zero
            for k in range(LANES):
                length = np.sqrt(step[k])
                pull = total[k] * length
                # At a date itself its own pull (`same`) holds the point unless the others pull harder.
                share = one - same[k] / pull if pull > same[k] else (one if same[k] == zero else zero)
                weight[k] = share * active[k]
                is_done = length * share <= np.float32(GEOMEDIAN_STEP) * np.sqrt(size[k])
                active[k] = zero if is_done else active[k]
                moving += active[k]
            for b in range(bands):
                for k in range(LANES):
                    y[b, k] += weight[k] * (target[b, k] - y[b, k])
            if moving == zero:
                break
        for k in range(lanes):
            _settle(x[:, :, k], known[:, k], y[:, k])
            for b in range(bands):
                out[b, start + k] = y[b, k] if count[k] > zero else np.nan


@kernel
def pick(stack: Floats, score: Floats, out: Floats, date: Floats) -> None:
    """The date of the highest score among those that have every band; the earliest of equals.

    Shapes: stack (time, band, pixel); score (time, pixel), or (time, 1) for one score per date; out (band, pixel);
        date (pixel), the place of the date.
    Units: those of the stack; scores have any.
    Nodata: a date without its score or a band does not count; NaN where none is left.
    Reference: Holben 1986, "Characteristics of maximum-value composite images from temporal AVHRR data", IJRS 7(11),
        where the score is NDVI.
    """
    times, bands, pixels = stack.shape
    is_shared = score.shape[1] == 1
    for p in range(pixels):
        best, highest = -1, np.float32(0.0)
        for t in range(times):
            s = score[t, 0 if is_shared else p]
            is_whole = s - s == np.float32(0.0)
            for b in range(bands):
                v = stack[t, b, p]
                is_whole = is_whole and v - v == np.float32(0.0)
            if is_whole and (best < 0 or s > highest):
                best, highest = t, s
        date[p] = best if best >= 0 else np.nan
        for b in range(bands):
            out[b, p] = stack[best, b, p] if best >= 0 else np.nan


@kernel
def _ratio_of_words(
    a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], missing: Floats, shift: Floats, clear: Flags, out: Floats
) -> int:
    none, zero, away = np.float32(np.nan), np.float32(0.0), shift[0]
    count = np.int32(0)
    for k in range(out.size):
        p, q = np.float32(a[k]), np.float32(b[k])
        below = p + q + away
        is_data = clear[k] & (below != zero) & (p != missing[0]) & (q != missing[1])
        out[k] = (p - q) / below if is_data else none
        count += np.int32(is_data)
    return int(count)


@kernel
def _ratio_of_numbers(
    a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], missing: Doubles, shift: float, clear: Flags, out: Floats
) -> int:
    none, count = np.float32(np.nan), 0
    for k in range(out.size):
        p, q = np.float64(a[k]), np.float64(b[k])
        below = p + q + shift
        # |NaN| > 0 is False, too.
        is_data = clear[k] & (abs(below) > 0.0) & (p != missing[0]) & (q != missing[1])
        out[k] = np.float32((p - q) / below) if is_data else none
        count += is_data
    return count


def normalized_difference(
    a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], missing: Doubles, shift: float, clear: Flags, out: Floats
) -> int:
    """(a − b) / (a + b) of stored numbers that share scale and offset; how many pixels have one.

    Shapes: a, b, clear (pixel), out (pixel); missing (2), the nodata of a and of b, NaN where there is none.
    Units: stored numbers; `shift` is 2 × offset ÷ scale, which is all that is left of them in the ratio.
    Nodata: NaN where `clear` is False, a number is its nodata or NaN, or a + b is 0.
    Reference: Rouse and others 1974, "Monitoring vegetation systems in the Great Plains with ERTS", for NDVI. A
        quotient of two exact numbers rounded to float64 and again to float32 is the one rounded once (Figueroa 1995),
        so numbers of 16 bits, whose sums float32 holds exactly, are divided in float32 with the same result.
    """
    if a.dtype.kind in "iu" and a.dtype.itemsize <= 2 and float(shift).is_integer() and abs(shift) < 1 << 22:
        return _ratio_of_words(a, b, missing.astype(np.float32), np.array([shift], np.float32), clear, out)
    return _ratio_of_numbers(a, b, missing, float(shift), clear, out)


@kernel
def _plain_values(stored: npt.NDArray[np.generic], missing: Floats, clear: Flags, out: Floats) -> None:
    none, lost = np.float32(np.nan), missing[0]
    for k in range(out.size):
        number = np.float32(stored[k])
        out[k] = number if clear[k] & (number != lost) else none


@kernel
def _scaled_values(
    stored: npt.NDArray[np.generic], missing: float, scale: float, offset: float, clear: Flags, out: Floats
) -> None:
    for k in range(out.size):
        number = np.float64(stored[k])
        value = np.float32(number * scale + offset)
        is_finite = value - value == np.float32(0.0)
        out[k] = value if clear[k] & (number != missing) & is_finite else np.float32(np.nan)


def to_values(
    stored: npt.NDArray[np.generic], missing: float, scale: float, offset: float, clear: Flags, out: Floats
) -> None:
    """Physical value of stored pixels, stored × scale + offset, NaN where not clear.

    Shapes: stored, clear, out (pixel).
    Units: any in; physical units out, computed in float64.
    Nodata: NaN where `clear` is False, the number is `missing`, or its value is not a finite float32.
    Reference: GDAL raster data model, "Raster Band", scale and offset.
    """
    if scale == 1.0 and offset == 0.0 and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        # The stored numbers themselves, which float32 holds exactly.
        lost = np.array([missing if float(missing).is_integer() else np.nan], np.float32)
        _plain_values(stored, lost, clear, out)
    else:
        _scaled_values(stored, missing, scale, offset, clear, out)


@kernel
def _looked_up(stored: npt.NDArray[np.generic], table: Flags, clear: Flags) -> None:
    for k in range(clear.size):
        clear[k] = clear[k] & table[stored[k]]


@kernel
def _without(stored: npt.NDArray[np.generic], dropped: npt.NDArray[np.generic], clear: Flags) -> None:
    width = 4096
    for start in range(0, clear.size, width):
        numbers, flags = stored[start : start + width], clear[start : start + width]
        for number in dropped:
            for k in range(flags.size):
                flags[k] = flags[k] & (numbers[k] != number)


def look_up(stored: npt.NDArray[np.generic], table: Flags, clear: Flags) -> None:
    """Leave clear what the table has as clear.

    Shapes: stored (pixel), unsigned; table (number), one entry for every number of the type; clear (pixel).
    """
    dropped = np.flatnonzero(~table)
    if len(dropped) <= _COMPARED_MAX:
        _without(stored, dropped.astype(stored.dtype), clear)
    else:
        _looked_up(stored, table, clear)


@allocating_kernel
def count_whole(values: Floats) -> int:
    """How many pixels of values (band, pixel) have every band."""
    bands, pixels = values.shape
    count, zero = 0, np.float32(0.0)
    width = 1024
    nothing = np.empty(width, np.float32)
    for start in range(0, pixels, width):
        w = min(width, pixels - start)
        nothing[:] = zero
        for b in range(bands):
            row = values[b, start : start + w]
            for k in range(w):
                nothing[k] += row[k] - row[k]
        found = np.int32(0)
        for k in range(w):
            found += np.int32(nothing[k] == zero)
        count += found
    return int(count)


def warm_up() -> None:
    """Compile for the usual pixel types, or load from the cache."""
    stack = np.ones((3, 1, 2), np.float32)
    ranks(stack[:, 0], np.array([0.5]), np.empty((1, 2), np.float32))
    moments(stack[:, 0], np.empty((5, 2), np.float32))
    out = np.empty((1, 2), np.float32)
    medoid(stack, out)
    geometric_median(stack, out)
    pick(stack, stack[:, 0], out, out[0])
    clear = np.ones(2, np.bool_)
    missing = np.zeros(2)
    for dtype in ("uint16", "int16"):
        stored = np.ones(2, dtype)
        normalized_difference(stored, stored, missing, 0.0, clear, out[0])
        normalized_difference(stored, stored, missing, 0.5, clear, out[0])
        to_values(stored, 0.0, 1.0, 0.0, clear, out[0])
        to_values(stored, 0.0, 1.0, 0.5, clear, out[0])
    for dtype in ("uint8", "uint16"):
        for table in (np.ones(32, np.bool_), np.zeros(32, np.bool_)):
            look_up(np.ones(2, dtype), table, clear)
    count_whole(out)
