"""People with projects, and a worker that runs every queued job in the test's own process."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.jobs import publish
from eorouter.jobs.leases import fail_job
from eorouter.jobs.states import JobState
from eorouter.storage import Stores, items
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import utc_now
from eorouter_compute import method
from eorouter_compute.attempt import Attempt, ObjectRef
from eorouter_compute.errors import ComputeError
from eorouter_compute.method import Band, OutputAsset, OutputItem, RasterAsset
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
    raster = RasterAsset(
        key="data", href="", crs="EPSG:4326", transform=(0.001, 0.0, 0.0, 0.0, -0.001, 1.0), shape=(1000, 1000),
        bands=(Band(name="B04", index=1, dtype="uint16", common_name="red", nodata=0.0),), block_shape=(256, 256),
    )  # fmt: skip
    asset = OutputAsset(
        key="data", object=ObjectRef(href="x", size=10, sha256="0" * 64), media_type="image/tiff", roles=("data",),
        filename="data.tif", raster=raster,
    )  # fmt: skip
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    output = OutputItem(
        name="scene", assets=(asset,), footprint=square, bbox=(0, 0, 1, 1), at=datetime(2024, 5, 1, tzinfo=UTC)
    )
    async with peopled.db.write() as tx:
        await items.add(
            tx, peopled.db, org_id="org_me", project_id="prj_a", item_id="itm_scene", output=output,
            keys={"data": "org_me/prj_a/items/itm_scene/data.tif"}, job_id=None, provenance={}, now=utc_now(),
        )  # fmt: skip
    return "itm_scene"
