"""The only module that opens vector files, and writes them: what a layer holds, and its features as zones.

Formats are known by their first bytes, never by their name, and only these are opened: GeoJSON, GeoPackage, GeoParquet
(WKB), FlatGeobuf and a zipped Shapefile. GDAL is never asked to guess, so no driver that follows references is reached.

Coordinates are always (x, y) = (longitude, latitude) or (easting, northing), whatever axis order a CRS declares.
GeoJSON without a `crs` member is WGS 84 (RFC 7946); the member of the 2008 specification is honoured.

Nothing is dropped in silence: every feature is a zone, and `Zones.status` says what became of it.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import CRSError, ProjError
from shapely.errors import ShapelyError

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
from eorouter_compute.method import VectorAsset
from eorouter_compute.vetting import check_geopackage, check_nesting, count_overlaps

WGS84 = "OGC:CRS84"
"""Longitude and latitude in this order, the CRS of GeoJSON."""

UNPACKED_BYTES_MAX = 1 << 30
_BATCH_ROWS = 1 << 14
CROSSINGS_MAX = 20_000
"""Most pairs of edges with overlapping boxes in the polygons to be made valid, besides eight neighbours of each."""

SPLITS_MAX = 12
"""Most halvings of an edge when it is projected: 4,096 pieces."""

Bounds = tuple[float, float, float, float]


class Status(StrEnum):
    """What became of a feature."""

    OK = "ok"
    REPAIRED = "repaired"
    EMPTY = "empty"
    NOT_POLYGONAL = "not_polygonal"
    ZERO_AREA = "zero_area"


USABLE = (Status.OK, Status.REPAIRED)


class Rings(NamedTuple):
    """Multipolygons as flat arrays: zone z owns polygons `zones[z] … zones[z + 1] - 1`, and so on down to vertices.

    Attributes:
        vertices: (vertex, 2) x, y; rings are closed, holes wound against their shell.
        rings: (ring + 1) first vertex of each ring.
        polygons: (polygon + 1) first ring of each polygon, the shell.
        zones: (zone + 1) first polygon of each zone.
    """

    vertices: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    zones: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Zones:
    """Features ready to be measured, in the order of their source.

    Attributes:
        index: (zone) position in the source, from 0.
        ids: values of the id field; else GeoJSON's `id`, where every feature has one; else the position.
        attributes: the fields that were asked for, one column each.
        geometries: (zone) polygons as measured, in `crs`: repaired, 2-D; None where there is nothing to measure.
        crs: where `geometries` lie, as WKT or authority code.
        rings: the same polygons in the target CRS.
        status: (zone) what became of each feature.
        detail: (zone) why, for a reader; None where there is nothing to say.
    """

    index: NDArray[np.int64]
    ids: pa.Array
    attributes: pa.Table
    geometries: NDArray[np.object_]
    crs: str
    rings: Rings
    status: tuple[Status, ...]
    detail: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.index)

    def projected(self) -> NDArray[np.object_]:
        """The polygons in the target CRS as shapely multipolygons."""
        offsets = (self.rings.rings, self.rings.polygons, self.rings.zones)
        return shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, self.rings.vertices, offsets)


class _Layer(NamedTuple):
    """Features as they stand in their source."""

    crs: pyproj.CRS
    geometries: NDArray[np.object_]
    table: pa.Table
    ids: list[Any] | None


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
    found = _read(href, kind, layer, None)
    bounds = shapely.total_bounds(found.geometries) if len(found.geometries) else np.zeros(4)
    if found.crs.is_geographic and (np.abs(bounds) > (360.0, 90.0, 360.0, 90.0)).any():
        raise InvalidGeometry(
            f"{href} has coordinates that are no longitude and latitude in degrees: they reach from"
            f" {bounds[:2].tolist()} to {bounds[2:].tolist()}. State the CRS they are in."
        )
    return VectorAsset(
        key=key,
        href=href,
        crs=crs_name(found.crs),
        feature_count=len(found.geometries),
        bounds=cast("Bounds", tuple(float(value) for value in np.nan_to_num(bounds))),
        fields=tuple(found.table.column_names),
        layer=layer,
    )


def read_zones(
    source: VectorAsset | dict[str, Any] | bytes,
    *,
    target_crs: str,
    crs: str | None = None,
    id_field: str | None = None,
    fields: Sequence[str] = (),
    bounds: Bounds | None = None,
    edge_tolerance: float | None = None,
) -> Zones:
    """Read features, repair them and project them.

    Straight edges stay straight in the CRS they were drawn in: where the projection bends one by more than
    `edge_tolerance`, it is halved until it does not, at most `SPLITS_MAX` times. Shared edges are halved alike.

    Args:
        source: a described layer, or GeoJSON (FeatureCollection, Feature or geometry) as a document or as its bytes.
        target_crs: where `Zones.rings` lie.
        crs: where inline coordinates lie, when they do not follow GeoJSON.
        id_field: field that names the zones.
        fields: fields to carry over.
        bounds: keep only zones whose box in the target CRS touches these; features with nothing to measure are kept.
        edge_tolerance: in units of the target CRS; None projects vertices only.

    Raises:
        InvalidGeometry: coordinates that are no numbers, or that the target CRS has no place for; names the feature.
        InvalidParameter: a field or CRS that does not exist; names those that do.
        NotAVector: inline data is not GeoJSON, or the file is broken.
    """
    wanted: tuple[str, ...] = tuple(dict.fromkeys((id_field, *fields) if id_field else fields))
    if isinstance(source, VectorAsset):
        kind, layer = _recognise(source.href, source.layer)
        found = _read(source.href, kind, layer, wanted)
    else:
        found = _parse_geojson(source if isinstance(source, bytes) else _encode(source), wanted, "inline zones", crs)
    shapes, status, detail = _repair(found.geometries)
    rings = _project(shapes, found.crs, as_crs(target_crs), edge_tolerance)
    zones = Zones(
        index=np.arange(len(shapes)),
        ids=_ids(found, id_field),
        attributes=found.table.select(list(fields)),
        geometries=shapes,
        crs=crs_name(found.crs),
        rings=rings,
        status=status,
        detail=detail,
    )
    return zones if bounds is None else _within(zones, bounds)


@lru_cache(maxsize=256)
def as_crs(text: str) -> pyproj.CRS:
    """A CRS from WKT, PROJJSON, an authority code or a URN.

    Raises:
        InvalidParameter: PROJ does not know it.
    """
    try:
        return pyproj.CRS.from_user_input(text)
    except CRSError as error:
        raise InvalidParameter(
            f"PROJ does not know the CRS {text[:120]!r}. Give an authority code such as EPSG:32632, or WKT.",
            pointer="/crs",
        ) from error


def crs_name(crs: pyproj.CRS) -> str:
    """The authority code of a CRS where it surely has one, its WKT otherwise."""
    authority = crs.to_authority(min_confidence=100)
    return ":".join(authority) if authority else crs.to_wkt()


def to_wgs84(geometries: NDArray[np.object_], crs: str) -> NDArray[np.object_]:
    """Geometries in longitude and latitude, vertex by vertex."""
    transformer = _transformer(as_crs(crs), as_crs(WGS84))
    if transformer is None:
        return geometries
    return shapely.transform(geometries, lambda xy: np.stack(transformer.transform(xy[:, 0], xy[:, 1]), axis=1))


def write_geoparquet(target: BinaryIO, table: pa.Table, geometries: NDArray[np.object_], crs: str) -> None:
    """Write a table with a column `geometry` of WKB, as GeoParquet 1.1; the same input gives the same bytes."""
    from pyarrow import parquet

    present = geometries[~shapely.is_missing(geometries)]
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted({str(geometry.geom_type) for geometry in present}),
        "crs": as_crs(crs).to_json_dict(),
    }
    if len(present):
        column["bbox"] = [float(value) for value in shapely.total_bounds(present)]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    full = table.append_column("geometry", pa.array(shapely.to_wkb(geometries), pa.binary()))
    full = full.replace_schema_metadata({"geo": msgspec.json.encode(geo)})
    parquet.write_table(full, target, compression="zstd")


def write_geojson(target: BinaryIO, table: pa.Table, geometries: NDArray[np.object_]) -> None:
    """Write features with the columns of a table as properties; geometries are in longitude and latitude."""
    texts = shapely.to_geojson(geometries)
    encoder = msgspec.json.Encoder()
    target.write(b'{"type":"FeatureCollection","features":[')
    at = 0
    for batch in table.to_batches(max_chunksize=4096):
        lines = []
        for row in batch.to_pylist():
            geometry = (texts[at] or "null").encode()
            properties = encoder.encode(row)
            lines.append(b'\n{"type":"Feature","geometry":' + geometry + b',"properties":' + properties + b"}")
            at += 1
        target.write((b"," if at > len(lines) else b"") + b",".join(lines))
    target.write(b"\n]}\n")


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


def _read(href: str, kind: _Kind, layer: str | None, fields: Sequence[str] | None) -> _Layer:
    """Geometries and the named fields, all fields for None."""
    if kind == "geojson":
        return _parse_geojson(read_object(href), fields, href, None)
    if kind == "parquet":
        return _read_parquet(href, fields)
    source = _shapefile(href) if kind == "shapefile" else _gdal_source(href)
    try:
        info = pyogrio.read_info(source, layer=layer)
        _refuse_unknown(fields, list(info["fields"]), href)
        if info["crs"] is None:
            raise NoCrs(f"{href} does not say in which CRS its coordinates are.")
        meta, table = pyogrio.read_arrow(source, layer=layer, columns=None if fields is None else list(fields))
    except (DataSourceError, DataLayerError, IndexError) as error:  # IndexError: pyogrio on a file without a layer
        raise NotAVector(f"{href} cannot be read as {kind}: {error}") from error
    name = meta["geometry_name"] or "wkb_geometry"
    return _Layer(as_crs(info["crs"]), _from_wkb(table[name], href), table.drop_columns([name]), None)


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


def _read_parquet(href: str, fields: Sequence[str] | None) -> _Layer:
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
        _refuse_unknown(fields, others, href)
        table = _unpacked(file, [name, *(others if fields is None else fields)], href)
    if column.crs is None:
        raise NoCrs(f"{href} does not say in which CRS its coordinates are.")
    try:
        crs = as_crs(WGS84) if column.crs is msgspec.UNSET else pyproj.CRS.from_json_dict(column.crs)
    except CRSError as error:
        raise NoCrs(f"{href} has a CRS that PROJ does not understand: {error}") from error
    return _Layer(crs, _from_wkb(table[name], href), table.drop_columns([name]), None)


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
            return _flat(shapely.from_wkb(values))
    except (ShapelyError, TypeError) as error:
        raise InvalidGeometry(f"{href} holds a geometry that cannot be decoded: {error}") from error


def _flat(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    return shapely.force_2d(geometries) if shapely.has_z(geometries).any() else geometries


class _Feature(msgspec.Struct):
    type: str
    geometry: msgspec.Raw = msgspec.Raw(b"null")
    properties: dict[str, Any] | None = None
    id: Any = None


class _Collection(msgspec.Struct):
    type: str
    features: list[_Feature] | msgspec.UnsetType = msgspec.UNSET
    crs: Any = None


def _encode(document: dict[str, Any]) -> bytes:
    return msgspec.json.encode(document)


def _parse_geojson(data: bytes, fields: Sequence[str] | None, where: str, crs: str | None) -> _Layer:
    """Features of a GeoJSON text; a lone geometry or Feature is a collection of one."""
    try:
        head = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_Collection)
        features = head.features
        if features is msgspec.UNSET:
            if head.type == "FeatureCollection":
                raise NotAVector(f"{where}: a FeatureCollection needs `features`.", pointer="/zones/features")
            features = (
                [msgspec.json.decode(data, type=_Feature)]
                if head.type == "Feature"
                else [_Feature(type="Feature", geometry=msgspec.Raw(data))]
            )
        texts = np.array([bytes(feature.geometry).decode() for feature in features], object)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise NotAVector(f"{where}: this is not GeoJSON: {error}", pointer="/zones") from error
    texts[texts == "null"] = None
    with np.errstate(over="ignore"):  # 1e400 is no number, and refused below
        geometries = shapely.from_geojson(texts, on_invalid="ignore")
    for bad in np.flatnonzero((geometries == None) & (texts != None)):  # noqa: E711 elementwise
        raise InvalidGeometry(
            f"{where}: feature {bad} has a geometry that cannot be read: {texts[bad][:100]}. Check that its type is one"
            " of GeoJSON's, that every position has two numbers and that rings are closed and have four positions.",
            pointer=f"/zones/features/{bad}/geometry",
        )
    known = list(dict.fromkeys(name for feature in features for name in feature.properties or ()))
    _refuse_unknown(fields, known, where)
    names = known if fields is None else list(fields)
    columns = [_column([(feature.properties or {}).get(name) for feature in features]) for name in names]
    ids = [feature.id for feature in features]
    return _Layer(
        as_crs(crs) if crs else _geojson_crs(head.crs, where),
        _flat(geometries),
        pa.table(columns, names=names) if names else pa.table({"": pa.nulls(len(features))}).select([]),
        ids if features and all(value is not None for value in ids) else None,
    )


def _geojson_crs(member: Any, where: str) -> pyproj.CRS:
    if member is None:
        return as_crs(WGS84)
    try:
        return as_crs(member["properties"]["name"])
    except (KeyError, TypeError) as error:
        raise NoCrs(f"{where}: the member `crs` has no properties.name; leave it out for WGS 84.") from error


def _column(values: list[Any]) -> pa.Array:
    """A typed column; values of several types, and nested ones, become JSON text."""
    if not any(isinstance(value, dict | list) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass  # mixed types, which GeoJSON allows and a table does not
    return pa.array([None if value is None else msgspec.json.encode(value).decode() for value in values])


def _refuse_unknown(fields: Sequence[str] | None, known: Sequence[str], where: str) -> None:
    for field in fields or ():
        if field not in known:
            raise InvalidParameter(f"{where} has no field {field!r}. It has: {', '.join(known) or 'none'}.")


def _ids(layer: _Layer, id_field: str | None) -> pa.Array:
    if id_field is not None:
        column = layer.table[id_field]
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.array(range(len(layer.geometries))) if layer.ids is None else _column(layer.ids)


def _repair(geometries: NDArray[np.object_]) -> tuple[NDArray[np.object_], tuple[Status, ...], tuple[str | None, ...]]:
    """Valid, oriented polygons, and what was done to get them."""
    _refuse_not_finite(geometries, "")
    shapes = geometries.copy()
    status = np.full(len(shapes), Status.OK, object)
    detail = np.full(len(shapes), None, object)
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    status[empty], detail[empty] = Status.EMPTY, "The feature has no geometry."
    kinds = shapely.get_type_id(shapes)
    mixed = ~empty & (kinds == shapely.GeometryType.GEOMETRYCOLLECTION)
    for i in np.flatnonzero(mixed):
        shapes[i] = _polygons_of(shapes[i])
        status[i], detail[i] = Status.REPAIRED, "Members that are no polygons were left out."
    is_area = np.isin(shapely.get_type_id(shapes), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    for i in np.flatnonzero(~empty & (~is_area | shapely.is_empty(shapes))):
        status[i], detail[i] = Status.NOT_POLYGONAL, f"A {geometries[i].geom_type} has no area."
    usable = np.isin(status, USABLE)
    broken, allowed = usable & ~shapely.is_valid(shapes), CROSSINGS_MAX
    for i in np.flatnonzero(broken):
        reason = shapely.is_valid_reason(shapes[i])
        allowed -= _crossings(shapes[i], int(i), allowed)
        shapes[i] = _polygons_of(shapely.make_valid(shapes[i]))
        status[i], detail[i] = Status.REPAIRED, f"Made valid: {reason}."
    flat = usable & ~(shapely.area(shapes) > 0.0)
    status[flat], detail[flat] = Status.ZERO_AREA, "The polygon has no area."
    shapes[~np.isin(status, USABLE)] = None
    return shapely.orient_polygons(shapes), tuple(Status(value) for value in status), tuple(detail)


def _crossings(shape: Any, feature: int, allowed: int) -> int:
    """Pairs of edges that may cross, less the usual neighbours; refused where mending would take time without end."""
    points, owner = shapely.get_coordinates(shapely.get_parts(shapely.boundary(shape)), return_index=True)
    a, b = points[:-1], points[1:]
    edges = np.concatenate([np.minimum(a, b), np.maximum(a, b)], axis=1)[owner[:-1] == owner[1:]]
    limit = allowed + 8 * len(edges)
    found = count_overlaps(edges, at_most=limit)
    if found > limit:
        raise InvalidGeometry(
            f"Feature {feature} is not valid, and its edges may cross too often to mend it here. Mend it first.",
            pointer=f"/zones/features/{feature}/geometry",
            feature=feature,
        )
    return max(found - 8 * len(edges), 0)


def _polygons_of(geometry: Any) -> Any:
    """The polygons of a geometry as one multipolygon, made of valid parts that do not overlap."""
    parts = shapely.get_parts(geometry)
    while (shapely.get_type_id(parts) >= shapely.GeometryType.MULTIPOINT).any():
        parts = np.concatenate([shapely.get_parts(part) for part in parts]) if len(parts) else parts
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    if len(polygons) <= 1:
        return shapely.MultiPolygon(list(polygons))
    return shapely.union_all(shapely.make_valid(polygons))


def _refuse_not_finite(geometries: NDArray[np.object_], crs: str) -> None:
    coordinates, owner = shapely.get_coordinates(geometries, return_index=True)
    bad = ~np.isfinite(coordinates).all(axis=1)
    if bad.any():
        _raise_not_finite(int(owner[np.argmax(bad)]), crs)


def _raise_not_finite(feature: int, crs: str) -> None:
    why = f"lies where {crs} is not defined" if crs else "has a coordinate that is not a finite number"
    raise InvalidGeometry(f"Feature {feature} {why}.", pointer=f"/zones/features/{feature}/geometry", feature=feature)


def _transformer(source: pyproj.CRS, target: pyproj.CRS) -> pyproj.Transformer | None:
    """None where nothing is to be done, axis order aside."""
    if source == target or source.equals(target, ignore_axis_order=True):
        return None
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise InvalidParameter(f"PROJ has no way from {source.name} to {target.name}: {error}") from error


def _project(shapes: NDArray[np.object_], source: pyproj.CRS, target: pyproj.CRS, tolerance: float | None) -> Rings:
    none = shapely.is_missing(shapes)
    filled = shapes.copy()
    filled[none] = shapely.MultiPolygon()
    if not len(filled):
        return Rings(np.empty((0, 2)), *(np.zeros(1, np.int64) for _ in range(3)))
    kind, vertices, offsets = shapely.to_ragged_array(filled, include_z=False)
    if kind == shapely.GeometryType.POLYGON:
        offsets = (*offsets, np.arange(len(filled) + 1))
    rings = Rings(vertices, *(np.asarray(offset, np.int64) for offset in offsets))
    transformer = _transformer(source, target)
    if transformer is None or not len(vertices):
        return rings
    projected = _bend(rings, transformer, tolerance)
    bad = ~np.isfinite(projected.vertices).all(axis=1)
    if bad.any():
        ring = np.searchsorted(projected.rings, np.argmax(bad), side="right") - 1
        polygon = np.searchsorted(projected.polygons, ring, side="right") - 1
        _raise_not_finite(int(np.searchsorted(projected.zones, polygon, side="right") - 1), target.name)
    return projected


def _bend(rings: Rings, transformer: pyproj.Transformer, tolerance: float | None) -> Rings:
    """Project vertices, and halve edges that the projection bends by more than the tolerance."""

    def forward(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)

    drawn, offsets = rings.vertices, rings.rings
    placed = forward(drawn)
    starts = np.ones(len(drawn), np.bool_)
    starts[offsets[1:] - 1] = False
    pending = np.flatnonzero(starts)
    for _ in range(SPLITS_MAX if tolerance is not None else 0):
        a, b = drawn[pending], drawn[pending + 1]
        # Tested off the middle, where an S-shaped curve would pass, and from the same end whichever way a ring runs, so
        # that two neighbours halve their common edge alike.
        is_forward = (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] < b[:, 1]))
        part = np.where(is_forward, 0.4, 0.6)[:, None]
        straight = placed[pending] * (1 - part) + placed[pending + 1] * part
        with np.errstate(invalid="ignore"):  # infinite where the target CRS ends; refused by the caller
            off = np.hypot(*(forward(a * (1 - part) + b * part) - straight).T)
        bent = pending[off > cast("float", tolerance)]
        if not len(bent):
            break
        middle = (drawn[bent] + drawn[bent + 1]) / 2
        drawn = np.insert(drawn, bent + 1, middle, axis=0)
        placed = np.insert(placed, bent + 1, forward(middle), axis=0)
        offsets = offsets + np.searchsorted(bent + 1, offsets, side="left")
        first = bent + np.arange(len(bent))
        pending = np.sort(np.concatenate([first, first + 1]))
    return rings._replace(vertices=placed, rings=offsets)


def _within(zones: Zones, bounds: Bounds) -> Zones:
    boxes = shapely.bounds(zones.projected())
    apart = (
        (boxes[:, 0] > bounds[2]) | (boxes[:, 2] < bounds[0]) | (boxes[:, 1] > bounds[3]) | (boxes[:, 3] < bounds[1])
    )
    keep = np.flatnonzero(~apart)
    return Zones(
        index=zones.index[keep],
        ids=zones.ids.take(pa.array(keep)),
        attributes=zones.attributes.take(pa.array(keep)),
        geometries=zones.geometries[keep],
        crs=zones.crs,
        rings=_project(zones.projected()[keep], as_crs(WGS84), as_crs(WGS84), None),
        status=tuple(zones.status[i] for i in keep),
        detail=tuple(zones.detail[i] for i in keep),
    )
