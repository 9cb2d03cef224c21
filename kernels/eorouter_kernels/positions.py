# ruff: noqa: PLR0917  numba passes arguments by position
"""Where the centres of target pixels lie in the source.

A *mesh* says so: leaves that tile the target, each with the source position (x, y), in pixels, of its corner nodes.
Between the nodes positions are bilinear, so linear along a row. A *dense* leaf has a node per pixel, and one more row
and column for the size of the last pixels. The centre of the source's first pixel is (0.5, 0.5).
"""

import numpy as np

from eorouter_kernels._jit import allocating_kernel, kernel

ROW, COL, HEIGHT, WIDTH, ROW_SPAN, COL_SPAN, DENSE, START = range(8)
"""Columns of `leaves`: first row and column, pixels covered, distance in pixels between the corner nodes, 1 for a node
per pixel, index of its first node. Nodes are stored row by row: 2 × 2, of a dense leaf
(height + 1) × (width + 1)."""


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


@allocating_kernel
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
