"""The only module that opens vector files: what a layer holds, and its features as they stand.

Formats are known by their first bytes, never by their name, and only these are opened: GeoJSON, GeoPackage, GeoParquet
(WKB), FlatGeobuf and a zipped Shapefile. GDAL is never asked to guess, so no driver that follows references is reached.

Coordinates are always (x, y) = (longitude, latitude) or (easting, northing), whatever axis order a CRS declares.
GeoJSON without a `crs` member is WGS 84 (RFC 7946); the member of the 2008 specification is honoured.
"""

import io
import zipfile
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError

from eorouter_compute import geojson
from eorouter_compute.attempt import local_path, read_object
from eorouter_compute.errors import (
    DecompressionBomb,
    InvalidGeometry,
    InvalidParameter,
    NoCrs,
    NotAVector,
    SourceUnreadable,
    UnsupportedFormat,
)
from eorouter_compute.geojson import Layer, refuse_unknown
from eorouter_compute.method import VectorAsset
from eorouter_compute.polygons import WGS84, Bounds, as_crs, crs_name
from eorouter_compute.vetting import check_geopackage, check_nesting

UNPACKED_BYTES_MAX = 1 << 30
_BATCH_ROWS = 1 << 14


def describe(href: str, key: str = "zones", layer: str | None = None) -> VectorAsset:
    """What a file holds.

    Args:
        href: a path, a `file://` URL or an object URL.
        key: asset key of the answer.
        layer: name of the layer where the file has several.

    Raises:
        NotAVector: the file is none of the allowed formats, or it is broken.
        UnsupportedFormat: of a known kind in a form that is not read here.
        NoCrs: the file does not say where on Earth it lies.
        InvalidParameter: several layers and none named, or no such layer.
    """
    if _is_geopackage(_head(href)):
        check_geopackage(local_path(href) or read_object(href), href)
    kind, layer = _recognise(href, layer)
    if kind == "geojson":
        crs, count, bounds, fields = geojson.describe(read_object(href), href)
    else:
        found = _read(href, kind, layer, None)
        crs, count, fields = found.crs, len(found.geometries), tuple(found.table.column_names)
        bounds = tuple(shapely.total_bounds(found.geometries).tolist()) if count else None
    bounds = tuple(np.nan_to_num(bounds or (0.0,) * 4).tolist())
    if crs.is_geographic and (np.abs(bounds) > (360.0, 90.0, 360.0, 90.0)).any():
        raise InvalidGeometry(
            f"{href} has coordinates that are no longitude and latitude in degrees: they reach from"
            f" {list(bounds[:2])} to {list(bounds[2:])}. State the CRS they are in."
        )
    return VectorAsset(
        key=key,
        href=href,
        crs=crs_name(crs),
        feature_count=count,
        bounds=cast("Bounds", bounds),
        fields=fields,
        layer=layer,
    )


def read(
    source: VectorAsset | bytes, fields: Sequence[str] | None, crs: str | None = None, *, where: str = "inline zones"
) -> Layer:
    """Geometries and the named fields of a layer, or of GeoJSON (FeatureCollection, Feature or geometry).

    Args:
        source: a described layer, or GeoJSON as text.
        fields: what to carry over; None for all.
        crs: where inline coordinates lie, when they do not follow GeoJSON.
        where: what inline data is called in errors.

    Raises:
        InvalidGeometry: a geometry that cannot be decoded; names the feature.
        InvalidParameter: a field that does not exist; names those that do.
        NotAVector: inline data is not GeoJSON, or the file is broken.
    """
    if isinstance(source, bytes):
        return geojson.parse(source, fields, where, crs)
    kind, layer = _recognise(source.href, source.layer)
    return _read(source.href, kind, layer, fields)


_Kind = Literal["geojson", "gpkg", "parquet", "flatgeobuf", "shapefile"]


def _recognise(href: str, layer: str | None) -> tuple[_Kind, str | None]:
    """Format by content, and the layer to read."""
    head = _head(href)
    if head[:4] == b"PAR1":
        return "parquet", None
    if head[:4] == b"PK\x03\x04":
        return "shapefile", None
    if head[:3] == b"fgb":
        return "flatgeobuf", None
    if _is_geopackage(head):
        return "gpkg", _choose_layer(href, layer)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return "geojson", None
    raise NotAVector(
        f"{href} is not a vector file that is read here: GeoJSON, GeoPackage, GeoParquet, FlatGeobuf or a zipped"
        f" Shapefile were expected, its first bytes are {head[:8]!r}."
    )


def _head(href: str) -> bytes:
    try:
        return read_object(href, 0, 4096)
    except FileNotFoundError as error:
        raise SourceUnreadable(f"{href} does not exist.") from error


def _is_geopackage(head: bytes) -> bool:
    return head[:16] == b"SQLite format 3\x00" and head[68:72] in (b"GPKG", b"GP10", b"GP11")


def _choose_layer(href: str, layer: str | None) -> str:
    # Pyogrio brings geopandas and pandas: a second that only those pay who open such a file.
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        listed = pyogrio.list_layers(_gdal_source(href))
    except DataSourceError as error:
        raise NotAVector(f"{href} is a broken GeoPackage: {error}") from error
    names = [str(name) for name, kind in listed if kind is not None]
    if layer is None and len(names) == 1:
        return names[0]
    if layer in names:
        return cast("str", layer)
    asked = f"has no layer {layer!r}" if layer else "has several layers, and none was named"
    raise InvalidParameter(f"{href} {asked}. It has: {', '.join(names) or 'no layer with geometries'}.", layers=names)


def _gdal_source(href: str) -> Any:
    path = local_path(href)
    return read_object(href) if path is None else path


def _read(href: str, kind: _Kind, layer: str | None, fields: Sequence[str] | None) -> Layer:
    """Geometries and the named fields, all fields for None."""
    if kind == "geojson":
        return geojson.parse(read_object(href), fields, href)
    if kind == "parquet":
        return _read_parquet(href, fields)
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    source = _shapefile(href) if kind == "shapefile" else _gdal_source(href)
    try:
        info = pyogrio.read_info(source, layer=layer)
        refuse_unknown(fields, list(info["fields"]), href)
        if info["crs"] is None:
            raise NoCrs(f"{href} does not say in which CRS its coordinates are.")
        meta, table = pyogrio.read_arrow(source, layer=layer, columns=None if fields is None else list(fields))
    except (DataSourceError, DataLayerError, IndexError) as error:  # IndexError: pyogrio on a file without a layer
        raise NotAVector(f"{href} cannot be read as {kind}: {error}") from error
    name = meta["geometry_name"] or "wkb_geometry"
    return Layer(as_crs(info["crs"]), _from_wkb(table[name], href), table.drop_columns([name]), None)


def _shapefile(href: str) -> Any:
    """The one Shapefile in a zip archive, as GDAL names it."""
    path = local_path(href)
    try:
        with zipfile.ZipFile(io.BytesIO(read_object(href)) if path is None else path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise NotAVector(f"{href} is a broken zip archive: {error}") from error
    unpacked = sum(member.file_size for member in members)
    if unpacked > UNPACKED_BYTES_MAX:
        raise DecompressionBomb(f"{href} unpacks to {unpacked:,} bytes; at most {UNPACKED_BYTES_MAX:,} are read.")
    shapes = [member.filename for member in members if member.filename.lower().endswith(".shp")]
    if len(shapes) != 1:
        raise NotAVector(f"{href} is a zip archive with {len(shapes)} Shapefiles; exactly one was expected.")
    if path is None:
        raise UnsupportedFormat(f"{href}: a zipped Shapefile is read from a local path only; store it as GeoPackage.")
    return f"/vsizip/{{{path}}}/{shapes[0]}"


class _GeoColumn(msgspec.Struct):
    encoding: str
    crs: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class _Geo(msgspec.Struct):
    primary_column: str
    columns: dict[str, _GeoColumn]


def _read_parquet(href: str, fields: Sequence[str] | None) -> Layer:
    from pyarrow import parquet

    path = local_path(href)
    try:
        file = parquet.ParquetFile(pa.BufferReader(read_object(href)) if path is None else path)
    except (pa.ArrowException, OSError) as error:
        raise NotAVector(f"{href} is a broken Parquet file: {error}") from error
    with file:
        geo = (file.schema_arrow.metadata or {}).get(b"geo")
        if geo is None:
            raise NotAVector(f"{href} is a Parquet file without geometries: it has no `geo` metadata.")
        try:
            meta = msgspec.json.decode(geo, type=_Geo)
            name = meta.primary_column
            column = meta.columns[name]
            kind = file.schema_arrow.field(name).type
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, KeyError) as error:
            raise NotAVector(f"{href} has `geo` metadata that are not those of GeoParquet: {error}") from error
        if column.encoding != "WKB" or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UnsupportedFormat(f"{href} keeps geometries as {column.encoding}, {kind}; write them as WKB, binary.")
        others = [field for field in file.schema_arrow.names if field not in meta.columns and field != "bbox"]
        refuse_unknown(fields, others, href)
        table = _unpacked(file, [name, *(others if fields is None else fields)], href)
    if column.crs is None:
        raise NoCrs(f"{href} does not say in which CRS its coordinates are.")
    try:
        crs = as_crs(WGS84) if column.crs is msgspec.UNSET else pyproj.CRS.from_json_dict(column.crs)
    except CRSError as error:
        raise NoCrs(f"{href} has a CRS that PROJ does not understand: {error}") from error
    return Layer(crs, _from_wkb(table[name], href), table.drop_columns([name]), None)


def _unpacked(file: Any, names: list[str], href: str) -> pa.Table:
    """The columns, read piece by piece: what a file says of its size need not be true."""
    batches, size = [], 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
            size += batch.nbytes
            if size > UNPACKED_BYTES_MAX:
                raise DecompressionBomb(f"{href} unpacks to more than the {UNPACKED_BYTES_MAX:,} bytes that are read.")
            batches.append(batch)
        return pa.Table.from_batches(batches, batches[0].schema if batches else file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise NotAVector(f"{href} is a broken Parquet file: {error}") from error


def _from_wkb(column: pa.ChunkedArray, href: str) -> NDArray[np.object_]:
    try:
        with np.errstate(invalid="ignore"):  # coordinates that are NaN are refused by `_repair`
            values = column.to_numpy()
            check_nesting(values, href)
            return geojson.flat(shapely.from_wkb(values))
    except (ShapelyError, TypeError) as error:
        raise InvalidGeometry(f"{href} holds a geometry that cannot be decoded: {error}") from error
