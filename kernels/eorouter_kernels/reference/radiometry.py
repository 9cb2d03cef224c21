# ruff: noqa: PLR0917  numba passes arguments by position
"""Plain-NumPy twins of `eorouter_kernels.radiometry`."""

import numpy as np


def between_lines(table: np.ndarray, lines: np.ndarray, row: int, out: np.ndarray) -> None:
    """Column by column what `numpy.interp` says."""
    wanted = np.arange(row, row + out.shape[0], dtype=np.float64)
    for x in range(out.shape[1]):
        out[:, x] = np.interp(wanted, lines, table[:, x])


def calibrate(
    pixels: np.ndarray,
    valid: np.ndarray,
    table: np.ndarray,
    lines: np.ndarray,
    row: int,
    noise: np.ndarray,
    in_db: bool,
    out: np.ndarray,
) -> None:
    """The formula, array by array."""
    gains = np.empty(out.shape)
    between_lines(table, lines, row, gains)
    power = pixels.astype(np.float64) ** 2
    if noise.size:
        power = np.maximum(power - noise, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = power / gains**2
        if in_db:
            power = np.where(power > 0, 10.0 * np.log10(power), np.nan)
    known = gains > 0 if not valid.size else valid & (gains > 0)
    out[:] = np.where(known, power, np.nan)


def rescale(
    pixels: np.ndarray,
    valid: np.ndarray,
    gain: float,
    offset: float,
    low: float,
    high: float,
    nodata: float,
    out: np.ndarray,
    out_valid: np.ndarray,
) -> None:
    """The formula, array by array."""
    values = pixels.astype(np.float64) * gain + offset
    out_valid[:] = np.isfinite(values) & (valid if valid.size else True)
    stored = np.rint(np.clip(np.where(out_valid, values, 0.0), low, high))
    stored[stored == nodata] = nodata + 1 if nodata < high else nodata - 1
    out[:] = np.where(out_valid, stored, nodata).astype(out.dtype)
