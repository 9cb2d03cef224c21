# ruff: noqa: PLR0917  numba passes arguments by position
"""Gather pixels of one grid onto another: positions from a mesh, weights once for all bands, missing pixels left out.

A *mesh* says where the centres of target pixels lie in the source: leaves that tile the target, each with the source
position (x, y), in pixels, of its corner nodes. Between the nodes positions are bilinear, so linear along a row. A
*dense* leaf has a node per pixel, and one more row and column for the size of the last pixels. The centre of the
source's first pixel is (0.5, 0.5). What a target pixel gets depends on its leaf and on source pixels alone, never on
the window that is worked on; that is why results do not depend on how work is cut.
"""

import numpy as np

from eorouter_kernels._jit import kernel
from eorouter_kernels.neighbourhood import eight_wide, four_by_four, four_wide, two_by_two

ROW, COL, HEIGHT, WIDTH, ROW_SPAN, COL_SPAN, DENSE, START = range(8)
"""Columns of `leaves`: first row and column, pixels covered, distance in pixels between the corner nodes, 1 for a node
per pixel, index of its first node. Nodes are stored row by row: 2 × 2, of a dense leaf
(height + 1) × (width + 1)."""

BILINEAR, CUBIC, LANCZOS, AVERAGE, SUM = range(5)

SCALE_MIN = 1.05
"""Kernels are widened where a target pixel is more than this many source pixels wide, as GDAL does (0.95⁻¹)."""

SHARE_MIN = 0.5
"""Least share of a widened kernel's weight that valid pixels must have."""

SLIVER = 1e-6
"""Overlaps narrower than this, in source pixels, are rounding."""

_TIE = 1e-10
_NO_WEIGHT = 1e-6


@kernel
def row_positions(
    leaf: np.ndarray, nodes: np.ndarray, row: int, col: int, count: int, period: float, x: np.ndarray, y: np.ndarray,
    sx: np.ndarray, sy: np.ndarray, area: np.ndarray,
) -> None:  # fmt: skip
    """Positions of `count` pixels of a leaf's row, how many source pixels each is wide and high, and its area.

    Shapes: leaf (8,), nodes (n, 2); x, y, sx, sy, area (≥ count,) float64.
    Units: source pixels. `period` is the width of the globe in source pixels, 0 where x does not wrap.
    Nodata: NaN positions stay NaN.
    """
    start = leaf[START]
    if leaf[DENSE]:
        wide = leaf[WIDTH] + 1
        base = start + (row - leaf[ROW]) * wide + (col - leaf[COL])
        for j in range(count):
            here = base + j
            x[j], y[j] = nodes[here, 0], nodes[here, 1]
            ax, ay = nodes[here + 1, 0] - x[j], nodes[here + 1, 1] - y[j]
            if np.isnan(ax) and col + j > leaf[COL]:
                ax, ay = x[j] - nodes[here - 1, 0], y[j] - nodes[here - 1, 1]
            bx, by = nodes[here + wide, 0] - x[j], nodes[here + wide, 1] - y[j]
            if np.isnan(bx) and row > leaf[ROW]:
                bx, by = x[j] - nodes[here - wide, 0], y[j] - nodes[here - wide, 1]
            if period > 0:
                ax -= period * np.rint(ax / period)
                bx -= period * np.rint(bx / period)
            if np.isnan(ax) or np.isnan(bx):
                ax, ay, bx, by = 1.0, 0.0, 0.0, 1.0
            sx[j] = np.sqrt(ax * ax + bx * bx)
            sy[j] = np.sqrt(ay * ay + by * by)
            area[j] = abs(ax * by - bx * ay)
        return
    t = (row - leaf[ROW]) / leaf[ROW_SPAN]
    left_x = nodes[start, 0] + (nodes[start + 2, 0] - nodes[start, 0]) * t
    left_y = nodes[start, 1] + (nodes[start + 2, 1] - nodes[start, 1]) * t
    right_x = nodes[start + 1, 0] + (nodes[start + 3, 0] - nodes[start + 1, 0]) * t
    right_y = nodes[start + 1, 1] + (nodes[start + 3, 1] - nodes[start + 1, 1]) * t
    ax, ay = (right_x - left_x) / leaf[COL_SPAN], (right_y - left_y) / leaf[COL_SPAN]
    twice = 2.0 * leaf[ROW_SPAN]
    bx = (nodes[start + 2, 0] + nodes[start + 3, 0] - nodes[start, 0] - nodes[start + 1, 0]) / twice
    by = (nodes[start + 2, 1] + nodes[start + 3, 1] - nodes[start, 1] - nodes[start + 1, 1]) / twice
    wide_x, wide_y, covered = np.sqrt(ax * ax + bx * bx), np.sqrt(ay * ay + by * by), abs(ax * by - bx * ay)
    first = col - leaf[COL]
    # One array per loop: LLVM gives up on loops whose arrays might overlap in too many ways. And 32-bit numbers: AVX2
    # has no conversion of 64-bit ones.
    for j in range(count):
        x[j] = left_x + ax * np.float64(np.int32(first + j))
    for j in range(count):
        y[j] = left_y + ay * np.float64(np.int32(first + j))
    sx[:count] = wide_x
    sy[:count] = wide_y
    area[:count] = covered


@kernel
def _taps(kind: int, scale: float) -> int:
    """Source pixels that a kernel of this width can touch along one axis."""
    if kind >= AVERAGE:
        return int(np.ceil(scale)) + 1
    radius = 1.0 if kind == BILINEAR else 2.0 if kind == CUBIC else 3.0
    return int(np.ceil(2.0 * radius * scale))


@kernel
def _lobes(
    kind: int, taps: int, is_wide: bool, count: int, offset: np.ndarray, inverse: np.ndarray, whole: np.ndarray,
    weights: np.ndarray,
) -> None:  # fmt: skip
    """The kernel at every tap, and in `whole` the sum over them where it is not 1 by construction.

    Shapes: offset, inverse, whole (≥ count,); weights (≥ taps, ≥ count). `offset` is the centre, counted from the first
        tap, `inverse` one over the kernel's width; of a box they are its lower end and its width.
    """
    real = weights.dtype.type
    zero, one, two = real(0), real(1), real(2)
    for k in range(weights.shape[0]):
        row = weights[k]
        if k >= taps:
            for j in range(count):
                row[j] = zero
        elif kind >= AVERAGE:
            for j in range(count):
                cut = min(real(k) + one, offset[j] + inverse[j]) - max(real(k), offset[j])
                row[j] = cut if cut > real(SLIVER) else zero
                whole[j] += row[j]
        elif kind == CUBIC and not is_wide and 1 <= k <= 2:
            for j in range(count):
                d = abs(real(k) - offset[j])
                row[j] = (real(1.5) * d - real(2.5)) * d * d + one
        elif kind == CUBIC and not is_wide:
            for j in range(count):
                d = abs(real(k) - offset[j])
                row[j] = ((real(2.5) - real(0.5) * d) * d - real(4)) * d + two
        elif kind == BILINEAR and not is_wide:
            for j in range(count):
                row[j] = one - abs(real(k) - offset[j])
        elif kind == BILINEAR:
            for j in range(count):
                row[j] = max(one - abs(real(k) - offset[j]) * inverse[j], zero)
                whole[j] += row[j]
        elif kind == CUBIC:
            for j in range(count):
                d = abs(real(k) - offset[j]) * inverse[j]
                near = (real(1.5) * d - real(2.5)) * d * d + one
                far = ((real(2.5) - real(0.5) * d) * d - real(4)) * d + two
                row[j] = near if d < one else (far if d < two else zero)
                whole[j] += row[j]
        else:
            for j in range(count):
                d = abs(float(k) - offset[j]) * inverse[j]
                s = np.sin(np.pi / 3.0 * d)
                # sin 3a = sin a (3 − 4 sin² a): one sine instead of two.
                lobe = s * s * (3.0 - 4.0 * s * s) * 3.0 / (np.pi * np.pi * max(d * d, 1e-12))
                row[j] = real(1.0 if d < 1e-6 else lobe if d < 3.0 else 0.0)
                whole[j] += row[j]


@kernel
def _weights(
    kind: int, centre: np.ndarray, scale: np.ndarray, taps: int, is_wide: bool, count: int, first: np.ndarray,
    weights: np.ndarray, offset: np.ndarray, inverse: np.ndarray, whole: np.ndarray,
) -> None:  # fmt: skip
    """First source pixel and weights of a kernel along one axis, for pixels of one row.

    Shapes: centre, scale (≥ count,) float64; first (≥ count,) int32; weights (≥ taps, ≥ count); offset, inverse, whole
        (≥ count,) are room to work in. Rows of `weights` from `taps` on become zero.
    Units: source pixels. The weights of each pixel sum to 1; of SUM they are overlaps.
    Reference: triangle; Keys 1981, IEEE ASSP 29(6), a = −1/2; Lanczos with three lobes; box overlap.
    """
    real = weights.dtype.type
    zero, one = real(0), real(1)
    radius = 0.5 if kind >= AVERAGE else 1.0 if kind == BILINEAR else 2.0 if kind == CUBIC else 3.0
    # One array per loop, see `row_positions`.
    if kind >= AVERAGE:
        for j in range(count):
            low = np.floor(centre[j] - 0.5 * scale[j] + SLIVER)
            first[j] = np.int32(min(max(low, -1e9), 1e9))
        for j in range(count):
            offset[j] = real(centre[j] - 0.5 * scale[j] - first[j])
        for j in range(count):
            inverse[j] = real(scale[j])
    elif is_wide:
        for j in range(count):
            low = np.floor(centre[j] - 0.5 - radius * scale[j]) + 1.0
            first[j] = np.int32(min(max(low, -1e9), 1e9))
        for j in range(count):
            offset[j] = real(centre[j] - 0.5 - first[j])
        for j in range(count):
            inverse[j] = real(1.0 / scale[j])
    else:
        for j in range(count):
            low = np.floor(centre[j] - 0.5) + (1.0 - radius)
            first[j] = np.int32(min(max(low, -1e9), 1e9))
        for j in range(count):
            offset[j] = real(centre[j] - 0.5 - first[j])
        for j in range(count):
            inverse[j] = one
    for j in range(count):
        whole[j] = zero
    _lobes(kind, taps, is_wide, count, offset, inverse, whole, weights)
    if kind == SUM or (not is_wide and kind in {BILINEAR, CUBIC}):
        return
    for j in range(count):
        whole[j] = one / whole[j] if whole[j] != zero else one
    for k in range(taps):
        row = weights[k]
        for j in range(count):
            row[j] *= whole[j]


@kernel
def source_bounds(
    leaves: np.ndarray, nodes: np.ndarray, clip: tuple[int, int, int, int], reach: float, period: float
) -> tuple[float, float, float, float]:
    """Rows and columns of the source that the target pixels of `clip` touch: (row_min, row_max, col_min, col_max).

    Shapes: leaves (n, 8) int64, nodes (m, 2) float64. `clip` is (row, col, row_stop, col_stop) of the target.
    Units: `reach` is the kernel's radius, in source pixels where it is not widened and in target pixels where it is.
    Nodata: positions that are NaN are left out; nothing at all gives (inf, −inf, inf, −inf).
    """
    row_min, row_max, col_min, col_max = np.inf, -np.inf, np.inf, -np.inf
    x, y, sx, sy, area = np.empty(1), np.empty(1), np.empty(1), np.empty(1), np.empty(1)
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        top, bottom = max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2]) - 1
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3]) - 1
        if top > bottom or left > right:
            continue
        # The extremes of a bilinear leaf lie at its corners.
        down = 1 if leaf[DENSE] else max(bottom - top, 1)
        over = 1 if leaf[DENSE] else max(right - left, 1)
        for row in range(top, bottom + 1, down):
            for col in range(left, right + 1, over):
                row_positions(leaf, nodes, row, col, 1, period, x, y, sx, sy, area)
                if not (np.isfinite(x[0]) and np.isfinite(y[0])):
                    continue
                reach_x, reach_y = reach * max(sx[0], 1.0) + 1.0, reach * max(sy[0], 1.0) + 1.0
                row_min, row_max = min(row_min, y[0] - reach_y), max(row_max, y[0] + reach_y)
                col_min, col_max = min(col_min, x[0] - reach_x), max(col_max, x[0] + reach_x)
    return row_min, row_max, col_min, col_max


@kernel
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


@kernel
def _clear_tiles(valid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which tiles of 32 × 32 pixels are data throughout: (band, tile row, tile column)."""
    clear = np.ones((valid.shape[0], (height + 31) // 32, (width + 31) // 32), np.bool_)
    for b in range(valid.shape[0]):
        for r in range(valid.shape[1]):
            for c in range(valid.shape[2]):
                if not valid[b, r, c]:
                    clear[b, r // 32, c // 32] = False
    return clear


@kernel
def _is_clear(clear: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Whether every tile that the box (row, col, row_stop, col_stop) touches is clear."""
    for r in range(box[0] // 32, (box[2] + 31) // 32):
        for c in range(box[1] // 32, (box[3] + 31) // 32):
            if not clear[r, c]:
                return False
    return True


@kernel
def _patched(
    kind: int, flat: np.ndarray, flat_valid: np.ndarray, size: tuple[int, int], first: tuple[int, int],
    taps: tuple[int, int], centre: tuple[float, float], scale: tuple[float, float], wy: np.ndarray, wx: np.ndarray,
) -> tuple[bool, float]:  # fmt: skip
    """One pixel some of whose source pixels may be missing: (is it known, its value).

    Shapes: flat, flat_valid (y · x,), flat_valid of size 0 when all are data; wy, wx (taps,). Pairs are (y, x); `first`
        and `centre` are counted from the array's first pixel.
    Nodata: with all its pixels at hand the value is the plain sum. Else cubic and Lanczos kernels, whose negative lobes
        must not be scaled up, give way to the triangle, and weights are renormalised over what is valid. Where nothing
        was widened the pixel the centre falls into must be valid; a widened kernel needs `SHARE_MIN` of its weight; an
        average or sum any.
    """
    height, width = size
    is_box, is_whole = kind >= AVERAGE, True
    is_wide = scale[0] > 1.0 or scale[1] > 1.0
    if not is_box and not is_wide:
        r, c = int(np.floor(centre[0] + _TIE)), int(np.floor(centre[1] + _TIE))
        if r < 0 or c < 0 or r >= height or c >= width or (flat_valid.size > 0 and not flat_valid[r * width + c]):
            return False, 0.0
    total = wx.dtype.type(0)
    for kx in range(taps[1]):
        c = first[1] + kx
        part = wx.dtype.type(0)
        for ky in range(taps[0]):
            r = first[0] + ky
            if r < 0 or c < 0 or r >= height or c >= width or (flat_valid.size > 0 and not flat_valid[r * width + c]):
                is_whole = is_whole and abs(wy[ky] * wx[kx]) < _NO_WEIGHT
            else:
                part += wy[ky] * wx.dtype.type(flat[r * width + c])
        total += wx[kx] * part
    if is_whole:
        return True, total
    every, got, summed = 0.0, 0.0, 0.0
    for ky in range(taps[0]):
        r = first[0] + ky
        weight_y = float(wy[ky]) if is_box else max(1.0 - abs(r + 0.5 - centre[0]) / scale[0], 0.0)
        if weight_y == 0.0:
            continue
        for kx in range(taps[1]):
            c = first[1] + kx
            weight = float(wx[kx]) if is_box else max(1.0 - abs(c + 0.5 - centre[1]) / scale[1], 0.0)
            weight *= weight_y
            every += weight
            if r < 0 or c < 0 or r >= height or c >= width or weight == 0.0:
                continue
            if flat_valid.size > 0 and not flat_valid[r * width + c]:
                continue
            got += weight
            summed += weight * flat[r * width + c]
    if got <= 0.0 or (not is_box and is_wide and got < SHARE_MIN * every):
        return False, 0.0
    return True, summed if kind == SUM else summed / got


@kernel
def _lanes(taps: tuple[int, int]) -> int:
    """Columns that a whole neighbourhood is read in; those beyond the taps have no weight."""
    return 2 if taps == (2, 2) else 4 if taps[1] <= 4 else (taps[1] + 7) // 8 * 8


@kernel
def _whole_until(
    first_y: np.ndarray, first_x: np.ndarray, origin: tuple[int, int], size: tuple[int, int], reach: tuple[int, int],
    clear: np.ndarray, j: int, count: int,
) -> int:  # fmt: skip
    """End of the run of pixels from `j` on whose neighbourhoods of `reach` (rows, columns) are there whole.

    Shapes: first_y, first_x (≥ count,); clear (tile row, tile column), of size 0 when all are data.
    """
    while j < count:
        r, c = first_y[j] - origin[0], first_x[j] - origin[1]
        if r < 0 or c < 0 or r + reach[0] > size[0] or c + reach[1] > size[1]:
            return j
        if clear.size > 0 and not _is_clear(clear, (r, c, r + reach[0], c + reach[1])):
            return j
        j += 1
    return count


@kernel
def _gathered(
    flat: np.ndarray, width: int, origin: tuple[int, int], first_y: np.ndarray, first_x: np.ndarray,
    taps: tuple[int, int], wy: np.ndarray, wx: np.ndarray, run: tuple[int, int], sums: np.ndarray,
) -> None:  # fmt: skip
    """Weighted sums of neighbourhoods that are there whole, lanes beyond the taps too; most time is spent here.

    Shapes: flat (y · x,); first_y, first_x, sums (≥ run[1],); wy (≥ rows, n), wx (≥ lanes, n). `run` is the first pixel
        and the end. The order of the additions is that of `_patched`: columns first, then across.
    """
    zero = wx.dtype.type(0)
    start = -origin[0] * width - origin[1]
    if taps[0] == 2 and taps[1] == 2:
        for j in range(run[0], run[1]):
            at = start + np.int64(first_y[j]) * width + np.int64(first_x[j])
            sums[j] = two_by_two(flat, at, width, 2, wy, wx, 0, j, zero)
    elif taps[0] == 4 and taps[1] == 4:
        for j in range(run[0], run[1]):
            at = start + np.int64(first_y[j]) * width + np.int64(first_x[j])
            sums[j] = four_by_four(flat, at, width, 4, wy, wx, 0, j, zero)
    elif taps[1] <= 4:
        for j in range(run[0], run[1]):
            at = start + np.int64(first_y[j]) * width + np.int64(first_x[j])
            sums[j] = four_wide(flat, at, width, taps[0], wy, wx, 0, j, zero)
    else:
        for j in range(run[0], run[1]):
            at = start + np.int64(first_y[j]) * width + np.int64(first_x[j])
            total = zero
            for column in range(0, taps[1], 8):
                total = eight_wide(flat, at + column, width, taps[0], wy, wx, column, j, total)
            sums[j] = total


@kernel
def _row_sums(
    kind: int, band: np.ndarray, mask: np.ndarray, tiles: np.ndarray, size: tuple[int, int], origin: tuple[int, int],
    first_y: np.ndarray, first_x: np.ndarray, taps: tuple[int, int], lanes: int,
    place: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], wy: np.ndarray, wx: np.ndarray, count: int,
    is_easy: bool, sums: np.ndarray, gone: np.ndarray,
) -> int:  # fmt: skip
    """Weighted sums of a row, run by run: whole neighbourhoods at once, others one by one; returns how many it misses.

    Shapes: band, mask (y · x,), mask of size 0 when all are data; gone (≥ count,); `place` holds y, x and their scales.
    """
    lost, j = 0, 0
    y, x, sy, sx = place
    while j < count:
        stop = count
        if not is_easy:
            stop = _whole_until(first_y, first_x, origin, size, (taps[0], lanes), tiles, j, count)
        if stop > j:
            _gathered(band, size[1], origin, first_y, first_x, taps, wy, wx, (j, stop), sums)
            j = stop
            continue
        known, value = _patched(
            kind, band, mask, size, (first_y[j] - origin[0], first_x[j] - origin[1]), taps,
            (y[j] - origin[0], x[j] - origin[1]), (sy[j], sx[j]), wy[:, j], wx[:, j],
        )  # fmt: skip
        sums[j] = value
        if not known:
            gone[j] = True
            lost += 1
        j += 1
    return lost


@kernel
def _settled(
    kind: int, is_dense: bool, count: int, x: np.ndarray, y: np.ndarray, sx: np.ndarray, sy: np.ndarray,
    area: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Make positions and sizes fit for `_weights`, in place; gives the largest sizes.

    Shapes: all (≥ count,) float64.
    Nodata: what has no position is put far outside, where nothing is valid.
    """
    wide_x, wide_y = 1.0, 1.0
    if not is_dense and abs(x[0]) + abs(y[0]) + abs(x[count - 1]) + abs(y[count - 1]) < 1e9:
        # Along the row of a bilinear leaf positions are linear and sizes all alike.
        if kind == SUM:
            area[:count] = area[0] / (sx[0] * sy[0])
        elif kind != AVERAGE:
            sx[:count] = sx[0] if sx[0] > SCALE_MIN else 1.0
            sy[:count] = sy[0] if sy[0] > SCALE_MIN else 1.0
        return max(sx[0], 1.0), max(sy[0], 1.0)
    for j in range(count):
        if not (abs(x[j]) < 1e9 and abs(y[j]) < 1e9):
            x[j], y[j], sx[j], sy[j], area[j] = -1e9, -1e9, 1.0, 1.0, 1.0
        if kind == SUM:
            area[j] = area[j] / (sx[j] * sy[j])
        elif kind != AVERAGE:
            sx[j] = sx[j] if sx[j] > SCALE_MIN else 1.0
            sy[j] = sy[j] if sy[j] > SCALE_MIN else 1.0
        wide_x, wide_y = max(wide_x, sx[j]), max(wide_y, sy[j])
    return wide_x, wide_y


@kernel
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
    has_valid, is_whole = valid.size > 0, limits[0] <= limits[1]
    flat, flat_valid = source.reshape(bands, height * width), valid.reshape(bands, valid.shape[1] * valid.shape[2])
    none, clear_none = np.empty(0, np.bool_), np.empty((0, 0), np.bool_)
    clear = _clear_tiles(valid, height, width)
    long = 1
    for n in range(leaves.shape[0]):
        long = max(long, min(leaves[n, WIDTH], clip[3] - clip[1]))
    x, y, sx, sy, area = np.empty(long), np.empty(long), np.empty(long), np.empty(long), np.empty(long)
    first_x, first_y = np.empty(long, np.int32), np.empty(long, np.int32)
    wx, wy, sums = np.empty((8, long), total.dtype), np.empty((8, long), total.dtype), np.empty(long, total.dtype)
    offset, inverse, whole = np.empty(long, total.dtype), np.empty(long, total.dtype), np.empty(long, total.dtype)
    low, high = total.dtype.type(limits[0]), total.dtype.type(limits[1])
    lost = 0
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        count = right - left
        if count <= 0:
            continue
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            row_positions(leaf, nodes, row, left, count, period, x, y, sx, sy, area)
            wide_x, wide_y = _settled(kind, leaf[DENSE] == 1, count, x, y, sx, sy, area)
            nx, ny = _taps(kind, wide_x), _taps(kind, wide_y)
            lanes = _lanes((ny, nx))
            if max(lanes, ny) > wx.shape[0]:
                wx = np.empty((max(lanes, ny), long), total.dtype)
                wy = np.empty((max(lanes, ny), long), total.dtype)
            _weights(kind, x, sx, nx, wide_x > 1.0, count, first_x, wx[:lanes], offset, inverse, whole)
            _weights(kind, y, sy, ny, wide_y > 1.0, count, first_y, wy[:ny], offset, inverse, whole)
            if kind == SUM:
                for k in range(ny):
                    for j in range(count):
                        wy[k, j] *= area[j]
            top, bottom, west, east = first_y[0], first_y[0], first_x[0], first_x[0]
            for j in range(count):
                top, bottom = min(top, first_y[j]), max(bottom, first_y[j])
                west, east = min(west, first_x[j]), max(east, first_x[j])
            box = (top - origin[0], west - origin[1], bottom - origin[0] + ny, east - origin[1] + lanes)
            is_inside = box[0] >= 0 and box[1] >= 0 and box[2] <= height and box[3] <= width
            for b in range(bands):
                target, gone, band = out[b, row - corner[0]], missing[b, row - corner[0]], flat[b]
                mask, tiles = flat_valid[b] if has_valid else none, clear[b] if has_valid else clear_none
                place, is_easy = (y, x, sy, sx), is_inside and (not has_valid or _is_clear(tiles, box))
                lost += _row_sums(
                    kind, band, mask, tiles, (height, width), origin, first_y, first_x, (ny, nx), lanes, place, wy, wx,
                    count, is_easy, sums, gone[left - corner[1] :],
                )  # fmt: skip
                cut = target[left - corner[1] : right - corner[1]]
                if is_whole:
                    for j in range(count):
                        cut[j] = min(max(np.rint(sums[j]), low), high)
                else:
                    for j in range(count):
                        # −0 becomes 0: which of them a sum of nothing is depends on the path it took.
                        cut[j] = sums[j] + 0.0
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
