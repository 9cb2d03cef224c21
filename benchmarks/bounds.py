"""What no program can beat on this machine: the codec's time for the same tiles, and one pass over their pixels.

A row says which rasters it reads and which it leaves. Their tiles are decoded and encoded here by the fastest codecs
there are (ISA-L and libdeflate by way of `isal` and `imagecodecs`, whichever is quicker on a sample), on as many
threads as the row's two sides have, and every decoded tile is copied once: who looks at pixels cannot do less.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from isal import isal_zlib

from eorouter_compute import tiff
from eorouter_compute.tiff import Code

Tile = tuple[bytes, tuple[int, int, int], np.dtype, int]
"""Packed bytes, shape (y, x, band), dtype, and predictor of one tile."""

_KINDS = {1: "u", 2: "i", 3: "f"}
_DEFLATE = {8, 32946}


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A raster that a row decodes: its first image, or the tiles that meet `window` (row, col, height, width)."""

    path: Path
    window: tuple[int, int, int, int] | None = None


def seconds(reads: Sequence[Read], writes: Sequence[Path], arrays: Sequence[np.ndarray], threads: int) -> float:
    """Time to decode, touch and encode, beginning with the files in the page cache.

    Args:
        reads: what is decoded.
        writes: rasters as our side wrote them; their tiles, overviews included, are encoded once more.
        arrays: pixels that lie in memory before or after; each is copied once.
        threads: how many work at a time.

    Raises:
        ValueError: a raster is not compressed with DEFLATE, which is what this module knows the fastest codecs of.
    """
    given = [tile for read in reads for tile in tiles(read.path, read.window, is_whole=False)]
    made = [tile for path in writes for tile in tiles(path, None, is_whole=True)]
    inflate = _quickest(INFLATE, (given or made)[:16])

    def undo(tile: Tile) -> np.ndarray:
        pixels = unpacked(tile, inflate)
        return pixels.copy()

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        _drain(pool.map(undo, given))
        decoding = time.perf_counter() - started
        started = time.perf_counter()
        _drain(pool.map(np.copy, [part for array in arrays for part in np.array_split(array, 64)]))
        copying = time.perf_counter() - started
        # Encoding is timed in batches, so that what is to be encoded does not have to lie in memory all at once.
        encoding = 0.0
        for start in range(0, len(made), 64):
            batch = made[start : start + 64]
            raw = [(unpacked(tile, inflate), tile[3]) for tile in batch]
            started = time.perf_counter()
            _drain(pool.map(lambda each: packed(*each), raw))
            encoding += time.perf_counter() - started
    return decoding + copying + encoding


def _drain(results: Iterable[Any]) -> None:
    for _ in results:
        pass


def _isal(data: bytes, size: int) -> bytes:
    return isal_zlib.decompress(data, bufsize=size)


def _libdeflate(data: bytes, size: int) -> bytes:
    import imagecodecs

    return imagecodecs.deflate_decode(data, out=size)


Inflate = Callable[[bytes, int], bytes]
INFLATE: tuple[Inflate, ...] = (_isal, _libdeflate)
"""Codecs that unpack DEFLATE to a number of bytes."""


def _quickest(codecs: Sequence[Inflate], sample: Sequence[Tile]) -> Inflate:
    def taken(codec: Inflate) -> float:
        started = time.perf_counter()
        for tile in sample:
            unpacked(tile, codec)
        return time.perf_counter() - started

    return min(codecs, key=taken)


def tiles(path: Path, window: tuple[int, int, int, int] | None, *, is_whole: bool) -> list[Tile]:
    """The tiles of the first image that meet `window`; of every image and mask where `is_whole`."""
    data = np.memmap(path, np.uint8, "r")
    found = tiff.directories(lambda start, stop: data[start:stop].tobytes(), len(data))
    return [tile for directory in (found if is_whole else found[:1]) for tile in _of(directory, data, window, path)]


def _of(
    directory: tiff.Directory, data: np.ndarray, window: tuple[int, int, int, int] | None, path: Path
) -> list[Tile]:
    bits = directory.value(Code.BITS_PER_SAMPLE, 1)
    if directory.value(Code.COMPRESSION) not in _DEFLATE:
        raise ValueError(f"{path.name} is not compressed with DEFLATE")
    width, height = directory.value(Code.TILE_WIDTH), directory.value(Code.TILE_LENGTH)
    bands = directory.value(Code.SAMPLES_PER_PIXEL, 1)
    is_planar = directory.value(Code.PLANAR_CONFIGURATION, 1) == 2
    across = -(-directory.value(Code.IMAGE_WIDTH) // width)
    down = -(-directory.value(Code.IMAGE_LENGTH) // height)
    kind = _KINDS[directory.value(Code.SAMPLE_FORMAT, 1)]
    dtype = np.dtype(f"{kind}{bits // 8}") if bits >= 8 else np.dtype("u1")
    shape = (height, width if bits >= 8 else width // 8, 1 if is_planar else bands)
    found = []
    for number, (start, length) in enumerate(zip(*directory.tile_spans, strict=True)):
        row, col = divmod(number % (across * down), across)
        if length and (window is None or _meets(window, row * height, col * width, height, width)):
            content = data[start : start + length].tobytes()
            found.append((content, shape, dtype, directory.value(Code.PREDICTOR, 1)))
    return found


def _meets(window: tuple[int, int, int, int], row: int, col: int, height: int, width: int) -> bool:
    top, left, rows, cols = window
    return row < top + rows and top < row + height and col < left + cols and left < col + width


def unpacked(tile: Tile, inflate: Inflate) -> np.ndarray:
    """Pixels (y, x) or (y, x, band) of a tile."""
    import imagecodecs

    content, shape, dtype, predictor = tile
    shape = shape if shape[2] > 1 else shape[:2]
    pixels = np.frombuffer(inflate(content, int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    if predictor == 2:
        return imagecodecs.delta_decode(pixels, axis=1)
    return imagecodecs.floatpred_decode(pixels, axis=1) if predictor == 3 else pixels


def packed(pixels: np.ndarray, predictor: int) -> bytes:
    """A tile as DEFLATE, at ISA-L's quickest level that finds matches."""
    import imagecodecs

    if predictor == 2:
        pixels = imagecodecs.delta_encode(pixels, axis=1)
    elif predictor == 3:
        pixels = imagecodecs.floatpred_encode(pixels, axis=1)
    return isal_zlib.compress(np.ascontiguousarray(pixels), 1)
