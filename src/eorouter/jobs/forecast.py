"""When a job will be done, from what dispatchers measured; nothing where nothing was measured.

The work before a job is that of its own organisation's jobs which come first. Other organisations do not stand before
it but beside it: they share the workers by weight until their own work is done, as `fairness` serves them.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.jobs.fairness import SHARD_COST_S
from eorouter.jobs.paces import mean
from eorouter.jobs.states import JobState
from eorouter.storage import dispatchers
from eorouter.storage.tables import jobs, organisations

_OPEN_MAX = 2000
"""With more open jobs than this nothing is foretold: reading them all would cost more than the answer is worth."""


class Forecast(Struct, frozen=True, kw_only=True):
    """`position` among the organisation's jobs of that priority that have not begun; when the job will be done."""

    position: int | None = None
    expected_at: datetime | None = None


async def forecast(tx: AsyncConnection, job: sa.Row[Any], *, now: datetime) -> Forecast:
    """Place in the queue and expected end of a job that waits or runs."""
    if job.state not in {JobState.QUEUED, JobState.RUNNING} or job.is_cancelling:
        return Forecast()
    alive = [row.detail for row in await dispatchers.known(tx) if dispatchers.is_alive(row, now=now)]
    threads = sum(detail.get("threads", 0) for detail in alive if detail.get("workers"))
    costs = mean(detail.get("costs", {}) for detail in alive)
    rows = await _open(tx)
    position = None
    if job.state == JobState.QUEUED:
        before = (each for each in rows if each.org_id == job.org_id and each.is_interactive == job.is_interactive)
        position = 1 + sum(each.state == JobState.QUEUED and each.id < job.id for each in before)
    is_known = threads and len(rows) <= _OPEN_MAX and all(row.method in costs for row in rows if row.paused_at is None)
    mine = next((row for row in rows if row.id == job.id), None)
    if not is_known or mine is None or mine.paused_at is not None:
        return Forecast(position=position)
    seconds = _seconds(mine, [row for row in rows if row.paused_at is None], costs, threads)
    return Forecast(position=position, expected_at=now + timedelta(seconds=seconds))


async def _open(tx: AsyncConnection) -> list[sa.Row[Any]]:
    names = (
        "id", "org_id", "method", "state", "is_interactive", "shards_total", "shards_done", "pixels_done", "bound",
    )  # fmt: skip
    org = (organisations.c[name] for name in ("weight", "shards_max", "paused_at"))
    query = (
        sa.select(*(jobs.c[name] for name in names), *org)
        .join(organisations, organisations.c.id == jobs.c.org_id)
        .where(jobs.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]), jobs.c.is_cancelling.is_(False))
    )
    return list((await tx.execute(query.order_by(jobs.c.id).limit(_OPEN_MAX + 1))).all())


def _seconds(mine: sa.Row[Any], rows: Iterable[sa.Row[Any]], costs: Mapping[str, float], threads: float) -> float:
    work: dict[str, float] = {}
    weights: dict[str, float] = {}
    for row in rows:
        if row.org_id == mine.org_id and (not row.is_interactive, row.id) > (not mine.is_interactive, mine.id):
            continue
        work[row.org_id] = work.get(row.org_id, 0.0) + _left_s(row) * costs[row.method]
        weights[row.org_id] = row.weight
    if mine.shards_max is not None:
        threads = min(threads, mine.shards_max)
    others = [(work[org], weights[org]) for org in work if org != mine.org_id]
    alone = _left_s(mine) * costs[mine.method] / min(threads, max(mine.shards_total - mine.shards_done, 1))
    return max(shared_s(work[mine.org_id], mine.weight, others, threads), alone)


def _left_s(row: sa.Row[Any]) -> float:
    """Estimated seconds that are still to be spent on a job."""
    pixels = max(int(row.bound.get("pixels", 0)), 1)
    left = 1 - min(max(row.pixels_done, 0) / pixels, 1)
    return max(row.bound.get("seconds", 0.0) * left, (row.shards_total - row.shards_done) * SHARD_COST_S)


def shared_s(work: float, weight: float, others: Iterable[tuple[float, float]], threads: float) -> float:
    """Seconds until `work` is done by threads that are shared by weight with others, each until its own is done."""
    passed = 0.0
    active = sorted(others, key=lambda each: each[0] / each[1])
    while active:
        rate = threads / (weight + sum(each for _, each in active))  # per unit of weight
        until_first = active[0][0] / active[0][1] / rate
        if work <= until_first * rate * weight:
            return passed + work / (rate * weight)
        passed += until_first
        work -= until_first * rate * weight
        active = [(left - until_first * rate * each, each) for left, each in active[1:]]
    return passed + work / threads
