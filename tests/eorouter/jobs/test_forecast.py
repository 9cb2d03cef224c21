"""What is foretold is what happens, or nothing."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter.jobs import queue
from eorouter.jobs.forecast import Forecast, forecast, shared_s
from eorouter.storage import allotments, dispatchers
from eorouter.types import Principal, utc_now
from eorouter_compute.orders import MERGE

BOB = Principal(kind="user", id="usr_bob", org_id="org_b", scopes=frozenset(), user_id="usr_bob")


async def foretold(stores, job_id, now=None):
    row = await queue.wait(stores.db, job_id, 0)
    async with stores.db.read() as tx:
        return await forecast(tx, row, now=now or utc_now())


async def test_nothing_is_foretold_where_nothing_was_measured(stores, create):
    first, second = await create(shards=1), await create(shards=1)
    urgent = await create(shards=1, is_interactive=True)
    assert await foretold(stores, first) == Forecast(position=1)
    assert await foretold(stores, second) == Forecast(position=2)
    assert await foretold(stores, urgent) == Forecast(position=1)


async def until_told(stores):
    """Wait for a heartbeat that tells what was learnt up to now."""
    now = utc_now()
    async with asyncio.timeout(60):
        while True:
            async with stores.db.read() as tx:
                (row,) = await dispatchers.known(tx)
            if row.seen_at > now and "toy" in row.detail["costs"]:
                return row.detail
            await asyncio.sleep(0.05)


async def test_forecast_is_what_happens(stores, create, dispatcher, cluster):
    """Measured in shards, not by the clock: a busy machine says nothing about the forecast."""
    shard = {"blocks": 2, "block_s": 0.05, "makes_item": False}
    await queue.wait(stores.db, await create(shards=40, **shard), 120)
    detail = await until_told(stores)
    cost_s = 2 * 0.05 * detail["costs"]["toy"]
    assert cost_s >= 2 * 0.05
    async with cluster.standing_still():
        mine, beside = await create(shards=60, **shard), await create(shards=40, principal=BOB, **shard)
        behind = await create(shards=20, **shard)
        now, before = utc_now(), len(cluster.begun)
        told = {job_id: await foretold(stores, job_id, now) for job_id in (mine, beside, behind)}
    for job_id in told:
        assert (await queue.wait(stores.db, job_id, 120)).state == "completed"
    begun = [order.job_id for order in cluster.begun[before:] if order.number > MERGE]
    for job_id, each in told.items():
        last = max(place for place, other in enumerate(begun, 1) if other == job_id)
        assert (each.expected_at - now).total_seconds() == pytest.approx(last * cost_s / detail["threads"], rel=0.2)
    assert told[behind].expected_at > told[mine].expected_at
    assert await foretold(stores, mine) == Forecast()


async def test_nothing_is_foretold_of_a_paused_organisation(stores, create, dispatcher):
    await queue.wait(stores.db, await create(shards=4), 120)
    await until_told(stores)
    async with stores.db.write() as tx:
        await allotments.pause(tx, "org_a", at=utc_now())
    assert await foretold(stores, await create(shards=1)) == Forecast(position=1)


WORK = st.floats(0.1, 100)


def test_shared_s_alone_and_beside_another():
    assert shared_s(10, 1, [], 2) == 5
    assert shared_s(10, 1, [(10, 1)], 2) == 10
    assert shared_s(10, 1, [(2, 1)], 2) == 6
    assert shared_s(10, 3, [(1000, 1)], 2) == pytest.approx(20 / 3)


@given(WORK, WORK, st.lists(st.tuples(WORK, st.floats(0.1, 10)), max_size=6))
def test_shared_s_lies_between_alone_and_last(work, weight, others):
    alone, last = work / 2, (work + sum(each for each, _ in others)) / 2
    assert alone - 1e-6 <= shared_s(work, weight, others, 2) <= last + 1e-6
