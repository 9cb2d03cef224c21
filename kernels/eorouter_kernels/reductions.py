# ruff: noqa: PLR0917  numba passes arguments by position
"""Mode, minimum, maximum and median of what lies under each pixel of another grid; positions as in `positions`."""

import numpy as np

from eorouter_kernels._jit import allocating_kernel, kernel
from eorouter_kernels.lobes import SLIVER
from eorouter_kernels.positions import COL, HEIGHT, ROW, WIDTH, row_positions

MODE, MIN, MAX, MEDIAN = range(4)


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


@allocating_kernel
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
    values, weights, is_ranked = np.empty(16), np.empty(16), kind in {MODE, MEDIAN}
    lost = 0
    for n in range(leaves.shape[0]):
        leaf = leaves[n]
        left, right = max(leaf[COL], clip[1]), min(leaf[COL] + leaf[WIDTH], clip[3])
        if right <= left:
            continue
        for row in range(max(leaf[ROW], clip[0]), min(leaf[ROW] + leaf[HEIGHT], clip[2])):
            row_positions(leaf, nodes, row, left, right - left, period, x, y, sx, sy, area)
            for j in range(right - left):
                place = (row - corner[0], left - corner[1] + j)
                if not (np.isfinite(x[j]) and np.isfinite(y[j])):
                    x[j], y[j], sx[j], sy[j] = -1e9, -1e9, 1.0, 1.0
                west, east = x[j] - 0.5 * sx[j] - origin[1], x[j] + 0.5 * sx[j] - origin[1]
                north, south = y[j] - 0.5 * sy[j] - origin[0], y[j] + 0.5 * sy[j] - origin[0]
                c0, c1 = max(int(np.floor(west + SLIVER)), 0), min(int(np.ceil(east - SLIVER)), width)
                r0, r1 = max(int(np.floor(north + SLIVER)), 0), min(int(np.ceil(south - SLIVER)), height)
                if is_ranked and (c1 - c0) * (r1 - r0) > values.shape[0] and c1 > c0:
                    values, weights = np.empty((c1 - c0) * (r1 - r0)), np.empty((c1 - c0) * (r1 - r0))
                for b in range(bands):
                    count, extreme = 0, source.dtype.type(0)
                    for r in range(r0, r1):
                        high = min(r + 1.0, south) - max(r + 0.0, north)
                        for c in range(c0, c1):
                            if has_valid and not valid[b, r, c]:
                                continue
                            value = source[b, r, c]
                            if is_ranked:
                                values[count] = value
                                weights[count] = high * (min(c + 1.0, east) - max(c + 0.0, west))
                            elif count == 0 or (value < extreme if kind == MIN else value > extreme):
                                extreme = value
                            count += 1
                    if count == 0:
                        out[b, place[0], place[1]] = 0
                        missing[b, place[0], place[1]] = True
                        lost += 1
                    elif is_ranked:
                        out[b, place[0], place[1]] = _ranked(kind, values, weights, count)
                    else:
                        out[b, place[0], place[1]] = extreme
    return lost
