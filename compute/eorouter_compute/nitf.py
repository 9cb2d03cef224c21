"""NITF 2.1 files: what the container cannot hold, and a copy of a COG written through GDAL, strip by strip.

An image segment of NITF states its size in ten digits and its place by four corners (IGEOLO), in UTM or in longitude
and latitude of WGS 84 (MIL-STD-2500C, table A-3). Corners have a step of one metre or a thousandth of a degree, so the
place may be off by half that; GDAL writes them and we do not pretend otherwise. Where it cannot, it writes a file
without a place, or fails when all is computed: `check` refuses both beforehand.
"""

import math
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj

from eorouter_compute import gdal, raster
from eorouter_compute.attempt import Attempt
from eorouter_compute.cogfile import CogSpec
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Window
from eorouter_compute.method import Bound, OutputAsset

MEDIA_TYPE = "application/vnd.nitf"
DTYPES = frozenset({"uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"})
"""Pixel types that GDAL writes into NITF."""

IMAGE_BYTES_MAX = 9_999_999_998
SIDE_MAX = 99_999_999
BANDS_MAX = 999
Icords = Literal["D", "N", "S"]
"""How the corners are written: in decimal degrees, or in UTM of the north or the south."""

_STEP = {"D": 0.001, "N": 1.0, "S": 1.0}
_UTM_LIMITS = ((-99_999, 999_999), (-999_999, 9_999_999))  # what GDAL fits into IGEOLO's digits, easting and northing
_BLOCK = 256
_STRIP_BYTES = 32 << 20
_CHUNK = 8 << 20


def image_bytes(spec: CogSpec) -> int:
    """Bytes of the image segment: whole blocks, uncompressed."""
    height, width = (-(-side // _BLOCK) * _BLOCK for side in spec.shape)
    return height * width * len(spec.bands) * np.dtype(spec.dtype).itemsize


def check(spec: CogSpec, *, where: str) -> None:
    """Refuse what the container cannot hold.

    Raises:
        InvalidParameter: pixel type, size, number of bands, rotation, CRS or place; says which.
    """
    icords = icords_of(spec.crs)
    reason = ""
    if spec.dtype not in DTYPES:
        reason = f"it has no {spec.dtype}, only {', '.join(sorted(DTYPES))}"
    elif len(spec.bands) > BANDS_MAX or max(spec.shape) > SIDE_MAX:
        reason = f"it takes at most {BANDS_MAX} bands and {SIDE_MAX} pixels along a side"
    elif image_bytes(spec) > IMAGE_BYTES_MAX:
        reason = f"an image has at most {IMAGE_BYTES_MAX} bytes, this one has {image_bytes(spec)}"
    elif icords is None:
        named = pyproj.CRS.from_user_input(spec.crs).name
        reason = f"it is placed in UTM or longitude and latitude of WGS 84, not in {named}"
    elif spec.transform[1] or spec.transform[3]:
        reason = "its grid is not turned or sheared"
    else:
        reason = _misplaced(spec, icords)
    if reason:
        raise InvalidParameter(f'{where} does not fit into NITF: {reason}. Use "format": "cog".', pointer="/format")


@lru_cache(maxsize=256)
def icords_of(crs: str) -> Icords | None:
    """How corners in this CRS are written; None where they cannot be.

    What a CRS is called proves nothing: "WGS 84 (G730)" has another datum, and "UTM zone 32N" may have any parameters
    or units. What counts is whether it is one of EPSG's, heights aside.
    """
    found = pyproj.CRS.from_user_input(crs)
    if found.is_compound:
        found = found.sub_crs_list[0]
    if found.equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True):
        return "D"
    code = found.to_epsg(min_confidence=20) or 0
    hemispheres: dict[int, Icords] = {326: "N", 327: "S"}
    if code // 100 not in hemispheres or not 1 <= code % 100 <= 60:
        return None
    return hemispheres[code // 100] if found.equals(pyproj.CRS.from_epsg(code), ignore_axis_order=True) else None


def _misplaced(spec: CogSpec, icords: Icords) -> str:
    """Why the corners, which are the middles of the outermost pixels, cannot be written; empty where they can."""
    (height, width), (a, _, c, _, e, f) = spec.shape, spec.transform
    if icords == "D" and (
        any(abs(x) > 180.0 + 1e-9 for x in (c, c + width * a)) or any(abs(y) > 90.0 + 1e-9 for y in (f, f + height * e))
    ):
        return "its corners lie within ±180° of longitude and ±90° of latitude; clip it on either side"
    step = _STEP[icords]
    corners = [
        tuple(math.floor(at / step + 0.5) for at in (origin + size / 2, origin + (count - 0.5) * size))
        for origin, size, count in ((c, a, width), (f, e, height))
    ]
    if icords != "D" and not all(
        low <= at <= high for ends, (low, high) in zip(corners, _UTM_LIMITS, strict=True) for at in ends
    ):
        return "its corners lie within eastings of −99,999 to 999,999 m and northings of −999,999 to 9,999,999 m"
    if any(first == last for first, last in corners):
        unit = "thousandths of a degree" if icords == "D" else "metres"
        return f"its place is that of four corners in whole {unit}, and those of this raster are too close to differ"
    return ""


def place_error_px(spec: CogSpec) -> float:
    """How many pixels the file's place may be off, at most, because its corners are rounded."""
    step = _STEP[icords_of(spec.crs) or "D"]
    return step / 2 / min(abs(spec.transform[0]), abs(spec.transform[4]))


def bound(spec: CogSpec) -> Bound:
    """Bound of `write`."""
    size = image_bytes(spec)
    return Bound(
        bytes_read=2 * size,
        bytes_written=size + (1 << 20),
        memory_bytes=8 * _STRIP_BYTES + (320 << 20),
        seconds=0.1 + size * 2e-8,
    )


def write(asset: OutputAsset, spec: CogSpec, attempt: Attempt, *, path: str, title: str = "") -> OutputAsset:
    """Copy the finished COG `asset` into object `path` of the attempt; masked pixels hold 0, nodata stays nodata."""
    import rasterio
    from affine import Affine
    from rasterio.windows import Window as RasterioWindow

    source = asset.raster
    if source is None:
        raise ValueError(f"{asset.key} is not a raster")
    height, width = spec.shape
    options: dict[str, Any] = {"BLOCKXSIZE": _BLOCK, "BLOCKYSIZE": _BLOCK, "IC": "NC", "ICORDS": icords_of(spec.crs)}
    with tempfile.TemporaryDirectory(prefix="eorouter-nitf-") as folder:
        local = Path(folder) / "image.ntf"
        with (
            rasterio.Env(**gdal.OPTIONS),
            rasterio.open(
                local,
                "w",
                driver="NITF",
                width=width,
                height=height,
                count=len(spec.bands),
                dtype=spec.dtype,
                crs=spec.crs,
                transform=Affine(*spec.transform),
                **options,
            ) as target,
        ):
            for window in _strips(spec):
                block = raster.read_block(source, [band.index for band in source.bands], window)
                target.write(block.pixels, window=RasterioWindow(0, window.row, width, window.height))  # pyright: ignore[reportCallIssue]
                attempt.advance(0)
        with local.open("rb") as file, attempt.create(path) as out:
            while chunk := file.read(_CHUNK):
                out.write(chunk)
                attempt.advance(0)
    return OutputAsset(
        key=f"{asset.key}_nitf",
        object=attempt.refs[path],
        media_type=MEDIA_TYPE,
        roles=("data",),
        filename=path.replace("/", "_"),
        title=title,
    )


def _strips(spec: CogSpec) -> list[Window]:
    """Rows of blocks, as many at a time as memory allows."""
    height, width = spec.shape
    row_bytes = max(image_bytes(spec) // height, 1)
    step = max(math.floor(_STRIP_BYTES / row_bytes) // _BLOCK, 1) * _BLOCK
    return [Window(row, 0, min(step, height - row), width) for row in range(0, height, step)]
