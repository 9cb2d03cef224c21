"""Arrays in, arrays out: the numerical core of eorouter, numpy and numba and nothing else.

Axis order is always `(time, band, y, x)`, trailing subset as needed. Floats carry NaN for missing data inside
kernels; integer rasters stay integers and come with a boolean `valid` array (True = data). Output arrays are the last
arguments and are allocated by the caller. Every kernel has a plain-NumPy twin of the same name in `reference/`, in the
file of the same name, which is its oracle.
"""

from importlib import import_module
from pkgutil import iter_modules


def warm_up() -> None:
    """Compile every kernel for the dtypes the methods use, or load it from the cache; once, on one thread, at start."""
    for found in iter_modules(__path__):
        module_warm_up = getattr(import_module(f"{__name__}.{found.name}"), "warm_up", None)
        if module_warm_up is not None:
            module_warm_up()
