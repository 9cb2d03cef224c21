"""Whether the installation can work is really tried."""

import asyncio
from datetime import timedelta

import httpx2
import pytest
import sqlalchemy as sa

from eorouter.operation import Registry
from eorouter.storage import Stores, migrate
from eorouter.storage.database import Database
from eorouter.storage.objects import Objects
from eorouter.storage.tables import processes
from eorouter.surface import http, readiness
from eorouter.types import ANONYMOUS, utc_now

NOW = utc_now()


async def current(_: Database) -> None:
    """The schema is that of the metadata."""


async def beat(stores: Stores, *, age_s: float = 0, workers: int = 2, name: str = "dsp_1") -> None:
    seen = NOW - timedelta(seconds=age_s)
    values = {"id": name, "role": "dispatcher", "host": "h", "started_at": seen, "seen_at": seen}
    async with stores.db.write() as tx:
        await tx.execute(sa.insert(processes).values(**values, detail={"workers": workers}))


async def probe(stores: Stores, check=current) -> readiness.Readiness:
    return await readiness.probe(stores, schema_check=check, now=NOW)


async def test_all_parts_ready_is_ready(stores):
    await beat(stores)
    state = await probe(stores)
    assert state.state == "ready"
    assert set(state.parts) == {"database", "schema", "objects", "cluster"}
    assert state.parts["cluster"].message == "1 dispatcher(s), 2 worker(s)."


@pytest.mark.parametrize(
    ("heartbeats", "message"),
    [
        ([], "none was ever seen"),
        ([{"age_s": 3600}], "the last one was seen"),
        ([{"age_s": 20}], "the last one was seen"),  # dead to the other dispatchers, so dead here
        ([{"workers": 0}], "no worker"),
        ([{"age_s": 3600, "workers": 5}, {"workers": 0, "name": "dsp_2"}], "no worker"),
    ],
)
async def test_no_fresh_dispatcher_with_a_worker_is_not_ready(stores, heartbeats, message):
    for heartbeat in heartbeats:
        await beat(stores, **heartbeat)
    state = await probe(stores)
    assert (state.state, state.parts["cluster"].state) == ("not_ready", "not_ready")
    assert message in state.parts["cluster"].message
    assert state.parts["database"].state == "ready"


async def test_empty_database_is_not_ready_and_says_what_to_do(empty_database_url, tmp_path):
    empty = Stores(db=Database(empty_database_url), objects=Objects("", tmp_path))
    state = await probe(empty, migrate.check)
    await empty.db.close()
    assert state.parts["database"].state == "ready"
    assert state.parts["schema"].state == "not_ready"
    assert "eorouter migrate" in state.parts["schema"].message


async def test_object_store_that_cannot_be_written_is_not_ready(stores, tmp_path):
    await beat(stores)
    stores.objects.root.rmdir()
    stores.objects.root.write_text("a file where the folder was")
    state = await probe(stores)
    assert state.parts["objects"].state == "not_ready"
    assert state.parts["objects"].message


async def test_part_that_hangs_is_cut_off(stores, monkeypatch):
    async def hang(_: Database) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(readiness, "PROBE_S", 0.05)
    state = await probe(stores, hang)
    assert "No answer" in state.parts["schema"].message


async def test_unreachable_database_is_503_and_the_process_is_alive(stores, settings):
    async def nobody(*_: object, **__: object):
        return ANONYMOUS

    gone = Stores(db=Database("postgresql+psycopg://nobody@127.0.0.1:1/none"), objects=stores.objects)
    app = http.create(Registry([]), gone, settings, authenticate=nobody, schema_check=lambda db: db.check())
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver.local") as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["parts"]["database"]["state"] == "not_ready"
        assert answer.json()["parts"]["objects"]["state"] == "ready"
        assert (await client.get("/healthz")).status_code == 200
    await gone.db.close()


async def test_some_parts_are_asked_for_by_name_and_others_do_not_matter(stores, settings):
    async def nobody(*_: object, **__: object):
        return ANONYMOUS

    app = http.create(Registry([]), stores, settings, authenticate=nobody, schema_check=current)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver.local") as client:
        assert (await client.get("/readyz")).status_code == 503  # nobody runs jobs
        answer = await client.get("/readyz?parts=database,schema,objects")
        assert answer.status_code == 200
        assert set(answer.json()["parts"]) == {"database", "schema", "objects"}
        answer = await client.get("/readyz?parts=database,clutser")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
        assert "clutser" in answer.text
        assert "cluster" in answer.text
