"""Vector files made to harm their reader: each did, before it was looked at first."""

import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

import geopandas
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import shapely
from pyarrow import parquet

from eorouter_compute import aoi, polygons, vector, vetting
from eorouter_compute.errors import (
    DecompressionBomb,
    InvalidGeometry,
    NoCrs,
    NotAVector,
    SourceUnreadable,
    TooLarge,
    UnsupportedFormat,
)

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
SQUARE = shapely.box(10.0, 46.0, 10.1, 46.1)
POINT = b"\x01\x01\x00\x00\x00" + struct.pack("<dd", 1, 1)
COLUMN: dict[str, Any] = {"encoding": "WKB"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A GeoPackage of one layer `z`, without the triggers that would get in the way of changing it."""
    path = tmp_path / "z.gpkg"
    frame = geopandas.GeoDataFrame({"a": [1]}, geometry=[SQUARE], crs=4326)
    frame.to_file(path, driver="GPKG", layer="z", SPATIAL_INDEX="NO")
    with sqlite3.connect(path) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("DROP TABLE gpkg_ogr_contents")
    connection.close()
    return path


def change(path: Path, script: str) -> str:
    connection = sqlite3.connect(path)
    connection.executescript(f"PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON; {script}")
    connection.close()
    return str(path)


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (
            f"ALTER TABLE z RENAME TO y; CREATE VIEW z AS {ENDLESS} SELECT x AS fid, NULL AS geom, x AS a FROM c",
            "views",
        ),
        (
            "ALTER TABLE gpkg_spatial_ref_sys RENAME TO g;"
            f"CREATE VIEW gpkg_spatial_ref_sys AS {ENDLESS} SELECT g.* FROM g, c WHERE c.x < 0",
            "views",
        ),
        ("ALTER TABLE z ADD COLUMN b TEXT GENERATED ALWAYS AS (hex(zeroblob(400000000)))", "generated columns"),
        ("CREATE VIRTUAL TABLE f USING fts5(a)", "virtual tables"),
    ],
)
def test_a_geopackage_that_computes_is_refused(package: Path, script: str, word: str):
    with pytest.raises(UnsupportedFormat, match=word):
        vector.describe(change(package, script))


def test_a_geopackage_with_an_index_and_triggers_is_read(tmp_path: Path):
    path = tmp_path / "a b#c?.gpkg"
    geopandas.GeoDataFrame({"a": [1]}, geometry=[SQUARE], crs=4326).to_file(path, driver="GPKG")
    vetting.check_geopackage(path, "it")
    vetting.check_geopackage(path.read_bytes(), "it")


def test_pages_that_share_their_children_are_damage(package: Path):
    """Seven pages, each with 300 times the next as its child, are 300 to the seventh rows."""
    connection = sqlite3.connect(package)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'z'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    (count,) = connection.execute("PRAGMA page_count").fetchone()
    connection.close()

    def interior(child: int) -> bytes:
        cell = struct.pack(">I", child) + b"\x01"
        starts = [size - len(cell) * number for number in range(1, 301)]
        head = struct.pack(">BHHHBI", 5, 0, len(starts), starts[-1], 0, child) + struct.pack(">300H", *starts)
        return head + bytes(size - len(head) - 300 * len(cell)) + 300 * cell

    data = bytearray(package.read_bytes())
    data += data[(root - 1) * size : root * size]
    for child in range(count + 1, count + 7):
        data += interior(child)
    data[(root - 1) * size : root * size] = interior(count + 7)
    struct.pack_into(">I", data, 28, count + 7)
    package.write_bytes(data)
    with pytest.raises(NotAVector, match="damaged"):
        vector.describe(str(package))


def geoparquet(path: Path, geometries: Any, geo: Any) -> str:
    table = pa.table({"geometry": geometries}).replace_schema_metadata({"geo": geo})
    parquet.write_table(table, path, compression="zstd")
    return str(path)


def meta(**column: Any) -> str:
    return json.dumps({"primary_column": "geometry", "columns": {"geometry": COLUMN | column}})


@pytest.mark.parametrize(
    "geo",
    [
        "no json", "[]", "5", "[" * 100_000, '{"primary_column": ["geometry"], "columns": {}}',
        '{"primary_column": "geometry", "columns": {}}', '{"primary_column": "geometry", "columns": {"geometry": 5}}',
        '{"primary_column": "x", "columns": {"x": {"encoding": "WKB"}}}',
    ],
)  # fmt: skip
def test_metadata_that_are_not_geoparquets_are_told(tmp_path: Path, geo: str):
    with pytest.raises(NotAVector, match="metadata"):
        vector.describe(geoparquet(tmp_path / "a.parquet", pa.array([b""]), geo))


def test_a_crs_nobody_knows_and_a_column_of_numbers_are_told(tmp_path: Path):
    with pytest.raises(NoCrs, match="PROJ"):
        vector.describe(geoparquet(tmp_path / "a.parquet", pa.array([SQUARE.wkb]), meta(crs={"a": 1})))
    with pytest.raises(UnsupportedFormat, match="int64"):
        vector.describe(geoparquet(tmp_path / "b.parquet", pa.array([1]), meta()))


def test_a_parquet_file_that_unpacks_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vector, "UNPACKED_BYTES_MAX", 20_000_000)
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), pa.array([SQUARE.wkb]))
    path = geoparquet(tmp_path / "a.parquet", same.cast(pa.binary()), meta())
    assert Path(path).stat().st_size < 20_000
    with pytest.raises(DecompressionBomb, match="20,000,000"):
        vector.describe(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [4, 5, 6, 7, 1007, 3006, 0x80000007])
def test_geometry_nested_deeper_than_a_stack_is_refused(tmp_path: Path, order: str, kind: int):
    level = struct.pack(f"{order}BII", order == "<", kind, 1)
    with pytest.raises(SourceUnreadable, match="feature 1 is nested"):
        vector.describe(geoparquet(tmp_path / "a.parquet", pa.array([POINT, level * 200_000 + POINT]), meta()))


def test_geometry_nested_behind_a_first_member_is_refused():
    level = struct.pack("<BII", 1, 7, 2) + SQUARE.wkb
    with pytest.raises(SourceUnreadable, match="feature 0 is nested"):
        vetting.check_nesting([level * (vetting.NESTING_MAX + 1) + POINT], "it")


def test_geometry_of_every_kind_is_let_through():
    wide = shapely.GeometryCollection([shapely.MultiPolygon([SQUARE] * 100), shapely.MultiPoint([(1, 2)] * 300)] * 3)
    deep: Any = wide
    for _ in range(vetting.NESTING_MAX - 2):
        deep = shapely.GeometryCollection([deep])
    high = shapely.force_3d(wide, 5.0)
    vetting.check_nesting([shapely.to_wkb(each) for each in (wide, deep, high)], "it")
    vetting.check_nesting([shapely.to_wkb(shapely.set_srid(high, 4326), include_srid=True, flavor="extended")], "it")


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "Feature", "geometry": null, "properties": {"a": ' + "[" * 50_000 + "]" * 50_000 + "}}",
        '{"type": "Feature", "geometry": ' + '{"type":"GeometryCollection","geometries":[' * 9_000 + "]}" * 9_000 + "}",
    ],
)
def test_geojson_without_end_is_no_geojson(tmp_path: Path, text: str):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(NotAVector, match="recursion"):
        vector.describe(str(tmp_path / "a.geojson"))


def test_degrees_that_are_none_are_refused(tmp_path: Path):
    far = {"type": "Polygon", "coordinates": [[[1e5, 0], [1e5, 1e5], [-1e5, 1e5], [1e5, 0]]]}
    (tmp_path / "a.geojson").write_text(json.dumps(far))
    with pytest.raises(InvalidGeometry, match="longitude and latitude"):
        vector.describe(str(tmp_path / "a.geojson"))


def bars(count: int) -> list[Any]:
    along = [shapely.box(number, -1, number + 0.5, count) for number in range(count)]
    return along + [shapely.box(-1, number, count, number + 0.5) for number in range(count)]


def test_areas_laid_across_each_other_are_refused_before_they_are_united():
    few = shapely.MultiPolygon(bars(20))
    assert aoi.parse(json.loads(shapely.to_geojson(few)), "EPSG:3857").area == pytest.approx(
        shapely.union_all(few).area
    )
    many = json.loads(shapely.to_geojson(shapely.MultiPolygon(bars(1000))))
    with pytest.raises(TooLarge, match="overlap"):
        aoi.parse(many, "EPSG:3857")


def test_an_area_of_too_many_positions_is_refused_before_it_is_read():
    ring = [[0, 0]] * (aoi.POSITIONS_MAX + 1)
    with pytest.raises(TooLarge, match="positions"):
        aoi.parse({"type": "Polygon", "coordinates": [ring]})


def test_a_zone_that_crosses_itself_without_end_is_refused_however_it_is_cut_up():
    generator = np.random.default_rng(1)

    def tangle(count: int) -> dict[str, Any]:
        ring = generator.uniform(10, 11, (count, 2)).tolist()
        return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}

    def zones(*geometries: Any) -> dict[str, Any]:
        features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
        return {"type": "FeatureCollection", "features": features}

    def statuses(document: dict[str, Any]) -> tuple[polygons.Status, ...]:
        layer = vector.read(msgspec.json.encode(document), ())
        return polygons.repair(layer.geometries, layer.crs)[1]

    assert statuses(zones(tangle(20))) == (polygons.Status.REPAIRED,)
    with pytest.raises(InvalidGeometry, match="Feature 0 is not valid, and its edges"):
        statuses(zones(tangle(2000)))
    with pytest.raises(InvalidGeometry, match="its edges may cross too often"):
        statuses(zones(*[tangle(100) for _ in range(200)]))


@pytest.mark.parametrize("at_most", [0, 10, 10_000])
def test_overlaps_are_counted_once_and_not_far_beyond_the_limit(at_most: int):
    boxes = shapely.bounds(bars(20))
    assert vetting.count_overlaps(boxes, at_most=at_most) == 20 * 20


@pytest.mark.parametrize("far", [1e13, 1e150, 1e308])
def test_an_area_beyond_the_earth_is_refused(far: float):
    with pytest.raises(InvalidGeometry, match="no place on Earth"):
        aoi.parse((-far, -far, far, far), "EPSG:3857")
