"""Pixels that go from one file to another unchanged: where the tiles are stored alike, they pass packed as they are.

A tile passes only if it lies wholly inside the raster, holds just the bands of the new file in their order, and is
packed as DEFLATE with the new file's predictor by a writer that says it tried as hard as usual; and only where no
effort was asked for. What it unpacks to was looked at, byte by byte. Which tiles pass depends on the file alone, so the
bytes do not depend on how a job was cut. Packing is most of the work of writing a COG: this is the part of it that need
not be done.
"""

from collections.abc import Sequence

from eorouter_compute import raster
from eorouter_compute.blocks import Tiles
from eorouter_compute.cog import CogSpec, Stored
from eorouter_compute.grid import Window
from eorouter_compute.method import RasterAsset


def read(
    spec: CogSpec, asset: RasterAsset, bands: Sequence[int], window: Window, *, origin: tuple[int, int] = (0, 0)
) -> Stored:
    """Read a window of a file that `spec` describes, and the tiles of it that may pass.

    Args:
        spec: the file to be.
        asset: what is read.
        bands: of the asset, counted from 1, in the order of the new file.
        window: of the file to be.
        origin: row and column in the asset of its first pixel.

    Raises:
        SourceUnreadable, SourceTruncated: the window could not be read, or the file is not what `asset` describes.
    """
    there = window._replace(row=window.row + origin[0], col=window.col + origin[1])
    side = spec.block_size
    if spec.compression != "deflate" or spec.level is not None or origin[0] % side or origin[1] % side:
        return Stored(*raster.read_block(asset, bands, there), {})
    tiles = Tiles(side, spec.prediction, {})
    block = raster.read_with_tiles(asset, bands, there, tiles)
    found = {(row - origin[0], col - origin[1]): tile for (row, col), tile in tiles.found.items()}
    return Stored(*block, found)
