"""Plain-NumPy twins of the kernels, written to be read: the oracle each kernel is tested against."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from eorouter_kernels import expression

# expression


def run_program(
    code: Sequence[tuple[int, int, int, int, int]], constants: Sequence[float], bands: Sequence[npt.NDArray[np.float64]]
) -> list[npt.NDArray[np.float64]]:
    """Every output of a program over whole arrays of physical values; the register code one instruction at a time."""
    registers = {k: np.asarray(value, np.float64) for k, value in enumerate(constants)}
    outputs: dict[int, npt.NDArray[np.float64]] = {}
    with np.errstate(all="ignore"):
        for op, target, *sources in code:
            if op == expression.LOAD:
                registers[target] = bands[sources[2]]
            elif op == expression.STORE:
                result = np.broadcast_to(registers[sources[0]], bands[0].shape)
                outputs[target] = np.where(np.isfinite(result), result, np.nan)
            else:
                a, b, c = (registers.get(source, np.zeros(())) for source in sources)
                registers[target] = _apply(op, a, b, c)
    return [outputs[place] for place in sorted(outputs)]


def _apply(op: int, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One instruction; missing where an operand is, save for the branch that `where` does not take."""
    if op == expression.WHERE:
        return np.where(np.isnan(a), np.nan, np.where(a != 0, b, c))
    if op == expression.GUARD:
        return np.where(np.isnan(b), np.nan, a)
    if op in _UNARY:
        result = _UNARY[op](a)
        return np.where(np.isnan(a), np.nan, result)
    result = np.where(np.isnan(a) | np.isnan(b), np.nan, _BINARY[op](a, b))
    is_pole = (op in {expression.DIV, expression.MOD}) & (b == 0) | ((op == expression.POW) & (a == 0) & (b < 0))
    return np.where(is_pole, np.nan, result)


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
_BINARY = {
    expression.ADD: np.add,
    expression.SUB: np.subtract,
    expression.MUL: np.multiply,
    expression.DIV: np.divide,
    expression.MOD: np.mod,
    expression.POW: _each(math.pow),
    expression.MIN: np.minimum,
    expression.MAX: np.maximum,
    expression.ATAN2: _each(math.atan2),
    expression.LT: np.less,
    expression.LE: np.less_equal,
    expression.GT: np.greater,
    expression.GE: np.greater_equal,
    expression.EQ: np.equal,
    expression.NE: np.not_equal,
    expression.AND: np.logical_and,
    expression.OR: np.logical_or,
}
