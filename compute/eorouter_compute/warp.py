"""Pixels of a raster on another grid: which source pixels a window of the target needs, and their values there.

    asset + target grid ──placed──► Placement ──read(bands, window)──► Block on the target's pixels

A placement is made once per asset and target, without a pixel being read, and serves any window. Where both grids
share CRS and direction and one is the other shifted by whole pixels, pixels are copied; else they are resampled by
`eorouter_kernels.resample` at the places `positions` finds. Outside the source nothing is valid. Overviews are never
read: a target of coarse pixels streams the source through windows of at most `READ_BYTES`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from eorouter_compute import gdal, raster
from eorouter_compute.errors import GridMismatch, TooLarge
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import FailedRead, RasterAsset
from eorouter_compute.positions import TOLERANCE_PX, Locator, Mesh
from eorouter_compute.target_grid import aligned
from eorouter_kernels import lobes, positions, reductions, resample

Resampling = Literal["nearest", "bilinear", "cubic", "lanczos", "average", "mode", "min", "max", "median", "sum"]

READ_BYTES = 64 << 20
"""Most bytes of source pixels and their valid flags that are held at a time, as long as one target pixel allows."""

_WEIGHTED = {"bilinear": lobes.BILINEAR, "cubic": lobes.CUBIC, "lanczos": lobes.LANCZOS,
             "average": lobes.AVERAGE, "sum": lobes.SUM}  # fmt: skip
_ORDERED = {"mode": reductions.MODE, "min": reductions.MIN, "max": reductions.MAX, "median": reductions.MEDIAN}
_REACH = {"nearest": 0.0, "bilinear": 1.0, "cubic": 2.0, "lanczos": 3.0}
_NONE = np.empty((0, 0, 0), np.bool_)


class Placement(Struct, frozen=True, kw_only=True):
    """How pixels of `asset` come onto `grid`."""

    asset: RasterAsset
    grid: Grid
    resampling: Resampling
    tolerance_px: float


def placed(
    asset: RasterAsset, grid: Grid, *, resampling: Resampling = "nearest", tolerance_px: float = TOLERANCE_PX
) -> Placement:
    """Plan reads of `asset` on `grid`.

    Raises:
        GridMismatch: no position of the grid has a place in the asset's CRS; says why.
    """
    if aligned(asset.grid, grid) is None:
        height, width = grid.shape
        rows, cols = np.meshgrid(np.linspace(0.5, height - 0.5, 33), np.linspace(0.5, width - 0.5, 33), indexing="ij")
        x, _ = Locator(asset.grid, grid).locate(rows.ravel(), cols.ravel())
        if np.isnan(x).all():
            raise GridMismatch(
                f"No pixel of the target grid ({height} × {width} in {grid.crs[:60]}) has a place in {asset.crs[:60]}, "
                f"the CRS of asset {asset.key}. Choose a CRS and bounds that both know.",
                pointer="/grid",
            )
    return Placement(asset=asset, grid=grid, resampling=resampling, tolerance_px=tolerance_px)


def source_window(placement: Placement, window: Window) -> Window:
    """The source pixels that a window of the target needs, kernel support included; empty when it lies outside."""
    asset = placement.asset
    shift = aligned(asset.grid, placement.grid)
    if shift is not None:
        return Window(window.row + shift[0], window.col + shift[1], window.height, window.width).intersect(asset.window)
    locator = Locator(asset.grid, placement.grid)
    mesh = locator.mesh(window, placement.tolerance_px)
    needed = _needed(mesh, window, placement.resampling, asset.grid, wraps=locator.wraps)
    if locator.wraps and (needed.col < 0 or needed.col_stop > asset.shape[1]):
        needed = Window(needed.row, 0, needed.height, asset.shape[1] if needed.pixels else 0)
    return needed


def read(
    placement: Placement, bands: Sequence[int], window: Window, *, failed: list[FailedRead] | None = None
) -> raster.Block:
    """Bands (counted from 1) of a window of the target grid, in the source's dtype; `valid` is None when all are data.

    Integers are rounded half to even and held to the type's range. With `failed` given, source windows that cannot be
    read are appended to it and count as missing; without, they raise.

    Raises:
        SourceUnreadable, SourceTruncated: a source window could not be read.
        TooLarge: a single target pixel covers more source pixels than may be read at once.
    """
    asset = placement.asset

    def fetch(source: Window) -> raster.Block:
        if failed is None:
            return raster.read_block(asset, bands, source)
        return raster.read_tolerant(asset, bands, source, failed)

    dtype = np.dtype(next(band.dtype for band in asset.bands if band.index == bands[0]))
    out = _Output.empty(len(bands), window, dtype)
    shift = aligned(asset.grid, placement.grid)
    if shift is not None:
        _copy(fetch, asset.window, out, shift)
    else:
        locator = Locator(asset.grid, placement.grid)
        mesh = locator.mesh(window, placement.tolerance_px)
        work = _Work(fetch, asset.grid, mesh, placement.resampling, locator.wraps, len(bands) * (dtype.itemsize + 1))
        work.fill(out, window)
    return out.block()


def in_memory(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    source: Grid,
    target: Grid,
    *,
    resampling: Resampling = "nearest",
    tolerance_px: float = TOLERANCE_PX,
    window: Window | None = None,
    threads: int = 1,
) -> raster.Block:
    """An array (band, y, x) that lies on `source`, with valid (band, y, x) or None, on a window of `target`.

    The same as `read` of a file with these pixels, bit for bit, for any number of threads.
    """
    place = target.window if window is None else window
    out = _Output.empty(len(pixels), place, pixels.dtype)
    whole = raster.Block(_plain(pixels), None if valid is None else _plain(valid))
    shift = aligned(source, target)

    def strip(part: Window) -> None:
        locator = Locator(source, target)
        mesh = locator.mesh(part, tolerance_px)
        _Work(lambda _: whole, source, mesh, resampling, locator.wraps, 0, is_whole=True).fill(out, part)

    if shift is not None:
        _copy(lambda part: _cut(whole, part), source.window, out, shift)
        return out.block()
    step = 256
    strips = [
        Window(row, place.col, step, place.width).intersect(place)
        for row in range(place.row - place.row % step, place.row_stop, step)
    ]
    if threads == 1:
        for part in strips:
            strip(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(strip, strips))
    return out.block()


def density(placement: Placement) -> float:
    """Source pixels per target pixel, by area, where they are densest; for bounds."""
    if aligned(placement.asset.grid, placement.grid) is not None:
        return 1.0
    height, width = placement.grid.shape
    rows, cols = np.meshgrid(np.linspace(0.5, height - 0.5, 17), np.linspace(0.5, width - 0.5, 17), indexing="ij")
    locator = Locator(placement.asset.grid, placement.grid)
    x, y = locator.locate(rows.ravel(), cols.ravel())
    steps = []
    for down, over in ((0.0, 1.0), (1.0, 0.0)):
        near_x, near_y = locator.locate(rows.ravel() + down, cols.ravel() + over)
        away = near_x - x
        steps.append((away - locator.period * np.rint(away / locator.period) if locator.period else away, near_y - y))
    areas = np.abs(steps[0][0] * steps[1][1] - steps[0][1] * steps[1][0])
    on_source = (x > -width) & (x < placement.asset.shape[1] + width) & np.isfinite(areas)
    return float(areas[on_source].max()) if on_source.any() else 1.0


def overlap(placement: Placement, side: int) -> float:
    """How often a source pixel is read, at most, where the target is read in squares of `side` pixels; for bounds.

    Squares begin on multiples of their side, so none shares a block with another where blocks lie so, too; elsewhere
    whole blocks are read again by each square that touches them.
    """
    rows, cols = placement.asset.block_shape
    shift = aligned(placement.asset.grid, placement.grid)
    if shift is not None and not (side % rows or side % cols or shift[0] % rows or shift[1] % cols):
        return 1.0
    return min((1 + rows / side) * (1 + cols / side), 16.0)


def memory_bytes(placement: Placement, band_count: int, pixels: int) -> int:
    """Memory that reads of windows of `pixels` hold beside their results, at most; for bounds."""
    asset = placement.asset
    size = max(np.dtype(band.dtype).itemsize for band in asset.bands)
    dense = density(placement)
    wanted = int((1.5 * dense * pixels + 4 * (512 + 16) ** 2) * band_count * (size + 1))
    single = int(16 * dense + 64) * band_count * (size + 1)
    held = min(max(READ_BYTES, single), wanted, asset.window.pixels * band_count * (size + 1) + (1 << 20))
    interleaved = asset.window.pixels * sum(np.dtype(band.dtype).itemsize for band in asset.bands)
    return 3 * held + min(gdal.OPTIONS["GDAL_CACHEMAX"], 2 * interleaved) + (8 << 20)


# Pixels ---------------------------------------------------------------------------------------------------------------


class _Output(NamedTuple):
    """A window of the target being filled; `lost` has one entry per missing pixel counted."""

    window: Window
    pixels: np.ndarray
    missing: np.ndarray
    lost: list[int]

    @classmethod
    def empty(cls, bands: int, window: Window, dtype: np.dtype) -> "_Output":
        shape = (bands, window.height, window.width)
        # Zeros from the system cost nothing until they are touched, and where all is data `missing` never is.
        return cls(window, np.empty(shape, dtype), np.zeros(shape, np.bool_), [])

    def lose(self, part: Window) -> None:
        """Nothing is known of a part."""
        rows, cols = part.relative_to(self.window)
        self.pixels[:, rows, cols] = 0
        self.missing[:, rows, cols] = True
        self.lost.append(part.pixels)

    def block(self) -> raster.Block:
        """The pixels, and `missing` turned in place into what is valid: new memory may take ten times as long."""
        return raster.Block(self.pixels, np.logical_not(self.missing, out=self.missing) if sum(self.lost) else None)


class _Work(NamedTuple):
    """What it takes to fill windows: `fetch` reads source windows, `bytes_per_pixel` is what each pixel holds."""

    fetch: Callable[[Window], raster.Block]
    source: Grid
    mesh: Mesh
    resampling: Resampling
    wraps: bool
    bytes_per_pixel: int
    is_whole: bool = False

    def fill(self, out: _Output, part: Window) -> None:
        """Fill a part of the output, in halves as long as the source window it needs is too large."""
        needed = _needed(self.mesh, part, self.resampling, self.source, wraps=self.wraps)
        if not needed.pixels:
            out.lose(part)
            return
        if needed.pixels * self.bytes_per_pixel > READ_BYTES and part.pixels > 1:
            for half in _halves(part):
                self.fill(out, half)
            return
        if not self.is_whole and needed.pixels > raster.BLOCK_PIXELS_MAX:
            raise TooLarge(
                f"One pixel of the target covers {needed.height:,} × {needed.width:,} pixels of the source; at most "
                f"{raster.BLOCK_PIXELS_MAX:,} can be resampled into one. Reproject in two steps."
            )
        block, origin = self._source_pixels(needed)
        _resample(self, block, origin, out, part)

    def _source_pixels(self, needed: Window) -> tuple[raster.Block, tuple[int, int]]:
        width = self.source.shape[1]
        if self.is_whole and not (needed.col < 0 or needed.col_stop > width):
            return self.fetch(needed), (0, 0)
        blocks = []
        col = needed.col
        while col < needed.col_stop:
            stop = min(needed.col_stop, (col // width + 1) * width)
            piece = Window(needed.row, col % width, needed.height, stop - col)
            blocks.append(_cut(self.fetch(piece), piece) if self.is_whole else self.fetch(piece))
            col = stop
        return _beside(blocks), (needed.row, needed.col)


def _resample(work: _Work, block: raster.Block, origin: tuple[int, int], out: _Output, part: Window) -> None:
    leaves, nodes, period = work.mesh
    clip = (part.row, part.col, part.row_stop, part.col_stop)
    corner = (out.window.row, out.window.col)
    valid = _NONE if block.valid is None else block.valid
    pixels, target = block.pixels, out.pixels
    kind = work.resampling
    if kind == "nearest":
        # A copy of bits: four unsigned types serve all.
        bits = f"u{pixels.dtype.itemsize}"
        lost = resample.nearest(
            leaves, nodes, clip, pixels.view(bits), valid, origin, corner, target.view(bits), out.missing
        )
    elif kind in _ORDERED:
        lost = reductions.ordered(
            _ORDERED[kind], leaves, nodes, clip, period, pixels, valid, origin, corner, target, out.missing
        )
    else:
        is_float = pixels.dtype.kind == "f"
        limits = (1.0, 0.0) if is_float else (float(np.iinfo(pixels.dtype).min), float(np.iinfo(pixels.dtype).max))
        total = np.empty(0, resample.sum_type(pixels.dtype))
        lost = resample.weighted(
            _WEIGHTED[kind], leaves, nodes, clip, period, pixels, valid, origin, corner, limits, total, target,
            out.missing,
        )  # fmt: skip
    out.lost.append(lost)


def _needed(mesh: Mesh, part: Window, resampling: Resampling, source: Grid, *, wraps: bool) -> Window:
    """Source pixels that a part of the target needs; columns beyond the raster where it wraps."""
    clip = (part.row, part.col, part.row_stop, part.col_stop)
    bounds = positions.source_bounds(mesh.leaves, mesh.nodes, clip, _REACH.get(resampling, 0.5), mesh.period)
    if not np.isfinite(bounds).all():
        return Window(0, 0, 0, 0)
    height, width = source.shape
    limits = (0.0, float(height), -2.0 * width if wraps else 0.0, 3.0 * width if wraps else float(width))
    row, row_stop = (int(np.clip(bounds[i], limits[0], limits[1])) for i in (0, 1))
    col, col_stop = (int(np.floor(np.clip(bounds[i], limits[2], limits[3]))) for i in (2, 3))
    found = Window(row, col, row_stop + 1 - row, col_stop + 1 - col)
    return found.intersect(Window(0, -2 * width if wraps else 0, height, 5 * width if wraps else width))


def _halves(part: Window) -> tuple[Window, Window]:
    if part.height >= part.width:
        half = part.height // 2
        return part._replace(height=half), part._replace(row=part.row + half, height=part.height - half)
    half = part.width // 2
    return part._replace(width=half), part._replace(col=part.col + half, width=part.width - half)


def _copy(fetch: Callable[[Window], raster.Block], whole: Window, out: _Output, shift: tuple[int, int]) -> None:
    window = out.window
    moved = Window(window.row + shift[0], window.col + shift[1], window.height, window.width)
    source = moved.intersect(whole)
    if source != moved:
        out.lose(window)
    if not source.pixels:
        return
    block = fetch(source)
    rows, cols = source.relative_to(moved)
    out.pixels[:, rows, cols] = block.pixels
    out.missing[:, rows, cols] = False if block.valid is None else ~block.valid
    if block.valid is not None:
        out.lost.append(1)


def _cut(block: raster.Block, part: Window) -> raster.Block:
    rows, cols = slice(part.row, part.row_stop), slice(part.col, part.col_stop)
    return raster.Block(block.pixels[:, rows, cols], None if block.valid is None else block.valid[:, rows, cols])


def _beside(blocks: Sequence[raster.Block]) -> raster.Block:
    if len(blocks) == 1:
        pixels, valid = blocks[0]
        return raster.Block(_plain(pixels), None if valid is None else _plain(valid))
    pixels = np.concatenate([block.pixels for block in blocks], axis=2)
    if all(block.valid is None for block in blocks):
        return raster.Block(pixels, None)
    masks = [np.ones(block.pixels.shape, np.bool_) if block.valid is None else block.valid for block in blocks]
    return raster.Block(pixels, np.concatenate(masks, axis=2))


def _plain(array: np.ndarray) -> np.ndarray:
    """The array as kernels are compiled for: contiguous and writable."""
    return np.require(array, requirements=["C", "W"])
