"""What a dispatcher did is counted by minute with its heartbeat, for the operator's page."""

import asyncio

import pytest

from eorouter.jobs import census, queue
from eorouter.storage import dispatchers
from eorouter.types import utc_now
from eorouter_compute.build import build


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
    assert sum(each.pixels for each in minutes) > 0
    async with stores.db.read() as tx:
        (row,) = await dispatchers.known(tx)
        assert [each.last_id for each in await census.failures(tx, utc_now())] == [failing]
    assert row.detail["build"] == build()
