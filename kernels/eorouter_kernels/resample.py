"""Gather pixels of one grid onto another: positions from a mesh, weights once for all bands, missing pixels left out.

A *mesh* says where the centres of target pixels lie in the source: leaves that tile the target, each with the source
position (x, y), in pixels, of its corner nodes. Between the nodes positions are bilinear, so linear along a row. A
*dense* leaf has a node per pixel, and one more row and column for the size of the last pixels. The centre of the
source's first pixel is (0.5, 0.5). What a target pixel gets depends on its leaf and on source pixels alone, never on
the window that is worked on; that is why results do not depend on how work is cut.
"""

import numpy as np

from eorouter_kernels._jit import WARM_DTYPES, kernel

ROW, COL, HEIGHT, WIDTH, ROW_SPAN, COL_SPAN, DENSE, START = range(8)
"""Columns of `leaves`: first row and column, pixels covered, distance in pixels between the corner nodes, 1 for a node
per pixel, index of its first node. Nodes are stored row by row: 2 × 2, or (height + 1) × (width + 1) of a dense leaf."""

BILINEAR, CUBIC, LANCZOS, AVERAGE, SUM = range(5)
MODE, MIN, MAX, MEDIAN = range(4)

SCALE_MIN = 1.05
"""Kernels are widened where a target pixel is more than this many source pixels wide, as GDAL does (0.95⁻¹)."""

SHARE_MIN = 0.5
"""Least share of a widened kernel's weight that valid pixels must have."""

SLIVER = 1e-6
"""Overlaps narrower than this, in source pixels, are rounding."""

_TIE = 1e-10


@kernel
def _row_positions(
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
            if ax != ax and col + j > leaf[COL]:
                ax, ay = x[j] - nodes[here - 1, 0], y[j] - nodes[here - 1, 1]
            bx, by = nodes[here + wide, 0] - x[j], nodes[here + wide, 1] - y[j]
            if bx != bx and row > leaf[ROW]:
                bx, by = x[j] - nodes[here - wide, 0], y[j] - nodes[here - wide, 1]
            if period > 0:
                ax -= period * np.rint(ax / period)
                bx -= period * np.rint(bx / period)
            if ax != ax or bx != bx:
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
    for j in range(count):
        x[j] = left_x + ax * (first + j)
        y[j] = left_y + ay * (first + j)
        sx[j], sy[j], area[j] = wide_x, wide_y, covered


@kernel
def _taps(kind: int, scale: float) -> int:
    """Source pixels that a kernel of this width can touch along one axis."""
    if kind >= AVERAGE:
        return int(np.ceil(scale)) + 1
    radius = 1.0 if kind == BILINEAR else 2.0 if kind == CUBIC else 3.0
    return int(np.ceil(2.0 * radius * scale))


@kernel
def _weight(kind: int, d: float) -> float:
    """The kernel at distance `d` from its centre, in units of its width."""
    if kind == BILINEAR:
        return max(1.0 - d, 0.0)
    if kind == CUBIC:
        near = (1.5 * d - 2.5) * d * d + 1.0
        far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
        return near if d < 1.0 else far if d < 2.0 else 0.0
    if d < 1e-9:
        return 1.0
    if d >= 3.0:
        return 0.0
    angle = np.pi * d
    return 3.0 * np.sin(angle) * np.sin(angle / 3.0) / (angle * angle)


@kernel
def _weights(
    kind: int, centre: np.ndarray, scale: np.ndarray, taps: int, count: int, first: np.ndarray, weights: np.ndarray
) -> None:
    """First source pixel and weights of a kernel along one axis, for pixels of one row.

    Shapes: centre, scale (≥ count,) float64; first (≥ count,) int64; weights (≥ taps, ≥ count).
    Units: source pixels. The weights of each pixel sum to 1; of SUM they are overlaps.
    Reference: triangle; Keys 1981, IEEE ASSP 29(6), a = −1/2; Lanczos with three lobes; box overlap.
    """
    if kind >= AVERAGE:
        for j in range(count):
            first[j] = int(np.floor(centre[j] - 0.5 * scale[j] + SLIVER))
            low, high = centre[j] - 0.5 * scale[j], centre[j] + 0.5 * scale[j]
            whole = 0.0
            for k in range(taps):
                cut = min(first[j] + k + 1.0, high) - max(first[j] + k + 0.0, low)
                whole += cut if cut > SLIVER else 0.0
            whole = 1.0 if kind == SUM or whole == 0.0 else whole
            for k in range(taps):
                cut = min(first[j] + k + 1.0, high) - max(first[j] + k + 0.0, low)
                weights[k, j] = cut / whole if cut > SLIVER else 0.0
        return
    if kind == BILINEAR and taps == 2:
        for j in range(count):
            u = centre[j] - 0.5
            low = np.floor(u)
            first[j] = int(low)
            weights[0, j] = 1.0 - (u - low)
            weights[1, j] = u - low
        return
    if kind == CUBIC and taps == 4:
        for j in range(count):
            u = centre[j] - 0.5
            low = np.floor(u)
            f = u - low
            first[j] = int(low) - 1
            weights[0, j] = ((-0.5 * f + 1.0) * f - 0.5) * f
            weights[1, j] = (1.5 * f - 2.5) * f * f + 1.0
            weights[2, j] = ((-1.5 * f + 2.0) * f + 0.5) * f
            weights[3, j] = (0.5 * f - 0.5) * f * f
        return
    radius = 1.0 if kind == BILINEAR else 2.0 if kind == CUBIC else 3.0
    for j in range(count):
        u, s = centre[j] - 0.5, max(scale[j], 1.0)
        low = int(np.floor(u - radius * s)) + 1
        first[j] = low
        whole = 0.0
        for k in range(taps):
            whole += _weight(kind, abs(low + k - u) / s)
        for k in range(taps):
            weights[k, j] = _weight(kind, abs(low + k - u) / s) / whole


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
                _row_positions(leaf, nodes, row, col, 1, period, x, y, sx, sy, area)
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
    Units: positions in source pixels; `origin` is the source row and column of source[:, 0, 0], `corner` the target's of
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
    at = np.empty(long, np.int64)
    lost = 0
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        count = right - left
        if count <= 0:
            continue
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            _row_positions(leaf, nodes, row, left, count, 0.0, x, y, sx, sy, area)
            is_inside = True
            for j in range(count):
                inside = x[j] + _TIE >= origin[1] and x[j] + _TIE < origin[1] + width
                inside = inside and y[j] + _TIE >= origin[0] and y[j] + _TIE < origin[0] + height
                c, r = int(np.floor(x[j] + _TIE)) - origin[1], int(np.floor(y[j] + _TIE)) - origin[0]
                at[j] = r * width + c if inside else -1
                is_inside = is_inside and inside
            for b in range(bands):
                target, gone = out[b, row - corner[0]], missing[b, row - corner[0]]
                if is_inside and not has_valid:
                    for j in range(count):
                        target[left - corner[1] + j] = flat[b, np.uint64(at[j])]
                    continue
                for j in range(count):
                    known = at[j] >= 0 and (not has_valid or flat_valid[b, at[j]])
                    target[left - corner[1] + j] = flat[b, at[j]] if known else 0
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
    total = 0.0 * wx[0]
    for ky in range(taps[0]):
        if wy[ky] == 0:
            continue
        r = first[0] + ky
        part = 0.0 * wx[0]
        for kx in range(taps[1]):
            if wx[kx] == 0:
                continue
            c = first[1] + kx
            if r < 0 or c < 0 or r >= height or c >= width or (flat_valid.size > 0 and not flat_valid[r * width + c]):
                is_whole = False
                break
            part += wx[kx] * wx.dtype.type(flat[r * width + c])
        if not is_whole:
            break
        total += wy[ky] * part
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
def _gathered(
    flat: np.ndarray, width: int, at: np.ndarray, taps: tuple[int, int], count: int, wy: np.ndarray, wx: np.ndarray,
    total: np.ndarray,
) -> None:  # fmt: skip
    """Weighted sums of whole neighbourhoods of pixels, all of them there.

    Shapes: flat (y · x,), at (≥ count,) index of each neighbourhood's first pixel; wy, wx (≥ taps, ≥ count); total
        (≥ count,). The order of the additions is that of `_patched`: rows first.
    """
    ny, nx = taps
    one = np.uint64(1)
    for j in range(count):
        total[j] = 0
    for ky in range(ny):
        down = np.uint64(ky * width)
        if nx == 2:
            for j in range(count):
                p = at[j] + down
                part = wx[0, j] * wx.dtype.type(flat[p]) + wx[1, j] * wx.dtype.type(flat[p + one])
                total[j] += wy[ky, j] * part
        elif nx == 4:
            for j in range(count):
                p = at[j] + down
                part = wx[0, j] * wx.dtype.type(flat[p]) + wx[1, j] * wx.dtype.type(flat[p + one])
                part += wx[2, j] * wx.dtype.type(flat[p + np.uint64(2)])
                part += wx[3, j] * wx.dtype.type(flat[p + np.uint64(3)])
                total[j] += wy[ky, j] * part
        else:
            for j in range(count):
                p = at[j] + down
                part = wx[0, j] * wx.dtype.type(flat[p])
                for kx in range(1, nx):
                    part += wx[kx, j] * wx.dtype.type(flat[p + np.uint64(kx)])
                total[j] += wy[ky, j] * part


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
    none, clear = np.empty(0, np.bool_), _clear_tiles(valid, height, width)
    long = 1
    for n in range(leaves.shape[0]):
        long = max(long, min(leaves[n, WIDTH], clip[3] - clip[1]))
    x, y, sx, sy, area = np.empty(long), np.empty(long), np.empty(long), np.empty(long), np.empty(long)
    first_x, first_y, at = np.empty(long, np.int64), np.empty(long, np.int64), np.empty(long, np.uint64)
    wx, wy, sums = np.empty((6, long), total.dtype), np.empty((6, long), total.dtype), np.empty(long, total.dtype)
    lost = 0
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        count = right - left
        if count <= 0:
            continue
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            _row_positions(leaf, nodes, row, left, count, period, x, y, sx, sy, area)
            wide_x, wide_y = 0.0, 0.0
            for j in range(count):
                if not (np.isfinite(x[j]) and np.isfinite(y[j])):
                    # Far outside, where nothing is valid and a whole number still holds the place.
                    x[j], y[j], sx[j], sy[j] = -1e9, -1e9, 1.0, 1.0
                if kind == SUM:
                    area[j] = area[j] / (sx[j] * sy[j])
                elif kind != AVERAGE:
                    sx[j] = sx[j] if sx[j] > SCALE_MIN else 1.0
                    sy[j] = sy[j] if sy[j] > SCALE_MIN else 1.0
                wide_x, wide_y = max(wide_x, sx[j]), max(wide_y, sy[j])
            nx, ny = _taps(kind, wide_x), _taps(kind, wide_y)
            if max(nx, ny) > wx.shape[0]:
                wx, wy = np.empty((max(nx, ny), long), total.dtype), np.empty((max(nx, ny), long), total.dtype)
            _weights(kind, x, sx, nx, count, first_x, wx)
            _weights(kind, y, sy, ny, count, first_y, wy)
            if kind == SUM:
                for k in range(ny):
                    for j in range(count):
                        wy[k, j] *= area[j]
            top, bottom, west, east = first_y[0], first_y[0], first_x[0], first_x[0]
            for j in range(count):
                top, bottom = min(top, first_y[j]), max(bottom, first_y[j])
                west, east = min(west, first_x[j]), max(east, first_x[j])
                at[j] = np.uint64((first_y[j] - origin[0]) * width + first_x[j] - origin[1])
            box = (top - origin[0], west - origin[1], bottom - origin[0] + ny, east - origin[1] + nx)
            is_inside = box[0] >= 0 and box[1] >= 0 and box[2] <= height and box[3] <= width
            for b in range(bands):
                target, gone = out[b, row - corner[0]], missing[b, row - corner[0]]
                if is_inside and (not has_valid or _is_clear(clear[b], box)):
                    _gathered(flat[b], width, at, (ny, nx), count, wy, wx, sums)
                else:
                    mask = flat_valid[b] if has_valid else none
                    for j in range(count):
                        known, value = _patched(
                            kind, flat[b], mask, (height, width), (first_y[j] - origin[0], first_x[j] - origin[1]),
                            (ny, nx), (y[j] - origin[0], x[j] - origin[1]), (sy[j], sx[j]), wy[:, j], wx[:, j],
                        )  # fmt: skip
                        sums[j] = value
                        if not known:
                            gone[left - corner[1] + j] = True
                            lost += 1
                for j in range(count):
                    value = sums[j]
                    if is_whole:
                        value = min(max(np.rint(value), limits[0]), limits[1])
                    target[left - corner[1] + j] = value
    return lost


@kernel
def _sorted(values: np.ndarray, weights: np.ndarray, count: int) -> None:
    """Heapsort the first `count` values, weights with them, in place."""
    end, start = count, count // 2
    while end > 1:
        if start > 0:
            start -= 1
        else:
            end -= 1
            values[end], values[0] = values[0], values[end]
            weights[end], weights[0] = weights[0], weights[end]
        root = start
        while 2 * root + 1 < end:
            child = 2 * root + 1
            if child + 1 < end and values[child + 1] > values[child]:
                child += 1
            if values[root] >= values[child]:
                break
            values[root], values[child] = values[child], values[root]
            weights[root], weights[child] = weights[child], weights[root]
            root = child


@kernel
def _ranked(kind: int, values: np.ndarray, weights: np.ndarray, count: int) -> float:
    """The mode (the least of the heaviest) or the lower median of weighted values."""
    _sorted(values, weights, count)
    if kind == MEDIAN:
        half, run = 0.0, 0.0
        for i in range(count):
            half += 0.5 * weights[i]
        for i in range(count):
            run += weights[i]
            if run >= half * (1.0 - 1e-9):
                return values[i]
        return values[count - 1]
    best, heaviest, i = values[0], -1.0, 0
    while i < count:
        run, value = 0.0, values[i]
        while i < count and values[i] == value:
            run += weights[i]
            i += 1
        if run > heaviest * (1.0 + 1e-9):
            best, heaviest = value, run
    return best


@kernel
def ordered(
    kind: int, leaves: np.ndarray, nodes: np.ndarray, clip: tuple[int, int, int, int], period: float,
    source: np.ndarray, valid: np.ndarray, origin: tuple[int, int], corner: tuple[int, int],
    out: np.ndarray, missing: np.ndarray,
) -> int:  # fmt: skip
    """Mode, minimum, maximum or median of the source pixels under each target pixel.

    Shapes: as in `nearest`.
    Units: those of the pixels; every result is one of the source's values.
    Nodata: missing where no valid pixel lies under the target pixel. Mode and median weigh pixels by the area that lies
        under it; of equally heavy modes the smallest value wins, and the median is the lower one.
    """
    bands, height, width = source.shape
    has_valid = valid.size > 0
    long = 1
    for n in range(leaves.shape[0]):
        long = max(long, min(leaves[n, WIDTH], clip[3] - clip[1]))
    x, y, sx, sy, area = np.empty(long), np.empty(long), np.empty(long), np.empty(long), np.empty(long)
    values, weights = np.empty(16), np.empty(16)
    lost = 0
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        if right <= left:
            continue
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            _row_positions(leaf, nodes, row, left, right - left, period, x, y, sx, sy, area)
            for j in range(right - left):
                place = (row - corner[0], left - corner[1] + j)
                if not (np.isfinite(x[j]) and np.isfinite(y[j])):
                    x[j], y[j], sx[j], sy[j] = -1e9, -1e9, 1.0, 1.0
                west, east = x[j] - 0.5 * sx[j] - origin[1], x[j] + 0.5 * sx[j] - origin[1]
                north, south = y[j] - 0.5 * sy[j] - origin[0], y[j] + 0.5 * sy[j] - origin[0]
                c0, c1 = max(int(np.floor(west + SLIVER)), 0), min(int(np.ceil(east - SLIVER)), width)
                r0, r1 = max(int(np.floor(north + SLIVER)), 0), min(int(np.ceil(south - SLIVER)), height)
                if (kind == MODE or kind == MEDIAN) and (c1 - c0) * (r1 - r0) > values.shape[0] and c1 > c0:  # noqa: PLR1714
                    values, weights = np.empty((c1 - c0) * (r1 - r0)), np.empty((c1 - c0) * (r1 - r0))
                for b in range(bands):
                    count, extreme = 0, source.dtype.type(0)
                    for r in range(r0, r1):
                        high = min(r + 1.0, south) - max(r + 0.0, north)
                        for c in range(c0, c1):
                            if has_valid and not valid[b, r, c]:
                                continue
                            value = source[b, r, c]
                            if kind == MODE or kind == MEDIAN:  # noqa: PLR1714 - a tuple would be built at run time
                                values[count] = value
                                weights[count] = high * (min(c + 1.0, east) - max(c + 0.0, west))
                            elif count == 0 or (value < extreme if kind == MIN else value > extreme):
                                extreme = value
                            count += 1
                    if count == 0:
                        out[b, place[0], place[1]] = 0
                        missing[b, place[0], place[1]] = True
                        lost += 1
                    elif kind == MODE or kind == MEDIAN:  # noqa: PLR1714
                        out[b, place[0], place[1]] = _ranked(kind, values, weights, count)
                    else:
                        out[b, place[0], place[1]] = extreme
    return lost


def sum_type(dtype: np.dtype) -> np.dtype:
    """What pixels of a type are added up in: float32 holds 16-bit integers and their weights, float64 the rest."""
    return np.dtype(np.float32 if dtype.kind in "iu" and dtype.itemsize <= 2 else np.float64)


def warm_up() -> None:
    """Compile for the usual pixel types, or load from the cache."""
    leaves = np.array([[0, 0, 2, 2, 2, 2, 0, 0]])
    nodes = np.array([[0.5, 0.5], [2.5, 0.5], [0.5, 2.5], [2.5, 2.5]])
    clip, none = (0, 0, 2, 2), np.empty((0, 0, 0), np.bool_)
    source_bounds(leaves, nodes, clip, 1.0, 0.0)
    for name in WARM_DTYPES:
        pixels, out, missing = np.ones((1, 2, 2), name), np.empty((1, 2, 2), name), np.zeros((1, 2, 2), np.bool_)
        total = np.empty(0, sum_type(pixels.dtype))
        nearest(leaves, nodes, clip, pixels, none, (0, 0), (0, 0), out, missing)
        weighted(BILINEAR, leaves, nodes, clip, 0.0, pixels, none, (0, 0), (0, 0), (0.0, 1.0), total, out, missing)
        ordered(MODE, leaves, nodes, clip, 0.0, pixels, none, (0, 0), (0, 0), out, missing)
