"""How far pixels lie from the nearest flagged one."""

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel


@allocating_kernel
def distance(flags: npt.NDArray[np.bool_], reach: int, out: npt.NDArray[np.float32]) -> None:
    """Distance to the nearest flagged pixel, centre to centre, at most `reach`: min √(Δx² + Δy²).

    Shapes: flags, out (y, x).
    Units: pixels.
    Nodata: none; a pixel with no flagged one within `reach` has `reach`.
    Reference: Meijster, Roerdink & Hesselink 2000, "A general algorithm for computing distance transforms in linear
        time", where the columns are searched by lower envelopes; within a short reach looking at each row is faster.
    """
    height, width = flags.shape
    # Along the row first, to whole numbers; those then stand for the row's nearest pixel at any height above or below.
    across = np.empty((height, width), np.int64)
    for y in range(height):
        last = -reach
        for x in range(width):
            if flags[y, x]:
                last = x
            across[y, x] = min(x - last, reach)
        last = width + reach
        for x in range(width - 1, -1, -1):
            if flags[y, x]:
                last = x
            across[y, x] = min(across[y, x], last - x)
    for y in range(height):
        for x in range(width):
            best = across[y, x] * across[y, x]
            step = 1
            while step * step < best and (y >= step or y + step < height):
                if y >= step:
                    best = min(best, step * step + across[y - step, x] * across[y - step, x])
                if y + step < height:
                    best = min(best, step * step + across[y + step, x] * across[y + step, x])
                step += 1
            out[y, x] = np.float32(min(np.sqrt(best), float(reach)))


def warm_up() -> None:
    """Compile."""
    distance(np.zeros((2, 2), np.bool_), 1, np.empty((2, 2), np.float32))
