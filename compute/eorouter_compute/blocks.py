"""Pixels out of the tiles and strips of a TIFF, without GDAL.

Only files that leave nothing to interpretation are read here (`layout` says which); of all others, and of every
block that does not unpack to exactly what its directory promises, GDAL is asked, and its word counts. A block is
unpacked into a buffer of the promised size and never beyond it. Blocks that reach over the window are kept for a
while, packed as the predictor left them, because the next window begins where this one ends.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np

from eorouter_compute import deflate, tiff
from eorouter_compute.attempt import local_path
from eorouter_compute.grid import Window
from eorouter_compute.layout import File, Layout, NotOurs, layout_of, refuse
from eorouter_kernels import blocks as kernels

_KEPT_BYTES = 64 << 20
_FILES_KEPT = 256
_REMOTE_SCHEMES = frozenset({"s3", "gs", "az", "azure"})


class Tiles(NamedTuple):
    """Packed tiles, wanted by who writes them again as they are: how they must be stored, and those a read came by.

    Attributes:
        side: of the tiles, in pixels.
        predictor: 1, 2 or 3.
        found: by the row and column of a tile's first pixel; only tiles that lie wholly inside the raster and were
            packed as hard as ours are.
    """

    side: int
    predictor: int
    found: dict[tuple[int, int], bytes]

    def fit(self, layout: Layout, bands: Sequence[int]) -> bool:
        """Whether a file's tiles hold just these bands, in this way."""
        every = list(range(1, layout.samples + 1))
        return (
            layout.block == (self.side, self.side)
            and layout.is_deflated
            and layout.predictor == self.predictor
            and not (layout.is_stripped or layout.is_swapped)
            and (len(bands) == 1 if layout.is_separate else list(bands) == every)
        )


class _Bytes(Protocol):
    """Ranges of an object; `stamp` changes when it is replaced."""

    stamp: Any
    size: int
    batch: int

    def ranges(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]: ...

    def close(self) -> None: ...


# Where the bytes are --------------------------------------------------------------------------------------------------


class _LocalBytes:
    """A file, read at a place without moving it: threads may share it."""

    batch = 0  # one block at a time: it is unpacked while it is still in the processor's cache

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self.stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        self.size = status.st_size

    def ranges(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[bytes]:
        return [os.pread(self._descriptor, stop - start, start) for start, stop in zip(starts, stops, strict=True)]

    def close(self) -> None:
        os.close(self._descriptor)


class _RemoteBytes:
    """An object in a store; neighbouring ranges are fetched in one request."""

    batch = 32 << 20

    def __init__(self, href: str) -> None:
        import obstore

        parts = urlsplit(href)
        # What keeps failing is handed to GDAL, whose reads are repeated with longer pauses.
        self._store = obstore.store.from_url(
            f"{parts.scheme}://{parts.netloc}",
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )
        self._key = parts.path.lstrip("/")
        self.stamp = None
        self.size = obstore.head(self._store, self._key)["size"]

    def ranges(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]:
        import obstore

        return [memoryview(each) for each in obstore.get_ranges(self._store, self._key, starts=starts, ends=stops)]

    def close(self) -> None:
        pass


class _Files:
    """Layouts of files read lately, and blocks of theirs; shared by all threads of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layouts: OrderedDict[str, tuple[Any, File | None, _RemoteBytes | None]] = OrderedDict()
        self._blocks: OrderedDict[Any, tuple[np.ndarray, int]] = OrderedDict()
        self._bytes = 0

    def layout(self, href: str) -> tuple[Any, File | None, _RemoteBytes | None] | None:
        with self._lock:
            found = self._layouts.get(href)
            if found is not None:
                self._layouts.move_to_end(href)
            return found

    def remember(self, href: str, stamp: Any, file: File | None, remote: _RemoteBytes | None) -> None:
        with self._lock:
            self._layouts[href] = (stamp, file, remote)
            self._layouts.move_to_end(href)
            while len(self._layouts) > _FILES_KEPT:
                self._layouts.popitem(last=False)

    def forget(self, href: str) -> None:
        with self._lock:
            self._layouts.pop(href, None)
            for key in [key for key in self._blocks if key[0] == href]:
                self._bytes -= self._blocks.pop(key)[0].nbytes

    def block(self, key: Any, pixels: int) -> np.ndarray | None:
        """A block that was kept; `pixels` of it are read now, and with the last of them it goes."""
        with self._lock:
            found = self._blocks.pop(key, None)
            if found is None:
                return None
            block, left = found
            if left > pixels:
                self._blocks[key] = (block, left - pixels)
            else:
                self._bytes -= block.nbytes
            return block

    def keep(self, key: Any, block: np.ndarray, left: int) -> None:
        """Keep a block of which `left` pixels were not read yet."""
        with self._lock:
            if key in self._blocks:
                return
            self._blocks[key] = (block, left)
            self._bytes += block.nbytes
            while self._bytes > _KEPT_BYTES:
                self._bytes -= self._blocks.popitem(last=False)[1][0].nbytes


_files = _Files()


def forget(href: str) -> None:
    """Drop what is known of a file."""
    _files.forget(href)


def _opened(href: str) -> tuple[_Bytes, File]:
    known = _files.layout(href)
    path = local_path(href)
    if path is not None:
        if str(path).startswith("/vsi"):
            refuse("a path of GDAL's")
        source: Any = _LocalBytes(str(path))
    elif urlsplit(href).scheme in _REMOTE_SCHEMES and not urlsplit(href).query:
        source = known[2] if known is not None and known[2] is not None else _RemoteBytes(href)
    else:
        refuse("an address that is not read")
    try:
        if known is None or known[0] != source.stamp:
            _files.forget(href)
            file = _parsed(source)
            _files.remember(href, source.stamp, file, source if path is None else None)
        else:
            file = known[1]
        if file is None:
            refuse("known to be GDAL's")
    except BaseException:
        source.close()
        raise
    return source, file


def _parsed(source: _Bytes) -> File | None:
    """The layout of a file; None where it is not ours, which is worth remembering too."""
    # Directories stand together at the start of most files: one read serves them all.
    (head,) = source.ranges([0], [min(1 << 16, source.size)])

    def read(start: int, stop: int) -> bytes:
        return bytes(head[start:stop]) if stop <= len(head) else bytes(source.ranges([start], [stop])[0])

    try:
        return layout_of(tiff.directories(read, source.size))
    except (tiff.Malformed, NotOurs):
        return None


# Reading --------------------------------------------------------------------------------------------------------------


def suit(href: str, bands: Sequence[int], tiles: Tiles) -> bool:
    """Whether tiles of a file may pass as they are.

    Raises:
        OSError: the file cannot be reached.
    """
    from obstore.exceptions import BaseError

    try:
        source, file = _opened(href)
    except NotOurs:
        return False
    except (OSError, BaseError) as error:
        raise OSError(str(error)) from error
    source.close()
    return max(bands) <= file.image.samples and tiles.fit(file.image, bands)


def read(
    href: str,
    shape: tuple[int, int],
    dtype: str,
    bands: Sequence[int],
    window: Window,
    *,
    with_mask: bool,
    out: np.ndarray | None = None,
    tiles: Tiles | None = None,
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Pixels (band, y, x) of a window, and its mask (y, x) if asked for; None where GDAL must be asked.

    Args:
        href: of a local or remote TIFF.
        shape: of the raster, as it was described.
        dtype: of all `bands`, as it was described.
        bands: counted from 1.
        window: inside the raster.
        with_mask: the file has a mask of its own, which is wanted; one that lies in an alpha band is GDAL's.
        out: where the pixels go, contiguous; new memory by default. What it holds is anything where None is given back.
        tiles: collects packed tiles of the window, if the file's are stored so.

    Raises:
        OSError: with `tiles` only, whose findings must not depend on luck: the file cannot be reached.
    """
    from obstore.exceptions import BaseError

    try:
        source, file = _opened(href)
    except NotOurs:
        return None
    except (OSError, BaseError) as error:
        return _unreachable(error, tiles)
    try:
        image = file.image
        if image.shape != shape or image.dtype != np.dtype(dtype) or max(bands) > image.samples or min(bands) < 1:
            return None
        if with_mask and (file.mask is None or file.has_alpha):
            return None
        pixels = np.empty((len(bands), window.height, window.width), dtype) if out is None else out
        tiles = tiles if tiles is not None and tiles.fit(image, bands) else None
        _read_pixels(href, source, image, bands, window, out=pixels, tiles=tiles)
        return pixels, _read_bits(href, source, file.mask, window) if with_mask and file.mask is not None else None
    except (ValueError, RuntimeError, OSError, BaseError) as error:
        # A block is not what it should be: GDAL tries, and says what is wrong.
        _files.forget(href)
        return _unreachable(error, tiles) if isinstance(error, (OSError, BaseError)) else None
    finally:
        source.close()


def _unreachable(error: Exception, tiles: Tiles | None) -> None:
    """Leave it to GDAL, unless tiles are wanted, which GDAL does not have."""
    if tiles is not None:
        raise OSError(str(error)) from error


class _Place(NamedTuple):
    """A block that touches the window: its number, which bands it holds, and the window's part of it."""

    number: int
    row: int
    col: int
    rows: int
    window: Window
    bands: slice


def _places(layout: Layout, bands: int, numbers: Sequence[int], window: Window) -> Iterator[_Place]:
    rows, cols = layout.block
    _, across = layout.grid
    per_band = layout.grid[0] * across
    groups = (
        [(slice(n, n + 1), sample) for n, sample in enumerate(numbers)] if layout.is_separate else [(slice(bands), 0)]
    )
    for row in range(window.row // rows, -(-window.row_stop // rows)):
        held = min(rows, layout.shape[0] - row * rows) if layout.is_stripped else rows
        for col in range(window.col // cols, -(-window.col_stop // cols)):
            cut = Window(row * rows, col * cols, held, cols).intersect(window)
            for where, sample in groups:
                yield _Place(sample * per_band + row * across + col, row * rows, col * cols, held, cut, where)


def _read_pixels(
    href: str,
    source: _Bytes,
    layout: Layout,
    bands: Sequence[int],
    window: Window,
    *,
    out: np.ndarray,
    tiles: Tiles | None,
) -> None:
    size = out.dtype.itemsize
    words = out.view(kernels.WORDS[size])
    numbers = [band - 1 for band in bands]
    samples = np.zeros(1, np.int64) if layout.is_separate else np.array(numbers, np.int64)
    take = {1: kernels.take, 2: kernels.take_sums, 3: kernels.take_planes}[layout.predictor]
    for place, block in _unpacked(href, source, layout, _places(layout, len(bands), numbers, window), tiles):
        cut = place.window
        if block is None:
            out[place.bands][:, *cut.relative_to(window)] = _known(layout.fill)
            continue
        count, width = layout.samples_per_block, layout.block[1]
        if layout.predictor == 3:
            shaped = block.reshape(place.rows, size, width, count)
        else:
            shaped = block.view(words.dtype).reshape(place.rows, width, count)
        part = (cut.row - place.row, cut.col - place.col, cut.height, cut.width)
        take(shaped, samples, part, words[place.bands], (cut.row - window.row, cut.col - window.col))


def _read_bits(href: str, source: _Bytes, layout: Layout, window: Window) -> np.ndarray:
    out = np.zeros((window.height, window.width), np.bool_)
    for place, block in _unpacked(href, source, layout, _places(layout, 1, [0], window)):
        if block is None:
            continue
        cut = place.window
        top, left = cut.row - place.row, cut.col - place.col
        rows = block.reshape(place.rows, -1)[top : top + cut.height, left // 8 : -(-(left + cut.width) // 8)]
        bits = np.unpackbits(rows, axis=1)[:, left % 8 : left % 8 + cut.width]
        out[cut.relative_to(window)] = bits.view(np.bool_)
    return out


def _known(fill: float | None) -> float:
    return refuse("its nodata value cannot be stored") if fill is None else fill


def _unpacked(
    href: str, source: _Bytes, layout: Layout, places: Iterator[_Place], tiles: Tiles | None = None
) -> Iterator[tuple[_Place, np.ndarray | None]]:
    """The blocks of these places, one after the other; None for one that was never written."""
    scratch = np.empty(layout.block[0] * layout.row_bytes, np.uint8)
    for batch in _batches(layout, places, source.batch):
        wanted = []
        for place in batch:
            key = (href, source.stamp, layout.dtype is None, place.number)
            # A block that was kept is no longer packed.
            if tiles is None and (kept := _files.block(key, place.window.pixels)) is not None:
                yield place, kept
            elif not layout.starts[place.number] and not layout.lengths[place.number]:
                yield place, None
            else:
                wanted.append((key, place))
        starts = [int(layout.starts[place.number]) for _, place in wanted]
        stops = [start + int(layout.lengths[place.number]) for start, (_, place) in zip(starts, wanted, strict=True)]
        if any(start == 0 for start in starts) or max(stops, default=0) > source.size:
            refuse("a block lies outside the file")
        for (key, place), data in zip(wanted, source.ranges(starts, stops) if wanted else (), strict=True):
            whole = Window(place.row, place.col, *layout.block).intersect(Window(0, 0, *layout.shape))
            left = whole.pixels - place.window.pixels
            buffer = np.empty(place.rows * layout.row_bytes, np.uint8) if left else scratch
            block = _unpack(layout, data, buffer[: place.rows * layout.row_bytes])
            if tiles is not None and place.window.pixels == tiles.side**2 and deflate.is_thorough(data):
                tiles.found[place.row, place.col] = bytes(data)
            if left:
                _files.keep(key, block, left)
            yield place, block


def _batches(layout: Layout, places: Iterator[_Place], limit: int) -> Iterator[list[_Place]]:
    """Places whose packed bytes are fetched together."""
    batch: list[_Place] = []
    total = 0
    for place in places:
        length = int(layout.lengths[place.number])
        if length > 2 * place.rows * layout.row_bytes + 65536:
            refuse("a block takes far more bytes packed than unpacked")
        if batch and total + length > limit:
            yield batch
            batch, total = [], 0
        batch.append(place)
        total += length
    if batch:
        yield batch


def _unpack(layout: Layout, data: Any, out: np.ndarray) -> np.ndarray:
    if layout.unpack is None:
        if len(data) != len(out):
            refuse("a block is not as long as its pixels")
        out[:] = np.frombuffer(data, np.uint8)
    elif layout.unpack(data, out) != len(out):
        refuse("a block unpacks to less than its pixels")
    if layout.is_swapped and layout.predictor != 3 and layout.dtype is not None:
        out.view(kernels.WORDS[layout.dtype.itemsize]).byteswap(inplace=True)
    return out
