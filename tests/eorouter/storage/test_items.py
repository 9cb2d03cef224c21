import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import msgspec
import pystac
import pytest
import referencing
import shapely
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shapely.geometry import shape

from eorouter.errors import Conflict, InvalidInput, NotFound
from eorouter.storage import Stores, items, stac
from eorouter.storage.tables import item_boxes, jobs, organisations, outbox
from eorouter.types import Principal, new_id
from eorouter_compute.attempt import ObjectRef
from eorouter_compute.method import Band, OutputAsset, OutputItem, RasterAsset, VectorAsset

COMPLEX = Band(name="q", index=1, dtype="complex64", nodata=-math.inf)
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset())
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset())


def box_footprint(west: float, south: float, east: float, north: float) -> dict:
    return shapely.geometry.mapping(shapely.box(west, south, east, north))


def raster(**changes) -> RasterAsset:
    plain = RasterAsset(
        key="data",
        href="file:///attempt/data.tif",
        crs="EPSG:32632",
        transform=(10.0, 0.0, 600000.0, 0.0, -10.0, 5200000.0),
        shape=(1000, 2000),
        bands=(
            Band(name="B04", index=1, dtype="uint16", common_name="red", nodata=0, scale=0.0001, offset=-0.1),
            Band(name="ndvi", index=2, dtype="float32", common_name="vegetation", nodata=math.nan, unit="1"),
        ),
        block_shape=(512, 512),
    )
    return msgspec.structs.replace(plain, **changes)


def output(footprint=None, bbox=(11.0, 46.0, 11.3, 46.2), *, at=NOW, size=1234, rasters=None, **changes) -> OutputItem:
    reference = ObjectRef(href="file:///attempt/data.tif", size=size, sha256=hashlib.sha256(b"data").hexdigest())
    plain = OutputItem(
        name="ndvi",
        title="NDVI of May",
        assets=tuple(
            OutputAsset(
                key=one.key,
                object=reference,
                media_type="image/tiff; application=geotiff; profile=cloud-optimized",
                roles=("data",),
                filename=f"{one.key}.tif",
                title="Pixels",
                raster=one,
                statistics=({"minimum": 1, "maximum": 9000, "mean": 812.5, "valid_percent": 99.5}, {"mean": None}),
            )
            for one in rasters or (raster(),)
        ),
        footprint=footprint or box_footprint(*bbox),
        bbox=bbox,
        at=at,
    )
    return msgspec.structs.replace(plain, **changes)


async def put(stores: Stores, made: OutputItem, *, item_id=None, project="prj_a", org="org_me", **extra) -> str:
    item_id = item_id or new_id("itm")
    keys = {asset.key: items.asset_key(org, project, item_id, asset.filename) for asset in made.assets}
    async with stores.db.write() as tx:
        await items.add(
            tx, stores.db, org_id=org, project_id=project, item_id=item_id, output=made, keys=keys,
            **{"job_id": "job_1", "provenance": {"method": "spectral_index"}, "now": NOW} | extra,
        )  # fmt: skip
    return item_id


async def used_bytes(stores: Stores, org="org_me") -> int:
    async with stores.db.read() as tx:
        return (await tx.execute(sa.select(organisations.c.used_bytes).where(organisations.c.id == org))).scalar_one()


async def find(stores: Stores, principal=ME, limit=100, before_id=None, **query) -> list[str]:
    async with stores.db.read() as tx:
        page = await items.search(tx, stores.db, principal, items.Query(**query), limit=limit, before_id=before_id)
    return [document["id"] for document in page.documents]


class TestAdd:
    async def test_add_item_keeps_document_input_boxes_and_bytes(self, peopled):
        item_id = await put(peopled, output())
        async with peopled.db.read() as tx:
            row = await items.get(tx, ME, item_id)
            boxes = (await tx.execute(sa.select(item_boxes))).all()
        assert [tuple(box)[2:] for box in boxes] == [(11.0, 46.0, 11.3, 46.2)]
        assert (row.title, row.at, row.size_bytes, row.job_id) == ("NDVI of May", NOW, 1234, "job_1")
        assert row.document["assets"]["data"]["href"] == f"org_me/prj_a/items/{item_id}/data.tif"
        assert row.input["assets"][0]["href"] == f"org_me/prj_a/items/{item_id}/data.tif"
        assert await used_bytes(peopled) == 1234

    async def test_add_twice_changes_nothing(self, peopled):
        item_id = await put(peopled, output())
        await put(peopled, output(title="another"), item_id=item_id)
        async with peopled.db.read() as tx:
            assert (await tx.execute(sa.select(sa.func.count()).select_from(item_boxes))).scalar_one() == 1
            assert (await items.get(tx, ME, item_id)).title == "NDVI of May"
        assert await used_bytes(peopled) == 1234

    async def test_add_across_the_antimeridian_makes_two_boxes(self, peopled):
        item_id = await put(peopled, output(box_footprint(179, -17, 181, -16), (179.0, -17.0, -179.0, -16.0)))
        async with peopled.db.read() as tx:
            rows = (await tx.execute(sa.select(item_boxes.c.west, item_boxes.c.east).order_by("west"))).all()
            document = (await items.get(tx, ME, item_id)).document
        assert [tuple(row) for row in rows] == [(-180.0, -179.0), (179.0, 180.0)]
        assert document["bbox"] == [179.0, -17.0, -179.0, -16.0]
        assert document["geometry"]["type"] == "MultiPolygon"


class TestDocument:
    def test_document_of_raster_says_bands_grid_file_and_provenance(self):
        made = stac.document(
            "itm_1", output(), {"data": "k/data.tif"}, project_id="prj_a", job_id="job_1", now=NOW,
            provenance={"method": "spectral_index", "processing:lineage": "NDVI of itm_0", "inputs": ["itm_0"]},
        )  # fmt: skip
        asset = made["assets"]["data"]
        assert asset["bands"] == [
            {
                "name": "B04", "data_type": "uint16", "eo:common_name": "red", "nodata": 0, "raster:scale": 0.0001,
                "raster:offset": -0.1,
                "statistics": {"minimum": 1, "maximum": 9000, "mean": 812.5, "valid_percent": 99.5},
            },
            {"name": "ndvi", "data_type": "float32", "nodata": "nan", "unit": "1"},
        ]  # fmt: skip
        assert asset["proj:code"] == "EPSG:32632"
        assert asset["proj:shape"] == [1000, 2000]
        assert asset["proj:transform"] == [10.0, 0.0, 600000.0, 0.0, -10.0, 5200000.0]
        assert asset["proj:bbox"] == [600000.0, 5190000.0, 620000.0, 5200000.0]
        assert asset["raster:spatial_resolution"] == made["properties"]["gsd"] == 10.0
        # Multihash by hand: 0x12 is sha2-256, 0x20 its length.
        assert bytes.fromhex(asset["file:checksum"]) == b"\x12\x20" + hashlib.sha256(b"data").digest()
        assert made["properties"]["eorouter:method"] == "spectral_index"
        assert made["properties"]["eorouter:job_id"] == "job_1"
        assert made["properties"]["eorouter:project_id"] == "prj_a"
        assert made["properties"]["datetime"] == made["properties"]["created"] == "2026-05-04T03:02:01Z"

    def test_document_without_time_claims_only_what_is_certain(self):
        properties = stac.document(
            "itm_1", output(at=None), {"data": "k"}, project_id="prj_a", job_id=None, now=NOW, provenance={}
        )["properties"]
        assert properties["datetime"] is None
        assert properties["start_datetime"] == stac.UNDATED_SINCE
        assert properties["end_datetime"] == properties["created"]

    def test_document_of_interval_keeps_it(self):
        interval = {"start_datetime": "2024-01-01T00:00:00Z", "end_datetime": "2024-12-31T00:00:00Z"}
        made = stac.document(
            "itm_1",
            output(at=None, properties=interval),
            {"data": "k"},
            project_id="prj_a",
            job_id=None,
            now=NOW,
            provenance={},
        )
        assert {key: made["properties"][key] for key in interval} == interval

    @pytest.mark.parametrize(
        ("crs", "expected"),
        [("EPSG:4326", {"proj:code": "EPSG:4326"}), ("ESRI:54009", {"proj:code": "ESRI:54009"})],
    )
    def test_crs_with_code_is_named_by_it(self, crs, expected):
        assert stac._crs_fields(crs) == expected

    def test_crs_without_code_is_written_out(self):
        fields = stac._crs_fields("+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs")
        assert fields["proj:code"] is None
        assert fields["proj:wkt2"].startswith("PROJCRS[")

    def test_crs_given_as_wkt_of_a_known_one_is_named_by_code(self):
        import pyproj

        assert stac._crs_fields(pyproj.CRS(32632).to_wkt()) == {"proj:code": "EPSG:32632"}

    @pytest.mark.parametrize(
        ("crs", "transform", "expected_m"),
        [
            # One degree of the WGS 84 equator is 111,319.49 m, of its meridian there 110,574.4 m.
            ("EPSG:4326", (0.01, 0, -1, 0, -0.01, 1), math.sqrt(1113.1949 * 1105.7428)),
            # Web Mercator stretches by 1/cos(60°) at latitude 60: 10 m of map are about 5 m of ground.
            ("EPSG:3857", (10, 0, 0, 0, -10, 8399737.89 + 1000), 5.0),
            ("EPSG:2263", (3.0, 0, 980000, 0, -3.0, 200000), 3.0 * 0.3048006096),  # US survey feet
            ("EPSG:32632", (7.07, 7.07, 600000, 7.07, -7.07, 5200000), 10.0),  # turned by 45 degrees
        ],
    )
    def test_ground_resolution_is_metres_on_the_ground(self, crs, transform, expected_m):
        found = stac.ground_resolution_m(raster(crs=crs, transform=transform, shape=(200, 200)))
        assert found == pytest.approx(expected_m, rel=5e-3)

    @pytest.mark.parametrize(
        "made",
        [
            output(),
            output(at=None),
            output(box_footprint(179, -17, 181, -16), (179.0, -17.0, -179.0, -16.0)),
            output(rasters=(raster(key="a", bands=(COMPLEX, COMPLEX)),)),
            output(rasters=(raster(key="a"), raster(key="b", crs="+proj=sinu +R=6371007.181"))),
            output(
                assets=(
                    OutputAsset(
                        key="zones",
                        object=ObjectRef(href="x", size=0, sha256="0" * 64),
                        media_type="application/vnd.apache.parquet",
                        roles=("data",),
                        filename="zones.parquet",
                        vector=VectorAsset(
                            key="zones", href="x", crs="EPSG:4326", feature_count=3, bounds=(0, 0, 1, 1)
                        ),
                    ),
                )
            ),
        ],
        ids=["raster", "undated", "antimeridian", "complex", "two-assets", "vector"],
    )
    def test_document_meets_the_schemas_it_declares(self, data_dir: Path, made: OutputItem):
        keys = {asset.key: f"https://eo.example/{asset.key}" for asset in made.assets}
        document = stac.document(
            "itm_1", made, keys, project_id="prj_a", job_id="job_1", now=NOW, provenance={"method": "clip"}
        )
        validate(document, data_dir)
        assert pystac.Item.from_dict(document).to_dict(transform_hrefs=False)["assets"].keys() == keys.keys()

    def test_schemas_bite(self, data_dir: Path):
        document = stac.document(
            "itm_1", output(), {"data": "k"}, project_id="prj_a", job_id=None, now=NOW, provenance={}
        )
        document["assets"]["data"]["proj:shape"] = "large"
        with pytest.raises(jsonschema.ValidationError):
            validate(document, data_dir)


def validate(document: dict, data_dir: Path) -> None:
    """Check an item against the published schemas, from their copies."""
    folder = data_dir / "conformance" / "stac-schemas"
    index = json.loads((folder / "index.json").read_text())

    def retrieve(uri: str) -> referencing.Resource:
        contents = json.loads((folder / index[uri.partition("#")[0]]).read_text())
        return referencing.Resource.from_contents(contents, referencing.jsonschema.DRAFT7)

    registry = referencing.Registry(retrieve=retrieve)
    core = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
    for uri in [core, *document["stac_extensions"]]:
        jsonschema.Draft7Validator(retrieve(uri).contents, registry=registry).validate(document)


class TestFootprint:
    WHOLE = shapely.box(170, -10, 190, 10)

    @pytest.mark.parametrize(
        ("geometry", "bbox"),
        [
            (WHOLE, (170, -10, 190, 10)),
            (WHOLE, (170, -10, -170, 10)),
            (shapely.box(-190, -10, -170, 10), (-190, -10, -170, 10)),
            (shapely.Polygon([(170, -10), (-170, -10), (-170, 10), (170, 10)]), (170, -10, -170, 10)),
            (
                shapely.MultiPolygon([shapely.box(170, -10, 180, 10), shapely.box(-180, -10, -170, 10)]),
                (170, -10, -170, 10),
            ),
        ],
        ids=["beyond-180", "beyond-180-short-bbox", "beyond-minus-180", "jumping", "cut"],
    )
    def test_footprint_across_the_antimeridian_has_one_form(self, geometry, bbox):
        place = stac.footprint(shapely.geometry.mapping(geometry), bbox)
        area = shape(place.geometry)
        expected = shapely.union_all([shapely.box(170, -10, 180, 10), shapely.box(-180, -10, -170, 10)])
        assert area.symmetric_difference(expected).area == pytest.approx(0, abs=1e-9)
        assert place.bbox == (170, -10, -170, 10)
        assert place.boxes == ((170, -10, 180, 10), (-180, -10, -170, 10))

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(west=st.floats(-180, 180), width=st.floats(0.01, 350), south=st.floats(-90, 80), height=st.floats(0.01, 10))
    def test_footprint_area_survives_the_cut(self, west, width, south, height):
        box = shapely.box(west, south, west + width, south + height)
        place = stac.footprint(shapely.geometry.mapping(box), box.bounds)
        area = shape(place.geometry)
        assert area.area == pytest.approx(box.area, rel=1e-9)
        assert -180 <= area.bounds[0] <= area.bounds[2] <= 180
        assert shapely.union_all([shapely.box(*one) for one in place.boxes]).buffer(1e-9).covers(area)

    @pytest.mark.parametrize(
        ("geometry", "bbox"),
        [
            ({"type": "Polygon", "coordinates": []}, (0, 0, 1, 1)),
            (shapely.geometry.mapping(shapely.box(0, 0, 1, 1)), (0, 0, math.nan, 1)),
            (shapely.geometry.mapping(shapely.box(0, 0, 1, 91)), (0, 0, 1, 91)),
        ],
    )
    def test_footprint_off_the_earth_is_refused(self, geometry, bbox):
        with pytest.raises(ValueError, match=r"footprint|bbox"):
            stac.footprint(geometry, bbox)


class TestSearch:
    async def test_search_by_bbox_finds_what_meets_it(self, peopled):
        inside = await put(peopled, output(bbox=(10.0, 50.0, 11.0, 51.0)))
        touching = await put(peopled, output(bbox=(9.0, 50.0, 10.0, 51.0)))
        await put(peopled, output(bbox=(12.5, 50.0, 13.0, 51.0)))
        assert await find(peopled, bbox=(10.0, 50.2, 12.0, 50.8)) == [touching, inside]
        assert await find(peopled, bbox=(10.0, 50.2, -5.0, 12.0, 50.8, 900.0)) == [touching, inside]

    async def test_search_by_bbox_looks_at_the_footprint(self, peopled):
        triangle = shapely.Polygon([(0, 0), (10, 0), (0, 10)])
        item_id = await put(peopled, output(shapely.geometry.mapping(triangle), (0.0, 0.0, 10.0, 10.0)))
        assert await find(peopled, bbox=(8, 8, 9, 9)) == []
        assert await find(peopled, bbox=(1, 1, 2, 2)) == [item_id]

    async def test_search_across_the_antimeridian_finds_both_sides(self, peopled):
        fiji = await put(peopled, output(box_footprint(179, -17, 181, -16), (179.0, -17.0, -179.0, -16.0)))
        samoa = await put(peopled, output(bbox=(-173.0, -14.0, -172.0, -13.0)))
        greenwich = await put(peopled, output(bbox=(-1.0, -20.0, 1.0, -10.0)))
        assert await find(peopled, bbox=(175, -20, -170, -10)) == [samoa, fiji]
        assert await find(peopled, bbox=(-180, -20, -179.5, -10)) == [fiji]
        assert await find(peopled, bbox=(179.5, -20, 180, -10)) == [fiji]
        assert await find(peopled, bbox=(-2, -20, 2, -10)) == [greenwich]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("2024-05-01T00:00:00Z", ["may"]),
            ("2024-05-01T02:00:00+02:00", ["may"]),
            ("2024-04-30T00:00:00Z/2024-05-01T00:00:00Z", ["may"]),
            ("2024-05-01T00:00:00.000001Z/..", ["june"]),
            ("../2024-05-31T00:00:00Z", ["may", "year"]),
            ("/2024-06-01T00:00:00Z", ["june", "may", "year"]),
            ("2023-06-01T00:00:00Z/2023-07-01T00:00:00Z", ["year"]),
            ("2020-01-01T00:00:00Z/", ["june", "may", "year"]),
        ],
    )
    async def test_search_by_time_includes_both_ends(self, peopled, text, found):
        year = {"start_datetime": "2023-01-01T00:00:00Z", "end_datetime": "2023-12-31T00:00:00Z"}
        names = {
            await put(peopled, output(at=None)): "undated",
            await put(peopled, output(at=None, properties=year)): "year",
            await put(peopled, output(at=datetime(2024, 5, 1, tzinfo=UTC))): "may",
            await put(peopled, output(at=datetime(2024, 6, 1, tzinfo=UTC))): "june",
        }
        assert [names[one] for one in await find(peopled, datetime=text)] == found

    async def test_search_by_ids_and_project_stays_with_the_owner(self, peopled):
        mine = await put(peopled, output())
        second = await put(peopled, output(), project="prj_b")
        theirs = await put(peopled, output(), project="prj_other", org="org_other")
        assert await find(peopled, ids=(mine, theirs)) == [mine]
        assert await find(peopled, project_id="prj_b") == [second]
        assert await find(peopled, project_id="prj_other") == []
        assert await find(peopled, msgspec.structs.replace(ME, project_id="prj_b")) == [second]
        assert await find(peopled, ids=()) == []

    @pytest.mark.parametrize("bbox", [None, (-180, -90, 180, 90)])
    async def test_search_by_pages_gives_each_item_once(self, peopled, bbox):
        every = [await put(peopled, output()) for _ in range(7)]
        seen, before = [], None
        while True:
            async with peopled.db.read() as tx:
                page = await items.search(tx, peopled.db, ME, items.Query(bbox=bbox), limit=3, before_id=before)
            assert len(page.documents) <= 3
            seen += [document["id"] for document in page.documents]
            if page.next_id is None:
                break
            before = page.next_id
        assert seen == every[::-1]

    async def test_search_whose_rows_mostly_fail_the_footprint_fills_its_page(self, peopled, monkeypatch):
        monkeypatch.setattr(items, "_SCAN_ROWS", 5)
        wanted = [await put(peopled, output(bbox=(8.0, 8.0, 9.0, 9.0))) for _ in range(2)]
        triangle = shapely.geometry.mapping(shapely.Polygon([(0, 0), (10, 0), (0, 10)]))
        for _ in range(12):
            await put(peopled, output(triangle, (0.0, 0.0, 10.0, 10.0)))
        assert await find(peopled, bbox=(8, 8, 9, 9), limit=2) == wanted[::-1]

    async def test_search_by_bbox_asks_the_spatial_index(self, peopled):
        """Thousands of boxes over the globe, and a small window: the plan names the index and no scan of the boxes."""
        rows = [{"id": f"itm_{n:026d}", "west": n % 360 - 180.0, "south": (n * 7) % 179 - 90.0} for n in range(4000)]
        made = output()
        document = stac.document("x", made, {"data": "k"}, project_id="prj_a", job_id=None, now=NOW, provenance={})
        async with peopled.db.write() as tx:
            await tx.execute(
                sa.insert(items.items),
                [
                    {
                        "id": row["id"], "org_id": "org_me", "project_id": "prj_a", "title": "t", "at": NOW,
                        "document": document | {"id": row["id"], "geometry": box_footprint(
                            row["west"], row["south"], row["west"] + 0.5, row["south"] + 0.5)},
                        "input": {}, "size_bytes": 1, "created_at": NOW,
                    }
                    for row in rows
                ],
            )  # fmt: skip
            await tx.execute(
                sa.insert(item_boxes),
                [
                    {
                        "item_id": row["id"], "west": row["west"], "south": row["south"],
                        "east": row["west"] + 0.5, "north": row["south"] + 0.5,
                    }
                    for row in rows
                ],
            )  # fmt: skip
            await tx.execute(sa.text("ANALYZE"))
        bbox = (170.25, -20.0, -170.25, 10.0)
        expected = [
            row["id"]
            for row in rows
            if (row["west"] + 0.5 >= 170.25 or row["west"] <= -170.25)
            and row["south"] <= 10
            and row["south"] + 0.5 >= -20
        ]
        assert len(expected) > 20
        assert sorted(await find(peopled, bbox=bbox, limit=1000)) == sorted(expected)
        boxes = items.parse_bbox(bbox)
        statement = items.select(peopled.db, ME, items.Query(bbox=bbox), boxes, None)
        sql = str(
            statement.order_by(items.items.c.id.desc())
            .limit(100)
            .compile(peopled.db.engine.sync_engine, compile_kwargs={"literal_binds": True})
        )
        explain = "EXPLAIN QUERY PLAN " if peopled.db.is_sqlite else "EXPLAIN "
        async with peopled.db.read() as tx:
            plan = "\n".join(str(tuple(row)) for row in await tx.exec_driver_sql(explain + sql.replace("%%", "%")))
        if peopled.db.is_sqlite:
            assert plan.count("VIRTUAL TABLE INDEX 2:") == 2, plan  # 2 is R*Tree's search by constraint
            assert "SCAN item_boxes\n" not in plan, plan
        else:
            assert "ix_item_boxes_box" in plan, plan
            assert "Seq Scan on item_boxes" not in plan, plan

    @pytest.mark.parametrize(
        "bbox",
        [
            (1, 2, 3),
            (1, 2, 3, 4, 5),
            (0, 10, 1, -10),
            (0, -91, 1, 0),
            (-181, 0, 1, 1),
            (0, math.nan, 1, 1),
            (math.inf, 0, 1, 1),
            (0, 0, 9, 1, 1, 8),
        ],
    )
    def test_bbox_that_is_none_is_refused(self, bbox):
        with pytest.raises(InvalidInput) as caught:
            items.parse_bbox(bbox)
        assert caught.value.errors[0].pointer == "/bbox"

    @pytest.mark.parametrize(
        "text",
        [
            "", "..", "/", "../..", "../", "2024-05-01", "2024-05-01T00:00:00", "2024-13-01T00:00:00Z",
            "2024-05-01T25:00:00Z", "2024-05-02T00:00:00Z/2024-05-01T00:00:00Z", "yesterday", "a/b/c",
            "2024-05-01T00:00:00Z/2024-06-01T00:00:00Z/..", "0001-01-01T00:00:00+23:00", "２024-05-01T00:00:00Z",
        ],
    )  # fmt: skip
    def test_datetime_that_is_none_is_refused(self, text):
        with pytest.raises(InvalidInput) as caught:
            items.parse_interval(text)
        assert caught.value.errors[0].pointer == "/datetime"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2024-05-01t00:00:00z", datetime(2024, 5, 1, tzinfo=UTC)),
            ("2024-05-01T00:00:00.1234567Z", datetime(2024, 5, 1, 0, 0, 0, 123456, tzinfo=UTC)),
            ("1990-12-31T23:59:60Z", datetime(1991, 1, 1, tzinfo=UTC)),  # the leap second of RFC 3339 §5.8
            ("1996-12-19T16:39:57-08:00", datetime(1996, 12, 20, 0, 39, 57, tzinfo=UTC)),
        ],
    )
    def test_datetime_of_rfc_3339_is_understood(self, text, expected):
        assert items.parse_interval(text) == (expected, expected)


class TestLoadInputs:
    async def test_load_inputs_keeps_order_and_resolves_hrefs(self, peopled):
        first, second = await put(peopled, output()), await put(peopled, output())
        async with peopled.db.read() as tx:
            loaded = await items.load_inputs(tx, peopled.objects, ME, [second, first, second])
        assert [item.id for item in loaded] == [second, first, second]
        key = items.asset_key("org_me", "prj_a", first, "data.tif")
        (asset,) = loaded[1].rasters
        assert asset.href == peopled.objects.href(key)
        assert asset.sha256 == hashlib.sha256(b"data").hexdigest()
        assert asset.bands[1].name == "ndvi"
        assert math.isnan(asset.bands[1].nodata)
        assert asset.bands[0] == raster().bands[0]
        assert loaded[0].at == NOW

    async def test_load_inputs_of_strangers_are_not_found(self, peopled):
        mine = await put(peopled, output())
        theirs = await put(peopled, output(), project="prj_other", org="org_other")
        async with peopled.db.read() as tx:
            with pytest.raises(NotFound) as caught:
                await items.load_inputs(tx, peopled.objects, ME, [mine, theirs, "itm_none"])
        assert [fault.pointer for fault in caught.value.errors] == ["/inputs/1", "/inputs/2"]


class TestDelete:
    async def test_delete_gives_bytes_back_and_orders_the_objects_away(self, peopled):
        item_id = await put(peopled, output())
        async with peopled.db.write() as tx:
            await items.delete(tx, ME, item_id, NOW)
        async with peopled.db.read() as tx:
            with pytest.raises(NotFound):
                await items.get(tx, ME, item_id)
            orders = (await tx.execute(sa.select(outbox.c.topic, outbox.c.payload))).all()
            boxes = (await tx.execute(sa.select(sa.func.count()).select_from(item_boxes))).scalar_one()
        assert orders == [("objects.delete", {"keys": [f"org_me/prj_a/items/{item_id}/data.tif"], "prefixes": []})]
        assert (boxes, await used_bytes(peopled)) == (0, 0)
        assert await find(peopled, bbox=(-180, -90, 180, 90)) == []

    async def test_delete_of_a_stranger_is_not_found(self, peopled):
        item_id = await put(peopled, output())
        with pytest.raises(NotFound):
            async with peopled.db.write() as tx:
                await items.delete(tx, OTHER, item_id, NOW)
        assert await used_bytes(peopled) == 1234

    @pytest.mark.parametrize("state", items.JOB_STATES_OPEN)
    async def test_delete_while_a_job_reads_it_is_refused(self, peopled, state):
        item_id = await put(peopled, output())
        await add_job(peopled, state, [{"id": item_id}])
        with pytest.raises(Conflict, match="job_reader"):
            async with peopled.db.write() as tx:
                await items.delete(tx, ME, item_id, NOW)

    async def test_delete_after_its_jobs_ended_is_allowed(self, peopled):
        item_id = await put(peopled, output())
        await add_job(peopled, "completed", [{"id": item_id}])
        async with peopled.db.write() as tx:
            await items.delete(tx, ME, item_id, NOW)


async def add_job(stores: Stores, state: str, inputs: list[dict]) -> None:
    async with stores.db.write() as tx:
        await tx.execute(
            sa.insert(jobs).values(
                id="job_reader", org_id="org_me", project_id="prj_a", mode="live", name="", method="clip", task={},
                inputs=inputs, state=state, bound={}, is_interactive=False, pixels_done=0, shards_total=1,
                shards_done=0, is_cancelling=False, created_by="usr_me", request_id="req", created_at=NOW,
            )
        )  # fmt: skip


HOSTILE = [
    "../../etc/passwd", "..\\..\\boot.ini", "/abs/olute.tif", "C:\\x\\y.tif", "a\x00b.tif", "line\nbreak.tif",
    'quo"te.tif', "semi;colon.tif", "üml äut.tif", "日本.tif", "", ".", "..", "...", "CON.tif", "lpt1", " lead.tif",
    "trail.tif ", "x" * 300 + ".tif", "-rf.tif", ".hidden", "a/../b.tif", "%2e%2e%2fx.tif", "\u202egnp.tif",
    "a" * 130 + "." + "b" * 200, "name.tif/", "🛰.tif", "\ud800.tif",
]  # fmt: skip


class TestSafeFilename:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_name_becomes_harmless(self, text):
        name = items.safe_filename(text)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert name[0] not in ".-"
        assert name.strip(".")
        assert 0 < len(name) <= items.FILENAME_MAX
        assert name.split(".")[0].lower() not in {"con", "lpt1"}

    def test_hostile_names_stay_apart(self):
        assert len({items.safe_filename(text) for text in HOSTILE}) == len(HOSTILE)

    @pytest.mark.parametrize("text", ["ndvi.tif", "S2A_MSIL2A_20240501.SAFE.zip", "a-b_c.d", "zones.parquet"])
    def test_harmless_name_is_kept(self, text):
        assert items.safe_filename(text) == text

    def test_suffix_survives(self):
        assert items.safe_filename("Straße über München.tif").endswith(".tif")

    @given(st.lists(st.text(max_size=40), min_size=2, max_size=8, unique=True))
    def test_different_names_get_different_keys(self, names: Sequence[str]):
        keys = {items.asset_key("o", "p", "i", name) for name in names}
        assert len(keys) == len(names)
        assert all(key.count("/") == 4 for key in keys)


def test_time_of_creation_has_utc_and_a_z():
    assert stac.timestamp(NOW.astimezone(tz=None) + timedelta(microseconds=5)) == "2026-05-04T03:02:01.000005Z"
