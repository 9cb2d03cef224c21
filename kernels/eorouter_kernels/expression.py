# ruff: noqa: PLR0917  numba passes arguments by position
"""One precompiled machine that runs every formula: register code over blocks of pixels that stay in the cache.

A formula is compiled (by `eorouter_compute.expression`) to instructions `(op, target, a, b, c)` over float64 registers,
each as long as a block; LOAD has its band's slot in `c`, STORE its output in `target`. One instruction is one short
loop over a block, so dispatch costs nothing, the loops vectorise and no temporary is ever larger than the register
file. There is no just-in-time compilation per formula.

Missing data: every operation gives NaN when an operand is NaN. `WHERE` alone looks only at its condition and the
branch taken. What has no real finite value is missing, not infinite: x / 0, x % 0, log of 0 or less, square root of a
negative number, a negative number to a fractional power, an overflow.

Registers: the constants first, filled once; an instruction never writes to a register it reads, because an in-place
loop would fail the vectoriser's overlap check and run eight times slower.
"""

import math

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Dtype of a stored band, by its place in this tuple.
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# Bands one program can read. The kernel takes its bands as a tuple of exactly this length, so that one compiled
# signature serves every formula and every mix of dtypes; unused places hold empty arrays.
SLOTS = 16

LOAD, STORE, GUARD, WHERE = 0, 1, 2, 3
NEG, NOT, ABS, SQRT, LOG, LOG10, EXP, SIN, COS, TAN, ATAN, FLOOR, CEIL = range(10, 23)
ADD, SUB, MUL, DIV, MOD, POW, MIN, MAX, ATAN2 = range(30, 39)
LT, LE, GT, GE, EQ, NE, AND, OR = range(40, 48)


@kernel
def to_physical(stored: npt.NDArray[np.generic], scale: float, offset: float, out: Floats) -> None:
    """Physical value of stored pixels, stored × scale + offset.

    Shapes: stored (run) of any dtype of DTYPES, out (run).
    Units: any in; physical units out.
    Nodata: NaN stays NaN.
    Reference: GDAL raster data model, "Raster Band", scale and offset.
    """
    for i in range(out.size):
        out[i] = np.float64(stored[i]) * scale + offset


@kernel
def load_band(stored: Bytes, dtype: int, start: int, scale: float, offset: float, valid: Bools, out: Floats) -> None:
    """Physical value of a run of a band that is given as bytes.

    Shapes: stored (bytes of the whole band), valid (pixel) or (0) for all valid, out (run).
    Units: any in; physical units out.
    Nodata: NaN where valid is False; NaN stays NaN.
    Reference: as `to_physical`.
    """
    stop = start + out.size
    if dtype == 0:
        to_physical(stored[start:stop], scale, offset, out)
    elif dtype == 1:
        to_physical(stored.view(np.int8)[start:stop], scale, offset, out)
    elif dtype == 2:
        to_physical(stored.view(np.uint16)[start:stop], scale, offset, out)
    elif dtype == 3:
        to_physical(stored.view(np.int16)[start:stop], scale, offset, out)
    elif dtype == 4:
        to_physical(stored.view(np.uint32)[start:stop], scale, offset, out)
    elif dtype == 5:
        to_physical(stored.view(np.int32)[start:stop], scale, offset, out)
    elif dtype == 6:
        to_physical(stored.view(np.float32)[start:stop], scale, offset, out)
    else:
        to_physical(stored.view(np.float64)[start:stop], scale, offset, out)
    if valid.size > 0:
        known = valid[start:stop]
        for i in range(out.size):
            out[i] = out[i] if known[i] else np.nan


@kernel
def apply_unary(op: int, a: Floats, out: Floats) -> None:
    """One operation with one operand.

    Shapes: a, out (run).
    Units: angles in radians; a condition is 1 (true) or 0.
    Nodata: NaN gives NaN; so do log and log10 of zero or less and the square root of less than zero.
    Reference: IEEE 754-2019, section 9.2 (domains; here infinite results of the poles are missing).
    """
    n = out.size
    if op == NEG:
        for i in range(n):
            out[i] = -a[i]
    elif op == NOT:
        for i in range(n):
            out[i] = a[i] if a[i] != a[i] else (1.0 if a[i] == 0.0 else 0.0)
    elif op == ABS:
        for i in range(n):
            out[i] = abs(a[i])
    elif op == SQRT:
        for i in range(n):
            out[i] = math.sqrt(a[i]) if a[i] >= 0.0 else np.nan
    elif op == LOG:
        for i in range(n):
            out[i] = math.log(a[i]) if a[i] > 0.0 else np.nan
    elif op == LOG10:
        for i in range(n):
            out[i] = math.log10(a[i]) if a[i] > 0.0 else np.nan
    elif op == EXP:
        for i in range(n):
            out[i] = math.exp(a[i])
    elif op == SIN:
        for i in range(n):
            out[i] = math.sin(a[i])
    elif op == COS:
        for i in range(n):
            out[i] = math.cos(a[i])
    elif op == TAN:
        for i in range(n):
            out[i] = math.tan(a[i])
    elif op == ATAN:
        for i in range(n):
            out[i] = math.atan(a[i])
    elif op == FLOOR:
        for i in range(n):
            out[i] = np.floor(a[i])
    elif op == CEIL:
        for i in range(n):
            out[i] = np.ceil(a[i])


@kernel
def apply_arithmetic(op: int, a: Floats, b: Floats, out: Floats) -> None:
    """One arithmetic operation with two operands.

    Shapes: a, b, out (run).
    Units: atan2 in radians.
    Nodata: NaN if either operand is NaN, the divisor of / or % is 0, or the power has no real value.
    Reference: IEEE 754-2019; % has the sign of the divisor (floored), as in Python.
    """
    n = out.size
    if op == ADD:
        for i in range(n):
            out[i] = a[i] + b[i]
    elif op == SUB:
        for i in range(n):
            out[i] = a[i] - b[i]
    elif op == MUL:
        for i in range(n):
            out[i] = a[i] * b[i]
    elif op == DIV:
        for i in range(n):
            out[i] = a[i] / b[i] if b[i] != 0.0 else np.nan
    elif op == MOD:
        for i in range(n):
            out[i] = a[i] % b[i] if b[i] != 0.0 else np.nan
    elif op == POW:
        for i in range(n):
            # IEEE has 0 ** negative = inf and NaN ** 0 = 1; here both are missing.
            is_missing = a[i] != a[i] or b[i] != b[i] or (a[i] == 0.0 and b[i] < 0.0)
            out[i] = np.nan if is_missing else a[i] ** b[i]
    elif op == MIN:
        for i in range(n):
            # Not min(): its answer for a NaN depends on the order, this one keeps b's and the next line a's.
            low = a[i] if a[i] < b[i] else b[i]  # noqa: FURB136
            out[i] = a[i] if a[i] != a[i] else low
    elif op == MAX:
        for i in range(n):
            high = a[i] if a[i] > b[i] else b[i]  # noqa: FURB136
            out[i] = a[i] if a[i] != a[i] else high
    elif op == ATAN2:
        for i in range(n):
            out[i] = math.atan2(a[i], b[i])


@kernel
def apply_condition(op: int, a: Floats, b: Floats, out: Floats) -> None:
    """One comparison or logical operation with two operands.

    Shapes: a, b, out (run).
    Units: 1 for true, 0 for false; any number but 0 counts as true.
    Nodata: NaN if either operand is NaN: what is unknown is not false.
    Reference: Kleene 1938, "On notation for ordinal numbers", J. Symbolic Logic 3 (the weak, all-infecting reading).
    """
    n = out.size
    if op == LT:
        for i in range(n):
            out[i] = 1.0 if a[i] < b[i] else 0.0
    elif op == LE:
        for i in range(n):
            out[i] = 1.0 if a[i] <= b[i] else 0.0
    elif op == GT:
        for i in range(n):
            out[i] = 1.0 if a[i] > b[i] else 0.0
    elif op == GE:
        for i in range(n):
            out[i] = 1.0 if a[i] >= b[i] else 0.0
    elif op == EQ:
        for i in range(n):
            out[i] = 1.0 if a[i] == b[i] else 0.0
    elif op == NE:
        for i in range(n):
            out[i] = 1.0 if a[i] != b[i] else 0.0
    elif op == AND:
        for i in range(n):
            out[i] = 1.0 if (a[i] != 0.0) & (b[i] != 0.0) else 0.0
    elif op == OR:
        for i in range(n):
            out[i] = 1.0 if (a[i] != 0.0) | (b[i] != 0.0) else 0.0
    # A pass of its own: one loop that chose the comparison inside ran three times slower, it did not vectorise.
    for i in range(n):
        out[i] = out[i] if (a[i] == a[i]) & (b[i] == b[i]) else np.nan


@kernel
def store_finite(a: Floats, out: npt.NDArray[np.floating]) -> None:
    """Result of a run, rounded once to the output's dtype.

    Shapes: a, out (run).
    Units: unchanged.
    Nodata: NaN, also where the value is not finite in the output's dtype.
    Reference: IEEE 754-2019, section 4.3.1 (round to nearest, ties to even).
    """
    largest = np.finfo(out.dtype).max
    for i in range(a.size):
        rounded = out.dtype.type(a[i])
        out[i] = rounded if abs(rounded) <= largest else out.dtype.type(np.nan)


@kernel
def pack_values(
    values: Floats,
    scale: float,
    offset: float,
    low: float,
    high: float,
    is_clamped: bool,
    avoided: float,
    fill: float,
    out: npt.NDArray[np.generic],
    valid: Bools,
) -> None:
    """Results as whole stored numbers, (value − offset) / scale rounded, and where there are any.

    Shapes: values, out of an integer dtype, valid (run).
    Units: values physical; scale and offset in their unit; low, high, avoided and fill stored.
    Nodata: a NaN becomes fill and is not valid. Outside low … high a value is held to the nearer end if is_clamped,
        else it is missing. A value that would be stored as avoided (NaN: none) is stored as its neighbour, so that it
        is not read as missing.
    Reference: IEEE 754-2019, section 4.3.1 (round to nearest, ties to even); gdalwarp keeps clear of nodata likewise.
    """
    for i in range(values.size):
        stored = np.rint((values[i] - offset) / scale)
        known = not np.isnan(stored)
        if is_clamped:
            stored = low if stored < low else (high if stored > high else stored)  # noqa: FURB136 - NaN passes
        elif stored < low or stored > high:
            known = False
        if stored == avoided:
            stored = stored + 1.0 if stored < high else stored - 1.0
        valid[i] = known
        out[i] = stored if known else fill


@allocating_kernel
def run_program(
    code: Ints,
    constants: Floats,
    register_count: int,
    block_size: int,
    bands: tuple[Bytes, ...],
    dtypes: Ints,
    scales: Floats,
    offsets: Floats,
    valids: tuple[Bools, ...],
    out: npt.NDArray[np.floating],
) -> None:
    """Every output of a program, at every pixel, in one pass over the bands.

    Shapes: code (instruction, 5), constants (constant), bands and valids SLOTS arrays (bytes) and (pixel or 0), dtypes,
        scales, offsets (SLOTS), out (output, pixel) float32 or float64.
    Units: physical inside (stored × scale + offset in float64); what the formula makes of them outside.
    Nodata: NaN where the formula has no finite value or a band it needs is invalid.
    Reference: Alted 2010, "Why modern CPUs are starving and what can be done about it", CiSE 12(2), 68-71 (blocking).
    """
    registers = np.empty((register_count, block_size), np.float64)
    for k in range(constants.size):
        registers[k, :] = constants[k]
    for start in range(0, out.shape[1], block_size):
        n = min(block_size, out.shape[1] - start)
        for line in range(code.shape[0]):
            op, target = code[line, 0], code[line, 1]
            a = registers[code[line, 2], :n]
            b = registers[code[line, 3], :n]
            if op == LOAD:
                slot = code[line, 4]
                target_run = registers[target, :n]
                load_band(bands[slot], dtypes[slot], start, scales[slot], offsets[slot], valids[slot], target_run)  # pyright: ignore[reportArgumentType]
            elif op == STORE:
                store_finite(a, out[target, start : start + n])
            elif op == GUARD:
                guarded = registers[target, :n]
                for i in range(n):
                    guarded[i] = a[i] if b[i] == b[i] else np.nan
            elif op == WHERE:
                c = registers[code[line, 4], :n]
                chosen = registers[target, :n]
                for i in range(n):
                    taken = b[i] if a[i] != 0.0 else c[i]
                    chosen[i] = taken if a[i] == a[i] else np.nan
            elif op < ADD:
                apply_unary(op, a, registers[target, :n])
            elif op < LT:
                apply_arithmetic(op, a, b, registers[target, :n])
            else:
                apply_condition(op, a, b, registers[target, :n])


def warm_up() -> None:
    """Compile both output dtypes and the usual packed ones, or load them from the cache."""
    flags = np.empty(4, np.bool_)
    for kind in (np.uint8, np.uint16, np.int16):
        pack_values(np.zeros(4), 1.0, 0.0, 0.0, 255.0, True, np.nan, 0.0, np.empty(4, kind), flags)
    empty, everything = np.empty(0, np.uint8), np.empty(0, np.bool_)
    code = np.array([[LOAD, 0, 0, 0, 0], [STORE, 0, 0, 0, 0]], np.int64)
    for dtype in (np.float32, np.float64):
        bands = (np.zeros(4, np.uint8), *(empty for _ in range(SLOTS - 1)))
        valids = tuple(everything for _ in range(SLOTS))
        ones, zeros = np.ones(SLOTS), np.zeros(SLOTS)
        kinds = np.zeros(SLOTS, np.int64)
        run_program(code, np.empty(0), 1, 256, bands, kinds, ones, zeros, valids, np.empty((1, 4), dtype))
