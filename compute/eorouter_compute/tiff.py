"""The TIFF container, classic and Big: directories out of bytes, and bytes out of directories. No pixels, no codecs.

Written files are little-endian and laid out as GDAL's cloud-optimised layout asks: header, ghost area, all directories
with their values, all tile arrays, then data. Reading takes any byte order and only ever follows offsets it has
checked.
"""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import numpy as np

CLASSIC_LIMIT = 1 << 32
"""Bytes a classic TIFF can address."""

_DIRECTORY_LIMIT = 1000
_VALUE_BYTES_LIMIT = 1 << 30
_TYPES = {
    1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u8", 6: "i1", 7: "u1", 8: "i2",
    9: "i4", 10: "i8", 11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip


class Malformed(ValueError):
    """The bytes are not a TIFF, or point outside themselves."""


class Code(IntEnum):
    """Tags that are written or looked at; names as in the TIFF 6.0, GeoTIFF and GDAL documents."""

    NEW_SUBFILE_TYPE = 254
    IMAGE_WIDTH = 256
    IMAGE_LENGTH = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    DOCUMENT_NAME = 269
    IMAGE_DESCRIPTION = 270
    STRIP_OFFSETS = 273
    SAMPLES_PER_PIXEL = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTE_COUNTS = 279
    X_RESOLUTION = 282
    Y_RESOLUTION = 283
    PLANAR_CONFIGURATION = 284
    RESOLUTION_UNIT = 296
    SOFTWARE = 305
    DATE_TIME = 306
    ARTIST = 315
    HOST_COMPUTER = 316
    PREDICTOR = 317
    COLOR_MAP = 320
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTE_COUNTS = 325
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    COPYRIGHT = 33432
    MODEL_PIXEL_SCALE = 33550
    MODEL_TIEPOINT = 33922
    MODEL_TRANSFORMATION = 34264
    GEO_KEY_DIRECTORY = 34735
    GEO_DOUBLE_PARAMS = 34736
    GEO_ASCII_PARAMS = 34737
    GDAL_METADATA = 42112
    GDAL_NODATA = 42113
    LERC_PARAMETERS = 50674


class Tag(NamedTuple):
    """One entry of a directory; `data` holds its values as little-endian bytes of `type`."""

    code: int
    type: int
    data: bytes

    @property
    def length(self) -> int:
        """Number of values."""
        return len(self.data) // np.dtype(_TYPES[self.type]).itemsize

    @property
    def values(self) -> np.ndarray:
        """The values, as unsigned integers, floats or single bytes."""
        return np.frombuffer(self.data, np.dtype(_TYPES[self.type]).newbyteorder("<"))

    @property
    def text(self) -> str:
        """The values of an ASCII tag."""
        return self.data.split(b"\0", 1)[0].decode("utf-8", "replace")


class Directory(NamedTuple):
    """One directory as it was read: where it stands, its tags by code, and the byte order of the file's pixels."""

    offset: int
    tags: dict[int, Tag]
    is_big_endian: bool = False

    def value(self, code: int, default: int = 0) -> int:
        """First value of an integer tag."""
        tag = self.tags.get(code)
        return int(tag.values[0]) if tag is not None and tag.length else default

    @property
    def tile_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and byte counts of its tiles or strips; two empty arrays where they are not given."""
        for places, counts in (
            (Code.TILE_OFFSETS, Code.TILE_BYTE_COUNTS),
            (Code.STRIP_OFFSETS, Code.STRIP_BYTE_COUNTS),
        ):
            if places in self.tags and counts in self.tags:
                starts, lengths = self.tags[places].values, self.tags[counts].values
                if len(starts) == len(lengths):
                    return starts.astype(np.int64), lengths.astype(np.int64)
        return np.empty(0, np.int64), np.empty(0, np.int64)


def shorts(code: int, *values: int) -> Tag:
    """A tag of 16-bit unsigned values."""
    return Tag(code, 3, struct.pack(f"<{len(values)}H", *values))


def longs(code: int, values: Sequence[int] | np.ndarray) -> Tag:
    """A tag of 32-bit unsigned values."""
    return Tag(code, 4, np.asarray(values, "<u4").tobytes())


def offsets(code: int, values: np.ndarray, *, is_big: bool) -> Tag:
    """A tag of file offsets, in the width the container uses."""
    return Tag(code, 16, values.astype("<u8").tobytes()) if is_big else longs(code, values)


def header(directories: Sequence[Sequence[Tag]], ghost: bytes, *, is_big: bool) -> bytes:
    """All bytes before the first tile. Its length depends on the numbers of values only, never on the values.

    Tile arrays come after all directories, so that a reader has every directory in its first request.
    """
    inline, entry, word = (8, "<HHQ", "<Q") if is_big else (4, "<HHI", "<I")
    start = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if is_big else struct.pack("<2sHI", b"II", 42, 0)
    align = 8 if is_big else 2
    position = _aligned(len(start) + len(ghost), align)
    places: list[int] = []
    values: dict[tuple[int, int], int] = {}
    for number, tags in enumerate(directories):
        places.append(position)
        count_size, entry_size = (8, 20) if is_big else (2, 12)
        position = _aligned(position + count_size + entry_size * len(tags) + inline, align)
        for tag in tags:
            if len(tag.data) > inline and tag.code not in {Code.TILE_OFFSETS, Code.TILE_BYTE_COUNTS}:
                values[number, tag.code] = position
                position = _aligned(position + len(tag.data), align)
    for number, tags in enumerate(directories):
        for tag in tags:
            if len(tag.data) > inline and tag.code in {Code.TILE_OFFSETS, Code.TILE_BYTE_COUNTS}:
                values[number, tag.code] = position
                position = _aligned(position + len(tag.data), align)
    out = bytearray(position)
    out[: len(start)] = start
    struct.pack_into(word, out, 8 if is_big else 4, places[0])
    out[len(start) : len(start) + len(ghost)] = ghost
    for number, (tags, following) in enumerate(zip(directories, [*places[1:], 0], strict=True)):
        if any(a.code >= b.code for a, b in pairwise(tags)):
            raise ValueError(f"directory {number}: tags must be unique and in ascending order")
        at = places[number]
        struct.pack_into("<Q" if is_big else "<H", out, at, len(tags))
        at += 8 if is_big else 2
        for tag in tags:
            struct.pack_into(entry, out, at, tag.code, tag.type, tag.length)
            at += struct.calcsize(entry)
            if (place := values.get((number, tag.code))) is None:
                out[at : at + len(tag.data)] = tag.data
            else:
                struct.pack_into(word, out, at, place)
                out[place : place + len(tag.data)] = tag.data
            at += inline
        struct.pack_into(word, out, at, following)
    return bytes(out)


def _aligned(position: int, step: int) -> int:
    return -(-position // step) * step


def directories(read: Callable[[int, int], bytes], size: int) -> list[Directory]:
    """Read all directories of a file of `size` bytes; `read(start, stop)` gives its bytes.

    Raises:
        Malformed: not a TIFF, or an offset leads out of the file or in a circle.
    """
    start = read(0, min(16, size))
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8 or struct.unpack_from(order + "H", start, 2)[0] not in {42, 43}:
        raise Malformed("the file does not start like a TIFF")
    is_big = struct.unpack_from(order + "H", start, 2)[0] == 43
    if is_big and len(start) < 16:
        raise Malformed("the file ends inside its header")
    place = struct.unpack_from(order + ("Q" if is_big else "I"), start, 8 if is_big else 4)[0]
    found: list[Directory] = []
    seen: set[int] = set()
    while place:
        if place in seen or len(found) >= _DIRECTORY_LIMIT:
            raise Malformed("the directories form a circle or are too many")
        seen.add(place)
        tags, following = _directory(read, size, place, order=order, is_big=is_big)
        found.append(Directory(place, tags, order == ">"))
        place = following
    if not found:
        raise Malformed("the file has no directory")
    return found


def _directory(
    read: Callable[[int, int], bytes], size: int, place: int, *, order: str, is_big: bool
) -> tuple[dict[int, Tag], int]:
    head, entry, inline, word = (8, 20, 8, "Q") if is_big else (2, 12, 4, "I")

    def take(start: int, length: int) -> bytes:
        if start + length > size:
            raise Malformed(f"the file has {size} bytes, a directory points to byte {start + length}")
        return read(start, start + length)

    count = struct.unpack(order + ("Q" if is_big else "H"), take(place, head))[0]
    if count > 4096:
        raise Malformed(f"a directory claims {count} entries")
    body = take(place + head, count * entry + inline)
    tags: dict[int, Tag] = {}
    for at in range(0, count * entry, entry):
        code, kind, length = struct.unpack_from(order + "HH" + word, body, at)
        if kind not in _TYPES:
            continue
        dtype = np.dtype(_TYPES[kind])
        total = length * dtype.itemsize
        if total > _VALUE_BYTES_LIMIT:
            raise Malformed(f"tag {code} claims {total} bytes")
        value_at = at + entry - inline
        data = (
            body[value_at : value_at + total]
            if total <= inline
            else take(struct.unpack_from(order + word, body, value_at)[0], total)
        )
        if order == ">" and kind not in {5, 10}:
            data = np.frombuffer(data, dtype.newbyteorder(">")).astype(dtype.newbyteorder("<")).tobytes()
        tags[code] = Tag(code, kind, data)
    return tags, struct.unpack_from(order + word, body, count * entry)[0]


def ends_early(found: Sequence[Directory], size: int) -> str:
    """What the directories promise beyond the end of a file of `size` bytes, or an empty string."""
    for directory in found:
        starts, lengths = directory.tile_spans
        # Offsets beyond 2⁶³ are nonsense, and reach beyond any file as well once they are floats.
        ends = starts.astype(np.uint64).astype(np.float64) + lengths.astype(np.uint64).astype(np.float64)
        if len(ends) and ends.max() > size:
            return f"it has {size} bytes, its pixels reach to byte {int(ends.max())}"
    return ""


def layout_faults(found: Sequence[Directory], start: bytes) -> list[str]:
    """Why a file is not a cloud-optimised GeoTIFF of the kind written here; empty when it is one.

    `start` holds its first 300 bytes or more. The rules are those of the COG standard (OGC 21-026) and of GDAL's
    validator,
    plus: no further pages, tiles of at most 1024 pixels, and a last overview that fits two tiles.
    """
    faults: list[str] = []
    main, others = found[0], found[1:]
    kinds = [directory.value(Code.NEW_SUBFILE_TYPE) for directory in others]
    if main.value(Code.NEW_SUBFILE_TYPE) or any(kind not in {1, 4, 5} for kind in kinds):
        faults.append("it has several pages")
    if Code.TILE_WIDTH not in main.tags:
        return [*faults, "it is stored in strips, not tiles"]
    side = max(main.value(Code.TILE_WIDTH), main.value(Code.TILE_LENGTH))
    if side > 1024:
        faults.append(f"its tiles are {side} pixels wide")
    images = [main] + [directory for directory, kind in zip(others, kinds, strict=True) if kind == 1]
    sides = [max(each.value(Code.IMAGE_WIDTH), each.value(Code.IMAGE_LENGTH)) for each in images]
    if any(a <= b for a, b in pairwise(sides)):
        faults.append("its overviews do not go from large to small")
    if len(images) == 1 and sides[0] > 512:
        faults.append("it has no overviews")
    elif sides[-1] > 2 * max(side, 256):
        faults.append(f"its smallest overview is {sides[-1]} pixels wide")
    faults += _order_faults(found, images)
    if b"KNOWN_INCOMPATIBLE_EDITION=YES" in start:
        faults.append("it was edited after it was laid out")
    return faults


def _order_faults(found: Sequence[Directory], images: Sequence[Directory]) -> list[str]:
    """Why directories and pixels do not follow each other as they should."""
    faults: list[str] = []
    if found[0].offset > 300:
        faults.append(f"its first directory is at byte {found[0].offset}")
    if any(a.offset >= b.offset for a, b in pairwise(images)):
        faults.append("its directories are out of order")
    firsts = []
    for image in images:
        starts, _ = image.tile_spans
        firsts.append(int(starts[starts > 0].min()) if (starts > 0).any() else None)
    given = [first for first in firsts if first is not None]
    if any(a <= b for a, b in pairwise(given)):
        faults.append("its overviews do not come before the full resolution")
    if given and min(given) < max(directory.offset for directory in found):
        faults.append("pixels come before directories")
    return faults
