"""What the API asks of jobs; every function works in the caller's transaction, so a request is one transaction.

A job's rows change state only through `move`, which checks the transition and appends the event beside it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import Conflict, NotFound, TooManyWaits
from eorouter.jobs import charges
from eorouter.jobs.attempts import forget
from eorouter.jobs.feed import feed_of
from eorouter.jobs.states import TERMINAL, JobEvent, JobState, ShardState, advance
from eorouter.jobs.wakeup import notify
from eorouter.storage.database import Database, spelled
from eorouter.storage.tables import job_events, job_shards, jobs, owned
from eorouter.types import Principal, new_id
from eorouter_compute import method, tracing
from eorouter_compute.build import build
from eorouter_compute.method import InputItem, Params, Plan, Shard
from eorouter_compute.orders import MERGE

__all__ = [
    "MERGE",
    "TERMINAL", "append", "cancel", "create", "dispatch", "find", "move", "prepare", "ready_next", "shard_row", "wait",
]  # fmt: skip

log = structlog.get_logger(__name__)


async def prepare(task: Params, inputs: Sequence[InputItem]) -> Plan:
    """Plan a task off the event loop and outside any transaction: geometry can take a while.

    Raises:
        RequestFault: the request cannot be done as asked.
    """
    return await asyncio.to_thread(method.plan, task, inputs)


async def create(
    tx: AsyncConnection,
    *,
    principal: Principal,
    project_id: str,
    task: Params,
    inputs: Sequence[InputItem],
    name: str,
    is_interactive: bool,
    request_id: str,
    now: datetime,
    dispatches: bool,
    plan: Plan | None = None,
    time_limit_s: int | None = None,
) -> str:
    """Write a job with all its shards; returns its id.

    Args:
        tx: the caller's write transaction.
        principal: who asks.
        project_id: where the results go; the caller has checked that it is the principal's.
        task: parameters of a method.
        inputs: the items it reads, with readable hrefs.
        name: what a person calls it; empty takes the method's id.
        is_interactive: somebody waits for it; its shards go before batch work.
        request_id: for logs.
        now: the time.
        dispatches: queue it at once.
        plan: from `prepare`; planned here when absent.
        time_limit_s: longest that it may run before it fails; None for as long as it takes.

    Raises:
        RequestFault: the request cannot be done as asked.
    """
    plan = plan or await prepare(task, inputs)
    job_id = new_id("job")
    method_id = str(task.__struct_config__.tag)
    await tx.execute(
        sa.insert(jobs).values(
            id=job_id,
            org_id=principal.org_id,
            project_id=project_id,
            mode=principal.mode.value,
            name=name or method_id,
            method=method_id,
            task=spelled(msgspec.to_builtins(task)),
            inputs=spelled(msgspec.to_builtins(list(inputs))),
            state=JobState.CREATED.value,
            bound=msgspec.to_builtins(plan.bound),
            is_interactive=is_interactive,
            pixels_done=0,
            shards_total=len(plan.shards),
            shards_done=0,
            is_cancelling=False,
            created_by=principal.id,
            request_id=request_id,
            traceparent=tracing.traceparent(),
            created_at=now,
            build=build(),
            time_limit_s=time_limit_s,
        )
    )
    await tx.execute(sa.insert(job_shards), _shard_rows(job_id, plan, now))
    summary = {"method": method_id, "shards_total": len(plan.shards), "pixels_total": plan.bound.pixels}
    await append(tx, job_id, "job.created", summary | ({"notes": plan.notes} if plan.notes else {}), now)
    if dispatches:
        await _queue(tx, job_id, now)
    return job_id


def _shard_rows(job_id: str, plan: Plan, now: datetime) -> list[dict[str, Any]]:
    """A row per shard of the first round, per turn, and one for the merge; all wait until the job is dispatched."""
    # A turn's bound is that of its whole round; its pixels are counted when the round's shards are done.
    turns = [
        shard_row(job_id, MERGE - number, number, Shard(body=b"", bound=msgspec.structs.replace(bound, pixels=0)), now)
        for number, bound in enumerate(plan.later, 1)
    ]
    merge = shard_row(job_id, MERGE, len(plan.later) + 1, Shard(body=b"", bound=plan.merge_bound), now)
    return [*(shard_row(job_id, number, 0, shard, now) for number, shard in enumerate(plan.shards)), *turns, merge]


def shard_row(
    job_id: str,
    number: int,
    round_number: int,
    shard: Shard,
    now: datetime,
    *,
    state: ShardState = ShardState.WAITING,
) -> dict[str, Any]:
    """The row of a shard that nobody has tried yet."""
    return {
        "job_id": job_id,
        "number": number,
        "round": round_number,
        "state": state.value,
        "body": shard.body,
        "bound": msgspec.to_builtins(shard.bound),
        "attempt": 0,
        "token": 0,
        "ready_at": now,
        "halvings": 0,
        "released": 0,
    }


async def find(tx: AsyncConnection, principal: Principal, job_id: str, *, locks: bool = False) -> Row[Any]:
    """The job's row; with `locks` nobody else changes it until the transaction ends.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
    """
    query = sa.select(jobs).where(jobs.c.id == job_id, owned(jobs, principal))
    row = (await tx.execute(query.with_for_update() if locks else query)).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return row


async def dispatch(tx: AsyncConnection, job_id: str, principal: Principal, now: datetime) -> None:
    """Queue a job that was only created.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
        Conflict: it was dispatched before, or has ended.
    """
    row = await find(tx, principal, job_id, locks=True)
    if row.state != JobState.CREATED:
        raise Conflict(f"Job {job_id} is {row.state}; only a job that is created can be dispatched.")
    await _queue(tx, job_id, now)


async def _queue(tx: AsyncConnection, job_id: str, now: datetime) -> None:
    await move(tx, job_id, JobState.CREATED, JobEvent.DISPATCH, now=now, queued_at=now)
    mine = job_shards.c.job_id == job_id
    ready = {"state": ShardState.READY.value, "ready_at": now}
    changed = await tx.execute(sa.update(job_shards).where(mine, job_shards.c.number > MERGE).values(ready))
    if changed.rowcount == 0:  # nothing to run: the merge says so in a result
        await ready_next(tx, job_id, now)
    await notify(tx)


async def ready_next(tx: AsyncConnection, job_id: str, now: datetime) -> None:
    """A round is done: what comes next, a turn or the merge, may run."""
    waiting = (job_shards.c.job_id == job_id) & (job_shards.c.state == ShardState.WAITING.value)
    following = sa.select(sa.func.min(job_shards.c.round)).where(waiting).scalar_subquery()
    await tx.execute(
        sa.update(job_shards)
        .where(waiting, job_shards.c.round == following)
        .values(state=ShardState.READY.value, ready_at=now)
    )


async def cancel(tx: AsyncConnection, job_id: str, principal: Principal, now: datetime) -> None:
    """Cancel a job: at once when nothing runs yet, else as soon as its running shards noticed.

    Raises:
        NotFound: there is no such job, or it is somebody else's.
        Conflict: it has ended, or is publishing.
    """
    row = await find(tx, principal, job_id, locks=True)
    state = JobState(row.state)
    if state in TERMINAL or state is JobState.PUBLISHING:
        raise Conflict(f"Job {job_id} is {row.state}; it can no longer be cancelled.")
    if state is JobState.RUNNING:
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(is_cancelling=True))
    else:
        await move(tx, job_id, state, JobEvent.CANCEL, now=now, finished_at=now)
        if row.resumed_from is not None:
            await forget(tx, row, now)
    await notify(tx)


async def wait(
    db: Database, job_id: str, timeout_s: float, *, place: AbstractContextManager[None] | None = None
) -> Row[Any]:
    """The job's row once it has ended, or as it is after `timeout_s`, or now where there is no `place` to wait at.

    Raises:
        NotFound: it was deleted meanwhile, with its project.
    """
    with suppress(TooManyWaits), place or nullcontext():  # the job is made: its answer is not to be refused
        await feed_of(db).end(job_id, timeout_s)
    async with db.read() as tx:
        row = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id))).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return row


async def move(
    tx: AsyncConnection,
    job_id: str,
    state: JobState,
    event: JobEvent,
    *,
    now: datetime,
    data: Mapping[str, Any] | None = None,
    **values: Any,
) -> None:
    """Take a job out of `state` by `event`, set further columns, and append the event.

    A job's end is logged with the id of the request that created it, wherever it ends.

    Raises:
        InvalidTransition: the event cannot happen in that state.
        Conflict: the job is not in that state any more.
    """
    after = advance(state, event)
    moved = await tx.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == state.value)
        .values(state=after.value, **values)
        .returning(jobs.c.request_id)
    )
    row = moved.one_or_none()
    if row is None:
        raise Conflict(f"Job {job_id} is no longer {state.value}.")
    if after in {JobState.FAILED, JobState.CANCELLED}:
        await charges.release(tx, job_id, now=now)
    if after in TERMINAL:
        await tx.execute(
            sa.update(job_shards)
            .where(job_shards.c.job_id == job_id, job_shards.c.state != ShardState.DONE.value)
            .values(state=ShardState.FAILED.value, lease_until=None)
        )
        log.info(f"jobs.{event.value}", job=job_id, request_id=row.request_id)
        await notify(tx)  # whoever waits for the end
    await append(tx, job_id, event.value, data or {}, now)


async def append(tx: AsyncConnection, job_id: str, kind: str, data: Mapping[str, Any], now: datetime) -> None:
    """Append an event."""
    await tx.execute(sa.insert(job_events).values(job_id=job_id, type=kind, data=dict(data), at=now))
