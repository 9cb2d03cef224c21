"""Nobody gets more than it may have, over all dispatchers together."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from eorouter.jobs import claims, queue
from eorouter.jobs.fairness import FairShare
from eorouter.storage import allotments
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import Principal, utc_now

BOB = Principal(kind="user", id="usr_bob", org_id="org_b", scopes=frozenset(), user_id="usr_bob")


async def claim(stores, *, room=100.0, share=None, owner="dsp_1", waiting=None):
    async with stores.db.write() as tx:
        waiting = await claims.open_jobs(tx) if waiting is None else waiting
        return await claims.claim(tx, waiting, share=share or FairShare(), room=room, owner=owner, now=utc_now())


async def test_claim_begins_nothing_of_a_paused_organisation(stores, create):
    paused = await create(shards=3)
    other = await create(shards=2, principal=BOB)
    async with stores.db.read() as tx:
        known = await claims.open_jobs(tx)
    async with stores.db.write() as tx:
        await allotments.pause(tx, "org_a", at=utc_now())
    taken = await claim(stores, waiting=known)  # the list was read before the pause
    assert {each.job_id for each in taken.claims} == {other}
    assert (paused in taken.dry, taken.full) == (True, {"org_a"})
    async with stores.db.write() as tx:
        assert [job.id for job in await claims.open_jobs(tx)] == [other]
        await allotments.pause(tx, "org_a", at=None)
    assert len((await claim(stores)).claims) == 3


async def test_claim_keeps_an_organisation_within_its_limit_over_dispatchers(stores, create):
    await create(shards=10)
    await create(shards=10)
    await create(shards=4, principal=BOB)
    async with stores.db.write() as tx:
        await allotments.allot(tx, "org_a", weight=None, shards_max=3)
    first = await claim(stores, room=2, owner="dsp_1")
    second = await claim(stores, owner="dsp_2")
    third = await claim(stores, owner="dsp_2")
    mine = [len([each for each in taken.claims if each.org_id == "org_a"]) for taken in (first, second, third)]
    assert (sum(mine), mine[2]) == (3, 0)
    assert second.full == {"org_a"}
    async with stores.db.write() as tx:
        done = job_shards.c.job_id == first.claims[0].job_id, job_shards.c.number == first.claims[0].number
        await tx.execute(sa.update(job_shards).where(*done).values(state="done"))
    assert len((await claim(stores)).claims) == 1


async def test_claim_shares_by_weight(stores, create):
    await create(shards=60)
    await create(shards=60, principal=BOB)
    async with stores.db.write() as tx:
        await allotments.allot(tx, "org_b", weight=3.0, shards_max=None)
    taken = await claim(stores, room=40)
    of_bob = [each for each in taken.claims if each.org_id == "org_b"]
    assert len(taken.claims) == 40
    assert len(of_bob) == pytest.approx(30, abs=2)


async def test_claim_charges_the_merge_that_runs_with_the_only_shard(stores, create):
    job_id, share = await create(shards=1), FairShare()
    async with stores.db.write() as tx:
        await tx.execute(sa.update(job_shards).where(job_shards.c.job_id == job_id).values(bound={"seconds": 3.0}))
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(bound={"seconds": 10.0}))
    (each,) = (await claim(stores, share=share)).claims
    assert (each.merges, share._served_s["org_a"]) == (True, 10.0)


async def test_claim_sets_the_deadline_when_a_job_starts(stores, create):
    job_id = await create(shards=1, time_limit_s=50)
    before = utc_now()
    await claim(stores)
    row = await queue.wait(stores.db, job_id, 0)
    assert row.started_at is not None
    assert timedelta(seconds=50) <= row.deadline_at - before < timedelta(seconds=60)
