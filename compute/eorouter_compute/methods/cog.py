"""Convert: raster assets written anew as COG, GeoTIFF or NITF, pixels untouched and everything they carry with them."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import markings, nitf, product, raster, selection, verbatim
from eorouter_compute.attempt import Attempt
from eorouter_compute.cog import CogSpec, Stored
from eorouter_compute.cogfile import OverviewResampling
from eorouter_compute.errors import GridMismatch, InvalidParameter
from eorouter_compute.grid import Window
from eorouter_compute.method import (
    Band,
    FailedRead,
    InputItem,
    Kind,
    Method,
    OutputAsset,
    Params,
    Part,
    Plan,
    RasterAsset,
    ReadReport,
    Result,
    by_asset,
    total,
)
from eorouter_compute.product import NumberedShard
from eorouter_kernels.nodata import are_taken, around

_LEVELS = {"deflate": (0, 12), "zstd": (1, 22)}


class CogParams(Params, frozen=True, kw_only=True, tag="cog"):
    """Convert rasters to cloud-optimised GeoTIFF, GeoTIFF or NITF; pixel values are not touched.

    Every input item gives one output item; every raster asset of it gives one file, or all share one with `stack`.
    Names, scales, offsets, units, colours, colour tables and tags of the bands and of the file are carried over.

    Attributes:
        assets: keys of the raster assets to convert; all by default.
        bands: bands to keep, by name or common name, in this order; all by default.
        stack: put the bands of all assets of an item into one file; their grids and pixel types must be the same.
        format: "cog"; "geotiff", the same file but free to go without overviews; "nitf", an uncompressed NITF 2.1
            beside the COG.
        block_size: side of the square tiles, in pixels.
        compression: of the tiles.
        level: effort of the compressor, deflate 0–12, zstd 1–22; by default what suits the pixels.
        predictor: of deflate, lzw and zstd. "auto" is none for classes, differences along a row for other integers and
            "floating_point" for floats.
        max_z_error: how far lerc may move a value, in units of the stored value; 0 is lossless.
        overview_levels: how many, each half the one below; by default until one fits a tile. 0 is for GeoTIFF only.
        overview_resampling: "average" of the valid pixels, "nearest", "mode", the most frequent value, or "min", "max"
            or "median" of them; "auto" is mode for classes and average otherwise.
        mask: how missing pixels are stored: as a nodata value, or in a mask band inside the file, which all bands
            share. "auto" keeps what the source does.
        nodata: value that missing pixels get, declared in the file; refused where a valid pixel has it.
        allow_missing: parts of the source that cannot be read count as missing and are reported; otherwise they fail
            the job.
    """

    assets: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    bands: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    stack: bool = False
    format: Literal["cog", "geotiff", "nitf"] = "cog"
    block_size: Literal[256, 512, 1024] = 512
    compression: Literal["deflate", "lzw", "zstd", "lerc", "none"] = "deflate"
    level: Annotated[int, Meta(ge=0, le=22)] | None = None
    predictor: Literal["auto", "none", "horizontal", "floating_point"] = "auto"
    max_z_error: Annotated[float, Meta(ge=0)] = 0.0
    overview_levels: Annotated[int, Meta(ge=0, le=16)] | None = None
    overview_resampling: Literal["auto"] | OverviewResampling = "auto"
    mask: Literal["auto", "nodata", "band"] = "auto"
    nodata: float | None = None
    allow_missing: bool = False


class Target(Struct, frozen=True, kw_only=True):
    """One output file: `bands` of assets on one grid, in the file's order."""

    item: InputItem
    key: str
    bands: tuple[tuple[RasterAsset, Band], ...]
    spec: CogSpec


def targets(params: CogParams, inputs: Sequence[InputItem]) -> list[Target]:
    """Every file the job makes, in a fixed order, as far as it is known without opening the sources.

    Raises:
        RequestFault: an item has nothing to convert, or the options do not go together.
    """
    _check_options(params)
    found = []
    for number, item in enumerate(inputs):
        groups = selection.chosen(item, number, params.assets, params.bands)
        if params.stack:
            found.append(_stacked(params, item, number, groups))
        else:
            found += [_target(params, item, asset.key, [(asset, band) for band in bands]) for asset, bands in groups]
    return found


def _check_options(params: CogParams) -> None:
    """Refuse options that contradict each other, before any item is looked at."""
    if params.level is not None:
        low, high = _LEVELS.get(params.compression, (1, 0))
        if not low <= params.level <= high:
            says = f"takes levels {low} to {high}" if high else "has no level"
            raise InvalidParameter(f"{params.compression} {says}; got {params.level}.", pointer="/level")
    if params.max_z_error and params.compression != "lerc":
        raise InvalidParameter(
            f"{params.compression} is lossless; only lerc takes max_z_error.", pointer="/max_z_error"
        )
    if params.predictor not in {"auto", "none"} and params.compression in {"lerc", "none"}:
        raise InvalidParameter(
            f'A predictor prepares pixels for deflate, lzw or zstd; {params.compression} has none. Use "auto".',
            pointer="/predictor",
        )
    if params.overview_levels == 0 and params.format == "cog":
        raise InvalidParameter(
            'A cloud-optimised GeoTIFF has overviews. Use "format": "geotiff" to go without.',
            pointer="/overview_levels",
        )
    if params.mask == "band" and params.nodata is not None:
        raise InvalidParameter(
            "Missing pixels are marked by a mask band or by a nodata value, not both. Leave out one.",
            pointer="/nodata",
        )


def _stacked(
    params: CogParams, item: InputItem, number: int, groups: Sequence[tuple[RasterAsset, list[Band]]]
) -> Target:
    pairs = [(asset, band) for asset, bands in groups for band in bands]
    if params.bands:
        kept = tuple(asset for asset, _ in groups)
        pairs = selection.named_bands(msgspec.structs.replace(item, assets=kept), params.bands)
    first = groups[0][0]
    for asset, _ in groups[1:]:
        for what in ("crs", "transform", "shape"):
            ours, theirs = getattr(first, what), getattr(asset, what)
            if ours != theirs:
                raise GridMismatch(
                    f"Item {item.id}: assets {first.key} and {asset.key} cannot share a file, their {what} differs "
                    f"({ours} and {theirs}). Reproject them onto one grid first, or leave out `stack`.",
                    pointer="/stack" if len(groups) > 1 else f"/inputs/{number}",
                )
    names = [asset.key if len(asset.bands) == 1 else band.name for asset, band in pairs]
    if len(set(names)) < len(names):
        names = [f"{asset.key}:{band.name}" for asset, band in pairs]
    renamed = [
        (asset, msgspec.structs.replace(band, name=name)) for (asset, band), name in zip(pairs, names, strict=True)
    ]
    return _target(params, item, "data", renamed)


def _target(params: CogParams, item: InputItem, key: str, pairs: Sequence[tuple[RasterAsset, Band]]) -> Target:
    bands = [band for _, band in pairs]
    dtype = selection.common_dtype(bands, f"item {item.id}, {key}")
    is_float = dtype.startswith("float")
    if params.predictor == "floating_point" and not is_float:
        raise InvalidParameter(
            f'{key} holds {dtype}; the floating point predictor is for floats. Use "horizontal".', pointer="/predictor"
        )
    if 0 < params.max_z_error < 1 and not is_float:
        raise InvalidParameter(
            f"{key} holds {dtype}; below 1 max_z_error means nothing there. Use 0 or at least 1.",
            pointer="/max_z_error",
        )
    nodata, has_mask = _missing(params, key, dtype, pairs)
    asset = pairs[0][0]
    spec = CogSpec(
        shape=asset.shape,
        transform=asset.transform,
        crs=asset.crs,
        dtype=dtype,
        bands=tuple(bands),
        nodata=nodata,
        has_mask=has_mask,
        block_size=params.block_size,
        compression=params.compression,
        level=params.level,
        max_z_error=params.max_z_error,
        overview_count=params.overview_levels,
    )
    if params.format == "nitf":
        nitf.check(spec, where=f"Item {item.id}, {key}")
    return Target(item=item, key=key, bands=tuple(pairs), spec=spec)


def _missing(
    params: CogParams, key: str, dtype: str, pairs: Sequence[tuple[RasterAsset, Band]]
) -> tuple[float | None, bool]:
    """The output's nodata value and whether it has a mask band."""
    if params.nodata is not None and raster.storable(params.nodata, dtype) is None:
        raise InvalidParameter(f"{key} holds {dtype}, which cannot hold {params.nodata}.", pointer="/nodata")
    declared = [value for _, band in pairs if (value := raster.storable(band.nodata, dtype)) is not None]
    nodata = params.nodata if params.nodata is not None else next(iter(declared), None)
    if nodata is None and dtype.startswith("float"):
        nodata = float("nan")
    is_masked = any(asset.has_mask for asset, _ in pairs)
    if params.mask == "nodata" and nodata is None:
        raise InvalidParameter(
            f"{key} of {dtype} has no nodata value to mark missing pixels with. Give one as `nodata`.", pointer="/mask"
        )
    if params.compression == "lerc" and dtype.startswith("float"):
        # LERC in a TIFF has no place for NaN beside other bands, and moves a nodata value as it moves any other.
        if params.mask == "nodata":
            raise InvalidParameter(
                'LERC cannot mark missing floats by a value. Use "mask": "band" or another compression.',
                pointer="/mask",
            )
        return None, True
    moves_nodata = params.max_z_error > 0 and params.nodata is None
    if params.mask == "band" or (params.mask == "auto" and nodata is not None and moves_nodata):
        return None, True
    if nodata is not None:
        if params.max_z_error > 0:
            raise InvalidParameter(
                'A lossy compression would move the nodata value too. Use "mask": "band".', pointer="/mask"
            )
        return nodata, False
    return None, is_masked or params.allow_missing


def plan(params: CogParams, inputs: Sequence[InputItem]) -> Plan:
    """Cut every file into shards."""
    if not inputs:
        raise InvalidParameter("cog needs at least one input item.", pointer="/inputs")
    shards = []
    merges = []
    notes = []
    for number, target in enumerate(targets(params, inputs)):
        size, count = np.dtype(target.spec.dtype).itemsize, len(target.bands)
        assets = [asset for asset, _ in by_asset(target.bands)]
        shards += [
            product.numbered(shard, number)
            for shard in product.plan_product(
                target.spec,
                bytes_read_per_pixel=sum(product.read_bytes_per_pixel(each, each.window) for each in assets),
                memory_bytes_per_pixel=3 * count * (size + 1),
                seconds_per_pixel=8e-9 * count * size,
            )
        ]
        merges.append(product.merge_bound(target.spec))
        if params.format == "nitf":
            merges.append(nitf.bound(target.spec))
            if (off := nitf.place_error_px(target.spec)) > 0.5:
                notes.append(
                    f"Item {target.item.id}, {target.key}: NITF rounds corners; the file may lie {off:.1f} pixels off."
                )
    return Plan(shards=tuple(shards), merge_bound=total(merges), notes=tuple(notes))


def _dressed(params: CogParams, target: Target) -> CogSpec:
    """The specification with what only the sources' headers tell: colours, tags, and whether the pixels are classes."""
    spec = markings.carried(target.spec, target.bands)
    is_classes = markings.are_classes(spec, target.item.properties)
    resampling, predictor = params.overview_resampling, params.predictor
    if resampling == "auto":
        resampling = "mode" if is_classes else "average"
    if predictor == "auto" and is_classes:
        predictor = "none"
    return msgspec.structs.replace(spec, overview_resampling=resampling, predictor=predictor)


def run(params: CogParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    """Read and encode one shard."""
    shard = msgspec.msgpack.decode(body, type=NumberedShard)
    target = targets(params, inputs)[shard.number]
    spec = _dressed(params, target)
    groups = by_asset((asset, (place, band)) for place, (asset, band) in enumerate(target.bands))
    report = ReadReport()

    def compute(window: Window) -> Stored:
        nonlocal report
        failed: list[FailedRead] = []
        made = _read(params, spec, groups, window, failed)
        counted = window.pixels if made.valid is None else int(np.count_nonzero(made.valid.any(axis=0)))
        report += ReadReport(reads=len(groups), pixels=window.pixels, valid_pixels=counted, failed=tuple(failed))
        _check_nodata(target, spec, made.pixels, made.valid)
        _check_shared_mask(target, spec, groups, made)
        return made

    part = product.run_product(spec, shard.body, attempt, compute, lambda: report)
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(NumberedShard(shard.number, part.body)))


def _read(
    params: CogParams,
    spec: CogSpec,
    groups: Sequence[tuple[RasterAsset, Sequence[tuple[int, Band]]]],
    window: Window,
    failed: list[FailedRead],
) -> Stored:
    """A window of all bands: each comes with its place in the new file."""
    if len(groups) == 1 and not params.allow_missing:
        ((asset, entries),) = groups
        return verbatim.read(spec, asset, [band.index for _, band in entries], window)
    pixels = np.empty((sum(len(entries) for _, entries in groups), window.height, window.width), spec.dtype)
    valid: np.ndarray | None = None
    for asset, entries in groups:
        indexes, places = [band.index for _, band in entries], [place for place, _ in entries]
        if params.allow_missing:
            block = raster.read_tolerant(asset, indexes, window, failed)
        else:
            block = raster.read_block(asset, indexes, window)
        pixels[places] = block.pixels
        if block.valid is not None:
            valid = np.ones(pixels.shape, np.bool_) if valid is None else valid
            valid[places] = block.valid
    return Stored(pixels, valid, {})


def _check_nodata(target: Target, spec: CogSpec, pixels: np.ndarray, valid: np.ndarray | None) -> None:
    """A valid pixel that is taken for the new nodata value would vanish without a word."""
    if spec.nodata is None or np.isnan(spec.nodata):
        return
    nodata = around(spec.nodata, spec.dtype)
    for place, (_, band) in enumerate(target.bands):
        if band.nodata == spec.nodata:
            continue
        hit = are_taken(pixels[place], nodata)
        if (hit if valid is None else hit & valid[place]).any():
            is_alone = len(by_asset(target.bands)) == 1
            other = 'or "mask": "band"' if is_alone else "or leave out `stack`"
            raise InvalidParameter(
                f"Band {band.name} of item {target.item.id} has valid pixels of the value {spec.nodata:g}, or taken "
                f"for it by GDAL, which would become missing. Choose another `nodata`, {other}.",
                pointer="/nodata",
            )


def _check_shared_mask(
    target: Target, spec: CogSpec, groups: Sequence[tuple[RasterAsset, Sequence[tuple[int, Band]]]], made: Stored
) -> None:
    """All bands of the file share its mask, which cannot hide what is missing in some of them only.

    Within one source that is no loss: its missing pixels are those that no band has, and a band that has the nodata
    value beside others that do not may be black, as GDAL's mask of a dataset takes it. What is missing in one of
    several sources would turn into data. LERC turns NaN into 0, so of it even one band is.
    """
    valid = made.valid
    if not spec.has_mask or valid is None:
        return
    where = f"Item {target.item.id}, {target.key}: some pixels are missing in one"
    if spec.compression == "lerc" and (valid.any(axis=0) != valid.all(axis=0)).any():
        raise InvalidParameter(
            f"{where} band and not in another, which LERC cannot store in one file. Convert the bands one by one, or "
            "use another compression.",
            pointer="/compression",
        )
    if len(groups) < 2:
        return
    places = [[place for place, _ in entries] for _, entries in groups]
    owned = np.stack([valid[own].any(axis=0) for own in places])
    for number, own in enumerate(places):
        lost = owned.any(axis=0) & ~owned[number]
        if spec.dtype.startswith("float"):
            lost &= ~np.isnan(made.pixels[own]).all(axis=0)
        if lost.any():
            raise InvalidParameter(
                f"{where} asset ({groups[number][0].key}) and not in another, which one mask for all bands cannot say. "
                "Give a `nodata` value that no valid pixel has, or leave out `stack`.",
                pointer="/stack",
            )


def merge(params: CogParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """Put every file together and make the items."""
    every = targets(params, inputs)
    by_target = product.by_number(parts)
    report = sum((part.report for part in parts), start=ReadReport())
    items = []
    for number, item in enumerate(inputs):
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', item.id)[:80]}_{params.format}"
        name += f"_{number}" if len(inputs) > 1 else ""
        assets: list[OutputAsset] = []
        more: list[OutputAsset] = []
        for place, target in enumerate(every):
            if target.item is not item:
                continue
            spec = _dressed(params, target)
            assets.append(
                product.merge_asset(spec, by_target[place], attempt, name=name, asset_key=target.key, title=item.id)
            )
            if params.format == "nitf":
                more.append(nitf.write(assets[-1], spec, attempt, path=f"{name}/{target.key}.ntf", title=item.id))
        made = product.item(assets, attempt, name=name, at=item.at, title=item.id, properties={"derived_from": item.id})
        items.append(msgspec.structs.replace(made, assets=(*made.assets, *more)))
    summary: dict[str, Any] = {
        "items": len(items),
        "files": len(every),
        "bytes": sum(asset.object.size for made in items for asset in made.assets if "data" in asset.roles),
        "failed_reads": len(report.failed),
    }
    return Result(items=tuple(items), summary=summary, report=report)


METHOD = Method(
    id="cog",
    title="Convert to COG, GeoTIFF or NITF",
    makes=Kind.RASTER,
    params=CogParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=50,
    examples=(
        {"method": "cog"},
        {"method": "cog", "stack": True, "bands": ["red", "green", "blue"], "compression": "zstd", "level": 9},
        {"method": "cog", "compression": "lerc", "max_z_error": 0.01, "block_size": 256},
    ),
)
