"""Reproject: rasters on another grid, every raster asset to one COG, to a stated tolerance."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import product, raster, target_grid, warp
from eorouter_compute.attempt import Attempt
from eorouter_compute.cog import CogSpec, Pixels
from eorouter_compute.errors import AoiOutside, BandNotFound, ComputeError, InvalidParameter
from eorouter_compute.grid import Window
from eorouter_compute.method import (
    Band,
    FailedRead,
    InputItem,
    Kind,
    Method,
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
from eorouter_compute.target_grid import GridChoice
from eorouter_compute.warp import Placement, Resampling
from eorouter_kernels.nodata import kept_clear

_SECONDS_PER_PIXEL = {"nearest": 1e-8, "bilinear": 2e-8, "cubic": 4e-8, "lanczos": 5e-7, "average": 6e-8, "sum": 6e-8}
_SECONDS_PER_BYTE_READ = 1e-8
_KEPT_PROPERTIES = ("platform", "constellation", "instruments", "gsd", "eo:cloud_cover")


class ReprojectParams(Params, frozen=True, kw_only=True, tag="reproject"):
    """Bring rasters onto another grid: another CRS, another resolution, or the grid of another item, pixel for pixel.

    Every input item gives one output item and every raster asset of it one COG of the same bands and pixel type. Assets
    keep their own resolution unless `grid` gives one.

    Attributes:
        grid: where to. `crs` is the output's CRS; `resolution`, in its units, is by default each raster's own; `bounds`
            are by default what is covered; `like` takes the grid of another input item instead, which is then not
            reprojected itself.
        resampling: "nearest" copies pixels; "bilinear", "cubic" and "lanczos" interpolate, with kernels widened where
            pixels grow; "average", "mode", "min", "max" and "median" are taken over the pixels under each output pixel,
            "sum" shares out the pixels' values by area.
        tolerance_px: largest error of pixel positions, in source pixels; 0 asks PROJ for every pixel.
        bands: bands to keep, by name or common name; all by default.
        assets: keys of the raster assets to reproject; all by default.
        mask: how missing pixels are stored. "nodata" keeps or sets a nodata value, "band" writes a mask band, "auto"
            takes nodata where `nodata` is given, the source has one or holds floats, else the mask band.
        nodata: stored value of missing pixels, instead of the source's.
        overview_resampling: how the output's overviews are made; "auto" is "nearest" after nearest, "mode" after mode
            and "average" after all others.
        allow_missing: source windows that cannot be read count as missing data and are listed in the read report; by
            default they fail the job.
    """

    grid: GridChoice
    resampling: Resampling = "nearest"
    tolerance_px: Annotated[float, Meta(ge=0, le=4)] = warp.TOLERANCE_PX
    bands: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    assets: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    mask: Literal["auto", "nodata", "band"] = "auto"
    nodata: float | None = None
    overview_resampling: Literal["auto", "average", "nearest", "mode"] = "auto"
    allow_missing: bool = False


class _Target(Struct, frozen=True, kw_only=True):
    """One output COG: bands `indexes` of the placement's asset; `number` is the item's."""

    number: int
    placement: Placement
    indexes: tuple[int, ...]
    spec: CogSpec


class _Body(Struct, frozen=True, array_like=True):
    """Body of a shard and of its part: item, asset and what `product` needs."""

    item: int
    asset: str
    product: bytes


def plan(params: ReprojectParams, inputs: Sequence[InputItem]) -> Plan:
    """Cut every target into shards."""
    _check(params)
    shards: list[Shard] = []
    merges = []
    for number, item in enumerate(inputs):
        if item.id == params.grid.like and len(inputs) > 1:
            continue
        for asset, _ in _chosen(params, item, number):
            target = _target(params, inputs, number, asset.key)
            _check_meets(target, item)
            shards.extend(_shards(params, target))
            merges.append(product.merge_bound(target.spec))
    if not shards:
        raise InvalidParameter("reproject needs at least one input item beside `like`.", pointer="/inputs")
    return Plan(shards=tuple(shards), merge_bound=total(merges), notes=_notes(params, inputs))


def run(params: ReprojectParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    """Resample and encode one shard."""
    shard = msgspec.msgpack.decode(body, type=_Body)
    target = _target(params, inputs, shard.item, shard.asset)
    failed: list[FailedRead] | None = [] if params.allow_missing else None
    report = ReadReport()

    def compute(window: Window) -> Pixels:
        nonlocal report
        block = warp.read(target.placement, target.indexes, window, failed=failed)
        known = window.pixels if block.valid is None else int(np.count_nonzero(block.valid.any(axis=0)))
        report += ReadReport(reads=1, pixels=window.pixels, valid_pixels=known)
        return kept_clear(block.pixels, block.valid, target.spec.nodata), block.valid

    part = product.run_product(
        target.spec, shard.product, attempt, compute, lambda: report + ReadReport(failed=tuple(failed or ()))
    )
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(_Body(shard.item, shard.asset, part.body)))


def merge(params: ReprojectParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """Put every COG together and make the items."""
    by_target: dict[tuple[int, str], list[Part]] = {}
    for part in parts:
        body = msgspec.msgpack.decode(part.body, type=_Body)
        by_target.setdefault((body.item, body.asset), []).append(msgspec.structs.replace(part, body=body.product))
    items = []
    for number in dict.fromkeys(item for item, _ in by_target):
        item = inputs[number]
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', item.id)[:80]}_reprojected" + (
            f"_{number}" if len(inputs) > 1 else ""
        )
        targets = [_target(params, inputs, number, key) for place, key in by_target if place == number]
        title = f"{item.id}, reprojected"
        assets = [
            product.merge_asset(
                target.spec,
                by_target[number, target.placement.asset.key],
                attempt,
                name=name,
                asset_key=target.placement.asset.key,
                title=title,
            )
            for target in targets
        ]
        kept = {key: item.properties[key] for key in _KEPT_PROPERTIES if key in item.properties}
        items.append(
            product.item(
                assets,
                attempt,
                name=name,
                at=item.at,
                title=title,
                properties=kept
                | {
                    "derived_from": item.id,
                    "eorouter:resampling": params.resampling,
                    "eorouter:tolerance_px": params.tolerance_px,
                },
                style="class" if _overviews(params) == "mode" else None,
            )
        )
    report = sum((part.report for part in parts), ReadReport())
    summary = {
        "items": len(items),
        "pixels": report.pixels,
        "valid_fraction": report.valid_pixels / report.pixels if report.pixels else None,
        "grids": {
            item.name: {asset.key: _words(asset.raster) for asset in item.assets if asset.raster} for item in items
        },
    }
    return Result(items=tuple(items), summary=summary, report=report)


# Targets --------------------------------------------------------------------------------------------------------------


def _check(params: ReprojectParams) -> None:
    grid = params.grid
    if grid.like is None and grid.crs is None and grid.resolution is None and grid.bounds is None:
        raise InvalidParameter(
            "Nothing says where to: give `crs`, `resolution`, `bounds`, or `like` with the id of an input item.",
            pointer="/grid",
        )
    if params.mask == "band" and params.nodata is not None:
        raise InvalidParameter('`nodata` has no place beside "mask": "band"; leave one out.', pointer="/nodata")


def _chosen(params: ReprojectParams, item: InputItem, number: int) -> list[tuple[RasterAsset, list[Band]]]:
    """The assets to reproject with the bands to keep."""
    rasters = item.rasters
    if missing := set(params.assets) - {asset.key for asset in rasters}:
        keys = ", ".join(asset.key for asset in rasters) or "none"
        raise InvalidParameter(
            f"Item {item.id} has no raster asset {', '.join(sorted(missing))}. It has: {keys}.", pointer="/assets"
        )
    if params.assets:
        rasters = tuple(asset for asset in rasters if asset.key in params.assets)
    if not rasters:
        raise InvalidParameter(f"Item {item.id} has no raster to reproject.", pointer=f"/inputs/{number}")
    if not params.bands:
        return [(asset, list(asset.bands)) for asset in rasters]
    narrowed = msgspec.structs.replace(item, assets=rasters)
    kept: list[tuple[RasterAsset, Band]] = []
    for place, name in enumerate(params.bands):
        try:
            kept.append(narrowed.band(name))
        except BandNotFound as error:
            raise BandNotFound(error.message, pointer=f"/bands/{place}", **error.data) from None
    return by_asset(kept)


def _target(params: ReprojectParams, inputs: Sequence[InputItem], number: int, key: str) -> _Target:
    """The COG made of one asset; the same for planning, running and merging."""
    item = inputs[number]
    chosen = _chosen(params, item, number)
    asset, bands = next(pair for pair in chosen if pair[0].key == key)
    # With a resolution of their own assets lie on one grid; without, each on the one its pixels suggest.
    rasters = [asset] if params.grid.resolution is None else [each for each, _ in chosen]
    try:
        grid = target_grid.choose(params.grid, inputs, rasters)
        placement = warp.placed(asset, grid, resampling=params.resampling, tolerance_px=params.tolerance_px)
    except ComputeError as error:
        where = f"Item {item.id}, asset {key}: "
        raise type(error)(where + error.message, pointer=error.pointer, **error.data) from None
    return _Target(
        number=number,
        placement=placement,
        indexes=tuple(band.index for band in bands),
        spec=_spec(params, placement, bands),
    )


def _spec(params: ReprojectParams, placement: Placement, bands: Sequence[Band]) -> CogSpec:
    asset, grid = placement.asset, placement.grid
    dtypes = {band.dtype for band in bands}
    if len(dtypes) > 1:
        raise InvalidParameter(
            f"The bands of asset {asset.key} have different types ({', '.join(sorted(dtypes))}) and cannot share a "
            "file. Choose them one by one with `bands`.",
            pointer="/bands",
        )
    dtype = bands[0].dtype
    nodata = _nodata(params, bands, dtype)
    if params.mask == "nodata" and nodata is None:
        raise InvalidParameter(
            f"Asset {asset.key} of {dtype} has no common nodata value to mark missing pixels with. Give `nodata`, or "
            'use "mask": "band".',
            pointer="/mask",
        )
    has_mask = params.mask == "band" or nodata is None
    return CogSpec(
        shape=grid.shape,
        transform=grid.transform,
        crs=grid.crs,
        dtype=dtype,
        bands=tuple(bands),
        nodata=None if has_mask else nodata,
        has_mask=has_mask,
        overview_resampling=_overviews(params),
    )


def _nodata(params: ReprojectParams, bands: Sequence[Band], dtype: str) -> float | None:
    if params.nodata is not None:
        if raster.storable(params.nodata, dtype) is None:
            raise InvalidParameter(f"nodata is {params.nodata}, which {dtype} cannot hold.", pointer="/nodata")
        return params.nodata
    declared = {repr(value): value for value in (raster.storable(band.nodata, dtype) for band in bands)}
    common = next(iter(declared.values())) if len(declared) == 1 else None
    return float("nan") if common is None and dtype.startswith("float") else common


def _overviews(params: ReprojectParams) -> Literal["average", "nearest", "mode"]:
    if params.overview_resampling != "auto":
        return params.overview_resampling
    return {"nearest": "nearest", "mode": "mode"}.get(params.resampling, "average")  # pyright: ignore[reportReturnType]


def _check_meets(target: _Target, item: InputItem) -> None:
    """An output without one pixel of data is a mistake, not an answer."""
    asset, grid = target.placement.asset, target.placement.grid
    away = target_grid.apart(grid, asset)
    if away > 0:
        raise AoiOutside(
            f"Item {item.id}, asset {asset.key}, lies {away:,.6g} units of {grid.crs[:60]} off the grid asked for.",
            pointer="/grid",
        )


def _shards(params: ReprojectParams, target: _Target) -> list[Shard]:
    asset, spec, count = target.placement.asset, target.spec, len(target.indexes)
    size = np.dtype(spec.dtype).itemsize
    every = sum(np.dtype(band.dtype).itemsize for band in asset.bands)
    held = count * (size + 3) + 1
    density = warp.density(target.placement)
    rim = (1 + asset.block_shape[0] / 256) * (1 + asset.block_shape[1] / 256)
    read = min(rim, 9.0) * (density + 0.1) * max(every, count * size)
    seconds = _SECONDS_PER_PIXEL.get(params.resampling, 3e-7) * count * max(density, 1.0)
    if params.tolerance_px == 0:
        seconds += 4e-6
    side = product.piece_side(spec, held)
    extra = warp.memory_bytes(target.placement, count, min(side * side, spec.window.pixels))
    shards = product.plan_product(
        spec,
        bytes_read_per_pixel=read,
        memory_bytes_per_pixel=held,
        seconds_per_pixel=seconds + read * _SECONDS_PER_BYTE_READ,
    )
    return [
        msgspec.structs.replace(
            shard,
            body=msgspec.msgpack.encode(_Body(target.number, asset.key, shard.body)),
            bound=msgspec.structs.replace(shard.bound, memory_bytes=shard.bound.memory_bytes + extra),
        )
        for shard in shards
    ]


def _notes(params: ReprojectParams, inputs: Sequence[InputItem]) -> tuple[str, ...]:
    """What a caller should know."""
    notes = []
    if params.resampling == "sum" and any("int" in band.dtype for item in inputs for _, band in item.bands):
        notes.append("Sums of integers are held to the pixel type's range.")
    if params.grid.like is not None and len(inputs) > 1:
        notes.append(f"Item {params.grid.like} gives the grid and is not reprojected itself.")
    return tuple(notes)


def _words(asset: RasterAsset) -> dict[str, object]:
    a, b, c, d, e, f = asset.transform
    return {"crs": asset.crs, "transform": [a, b, c, d, e, f], "shape": list(asset.shape)}


METHOD = Method(
    id="reproject",
    title="Reproject to another grid",
    makes=Kind.RASTER,
    params=ReprojectParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=50,
    examples=(
        {"method": "reproject", "grid": {"crs": "EPSG:4326"}},
        {"method": "reproject", "grid": {"crs": "EPSG:3035", "resolution": 100}, "resampling": "average"},
        {"method": "reproject", "grid": {"like": "another-item", "like_asset": "B04"}, "resampling": "cubic"},
        {
            "method": "reproject",
            "grid": {"crs": "EPSG:3857", "resolution": 10, "bounds": [1230000, 5820000, 1250000, 5840000]},
            "resampling": "bilinear",
            "bands": ["red", "nir"],
            "tolerance_px": 0,
        },
    ),
)
