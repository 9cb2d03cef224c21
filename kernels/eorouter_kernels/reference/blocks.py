"""Twins of the block kernels: whole blocks by NumPy, then cut."""

import numpy as np

Window = tuple[int, int, int, int]
Corner = tuple[int, int]


def take(block: np.ndarray, samples: np.ndarray, window: Window, out: np.ndarray, corner: Corner) -> None:
    """Copy a window of a block."""
    top, left, rows, cols = window
    cut = block[top : top + rows, left : left + cols][:, :, samples]
    out[:, corner[0] : corner[0] + rows, corner[1] : corner[1] + cols] = cut.transpose(2, 0, 1)


def take_sums(block: np.ndarray, samples: np.ndarray, window: Window, out: np.ndarray, corner: Corner) -> None:
    """`take` from a block of horizontal differences."""
    take(np.cumsum(block, axis=1, dtype=block.dtype), samples, window, out, corner)


def take_planes(block: np.ndarray, samples: np.ndarray, window: Window, out: np.ndarray, corner: Corner) -> None:
    """`take` from a block of byte planes."""
    height, size, width, count = block.shape
    planes = np.cumsum(block.reshape(height, size * width, count), axis=1, dtype=np.uint8).reshape(block.shape)
    words = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).view(f">u{size}")[..., 0].astype(out.dtype)
    take(words, samples, window, out, corner)


def put(pixels: np.ndarray, row: int, col: int, block: np.ndarray) -> None:
    """Fill a block and repeat the last row and column."""
    cut = pixels[:, row : row + block.shape[0], col : col + block.shape[1]]
    rim = ((0, 0), (0, block.shape[0] - cut.shape[1]), (0, block.shape[1] - cut.shape[2]))
    block[:] = np.pad(cut, rim, mode="edge").transpose(1, 2, 0)


def put_differences(pixels: np.ndarray, row: int, col: int, block: np.ndarray) -> None:
    """`put`, then horizontal differences."""
    put(pixels, row, col, block)
    block[:, 1:] = np.diff(block, axis=1)


def put_planes(pixels: np.ndarray, row: int, col: int, block: np.ndarray) -> None:
    """`put`, then byte planes, then their differences."""
    height, size, width, count = block.shape
    words = np.empty((height, width, count), pixels.dtype)
    put(pixels, row, col, words)
    planes = words.astype(f">u{size}")[..., None].view(np.uint8).transpose(0, 3, 1, 2)
    lines = planes.reshape(height, size * width, count)
    block[:] = np.diff(lines, axis=1, prepend=np.zeros_like(lines[:, :1])).reshape(block.shape)


def first_missing(pixels: np.ndarray, nodata: float) -> int:
    """The first row over all bands with a pixel equal to `nodata` or NaN."""
    missing = ((pixels == nodata) | np.isnan(pixels)).any(axis=2).ravel()
    return int(missing.argmax()) if missing.any() else -1


def occupied(lines: np.ndarray) -> int:
    """Words from the first to the last that is not zero, the first of each line and a repeated last row left out."""
    while len(lines) > 1 and np.array_equal(lines[-1], lines[-2]):
        lines = lines[:-1]
    places = [np.flatnonzero(line[1:]) for row in lines for line in row]
    return sum(int(found[-1] - found[0]) + 1 for found in places if len(found))


def settle(pixels: np.ndarray, valid: np.ndarray, nodata: float, out: np.ndarray, out_valid: np.ndarray) -> None:
    """Fill what is missing."""
    known = (pixels != nodata) & ~np.isnan(pixels)
    out_valid[:] = known & valid if valid.size else known
    out[:] = np.where(out_valid, pixels, nodata)
