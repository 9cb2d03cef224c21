"""People with projects, and a worker that runs every queued job in the test's own process."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import scene
import sqlalchemy as sa

from eorouter.jobs import publish
from eorouter.jobs.leases import fail_job
from eorouter.jobs.states import JobState
from eorouter.storage import Stores
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import utc_now
from eorouter_compute import method
from eorouter_compute.attempt import Attempt
from eorouter_compute.errors import ComputeError
from eorouter_compute.orders import MERGE

QUOTA = 50_000_000


@pytest.fixture
def quota_bytes() -> int:
    """Little enough to be used up."""
    return QUOTA


@pytest.fixture
async def worker(peopled: Stores) -> AsyncIterator[None]:
    """Runs queued jobs as dispatcher and cluster would, without processes."""
    task = asyncio.create_task(_work(peopled))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _work(stores: Stores) -> None:
    while True:
        async with stores.db.read() as tx:
            job = (await tx.execute(sa.select(jobs).where(jobs.c.state == "queued"))).first()
        if job is None:
            await asyncio.sleep(0.01)
            continue
        async with stores.db.write() as tx:
            await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(state="running"))
            shards = (
                await tx.execute(
                    sa.select(job_shards.c.number, job_shards.c.body)
                    .where(job_shards.c.job_id == job.id, job_shards.c.number > MERGE)
                    .order_by(job_shards.c.number)
                )
            ).all()
        try:
            part = await asyncio.to_thread(_run, stores, job, shards)
        except ComputeError as error:
            problem = {"code": error.code, "message": error.message, "pointer": error.pointer}
            async with stores.db.write() as tx:
                await fail_job(tx, job, JobState.RUNNING, problem, utc_now())
            continue
        async with stores.db.write() as tx:
            merge = (job_shards.c.job_id == job.id) & (job_shards.c.number == MERGE)
            await tx.execute(sa.update(job_shards).where(merge).values(part=part, state="done"))
            await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(state="publishing"))
        await publish.publish(stores, job.id, now=utc_now())


def _run(stores: Stores, job: sa.Row, shards: list) -> bytes:
    used = method.get(job.method)
    params = msgspec.convert(job.task, used.params, strict=False)
    prefix = stores.objects.href(f"{job.org_id}/{job.project_id}/jobs/{job.id}/attempts")
    parts = [used.run(params, [], shard.body, Attempt(f"{prefix}/{shard.number}/")) for shard in shards]
    return msgspec.msgpack.encode(used.merge(params, [], parts, Attempt(f"{prefix}/merge/")))


@pytest.fixture
async def item(peopled):
    """An item of `prj_a`: one band, a thousand pixels a side, over the degree north-east of the origin."""
    return await scene.shelve(peopled.db, "org_me", "prj_a", "itm_scene")
