"""Write cloud-optimised GeoTIFFs as a stream, from shards that know nothing of each other.

    piece (≤ 2048² px) ──encode──► tiles of levels 0…m + pixels of level m + 1   in a shard's segment object
    all segments ──assemble──► the levels above m, statistics, header; then every tile, copied to its place

A *piece* is a square of the raster, a power of two of tiles wide; its pyramid levels 0…m consist of whole tiles, which
the worker encodes. The rest of the pyramid needs neighbours: the piece carries level m + 1 as plain pixels and
`assemble` goes on from there, holding one row of tiles per level. What a tile holds depends on its pixels alone and
the order of the file is fixed, so the bytes are the same for any shard plan. GDAL's layout is followed to the letter
(directories first, small levels before large, leader and trailer around each tile, mask tiles beside image tiles):
https://gdal.org/en/stable/drivers/raster/cog.html#file-format-details
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import BinaryIO, NamedTuple, cast

import msgspec
import numpy as np
from msgspec import Struct

from eorouter_compute import deflate
from eorouter_compute.attempt import read_exactly
from eorouter_compute.cogfile import LEAD, BandStatistics, CogSpec, front, span
from eorouter_compute.grid import Window, tiles
from eorouter_kernels import blocks, pyramid
from eorouter_kernels.nodata import around, kept_clear

PIECE_SIDE = 2048
"""Pixels along a piece unless memory asks for less: three whole levels, 1.6 % carried as plain pixels."""

_SPOOL_BYTES = 64 << 20
_NO_TILES: Mapping[tuple[int, int], bytes] = {}
_RANKS = {"min": pyramid.LEAST, "median": pyramid.MEDIAN, "max": pyramid.GREATEST}


class Piece(Struct, frozen=True, array_like=True):
    """What a segment holds of one piece, from byte `start` on.

    sizes: uint32 per tile (with a mask: tile, mask tile), level by level in reading order; carry: bytes of plain pixels
    behind them; moments: float64 (tile, band, 5) of level 0.
    """

    window: Window
    start: int
    sizes: bytes
    carry: int
    moments: bytes


class Segment(Struct, frozen=True, kw_only=True):
    """The index of a segment object: which pieces it holds and where."""

    href: str
    piece_side: int
    pieces: tuple[Piece, ...]


class CogInfo(Struct, frozen=True, kw_only=True):
    """What was written."""

    size: int
    is_big_tiff: bool
    statistics: tuple[BandStatistics, ...]


Pixels = tuple[np.ndarray, np.ndarray | None]
"""Pixels (band, y, x) of the spec's dtype, and valid (y, x) or (band, y, x), None when all are data."""


class Stored(NamedTuple):
    """Pixels, and tiles of the file to be, by row and column of their first pixel, that are packed already."""

    pixels: np.ndarray
    valid: np.ndarray | None
    tiles: Mapping[tuple[int, int], bytes]


def whole_levels(spec: CogSpec, piece_side: int) -> int:
    """The highest level of which a piece holds whole tiles only."""
    ratio, rest = divmod(piece_side, spec.block_size)
    if rest or ratio < 1 or ratio & (ratio - 1):
        raise ValueError(f"piece_side is {piece_side}; it must be {spec.block_size} times a power of two")
    return min(ratio.bit_length() - 1, spec.level_count)


def encode(
    spec: CogSpec,
    window: Window,
    compute: Callable[[Window], Pixels | Stored],
    target: BinaryIO,
    *,
    href: str,
    piece_side: int = PIECE_SIDE,
    advance: Callable[[int], None] = lambda pixels: None,
) -> Segment:
    """Compute the pieces of `window` one after the other and append their tiles to `target`, the object `href`.

    `window` must begin on multiples of `piece_side` and end on them or at the raster's edge. Memory is one piece's.
    """
    if window.row % piece_side or window.col % piece_side or window.intersect(spec.window) != window:
        raise ValueError(f"{window} does not lie on pieces of {piece_side} pixels of a raster of {spec.shape}")
    pieces = []
    for place in tiles(window, piece_side):
        made = compute(place)
        stored = made if isinstance(made, Stored) else Stored(*made, {})
        pieces.append(_encode_piece(spec, place, stored, target, whole=whole_levels(spec, piece_side)))
        advance(place.pixels)
    return Segment(href=href, piece_side=piece_side, pieces=tuple(pieces))


def _encode_piece(spec: CogSpec, place: Window, made: Stored, target: BinaryIO, *, whole: int) -> Piece:
    pixels = made.pixels
    if pixels.shape != (len(spec.bands), place.height, place.width) or pixels.dtype != spec.dtype:
        raise ValueError(
            f"{place}: expected {spec.dtype} of shape {(len(spec.bands), place.height, place.width)}, "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    start = target.tell()
    pixels, valid, moments = _settled_with_moments(spec, pixels, made.valid)
    ready = _untouched(spec, place, made, pixels)
    sizes: list[int] = []
    carry = b""
    for level in range(whole + 1):
        for tile in _tiles_of(spec, pixels, valid, {} if level else ready):
            sizes.append(len(tile) - 2 * LEAD)
            target.write(tile)
        if level < spec.level_count:
            pixels, valid = _halve(spec, pixels, valid)
            if level == whole:
                carry = pixels.tobytes() + (_packed(_mask_of(pixels, valid)) if spec.has_mask else b"")
                target.write(carry)
    return Piece(place, start, np.asarray(sizes, "<u4").tobytes(), len(carry), moments.tobytes())


def assemble(
    spec: CogSpec,
    segments: Sequence[Segment],
    out: BinaryIO,
    *,
    advance: Callable[[int], None] = lambda pixels: None,
) -> CogInfo:
    """Write the whole file to `out`, front to back, from segments that together cover the raster once.

    Raises:
        ValueError: the segments leave a gap, overlap, or were made with different piece sides.
    """
    pieces = _in_order(spec, segments)
    whole = whole_levels(spec, segments[0].piece_side)
    statistics = _statistics(spec, pieces, segments[0].piece_side)
    level_sizes = [_level_sizes(spec, pieces, level, segments[0].piece_side) for level in range(whole + 1)]
    uppers = [_UpperLevel(spec, level) for level in range(whole + 1, spec.level_count + 1)]
    try:
        if uppers:
            _finish_pyramid(spec, pieces, segments[0].piece_side >> (whole + 1), uppers, whole + 1, advance=advance)
            level_sizes += [upper.sizes for upper in uppers]
        start, is_big = front(spec, statistics, level_sizes)
        out.write(start)
        for upper in reversed(uppers):
            upper.copy_to(out)
        for level in range(whole, -1, -1):
            _copy_level(spec, pieces, level, segments[0].piece_side, out)
            advance(0)
    finally:
        for upper in uppers:
            upper.close()
    size = len(start) + sum(span(sizes) for sizes in level_sizes)
    return CogInfo(size=size, is_big_tiff=is_big, statistics=statistics)


def with_best_predictor(spec: CogSpec, samples: Sequence[np.ndarray]) -> CogSpec:
    """`spec` with the predictor on or off, whichever packs the sample tiles (band, y, x) smaller.

    Differences help smooth pictures and hurt class maps and rasters blown up by repetition, by up to a factor of two.
    Only who sees pixels before the first tile is written can choose: the predictor is one per file.
    """
    if spec.compression in {"none", "lerc"}:
        return spec
    # A tile no larger than the samples: a filled rim would be packed too, and would weigh as much as the pixels.
    side = min(spec.block_size, max(-(-max(sample.shape[1:]) // 16) * 16 for sample in samples))
    specs = [msgspec.structs.replace(spec, predictor=choice, block_size=side) for choice in ("auto", "none")]
    best = min(specs, key=lambda each: sum(len(_encode_tile(each, sample)) for sample in samples))
    return msgspec.structs.replace(spec, predictor=best.predictor)


# Pixels to tiles ------------------------------------------------------------------------------------------------------


def _settle(spec: CogSpec, pixels: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels as a reader will see them: missing ones filled, and `valid` (band, y, x) false exactly there.

    A valid pixel whose value is `nodata`, or is NaN, reads as missing, so it counts as missing here too.
    """
    pixels = np.ascontiguousarray(pixels)
    if (valid is None or valid.all()) and _is_whole(spec, pixels):
        return pixels, None
    if spec.has_mask:
        return _settled_by_mask(spec, pixels, valid)
    if spec.nodata is None and pixels.dtype.kind != "f":
        raise ValueError("pixels are missing, but the file has neither nodata nor mask")
    settled, known = np.empty_like(pixels), np.empty(pixels.shape, np.bool_)
    given = _or_every(None) if valid is None else np.ascontiguousarray(valid if valid.ndim == 3 else valid[None])
    blocks.settle(pixels, given, pixels.dtype.type(_fill(spec)), settled, known)
    return (pixels, None) if known.all() else (settled, known)


def _settled_with_moments(
    spec: CogSpec, pixels: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """`_settle`, and the moments (tile row, tile column, band, 5) of the full resolution."""
    side = spec.block_size
    shape = (-(-pixels.shape[1] // side), -(-pixels.shape[2] // side), len(pixels), pyramid.MOMENTS)
    moments, every = np.empty(shape), _or_every(None)
    if valid is None:
        # Most pieces are whole, and their moments say so: there is no need to look at every pixel once more.
        pixels = np.ascontiguousarray(pixels)
        pyramid.tile_moments(pixels, every, side, moments)
        if _says_whole(spec, pixels.dtype, moments):
            return pixels, None, moments
    pixels, settled = _settle(spec, pixels, valid)
    if settled is not None or valid is not None:
        pyramid.tile_moments(pixels, _or_every(settled), side, moments)
    return pixels, settled, moments


def _says_whole(spec: CogSpec, dtype: np.dtype, moments: np.ndarray) -> bool:
    """Whether moments of all pixels leave no place for one that reads as missing."""
    mean, low, high = moments[..., 1], moments[..., 3], moments[..., 4]
    if dtype.kind == "f" and not np.isfinite(mean).all():
        return False
    if spec.nodata is None or np.isnan(spec.nodata):
        return True
    nodata = float(dtype.type(spec.nodata))
    return bool(((nodata < low) | (nodata > high)).all())


def _settled_by_mask(
    spec: CogSpec, pixels: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """`_settle` where a mask says what is missing: in all bands, or not at all."""
    is_float = pixels.dtype.kind == "f"
    if valid is not None and valid.ndim == 2:
        valid = np.broadcast_to(valid, pixels.shape)
    data = ~np.isnan(pixels) if is_float else None
    if spec.nodata is not None and not np.isnan(spec.nodata):
        differs = pixels != pixels.dtype.type(spec.nodata)
        data = differs if data is None else data & differs
    if data is not None:
        valid = data if valid is None else valid & data
    if valid is None or valid.all():
        return pixels, None
    any_band = np.broadcast_to(valid.any(axis=0), pixels.shape)
    valid = any_band & data if is_float and data is not None else any_band
    settled = np.where(np.asarray(valid), pixels, pixels.dtype.type(_fill(spec)))
    return settled, np.ascontiguousarray(valid)


def _is_whole(spec: CogSpec, pixels: np.ndarray) -> bool:
    """Whether every value reads as data."""
    if spec.nodata is None or np.isnan(spec.nodata):
        return pixels.dtype.kind != "f" or blocks.first_missing(pixels, pixels.dtype.type(np.nan)) < 0
    return blocks.first_missing(pixels, pixels.dtype.type(spec.nodata)) < 0


def _fill(spec: CogSpec) -> float:
    if spec.nodata is not None:
        return spec.nodata
    return float("nan") if spec.dtype.startswith("float") else 0


def _or_every(valid: np.ndarray | None) -> np.ndarray:
    return np.empty((0, 0, 0), np.bool_) if valid is None else valid


def _mask_of(pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    return np.ones(pixels.shape[1:], np.bool_) if valid is None else np.asarray(valid.any(axis=0))


def _packed(mask: np.ndarray) -> bytes:
    return np.packbits(mask, axis=1).tobytes()


def _halve(spec: CogSpec, pixels: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    if spec.overview_resampling == "nearest":
        half = np.ascontiguousarray(pixels[:, ::2, ::2])
        return half, None if valid is None else np.ascontiguousarray(valid[:, ::2, ::2])
    shape = (pixels.shape[0], -(-pixels.shape[1] // 2), -(-pixels.shape[2] // 2))
    out = np.empty(shape, pixels.dtype)
    out_valid = np.empty((0, 0, 0) if valid is None else shape, np.bool_)
    if spec.overview_resampling == "mode":
        pyramid.halve_mode(pixels, _or_every(valid), float(_fill(spec)), out, out_valid)
    elif spec.overview_resampling in _RANKS:
        rank = _RANKS[spec.overview_resampling]
        pyramid.halve_ranked(pixels, _or_every(valid), rank, float(_fill(spec)), out, out_valid)
    elif pixels.dtype.kind == "f":
        pyramid.halve_mean_floats(pixels, _or_every(valid), around(spec.nodata, spec.dtype), out, out_valid)
    else:
        top = int(np.iinfo(pixels.dtype).max)
        nodata = top + 1 if spec.nodata is None else int(spec.nodata)  # what the type cannot hold stands for none
        pyramid.halve_mean_integers(pixels, _or_every(valid), nodata, out, out_valid)
        if valid is None:
            # As in pieces with gaps: whether another pixel of the piece is missing must not change this one's mean.
            out = kept_clear(out, None, spec.nodata)
    return out, None if valid is None or out_valid.all() else out_valid


def _untouched(spec: CogSpec, place: Window, made: Stored, settled: np.ndarray) -> dict[tuple[int, int], bytes]:
    """The packed tiles whose pixels are still what they were, by row and column in the piece."""
    ready = {(row - place.row, col - place.col): tile for (row, col), tile in made.tiles.items()}
    if settled is made.pixels:
        return ready
    side, words = spec.block_size, blocks.WORDS[settled.dtype.itemsize]

    def bits(pixels: np.ndarray, row: int, col: int) -> np.ndarray:
        return np.ascontiguousarray(pixels[:, row : row + side, col : col + side]).view(words)

    return {at: tile for at, tile in ready.items() if np.array_equal(bits(settled, *at), bits(made.pixels, *at))}


def _tiles_of(
    spec: CogSpec, pixels: np.ndarray, valid: np.ndarray | None, ready: Mapping[tuple[int, int], bytes] = _NO_TILES
) -> Iterator[bytes]:
    """Encoded tiles of an array that begins on a tile, with leader and trailer; each followed by its mask tile.

    Tiles that are `ready` are taken as they are.
    """
    side = spec.block_size
    _, height, width = pixels.shape
    pixels = np.ascontiguousarray(pixels)
    mask = _mask_of(pixels, valid) if spec.has_mask else None
    for row in range(0, height, side):
        for col in range(0, width, side):
            packed = ready.get((row, col))
            yield _framed(_encode_tile(spec, pixels, row, col) if packed is None else packed)
            if mask is not None:
                tile = np.zeros((side, side), np.bool_)
                cut = mask[row : row + side, col : col + side]
                tile[: cut.shape[0], : cut.shape[1]] = cut
                yield _framed(deflate.pack_at(_packed(tile), 3))


def _encode_tile(spec: CogSpec, pixels: np.ndarray, row: int = 0, col: int = 0) -> bytes:
    """The tile whose upper left pixel is (`row`, `col`) of `pixels` (band, y, x)."""
    import imagecodecs

    tile = _filled_tile(spec, pixels, row, col)
    if spec.compression == "lerc":
        plain = tile if tile.shape[2] > 1 else tile[..., 0]
        return bytes(imagecodecs.lerc_encode(plain, level=spec.max_z_error, planar=False))
    if spec.compression == "deflate":
        return deflate.pack(tile) if spec.level is None else deflate.pack_at(tile, spec.level)
    if spec.compression == "zstd":
        return bytes(imagecodecs.zstd_encode(cast("bytes", tile), level=9 if spec.level is None else spec.level))
    if spec.compression == "lzw":
        return bytes(imagecodecs.lzw_encode(cast("bytes", tile)))
    return tile.tobytes()


def _filled_tile(spec: CogSpec, pixels: np.ndarray, row: int, col: int) -> np.ndarray:
    """Pixels of a tile as the codec takes them: interleaved, the predictor applied, the rim filled."""
    side, bands, dtype = spec.block_size, len(spec.bands), np.dtype(spec.dtype)
    words = np.ascontiguousarray(pixels).view(blocks.WORDS[dtype.itemsize])
    if spec.prediction == 1:
        tile = np.empty((side, side, bands), dtype)
        blocks.put(words, row, col, tile.view(words.dtype))
    elif spec.prediction == 3:
        tile = np.empty((side, dtype.itemsize, side, bands), np.uint8)
        blocks.put_planes(words, row, col, tile)
    else:
        tile = np.empty((side, side, bands), words.dtype)
        blocks.put_differences(words, row, col, tile)
    return tile


def _framed(tile: bytes) -> bytes:
    return b"".join((len(tile).to_bytes(LEAD, "little"), tile, tile[-LEAD:].rjust(LEAD, b"\0")))


# The pyramid above the pieces -----------------------------------------------------------------------------------------


class _UpperLevel:
    """One level that spans pieces: takes rows from above, keeps at most one row of tiles, spools encoded tiles."""

    def __init__(self, spec: CogSpec, level: int) -> None:
        self._spec = spec
        self._rows: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._height = 0
        self._missing = spec.level_shape(level)[0]
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed by `close`
        self._sizes: list[int] = []

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray(self._sizes, "<u4").reshape(-1, 2 if self._spec.has_mask else 1)

    def push(self, pixels: np.ndarray, valid: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Add rows; gives every completed row of tiles, encoded already, for the level above to halve."""
        self._rows.append((pixels, valid))
        self._height += pixels.shape[1]
        self._missing -= pixels.shape[1]
        side = self._spec.block_size
        if self._height < side and self._missing:
            return
        pixels, valid = _stacked(self._rows, axis=1)
        self._rows, self._height = [], 0
        for row in range(0, pixels.shape[1], side):
            part = pixels[:, row : row + side]
            part_valid = None if valid is None else valid[:, row : row + side]
            if part.shape[1] < side and self._missing:
                self._rows, self._height = [(part, part_valid)], part.shape[1]
                return
            for tile in _tiles_of(self._spec, part, part_valid):
                self._sizes.append(len(tile) - 2 * LEAD)
                self._spool.write(tile)
            yield np.ascontiguousarray(part), None if part_valid is None else np.ascontiguousarray(part_valid)

    def copy_to(self, out: BinaryIO) -> None:
        self._spool.seek(0)
        while chunk := self._spool.read(1 << 20):
            out.write(chunk)

    def close(self) -> None:
        self._spool.close()


def _stacked(
    parts: Sequence[tuple[np.ndarray, np.ndarray | None]], *, axis: int
) -> tuple[np.ndarray, np.ndarray | None]:
    if len(parts) == 1:
        return parts[0]
    pixels = np.concatenate([part for part, _ in parts], axis=axis)
    if all(valid is None for _, valid in parts):
        return pixels, None
    masks = [np.ones(part.shape, np.bool_) if valid is None else valid for part, valid in parts]
    return pixels, np.concatenate(masks, axis=axis)


def _finish_pyramid(
    spec: CogSpec,
    pieces: Sequence[tuple[Piece, str]],
    side: int,
    uppers: Sequence[_UpperLevel],
    level: int,
    *,
    advance: Callable[[int], None],
) -> None:
    def climb(number: int, pixels: np.ndarray, valid: np.ndarray | None) -> None:
        for rows, rows_valid in uppers[number].push(pixels, valid):
            if number + 1 < len(uppers):
                climb(number + 1, *_halve(spec, rows, rows_valid))

    for row in _rows_of(pieces):
        carried = [_carried(spec, piece, href, level, side) for piece, href in row]
        climb(0, *_stacked(carried, axis=2))
        advance(0)


def _carried(spec: CogSpec, piece: Piece, href: str, level: int, side: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of level `level` that a piece carries; what is missing follows from them and the mask."""
    full = spec.level_shape(level)
    row, col = piece.window.row >> level, piece.window.col >> level
    height, width = min(side, full[0] - row), min(side, full[1] - col)
    begin = (
        piece.start + int(np.frombuffer(piece.sizes, "<u4").astype(np.int64).sum()) + 2 * LEAD * (len(piece.sizes) // 4)
    )
    data = read_exactly(href, begin, begin + piece.carry)
    shape = (len(spec.bands), height, width)
    used = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
    # Copied: an array that may not be written to would be another type for every kernel, compiled while somebody waits.
    pixels = np.frombuffer(data[:used], spec.dtype).reshape(shape).copy()
    mask = None
    if spec.has_mask:
        bits = np.frombuffer(data[used:], np.uint8).reshape(height, -1)
        mask = np.unpackbits(bits, axis=1, count=width).view(np.bool_)
    return _settle(spec, pixels, mask)


# Segments to file -----------------------------------------------------------------------------------------------------


def _in_order(spec: CogSpec, segments: Sequence[Segment]) -> list[tuple[Piece, str]]:
    if not segments or len({segment.piece_side for segment in segments}) != 1:
        raise ValueError("segments must be there and have one piece side")
    pairs = [(piece, segment.href) for segment in segments for piece in segment.pieces]
    pairs.sort(key=lambda pair: pair[0].window)
    expected = list(tiles(spec.window, segments[0].piece_side))
    if [piece.window for piece, _ in pairs] != expected:
        raise ValueError(
            f"the segments hold {len(pairs)} pieces that do not cover {spec.window} once; {len(expected)} were expected"
        )
    return pairs


def _rows_of(pieces: Sequence[tuple[Piece, str]]) -> Iterator[list[tuple[Piece, str]]]:
    row: list[tuple[Piece, str]] = []
    for pair in pieces:
        if row and pair[0].window.row != row[0][0].window.row:
            yield row
            row = []
        row.append(pair)
    yield row


def _block_of(spec: CogSpec, piece: Piece, level: int, piece_side: int) -> tuple[int, int, int, int]:
    """Tiles of a level that a piece holds: first row, first column, rows, columns."""
    step = max(piece_side >> level, spec.block_size) // spec.block_size
    rows, cols = spec.tile_grid(level)
    row, col = piece.window.row // piece_side * step, piece.window.col // piece_side * step
    return row, col, min(step, rows - row), min(step, cols - col)


def _sizes_of(spec: CogSpec, piece: Piece, level: int, piece_side: int) -> tuple[np.ndarray, int]:
    """Sizes (row, column, 1 or 2) of a piece's tiles of a level, and the byte of its object where they begin."""
    every = np.frombuffer(piece.sizes, "<u4")
    per_tile = 2 if spec.has_mask else 1
    first = 0
    for below in range(level):
        _, _, rows, cols = _block_of(spec, piece, below, piece_side)
        first += rows * cols * per_tile
    _, _, rows, cols = _block_of(spec, piece, level, piece_side)
    sizes = every[first : first + rows * cols * per_tile].reshape(rows, cols, per_tile)
    return sizes, piece.start + int(every[:first].astype(np.int64).sum()) + 2 * LEAD * first


def _level_sizes(spec: CogSpec, pieces: Sequence[tuple[Piece, str]], level: int, piece_side: int) -> np.ndarray:
    """Sizes of all tiles of a level in reading order: (tile, 1 or 2)."""
    out = np.zeros((*spec.tile_grid(level), 2 if spec.has_mask else 1), "<u4")
    for piece, _ in pieces:
        row, col, rows, cols = _block_of(spec, piece, level, piece_side)
        out[row : row + rows, col : col + cols] = _sizes_of(spec, piece, level, piece_side)[0]
    return out.reshape(-1, out.shape[2])


def _copy_level(spec: CogSpec, pieces: Sequence[tuple[Piece, str]], level: int, piece_side: int, out: BinaryIO) -> None:
    for row in _rows_of(pieces):
        # One row of tiles at a time: a whole row of pieces would take memory that grows with the raster's width.
        bounds = []
        for piece, href in row:
            sizes, begin = _sizes_of(spec, piece, level, piece_side)
            spans = (sizes.astype(np.int64) + 2 * LEAD).sum(axis=(1, 2))
            bounds.append((href, list(accumulate((int(span) for span in spans), initial=begin))))
        for place in range(len(bounds[0][1]) - 1):
            for href, places in bounds:
                out.write(read_exactly(href, places[place], places[place + 1]))


def _statistics(spec: CogSpec, pieces: Sequence[tuple[Piece, str]], piece_side: int) -> tuple[BandStatistics, ...]:
    every = np.empty((*spec.tile_grid(0), len(spec.bands), pyramid.MOMENTS))
    for piece, _ in pieces:
        row, col, rows, cols = _block_of(spec, piece, 0, piece_side)
        part = np.frombuffer(piece.moments, np.float64).reshape(rows, cols, *every.shape[2:])
        every[row : row + rows, col : col + cols] = part
    return _summarised(spec, every)


def measure(
    spec: CogSpec, compute: Callable[[Window], Pixels], *, advance: Callable[[int], None] = lambda pixels: None
) -> tuple[BandStatistics, ...]:
    """Statistics of a raster that is not written anew; the same numbers `assemble` gives."""
    every = np.empty((*spec.tile_grid(0), len(spec.bands), pyramid.MOMENTS))
    for place in tiles(spec.window, _measure_side(spec)):
        row, col = place.row // spec.block_size, place.col // spec.block_size
        _, _, part = _settled_with_moments(spec, *compute(place))
        every[row : row + len(part), col : col + part.shape[1]] = part
        advance(place.pixels)
    return _summarised(spec, every)


def _measure_side(spec: CogSpec) -> int:
    per_pixel = len(spec.bands) * (3 * np.dtype(spec.dtype).itemsize + 3)
    side = spec.block_size
    while 2 * side <= PIECE_SIDE and 4 * side * side * per_pixel <= _SPOOL_BYTES:
        side *= 2
    return side


def _summarised(spec: CogSpec, moments: np.ndarray) -> tuple[BandStatistics, ...]:
    """Statistics per band from moments (tile row, tile column, band, 5)."""
    total = pyramid.merge_moments(moments.reshape(-1, *moments.shape[2:]))
    pixels = spec.shape[0] * spec.shape[1]
    number = float if spec.dtype.startswith("float") else int
    return tuple(
        BandStatistics(
            minimum=number(low) if count else None,
            maximum=number(high) if count else None,
            mean=float(mean) if count else None,
            stdev=float(np.sqrt(squares / count)) if count else None,
            valid_fraction=float(count) / pixels,
        )
        for count, mean, squares, low, high in total
    )
