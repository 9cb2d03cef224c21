"""What attempts wrote goes when its job ends; what a failed one finished, when nobody may resume it any more."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from eorouter.jobs import attempts, queue
from eorouter.storage import deletions
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import utc_now


async def keys(stores, job_id):
    return {key async for key, _ in stores.objects.list(f"org_a/prj_a/jobs/{job_id}")}


async def finished(stores, job_id):
    """What the finished shards wrote; a shard that ends after its job has failed writes too, and that goes."""
    done = sa.select(job_shards).where(job_shards.c.job_id == job_id, job_shards.c.state == "done")
    async with stores.db.read() as tx:
        rows = (await tx.execute(done)).all()
    return {f"org_a/prj_a/jobs/{job_id}/attempts/{row.number}/{row.token}/numbers.bin" for row in rows}


@pytest.mark.usefixtures("dispatcher")
async def test_finished_shards_of_a_failed_job_are_kept_for_a_day(stores, create):
    job_id = await create(shards=3, ills={"2": "source"})
    row = await queue.wait(stores.db, job_id, 120)
    assert row.state == "failed"
    now = utc_now()
    await deletions.sweep(stores, now=now + timedelta(hours=1))
    kept = await finished(stores, job_id)
    assert kept
    assert kept <= await keys(stores, job_id)
    async with stores.db.write() as tx:
        await attempts.expire(tx, now + timedelta(hours=23))
    await deletions.sweep(stores, now=now + timedelta(hours=23))
    assert kept <= await keys(stores, job_id)
    late = now + attempts.RESUMABLE + timedelta(minutes=1)
    async with stores.db.write() as tx:
        await attempts.expire(tx, late)
        assert (await tx.execute(sa.select(jobs.c.resumable_until))).scalars().all() == [None]
    await deletions.sweep(stores, now=late)
    assert await keys(stores, job_id) == set()


@pytest.mark.usefixtures("dispatcher")
async def test_what_a_ghost_writes_after_the_end_goes_too(stores, create):
    job_id = await create(shards=1)
    await queue.wait(stores.db, job_id, 120)
    await deletions.sweep(stores, now=utc_now())
    ghost = f"org_a/prj_a/jobs/{job_id}/attempts/0/1/numbers.bin"
    await stores.objects.put(ghost, b"late")
    await deletions.sweep(stores, now=utc_now())
    assert await keys(stores, job_id) == {ghost}
    await deletions.sweep(stores, now=utc_now() + attempts.GHOSTS_GONE + timedelta(seconds=1))
    assert await keys(stores, job_id) == set()
