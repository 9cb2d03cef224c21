"""Stored numbers of a window of a grid, in memory that is used again for the next window.

    Placement + bands + window ──Reader.read──► Stored: pixels, mask, nodata numbers

Who reads hundreds of windows one after the other spends as long on fresh memory as on unpacking: every page of it is
cleared by the system first. A reader keeps its memory, and reads what lies on the grid already straight into it;
nodata is left to the loop that looks at every pixel anyhow. What must be resampled comes through `warp.read`.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from eorouter_compute import raster, warp
from eorouter_compute.errors import SourceFault
from eorouter_compute.grid import Window
from eorouter_compute.method import Band, FailedRead
from eorouter_compute.target_grid import aligned
from eorouter_compute.warp import Placement

Cut = tuple[slice, slice]
"""Rows and columns of a window that are looked at."""

EVERY: Cut = (slice(None), slice(None))


class Stored(NamedTuple):
    """Stored numbers of one band (y, x).

    A pixel is missing where `valid` (y, x) is False, where it equals `nodata` (NaN: no number does) and where it is
    NaN itself. Good until the next read of the same slot.
    """

    pixels: np.ndarray
    valid: np.ndarray | None
    nodata: float

    @property
    def known(self) -> np.ndarray | None:
        """Where there is data, bool (y, x); None everywhere."""
        valid = self.valid
        if not np.isnan(self.nodata):
            differs = self.pixels != self.pixels.dtype.type(self.nodata)
            if not differs.all():
                valid = differs if valid is None else valid & differs
        if self.pixels.dtype.kind == "f":
            is_number = ~np.isnan(self.pixels)
            if not is_number.all():
                valid = is_number if valid is None else valid & is_number
        return valid

    def cut(self, at: Cut) -> "Stored":
        """Some of the pixels only, one after the other in memory."""
        valid = None if self.valid is None else np.ascontiguousarray(self.valid[at])
        return Stored(np.ascontiguousarray(self.pixels[at]), valid, self.nodata)


class Reader:
    """Reads windows for one thread; `failed` is None where a source that cannot be read is an error."""

    def __init__(self, failed: list[FailedRead] | None) -> None:
        self.failed = failed
        self._rooms: dict[str, np.ndarray] = {}
        self._shifts: dict[int, tuple[Placement, tuple[int, int] | None]] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of this shape, holding anything; that of the same name before is overwritten."""
        kind = np.dtype(dtype)
        size = prod(shape) * kind.itemsize
        found = self._rooms.get(name)
        if found is None or len(found) < size:
            found = self._rooms[name] = np.empty(size, np.uint8)
        return found[:size].view(kind).reshape(shape)

    def read(self, placement: Placement, bands: Sequence[Band], window: Window, slot: str) -> list[Stored]:
        """Bands of a window of the placement's grid; `slot` names the memory they go to.

        Raises:
            SourceUnreadable, SourceTruncated: a source window could not be read, and that is an error here.
            TooLarge: as `warp.read`.
        """
        found = self._straight(placement, bands, window, slot)
        if found is not None:
            return found
        block = warp.read(placement, [band.index for band in bands], window, failed=self.failed)
        nothing = float("nan")
        valid = [None] * len(bands) if block.valid is None else block.valid
        return [Stored(pixels, mask, nothing) for pixels, mask in zip(block.pixels, valid, strict=True)]

    def _straight(self, placement: Placement, bands: Sequence[Band], window: Window, slot: str) -> list[Stored] | None:
        """Without resampling and without a rim; None where that cannot be."""
        asset = placement.asset
        shift = self._shift(placement)
        if shift is None or len({band.dtype for band in bands}) > 1:
            return None
        moved = Window(window.row + shift[0], window.col + shift[1], window.height, window.width)
        if moved.intersect(asset.window) != moved:
            return None
        out = self.room(slot, (len(bands), window.height, window.width), bands[0].dtype)
        try:
            valid = raster.read_stored(asset, [band.index for band in bands], moved, out)
        except SourceFault:
            if self.failed is None:
                raise
            return None  # read again, part by part, and what is lost is named
        masks = [None] * len(bands) if valid is None else np.broadcast_to(valid, out.shape)
        return [Stored(pixels, mask, _number(band)) for pixels, mask, band in zip(out, masks, bands, strict=True)]

    def _shift(self, placement: Placement) -> tuple[int, int] | None:
        """As `aligned`, worked out once: the same few placements come for every window."""
        known = self._shifts.get(id(placement))
        if known is None:
            known = self._shifts[id(placement)] = (placement, aligned(placement.asset.grid, placement.grid))
        return known[1]


def _number(band: Band) -> float:
    """The stored number that stands for no data; NaN where the type cannot hold it, or there is none."""
    value = raster.storable(band.nodata, band.dtype)
    return float("nan") if value is None else float(np.dtype(band.dtype).type(value))
