"""What every method that makes rasters shares: shards of the output, each streamed, then one COG and its item.

A method brings a `CogSpec` and a function from a window of the output grid to pixels; the rest is here.

    plan_product ──► shards ──run_product──► parts with a segment each ──merge_product──► item: COG + preview
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from math import isqrt
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from eorouter_compute import cog, quicklook, raster
from eorouter_compute.attempt import Attempt, ObjectRef
from eorouter_compute.cog import CogInfo, CogSpec, Pixels, Segment, Stored
from eorouter_compute.grid import SHARD_PIXELS, Window, footprint, tiles
from eorouter_compute.method import Bound, OutputAsset, OutputItem, Part, RasterAsset, ReadReport, Shard

COG_MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"

PIECE_BYTES = 192 << 20
"""Memory one piece may take while it is computed; decides how large pieces are."""

SHARD_SECONDS = 5.0
"""Longest a shard may take by its bound, encoding aside; longer ones would leave workers idle beside busy ones."""

_ENCODE_SECONDS_PER_BYTE = 8e-9
_MERGE_SECONDS_PER_BYTE = 2e-9


class ProductShard(Struct, frozen=True, array_like=True):
    """Body of a shard: a window of the output, streamed in pieces of `piece_side` pixels."""

    window: Window
    piece_side: int


class NumberedShard(Struct, frozen=True, array_like=True):
    """Body of a shard, and of its part, in a job of several products: which one, and its own body."""

    number: int
    body: bytes


def numbered(shard: Shard, number: int) -> Shard:
    """A shard of product `number` of the job."""
    return msgspec.structs.replace(shard, body=msgspec.msgpack.encode(NumberedShard(number, shard.body)))


def by_number(parts: Sequence[Part]) -> dict[int, list[Part]]:
    """Parts of a job of several products, gathered by product, with their own bodies."""
    gathered: dict[int, list[Part]] = {}
    for part in parts:
        shard = msgspec.msgpack.decode(part.body, type=NumberedShard)
        gathered.setdefault(shard.number, []).append(msgspec.structs.replace(part, body=shard.body))
    return gathered


def read_bytes_per_pixel(asset: RasterAsset, window: Window) -> float:
    """Bytes read per pixel of `window`: whole blocks, and with them every band of a pixel-interleaved file."""
    rows, cols = asset.block_shape
    height, width = min(cog.PIECE_SIDE, window.height), min(cog.PIECE_SIDE, window.width)
    blocks = min(height + 2 * rows, asset.shape[0]) * min(width + 2 * cols, asset.shape[1])
    return blocks / (height * width) * sum(np.dtype(band.dtype).itemsize for band in asset.bands)


def plan_product(
    spec: CogSpec,
    *,
    bytes_read_per_pixel: float,
    memory_bytes_per_pixel: float,
    seconds_per_pixel: float,
    shard_pixels: int | None = None,
) -> tuple[Shard, ...]:
    """Cut the output of `spec` into shards, row by row, each with its bound.

    Args:
        spec: the raster to make.
        bytes_read_per_pixel: bytes the method reads from the object store per output pixel, at most.
        memory_bytes_per_pixel: bytes the method holds per output pixel of a piece, its result included.
        seconds_per_pixel: core seconds of the method per output pixel, without encoding.
        shard_pixels: largest shard; by default what `grid.SHARD_PIXELS` says. Where that takes long it is made smaller,
            so that there is work for every worker.
    """
    memory = memory_bytes_per_pixel + _encode_bytes_per_pixel(spec)
    shard_side = isqrt(shard_pixels or SHARD_PIXELS.get())
    while min(shard_side**2, spec.window.pixels) * seconds_per_pixel > SHARD_SECONDS and shard_side > spec.block_size:
        shard_side //= 2
    step = piece_side(spec, memory_bytes_per_pixel, shard_side)
    side = max(shard_side // step, 1) * step
    shards = []
    for window in tiles(spec.window, side):
        piece = min(window.pixels, step * step)
        written = _written_bytes(spec, window)
        bound = Bound(
            pixels=window.pixels,
            bytes_read=int(window.pixels * bytes_read_per_pixel),
            bytes_written=written,
            memory_bytes=int(piece * memory) + (16 << 20),
            seconds=window.pixels * seconds_per_pixel + written * _ENCODE_SECONDS_PER_BYTE,
        )
        shards.append(Shard(body=msgspec.msgpack.encode(ProductShard(window, step)), bound=bound))
    return tuple(shards)


def merge_bound(spec: CogSpec) -> Bound:
    """Bound of `merge_product` for one product."""
    written = _written_bytes(spec, spec.window)
    row = spec.block_size * spec.shape[1] * _pixel_bytes(spec) * 2
    return Bound(
        pixels=0,
        bytes_read=written,
        bytes_written=written + (8 << 20),
        memory_bytes=row + 2 * row * cog.PIECE_SIDE // spec.block_size + (96 << 20),
        seconds=0.05 + written * _MERGE_SECONDS_PER_BYTE,
    )


def run_product(
    spec: CogSpec,
    shard_body: bytes,
    attempt: Attempt,
    compute: Callable[[Window], Pixels | Stored],
    report: Callable[[], ReadReport],
) -> Part:
    """Compute and encode one shard, piece by piece.

    `compute` gets windows of the output grid and gives pixels (band, y, x) of `spec.dtype` with valid (y, x) or
    (band, y, x), None when nothing is missing. `report` is asked once, at the end.
    """
    shard = msgspec.msgpack.decode(shard_body, type=ProductShard)
    segment, objects = encode(spec, shard.window, shard.piece_side, attempt, compute)
    return Part(body=msgspec.msgpack.encode(segment), objects=objects, report=report())


def encode(
    spec: CogSpec, window: Window, side: int, attempt: Attempt, compute: Callable[[Window], Pixels | Stored]
) -> tuple[Segment, dict[str, ObjectRef]]:
    """Encode a window of a product in pieces of `side` pixels; the segment, and the object of the attempt it is in.

    Where the attempt asks for less memory, `compute` gets each piece in parts; the bytes stay the same.
    """
    if attempt.halvings:
        compute = _in_parts(compute, max(side >> attempt.halvings, min(side, spec.block_size)))
    with attempt.create("segment.bin", is_passing=True) as target:
        segment = cog.encode(
            spec,
            window,
            compute,
            target,
            href=attempt.prefix + "segment.bin",
            piece_side=side,
            advance=attempt.advance,
        )
    return segment, {"segment": attempt.refs["segment.bin"]}


def _in_parts(compute: Callable[[Window], Pixels | Stored], side: int) -> Callable[[Window], Stored]:
    """`compute`, asked for squares of `side` pixels only; a multiple of a tile's side, so that the same tiles pass."""

    def whole(window: Window) -> Stored:
        pixels, valid = None, None
        packed: dict[tuple[int, int], bytes] = {}
        for place in tiles(window, side):
            made = compute(place)
            part = made if isinstance(made, Stored) else Stored(*made, {})
            if place == window:
                return part
            at = (..., *place.relative_to(window))
            if pixels is None:
                pixels = np.empty((len(part.pixels), window.height, window.width), part.pixels.dtype)
            pixels[at] = part.pixels
            packed |= part.tiles
            if part.valid is not None:
                if valid is None:
                    valid = np.ones((*part.valid.shape[:-2], window.height, window.width), np.bool_)
                elif part.valid.ndim > valid.ndim:
                    valid = np.repeat(valid[None], len(pixels), axis=0)
                valid[at] = part.valid
        if pixels is None:
            raise ValueError(f"{window} is empty")
        return Stored(pixels, valid, packed)

    return whole


def merge_product(
    spec: CogSpec,
    parts: Sequence[Part],
    attempt: Attempt,
    *,
    name: str,
    at: datetime | None = None,
    title: str = "",
    properties: dict[str, Any] | None = None,
    style: quicklook.Style | None = None,
    asset_key: str = "data",
) -> OutputItem:
    """Put the parts of one product together: an item with its COG and a preview."""
    asset = merge_asset(spec, parts, attempt, name=name, asset_key=asset_key, title=title)
    return item([asset], attempt, name=name, at=at, title=title, properties=properties, style=style)


def merge_asset(
    spec: CogSpec, parts: Sequence[Part], attempt: Attempt, *, name: str, asset_key: str = "data", title: str = ""
) -> OutputAsset:
    """Put the parts of one product together as an asset `asset_key` of item `name`."""
    segments = [msgspec.msgpack.decode(part.body, type=Segment) for part in parts]
    return assemble(spec, segments, attempt, path=f"{name}/{asset_key}.tif", asset_key=asset_key, title=title)


def assemble(
    spec: CogSpec, segments: Sequence[Segment], attempt: Attempt, *, path: str, asset_key: str = "data", title: str = ""
) -> OutputAsset:
    """Write the COG of all segments as object `path` of the attempt, and describe it."""
    with attempt.create(path) as out:
        info = cog.assemble(spec, segments, out, advance=attempt.advance)
    return cog_asset(spec, info, attempt, path=path, asset_key=asset_key, title=title)


def cog_asset(
    spec: CogSpec, info: CogInfo, attempt: Attempt, *, path: str, asset_key: str = "data", title: str = ""
) -> OutputAsset:
    """Describe a COG that was just written as object `path` of the attempt."""
    ref = attempt.refs[path]
    return OutputAsset(
        key=asset_key,
        object=ref,
        media_type=COG_MEDIA_TYPE,
        roles=("data",),
        filename=path.replace("/", "_"),
        title=title,
        raster=RasterAsset(
            key=asset_key,
            href=ref.href,
            crs=spec.crs,
            transform=spec.transform,
            shape=spec.shape,
            bands=tuple(
                msgspec.structs.replace(band, index=index, dtype=spec.dtype, nodata=spec.nodata)
                for index, band in enumerate(spec.bands, start=1)
            ),
            block_shape=(spec.block_size, spec.block_size),
            has_mask=spec.has_mask,
            sha256=ref.sha256,
        ),
        statistics=tuple(row.as_dict() for row in info.statistics),
    )


def item(
    assets: Sequence[OutputAsset],
    attempt: Attempt,
    *,
    name: str,
    at: datetime | None = None,
    title: str = "",
    properties: dict[str, Any] | None = None,
    style: quicklook.Style | None = None,
) -> OutputItem:
    """An output item of raster assets: adds a preview of the first one, and the footprint of all."""
    rasters = [asset.raster for asset in assets if asset.raster is not None]
    shown = preview(rasters, attempt, name=name, style=style)
    geometry, bbox = _footprint_of(rasters)
    return OutputItem(
        name=name,
        assets=(*assets, shown),
        footprint=geometry,
        bbox=bbox,
        at=at,
        title=title,
        properties=properties or {},
    )


def preview(
    rasters: Sequence[RasterAsset], attempt: Attempt, *, name: str, style: quicklook.Style | None = None
) -> OutputAsset:
    """A PNG of the item: its red, green and blue bands when one asset or three alike have them, else its first band."""
    block = _preview_pixels(rasters, style)
    ref = attempt.write(f"{name}/preview.png", quicklook.render(block.pixels, block.valid, style=style))
    return OutputAsset(
        key="preview",
        object=ref,
        media_type="image/png",
        roles=("overview", "thumbnail"),
        filename=f"{name}_preview.png",
        title="Preview",
    )


def _preview_pixels(rasters: Sequence[RasterAsset], style: quicklook.Style | None) -> raster.Block:
    side = quicklook.SIDE_MAX
    if style in {None, "rgb"}:
        found = {
            band.common_name: (asset, band.index)
            for asset in reversed(rasters)
            for band in reversed(asset.bands)
            if band.common_name in {"red", "green", "blue"}
        }
        if len(found) == 3:
            wanted = [found["red"], found["green"], found["blue"]]
            if len({asset.shape for asset, _ in wanted}) == 1:
                blocks = [raster.read_preview(asset, [index], side) for asset, index in wanted]
                return _stacked(blocks)
        first = rasters[0]
        if style == "rgb" and len(first.bands) >= 3:
            return raster.read_preview(first, [band.index for band in first.bands[:3]], side)
    return raster.read_preview(rasters[0], [rasters[0].bands[0].index], side)


def _stacked(blocks: Sequence[raster.Block]) -> raster.Block:
    pixels = np.concatenate([block.pixels for block in blocks])
    if all(block.valid is None for block in blocks):
        return raster.Block(pixels, None)
    masks = [np.ones(block.pixels.shape, np.bool_) if block.valid is None else block.valid for block in blocks]
    return raster.Block(pixels, np.concatenate(masks))


def _footprint_of(rasters: Sequence[RasterAsset]) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
    """Footprint of the raster that covers most ground; assets of one item show one place."""
    widest = max(rasters, key=lambda asset: asset.pixel_area * asset.window.pixels)
    return footprint(widest.crs, widest.shape, widest.transform)


def _pixel_bytes(spec: CogSpec) -> int:
    return len(spec.bands) * np.dtype(spec.dtype).itemsize


def _encode_bytes_per_pixel(spec: CogSpec) -> float:
    """What the writer holds: pixels settled and halved, valid flags of both, tiles of a level."""
    return 2.5 * _pixel_bytes(spec) + 2.5 * len(spec.bands) + 1.0


def piece_side(spec: CogSpec, memory_bytes_per_pixel: float, shard_side: int = cog.PIECE_SIDE) -> int:
    """Side of the pieces in which a product is streamed: what memory and the shard allow, at most `cog.PIECE_SIDE`."""
    bytes_per_pixel = memory_bytes_per_pixel + _encode_bytes_per_pixel(spec)
    side = spec.block_size
    while 2 * side <= min(cog.PIECE_SIDE, shard_side) and 4 * side * side * bytes_per_pixel <= PIECE_BYTES:
        side *= 2
    return side


def _written_bytes(spec: CogSpec, window: Window) -> int:
    """Most bytes a window can take with its pyramid: whole tiles that do not compress at all, LZW even growing."""
    side = spec.block_size
    rows, cols = -(-window.height // side) * side, -(-window.width // side) * side
    growth = {"lzw": 1.6, "none": 1.0}.get(spec.compression, 1.01)
    plain = rows * cols * (_pixel_bytes(spec) + (0.2 if spec.has_mask else 0.0)) * growth
    return int(plain * 1.75) + (1 << 16)
