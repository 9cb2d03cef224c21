"""A failed job goes on as another one: what was finished is taken over, the rest is run.

The failed job stays what it is, with its problem and its events; nothing leaves a terminal state. The new job has the
same plan, so its parts and the old ones fit together, provided that the same build made both.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import Conflict
from eorouter.jobs.queue import append, find, move
from eorouter.jobs.states import JobEvent, JobState, ShardState
from eorouter.jobs.wakeup import notify
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import Principal, new_id
from eorouter_compute import tracing
from eorouter_compute.build import build
from eorouter_compute.orders import MERGE

_INHERITED = (
    "org_id", "project_id", "mode", "name", "method", "task", "inputs", "bound", "is_interactive", "shards_total",
    "time_limit_s", "build",
)  # fmt: skip


async def resume(tx: AsyncConnection, job_id: str, principal: Principal, *, request_id: str, now: datetime) -> str:
    """Queue a job that does what a failed one left undone; returns its id.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
        Conflict: it did not fail, was resumed before, is too old, or was planned by another build.
    """
    job = await find(tx, principal, job_id, locks=True)
    await _check(tx, job, now)
    new_job = new_id("job")
    left = job_shards.c.job_id == job_id
    is_done = sa.and_(job_shards.c.state == ShardState.DONE.value, job_shards.c.number != MERGE)
    is_shard = job_shards.c.number > MERGE
    done = sa.select(sa.func.count(), sa.func.sum(job_shards.c.bound["pixels"].as_integer())).where(left, is_done)
    shards_done = (await tx.execute(done.where(is_shard))).one()[0]
    pixels_done = (await tx.execute(done)).one()[1] or 0
    current = (await tx.execute(sa.select(sa.func.min(job_shards.c.round)).where(left, ~is_done))).scalar_one()
    await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(resumable_until=None))
    inherited = {name: getattr(job, name) for name in _INHERITED}
    fresh = {
        "id": new_job, "state": JobState.CREATED.value, "pixels_done": int(pixels_done), "shards_done": shards_done,
        "is_cancelling": False, "created_by": principal.id, "request_id": request_id, "created_at": now,
        "resumed_from": job_id, "traceparent": tracing.traceparent(),
    }  # fmt: skip
    await tx.execute(sa.insert(jobs).values(inherited | fresh))
    await _take_over(tx, job_id, new_job, is_done=is_done, current=current, now=now)
    told = {"method": job.method, "resumed_from": job_id, "shards_done": shards_done, "shards_total": job.shards_total}
    await append(tx, new_job, "job.created", told, now)
    await move(tx, new_job, JobState.CREATED, JobEvent.DISPATCH, now=now, queued_at=now)
    await notify(tx)
    return new_job


async def _check(tx: AsyncConnection, job: sa.Row[Any], now: datetime) -> None:
    if job.state != JobState.FAILED:
        raise Conflict(f"Job {job.id} is {job.state}; only a job that failed can be resumed.")
    heir = (await tx.execute(sa.select(jobs.c.id).where(jobs.c.resumed_from == job.id))).scalars().first()
    if heir is not None:
        raise Conflict(f"Job {job.id} was resumed before, as {heir}.")
    if job.resumable_until is None or job.resumable_until < now:
        raise Conflict(f"Of job {job.id} nothing is left that could be taken over. Create it anew.")
    if job.build != build():
        raise Conflict(
            f"Job {job.id} was planned by build {job.build}, this is {build()}: "
            "their parts need not fit together. Create it anew."
        )


async def _take_over(
    tx: AsyncConnection, old: str, new: str, *, is_done: sa.ColumnElement[bool], current: int, now: datetime
) -> None:
    """Copy the shards in one statement: those done with their parts, those of the round that is open as ready."""

    def if_done(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.case((is_done, column), else_=sa.null())

    shards = job_shards.c
    state = sa.case(
        (is_done, ShardState.DONE.value), (shards.round == current, ShardState.READY.value),
        else_=ShardState.WAITING.value,
    )  # fmt: skip
    values = {
        "job_id": sa.literal(new), "number": shards.number, "state": state, "body": shards.body, "bound": shards.bound,
        "attempt": sa.literal(0), "token": sa.literal(0), "ready_at": sa.literal(now, shards.ready_at.type),
        "part": if_done(shards.part), "timing": if_done(shards.timing), "round": shards.round,
        "halvings": shards.halvings, "released": sa.literal(0),
    }  # fmt: skip
    rows = sa.select(*(value.label(name) for name, value in values.items())).where(shards.job_id == old)
    await tx.execute(sa.insert(job_shards).from_select(list(values), rows))
