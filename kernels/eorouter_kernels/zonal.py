# ruff: noqa: PLR0917  numba passes arguments by position
"""Statistics of the cells under each polygon, every cell weighted by its covered fraction.

An accumulator is one row of `STATE` numbers per (zone, canonical block, band), filled by `update` from the spans of
`coverage`, folded by `merge` and turned into statistics by `finish`. Blocks are canonical, see `coverage`, and a merge
folds the rows of a zone in the order of their blocks: so neither the cut into shards nor the order in which they end
can change a bit of the result.

Quantiles need the values themselves and are made in `quantiles`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eorouter_kernels._jit import kernel
from eorouter_kernels.coverage import Spans

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WEIGHT, MASKED, SUM, MEAN, M2, MIN, MAX, AREA = range(8)
STATE = 8
"""Numbers of an accumulator: summed fraction of valid and of masked cells, weighted sum, mean, sum of squared
deviations from the mean, extremes, and the area of the valid fraction in the unit of `row_areas`."""

SLIVER = 1e-9
"""A cell covered by less than this is left out of everything. Coordinates near 5·10⁶ m on a 10 m grid are only good
to 10⁻¹⁰ of a cell: an edge that lies on a cell border by intention must not let the neighbour into a minimum."""

SIGN = 1 << 15

MOMENTS = ("count", "sum", "mean", "min", "max", "variance", "stdev", "valid_fraction", "area")
"""What `finish` gives, in this order. Variance is that of the population: divided by the summed weight."""


def empty(shape: Sequence[int]) -> NDArray[np.float64]:
    """Accumulators that have seen nothing: (…, STATE)."""
    state = np.zeros((*shape, STATE), np.float64)
    state[..., MIN], state[..., MAX] = np.inf, -np.inf
    return state


def update(
    batch: Spans,
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_] | None,
    corner: tuple[int, int],
    row_areas: NDArray[np.float64],
    state: NDArray[np.float64],
) -> None:
    """Fill the accumulators of the pairs of `batch`, one band after the other.

    Args:
        batch: covered cells, all inside the pixels.
        pixels: (band, y, x) in the file's dtype.
        valid: (band, y, x), None where every pixel is valid.
        corner: row and column of pixels[:, 0, 0] in the raster.
        row_areas: (y) area of a cell of each row of `pixels`.
        state: (pair, band, STATE) of all pairs, contiguous; those of the batch are written.
    """
    has_mask = valid is not None
    # One memory layout, so that one compiled version serves all callers.
    pixels = np.ascontiguousarray(pixels)
    mask = np.ones((1, 1, 1), np.bool_) if valid is None else np.ascontiguousarray(valid)
    rows = state[batch.start : batch.start + len(batch.first) - 1]
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2:
        _moments_int(batch, *_as_uint16(pixels), mask, has_mask, *corner, row_areas, rows)
    else:
        _moments_float(batch, pixels, mask, has_mask, *corner, row_areas, rows)


def _as_uint16(pixels: NDArray[Any]) -> tuple[NDArray[np.uint16], np.uint16]:
    """Integers of at most 16 bits in one type, so that one version is compiled, and the bit that brings them back.

    The bits of an int16 with its first one flipped are value + 32,768: xor is all it takes in the loop.
    """
    if pixels.dtype.kind == "u":
        return pixels.astype(np.uint16, copy=False), np.uint16(0)
    return pixels.astype(np.int16, copy=False).view(np.uint16), np.uint16(SIGN)


@kernel
def _close(
    shifted: float,
    squares: float,
    pivot: float,
    state: Floats,
) -> None:
    """Sums about a pivot become sum, mean and M2."""
    weight = state[WEIGHT]
    if weight > 0.0:
        shift = shifted / weight
        state[SUM] = pivot * weight + shifted
        state[MEAN] = pivot + shift
        state[M2] = max(squares - shifted * shift, 0.0)


@kernel
def _first_cell(
    batch: Spans, pair: int, valid: NDArray[np.bool_], has_mask: bool, band: int, row0: int, col0: int
) -> tuple[int, int]:
    """Row and column of the first valid cell of a pair, about whose value its sums run; (0, 0) where none is valid."""
    for span in range(batch.first[pair], batch.first[pair + 1]):
        if batch.weight[span] >= SLIVER:
            r, c = batch.row[span] - row0, batch.col[span] - col0
            for i in range(c, c + batch.length[span]):
                if not has_mask or valid[band, r, i]:
                    return r, i
    return 0, 0


@kernel
def _moments_int(
    batch: Spans, pixels: NDArray[np.uint16], sign: np.uint16, valid: NDArray[np.bool_], has_mask: bool, row0: int,
    col0: int, row_areas: Floats, state: Floats,
) -> None:  # fmt: skip
    """Weighted sums, squares and extremes under spans, for integers of at most 16 bits.

    Sums run over value − pivot, the pivot being the pair's first valid value: exact in int64 within a span, and free of
    the cancellation that Σw·v² − (Σw·v)²/Σw suffers when the mean is large against the spread.

    Shapes: spans as in `Spans`; pixels, valid (band, y, x), valid (1, 1, 1) where has_mask is false; row_areas (y);
        state (pair, band, STATE), rows of `empty`.
    Units: those of the pixels, which are (stored ^ sign) − sign, see `_as_uint16`; area in those of row_areas.
    Nodata: cells that are not valid add to MASKED and to nothing else; slivers add to nothing.
    Reference: Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample Variance", Am. Stat. 37(3), eq. 1.5–2.1.
    """
    for band in range(pixels.shape[0]):
        image = pixels[band]
        for pair in range(len(batch.first) - 1):
            out = state[pair, band]
            begin = _first_cell(batch, pair, valid, has_mask, band, row0, col0)
            pivot = np.int64(image[begin] ^ sign)
            shifted = squares = total = masked = area = 0.0
            lowest, highest = np.int64(1 << 20), np.int64(-(1 << 20))
            for span in range(batch.first[pair], batch.first[pair + 1]):
                w = batch.weight[span]
                if w < SLIVER:
                    continue
                r, c, n = batch.row[span] - row0, batch.col[span] - col0, batch.length[span]
                seen = np.int64(n)
                if n == 1:
                    if has_mask and not valid[band, r, c]:
                        masked += w
                        continue
                    v = np.int64(image[r, c] ^ sign)
                    d = float(v - pivot)
                    shifted += w * d
                    squares += w * d * d
                    lowest, highest = min(lowest, v), max(highest, v)
                else:
                    s = q = np.int64(0)
                    line = image[r, c : c + n]
                    if has_mask:
                        seen = np.int64(0)
                        flags = valid[band, r, c : c + n]
                        for i in range(n):
                            if flags[i]:
                                v = np.int64(line[i] ^ sign)
                                d = v - pivot
                                seen += 1
                                s += d
                                q += d * d
                                lowest, highest = min(lowest, v), max(highest, v)
                        masked += w * (n - seen)
                    else:
                        low = high = line[0] ^ sign
                        for i in range(n):
                            v = line[i] ^ sign
                            d = np.int64(v) - pivot
                            s += d
                            q += d * d
                            low, high = min(low, v), max(high, v)
                        lowest, highest = min(lowest, np.int64(low)), max(highest, np.int64(high))
                    shifted += w * s
                    squares += w * q
                total += w * seen
                area += w * seen * row_areas[r]
            out[WEIGHT], out[MASKED], out[AREA] = total, masked, area
            if total > 0.0:
                out[MIN], out[MAX] = float(lowest - sign), float(highest - sign)
            _close(shifted, squares, float(pivot - sign), out)


@kernel
def _moments_float(
    batch: Spans, pixels: NDArray[Any], valid: NDArray[np.bool_], has_mask: bool, row0: int, col0: int,
    row_areas: Floats, state: Floats,
) -> None:  # fmt: skip
    """Weighted sums, squares and extremes under spans, in float64, for floats and wide integers.

    Four partial sums run side by side along a span: a fixed order that the processor can keep in one vector. A plain
    loop may not be vectorised, as float addition does not associate; fastmath would, in an order of its own choosing.

    Shapes: as `_moments_int`.
    Units: as `_moments_int`.
    Nodata: as `_moments_int`; NaN must have been marked as not valid.
    Reference: as `_moments_int`.
    """
    for band in range(pixels.shape[0]):
        for pair in range(len(batch.first) - 1):
            out = state[pair, band]
            begin = _first_cell(batch, pair, valid, has_mask, band, row0, col0)
            pivot = np.float64(pixels[band][begin])
            shifted = squares = total = masked = area = 0.0
            lowest, highest = np.inf, -np.inf
            for span in range(batch.first[pair], batch.first[pair + 1]):
                w = batch.weight[span]
                if w < SLIVER:
                    continue
                r, c, n = batch.row[span] - row0, batch.col[span] - col0, batch.length[span]
                line = pixels[band, r, c : c + n]
                seen = np.int64(n)
                s = q = 0.0
                if has_mask:
                    seen = np.int64(0)
                    for i in range(n):
                        if valid[band, r, c + i]:
                            v = np.float64(line[i])
                            d = v - pivot
                            seen += 1
                            s += d
                            q += d * d
                            lowest, highest = min(lowest, v), max(highest, v)
                    masked += w * (n - seen)
                else:
                    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = 0.0
                    l0 = l1 = l2 = l3 = np.inf
                    h0 = h1 = h2 = h3 = -np.inf
                    whole = n - n % 4
                    for i in range(0, whole, 4):
                        v0, v1 = np.float64(line[i]), np.float64(line[i + 1])
                        v2, v3 = np.float64(line[i + 2]), np.float64(line[i + 3])
                        d0, d1, d2, d3 = v0 - pivot, v1 - pivot, v2 - pivot, v3 - pivot
                        s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
                        q0, q1, q2, q3 = q0 + d0 * d0, q1 + d1 * d1, q2 + d2 * d2, q3 + d3 * d3
                        l0, l1, l2, l3 = min(l0, v0), min(l1, v1), min(l2, v2), min(l3, v3)
                        h0, h1, h2, h3 = max(h0, v0), max(h1, v1), max(h2, v2), max(h3, v3)
                    s, q = (s0 + s1) + (s2 + s3), (q0 + q1) + (q2 + q3)
                    lowest = min(lowest, l0, l1, l2, l3)
                    highest = max(highest, h0, h1, h2, h3)
                    for i in range(whole, n):
                        v = np.float64(line[i])
                        d = v - pivot
                        s += d
                        q += d * d
                        lowest, highest = min(lowest, v), max(highest, v)
                shifted += w * s
                squares += w * q
                total += w * seen
                area += w * seen * row_areas[r]
            out[WEIGHT], out[MASKED], out[AREA] = total, masked, area
            if total > 0.0:
                out[MIN], out[MAX] = lowest, highest
            _close(shifted, squares, pivot, out)


@kernel
def merge(
    zone: Ints,
    partial: Floats,
    state: Floats,
) -> None:
    """Fold partial accumulators into those of their zones, in the order given.

    Associative up to rounding; give partials sorted by zone and block and the result is one to the last bit.

    Shapes: zone (partial); partial (partial, band, STATE); state (zone, band, STATE), changed in place.
    Units: as the accumulators.
    Nodata: an accumulator of weight 0 changes MASKED only.
    Reference: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
        STAN-CS-79-773, eq. 2.1, with weights for counts.
    """
    for i in range(len(zone)):
        for band in range(partial.shape[1]):
            into, add = state[zone[i], band], partial[i, band]
            into[MASKED] += add[MASKED]
            if add[WEIGHT] <= 0.0:
                continue
            if into[WEIGHT] <= 0.0:
                for at in (WEIGHT, SUM, MEAN, M2, MIN, MAX, AREA):
                    into[at] = add[at]
                continue
            weight = into[WEIGHT] + add[WEIGHT]
            delta = add[MEAN] - into[MEAN]
            into[M2] += add[M2] + delta * delta * (into[WEIGHT] * add[WEIGHT] / weight)
            into[MEAN] += delta * (add[WEIGHT] / weight)
            into[WEIGHT] = weight
            into[SUM] += add[SUM]
            into[AREA] += add[AREA]
            into[MIN], into[MAX] = min(into[MIN], add[MIN]), max(into[MAX], add[MAX])


def finish(
    state: NDArray[np.float64],
    outside: NDArray[np.float64],
    scale: NDArray[np.float64] | None = None,
    offset: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Statistics of each zone and band, (zone, band) per name of `MOMENTS`; NaN where nothing was valid.

    Args:
        state: (zone, band, STATE).
        outside: (zone) fraction of cells of the zone that lies beyond the raster.
        scale: (band) physical value = stored value × scale + offset; 1 by default.
        offset: (band) 0 by default.
    """
    bands = state.shape[1]
    scale = np.ones(bands) if scale is None else scale
    offset = np.zeros(bands) if offset is None else offset
    weight, masked = state[..., WEIGHT], state[..., MASKED]
    nothing = weight <= 0.0
    divisor = np.where(nothing, 1.0, weight)
    whole = weight + masked + outside[:, None]
    low, high = state[..., MIN] * scale + offset, state[..., MAX] * scale + offset
    variance = state[..., M2] / divisor * scale * scale
    results = {
        "sum": state[..., SUM] * scale + offset * weight,
        "mean": state[..., SUM] / divisor * scale + offset,
        "min": np.minimum(low, high),
        "max": np.maximum(low, high),
        "variance": variance,
        "stdev": np.sqrt(variance),
    }
    results = {name: np.where(nothing, np.nan, values) for name, values in results.items()}
    fraction = np.where(whole > 0.0, weight / np.where(whole > 0.0, whole, 1.0), np.nan)
    results |= {"count": weight, "valid_fraction": fraction, "area": state[..., AREA]}
    return {name: results[name] for name in MOMENTS}


def warm_up() -> None:
    """Compile the kernels of this module for the usual pixel types, or load them from the cache."""
    first = np.array([0, 2])
    place = np.array([0, 1], np.int32)
    weight = np.array([1.0, 0.5])
    batch = Spans(0, first, place, place, np.ones(2, np.int32), weight)
    for dtype in ("uint16", "float32"):
        state = empty((1, 1))
        update(batch, np.ones((1, 2, 2), dtype), None, (0, 0), np.ones(2), state)
        merge(np.zeros(1, np.int64), state, empty((1, 1)))
