"""Plain-NumPy twins of the kernels, written to be read: the oracle each kernel is tested against."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from eorouter_kernels import expression

# expression


Floats = npt.NDArray[np.float64]


def to_physical(stored: npt.NDArray[np.generic], scale: float, offset: float) -> Floats:
    """Stored × scale + offset."""
    return stored.astype(np.float64) * scale + offset


def load_band(stored: npt.NDArray[np.generic], scale: float, offset: float, valid: npt.NDArray[np.bool_]) -> Floats:
    """Physical value where valid, else NaN; an empty `valid` means everywhere."""
    physical = to_physical(stored, scale, offset)
    return np.where(valid, physical, np.nan) if valid.size else physical


def apply_unary(op: int, a: Floats) -> Floats:
    """One operation with one operand, missing where it is."""
    with np.errstate(all="ignore"):
        return np.where(np.isnan(a), np.nan, _UNARY[op](a))


def apply_arithmetic(op: int, a: Floats, b: Floats) -> Floats:
    """One operation with two operands, missing where either is and at the poles."""
    is_pole = ((op in {expression.DIV, expression.MOD}) & (b == 0)) | ((op == expression.POW) & (a == 0) & (b < 0))
    with np.errstate(all="ignore"):
        return np.where(np.isnan(a) | np.isnan(b) | is_pole, np.nan, _ARITHMETIC[op](a, b))


def apply_condition(op: int, a: Floats, b: Floats) -> Floats:
    """One comparison or logical operation as 1 or 0, missing where either operand is."""
    return np.where(np.isnan(a) | np.isnan(b), np.nan, _CONDITIONS[op](a, b))


def store_finite(a: Floats, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Rounded to the output's dtype, NaN where not finite there."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(a).astype(dtype)
    return np.where(np.isfinite(rounded), rounded, np.nan).astype(dtype)


def run_program(
    code: Sequence[tuple[int, int, int, int, int]],
    constants: Sequence[float],
    bands: Sequence[Floats],
    dtype: npt.DTypeLike = np.float64,
) -> list[npt.NDArray[np.floating]]:
    """Every output of a program over whole arrays of physical values; the register code one instruction at a time."""
    registers: dict[int, Floats] = {k: np.asarray(value, np.float64) for k, value in enumerate(constants)}
    outputs: dict[int, npt.NDArray[np.floating]] = {}
    for op, target, *sources in code:
        a, b, c = (registers.get(source, np.zeros(())) for source in sources)
        if op == expression.LOAD:
            registers[target] = bands[sources[2]]
        elif op == expression.STORE:
            outputs[target] = np.broadcast_to(store_finite(a, dtype), bands[0].shape)
        elif op == expression.WHERE:
            registers[target] = np.where(np.isnan(a), np.nan, np.where(a != 0, b, c))
        elif op == expression.GUARD:
            registers[target] = np.where(np.isnan(b), np.nan, a)
        elif op in _UNARY:
            registers[target] = apply_unary(op, a)
        else:
            registers[target] = (apply_arithmetic if op in _ARITHMETIC else apply_condition)(op, a, b)
    return [outputs[place] for place in sorted(outputs)]


def _each(function: Callable[..., float]) -> Callable[..., np.ndarray]:
    """The C library's function, element by element.

    NumPy has vector versions of its own that differ from the C library in the last bit, and a comparison or a floor of
    such a value then differs by a whole step: no tolerance could tell that from a fault.
    """

    def applied(*numbers: float) -> float:
        try:
            return function(*numbers)
        except (ArithmeticError, ValueError):
            return math.nan

    return np.vectorize(applied, otypes=[np.float64])


_UNARY = {
    expression.NEG: np.negative,
    expression.NOT: np.logical_not,
    expression.ABS: np.abs,
    expression.SQRT: np.sqrt,
    expression.LOG: _each(math.log),
    expression.LOG10: _each(math.log10),
    expression.EXP: _each(math.exp),
    expression.SIN: _each(math.sin),
    expression.COS: _each(math.cos),
    expression.TAN: _each(math.tan),
    expression.ATAN: _each(math.atan),
    expression.FLOOR: np.floor,
    expression.CEIL: np.ceil,
}
_ARITHMETIC = {
    expression.ADD: np.add,
    expression.SUB: np.subtract,
    expression.MUL: np.multiply,
    expression.DIV: np.divide,
    expression.MOD: np.mod,
    expression.POW: _each(math.pow),
    expression.MIN: np.minimum,
    expression.MAX: np.maximum,
    expression.ATAN2: _each(math.atan2),
}
_CONDITIONS = {
    expression.LT: np.less,
    expression.LE: np.less_equal,
    expression.GT: np.greater,
    expression.GE: np.greater_equal,
    expression.EQ: np.equal,
    expression.NE: np.not_equal,
    expression.AND: np.logical_and,
    expression.OR: np.logical_or,
}


# pyramid


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
    out[:] = np.where(count > 0, mean, nodata)


def halve_mean_floats(
    pixels: np.ndarray, valid: np.ndarray, nodata: float, out: np.ndarray, out_valid: np.ndarray
) -> None:
    """Mean of the valid pixels of each 2 × 2 cell."""
    values, known = _cells(pixels, valid)
    count = known.sum(axis=0)
    a, b, c, d = np.where(known, values.astype(np.float64), 0.0)
    out[:] = np.where(count > 0, ((a + b) + (c + d)) / np.maximum(count, 1), nodata)
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


# coverage and zonal: polygons are lists of rings, a ring is an array (vertex, 2) of x, y; shells and holes wind
# against each other. The twin clips every ring to every cell, where the kernel accumulates heights of edges.


def coverage(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Covered fraction of each cell of a window that begins at (0, 0): area of the rings clipped to the cell."""
    out = np.zeros(shape)
    for row in range(shape[0]):
        for col in range(shape[1]):
            out[row, col] = abs(sum(_signed_area(_clip(ring, row, col)) for ring in rings))
    return out


def _clip(ring: np.ndarray, row: int, col: int) -> np.ndarray:
    """Sutherland and Hodgman 1974, "Reentrant Polygon Clipping", CACM 17(1): one half-plane after the other."""
    for axis, limit, sign in ((0, col, 1.0), (0, col + 1, -1.0), (1, row, 1.0), (1, row + 1, -1.0)):
        kept: list[np.ndarray] = []
        for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            inside_a, inside_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                kept.append(a + (b - a) * ((limit - a[axis]) / (b[axis] - a[axis])))
        ring = np.array(kept).reshape(-1, 2)
        if not len(ring):
            break
    return ring


def _signed_area(ring: np.ndarray) -> float:
    if len(ring) < 3:
        return 0.0
    x, y = (ring - ring[0]).T
    return float(0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def zonal_moments(weight: np.ndarray, values: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Statistics of one zone and band by the textbook; NaN where nothing is valid."""
    chosen = valid & (weight > 0)
    w, x = weight[chosen], values[chosen].astype(np.float64)
    total = w.sum()
    if total == 0:
        return {"count": 0.0, **dict.fromkeys(("sum", "mean", "min", "max", "variance", "stdev"), np.nan)}
    mean = (w * x).sum() / total
    variance = (w * (x - mean) ** 2).sum() / total
    return {
        "count": total,
        "sum": (w * x).sum(),
        "mean": mean,
        "min": x.min(),
        "max": x.max(),
        "variance": variance,
        "stdev": np.sqrt(variance),
    }


def zonal_quantile(weight: np.ndarray, values: np.ndarray, valid: np.ndarray, level: float) -> float:
    """Quantile of one zone and band: linear between distinct values that stand at k·w_k + (n − 1)·Σ_{i<k} w_i."""
    chosen = valid & (weight > 0)
    x, cell = np.unique(values[chosen].astype(np.float64), return_inverse=True)
    if not len(x):
        return np.nan
    w = np.bincount(cell, weight[chosen])
    n = len(x)
    stands = np.arange(n) * w + (n - 1) * (np.cumsum(w) - w)
    return float(np.interp(level * (n - 1) * w.sum(), stands, x))
