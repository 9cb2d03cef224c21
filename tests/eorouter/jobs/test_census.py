"""What the operator is told of the queue is what the rows say, and costs the same however many jobs have ended."""

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from eorouter.jobs import census, journal
from eorouter.jobs.census import Minute
from eorouter.storage.tables import job_shards, jobs, throughput
from eorouter.types import utc_now

NOW = utc_now().replace(second=30)
ENDED = 60_000


def job(name: str, state: str, **changes) -> dict:
    row = {
        "id": f"job_{name}", "org_id": "org_a", "project_id": "prj_a", "mode": "live", "name": "", "method": "toy",
        "task": {}, "inputs": [], "state": state, "bound": {}, "is_interactive": False, "pixels_done": 0,
        "shards_total": 3, "shards_done": 1, "is_cancelling": False, "created_by": "usr_a", "request_id": "",
        "created_at": NOW, "queued_at": NOW - timedelta(minutes=1), "finished_at": None, "problem": None,
    }  # fmt: skip
    return row | changes


def failed(name: str, code: str, *, minutes_ago: float, org: str = "a") -> dict:
    at = NOW - timedelta(minutes=minutes_ago)
    problem = {"code": code, "message": f"{code} in {name}"}
    ours = {"org_id": f"org_{org}", "project_id": f"prj_{org}"}
    return job(name, "failed", finished_at=at, problem=problem, **ours)


async def add(stores, *rows: dict) -> None:
    async with stores.db.write() as tx:
        await tx.execute(sa.insert(jobs), list(rows))


@pytest.fixture
async def told(stores, create):
    """Call a question of the census in a transaction of its own."""

    async def ask(question):
        async with stores.db.read() as tx:
            return await question(tx, NOW)

    return ask


async def test_oldest_job_is_the_one_that_was_queued_first_whatever_its_id(stores, told):
    assert await told(census.oldest) is None
    await add(
        stores,
        job("1", "queued"),
        job("2", "publishing", queued_at=NOW - timedelta(hours=2), org_id="org_b", project_id="prj_b"),
        job("0", "completed", queued_at=NOW - timedelta(days=9), finished_at=NOW),
        job("3", "created", queued_at=None),
    )
    found = await told(census.oldest)
    assert (found.job_id, found.org_id, found.org_name, found.state, found.age_s) == (
        "job_2", "org_b", "org_b", "publishing", 7200.0,
    )  # fmt: skip


async def test_states_count_all_that_is_open_and_what_ended_within_a_day(stores, told):
    old = NOW - timedelta(hours=25)
    await add(
        stores,
        *(job(f"q{number}", "queued") for number in range(3)),
        job("r", "running"),
        job("c", "completed", finished_at=NOW - timedelta(hours=23)),
        job("o", "completed", finished_at=old),
        job("x", "cancelled", finished_at=old),
    )
    assert await told(census.states) == {
        "created": 0, "queued": 3, "running": 1, "publishing": 0, "completed": 1, "failed": 0, "cancelled": 0,
    }  # fmt: skip


async def test_failures_of_the_hour_are_counted_by_code_with_the_last_of_each(stores, told):
    await add(
        stores,
        failed("1", "worker_lost", minutes_ago=50),
        failed("2", "worker_lost", minutes_ago=5, org="b"),
        failed("3", "aoi_outside", minutes_ago=1),
        failed("4", "aoi_outside", minutes_ago=61),
    )
    found = await told(census.failures)
    assert [(each.code, each.jobs, each.last_id, each.last_org_name) for each in found] == [
        ("worker_lost", 2, "job_2", "org_b"),
        ("aoi_outside", 1, "job_3", "org_a"),
    ]
    assert found[0].last_message == "worker_lost in 2"


async def test_throughput_adds_up_by_minute_and_old_minutes_are_forgotten(stores, told):
    async with stores.db.write() as tx:
        for ago, shards in ((timedelta(days=3), 9), (timedelta(hours=47), 9)):
            await journal.count(tx, stores.db, shards=shards, failures=0, pixels=1, now=NOW - ago)
        for shards in (2, 3):
            await journal.count(tx, stores.db, shards=shards, failures=1, pixels=100, now=NOW - timedelta(minutes=2))
        await journal.count(tx, stores.db, shards=1, failures=0, pixels=7, now=NOW)
        assert (await tx.execute(sa.select(sa.func.count()).select_from(throughput))).scalar_one() == 3
    minutes = await told(census.last_hour)
    assert len(minutes) == 60
    assert minutes[-1] == Minute(shards=1, failures=0, pixels=7)
    assert minutes[-3] == Minute(shards=5, failures=2, pixels=200)
    assert minutes[:-3] == [Minute()] * 57


async def test_every_question_is_answered_through_an_index_however_many_jobs_have_ended(stores, create):
    """PostgreSQL tells the plans of the very statements that are sent, on a table where a scan would be worse."""
    template = job("template", "completed", finished_at=NOW - timedelta(days=30))
    await add(stores, template, job("open", "running"), failed("late", "worker_lost", minutes_ago=2))
    names = [column.name for column in jobs.columns if column.name != "id"]
    if stores.db.is_sqlite:
        pytest.skip("plans on SQLite do not depend on the rows; test_tables looks at its indexes")
    listed = ", ".join(names)
    many = f"SELECT 'job_many' || n, {listed} FROM jobs, generate_series(1, {ENDED}) n WHERE id = 'job_template'"
    async with stores.db.write() as tx:
        await tx.execute(sa.text(f"INSERT INTO jobs (id, {listed}) {many}"))
    async with stores.db.write() as tx:
        await tx.execute(sa.text("ANALYZE jobs"))
    sent = []
    engine = stores.db.engine.sync_engine
    listener = lambda *about: sent.append((about[2], about[3]))  # noqa: E731 - it is listened with twice
    event.listen(engine, "before_cursor_execute", listener)
    async with stores.db.read() as tx:
        for question in (census.queues, census.oldest, census.states, census.failures):
            assert await question(tx, NOW)
    event.remove(engine, "before_cursor_execute", listener)
    asked = [(text, values) for text, values in sent if re.search(r"\bjobs\b", text)]
    assert len(asked) >= 6
    async with stores.db.read() as tx:
        for text, values in asked:
            plan = "\n".join(row[0] for row in await tx.exec_driver_sql(f"EXPLAIN {text}", values))
            assert "Seq Scan on jobs" not in plan, plan
            assert "Seq Scan on job_shards" not in plan, plan
    assert job_shards.name in "".join(text for text, _ in asked)
