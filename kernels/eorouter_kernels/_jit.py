"""The one place that owns the numba options.

Kernels run with the GIL released and are cached on disk. They are never `parallel`: parallelism belongs to Dask, and
numba's workqueue layer aborts the process when two Python threads enter parallel regions (numba issue 8563).
`error_model="numpy"` gives x / 0 its IEEE result instead of a Python exception and a branch per division.

The cache notices when the file of a function changes, not when that of a function it calls does, nor this one: remove
`__pycache__` (`make clean`) after such a change.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

WARM_DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types compiled at start: nearly every scene is one of these. The others compile when they first come, in a
second or two; all of them at start cost a cold machine twice the time."""

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function for arrays that makes none itself; the checker keeps seeing the signature that was written.

    No references are counted in it: numba counts those of every array that a function is given, and of every view, and
    where a pixel took a call, that was more than the pixel. So it must not return an array, nor call what makes one.
    """
    return _compiled(function, counts=False)


def allocating_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """The same for a function that makes arrays."""
    return _compiled(function, counts=True)


def _compiled(function: Callable[P, R], *, counts: bool) -> Callable[P, R]:
    # Said in both cases: what is left out would be taken from whoever compiles a call of it first.
    options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "_nrt": counts}
    return cast("Callable[P, R]", numba.njit(**options)(function))  # noqa: TID251
