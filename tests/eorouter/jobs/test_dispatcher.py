"""Jobs from the queue to their end, on both engines, with workers that are threads."""

import asyncio
import hashlib
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import TimeoutError as NoConnection
from structlog.testing import capture_logs

from eorouter.errors import Conflict, NotFound
from eorouter.jobs import queue
from eorouter.storage import allotments
from eorouter.storage.tables import items, job_events, job_shards, jobs, organisations, outbox, processes
from eorouter.types import Principal, utc_now
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.method import Retries
from eorouter_compute.orders import MERGE

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")
BOB = Principal(kind="user", id="usr_bob", org_id="org_b", scopes=frozenset(), user_id="usr_bob")


async def events_of(stores, job_id):
    async with stores.db.read() as tx:
        query = sa.select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.id)
        return [(row.type, row.data) for row in await tx.execute(query)]


async def until(condition, timeout_s=120):
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens in the database
            await asyncio.sleep(0.02)


async def test_job_of_many_shards_completes_with_item_checksum_and_events(stores, create, dispatcher):
    job_id = await create(shards=5)
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem) == ("completed", None)
    expected = b"".join(bytes([number]) * 1000 for number in range(5))
    assert row.result["summary"] == {"sum": 10, "numbers": 5}
    assert row.result["checksums"] == {"sums/sums": hashlib.sha256(expected).hexdigest()}
    assert (row.shards_done, row.pixels_done, row.bound["pixels"]) == (5, 5010, 5010)
    async with stores.db.read() as tx:
        item = (await tx.execute(sa.select(items))).one()
        used = (await tx.execute(sa.select(organisations.c.used_bytes).where(organisations.c.id == "org_a"))).scalar()
    assert (item.id, item.job_id, item.org_id, item.size_bytes) == (row.result["items"]["sums"], job_id, "org_a", 5000)
    assert await stores.objects.read(item.document["assets"]["sums"]["href"]) == expected
    assert used == 5000
    types = [kind for kind, _ in await events_of(stores, job_id)]
    assert types[:3] == ["job.created", "job.queued", "job.started"]
    assert types[-2:] == ["job.publishing", "job.completed"]
    done = [n for kind, data in await events_of(stores, job_id) if kind == "shard.completed" for n in data["shards"]]
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_job_of_several_rounds_hands_each_what_the_one_before_left(stores, create, dispatcher):
    job_id = await create(shards=3, rounds=3)
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem) == ("completed", None)
    assert row.result["summary"] == {"sum": 2 + 3 + 4, "numbers": 3}
    assert (row.shards_total, row.shards_done, row.pixels_done) == (9, 9, 9010)
    assert [data["round"] for kind, data in await events_of(stores, job_id) if kind == "round.started"] == [1, 2]


async def test_what_is_logged_of_a_job_names_the_request_that_created_it(stores, create, dispatcher, monkeypatch):
    tries = []
    copy = stores.objects.copy

    async def fail_once(source, target):
        tries.append(source)
        if len(tries) == 1:
            raise OSError("the store hiccups")
        await copy(source, target)

    monkeypatch.setattr(stores.objects, "copy", fail_once)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await queue.wait(stores.db, await create(shards=1), 120)
    named = {line["event"]: line.get("request_id") for line in lines if line.get("job")}
    assert named == {"dispatcher.publish.failed": "req_test", "jobs.job.completed": "req_test"}


async def test_job_after_its_end_leaves_no_attempt_objects(stores, create, dispatcher):
    job_id = await create(shards=2)
    await queue.wait(stores.db, job_id, 120)

    async def is_swept():
        return not [key async for key, _ in stores.objects.list("org_a/prj_a/jobs")]

    async def is_handled():
        async with stores.db.read() as tx:
            due = outbox.c.handled_at.is_(None), outbox.c.created_at <= utc_now()
            return not (await tx.execute(sa.select(outbox.c.id).where(*due))).all()

    await until(is_swept)
    await until(is_handled)


async def test_job_without_shards_completes_through_its_merge(stores, create, dispatcher):
    row = await queue.wait(stores.db, await create(shards=0, makes_item=False), 120)
    assert (row.state, row.result["summary"]) == ("completed", {"sum": 0, "numbers": 0})


async def test_create_refused_by_its_plan_writes_nothing(stores, create):
    with pytest.raises(InvalidParameter, match="4999") as refused:
        await create(shards=4999)
    assert refused.value.pointer == "/shards"
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(jobs))).scalar() == 0


@pytest.mark.parametrize(("ill", "code"), [("request", "invalid_parameter"), ("source", "source_truncated")])
async def test_shard_that_nobody_can_mend_fails_its_job_by_name_at_once(stores, create, dispatcher, ill, code):
    job_id = await create(shards=3, ills={"1": ill})
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem["code"], row.problem["shard"]) == ("failed", code, 1)
    assert ill == "source" or row.problem["pointer"] == "/ills"
    async with stores.db.read() as tx:
        query = sa.select(job_shards.c.state, job_shards.c.attempt).where(job_shards.c.job_id == job_id)
        shards = (await tx.execute(query.order_by(job_shards.c.number))).all()
    assert shards[2] == ("failed", 1)
    assert all(shard.state in {"done", "failed"} for shard in shards)


@pytest.mark.parametrize(("ill", "code"), [("fault", "compute_error"), ("defect", "internal_fault")])
@pytest.mark.usefixtures("dispatcher")
async def test_shard_that_always_breaks_fails_its_job_after_four_tries(stores, create, ill, code):
    job_id = await create(shards=2, ills={"0": ill})
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem["code"], row.problem["shard"]) == ("failed", code, 0)
    retried = [data for kind, data in await events_of(stores, job_id) if kind == "shard.retried"]
    assert [data["attempt"] for data in retried] == [1, 2, 3]
    assert "Traceback" not in str(row.problem)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.usefixtures("dispatcher")
async def test_what_a_lost_machine_took_along_is_made_anew(stores, create, rounds):
    job_id = await create(shards=3, rounds=rounds, ills={"1": "forgets_once", "2": "forgets_once"})
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem) == ("completed", None)
    assert row.result["summary"] == {"sum": 3 * rounds, "numbers": 3}
    expected = b"".join(bytes([number + rounds - 1]) * 1000 for number in range(3))
    assert row.result["checksums"] == {"sums/sums": hashlib.sha256(expected).hexdigest()}
    assert (row.shards_done, row.pixels_done) == (3 * rounds, 3000 * rounds + 10)
    retried = [data for kind, data in await events_of(stores, job_id) if kind == "shard.retried"]
    assert {(data["shard"], data["code"]) for data in retried} == {(MERGE - n, "parts_lost") for n in range(rounds)}
    async with stores.db.read() as tx:
        query = sa.select(job_shards.c.number, job_shards.c.attempt).where(job_shards.c.number >= 0)
        tries = {row.number: row.attempt for row in await tx.execute(query.where(job_shards.c.job_id == job_id))}
    # Of two rounds the first had the numbers 0, 1, 2 and the second 1, 2, 3; a shard of its first try forgot them.
    assert tries == ({0: 1, 1: 2, 2: 2} if rounds == 1 else {0: 1, 1: 2, 2: 2, 3: 2, 4: 2, 5: 1})


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.usefixtures("dispatcher")
async def test_what_is_lost_again_and_again_fails_the_job_by_name(stores, create, shards):
    job_id = await create(shards=shards, ills={"0": "forgets"})
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem["code"]) == ("failed", "parts_lost")
    assert f"1 of {shards} shards" in row.problem["message"]


async def test_cancel_queued_job_ends_at_once(stores, create):
    job_id = await create(shards=3)
    async with stores.db.write() as tx:
        await queue.cancel(tx, job_id, ALICE, utc_now())
    row = await queue.wait(stores.db, job_id, 0)
    assert row.state == "cancelled"
    async with stores.db.write() as tx:
        with pytest.raises(Conflict, match="cancelled"):
            await queue.cancel(tx, job_id, ALICE, utc_now())


async def test_cancel_running_job_stops_its_shards_between_blocks(stores, create, dispatcher, cluster):
    job_id = await create(shards=6, blocks=1000, block_s=0.1)

    async def is_running():
        return len(cluster.begun) >= 2

    await until(is_running)
    async with stores.db.write() as tx:
        await queue.cancel(tx, job_id, ALICE, utc_now())
    row = await queue.wait(stores.db, job_id, 60)  # one shard alone would take a hundred seconds
    assert (row.state, row.problem, row.shards_done) == ("cancelled", None, 0)
    assert (await events_of(stores, job_id))[-1][0] == "job.cancelled"


async def test_job_reports_progress_within_a_shard(stores, create, dispatcher):
    job_id = await create(shards=1, blocks=20, block_s=0.1)
    row = await queue.wait(stores.db, job_id, 120)
    seen = [data["pixels_done"] for kind, data in await events_of(stores, job_id) if kind == "job.progressed"]
    assert seen
    assert seen == sorted(seen)
    assert all(0 < pixels <= 1000 for pixels in seen)
    assert (row.state, row.pixels_done) == ("completed", 1010)


async def test_flood_of_one_organisation_does_not_delay_anothers_job(stores, create, dispatcher, cluster):
    await create(shards=200, blocks=1, block_s=0.1, principal=ALICE)

    async def is_under_way():
        return len(cluster.begun) >= 4

    await until(is_under_way)
    job_id = await create(shards=1, principal=BOB, makes_item=False)
    await queue.wait(stores.db, job_id, 120)
    places = [place for place, order in enumerate(cluster.begun) if order.job_id == job_id]
    assert places
    assert places[0] <= 4 + 2 * 4


async def test_large_parameters_travel_once(stores, create, dispatcher, cluster):
    job_id = await create(shards=3, padding="x" * 300_000)
    row = await queue.wait(stores.db, job_id, 120)
    assert row.state == "completed"
    assert {len(order.task) for order in cluster.begun} == {0}
    assert len({order.shared for order in cluster.begun}) == 1


async def test_dispatch_starts_a_created_job_once(stores, create, dispatcher):
    job_id = await create(shards=1, dispatches=False)
    assert (await queue.wait(stores.db, job_id, 0.3)).state == "created"
    async with stores.db.write() as tx:
        with pytest.raises(NotFound):
            await queue.dispatch(tx, job_id, BOB, utc_now())
        await queue.dispatch(tx, job_id, ALICE, utc_now())
    assert (await queue.wait(stores.db, job_id, 120)).state == "completed"
    async with stores.db.write() as tx:
        with pytest.raises(Conflict, match="completed"):
            await queue.dispatch(tx, job_id, ALICE, utc_now())


async def test_stop_gives_leases_back_and_another_dispatcher_finishes(stores, settings, create, cluster):
    from eorouter.jobs.dispatcher import Dispatcher

    job_id = await create(shards=3, blocks=40, block_s=0.02)
    first = Dispatcher(settings, stores, cluster=cluster)
    running = asyncio.create_task(first.run())

    async def is_running():
        return len(cluster.begun) >= 2

    await until(is_running)
    async with stores.db.read() as tx:
        (beat,) = (await tx.execute(sa.select(processes))).all()
    assert (beat.id, beat.role, beat.detail["workers"]) == (first.id, "dispatcher", 2)
    first.stop()
    await running
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(processes))).all() == []
        query = sa.select(job_shards.c.state, job_shards.c.attempt).where(job_shards.c.number >= 0)
        assert set((await tx.execute(query)).all()) == {("ready", 0)}
    cluster.is_healthy = True
    second = Dispatcher(settings, stores, cluster=cluster)
    running = asyncio.create_task(second.run())
    row = await queue.wait(stores.db, job_id, 120)
    second.stop()
    await running
    assert (row.state, row.result["summary"]["sum"]) == ("completed", 3)


async def test_order_that_dask_ran_twice_is_tried_under_a_new_token_and_costs_no_try(
    stores, create, cluster, dispatcher
):
    cluster.repeats = 5  # more than a shard has tries
    job_id = await create(shards=1)
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.result["summary"]["sum"]) == ("completed", 0)
    async with stores.db.read() as tx:
        query = sa.select(job_shards.c.attempt, job_shards.c.token).where(job_shards.c.job_id == job_id)
        shard, merge = (await tx.execute(query.order_by(job_shards.c.number.desc()))).all()
    assert (shard, merge) == ((1, 6), (1, 6))  # the only shard merges where it ran
    assert [each.token for each in cluster.begun] == [1, 2, 3, 4, 5, 6]


async def test_order_whose_worker_always_dies_after_it_fails_its_job_in_the_end(
    stores, create, cluster, dispatcher, monkeypatch
):
    monkeypatch.setattr("eorouter.jobs.leases._FREE_TRIES", 1)
    cluster.repeats = 1_000_000
    job_id = await create(shards=1)
    row = await queue.wait(stores.db, job_id, 60)
    assert (row.state, row.problem["code"], row.problem["shard"]) == ("failed", "worker_lost", 0)
    assert len(cluster.begun) == 1 + 4


async def test_job_past_its_time_limit_fails_by_name(stores, create, dispatcher):
    job_id = await create(shards=4, blocks=1000, block_s=0.1, time_limit_s=1)
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem["code"]) == ("failed", "job_time_limit")
    assert "1 s; 0 of 4 shards" in row.problem["message"]


async def test_stop_lets_the_workers_go_though_the_database_is_away(stores, settings, create, cluster, monkeypatch):
    from eorouter.jobs.dispatcher import Dispatcher

    job_id = await create(shards=1, blocks=40, block_s=0.02)
    made = Dispatcher(settings, stores, cluster=cluster)
    running = asyncio.create_task(made.run())

    async def is_running():
        return bool(cluster.begun)

    await until(is_running)

    async def gone(*_args, **_kwargs):
        raise NoConnection("QueuePool limit of size 10 overflow 10 reached")

    monkeypatch.setattr("eorouter.jobs.leases.record", gone)
    made.stop()
    with pytest.raises(NoConnection):
        await running
    assert not cluster.is_healthy
    assert (await queue.wait(stores.db, job_id, 0)).state == "running"


async def test_a_turn_that_gets_no_connection_is_repeated(stores, create, dispatcher, monkeypatch):
    from eorouter.jobs import claims

    claim, failed = claims.claim, []

    async def starved(*args, **kwargs):
        if len(failed) < 2:
            failed.append(args)
            raise NoConnection("QueuePool limit of size 10 overflow 10 reached")
        return await claim(*args, **kwargs)

    monkeypatch.setattr("eorouter.jobs.claims.claim", starved)
    assert (await queue.wait(stores.db, await create(shards=2), 120)).state == "completed"
    assert len(failed) == 2


async def test_try_that_takes_too_long_is_stopped_and_counts(stores, create, dispatcher, monkeypatch):
    retries = Retries(attempts=2, backoff_s=0.01, attempt_s=0.6)
    monkeypatch.setattr("eorouter.jobs.leases.retries_of", lambda _: retries)
    job_id = await create(shards=1, blocks=1000, block_s=0.1)
    row = await queue.wait(stores.db, job_id, 120)
    assert (row.state, row.problem["code"], row.problem["shard"]) == ("failed", "shard_time_limit", 0)
    assert [data["code"] for kind, data in await events_of(stores, job_id) if kind == "shard.retried"] == [
        "shard_time_limit"
    ]


async def test_pause_lets_running_shards_finish_and_begins_no_other(stores, create, dispatcher, cluster):
    job_id = await create(shards=30, blocks=5, block_s=0.03)

    async def is_running():
        return len(cluster.begun) >= 3

    await until(is_running)
    async with stores.db.write() as tx:
        await allotments.pause(tx, "org_a", at=utc_now())

    async def counted():
        query = sa.select(job_shards.c.state, sa.func.count()).group_by(job_shards.c.state)
        async with stores.db.read() as tx:
            return dict((await tx.execute(query)).all())

    async def is_quiet():
        return "leased" not in await counted()

    await until(is_quiet)
    begun = len(cluster.begun)
    await asyncio.sleep(1.0)  # long enough for ten turns of the dispatcher: none of them begins anything
    counts = await counted()
    assert (len(cluster.begun), "leased" in counts) == (begun, False)
    assert (counts["ready"] > 0, counts["done"] > 0) == (True, True)
    assert counts["done"] == len(cluster.begun)
    async with stores.db.write() as tx:
        await allotments.pause(tx, "org_a", at=None)
    assert (await queue.wait(stores.db, job_id, 120)).state == "completed"


def test_toy_method_is_found_by_its_entry_point():
    from eorouter_compute import method

    assert Path(method.get("toy").run.__code__.co_filename).name == "toy_method.py"
