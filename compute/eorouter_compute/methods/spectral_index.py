"""Spectral indices of the catalogue, one band each, on the finest of the grids their bands lie on.

All indices of an item are one program of the expression machine: every stored band is read once, nothing is scaled,
resampled or kept between. What a letter of a formula means for an item, and what its stored numbers are worth, is the
catalogue's business (`eorouter_compute.catalogue`). Coarser bands whose pixels are whole multiples of the finest are
used by replication; where the caller names a grid or a resampling, every other difference is resampled away, else it is
refused.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import catalogue, operands, product, quality, raster, target_grid
from eorouter_compute.attempt import Attempt
from eorouter_compute.catalogue import Scaling, SpectralIndex
from eorouter_compute.cog import CogSpec, Pixels
from eorouter_compute.errors import ComputeError, GridMismatch, InvalidParameter
from eorouter_compute.expression import Operand, Program, evaluate
from eorouter_compute.grid import Window
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
    Shard,
    by_asset,
    total,
)
from eorouter_compute.quality import MaskChoice, PlacedMask
from eorouter_compute.target_grid import GridChoice
from eorouter_compute.warp import Resampling

ITEM_LIMIT = 50
# Measured on the reference machine: 0.25 ns per pixel and instruction for arithmetic, up to 15 ns for a power.
_SECONDS_PER_INSTRUCTION = 4e-10
_SECONDS_PER_POWER = 1.5e-8
_SECONDS_PER_BYTE_READ = 1e-8
_GRID_TOLERANCE_PX = 1e-3
_KEPT_PROPERTIES = ("platform", "constellation", "instruments", "gsd", "eo:cloud_cover")


class SpectralIndexParams(Params, frozen=True, kw_only=True, tag="spectral_index"):
    """Spectral indices such as NDVI, EVI or NBR, computed from reflectance and written as bands of one float32 COG.

    Attributes:
        indices: short names of the catalogue, case as there; one output band each, in this order.
        bands: which band of the items a letter of the formulas stands for, where its name does not tell; for example
            `{"N": "B08"}`. A band name, `asset:band`, a common name, or the key of an asset with one band.
        parameters: values in place of a formula's own, such as `{"L": 0.5}` for SAVI.
        kernel: what k(a, b) means in kernel indices: RBF exp(−(a − b)² / 2 sigma²), linear a b, poly (a b + c)^p.
        grid: where the output lies; by default on the finest grid among the bands.
        resampling: how bands come onto another grid. By default coarser pixels are replicated, which asks for grids
            that nest, and `nearest` where `grid` is given.
        mask: pixels to drop by a quality band: "sentinel-2-scl", "landsat-qa-pixel", "cbers-cmask", or a rule.
        allow_missing: windows of sources that cannot be read count as missing and are listed in the read report.
    """

    indices: Annotated[tuple[str, ...], Meta(min_length=1, max_length=16)]
    bands: Annotated[dict[str, Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=32)] = (
        msgspec.field(default_factory=dict)
    )
    parameters: Annotated[dict[str, float], Meta(max_length=32)] = msgspec.field(default_factory=dict)
    kernel: Literal["RBF", "linear", "poly"] = "RBF"
    grid: GridChoice | None = None
    resampling: Resampling | None = None
    mask: MaskChoice | None = None
    allow_missing: bool = False


class _Source(Struct, frozen=True, kw_only=True):
    """One asset of an item, and what is read from it: (letter, band, scaling). `factor` fine pixels make one of its.

    Where bands are resampled, `_Task.placed` says how they are read, and `factor` is 1.
    """

    asset: RasterAsset
    factor: int
    bands: tuple[tuple[str, Band, Scaling], ...]


class _Task(Struct, frozen=True, kw_only=True):
    """Everything about one item's product but its pixels; the same wherever it is worked out."""

    records: tuple[SpectralIndex, ...]
    program: Program
    spec: CogSpec
    sources: tuple[_Source, ...]
    placed: tuple[operands.Source, ...]
    mask: PlacedMask | None
    sensor: str | None


class _Body(Struct, frozen=True, array_like=True):
    """Body of a shard or a part: whose it is, and what the product module made of it."""

    item: int
    product: bytes


def plan(params: SpectralIndexParams, inputs: Sequence[InputItem]) -> Plan:
    """Shards of every item's product, item by item."""
    if not inputs:
        raise InvalidParameter("spectral_index needs at least one item.", pointer="/inputs")
    shards: list[Shard] = []
    merges, notes = [], []
    for number, item in enumerate(inputs):
        task = _task(params, inputs, item)
        read, held, beside = _cost(task)
        for shard in product.plan_product(
            task.spec,
            bytes_read_per_pixel=read,
            memory_bytes_per_pixel=held + 4 * len(task.records),
            seconds_per_pixel=_seconds(task.program) + read * _SECONDS_PER_BYTE_READ,
        ):
            body = msgspec.msgpack.encode(_Body(number, shard.body))
            bound = msgspec.structs.replace(shard.bound, memory_bytes=shard.bound.memory_bytes + beside)
            shards.append(Shard(body=body, bound=bound))
        merges.append(product.merge_bound(task.spec))
        notes.extend(_notes(params, task))
    return Plan(shards=tuple(shards), merge_bound=total(merges), notes=tuple(dict.fromkeys(notes)))


def run(params: SpectralIndexParams, inputs: Sequence[InputItem], shard: bytes, attempt: Attempt) -> Part:
    """One shard of one item."""
    body = msgspec.msgpack.decode(shard, type=_Body)
    task = _task(params, inputs, inputs[body.item])
    reports: list[ReadReport] = []
    part = product.run_product(
        task.spec, body.product, attempt, _computer(params, task, reports.append), lambda: sum(reports, ReadReport())
    )
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(_Body(body.item, part.body)))


def merge(params: SpectralIndexParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """One item per input item."""
    bodies = [msgspec.msgpack.decode(part.body, type=_Body) for part in parts]
    items: list[OutputItem] = []
    names = _names(inputs)
    for number, item in enumerate(inputs):
        task = _task(params, inputs, item)
        own = [
            msgspec.structs.replace(part, body=body.product)
            for part, body in zip(parts, bodies, strict=True)
            if body.item == number
        ]
        items.append(
            product.merge_product(
                task.spec,
                own,
                attempt,
                name=names[number],
                at=item.at,
                title=f"{', '.join(params.indices)} of {item.id}",
                properties=_properties(task, params, item),
                style="index",
            )
        )
    statistics = {
        item.name: {index: dict(row) for index, row in zip(params.indices, item.assets[0].statistics, strict=True)}
        for item in items
    }
    return Result(
        items=tuple(items),
        summary={"indices": list(params.indices), "statistics": statistics},
        report=sum((part.report for part in parts), ReadReport()),
    )


# What an item's product is


def _task(params: SpectralIndexParams, inputs: Sequence[InputItem], item: InputItem) -> _Task:
    records = _records(params)
    needed = tuple(dict.fromkeys(letter for record in records for letter in record.bands))
    if strange := sorted(params.bands.keys() - set(needed)):
        raise InvalidParameter(
            f"{', '.join(params.indices)} need no band {', '.join(strange)}; they need {', '.join(needed)}.",
            pointer=f"/bands/{strange[0]}",
        )
    sensor = catalogue.sensor_of(item)
    program = catalogue.compile_indices(records, parameters=params.parameters, kernel=params.kernel, sensor=sensor)
    found = {letter: _resolve(item, letter, params) for letter in needed}
    scales = {letter: catalogue.scaling(item, band) for letter, (_, band) in found.items()}
    finest = min((asset for asset, _ in found.values()), key=lambda asset: (asset.pixel_area, asset.key))
    grid, placed = finest.grid, ()
    if params.grid is not None or params.resampling is not None:
        grid = target_grid.choose(params.grid or GridChoice(), inputs, [asset for asset, _ in found.values()])
        named = [operands.Named(letter, item, *pair, scales[letter]) for letter, pair in found.items()]
        placed = operands.placed(named, grid, resampling=params.resampling or "nearest")
    entries = [(asset, (letter, band, scales[letter])) for letter, (asset, band) in found.items()]
    sources = tuple(
        _Source(asset=asset, factor=1 if placed else _factor(item, finest, asset), bands=tuple(bands))
        for asset, bands in by_asset(entries)
    )
    spec = CogSpec(
        shape=grid.shape,
        transform=grid.transform,
        crs=grid.crs,
        dtype="float32",
        nodata=float("nan"),
        bands=tuple(
            Band(name=record.short_name, index=place, dtype="float32", description=record.long_name)
            for place, record in enumerate(records, start=1)
        ),
    )
    mask = None
    if params.mask is not None:
        mask = quality.place(
            params.mask, item, grid, pointer="/mask", worth=lambda _, band: catalogue.scaling(item, band)
        )
    return _Task(records=records, program=program, spec=spec, sources=sources, placed=placed, mask=mask, sensor=sensor)


def _records(params: SpectralIndexParams) -> tuple[SpectralIndex, ...]:
    for place, name in enumerate(params.indices):
        if name in params.indices[:place]:
            raise InvalidParameter(f"{name} is asked for twice.", pointer=f"/indices/{place}")
    return tuple(catalogue.index(name, pointer=f"/indices/{place}") for place, name in enumerate(params.indices))


def _resolve(item: InputItem, letter: str, params: SpectralIndexParams) -> tuple[RasterAsset, Band]:
    try:
        return catalogue.resolve(item, letter, bands=params.bands)
    except ComputeError as error:
        wanted = [name for name in params.indices if letter in catalogue.index(name).bands]
        raise type(error)(
            f"{', '.join(wanted)} {'need' if len(wanted) > 1 else 'needs'} {letter}. {error.message}",
            pointer=f"/bands/{letter}",
            **error.data,
        ) from None


def _factor(item: InputItem, fine: RasterAsset, coarse: RasterAsset) -> int:
    """How many pixels of the fine grid lie along one of the coarse grid.

    Raises:
        GridMismatch: the grids are not the same corner, direction and whole multiple; the message says which.
    """

    def refuse(why: str) -> GridMismatch:
        return GridMismatch(
            f"Item {item.id}: the grids of assets {fine.key} and {coarse.key} cannot be used together: {why}. "
            'Name a resampling, such as "resampling": "bilinear", to have them brought onto one grid.',
            pointer="/inputs",
        )

    if fine.crs != coarse.crs:
        raise refuse(f"one is in {fine.crs[:60]}, the other in {coarse.crs[:60]}")
    fine_step, coarse_step = _steps(fine), _steps(coarse)
    lead = max(range(4), key=lambda place: abs(fine_step[place]))
    ratio = coarse_step[lead] / fine_step[lead]
    factor = round(ratio)
    reach = max(*fine.shape) * max(abs(step) for step in fine_step)
    drift = max(abs(c - factor * f) for c, f in zip(coarse_step, fine_step, strict=True))
    # A step that is wrong by so little that the far edge moves by less than the tolerance is the same step.
    step = abs(fine_step[lead])
    if factor < 1 or drift * reach / step > _GRID_TOLERANCE_PX * step * max(factor, 1):
        raise refuse(f"pixels of {coarse.key} are {ratio:.6g} times those of {fine.key}, a whole number is needed")
    away = [
        abs(coarse.transform[2] - fine.transform[2]) / step,
        abs(coarse.transform[5] - fine.transform[5]) / step,
    ]
    if max(away) > _GRID_TOLERANCE_PX:
        raise refuse(f"their upper left corners are {max(away):.6g} pixels of {fine.key} apart")
    covered = (coarse.shape[0] * factor, coarse.shape[1] * factor)
    if covered[0] < fine.shape[0] or covered[1] < fine.shape[1]:
        raise refuse(f"{coarse.key} covers {covered} pixels of {fine.key}, which has {fine.shape}")
    if factor == 1 and coarse.shape != fine.shape:
        raise refuse(f"they have {fine.shape} and {coarse.shape} pixels")
    return factor


def _steps(asset: RasterAsset) -> tuple[float, float, float, float]:
    a, b, _, d, e, _ = asset.transform
    return a, b, d, e


# Pixels


def _computer(
    params: SpectralIndexParams, task: _Task, report: Callable[[ReadReport], None]
) -> Callable[[Window], Pixels]:
    def compute(window: Window) -> Pixels:
        failed: list[FailedRead] = []
        lost = failed if params.allow_missing else None
        bands = operands.read(task.placed, window, failed=lost) if task.placed else _bands(task, window, lost)
        clear = None if task.mask is None else quality.read(task.mask, window, failed=lost)
        masks = [operand.valid for operand in bands.values() if operand.valid is not None]
        masks += [] if clear is None else [clear]
        known = int(np.count_nonzero(np.logical_and.reduce(masks))) if masks else window.pixels
        reads = len(task.sources) + (0 if task.mask is None else len(task.mask.sources))
        report(ReadReport(reads=reads, pixels=window.pixels, valid_pixels=known, failed=tuple(failed)))
        return evaluate(task.program, bands), clear

    return compute


def _bands(task: _Task, window: Window, failed: list[FailedRead] | None) -> dict[str, Operand]:
    found: dict[str, Operand] = {}
    for source in task.sources:
        pixels, valid = _read(source, window, failed)
        for place, (letter, _, scaling) in enumerate(source.bands):
            known = None if valid is None else valid[place]
            found[letter] = Operand(pixels[place], scaling.scale, scaling.offset, known)
    return found


def _read(source: _Source, window: Window, failed: list[FailedRead] | None) -> raster.Block:
    """Pixels of a source on the fine grid: each coarse pixel stands for `factor` × `factor` fine ones."""
    indexes = [band.index for _, band, _ in source.bands]
    factor = source.factor

    def block_of(place: Window) -> raster.Block:
        if failed is None:
            return raster.read_block(source.asset, indexes, place)
        return raster.read_tolerant(source.asset, indexes, place, failed)

    if factor == 1:
        return block_of(window)
    row, col = window.row // factor, window.col // factor
    coarse = Window(row, col, -(-window.row_stop // factor) - row, -(-window.col_stop // factor) - col)
    block = block_of(coarse)
    rows = np.arange(window.row, window.row_stop) // factor - row
    cols = np.arange(window.col, window.col_stop) // factor - col

    def spread(pixels: np.ndarray) -> np.ndarray:
        return np.take(np.take(pixels, rows, axis=1), cols, axis=2)

    return raster.Block(spread(block.pixels), None if block.valid is None else spread(block.valid))


# Bounds and words


def _cost(task: _Task) -> tuple[float, float, int]:
    """Bytes read and bytes held per output pixel, and bytes held beside, whatever the piece."""
    read, held, beside = 0.0, 0.0, 0
    if task.mask is not None:
        masked = [operands.Source(placement=placement, bands=()) for placement, _ in task.mask.sources]
        read += sum(operands.bytes_read(source) for source in masked)
        rim = 2 * task.mask.mask.dilate_px / 512 + 1
        held += 16 * rim * rim * len(masked)
        beside = operands.bytes_beside(masked)
    if task.placed:
        read += sum(operands.bytes_read(source) for source in task.placed)
        return read, held + operands.bytes_held(task.placed), max(beside, operands.bytes_beside(task.placed))
    read += sum(_bytes_read(source) for source in task.sources)
    held += sum(
        len(source.bands) * (np.dtype(source.bands[0][1].dtype).itemsize + 2) * (1 if source.factor == 1 else 2)
        for source in task.sources
    )
    return read, held, beside


def _bytes_read(source: _Source) -> float:
    """Bytes read per output pixel, at most: whole blocks, as long as they compress at all."""
    itemsize = sum(np.dtype(band.dtype).itemsize for _, band, _ in source.bands)
    height, width = source.asset.block_shape
    # A piece is at least 512 pixels wide; the blocks it touches reach over its rim.
    rim = (1 + height * source.factor / 512) * (1 + width * source.factor / 512)
    every = sum(np.dtype(band.dtype).itemsize for band in source.asset.bands)
    return min(rim, 16.0) * max(itemsize, every) / source.factor**2


def _seconds(program: Program) -> float:
    from eorouter_kernels import expression as machine

    slow = sum(1 for op, *_ in program.code if op in {machine.POW, machine.EXP, machine.LOG, machine.LOG10})
    return len(program.code) * _SECONDS_PER_INSTRUCTION + slow * _SECONDS_PER_POWER


def _notes(params: SpectralIndexParams, task: _Task) -> list[str]:
    """What a caller should know; without item ids, so that fifty items alike say it once."""
    notes = []
    raw = [
        f"{letter} ({source.asset.key}:{band.name})"
        for source in task.sources
        for letter, band, scaling in source.bands
        if scaling.source == "as stored" and "int" in band.dtype
    ]
    if raw:
        notes.append(
            f"No scale is declared for {', '.join(raw)}: stored integers are used as they are. Ratios such as NDVI do "
            "not mind a common factor; indices with constants, such as EVI or SAVI, do."
        )
    for source in task.sources:
        if source.factor > 1:
            letters = ", ".join(letter for letter, _, _ in source.bands)
            notes.append(f"Pixels of {letters} are {source.factor} times as wide as the finest and are replicated.")
    if moved := [letter for source in task.placed if not source.is_direct for letter, _, _ in source.bands]:
        notes.append(f"{', '.join(moved)} are brought onto the output's grid by {params.resampling or 'nearest'}.")
    return notes


def _names(inputs: Sequence[InputItem]) -> list[str]:
    """A name per item, safe in a path and unique in the job."""
    names: list[str] = []
    for item in inputs:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", item.id).strip(".-")[:100] or "item"
        name, copy = plain, 1
        while name in names:
            copy += 1
            name = f"{plain}-{copy}"
        names.append(name)
    return names


def _properties(task: _Task, params: SpectralIndexParams, item: InputItem) -> dict[str, Any]:
    bands = {
        letter: {
            "band": f"{source.asset.key}:{band.name}",
            "scale": scaling.scale,
            "offset": scaling.offset,
            "scaling": scaling.source,
        }
        for source in task.sources
        for letter, band, scaling in source.bands
    }
    indices = []
    for record in task.records:
        values = catalogue.parameters_of(record, parameters=params.parameters, kernel=params.kernel, sensor=task.sensor)
        indices.append(
            {
                "name": record.short_name,
                "long_name": record.long_name,
                "formula": record.formula,
                "parameters": values,
                "reference": record.reference,
            }
            | ({"kernel": params.kernel} if record.is_kernel else {})
        )
    kept = {key: item.properties[key] for key in _KEPT_PROPERTIES if key in item.properties}
    return kept | {"eorouter:indices": indices, "eorouter:bands": bands, "eorouter:derived_from": item.id}


METHOD = Method(
    id="spectral_index",
    title="Spectral indices",
    makes=Kind.RASTER,
    params=SpectralIndexParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=ITEM_LIMIT,
    examples=(
        {"method": "spectral_index", "indices": ["NDVI"]},
        {"method": "spectral_index", "indices": ["EVI", "SAVI"], "parameters": {"L": 0.5}},
        {"method": "spectral_index", "indices": ["NBR"], "bands": {"N": "B8A", "S2": "B12"}},
        {"method": "spectral_index", "indices": ["NDMI"], "resampling": "bilinear", "mask": "sentinel-2-scl"},
        {"method": "spectral_index", "indices": ["kNDVI"], "kernel": "RBF", "parameters": {"sigma": 0.3}},
    ),
)
