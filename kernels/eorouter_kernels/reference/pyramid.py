"""Twins of the pyramid kernels: cells stacked, then reduced."""

import numpy as np

from eorouter_kernels.nodata import Nodata
from eorouter_kernels.reference.nodata import step_aside


def _cells(pixels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The four pixels of each 2 × 2 cell in reading order, and which are data: (4, band, y, x)."""
    _, height, width = pixels.shape
    rim = ((0, 0), (0, height % 2), (0, width % 2))
    data = np.ones(pixels.shape, np.bool_) if valid.size == 0 else valid
    padded, known = np.pad(pixels, rim), np.pad(data, rim)
    places = [(y, x) for y in (0, 1) for x in (0, 1)]
    return (
        np.stack([padded[:, y::2, x::2] for y, x in places]),
        np.stack([known[:, y::2, x::2] for y, x in places]),
    )


def halve_mean_integers(
    pixels: np.ndarray, valid: np.ndarray, nodata: int, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Mean of the valid pixels of each 2 × 2 cell, rounded half to even."""
    values, known = _cells(pixels, valid)
    count = known.sum(axis=0)
    total = np.where(known, values.astype(np.int64), 0).sum(axis=0)
    mean = np.rint(total / np.maximum(count, 1)).astype(np.int64)
    if valid.size:
        step = 1 if nodata < np.iinfo(pixels.dtype).max else -1
        mean = np.where(mean == nodata, mean + step, mean)
        out_valid[:] = count > 0
    info = np.iinfo(pixels.dtype)
    out[:] = np.where(count > 0, mean, nodata if info.min <= nodata <= info.max else 0)


def halve_mean_floats(
    pixels: np.ndarray, valid: np.ndarray, nodata: Nodata, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Mean of the valid pixels of each 2 × 2 cell."""
    values, known = _cells(pixels, valid)
    count = known.sum(axis=0)
    a, b, c, d = np.where(known, values.astype(np.float64), 0.0)
    out[:] = np.where(count > 0, ((a + b) + (c + d)) / np.maximum(count, 1), nodata.value)
    step_aside(out, count > 0, nodata)
    if valid.size:
        out_valid[:] = count > 0


def halve_mode(pixels: np.ndarray, valid: np.ndarray, nodata: float, out: np.ndarray, out_valid: np.ndarray) -> None:
    """Most frequent valid value of each 2 × 2 cell; of equally frequent ones the first in reading order."""
    values, known = _cells(pixels, valid)
    votes = ((values[:, None] == values[None]) & known[None] & known[:, None]).sum(axis=1)
    best = np.take_along_axis(values, votes.argmax(axis=0)[None], axis=0)[0]
    out[:] = np.where(known.any(axis=0), best, np.asarray(nodata).astype(out.dtype))
    if valid.size:
        out_valid[:] = known.any(axis=0)


def halve_ranked(  # noqa: PLR0917 - as the kernel
    pixels: np.ndarray, valid: np.ndarray, rank: int, nodata: float, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Least, lower median or greatest valid value of each 2 × 2 cell."""
    values, known = _cells(pixels, valid)
    order = np.argsort(np.where(known, values.astype(np.float64), np.inf), axis=0, kind="stable")  # valid ones first
    place = np.maximum(known.sum(axis=0) - 1, 0) * rank // 2
    found = np.take_along_axis(np.take_along_axis(values, order, axis=0), place[None], axis=0)[0]
    out[:] = np.where(known.any(axis=0), found, np.asarray(nodata).astype(out.dtype))
    if valid.size:
        out_valid[:] = known.any(axis=0)


def tile_moments(pixels: np.ndarray, valid: np.ndarray, tile: int, out: np.ndarray) -> None:
    """Count, mean, sum of squared deviations, minimum and maximum of every tile and band."""
    for row, col, band in np.ndindex(*out.shape[:3]):
        cut = (band, slice(row * tile, (row + 1) * tile), slice(col * tile, (col + 1) * tile))
        values = pixels[cut].ravel() if valid.size == 0 else pixels[cut][valid[cut]]
        values = values.astype(np.float64)
        if values.size:
            squares = float(((values - values.mean()) ** 2).sum())
            out[row, col, band] = values.size, values.mean(), squares, values.min(), values.max()
        else:
            out[row, col, band] = 0, np.nan, np.nan, np.nan, np.nan
