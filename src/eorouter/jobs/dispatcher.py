"""The process between the database and Dask.

One loop takes turns. A turn is one write transaction: it records what landed since the last, and claims what fits into
the window. Then it submits. While a turn writes, more lands, so turns grow with the load and the load does not grow
with turns. Around it: a heartbeat, a pulse to the workers while anything runs, renewal and reaping of leases, the
outbox. Nothing here blocks the event loop, which it shares with Dask's scheduler.

Any number of dispatchers may serve one PostgreSQL database. What one of them knows only in memory (accounts of
fairness, which job is dry) another may not know; what matters is in the rows.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import psutil
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection

from eorouter import logs
from eorouter.commerce import ledger
from eorouter.jobs import attempts as kept
from eorouter.jobs import claims as claiming
from eorouter.jobs import leases
from eorouter.jobs.attempts import attempts_key
from eorouter.jobs.claims import Claim, OpenJob
from eorouter.jobs.fairness import FairShare
from eorouter.jobs.journal import without_addresses
from eorouter.jobs.leases import Landed
from eorouter.jobs.meters import Meters, shard_span
from eorouter.jobs.paces import WINDOW_PER_THREAD, Costs, Pace
from eorouter.jobs.processes import cluster_of
from eorouter.jobs.publish import fail as fail_publishing
from eorouter.jobs.publish import publish
from eorouter.jobs.states import TERMINAL, JobState, ShardState
from eorouter.jobs.wakeup import watch
from eorouter.settings import Settings, load, prepare, withdraw
from eorouter.storage import Stores, deletions, dispatchers, uploads
from eorouter.storage.database import Database, database_url, with_environment
from eorouter.storage.objects import Objects
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import new_id, utc_now
from eorouter_compute import faults, tracing
from eorouter_compute.cluster import Link, OtherBuild
from eorouter_compute.method import InputItem
from eorouter_compute.orders import MERGE, Failure, Outcome, ShardOrder, run_name

Run = tuple[str, int, int]

_PULSE_S = 0.25
_RENEW_S = claiming.LEASE_S / 5
_TEND_S = 1.0
_OUTBOX_S = 1.0
_EXPIRE_S = 60.0
_IDLE_POLL_S = 1.0
_CANCEL_GRACE_S = 20.0
_CLUSTER_GRACE_S = 30.0
_REFUSED_S = 10.0
_PUBLISH_LIMIT = 8
_SHARED_BYTES = 1 << 17  # parameters and inputs above this travel as an object, once, instead of with every shard
_CARDS_MAX = 256
_RETRY_S = 0.25

log = structlog.get_logger(__name__)


class _Card(msgspec.Struct, frozen=True, kw_only=True):
    """What every order of a job has in common."""

    method: str
    attempts: str
    traceparent: str
    task: bytes = b""
    inputs: bytes = b""
    shared: str | None = None


class _Flight:
    """A claim whose order is with the cluster."""

    def __init__(self, claim: Claim, load: float) -> None:
        self.claim = claim
        self.load = load
        self.born = time.monotonic()
        self.pixels = 0
        self.pixels_counted = 0
        self.outcome: Outcome | None = None
        self.grounded_at: float | None = None
        self.begun_at: float | None = None  # when a pulse first saw it execute
        self.limit_s = leases.retries_of(claim.method).attempt_s

    @property
    def is_overtime(self) -> bool:
        """It executes for longer than its method lets one try take."""
        return self.begun_at is not None and time.monotonic() - self.begun_at > self.limit_s


class Dispatcher:
    """Claims, runs, records and publishes, until told to stop."""

    def __init__(self, settings: Settings, stores: Stores, *, cluster: Link | None = None) -> None:
        self.id = new_id("dsp")
        self._stores = stores
        self._cluster = cluster or cluster_of(settings)
        self._meters = Meters(settings, stores.db)
        self._share = FairShare()
        self._wakeup = asyncio.Event()
        self._stop = asyncio.Event()
        self._writing = asyncio.Lock()  # turns and renewals both speak about flights
        self._flights: dict[Run, _Flight] = {}
        self._cards: dict[str, _Card] = {}
        self._card_locks: dict[str, asyncio.Lock] = {}
        self._dry: dict[str, float] = {}
        self._full: frozenset[str] = frozenset()
        self._paces: dict[str, Pace] = {}
        self._costs = Costs()
        self._open: list[OpenJob] = []
        self._open_until = self._open_good_until = 0.0
        self._publishing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_at = utc_now()
        self._was_woken = True
        self._stopping: set[str] = set()
        self._cluster_lost_at: float | None = None

    def stop(self) -> None:
        """Ask the dispatcher to finish: it claims no more, gives its leases back and closes the cluster."""
        self._stop.set()
        self._wakeup.set()

    def wake(self) -> None:
        """Something was committed; look at once."""
        self._was_woken = True
        self._open_good_until = 0.0
        self._wakeup.set()

    async def run(self) -> None:
        """Serve until `stop` is called."""
        await self._bury_neighbours()
        await self._beat()
        await self._cluster.start()
        await self._beat()
        log.info("dispatcher.started", id=self.id, threads=self._cluster.threads, dashboard=self._cluster.dashboard_url)
        background = [
            asyncio.create_task(watch(self._stores.db.url, self.wake)),
            asyncio.create_task(_every(dispatchers.HEARTBEAT_S, self._beat)),
            asyncio.create_task(_every(_PULSE_S, self._pulse)),
            asyncio.create_task(_every(_RENEW_S, self._renew_all)),
            asyncio.create_task(_every(_TEND_S, self._tend)),
            asyncio.create_task(_every(_OUTBOX_S, self._sweep_deletions)),
            asyncio.create_task(_every(_EXPIRE_S, self._expire)),
            asyncio.create_task(_every(_TEND_S, self._tend_cluster)),
        ]
        try:
            while not self._stop.is_set():
                await self._turn_or_wait()
        finally:
            await self._shut_down(background)

    # Turns

    async def _turn_or_wait(self) -> None:
        self._wakeup.clear()
        try:
            if await self._turn():
                return
        except (DBAPIError, NoConnection, OSError) as error:
            log.warning("dispatcher.turn.failed", error=str(error), retry_s=_RETRY_S)
            await asyncio.sleep(_RETRY_S)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wakeup.wait(), self._pause_s())

    def _pause_s(self) -> float:
        """Until the next look: sooner when the list of open jobs is old, or a dry job may have more."""
        now = time.monotonic()
        moments = [now + _IDLE_POLL_S, *self._dry.values()]
        if self._flights:
            moments.append(max(self._open_until, self._open_good_until))
        return max(min(moments) - now, 0.002)

    async def _turn(self) -> bool:
        """Record and claim in one transaction; returns False when there was nothing to do."""
        aloft = sum(flight.load for flight in self._flights.values() if flight.outcome is None)
        room = WINDOW_PER_THREAD * self._cluster.threads - aloft
        waiting = await self._waiting() if room > 0 and self._cluster.is_healthy else []
        async with self._writing:
            landed = [
                Landed(claim=flight.claim, outcome=flight.outcome, pixels=flight.pixels_counted)
                for flight in self._flights.values()
                if flight.outcome is not None
            ]
            if not landed and not waiting:
                return False
            faults.reached("record" if landed else "claim")
            now, began = utc_now(), time.perf_counter()
            async with self._stores.db.write() as tx:
                publishing = await leases.record(tx, landed, now=now)
                waiting += self._woken_by(landed, waiting)
                taken = await claiming.claim(tx, waiting, share=self._share, room=room, owner=self.id, now=now)
        self._meters.turned(time.perf_counter() - began, taken.claims, landed)
        for each in landed:
            self._learn(self._flights.pop(each.claim.run), each)
            self._dry.pop(each.claim.job_id, None)
        self._dry |= dict.fromkeys(taken.dry, time.monotonic() + _IDLE_POLL_S)
        self._full = taken.full
        for claim in taken.claims:
            pace = self._pace(claim.job_id)
            pace.start = max(pace.start, claim.number + 1)
            flight = self._flights[claim.run] = _Flight(claim, pace.load)
            self._spawn(self._fly(flight))
        for job_id in publishing:
            self._publish_soon(job_id)
        return bool(landed or taken.claims)

    async def _waiting(self) -> list[OpenJob]:
        """Jobs that may have ready shards. Read anew after commits, under load for a tenth of the time at most."""
        started = time.monotonic()
        if started >= max(self._open_until, self._open_good_until) or not self._flights:
            self._open_good_until = started + _IDLE_POLL_S  # unless a commit comes while it is read
            async with self._stores.db.read() as tx:
                self._open = await claiming.open_jobs(tx)
            ended = time.monotonic()
            self._open_until = ended + 10 * (ended - started)
            self._share.settle({job.lane[0] for job in self._open})
            ids = {job.id for job in self._open}
            self._paces = {job_id: pace for job_id, pace in self._paces.items() if job_id in ids}
            self._dry = {job_id: until for job_id, until in self._dry.items() if until > ended and job_id in ids}
        return [self._paced(job) for job in self._open if self._dry.get(job.id, 0.0) <= started]

    def _woken_by(self, landed: list[Landed], waiting: list[OpenJob]) -> list[OpenJob]:
        """Jobs taken for dry that what just landed may have given a merge or another try, or a place to their owner."""
        again, orgs = {each.claim.job_id for each in landed}, {each.claim.org_id for each in landed} & self._full
        known = {job.id for job in waiting}
        return [
            self._paced(job) for job in self._open if job.id not in known and (job.id in again or job.lane[0] in orgs)
        ]

    def _learn(self, flight: _Flight, landed: Landed) -> None:
        if landed.outcome.part is not None:
            seconds, estimated_s = landed.outcome.seconds, landed.claim.bound.seconds
            aloft_s = time.monotonic() - flight.born
            self._pace(landed.claim.job_id).learn(seconds)
            self._costs.learn(
                landed.claim.method, estimated_s=estimated_s, seconds=seconds, aloft_s=aloft_s, load=flight.load
            )

    def _pace(self, job_id: str) -> Pace:
        return self._paces.setdefault(job_id, Pace())

    def _paced(self, job: OpenJob) -> OpenJob:
        pace = self._paces.get(job.id)
        return job if pace is None else msgspec.structs.replace(job, load=pace.load, start=pace.start)

    # Flights

    async def _fly(self, flight: _Flight) -> None:
        try:
            order = await self._order(flight.claim)
            with shard_span(order, flight.born) as span:
                order = msgspec.structs.replace(order, traceparent=span.traceparent)
                outcome = await self._cluster.run(order, is_urgent=flight.claim.is_interactive)
            flight.outcome = _in_time(flight, without_addresses(outcome, self._stores.objects.url))
        except Exception as error:
            claim = flight.claim
            log.warning(
                "dispatcher.flight.failed", exc_info=True,
                job=claim.job_id, shard=claim.number, token=claim.token, request_id=claim.request_id,
            )  # fmt: skip
            message = f"The shard could not be sent to a worker ({type(error).__name__})."
            flight.outcome = Outcome(failure=Failure(kind="machine", code="not_sent", message=message))
        self._wakeup.set()

    async def _order(self, claim: Claim) -> ShardOrder:
        card = await self._card(claim.job_id)
        parts: tuple[bytes, ...] = ()
        if claim.number <= MERGE:
            query = sa.select(job_shards.c.part).where(job_shards.c.job_id == claim.job_id)
            before = (job_shards.c.number > MERGE) & (job_shards.c.round == claim.round - 1)
            async with self._stores.db.read() as tx:
                rows = await tx.execute(query.where(before).order_by(job_shards.c.number))
                parts = tuple(rows.scalars())
        return ShardOrder(
            job_id=claim.job_id,
            number=claim.number,
            token=claim.token,
            label=card.method,
            prefix=self._stores.objects.href(f"{card.attempts}{claim.number}/{claim.token}/"),
            task=card.task,
            inputs=card.inputs,
            shared=card.shared,
            body=claim.body,
            parts=parts,
            memory_bytes=claim.bound.memory_bytes,
            traceparent=card.traceparent,
            halvings=claim.halvings,
            merge_prefix=self._stores.objects.href(f"{card.attempts}{MERGE}/{claim.token}/") if claim.merges else "",
        )

    async def _card(self, job_id: str) -> _Card:
        """What the orders of a job share, read once."""
        lock = self._card_locks.setdefault(job_id, asyncio.Lock())
        async with lock:
            if job_id not in self._cards:
                self._cards[job_id] = await self._make_card(job_id)
                while len(self._cards) > _CARDS_MAX:
                    oldest = next(iter(self._cards))
                    del self._cards[oldest]
                    self._card_locks.pop(oldest, None)
        return self._cards[job_id]

    async def _make_card(self, job_id: str) -> _Card:
        async with self._stores.db.read() as tx:
            job = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id))).one()
        task = msgspec.json.encode(job.task)
        # strict=False: nodata values that JSON cannot hold were written as strings
        inputs = msgspec.msgpack.encode(msgspec.convert(job.inputs, tuple[InputItem, ...], strict=False))
        attempts = attempts_key(job.org_id, job.project_id, job.id)
        known = {"method": job.method, "attempts": attempts, "traceparent": job.traceparent}
        if len(task) + len(inputs) <= _SHARED_BYTES:
            return _Card(**known, task=task, inputs=inputs)
        key = f"{attempts}shared.msgpack"
        await self._stores.objects.put(key, msgspec.msgpack.encode((task, inputs)))
        return _Card(**known, shared=self._stores.objects.href(key))

    async def _pulse(self) -> None:
        """Carry cancellations to the workers and progress back."""
        if not self._flights and not self._was_woken:
            return
        if self._was_woken:
            self._was_woken = False
            self._stopping = await self._grounded()
        grounded = self._stopping & {run[0] for run in self._flights}
        if self._flights and self._cluster.is_healthy:
            late = {run_name(run) for run, flight in self._flights.items() if flight.is_overtime}
            for running in await self._cluster.pulse(grounded | late):
                flight = self._flights.get((running.job_id, running.number, running.token))
                if flight is not None:
                    flight.begun_at = flight.begun_at or time.monotonic()
                    flight.pixels = min(running.pixels, flight.claim.bound.pixels)
            settled = time.monotonic() - _PULSE_S  # what ends before the next pulse needs no progress
            moved = [each for each in self._flights.values() if each.pixels != each.pixels_counted]
            await self._renew([each for each in moved if each.born < settled])
        await self._ground(grounded)

    async def _grounded(self) -> set[str]:
        """Jobs in flight that are to stop; jobs of which nothing is in flight any more are moved to their end."""
        aloft = {run[0] for run in self._flights}
        async with self._stores.db.read() as tx:
            cancelling = sa.select(jobs.c.id).where(
                jobs.c.state == JobState.RUNNING.value, jobs.c.is_cancelling.is_(True)
            )
            stopping = set((await tx.execute(cancelling)).scalars())
            ended = sa.select(jobs.c.id).where(jobs.c.id.in_(sorted(aloft)), jobs.c.state.in_(sorted(TERMINAL)))
            ended_ids = set((await tx.execute(ended)).scalars()) if aloft else set()
        if stopping:
            self._was_woken = True  # until none is left: their last shard's landing need not wake anybody
            async with self._stores.db.write() as tx:
                await leases.end_cancelled(tx, now=utc_now())
        return (stopping | ended_ids) & aloft

    async def _ground(self, job_ids: set[str]) -> None:
        """End the workers of shards that do not notice that they are to stop."""
        now = time.monotonic()
        deaf = set()
        for run, flight in self._flights.items():
            if flight.outcome is None and (run[0] in job_ids or flight.is_overtime):
                flight.grounded_at = flight.grounded_at or now
                if now - flight.grounded_at > _CANCEL_GRACE_S:
                    flight.grounded_at = now
                    deaf.add(run)
        if deaf:
            await self._cluster.restart_workers_of(deaf)

    async def _renew_all(self) -> None:
        await self._renew(list(self._flights.values()))

    async def _renew(self, flights: list[_Flight]) -> None:
        if not flights:
            return
        async with self._writing:
            current = [each for each in flights if each.claim.run in self._flights]
            known = [(each.claim, each.pixels_counted, each.pixels) for each in current]
            async with self._stores.db.write() as tx:
                lost = await leases.renew(tx, known, now=utc_now())
            for each, (_, _, pixels) in zip(current, known, strict=True):
                if each.claim.run not in lost:
                    each.pixels_counted = pixels

    # Publishing

    def _publish_soon(self, job_id: str) -> None:
        if job_id not in self._publishing:
            self._publishing.add(job_id)
            self._spawn(self._publish(job_id))

    async def _publish(self, job_id: str) -> None:
        try:
            for attempt in range(1, _PUBLISH_LIMIT + 1):
                try:
                    await publish(self._stores, job_id, now=utc_now())
                except Exception:
                    log.warning("dispatcher.publish.failed", job=job_id, attempt=attempt, exc_info=True)
                    await asyncio.sleep(leases.backoff(attempt).total_seconds())
                else:
                    return
            message = "The results could not be stored. Try again later; the request id finds the reason in the logs."
            await fail_publishing(self._stores, job_id, "publish_failed", message, now=utc_now())
        finally:
            self._publishing.discard(job_id)

    # Housekeeping

    async def _beat(self) -> None:
        """Say that we are alive, and what the cluster looks like."""
        await self._meters.beat(
            self.id, self._cluster, in_flight=len(self._flights), started_at=self._started_at, costs=self._costs.told()
        )

    async def _bury_neighbours(self) -> None:
        """Forget dispatchers of this host whose process is gone, so that their shards are taken back at once."""
        async with self._stores.db.write() as tx:
            for row in await dispatchers.known(tx, host=socket.gethostname()):
                if not _is_alive(row.detail):
                    await dispatchers.forget(tx, row.id)

    async def _tend(self) -> None:
        """Take back shards of the dead, and finish what they were publishing."""
        self._was_woken = True  # a notification can be missed
        now = utc_now()
        async with self._stores.db.read() as tx:
            alive = {row.id for row in await dispatchers.known(tx) if dispatchers.is_alive(row, now=now)} | {self.id}
            leased = job_shards.c.state == ShardState.LEASED.value
            owners = set((await tx.execute(sa.select(job_shards.c.owner).where(leased).distinct())).scalars())
            late = sa.select(sa.exists().where(leased, job_shards.c.lease_until < now))
            is_late = (await tx.execute(late)).scalar_one()
            publishing = (
                sa.select(jobs.c.id, job_shards.c.owner)
                .join(job_shards, (job_shards.c.job_id == jobs.c.id) & (job_shards.c.number == MERGE))
                .where(jobs.c.state == JobState.PUBLISHING.value)
            )
            orphans = [row.id for row in await tx.execute(publishing) if row.owner not in alive - {self.id}]
            overdue = jobs.c.state == JobState.RUNNING.value, jobs.c.deadline_at < now
            is_overdue = (await tx.execute(sa.select(sa.exists().where(*overdue)))).scalar_one()
        if is_overdue:
            async with self._stores.db.write() as tx:
                await leases.fail_overdue(tx, now=now)
        if is_late or owners - alive:
            async with self._stores.db.write() as tx:
                count = await leases.reap(tx, now=now, dead_owners=owners - alive)
            self._meters.expired.inc(count)
            log.warning("dispatcher.reaped", shards=count)
            self._dry.clear()
            self._wakeup.set()
        for job_id in orphans:
            self._publish_soon(job_id)

    async def _tend_cluster(self) -> None:
        """Fill up workers; start the cluster anew when its scheduler, or for a while every worker, is gone."""
        if self._cluster.is_healthy:
            self._cluster.refill()
        if self._cluster.is_healthy and self._cluster.alive_count:
            self._cluster_lost_at = None
            return
        self._cluster_lost_at = self._cluster_lost_at or time.monotonic()
        grace_s = _CLUSTER_GRACE_S if self._cluster.is_healthy else 0
        if time.monotonic() - self._cluster_lost_at >= grace_s:
            log.error("dispatcher.cluster.restarted", workers=self._cluster.alive_count)
            await self._cluster.close()
            try:
                await self._cluster.start()
            except OtherBuild as error:  # a release is being rolled out, and this dispatcher will be replaced
                log.error("dispatcher.cluster.refused", error=str(error), again_s=_REFUSED_S)  # noqa: TRY400
                self._cluster_lost_at = time.monotonic() + _REFUSED_S
                return
            self._cluster_lost_at = None
            self._wakeup.set()

    async def _sweep_deletions(self) -> None:
        await deletions.sweep(self._stores, now=utc_now())

    async def _expire(self) -> None:
        """End uploads that nobody completed, forget what failed jobs left that nobody resumed, give money back."""
        async with self._stores.db.write() as tx:
            await uploads.expire(tx, utc_now())
            await kept.expire(tx, utc_now())
        await ledger.expire(self._stores.db, now=utc_now())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shut_down(self, background: list[asyncio.Task[None]]) -> None:
        log.info("dispatcher.stopping", id=self.id, in_flight=len(self._flights))
        for task in [*background, *self._tasks]:
            task.cancel()
        await asyncio.gather(*background, *self._tasks, return_exceptions=True)
        now = utc_now()
        done = [
            Landed(claim=flight.claim, outcome=flight.outcome, pixels=flight.pixels_counted)
            for flight in self._flights.values()
            if flight.outcome is not None
        ]
        rest = [flight for flight in self._flights.values() if flight.outcome is None]
        try:
            async with self._stores.db.write() as tx:
                await leases.record(tx, done, now=now)
            async with self._stores.db.write() as tx:  # of its own: each locks jobs in order of id
                await leases.release(tx, [(flight.claim, flight.pixels_counted) for flight in rest], now=now)
                await dispatchers.forget(tx, self.id)
        finally:
            self._meters.close()
            await self._cluster.close()


def _in_time(flight: _Flight, outcome: Outcome) -> Outcome:
    """What became of a try; one that was stopped because it took too long says so."""
    if outcome.failure is None or not flight.is_overtime:
        return outcome
    message = f"Shard {flight.claim.number} ran for longer than {flight.limit_s:g} s, which is the limit of one try."
    return Outcome(failure=Failure(kind="machine", code="shard_time_limit", message=message))


async def _every(period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` again and again; an error is logged, and the next round tries again."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await work()
        except Exception:
            log.exception("dispatcher.housekeeping.failed", work=getattr(work, "__name__", ""))


def _is_alive(detail: dict[str, Any]) -> bool:
    """The process of a heartbeat exists, and is not another that was given its number."""
    try:
        return abs(psutil.Process(detail["pid"]).create_time() - detail["pid_started"]) < 1
    except psutil.NoSuchProcess:
        return False


async def serve(settings: Settings, *, is_supervised: bool = False) -> None:
    """Run a dispatcher until SIGTERM or SIGINT, or, supervised, until the parent is gone."""
    db = Database(database_url(settings.database_url, settings.data_dir))
    dispatcher = Dispatcher(settings, Stores(db=db, objects=Objects(settings.objects_url, settings.data_dir)))
    tracing.configure("eorouter-dispatcher", settings.otlp_endpoint)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, dispatcher.stop)
    if is_supervised:

        def on_stdin() -> None:
            if not os.read(0, 4096):  # the parent's end is closed
                loop.remove_reader(0)
                dispatcher.stop()

        loop.add_reader(0, on_stdin)
    try:
        await dispatcher.run()
    finally:
        await db.close()
        tracing.shut_down()


def main(arguments: list[str] | None = None) -> int:
    """`python -m eorouter.jobs [--supervised]`; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="eorouter dispatcher", description="Run the jobs of an installation.")
    parser.add_argument("--supervised", action="store_true", help="exit when standard input is closed")
    options = parser.parse_args(arguments)
    settings = prepare(load())
    logs.configure(settings)
    run(settings, supervised=options.supervised)
    return 0


def run(settings: Settings, *, supervised: bool) -> None:
    """Run a dispatcher with prepared settings until it is told to stop."""
    settings = msgspec.structs.replace(settings, database_url=with_environment(settings.database_url))
    withdraw(settings.worker_environment)
    asyncio.run(serve(settings, is_supervised=supervised))
