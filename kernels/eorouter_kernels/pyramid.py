"""Halve rasters and take their moments: what a pyramid level and a statistics row are made of.

Every cell of a level depends on its 2 × 2 children only, and every moment on one tile only, visited in one order, so
the numbers are the same however a raster was cut into shards. `valid` arrays of size 0 say that every pixel is data:
the common case then costs no memory traffic for a mask.
"""

import numpy as np

from eorouter_kernels._jit import WARM_DTYPES, allocating_kernel, kernel
from eorouter_kernels.nodata import Nodata, around

MOMENTS = 5
"""Numbers per tile and band: count, mean, sum of squared deviations, minimum, maximum."""

LEAST, MEDIAN, GREATEST = range(3)

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Pixel types the kernels are compiled for ahead of use."""


@kernel
def halve_mean_integers(
    pixels: np.ndarray, valid: np.ndarray, nodata: int, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Mean of the valid pixels of each 2 × 2 cell, rounded half to even.

    Shapes: pixels, valid (band, y, x) integer and bool (or valid of size 0); out, out_valid (band, ⌈y/2⌉, ⌈x/2⌉).
    Units: those of the pixels.
    Nodata: a cell without valid pixels is `nodata` and not valid; a mean that happens to equal `nodata` moves up by one
        (down at the type's maximum), or data would vanish from the level. A `nodata` that the type cannot hold stands
        for none: nothing moves, and a cell without valid pixels is 0. out_valid is not written when valid has size 0.
    Reference: GDAL's AVERAGE overviews, including the step away from nodata; rounding per IEEE 754 §4.3.1.
    """
    bands, height, width = pixels.shape
    has_valid = valid.size > 0
    top = np.float64(np.iinfo(pixels.dtype).max)
    aside = nodata + 1.0 if nodata < top else nodata - 1.0
    fill = np.float64(nodata) if np.iinfo(pixels.dtype).min <= nodata <= top else 0.0
    for b in range(bands):
        for r in range(out.shape[1]):
            last = min(2 * r + 1, height - 1)
            upper, lower, target = pixels[b, 2 * r], pixels[b, last], out[b, r]
            if not has_valid:
                # On the last odd row and column a pixel counts twice, which leaves the mean as it is.
                for c in range(width // 2):
                    s = np.int64(upper[2 * c]) + np.int64(upper[2 * c + 1])
                    s += np.int64(lower[2 * c]) + np.int64(lower[2 * c + 1])
                    # s / 4 rounded half to even; (s >> 2) & 1 is the parity of the floor.
                    target[c] = (s + 1 + ((s >> 2) & 1)) >> 2
                if width % 2:
                    s = 2 * (np.int64(upper[width - 1]) + np.int64(lower[width - 1]))
                    target[width // 2] = (s + 1 + ((s >> 2) & 1)) >> 2
                continue
            top_valid, low_valid, target_valid = valid[b, 2 * r], valid[b, last], out_valid[b, r]
            for c in range(width // 2):
                i, j = 2 * c, 2 * c + 1
                n = np.int64(top_valid[i]) + np.int64(top_valid[j]) + np.int64(low_valid[i]) + np.int64(low_valid[j])
                s = np.int64(upper[i]) * top_valid[i] + np.int64(upper[j]) * top_valid[j]
                s += np.int64(lower[i]) * low_valid[i] + np.int64(lower[j]) * low_valid[j]
                # Exact: a sum of four 32-bit integers is a float64, and thirds are never near a tie.
                mean = np.rint(np.float64(s) / np.float64(max(n, 1)))
                mean = aside if mean == nodata else mean
                target[c] = np.int64(mean if n else fill)
                target_valid[c] = n > 0
            if width % 2:
                i = width - 1
                n = np.int64(top_valid[i]) + np.int64(low_valid[i])
                s = np.int64(upper[i]) * top_valid[i] + np.int64(lower[i]) * low_valid[i]
                mean = np.rint(np.float64(s) / np.float64(max(n, 1)))
                mean = aside if mean == nodata else mean
                target[width // 2] = np.int64(mean if n else fill)
                target_valid[width // 2] = n > 0


@kernel
def halve_mean_floats(
    pixels: np.ndarray, valid: np.ndarray, nodata: Nodata, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Mean of the valid pixels of each 2 × 2 cell.

    Shapes: pixels, valid (band, y, x) float and bool (or valid of size 0); out, out_valid (band, ⌈y/2⌉, ⌈x/2⌉).
    Units: those of the pixels; sums are taken in float64, rows first.
    Nodata: a cell without valid pixels is `nodata` (NaN allowed) and not valid; a mean that would be taken for it steps
        aside, or data would vanish from the level. out_valid is not written when valid has size 0.
    Reference: GDAL's AVERAGE overviews.
    """
    bands, height, width = pixels.shape
    has_valid = valid.size > 0
    kind = out.dtype.type
    low, high, aside, fill = kind(nodata.first), kind(nodata.last), kind(nodata.aside), kind(nodata.value)
    for b in range(bands):
        for r in range(out.shape[1]):
            last = min(2 * r + 1, height - 1)
            upper, lower, target = pixels[b, 2 * r], pixels[b, last], out[b, r]
            if not has_valid:
                for c in range(width // 2):
                    s = np.float64(upper[2 * c]) + np.float64(upper[2 * c + 1])
                    s += np.float64(lower[2 * c]) + np.float64(lower[2 * c + 1])
                    mean = kind(0.25 * s)
                    target[c] = aside if (mean >= low) & (mean <= high) else mean
                if width % 2:
                    mean = kind(0.5 * (np.float64(upper[width - 1]) + np.float64(lower[width - 1])))
                    target[width // 2] = aside if (mean >= low) & (mean <= high) else mean
                continue
            top_valid, low_valid, target_valid = valid[b, 2 * r], valid[b, last], out_valid[b, r]
            for c in range(width // 2):
                i, j = 2 * c, 2 * c + 1
                n = np.int64(top_valid[i]) + np.int64(top_valid[j]) + np.int64(low_valid[i]) + np.int64(low_valid[j])
                s = (np.float64(upper[i]) if top_valid[i] else 0.0) + (np.float64(upper[j]) if top_valid[j] else 0.0)
                s += (np.float64(lower[i]) if low_valid[i] else 0.0) + (np.float64(lower[j]) if low_valid[j] else 0.0)
                mean = kind(s / np.float64(n))
                mean = aside if (mean >= low) & (mean <= high) else mean
                target[c] = mean if n else fill
                target_valid[c] = n > 0
            if width % 2:
                i = width - 1
                n = np.int64(top_valid[i]) + np.int64(low_valid[i])
                s = (np.float64(upper[i]) if top_valid[i] else 0.0) + (np.float64(lower[i]) if low_valid[i] else 0.0)
                mean = kind(s / np.float64(n))
                mean = aside if (mean >= low) & (mean <= high) else mean
                target[width // 2] = mean if n else fill
                target_valid[width // 2] = n > 0


@allocating_kernel
def halve_mode(pixels: np.ndarray, valid: np.ndarray, nodata: float, out: np.ndarray, out_valid: np.ndarray) -> None:
    """Most frequent valid value of each 2 × 2 cell; of equally frequent ones the first in reading order.

    Shapes: pixels, valid (band, y, x) and bool (or valid of size 0); out, out_valid (band, ⌈y/2⌉, ⌈x/2⌉).
    Units: those of the pixels.
    Nodata: a cell without valid pixels is `nodata` and not valid. out_valid is not written when valid has size 0.
    Reference: GDAL's MODE overviews, with the tie made explicit.
    """
    bands, height, width = pixels.shape
    has_valid = valid.size > 0
    values = np.empty(4, pixels.dtype)
    for b in range(bands):
        for r in range(out.shape[1]):
            if not has_valid:
                # On the last odd row and column a pixel counts twice, which leaves ties and the order as they are.
                upper, lower, target = pixels[b, 2 * r], pixels[b, min(2 * r + 1, height - 1)], out[b, r]
                for c in range(width // 2):
                    one, two, three, four = upper[2 * c], upper[2 * c + 1], lower[2 * c], lower[2 * c + 1]
                    found = three if three == four else one
                    found = two if (two == three) | (two == four) else found
                    target[c] = one if (one == two) | (one == three) | (one == four) else found
                if width % 2:
                    target[width // 2] = upper[width - 1]
                continue
            for c in range(out.shape[2]):
                n = 0
                for y in range(2 * r, min(2 * r + 2, height)):
                    for x in range(2 * c, min(2 * c + 2, width)):
                        if valid[b, y, x]:
                            values[n] = pixels[b, y, x]
                            n += 1
                best, most = 0, 0
                for i in range(n):
                    votes = 0
                    for j in range(n):
                        votes += values[j] == values[i]
                    if votes > most:
                        best, most = i, votes
                if n:
                    out[b, r, c] = values[best]
                else:
                    out[b, r, c] = nodata
                out_valid[b, r, c] = n > 0


@allocating_kernel
def halve_ranked(  # noqa: PLR0917 - kernels take no keywords
    pixels: np.ndarray, valid: np.ndarray, rank: int, nodata: float, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Least, lower median or greatest valid value of each 2 × 2 cell, for `rank` LEAST, MEDIAN and GREATEST.

    Shapes: pixels, valid (band, y, x) and bool (or valid of size 0); out, out_valid (band, ⌈y/2⌉, ⌈x/2⌉).
    Units: those of the pixels; a value of the cell, never one between two.
    Nodata: a cell without valid pixels is `nodata` and not valid. out_valid is not written when valid has size 0.
    Reference: order statistics; of two or four values the lower of the middle ones, as in `reductions`.
    """
    bands, height, width = pixels.shape
    has_valid = valid.size > 0
    values = np.empty(4, pixels.dtype)
    for b in range(bands):
        for r in range(out.shape[1]):
            for c in range(out.shape[2]):
                n = 0
                for y in range(2 * r, min(2 * r + 2, height)):
                    for x in range(2 * c, min(2 * c + 2, width)):
                        if not has_valid or valid[b, y, x]:
                            value, i = pixels[b, y, x], n
                            while i > 0 and values[i - 1] > value:
                                values[i] = values[i - 1]
                                i -= 1
                            values[i] = value
                            n += 1
                if n:
                    out[b, r, c] = values[(n - 1) * rank // 2]
                else:
                    out[b, r, c] = nodata
                if has_valid:
                    out_valid[b, r, c] = n > 0


@allocating_kernel
def tile_moments(pixels: np.ndarray, valid: np.ndarray, tile: int, out: np.ndarray) -> None:
    """Count, mean, sum of squared deviations, minimum and maximum of every tile and band.

    Shapes: pixels, valid (band, y, x) and bool (or valid of size 0); out (tile row, tile column, band, 5) float64,
        tiles of `tile` × `tile` pixels, cut at the lower and right edge.
    Units: those of the pixels.
    Nodata: pixels that are not valid are left out; a tile without any has count 0 and NaN elsewhere.
    Reference: shifted data, Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance,
        doi:10.1080/00031305.1983.10483115. The shift is the tile's first valid pixel. Sums run down the columns and
        then across them: one fixed order, and a loop the compiler can vectorise without reordering.
    """
    bands, height, width = pixels.shape
    has_valid = valid.size > 0
    total, squares = np.empty(tile), np.empty(tile)
    low, high = np.empty(tile, pixels.dtype), np.empty(tile, pixels.dtype)
    counts = np.empty(tile, np.int64)
    for b in range(bands):
        for tr in range(out.shape[0]):
            for tc in range(out.shape[1]):
                y0, x0 = tr * tile, tc * tile
                rows, cols = min(tile, height - y0), min(tile, width - x0)
                shift, found = pixels[b, y0, x0], not has_valid
                for y in range(y0, y0 + rows):
                    if found:
                        break
                    for x in range(x0, x0 + cols):
                        if valid[b, y, x]:
                            shift, found = pixels[b, y, x], True
                            break
                # Loops for what slices, `min` and `max` would say: those take two seconds more to compile, per type.
                for x in range(cols):
                    total[x], squares[x], low[x], high[x] = 0.0, 0.0, shift, shift
                    counts[x] = 0 if has_valid else rows
                origin = np.float64(shift)
                if found and not has_valid:
                    for y in range(y0, y0 + rows):
                        line = pixels[b, y, x0 : x0 + cols]
                        for x in range(cols):
                            v = line[x]
                            d = np.float64(v) - origin
                            total[x] += d
                            squares[x] += d * d
                            low[x] = min(low[x], v)
                            high[x] = max(high[x], v)
                elif found:
                    for y in range(y0, y0 + rows):
                        line, is_data = pixels[b, y, x0 : x0 + cols], valid[b, y, x0 : x0 + cols]
                        for x in range(cols):
                            v = line[x] if is_data[x] else shift
                            d = np.float64(v) - origin
                            total[x] += d
                            squares[x] += d * d
                            low[x] = min(low[x], v)
                            high[x] = max(high[x], v)
                            counts[x] += is_data[x]
                n, s, q, least, most = 0, 0.0, 0.0, low[0], high[0]
                for x in range(cols):
                    n += counts[x]
                    s += total[x]
                    q += squares[x]
                    least, most = min(least, low[x]), max(most, high[x])
                out[tr, tc, b, 0] = n
                if n == 0:
                    for k in range(1, 5):
                        out[tr, tc, b, k] = np.nan
                else:
                    out[tr, tc, b, 1] = origin + s / n
                    out[tr, tc, b, 2] = max(q - s * s / n, 0.0)
                    out[tr, tc, b, 3] = least
                    out[tr, tc, b, 4] = most


def merge_moments(parts: np.ndarray) -> np.ndarray:
    """Moments of a whole from those of its tiles, pairwise in order: (tile, band, 5) → (band, 5).

    A fixed tree over the tiles in reading order, so the result does not depend on which shard made which tile.
    """
    rows = np.asarray(parts, dtype=np.float64)
    while rows.shape[0] > 1:
        odd = rows[-1:] if rows.shape[0] % 2 else rows[:0]
        rows = np.concatenate([_merge_pair(rows[0 : rows.shape[0] - 1 : 2], rows[1::2]), odd])
    return rows[0]


def _merge_pair(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n_a, n_b = a[..., 0], b[..., 0]
    n = n_a + n_b
    with np.errstate(invalid="ignore", divide="ignore"):
        delta = b[..., 1] - a[..., 1]
        merged = np.stack(
            [
                n,
                a[..., 1] + delta * (n_b / n),
                a[..., 2] + b[..., 2] + delta * delta * (n_a * n_b / n),
                np.fmin(a[..., 3], b[..., 3]),
                np.fmax(a[..., 4], b[..., 4]),
            ],
            axis=-1,
        )
    merged = np.where((n_b == 0)[..., None], a, merged)
    return np.where((n_a == 0)[..., None], b, merged)


def warm_up() -> None:
    """Compile for the usual pixel types, or load from the cache."""
    every, some = np.empty((0, 0, 0), np.bool_), np.ones((1, 2, 2), np.bool_)
    for name in WARM_DTYPES:
        pixels, out = np.ones((1, 2, 2), name), np.empty((1, 1, 1), name)
        for valid in (every, some):
            if pixels.dtype.kind == "f":
                halve_mean_floats(pixels, valid, around(0.0, name), out, np.empty((1, 1, 1), np.bool_))
            else:
                halve_mean_integers(pixels, valid, 0, out, np.empty((1, 1, 1), np.bool_))
            tile_moments(pixels, valid, 2, np.empty((1, 1, 1, MOMENTS)))
