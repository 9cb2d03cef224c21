"""Whoever follows a job gets every event once, in order, wherever they begin, until the job has ended."""

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import TimeoutError as NoConnection

from eorouter.errors import NotFound, TooManyWaits
from eorouter.jobs import feed, queue
from eorouter.jobs.feed import Feed, feed_of
from eorouter.storage.tables import job_events, job_shards, jobs
from eorouter.types import Principal, utc_now

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")


async def collect(stores, job_id, after=0):
    return [row async for rows in feed_of(stores.db).follow(job_id, after) for row in rows]


async def written(stores, job_id):
    async with stores.db.read() as tx:
        query = sa.select(job_events.c.id, job_events.c.type).where(job_events.c.job_id == job_id)
        return [(row.id, row.type) for row in await tx.execute(query.order_by(job_events.c.id))]


async def forget(stores, job_id):
    async with stores.db.write() as tx:
        for table in (job_events, job_shards):
            await tx.execute(sa.delete(table).where(table.c.job_id == job_id))
        await tx.execute(sa.delete(jobs).where(jobs.c.id == job_id))


async def test_a_hundred_followers_see_a_job_from_its_start_to_its_end(stores, create, dispatcher):
    job_id = await create(shards=4, dispatches=False)
    following = [asyncio.create_task(collect(stores, job_id)) for _ in range(100)]
    await asyncio.sleep(0.3)
    async with stores.db.write() as tx:
        await queue.dispatch(tx, job_id, ALICE, utc_now())
    async with asyncio.timeout(120):
        seen = await asyncio.gather(*following)
    every = await written(stores, job_id)
    assert every[-1][1] == "job.completed"
    assert all([(row.id, row.type) for row in each] == every for each in seen)


async def test_who_comes_back_goes_on_behind_the_last_event_they_had(stores, create, dispatcher):
    job_id = await create(shards=2)
    await queue.wait(stores.db, job_id, 120)
    every = await written(stores, job_id)
    rest = await collect(stores, job_id, after=every[1][0])
    assert [(row.id, row.type) for row in rest] == every[2:]
    assert await collect(stores, job_id, after=every[-1][0]) == []


async def test_quiet_times_are_bridged_and_a_deleted_job_ends_the_stream(stores, create, monkeypatch):
    monkeypatch.setattr(feed, "KEEPALIVE_S", 0.05)
    job_id = await create(shards=1, dispatches=False)
    heard = []
    async with asyncio.timeout(120):
        async for rows in Feed(stores.db).follow(job_id, 0):
            heard.append(len(rows))
            if len(heard) == 4:
                await forget(stores, job_id)
    assert heard == [1, 0, 0, 0]


async def test_a_look_that_gets_no_connection_is_repeated(stores, create, monkeypatch):
    job_id = await create(shards=1)
    followed, look, failed = Feed(stores.db), Feed._look_once, []

    async def starved(self):
        if len(failed) < 2:
            failed.append(job_id)
            raise NoConnection("QueuePool limit of size 10 overflow 10 reached")
        await look(self)

    monkeypatch.setattr(Feed, "_look_once", starved)
    waiting = asyncio.create_task(followed.end(job_id, 60))
    async with asyncio.timeout(120):
        while len(failed) < 2:  # noqa: ASYNC110 - the looker tells nobody
            await asyncio.sleep(0.01)
        async with stores.db.write() as tx:
            await queue.cancel(tx, job_id, ALICE, utc_now())
        await waiting


async def test_waiting_for_a_job_that_is_deleted_says_that_there_is_none(stores, create):
    job_id = await create(shards=1, dispatches=False)
    waiting = asyncio.create_task(queue.wait(stores.db, job_id, 60))
    await asyncio.sleep(0.1)
    await forget(stores, job_id)
    async with asyncio.timeout(120):
        with pytest.raises(NotFound, match=job_id):
            await waiting


async def test_many_who_wait_cost_one_look_when_something_happens(stores, create):
    job_id = await create(shards=1)
    made = Feed(stores.db)
    waiting = [asyncio.create_task(made.end(job_id, 60)) for _ in range(50)]
    await asyncio.sleep(0.5)
    before = stores.db.statements
    later = [asyncio.create_task(made.end(job_id, 60)) for _ in range(50)]
    await asyncio.sleep(0.5)
    looks = stores.db.statements - before
    assert looks < 50  # each look is two statements, and now and then there is one besides
    async with stores.db.write() as tx:
        await queue.cancel(tx, job_id, ALICE, utc_now())
    async with asyncio.timeout(20):
        await asyncio.gather(*waiting, *later)
    await made.close()


async def test_places_to_wait_at_are_counted_by_caller_and_given_back(stores, create):
    job_id = await create(shards=1)
    made = feed_of(stores.db)
    with made.place("usr_alice", 2), made.place("usr_alice", 2):
        with pytest.raises(TooManyWaits) as refused, made.place("usr_alice", 2):
            pass
        assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "2"})
        with made.place("usr_bob", 2):
            assert (await queue.wait(stores.db, job_id, 60, place=made.place("usr_alice", 2))).state == "queued"
    assert made._places == {}


async def test_nothing_is_watched_for_who_waits_for_a_job_that_has_ended(stores, create, monkeypatch):
    job_id = await create(shards=1)
    async with stores.db.write() as tx:
        await queue.cancel(tx, job_id, ALICE, utc_now())
    watched = []

    async def watch(url, wake):
        watched.append(url)

    monkeypatch.setattr(feed, "watch", watch)
    async with asyncio.timeout(120):
        await Feed(stores.db).end(job_id, 60)
    await asyncio.sleep(0.05)
    assert watched == []


async def test_nobody_is_kept_when_the_process_stops(stores, create):
    job_id = await create(shards=1)
    made = Feed(stores.db)

    async def heard():
        return [row.type async for rows in made.follow(job_id, 0) for row in rows]

    waiting, following = asyncio.create_task(made.end(job_id, 60)), asyncio.create_task(heard())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert not following.done()
    made.let_go()
    async with asyncio.timeout(120):
        await waiting
        await made.end(job_id, 60)
        assert await following == await heard() == ["job.created", "job.queued"]
