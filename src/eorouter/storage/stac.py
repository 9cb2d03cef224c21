"""The STAC 1.1 item of a result: a pure function of what a method reported, without links.

Hrefs are object keys; whoever answers a request turns them into addresses. Only extensions whose schema says something
about the item are declared. Two rulings where the standard leaves room:

- A time that nobody stated is not invented. Such an item has `datetime: null` and the widest interval that is certainly
  true: from before the first photograph to the moment the item was made. A search by time does not find it.
- A footprint across the antimeridian is cut there (RFC 7946 §3.1.9), and its bbox has west > east (§5.2).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import msgspec
import shapely
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from eorouter_compute.method import Band, OutputAsset, OutputItem, RasterAsset

STAC_VERSION = "1.1.0"
UNDATED_SINCE = "1826-01-01T00:00:00Z"
"""Start of the interval of an item without a known time; later than 1677, so that nanosecond clocks can hold it."""

_EXTENSIONS = {
    "eo:": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "file:": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "processing:": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "proj:": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster:": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "sat:": "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    "view:": "https://stac-extensions.github.io/view/v1.0.0/schema.json",
}
# https://github.com/stac-extensions/eo/tree/v2.0.0#common-band-names
# fmt: off
CommonName = Literal[
    "pan", "coastal", "blue", "green", "green05", "yellow", "red", "rededge", "rededge071", "rededge075", "rededge078",
    "nir", "nir08", "nir09", "cirrus", "swir16", "swir22", "lwir", "lwir11", "lwir12",
]
COMMON_NAMES = frozenset(get_args(CommonName))
_SAME_NAME = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)
# fmt: on
_DATA_TYPES = {
    "complex_int16": "cint16",
    "complex_int32": "cint32",
    "complex64": "cfloat32",
    "complex128": "cfloat64",
    **{name: name for name in _SAME_NAME},
}
_STATISTICS = {
    "minimum": "minimum", "maximum": "maximum", "mean": "mean", "stddev": "stddev", "count": "count",
    "valid_percent": "valid_percent", "min": "minimum", "max": "maximum", "std": "stddev",
}  # fmt: skip
_AUTHORITY_CODE = re.compile(r"^[A-Z][A-Z0-9_]*:[0-9A-Za-z]+$")
_RESOLUTION = "raster:spatial_resolution"
_SHA2_256 = "1220"  # multihash: function code and length of what follows, both in hex
_GEOD = Geod(ellps="WGS84")

BBox = tuple[float, float, float, float]


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Where an item lies: geometry cut at the antimeridian, its bbox, and that bbox as one or two plain boxes."""

    geometry: dict[str, Any]
    bbox: BBox
    boxes: tuple[BBox, ...]


def document(
    item_id: str,
    output: OutputItem,
    keys: Mapping[str, str],
    *,
    provenance: Mapping[str, Any],
    project_id: str,
    job_id: str | None,
    now: datetime,
) -> dict[str, Any]:
    """The item of `output` as JSON, `links` empty.

    Args:
        item_id: id of the new item.
        output: what the method left.
        keys: object key per asset key; every asset has one.
        provenance: how it was made: `processing:*` fields and others with a prefix as they are; a bare name becomes
            `eorouter:<name>`.
        project_id: the project it lies in; told as `eorouter:project_id`.
        job_id: the job that made it.
        now: the moment of creation.
    """
    place = footprint(output.footprint, output.bbox)
    assets = {asset.key: _asset(asset, keys[asset.key]) for asset in output.assets}
    properties = _properties(output, provenance, now) | {"eorouter:project_id": project_id}
    if job_id is not None:
        properties["eorouter:job_id"] = job_id
    finest = min((asset[_RESOLUTION] for asset in assets.values() if _RESOLUTION in asset), default=None)
    if finest is not None and "gsd" not in properties:
        properties["gsd"] = finest
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(_declared(properties, assets)),
        "id": item_id,
        "geometry": place.geometry,
        "bbox": list(place.bbox),
        "properties": properties,
        "links": [],
        "assets": assets,
    }


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, with a `Z`; fractions only where there are some."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def footprint(geometry: dict[str, Any], bbox: Sequence[float]) -> Footprint:
    """Bring a footprint into RFC 7946's form, whichever of the usual ways it crosses the antimeridian in.

    Understood are: parts already cut at ±180; longitudes beyond ±180; vertices that jump from +179 to −179 with a bbox
    whose west is greater than its east.

    Raises:
        ValueError: empty, or outside −90 … 90 degrees of latitude.
    """
    area = shapely.force_2d(shape(geometry))
    if area.is_empty or not all(map(math.isfinite, (*area.bounds, *bbox))):
        raise ValueError("The footprint is empty or not finite.")
    west, south, east, north = (float(value) for value in bbox)
    if south < -90 or north > 90 or south > north:
        raise ValueError(f"The bbox {tuple(bbox)} does not lie between −90 and 90 degrees of latitude.")
    crosses = west > east
    if crosses and area.bounds[0] < west - 1e-9 and area.bounds[2] > east + 1e-9 and not _is_cut(area, west, east):
        area = shapely.transform(area, _unrolled)
    if area.bounds[0] < -180 or area.bounds[2] > 180:
        area = _wrapped(area)
    if not crosses:
        west, east, crosses = _wrapped_range(west, east)
    bbox = (west, south, east, north)
    return Footprint(geometry=_plain(mapping(area)), bbox=bbox, boxes=plain_boxes(bbox))


def plain_boxes(bbox: BBox) -> tuple[BBox, ...]:
    """The bbox itself, or its two sides of the antimeridian where west > east."""
    west, south, east, north = bbox
    return (bbox,) if west <= east else ((west, south, 180.0, north), (-180.0, south, east, north))


def _is_cut(area: BaseGeometry, west: float, east: float) -> bool:
    """Every part lies in one of the two boxes of a bbox that crosses."""
    return all(part.bounds[0] >= west - 1e-6 or part.bounds[2] <= east + 1e-6 for part in shapely.get_parts(area))


def _unrolled(coordinates: Any) -> Any:
    moved = coordinates.copy()
    moved[moved[:, 0] < 0, 0] += 360.0
    return moved


def _wrapped(area: BaseGeometry) -> BaseGeometry:
    """Cut at every odd multiple of 180 and move the pieces into −180 … 180."""
    first, last = math.floor((area.bounds[0] + 180) / 360), math.floor((area.bounds[2] + 180) / 360)
    pieces = []
    for turn in range(first, last + 1):
        shift = 360.0 * turn
        piece = area.intersection(shapely.box(shift - 180, -90, shift + 180, 90))
        if piece.area > 0 or (area.area == 0 and not piece.is_empty):
            pieces.append(shapely.transform(piece, lambda xy, shift=shift: xy - (shift, 0.0)))
    return shapely.union_all(pieces)


def _wrapped_range(west: float, east: float) -> tuple[float, float, bool]:
    """West and east in −180 … 180, and whether the range crosses the antimeridian."""
    if east - west >= 360:
        return -180.0, 180.0, False
    if west >= -180 and east <= 180:
        return west, east, False
    west = (west + 180) % 360 - 180
    east = (east + 180) % 360 - 180
    if east == -180.0:  # an edge on the antimeridian is its western side's
        east = 180.0
    return west, east, west > east


def _plain(value: Any) -> Any:
    """GeoJSON with lists for tuples: what a decoder would have given."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return {key: _plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _properties(output: OutputItem, provenance: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    given = {key: value for key, value in output.properties.items() if value is not None}
    created = timestamp(now)
    times: dict[str, Any] = {"datetime": timestamp(output.at) if output.at else None}
    if output.at is None and not ("start_datetime" in given and "end_datetime" in given):
        times |= {"start_datetime": UNDATED_SINCE, "end_datetime": created}
    made = {key if ":" in key else f"eorouter:{key}": value for key, value in provenance.items() if value is not None}
    made.pop("eorouter:software", None)  # said by processing:software
    made.setdefault("processing:software", {"eorouter": _version()})
    return given | {"title": output.title or output.name} | times | {"created": created, "updated": created} | made


def _version() -> str:
    try:
        return version("eorouter")
    except PackageNotFoundError:  # a source tree on the path
        return "unreleased"


def _asset(asset: OutputAsset, key: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"href": key, "type": asset.media_type, "roles": list(asset.roles)}
    if asset.title:
        entry["title"] = asset.title
    entry |= {"file:size": asset.object.size, "file:checksum": _SHA2_256 + asset.object.sha256}
    if asset.raster is not None:
        raster = asset.raster
        statistics = [*asset.statistics, *({} for _ in raster.bands[len(asset.statistics) :])]
        entry["bands"] = [_band(band, found) for band, found in zip(raster.bands, statistics, strict=True)]
        entry |= _projection(raster)
        resolution = ground_resolution_m(raster)
        if resolution is not None:
            entry[_RESOLUTION] = resolution
    elif asset.vector is not None:
        entry |= _crs_fields(asset.vector.crs)
        entry["eorouter:feature_count"] = asset.vector.feature_count
    return entry


def _band(band: Band, statistics: Mapping[str, float | None]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": band.name, "data_type": _DATA_TYPES.get(band.dtype, "other")}
    if band.description:
        entry["description"] = band.description
    if band.common_name in COMMON_NAMES:
        entry["eo:common_name"] = band.common_name
    if band.nodata is not None:
        entry["nodata"] = _number(band.nodata)
    if band.unit:
        entry["unit"] = band.unit
    if band.scale != 1.0 or band.offset != 0.0:
        entry |= {"raster:scale": band.scale, "raster:offset": band.offset}
    known = {
        _STATISTICS[name]: value
        for name, value in statistics.items()
        if name in _STATISTICS and value is not None and math.isfinite(value)
    }
    if known:
        entry["statistics"] = known
    return entry


def _number(value: float) -> float | int | str:
    """A nodata value as STAC spells it: JSON has neither NaN nor infinities."""
    if math.isfinite(value):
        return int(value) if value == int(value) and abs(value) < 2**53 else value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _projection(raster: RasterAsset) -> dict[str, Any]:
    a, b, c, d, e, f = raster.transform
    height, width = raster.shape
    xs = [c, c + a * width, c + b * height, c + a * width + b * height]
    ys = [f, f + d * width, f + e * height, f + d * width + e * height]
    return _crs_fields(raster.crs) | {
        "proj:shape": [height, width],
        "proj:transform": list(raster.transform),
        "proj:bbox": [min(xs), min(ys), max(xs), max(ys)],
    }


def _crs_fields(text: str) -> dict[str, Any]:
    """`proj:code` where an authority knows the CRS, else its definition."""
    if _AUTHORITY_CODE.match(text):
        return {"proj:code": text}
    crs = CRS.from_user_input(text)
    authority = crs.to_authority(min_confidence=100)
    if authority is not None:
        return {"proj:code": ":".join(authority)}
    return {"proj:code": None, "proj:wkt2": crs.to_wkt("WKT2_2019")}


def ground_resolution_m(raster: RasterAsset) -> float | None:
    """Side of the pixel in the middle of a raster, metres on the ground; None where the CRS has no place on Earth.

    A projection's own unit is used where it is true to 1 %, so that a 10 m pixel of UTM is 10 m and not 9.997;
    elsewhere (degrees, web Mercator) the distance is measured on the ellipsoid.
    """
    crs = CRS.from_user_input(raster.crs)
    a, b, c, d, e, f = raster.transform
    nominal = math.sqrt(abs(a * e - b * d))
    if crs.is_projected:
        nominal *= crs.axis_info[0].unit_conversion_factor
    height, width = raster.shape
    corners = [(width // 2 + i, height // 2 + j) for i, j in ((0, 0), (1, 0), (0, 1))]
    try:
        to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
        points = [to_degrees.transform(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
    except ProjError:  # another planet, or an engineering CRS
        return None
    if not all(math.isfinite(value) for point in points for value in point):
        return None
    sides = [_GEOD.inv(*points[0], *point)[2] for point in points[1:]]
    measured = math.sqrt(sides[0] * sides[1])
    if not measured:
        return None
    if crs.is_projected and abs(measured / nominal - 1) < 0.01:
        measured = nominal
    return float(f"{measured:.6g}")


def _declared(properties: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Schemas of the prefixes that occur, sorted."""
    names = set(properties)
    for asset in assets.values():
        names |= set(asset)
        names |= {name for band in asset.get("bands", ()) for name in band}
    for prefix, schema in _EXTENSIONS.items():
        if any(name.startswith(prefix) for name in names):
            yield schema
