"""GeoJSON: the quick way reads what GEOS reads, and the header tells what the features are."""

import json
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_compute import geojson
from eorouter_compute.errors import InvalidGeometry, InvalidParameter, NoCrs, NotAVector

_CORNERS = st.tuples(st.floats(-180, 170), st.floats(-90, 80), st.floats(1e-3, 10), st.floats(1e-3, 10))


def _collection(geometries: list[Any], properties: list[Any] | None = None, **members: Any) -> bytes:
    rows = properties or [{}] * len(geometries)
    features = [{"type": "Feature", "geometry": g, "properties": p} for g, p in zip(geometries, rows, strict=True)]
    return json.dumps({"type": "FeatureCollection", "features": features, **members}).encode()


def _shape(corners: list[tuple[float, float, float, float]]) -> dict[str, Any]:
    boxes = [shapely.box(x, y, x + w, y + h) for x, y, w, h in corners]
    return dict(shapely.geometry.mapping(boxes[0] if len(boxes) == 1 else shapely.MultiPolygon(boxes)))


@settings(max_examples=60, deadline=None)
@given(zones=st.lists(st.lists(_CORNERS, min_size=1, max_size=3) | st.none(), min_size=1, max_size=6))
def test_geometries_and_bounds_are_those_of_geos(zones: list[list[tuple[float, float, float, float]] | None]) -> None:
    shapes = [None if zone is None else _shape(zone) for zone in zones]
    data = _collection(shapes)
    expected = shapely.from_geojson(np.array([None if s is None else json.dumps(s) for s in shapes], object))

    found = geojson.parse(data, None, "zones")
    _, count, bounds, _ = geojson.describe(data, "zones")

    assert shapely.equals_identical(found.geometries, expected)[expected != None].all()  # noqa: E711 elementwise
    assert [g is None for g in found.geometries] == [s is None for s in shapes]
    assert count == len(shapes)
    total = shapely.total_bounds(expected)
    assert bounds is None if np.isnan(total).any() else bounds == tuple(total.tolist())


@pytest.mark.parametrize("odd", [
    {"type": "Point", "coordinates": [200.0, -3.0]},
    {"type": "Polygon", "coordinates": [[[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 0, 5]]]},
    {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]},
])  # fmt: skip
def test_one_odd_geometry_does_not_change_its_plain_neighbours(odd: dict[str, Any]) -> None:
    plain = _shape([(10.0, 20.0, 1.0, 2.0)])
    found = geojson.parse(_collection([plain, odd]), None, "zones")

    assert shapely.equals_identical(found.geometries[0], shapely.geometry.shape(plain))
    assert found.geometries[1].geom_type == odd["type"]
    assert not shapely.has_z(found.geometries).any()


def test_a_lone_geometry_and_a_byte_order_mark_are_a_collection_of_one() -> None:
    shape = _shape([(0.0, 0.0, 1.0, 1.0)])
    for document in (shape, {"type": "Feature", "geometry": shape, "properties": {"a": 1}}):
        data = b"\xef\xbb\xbf" + json.dumps(document).encode()
        assert [g.bounds for g in geojson.parse(data, None, "zones").geometries] == [(0.0, 0.0, 1.0, 1.0)]
        assert geojson.describe(data, "zones")[1:3] == (1, (0.0, 0.0, 1.0, 1.0))


def test_no_features_have_no_bounds() -> None:
    _, count, bounds, fields = geojson.describe(_collection([]), "zones")
    assert (count, bounds, fields) == (0, None, ())
    assert geojson.parse(_collection([]), None, "zones").ids is None


def test_fields_that_only_some_features_have_are_null_elsewhere() -> None:
    data = _collection([None, None, None], [{"a": 1}, None, {"b": "x", "a": 2}])
    assert geojson.parse(data, None, "zones").table.to_pydict() == {"a": [1, None, 2], "b": [None, None, "x"]}
    assert geojson.parse(data, [], "zones").table.num_rows == 3
    with pytest.raises(InvalidParameter, match=r"has no field 'c'. It has: a, b"):
        geojson.parse(data, ["c"], "zones")


@pytest.mark.parametrize(("values", "kind"), [
    ([1, None], pa.int64()), ([1, 2.5], pa.float64()), ([None, None], pa.null()), ([True, False], pa.bool_()),
    ([1, "a"], pa.string()), ([2**70, 1], pa.string()), ([{"k": [1]}, None], pa.string()), ([[1], "a"], pa.string()),
])  # fmt: skip
def test_a_column_keeps_its_type_or_becomes_json_that_reads_back(values: list[Any], kind: pa.DataType) -> None:
    found = geojson.column(values)
    assert found.type == kind
    if pa.types.is_string(kind):
        assert [None if text is None else json.loads(text) for text in found.to_pylist()] == values
    else:
        assert found.to_pylist() == values


@pytest.mark.parametrize(("values", "expected"), [
    ([1, 2], [1, 2]), (["a", "b"], ["a", "b"]), (['"a"', None], ['"a"', None]), ([1, "a"], ["1", "a"]),
    (["a", 5, None, 1.5, True, [1], {"k": "v"}], ["a", "5", None, "1.5", "true", "[1]", '{"k":"v"}']),
    ([2**70, 1], [str(2**70), "1"]),
])  # fmt: skip
def test_identifiers_of_several_types_are_text_without_quotes(values: list[Any], expected: list[Any]) -> None:
    assert geojson.identifiers(values).to_pylist() == expected


def test_fields_of_several_types_are_told() -> None:
    data = _collection([None] * 3, [{"a": 1, "b": 1, "c": "x"}, {"a": "y", "b": 2.5}, {"a": None, "c": None, "d": [1]}])
    assert geojson.parse(data, None, "zones").mixed == {"a", "d"}
    assert geojson.parse(data, ["b"], "zones").mixed == set()


def test_an_id_is_kept_where_a_feature_has_one_even_zero() -> None:
    features: list[dict[str, Any]] = [{"type": "Feature", "geometry": None, "id": 0}, {"type": "Feature", "id": "b"}]
    data = msgspec.json.encode({"type": "FeatureCollection", "features": features})
    assert geojson.parse(data, None, "zones").ids == [0, "b"]
    features[1].pop("id")
    data = msgspec.json.encode({"type": "FeatureCollection", "features": features})
    assert geojson.parse(data, None, "zones").ids == [0, None]


def test_a_broken_ring_is_named_by_its_feature() -> None:
    good, bad = _shape([(0.0, 0.0, 1.0, 1.0)]), {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}
    with pytest.raises(InvalidGeometry, match="feature 1 ") as caught:
        geojson.parse(_collection([good, bad]), None, "zones")
    assert caught.value.pointer == "/zones/features/1/geometry"


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"type":"FeatureCollection"}', b"[" * 100_000, b'{"type":"\xff"}'])
def test_what_is_no_geojson_is_refused(data: bytes) -> None:
    for read in (lambda: geojson.parse(data, None, "zones"), lambda: geojson.describe(data, "zones")):
        with pytest.raises(NotAVector):
            read()


def test_the_member_crs_is_read_or_refused() -> None:
    named = _collection([None], crs={"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}})
    assert geojson.parse(named, None, "zones").crs.to_epsg() == 32633
    assert geojson.parse(named, None, "zones", crs="EPSG:3035").crs.to_epsg() == 3035
    for member in ("EPSG:4326", {"type": "name"}, {"properties": []}):
        with pytest.raises(NoCrs):
            geojson.describe(_collection([None], crs=member), "zones")
