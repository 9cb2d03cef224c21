"""What a dispatcher did is counted by minute with its heartbeat, for the operator's page."""

import asyncio

import msgspec
import pytest

from eorouter.jobs import census, claims, queue
from eorouter.jobs.fairness import FairShare
from eorouter.jobs.leases import Landed
from eorouter.jobs.meters import Meters
from eorouter.storage import dispatchers
from eorouter.types import utc_now
from eorouter_compute.build import build
from eorouter_compute.method import Part
from eorouter_compute.orders import Outcome


@pytest.mark.usefixtures("dispatcher")
async def test_shards_tries_that_failed_and_pixels_are_counted_and_the_build_is_told(stores, create):
    done = await create(shards=3)
    failing = await create(shards=2, ills={"0": "request"})
    for job_id in (done, failing):
        await queue.wait(stores.db, job_id, 60)
    async with asyncio.timeout(60):
        while True:
            async with stores.db.read() as tx:
                minutes = await census.last_hour(tx, utc_now())
            shards, failures = sum(each.shards for each in minutes), sum(each.failures for each in minutes)
            if shards >= 4 and failures >= 1:  # three and their merge
                break
            await asyncio.sleep(0.1)
    assert sum(each.pixels for each in minutes) in {
        3000,
        4000,
    }  # the neighbour of the one that failed may be told to stop
    async with stores.db.read() as tx:
        (row,) = await dispatchers.known(tx)
        assert [each.last_id for each in await census.failures(tx, utc_now())] == [failing]
    assert row.detail["build"] == build()


async def test_pixels_are_those_that_were_computed_however_many_the_plan_allowed_for(stores, settings, create, cluster):
    await create(shards=1)
    async with stores.db.write() as tx:
        waiting = await claims.open_jobs(tx)
        taken = await claims.claim(tx, waiting, share=FairShare(), room=1, owner="dsp_1", now=utc_now())
    counted = Meters(settings, stores.db)
    try:
        outcome = Outcome(part=msgspec.msgpack.encode(Part()), pixels=7)
        counted.turned(0.1, taken.claims, [Landed(claim=each, outcome=outcome) for each in taken.claims])
        await counted.beat("dsp_1", cluster, in_flight=0, started_at=utc_now(), costs={})
    finally:
        counted.close()
    async with stores.db.read() as tx:
        minutes = await census.last_hour(tx, utc_now())
    assert [(each.shards, each.pixels) for each in minutes if each.shards] == [(1, 7)]
