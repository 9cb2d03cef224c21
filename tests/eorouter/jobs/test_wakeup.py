"""A commit of another process is heard at once, and nothing is left behind by whoever stops listening."""

import asyncio
import sqlite3

import psycopg
import pytest
import sqlalchemy as sa
import structlog

from eorouter.jobs import queue, wakeup
from eorouter.jobs.wakeup import watch
from eorouter.storage.tables import organisations
from eorouter.types import Principal, utc_now

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")


async def test_a_commit_wakes(stores, create):
    job_id = await create(dispatches=False)
    heard = asyncio.Event()
    watching = asyncio.create_task(watch(stores.db.url, heard.set))
    await asyncio.wait_for(heard.wait(), 120)  # what happened before anybody listened
    heard.clear()
    async with stores.db.write() as tx:
        await queue.dispatch(tx, job_id, ALICE, utc_now())
    await asyncio.wait_for(heard.wait(), 120)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize("fault", ["its own error", "a defect"])
async def test_a_watch_that_cannot_connect_says_so_and_tries_again(stores, monkeypatch, fault):
    driver = sqlite3 if stores.db.is_sqlite else psycopg
    connect, failed = driver.connect, []

    def fails_at_first(*args, **kwargs):
        if len(failed) < 2:
            failed.append(args)
            raise driver.OperationalError("unable to open database file") if fault == "its own error" else KeyError("x")
        return connect(*args, **kwargs)

    monkeypatch.setattr(driver, "connect", fails_at_first)
    monkeypatch.setattr(wakeup, "_RECONNECT_S", 0.01)
    heard = asyncio.Event()
    with structlog.testing.capture_logs() as said:
        watching = asyncio.create_task(watch(stores.db.url, heard.set))
        await asyncio.wait_for(heard.wait(), 20)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    expected = "jobs.wakeup.lost" if fault == "its own error" else "jobs.wakeup.failed"
    assert [line["event"] for line in said] == [expected] * 2


async def test_a_watch_that_is_cancelled_again_and_again_leaves_no_connection(stores, monkeypatch):
    opened = []
    connect = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda *a, **k: opened.append(connect(*a, **k)) or opened[-1])
    heard = asyncio.Event()
    watching = asyncio.create_task(watch(stores.db.url, heard.set))
    await asyncio.wait_for(heard.wait(), 120)
    for _ in range(3):
        watching.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(watching, return_exceptions=True)
    async with asyncio.timeout(120):
        while not all(connection.closed for connection in opened):  # noqa: ASYNC110 - a thread closes them
            await asyncio.sleep(0.01)
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(organisations))).scalar_one() == 0
