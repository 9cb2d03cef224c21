"""GeoJSON read and written: text to features and back, without a Python object for a coordinate.

Coordinates of polygons are read by `eorouter_kernels.coordinates`; what is not plainly a polygon is handed to GEOS, and
its word counts. What is written is in longitude and latitude, to a tenth of a millimetre.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray

from eorouter_compute.errors import InvalidGeometry, InvalidParameter, NoCrs, NotAVector
from eorouter_compute.polygons import WGS84, Bounds, Rings, as_crs
from eorouter_kernels import coordinates

DECIMALS = 9
"""Digits of a degree that are written: 0.1 mm. RFC 7946, 11.2, thinks six are enough for most."""

_DEPTHS = {"Polygon": coordinates.POLYGON, "MultiPolygon": coordinates.MULTIPOLYGON}


class Layer(NamedTuple):
    """Features as they stand in their source.

    Attributes:
        crs: where they lie.
        geometries: (feature) None where there is none.
        table: their fields.
        ids: GeoJSON's own, None for a feature without; None where no feature has one.
        mixed: fields whose values are of several types, so that the table has them as JSON text.
    """

    crs: pyproj.CRS
    geometries: NDArray[np.object_]
    table: pa.Table
    ids: list[Any] | None
    mixed: frozenset[str] = frozenset()


def column(values: list[Any]) -> pa.Array:
    """A typed column; values of several types, and nested ones, become JSON text."""
    if not any(isinstance(value, dict | list) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass  # mixed types, which GeoJSON allows and a table does not
    return pa.array([None if value is None else msgspec.json.encode(value).decode() for value in values])


def identifiers(values: list[Any]) -> pa.Array:
    """A column of names of features, as `column`, but that strings among other types stay as they are."""
    found = column(values)
    if not _is_mixed(found, values):
        return found
    return pa.array(
        [value if isinstance(value, str) else text for value, text in zip(values, found.to_pylist(), strict=True)]
    )


def _is_mixed(found: pa.Array, values: list[Any]) -> bool:
    return pa.types.is_string(found.type) and not all(isinstance(value, str | None) for value in values)


def refuse_unknown(fields: Sequence[str] | None, known: Sequence[str], where: str, pointer: str = "") -> None:
    """Raise InvalidParameter for a field that a layer does not have."""
    for field in fields or ():
        if field not in known:
            raise InvalidParameter(
                f"{where} has no field {field!r}. It has: {', '.join(known) or 'none'}.", pointer=pointer
            )


class _Shape(msgspec.Struct, gc=False):
    type: str
    coordinates: msgspec.Raw = msgspec.Raw(b"")


class _Feature(msgspec.Struct):
    type: str
    geometry: msgspec.Raw = msgspec.Raw(b"null")
    properties: dict[str, Any] | None = None
    id: Any = None


class _PlainFeature(msgspec.Struct):
    type: str
    geometry: _Shape | None = None
    properties: dict[str, Any] | None = None
    id: Any = None


class _Collection(msgspec.Struct):
    type: str
    features: list[_Feature] | msgspec.UnsetType = msgspec.UNSET
    crs: Any = None


class _PlainCollection(msgspec.Struct):
    type: str
    features: list[_PlainFeature]
    crs: Any = None


def parse(data: bytes, fields: Sequence[str] | None, where: str, crs: str | None = None) -> Layer:
    """Features of a GeoJSON text; a lone geometry or Feature is a collection of one.

    Args:
        data: the text.
        fields: properties to carry over; None for all.
        where: what the text is called in errors.
        crs: where the coordinates lie, when they do not follow GeoJSON.

    Raises:
        InvalidGeometry: a geometry that cannot be decoded; names the feature.
        InvalidParameter: a field that does not exist; names those that do.
        NotAVector: this is not GeoJSON.
        NoCrs: a member `crs` that says nothing.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    plain = _plain(data)
    if plain is None:
        features, geometries, member = _parse_any(data, where)
    else:
        features, geometries, member = plain[0].features, _built(*plain[1:]), plain[0].crs
    known = _names(features)
    refuse_unknown(fields, known, where)
    names = known if fields is None else list(fields)
    values = {name: [(feature.properties or {}).get(name) for feature in features] for name in names}
    columns = {name: column(own) for name, own in values.items()}
    ids = [feature.id for feature in features]
    return Layer(
        as_crs(crs) if crs else _crs(member, where),
        flat(geometries),
        pa.table(columns) if names else pa.table({"": pa.nulls(len(features))}).select([]),
        ids if any(value is not None for value in ids) else None,
        frozenset(name for name in names if _is_mixed(columns[name], values[name])),
    )


def flat(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """Geometries without heights."""
    return shapely.force_2d(geometries) if shapely.has_z(geometries).any() else geometries


def describe(data: bytes, where: str) -> tuple[pyproj.CRS, int, Bounds | None, tuple[str, ...]]:
    """CRS, number of features, their bounds (None where there is none) and their fields; raises as `parse`."""
    plain = _plain(data.removeprefix(b"\xef\xbb\xbf"))
    if plain is None:
        found = parse(data, None, where)
        is_empty = not len(found.geometries) or np.isnan(shapely.total_bounds(found.geometries)).any()
        bounds = None if is_empty else tuple(shapely.total_bounds(found.geometries).tolist())
        return found.crs, len(found.geometries), cast("Bounds | None", bounds), tuple(found.table.column_names)
    head, positions, _ = plain
    vertices = positions.vertices
    bounds = (*vertices.min(axis=0).tolist(), *vertices.max(axis=0).tolist()) if len(vertices) else None
    return _crs(head.crs, where), len(head.features), cast("Bounds | None", bounds), tuple(_names(head.features))


_Features = Sequence[_Feature] | Sequence[_PlainFeature]


def _names(features: _Features) -> list[str]:
    return list(dict.fromkeys(name for feature in features for name in feature.properties or ()))


def _plain(data: bytes) -> tuple[_PlainCollection, coordinates.Positions, NDArray[np.int64]] | None:
    """Features whose geometries are all plain polygons or none, and how deep each is; None for any other text."""
    try:
        head = msgspec.json.decode(data, type=_PlainCollection)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    shapes = [feature.geometry for feature in head.features]
    texts = [b"" if shape is None else shape.coordinates for shape in shapes]
    first = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(memoryview(text)) for text in texts], out=first[1:])
    depth = np.array([_DEPTHS.get(shape.type, 0) if shape is not None else 0 for shape in shapes], np.int64)
    found = coordinates.read(b"".join(texts), first, depth)
    if any(shapes[i] is not None for i in np.flatnonzero(found.strange)):
        return None
    return head, found, depth


def _built(found: coordinates.Positions, depth: NDArray[np.int64]) -> NDArray[np.object_]:
    out = np.full(len(depth), None, object)
    parts = shapely.from_ragged_array(shapely.GeometryType.POLYGON, found.vertices, (found.rings, found.polygons))
    is_one, is_many = (depth == of for of in (coordinates.POLYGON, coordinates.MULTIPOLYGON))
    counts = np.diff(found.geometries)
    owner = np.repeat(np.arange(len(depth)), counts)
    out[is_one] = parts[is_one[owner]]
    if is_many.any():
        many = counts[is_many]
        out[is_many] = shapely.multipolygons(parts[is_many[owner]], indices=np.repeat(np.arange(len(many)), many))
    return out


def _parse_any(data: bytes, where: str) -> tuple[_Features, NDArray[np.object_], Any]:
    """Features as GEOS reads them."""
    try:
        head = msgspec.json.decode(data, type=_Collection)
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
    return features, geometries, head.crs


def _crs(member: Any, where: str) -> pyproj.CRS:
    if member is None:
        return as_crs(WGS84)
    try:
        return as_crs(member["properties"]["name"])
    except (KeyError, TypeError) as error:
        raise NoCrs(f"{where}: the member `crs` has no properties.name; leave it out for WGS 84.") from error


# Writing --------------------------------------------------------------------------------------------------------------


def texts(rings: Rings, is_multi: NDArray[np.bool_]) -> Iterator[bytes]:
    """The JSON of each zone of `rings`, which lie in longitude and latitude; `null` where there is none.

    Args:
        rings: the zones.
        is_multi: (zone) whether one polygon alone is called a MultiPolygon, too.
    """
    data, first = coordinates.write(rings.vertices, rings.rings, rings.polygons, DECIMALS)
    cuts, owned = first.tolist(), rings.zones.tolist()
    for number, named_multi in enumerate(is_multi.tolist()):
        begin, end = owned[number], owned[number + 1]
        if begin == end:
            yield b"null"
        elif end - begin == 1 and not named_multi:
            yield b'{"type":"Polygon","coordinates":' + data[cuts[begin] : cuts[end]] + b"}"
        else:
            parts = b",".join([data[cuts[at] : cuts[at + 1]] for at in range(begin, end)])
            yield b'{"type":"MultiPolygon","coordinates":[' + parts + b"]}"
