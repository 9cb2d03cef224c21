# ruff: noqa: PLR0917  numba passes arguments by position
"""Statistics of the cells under each polygon where a second raster says how much each cell weighs.

A cell counts with its covered fraction times its weight: a mean income weighted by inhabitants, a yield by soil. As in
`zonal`, an accumulator is one row of `STATE` numbers per (zone, canonical block, band), filled by `update`, folded by
`merge` in the order of blocks and turned into statistics by `finish`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eorouter_kernels._jit import kernel
from eorouter_kernels.coverage import Spans
from eorouter_kernels.zonal import SLIVER

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WEIGHT, UNKNOWN, SUM, MEAN, M2 = range(5)
STATE = 5
"""Numbers of an accumulator: Σ fraction · weight, fraction of valid cells whose weight is not known, weighted sum,
mean, and sum of squared deviations from the mean."""

MOMENTS = ("weighted_count", "weighted_sum", "weighted_mean", "weighted_variance", "weighted_stdev")
"""What `finish` gives, in this order. Variance is that of the population: divided by the summed weight."""


def empty(shape: Sequence[int]) -> NDArray[np.float64]:
    """Accumulators that have seen nothing: (…, STATE)."""
    return np.zeros((*shape, STATE), np.float64)


def update(
    batch: Spans,
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_] | None,
    weights: NDArray[np.float64],
    corner: tuple[int, int],
    state: NDArray[np.float64],
) -> None:
    """Fill the accumulators of the pairs of `batch`.

    Args:
        batch: covered cells, all inside the pixels.
        pixels: (band, y, x), best as float64: other types are brought to it, by a copy.
        valid: (band, y, x), None where every pixel is valid.
        weights: (y, x); NaN, and what is negative, is a weight that is not known.
        corner: row and column of pixels[:, 0, 0] in the raster.
        state: (pair, band, STATE) of all pairs, contiguous; those of the batch are written.
    """
    has_mask = valid is not None
    mask = np.ones((1, 1, 1), np.bool_) if valid is None else np.ascontiguousarray(valid)
    rows = state[batch.start : batch.start + len(batch.first) - 1]
    values = np.ascontiguousarray(pixels, np.float64)
    _moments(batch, values, mask, has_mask, np.ascontiguousarray(weights), *corner, rows)


@kernel
def _moments(
    batch: Spans, pixels: Floats, valid: NDArray[np.bool_], has_mask: bool, weights: Floats, row0: int, col0: int,
    state: Floats,
) -> None:  # fmt: skip
    """Sums of values under spans, about the first value that has a weight.

    Shapes: spans as in `Spans`; pixels, valid (band, y, x), valid (1, 1, 1) where has_mask is false; weights (y, x);
        state (pair, band, STATE), rows of `empty`.
    Units: those of the pixels and of the weights.
    Nodata: cells that are not valid, and slivers, add to nothing; valid cells without a weight add to UNKNOWN only.
    Reference: West 1979, "Updating Mean and Variance Estimates", CACM 22(9), with fraction · weight for weights.
    """
    for band in range(pixels.shape[0]):
        image = pixels[band]
        for pair in range(len(batch.first) - 1):
            out = state[pair, band]
            pivot = total = shifted = squares = unknown = 0.0
            for span in range(batch.first[pair], batch.first[pair + 1]):
                fraction = batch.weight[span]
                if fraction < SLIVER:
                    continue
                r, c = batch.row[span] - row0, batch.col[span] - col0
                for i in range(c, c + batch.length[span]):
                    if has_mask and not valid[band, r, i]:
                        continue
                    weight = weights[r, i]
                    if not weight >= 0.0:
                        unknown += fraction
                        continue
                    value = image[r, i]
                    w = fraction * weight
                    if total == 0.0:
                        pivot = value
                    d = value - pivot
                    total += w
                    shifted += w * d
                    squares += w * d * d
            out[WEIGHT], out[UNKNOWN] = total, unknown
            if total > 0.0:
                shift = shifted / total
                out[SUM] = pivot * total + shifted
                out[MEAN] = pivot + shift
                out[M2] = max(squares - shifted * shift, 0.0)


@kernel
def merge(zone: Ints, partial: Floats, state: Floats) -> None:
    """Fold partial accumulators into those of their zones, in the order given.

    Shapes: zone (partial); partial (partial, band, STATE); state (zone, band, STATE), changed in place.
    Units: as the accumulators.
    Nodata: an accumulator of weight 0 changes UNKNOWN only.
    Reference: as `zonal.merge`.
    """
    for i in range(len(zone)):
        for band in range(partial.shape[1]):
            into, add = state[zone[i], band], partial[i, band]
            into[UNKNOWN] += add[UNKNOWN]
            if add[WEIGHT] <= 0.0:
                continue
            weight = into[WEIGHT] + add[WEIGHT]
            delta = add[MEAN] - into[MEAN]
            into[M2] += add[M2] + delta * delta * (into[WEIGHT] * add[WEIGHT] / weight)
            into[MEAN] = into[MEAN] + delta * (add[WEIGHT] / weight) if into[WEIGHT] > 0.0 else add[MEAN]
            into[WEIGHT] = weight
            into[SUM] += add[SUM]


def finish(
    state: NDArray[np.float64], scale: NDArray[np.float64], offset: NDArray[np.float64], *, skips_unknown: bool
) -> dict[str, NDArray[np.float64]]:
    """Statistics of each zone and band, (zone, band) per name of `MOMENTS`; NaN where nothing weighed anything.

    Args:
        state: (zone, band, STATE).
        scale: (band) physical value = stored value × scale + offset.
        offset: (band).
        skips_unknown: leave out cells whose weight is not known; else a zone with such a cell has NaN.
    """
    weight = state[..., WEIGHT]
    bad = weight <= 0.0
    if not skips_unknown:
        bad |= state[..., UNKNOWN] > 0.0
    divisor = np.where(weight > 0.0, weight, 1.0)
    variance = state[..., M2] / divisor * scale * scale
    results = {
        "weighted_sum": state[..., SUM] * scale + offset * weight,
        "weighted_mean": state[..., SUM] / divisor * scale + offset,
        "weighted_variance": variance,
        "weighted_stdev": np.sqrt(variance),
    }
    results = {name: np.where(bad, np.nan, values) for name, values in results.items()}
    unknown = np.where((state[..., UNKNOWN] > 0.0) & ~np.bool_(skips_unknown), np.nan, weight)
    return {"weighted_count": unknown} | results


def warm_up() -> None:
    """Compile the kernels of this module, or load them from the cache."""
    place = np.array([0, 1], np.int32)
    batch = Spans(0, np.array([0, 2]), place, place, np.ones(2, np.int32), np.array([1.0, 0.5]))
    state = empty((1, 1))
    update(batch, np.ones((1, 2, 2)), None, np.ones((2, 2)), (0, 0), state)
    merge(np.zeros(1, np.int64), state, empty((1, 1)))
