# ruff: noqa: PLR0917  numba passes arguments by position
"""Gather pixels of one grid onto another: positions from a mesh, weights once for all bands, missing pixels left out.

What a target pixel gets depends on its leaf of the mesh and on source pixels alone, never on the window that is worked
on; that is why results do not depend on how work is cut.
"""

import numpy as np

from eorouter_kernels._jit import allocating_kernel, kernel
from eorouter_kernels.lobes import AVERAGE, BILINEAR, SCALE_MIN, SLIVER, SUM, taps, weights_along
from eorouter_kernels.neighbourhood import lane_count, weighted_sums
from eorouter_kernels.positions import COL, DENSE, HEIGHT, ROW, WIDTH, row_positions, source_bounds

SHARE_MIN = 0.5
"""Least share of a widened kernel's weight that valid pixels must have."""

TILE = 32
VOID, MIXED, CLEAR = -1, 0, 1
"""Side of the tiles of source pixels that are looked at for missing ones, and what can be said of one."""

_VAST = 16
"""A kernel of so many more pixels than twice the source's never sees it whole: its weights need not be written down."""

_TIE = 1e-10
_NO_WEIGHT = 1e-6


@allocating_kernel
def nearest(
    leaves: np.ndarray, nodes: np.ndarray, clip: tuple[int, int, int, int], source: np.ndarray, valid: np.ndarray,
    origin: tuple[int, int], corner: tuple[int, int], out: np.ndarray, missing: np.ndarray,
) -> int:  # fmt: skip
    """The source pixel that each target centre falls into; returns how many values are missing.

    Shapes: leaves (n, 8), nodes (m, 2); source, valid (band, y, x), valid of size 0 when all are data; out, missing
        (band, row, column) of which `clip` is filled. `missing` comes in all false.
    Units: positions in source pixels; `origin` is the source row and column of source[:, 0, 0], `corner` the target's
        out[:, 0, 0].
    Nodata: outside the source, at NaN positions and on pixels that are not valid the value is 0 and missing.
    Reference: GDAL's nearest neighbour, ties included (1e-10 px).
    """
    bands, height, width = source.shape
    has_valid = valid.size > 0
    flat, flat_valid = source.reshape(bands, height * width), valid.reshape(bands, valid.shape[1] * valid.shape[2])
    long = 1
    for n in range(leaves.shape[0]):
        long = max(long, leaves[n, WIDTH])
    x, y, sx, sy, area = np.empty(long), np.empty(long), np.empty(long), np.empty(long), np.empty(long)
    xs, ys, whole_row = np.empty(long, np.int32), np.empty(long, np.int32), np.int64(width)
    lost = 0
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        count = right - left
        if count <= 0:
            continue
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            row_positions(leaf, nodes, row, left, count, 0.0, x, y, sx, sy, area)
            # NaN becomes −1 or the size, and either is outside.
            for j in range(count):
                xs[j] = np.int32(min(max(np.floor(x[j] + _TIE) - origin[1], -1.0), width + 0.0))
            for j in range(count):
                ys[j] = np.int32(min(max(np.floor(y[j] + _TIE) - origin[0], -1.0), height + 0.0))
            west, east, top, bottom = xs[0], xs[0], ys[0], ys[0]
            for j in range(count):
                west, east, top, bottom = min(west, xs[j]), max(east, xs[j]), min(top, ys[j]), max(bottom, ys[j])
            is_inside = west >= 0 and top >= 0 and east < width and bottom < height
            for b in range(bands):
                target, gone = out[b, row - corner[0]], missing[b, row - corner[0]]
                cut, band = target[left - corner[1] : right - corner[1]], flat[b]
                if is_inside and not has_valid:
                    for j in range(count):
                        cut[j] = band[np.uint64(ys[j] * whole_row + xs[j])]
                    continue
                for j in range(count):
                    known = xs[j] >= 0 and ys[j] >= 0 and xs[j] < width and ys[j] < height
                    at = ys[j] * whole_row + xs[j]
                    known = known and (not has_valid or flat_valid[b, at])
                    cut[j] = band[at] if known else 0
                    if not known:
                        gone[left - corner[1] + j] = True
                        lost += 1
    return lost


@allocating_kernel
def _tile_states(valid: np.ndarray) -> np.ndarray:
    """`CLEAR`, `MIXED` or `VOID` of tiles of 32 × 32 pixels: (band, tile row, tile column) int8."""
    bands, height, width = valid.shape
    states = np.empty((bands, (height + TILE - 1) // TILE, (width + TILE - 1) // TILE), np.int8)
    known = np.empty(states.shape[2], np.int64)
    for b in range(bands):
        for tile_row in range(states.shape[1]):
            top, bottom = tile_row * TILE, min((tile_row + 1) * TILE, height)
            known[:] = 0
            for r in range(top, bottom):
                for tile_col in range(states.shape[2]):
                    # A view, which is summed with whole vectors: 0.17 ns per pixel against 0.63 by index.
                    row = valid[b, r, tile_col * TILE : min((tile_col + 1) * TILE, width)]
                    count = np.int32(0)
                    for c in range(row.size):
                        count += np.int32(row[c])
                    known[tile_col] += count
            for tile_col in range(states.shape[2]):
                pixels = (bottom - top) * (min((tile_col + 1) * TILE, width) - tile_col * TILE)
                is_clear, is_void = known[tile_col] == pixels, known[tile_col] == 0
                states[b, tile_row, tile_col] = CLEAR if is_clear else VOID if is_void else MIXED
    return states


@kernel
def _all_are(states: np.ndarray, band: int, box: tuple[int, int, int, int], wanted: int) -> bool:
    """Whether every tile of a band that the box (row, col, row_stop, col_stop) touches is in the wanted state."""
    for r in range(box[0] // TILE, (box[2] + TILE - 1) // TILE):
        for c in range(box[1] // TILE, (box[3] + TILE - 1) // TILE):
            if states[band, r, c] != wanted:
                return False
    return True


@kernel
def _clipped(first: int, taps: int, size: int) -> tuple[int, int]:
    """The taps that lie on the source: the first of them, and the one behind the last."""
    low = min(max(-first, 0), taps)
    return low, max(min(size - first, taps), low)


@kernel
def _heaviest(weights: np.ndarray, j: int, start: int, stop: int) -> float:
    """Largest weight of a pixel's taps `start … stop - 1`, by its absolute value."""
    found = 0.0
    for k in range(start, stop):
        found = max(found, abs(float(weights[k, j])))
    return found


@kernel
def _patched(
    kind: int, source: np.ndarray, valid: np.ndarray, band: int, first: tuple[int, int], taps: tuple[int, int],
    centre: tuple[float, float], scale: tuple[float, float], area: float, wy: np.ndarray, wx: np.ndarray, j: int,
) -> tuple[bool, float]:  # fmt: skip
    """One pixel some of whose source pixels may be missing: (is it known, its value).

    Shapes: source, valid (band, y, x), valid of size 0 when all are data; wy, wx (≥ taps, > j). Pairs are (y, x);
        `first` and `centre` are counted from the array's first pixel.
    Nodata: with all its pixels at hand the value is the plain sum; else see `_share`. Where nothing was widened the
        pixel the centre falls into must be valid.
    """
    height, width = source.shape[1], source.shape[2]
    is_box = kind >= AVERAGE
    if not is_box and not (scale[0] > 1.0 or scale[1] > 1.0):
        r, c = int(np.floor(centre[0] + _TIE)), int(np.floor(centre[1] + _TIE))
        if r < 0 or c < 0 or r >= height or c >= width or (valid.size > 0 and not valid[band, r, c]):
            return False, 0.0
    # Of a widened kernel's many weights each is small; of a box any counts.
    least = 0.0 if is_box else _NO_WEIGHT / (scale[0] * scale[1])
    (top, bottom), (west, east) = _clipped(first[0], taps[0], height), _clipped(first[1], taps[1], width)
    outside_y = max(_heaviest(wy, j, 0, top), _heaviest(wy, j, bottom, taps[0]))
    outside_x = max(_heaviest(wx, j, 0, west), _heaviest(wx, j, east, taps[1]))
    is_whole = outside_y * _heaviest(wx, j, 0, taps[1]) <= least and outside_x * _heaviest(wy, j, 0, taps[0]) <= least
    total = wx.dtype.type(0)
    for kx in range(west, east):
        if not is_whole:
            break
        part = wx.dtype.type(0)
        for ky in range(top, bottom):
            r, c = first[0] + ky, first[1] + kx
            if valid.size > 0 and not valid[band, r, c]:
                is_whole = is_whole and abs(wy[ky, j] * wx[kx, j]) <= least
            else:
                part += wy[ky, j] * wx.dtype.type(source[band, r, c])
        total += wx[kx, j] * part
    if is_whole:
        return True, total
    return _share(kind, source, valid, band, centre, scale, area)


@kernel
def _weight_at(is_box: bool, k: int, centre: float, scale: float) -> float:
    """Overlap of source pixel `k` with a box, or the triangle at its centre."""
    if not is_box:
        return max(1.0 - abs(k + 0.5 - centre) / scale, 0.0)
    cut = min(k + 1.0, centre + 0.5 * scale) - max(k + 0.0, centre - 0.5 * scale)
    return cut if cut > SLIVER else 0.0


@kernel
def _triangle_sum(centre: float, scale: float) -> float:
    """Sum of the triangle over all pixels, there or not: on either side of the centre an arithmetic series."""
    past = centre - 0.5 - np.floor(centre - 0.5)
    total = 0.0
    for nearest_px in (past, 1.0 - past):
        count = max(np.ceil(scale - nearest_px), 0.0)
        total += count - (count * nearest_px + 0.5 * count * (count - 1.0)) / scale
    return total


@kernel
def _share(
    kind: int, source: np.ndarray, valid: np.ndarray, band: int, centre: tuple[float, float],
    scale: tuple[float, float], area: float,
) -> tuple[bool, float]:  # fmt: skip
    """One pixel of what there is of its source pixels: (is it known, its value); arguments as of `_patched`.

    Nodata: cubic and Lanczos kernels, whose negative lobes must not be scaled up, give way to the triangle, and weights
        are renormalised over what is valid. A widened kernel needs `SHARE_MIN` of its weight; an average or sum any.
        A sum is of overlaps, times `area`.
    """
    is_box = kind >= AVERAGE
    reach_y, reach_x = (0.5 * scale[0], 0.5 * scale[1]) if is_box else scale
    top, bottom = max(np.floor(centre[0] - reach_y), 0.0), min(np.ceil(centre[0] + reach_y), source.shape[1] + 0.0)
    west, east = max(np.floor(centre[1] - reach_x), 0.0), min(np.ceil(centre[1] + reach_x), source.shape[2] + 0.0)
    got, summed = 0.0, 0.0
    for r in range(int(top), int(bottom)):
        weight_y = _weight_at(is_box, r, centre[0], scale[0])
        if weight_y == 0.0:
            continue
        for c in range(int(west), int(east)):
            if valid.size > 0 and not valid[band, r, c]:
                continue
            weight = weight_y * _weight_at(is_box, c, centre[1], scale[1])
            got += weight
            if weight > 0.0:
                summed += weight * source[band, r, c]
    if got <= 0.0:
        return False, 0.0
    if kind == SUM:
        return True, summed * area
    is_widened = not is_box and (scale[0] > 1.0 or scale[1] > 1.0)
    if is_widened and got < SHARE_MIN * _triangle_sum(centre[0], scale[0]) * _triangle_sum(centre[1], scale[1]):
        return False, 0.0
    return True, summed / got


@kernel
def _whole_until(
    first_y: np.ndarray, first_x: np.ndarray, origin: tuple[int, int], size: tuple[int, int], reach: tuple[int, int],
    states: np.ndarray, band: int, j: int, count: int,
) -> int:  # fmt: skip
    """End of the run of pixels from `j` on whose neighbourhoods of `reach` (rows, columns) are there whole.

    Shapes: first_y, first_x (≥ count,); states as of `_tile_states`, of size 0 when all are data.
    """
    while j < count:
        r, c = first_y[j] - origin[0], first_x[j] - origin[1]
        if r < 0 or c < 0 or r + reach[0] > size[0] or c + reach[1] > size[1]:
            return j
        if states.size > 0 and not _all_are(states, band, (r, c, r + reach[0], c + reach[1]), CLEAR):
            return j
        j += 1
    return count


@kernel
def _void_until(
    first_y: np.ndarray, first_x: np.ndarray, origin: tuple[int, int], size: tuple[int, int], taps: tuple[int, int],
    states: np.ndarray, band: int, j: int, count: int,
) -> int:  # fmt: skip
    """End of the run of pixels from `j` on of whose neighbourhoods nothing is there; arguments as above."""
    while j < count:
        top, left = max(first_y[j] - origin[0], 0), max(first_x[j] - origin[1], 0)
        bottom = min(first_y[j] - origin[0] + taps[0], size[0])
        right = min(first_x[j] - origin[1] + taps[1], size[1])
        if (
            top < bottom
            and left < right
            and not (states.size > 0 and _all_are(states, band, (top, left, bottom, right), VOID))
        ):
            return j
        j += 1
    return count


@kernel
def _patchy_sums(
    kind: int, source: np.ndarray, valid: np.ndarray, states: np.ndarray, origin: tuple[int, int],
    first_y: np.ndarray, first_x: np.ndarray, taps: tuple[int, int], lanes: int,
    place: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], wy: np.ndarray, wx: np.ndarray,
    count: int, sums: np.ndarray, missing: np.ndarray, start: tuple[int, int, int],
) -> int:  # fmt: skip
    """Weighted sums of a row, run by run: neighbourhoods that are there whole or not at all at once, others one by one.

    Shapes: as in `weighted`; `place` holds y, x, their scales and areas; `start` is (band, row, column) of `missing`.
        Returns how many pixels are missing.
    """
    lost, j, size = 0, 0, (source.shape[1], source.shape[2])
    y, x, sy, sx, area = place
    band, row, col = start
    while j < count:
        stop = _whole_until(first_y, first_x, origin, size, (taps[0], lanes), states, band, j, count)
        if stop > j:
            weighted_sums(source, band, origin, first_y, first_x, taps, wy, wx, (j, stop), sums)
            j = stop
            continue
        stop = _void_until(first_y, first_x, origin, size, taps, states, band, j, count)
        if stop > j:
            sums[j:stop] = 0
            missing[band, row, col + j : col + stop] = True
            lost += stop - j
            j = stop
            continue
        known, value = _patched(
            kind, source, valid, band, (first_y[j] - origin[0], first_x[j] - origin[1]), taps,
            (y[j] - origin[0], x[j] - origin[1]), (sy[j], sx[j]), area[j], wy, wx, j,
        )  # fmt: skip
        sums[j] = value
        if not known:
            missing[band, row, col + j] = True
            lost += 1
        j += 1
    return lost


@kernel
def _box(
    first_y: np.ndarray, first_x: np.ndarray, count: int, origin: tuple[int, int], reach: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Box (row, col, row_stop, col_stop) of the array that the neighbourhoods of a row's pixels lie in."""
    top, bottom, west, east = first_y[0], first_y[0], first_x[0], first_x[0]
    for j in range(count):
        top, bottom = min(top, first_y[j]), max(bottom, first_y[j])
        west, east = min(west, first_x[j]), max(east, first_x[j])
    return top - origin[0], west - origin[1], bottom - origin[0] + reach[0], east - origin[1] + reach[1]


@kernel
def _store(
    sums: np.ndarray, count: int, limits: tuple[float, float], out: np.ndarray, start: tuple[int, int, int]
) -> None:
    """Put a row's sums in their place (band, row, column) as the output's type has them; `limits` as in `weighted`."""
    cut = out[start[0], start[1], start[2] : start[2] + count]
    if limits[0] <= limits[1]:
        low, high = sums.dtype.type(limits[0]), sums.dtype.type(limits[1])
        for j in range(count):
            cut[j] = min(max(np.rint(sums[j]), low), high)
    else:
        for j in range(count):
            # −0 becomes 0: which of them a sum of nothing is depends on the path it took.
            cut[j] = sums[j] + 0.0


@kernel
def _vast_row(
    kind: int, source: np.ndarray, valid: np.ndarray, origin: tuple[int, int],
    place: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], count: int, sums: np.ndarray,
    limits: tuple[float, float], out: np.ndarray, missing: np.ndarray, start: tuple[int, int],
) -> int:  # fmt: skip
    """Fill a row whose kernels are far larger than the source, of which they never see but a share, from `start` on.

    Shapes: `place` holds y, x, their scales and areas. Returns how many values are missing.
    """
    y, x, sy, sx, area = place
    row, col = start
    lost = 0
    for b in range(source.shape[0]):
        for j in range(count):
            at, scale = (y[j] - origin[0], x[j] - origin[1]), (sy[j], sx[j])
            known, value = _share(kind, source, valid, b, at, scale, area[j])
            sums[j] = value
            if not known:
                missing[b, row, col + j] = True
                lost += 1
        _store(sums, count, limits, out, (b, row, col))
    return lost


@kernel
def _settled(
    kind: int, is_dense: bool, count: int, x: np.ndarray, y: np.ndarray, sx: np.ndarray, sy: np.ndarray,
    area: np.ndarray,
) -> tuple[float, float, bool]:  # fmt: skip
    """Make positions and sizes fit for `weights_along`, in place; gives the largest sizes and whether all are alike.

    Shapes: all (≥ count,) float64.
    Nodata: what has no position is put far outside, where nothing is valid.
    """
    wide_x, wide_y = 1.0, 1.0
    if not is_dense and abs(x[0]) + abs(y[0]) + abs(x[count - 1]) + abs(y[count - 1]) < 1e9:
        # Along the row of a bilinear leaf positions are linear and sizes all alike.
        if kind == SUM:
            area[:count] = area[0] / (sx[0] * sy[0])
        elif kind != AVERAGE:
            if sx[0] <= SCALE_MIN:
                sx[:count] = 1.0
            if sy[0] <= SCALE_MIN:
                sy[:count] = 1.0
        return max(sx[0], 1.0), max(sy[0], 1.0), True
    for j in range(count):
        if not (abs(x[j]) < 1e9 and abs(y[j]) < 1e9):
            x[j], y[j], sx[j], sy[j], area[j] = -1e9, -1e9, 1.0, 1.0, 1.0
        if kind == SUM:
            area[j] = area[j] / (sx[j] * sy[j])
        elif kind != AVERAGE:
            sx[j] = sx[j] if sx[j] > SCALE_MIN else 1.0
            sy[j] = sy[j] if sy[j] > SCALE_MIN else 1.0
        wide_x, wide_y = max(wide_x, sx[j]), max(wide_y, sy[j])
    return wide_x, wide_y, False


@allocating_kernel
def weighted(
    kind: int, leaves: np.ndarray, nodes: np.ndarray, clip: tuple[int, int, int, int], period: float,
    source: np.ndarray, valid: np.ndarray, origin: tuple[int, int], corner: tuple[int, int],
    limits: tuple[float, float], total: np.ndarray, out: np.ndarray, missing: np.ndarray,
) -> int:  # fmt: skip
    """Bilinear, cubic and Lanczos interpolation, widened where pixels grow; area-weighted average and sum.

    Shapes: as in `nearest`; total (0,) of float32 or float64, the type to add up in. `limits` is the smallest and
        largest value of an integer type, (1, 0) for floats.
    Units: those of the pixels; integers are rounded half to even and held to the type's range.
    Nodata: see `_patched`. The footprint of a pixel is taken as a rectangle along the source's rows and columns, which
        is exact where the grids run alike; a sum is scaled by the footprint's true area over that rectangle's.
    """
    bands, height, width = source.shape
    has_valid = valid.size > 0
    states = _tile_states(valid)
    long = 1
    for n in range(leaves.shape[0]):
        long = max(long, min(leaves[n, WIDTH], clip[3] - clip[1]))
    x, y, sx, sy, area = np.empty(long), np.empty(long), np.empty(long), np.empty(long), np.empty(long)
    first_x, first_y = np.empty(long, np.int32), np.empty(long, np.int32)
    wx, wy, sums = np.empty((8, long), total.dtype), np.empty((8, long), total.dtype), np.empty(long, total.dtype)
    offset, inverse, whole = np.empty(long, total.dtype), np.empty(long, total.dtype), np.empty(long, total.dtype)
    lost = 0
    # Arrays are passed whole, with indices: a view costs two calls that count references, and a dozen of them per row
    # took as long as the pixels of a leaf's row.
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            start, count = left, right - left
            while start < right:
                row_positions(leaf, nodes, row, start, count, period, x, y, sx, sy, area)
                wide_x, wide_y, is_even = _settled(kind, leaf[DENSE] == 1, count, x, y, sx, sy, area)
                nx, ny = taps(kind, wide_x), taps(kind, wide_y)
                is_vast = nx > 2 * width + _VAST or ny > 2 * height + _VAST
                if is_vast and not is_even and count > 1:
                    count = 1  # the sizes differ: the rest of the row goes pixel by pixel, each as vast as it is
                    continue
                place = (row - corner[0], start - corner[1])
                if is_vast:
                    every = (y, x, sy, sx, area)
                    lost += _vast_row(kind, source, valid, origin, every, count, sums, limits, out, missing, place)
                    start += count
                    continue
                lanes = lane_count(nx)
                if max(lanes, ny) > wx.shape[0]:
                    wx = np.empty((max(lanes, ny), long), total.dtype)
                    wy = np.empty((max(lanes, ny), long), total.dtype)
                weights_along(kind, x, sx, nx, lanes, wide_x > 1.0, is_even, count, first_x, wx, offset, inverse, whole)
                weights_along(kind, y, sy, ny, ny, wide_y > 1.0, is_even, count, first_y, wy, offset, inverse, whole)
                if kind == SUM:
                    for k in range(ny):
                        for j in range(count):
                            wy[k, j] *= area[j]
                box = _box(first_y, first_x, count, origin, (ny, lanes))
                is_inside = box[0] >= 0 and box[1] >= 0 and box[2] <= height and box[3] <= width
                for b in range(bands):
                    if is_inside and (not has_valid or _all_are(states, b, box, CLEAR)):
                        weighted_sums(source, b, origin, first_y, first_x, (ny, nx), wy, wx, (0, count), sums)
                    else:
                        lost += _patchy_sums(
                            kind, source, valid, states, origin, first_y, first_x, (ny, nx), lanes,
                            (y, x, sy, sx, area), wy, wx, count, sums, missing, (b, *place),
                        )  # fmt: skip
                    _store(sums, count, limits, out, (b, *place))
                start += count
    return lost


def sum_type(dtype: np.dtype) -> np.dtype:
    """What pixels of a type are added up in: float32 holds 16-bit integers and their weights, float64 the rest."""
    return np.dtype(np.float32 if dtype.kind in "iu" and dtype.itemsize <= 2 else np.float64)


def warm_up() -> None:
    """Compile for the usual pixel types, or load from the cache; the rarer reductions compile when they first come."""
    leaves = np.array([[0, 0, 2, 2, 2, 2, 0, 0]])
    nodes = np.array([[0.5, 0.5], [2.5, 0.5], [0.5, 2.5], [2.5, 2.5]])
    clip, none = (0, 0, 2, 2), np.empty((0, 0, 0), np.bool_)
    source_bounds(leaves, nodes, clip, 1.0, 0.0)
    for name in ("uint8", "uint16", "uint32"):
        pixels, out, missing = np.ones((1, 2, 2), name), np.empty((1, 2, 2), name), np.zeros((1, 2, 2), np.bool_)
        nearest(leaves, nodes, clip, pixels, none, (0, 0), (0, 0), out, missing)
    for name in ("uint16", "float32"):
        pixels, out, missing = np.ones((1, 2, 2), name), np.empty((1, 2, 2), name), np.zeros((1, 2, 2), np.bool_)
        total = np.empty(0, sum_type(pixels.dtype))
        weighted(BILINEAR, leaves, nodes, clip, 0.0, pixels, none, (0, 0), (0, 0), (0.0, 1.0), total, out, missing)
