"""Positions of a mesh with NumPy, leaf by leaf."""

import numpy as np


def positions(leaves: np.ndarray, nodes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(row, column, 5): x, y, width and height in source pixels, and area, of every pixel of a target of `shape`."""
    out = np.full((*shape, 5), np.nan)
    for row, col, height, width, row_span, col_span, is_dense, start in leaves:
        if is_dense:
            grid = nodes[start : start + (height + 1) * (width + 1)].reshape(height + 1, width + 1, 2)
            at, over, down = grid[:-1, :-1], np.diff(grid, axis=1)[:-1], np.diff(grid, axis=0)[:, :-1]
            # Beside a hole the step from the other side tells the size.
            over[:, 1:] = np.where(np.isnan(over[:, 1:]), over[:, :-1], over[:, 1:])
            down[1:] = np.where(np.isnan(down[1:]), down[:-1], down[1:])
        else:
            corners = nodes[start : start + 4].reshape(2, 2, 2)
            t, s = np.arange(height)[:, None, None] / row_span, np.arange(width)[None, :, None] / col_span
            left, right = (corners[0, k] + (corners[1, k] - corners[0, k]) * t for k in (0, 1))
            at = left + (right - left) * s
            over = np.broadcast_to((right - left) / col_span, at.shape)
            down = np.broadcast_to((corners[1] - corners[0]).mean(axis=0) / row_span, at.shape)
        wide, high = np.hypot(over[..., 0], down[..., 0]), np.hypot(over[..., 1], down[..., 1])
        area = np.abs(over[..., 0] * down[..., 1] - down[..., 0] * over[..., 1])
        rows, cols = slice(row, min(row + height, shape[0])), slice(col, min(col + width, shape[1]))
        every = np.stack([at[..., 0], at[..., 1], wide, high, area], axis=-1)
        out[rows, cols] = every[: shape[0] - row, : shape[1] - col]
    return out
