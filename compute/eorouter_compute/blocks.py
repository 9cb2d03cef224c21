"""Pixels out of the tiles and strips of a TIFF, without GDAL: which files are read so, and how.

Only files that leave nothing to interpretation are read here (`layout_of` says which); of all others, and of every
block that does not unpack to exactly what its directory promises, GDAL is asked, and its word counts. A block is
unpacked into a buffer of the promised size and never beyond it. Blocks that reach over the window are kept for a
while, packed as the predictor left them, because the next window begins where this one ends.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, Protocol, cast
from urllib.parse import urlsplit

import numpy as np

from eorouter_compute import tiff
from eorouter_compute.attempt import local_path
from eorouter_compute.grid import Window
from eorouter_compute.tiff import Code, Directory
from eorouter_kernels import blocks as kernels

BLOCK_BYTES_MAX = 32 << 20
"""Largest block, unpacked, that is read here; GDAL's cache is the better place for giants."""

_KEPT_BYTES = 64 << 20
_FILES_KEPT = 256
_REMOTE_SCHEMES = frozenset({"s3", "gs", "az", "azure"})
_DTYPES = {
    (8, 1): "u1", (8, 2): "i1", (16, 1): "u2", (16, 2): "i2", (32, 1): "u4", (32, 2): "i4", (32, 3): "f4",
    (64, 3): "f8",
}  # fmt: skip


class NotOurs(ValueError):
    """The file, or a block of it, is for GDAL to judge."""


class Layout(NamedTuple):
    """How one image of a file is cut, packed and typed.

    Attributes:
        shape: (height, width) in pixels.
        samples: bands of the file.
        dtype: of the pixels, in the machine's byte order; None for a mask of one bit.
        is_swapped: the file has the other byte order.
        unpack: codec, `(bytes, out) -> bytes written`; None where blocks are stored as they are.
        predictor: 1, 2 or 3.
        is_separate: each band has its own blocks.
        block: (rows, columns) of a block; strips are as wide as the raster.
        is_stripped: the last strip has only the rows that are left.
        starts, lengths: of each block in the file; both 0 where it was never written.
        fill: stored value of blocks that were never written; None where that is not known.
    """

    shape: tuple[int, int]
    samples: int
    dtype: np.dtype[Any] | None
    is_swapped: bool
    unpack: Callable[[Any, np.ndarray], int] | None
    predictor: int
    is_separate: bool
    block: tuple[int, int]
    is_stripped: bool
    starts: np.ndarray
    lengths: np.ndarray
    fill: float | None

    @property
    def samples_per_block(self) -> int:
        """Bands that lie in one block."""
        return 1 if self.is_separate else self.samples

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a block."""
        if self.dtype is None:
            return -(-self.block[1] // 8)
        return self.block[1] * self.samples_per_block * self.dtype.itemsize


class File(NamedTuple):
    """A file that is read here: its pixels, its mask if it has one of its own, and whether a band hides others."""

    image: Layout
    mask: Layout | None
    has_alpha: bool


class _Bytes(Protocol):
    """Ranges of an object; `stamp` changes when it is replaced."""

    stamp: Any
    size: int
    batch: int

    def ranges(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]: ...

    def close(self) -> None: ...


# Which files ----------------------------------------------------------------------------------------------------------


def layout_of(directories: Sequence[Directory]) -> File:
    """How the first image of a file is stored, and its mask.

    Raises:
        NotOurs: something about it is rare, or left to interpretation.
    """
    image = _layout(directories[0])
    extra = directories[0].tags.get(Code.EXTRA_SAMPLES)
    has_alpha = extra is not None and bool(np.isin(extra.values, (1, 2)).any())
    masks = [each for each in directories[1:] if each.value(Code.NEW_SUBFILE_TYPE) == 4]
    mask = _mask_layout(masks[0], image) if masks else None
    return File(image, mask, has_alpha)


def _layout(directory: Directory) -> Layout:
    bits, formats = _one(directory, Code.BITS_PER_SAMPLE, 1), _one(directory, Code.SAMPLE_FORMAT, 1)
    dtype = np.dtype(_DTYPES.get((bits, formats)) or _refuse(f"{bits} bits of format {formats}"))
    predictor = directory.value(Code.PREDICTOR, 1)
    if predictor not in {1, 2, 3} or (predictor == 3 and dtype.kind != "f"):
        _refuse(f"predictor {predictor}")
    if directory.value(Code.PHOTOMETRIC, 1) not in {1, 2, 3}:
        _refuse("its colours are coded")
    return _cut(directory, dtype, predictor)


def _mask_layout(directory: Directory, image: Layout) -> Layout:
    if (directory.value(Code.BITS_PER_SAMPLE, 1), directory.value(Code.SAMPLES_PER_PIXEL, 1)) != (1, 1):
        _refuse("a mask of more than one bit")
    mask = _cut(directory, None, 1)
    if mask.shape != image.shape or directory.value(Code.PHOTOMETRIC, 0) != 4:
        _refuse("a mask that is none")
    return mask._replace(fill=0.0)


def _cut(directory: Directory, dtype: np.dtype[Any] | None, predictor: int) -> Layout:
    """What image and mask have in common: shape, blocks and codec."""
    shape = (directory.value(Code.IMAGE_LENGTH), directory.value(Code.IMAGE_WIDTH))
    samples = directory.value(Code.SAMPLES_PER_PIXEL, 1)
    planar = directory.value(Code.PLANAR_CONFIGURATION, 1)
    is_stripped = Code.TILE_WIDTH not in directory.tags
    if is_stripped:
        block = (min(directory.value(Code.ROWS_PER_STRIP, 1 << 32), shape[0]), shape[1])
    else:
        block = (directory.value(Code.TILE_LENGTH), directory.value(Code.TILE_WIDTH))
    if min(*shape, *block, samples) < 1 or planar not in {1, 2} or directory.value(Code.FILL_ORDER, 1) != 1:
        _refuse("an unusual layout")
    starts, lengths = directory.tile_spans
    compression = directory.value(Code.COMPRESSION, 1)
    if compression not in _CODECS:
        _refuse(f"compression {compression}")
    layout = Layout(
        shape=shape,
        samples=samples,
        dtype=dtype,
        is_swapped=directory.is_big_endian and dtype is not None and dtype.itemsize > 1,
        unpack=_CODECS[compression](),
        predictor=predictor if compression != 1 else 1,
        is_separate=planar == 2 and samples > 1,
        block=block,
        is_stripped=is_stripped,
        starts=starts,
        lengths=lengths,
        fill=_fill(directory, dtype),
    )
    rows, cols = layout.grid
    if len(starts) != rows * cols * (samples if layout.is_separate else 1) or (starts < 0).any() or (lengths < 0).any():
        _refuse("its blocks are not all accounted for")
    if block[0] * layout.row_bytes > BLOCK_BYTES_MAX:
        _refuse("its blocks are giants")
    return layout


def _refuse(why: str) -> NoReturn:
    raise NotOurs(why)


def _one(directory: Directory, code: int, default: int) -> int:
    """The value of a tag that has one per band, all alike."""
    tag = directory.tags.get(code)
    if tag is None or not tag.length:
        return default
    values = tag.values
    if (values != values[0]).any():
        _refuse(f"tag {code} differs between bands")
    return int(values[0])


def _fill(directory: Directory, dtype: np.dtype[Any] | None) -> float | None:
    """What GDAL reads where a block was never written: the nodata value, if the type can hold it, or 0."""
    tag = directory.tags.get(Code.GDAL_NODATA)
    if tag is None or dtype is None:
        return 0.0
    try:
        value = float(tag.text)
    except ValueError:
        return None
    if dtype.kind == "f":
        return value if not np.isfinite(value) or abs(value) <= np.finfo(dtype).max else None
    info = np.iinfo(dtype)
    return value if value.is_integer() and info.min <= value <= info.max else None


def _deflate() -> Callable[[Any, np.ndarray], int]:
    import imagecodecs

    return lambda data, out: len(imagecodecs.deflate_decode(data, out=cast("Any", out)))


def _zstd() -> Callable[[Any, np.ndarray], int]:
    import imagecodecs

    return lambda data, out: len(imagecodecs.zstd_decode(data, out=cast("Any", out)))


def _lzw() -> Callable[[Any, np.ndarray], int]:
    import imagecodecs

    return lambda data, out: len(imagecodecs.lzw_decode(data, out=cast("Any", out)))


# libdeflate unpacks DEFLATE 1.3 times as fast as ISA-L and 2.3 times as fast as zlib, measured on a noisy scene.
_CODECS: dict[int, Callable[[], Callable[[Any, np.ndarray], int] | None]] = {
    1: lambda: None,
    5: _lzw,
    8: _deflate,
    32946: _deflate,
    50000: _zstd,
}


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
            _refuse("a path of GDAL's")
        source: Any = _LocalBytes(str(path))
    elif urlsplit(href).scheme in _REMOTE_SCHEMES and not urlsplit(href).query:
        source = known[2] if known is not None and known[2] is not None else _RemoteBytes(href)
    else:
        _refuse("an address that is not read")
    try:
        if known is None or known[0] != source.stamp:
            _files.forget(href)
            file = _parsed(source)
            _files.remember(href, source.stamp, file, source if path is None else None)
        else:
            file = known[1]
        if file is None:
            _refuse("known to be GDAL's")
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


def read(
    href: str,
    shape: tuple[int, int],
    dtype: str,
    bands: Sequence[int],
    window: Window,
    *,
    with_mask: bool,
    out: np.ndarray | None = None,
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
    """
    from obstore.exceptions import BaseError

    try:
        source, file = _opened(href)
    except (NotOurs, OSError, BaseError):
        return None
    try:
        image = file.image
        if image.shape != shape or image.dtype != np.dtype(dtype) or max(bands) > image.samples or min(bands) < 1:
            return None
        if with_mask and (file.mask is None or file.has_alpha):
            return None
        pixels = np.empty((len(bands), window.height, window.width), dtype) if out is None else out
        _read_pixels(href, source, image, bands, window, out=pixels)
        return pixels, _read_bits(href, source, file.mask, window) if with_mask and file.mask is not None else None
    except (ValueError, RuntimeError, OSError, BaseError):
        # A block is not what it should be: GDAL tries, and says what is wrong.
        _files.forget(href)
        return None
    finally:
        source.close()


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
    href: str, source: _Bytes, layout: Layout, bands: Sequence[int], window: Window, *, out: np.ndarray
) -> None:
    size = out.dtype.itemsize
    words = out.view(kernels.WORDS[size])
    numbers = [band - 1 for band in bands]
    samples = np.zeros(1, np.int64) if layout.is_separate else np.array(numbers, np.int64)
    take = {1: kernels.take, 2: kernels.take_sums, 3: kernels.take_planes}[layout.predictor]
    for place, block in _unpacked(href, source, layout, _places(layout, len(bands), numbers, window)):
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
    return _refuse("its nodata value cannot be stored") if fill is None else fill


def _unpacked(
    href: str, source: _Bytes, layout: Layout, places: Iterator[_Place]
) -> Iterator[tuple[_Place, np.ndarray | None]]:
    """The blocks of these places, one after the other; None for one that was never written."""
    scratch = np.empty(layout.block[0] * layout.row_bytes, np.uint8)
    for batch in _batches(layout, places, source.batch):
        wanted = []
        for place in batch:
            key = (href, source.stamp, layout.dtype is None, place.number)
            if (kept := _files.block(key, place.window.pixels)) is not None:
                yield place, kept
            elif not layout.starts[place.number] and not layout.lengths[place.number]:
                yield place, None
            else:
                wanted.append((key, place))
        starts = [int(layout.starts[place.number]) for _, place in wanted]
        stops = [start + int(layout.lengths[place.number]) for start, (_, place) in zip(starts, wanted, strict=True)]
        if any(start == 0 for start in starts) or max(stops, default=0) > source.size:
            _refuse("a block lies outside the file")
        for (key, place), data in zip(wanted, source.ranges(starts, stops) if wanted else (), strict=True):
            whole = Window(place.row, place.col, *layout.block).intersect(Window(0, 0, *layout.shape))
            left = whole.pixels - place.window.pixels
            buffer = np.empty(place.rows * layout.row_bytes, np.uint8) if left else scratch
            block = _unpack(layout, data, buffer[: place.rows * layout.row_bytes])
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
            _refuse("a block takes far more bytes packed than unpacked")
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
            _refuse("a block is not as long as its pixels")
        out[:] = np.frombuffer(data, np.uint8)
    elif layout.unpack(data, out) != len(out):
        _refuse("a block unpacks to less than its pixels")
    if layout.is_swapped and layout.predictor != 3 and layout.dtype is not None:
        out.view(kernels.WORDS[layout.dtype.itemsize]).byteswap(inplace=True)
    return out
