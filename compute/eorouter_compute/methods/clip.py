"""Clip: cut rasters to an area of interest, pixels untouched, outside masked."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import markings, product, raster, selection, verbatim
from eorouter_compute.aoi import CRS84, Bbox, Coverage, PixelRule, onto, parse, refuse_empty, window_of
from eorouter_compute.attempt import Attempt
from eorouter_compute.cog import CogSpec, Stored
from eorouter_compute.cogfile import OverviewResampling
from eorouter_compute.errors import AoiOutside, ComputeError, InvalidParameter
from eorouter_compute.grid import Window, shifted
from eorouter_compute.method import (
    Band,
    Bound,
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
from eorouter_compute.product import NumberedShard


class ClipParams(Params, frozen=True, kw_only=True, tag="clip"):
    """Cut rasters to an area of interest; pixel values are not touched, pixels outside are masked.

    Every input item gives one output item; every raster asset of it, on its own grid, gives one COG. Names, scales,
    offsets, units, colours, colour tables and tags of the bands and of the file are carried over.

    Attributes:
        aoi: GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection, or [west, south, east, north].
        crs: what the coordinates of `aoi` are in; longitude and latitude by default.
        bands: bands to keep, by name or common name, in this order; all by default.
        assets: keys of the raster assets to clip; all by default.
        pixel_rule: a pixel belongs to the area when its centre is inside, when the area touches it, or when the area
            covers at least `min_coverage` of it.
        min_coverage: fraction of a pixel, above 0 and at most 1; for the rule "coverage", computed exactly.
        outside: what to do with an asset that the area does not meet: refuse the job and say how far away it is, or
            skip it with a note. An area that meets nothing at all is refused in any case.
        allow_missing: parts of a source that cannot be read count as missing and are reported; otherwise the job fails.
        crop: cut the raster down to the area's bounds; otherwise keep its extent and only mask.
        mask: how missing pixels are stored. "nodata" keeps or sets a nodata value, "band" writes a mask band, "auto"
            takes nodata where the source has one or holds floats, else the mask band.
        overview_resampling: how the output's overviews are made; "auto" is mode for classes and average otherwise.
    """

    aoi: dict[str, Any] | Bbox
    crs: str = CRS84
    bands: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    assets: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    pixel_rule: PixelRule = "center"
    min_coverage: Annotated[float, Meta(gt=0, le=1)] = 0.5
    outside: Literal["refuse", "skip"] = "refuse"
    allow_missing: bool = False
    crop: bool = True
    mask: Literal["auto", "nodata", "band"] = "auto"
    overview_resampling: Literal["auto"] | OverviewResampling = "auto"


class Target(Struct, frozen=True, kw_only=True):
    """One output COG: the bands `indexes` of `asset`, within `window`, masked by `area` (in the raster's CRS)."""

    item: InputItem
    asset: RasterAsset
    indexes: tuple[int, ...]
    window: Window
    area: Any
    spec: CogSpec


def targets(params: ClipParams, inputs: Sequence[InputItem]) -> tuple[list[Target], list[str]]:
    """Every COG the job makes, in a fixed order, and notes on what was skipped; the same in planning and merging.

    Raises:
        RequestFault: an item has nothing to clip, or the area does not meet it.
    """
    area = parse(params.aoi, params.crs)
    found: list[Target] = []
    outside: list[str] = []
    last: AoiOutside | None = None
    for number, item in enumerate(inputs):
        for asset, bands in selection.chosen(item, number, params.assets, params.bands):
            try:
                placed = onto(area, params.crs, asset.crs, asset.transform, asset.shape)
            except ComputeError as error:
                if params.outside == "skip" and isinstance(error, AoiOutside):
                    outside.append(f"Skipped item {item.id}, asset {asset.key}: {error.message}")
                    last = error
                    continue
                where = f"Item {item.id}, asset {asset.key}: "
                raise type(error)(where + error.message, pointer=error.pointer, **error.data) from None
            window = window_of(placed, asset.transform, asset.shape) if params.crop else asset.window
            found.append(
                Target(
                    item=item,
                    asset=asset,
                    indexes=tuple(band.index for band in bands),
                    window=window,
                    area=placed,
                    spec=_spec(params, asset, bands, window),
                )
            )
    if last is not None and not found:
        raise AoiOutside(f"The area meets none of the rasters. {last.message}", pointer=last.pointer, **last.data)
    return found, outside


def _spec(params: ClipParams, asset: RasterAsset, bands: Sequence[Band], window: Window) -> CogSpec:
    dtype = selection.common_dtype(bands, f"asset {asset.key}")
    declared = {raster.storable(band.nodata, dtype) for band in bands}
    values = {repr(value) for value in declared}
    nodata = next(iter(declared)) if len(values) == 1 else None
    if nodata is None and dtype.startswith("float"):
        nodata = float("nan")
    if params.mask == "nodata" and nodata is None:
        raise InvalidParameter(
            f"Asset {asset.key} of {dtype} has no common nodata value to mark pixels outside the area with. "
            'Use "mask": "band".',
            pointer="/mask",
        )
    has_mask = params.mask == "band" or nodata is None
    return CogSpec(
        shape=(window.height, window.width),
        transform=shifted(asset.transform, window),
        crs=asset.crs,
        dtype=dtype,
        bands=tuple(bands),
        nodata=None if has_mask else nodata,
        has_mask=has_mask,
    )


def _dressed(params: ClipParams, target: Target) -> CogSpec:
    """The specification with what only the source's header tells: colours, tags, and whether the pixels are classes."""
    spec = markings.carried(target.spec, [(target.asset, band) for band in target.spec.bands])
    is_classes = markings.are_classes(spec, target.item.properties)
    resampling = params.overview_resampling
    if resampling == "auto":
        resampling = "mode" if is_classes else "average"
    return msgspec.structs.replace(
        spec, overview_resampling=resampling, predictor="none" if is_classes else target.spec.predictor
    )


def plan(params: ClipParams, inputs: Sequence[InputItem]) -> Plan:
    """Cut every target into shards."""
    if not inputs:
        raise InvalidParameter("clip needs at least one input item.", pointer="/inputs")
    shards = []
    merges = []
    every, notes = targets(params, inputs)
    for number, target in enumerate(every):
        _refuse_empty(params, target)
        size = np.dtype(target.spec.dtype).itemsize
        made = product.plan_product(
            target.spec,
            bytes_read_per_pixel=product.read_bytes_per_pixel(target.asset, target.window),
            memory_bytes_per_pixel=2 * len(target.indexes) * (size + 1) + 2,
            seconds_per_pixel=8e-9 * len(target.indexes) * size + 2e-9,
        )
        shards.extend(product.numbered(shard, number) for shard in made)
        merges.append(product.merge_bound(target.spec))
    return Plan(shards=tuple(shards), merge_bound=total(merges) if merges else Bound(), notes=tuple(notes))


def _refuse_empty(params: ClipParams, target: Target) -> None:
    lower = f'Lower "min_coverage" (now {params.min_coverage:g}), or use' if params.pixel_rule == "coverage" else "Use"
    refuse_empty(
        target.area,
        target.asset.transform,
        target.asset.shape,
        params.pixel_rule,
        of=f"item {target.item.id}, asset {target.asset.key}",
        mend=f'{lower} "pixel_rule": "all_touched".',
        pointer="/pixel_rule",
        min_coverage=params.min_coverage,
    )


def _coverage(params: ClipParams, target: Target) -> Coverage:
    return Coverage(
        target.area, target.spec.transform, target.spec.shape, params.pixel_rule, min_coverage=params.min_coverage
    )


def run(params: ClipParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    """Read, mask and encode one shard."""
    shard = msgspec.msgpack.decode(body, type=NumberedShard)
    target = targets(params, inputs)[0][shard.number]
    coverage = _coverage(params, target)
    report = ReadReport()

    def compute(window: Window) -> Stored:
        nonlocal report
        inside = coverage.covered(window)
        if not inside.any():
            return Stored(np.zeros((len(target.indexes), *inside.shape), target.spec.dtype), inside, {})
        source = Window(window.row + target.window.row, window.col + target.window.col, window.height, window.width)
        failed: list[FailedRead] = []
        if params.allow_missing:
            block = Stored(*raster.read_tolerant(target.asset, target.indexes, source, failed), {})
        else:
            corner = (target.window.row, target.window.col)
            block = verbatim.read(target.spec, target.asset, target.indexes, window, origin=corner)
        valid = inside if block.valid is None else block.valid & inside
        counted = valid if valid.ndim == 2 else valid.any(axis=0)
        report += ReadReport(
            reads=1,
            pixels=int(np.count_nonzero(inside)),
            valid_pixels=int(np.count_nonzero(counted)),
            failed=tuple(failed),
        )
        return block._replace(valid=None if valid.all() else valid)

    part = product.run_product(_dressed(params, target), shard.body, attempt, compute, lambda: report)
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(NumberedShard(shard.number, part.body)))


def merge(params: ClipParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """Put every COG together and make the items."""
    every, notes = targets(params, inputs)
    by_target = product.by_number(parts)
    report = sum((part.report for part in parts), start=ReadReport())
    items: list[OutputItem] = []
    for number, item in enumerate(inputs):
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', item.id)[:80]}_clip" + (f"_{number}" if len(inputs) > 1 else "")
        specs = {place: _dressed(params, target) for place, target in enumerate(every) if target.item is item}
        assets = [
            product.merge_asset(
                spec,
                by_target[place],
                attempt,
                name=name,
                asset_key=every[place].asset.key,
                title=f"{item.id}, clipped",
            )
            for place, spec in specs.items()
        ]
        if not assets:
            continue
        items.append(
            product.item(
                assets,
                attempt,
                name=name,
                at=item.at,
                title=f"{item.id}, clipped",
                properties={"derived_from": item.id, "pixel_rule": params.pixel_rule},
                style="class" if all(spec.overview_resampling == "mode" for spec in specs.values()) else None,
            )
        )
    summary = {
        "items": len(items),
        "skipped": notes,
        "pixels": report.pixels,
        "valid_fraction": report.valid_pixels / report.pixels if report.pixels else None,
    }
    return Result(items=tuple(items), summary=summary, report=report)


METHOD = Method(
    id="clip",
    title="Clip to an area",
    makes=Kind.RASTER,
    params=ClipParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=50,
    examples=(
        {"method": "clip", "aoi": [11.1, 46.2, 11.4, 46.4]},
        {
            "method": "clip",
            "aoi": {
                "type": "Polygon",
                "coordinates": [[[600000, 5100000], [610000, 5100000], [610000, 5110000], [600000, 5100000]]],
            },
            "crs": "EPSG:32632",
            "bands": ["red", "nir"],
            "pixel_rule": "all_touched",
            "mask": "band",
        },
    ),
)
