"""How far data must keep from the stored value that means missing.

Integers meet it or do not. Floats are compared with a tolerance by GDAL, and by all who read through it: numbers are
the same whose difference is less than two of float32's epsilons of their sum, in float64 too (`ARE_REAL_EQUAL`, GDAL
3.10). Twice that is kept, for readers who round otherwise: about a millionth of the value. A sum beyond the type's
range is infinite and makes all numbers the same, so beside ±3.4e38 in float32 far more is hidden; what is moved there
goes all the way to where GDAL sees it.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from eorouter_kernels._jit import WARM_DTYPES, kernel

_TOLERANCE = 4 * float(np.finfo(np.float32).eps)


class Nodata(NamedTuple):
    """The stored value that means missing; from `first` to `last`, what is taken for it; where data goes instead.

    All numbers are the pixel type's. Without nodata, and where it is NaN, all are NaN: no data is taken for that.
    """

    value: float
    first: float
    last: float
    aside: float


NONE = Nodata(np.nan, np.nan, np.nan, np.nan)


@lru_cache(maxsize=256)
def around(value: float | None, dtype: str) -> Nodata:
    """What is taken for nodata `value` in pixels of `dtype`; `NONE` for a value that the type cannot hold.

    Data moves towards 0, so it stays within the type: integers by one (up, where nodata is 0 or less, but never beyond
    the type), floats by about a millionth, and from 0 to the least positive number that every processor tells from it.
    """
    if value is None or np.isnan(value):
        return NONE
    kind: Any = np.dtype(dtype)
    if kind.kind != "f":
        info = np.iinfo(kind)
        if not float(value).is_integer() or not info.min <= value <= info.max:
            return NONE
        return Nodata(value, value, value, value + 1 if value < info.max else value - 1)
    with np.errstate(over="ignore"):
        stored = kind.type(value)
    if stored == 0:
        return Nodata(0.0, 0.0, 0.0, float(np.finfo(kind).tiny))
    top = np.finfo(kind).max
    # Beyond half of the type's range every sum is infinite; below it the way out is short.
    goal = np.copysign(top, stored) if top / 2 < abs(stored) < np.inf else stored * kind.type(1.001)
    inner, outer = _edge(stored, kind.type(0)), _edge(stored, goal)
    first, last = sorted((float(inner), float(outer)))
    return Nodata(float(stored), first, last, float(np.nextafter(inner, kind.type(0))))


def _edge(stored: Any, goal: Any) -> Any:
    """The last number on the way from `stored` to `goal` that is taken for `stored`; both of one sign."""
    words = f"i{stored.dtype.itemsize}"
    # Floats of one sign are in the order of their bits.
    near, far = (int(np.abs(end).view(words)) for end in (stored, goal))

    def number(bits: int) -> Any:
        return np.copysign(np.array(bits, words).view(stored.dtype)[()], stored)

    if _is_taken(goal, stored):
        return goal
    while abs(far - near) > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if _is_taken(number(middle), stored) else (near, middle)
    return number(near)


def _is_taken(value: Any, stored: Any) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        return bool(value == stored or abs(value - stored) < stored.dtype.type(_TOLERANCE) * abs(value + stored))


def are_taken(pixels: np.ndarray, nodata: Nodata) -> np.ndarray:
    """Which pixels are taken for nodata: bool, of the shape of `pixels`."""
    return (pixels >= nodata.first) & (pixels <= nodata.last)


def kept_clear(pixels: np.ndarray, valid: np.ndarray | None, value: float | None) -> np.ndarray:
    """`pixels` with valid ones moved aside where they would be taken for nodata `value`, in place where that can be.

    `valid` has the shape of `pixels`, or is None for all; what is missing stays as it is.
    """
    nodata = around(value, pixels.dtype.name)
    if np.isnan(nodata.value):
        return pixels
    pixels = np.ascontiguousarray(pixels)
    known = np.empty(0, np.bool_) if valid is None else np.ascontiguousarray(valid).reshape(-1)
    step_aside(pixels.reshape(-1), known, nodata)
    return pixels


@kernel
def step_aside(pixels: np.ndarray, valid: np.ndarray, nodata: Nodata) -> None:
    """Move valid pixels that would be taken for nodata aside, in place.

    Shapes: pixels (pixel); valid (pixel) bool, or of size 0 where all are valid.
    Units: those of the pixels.
    Nodata: `nodata` is that of the pixels' type, and not NaN; pixels that are not valid stay as they are.
    Reference: GDAL's ARE_REAL_EQUAL, gcore/gdal_priv_templates.hpp.
    """
    kind = pixels.dtype.type
    first, last, aside = kind(nodata.first), kind(nodata.last), kind(nodata.aside)
    if valid.size == 0:
        for i in range(len(pixels)):
            pixels[i] = aside if (pixels[i] >= first) & (pixels[i] <= last) else pixels[i]
        return
    for i in range(len(pixels)):
        pixels[i] = aside if (pixels[i] >= first) & (pixels[i] <= last) & valid[i] else pixels[i]


def warm_up() -> None:
    """Compile for the usual pixel types, or load from the cache."""
    for name in WARM_DTYPES:
        for valid in (np.empty(0, np.bool_), np.ones(1, np.bool_)):
            step_aside(np.ones(1, name), valid, around(0.0, name))
