"""The whole thing with real processes: killed in the middle, it ends with the same bytes, once."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest
import sqlalchemy as sa

from eorouter.jobs import queue
from eorouter.jobs.supervisor import Supervisor, environment
from eorouter.settings import PREFIX, Settings, load
from eorouter.storage.tables import items, job_events, job_shards
from eorouter.types import Principal, utc_now

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")


async def until(condition, timeout_s=240):
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens in other processes
            await asyncio.sleep(0.05)


async def count_events(stores, job_id, kind):
    async with stores.db.read() as tx:
        query = sa.select(sa.func.count()).where(job_events.c.job_id == job_id, job_events.c.type == kind)
        return (await tx.execute(query)).scalar()


def workers_of(supervisor):
    """Every process below the dispatcher; they open strangers' files."""
    found = psutil.Process(supervisor.pid).children(recursive=True)
    assert len(found) >= 2
    return found


# On SQLite the quick cells of the matrix kill the same processes.
@pytest.mark.parametrize(
    "empty_database_url", ["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.timeout(900)
async def test_jobs_survive_the_death_of_workers_and_dispatcher(stores, settings, create, empty_database_url, tmp_path):
    address = "" if stores.db.is_sqlite else empty_database_url
    settings = msgspec.structs.replace(settings, database_url=address, worker_count=2)
    supervisor = Supervisor(settings)
    await supervisor.start()
    try:
        marker = tmp_path / "marker"
        marker.mkdir()
        assert not [name for child in workers_of(supervisor) for name in child.environ() if name.startswith(PREFIX)]
        calm = await queue.wait(stores.db, await create(shards=4), 240)
        assert (calm.state, calm.problem) == ("completed", None)

        job_id = await create(shards=4, ills={"2": "die_once"}, marker=str(marker))
        shaken = await queue.wait(stores.db, job_id, 240)
        assert (shaken.state, shaken.result["checksums"]) == ("completed", calm.result["checksums"])
        assert await count_events(stores, job_id, "shard.retried") >= 1

        doomed = await create(shards=6, blocks=600, block_s=0.1)

        async def is_going():
            return (await queue.wait(stores.db, doomed, 0)).pixels_done > 0

        await until(is_going)
        async with stores.db.write() as tx:
            await queue.cancel(tx, doomed, ALICE, utc_now())
        cancelled = await queue.wait(stores.db, doomed, 240)
        assert (cancelled.state, cancelled.shards_done) == ("cancelled", 0)

        orphan = await create(shards=4, blocks=20, block_s=0.1)

        async def is_half_done():
            async with stores.db.read() as tx:
                mine = job_shards.c.job_id == orphan, job_shards.c.state == "done"
                return (await tx.execute(sa.select(sa.func.count()).where(*mine))).scalar() >= 1

        await until(is_half_done)
        first = supervisor.pid
        os.kill(first, signal.SIGKILL)
        finished = await queue.wait(stores.db, orphan, 240)
        assert (finished.state, finished.problem) == ("completed", None)
        assert finished.result["checksums"] == calm.result["checksums"]
        assert finished.pixels_done == finished.bound["pixels"]
        assert await count_events(stores, orphan, "job.completed") == 1
        assert supervisor.pid not in {None, first}
        async with stores.db.read() as tx:
            assert (await tx.execute(sa.select(sa.func.count()).where(items.c.job_id == orphan))).scalar() == 1
        children = psutil.Process(supervisor.pid).children(recursive=True)
    finally:
        await supervisor.stop()
    assert supervisor.pid is None
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_environment_carries_every_setting(monkeypatch):
    monkeypatch.setenv("EOROUTER_PORT", "1234")
    settings = Settings(
        data_dir=Path("/somewhere/else"), secret="x" * 50, worker_count=3, ingest_wait_s=1.5, log_level="debug",
        database_url="postgresql://u:p%40@h/d", remote_hosts="a:1,b:2",
    )  # fmt: skip
    assert load(environment(settings)) == settings
