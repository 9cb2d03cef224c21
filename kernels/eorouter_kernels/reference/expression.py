"""Twins of the expression machine: whole arrays, one instruction at a time."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from eorouter_kernels import expression

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


def pack_values(
    values: Floats,
    scale: float,
    offset: float,
    *,
    low: float,
    high: float,
    is_clamped: bool,
    avoided: float,
    fill: float,
    dtype: npt.DTypeLike,
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Whole stored numbers and where there are any."""
    with np.errstate(all="ignore"):
        stored = np.rint((values - offset) / scale)
    valid = ~np.isnan(stored)
    if is_clamped:
        stored = np.clip(stored, low, high)
    else:
        valid &= (stored >= low) & (stored <= high)
    stored = np.where(stored == avoided, np.where(stored < high, stored + 1, stored - 1), stored)
    return np.where(valid, stored, fill).astype(dtype), valid


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
