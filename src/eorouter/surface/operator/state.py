"""What the operator's page shows, as data: `GET /operator/state`.

Everything but the ledger is read when it is asked for, in one snapshot. The ledger is checked by replaying all of its
log, so that is done beside, at most every `LEDGER_EVERY`, and only while somebody looks.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from eorouter.commerce import ledger
from eorouter.jobs import census, charges
from eorouter.jobs.census import CLASSES, Failures, Minute, Queue, Waiting
from eorouter.storage import Stores, dispatchers
from eorouter.storage.database import Database
from eorouter.surface import readiness
from eorouter.surface.operator.dashboard import admissible
from eorouter.surface.readiness import Readiness, SchemaCheck

LEDGER_EVERY = timedelta(minutes=5)
SILENT_S = 10.0
"""A worker that is well says something to its scheduler twice a second."""

INTERACTIVE_WAIT_S = 60.0
IDLE_WAIT_S = 60.0
"""Longest that a shard may be ready while every worker is idle; workers may be starting."""

PUBLISHING_S = 600.0
_CLOSING_S = 3.0
_LANES_MAX = 50
_MOURNED_S = 900.0  # what died longer ago was noticed, or was not missed

log = structlog.get_logger(__name__)


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is open of one class: jobs, their shards that are not done, and the longest wait of a shard."""

    kind: str
    queued: int
    running: int
    shards: int
    age_s: float


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker by its scheduler's last word: `executing` of its threads are busy, `shards` are those it was given."""

    name: str
    dispatcher_id: str
    host: str
    threads: int
    executing: int
    shards: tuple[str, ...]
    memory_bytes: int
    memory_limit_bytes: int
    silent_s: float


class Dispatcher(msgspec.Struct, frozen=True, kw_only=True):
    """A dispatcher by its last heartbeat.

    Attributes:
        threads, threads_there: those it may use, and those of the workers that it sees.
        in_flight: shards with its cluster.
        dashboard: address of its Dask pages below this service, where this process reaches them.
    """

    id: str
    host: str
    started_at: datetime
    silent_s: float
    is_alive: bool
    version: str
    build: str
    workers: int
    threads: int
    threads_there: int
    in_flight: int
    dashboard: str | None


class LedgerState(msgspec.Struct, frozen=True, kw_only=True):
    """The last check of the ledger: what does not agree, or why it could not be checked."""

    checked_at: datetime | None = None
    seconds: float = 0.0
    faults: tuple[str, ...] = ()
    problem: str = ""
    is_running: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The installation at a moment; `troubles` are what somebody should look at, worst first."""

    at: datetime
    troubles: tuple[str, ...]
    readiness: Readiness
    lanes: tuple[Lane, ...]
    organisations: tuple[Queue, ...]
    oldest: Waiting | None
    jobs: dict[str, int]
    minutes: tuple[Minute, ...]
    failures: tuple[Failures, ...]
    dispatchers: tuple[Dispatcher, ...]
    workers: tuple[Worker, ...]
    ledger: LedgerState


class LedgerCheck:
    """Replays the ledger now and then, one replay at a time."""

    def __init__(self, db: Database, *, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._clock = clock
        self._last = LedgerState()
        self._running: asyncio.Task[None] | None = None

    def look(self) -> LedgerState:
        """The last result; when it is old, a check begins beside."""
        at = self._last.checked_at
        if at is None or self._clock() - at >= LEDGER_EVERY:
            self._begin()
        return msgspec.structs.replace(self._last, is_running=self._is_running)

    async def now(self) -> None:
        """Check, or wait for the check that runs."""
        await asyncio.shield(self._begin())

    async def close(self) -> None:
        """Let the check that runs end, or after a while give it up."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=_CLOSING_S)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    @property
    def _is_running(self) -> bool:
        return self._running is not None and not self._running.done()

    def _begin(self) -> "asyncio.Task[None]":
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._check())
        return self._running

    async def _check(self) -> None:
        began = self._clock()
        faults, problem = (), ""
        try:
            async with self._db.read(sees_one_moment=True) as tx:
                faults = tuple(await ledger.verify(tx, ended=await charges.forgotten(tx)))
        except Exception as error:
            log.exception("operator.ledger.unchecked")
            problem = f"The check broke off ({type(error).__name__}); the log of the API says why."
        now = self._clock()
        seconds = (now - began).total_seconds()
        self._last = LedgerState(checked_at=now, seconds=seconds, faults=faults, problem=problem)


async def gather(stores: Stores, check: LedgerCheck, *, schema_check: SchemaCheck, now: datetime) -> State:
    """Look at everything."""
    ready = await readiness.probe(stores, schema_check=schema_check, now=now)
    async with stores.db.read(sees_one_moment=True) as tx:
        queues = await census.queues(tx, now)
        oldest = await census.oldest(tx, now)
        jobs = await census.states(tx, now)
        minutes = await census.last_hour(tx, now)
        failures = await census.failures(tx, now)
        rows = await dispatchers.known(tx)
    here = socket.gethostname()
    known = tuple(_dispatcher(row, here, now) for row in sorted(rows, key=lambda row: row.started_at))
    workers = _workers([row for row in rows if dispatchers.is_alive(row, now=now)])
    found = State(
        at=now,
        troubles=(),
        readiness=ready,
        lanes=tuple(_lane(kind, queues) for kind in CLASSES),
        organisations=tuple(queues[:_LANES_MAX]),
        oldest=oldest,
        jobs=jobs,
        minutes=tuple(minutes),
        failures=tuple(failures),
        dispatchers=known,
        workers=workers,
        ledger=check.look(),
    )
    return msgspec.structs.replace(found, troubles=tuple(_troubles(found)))


def _lane(kind: str, queues: Sequence[Queue]) -> Lane:
    mine = [each for each in queues if each.kind == kind]
    return Lane(
        kind=kind,
        queued=sum(each.queued for each in mine),
        running=sum(each.running for each in mine),
        shards=sum(each.shards for each in mine),
        age_s=max([0.0, *(each.age_s for each in mine)]),
    )


def _dispatcher(row: sa.Row[Any], here: str, now: datetime) -> Dispatcher:
    detail, is_alive = row.detail, dispatchers.is_alive(row, now=now)
    shows = is_alive and admissible(str(detail.get("dashboard_url", "")), host=row.host, here=here) is not None
    return Dispatcher(
        id=row.id,
        host=row.host,
        started_at=row.started_at,
        silent_s=max((now - row.seen_at).total_seconds(), 0.0),
        is_alive=is_alive,
        version=str(detail.get("version", "")),
        build=str(detail.get("build", "")),
        workers=int(detail.get("workers", 0)),
        threads=int(detail.get("threads", 0)),
        threads_there=sum(node["threads"] for node in detail.get("nodes", ())),
        in_flight=int(detail.get("in_flight", 0)),
        dashboard=f"/operator/dashboard/{row.id}/status" if shows else None,
    )


def _workers(rows: Sequence[sa.Row[Any]]) -> tuple[Worker, ...]:
    """The workers that dispatchers see, each once: those of a scheduler that several share are told by each of them."""
    found: dict[tuple[str, str], Worker] = {}
    for row in rows:
        for node in row.detail.get("nodes", ()):
            key = ("", node["address"]) if "address" in node else (row.id, node["name"])
            found[key] = Worker(
                name=node["name"],
                dispatcher_id=row.id,
                host=node["host"],
                threads=node["threads"],
                executing=min(len(node["shards"]), node["threads"]),
                shards=tuple(node["shards"]),
                memory_bytes=node["memory_bytes"],
                memory_limit_bytes=node["memory_limit_bytes"],
                silent_s=float(node.get("silent_s", 0.0)),
            )
    return tuple(sorted(found.values(), key=lambda each: (each.dispatcher_id, each.name)))


def _troubles(state: State) -> list[str]:
    """What is wrong, in sentences; what only a job's owner can mend is not among it."""
    found = [f"{name}: {part.message}" for name, part in state.readiness.parts.items() if part.state != "ready"]
    if state.ledger.faults:
        found.append(f"ledger: {len(state.ledger.faults)} do not agree, first: {state.ledger.faults[0]}")
    if state.ledger.problem:
        found.append(f"ledger: {state.ledger.problem}")
    found += [
        f"worker {each.name}: silent for {each.silent_s:.0f} s." for each in state.workers if each.silent_s > SILENT_S
    ]
    found += [
        f"dispatcher {each.id}: no heartbeat for {each.silent_s:.0f} s, taken for dead."
        for each in state.dispatchers
        if not each.is_alive and each.silent_s < _MOURNED_S
    ]
    alive = [each for each in state.dispatchers if each.is_alive]
    found += [
        f"dispatcher {each.id}: {each.threads_there} of {each.threads} threads are there."
        for each in alive
        if each.threads_there < each.threads
    ]
    if len(builds := Counter(each.build for each in alive)) > 1:
        found.append(f"dispatchers: {len(builds)} builds run beside each other.")
    for lane in state.lanes:
        if lane.kind == "interactive" and lane.age_s > INTERACTIVE_WAIT_S:
            found.append(f"queue: an interactive shard has waited for {lane.age_s:.0f} s.")
    waited_s = max([0.0, *(each.age_s for each in state.organisations if not each.is_paused)])
    if waited_s > IDLE_WAIT_S and state.workers and not any(each.executing for each in state.workers):
        found.append(f"queue: a shard has waited for {waited_s:.0f} s, and every worker is idle.")
    if state.oldest is not None and state.oldest.state == "publishing" and state.oldest.age_s > PUBLISHING_S:
        found.append(
            f"queue: {state.oldest.job_id} is publishing, and was queued {state.oldest.age_s / 60:.0f} min ago."
        )
    return found
