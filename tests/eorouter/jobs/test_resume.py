"""A failed job goes on as another, with the bytes it would have had."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from eorouter.errors import Conflict, NotFound
from eorouter.jobs import attempts, queue, resume
from eorouter.storage import deletions
from eorouter.storage.tables import job_events, job_shards, jobs
from eorouter.types import Principal, utc_now

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")
BOB = Principal(kind="user", id="usr_bob", org_id="org_b", scopes=frozenset(), user_id="usr_bob")


async def resumed(stores, job_id, *, principal=ALICE, now=None):
    async with stores.db.write() as tx:
        return await resume.resume(tx, job_id, principal, request_id="req_again", now=now or utc_now())


async def mend(stores, job_id):
    """The trouble goes away: parameters are the job's own, so it takes the database to change them."""
    async with stores.db.write() as tx:
        task = (await tx.execute(sa.select(jobs.c.task).where(jobs.c.id == job_id))).scalar_one()
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(task=task | {"ills": {}}))


async def keys(stores):
    return [key async for key, _ in stores.objects.list("org_a/prj_a/jobs")]


@pytest.mark.parametrize("rounds", [1, 3])
async def test_resume_runs_only_what_is_left_and_gives_the_same_bytes(stores, create, dispatcher, cluster, rounds):
    calm = await queue.wait(stores.db, await create(shards=4, rounds=rounds), 120)
    job_id = await create(shards=4, rounds=rounds, ills={"3": "source"})
    failed = await queue.wait(stores.db, job_id, 120)
    assert (failed.state, failed.shards_done > 0) == ("failed", True)
    assert failed.resumable_until - failed.finished_at == attempts.RESUMABLE
    await mend(stores, job_id)
    ran = len(cluster.begun)
    again = await queue.wait(stores.db, await resumed(stores, job_id), 120)
    assert (again.state, again.problem, again.resumed_from) == ("completed", None, job_id)
    assert again.result["checksums"] == calm.result["checksums"]
    assert (again.shards_done, again.pixels_done) == (calm.shards_done, calm.pixels_done)
    shards_run = {order.number for order in cluster.begun[ran:] if order.number >= 0}
    assert len(shards_run) == calm.shards_done - failed.shards_done
    assert (await queue.wait(stores.db, job_id, 0)).state == "failed"
    await deletions.sweep(stores, now=utc_now() + attempts.GHOSTS_GONE + timedelta(seconds=1))
    assert await keys(stores) == []
    async with stores.db.read() as tx:
        query = sa.select(job_events.c.data).where(job_events.c.job_id == again.id, job_events.c.type == "job.created")
        assert (await tx.execute(query)).scalar_one()["resumed_from"] == job_id


async def test_resume_is_refused_where_nothing_can_be_taken_over(stores, create, dispatcher):
    done = await create(shards=1)
    await queue.wait(stores.db, done, 120)
    with pytest.raises(Conflict, match="only a job that failed"):
        await resumed(stores, done)
    job_id = await create(shards=3, ills={"2": "source"})
    failed = await queue.wait(stores.db, job_id, 120)
    with pytest.raises(NotFound):
        await resumed(stores, job_id, principal=BOB)
    with pytest.raises(Conflict, match="nothing is left"):
        await resumed(stores, job_id, now=failed.resumable_until + timedelta(seconds=1))
    async with stores.db.write() as tx:
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(build="0.1+old"))
    with pytest.raises(Conflict, match=r"build 0\.1\+old"):
        await resumed(stores, job_id)


async def test_resume_once_and_a_cancelled_heir_leaves_nothing(stores, create, dispatcher):
    job_id = await create(shards=3, ills={"2": "source"})
    await queue.wait(stores.db, job_id, 120)
    dispatcher.stop()
    heir = await resumed(stores, job_id)
    with pytest.raises(Conflict, match=heir):
        await resumed(stores, job_id)
    async with stores.db.write() as tx:
        await queue.cancel(tx, heir, ALICE, utc_now())
    await deletions.sweep(stores, now=utc_now())
    assert await keys(stores) == []
    async with stores.db.read() as tx:
        states = (await tx.execute(sa.select(job_shards.c.state).where(job_shards.c.job_id == heir))).scalars()
        assert "ready" not in set(states)
