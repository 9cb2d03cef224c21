import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pystac
import pytest
import sqlalchemy as sa

from eorouter import remote
from eorouter.errors import (
    ApiError,
    ComputeRefused,
    Conflict,
    InvalidCursor,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    SignatureInvalid,
    SourceRefused,
    Unavailable,
)
from eorouter.operation import Context
from eorouter.operations import items
from eorouter.storage import Stores
from eorouter.storage.items import load_inputs
from eorouter.storage.tables import items as items_table
from eorouter.storage.tables import jobs, organisations, outbox, uploads
from eorouter.types import ANONYMOUS, Principal, utc_now
from eorouter_compute import catalogue

ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset())
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset())


class Site:
    """A real HTTP server on loopback with files; `chunked` ones do not say their size."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.chunked: set[str] = set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                data = site.files.get(path)
                self.send_response(404 if data is None else 200)
                if path in site.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for start in range(0, len(data), 50_000):
                        part = data[start : start + 50_000]
                        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    self.wfile.write(b"0\r\n\r\n")
                    return
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def ctx(peopled: Stores, context: Callable[..., Context], site: Site) -> Context:
    plain = context(ME)
    settings = msgspec.structs.replace(plain.settings, remote_hosts=f"127.0.0.1:{site.port}")
    return msgspec.structs.replace(plain, settings=settings)


async def create(ctx: Context, assets: dict, **fields) -> items.Item:
    request = {"project_id": "prj_a", "assets": assets} | fields
    return await items.create(ctx, msgspec.convert(request, items.ItemsCreateInput))


async def state_of(ctx: Context) -> tuple[int, list[str], list[str]]:
    """Bytes used, states of the uploads, and keys in the store that nobody ordered away."""
    async with ctx.stores.db.read() as tx:
        used = (await tx.execute(sa.select(organisations.c.used_bytes).where(organisations.c.id == "org_me"))).scalar()
        states = [state for (state,) in await tx.execute(sa.select(uploads.c.state).order_by(uploads.c.id))]
        rows = await tx.execute(sa.select(outbox.c.payload).where(outbox.c.topic == "objects.delete"))
        leaving = {key for (payload,) in rows for key in payload["keys"]}
    kept = [key async for key, _ in ctx.stores.objects.list("org_me") if key not in leaving and "/jobs/" not in key]
    return used, states, kept


@pytest.fixture
async def scene(ctx: Context, worker, site: Site, data_dir: Path) -> items.Item:
    site.files["/scene.tif"] = (data_dir / "formats" / "cog_valid_uint16.tif").read_bytes()
    return await create(ctx, {"data": {"href": site.url("/scene.tif")}}, title="Scene")


class TestItemsCreate:
    async def test_create_of_two_files_makes_one_item_with_both(self, ctx, worker, site, data_dir: Path):
        folder = data_dir / "change" / "oscd_norcia" / "before"
        names = {"red": min(folder.glob("*B04*.tif")), "nir": min(folder.glob("*B08*.tif"))}
        for key, path in names.items():
            site.files[f"/{key}.tif"] = path.read_bytes()
        site.chunked.add("/nir.tif")
        item = await create(
            ctx,
            {
                key: {"href": site.url(f"/{key}.tif?sig=secret"), "bands": [{"name": key, "common_name": key}]}
                for key in names
            },
            title="Norcia",
            datetime="2015-07-11T10:00:00Z",
        )
        assert {"red", "nir"} <= item.assets.keys()
        assert [item.assets[key]["bands"][0]["eo:common_name"] for key in names] == ["red", "nir"]
        assert (item.properties["title"], item.properties["datetime"]) == ("Norcia", "2015-07-11T10:00:00Z")
        assert "secret" not in msgspec.json.encode(item).decode()
        assert "/uploads/" not in msgspec.json.encode(item).decode()
        west, south, east, north = item.bbox
        assert 13 < west < east < 13.3
        assert 42.7 < south < north < 42.9
        used, states, kept = await state_of(ctx)
        assert states == ["completed", "completed"]
        assert used == sum(asset["file:size"] for asset in item.assets.values())
        assert len(kept) == len(item.assets)

    async def test_create_keeps_what_is_said_of_the_scene_for_methods_to_look_at(self, ctx, worker, site, data_dir):
        path = min((data_dir / "change" / "oscd_norcia" / "before").glob("*B04*.tif"))
        site.files["/B04.tif"] = path.read_bytes()
        said = {
            "platform": "sentinel-2a", "constellation": "sentinel-2", "instruments": ["msi"], "gsd": 10.0,
            "eo:cloud_cover": 3.5, "view:sun_elevation": 61.2, "view:sun_azimuth": 140.5, "view:off_nadir": 2.5,
            "s2:processing_baseline": "05.10", "sat:orbit_state": "descending", "sat:relative_orbit": 122,
        }  # fmt: skip
        item = await create(ctx, {"data": {"href": site.url("/B04.tif"), "bands": [{"name": "B04"}]}}, properties=said)
        assert {name: item.properties[name] for name in said} == said
        assert {"eo", "sat", "view"} <= {url.split("/")[3] for url in item.stac_extensions}
        async with ctx.stores.db.read() as tx:
            (seen,) = await load_inputs(tx, ctx.stores.objects, ctx.principal, [item.id])
        asset, band = catalogue.resolve(seen, "R")
        assert (asset.key, band.name, catalogue.sensor_of(seen)) == ("data", "B04", "sentinel2a")
        assert catalogue.scaling(seen, band)[:2] == (1e-4, -0.1)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("eo:cloud_cover", 101), ("eo:cloud_cover", "clear"), ("s2:processing_baseline", "new"), ("platform", ""),
            ("sat:relative_orbit", 0), ("sat:orbit_state", "up"), ("colour", "red"), ("platform", "a\nb"),
        ],
    )  # fmt: skip
    async def test_create_with_properties_of_another_kind_is_refused(self, ctx, site, name, value):
        with pytest.raises(msgspec.ValidationError):
            await create(ctx, {"data": {"href": site.url("/scene.tif")}}, properties={name: value})

    async def test_create_where_one_file_is_refused_keeps_nothing(self, ctx, site):
        site.files["/good.tif"] = b"x" * 100_000
        with pytest.raises(SourceRefused, match="answered 404") as caught:
            await create(ctx, {"a": {"href": site.url("/good.tif")}, "b": {"href": site.url("/none.tif?key=1")}})
        assert caught.value.errors[0].pointer == "/assets/b/href"
        assert "key=1" not in caught.value.message
        assert await state_of(ctx) == (0, ["failed", "failed"], [])

    async def test_create_of_no_raster_names_the_reason_and_keeps_nothing(self, ctx, worker, site):
        site.files["/words.tif"] = b"only words " * 1000
        with pytest.raises(ComputeRefused) as caught:
            await create(ctx, {"data": {"href": site.url("/words.tif")}})
        assert caught.value.compute_code == "not_a_raster"
        assert await state_of(ctx) == (0, ["failed"], [])

    @pytest.mark.parametrize("declares", [True, False])
    async def test_create_beyond_quota_keeps_nothing(self, ctx, site, declares):
        async with ctx.stores.db.write() as tx:
            await tx.execute(sa.update(organisations).values(quota_bytes=150_000))
        site.files["/big.tif"] = b"x" * 200_000
        if not declares:
            site.chunked.add("/big.tif")
        with pytest.raises(QuotaExceeded, match="150000 bytes"):
            await create(ctx, {"data": {"href": site.url("/big.tif")}})
        assert await state_of(ctx) == (0, ["failed"], [])

    async def test_create_of_an_empty_file_keeps_nothing(self, ctx, site):
        site.files["/empty.tif"] = b""
        with pytest.raises(SourceRefused, match="empty"):
            await create(ctx, {"data": {"href": site.url("/empty.tif")}})
        assert await state_of(ctx) == (0, ["failed"], [])

    async def test_create_that_is_abandoned_keeps_nothing(self, ctx, site, monkeypatch):
        started = asyncio.Event()

        async def endless(*_args, **_kwargs) -> None:
            started.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(remote, "fetch", endless)
        task = asyncio.create_task(create(ctx, {"data": {"href": site.url("/x.tif")}}))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await state_of(ctx) == (0, ["failed"], [])

    async def test_create_that_takes_too_long_names_the_job(self, ctx, site, monkeypatch):
        monkeypatch.setattr(items, "INGEST_WAIT_S", 0.05)
        site.files["/a.tif"] = b"x" * 100
        with pytest.raises(Unavailable, match="job_"):
            await create(ctx, {"data": {"href": site.url("/a.tif")}})
        assert (await state_of(ctx))[1] == ["ingesting"]

    @pytest.mark.parametrize(
        "href",
        [
            "file:///etc/passwd", "s3://bucket/key.tif", "http://169.254.169.254/latest/meta-data/", "http://localhost/x",
            "http://127.0.0.1:1/x", "ftp://data.example/x", "/vsis3/bucket/key", "http://user:pw@data.example/x.tif",
        ],
    )  # fmt: skip
    async def test_create_from_a_hostile_address_is_refused_before_anything_starts(self, ctx, href):
        with pytest.raises(SourceRefused) as caught:
            await create(ctx, {"data": {"href": href}})
        assert caught.value.errors[0].pointer == "/assets/data/href"
        assert await state_of(ctx) == (0, [], [])

    @pytest.mark.parametrize("key", ["", "a/b", "..", ".hidden", "a b", "ü", "x" * 65, "a\n", "preview"])
    async def test_create_with_a_bad_asset_key_is_refused(self, ctx, key):
        with pytest.raises(InvalidInput):
            await create(ctx, {key: {"href": "https://data.example/x.tif"}})

    async def test_create_in_a_foreign_project_is_not_found(self, ctx):
        with pytest.raises(NotFound):
            await create(ctx, {"data": {"href": "https://data.example/x.tif"}}, project_id="prj_other")
        assert await state_of(ctx) == (0, [], [])

    @pytest.mark.parametrize("change", [{"assets": {}}, {"datetime": "2024-05-01"}, {"extra": 1}, {"title": "a\nb"}])
    def test_create_of_wrong_form_is_refused(self, change):
        request = {"project_id": "prj_a", "assets": {"data": {"href": "https://data.example/x.tif"}}}
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(request | change, items.ItemsCreateInput)


class TestItemsGet:
    async def test_get_gives_absolute_addresses_that_pystac_reads(self, ctx, scene):
        item = await items.get(ctx, items.ItemsGetInput(item_id=scene.id))
        assert item == scene
        read = pystac.Item.from_dict(msgspec.json.decode(msgspec.json.encode(item)))
        assert read.get_self_href() == f"http://127.0.0.1:8000/v1/items/{scene.id}"
        assert read.assets["data"].href == f"http://127.0.0.1:8000/v1/items/{scene.id}/assets/data"

    async def test_get_says_what_an_item_derives_from(self, ctx, scene):
        async with ctx.stores.db.write() as tx:
            row = (await tx.execute(sa.select(items_table))).one()
            document = row.document
            document["properties"]["eorouter:inputs"] = [{"item_id": "itm_source", "checksums": {}}]
            await tx.execute(sa.update(items_table).values(document=document))
        item = await items.get(ctx, items.ItemsGetInput(item_id=scene.id))
        assert [link["href"] for link in item.links if link["rel"] == "derived_from"] == [
            "http://127.0.0.1:8000/v1/items/itm_source"
        ]

    async def test_get_of_a_stranger_is_not_found(self, ctx, scene):
        with pytest.raises(NotFound):
            await items.get(msgspec.structs.replace(ctx, principal=OTHER), items.ItemsGetInput(item_id=scene.id))


class TestItemsSearch:
    async def test_search_finds_by_place_and_pages(self, ctx, scene, site):
        second = await create(ctx, {"data": {"href": site.url("/scene.tif")}})
        west, south, east, north = scene.bbox
        middle = ((west + east) / 2, (south + north) / 2)
        request = items.ItemsSearchInput(bbox=(middle[0], middle[1], middle[0] + 0.01, middle[1] + 0.01), limit=1)
        first = await items.search(ctx, request)
        assert [item.id for item in first.items] == [second.id]
        last = await items.search(ctx, msgspec.structs.replace(request, cursor=first.next_cursor))
        assert [item.id for item in last.items] == [scene.id]
        assert last.next_cursor is None
        with pytest.raises(InvalidCursor):
            await items.search(ctx, items.ItemsSearchInput(cursor=first.next_cursor))
        assert (await items.search(ctx, items.ItemsSearchInput(bbox=(0, 0, 1, 1)))).items == []
        other = msgspec.structs.replace(ctx, principal=OTHER)
        assert (await items.search(other, items.ItemsSearchInput())).items == []

    @pytest.mark.parametrize(("field", "value"), [("bbox", (1, 2, 3)), ("datetime", "2024-05-01")])
    async def test_search_of_wrong_form_says_where(self, ctx, field, value):
        with pytest.raises(InvalidInput) as caught:
            await items.search(ctx, items.ItemsSearchInput(**{field: value}))
        assert caught.value.errors[0].pointer == f"/{field}"


class TestItemsDelete:
    async def test_delete_takes_everything_away(self, ctx, scene):
        await items.delete(ctx, items.ItemsDeleteInput(item_id=scene.id))
        assert await state_of(ctx) == (0, ["completed"], [])
        with pytest.raises(NotFound):
            await items.delete(ctx, items.ItemsDeleteInput(item_id=scene.id))

    async def test_delete_while_a_job_reads_it_is_refused(self, ctx, scene):
        async with ctx.stores.db.write() as tx:
            await tx.execute(sa.update(jobs).values(state="publishing", inputs=[{"id": scene.id}]))
        with pytest.raises(Conflict):
            await items.delete(ctx, items.ItemsDeleteInput(item_id=scene.id))


class TestItemsAssetsDownload:
    async def test_download_is_the_stored_object(self, ctx, scene):
        blob = await items.assets_download(ctx, items.ItemsAssetsDownloadInput(item_id=scene.id, asset_key="data"))
        assert await ctx.stores.objects.size(blob.key) == blob.size == scene.assets["data"]["file:size"]
        assert blob.filename.endswith(".tif")
        assert blob.etag.strip('"') == scene.assets["data"]["file:checksum"][4:]

    async def test_download_of_unknown_or_foreign_is_not_found(self, ctx, scene):
        with pytest.raises(NotFound, match="data"):
            await items.assets_download(ctx, items.ItemsAssetsDownloadInput(item_id=scene.id, asset_key="none"))
        with pytest.raises(NotFound):
            await items.assets_download(
                msgspec.structs.replace(ctx, principal=OTHER),
                items.ItemsAssetsDownloadInput(item_id=scene.id, asset_key="data"),
            )


class TestAssetsSignedUrl:
    async def test_signed_url_opens_without_credentials_until_it_expires(self, ctx, scene):
        request = items.AssetsSignedUrlInput(item_id=scene.id, asset_key="data", life_s=60)
        address = await items.assets_signed_url(ctx, request)
        token, filename = address.url.removeprefix("http://127.0.0.1:8000/v1/assets/").split("/")
        anonymous = msgspec.structs.replace(ctx, principal=ANONYMOUS)
        good = items.AssetsDownloadInput(token=token, filename=filename)
        blob = await items.download(anonymous, good)
        assert blob.size == scene.assets["data"]["file:size"]
        late = msgspec.structs.replace(anonymous, clock=lambda: utc_now() + timedelta(seconds=70))
        for context, change, error in (
            (anonymous, {"filename": filename + ".aux.xml"}, NotFound),
            (anonymous, {"token": token[:-3] + "AAA"}, SignatureInvalid),
            (late, {}, SignatureInvalid),
        ):
            with pytest.raises(error):
                await items.download(context, msgspec.structs.replace(good, **change))
        await items.delete(ctx, items.ItemsDeleteInput(item_id=scene.id))
        with pytest.raises(NotFound):
            await items.download(anonymous, good)

    async def test_signed_url_of_unknown_or_foreign_is_not_found(self, ctx, scene):
        with pytest.raises(NotFound):
            await items.assets_signed_url(ctx, items.AssetsSignedUrlInput(item_id=scene.id, asset_key="none"))
        with pytest.raises(ApiError):
            await items.assets_signed_url(
                msgspec.structs.replace(ctx, principal=OTHER),
                items.AssetsSignedUrlInput(item_id=scene.id, asset_key="data"),
            )
