"""What a COG is apart from its pixels: its specification, its statistics, and every byte before its first tile.

The order of the file is fixed: directories, then levels from small to large, each in reading order, image and mask
tiles side by side, each between a leader (its size) and a trailer (its last four bytes again).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from eorouter_compute import tiff
from eorouter_compute.grid import Window
from eorouter_compute.method import Band
from eorouter_compute.tiff import Code, Tag
from eorouter_kernels import pyramid

DTYPES = frozenset(pyramid.DTYPES)
"""Pixel types that can be written."""

OverviewResampling = Literal["average", "nearest", "mode", "min", "max", "median"]
"""How a pixel of an overview is made of the four below it."""

LEAD = 4
"""Bytes before a tile (its size) and after it (its last four bytes again)."""

_COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "lerc": 34887, "zstd": 50000}


class CogSpec(Struct, frozen=True, kw_only=True):
    """Everything about a COG except its pixels. `transform` is (a, b, c, d, e, f) from pixel to CRS.

    Attributes:
        shape: (height, width) in pixels.
        bands: all of one dtype; names, units, scale and offset go into the file's metadata.
        nodata: stored value of missing pixels in every band (NaN allowed), or None.
        has_mask: write an internal 1-bit mask; a pixel is masked when it is missing in every band.
        block_size: tile side in pixels, a multiple of 16.
        level: of the compressor. For deflate 0–3 is ISA-L, 4–12 libdeflate, None whichever suits the tile; for zstd
            None is 9.
        predictor: of deflate, zstd and lzw. "auto" differences along a row, of floats sorted into bytes first.
        max_z_error: how far lerc may move a value, in units of the stored one; 0 is lossless.
        overview_count: None halves until a level fits one tile.
        overview_resampling: "average" is the mean of the valid pixels, integers rounded half to even, each level from
            the one below; "nearest" takes the upper left pixel; "mode" the most frequent value; "min", "max" and
            "median" the least, the greatest and the lower middle one.
        tags: GDAL metadata items of the file; `TIFFTAG_…` become TIFF tags, `AREA_OR_POINT` a GeoTIFF key.
        band_tags: GDAL metadata items of each band; empty, or one per band.
        color_interpretation: rasterio's name per band, "red" say; when empty the bands' common names decide.
        color_table: (red, green, blue) 0–255 by value, of a single uint8 or uint16 band.
    """

    shape: tuple[int, int]
    transform: tuple[float, float, float, float, float, float]
    crs: str
    dtype: str
    bands: tuple[Band, ...]
    nodata: float | None = None
    has_mask: bool = False
    block_size: int = 512
    compression: Literal["deflate", "zstd", "lzw", "lerc", "none"] = "deflate"
    level: int | None = None
    predictor: Literal["auto", "none", "horizontal", "floating_point"] = "auto"
    max_z_error: float = 0.0
    overview_count: int | None = None
    overview_resampling: OverviewResampling = "average"
    tags: dict[str, str] = {}
    band_tags: tuple[dict[str, str], ...] = ()
    color_interpretation: tuple[str, ...] = ()
    color_table: dict[int, tuple[int, int, int]] = {}

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; a COG holds one of {', '.join(sorted(DTYPES))}")
        if self.block_size % 16 or self.block_size < 16:
            raise ValueError(f"block_size is {self.block_size}; it must be a multiple of 16")
        if min(self.shape) < 1 or not self.bands:
            raise ValueError(f"shape is {self.shape} with {len(self.bands)} bands; nothing to write")
        if self.nodata is not None and not _holds(self.dtype, self.nodata):
            raise ValueError(f"nodata is {self.nodata}, which {self.dtype} cannot hold")
        if self.predictor == "floating_point" and not self.dtype.startswith("float"):
            raise ValueError(f"the floating point predictor is for floats, the pixels are {self.dtype}")
        if self.color_table and (self.dtype not in {"uint8", "uint16"} or len(self.bands) != 1):
            raise ValueError(
                f"a colour table is for one band of uint8 or uint16, not {len(self.bands)} of {self.dtype}"
            )

    @property
    def prediction(self) -> int:
        """The TIFF predictor: 1 none, 2 differences along a row, 3 the same of floats sorted into bytes."""
        if self.compression in {"none", "lerc"}:
            return 1
        chosen = self.predictor
        if chosen == "auto":
            chosen = "floating_point" if self.dtype.startswith("float") else "horizontal"
        return {"none": 1, "horizontal": 2, "floating_point": 3}[chosen]

    @property
    def photometric(self) -> int:
        """TIFF photometric interpretation: 1 grey, 2 red, green and blue first, 3 a colour table."""
        if self.color_table:
            return 3
        names = self.color_interpretation or tuple(str(band.common_name) for band in self.bands)
        return 2 if names[:3] == ("red", "green", "blue") and self.dtype in {"uint8", "uint16"} else 1

    @property
    def window(self) -> Window:
        """The whole raster as a window."""
        return Window(0, 0, *self.shape)

    @property
    def level_count(self) -> int:
        """Number of overviews."""
        if self.overview_count is not None:
            return min(self.overview_count, max(max(self.shape) - 1, 0).bit_length())
        count = 0
        while max(self.level_shape(count)) > self.block_size:
            count += 1
        return count

    def level_shape(self, level: int) -> tuple[int, int]:
        """(height, width) of a level; 0 is the raster itself."""
        return -(-self.shape[0] // (1 << level)), -(-self.shape[1] // (1 << level))

    def tile_grid(self, level: int) -> tuple[int, int]:
        """Tiles of a level: (rows, columns)."""
        height, width = self.level_shape(level)
        return -(-height // self.block_size), -(-width // self.block_size)


class BandStatistics(Struct, frozen=True, kw_only=True):
    """Statistics of the stored values of one band; None where there is no valid pixel."""

    minimum: float | int | None
    maximum: float | int | None
    mean: float | None
    stdev: float | None
    valid_fraction: float

    def as_dict(self) -> dict[str, float | int | None]:
        """For `OutputAsset.statistics`."""
        return {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "mean": self.mean,
            "stdev": self.stdev,
            "valid_percent": 100.0 * self.valid_fraction,
        }


def _holds(dtype: str, value: float) -> bool:
    if np.dtype(dtype).kind == "f":
        return True
    info = np.iinfo(dtype)
    return float(value).is_integer() and info.min <= value <= info.max


def span(sizes: np.ndarray) -> int:
    """Bytes that tiles of these sizes take in the file, leaders and trailers included."""
    return int(sizes.astype(np.int64).sum()) + 2 * LEAD * sizes.size


def front(spec: CogSpec, statistics: Sequence[BandStatistics], level_sizes: Sequence[np.ndarray]) -> tuple[bytes, bool]:
    """Everything before the first tile, and whether offsets are 64 bit wide."""
    lifted = _lifted(spec, statistics)
    ghost = _ghost(has_mask=spec.has_mask)
    for is_big in (False, True):
        empty = [np.zeros(len(sizes), np.int64) for sizes in level_sizes]
        start = len(
            tiff.header(_directories(spec, lifted, level_sizes, empty, empty, is_big=is_big), ghost, is_big=is_big)
        )
        end = start + sum(span(sizes) for sizes in level_sizes)
        if is_big or end < tiff.CLASSIC_LIMIT:
            images, masks = _places(level_sizes, start)
            return tiff.header(
                _directories(spec, lifted, level_sizes, images, masks, is_big=is_big), ghost, is_big=is_big
            ), is_big
    raise AssertionError("a BigTIFF holds everything")


def _places(level_sizes: Sequence[np.ndarray], start: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Offsets of the image and mask tiles of each level, when the highest level begins at byte `start`."""
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for sizes in reversed(level_sizes):
        spans = sizes.astype(np.int64).reshape(-1) + 2 * LEAD
        stops = start + np.cumsum(spans)
        places = (stops - spans + LEAD).reshape(sizes.shape)
        images.insert(0, places[:, 0])
        masks.insert(0, places[:, -1])
        start = int(stops[-1])
    return images, masks


def _ghost(*, has_mask: bool) -> bytes:
    content = (
        "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
        "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n"
    )
    # GDAL reserves the blank: it becomes the S of YES when somebody edits the file and breaks the layout.
    content += "MASK_INTERLEAVED_WITH_IMAGERY=YES\n" if has_mask else " "
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(content):06d} bytes\n{content}".encode()


def _directories(
    spec: CogSpec,
    lifted: Sequence[Tag],
    level_sizes: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    is_big: bool,
) -> list[list[Tag]]:
    out = []
    for level, sizes in enumerate(level_sizes):
        kept = lifted if level == 0 else [tag for tag in lifted if tag.code in {Code.GDAL_NODATA, Code.COLOR_MAP}]
        out.append(sorted([*_image_tags(spec, level, sizes[:, 0], images[level], is_big=is_big), *kept]))
        if spec.has_mask:
            out.append(_mask_tags(spec, level, sizes[:, 1], masks[level], is_big=is_big))
    return out


def _image_tags(spec: CogSpec, level: int, sizes: np.ndarray, places: np.ndarray, *, is_big: bool) -> list[Tag]:
    height, width = spec.level_shape(level)
    dtype, count = np.dtype(spec.dtype), len(spec.bands)
    extra = count - (3 if spec.photometric == 2 else 1)
    tags = [
        tiff.longs(Code.NEW_SUBFILE_TYPE, [1 if level else 0]),
        tiff.longs(Code.IMAGE_WIDTH, [width]),
        tiff.longs(Code.IMAGE_LENGTH, [height]),
        tiff.shorts(Code.BITS_PER_SAMPLE, *[8 * dtype.itemsize] * count),
        tiff.shorts(Code.COMPRESSION, _COMPRESSIONS[spec.compression]),
        tiff.shorts(Code.PHOTOMETRIC, spec.photometric),
        tiff.shorts(Code.SAMPLES_PER_PIXEL, count),
        tiff.shorts(Code.PLANAR_CONFIGURATION, 1),
        tiff.shorts(Code.TILE_WIDTH, spec.block_size),
        tiff.shorts(Code.TILE_LENGTH, spec.block_size),
        tiff.offsets(Code.TILE_OFFSETS, places, is_big=is_big),
        tiff.longs(Code.TILE_BYTE_COUNTS, sizes),
        tiff.shorts(Code.SAMPLE_FORMAT, *[{"u": 1, "i": 2, "f": 3}[dtype.kind]] * count),
    ]
    if spec.prediction > 1:
        tags.append(tiff.shorts(Code.PREDICTOR, spec.prediction))
    if extra > 0:
        tags.append(tiff.shorts(Code.EXTRA_SAMPLES, *[0] * extra))
    if spec.compression == "lerc":
        tags.append(tiff.longs(Code.LERC_PARAMETERS, [4, 0]))
    return tags


def _mask_tags(spec: CogSpec, level: int, sizes: np.ndarray, places: np.ndarray, *, is_big: bool) -> list[Tag]:
    height, width = spec.level_shape(level)
    return [
        tiff.longs(Code.NEW_SUBFILE_TYPE, [5 if level else 4]),
        tiff.longs(Code.IMAGE_WIDTH, [width]),
        tiff.longs(Code.IMAGE_LENGTH, [height]),
        tiff.shorts(Code.BITS_PER_SAMPLE, 1),
        tiff.shorts(Code.COMPRESSION, _COMPRESSIONS["deflate"]),
        tiff.shorts(Code.PHOTOMETRIC, 4),
        tiff.shorts(Code.SAMPLES_PER_PIXEL, 1),
        tiff.shorts(Code.PLANAR_CONFIGURATION, 1),
        tiff.shorts(Code.TILE_WIDTH, spec.block_size),
        tiff.shorts(Code.TILE_LENGTH, spec.block_size),
        tiff.offsets(Code.TILE_OFFSETS, places, is_big=is_big),
        tiff.longs(Code.TILE_BYTE_COUNTS, sizes),
        tiff.shorts(Code.SAMPLE_FORMAT, 1),
    ]


_LIFTED = (
    Code.MODEL_PIXEL_SCALE, Code.MODEL_TIEPOINT, Code.MODEL_TRANSFORMATION, Code.GEO_KEY_DIRECTORY,
    Code.GEO_DOUBLE_PARAMS, Code.GEO_ASCII_PARAMS, Code.GDAL_METADATA, Code.GDAL_NODATA, Code.COLOR_MAP,
    Code.DOCUMENT_NAME, Code.IMAGE_DESCRIPTION, Code.X_RESOLUTION, Code.Y_RESOLUTION, Code.RESOLUTION_UNIT,
    Code.SOFTWARE, Code.DATE_TIME, Code.ARTIST, Code.HOST_COMPUTER, Code.COPYRIGHT,
)  # fmt: skip


def _lifted(spec: CogSpec, statistics: Sequence[BandStatistics]) -> list[Tag]:
    """Georeferencing and GDAL metadata, as GDAL itself writes them: taken from a one-tile file in memory."""
    from affine import Affine
    from rasterio.enums import ColorInterp
    from rasterio.io import MemoryFile

    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=16,
            height=16,
            count=len(spec.bands),
            dtype=spec.dtype,
            crs=spec.crs,
            transform=Affine(*spec.transform),
            nodata=spec.nodata,
            interleave="pixel",
            photometric={1: "MINISBLACK", 2: "RGB", 3: "PALETTE"}[spec.photometric],
        ) as sample:
            if spec.color_table:
                sample.write_colormap(1, spec.color_table)
            elif spec.color_interpretation:
                sample.colorinterp = [ColorInterp[name] for name in spec.color_interpretation]
            sample.update_tags(**spec.tags)
            sample.descriptions = tuple(band.name for band in spec.bands)
            if any(band.scale != 1 or band.offset != 0 for band in spec.bands):
                sample.scales = tuple(band.scale for band in spec.bands)
                sample.offsets = tuple(band.offset for band in spec.bands)
            if any(band.unit for band in spec.bands):
                sample.units = tuple(band.unit or "" for band in spec.bands)
            for number, items in enumerate(spec.band_tags, start=1):
                sample.update_tags(number, **items)
            for number, row in enumerate(statistics, start=1):
                if row.minimum is not None:
                    sample.update_tags(
                        number,
                        STATISTICS_MINIMUM=repr(row.minimum),
                        STATISTICS_MAXIMUM=repr(row.maximum),
                        STATISTICS_MEAN=repr(row.mean),
                        STATISTICS_STDDEV=repr(row.stdev),
                        STATISTICS_VALID_PERCENT=f"{100 * row.valid_fraction:.4g}",
                    )
        data = bytes(memory.getbuffer())
    tags = tiff.directories(lambda start, stop: data[start:stop], len(data))[0].tags
    return [tags[code] for code in _LIFTED if code in tags]
