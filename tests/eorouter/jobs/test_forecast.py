"""What is foretold is what happens, or nothing."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter.jobs import queue
from eorouter.jobs.forecast import Forecast, forecast, shared_s
from eorouter.storage import allotments
from eorouter.types import Principal, utc_now

BOB = Principal(kind="user", id="usr_bob", org_id="org_b", scopes=frozenset(), user_id="usr_bob")


async def foretold(stores, job_id):
    row = await queue.wait(stores.db, job_id, 0)
    async with stores.db.read() as tx:
        return await forecast(tx, row, now=utc_now())


async def test_nothing_is_foretold_where_nothing_was_measured(stores, create):
    first, second = await create(shards=1), await create(shards=1)
    urgent = await create(shards=1, is_interactive=True)
    assert await foretold(stores, first) == Forecast(position=1)
    assert await foretold(stores, second) == Forecast(position=2)
    assert await foretold(stores, urgent) == Forecast(position=1)


async def test_forecast_is_what_happens(stores, create, dispatcher):
    shard = {"blocks": 2, "block_s": 0.05, "makes_item": False}
    await queue.wait(stores.db, await create(shards=40, **shard), 30)
    await asyncio.sleep(2.1)  # a heartbeat tells what was learnt
    start = utc_now()
    mine, beside = await create(shards=60, **shard), await create(shards=40, principal=BOB, **shard)
    behind = await create(shards=20, **shard)
    told = {job_id: await foretold(stores, job_id) for job_id in (mine, beside, behind)}
    for job_id, each in told.items():
        took = ((await queue.wait(stores.db, job_id, 60)).finished_at - start).total_seconds()
        assert (each.expected_at - start).total_seconds() == pytest.approx(took, rel=0.35)
    assert told[behind].expected_at > told[mine].expected_at
    assert await foretold(stores, mine) == Forecast()


async def test_nothing_is_foretold_of_a_paused_organisation(stores, create, dispatcher):
    await queue.wait(stores.db, await create(shards=4), 30)
    await asyncio.sleep(2.1)
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
