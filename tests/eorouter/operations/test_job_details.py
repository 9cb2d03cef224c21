"""Shards in pages with their timings, and the lines of a job; somebody else's job is not found."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from eorouter.errors import NotFound
from eorouter.jobs import journal
from eorouter.operations import job_details
from eorouter.operations.job_details import JobsLogsListInput, JobsShardsListInput
from eorouter.storage.tables import job_logs, job_shards, jobs
from eorouter.types import Principal
from eorouter_compute.orders import Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset(), user_id="usr_me")
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset(), user_id="usr_other")


@pytest.fixture
async def job(peopled):
    spent = journal.timing(
        Outcome(seconds=2.0, read_s=0.5, write_s=0.25, waited_s=1.0, read_bytes=10, peak_rss_bytes=7),
        ready_at=NOW - timedelta(seconds=10),
        now=NOW,
    )
    row = {
        "id": "job_1", "org_id": "org_me", "project_id": "prj_a", "mode": "live", "name": "j", "method": "clip",
        "task": {}, "inputs": [], "state": "running", "bound": {}, "is_interactive": False, "pixels_done": 0,
        "shards_total": 3, "shards_done": 1, "is_cancelling": False, "created_by": "usr_me", "request_id": "r",
        "created_at": NOW, "timing": journal.total(None, [spent, spent]),
    }  # fmt: skip
    async with peopled.db.write() as tx:
        await tx.execute(sa.insert(jobs).values(row))
        for number in (-2, -1, 0, 1, 2):
            is_done = number == 0
            shard = {
                "job_id": "job_1", "number": number, "round": 0, "state": "done" if is_done else "ready", "body": b"",
                "bound": {"pixels": 4}, "attempt": 1, "token": 1, "ready_at": NOW, "halvings": 0,
                "timing": spent if is_done else None,
            }  # fmt: skip
            await tx.execute(sa.insert(job_shards).values(shard))
        for number, level in ((0, "info"), (1, "warning"), (0, "info")):
            line = {"job_id": "job_1", "number": number, "attempt": 1, "at": NOW, "level": level, "logger": "x"}
            await tx.execute(sa.insert(job_logs).values(line | {"event": "said", "data": {"n": number}}))
    return "job_1"


async def test_list_shards_pages_them_with_turns_and_merge_last(context, job):
    ctx, seen, cursor = context(ME), [], None
    while True:
        found = await job_details.list_shards(ctx, JobsShardsListInput(job_id=job, limit=2, cursor=cursor))
        seen += found.shards
        cursor = found.next_cursor
        if cursor is None:
            break
    assert [(each.number, each.kind) for each in seen] == [
        (0, "shard"), (1, "shard"), (2, "shard"), (-2, "turn"), (-1, "merge"),
    ]  # fmt: skip
    first = seen[0].timing
    assert (first.queued_s, first.claimed_s, first.read_s, first.compute_s, first.write_s) == (
        7.0,
        1.0,
        0.5,
        1.25,
        0.25,
    )
    assert seen[1].timing is None
    assert (found.timing.read_s, found.timing.read_bytes, found.timing.peak_rss_bytes) == (1.0, 20, 7)
    done = await job_details.list_shards(ctx, JobsShardsListInput(job_id=job, state="done"))
    assert [each.number for each in done.shards] == [0]


async def test_list_lines_goes_on_behind_the_last_and_filters(context, job):
    ctx = context(ME)
    page = await job_details.list_lines(ctx, JobsLogsListInput(job_id=job, limit=2))
    rest = await job_details.list_lines(ctx, JobsLogsListInput(job_id=job, after=page.next_after))
    assert [line.shard for line in (*page.lines, *rest.lines)] == [0, 1, 0]
    loud = await job_details.list_lines(ctx, JobsLogsListInput(job_id=job, level="warning"))
    assert [(line.shard, line.data) for line in loud.lines] == [(1, {"n": 1})]
    none = await job_details.list_lines(ctx, JobsLogsListInput(job_id=job, shard=-1))
    assert (none.lines, none.next_after) == ((), 0)


async def test_somebody_elses_job_is_not_found(context, job):
    with pytest.raises(NotFound):
        await job_details.list_shards(context(OTHER), JobsShardsListInput(job_id=job))
    with pytest.raises(NotFound):
        await job_details.list_lines(context(OTHER), JobsLogsListInput(job_id=job))
