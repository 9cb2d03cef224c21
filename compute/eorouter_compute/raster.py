"""The only module that opens rasters: what a file says about itself, and its pixels with what is missing.

Pixels of ordinary TIFFs are unpacked by `blocks`; GDAL describes every file, reads the others, and has the last word
on what is broken. It is kept on a short lead. Two drivers may open a file; those that reach out to other files or to
the network are never registered; sidecar files are not looked for; a file that names an overview elsewhere is refused.
Datasets are not safe to share between threads (GDAL RFC 101 comes later than the version we stand on), so each thread
keeps its own few. Remote reads are repeated with growing pauses and, when given up, name the source and the window.
"""

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from eorouter_compute import blocks, gdal, missing, sources, witness
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import (
    DecompressionBomb,
    NoCrs,
    NotARaster,
    SourceFault,
    SourceTruncated,
    SourceUnreadable,
    TooLarge,
    UnsupportedFormat,
)
from eorouter_compute.grid import Window
from eorouter_compute.method import Band, FailedRead, RasterAsset
from eorouter_compute.missing import storable

T = TypeVar("T")

# A file without a place is an answer here (`Inspection.problem`), not a surprise.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

DRIVERS = ("GTiff", "JP2OpenJPEG")
"""Formats that are read. Both are single files, carry their own georeference and are read window by window. Raw formats
with headers beside them, containers with links (VRT, SAFE, HDF) and pictures without a place on Earth are not."""

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
"""Pixel types that are read; `ingest` makes narrower ones of 64-bit integers. Complex ones are not."""

BLOCK_PIXELS_MAX = 1 << 28
"""Most pixels (of all bands together) one read may ask for."""

TILE_BYTES_MAX = 1 << 28
"""Largest tile or strip, unpacked, that is read: a tile is always unpacked whole."""

BANDS_MAX = 1024

_DATASETS_PER_THREAD = 32
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
_VSI = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "azure": "/vsiaz/"}
_COMMON_NAMES = frozenset({
    "pan", "coastal", "blue", "green", "green05", "yellow", "red", "rededge", "rededge071", "rededge075", "rededge078",
    "nir", "nir08", "nir09", "cirrus", "swir16", "swir22", "lwir", "lwir11", "lwir12",
})  # fmt: skip


class Block(NamedTuple):
    """Pixels (band, y, x) as the file stores them; `valid` (band, y, x) is False where data is missing, or None."""

    pixels: np.ndarray
    valid: np.ndarray | None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """All that a file says about itself without a pixel being read.

    `asset` is None where the file has no place on Earth; `problem` then says why.
    """

    asset: RasterAsset | None
    problem: str
    driver: str
    shape: tuple[int, int]
    band_count: int
    dtypes: tuple[str, ...]
    color_interpretation: tuple[str, ...]
    compression: str | None
    overviews: tuple[int, ...]
    is_tiled: bool
    gcp_count: int
    subdatasets: int
    tags: dict[str, str]
    band_tags: tuple[dict[str, str], ...]
    color_table: dict[int, tuple[int, int, int]]


def warm_up() -> None:
    """Register the drivers and take every GDAL path that two threads must not take first (rasterio issue 3611)."""
    import rasterio.features
    import rasterio.warp
    from rasterio.io import MemoryFile

    with rasterio.Env(**gdal.OPTIONS), MemoryFile() as memory:
        with memory.open(driver="GTiff", width=16, height=16, count=1, dtype="uint8", crs="EPSG:4326") as sample:
            sample.write(np.eye(16, dtype=np.uint8), 1)
        with memory.open() as sample:
            sample.read(1)
        list(rasterio.features.shapes(np.eye(4, dtype=np.uint8)))
        rasterio.features.rasterize([{"type": "Point", "coordinates": (1.0, 1.0)}], out_shape=(4, 4))
        rasterio.warp.transform("EPSG:4326", "EPSG:3857", [0.0], [0.0])


def gdal_path(href: str) -> str:
    """What GDAL calls the object at `href`: a local path, or a path of its S3, Google or Azure file system.

    Raises:
        SourceUnreadable: the URL has a scheme that is not read; web addresses are fetched by the gateway, not by
            workers.
    """
    path = local_path(href)
    if path is not None:
        if str(path).startswith("/vsi"):
            raise SourceUnreadable(f"{href}: paths of GDAL's virtual file systems are not accepted.", source=href)
        return str(path)
    parts = urlsplit(href)
    if parts.scheme not in _VSI or not parts.netloc or parts.query:
        raise SourceUnreadable(
            f"{href}: expected file://, s3://, gs:// or az://, got {parts.scheme}://. Make it an item first.",
            source=href,
        )
    return _VSI[parts.scheme] + parts.netloc + unquote(parts.path)


def read_block(asset: RasterAsset, bands: Sequence[int], window: Window) -> Block:
    """Read bands (counted from 1) of a window, and what is missing in them.

    Missing is: the band's `nodata` as the asset describes it, NaN, and what the file's own mask or alpha bands hide. A
    `nodata` that the pixel type cannot hold hides nothing.

    Raises:
        SourceUnreadable, SourceTruncated: the window could not be read, or the file is not what `asset` describes.
        TooLarge: the window is larger than a read may be.
    """
    if not window.pixels or window.intersect(asset.window) != window:
        raise ValueError(f"{window} is not inside {asset.key} of shape {asset.shape}")
    if window.pixels * len(bands) > BLOCK_PIXELS_MAX:
        raise TooLarge(f"A read of {window.pixels * len(bands)} pixels exceeds the limit of {BLOCK_PIXELS_MAX}.")
    return _read_block(asset, bands, window)


def read_stored(asset: RasterAsset, bands: Sequence[int], window: Window, out: np.ndarray) -> np.ndarray | None:
    """Read bands (counted from 1) of a window into `out` (band, y, x); what the file's own mask says, None for all.

    The quick way for who tests for nodata himself: nodata and NaN are left to the caller.

    Raises:
        SourceUnreadable, SourceTruncated: as `read_block`.
    """
    with witness.reading():
        found = blocks.read(asset.href, asset.shape, out.dtype.name, bands, window, with_mask=asset.has_mask, out=out)
    if found is not None:
        witness.count_read(out.nbytes)
        return found[1]
    block = read_block(asset, bands, window)
    out[...] = block.pixels
    return block.valid


def read_with_tiles(asset: RasterAsset, bands: Sequence[int], window: Window, tiles: blocks.Tiles) -> Block:
    """Like `read_block`, and `tiles` collects the packed tiles of the window that are stored as it asks.

    What it collects depends on the file alone, not on how often a network had to be asked.
    """
    for pause in (*_PAUSES_S, None) if local_path(asset.href) is None else (None,):
        try:
            if not blocks.suit(asset.href, bands, tiles):
                break
            return _read_tiles(asset, bands, window, tiles)
        except OSError as error:
            if pause is None:
                raise _verdict(asset.href, window, error, tries=1 + len(_PAUSES_S)) from error
            time.sleep(pause)
    return read_block(asset, bands, window)


def _read_tiles(asset: RasterAsset, bands: Sequence[int], window: Window, tiles: blocks.Tiles) -> Block:
    """Read at once, or tile by tile where one of them is for GDAL to judge: the others pass as they are."""
    dtype = next(band.dtype for band in asset.bands if band.index == bands[0])
    found = blocks.read(asset.href, asset.shape, dtype, bands, window, with_mask=asset.has_mask, tiles=tiles)
    if found is not None:
        return Block(found[0], missing.valid(asset, bands, *found))
    places = list(_blocks(asset, window))
    if len(places) == 1:
        return _read_block(asset, bands, window)
    pixels = _nothing(asset, bands, window).pixels
    valid = np.zeros(pixels.shape, np.bool_)
    for place in places:
        part, where = _read_tiles(asset, bands, place, tiles), place.relative_to(window)
        pixels[:, *where] = part.pixels
        valid[:, *where] = True if part.valid is None else part.valid
    return Block(pixels, valid)


def read_tolerant(asset: RasterAsset, bands: Sequence[int], window: Window, failed: list[FailedRead]) -> Block:
    """Like `read_block`, but what cannot be read is missing, and is named in `failed`.

    Only the broken part is lost: after a failure the window is read again block by block of the file, and band by band
    where a block fails. Lost pixels hold the band's nodata, or NaN or 0 where it has none.

    Raises:
        TooLarge: the window is larger than a read may be.
    """
    try:
        return read_block(asset, bands, window)
    except SourceFault as error:
        found = error
    try:
        _with_retries(asset.href, None, lambda dataset: _check(dataset, asset, bands), is_patient=False)
    except SourceFault as error:
        failed.append(_failed(asset, window, error))
        return _nothing(asset, bands, window)
    block = _nothing(asset, bands, window)
    valid = np.zeros(block.pixels.shape, np.bool_)
    lost: list[FailedRead] = []
    for place in _blocks(asset, window):
        inside = place.relative_to(window)
        for number, band in enumerate(bands):
            try:
                part = _read_block(asset, [band], place, is_patient=False)
            except SourceFault as error:
                _add(lost, _failed(asset, place, error))
                continue
            block.pixels[number][inside] = part.pixels[0]
            valid[number][inside] = True if part.valid is None else part.valid[0]
    failed.extend(lost or [_failed(asset, window, found)])
    return Block(block.pixels, valid if lost or not valid.all() else None)


def _blocks(asset: RasterAsset, window: Window) -> Iterator[Window]:
    """The parts of the file's blocks that lie in `window`, row by row."""
    rows, cols = asset.block_shape
    for row in range(window.row - window.row % rows, window.row_stop, rows):
        for col in range(window.col - window.col % cols, window.col_stop, cols):
            yield Window(row, col, rows, cols).intersect(window)


def _failed(asset: RasterAsset, window: Window, error: SourceFault) -> FailedRead:
    return FailedRead(source=asset.href, window=window, reason=str(error.data.get("reason", error.message)))


def _add(lost: list[FailedRead], new: FailedRead) -> None:
    """Append `new`, or stretch the last entry over it: half a file of strips is one failure."""
    if not lost:
        lost.append(new)
        return
    a, b = lost[-1].window, new.window
    if (a.col, a.width) == (b.col, b.width) and a.row <= b.row <= a.row_stop:
        lost[-1] = msgspec.structs.replace(lost[-1], window=Window(a.row, a.col, b.row_stop - a.row, a.width))
    elif (a.row, a.height) == (b.row, b.height) and a.col <= b.col <= a.col_stop:
        lost[-1] = msgspec.structs.replace(lost[-1], window=Window(a.row, a.col, a.height, b.col_stop - a.col))
    else:
        lost.append(new)


def _nothing(asset: RasterAsset, bands: Sequence[int], window: Window) -> Block:
    """A block of which everything is missing."""
    by_index = {band.index: band for band in asset.bands}
    pixels = np.empty((len(bands), window.height, window.width), by_index[bands[0]].dtype)
    for number, band in enumerate(bands):
        fill = storable(by_index[band].nodata, pixels.dtype.name)
        pixels[number] = (np.nan if pixels.dtype.kind == "f" else 0) if fill is None else fill
    return Block(pixels, np.zeros(pixels.shape, np.bool_))


def _read_block(asset: RasterAsset, bands: Sequence[int], window: Window, *, is_patient: bool = True) -> Block:
    with witness.reading():
        block = _fetch_block(asset, bands, window, is_patient=is_patient)
    witness.count_read(block.pixels.nbytes)
    return block


def _fetch_block(asset: RasterAsset, bands: Sequence[int], window: Window, *, is_patient: bool) -> Block:
    dtypes = {band.dtype for band in asset.bands if band.index in bands}
    if len(dtypes) == 1:
        found = blocks.read(asset.href, asset.shape, dtypes.pop(), bands, window, with_mask=asset.has_mask)
        if found is not None:
            return Block(found[0], missing.valid(asset, bands, *found))
    where = RasterioWindow(window.col, window.row, window.width, window.height)  # pyright: ignore[reportCallIssue]

    def read(dataset: Any) -> Block:
        _check(dataset, asset, bands)
        pixels = dataset.read(list(bands), window=where)
        mask = _shown(dataset, bands, window=where) if asset.has_mask else None
        return Block(pixels, missing.valid(asset, bands, pixels, mask))

    return _with_retries(asset.href, window, read, is_patient=is_patient)


def read_preview(asset: RasterAsset, bands: Sequence[int], side_max: int) -> Block:
    """The whole raster in at most `side_max` pixels along its longer side, as an overview, or thinned if none fits."""

    def read(dataset: Any) -> Block:
        _check(dataset, asset, bands)
        factors = [n for n in dataset.overviews(bands[0]) if n * side_max >= max(asset.shape) > n * side_max / 2]
        factor = factors[0] if factors else max(max(asset.shape) / side_max, 1.0)
        shape = tuple(max(int(np.ceil(size / factor - 1e-9)), 1) for size in asset.shape)
        pixels = dataset.read(list(bands), out_shape=(len(bands), *shape))
        mask = _shown(dataset, bands, out_shape=shape) if asset.has_mask else None
        return Block(pixels, missing.valid(asset, bands, pixels, mask))

    with witness.reading():
        block = _with_retries(asset.href, asset.window, read)
    witness.count_read(block.pixels.nbytes)
    return block


def _shown(dataset: Any, bands: Sequence[int], **how: Any) -> np.ndarray:
    return missing.shown(
        dataset, bands, lambda band: dataset.read(band, **how), lambda band: dataset.read_masks(band, **how)
    )


def _check(dataset: Any, asset: RasterAsset, bands: Sequence[int]) -> None:
    """The plan was made from a description; pixels that do not fit it must not be used."""
    dtypes = {band.index: band.dtype for band in asset.bands}
    for band in bands:
        if dataset.shape != asset.shape or band > dataset.count or dataset.dtypes[band - 1] != dtypes.get(band, ""):
            found = dataset.dtypes[band - 1] if band <= dataset.count else f"only {dataset.count} bands"
            raise SourceUnreadable(
                f"{asset.href} is not what its description says: band {band} is expected as {dtypes.get(band)} of "
                f"shape {asset.shape}, the file has {found} of shape {dataset.shape}. Describe the item again.",
                source=asset.href,
            )


def describe(href: str, key: str = "data") -> RasterAsset:
    """Describe a raster well enough to plan with it and to read it.

    Raises:
        NotARaster, UnsupportedFormat, SourceTruncated, SourceUnreadable: the file cannot be opened; says why.
        NoCrs: it does not say where on Earth it lies.
    """
    inspection = inspect(href, key)
    if inspection.asset is None:
        raise NoCrs(inspection.problem, source=href)
    return inspection.asset


def inspect(href: str, key: str = "data") -> Inspection:
    """Read everything a file says about itself, place or no place.

    Raises:
        NotARaster, UnsupportedFormat, SourceTruncated, SourceUnreadable: the file cannot be opened; says why.
        DecompressionBomb: a single tile unpacks to more than may be held.
    """
    stamp = _stamp(gdal_path(href))
    return _inspect_once(href, key, stamp) if stamp else _with_retries(href, None, lambda it: _inspected(it, href, key))


@lru_cache(maxsize=64)
def _inspect_once(href: str, key: str, _stamp: tuple[int, int]) -> Inspection:
    """Every shard of a job asks the same of its file."""
    return _with_retries(href, None, lambda dataset: _inspected(dataset, href, key))


def _inspected(dataset: Any, href: str, key: str) -> Inspection:
    if dataset.count < 1 or dataset.count > BANDS_MAX:
        raise UnsupportedFormat(f"{href} has {dataset.count} bands; 1 to {BANDS_MAX} are read.", source=href)
    dtypes = tuple(dataset.dtypes)
    if other := sorted(set(dtypes).difference(DTYPES)):
        advice = f"{', '.join(DTYPES)} are read. Of complex pixels upload the intensity."
        raise UnsupportedFormat(f"{href} holds {', '.join(other)} pixels; {advice}", source=href)
    block_height, block_width = dataset.block_shapes[0]
    samples = dataset.count if dataset.interleaving is not None and dataset.interleaving.name == "pixel" else 1
    tile_bytes = block_height * block_width * samples * np.dtype(dtypes[0]).itemsize
    if tile_bytes > TILE_BYTES_MAX:
        raise DecompressionBomb(
            f"{href} is cut into tiles of {block_height} × {block_width} pixels, {tile_bytes} bytes each when "
            f"unpacked; at most {TILE_BYTES_MAX} are read. Write it with smaller tiles.",
            source=href,
        )
    problem = _place_problem(dataset, href)
    interpretation = tuple(color.name for color in dataset.colorinterp)
    asset = None if problem else _asset(dataset, href, key)
    return Inspection(
        asset=asset,
        problem=problem,
        driver=dataset.driver,
        shape=dataset.shape,
        band_count=dataset.count,
        dtypes=dtypes,
        color_interpretation=interpretation,
        compression=dataset.compression.name if dataset.compression else None,
        overviews=tuple(dataset.overviews(1)),
        is_tiled=bool(dataset.profile.get("tiled", False)),
        gcp_count=len(dataset.gcps[0]),
        subdatasets=len(dataset.subdatasets),
        tags=dict(dataset.tags()),
        band_tags=tuple(dict(dataset.tags(band)) for band in dataset.indexes),
        color_table=_color_table(dataset),
    )


def _color_table(dataset: Any) -> dict[int, tuple[int, int, int]]:
    if dataset.count > 1 or dataset.colorinterp[0] is not ColorInterp.palette:
        return {}
    return {value: color[:3] for value, color in dataset.colormap(1).items()}


def _place_problem(dataset: Any, href: str) -> str:
    """Why the file has no usable place on Earth, or an empty string."""
    if dataset.crs is None or not dataset.crs.wkt:
        if dataset.gcps[0]:
            return (
                f"{href} is placed by {len(dataset.gcps[0])} ground control points only, its pixels lie on no grid. "
                "Warp it onto a grid (gdalwarp) and upload the result."
            )
        return f"{href} has no coordinate reference system. Assign one (gdal_edit -a_srs) and upload it again."
    transform = dataset.transform
    if transform.is_identity or abs(transform.determinant) < 1e-300 or not np.isfinite(transform[:6]).all():
        return f"{href} has a CRS but no usable transform from pixels to it ({tuple(transform)[:6]})."
    return ""


def _asset(dataset: Any, href: str, key: str) -> RasterAsset:
    epsg = dataset.crs.to_epsg(confidence_threshold=100)
    alpha = missing.alpha_bands(dataset)
    return RasterAsset(
        key=key,
        href=href,
        crs=f"EPSG:{epsg}" if epsg else dataset.crs.to_wkt(version="WKT2_2019"),
        transform=tuple(dataset.transform)[:6],
        shape=dataset.shape,
        bands=_bands(dataset, [number for number in dataset.indexes if number not in alpha]),
        block_shape=dataset.block_shapes[0],
        has_mask=missing.hides(dataset),
    )


def _bands(dataset: Any, indexes: Sequence[int]) -> tuple[Band, ...]:
    names: set[str] = set()
    bands = []
    for index in indexes:
        description = (dataset.descriptions[index - 1] or "").strip() or None
        color = dataset.colorinterp[index - 1].name.lower()
        name = description or (color if color in {"red", "green", "blue", "nir"} else f"band_{index}")
        if name in names:
            name = f"{name}_{index}"
        names.add(name)
        nodata = dataset.nodatavals[index - 1]
        bands.append(
            Band(
                name=name,
                index=index,
                dtype=dataset.dtypes[index - 1],
                common_name=next((word for word in (name.lower(), color) if word in _COMMON_NAMES), None),
                nodata=storable(nodata, dataset.dtypes[index - 1]),
                scale=float(dataset.scales[index - 1]),
                offset=float(dataset.offsets[index - 1]),
                unit=(dataset.units[index - 1] or "").strip() or None,
                description=description if description != name else None,
            )
        )
    return tuple(bands)


# Opening --------------------------------------------------------------------------------------------------------------


class _Datasets(threading.local):
    """The open datasets of one thread, the least recently used closed first."""

    def __init__(self) -> None:
        self.held: OrderedDict[str, tuple[tuple[int, int] | None, Any]] = OrderedDict()


_datasets = _Datasets()


@contextmanager
def _dataset(href: str) -> Iterator[Any]:
    held = _datasets.held
    path = gdal_path(href)
    stamp = _stamp(path)
    found = held.pop(href, None)
    if found is not None and found[0] != stamp:
        found[1].close()
        found = None
    dataset = _open(href, path) if found is None else found[1]
    held[href] = (stamp, dataset)
    while len(held) > _DATASETS_PER_THREAD:
        held.popitem(last=False)[1][1].close()
    yield dataset


def _stamp(path: str) -> tuple[int, int] | None:
    """Changes when a local file is replaced; remote objects are written once."""
    if path.startswith("/vsi"):
        return None
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def forget(href: str) -> None:
    """Close this thread's dataset of `href`, if it has one, and drop what all threads know of the file."""
    blocks.forget(href)
    found = _datasets.held.pop(href, None)
    if found is not None:
        found[1].close()


def _open(href: str, path: str) -> Any:
    if not path.startswith("/vsi") and not Path(path).is_file():
        raise SourceUnreadable(f"{href} does not exist.", source=href)
    dataset = DatasetReader(path, driver=list(DRIVERS), sharing=False)
    if dataset.tags(ns="OVERVIEWS") or dataset.tags(ns="ProxyOverviewRequest"):
        dataset.close()
        raise UnsupportedFormat(f"{href} keeps its overviews in another file, which is not followed.", source=href)
    return dataset


def _with_retries(href: str, window: Window | None, work: Callable[[Any], T], *, is_patient: bool = True) -> T:
    is_remote = is_patient and local_path(href) is None
    pauses = (*_PAUSES_S, None) if is_remote else (None,)
    for pause in pauses:
        try:
            with rasterio.Env(**gdal.remote_options()), _dataset(href) as dataset:
                return work(dataset)
        except (RasterioError, OSError) as error:
            forget(href)
            if pause is None:
                raise _verdict(href, window, error, tries=len(pauses)) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _verdict(href: str, window: Window | None, error: Exception, *, tries: int) -> SourceFault:
    """The error that says best why `href` could not be used."""
    reason = str(error.__cause__ or error).splitlines()[0] if str(error) else type(error).__name__
    after = f" after {tries} tries" if tries > 1 else ""
    if lack := sources.truncated_at(href):
        return SourceTruncated(f"{href} ends too early: {lack}. Upload the whole file.", source=href, window=window)
    if window is not None or not isinstance(error, RasterioIOError):
        place = (
            f" in rows {window.row}…{window.row_stop - 1}, columns {window.col}…{window.col_stop - 1}" if window else ""
        )
        return SourceUnreadable(
            f"{href} could not be read{place}{after}: {reason}", source=href, window=window, reason=reason
        )
    if kind := sources.kind(href):
        return UnsupportedFormat(
            f"{href} is {kind}, which is not read. Convert it to GeoTIFF or JPEG 2000.", source=href
        )
    if sources.is_raster(href):
        return SourceUnreadable(f"{href} is damaged{after}: {reason}", source=href)
    sources.object_size(href)  # raises where there is no object
    return NotARaster(f"{href} is not a raster that {' or '.join(DRIVERS)} can open.", source=href)
