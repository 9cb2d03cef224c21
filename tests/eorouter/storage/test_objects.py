"""The same promises of a local folder and of S3 (a moto server process on loopback)."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from eorouter.storage.objects import ObjectExists, ObjectMissing, Objects

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
BIG = os.urandom(1 << 20) * 20  # several parts of a multipart upload


@pytest.fixture(scope="module")
def s3_server(s3_servers) -> Iterator[dict[str, str]]:
    """The environment of an S3 server in a process of its own."""
    with s3_servers() as variables:
        yield variables


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    if request.param == "folder":
        return Objects("", tmp_path)
    return bucket(request, monkeypatch)


@pytest.fixture
def remote_objects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Objects:
    return bucket(request, monkeypatch)


def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Objects:
    variables = request.getfixturevalue("s3_server")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    httpx2.put(f"{variables['AWS_ENDPOINT_URL']}/{name}").raise_for_status()
    return Objects(f"s3://{name}/pre fix", Path("/nonexistent"))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def keys(objects: Objects, prefix: str = "") -> list[str]:
    return sorted([key async for key, _ in objects.list(prefix)])


class TestPut:
    async def test_put_and_read_back(self, objects):
        await objects.put("a/b c/ü.bin", b"hello")
        assert await objects.read("a/b c/ü.bin") == b"hello"
        assert await objects.size("a/b c/ü.bin") == 5

    async def test_put_over_replaces_and_create_once_refuses(self, objects):
        await objects.put("k", b"one")
        await objects.put("k", b"two!")
        with pytest.raises(ObjectExists):
            await objects.put("k", b"three", overwrite=False)
        assert await objects.read("k") == b"two!"

    async def test_create_once_at_once_has_one_winner(self, objects):
        async def create(n: int) -> int | None:
            try:
                await objects.put("once", bytes([n]), overwrite=False)
            except ObjectExists:
                return None
            return n

        winners = [n for n in await asyncio.gather(*(create(n) for n in range(8))) if n is not None]
        assert len(winners) == 1
        assert await objects.read("once") == bytes(winners)


class TestPutStream:
    async def test_stream_keeps_every_byte_and_tells_size_and_digest(self, objects):
        parts = [BIG[start : start + 700_001] for start in range(0, len(BIG), 700_001)]
        size, sha256 = await objects.put_stream("big", chunks(*parts), bytes_max=len(BIG))
        assert (size, sha256) == (len(BIG), hashlib.sha256(BIG).hexdigest())
        assert hashlib.sha256(await objects.read("big")).hexdigest() == sha256

    async def test_empty_stream_is_an_empty_object(self, objects):
        size, sha256 = await objects.put_stream("none", chunks(), bytes_max=0)
        assert (size, sha256) == (0, hashlib.sha256(b"").hexdigest())
        assert await objects.size("none") == 0

    async def test_stream_that_is_too_long_leaves_nothing(self, objects):
        with pytest.raises(ValueError, match="longer than 10"):
            await objects.put_stream("long", chunks(b"x" * 8, b"y" * 8), bytes_max=10)
        assert await keys(objects) == []

    async def test_stream_that_breaks_leaves_nothing(self, objects):
        async def broken() -> AsyncIterator[bytes]:
            for start in range(0, len(BIG), 1 << 20):
                yield BIG[start : start + (1 << 20)]
            raise ConnectionError("gone")

        with pytest.raises(ConnectionError):
            await objects.put_stream("broken", broken(), bytes_max=1 << 30)
        assert await keys(objects) == []


class TestRead:
    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 7), (9, 10), (0, 10), (5, 5), (7, 3)])
    async def test_range_is_what_a_slice_is(self, objects, start, stop):
        await objects.put("k", b"0123456789")
        assert await objects.read("k", start, stop) == b"0123456789"[start:stop]

    async def test_stream_is_the_range_in_pieces(self, objects):
        await objects.put("k", BIG)
        pieces = [piece async for piece in objects.stream("k", 1000, len(BIG) - 1000)]
        assert b"".join(pieces) == BIG[1000:-1000]
        assert max(map(len, pieces)) <= 4 << 20

    async def test_absent_object_is_missing(self, objects):
        with pytest.raises(ObjectMissing):
            await objects.size("none")
        with pytest.raises(ObjectMissing):
            await objects.read("none")
        with pytest.raises(ObjectMissing):
            await objects.read("none", 0, 5)


class TestCopyDeleteList:
    async def test_copy_lands_over_what_is_there_and_may_be_repeated(self, objects):
        await objects.put("a/source", b"new")
        await objects.put("b/target", b"old")
        for _ in range(2):
            await objects.copy("a/source", "b/target")
        await objects.delete(["a/source"])
        assert await objects.read("b/target") == b"new"

    async def test_copy_is_not_changed_by_what_is_put_over_its_source(self, objects):
        await objects.put("a", b"before")
        await objects.copy("a", "b")
        await objects.put("a", b"after")
        assert await objects.read("b") == b"before"

    async def test_delete_of_some_that_are_absent_deletes_the_rest(self, objects):
        for key in ("x/1", "x/2", "y/1"):
            await objects.put(key, b"1")
        await objects.delete(["x/1", "x/none", "x/2"])
        assert await keys(objects) == ["y/1"]

    async def test_list_stays_below_the_prefix(self, objects):
        for key in ("p/a/1", "p/a/2", "p/b/1", "q/1"):
            await objects.put(key, key.encode())
        assert await keys(objects, "p/a") == ["p/a/1", "p/a/2"]
        assert {key: size async for key, size in objects.list("p")} == {"p/a/1": 5, "p/a/2": 5, "p/b/1": 5}

    async def test_check_leaves_nothing(self, objects):
        await objects.check()
        assert await keys(objects) == []


class TestSign:
    async def test_signed_addresses_put_and_get_without_credentials(self, remote_objects):
        put = remote_objects.sign("up load/1", "PUT", timedelta(minutes=5))
        async with httpx2.AsyncClient() as client:
            (await client.put(put, content=b"direct")).raise_for_status()
            assert await remote_objects.read("up load/1") == b"direct"
            got = await client.get(remote_objects.sign("up load/1", "GET", timedelta(minutes=5)))
        assert got.content == b"direct"

    def test_folder_signs_nothing(self, tmp_path):
        assert Objects("", tmp_path).sign("k", "GET", timedelta(minutes=5)) is None

    async def test_href_is_the_address_of_the_same_object(self, objects):
        from eorouter_compute.attempt import read_object

        await objects.put("a/b.bin", b"same")
        assert await asyncio.to_thread(read_object, objects.href("a/b.bin")) == b"same"
