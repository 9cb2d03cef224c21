"""Tables of features as files: GeoParquet, CSV and GeoJSON; the same table gives the same bytes."""

from itertools import chain, islice, repeat
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from eorouter_compute import geojson
from eorouter_compute.attempt import Attempt
from eorouter_compute.method import OutputAsset, VectorAsset
from eorouter_compute.polygons import WGS84, Bounds, Rings, as_crs, lonlat_bounds, to_lonlat

CHUNK_ROWS = 4096


def write_geoparquet(
    target: BinaryIO, table: pa.Table, geometries: NDArray[np.object_], crs: str, rows_each: int = 1
) -> None:
    """Write a table with a column `geometry` of WKB, as GeoParquet 1.1; `rows_each` rows share a geometry."""
    from pyarrow import parquet

    present = geometries[~shapely.is_missing(geometries)]
    kinds = np.unique(shapely.get_type_id(present))
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(_type_name(int(kind)) for kind in kinds),
        "crs": as_crs(crs).to_json_dict(),
    }
    if len(present):
        column["bbox"] = [float(value) for value in shapely.total_bounds(present)]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    shapes = pa.array(shapely.to_wkb(geometries), pa.binary())
    if rows_each > 1:
        shapes = shapes.take(pa.array(np.repeat(np.arange(len(geometries)), rows_each)))
    full = table.append_column("geometry", shapes)
    full = full.replace_schema_metadata({"geo": msgspec.json.encode(geo)})
    parquet.write_table(full, target, compression="zstd")


def write_csv(target: BinaryIO, table: pa.Table) -> None:
    """Write the columns of a table, with a header."""
    from pyarrow import csv

    csv.write_csv(table, target)


def write_geojson(
    target: BinaryIO, table: pa.Table, rings: Rings, is_multi: NDArray[np.bool_], rows_each: int = 1
) -> None:
    """Write features with the columns of a table as properties.

    Args:
        target: an open file.
        table: `rows_each` rows for each zone, one after the other.
        rings: the zones in longitude and latitude.
        is_multi: see `geojson.texts`.
        rows_each: rows that share a geometry.
    """
    names = [msgspec.json.encode(name).replace(b"%", b"%%") + b":%b" for name in table.column_names]
    line = b'\n{"type":"Feature","geometry":%b,"properties":{' + b",".join(names) + b"}}"
    target.write(b'{"type":"FeatureCollection","features":[')
    shapes = chain.from_iterable(repeat(text, rows_each) for text in geojson.texts(rings, is_multi))
    for begin in range(0, table.num_rows, CHUNK_ROWS):
        rows = table.slice(begin, CHUNK_ROWS)
        columns = [_texts(column) for column in rows.columns]
        own = islice(shapes, rows.num_rows)
        target.write((b"," if begin else b"") + b",".join([line % row for row in zip(own, *columns, strict=True)]))
    target.write(b"\n]}\n")


def write_all(
    attempt: Attempt, name: str, table: pa.Table, geometries: NDArray[np.object_], crs: str, *, rows_each: int = 1
) -> tuple[tuple[OutputAsset, ...], Bounds]:
    """Write a table in all formats, as objects of an attempt; with the box around it in longitude and latitude.

    `rows_each` rows, one after the other, share a geometry.
    """
    rings = to_lonlat(geometries, crs)
    is_multi = shapely.get_type_id(geometries) == shapely.GeometryType.MULTIPOLYGON
    x_min, y_min, x_max, y_max = (float(value) for value in shapely.total_bounds(geometries))
    (west, south), (east, north) = rings.vertices.min(axis=0).tolist(), rings.vertices.max(axis=0).tolist()
    with attempt.create(f"{name}.parquet") as target:
        write_geoparquet(target, table, geometries, crs, rows_each)
    with attempt.create(f"{name}.csv") as target:
        write_csv(target, table)
    with attempt.create(f"{name}.geojson") as target:
        write_geojson(target, table, rings, is_multi, rows_each)
    endings = {"table": "parquet", "csv": "csv", "geojson": "geojson"}
    written = {key: attempt.refs[f"{name}.{ending}"] for key, ending in endings.items()}
    described = {
        key: VectorAsset(
            key=key,
            href=written[key].href,
            crs=crs if key == "table" else WGS84,
            feature_count=table.num_rows,
            bounds=(x_min, y_min, x_max, y_max) if key == "table" else (west, south, east, north),
            fields=tuple(table.column_names),
        )
        for key in ("table", "geojson")
    }
    kinds = {
        "table": ("application/vnd.apache.parquet", "Zones with statistics, GeoParquet"),
        "csv": ("text/csv", "Statistics without geometries"),
        "geojson": ("application/geo+json", "Zones with statistics, longitude and latitude"),
    }
    assets = tuple(
        OutputAsset(
            key=key,
            object=written[key],
            media_type=media_type,
            roles=("data",),
            filename=f"{name}.{endings[key]}",
            title=title,
            vector=described.get(key),
        )
        for key, (media_type, title) in kinds.items()
    )
    return assets, lonlat_bounds(rings)


def _type_name(kind: int) -> str:
    names = ("Point", "LineString", "LinearRing", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon")
    return names[kind] if kind < len(names) else "GeometryCollection"


def _texts(column: pa.ChunkedArray) -> list[bytes]:
    """Each value as JSON."""
    values = column.to_pylist()
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        # No number holds a comma: one call for all, where a call for each takes ten times as long.
        return msgspec.json.encode(values)[1:-1].split(b",")
    return [msgspec.json.encode(value) for value in values]
