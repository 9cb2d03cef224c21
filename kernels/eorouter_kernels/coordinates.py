# ruff: noqa: PLR0917  numba passes arguments by position
"""Coordinates out of and into JSON text, for layers of a million vertices: no Python object is made per number.

Reading is strict: only what is plainly a polygon or multipolygon (closed rings of four positions or more, two or three
finite numbers each) is taken; everything else is told by its number, and someone more patient may judge it. Numbers
are rounded correctly, as `float` does. Writing is in fixed point, so the text is the same on every machine.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eorouter_kernels._jit import allocating_kernel, kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Text = NDArray[np.uint8]

POLYGON, MULTIPOLYGON = 3, 4
"""How deep a position lies in the coordinates of a polygon and of a multipolygon."""

DECIMALS_MAX = 12
"""Most digits after the point that are written."""

_POWER_LOW, _POWER_HIGH = -64, 64
_DIGITS_MAX = 19  # as many fit into 64 bits
_EXACT = 22  # powers of ten up to here are doubles


def _powers_of_five() -> NDArray[np.uint64]:
    """The 128 leading bits of 5^q, upper and lower half; of q < 0 rounded up, as Lemire 2021, section 5 has it."""
    rows = []
    for q in range(_POWER_LOW, _POWER_HIGH + 1):
        if q >= 0:
            bits = 5**q
            bits = bits << (128 - bits.bit_length()) if bits.bit_length() <= 128 else bits >> (bits.bit_length() - 128)
        else:
            power = 5**-q
            bits = (1 << (power.bit_length() + 127)) // power + 1
        rows.append((bits >> 64, bits & 0xFFFFFFFFFFFFFFFF))
    return np.array(rows, np.uint64)


_FIVES = _powers_of_five()
_TENS = np.array([10.0**q for q in range(_EXACT + 1)])


class Positions(NamedTuple):
    """Polygons as flat arrays; geometry g owns polygons `geometries[g] … geometries[g + 1] - 1`, and so on down.

    Attributes:
        vertices: (vertex, 2) x, y.
        rings: (ring + 1) first vertex of each ring.
        polygons: (polygon + 1) first ring of each polygon.
        geometries: (geometry + 1) first polygon of each geometry.
        strange: (geometry) what was left for others to judge; owns nothing.
    """

    vertices: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    geometries: NDArray[np.int64]
    strange: NDArray[np.bool_]


def read(text: bytes, first: NDArray[np.int64], depth: NDArray[np.int64]) -> Positions:
    """Positions of polygons from the JSON of their `coordinates`.

    Args:
        text: all coordinates, one after the other, known to be JSON.
        first: (geometry + 1) where each begins in the text.
        depth: (geometry) `POLYGON` or `MULTIPOLYGON`; 0 for what shall be left alone.
    """
    data = np.frombuffer(text, np.uint8)
    brackets = text.count(b"[")
    rings, polygons = brackets // 5 + 2, brackets // 6 + 2
    vertices, ring_first = np.empty((brackets + 1, 2)), np.zeros(rings, np.int64)
    polygon_first, geometry_first = np.zeros(polygons, np.int64), np.zeros(len(first), np.int64)
    strange = np.zeros(len(depth), np.bool_)
    made = _read(
        data, first.astype(np.int64), depth.astype(np.int64), vertices, ring_first, polygon_first, geometry_first,
        strange,
    )  # fmt: skip
    return Positions(
        vertices[: made[0]], ring_first[: made[1] + 1], polygon_first[: made[2] + 1], geometry_first, strange
    )


def write(
    vertices: NDArray[np.float64], rings: NDArray[np.int64], polygons: NDArray[np.int64], decimals: int
) -> tuple[bytes, NDArray[np.int64]]:
    """JSON of polygons, `[[[x,y],…],…]` each, one after the other, and where each begins, (polygon + 1).

    Args:
        vertices: (vertex, 2) finite; their size times 10^decimals below 9·10¹⁷.
        rings: (ring + 1) first vertex of each ring.
        polygons: (polygon + 1) first ring of each polygon.
        decimals: digits after the point, at most `DECIMALS_MAX`; the last is rounded half to even, zeros at the end are
            left out.

    Raises:
        ValueError: the numbers are too large for so many decimals.
    """
    if decimals > DECIMALS_MAX or (len(vertices) and not np.abs(vertices).max() * 10.0**decimals < 9e17):
        raise ValueError(f"{decimals} decimals of these numbers do not fit into 64 bits")
    out = np.empty(len(vertices) * 44 + len(rings) * 3 + len(polygons) * 2, np.uint8)
    first = np.zeros(len(polygons), np.int64)
    _write(np.ascontiguousarray(vertices), rings.astype(np.int64), polygons.astype(np.int64), decimals, out, first)
    return out[: first[-1]].tobytes(), first


@kernel
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Upper and lower half of a product of 64 by 64 bits."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    p00, p01, p10 = a0 * b0, a0 * b1, a1 * b0
    middle = (p00 >> half) + (p01 & low) + (p10 & low)
    upper = a1 * b1 + (p01 >> half) + (p10 >> half) + (middle >> half)
    return upper, (middle << half) | (p00 & low)


@kernel
def _rounded(digits: np.uint64, power: int, as_bits: NDArray[np.uint64], as_float: Floats) -> float:
    """The double nearest to digits · 10^power; NaN where the power is not in the table or the result not normal.

    Shapes: as_bits (1) and as_float (1) are one piece of memory.
    Units: none.
    Nodata: NaN, see above.
    Reference: Lemire 2021, "Number Parsing at a Gigabyte per Second", Softw. Pract. Exp. 51(8), algorithm 1.
    """
    if digits == 0:
        return 0.0
    if power < _POWER_LOW or power > _POWER_HIGH:
        return np.nan
    one = np.uint64(1)
    zeros = 0
    while digits < np.uint64(1 << 63):
        digits <<= one
        zeros += 1
    upper, lower = _product(digits, _FIVES[power - _POWER_LOW, 0])
    if upper & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _product(digits, _FIVES[power - _POWER_LOW, 1])
        lower = lower + more
        if lower < more:
            upper = upper + one
    top = upper >> np.uint64(63)
    mantissa = upper >> (top + np.uint64(9))
    exponent = ((217706 * power) >> 16) + 63 + np.int64(top) - zeros + 1023
    if exponent <= 0 or exponent >= 2046:
        return np.nan
    may_be_half_way = lower <= one and -4 <= power <= 23 and mantissa & np.uint64(3) == one
    if may_be_half_way and mantissa << (top + np.uint64(9)) == upper:
        mantissa &= ~one
    mantissa = (mantissa + (mantissa & one)) >> one
    if mantissa >= np.uint64(1 << 53):
        mantissa = np.uint64(1 << 52)
        exponent += 1
    as_bits[0] = (mantissa & np.uint64((1 << 52) - 1)) | (np.uint64(exponent) << np.uint64(52))
    return as_float[0]


@kernel
def _number(text: Text, at: int, stop: int, as_bits: NDArray[np.uint64], as_float: Floats) -> tuple[int, float]:
    """The number that begins at `at`, and where it ends; NaN for what is no plain number."""
    is_negative = text[at] == 45
    if is_negative:
        at += 1
    zero, ten = np.uint64(48), np.uint64(10)
    digits = np.uint64(0)
    power = count = 0
    begin = at
    while at < stop:
        digit = np.uint64(text[at]) - zero  # what lies below 48 becomes very large
        if digit >= ten:
            break
        digits = digits * ten + digit
        at += 1
    bad = at == begin
    if at > begin and text[begin] != 48:
        count = at - begin
    if at < stop and text[at] == 46:
        at += 1
        begin = at
        if count == 0:
            while at < stop and text[at] == 48:
                at += 1
        first = at
        while at < stop:
            digit = np.uint64(text[at]) - zero
            if digit >= ten:
                break
            digits = digits * ten + digit
            at += 1
        count += at - first
        power = begin - at
        bad |= at == begin
    if at < stop and (text[at] | 32) == 101:
        at += 1
        sign = 1
        if at < stop and (text[at] == 43 or text[at] == 45):
            sign = 44 - np.int64(text[at])
            at += 1
        begin, shift = at, 0
        while at < stop and 48 <= text[at] <= 57:
            shift = min(shift * 10 + np.int64(text[at]) - 48, 100_000)
            at += 1
        power += int(sign * shift)
        bad |= at == begin
    if bad or count > _DIGITS_MAX:
        return at, np.nan
    if digits < np.uint64(1 << 53) and -_EXACT <= power <= _EXACT:
        found = float(digits) / _TENS[-power] if power < 0 else float(digits) * _TENS[power]
    else:
        found = _rounded(digits, power, as_bits, as_float)
    return at, -found if is_negative else found


@kernel
def _read_one(  # noqa: PLR0911
    text: Text, at: int, stop: int, depth: int, made: Ints, vertices: Floats, rings: Ints, polygons: Ints,
    as_bits: NDArray[np.uint64], as_float: Floats,
) -> bool:  # fmt: skip
    """Read one geometry; False where it is strange, `made` being of no use then."""
    level = numbers = 0
    is_after = False  # a value stands before; a comma or a closing bracket must follow
    is_over = False
    while at < stop:
        c = text[at]
        if c <= 32:  # JSON, checked before, has no other signs down there than its white space
            at += 1
        elif c == 91:
            if is_after or is_over or level == depth:
                return False
            level += 1
            numbers = 0
            at += 1
        elif c == 44:
            if not is_after:
                return False
            is_after = False
            at += 1
        elif c == 93:
            if not is_after:
                return False
            at += 1
            if level == depth:
                if numbers < 2 or numbers > 3:
                    return False
                made[0] += 1
            elif level == depth - 1:
                first, last = rings[made[1]], made[0] - 1
                if (
                    last - first < 3
                    or vertices[first, 0] != vertices[last, 0]
                    or vertices[first, 1] != vertices[last, 1]
                ):
                    return False
                made[1] += 1
                rings[made[1]] = made[0]
            elif level == depth - 2:
                made[2] += 1
                polygons[made[2]] = made[1]
            level -= 1
            is_over = level == 0
        else:
            if is_after or level != depth:
                return False
            at, value = _number(text, at, stop, as_bits, as_float)
            if np.isnan(value):
                return False
            if numbers < 2:
                vertices[made[0], numbers] = value
            numbers += 1
            is_after = True
            continue
        if c == 93:
            is_after = True
    return is_over


@allocating_kernel
def _read(
    text: Text, first: Ints, depth: Ints, vertices: Floats, rings: Ints, polygons: Ints, geometries: Ints,
    strange: NDArray[np.bool_],
) -> Ints:  # fmt: skip
    """Read all geometries; returns how many vertices, rings and polygons there are.

    Shapes: as `Positions`, with room for all that the brackets of the text allow.
    Units: those of the text.
    Nodata: a strange geometry owns nothing.
    Reference: RFC 7946, 3.1.6 and 3.1.7; numbers as `_rounded`.
    """
    made = np.zeros(3, np.int64)
    as_bits = np.zeros(1, np.uint64)
    as_float = as_bits.view(np.float64)
    for geometry in range(len(depth)):
        vertex, ring, polygon = made[0], made[1], made[2]
        if depth[geometry] == 0 or not _read_one(
            text, first[geometry], first[geometry + 1], depth[geometry], made, vertices, rings, polygons, as_bits,
            as_float,
        ):  # fmt: skip
            strange[geometry] = True
            made[0], made[1], made[2] = vertex, ring, polygon
        geometries[geometry + 1] = made[2]
    return made


@kernel
def _write_number(value: float, decimals: int, out: Text, at: int) -> int:
    """Write a number in fixed point; returns where the next byte goes."""
    signed = np.int64(np.rint(value * _TENS[decimals]))
    if signed < 0:
        out[at] = 45
        at += 1
    ten, digits = np.uint64(10), np.uint64(abs(signed))
    while decimals > 0 and digits // ten * ten == digits:
        digits //= ten
        decimals -= 1
    length, limit = 1, ten
    while digits >= limit:
        limit *= ten
        length += 1
    length = max(length, decimals + 1)
    stop = at + length + (decimals > 0)
    place = stop - 1
    for i in range(length):
        if i == decimals and decimals > 0:
            out[place] = 46
            place -= 1
        rest = digits // ten
        out[place] = np.uint8(np.uint64(48) + (digits - rest * ten))
        digits = rest
        place -= 1
    return stop


@kernel
def _write(vertices: Floats, rings: Ints, polygons: Ints, decimals: int, out: Text, first: Ints) -> None:
    """Write polygons one after the other.

    Shapes: vertices (vertex, 2); rings (ring + 1); polygons, first (polygon + 1); out has 44 bytes for each vertex, 3
        for each ring and 2 for each polygon.
    Units: those of the vertices.
    Nodata: none.
    Reference: RFC 7946, 3.1.6; RFC 8259, 6.
    """
    at = 0
    for polygon in range(len(polygons) - 1):
        out[at] = 91
        at += 1
        for ring in range(polygons[polygon], polygons[polygon + 1]):
            if ring > polygons[polygon]:
                out[at] = 44
                at += 1
            out[at] = 91
            at += 1
            for i in range(rings[ring], rings[ring + 1]):
                if i > rings[ring]:
                    out[at] = 44
                    at += 1
                out[at] = 91
                at = _write_number(vertices[i, 0], decimals, out, at + 1)
                out[at] = 44
                at = _write_number(vertices[i, 1], decimals, out, at + 1)
                out[at] = 93
                at += 1
            out[at] = 93
            at += 1
        out[at] = 93
        at += 1
        first[polygon + 1] = at


def warm_up() -> None:
    """Compile the kernels of this module, or load them from the cache."""
    text = b"[[[0,0],[1,0],[1,1],[0,0]]]"
    found = read(text, np.array([0, len(text)]), np.array([POLYGON]))
    write(found.vertices, found.rings, found.polygons, 9)
