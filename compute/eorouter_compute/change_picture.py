"""Three panels side by side: before, after, and the classes of change.

Shards hand on every n-th pixel of the grid, counted from its corner; the picture is put together from those.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from eorouter_compute import quicklook
from eorouter_compute.grid import Window

SIDE_MAX = 420
"""Longest side of a panel, in pixels."""

UNKNOWN = 255
_GUTTER = 6


class Glimpse(Struct, frozen=True, array_like=True):
    """The shown pixels of a window (counted in shown pixels): before and after (band, y, x) float32, classes."""

    window: Window
    bands: int
    values: bytes
    classes: bytes


def stride(shape: tuple[int, int]) -> int:
    """Every how many pixels one is shown."""
    return max(-(-max(shape) // SIDE_MAX), 1)


def shown(window: Window, step: int) -> tuple[Window, tuple[slice, slice]]:
    """The lattice's share of a window, in lattice points, and the slices of the window that hold it."""
    row, col = -(-window.row // step), -(-window.col // step)
    place = Window(row, col, -(-window.row_stop // step) - row, -(-window.col_stop // step) - col)
    return place, (slice(row * step - window.row, None, step), slice(col * step - window.col, None, step))


def draw(shape: tuple[int, int], glimpses: Sequence[Glimpse], colors: np.ndarray) -> bytes:
    """A PNG; classes by `colors` (class, 3), missing pixels transparent."""
    step = stride(shape)
    height, width = -(-shape[0] // step), -(-shape[1] // step)
    bands = glimpses[0].bands
    values = np.full((2, bands, height, width), np.nan, np.float32)
    classes = np.full((height, width), UNKNOWN, np.uint8)
    for glimpse in glimpses:
        place = glimpse.window
        rows, cols = slice(place.row, place.row_stop), slice(place.col, place.col_stop)
        size = (place.height, place.width)
        values[:, :, rows, cols] = np.frombuffer(glimpse.values, np.float32).reshape(2, bands, *size)
        classes[rows, cols] = np.frombuffer(glimpse.classes, np.uint8).reshape(size)
    picture = np.zeros((height, 3 * width + 2 * _GUTTER, 4), np.uint8)
    for number, panel in enumerate((*_panels(values), _classes(classes, colors))):
        begin = number * (width + _GUTTER)
        picture[:, begin : begin + width] = panel
    return quicklook.png(picture, None)


def _panels(values: np.ndarray) -> list[np.ndarray]:
    """Before and after as RGBA, both stretched alike."""
    _, bands, height, width = values.shape
    known = np.isfinite(values)
    out = np.zeros((2, height, width, 4), np.uint8)
    if bands >= 3:
        for channel in range(3):
            band = values[:, channel]
            low, high = quicklook.stretch(band, known[:, channel])
            out[..., channel] = quicklook.levels(band, low, high, 255)
    else:
        low, high = quicklook.stretch(values[:, 0], known[:, 0])
        out[..., :3] = quicklook.color_table("gray")[quicklook.levels(values[:, 0], low, high, 255)]
    seen = known.all(axis=1)
    out[..., 3] = np.where(seen, 255, 0)
    out[~seen] = 0
    return list(out)


def _classes(classes: np.ndarray, colors: np.ndarray) -> np.ndarray:
    out = np.zeros((*classes.shape, 4), np.uint8)
    known = classes != UNKNOWN
    out[known, :3] = colors[classes[known]]
    out[known, 3] = 255
    return out
