"""Which bands of which items are measured together, and their pixels: all that lie on one grid share its zones.

    items + bands ──strata──► Stratum (one grid, some bands, their masks and weights) ──read(window)──► Reading each

Items on different grids are measured each on its own, without resampling. Only the weights, and a quality mask, are
brought onto the grid of what they weigh or hide.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from eorouter_compute import quality, raster, warp
from eorouter_compute.errors import BandNotFound, InvalidParameter
from eorouter_compute.grid import Window
from eorouter_compute.method import Band, FailedRead, InputItem, RasterAsset, ReadReport
from eorouter_compute.quality import MaskChoice, PlacedMask
from eorouter_compute.selection import named_band
from eorouter_compute.warp import Placement, Resampling

BANDS_TOGETHER = 16
"""Bands of several items that share one pass over the zones, at most; those of one file are never parted."""


class Weights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much each cell weighs, besides the fraction of it that a zone covers.

    Attributes:
        band: a band of the weights' item; physical values, not negative.
        item_id: the input item that has it; that item is not measured itself. By default each item weighs itself.
        resampling: how weights on another grid are brought onto that of the values.
        missing: what a valid cell without a weight does: `null` leaves its zone without weighted statistics, as
            exactextract does; `skip` leaves out the cell.
    """

    band: Annotated[str, Meta(min_length=1, max_length=200)]
    item_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    resampling: Resampling = "nearest"
    missing: Literal["null", "skip"] = "null"


class Column(NamedTuple):
    """A band to measure: position of its item among those measured, and prefix of its columns, which may be empty."""

    item: int
    prefix: str
    asset: RasterAsset
    band: Band


class Weighing(NamedTuple):
    """Weights on the grid of a stratum."""

    placement: Placement
    band: Band

    @property
    def key(self) -> Any:
        """The same for the same weights."""
        return self.placement.asset.href, self.band.index


class Source(NamedTuple):
    """Bands of one asset, read together, with what hides and weighs them; `columns` are positions in the stratum."""

    asset: RasterAsset
    indices: tuple[int, ...]
    columns: tuple[int, ...]
    mask: PlacedMask | None
    weighing: Weighing | None


class Stratum(NamedTuple):
    """Bands on one grid."""

    asset: RasterAsset
    columns: tuple[Column, ...]
    sources: tuple[Source, ...]

    @property
    def extras(self) -> dict[Any, tuple[Placement, int]]:
        """Masks and weights that are read besides, each once, with how many bands."""
        found: dict[Any, tuple[Placement, int]] = {}
        for source in self.sources:
            if source.mask is not None:
                placements = source.mask.sources
                found |= {(self.item_of(source), at): (each, len(bands)) for at, (each, bands) in enumerate(placements)}
            if source.weighing is not None:
                found[source.weighing.key] = (source.weighing.placement, 1)
        return found

    def item_of(self, source: Source) -> int:
        """Position of the item that a source belongs to."""
        return self.columns[source.columns[0]].item


class Reading(NamedTuple):
    """Pixels (band, y, x) of a source, where they are valid (None: everywhere), and weights (y, x), NaN for unknown."""

    source: Source
    pixels: NDArray[Any]
    valid: NDArray[np.bool_] | None
    weights: NDArray[np.float64] | None


def measured(inputs: Sequence[InputItem], weights: Weights | None) -> list[InputItem]:
    """The items that are measured: those with rasters, but for the one that only weighs.

    Raises:
        InvalidParameter: there is none.
    """
    weigher = None if weights is None else weights.item_id
    found = [item for item in inputs if item.rasters and item.id != weigher]
    if not found:
        raise InvalidParameter("None of the inputs has a raster to measure.", pointer="/inputs")
    return found


def strata(
    inputs: Sequence[InputItem],
    bands: Sequence[str] | None,
    mask: MaskChoice | None,
    weights: Weights | None,
) -> tuple[Stratum, ...]:
    """Bands by grid, in the order of items and of their first band.

    Raises:
        BandNotFound: no item has such a band; names those there are.
        InvalidParameter: a band is asked for twice; the weights or the mask refer to what is not there.
        GridMismatch: the grid of a mask or of weights has no place on that of the values.
    """
    items = measured(inputs, weights)
    groups: dict[Any, list[list[Column]]] = {}
    for column in _columns(items, bands):
        asset = column.asset
        group = groups.setdefault((asset.crs, asset.transform, asset.shape), [[]])
        is_same_file = bool(group[-1]) and (group[-1][-1].item, group[-1][-1].asset.key) == (column.item, asset.key)
        if len(group[-1]) >= BANDS_TOGETHER and not is_same_file:
            group.append([])
        group[-1].append(column)
    return tuple(
        Stratum(part[0].asset, tuple(part), tuple(_sources(part, items, inputs, mask, weights)))
        for parts in groups.values()
        for part in parts
    )


def lacking(items: Sequence[InputItem], bands: Sequence[str] | None) -> list[tuple[str, ...]]:
    """Of the bands asked for by name, those that each item does not have."""
    return [tuple(name for name in bands or () if not item.named(name)) for item in items]


def _columns(items: Sequence[InputItem], bands: Sequence[str] | None) -> Iterator[Column]:
    """Bands of each item, those of one asset side by side."""
    _refuse_unknown(items, bands or ())
    chosen = [_chosen(item, bands, is_alone=len(items) == 1) for item in items]
    is_single = all(len(each) <= 1 for each in chosen) and len({name for each in chosen for name in each}) == 1
    for number, (item, named) in enumerate(zip(items, chosen, strict=True)):
        keys = [asset.key for asset in item.rasters]
        for prefix, (asset, band) in sorted(named.items(), key=lambda entry: keys.index(entry[1][0].key)):
            yield Column(number, "" if is_single else prefix, asset, band)


def _refuse_unknown(items: Sequence[InputItem], bands: Sequence[str]) -> None:
    """Refuse a band that none of the items has; what some have is missing in the others."""
    for place, name in enumerate(bands):
        if any(item.named(name) for item in items):
            continue
        if len(items) == 1:
            named_band(items[0], bands, place)
        known = ", ".join(dict.fromkeys(band.name for item in items for _, band in item.bands))
        raise BandNotFound(
            f"None of the {len(items)} items has a band {name!r}. They have: {known}.",
            pointer=f"/bands/{place}",
            band=name,
        )


def _chosen(item: InputItem, bands: Sequence[str] | None, *, is_alone: bool) -> dict[str, tuple[RasterAsset, Band]]:
    """Bands by the prefix of their columns: their own names; with several items those that were asked for."""
    places = [place for place, name in enumerate(bands or ()) if item.named(name)]
    pairs = item.bands if bands is None else [named_band(item, bands, place) for place in places]
    names = [band.name for _, band in pairs]
    own = [band.name if names.count(band.name) == 1 else f"{asset.key}_{band.name}" for asset, band in pairs]
    prefixes = own if is_alone or bands is None else [bands[place].replace(":", "_") for place in places]
    for at, prefix in enumerate(own):
        if own.index(prefix) < at or prefixes.index(prefixes[at]) < at:
            pointer = "/bands" if bands is None else f"/bands/{places[at]}"
            raise InvalidParameter(f"Band {prefix} is asked for twice.", pointer=pointer)
    return dict(zip(prefixes, pairs, strict=True))


def _sources(
    part: Sequence[Column],
    items: Sequence[InputItem],
    inputs: Sequence[InputItem],
    mask: MaskChoice | None,
    weights: Weights | None,
) -> Iterator[Source]:
    grid = part[0].asset.grid
    places: dict[tuple[int, str], list[int]] = {}
    for at, column in enumerate(part):
        places.setdefault((column.item, column.asset.key), []).append(at)
    for (number, _), ats in places.items():
        item = items[number]
        yield Source(
            asset=part[ats[0]].asset,
            indices=tuple(part[at].band.index for at in ats),
            columns=tuple(ats),
            mask=None if mask is None else quality.place(mask, item, grid, pointer="/mask"),
            weighing=None if weights is None else _weighing(weights, item, inputs, part[ats[0]].asset),
        )


def _weighing(weights: Weights, item: InputItem, inputs: Sequence[InputItem], asset: RasterAsset) -> Weighing:
    if weights.item_id is not None:
        found = next((each for each in inputs if each.id == weights.item_id), None)
        if found is None:
            given = ", ".join(each.id for each in inputs)
            raise InvalidParameter(
                f"weights refers to item {weights.item_id!r}, the inputs are: {given}.", pointer="/weights/item_id"
            )
        item = found
    try:
        source, band = item.band(weights.band)
    except BandNotFound as error:
        raise BandNotFound(error.message, pointer="/weights/band", **error.data) from None
    return Weighing(warp.placed(source, asset.grid, resampling=weights.resampling), band)


# Pixels ---------------------------------------------------------------------------------------------------------------


def read(stratum: Stratum, window: Window, *, allow_missing: bool) -> tuple[list[Reading], ReadReport]:
    """All sources of a stratum in a window; no mask where all is valid.

    With `allow_missing`, what cannot be read is missing and is listed in the report; without, it raises.

    Raises:
        SourceUnreadable, SourceTruncated: a source window could not be read.
    """
    failed: list[FailedRead] | None = [] if allow_missing else None
    readings: list[Reading] = []
    report = ReadReport()
    extras: dict[Any, NDArray[Any]] = {}
    for source in stratum.sources:
        if failed is None:
            pixels, valid = raster.read_block(source.asset, source.indices, window)
        else:
            pixels, valid = raster.read_tolerant(source.asset, source.indices, window, failed)
        if source.mask is not None:
            key = stratum.item_of(source)
            if key not in extras:
                extras[key] = quality.read(source.mask, window, failed=failed)
            valid = np.broadcast_to(extras[key], pixels.shape) if valid is None else valid & extras[key]
        weights = None
        if source.weighing is not None:
            key = source.weighing.key
            if key not in extras:
                extras[key] = _weights(source.weighing, window, failed)
            weights = extras[key]
        seen = pixels.size if valid is None else int(np.count_nonzero(valid))
        readings.append(Reading(source, pixels, None if seen == pixels.size else valid, weights))
        report += ReadReport(reads=1, pixels=pixels.size, valid_pixels=seen)
    return readings, report + ReadReport(reads=len(stratum.extras), failed=tuple(failed or ()))


def _weights(weighing: Weighing, window: Window, failed: list[FailedRead] | None) -> NDArray[np.float64]:
    """Physical weights of a window (y, x), NaN where they are not known."""
    pixels, valid = warp.read(weighing.placement, [weighing.band.index], window, failed=failed)
    found = pixels[0] * np.float64(weighing.band.scale) + weighing.band.offset
    return found if valid is None else np.where(valid[0], found, np.nan)
