"""How long the objects live that a job's attempts wrote: until it ends, or, of a failed one, while it can be resumed.

They are deleted twice: at once, and again later, because a worker that lost its dispatcher, or was frozen while it
happened, may still finish what it was writing.
"""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.storage.deletions import delete_later
from eorouter.storage.tables import jobs

RESUMABLE = timedelta(hours=24)
"""How long the finished shards of a failed job are kept, for a job that takes them over."""

GHOSTS_GONE = timedelta(minutes=10)
"""After this long nobody writes any more for a job that has ended."""


def attempts_key(org_id: str, project_id: str, job_id: str) -> str:
    """Prefix of the keys of everything a job's attempts write."""
    return f"{org_id}/{project_id}/jobs/{job_id}/attempts/"


async def forget(tx: AsyncConnection, job: sa.Row[Any], now: datetime) -> None:
    """Have everything deleted that attempts of the job wrote, and of those whose shards it took over."""
    prefixes = []
    lineage: str | None = job.id
    while lineage is not None:
        prefixes.append(attempts_key(job.org_id, job.project_id, lineage))
        query = sa.select(jobs.c.resumed_from).where(jobs.c.id == lineage)
        lineage = (await tx.execute(query)).scalar_one_or_none()
    for moment in (now, now + GHOSTS_GONE):
        await delete_later(tx, job.org_id, now=moment, prefixes=prefixes)


async def expire(tx: AsyncConnection, now: datetime) -> None:
    """Forget what failed jobs left, once nobody may resume them any more."""
    query = sa.select(jobs).where(jobs.c.resumable_until < now).order_by(jobs.c.id).limit(100)
    for job in (await tx.execute(query.with_for_update(skip_locked=True))).all():
        await forget(tx, job, now)
        await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(resumable_until=None))
