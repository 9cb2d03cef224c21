"""Which shards a dispatcher takes next, and how it takes them: under a lease and a fencing token.

Whose turn it is says `fairness`; here are the limits that are facts of the database: an organisation that is paused
gets nothing, one with a limit on shards under way gets no more than that, over all dispatchers together.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.jobs.fairness import FairShare, Lane
from eorouter.jobs.queue import move
from eorouter.jobs.states import JobEvent, JobState, ShardState
from eorouter.storage.tables import job_shards, jobs, organisations
from eorouter_compute.method import Bound
from eorouter_compute.orders import MERGE

LEASE_S = 30.0

FROM_THE_FIRST = -(1 << 31)
"""Below every number of a shard, a turn or a merge."""

_OPEN_PER_ORG = 64
_CLAIMED = ("number", "token", "attempt", "round", "body", "bound", "halvings", "released")


class Claim(Struct, frozen=True, kw_only=True):
    """A shard this dispatcher answers for; with `merges` it is the only one, and its worker merges it at once."""

    job_id: str
    org_id: str
    method: str
    number: int
    token: int
    attempt: int
    round: int
    body: bytes
    bound: Bound
    is_interactive: bool
    request_id: str
    halvings: int = 0
    released: int = 0
    merges: bool = False

    @property
    def run(self) -> tuple[str, int, int]:
        """Identity of this try."""
        return self.job_id, self.number, self.token


class OpenJob(Struct, frozen=True, kw_only=True):
    """A job that may have shards to run.

    Attributes:
        id: the job.
        lane: whose, and how urgent.
        load: part of a place in the window that one of its shards takes; small where shards are known to be short.
        start: number below which its shards were claimed before; they are looked at again when none is left above.
    """

    id: str
    lane: Lane
    load: float = 1.0
    start: int = FROM_THE_FIRST


class Taken(Struct, frozen=True, kw_only=True):
    """What a turn claimed; jobs that had no more to give, and the organisations among theirs that are at a limit."""

    claims: list[Claim] = []
    dry: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()


async def open_jobs(tx: AsyncConnection) -> list[OpenJob]:
    """Jobs that may have shards to run: per organisation and class the oldest, so that nobody's flood hides another."""
    place = sa.func.row_number().over(partition_by=(jobs.c.org_id, jobs.c.is_interactive), order_by=jobs.c.id)
    found = (
        sa.select(jobs.c.id, jobs.c.org_id, jobs.c.is_interactive, place.label("place"))
        .join(organisations, organisations.c.id == jobs.c.org_id)
        .where(jobs.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]), jobs.c.is_cancelling.is_(False))
        .where(organisations.c.paused_at.is_(None))
        .subquery()
    )
    rows = await tx.execute(sa.select(found).where(found.c.place <= _OPEN_PER_ORG).order_by(found.c.id))
    return [OpenJob(id=row.id, lane=(row.org_id, bool(row.is_interactive))) for row in rows]


async def claim(
    tx: AsyncConnection, waiting: Sequence[OpenJob], *, share: FairShare, room: float, owner: str, now: datetime
) -> Taken:
    """Lease ready shards, fairly, until their loads fill `room`."""
    if not waiting or room <= 0:
        return Taken()
    places = await _places(tx, {job.lane[0] for job in waiting}, share)
    lanes: dict[Lane, list[OpenJob]] = {}
    for job in waiting:
        if places.get(job.lane[0], 0) > 0:
            lanes.setdefault(job.lane, []).append(job)
    chosen: dict[str, list[int]] = {}
    costs: dict[tuple[str, int], float] = {}
    jobs_of = {job.id: job for job in waiting}
    ready: dict[str, list[tuple[int, float]]] = {}
    short: set[str] = set()
    while lanes and room > 0:
        lane = share.next_lane(lanes)
        job = lanes[lane][0]
        if job.id not in ready:
            limit = math.ceil(room / job.load)
            ready[job.id] = await _ready(tx, job, limit, now)
            if len(ready[job.id]) < limit:
                short.add(job.id)
        if not ready[job.id]:
            lanes[lane].pop(0)
            if not lanes[lane]:
                del lanes[lane]
            continue
        number, cost_s = ready[job.id].pop(0)
        share.charge(lane, cost_s)
        costs[job.id, number] = cost_s
        chosen.setdefault(job.id, []).append(number)
        room -= job.load
        places[lane[0]] -= 1
        if places[lane[0]] <= 0:
            lanes = {each: queue for each, queue in lanes.items() if each[0] != lane[0]}
    claims = [
        each
        for job_id in sorted(chosen)
        for each in await _lease(tx, jobs_of[job_id], chosen[job_id], owner=owner, now=now)
    ]
    for each in claims:
        if each.merges:  # its bound is the whole job's, and the merge runs with the shard
            share.add(
                (each.org_id, each.is_interactive), max(each.bound.seconds - costs[each.job_id, each.number], 0.0)
            )
    full = frozenset(job.lane[0] for job in waiting if places.get(job.lane[0], 0) <= 0)
    dry = {job.id for job in waiting if job.lane[0] in full} | {job_id for job_id in short if not ready[job_id]}
    return Taken(claims=claims, dry=frozenset(dry), full=full)


async def _places(tx: AsyncConnection, orgs: set[str], share: FairShare) -> dict[str, float]:
    """How many more shards each organisation may have under way; the share learns their weights."""
    columns = (organisations.c[name] for name in ("id", "paused_at", "weight", "shards_max"))
    rows = (await tx.execute(sa.select(*columns).where(organisations.c.id.in_(sorted(orgs))))).all()
    share.weigh({row.id: row.weight for row in rows})
    places = {row.id: 0.0 if row.paused_at is not None else math.inf for row in rows}
    for row in rows:
        if row.shards_max is not None and row.paused_at is None:
            places[row.id] = await _left_of(tx, row.id, row.shards_max)
    return places


async def _left_of(tx: AsyncConnection, org_id: str, shards_max: int) -> float:
    """What is left of an organisation's limit. While another dispatcher claims for it, nothing is: it is counting."""
    if tx.dialect.name == "postgresql":
        lock = sa.func.pg_try_advisory_xact_lock(sa.func.hashtextextended(f"eorouter shards of {org_id}", 0))
        if not (await tx.execute(sa.select(lock))).scalar_one():
            return 0
    leased = (
        sa.select(sa.func.count())
        .select_from(job_shards.join(jobs, jobs.c.id == job_shards.c.job_id))
        .where(job_shards.c.state == ShardState.LEASED.value, jobs.c.org_id == org_id)
    )
    return max(shards_max - (await tx.execute(leased)).scalar_one(), 0)


async def _ready(tx: AsyncConnection, job: OpenJob, limit: int, now: datetime) -> list[tuple[int, float]]:
    """Numbers and estimated seconds of a job's first ready shards."""
    query = (
        sa.select(job_shards.c.number, job_shards.c.bound)
        .where(job_shards.c.job_id == job.id, job_shards.c.state == ShardState.READY.value)
        .where(job_shards.c.ready_at <= now)
        .order_by(job_shards.c.number)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # Those claimed already lie in front; reading over thousands of them in every turn would cost more than the work.
    rows = (await tx.execute(query.where(job_shards.c.number >= job.start))).all()
    if len(rows) < limit and job.start > FROM_THE_FIRST:
        rows = (await tx.execute(query)).all()
    return [(row.number, float(row.bound.get("seconds", 0.0))) for row in rows]


async def _lease(tx: AsyncConnection, job: OpenJob, numbers: list[int], *, owner: str, now: datetime) -> list[Claim]:
    held = await _held(tx, job.id)
    if held is None:
        return []
    merges = held.shards_total == 1 and not held.has_turns
    rows = await tx.execute(
        sa.update(job_shards)
        .where(job_shards.c.job_id == job.id, job_shards.c.number.in_(numbers))
        .where(job_shards.c.state == ShardState.READY.value)
        .values(
            state=ShardState.LEASED.value,
            owner=owner,
            token=job_shards.c.token + 1,
            attempt=job_shards.c.attempt + 1,
            lease_until=now + timedelta(seconds=LEASE_S),
            timing=None,
        )
        .returning(*(job_shards.c[name] for name in _CLAIMED))
    )
    claims = [
        Claim(
            job_id=job.id,
            org_id=job.lane[0],
            number=row.number,
            token=row.token,
            attempt=row.attempt,
            round=row.round,
            body=row.body,
            bound=msgspec.convert(held.bound if merges and row.number > MERGE else row.bound, Bound),
            halvings=row.halvings,
            released=row.released,
            merges=merges and row.number > MERGE,
            is_interactive=job.lane[1],
            method=held.method,
            request_id=held.request_id,
        )
        for row in rows
    ]
    if held.state == JobState.QUEUED and claims:
        deadline = None if held.time_limit_s is None else now + timedelta(seconds=held.time_limit_s)
        await move(tx, job.id, JobState.QUEUED, JobEvent.START, now=now, started_at=now, deadline_at=deadline)
    return claims


async def _held(tx: AsyncConnection, job_id: str) -> sa.Row[Any] | None:
    """The job's row, locked; None while somebody else holds it, and once it is being cancelled.

    Waiting for it here could close a circle: this transaction may hold another job that the other one waits for.
    """
    columns = (jobs.c[name] for name in ("state", "request_id", "method", "time_limit_s", "shards_total", "bound"))
    has_turns = sa.exists().where(job_shards.c.job_id == job_id, job_shards.c.number < MERGE).label("has_turns")
    query = sa.select(*columns, has_turns).where(jobs.c.id == job_id, jobs.c.is_cancelling.is_(False))
    return (await tx.execute(query.with_for_update(skip_locked=True))).one_or_none()
