"""What a dispatcher may write, and what a ghost may not."""

import asyncio
import re
from datetime import timedelta
from functools import cache

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.commerce import ledger
from eorouter.jobs import charges, claims, leases, publish, queue, resume
from eorouter.jobs.fairness import FairShare
from eorouter.jobs.leases import Landed
from eorouter.jobs.states import JobState
from eorouter.operation import SpendAuthority
from eorouter.storage.database import spelled
from eorouter.storage.tables import items, job_events, job_shards, jobs, organisations, outbox
from eorouter.types import Principal, new_id, utc_now
from eorouter_compute import method
from eorouter_compute.method import Bound, Part, Result, Shard
from eorouter_compute.orders import MERGE, Failure, Outcome

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")
DONE = Outcome(part=msgspec.msgpack.encode(Part()), seconds=0.1)
LOST = Outcome(failure=Failure(kind="machine", code="worker_lost", message="gone"))


async def claim(stores, *, room=100.0, owner="dsp_1", now=None):
    async with stores.db.write() as tx:
        waiting = await claims.open_jobs(tx)
        taken = await claims.claim(tx, waiting, share=FairShare(), room=room, owner=owner, now=now or utc_now())
    return taken.claims, taken.dry


async def record(stores, *landed, now=None):
    async with stores.db.write() as tx:
        return await leases.record(tx, landed, now=now or utc_now())


async def shard(stores, job_id, number):
    async with stores.db.read() as tx:
        query = sa.select(job_shards).where(job_shards.c.job_id == job_id, job_shards.c.number == number)
        return (await tx.execute(query)).one()


async def job(stores, job_id):
    return await queue.wait(stores.db, job_id, 0)


async def test_claim_leases_each_shard_once_and_raises_its_token(stores, create):
    job_id = await create(shards=3)
    first, dry = await claim(stores, room=2)
    second, dry_then = await claim(stores, room=2)
    assert [each.number for each in first] == [0, 1]
    assert [each.number for each in second] == [2]
    assert (dry, dry_then) == (set(), {job_id})
    assert {each.token for each in first + second} == {1}
    assert (await job(stores, job_id)).state == "running"


async def test_claim_fills_the_room_by_load(stores, create):
    await create(shards=40)
    async with stores.db.write() as tx:
        waiting = [msgspec.structs.replace(each, load=1 / 16) for each in await claims.open_jobs(tx)]
        taken = await claims.claim(tx, waiting, share=FairShare(), room=2, owner="dsp_1", now=utc_now())
    assert len(taken.claims) == 32


async def test_claim_looks_back_for_a_retried_shard_when_none_is_left_ahead(stores, create):
    job_id = await create(shards=3)
    first, _ = await claim(stores)
    await record(stores, Landed(claim=first[0], outcome=LOST))
    later = utc_now() + timedelta(seconds=5)
    async with stores.db.write() as tx:
        waiting = [msgspec.structs.replace(each, start=3) for each in await claims.open_jobs(tx)]
        again = await claims.claim(tx, waiting, share=FairShare(), room=9, owner="dsp_1", now=later)
    assert [(each.job_id, each.number, each.token, each.attempt) for each in again.claims] == [(job_id, 0, 2, 2)]


async def test_record_of_a_stale_token_changes_nothing_and_deletes_its_objects(stores, create):
    job_id = await create(shards=1)
    (ghost,), _ = await claim(stores)
    async with stores.db.write() as tx:
        assert await leases.reap(tx, now=utc_now() + timedelta(seconds=claims.LEASE_S + 1)) == 1
    (current,), _ = await claim(stores, owner="dsp_2", now=utc_now() + timedelta(minutes=2))
    assert (ghost.token, current.token) == (1, 2)
    await record(stores, Landed(claim=ghost, outcome=DONE))
    row = await shard(stores, job_id, 0)
    assert (row.state, row.token, row.owner, row.part) == ("leased", 2, "dsp_2", None)
    assert (await job(stores, job_id)).shards_done == 0
    async with stores.db.read() as tx:
        (payload,) = (await tx.execute(sa.select(outbox.c.payload))).scalars()
    assert payload["prefixes"] == [f"org_a/prj_a/jobs/{job_id}/attempts/{number}/1/" for number in (0, MERGE)]
    await record(stores, Landed(claim=current, outcome=DONE))
    assert (await shard(stores, job_id, 0)).state == "done"


async def test_record_of_a_stale_failure_does_not_take_the_lease_away(stores, create):
    job_id = await create(shards=1)
    (ghost,), _ = await claim(stores)
    async with stores.db.write() as tx:
        await leases.reap(tx, now=utc_now(), dead_owners={"dsp_1"})
    await claim(stores, owner="dsp_2", now=utc_now() + timedelta(minutes=2))
    await record(stores, Landed(claim=ghost, outcome=LOST))
    row = await shard(stores, job_id, 0)
    assert (row.state, row.token, row.attempt) == ("leased", 2, 2)


async def test_reap_leaves_leases_of_the_living_alone(stores, create):
    await create(shards=2)
    await claim(stores)
    async with stores.db.write() as tx:
        assert await leases.reap(tx, now=utc_now(), dead_owners={"dsp_other"}) == 0


async def until_somebody_waits(tx):
    """Until another transaction waits for a lock; on SQLite, which has one writer, that waits before it begins."""
    waits = sa.text("SELECT 1 FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(120):
        while tx.dialect.name == "postgresql":
            if (await tx.execute(waits)).first() is not None:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda tx, run: leases.renew(tx, [(each, 0, 400) for each in run], now=utc_now()), id="renew"),
        pytest.param(lambda tx, run: leases.release(tx, [(each, 400) for each in run], now=utc_now()), id="release"),
    ],
)
async def test_who_has_leases_and_who_fails_their_job_do_not_wait_for_each_other(stores, create, step):
    job_id = await create(shards=2)
    run, _ = await claim(stores)

    async def late():
        async with stores.db.write() as tx:
            return await step(tx, run)

    async with stores.db.write() as tx:
        row = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update())).one()
        waiting = asyncio.create_task(late())
        await until_somebody_waits(tx)
        await leases.fail_job(tx, row, JobState.RUNNING, {"code": "job_time_limit", "message": "late"}, utc_now())
    assert await waiting in ({each.run for each in run}, None)
    row = await job(stores, job_id)
    assert (row.state, row.pixels_done) == ("failed", 0)
    assert {(await shard(stores, job_id, number)).state for number in (0, 1)} == {"failed"}


UNWANTED = Outcome(failure=Failure(kind="request", code="invalid_parameter", message="no"))


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda tx, ends: leases.record(tx, ends, now=utc_now()), id="record"),
        pytest.param(lambda tx, _: leases.reap(tx, now=utc_now(), dead_owners={"dsp_1"}), id="reap"),
    ],
)
async def test_who_ends_several_jobs_and_who_ends_one_of_them_do_not_wait_for_each_other(stores, create, step):
    """They meet at the jobs, before the account of the organisation."""
    first, second = sorted([await create(shards=1), await create(shards=1)])
    async with stores.db.write() as tx:
        for job_id in (first, second):
            paying = SpendAuthority(principal=ALICE, idempotency_key=new_id("key"))
            await charges.reserve(tx, stores.db, paying, job_id, welcome=10_000, now=utc_now())
    run, _ = await claim(stores)
    last_try = {"attempt": 99}
    async with stores.db.write() as tx:
        await tx.execute(sa.update(job_shards).where(job_shards.c.state == "leased").values(last_try))

    async def late():
        async with stores.db.write() as tx:
            await step(tx, [Landed(claim=each, outcome=UNWANTED) for each in run])

    async with stores.db.write() as tx:
        row = (await tx.execute(sa.select(jobs).where(jobs.c.id == second).with_for_update())).one()
        waiting = asyncio.create_task(late())
        await until_somebody_waits(tx)
        await leases.fail_job(tx, row, JobState.RUNNING, {"code": "job_time_limit", "message": "late"}, utc_now())
    await waiting
    rows = [await job(stores, job_id) for job_id in (first, second)]
    assert [row.state for row in rows] == ["failed"] * 2
    assert [row.problem["code"] == "job_time_limit" for row in rows] == [False, True]
    async with stores.db.read() as tx:
        assert await ledger.verify(tx, ended=await charges.forgotten(tx)) == []


async def test_renew_tells_which_leases_are_lost_and_counts_pixels_once(stores, create):
    job_id = await create(shards=2)
    (kept, lost), _ = await claim(stores)
    async with stores.db.write() as tx:
        await tx.execute(sa.update(job_shards).where(job_shards.c.number == lost.number).values(token=9))
    async with stores.db.write() as tx:
        assert await leases.renew(tx, [(kept, 0, 400), (lost, 0, 300)], now=utc_now()) == {lost.run}
    assert (await job(stores, job_id)).pixels_done == 400
    await record(stores, Landed(claim=kept, outcome=DONE, pixels=400))
    assert (await job(stores, job_id)).pixels_done == 1000


async def test_job_that_was_planned_blindly_tells_what_was_done_and_not_what_was_allowed(stores, create, monkeypatch):
    known = method.methods()
    blind = known | {"toy": msgspec.structs.replace(known["toy"], is_blind=True)}
    monkeypatch.setattr(method, "methods", cache(lambda: blind))
    job_id = await merged(stores, create, await written_result(stores), shard=msgspec.structs.replace(DONE, pixels=7))
    await publish.publish(stores, job_id, now=utc_now())
    row = await job(stores, job_id)
    assert (row.state, row.pixels_done, row.bound["pixels"]) == ("completed", 7, 1010)
    async with stores.db.read() as tx:
        told = (await tx.execute(sa.select(job_events.c.data).where(job_events.c.job_id == job_id))).scalars()
        assert {data["pixels_done"] for data in told if "pixels_done" in data} == {7}


async def test_failed_try_gives_its_pixels_back(stores, create):
    job_id = await create(shards=1)
    (each,), _ = await claim(stores)
    async with stores.db.write() as tx:
        await leases.renew(tx, [(each, 0, 700)], now=utc_now())
    async with stores.db.write() as tx:  # the dispatcher died: what it had counted is known from the row
        await leases.reap(tx, now=utc_now(), dead_owners={"dsp_1"})
    assert (await job(stores, job_id)).pixels_done == 0


@pytest.mark.parametrize(("kind", "tries"), [("machine", 4), ("memory", 3), ("defect", 4), ("request", 1)])
async def test_poisonous_shard_fails_its_job_after_so_many_tries(stores, create, kind, tries):
    job_id = await create(shards=1)
    outcome = Outcome(failure=Failure(kind=kind, code=f"{kind}_code", message="ill"))
    for attempt in range(1, tries + 1):
        assert (await job(stores, job_id)).state in {"queued", "running"}
        (each,), _ = await claim(stores, now=utc_now() + timedelta(hours=attempt))
        await record(stores, Landed(claim=each, outcome=outcome))
    row = await job(stores, job_id)
    assert (row.state, row.problem) == ("failed", {"code": f"{kind}_code", "message": "ill", "shard": 0})


async def test_shard_out_of_memory_is_tried_again_in_smaller_pieces(stores, create):
    await create(shards=1)
    spent = Outcome(failure=Failure(kind="memory", code="job_out_of_memory", message="too much"))
    seen = []
    for hour, outcome in enumerate([spent, msgspec.structs.replace(spent, is_bystander=True), LOST, spent]):
        (each,), _ = await claim(stores, now=utc_now() + timedelta(hours=hour + 1))
        seen.append(each.halvings)
        await record(stores, Landed(claim=each, outcome=outcome))
    assert seen == [0, 1, 1, 1]


async def test_backoff_is_doubled_and_never_twice_the_same():
    pauses = {leases.backoff(3).total_seconds() for _ in range(20)}
    assert len(pauses) > 10
    assert all(1.5 <= pause <= 2.5 for pause in pauses)
    assert leases.backoff(50).total_seconds() <= 1.25 * 30


async def test_bystander_of_a_killed_worker_keeps_its_tries(stores, create):
    job_id = await create(shards=1)
    for hour in range(1, 8):
        (each,), _ = await claim(stores, now=utc_now() + timedelta(hours=hour))
        await record(stores, Landed(claim=each, outcome=msgspec.structs.replace(LOST, is_bystander=True)))
    assert (await job(stores, job_id)).state == "running"
    assert (await shard(stores, job_id, 0)).attempt == 0


async def test_bystander_for_ever_is_one_no_more(stores, create):
    job_id = await create(shards=1)
    claimed = 0
    while (await job(stores, job_id)).state in {"queued", "running"}:
        claimed += 1
        (each,), _ = await claim(stores, now=utc_now() + timedelta(hours=claimed))
        await record(stores, Landed(claim=each, outcome=msgspec.structs.replace(LOST, is_bystander=True)))
    assert claimed == leases._FREE_TRIES + 4
    row = await job(stores, job_id)
    assert (row.state, row.problem["code"], row.problem["shard"]) == ("failed", "worker_lost", 0)
    assert "Of 20 tries" in row.problem["message"]


async def given_back(stores, each):
    async with stores.db.write() as tx:
        await leases.release(tx, [(each, 0)], now=utc_now())


async def test_restarts_in_order_are_not_held_against_a_shard(stores, create):
    job_id = await create(shards=1)
    for hour in range(1, 2 * leases._FREE_TRIES):
        (each,), _ = await claim(stores, now=utc_now() + timedelta(hours=hour))
        await given_back(stores, each)
    for hour in range(leases._FREE_TRIES):
        (each,), _ = await claim(stores, now=utc_now() + timedelta(days=9, hours=hour))
        await record(stores, Landed(claim=each, outcome=msgspec.structs.replace(LOST, is_bystander=True)))
    kept = await shard(stores, job_id, 0)
    assert (kept.state, kept.attempt, kept.released) == ("ready", 0, 2 * leases._FREE_TRIES - 1)


async def test_shard_that_is_given_back_for_ever_fails_its_job(stores, create, monkeypatch):
    monkeypatch.setattr(leases, "_RELEASES", 5)
    job_id = await create(shards=2)
    claimed = 0
    while (await job(stores, job_id)).state in {"queued", "running"}:
        claimed += 1
        (each, *_), _ = await claim(stores, room=1, now=utc_now() + timedelta(hours=claimed))
        assert each.number == 0
        await given_back(stores, each)
    assert claimed == 5 + 4
    row = await job(stores, job_id)
    assert (row.state, row.problem["code"], row.problem["shard"]) == ("failed", "worker_lost", 0)


async def test_a_turn_adds_the_shards_of_the_next_round(stores, create):
    job_id = await create(shards=2, rounds=2)
    first, _ = await claim(stores)
    await record(stores, *[Landed(claim=each, outcome=DONE) for each in first])
    assert [(each.number, each.round) for each in first] == [(0, 0), (1, 0)]
    (turn,), _ = await claim(stores)
    assert (turn.number, turn.round) == (MERGE - 1, 1)
    made = [Shard(body=b"x", bound=Bound(pixels=7)), Shard(body=b"y", bound=Bound(pixels=8))]
    await record(stores, Landed(claim=turn, outcome=Outcome(part=msgspec.msgpack.encode(made))))
    second, _ = await claim(stores)
    assert [(each.number, each.round, each.body) for each in second] == [(2, 1, b"x"), (3, 1, b"y")]
    assert (await job(stores, job_id)).shards_total == 4
    await record(stores, *[Landed(claim=each, outcome=DONE) for each in second])
    (merge,), _ = await claim(stores)
    assert (merge.number, merge.round) == (MERGE, 2)


async def test_a_turn_that_makes_nothing_readies_the_merge(stores, create):
    await create(shards=1, rounds=2)
    (each,), _ = await claim(stores)
    await record(stores, Landed(claim=each, outcome=DONE))
    (turn,), _ = await claim(stores)
    await record(stores, Landed(claim=turn, outcome=Outcome(part=msgspec.msgpack.encode([]))))
    (merge,), _ = await claim(stores)
    assert merge.number == MERGE


async def merged(stores, create, result, *, shard=DONE):
    """A job whose merge just left `result`."""
    job_id = await create(shards=1)
    (each,), _ = await claim(stores)
    assert await record(stores, Landed(claim=each, outcome=shard)) == []
    (merge,), _ = await claim(stores)
    assert merge.number == MERGE
    outcome = Outcome(part=msgspec.msgpack.encode(result))
    assert await record(stores, Landed(claim=merge, outcome=outcome)) == [job_id]
    return job_id


async def test_the_only_shard_lands_with_its_merge_and_the_job_publishes(stores, create):
    job_id = await create(shards=1)
    (each,), _ = await claim(stores)
    assert each.merges
    result = msgspec.msgpack.encode(await written_result(stores))
    landed = Landed(claim=each, outcome=msgspec.structs.replace(DONE, result=result))
    assert await record(stores, landed) == [job_id]
    merge = await shard(stores, job_id, MERGE)
    assert (merge.state, merge.part, merge.token, merge.owner) == ("done", result, each.token, "dsp_1")
    assert await publish.publish(stores, job_id, now=utc_now())
    row = await job(stores, job_id)
    assert (row.state, row.pixels_done, row.shards_done) == ("completed", 1010, 1)


async def test_a_ghosts_merge_of_the_only_shard_is_not_taken(stores, create):
    job_id = await create(shards=1)
    (ghost,), _ = await claim(stores)
    async with stores.db.write() as tx:
        await leases.reap(tx, now=utc_now(), dead_owners=["dsp_1"])
    result = msgspec.msgpack.encode(await written_result(stores))
    assert await record(stores, Landed(claim=ghost, outcome=msgspec.structs.replace(DONE, result=result))) == []
    assert (await shard(stores, job_id, MERGE)).state == "waiting"


async def test_a_resumed_job_whose_only_shard_is_done_counts_its_pixels_once(stores, create, monkeypatch):
    from eorouter.errors import QuotaExceeded
    from eorouter.types import Principal

    job_id = await create(shards=1)
    (each,), _ = await claim(stores)
    outcome = msgspec.structs.replace(DONE, result=msgspec.msgpack.encode(await written_result(stores)))
    await record(stores, Landed(claim=each, outcome=outcome))

    async def refuse(*_args, **_kwargs):
        raise QuotaExceeded("Nothing is left.")

    monkeypatch.setattr(publish.items, "add", refuse)
    await publish.publish(stores, job_id, now=utc_now())
    who = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset())
    async with stores.db.write() as tx:
        again = await resume.resume(tx, job_id, who, request_id="req_again", now=utc_now())
    (merge,), _ = await claim(stores)
    assert (merge.job_id, merge.number, merge.merges) == (again, MERGE, False)
    assert await record(stores, Landed(claim=merge, outcome=DONE)) == [again]
    assert (await job(stores, again)).pixels_done == each.bound.pixels == 1010


@pytest.mark.parametrize("fields", [{"shards": 2}, {"shards": 1, "rounds": 2}])
async def test_shards_of_a_job_with_more_to_come_do_not_merge(stores, create, fields):
    await create(**fields)
    taken, _ = await claim(stores)
    assert not any(each.merges for each in taken)


async def written_result(stores, data=b"x" * 100):
    from eorouter_compute.attempt import Attempt
    from eorouter_compute.method import OutputAsset, OutputItem

    attempt = Attempt(stores.objects.href("org_a/prj_a/jobs/trial/attempts/-1/1/"))
    asset = OutputAsset(
        key="sums", object=attempt.write("sums.bin", data), media_type="application/octet-stream",
        roles=("data",), filename="sums.bin",
    )  # fmt: skip
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    item = OutputItem(name="sums", assets=(asset,), footprint=square, bbox=(0, 0, 1, 1))
    return Result(items=(item,), summary={"sum": 0})


async def test_publish_twice_makes_one_item_and_one_event(stores, create):
    job_id = await merged(stores, create, await written_result(stores))
    assert await publish.publish(stores, job_id, now=utc_now())
    assert not await publish.publish(stores, job_id, now=utc_now())
    async with stores.db.read() as tx:
        assert [row.id for row in await tx.execute(sa.select(items))] == [publish.item_id(job_id, "sums")]
        kinds = (await tx.execute(sa.select(job_events.c.type).where(job_events.c.type == "job.completed"))).all()
        used = (await tx.execute(sa.select(organisations.c.used_bytes).where(organisations.c.id == "org_a"))).scalar()
    assert (len(kinds), used) == (1, 100)


async def test_publish_after_a_crash_between_copy_and_commit_completes(stores, create, monkeypatch):
    job_id = await merged(stores, create, await written_result(stores))

    async def crash(*_args, **_kwargs):
        raise ConnectionError("the database went away")

    with monkeypatch.context() as patch:
        patch.setattr(publish.items, "add", crash)
        with pytest.raises(ConnectionError):
            await publish.publish(stores, job_id, now=utc_now())
    assert (await job(stores, job_id)).state == "publishing"
    assert await publish.publish(stores, job_id, now=utc_now())
    assert (await job(stores, job_id)).state == "completed"


async def test_publish_over_the_quota_fails_the_job_by_name(stores, create, monkeypatch):
    from eorouter.errors import QuotaExceeded

    job_id = await merged(stores, create, await written_result(stores))

    async def refuse(*_args, **_kwargs):
        raise QuotaExceeded("Nothing is left.")

    monkeypatch.setattr(publish.items, "add", refuse)
    assert await publish.publish(stores, job_id, now=utc_now())
    row = await job(stores, job_id)
    assert (row.state, row.problem) == ("failed", {"code": "quota_exceeded", "message": "Nothing is left."})
    async with stores.db.read() as tx:
        keys = [key for payload in (await tx.execute(sa.select(outbox.c.payload))).scalars() for key in payload["keys"]]
    assert keys == [f"org_a/prj_a/items/{publish.item_id(job_id, 'sums')}/sums.bin"]


def test_item_id_is_a_function_of_job_and_name():
    from eorouter.types import ID_PATTERN, new_id

    job_id = new_id("job")
    assert publish.item_id(job_id, "a") == publish.item_id(job_id, "a") != publish.item_id(job_id, "b")
    assert re.match(ID_PATTERN, publish.item_id(job_id, "a"))
    assert publish.item_id(job_id, "a").startswith("itm_")
    assert publish.item_id(job_id, "a")[4:14] == job_id[4:14]


async def test_end_cancelled_waits_for_leased_shards(stores, create):
    from eorouter.types import Principal

    job_id = await create(shards=2)
    (first, second), _ = await claim(stores)
    who = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset())
    async with stores.db.write() as tx:
        await queue.cancel(tx, job_id, who, utc_now())
        assert await leases.end_cancelled(tx, now=utc_now()) == []
    stopped = Outcome(failure=Failure(kind="cancelled", code="cancelled", message="The job was cancelled."))
    await record(stores, Landed(claim=first, outcome=stopped), Landed(claim=second, outcome=DONE))
    assert (await claim(stores))[0] == []
    async with stores.db.write() as tx:
        assert await leases.end_cancelled(tx, now=utc_now()) == [job_id]
    assert (await job(stores, job_id)).state == "cancelled"


async def test_merge_that_lands_after_a_cancellation_publishes_nothing(stores, create):
    from eorouter.types import Principal

    job_id = await create(shards=0)
    (merge,), _ = await claim(stores)
    who = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset())
    async with stores.db.write() as tx:
        await queue.cancel(tx, job_id, who, utc_now())
    outcome = Outcome(part=msgspec.msgpack.encode(await written_result(stores)))
    assert await record(stores, Landed(claim=merge, outcome=outcome)) == []
    async with stores.db.write() as tx:
        assert await leases.end_cancelled(tx, now=utc_now()) == [job_id]
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(items))).all() == []


async def test_inputs_with_nan_nodata_survive_the_database(stores, create, dispatcher):
    import math

    from eorouter_compute.method import Band, InputItem, RasterAsset

    bands = (Band(name="b", index=1, dtype="float32", nodata=math.nan),)
    asset = RasterAsset(
        key="a", href="file:///a.tif", crs="EPSG:4326", transform=(1, 0, 0, 0, -1, 0), shape=(1, 1), bands=bands,
        block_shape=(1, 1),
    )  # fmt: skip
    job_id = await create(shards=1, dispatches=False)
    async with stores.db.write() as tx:
        document = spelled(msgspec.to_builtins([InputItem(id="itm_x", assets=(asset,))]))
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(inputs=document))
    card = await dispatcher._make_card(job_id)
    (back,) = msgspec.msgpack.decode(card.inputs, type=tuple[InputItem, ...])
    assert math.isnan(back.rasters[0].bands[0].nodata)
