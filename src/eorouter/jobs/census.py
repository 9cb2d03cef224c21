"""What waits, runs and failed, for metrics and for the operator's page.

Everything is read through an index from the rows of open jobs, of which there are few, and of jobs that ended lately;
of shards only the first ready one of each open job is looked at, so a backlog of a hundred thousand costs what one of
ten does.
"""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.jobs.states import TERMINAL, JobState, ShardState
from eorouter.storage.tables import job_shards, jobs, organisations, throughput

CLASSES = ("batch", "interactive")
"""By `jobs.is_interactive`."""

MINUTES = 60
"""How far throughput and failures look back."""

DAY = timedelta(hours=24)

_OPEN = (JobState.QUEUED.value, JobState.RUNNING.value)
_UNENDED = tuple(state.value for state in JobState if state not in TERMINAL)
_ENDED = tuple(state.value for state in JobState if state in TERMINAL)
_FAILED_MAX = 5000


class Queue(Struct, frozen=True, kw_only=True):
    """The open jobs of one organisation and class.

    Attributes:
        org_id, org_name, kind: whose, and `batch` or `interactive`.
        queued, running: jobs.
        shards: shards not done.
        age_s: how long its longest waiting shard could have run already.
        oldest_id, oldest_s: its oldest job, and since when it was queued.
        is_paused: nothing of it is begun, because the organisation wants it so.
    """

    org_id: str
    org_name: str
    kind: str
    queued: int
    running: int
    shards: int
    age_s: float
    oldest_id: str
    oldest_s: float
    is_paused: bool


class Waiting(Struct, frozen=True, kw_only=True):
    """The open job that was queued first."""

    job_id: str
    org_id: str
    org_name: str
    method: str
    state: str
    age_s: float


class Minute(Struct, frozen=True, kw_only=True):
    """What all dispatchers did in a minute: shards done, tries failed, pixels of the shards done."""

    shards: int = 0
    failures: int = 0
    pixels: int = 0


class Failures(Struct, frozen=True, kw_only=True):
    """Jobs of the last hour that failed with one code, and the last of them."""

    code: str
    jobs: int
    last_id: str
    last_org_name: str
    last_method: str
    last_message: str
    last_at: datetime


async def queues(tx: AsyncConnection, now: datetime) -> list[Queue]:
    """Every organisation and class with open jobs, the longest waiting first."""
    waiting = (job_shards.c.job_id == jobs.c.id) & (job_shards.c.state == ShardState.READY.value)
    first_ready = sa.select(job_shards.c.ready_at).where(waiting).order_by(job_shards.c.number).limit(1)
    columns = [jobs.c[name] for name in ("id", "org_id", "is_interactive", "state", "queued_at")]
    query = sa.select(
        *columns,
        (jobs.c.shards_total - jobs.c.shards_done).label("left"),
        organisations.c.name.label("org_name"),
        organisations.c.paused_at,
        first_ready.scalar_subquery().label("ready_at"),
    ).join(organisations, organisations.c.id == jobs.c.org_id)
    rows = (await tx.execute(query.where(jobs.c.state.in_(_OPEN)).order_by(jobs.c.id))).all()
    lanes: dict[tuple[str, bool], list[sa.Row[Any]]] = {}
    for row in rows:
        lanes.setdefault((row.org_id, bool(row.is_interactive)), []).append(row)
    found = [_queue(of, now) for of in lanes.values()]
    return sorted(found, key=lambda each: -each.age_s)


def _queue(rows: list[sa.Row[Any]], now: datetime) -> Queue:
    first = min(rows, key=lambda row: row.queued_at or now)
    ages = [(now - row.ready_at).total_seconds() for row in rows if row.ready_at is not None]
    return Queue(
        org_id=first.org_id,
        org_name=first.org_name,
        kind=CLASSES[bool(first.is_interactive)],
        queued=sum(row.state == JobState.QUEUED.value for row in rows),
        running=sum(row.state == JobState.RUNNING.value for row in rows),
        shards=sum(row.left for row in rows),
        age_s=max([0.0, *ages]),
        oldest_id=first.id,
        oldest_s=(now - (first.queued_at or now)).total_seconds(),
        is_paused=first.paused_at is not None,
    )


async def oldest(tx: AsyncConnection, now: datetime) -> Waiting | None:
    """The job that has waited or run for longest, counted from when it was queued; None where none is open."""
    columns = [jobs.c[name] for name in ("id", "org_id", "method", "state", "queued_at")]
    named = sa.select(*columns, organisations.c.name.label("org_name")).join(
        organisations, organisations.c.id == jobs.c.org_id
    )
    query = named.where(jobs.c.state.in_((*_OPEN, JobState.PUBLISHING.value))).order_by(jobs.c.queued_at).limit(1)
    first = (await tx.execute(query)).one_or_none()
    if first is None:
        return None
    age_s = (now - (first.queued_at or now)).total_seconds()
    return Waiting(
        job_id=first.id, org_id=first.org_id, org_name=first.org_name, method=first.method, state=first.state,
        age_s=age_s,
    )  # fmt: skip


async def states(tx: AsyncConnection, now: datetime) -> dict[str, int]:
    """Jobs by state: all that have not ended, and those that ended in the last 24 hours."""
    counted = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
    unended = (await tx.execute(counted.where(jobs.c.state.in_(_UNENDED)))).all()
    recently = jobs.c.state.in_(_ENDED) & (jobs.c.finished_at > now - DAY)
    ended = (await tx.execute(counted.where(recently))).all()
    known = {row[0]: row[1] for row in (*unended, *ended)}
    return {state.value: known.get(state.value, 0) for state in JobState}


async def last_hour(tx: AsyncConnection, now: datetime) -> list[Minute]:
    """Each of the last sixty minutes, oldest first; the last one is not over."""
    last = int(now.timestamp()) // 60
    query = sa.select(throughput).where(throughput.c.minute > last - MINUTES, throughput.c.minute <= last)
    known = {
        row.minute: Minute(shards=row.shards, failures=row.failures, pixels=row.pixels)
        for row in await tx.execute(query)
    }
    return [known.get(minute, Minute()) for minute in range(last - MINUTES + 1, last + 1)]


async def failures(tx: AsyncConnection, now: datetime) -> list[Failures]:
    """Why jobs failed in the last hour, the commonest code first; of a flood the newest five thousand are counted."""
    recent = (jobs.c.state == JobState.FAILED.value) & (jobs.c.finished_at > now - timedelta(minutes=MINUTES))
    newest = (
        sa.select(jobs.c.id, jobs.c.problem["code"].as_string().label("code"))
        .where(recent)
        .order_by(jobs.c.finished_at.desc())
        .limit(_FAILED_MAX)
        .subquery()
    )
    counts = sa.select(newest.c.code, sa.func.count().label("ended"), sa.func.max(newest.c.id).label("last_id"))
    by_code = (await tx.execute(counts.group_by(newest.c.code))).all()
    columns = [jobs.c[name] for name in ("id", "method", "problem", "finished_at")]
    query = sa.select(*columns, organisations.c.name).join(organisations, organisations.c.id == jobs.c.org_id)
    rows = await tx.execute(query.where(jobs.c.id.in_([row.last_id for row in by_code])))
    last = {row.id: row for row in rows}
    found = [
        Failures(
            code=row.code or "",
            jobs=row.ended,
            last_id=row.last_id,
            last_org_name=last[row.last_id].name,
            last_method=last[row.last_id].method,
            last_message=(last[row.last_id].problem or {}).get("message", ""),
            last_at=last[row.last_id].finished_at,
        )
        for row in by_code
        if row.last_id in last  # a project may have gone since
    ]
    return sorted(found, key=lambda each: (-each.jobs, each.code))
