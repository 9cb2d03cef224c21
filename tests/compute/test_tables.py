"""Tables as files, read back by others."""

import io
from datetime import date

import geopandas
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import shapely

from eorouter_compute import polygons, tables

ROWS = [
    {"id": 1, '100% "sure"': 0.1, "name": "a,b", "day": date(2024, 2, 29), "is_field": True, "none": None},
    {"id": -(2**53), '100% "sure"': None, "name": None, "day": None, "is_field": None, "none": None},
    {"id": 7, '100% "sure"': 1e300, "name": "%b ü\n", "day": date(1970, 1, 1), "is_field": False, "none": None},
]
SHAPES = np.array([shapely.box(0, 0, 1, 1), None, shapely.MultiPolygon([shapely.box(2, 2, 3, 3)])])


def write(target: io.BytesIO, table: pa.Table, shapes: np.ndarray) -> None:
    is_multi = shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON
    tables.write_geojson(target, table, polygons.ragged(shapes), is_multi)


@pytest.mark.parametrize("chunk_rows", [1, 2, 4096])
def test_geojson_has_every_value_whatever_its_type_and_name(monkeypatch: pytest.MonkeyPatch, chunk_rows: int):
    monkeypatch.setattr(tables, "CHUNK_ROWS", chunk_rows)
    written = io.BytesIO()
    write(written, pa.Table.from_pylist(ROWS), SHAPES)
    features = msgspec.json.decode(written.getvalue())["features"]
    assert [feature["properties"] for feature in features] == msgspec.to_builtins(ROWS)
    found = [feature["geometry"] and shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert found == SHAPES.tolist()


def test_geojson_of_no_rows_or_no_columns_is_still_geojson():
    for table, shapes in ((pa.table({"a": pa.array([], pa.int64())}), SHAPES[:0]), (pa.table({}), SHAPES[:0])):
        written = io.BytesIO()
        write(written, table, shapes)
        assert msgspec.json.decode(written.getvalue()) == {"type": "FeatureCollection", "features": []}


def test_numbers_that_are_none_become_null():
    written = io.BytesIO()
    write(written, pa.table({"x": [np.nan, np.inf, 0.1 + 0.2]}), SHAPES)
    features = msgspec.json.decode(written.getvalue())["features"]
    assert [feature["properties"]["x"] for feature in features] == [None, None, 0.1 + 0.2]


def test_geoparquet_is_read_by_geopandas_with_types_and_crs():
    written = io.BytesIO()
    tables.write_geoparquet(written, pa.Table.from_pylist(ROWS), SHAPES, "EPSG:32632")
    frame = geopandas.read_parquet(io.BytesIO(written.getvalue()))
    assert frame.crs.to_epsg() == 32632
    assert frame.geometry.tolist() == SHAPES.tolist()
    assert frame["id"].tolist() == [row["id"] for row in ROWS]
    again = io.BytesIO()
    tables.write_geoparquet(again, pa.Table.from_pylist(ROWS), SHAPES, "EPSG:32632")
    assert again.getvalue() == written.getvalue()
    from pyarrow import parquet

    geo = msgspec.json.decode(parquet.read_schema(written).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]
