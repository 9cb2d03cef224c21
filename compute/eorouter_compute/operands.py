"""Bands by name on one grid, as the expression machine takes them: where each is read, and what that may cost.

    (name, item, asset, band, scaling) … + grid ──placed──► Source per asset ──read(window)──► Operand per name

An asset whose grid is the target's is read as it is; every other goes through `warp`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from eorouter_compute import cog, raster, warp
from eorouter_compute.catalogue import Scaling
from eorouter_compute.expression import Operand, Program
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import Band, FailedRead, InputItem, RasterAsset, ReadReport
from eorouter_compute.warp import Placement, Resampling
from eorouter_kernels import expression as machine

# Measured on the reference machine: 0.25 ns per pixel and instruction for arithmetic, up to 15 ns for a power.
_SECONDS_PER_INSTRUCTION = 4e-10
_SECONDS_PER_POWER = 1.5e-8
_SECONDS_PER_BYTE_READ = 1e-8
_SECONDS_PER_WARPED_PIXEL = 3e-8
_BLOCKS_TOUCHED_MAX = 16.0
_SLOW = frozenset({machine.POW, machine.EXP, machine.LOG, machine.LOG10, machine.SIN, machine.COS, machine.TAN,
                   machine.ATAN, machine.ATAN2})  # fmt: skip


class Named(NamedTuple):
    """A band under the name that formulas call it by."""

    name: str
    item: InputItem
    asset: RasterAsset
    band: Band
    scaling: Scaling


class Source(Struct, frozen=True, kw_only=True):
    """One asset, how it comes onto the grid, and what is read from it: (name, band, scaling)."""

    placement: Placement
    bands: tuple[tuple[str, Band, Scaling], ...]

    @property
    def asset(self) -> RasterAsset:
        """What is read."""
        return self.placement.asset

    @property
    def is_direct(self) -> bool:
        """Its pixels are the grid's."""
        return self.asset.grid == self.placement.grid


def placed(
    entries: Iterable[Named],
    grid: Grid,
    *,
    resampling: Resampling = "nearest",
    tolerance_px: float = warp.TOLERANCE_PX,
) -> tuple[Source, ...]:
    """Plan how bands are read on `grid`, each asset of each item once.

    Raises:
        GridMismatch: the grid has no place in an asset's CRS.
    """
    gathered: dict[tuple[str, str, str], tuple[RasterAsset, list[tuple[str, Band, Scaling]]]] = {}
    for name, item, asset, band, scaling in entries:
        key = (item.id, asset.key, asset.href)
        gathered.setdefault(key, (asset, []))[1].append((name, band, scaling))
    return tuple(
        Source(placement=warp.placed(asset, grid, resampling=resampling, tolerance_px=tolerance_px), bands=tuple(bands))
        for asset, bands in gathered.values()
    )


def read(sources: Sequence[Source], window: Window, *, failed: list[FailedRead] | None = None) -> dict[str, Operand]:
    """Every band of a window of the grid, by name.

    With `failed` given, what cannot be read is appended to it and is missing; without, it raises.

    Raises:
        SourceUnreadable, SourceTruncated: a source window could not be read.
    """
    found: dict[str, Operand] = {}
    for source in sources:
        indexes = list(dict.fromkeys(band.index for _, band, _ in source.bands))
        if not source.is_direct:
            block = warp.read(source.placement, indexes, window, failed=failed)
        elif failed is None:
            block = raster.read_block(source.asset, indexes, window)
        else:
            block = raster.read_tolerant(source.asset, indexes, window, failed)
        for name, band, scaling in source.bands:
            place = indexes.index(band.index)
            valid = None if block.valid is None else block.valid[place]
            found[name] = Operand(block.pixels[place], scaling.scale, scaling.offset, valid)
    return found


def report(
    sources: Sequence[Source], operands: Mapping[str, Operand], window: Window, failed: Iterable[FailedRead] = ()
) -> ReadReport:
    """What a window took; a pixel is valid where every band is."""
    masks = [operand.valid for operand in operands.values() if operand.valid is not None]
    valid = int(np.count_nonzero(np.logical_and.reduce(masks))) if masks else window.pixels
    return ReadReport(reads=len(sources), pixels=window.pixels, valid_pixels=valid, failed=tuple(failed))


# Bounds ---------------------------------------------------------------------------------------------------------------


def bytes_read(source: Source) -> float:
    """Bytes read per pixel of the grid, at most: whole blocks with all their bands, as long as they compress at all."""
    asset = source.asset
    height, width = asset.block_shape
    fine = 1.0 if source.is_direct else max(warp.density(source.placement), 1e-3)
    side = 512 * fine**0.5  # a piece is at least 512 pixels wide; the blocks it touches reach over its rim
    rim = (1 + height / side) * (1 + width / side)
    return fine * min(rim, _BLOCKS_TOUCHED_MAX) * sum(np.dtype(band.dtype).itemsize for band in asset.bands)


def bytes_held(sources: Sequence[Source]) -> float:
    """Bytes held per pixel of a piece: pixels and valid flags as read, once more while a file's mask is unpacked."""
    return sum(2 * np.dtype(band.dtype).itemsize + 3 for source in sources for _, band, _ in source.bands)


def bytes_beside(sources: Sequence[Source]) -> int:
    """Bytes that resampling holds beside the pieces, one asset at a time."""
    pieces = [
        (source, min(source.placement.grid.window.pixels, cog.PIECE_SIDE**2))
        for source in sources
        if not source.is_direct
    ]
    return max((warp.memory_bytes(source.placement, len(source.bands), pixels) for source, pixels in pieces), default=0)


def seconds(program: Program, sources: Sequence[Source]) -> float:
    """Core seconds per pixel of the grid to read, place and compute."""
    slow = sum(1 for op, *_ in program.code if op in _SLOW)
    moved = sum(len(source.bands) for source in sources if not source.is_direct)
    return (
        len(program.code) * _SECONDS_PER_INSTRUCTION
        + slow * _SECONDS_PER_POWER
        + moved * _SECONDS_PER_WARPED_PIXEL
        + sum(bytes_read(source) for source in sources) * _SECONDS_PER_BYTE_READ
    )
