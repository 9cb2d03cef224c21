import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.errors import ApiError, ComputeRefused, Conflict, InvalidInput, NotFound, QuotaExceeded, SignatureInvalid
from eorouter.jobs import queue
from eorouter.operation import Context
from eorouter.operations import uploads
from eorouter.storage import Stores, items
from eorouter.storage.objects import Objects
from eorouter.storage.tables import jobs, organisations, outbox
from eorouter.types import ANONYMOUS, Principal, utc_now

ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset())
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset())
DATA = b"0123456789" * 1000


@pytest.fixture
def ctx(peopled: Stores, context: Callable[..., Context]) -> Context:
    return context(ME)


async def body(data: bytes, step: int = 777) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


async def initiate(ctx: Context, data: bytes = DATA, **fields) -> uploads.UploadTicket:
    request = {"project_id": "prj_a", "filename": "scene.tif", "size_bytes": len(data)} | fields
    return await uploads.initiate(ctx, msgspec.convert(request, uploads.UploadsInitiateInput))


async def send(ctx: Context, ticket: uploads.UploadTicket, content: AsyncIterator[bytes] | None) -> uploads.Upload:
    """As the address is used: without credentials, with the token it carries."""
    address = urlsplit(ticket.address.url)
    upload_id = address.path.split("/")[3]
    (token,) = parse_qs(address.query)["token"]
    anonymous = msgspec.structs.replace(ctx, principal=ANONYMOUS, content=content)
    return await uploads.receive(anonymous, uploads.UploadsReceiveInput(upload_id=upload_id, token=token))


async def complete(ctx: Context, ticket: uploads.UploadTicket) -> uploads.Upload:
    return await uploads.complete(ctx, uploads.UploadsCompleteInput(upload_id=ticket.upload.upload_id))


async def look(ctx: Context, ticket: uploads.UploadTicket) -> uploads.Upload:
    return await uploads.progress(ctx, uploads.UploadsProgressInput(upload_id=ticket.upload.upload_id))


async def used(ctx: Context) -> int:
    async with ctx.stores.db.read() as tx:
        return (
            await tx.execute(sa.select(organisations.c.used_bytes).where(organisations.c.id == "org_me"))
        ).scalar_one()


async def raw_objects(ctx: Context) -> list[str]:
    """Keys of uploads that are in the store and that nobody has ordered away."""
    async with ctx.stores.db.read() as tx:
        rows = await tx.execute(sa.select(outbox.c.payload).where(outbox.c.topic == "objects.delete"))
        leaving = {key for (payload,) in rows for key in payload["keys"]}
    return [key async for key, _ in ctx.stores.objects.list("org_me") if "/uploads/" in key and key not in leaving]


class TestUploadsInitiate:
    async def test_initiate_reserves_and_gives_an_address(self, ctx):
        ticket = await initiate(ctx, title="A scene", datetime="2024-05-01T00:00:00Z", bands=[{"name": "red"}])
        assert ticket.upload.state == "initiated"
        assert ticket.address.method == "PUT"
        assert ticket.address.url.startswith(
            f"http://127.0.0.1:8000/v1/uploads/{ticket.upload.upload_id}/content?token="
        )
        assert ticket.address.expires_at <= ticket.upload.expires_at
        assert await used(ctx) == len(DATA)

    async def test_initiate_beyond_quota_says_what_is_left(self, ctx):
        await initiate(ctx, size_bytes=49_000_000)
        with pytest.raises(QuotaExceeded, match="1000000 bytes"):
            await initiate(ctx, size_bytes=1_000_001)

    async def test_initiate_beyond_the_largest_file_is_refused(self, ctx):
        with pytest.raises(InvalidInput) as caught:
            await initiate(ctx, size_bytes=ctx.settings.upload_bytes_max + 1)
        assert caught.value.errors[0].pointer == "/size_bytes"

    @pytest.mark.parametrize("project", ["prj_other", "prj_none"])
    async def test_initiate_in_a_foreign_project_is_not_found(self, ctx, project):
        with pytest.raises(NotFound):
            await initiate(ctx, project_id=project)
        assert await used(ctx) == 0

    @pytest.mark.parametrize(
        "fields",
        [
            {"filename": ""}, {"filename": "a\nb.tif"}, {"filename": "a\x00.tif"}, {"filename": "x" * 256},
            {"filename": "end\n"}, {"size_bytes": 0}, {"size_bytes": -1}, {"size_bytes": 1.5}, {"sha256": "abc"},
            {"sha256": "A" * 64}, {"title": "two\nlines"}, {"datetime": "2024-05-01T00:00:00"}, {"datetime": "may"},
            {"bands": [{"name": "red", "common_name": "RED"}]}, {"bands": [{}]}, {"bands": [{"name": "a", "gain": 1}]},
            {"bands": [{"name": "a", "nodata": "none"}]}, {"project": "prj_a"},
        ],
    )  # fmt: skip
    def test_initiate_of_wrong_form_is_refused(self, fields):
        request = {"project_id": "prj_a", "filename": "scene.tif", "size_bytes": 1}
        msgspec.convert(request, uploads.UploadsInitiateInput)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(request | fields, uploads.UploadsInitiateInput)

    @pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:00", "9999-12-31T23:00:00-23:00"])
    async def test_initiate_at_the_end_of_the_calendar_is_refused(self, ctx, at):
        with pytest.raises(InvalidInput) as caught:
            await initiate(ctx, datetime=at)
        assert caught.value.errors[0].pointer == "/datetime"


class TestUploadsReceive:
    async def test_receive_keeps_the_bytes(self, ctx):
        ticket = await initiate(ctx)
        upload = await send(ctx, ticket, body(DATA))
        assert (upload.state, upload.received_bytes) == ("received", len(DATA))
        assert upload.sha256 == hashlib.sha256(DATA).hexdigest()
        (key,) = await raw_objects(ctx)
        assert await ctx.stores.objects.read(key) == DATA

    @pytest.mark.parametrize(
        ("content", "code"),
        [(DATA + b"x", "size_mismatch"), (DATA[:-1], "size_mismatch"), (b"", "size_mismatch"), (None, "size_mismatch")],
    )
    async def test_receive_of_another_size_is_refused_and_leaves_nothing(self, ctx, content, code):
        ticket = await initiate(ctx)
        with pytest.raises(InvalidInput, match=f"declared with {len(DATA)} bytes") as caught:
            await send(ctx, ticket, None if content is None else body(content))
        assert caught.value.errors[0].code == code
        assert await raw_objects(ctx) == []
        assert (await look(ctx, ticket)).state == "initiated"

    async def test_receive_of_far_too_much_stops_reading(self, ctx):
        served = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal served
            while True:
                served += 1000
                yield b"x" * 1000

        ticket = await initiate(ctx)
        with pytest.raises(InvalidInput):
            await send(ctx, ticket, endless())
        assert served == len(DATA) + 1000

    async def test_receive_of_another_checksum_is_refused_and_leaves_nothing(self, ctx):
        ticket = await initiate(ctx, sha256=hashlib.sha256(DATA).hexdigest())
        with pytest.raises(InvalidInput) as caught:
            await send(ctx, ticket, body(DATA[::-1]))
        assert caught.value.errors[0].code == "checksum_mismatch"
        assert await raw_objects(ctx) == []
        assert (await send(ctx, ticket, body(DATA))).state == "received"

    async def test_receive_again_replaces_and_a_broken_repeat_does_not(self, ctx):
        ticket = await initiate(ctx)
        await send(ctx, ticket, body(DATA))
        again = await send(ctx, ticket, body(DATA[::-1]))
        assert again.sha256 == hashlib.sha256(DATA[::-1]).hexdigest()

        async def broken() -> AsyncIterator[bytes]:
            yield DATA[:100]
            raise ConnectionError("the client went away")

        with pytest.raises(ConnectionError):
            await send(ctx, ticket, broken())
        assert (await look(ctx, ticket)).sha256 == again.sha256
        assert len(await raw_objects(ctx)) == 1  # the first one's would be storage that no quota counts

    async def test_receive_tells_how_far_it_is(self, ctx, monkeypatch):
        monkeypatch.setattr(uploads, "_PROGRESS_S", 0.0)
        seen = []

        async def watched() -> AsyncIterator[bytes]:
            async for chunk in body(DATA, 2500):
                yield chunk
                seen.append((await look(ctx, ticket)).received_bytes)

        ticket = await initiate(ctx)
        await send(ctx, ticket, watched())
        assert seen == [2500, 5000, 7500, 10000]

    async def test_receive_with_a_foreign_or_altered_signature_is_refused(self, ctx):
        first, second = await initiate(ctx), await initiate(ctx)
        (token,) = parse_qs(urlsplit(first.address.url).query)["token"]
        for upload_id, used_token in (
            (second.upload.upload_id, token),
            (first.upload.upload_id, token[:-2] + "AA"),
            (first.upload.upload_id, "x"),
            (first.upload.upload_id, "é"),
        ):
            with pytest.raises(SignatureInvalid):
                await uploads.receive(ctx, uploads.UploadsReceiveInput(upload_id=upload_id, token=used_token))

    async def test_receive_after_the_address_expired_is_refused(self, ctx):
        ticket = await initiate(ctx)
        later = msgspec.structs.replace(ctx, clock=lambda: utc_now() + uploads.ADDRESS_LIFE + timedelta(seconds=2))
        with pytest.raises(SignatureInvalid, match="expired"):
            await send(later, ticket, body(DATA))

    async def test_receive_that_ends_after_the_upload_was_given_up_leaves_nothing(self, ctx):
        ticket = await initiate(ctx)

        async def slow() -> AsyncIterator[bytes]:
            yield DATA[:1]
            await uploads.fail(ctx, uploads.UploadsFailInput(upload_id=ticket.upload.upload_id))
            yield DATA[1:]

        with pytest.raises(Conflict, match="given up"):
            await send(ctx, ticket, slow())
        assert await raw_objects(ctx) == []
        assert await used(ctx) == 0


class TestUploadsSignedUrl:
    async def test_signed_url_gives_a_fresh_address(self, ctx):
        ticket = await initiate(ctx)
        request = uploads.UploadsSignedUrlInput(upload_id=ticket.upload.upload_id)
        later = msgspec.structs.replace(ctx, clock=lambda: utc_now() + timedelta(hours=23, minutes=30))
        address = await uploads.signed_url(later, request)
        assert address.expires_at == ticket.upload.expires_at  # an hour is more than is left
        assert (await send(later, uploads.UploadTicket(upload=ticket.upload, address=address), body(DATA))).sha256

    async def test_signed_url_of_ended_expired_or_foreign_upload_is_refused(self, ctx):
        ticket = await initiate(ctx)
        request = uploads.UploadsSignedUrlInput(upload_id=ticket.upload.upload_id)
        with pytest.raises(NotFound):
            await uploads.signed_url(msgspec.structs.replace(ctx, principal=OTHER), request)
        with pytest.raises(Conflict, match="expired"):
            await uploads.signed_url(
                msgspec.structs.replace(ctx, clock=lambda: utc_now() + uploads.UPLOAD_LIFE), request
            )
        await uploads.fail(ctx, uploads.UploadsFailInput(upload_id=ticket.upload.upload_id))
        with pytest.raises(Conflict, match="failed"):
            await uploads.signed_url(ctx, request)


class TestUploadsComplete:
    @pytest.mark.parametrize("name", ["cog_valid_uint16.tif", "not_cog_stripped.tif"])
    async def test_complete_makes_an_item_of_a_real_scene(self, ctx, worker, data_dir: Path, name):
        data = (data_dir / "formats" / name).read_bytes()
        ticket = await initiate(
            ctx, data, filename=name, title="A scene", datetime="2024-05-01T10:00:00Z",
            bands=[{"name": "B04", "common_name": "red", "scale": 0.0001}],
            properties={"platform": "landsat-8", "eo:cloud_cover": 0.0},
        )  # fmt: skip
        await send(ctx, ticket, body(data, 1 << 16))
        upload = await complete(ctx, ticket)
        assert upload.state == "completed"
        assert upload.job is not None
        assert (upload.job.state, upload.job.shards_done <= upload.job.shards_total) == ("completed", True)
        async with ctx.stores.db.read() as tx:
            row = await items.get(tx, ME, upload.item_id)
        assert row.at == datetime(2024, 5, 1, 10, tzinfo=UTC)
        assert row.title == "A scene"
        properties = row.document["properties"]
        assert (properties["platform"], properties["eo:cloud_cover"]) == ("landsat-8", 0.0)
        assert "instruments" not in properties
        (band,) = row.document["assets"]["data"]["bands"]
        assert (band["name"], band["eo:common_name"], band["raster:scale"]) == ("B04", "red", 0.0001)
        assert await used(ctx) == row.size_bytes  # the declared bytes were given back
        for asset in row.document["assets"].values():
            assert await ctx.stores.objects.size(asset["href"]) == asset["file:size"]
        assert await raw_objects(ctx) == []
        assert msgspec.structs.replace(await complete(ctx, ticket), job=upload.job) == upload  # repeated

    @pytest.mark.parametrize(
        ("name", "code"),
        [("text", "not_a_raster"), ("corrupt.tif", "source_unreadable|source_truncated"), ("cut", "source_truncated")],
    )
    async def test_complete_of_a_bad_file_names_the_reason_and_gives_everything_back(
        self, ctx, worker, data_dir: Path, name, code
    ):
        data = {"text": b"just words " * 500}.get(name) or (
            (data_dir / "formats" / "not_cog_stripped.tif").read_bytes()[:400_000]
            if name == "cut"
            else (data_dir / "formats" / name).read_bytes()
        )
        ticket = await initiate(ctx, data)
        await send(ctx, ticket, body(data, 1 << 16))
        for _ in range(2):  # repeating the call repeats the answer
            with pytest.raises(ComputeRefused) as caught:
                await complete(ctx, ticket)
            assert caught.value.compute_code in code.split("|")
        upload = await look(ctx, ticket)
        assert (upload.state, upload.item_id) == ("failed", None)
        assert await used(ctx) == 0
        assert await raw_objects(ctx) == []

    async def test_complete_without_bytes_is_refused(self, ctx):
        ticket = await initiate(ctx)
        with pytest.raises(Conflict, match="No bytes"):
            await complete(ctx, ticket)
        assert (await look(ctx, ticket)).state == "initiated"

    async def test_complete_without_a_worker_answers_with_the_job(self, ctx):
        quick = msgspec.structs.replace(ctx, settings=msgspec.structs.replace(ctx.settings, ingest_wait_s=0.05))
        ticket = await initiate(ctx)
        await send(ctx, ticket, body(DATA))
        upload = await complete(quick, ticket)
        assert (upload.state, upload.item_id, upload.job.state) == ("ingesting", None, "queued")
        with pytest.raises(Conflict, match="ingesting"):
            await send(ctx, ticket, body(DATA))
        with pytest.raises(Conflict, match="Cancel that job"):
            await uploads.fail(ctx, uploads.UploadsFailInput(upload_id=ticket.upload.upload_id))

    async def test_complete_at_once_from_many_sides_starts_one_job(self, ctx):
        quick = msgspec.structs.replace(ctx, settings=msgspec.structs.replace(ctx.settings, ingest_wait_s=0.05))
        ticket = await initiate(ctx)
        await send(ctx, ticket, body(DATA))
        answers = await asyncio.gather(*(complete(quick, ticket) for _ in range(8)))
        assert len({answer.job.job_id for answer in answers}) == 1
        async with ctx.stores.db.read() as tx:
            assert (await tx.execute(sa.select(sa.func.count()).select_from(jobs))).scalar_one() == 1

    async def test_complete_whose_job_was_cancelled_says_so_and_gives_back(self, ctx):
        quick = msgspec.structs.replace(ctx, settings=msgspec.structs.replace(ctx.settings, ingest_wait_s=0.05))
        ticket = await initiate(ctx)
        await send(ctx, ticket, body(DATA))
        job_id = (await complete(quick, ticket)).job.job_id
        async with ctx.stores.db.write() as tx:
            await queue.cancel(tx, job_id, ME, utc_now())
        with pytest.raises(Conflict, match="cancelled"):
            await complete(quick, ticket)
        assert (await look(ctx, ticket)).state == "failed"
        assert await used(ctx) == 0
        assert await raw_objects(ctx) == []

    async def test_complete_of_late_or_foreign_upload_is_refused(self, ctx):
        ticket = await initiate(ctx)
        await send(ctx, ticket, body(DATA))
        with pytest.raises(NotFound):
            await complete(msgspec.structs.replace(ctx, principal=OTHER), ticket)
        with pytest.raises(Conflict, match="expired"):
            await complete(msgspec.structs.replace(ctx, clock=lambda: utc_now() + uploads.UPLOAD_LIFE), ticket)


class TestDirectUpload:
    """Where the store signs addresses, bytes go to it and not through us."""

    @pytest.fixture
    def direct(self, monkeypatch) -> None:
        monkeypatch.setattr(Objects, "sign", lambda _self, key, method, life: f"https://store.example/{key}?{method}")

    async def arrive(self, ctx: Context, ticket: uploads.UploadTicket, data: bytes) -> str:
        key = urlsplit(ticket.address.url).path.removeprefix("/")
        await ctx.stores.objects.put(key, data)
        return key

    async def test_direct_bytes_become_an_item_even_if_they_are_sent_again(self, ctx, worker, direct, data_dir: Path):
        data = (data_dir / "formats" / "cog_valid_uint16.tif").read_bytes()
        ticket = await initiate(ctx, data, sha256=hashlib.sha256(data).hexdigest())
        await self.arrive(ctx, ticket, data)
        upload = await complete(ctx, ticket)
        assert (upload.state, upload.sha256) == ("completed", hashlib.sha256(data).hexdigest())
        await self.arrive(ctx, ticket, b"late")  # the address is still good
        assert await raw_objects(ctx) == []  # its key was ordered away

    @pytest.mark.parametrize(
        ("data", "code"), [(DATA + b"x", "size_mismatch"), (b"", "size_mismatch"), (DATA[::-1], "checksum_mismatch")]
    )
    async def test_direct_bytes_other_than_declared_are_refused_and_deleted(self, ctx, direct, data, code):
        ticket = await initiate(ctx, sha256=hashlib.sha256(DATA).hexdigest())
        await self.arrive(ctx, ticket, data)
        with pytest.raises(InvalidInput) as caught:
            await complete(ctx, ticket)
        assert caught.value.errors[0].code == code
        assert await raw_objects(ctx) == []
        assert (await look(ctx, ticket)).state == "initiated"
        with pytest.raises(Conflict, match="No bytes"):
            await complete(ctx, ticket)

    async def test_direct_bytes_sent_while_they_are_read_do_not_count(self, ctx, direct):
        quick = msgspec.structs.replace(ctx, settings=msgspec.structs.replace(ctx.settings, ingest_wait_s=0.05))
        ticket = await initiate(ctx)
        await self.arrive(ctx, ticket, DATA)
        await complete(quick, ticket)
        await self.arrive(ctx, ticket, DATA[::-1])
        async with ctx.stores.db.read() as tx:
            task = (await tx.execute(sa.select(jobs.c.task))).scalar_one()
        key = unquote(task["href"].removeprefix(f"{ctx.stores.objects.url}/"))
        assert await ctx.stores.objects.read(key) == DATA

    async def test_file_too_large_for_one_request_to_the_store_comes_through_us(self, ctx, direct, monkeypatch):
        monkeypatch.setattr(uploads, "DIRECT_BYTES_MAX", len(DATA) - 1)
        ticket = await initiate(ctx)
        assert ticket.address.url.startswith("http://127.0.0.1:8000/v1/uploads/")
        assert (await send(ctx, ticket, body(DATA))).state == "received"


class TestUploadsFail:
    async def test_fail_gives_back_and_may_be_repeated(self, ctx):
        ticket = await initiate(ctx)
        await send(ctx, ticket, body(DATA))
        for _ in range(2):
            upload = await uploads.fail(
                ctx, uploads.UploadsFailInput(upload_id=ticket.upload.upload_id, reason="Wrong file.")
            )
            assert (upload.state, upload.problem) == ("failed", {"code": "upload_given_up", "message": "Wrong file."})
        assert await used(ctx) == 0
        assert await raw_objects(ctx) == []
        with pytest.raises(Conflict, match="Wrong file"):
            await complete(ctx, ticket)

    async def test_fail_of_a_foreign_upload_is_not_found(self, ctx):
        ticket = await initiate(ctx)
        with pytest.raises(NotFound):
            await uploads.fail(
                msgspec.structs.replace(ctx, principal=OTHER),
                uploads.UploadsFailInput(upload_id=ticket.upload.upload_id),
            )


class TestUploadsProgress:
    async def test_progress_of_a_foreign_upload_is_not_found(self, ctx):
        ticket = await initiate(ctx)
        with pytest.raises(NotFound):
            await look(msgspec.structs.replace(ctx, principal=OTHER), ticket)


class TestUploadsList:
    async def test_list_pages_through_each_once(self, ctx):
        every = [(await initiate(ctx)).upload.upload_id for _ in range(5)]
        await uploads.fail(ctx, uploads.UploadsFailInput(upload_id=every[0]))
        seen, cursor = [], None
        while True:
            page = await uploads.list_(ctx, uploads.UploadsListInput(limit=2, cursor=cursor, state="initiated"))
            seen += [upload.upload_id for upload in page.uploads]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == every[:0:-1]

    async def test_list_shows_only_ones_own(self, ctx):
        await initiate(ctx)
        other = msgspec.structs.replace(ctx, principal=OTHER)
        assert (await uploads.list_(other, uploads.UploadsListInput())).uploads == []
        narrow = msgspec.structs.replace(ctx, principal=msgspec.structs.replace(ME, project_id="prj_b"))
        assert (await uploads.list_(narrow, uploads.UploadsListInput())).uploads == []

    async def test_list_with_a_cursor_of_other_filters_is_refused(self, ctx):
        for _ in range(3):
            await initiate(ctx)
        page = await uploads.list_(ctx, uploads.UploadsListInput(limit=1))
        with pytest.raises(ApiError, match="other filters"):
            await uploads.list_(ctx, uploads.UploadsListInput(limit=1, state="failed", cursor=page.next_cursor))
