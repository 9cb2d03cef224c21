"""What waits and what runs, by organisation and class: for metrics.

Everything is read from the rows of open jobs, of which there are few; of their shards only the first ready one of each
is looked at, so a backlog of a hundred thousand costs what one of ten does.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.jobs.states import JobState, ShardState
from eorouter.storage.tables import job_shards, jobs, organisations

CLASSES = ("batch", "interactive")
"""By `jobs.is_interactive`."""

_OPEN = (JobState.QUEUED.value, JobState.RUNNING.value)


class Queue(Struct, frozen=True, kw_only=True):
    """The open jobs of one organisation and class.

    Attributes:
        org_id, org_name, kind: whose, and `batch` or `interactive`.
        queued, running: jobs.
        shards: shards not done.
        age_s: how long its longest waiting shard could have run already.
        oldest_id, oldest_s: its oldest job, and since when it was queued.
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


async def queues(tx: AsyncConnection, now: datetime) -> list[Queue]:
    """Every organisation and class with open jobs, the longest waiting first."""
    waiting = (job_shards.c.job_id == jobs.c.id) & (job_shards.c.state == ShardState.READY.value)
    first_ready = sa.select(job_shards.c.ready_at).where(waiting).order_by(job_shards.c.number).limit(1)
    columns = [jobs.c[name] for name in ("id", "org_id", "is_interactive", "state", "queued_at")]
    query = sa.select(
        *columns,
        (jobs.c.shards_total - jobs.c.shards_done).label("left"),
        organisations.c.name.label("org_name"),
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
    )
