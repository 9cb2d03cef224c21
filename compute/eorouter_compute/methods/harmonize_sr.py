"""Harmonise: reflectance of Sentinel-2 and Landsat as one of their sensors would have seen it.

One straight line per band, from the tables of `eorouter_compute.bandpass`. What a stored number is worth, Sentinel-2's
offset since baseline 04.00 included, is the catalogue's business (`catalogue.scaling`), and is folded into the line:
every pixel is multiplied once and rounded once. View and sun angles are not normalised, and nothing is corrected for
the atmosphere: this is the bandpass step of HLS, no more.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import bandpass, catalogue, operands, product, quality, target_grid
from eorouter_compute.attempt import Attempt
from eorouter_compute.bandpass import EtmOli, Fit, Instrument, MsiOli
from eorouter_compute.catalogue import Scaling
from eorouter_compute.cog import CogSpec, Pixels
from eorouter_compute.errors import BandNotFound, InvalidParameter
from eorouter_compute.expression import Operand, compile_expression, evaluate
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import (
    Band,
    FailedRead,
    InputItem,
    Kind,
    Method,
    OutputItem,
    Params,
    Part,
    Plan,
    RasterAsset,
    ReadReport,
    Result,
    total,
)
from eorouter_compute.operands import Named
from eorouter_compute.product import NumberedShard
from eorouter_compute.quality import MaskChoice, PlacedMask
from eorouter_compute.target_grid import GridChoice
from eorouter_compute.warp import Resampling
from eorouter_kernels import radiometry

ITEM_LIMIT = 50
NODATA = -9999
_DONE = "eorouter:harmonized"
_LETTERS = {"coastal": "A", "blue": "B", "green": "G", "red": "R", "nir": "N", "swir16": "S1", "swir22": "S2"}
_NOT_REFLECTANCE = frozenset({"T", "T1", "T2", "HH", "HV", "VH", "VV"})  # letters of temperature and backscatter
_NOWHERE = np.empty((0, 0), np.bool_)
_KEPT_PROPERTIES = ("platform", "constellation", "instruments", "gsd", "eo:cloud_cover", "view:sun_elevation",
                    "view:sun_azimuth", "view:off_nadir")  # fmt: skip

Platform = Literal["sentinel-2a", "sentinel-2b", "landsat-7", "landsat-8", "landsat-9"]
Role = Literal["coastal", "blue", "green", "red", "nir", "swir16", "swir22"]


class StoredScale(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reflectance = stored × `scale` + `offset`.

    Attributes:
        scale: 0.0001 for Sentinel-2, 0.0000275 for Landsat Collection 2 Level 2.
        offset: −0.1 for Sentinel-2 since baseline 04.00, −0.2 for Landsat Collection 2 Level 2.
    """

    scale: Annotated[float, Meta(gt=0)]
    offset: float = 0.0


class HarmonizeSrParams(Params, frozen=True, kw_only=True, tag="harmonize_sr"):
    """Bring reflectance of Sentinel-2 MSI, Landsat OLI and ETM+ onto the bands of one of them, by published fits.

    Every input item gives one item with its common bands, called as in `bands`. Bands on one grid share a COG; with
    `grid` or `resampling` all do.

    Attributes:
        target: the instrument the reflectance is to look like; "oli" is the reference of both tables.
        platform: the spacecraft of the items; by default what their `platform` says. Sentinel-2A and 2B differ.
        target_platform: which Sentinel-2, where `target` is "msi" and the table tells them apart.
        msi_oli: between MSI and OLI, "hls" (versions 1.5 and 2.0, surface) or "chastain-2019" (top of the atmosphere).
        etm_oli: between ETM+ and OLI, Roy et al. 2016 by reduced major axis, or by ordinary least squares.
        bands: which of the common bands, in this order; all that the items have by default.
        names: which band of the items a common band is, where its name does not tell; for example `{"nir": "B8A"}`.
        stored: what stored numbers are worth, in place of what the items declare.
        dtype: "int16" stores reflectance / `scale`, rounded half to even, held to −32,768 … 32,767, −9999 where
            missing; "float32" stores reflectance, NaN where missing.
        scale: reflectance of one stored unit of int16.
        grid: where the output lies, for all bands in one file.
        resampling: how bands come onto another grid; bilinear where only `grid` is given.
        mask: pixels to drop by a quality band: "sentinel-2-scl", "landsat-qa-pixel", or a rule. Conditions see
            reflectance, by `stored` where it is given.
        allow_missing: windows of sources that cannot be read count as missing and are listed in the read report.
    """

    target: Instrument = "oli"
    platform: Platform | None = None
    target_platform: Literal["sentinel-2a", "sentinel-2b"] = "sentinel-2a"
    msi_oli: MsiOli = "hls"
    etm_oli: EtmOli = "roy-2016-rma"
    bands: Annotated[tuple[Role, ...], Meta(max_length=7)] = ()
    names: dict[Role, Annotated[str, Meta(min_length=1, max_length=200)]] = msgspec.field(default_factory=dict)
    stored: StoredScale | None = None
    dtype: Literal["int16", "float32"] = "int16"
    scale: Annotated[float, Meta(gt=0, le=1)] = 1e-4
    grid: GridChoice | None = None
    resampling: Resampling | None = None
    mask: MaskChoice | None = None
    allow_missing: bool = False


class _Line(Struct, frozen=True, kw_only=True):
    """A band of the output: which common band, the source's name, and what makes its reflectance."""

    role: str
    source: str
    scaling: Scaling
    fit: Fit


class _Target(Struct, frozen=True, kw_only=True):
    """One output COG: lines in the order of its bands, read on its grid."""

    item: InputItem
    key: str
    lines: tuple[_Line, ...]
    sources: tuple[operands.Source, ...]
    mask: PlacedMask | None
    spec: CogSpec


def plan(params: HarmonizeSrParams, inputs: Sequence[InputItem]) -> Plan:
    """Cut every output into shards."""
    if not inputs:
        raise InvalidParameter("harmonize_sr needs at least one input item.", pointer="/inputs")
    shards, merges, notes = [], [], []
    for number, target in enumerate(_targets(params, inputs)):
        masked = () if target.mask is None else target.mask.sources
        masks = [operands.Source(placement=placement, bands=()) for placement, _ in masked]
        read = sum(operands.bytes_read(source) for source in (*target.sources, *masks))
        rim = 1.0 if target.mask is None else (2 * target.mask.mask.dilate_px / 512 + 1) ** 2
        held = operands.bytes_held(target.sources) + 16.0 * rim * len(masks) + 1
        beside = max(operands.bytes_beside(target.sources), operands.bytes_beside(masks))
        count = len(target.lines)
        for made in product.plan_product(
            target.spec,
            bytes_read_per_pixel=read,
            memory_bytes_per_pixel=held + count * (np.dtype(target.spec.dtype).itemsize + 1),
            seconds_per_pixel=1e-8 * read + 5e-9 * count + (0.0 if target.sources[0].is_direct else 3e-8 * count),
        ):
            bound = msgspec.structs.replace(made.bound, memory_bytes=made.bound.memory_bytes + beside)
            shards.append(product.numbered(msgspec.structs.replace(made, bound=bound), number))
        merges.append(product.merge_bound(target.spec))
    for item in inputs:
        notes += _notes(params, item)
    return Plan(shards=tuple(shards), merge_bound=total(merges), notes=tuple(dict.fromkeys(notes)))


def run(params: HarmonizeSrParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    """Read, adjust and encode one shard."""
    shard = msgspec.msgpack.decode(body, type=NumberedShard)
    target = _targets(params, inputs)[shard.number]
    reports: list[ReadReport] = []
    part = product.run_product(
        target.spec, shard.body, attempt, _computer(params, target, reports.append), lambda: sum(reports, ReadReport())
    )
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(NumberedShard(shard.number, part.body)))


def _computer(
    params: HarmonizeSrParams, target: _Target, report: Callable[[ReadReport], None]
) -> Callable[[Window], Pixels]:
    def compute(window: Window) -> Pixels:
        failed: list[FailedRead] = []
        lost = failed if params.allow_missing else None
        found = operands.read(target.sources, window, failed=lost)
        clear = None if target.mask is None else quality.read(target.mask, window, failed=lost)
        shape = (len(target.lines), window.height, window.width)
        out, valid = np.empty(shape, target.spec.dtype), np.empty(shape, np.bool_)
        for place, line in enumerate(target.lines):
            _apply(params, line, found[line.role], out[place], valid[place])
        if clear is not None:
            valid &= clear
        reads = len(target.sources) + (0 if target.mask is None else len(target.mask.sources))
        known = int(np.count_nonzero(valid.all(axis=0)))
        report(ReadReport(reads=reads, pixels=window.pixels, valid_pixels=known, failed=tuple(failed)))
        return out, None if valid.all() else valid

    return compute


def _apply(params: HarmonizeSrParams, line: _Line, band: Operand, out: np.ndarray, valid: np.ndarray) -> None:
    """One band of a window: both scales and the fit as one line."""
    unit = params.scale if params.dtype == "int16" else 1.0
    gain = line.scaling.scale * line.fit.slope / unit
    offset = (line.scaling.offset * line.fit.slope + line.fit.offset) / unit
    if params.dtype == "float32":
        program = compile_expression(f"x * {gain!r} + {offset!r}", ["x"])
        out[:] = evaluate(program, {"x": Operand(band.pixels, valid=band.valid)})[0]
        np.isfinite(out, out=valid)
        return
    known = _NOWHERE if band.valid is None else np.ascontiguousarray(band.valid)
    info = np.iinfo(np.int16)
    radiometry.rescale(
        np.ascontiguousarray(band.pixels), known, gain, offset, float(info.min), float(info.max), float(NODATA), out,
        valid,
    )  # fmt: skip


def merge(params: HarmonizeSrParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """Put every COG together and make the items."""
    every = _targets(params, inputs)
    by_target = product.by_number(parts)
    report = sum((part.report for part in parts), start=ReadReport())
    items: list[OutputItem] = []
    for number, item in enumerate(inputs):
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', item.id)[:80]}_{params.target}"
        name += f"_{number}" if len(inputs) > 1 else ""
        title = f"{item.id} as {params.target.upper()}"
        own = [(place, target) for place, target in enumerate(every) if target.item is item]
        assets = [
            product.merge_asset(target.spec, by_target[place], attempt, name=name, asset_key=target.key, title=title)
            for place, target in own
        ]
        properties = _properties(params, item, [target for _, target in own])
        items.append(product.item(assets, attempt, name=name, at=item.at, title=title, properties=properties))
    fraction = report.valid_pixels / report.pixels if report.pixels else None
    summary = {"items": len(items), "target": params.target, "valid_fraction": fraction}
    return Result(items=tuple(items), summary=summary, report=report)


def _properties(params: HarmonizeSrParams, item: InputItem, targets: Sequence[_Target]) -> dict[str, Any]:
    lines = {
        line.role: {
            "band": line.source,
            "slope": line.fit.slope,
            "offset": line.fit.offset,
            "stored_scale": line.scaling.scale,
            "stored_offset": line.scaling.offset,
            "scaling": line.scaling.source,
        }
        for target in targets
        for line in target.lines
    }
    kept = {key: item.properties[key] for key in _KEPT_PROPERTIES if key in item.properties}
    said = {"target": params.target, "platform": _platform(params, item), "bands": lines}
    return kept | {_DONE: said | {"tables": _tables(params, item)}, "derived_from": item.id}


def _tables(params: HarmonizeSrParams, item: InputItem) -> list[str]:
    """The tables that the item's way takes."""
    source = bandpass.instrument_of(_platform(params, item))
    if source == params.target != "msi":
        return []
    return ([params.msi_oli] if "msi" in {source, params.target} else []) + (
        [params.etm_oli] if "etm" in {source, params.target} else []
    )


def _notes(params: HarmonizeSrParams, item: InputItem) -> list[str]:
    notes = []
    if "chastain-2019" in _tables(params, item):
        notes.append("The fits of Chastain et al. 2019 are of reflectance at the top of the atmosphere.")
    if _tables(params, item) == []:
        notes.append(f"Items of {_platform(params, item)} are already as {params.target} sees: only scales change.")
    fits = _fits(params, item)
    absent = [role for role in fits if not params.bands and _found(params, item, role) is None]
    if absent:
        notes.append(f"Left out, as the items have no such band: {', '.join(absent)}.")
    return notes


# What the job makes ---------------------------------------------------------------------------------------------------


def _platform(params: HarmonizeSrParams, item: InputItem) -> str:
    """The item's spacecraft.

    Raises:
        InvalidParameter: it is none that there are fits for.
    """
    said = params.platform or re.sub(r"[\s_]+", "-", str(item.properties.get("platform", "")).strip().lower())
    if bandpass.instrument_of(said) is None:
        raise InvalidParameter(
            f"Item {item.id} is of platform {said or 'unknown'}; there are fits for sentinel-2a, sentinel-2b, "
            "landsat-7, landsat-8 and landsat-9. If one of them fits its bands, name it as `platform`.",
            pointer="/platform",
        )
    return said


def _fits(params: HarmonizeSrParams, item: InputItem) -> dict[str, Fit]:
    return bandpass.fits(
        _platform(params, item),
        params.target,
        target_platform=params.target_platform,
        msi_oli=params.msi_oli,
        etm_oli=params.etm_oli,
    )


def _is_narrow(params: HarmonizeSrParams, instrument: Instrument | None) -> bool:
    """Whether its near infrared is the narrow one, of 865 nm."""
    return instrument == "oli" or (instrument == "msi" and params.msi_oli == "hls")


def _found(params: HarmonizeSrParams, item: InputItem, role: str) -> tuple[RasterAsset, Band] | None:
    """The band that a common band is, None where the item has none.

    Raises:
        BandNotFound: the caller named it or asked for it, and it is not there.
    """
    instrument = bandpass.instrument_of(_platform(params, item))
    # MSI has two near infrareds; the one of OLI and ETM+ is N whatever the item calls it.
    letter = "N2" if role == "nir" and instrument == "msi" and params.msi_oli == "hls" else _LETTERS[role]
    given = next((name for key, name in params.names.items() if key == role), None)
    try:
        return catalogue.resolve(item, letter, bands={} if given is None else {letter: given})
    except BandNotFound as error:
        if given is None and role not in params.bands:
            return None
        pointer = f"/names/{role}" if given is not None else f"/bands/{[*map(str, params.bands)].index(role)}"
        raise BandNotFound(
            f'{error.message.partition(" Say which")[0]} Say which it is: "names": {{"{role}": "<band>"}}.',
            pointer=pointer,
            **error.data,
        ) from None


def _scaling(params: HarmonizeSrParams, item: InputItem, band: Band) -> Scaling:
    if params.stored is not None:
        return Scaling(params.stored.scale, params.stored.offset, "given")
    found = catalogue.scaling(item, band)
    if found.source == "as stored" and "int" in band.dtype:
        raise InvalidParameter(
            f"Item {item.id}: band {band.name} declares no scale, so its {band.dtype} numbers are no reflectance. Say "
            'what they are worth, such as "stored": {"scale": 0.0001, "offset": -0.1}.',
            pointer="/stored",
        )
    return found


def _mask(params: HarmonizeSrParams, item: InputItem, grid: Grid) -> PlacedMask | None:
    """The mask, whose conditions see reflectance as the output does."""
    if params.mask is None:
        return None
    stored, reflective = params.stored, _reflective(params, item)

    def worth(asset: RasterAsset, band: Band) -> Scaling:
        if stored is not None and (asset.key, band.index) in reflective:
            return Scaling(stored.scale, stored.offset, "given")
        return catalogue.scaling(item, band)

    return quality.place(params.mask, item, grid, pointer="/mask", worth=worth)


def _reflective(params: HarmonizeSrParams, item: InputItem) -> set[tuple[str, int]]:
    """Asset and number of every band that holds reflectance: `stored` is not about classes or temperatures."""
    pairs = [_found(params, item, role) for role in _fits(params, item)]
    for letter in catalogue.letters():
        if letter not in _NOT_REFLECTANCE:
            try:
                pairs.append(catalogue.resolve(item, letter))
            except BandNotFound:
                continue
    return {(pair[0].key, pair[1].index) for pair in pairs if pair is not None}


def _targets(params: HarmonizeSrParams, inputs: Sequence[InputItem]) -> list[_Target]:
    """Every COG the job makes, in a fixed order; the same in planning, running and merging.

    Raises:
        RequestFault: an item cannot be harmonised, or not onto one grid.
    """
    return [target for item in inputs for target in _targets_of(params, inputs, item)]


def _targets_of(params: HarmonizeSrParams, inputs: Sequence[InputItem], item: InputItem) -> list[_Target]:
    if _DONE in item.properties:
        raise InvalidParameter(f"Item {item.id} is already harmonised; once is enough.", pointer="/inputs")
    fits = _fits(params, item)
    if strange := [role for role in (*params.bands, *params.names) if role not in fits]:
        raise InvalidParameter(
            f"{strange[0]} is not a band that {_platform(params, item)} and {params.target} have a fit for; there are "
            f"{', '.join(fits)}.",
            pointer="/bands" if strange[0] in params.bands else f"/names/{strange[0]}",
        )
    entries = []
    for role in params.bands or fits:
        pair = _found(params, item, role)
        if pair is not None:
            entries.append(Named(role, item, *pair, _scaling(params, item, pair[1])))
    if not entries:
        names = ", ".join(f"{asset.key}:{band.name}" for asset, band in item.bands) or "no raster bands"
        raise BandNotFound(
            f"Item {item.id} has none of {', '.join(fits)}; it has {names}. Say which is which with `names`.",
            pointer="/names",
        )
    if params.grid is not None or params.resampling is not None:
        grid = target_grid.choose(params.grid or GridChoice(), inputs, [entry.asset for entry in entries])
        return [_target(params, item, "data", entries, grid)]
    grids = sorted({entry.asset.grid for entry in entries}, key=lambda grid: (grid.pixel_area, repr(grid)))
    return [
        _target(
            params,
            item,
            f"data_{number}" if number > 1 else "data",
            [entry for entry in entries if entry.asset.grid == grid],
            grid,
        )
        for number, grid in enumerate(grids, start=1)
    ]


def _target(params: HarmonizeSrParams, item: InputItem, key: str, entries: Sequence[Named], grid: Grid) -> _Target:
    fits = _fits(params, item)
    is_integer = params.dtype == "int16"
    # STAC's common name says which near infrared it is; the band is called what the request calls it.
    nir = "nir08" if _is_narrow(params, params.target) else "nir"
    bands = []
    for place, entry in enumerate(entries, start=1):
        description = f"{entry.band.description or entry.band.name} as {params.target.upper()}"
        bands.append(
            Band(
                name=entry.name,
                index=place,
                dtype=params.dtype,
                common_name=nir if entry.name == "nir" else entry.name,
                scale=params.scale if is_integer else 1.0,
                description=description,
            )
        )
    return _Target(
        item=item,
        key=key,
        lines=tuple(
            _Line(
                role=entry.name,
                source=f"{entry.asset.key}:{entry.band.name}",
                scaling=entry.scaling,
                fit=fits[entry.name],
            )
            for entry in entries
        ),
        sources=operands.placed(entries, grid, resampling=params.resampling or "bilinear"),
        mask=_mask(params, item, grid),
        spec=CogSpec(
            shape=grid.shape,
            transform=grid.transform,
            crs=grid.crs,
            dtype=params.dtype,
            bands=tuple(bands),
            nodata=float(NODATA) if is_integer else float("nan"),
        ),
    )


METHOD = Method(
    id="harmonize_sr",
    title="Harmonise reflectance",
    makes=Kind.RASTER,
    params=HarmonizeSrParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=ITEM_LIMIT,
    examples=(
        {"method": "harmonize_sr"},
        {"method": "harmonize_sr", "target": "etm", "bands": ["red", "nir"], "mask": "landsat-qa-pixel"},
        {
            "method": "harmonize_sr",
            "platform": "sentinel-2b",
            "names": {"nir": "B8A"},
            "stored": {"scale": 0.0001, "offset": -0.1},
            "grid": {"resolution": 30},
            "resampling": "average",
        },
    ),
)
