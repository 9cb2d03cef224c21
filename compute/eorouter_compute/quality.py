"""Which pixels of a scene are fit for use: quality bands read by class, by bit or by formula, on any grid.

    QualityMask + item + grid ──place──► PlacedMask ──read(window)──► clear (y, x)

A pixel is *clear* when its quality value is known and no rule drops it. What a rule drops grows by `dilate_px` pixels
of the target grid; the rim is read for it, so the answer does not depend on how the raster is cut. A missing quality
value is not clear and does not grow.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import warp
from eorouter_compute.catalogue import Scaling
from eorouter_compute.errors import BandNotFound, InvalidExpression, InvalidParameter
from eorouter_compute.expression import Operand, Program, compile_expression, evaluate
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import Band, FailedRead, InputItem, RasterAsset, by_asset
from eorouter_compute.stored import Reader
from eorouter_kernels import temporal
from eorouter_kernels.distance import distance

DILATE_MAX = 64
"""Widest growth of a mask, in pixels."""

Preset = Literal["sentinel-2-scl", "landsat-qa-pixel", "cbers-cmask"]
"""Masks that need no further word; see `PRESETS`."""


class BitFlag(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run of bits of a quality value, and which numbers in it drop the pixel.

    Attributes:
        first: lowest bit, counted from 0 at the least significant.
        count: how many bits belong to the number; 1 for a flag, 2 for Landsat's confidences.
        values: the numbers that drop the pixel.
    """

    first: Annotated[int, Meta(ge=0, le=31)]
    count: Annotated[int, Meta(ge=1, le=8)] = 1
    values: Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(min_length=1, max_length=256)] = (1,)


class QualityMask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule that drops pixels: exactly one of `classes`, `keep_classes`, `bits` or `expression`.

    Attributes:
        band: the quality band, by any name the item knows it by; letter case does not matter. Not with `expression`.
        classes: values that are dropped, such as 3, 8, 9, 10 of a Sentinel-2 scene classification.
        keep_classes: values that are kept; all others are dropped.
        bits: flags of a packed value; one that matches is enough.
        expression: a condition over band values by name, true where the pixel is dropped, such as
            "blue > 0.2 and swir16 < 0.1". Values are physical, as the method itself takes them.
        dilate_px: how far what is dropped grows, in pixels of the output grid, as the crow flies.
    """

    band: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    classes: Annotated[tuple[int, ...], Meta(max_length=256)] = ()
    keep_classes: Annotated[tuple[int, ...], Meta(max_length=256)] = ()
    bits: Annotated[tuple[BitFlag, ...], Meta(max_length=32)] = ()
    expression: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    dilate_px: Annotated[int, Meta(ge=0, le=DILATE_MAX)] = 0


MaskChoice = QualityMask | Preset
"""What a method's parameters offer."""

PRESETS: dict[str, QualityMask] = {
    # No data, defective, cloud shadow, clouds of medium and high probability, thin cirrus, snow:
    # Sentinel-2 Level-2A ATBD, scene classification, table of classes.
    "sentinel-2-scl": QualityMask(band="scl", classes=(0, 1, 3, 8, 9, 10, 11)),
    # Fill, dilated cloud, cirrus, cloud, cloud shadow, snow; and cirrus confidence high:
    # Landsat 8-9 Collection 2 Level-2 Science Product Guide (LSDS-1619), table 5-3.
    "landsat-qa-pixel": QualityMask(
        band="qa_pixel",
        bits=(*(BitFlag(first=bit) for bit in range(6)), BitFlag(first=14, count=2, values=(3,))),
    ),
    # Brazil Data Cube, CMASK: Fmask's 2 shadow, 3 snow, 4 cloud and 255 fill; in the older product 255 is cloud, 127
    # clear, and what is fill there (0) is nodata in the bands, too.
    "cbers-cmask": QualityMask(band="cmask", classes=(2, 3, 4, 255)),
}
_OTHER_NAMES = {"scl": ("SCL", "scene_classification"), "qa_pixel": ("QA_PIXEL", "qa"), "cmask": ("CMASK", "mask")}


Worth = Callable[[RasterAsset, Band], Scaling]
"""What stored numbers of a band are worth to the method that asks for a mask."""


class PlacedMask(Struct, frozen=True, kw_only=True):
    """A mask of one item on one grid, ready to be read; `sources` has each asset once with (name, band, scaling).

    `rim` is how many pixels around a window are read for it.
    """

    mask: QualityMask
    rim: int
    program: Program | None
    sources: tuple[tuple[warp.Placement, tuple[tuple[str, Band, Scaling], ...]], ...]

    @property
    def assets(self) -> tuple[RasterAsset, ...]:
        """What is read."""
        return tuple(placement.asset for placement, _ in self.sources)


def chosen(choice: MaskChoice, *, pointer: str = "") -> QualityMask:
    """The mask a caller means.

    Raises:
        InvalidParameter: not exactly one rule, or a rule without its band.
    """
    mask = PRESETS[choice] if isinstance(choice, str) else choice
    rules = [name for name in ("classes", "keep_classes", "bits", "expression") if getattr(mask, name)]
    if len(rules) != 1:
        raise InvalidParameter(
            f"A quality mask needs exactly one of classes, keep_classes, bits or expression; it has "
            f"{' and '.join(rules) or 'none'}.",
            pointer=pointer,
        )
    if (mask.band is None) != (mask.expression is not None):
        why = "an expression names its bands itself" if mask.expression else f"{rules[0]} needs the quality band"
        raise InvalidParameter(f"`band` of the quality mask: {why}.", pointer=f"{pointer}/band")
    for place, flag in enumerate(mask.bits):
        if flag.first + flag.count > 32 or max(flag.values) >= 1 << flag.count:
            raise InvalidParameter(
                f"Bits {flag.first}…{flag.first + flag.count - 1} cannot hold the values {list(flag.values)}.",
                pointer=f"{pointer}/bits/{place}",
            )
    return mask


def declared(_asset: RasterAsset, band: Band) -> Scaling:
    """What the band itself declares."""
    return Scaling(band.scale, band.offset, "declared")


def place(
    choice: MaskChoice, item: InputItem, grid: Grid, *, pointer: str = "", reach: int = 0, worth: Worth = declared
) -> PlacedMask:
    """Find a mask's bands in an item and put them on a grid, nearest pixel, without reading.

    With `reach`, how far pixels are from what is dropped can be told up to so many pixels. `worth` makes the physical
    values that a condition is over: a limit means the same in the mask and in the values that the method gives.

    Raises:
        InvalidParameter, BandNotFound, InvalidExpression: as `chosen`; the item has no such band (names those it has),
            or the band holds fractions; the condition is refused.
        GridMismatch: the grid has no place in the band's CRS.
    """
    mask = chosen(choice, pointer=pointer)
    program = None
    if mask.expression is not None:
        program = _compiled(mask.expression, item, pointer)
        found = [
            (asset, (name, band, worth(asset, band))) for name in program.names for asset, band in [item.band(name)]
        ]
    else:
        asset, band = _quality_band(item, str(mask.band), pointer)
        found = [(asset, (band.name, band, declared(asset, band)))]
    rim = mask.dilate_px + reach
    # The grid is widened by the rim, so that a cloud just outside still grows into it.
    wide = grid.cropped(Window(-rim, -rim, grid.shape[0] + 2 * rim, grid.shape[1] + 2 * rim))
    sources = tuple((warp.placed(asset, wide, resampling="nearest"), tuple(bands)) for asset, bands in by_asset(found))
    return PlacedMask(mask=mask, rim=rim, program=program, sources=sources)


def _compiled(text: str, item: InputItem, pointer: str) -> Program:
    names = {name for asset, band in item.bands for name in (band.name, band.common_name, asset.key) if name}
    try:
        program = compile_expression(text, {name for name in names if name.isidentifier()})
        for name in program.names:
            item.band(name)
    except (InvalidExpression, BandNotFound) as error:
        raise type(error)(error.message, pointer=f"{pointer}/expression", **error.data) from None
    return program


def _quality_band(item: InputItem, name: str, pointer: str) -> tuple[RasterAsset, Band]:
    spellings = (name, *_OTHER_NAMES.get(name.lower(), ()))
    folded = {spelling.lower() for spelling in spellings}
    for spelling in spellings:
        try:
            asset, band = item.band(spelling)
            break
        except BandNotFound:
            continue
    else:
        same = [(asset, band) for asset, band in item.bands if {band.name.lower(), asset.key.lower()} & folded]
        if len(same) != 1:
            try:
                item.band(name)
            except BandNotFound as error:
                raise BandNotFound(error.message, pointer=f"{pointer}/band", **error.data) from None
        asset, band = same[0]
    if "float" in band.dtype:
        raise InvalidParameter(
            f"Band {band.name} of item {item.id} holds {band.dtype}; classes and bits are read from whole numbers. "
            "Use `expression`.",
            pointer=f"{pointer}/band",
        )
    return asset, band


def read(
    placed: PlacedMask, window: Window, *, failed: list[FailedRead] | None = None, away: np.ndarray | None = None
) -> np.ndarray:
    """Where a window of the grid is clear, bool (y, x).

    With `failed` given, what cannot be read is appended to it and is not clear; without, it raises. `away` (y, x)
    float32 becomes at most the distance in pixels to what the mask drops, up to the reach the mask was placed with.

    Raises:
        SourceUnreadable, SourceTruncated: a quality band could not be read.
    """
    rim, growth = placed.rim, placed.mask.dilate_px
    # In the widened grid the window lies `rim` further down and right, and its rim begins where it lay.
    wide = Window(window.row, window.col, window.height + 2 * rim, window.width + 2 * rim)
    operands: dict[str, Operand] = {}
    for placement, bands in placed.sources:
        block = warp.read(placement, [band.index for _, band, _ in bands], wide, failed=failed)
        for number, (name, _, scaling) in enumerate(bands):
            valid = None if block.valid is None else block.valid[number]
            operands[name] = Operand(block.pixels[number], scaling.scale, scaling.offset, valid)
    dropped, known = _verdict(placed.mask, placed.program, operands)
    if growth:
        dropped = dilated(dropped, growth)
    if rim:
        inside = np.s_[rim:-rim, rim:-rim]
        if away is not None:
            wide_away = np.empty(dropped.shape, np.float32)
            distance(dropped, rim - growth, wide_away)
            np.minimum(away, wide_away[inside], out=away)
        dropped, known = dropped[inside], known if known is None else known[inside]
    return ~dropped if known is None else known & ~dropped


def clear_in(
    placed: PlacedMask, window: Window, reader: Reader, clear: np.ndarray, away: np.ndarray | None = None
) -> None:
    """Leave True in `clear` (y, x) what is clear in a window of the grid, as `read` says; with memory used again."""
    placement, bands = placed.sources[0]
    band = bands[0][1]
    if placed.rim or placed.program is not None or np.dtype(band.dtype).itemsize > 2:
        clear &= read(placed, window, failed=reader.failed, away=away)
        return
    stored = reader.read(placement, [band], window, "quality")[0]
    if stored.valid is not None:
        clear &= stored.valid
    words = np.ascontiguousarray(stored.pixels).reshape(-1)
    unsigned = words.view(f"uint{8 * words.dtype.itemsize}")
    temporal.look_up(unsigned, _clear_table(placed.mask, words.dtype.name, stored.nodata), clear.reshape(-1))


@lru_cache(maxsize=64)
def _clear_table(mask: QualityMask, dtype: str, nodata: float) -> np.ndarray:
    """Whether a stored number is clear, for every number of the type, by its bits."""
    every = np.arange(1 << 8 * np.dtype(dtype).itemsize, dtype=f"uint{8 * np.dtype(dtype).itemsize}").view(dtype)
    return ~_dropped(mask, every) & (every != nodata)


def clear(
    mask: QualityMask, values: np.ndarray | Mapping[str, np.ndarray], valid: np.ndarray | None = None
) -> np.ndarray:
    """Where quality values are fit for use, bool (y, x), without growth.

    Args:
        mask: the rule.
        values: the quality band (y, x); for an expression, physical values by band name.
        valid: where values are known; None everywhere.
    """
    if isinstance(values, Mapping):
        program = compile_expression(str(mask.expression), set(values))
        operands = {name: Operand(pixels, valid=valid) for name, pixels in values.items()}
    else:
        program, operands = None, {str(mask.band): Operand(values, valid=valid)}
    dropped, known = _verdict(mask, program, operands)
    return ~dropped if known is None else known & ~dropped


def _verdict(
    mask: QualityMask, program: Program | None, operands: Mapping[str, Operand]
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the rule drops, and where its bands are known (None: everywhere)."""
    if program is not None:
        found = evaluate(program, operands)[0]
        missing = np.isnan(found)
        return (found != 0.0) & ~missing, ~missing
    values, _, _, valid = next(iter(operands.values()))
    if values.dtype.itemsize <= 2:
        # One look-up per pixel instead of a comparison per class: a table over all values of the type.
        every = np.arange(1 << 8 * values.dtype.itemsize, dtype=f"uint{8 * values.dtype.itemsize}")
        table = _dropped(mask, every.view(values.dtype))
        dropped = table[values.view(every.dtype)]
    else:
        dropped = _dropped(mask, values)
    return (dropped if valid is None else dropped & valid), valid


def _dropped(mask: QualityMask, values: np.ndarray) -> np.ndarray:
    if mask.classes:
        return np.isin(values, mask.classes)
    if mask.keep_classes:
        return ~np.isin(values, mask.keep_classes)
    out = np.zeros(values.shape, np.bool_)
    bits = values.astype(np.int64)
    for flag in mask.bits:
        out |= np.isin((bits >> flag.first) & ((1 << flag.count) - 1), flag.values)
    return out


def dilated(flags: np.ndarray, radius: int) -> np.ndarray:
    """Flags (y, x) grown by a disc: every pixel whose centre lies within `radius` pixels of a flagged one."""
    out = flags.copy()
    height, width = flags.shape
    if not flags.any():
        return out
    for dy in range(min(radius, height - 1) + 1):
        reach = int(np.sqrt(radius * radius - dy * dy))
        # A row of ones grown along x by a running count, moved up and down by dy.
        count = np.zeros((height, width + 1), np.int32)
        np.cumsum(flags, axis=1, out=count[:, 1:])
        stop = np.minimum(np.arange(width) + reach + 1, width)
        start = np.maximum(np.arange(width) - reach, 0)
        grown = count[:, stop] > count[:, start]
        out[dy:] |= grown[: height - dy]
        out[: height - dy] |= grown[dy:]
    return out
