"""A job's money at the turns of its life, on both engines."""

import pytest
import sqlalchemy as sa

from eorouter.commerce import ledger, pricing
from eorouter.jobs import charges, queue
from eorouter.operation import SpendAuthority
from eorouter.storage.tables import job_shards, jobs, ledger_transfers
from eorouter.types import Mode, Principal, new_id, utc_now
from eorouter_compute.method import Result

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")
WELCOME = 10_000


async def paid(stores, job_id) -> int:
    """Set the money for a job aside; how much."""
    authority = SpendAuthority(principal=ALICE, idempotency_key=new_id("key"))
    async with stores.db.write() as tx:
        await charges.reserve(tx, stores.db, authority, job_id, welcome=WELCOME, now=utc_now())
        return (await tx.execute(sa.select(jobs.c.reserved_cents).where(jobs.c.id == job_id))).scalar_one()


async def settled(stores, job_id):
    """The job's row, once its money is resolved and the ledger balances."""
    async with stores.db.read(sees_one_moment=True) as tx:
        assert await ledger.verify(tx, ended=await charges.forgotten(tx)) == []
        row = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id))).one()
        found = await ledger.balance(tx, "org_a", Mode.LIVE)
    assert found == ledger.Balance(WELCOME - row.captured_cents, 0, row.captured_cents)
    return row


async def test_completed_job_is_captured_within_its_promise(stores, create, dispatcher):
    job_id = await create(shards=3)
    reserved = await paid(stores, job_id)
    assert (await queue.wait(stores.db, job_id, 120)).state == "completed"
    assert 0 < (await settled(stores, job_id)).captured_cents <= reserved


async def test_failed_job_costs_nothing(stores, create, dispatcher):
    job_id = await create(shards=3, ills={"1": "source"})
    await paid(stores, job_id)
    assert (await queue.wait(stores.db, job_id, 120)).state == "failed"
    assert (await settled(stores, job_id)).captured_cents == 0


@pytest.mark.parametrize(("token", "hours"), [(0, 0), (1, 40)])
async def test_shards_taken_over_from_a_failed_job_are_free(stores, create, token, hours):
    job_id = await create(shards=1)
    await paid(stores, job_id)
    async with stores.db.write() as tx:
        shard = (job_shards.c.job_id == job_id) & (job_shards.c.number == 0)
        spent = {"timing": {"seconds": 40 * 3600.0}, "token": token}
        await tx.execute(sa.update(job_shards).where(shard).values(spent))
        job = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id))).one()
        own = pricing.book().price("toy", pricing.Use(pixels=0, core_seconds=hours * 3600.0, bytes_written=0)).cents
        await charges.capture(tx, job, Result(), now=utc_now())
        taken = (await tx.execute(sa.select(jobs.c.captured_cents).where(jobs.c.id == job_id))).scalar_one()
        assert taken == min(own, job.reserved_cents)


async def test_money_of_a_job_that_ended_unnoticed_is_named(stores, create):
    job_id = await create(shards=1)
    await paid(stores, job_id)
    async with stores.db.write() as tx:
        assert await charges.forgotten(tx) == []
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(finished_at=utc_now()))
        found = await ledger.verify(tx, ended=await charges.forgotten(tx))
        assert found == [f"Reservation for {job_id} is open, and its work has ended."]
        kinds = sa.select(ledger_transfers.c.kind).where(ledger_transfers.c.reference == job_id)
        assert (await tx.execute(kinds)).scalars().all() == ["reserve"]
