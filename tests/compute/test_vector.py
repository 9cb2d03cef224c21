"""Vector files as they come: real ones, broken ones, hostile ones; and edges that a projection bends."""

import io
import zipfile
from pathlib import Path
from typing import Any

import geopandas
import msgspec
import numpy as np
import pyarrow as pa
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from eorouter_compute import vector, zones
from eorouter_compute.errors import (
    ComputeError,
    DecompressionBomb,
    InvalidGeometry,
    InvalidParameter,
    NoCrs,
    NotAVector,
    SourceUnreadable,
    UnsupportedFormat,
)
from eorouter_compute.polygons import Status

SQUARE = {"type": "Polygon", "coordinates": [[[6, 49], [7, 49], [7, 50], [6, 50], [6, 49]]]}


def collection(*geometries: Any, **members: Any) -> dict[str, Any]:
    features = [{"type": "Feature", "geometry": shape, "properties": {"n": i}} for i, shape in enumerate(geometries)]
    return {"type": "FeatureCollection", "features": features, **members}


@pytest.fixture
def frame() -> geopandas.GeoDataFrame:
    shapes = [shapely.box(0, 0, 100, 100), shapely.box(200, 0, 300, 50)]
    return geopandas.GeoDataFrame({"crop": ["rye", "oat"], "id": [7, 9]}, geometry=shapes, crs="EPSG:32632")


REAL = {
    "zonal/luxembourg/lux.gpkg": (12, ["ok"] * 12),
    "optical/landsat8_zion/zion.gpkg": (1, ["ok"]),
    "optical/s2_l2a_amazon/classes.gpkg": (25, ["ok"] * 25),
    "timeseries/s2_crops_lombardy/fields.gpkg": (2, ["ok"] * 2),
}


@pytest.mark.parametrize(("path", "expected"), REAL.items())
def test_real_layers_are_described_and_read(data_dir: Path, path: str, expected: tuple[int, list[str]]):
    asset = vector.describe(str(data_dir / path))
    theirs = geopandas.read_file(data_dir / path)
    assert asset.feature_count == expected[0] == len(theirs)
    assert asset.bounds == pytest.approx(tuple(theirs.total_bounds))
    assert pyproj.CRS.from_user_input(asset.crs).equals(pyproj.CRS(theirs.crs), ignore_axis_order=True)
    found = zones.read(asset, target_crs="EPSG:4326", fields=asset.fields)
    assert list(found.status) == expected[1]
    np.testing.assert_allclose(
        shapely.bounds(found.projected()), shapely.bounds(theirs.to_crs("EPSG:4326").geometry.values), rtol=1e-9
    )
    assert found.attributes.column_names == list(asset.fields)


def test_invalid_polygons_are_repaired_and_named(data_dir: Path):
    asset = vector.describe(str(data_dir / "timeseries/landsat8_ny_2018/nycd.gpkg"))
    theirs = geopandas.read_file(data_dir / "timeseries/landsat8_ny_2018/nycd.gpkg").geometry.values
    found = zones.read(asset, target_crs=asset.crs)
    broken = ~shapely.is_valid(theirs)
    assert broken.sum() == 18
    assert [status == Status.REPAIRED for status in found.status] == broken.tolist()
    assert all(("Self-intersection" in (detail or "")) == bad for detail, bad in zip(found.detail, broken, strict=True))
    assert shapely.is_valid(found.projected()).all()
    np.testing.assert_allclose(shapely.area(found.projected()), shapely.area(shapely.make_valid(theirs)), rtol=1e-12)


@pytest.mark.parametrize("kind", ["gpkg", "geojson", "parquet", "fgb", "shp.zip"])
def test_every_format_gives_the_same_zones(frame: geopandas.GeoDataFrame, tmp_path: Path, kind: str):
    path = tmp_path / f"fields.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "geojson":
        document = frame.to_geo_dict() | {
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
        }
        path.write_bytes(msgspec.json.encode(document))
    elif kind == "shp.zip":
        frame.to_file(tmp_path / "fields.shp")
        with zipfile.ZipFile(path, "w") as archive:
            for part in tmp_path.glob("fields.*"):
                if part != path:
                    archive.write(part, f"deep/{part.name}")
    else:
        frame.to_file(path)
    asset = vector.describe(path.as_uri())
    assert (asset.crs, asset.feature_count, asset.bounds) == ("EPSG:32632", 2, (0.0, 0.0, 300.0, 100.0))
    assert sorted(asset.fields) == ["crop", "id"]
    found = zones.read(asset, target_crs="EPSG:32632", id_field="crop", fields=["id"])
    by_name = dict(zip(found.ids.to_pylist(), found.projected(), strict=True))
    assert {name: shape.area for name, shape in by_name.items()} == {"rye": 10_000.0, "oat": 5_000.0}
    assert sorted(found.attributes["id"].to_pylist()) == [7, 9]


def test_geojson_is_longitude_and_latitude_unless_it_says_otherwise():
    for document in (SQUARE, {"type": "Feature", "geometry": SQUARE, "properties": None}, collection(SQUARE)):
        found = zones.read(document, target_crs="EPSG:4326")
        assert shapely.bounds(found.projected()).tolist() == [[6, 49, 7, 50]]
    for name in ("urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326", "urn:ogc:def:crs:EPSG::4326"):
        member = {"type": "name", "properties": {"name": name}}
        found = zones.read(collection(SQUARE, crs=member), target_crs="EPSG:32632")
        assert shapely.bounds(found.projected())[0, 1] == pytest.approx(5_427_937, abs=4_000), name


def test_ids_are_a_field_or_the_features_own_or_their_position():
    features = collection(SQUARE, SQUARE)
    assert zones.read(features, target_crs="EPSG:4326").ids.to_pylist() == [0, 1]
    assert zones.read(features, target_crs="EPSG:4326", id_field="n").ids.to_pylist() == [0, 1]
    for i, feature in enumerate(features["features"]):
        feature["id"] = f"zone-{i}"
    assert zones.read(features, target_crs="EPSG:4326").ids.to_pylist() == ["zone-0", "zone-1"]


def test_a_feature_without_an_id_among_others_goes_by_its_position_and_says_so():
    features = collection(SQUARE, SQUARE, SQUARE, None)
    features["features"][0]["id"], features["features"][1]["id"] = "x", 5
    found = zones.read(features, target_crs="EPSG:4326")
    assert found.ids.to_pylist() == ["x", "5", "2", "3"]
    nameless = "The feature has no id; its position stands for it."
    assert found.detail == (None, None, nameless, f"The feature has no geometry. {nameless}")
    features["features"][0]["id"] = 7
    assert zones.read(features, target_crs="EPSG:4326").ids.to_pylist() == [7, 5, 2, 3]


def test_a_field_of_several_types_names_zones_without_quotes():
    features = collection(SQUARE, SQUARE, SQUARE)
    for feature, value in zip(features["features"], (1, "a", None), strict=True):
        feature["properties"] = {"n": value}
    found = zones.read(features, target_crs="EPSG:4326", id_field="n", fields=["n"])
    assert found.ids.to_pylist() == ["1", "a", None]
    assert found.attributes["n"].to_pylist() == ["1", '"a"', None]
    assert found.detail == (None,) * 3


def test_fields_of_mixed_and_nested_values_become_text():
    features = collection(SQUARE, SQUARE, SQUARE)
    for feature, value in zip(features["features"], (1, "a", {"b": [1]}), strict=True):
        feature["properties"] = {"mixed": value, "whole": 3}
    found = zones.read(features, target_crs="EPSG:4326", fields=["mixed", "whole"])
    assert found.attributes["mixed"].to_pylist() == ["1", '"a"', '{"b":[1]}']
    assert found.attributes["whole"].to_pylist() == [3, 3, 3]


def test_heights_are_dropped_and_holes_kept():
    shell = [[0, 0, 5], [4, 0, 5], [4, 4, 5], [0, 4, 5], [0, 0, 5]]
    hole = [[1, 1, 5], [1, 2, 5], [2, 2, 5], [2, 1, 5], [1, 1, 5]]
    found = zones.read({"type": "Polygon", "coordinates": [shell, hole]}, target_crs="EPSG:4326")
    assert found.projected()[0].area == 15.0
    assert found.rings.rings.tolist() == [0, 5, 10]


@pytest.mark.parametrize(
    ("source", "target", "shape"),
    [
        ("EPSG:4326", "EPSG:32632", shapely.box(3, 40, 15, 60)),
        ("EPSG:4326", "EPSG:3035", shapely.Polygon([(-5, 36), (30, 38), (28, 68), (-8, 55)])),
        ("EPSG:32632", "EPSG:4326", shapely.box(166_000, 4_000_000, 833_000, 7_000_000)),
    ],
)
def test_long_edges_are_bent_to_within_the_tolerance(source: str, target: str, shape: shapely.Polygon):
    tolerance = 1e-6 if target == "EPSG:4326" else 0.1
    document = shapely.geometry.mapping(shape)
    bent = zones.read(document, target_crs=target, crs=source, edge_tolerance=tolerance).projected()[0]
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    dense = shapely.get_coordinates(shapely.segmentize(shape.exterior, shape.length / 20_011))
    truth = shapely.points(*transformer.transform(*dense.T))
    assert shapely.distance(truth, bent.boundary).max() < 1.1 * tolerance
    straight = zones.read(document, target_crs=target, crs=source).projected()[0]
    assert shapely.distance(truth, straight.boundary).max() > 100 * tolerance


@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_neighbours_bend_their_common_edge_alike(seed: int):
    points = shapely.MultiPoint(np.random.default_rng(seed).uniform((0, 40), (20, 60), (6, 2)))
    parts = shapely.get_parts(shapely.voronoi_polygons(points, extend_to=shapely.box(0, 40, 20, 60)))
    document = collection(*(shapely.geometry.mapping(part) for part in parts))
    found = zones.read(document, target_crs="EPSG:3035", edge_tolerance=5.0).projected()
    whole = shapely.union_all(found)
    assert shapely.area(found).sum() == pytest.approx(whole.area, rel=1e-12)
    assert whole.geom_type == "Polygon"
    assert not whole.interiors


def bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.shp", b"\0" * 20_000_000)
    return packed.getvalue()


def bare_parquet(geo: dict[str, Any] | None) -> bytes:
    table = pa.table({"geometry": pa.array([shapely.box(0, 0, 1, 1).wkb])})
    packed = io.BytesIO()
    if geo is not None:
        document = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geo}}
        table = table.replace_schema_metadata({"geo": msgspec.json.encode(document)})
    parquet.write_table(table, packed)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", NotAVector, "were expected"),
        (b"id,wkt\n1,POINT(0 0)", NotAVector, "GeoPackage"),
        (b"<OGRVRTDataSource></OGRVRTDataSource>", NotAVector, "first bytes"),
        (b"SQLite format 3\x00" + bytes(200), NotAVector, "first bytes"),
        (b"SQLite format 3\x00" + bytes(52) + b"GPKG" + bytes(400), NotAVector, "broken GeoPackage"),
        (b"fgb\x03fgb\x00" + bytes(90), NotAVector, "flatgeobuf"),
        (b"PK\x03\x04nothing", NotAVector, "broken zip"),
        (b"PAR1nothingPAR1", NotAVector, "broken Parquet"),
        (bare_parquet(None), NotAVector, "without geometries"),
        (bare_parquet({"encoding": "polygon"}), UnsupportedFormat, "WKB"),
        (bare_parquet({"encoding": "WKB", "crs": None}), NoCrs, "in which CRS"),
        (b'{"type": "FeatureCollection"', NotAVector, "not GeoJSON"),
        (b'{"type": "FeatureCollection", "features": [], "crs": {"type": "none"}}', NoCrs, "member `crs`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, content: bytes, error: type[ComputeError], says: str
):
    path = tmp_path / "upload.bin"
    path.write_bytes(content)
    with pytest.raises(error, match=says) as caught:
        vector.describe(str(path))
    assert "upload.bin" in caught.value.message


def test_an_archive_that_unpacks_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b.zip").write_bytes(bomb())
    monkeypatch.setattr(vector, "UNPACKED_BYTES_MAX", 10_000_000)
    with pytest.raises(DecompressionBomb, match="20,000,000 bytes"):
        vector.describe(str(tmp_path / "b.zip"))


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_file_without_crs_is_refused(frame: geopandas.GeoDataFrame, tmp_path: Path):
    frame.set_crs(None, allow_override=True).to_file(tmp_path / "no.fgb")
    with pytest.raises(NoCrs, match="in which CRS"):
        vector.describe(str(tmp_path / "no.fgb"))


def test_a_missing_file_is_a_source_fault():
    with pytest.raises(SourceUnreadable, match="does not exist"):
        vector.describe("file:///nowhere/zones.gpkg")


def test_a_layer_must_be_named_where_there_are_several(frame: geopandas.GeoDataFrame, tmp_path: Path):
    path = tmp_path / "two.gpkg"
    frame.to_file(path, layer="a")
    frame.iloc[:1].to_file(path, layer="b")
    with pytest.raises(InvalidParameter, match="a, b"):
        vector.describe(str(path))
    with pytest.raises(InvalidParameter, match="no layer 'c'"):
        vector.describe(str(path), layer="c")
    assert vector.describe(str(path), layer="b").feature_count == 1


def test_unknown_fields_are_refused_with_those_there_are():
    with pytest.raises(InvalidParameter, match="It has: n"):
        zones.read(collection(SQUARE), target_crs="EPSG:4326", fields=["m"])


@pytest.mark.parametrize(
    ("coordinates", "crs", "says"),
    [
        ([[[0, 0], [1, 0]]], "EPSG:4326", "cannot be read"),
        ([[[0, 0], [1], [1, 1], [0, 0]]], "EPSG:4326", "cannot be read"),
        ([[[0, 0], [1, 0], [1, 1], [0, 1]]], "EPSG:4326", "cannot be read"),
        ([[[0, 0], [120, 0], [1, 1], [0, 0]]], "+proj=gnom +lat_0=40 +datum=WGS84 +type=crs", "not defined"),
        ([[[0, 0], [1, 0], [1, 91], [0, 0]]], "EPSG:3857", "no longitude and latitude"),
        ([[[0, 0], [1e400, 0], [1, 1], [0, 0]]], "EPSG:4326", "cannot be read"),
    ],
)
def test_coordinates_that_are_no_place_are_refused_with_the_feature(coordinates: Any, crs: str, says: str):
    text = repr(collection(SQUARE, {"type": "Polygon", "coordinates": coordinates}))
    data = text.replace("'", '"').replace("inf", "1e400").encode()
    with pytest.raises(InvalidGeometry, match=says) as caught:
        zones.read(data, target_crs=crs)
    assert caught.value.pointer == "/zones/features/1/geometry"


def test_coordinates_that_are_not_finite_in_a_file_are_refused(tmp_path: Path):
    with np.errstate(invalid="ignore"):
        shapes = [shapely.box(0, 0, 1, 1), shapely.Polygon([(0, 0), (np.nan, 1), (1, 1), (0, 0)])]
    geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:4326").to_parquet(
        tmp_path / "nan.parquet", write_covering_bbox=False
    )
    asset = vector.describe(str(tmp_path / "nan.parquet"))
    with pytest.raises(InvalidGeometry, match="Feature 1"):
        zones.read(asset, target_crs="EPSG:4326")
