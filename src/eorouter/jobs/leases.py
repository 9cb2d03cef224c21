"""What became of claimed shards: recorded, tried again, given back, taken back.

A shard's output counts only if, in the transaction that records it, the shard is still leased under the same token.
Claiming raises the token, so of two dispatchers, or of a dispatcher and its own ghost, only the later one's try counts.
Transactions lock job rows before shard rows and in order of id, so that two dispatchers do not wait for each other.
"""

import logging
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.jobs import journal
from eorouter.jobs.attempts import RESUMABLE, attempts_key, forget
from eorouter.jobs.claims import LEASE_S, Claim
from eorouter.jobs.queue import append, move, ready_next, shard_row
from eorouter.jobs.states import JobEvent, JobState, ShardState
from eorouter.storage import uploads
from eorouter.storage.deletions import delete_later
from eorouter.storage.tables import job_shards, jobs
from eorouter_compute import method
from eorouter_compute.errors import PartsLost
from eorouter_compute.method import Bound, Retries, Shard, total
from eorouter_compute.orders import MERGE, Failure, Outcome

_MEMORY_ATTEMPT_LIMIT = 3  # as planned, then in pieces of half the side, then of a quarter
_FREE_TRIES = 16
"""So many tries of a shard may end without counting; who is a bystander that often is one no more, and each counts."""
_RELEASES = 256
"""So many may be given back in order besides. A rolling restart is none of the shard's doing, however often one comes,
but a shard that fills the disk has its machine cleared in good order too, again and again."""
_JITTER = 0.25  # shards that failed together do not come back together

log = structlog.get_logger(__name__)


class Landed(Struct, frozen=True, kw_only=True):
    """A claim whose order came back; `pixels` of it were already counted as progress."""

    claim: Claim
    outcome: Outcome
    pixels: int = 0


def backoff(attempt: int, retries: Retries = Retries()) -> timedelta:  # noqa: B008 - frozen
    """How long to wait after the given number of failed tries: doubled each time, give or take a quarter."""
    seconds = min(retries.backoff_s * 2 ** (attempt - 1), retries.backoff_max_s)
    return timedelta(seconds=seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - nobody gains by a guess


def retries_of(method_id: str) -> Retries:
    """What the method says about tries; the usual where its module is no longer installed."""
    found = method.methods().get(method_id)
    return Retries() if found is None else found.retries


async def record(tx: AsyncConnection, landed: Iterable[Landed], *, now: datetime) -> list[str]:
    """Write down what became of orders; returns the jobs that are now publishing."""
    publishing: list[str] = []
    ordered = sorted(landed, key=lambda each: each.claim.run)
    held = {job.id: job for job in await _hold(tx, {each.claim.job_id for each in ordered}, jobs)}
    for job_id, group in groupby(ordered, key=lambda each: each.claim.job_id):
        job = held.get(job_id)
        if job is None:
            continue  # deleted with its project
        if await _record_job(tx, job, list(group), now):
            publishing.append(job_id)
    return publishing


async def _record_job(tx: AsyncConnection, job: sa.Row[Any], landed: list[Landed], now: datetime) -> bool:
    failed = [each for each in landed if each.outcome.failure is not None]
    done, timings = await _finish(tx, job, [each for each in landed if each.outcome.failure is None], now)
    merged = next((each for each in done if each.outcome.result is not None), None)
    lines = await journal.keep(tx, job, landed, now)
    gained = sum(_pixels(each) - each.pixels for each in done)
    shards = [each.claim.number for each in done if each.claim.number > MERGE]
    shards_done = job.shards_done + len(shards)
    if done or lines:
        values = {"shards_done": shards_done, "pixels_done": jobs.c.pixels_done + gained}
        values |= {"timing": journal.total(job.timing, timings), "log_lines": job.log_lines + lines}
        await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(values))
    if shards:
        progress = {"shards": shards, "shards_done": shards_done, "shards_total": job.shards_total}
        await append(tx, job.id, "shard.completed", progress | {"pixels_done": job.pixels_done + gained}, now)
        if shards_done == job.shards_total and merged is None:
            await ready_next(tx, job.id, now)
    for each in failed:
        if await fail_shard(tx, job, each, now):
            return False
    for each in done:
        if each.claim.number < MERGE:
            await _begin_round(tx, job, each, now)
    if merged is not None:
        claim = merged.claim
        values = {"at_job": job.id, "at_shard": claim.number, "at_token": claim.token, "result": merged.outcome.result}
        await tx.execute(_MERGED, values)
    if (merged or any(each.claim.number == MERGE for each in done)) and not job.is_cancelling:
        await move(tx, job.id, JobState.RUNNING, JobEvent.PUBLISH, now=now)
        return True
    return False


def _pixels(landed: Landed) -> int:
    """What a shard that is done counts: all that was planned, unless the plan could not know."""
    planned = landed.claim.bound.pixels
    return min(landed.outcome.pixels, planned) if method.is_blind(landed.claim.method) else planned


async def _begin_round(tx: AsyncConnection, job: sa.Row[Any], turned: Landed, now: datetime) -> None:
    """Add the shards that a turn made; of a round without any, what comes next is ready at once."""
    claim = turned.claim
    shards = msgspec.msgpack.decode(turned.outcome.part or b"", type=tuple[Shard, ...])
    if not shards:
        await ready_next(tx, job.id, now)
        return
    made, promised = total(shard.bound for shard in shards), claim.bound
    if made.bytes_read > promised.bytes_read or made.bytes_written > promised.bytes_written:
        log.error("jobs.round.exceeds", job=job.id, method=job.method, round=claim.round, made=made, promised=promised)
    rows = [
        shard_row(job.id, number, claim.round, shard, now, state=ShardState.READY)
        for number, shard in enumerate(shards, job.shards_total)
    ]
    await tx.execute(sa.insert(job_shards), rows)
    await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(shards_total=job.shards_total + len(rows)))
    began = {"round": claim.round, "shards": len(rows), "shards_total": job.shards_total + len(rows)}
    await append(tx, job.id, "round.started", began, now)


async def _finish(
    tx: AsyncConnection, job: sa.Row[Any], landed: list[Landed], now: datetime
) -> tuple[list[Landed], list[dict[str, Any]]]:
    """Mark shards done whose token is still current; returns them with their timings; has the others' objects deleted.

    Two statements for any number of shards. Nobody changes them in between: all who do lock the job's row first.
    """
    if not landed:
        return [], []
    rows = await tx.execute(
        sa.select(job_shards.c.number, job_shards.c.token, job_shards.c.ready_at)
        .where(job_shards.c.job_id == job.id, job_shards.c.number.in_([each.claim.number for each in landed]))
        .where(job_shards.c.state == ShardState.LEASED.value)
    )
    current = {(row.number, row.token): row.ready_at for row in rows}
    done = [each for each in landed if (each.claim.number, each.claim.token) in current]
    timings = [
        journal.timing(each.outcome, ready_at=current[each.claim.number, each.claim.token], now=now) for each in done
    ]
    if done:
        await tx.execute(_FINISH, [_finished(*each) for each in zip(done, timings, strict=True)])
    for each in landed:
        if (each.claim.number, each.claim.token) not in current:
            await _discard(tx, job, each.claim, now)
    return done, timings


def _finished(landed: Landed, timing: dict[str, Any]) -> dict[str, Any]:
    claim, outcome = landed.claim, landed.outcome
    return {
        "at_job": claim.job_id,
        "at_number": claim.number,
        "at_token": claim.token,
        "part": outcome.part,
        "timing": timing,
    }


_FINISH = (
    sa.update(job_shards)
    .where(job_shards.c.job_id == sa.bindparam("at_job"), job_shards.c.number == sa.bindparam("at_number"))
    .where(job_shards.c.token == sa.bindparam("at_token"), job_shards.c.state == ShardState.LEASED.value)
    .values(
        state=ShardState.DONE.value, part=sa.bindparam("part"), timing=sa.bindparam("timing"), lease_until=sa.null()
    )
)


_only = job_shards.alias("only")
_MERGED = (
    sa.update(job_shards)
    .where(job_shards.c.job_id == sa.bindparam("at_job"), job_shards.c.number == MERGE)
    .values(
        state=ShardState.DONE.value,
        part=sa.bindparam("result"),
        token=sa.bindparam("at_token"),
        attempt=1,
        owner=sa.select(_only.c.owner)
        .where(_only.c.job_id == sa.bindparam("at_job"), _only.c.number == sa.bindparam("at_shard"))
        .scalar_subquery(),
    )
)
"""The merge that the only shard's worker did along with it; its time is the shard's, and so is its owner, who publishes
the job: what has none, every dispatcher takes up."""


def _current(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    """The shard's row, only while this try is the one that counts."""
    return (
        job_shards.c.job_id == claim.job_id,
        job_shards.c.number == claim.number,
        job_shards.c.token == claim.token,
        job_shards.c.state == ShardState.LEASED.value,
    )


async def _discard(tx: AsyncConnection, job: sa.Row[Any], claim: Claim, now: datetime) -> None:
    """Have a stale try's objects deleted: nobody will ever read them."""
    log.info("jobs.shard.stale", job=claim.job_id, shard=claim.number, token=claim.token, request_id=job.request_id)
    numbers = (claim.number, MERGE) if claim.merges else (claim.number,)
    attempts = attempts_key(job.org_id, job.project_id, job.id)
    await delete_later(tx, job.org_id, now=now, prefixes=[f"{attempts}{number}/{claim.token}/" for number in numbers])


async def fail_shard(tx: AsyncConnection, job: sa.Row[Any], landed: Landed, now: datetime) -> bool:
    """Retry a shard later, or fail its job by name; returns True when the job failed."""
    claim, outcome = landed.claim, landed.outcome
    failure, counts = _judged(claim, outcome)
    tries = claim.attempt - (not counts)
    retries = retries_of(job.method)
    limits = {"request": 0, "source": retries.source_attempts, "memory": _MEMORY_ATTEMPT_LIMIT}
    limit = limits.get(failure.kind, retries.attempts)
    gives_up = tries >= limit and failure.kind != "cancelled"
    lost = failure.data["places"] if failure.code == PartsLost.code and claim.number <= MERGE else ()
    state = ShardState.FAILED if gives_up else ShardState.WAITING if lost else ShardState.READY
    changed = await tx.execute(
        sa.update(job_shards)
        .where(*_current(claim))
        .values(
            state=state.value,
            attempt=tries,
            owner=None,
            lease_until=None,
            timing=None,
            halvings=claim.halvings + (failure.kind == "memory" and counts),
            ready_at=now + backoff(max(claim.attempt, 1), retries),
        )
    )
    if changed.rowcount == 0:
        await _discard(tx, job, claim, now)
        return False
    if landed.pixels:
        await _count(tx, job.id, -landed.pixels)
    log.log(
        logging.INFO if failure.kind in {"request", "source", "cancelled"} else logging.WARNING,
        "jobs.shard.failed",
        job=job.id,
        shard=claim.number,
        attempt=claim.attempt,
        code=failure.code,
        message=failure.message,
        traceback=failure.traceback if failure.kind == "defect" else "",
        request_id=job.request_id,
    )
    if job.is_cancelling:
        return False
    if gives_up:
        await fail_job(tx, job, JobState(job.state), problem(failure, shard=claim.number), now)
        return True
    data = {"shard": claim.number, "attempt": claim.attempt, "code": failure.code, "message": failure.message}
    await append(tx, job.id, "shard.retried", data, now)
    if lost:
        await _make_anew(tx, job, claim, lost, now)
    return False


async def _make_anew(tx: AsyncConnection, job: sa.Row[Any], claim: Claim, places: Sequence[int], now: datetime) -> None:
    """Ready shards that were done, by their places in the round before: the claimed turn or merge waits for them again.

    They keep their tries, so what is lost again and again fails the job in the end.
    """
    mine = (job_shards.c.job_id == job.id) & (job_shards.c.number > MERGE) & (job_shards.c.round == claim.round - 1)
    rows = (
        await tx.execute(sa.select(job_shards.c.number, job_shards.c.bound).where(mine).order_by(job_shards.c.number))
    ).all()
    gone = [rows[place] for place in places]
    await tx.execute(_ANEW, [{"at_job": job.id, "at_number": row.number, "at_time": now} for row in gone])
    # What a blind plan's shard did was counted as it came, and is not known any more.
    pixels = 0 if method.is_blind(job.method) else sum(int(row.bound["pixels"]) for row in gone)
    counts = {"shards_done": jobs.c.shards_done - len(gone), "pixels_done": jobs.c.pixels_done - pixels}
    await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(counts))


_ANEW = (
    sa.update(job_shards)
    .where(job_shards.c.job_id == sa.bindparam("at_job"), job_shards.c.number == sa.bindparam("at_number"))
    .values(
        state=ShardState.READY.value, part=sa.null(), owner=sa.null(), timing=sa.null(),
        ready_at=sa.bindparam("at_time"),
    )
)  # fmt: skip


def _judged(claim: Claim, outcome: Outcome) -> tuple[Failure, bool]:
    """Why a try failed, and whether it counts: a bystander's does not, up to a number of times."""
    failure = outcome.failure
    if failure is None:
        raise ValueError("Only a failed order can be a failed shard.")
    free = claim.token - claim.attempt - claim.released  # a claim raises the first two, and ends as one of the three
    if not outcome.is_bystander or free < _FREE_TRIES:
        return failure, not outcome.is_bystander
    lost = f"Of {claim.token} tries of the shard none brought an answer: its worker was lost before, or its dispatcher."
    return msgspec.structs.replace(failure, kind="machine", code="worker_lost", message=lost), True


def problem(failure: Failure, *, shard: int) -> dict[str, Any]:
    """What the job's owner is told."""
    found: dict[str, Any] = {"code": failure.code, "message": failure.message}
    if shard > MERGE:
        found["shard"] = shard
    return found | ({"pointer": failure.pointer} if failure.pointer else {})


async def fail_job(
    tx: AsyncConnection, job: sa.Row[Any], state: JobState, found: Mapping[str, Any], now: datetime
) -> None:
    """End a job with a problem, and all that hangs on it; what shards finished is kept for a job that resumes it."""
    done = sa.exists().where(job_shards.c.job_id == job.id, job_shards.c.state == ShardState.DONE.value)
    known = method.methods().get(job.method)
    keeps = known is not None and not known.is_internal and (await tx.execute(sa.select(done))).scalar_one()
    await move(
        tx, job.id, state, JobEvent.FAIL, now=now, data=found, problem=dict(found), finished_at=now,
        resumable_until=now + RESUMABLE if keeps else None,
    )  # fmt: skip
    await uploads.settle(tx, job.id, item_id=None, problem=dict(found), now=now)
    if not keeps:
        await forget(tx, job, now)


async def fail_overdue(tx: AsyncConnection, *, now: datetime) -> list[str]:
    """Fail running jobs that are past their time limit; returns their ids."""
    overdue = sa.select(jobs).where(jobs.c.state == JobState.RUNNING.value, jobs.c.deadline_at < now)
    rows = (await tx.execute(overdue.order_by(jobs.c.id).with_for_update())).all()
    for job in rows:
        message = (
            f"The job ran for longer than its time limit of {job.time_limit_s} s; {job.shards_done} of "
            f"{job.shards_total} shards were done."
        )
        await fail_job(tx, job, JobState.RUNNING, {"code": "job_time_limit", "message": message}, now)
    return [job.id for job in rows]


async def _hold(
    tx: AsyncConnection, job_ids: Collection[str], reads: sa.Table | sa.Column[str] = jobs.c.id
) -> Sequence[sa.Row[Any]]:
    """Lock jobs, all at once, before their shards and before any account; returns their rows, or as much as is read.

    Whoever took them in another order could wait for somebody who ends one of the jobs, and who waits for them.
    """
    query = sa.select(reads).where(jobs.c.id.in_(sorted(job_ids))).order_by(jobs.c.id).with_for_update()
    return (await tx.execute(query)).all() if job_ids else ()


async def _count(tx: AsyncConnection, job_id: str, pixels: int) -> None:
    await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(pixels_done=jobs.c.pixels_done + pixels))


async def renew(
    tx: AsyncConnection, claims: Iterable[tuple[Claim, int, int]], *, now: datetime
) -> set[tuple[str, int, int]]:
    """Extend leases and count progress; returns the tries that lost theirs.

    Args:
        tx: a write transaction.
        claims: what this dispatcher has in flight, with the pixels counted before and the pixels done now.
        now: the time.
    """
    lost: set[tuple[str, int, int]] = set()
    gained: dict[str, int] = {}
    claims = list(claims)
    await _hold(tx, {each.job_id for each, _, _ in claims})
    for each, before, pixels in claims:
        changed = await tx.execute(
            sa.update(job_shards)
            .where(*_current(each))
            .values(lease_until=now + timedelta(seconds=LEASE_S), timing={"pixels": pixels})
        )
        if changed.rowcount == 0:
            lost.add(each.run)
        else:
            gained[each.job_id] = gained.get(each.job_id, 0) + pixels - before
    for job_id, pixels in sorted(gained.items()):
        if pixels:
            await _count(tx, job_id, pixels)
            row = (await tx.execute(sa.select(jobs.c.pixels_done).where(jobs.c.id == job_id))).one()
            await append(tx, job_id, "job.progressed", {"pixels_done": row.pixels_done}, now)
    return lost


async def reap(tx: AsyncConnection, *, now: datetime, dead_owners: Collection[str] = ()) -> int:
    """Take back shards whose lease ran out or whose owner is known to be dead; returns how many."""
    expired = job_shards.c.lease_until < now
    if dead_owners:
        expired |= job_shards.c.owner.in_(list(dead_owners))
    rows = (
        await tx.execute(
            sa.select(job_shards.c.job_id, job_shards.c.number, job_shards.c.token, job_shards.c.attempt)
            .add_columns(job_shards.c.timing, job_shards.c.released)
            .where(job_shards.c.state == ShardState.LEASED.value, expired)
            .order_by(job_shards.c.job_id, job_shards.c.number)
        )
    ).all()
    failure = Failure(kind="machine", code="worker_lost", message="The process that ran the shard is gone.")
    await _hold(tx, {row.job_id for row in rows})
    for row in rows:
        job = (await tx.execute(sa.select(jobs).where(jobs.c.id == row.job_id))).one()
        ghost = Claim(
            job_id=row.job_id, org_id=job.org_id, method=job.method, number=row.number, token=row.token,
            attempt=row.attempt, released=row.released, round=0, body=b"", bound=Bound(),
            is_interactive=job.is_interactive, request_id=job.request_id,
        )  # fmt: skip
        pixels = int((row.timing or {}).get("pixels", 0))
        if JobState(job.state) is JobState.RUNNING:
            await fail_shard(tx, job, Landed(claim=ghost, outcome=Outcome(failure=failure), pixels=pixels), now)
    return len(rows)


async def release(tx: AsyncConnection, claims: Iterable[tuple[Claim, int]], *, now: datetime) -> None:
    """Give leases back unharmed, with the pixels counted: the dispatcher stops, the shards did nothing wrong.

    Such a try counts as nothing, not as a free one either; who was given back all too often has failed each time.
    """
    ordered = sorted(claims, key=lambda one: one[0].run)
    held = {job.id: job for job in await _hold(tx, {each.job_id for each, _ in ordered}, jobs)}
    for job_id, group in groupby(ordered, key=lambda one: one[0].job_id):
        job = held.get(job_id)
        if job is None:
            continue  # deleted with its project
        for each, pixels in group:
            if each.released < _RELEASES:
                await _give_back(tx, each, pixels, now)
            elif await fail_shard(tx, job, Landed(claim=each, outcome=_STOPPED, pixels=pixels), now):
                break


async def _give_back(tx: AsyncConnection, claim: Claim, pixels: int, now: datetime) -> None:
    changed = await tx.execute(
        sa.update(job_shards)
        .where(*_current(claim))
        .values(
            state=ShardState.READY.value,
            attempt=claim.attempt - 1,
            released=claim.released + 1,
            owner=None,
            lease_until=None,
            timing=None,
            ready_at=now,
        )
    )
    if changed.rowcount and pixels:
        await _count(tx, claim.job_id, -pixels)


_STOPPED = Outcome(
    failure=Failure(
        kind="machine",
        code="worker_lost",
        message=f"Whatever ran the shard was told to stop before it was done, more than {_RELEASES} times.",
    )
)


async def end_cancelled(tx: AsyncConnection, *, now: datetime) -> list[str]:
    """Move jobs that are being cancelled to `cancelled` once none of their shards is leased; returns their ids."""
    leased = sa.exists().where(job_shards.c.job_id == jobs.c.id, job_shards.c.state == ShardState.LEASED.value)
    query = sa.select(jobs).where(jobs.c.state == JobState.RUNNING.value, jobs.c.is_cancelling.is_(True), ~leased)
    rows = (await tx.execute(query.order_by(jobs.c.id).with_for_update())).all()
    for job in rows:
        await move(tx, job.id, JobState.RUNNING, JobEvent.CANCEL, now=now, finished_at=now)
        told = {"code": "cancelled", "message": "The job was cancelled."}
        await uploads.settle(tx, job.id, item_id=None, problem=told, now=now)
        await forget(tx, job, now)
    return [job.id for job in rows]
