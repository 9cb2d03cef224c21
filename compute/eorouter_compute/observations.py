"""What is observed, day by day: values of scenes on one grid, masked, the scenes of one solar day laid together.

    items + Value + masks + grid ──observe──► days ──read(window)──► (band, y, x) float32, NaN where nothing is seen

Scenes come in the order of their time, then of their id, whatever order the items were given in. Stored numbers become
physical ones (`catalogue.scaling`); an index or a formula is computed from them on every day, so that the median of a
ratio is one of ratios. Stored integers stay as they are until the loop that computes the value.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import catalogue, quality, warp
from eorouter_compute.calendars import Period, solar_day
from eorouter_compute.catalogue import Scaling
from eorouter_compute.errors import BandNotFound, ComputeError, InvalidExpression, InvalidParameter
from eorouter_compute.expression import Operand, Program, compile_expression, evaluate
from eorouter_compute.grid import Grid, Transform, Window, footprint
from eorouter_compute.method import Band, InputItem, RasterAsset, ReadReport, by_asset
from eorouter_compute.quality import MaskChoice, PlacedMask
from eorouter_compute.stored import EVERY, Cut, Reader, Stored
from eorouter_compute.warp import Placement, Resampling
from eorouter_kernels import temporal

SameDay = Literal["first", "last", "clearest"]
Name = Annotated[str, Meta(min_length=1, max_length=200)]

_RATIO = re.compile(r"\((\w+)-(\w+)\)/\((?:(\w+)\+(\w+))\)")
_KERNEL_DTYPES = ("uint16", "int16", "uint8", "float32")


class Value(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is followed through time: exactly one of `band`, `bands`, `index` or `expression`.

    Attributes:
        band: a band by any name the items know it by.
        bands: several bands at once, for the medoid, the geometric median and the best pixel.
        index: short name of a spectral index of the catalogue, such as "NDVI".
        expression: a formula over band names, in physical values, such as "(nir - red) / (nir + red)".
        letters: for `index`, which band a letter of the formula stands for, where its name does not tell.
        name: what the value is called in the results; by default the band or index, "value" for a formula.
    """

    band: Name | None = None
    bands: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    index: Name | None = None
    expression: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    letters: Annotated[dict[str, Name], Meta(max_length=32)] = {}
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """One name per band of the value."""
        if self.bands:
            return self.bands
        return (self.name or self.band or (self.index.lower() if self.index else "value"),)


class Scene(Struct, frozen=True, kw_only=True):
    """One item on the grid: each asset once with its bands as (name in the formula, band, scaling), and its masks."""

    item: InputItem
    sources: tuple[tuple[Placement, tuple[tuple[str, Band, Scaling], ...]], ...]
    masks: tuple[PlacedMask, ...]
    program: Program | None
    order: tuple[str, ...]
    ratio: tuple[str, str] | None


class Day(Struct, frozen=True, kw_only=True):
    """The scenes of one solar day, that which is taken first at the front."""

    day: date
    at: datetime
    scenes: tuple[Scene, ...]


def rasters_of(value: Value, inputs: Sequence[InputItem], *, pointer: str = "/value") -> tuple[RasterAsset, ...]:
    """The assets the value is made of, for choosing a grid; raises as `observe`."""
    return tuple(asset for item in inputs for _, asset, _ in _operands(value, item, pointer)[0])


def observe(
    value: Value,
    masks: Sequence[MaskChoice],
    inputs: Sequence[InputItem],
    grid: Grid,
    *,
    resampling: Resampling = "bilinear",
    same_day: SameDay = "first",
    reach: int = 0,
) -> tuple[Day, ...]:
    """Put every item on the grid and its day, without reading; `reach` as in `quality.place`.

    Raises:
        InvalidParameter: the value is not one thing; an item has no date, or none that a series can have.
        BandNotFound, UnknownIndex, InvalidExpression: what the value or a mask needs is not there; says in which item.
        GridMismatch: an item has no place on the grid.
    """
    scenes = []
    for number, item in enumerate(inputs):
        if item.at is None:
            raise InvalidParameter(f"Item {item.id} has no date and time.", pointer=f"/inputs/{number}")
        scene = _scene(value, masks, item, grid, resampling=resampling, reach=reach)
        asset = scene.sources[0][0].asset
        longitude = _longitude(asset.crs, asset.shape, asset.transform)
        day = solar_day(item.at, longitude, whose=f"Item {item.id}", pointer=f"/inputs/{number}")
        scenes.append((item.at, item.id, day, scene))
    scenes.sort(key=lambda scene: scene[:2])
    by_day: dict[date, list[Scene]] = {}
    first: dict[date, datetime] = {}
    for at, _, day, scene in scenes:
        by_day.setdefault(day, []).append(scene)
        first.setdefault(day, at)
    return tuple(Day(day=day, at=first[day], scenes=tuple(_ordered(by_day[day], same_day))) for day in sorted(by_day))


def _ordered(scenes: list[Scene], same_day: SameDay) -> list[Scene]:
    if same_day == "last":
        return scenes[::-1]
    if same_day == "clearest":
        return sorted(scenes, key=cloud_cover)
    return scenes


def cloud_cover(scene: Scene) -> float:
    """What the item says of its clouds, in percent; 100 where it says nothing, or what is no number from 0 to 100.

    Providers write null, "n/a" or -1 where they do not know; a job that could do without is not refused for it.
    """
    said = scene.item.properties.get("eo:cloud_cover")
    if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= 100:
        return float(said)
    return 100.0


@lru_cache(maxsize=256)
def _longitude(crs: str, shape: tuple[int, int], transform: Transform) -> float:
    """Of the middle of a raster; every shard asks for that of every scene."""
    _, (west, _, east, _) = footprint(crs, shape, transform)
    return (west + (east if east >= west else east + 360.0)) / 2.0


def _scene(
    value: Value, masks: Sequence[MaskChoice], item: InputItem, grid: Grid, *, resampling: Resampling, reach: int
) -> Scene:
    def worth(_: RasterAsset, band: Band) -> Scaling:
        return catalogue.scaling(item, band)

    operands, program = _operands(value, item, "/value")
    entries = [(asset, (name, band, catalogue.scaling(item, band))) for name, asset, band in operands]
    sources = tuple((warp.placed(asset, grid, resampling=resampling), tuple(each)) for asset, each in by_asset(entries))
    return Scene(
        item=item,
        sources=sources,
        masks=tuple(
            quality.place(mask, item, grid, pointer=f"/masks/{at}", reach=reach, worth=worth)
            for at, mask in enumerate(masks)
        ),
        program=program,
        order=tuple(name for name, _, _ in operands),
        ratio=_ratio(program, entries),
    )


def _operands(
    value: Value, item: InputItem, pointer: str
) -> tuple[list[tuple[str, RasterAsset, Band]], Program | None]:
    """The bands the value needs of an item, by the names its formula has for them."""
    given = [name for name in ("band", "bands", "index", "expression") if getattr(value, name)]
    if len(given) != 1:
        raise InvalidParameter(
            f"`value` needs exactly one of band, bands, index or expression; it has {' and '.join(given) or 'none'}.",
            pointer=pointer,
        )
    for place, name in enumerate(value.bands):
        if name in value.bands[:place]:
            raise InvalidParameter(f"Band {name} is asked for twice.", pointer=f"{pointer}/bands/{place}")
    try:
        if value.index is not None:
            record = catalogue.index(value.index)
            program = catalogue.compile_indices([record], sensor=catalogue.sensor_of(item))
            found = [(letter, *catalogue.resolve(item, letter, bands=value.letters)) for letter in program.names]
            return found, program
        if value.expression is not None:
            program = _formula(value.expression, item)
            return [(name, *item.band(name)) for name in program.names], program
        return [(name, *item.band(name)) for name in (value.bands or (str(value.band),))], None
    except (BandNotFound, InvalidExpression) as error:
        where = "" if item.id in error.message else f"Item {item.id}: "
        raise type(error)(where + error.message, pointer=f"{pointer}/{given[0]}", **error.data) from None
    except ComputeError as error:
        raise type(error)(error.message, pointer=f"{pointer}/{given[0]}", **error.data) from None


def _formula(text: str, item: InputItem) -> Program:
    known = {name for asset, band in item.bands for name in (band.name, band.common_name, asset.key) if name}
    program = compile_expression(text, {name for name in known if name.isidentifier()})
    if not program.names:
        raise InvalidExpression(f"The formula {text!r} reads no band.", position=0, expression=0)
    return program


def _ratio(
    program: Program | None, entries: Sequence[tuple[RasterAsset, tuple[str, Band, Scaling]]]
) -> tuple[str, str] | None:
    """The two bands of a formula (a − b) / (a + b) whose stored numbers share type, scale and offset."""
    match = _RATIO.fullmatch(re.sub(r"\s", "", program.texts[0])) if program else None
    if match is None or {match[1], match[2]} != {match[3], match[4]} or match[1] == match[2] or len(entries) != 2:
        return None
    (_, (_, one, scaling)), (_, (_, other, same)) = entries
    is_alike = one.dtype == other.dtype and scaling[:2] == same[:2] and scaling.scale != 0.0
    return (match[1], match[2]) if is_alike and one.dtype in _KERNEL_DTYPES else None


# Pixels


class Seen:
    """What one shard reads with, and what it found in numbers; a source that cannot be read is an error, or listed."""

    def __init__(self, *, allow_missing: bool) -> None:
        self.reader = Reader([] if allow_missing else None)
        self.reads, self.pixels, self.valid = 0, 0, 0

    def report(self) -> ReadReport:
        """As a read report."""
        return ReadReport(
            reads=self.reads, pixels=self.pixels, valid_pixels=self.valid, failed=tuple(self.reader.failed or ())
        )


def read(
    day: Day, window: Window, out: np.ndarray, seen: Seen, away: np.ndarray | None = None, *, cut: Cut = EVERY
) -> None:
    """The value of a day in a window of the grid, into `out` (band, y, x) float32; NaN where no scene is clear.

    A pixel is that of the first scene which has every band of it; `away` (y, x) gets how far, in pixels, it lies in
    that scene from what the masks drop. Only the pixels of the window that `cut` takes are looked at, and `out` has no
    others; `away` goes with all of them.
    """
    count = _read(day.scenes[0], window, out, seen, away, cut=cut)
    for scene in day.scenes[1:]:
        missing = np.isnan(out).any(axis=0)
        if not missing.any():
            break
        spare = seen.reader.room("another scene", out.shape, out.dtype)
        spare_away = None if away is None else np.empty_like(away)
        _read(scene, window, spare, seen, spare_away, cut=cut)
        better = missing & ~np.isnan(spare).any(axis=0)
        out[:, better] = spare[:, better]
        if away is not None and spare_away is not None:
            away[better] = spare_away[better]
        count += int(np.count_nonzero(better))
    seen.pixels += out[0].size
    seen.valid += count


def stack(
    days: Sequence[Day],
    members: Sequence[int],
    window: Window,
    seen: Seen,
    away: np.ndarray | None = None,
    *,
    cut: Cut = EVERY,
) -> np.ndarray:
    """Values (time, band, pixel) of some of the days in a window of the grid; good until the next stack.

    `away` (time, y, x) float32 gets distances; it and `cut` are as of `read`.
    """
    count = bands_of(days)
    height, width = len(range(window.height)[cut[0]]), len(range(window.width)[cut[1]])
    out = seen.reader.room("stack", (len(members), count, height, width), np.float32)
    for place, member in enumerate(members):
        read(days[member], window, out[place], seen, None if away is None else away[place], cut=cut)
    return out.reshape(len(members), count, height * width)


def bands_of(days: Sequence[Day]) -> int:
    """How many bands a value has."""
    first = days[0].scenes[0]
    return len(first.order) if first.program is None else 1


def by_period(days: Sequence[Day], periods: Sequence[Period], window: Window, seen: Seen) -> np.ndarray:
    """Values (band, period, pixel) of days: each period the median of its days, NaN where it has none.

    Good until the next call.
    """
    bands = bands_of(days)
    out = seen.reader.room("periods", (bands, len(periods), window.pixels), np.float32)
    for place, period in enumerate(periods):
        if not period.members:
            out[:, place] = np.nan
        elif len(period.members) == bands == 1:
            read(days[period.members[0]], window, out[0, place].reshape(1, window.height, window.width), seen)
        else:
            values = stack(days, period.members, window, seen)
            for band in range(bands):
                one = np.ascontiguousarray(values[:, band])
                temporal.ranks(one, np.array([0.5]), out[band, place : place + 1])
    return out


def _read(
    scene: Scene, window: Window, out: np.ndarray, seen: Seen, away: np.ndarray | None = None, *, cut: Cut = EVERY
) -> int:
    """The value of a scene; how many pixels have it whole."""
    reader = seen.reader
    clear = reader.room("clear", (window.height, window.width), np.bool_)
    clear[...] = True
    if away is not None:
        away[...] = np.inf
    for mask in scene.masks:
        quality.clear_in(mask, window, reader, clear, away)
        seen.reads += len(mask.sources)
    if scene.masks and not clear.any():
        out[...] = np.nan
        return 0
    clear = np.ascontiguousarray(clear[cut])
    found: dict[str, tuple[Stored, Scaling]] = {}
    for number, (placement, bands) in enumerate(scene.sources):
        stored = reader.read(placement, [band for _, band, _ in bands], window, f"source {number}")
        seen.reads += 1
        found.update({name: (each.cut(cut), scaling) for each, (name, _, scaling) in zip(stored, bands, strict=True)})
    if scene.ratio is not None:
        (a, scaling), (b, _) = found[scene.ratio[0]], found[scene.ratio[1]]
        for each in (a, b):
            if each.valid is not None:
                clear &= each.valid
        shift, missing = 2.0 * scaling.offset / scaling.scale, np.array([a.nodata, b.nodata])
        return temporal.normalized_difference(
            _flat(a.pixels), _flat(b.pixels), missing, shift, clear.reshape(-1), out.reshape(-1)
        )
    if scene.program is not None:
        operands: dict[str, Operand] = {}
        for name, (each, scaling) in found.items():
            known = each.known
            valid = clear if known is None else clear & known
            operands[name] = Operand(each.pixels, scaling.scale, scaling.offset, valid)
        out[...] = evaluate(scene.program, operands)
    else:
        for place, name in enumerate(scene.order):
            each, scaling = found[name]
            valid = clear if each.valid is None else clear & each.valid
            temporal.to_values(
                _flat(each.pixels), each.nodata, scaling.scale, scaling.offset, _flat(valid), out[place].reshape(-1)
            )
    return temporal.count_whole(out.reshape(len(out), -1))


def _flat(array: np.ndarray) -> np.ndarray:
    """One row that may be written to: numba has another type, and so another compilation, for those that may not."""
    array = np.ascontiguousarray(array).reshape(-1)
    return array if array.flags.writeable else array.copy()
