"""Dask as an executor of bounded, idempotent shards, and nothing more.

A shard travels as msgpack bytes to one module-level function, `run_order`, and comes back as bytes: a part, a result,
or a failure told as data. Nothing depends on pickled closures or exceptions, on Dask's retries (there are none: a
re-run under the same fencing token would meet its own objects) or on its queue (the caller keeps few orders in flight).

Facts about Dask this module rests on, measured with 2026.8: a cancelled future's function keeps running, so a shard
asks a flag between its blocks; all tasks of a dead worker fail with `KilledWorker`, also those that had not begun; a
worker whose scheduler is gone exits after about two seconds. A `LocalCluster` closes the nanny of a worker that is not
back after `lost-worker-timeout` (15 s; a loaded machine needs longer to start one), and starts none in its place.
"""

import asyncio
import logging
import os
import resource
import socket
import time
import traceback
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import locket
import msgspec
import structlog
from dask import config as dask_config
from distributed import Client, KilledWorker, LocalCluster, Security, Worker
from distributed.client import FutureCancelledError
from distributed.core import Status
from msgspec import Struct

import eorouter_kernels
from eorouter_compute import faults, meters, method, nodes, raster, tracing, witness
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.build import build
from eorouter_compute.errors import AttemptExists, ComputeError, RequestFault, ShardFault, ShardOutOfMemory, SourceFault
from eorouter_compute.method import InputItem, Part
from eorouter_compute.nodes import Seen
from eorouter_compute.witness import Line, Witness

MERGE = -1
"""Number of the order that merges the parts of the last round; the turn to round n is order MERGE - n."""

log = structlog.get_logger(__name__)

# Set before the worker's first import. GDAL's own options are `raster`'s affair and set there.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "DASK_LOGGING__DISTRIBUTED": "warning",  # a line per pulse otherwise
}

_DASK_CONFIG: Mapping[str, Any] = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.events-cleanup-delay": "10m",
    # The pages are for the operator's eyes; the proxy to any worker's port and the JSON of all state are not needed.
    "distributed.scheduler.http.routes": [
        "distributed.http.scheduler.prometheus",
        "distributed.http.scheduler.info",
        "distributed.http.health",
        "distributed.http.statics",
    ],
    # Nor is a browser on this machine to join on behalf of some other site's page; the API joins without an origin.
    "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": [],
    "distributed.worker.profile.enabled": False,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.diagnostics.erred-tasks.max-history": 1,
    "distributed.admin.large-graph-warning-threshold": "1GB",
    "distributed.admin.log-length": 1000,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.deploy.lost-worker-timeout": "15m",  # more than a warm-up on a cold machine takes, waiting its turn
    "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
}

_PULSE_WAIT_S, _PULSE_GAP_S = 1.0, 10.0
_FROZEN_S = 30.0  # Dask itself gives a worker five minutes

_MEMORY = "MEMORY"
_OUT_OF_MEMORY_TOPIC = "worker-restart-memory"  # what a nanny logs before it ends a worker over its limit


class ShardOrder(Struct, frozen=True, kw_only=True):
    """One try at one shard.

    Attributes:
        job_id: whose shard.
        number: which; `MERGE` for the merge, `MERGE - n` for the turn to round n.
        token: fencing token of this try.
        label: what the dashboard shows, `method`.
        prefix: URL below which the attempt writes.
        task: JSON of the method's parameters with their tag; empty when `shared` is set.
        inputs: msgpack of the input items; empty when `shared` is set.
        shared: URL of an object that holds `[task, inputs]` as msgpack, where they are too large to travel each time.
        body: the shard's body, as planned.
        parts: for the merge, the parts of the last round's shards in order, each msgpack; for a turn, those of the
            round before it.
        memory_bytes: peak memory by the plan's bound.
        halvings: how often to halve the side of the shard's pieces, see `Attempt`.
        traceparent: of the span this try belongs to, where traces are on.
        build: of whoever sends it; a worker of another one refuses.
    """

    job_id: str
    number: int
    token: int
    label: str
    prefix: str
    task: bytes = b""
    inputs: bytes = b""
    shared: str | None = None
    body: bytes = b""
    parts: tuple[bytes, ...] = ()
    memory_bytes: int = 0
    halvings: int = 0
    traceparent: str = ""
    build: str = msgspec.field(default_factory=build)

    @property
    def run(self) -> tuple[str, int, int]:
        """Identity of this try."""
        return self.job_id, self.number, self.token


class OtherBuild(RuntimeError):
    """Client, scheduler and workers are not of one build; the message says which is which."""


class Failure(Struct, frozen=True, kw_only=True):
    """Why a shard did not make it. `kind` says who can mend it: the caller, nobody (`cancelled`), or another try."""

    kind: Literal["request", "source", "cancelled", "memory", "machine", "defect"]
    code: str
    message: str
    pointer: str = ""
    data: dict[str, Any] = {}
    traceback: str = ""


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of an order: `part` (msgpack of Part, of Result for a merge, of shards for a turn) or `failure`.

    Attributes:
        seconds: on the worker; of it, `read_s` and `write_s` were spent with reading and writing.
        waited_s: with the cluster, but not on a worker: the way there and back, and the wait for a free thread.
        read_bytes, written_bytes: as `witness` counts them.
        is_bystander: the order failed through no fault of its own; the try does not count.
        lines, lines_lost: what was logged meanwhile.
    """

    part: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0
    waited_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    peak_rss_bytes: int = 0
    worker: str = ""
    is_bystander: bool = False
    lines: tuple[Line, ...] = ()
    lines_lost: int = 0

    @property
    def compute_s(self) -> float:
        """Seconds on the worker that were neither reading nor writing."""
        return max(self.seconds - self.read_s - self.write_s, 0.0)


class Running(Struct, frozen=True, kw_only=True, array_like=True):
    """An order that a worker is executing, and the pixels it reported."""

    job_id: str
    number: int
    token: int
    pixels: int


# ---------------------------------------------------------------------------------------------------------------------
# On a worker


_cancelled: frozenset[str] = frozenset()
_running: dict[tuple[str, int, int], int] = {}
_worker = f"{socket.gethostname()}:{os.getpid()}"


def run_order(data: bytes) -> bytes:
    """Execute a `ShardOrder`; never raises what a method raises."""
    order = msgspec.msgpack.decode(data, type=ShardOrder)
    started = time.perf_counter()
    _reset_peak()
    _running[order.run] = 0
    part, failure, is_bystander = None, None, False
    with Witness(keeps_spans=tracing.is_on()) as notes, _span(order) as span:
        try:
            part = msgspec.msgpack.encode(_execute(order))
            faults.reached("written")
        except ComputeError as error:
            failure = _failure(error)
            # Dask runs an order again whose worker died after it, before the answer was fetched. The first run's part
            # is lost, so another token has to write it anew, but the shard is not to blame.
            is_bystander = isinstance(error, AttemptExists)
        except MemoryError:
            failure = _failure(ShardOutOfMemory(f"Shard {order.number} ran out of memory."))
        except Exception as error:  # noqa: BLE001 - whatever a method does wrong is told as data
            failure = Failure(
                kind="defect",
                code="internal_fault",
                message=f"{order.label} failed unexpectedly ({type(error).__name__}); the logs tell more.",
                traceback=traceback.format_exc(limit=-12),
            )
        finally:
            pixels = _running.pop(order.run)
        seconds = time.perf_counter() - started
        outcome = "completed" if failure is None else failure.kind
        meters.note_end(order.label, outcome, notes, span, seconds=seconds, pixels=pixels, worker=_worker)
    return msgspec.msgpack.encode(
        Outcome(
            part=part,
            failure=failure,
            seconds=seconds,
            read_s=notes.read_s,
            write_s=notes.write_s,
            read_bytes=notes.read_bytes,
            written_bytes=notes.written_bytes,
            peak_rss_bytes=_peak_rss_bytes(),
            worker=_worker,
            is_bystander=is_bystander,
            lines=tuple(notes.lines),
            lines_lost=notes.lines_lost,
        ),
        enc_hook=repr,
    )


def _span(order: ShardOrder) -> tracing.Span:
    name = "run" if order.number > MERGE else "merge" if order.number == MERGE else "turn"
    about: dict[str, tracing.Value] = {"job": order.job_id, "shard": order.number, "token": order.token}
    return tracing.span(f"{name} {order.label}", parent=order.traceparent, kind="CONSUMER", attributes=about)


def _execute(order: ShardOrder) -> Any:
    if order.build != build():
        raise ShardFault(f"The dispatcher sent build {order.build}; the worker runs {build()} and refuses it.")
    params, inputs = _decoded(order.task, order.inputs, order.shared)
    chosen = method.get(params.__struct_config__.tag)

    def advance(pixels: int) -> None:
        _running[order.run] += pixels

    names = {order.job_id, run_name(order.run)}
    attempt = Attempt(
        order.prefix,
        is_cancelled=lambda: not names.isdisjoint(_cancelled),
        on_progress=advance,
        halvings=order.halvings,
    )
    attempt.advance(0)
    if order.number > MERGE:
        return chosen.run(params, inputs, order.body, attempt)
    parts = [msgspec.msgpack.decode(part, type=Part) for part in order.parts]
    faults.reached("merge")
    if order.number == MERGE:
        return chosen.merge(params, inputs, parts, attempt)
    if chosen.turn is None:
        raise TypeError(f"{chosen.id} plans later rounds and has no turn")
    return chosen.turn(params, inputs, MERGE - order.number, parts, attempt)


class _Tagged(Struct):
    method: str


@lru_cache(maxsize=4)
def _decoded(task: bytes, inputs: bytes, shared: str | None) -> tuple[Any, tuple[InputItem, ...]]:
    """Parameters and inputs, decoded once per worker and job rather than once per shard."""
    if shared is not None:
        task, inputs = msgspec.msgpack.decode(read_object(shared), type=tuple[bytes, bytes])
    tag = msgspec.json.decode(task, type=_Tagged).method
    # strict=False: numbers that JSON cannot hold (a nodata value of NaN) travel as strings
    params = msgspec.json.decode(task, type=method.get(tag).params, strict=False)
    return params, msgspec.msgpack.decode(inputs, type=tuple[InputItem, ...])


def _failure(error: ComputeError) -> Failure:
    kind: Literal["request", "source", "cancelled", "memory", "machine"] = "machine"
    if isinstance(error, RequestFault):
        kind = "request"
    elif isinstance(error, SourceFault):
        kind = "source"
    elif isinstance(error, ShardOutOfMemory):
        kind = "memory"
    elif error.code == "cancelled":
        kind = "cancelled"
    return Failure(
        kind=kind,
        code=error.code,
        message=error.message,
        pointer=error.pointer,
        data=error.data,
        traceback=traceback.format_exc(limit=-12),
    )


def _reset_peak() -> None:
    """Start the kernel's record of the process's peak afresh; where it cannot be, the peak is the process's whole."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


def run_name(run: tuple[str, int, int]) -> str:
    """One try, as a word."""
    return "/".join(map(str, run))


def pulse(cancelled: list[str]) -> list[tuple[str, int, int, int]]:
    """Take the ids of jobs and names of tries to give up, tell what runs here.

    It runs on the worker's event loop, so while shards compute too.
    """
    global _cancelled  # noqa: PLW0603 - the one word every attempt of this process reads
    _cancelled = frozenset(cancelled)
    return [(*run, pixels) for run, pixels in list(_running.items())]


def dask_setup(worker: Worker) -> None:
    """Make a worker ready before it takes work: methods imported, drivers registered, kernels compiled, on one thread.

    Workers of a machine take turns: numba's cache does not bear two processes writing the same entry (numba#9348).
    """
    witness.listen()
    tracing.configure("eorouter-worker", os.environ.get(tracing.ENDPOINT, ""))
    with locket.lock_file(str(Path(worker.local_directory).parent / "warm-up.lock"), timeout=600):
        method.methods()
        raster.warm_up()
        eorouter_kernels.warm_up()


def dask_teardown(worker: Worker) -> None:
    """Send the spans that wait."""
    tracing.shut_down()


# ---------------------------------------------------------------------------------------------------------------------
# Beside the scheduler


class Cluster:
    """Worker processes on this machine, their scheduler in this process, and a client; all on the running event loop.

    Connections are encrypted under a certificate made at start: whoever reaches a scheduler's port can run code, and a
    machine may have other users.

    Attributes:
        worker_count, worker_threads: size.
    """

    def __init__(
        self,
        *,
        worker_count: int,
        worker_threads: int,
        worker_memory_bytes: int,
        dashboard_port: int,
        scratch: Path,
        otlp_endpoint: str = "",
    ) -> None:
        self.worker_count = worker_count
        self.worker_threads = worker_threads
        self._memory_bytes = worker_memory_bytes
        self._dashboard_port = dashboard_port
        self._scratch = scratch
        self._otlp_endpoint = otlp_endpoint
        self._cluster: Any = None
        self._client: Any = None
        self._executing: dict[str, set[tuple[str, int, int]]] = {}
        self._silent_since: dict[str, float] = {}
        self._pulsed_at = 0.0
        self._out_of_memory: dict[str, int] = {}

    @property
    def threads(self) -> int:
        """Shards that can execute at a time when all workers are there."""
        return self.worker_count * self.worker_threads

    @property
    def alive_count(self) -> int:
        """Workers that are connected now."""
        return 0 if self._cluster is None else len(self._cluster.scheduler.workers)

    @property
    def is_healthy(self) -> bool:
        """The scheduler runs and the client is connected to it."""
        return (
            self._cluster is not None
            and self._cluster.scheduler.status.name == "running"
            and self._client.status == "running"
        )

    @property
    def dashboard_url(self) -> str:
        """Where Dask's pages are."""
        return "" if self._cluster is None else self._cluster.dashboard_link

    async def start(self) -> None:
        """Start scheduler and workers; returns when every worker is warm.

        Raises:
            OtherBuild: client, scheduler and workers do not run the same build or the same versions of libraries.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        for name in ("distributed", "distributed.worker", "distributed.scheduler", "distributed.nanny"):
            logging.getLogger(name).setLevel(logging.WARNING)
        dask_config.set(_DASK_CONFIG)
        if self._otlp_endpoint:
            environment = _WORKER_ENVIRONMENT | {tracing.ENDPOINT: self._otlp_endpoint}
            dask_config.set({"distributed.nanny.pre-spawn-environ": environment})
        self._cluster = await LocalCluster(
            n_workers=self.worker_count,
            threads_per_worker=self.worker_threads,
            memory_limit=self._memory_bytes,
            processes=True,
            host="127.0.0.1",
            dashboard_address=f"127.0.0.1:{self._dashboard_port}",
            security=Security.temporary(),
            protocol="tls://",
            asynchronous=True,
            silence_logs=False,
            local_directory=str(self._scratch),
            preload=[__name__],
            resources={_MEMORY: self._memory_bytes},
        )
        self._client = await Client(self._cluster, asynchronous=True, set_as_default=False)
        self._client.subscribe_topic(_OUT_OF_MEMORY_TOPIC, self._note_out_of_memory)
        try:
            await self._client.get_versions(check=True)
        except ValueError as error:
            raise OtherBuild(f"Workers run other versions of libraries than the dispatcher: {error}") from error
        builds = {"the scheduler": await self._client.run_on_scheduler(build)}
        builds |= {f"worker {address}": told for address, told in (await self._client.run(build)).items()}
        check_builds(build(), builds)

    def refill(self) -> None:
        """Have nannies started in the place of those that gave up; a nanny that lives starts its worker by itself."""
        nannies = self._cluster.workers
        gone = [name for name, nanny in nannies.items() if nanny.status in {Status.closed, Status.failed}]
        for name in gone:
            del nannies[name]
        if len(nannies) < self.worker_count:
            log.warning("cluster.workers.refilled", missing=self.worker_count - len(nannies))
            self._cluster.scale(self.worker_count)

    async def close(self) -> None:
        """Stop everything that was started."""
        client, cluster = self._client, self._cluster
        self._client = self._cluster = None
        for part in (client, cluster):
            if part is not None:
                await part.close()

    async def run(self, order: ShardOrder, *, is_urgent: bool = False) -> Outcome:
        """Execute an order on some worker; a lost worker is an outcome, too."""
        client = self._client
        if client is None:
            return _lost("The cluster is not running.")
        submitted = time.perf_counter()
        future = client.submit(
            run_order,
            msgspec.msgpack.encode(order),
            key=(f"{order.label} {order.job_id}", order.number, order.token),  # the pages show the first part whole
            pure=False,
            retries=0,
            priority=1 if is_urgent else 0,
            # A bound above the worker's memory would wait for ever; such a shard gets a worker for itself.
            resources={_MEMORY: min(order.memory_bytes, self._memory_bytes)},
        )
        try:
            outcome = msgspec.msgpack.decode(await future, type=Outcome)
        except KilledWorker as error:
            return self._killed(order, error)
        except FutureCancelledError as error:
            return _lost(f"The scheduler lost the shard ({error}).", is_bystander=True)
        finally:
            future.release()
        for runs in self._executing.values():
            runs.discard(order.run)
        waited_s = max(time.perf_counter() - submitted - outcome.seconds, 0.0)
        return msgspec.structs.replace(outcome, waited_s=waited_s)

    def _killed(self, order: ShardOrder, error: KilledWorker) -> Outcome:
        worker = error.last_worker.address
        if worker not in self._out_of_memory:
            return _lost(f"The worker of shard {order.number} died.", is_bystander=self._is_bystander(order, worker))
        failure = Failure(
            kind="memory",
            code=ShardOutOfMemory.code,
            message=(
                f"Shard {order.number} needed more memory than a worker has ({self._memory_bytes >> 20} MiB): "
                f"it was planned to need {order.memory_bytes >> 20} MiB above an idle worker's, and the worker was at "
                f"{self._out_of_memory[worker] >> 20} MiB when it was ended. "
                "Ask for a smaller area or fewer inputs, or raise EOROUTER_WORKER_MEMORY_MB."
            ),
        )
        return Outcome(failure=failure, worker=worker, is_bystander=self._is_bystander(order, worker))

    def _is_bystander(self, order: ShardOrder, worker: str) -> bool:
        """The order only waited at the worker that died: the last pulse saw another execute, which never ended."""
        executing = self._executing.get(worker, set())
        return bool(executing) and order.run not in executing

    def census(self) -> list[Seen]:
        """The workers, as the scheduler knows them."""
        return [] if self._cluster is None else nodes.census(self._cluster.scheduler)

    async def pulse(self, cancelled: Collection[str]) -> list[Running]:
        """Tell workers which jobs and single tries (`run_name`) to give up; hear what they execute, and how far."""
        told = sorted(cancelled)
        addresses = list(self._cluster.scheduler.workers)
        said = await asyncio.gather(*(self._pulse_of(each, told) for each in addresses))
        answers = dict(zip(addresses, said, strict=True))
        heard = {worker: each for worker, each in answers.items() if each is not None}
        silent = {worker: self._executing.get(worker, set()) for worker in answers.keys() - heard.keys()}
        self._executing = {worker: {(j, n, t) for j, n, t, _ in each} for worker, each in heard.items()} | silent
        await self._end_frozen(silent.keys())
        return [Running(job_id=j, number=n, token=t, pixels=p) for each in heard.values() for j, n, t, p in each]

    async def _pulse_of(self, address: str, cancelled: list[str]) -> list[tuple[str, int, int, int]] | None:
        """What one worker says; None where it says nothing in time, so that it does not keep the others waiting."""
        asking = self._client.run(pulse, cancelled, workers=[address], on_error="ignore")
        try:
            return (await asyncio.wait_for(asking, _PULSE_WAIT_S)).get(address)
        except (TimeoutError, OSError):
            return None

    async def _end_frozen(self, silent: Collection[str]) -> None:
        """End workers that have not said a word for long: stopped, or busy with something that holds all else up.

        Only silence on pulse after pulse counts: while nothing was asked, nothing could be answered.
        """
        now = time.monotonic()
        if now - self._pulsed_at > _PULSE_GAP_S:
            self._silent_since = {}
        self._pulsed_at = now
        self._silent_since = {address: self._silent_since.get(address, now) for address in silent}
        frozen = [address for address, since in self._silent_since.items() if now - since > _FROZEN_S]
        if frozen:
            log.warning("cluster.workers.frozen", workers=frozen)
            self._silent_since = {}
            await self._client.restart_workers(frozen, timeout=5, raise_for_error=False)

    async def restart_workers_of(self, runs: Collection[tuple[str, int, int]]) -> None:
        """End the worker processes that still execute these tries; nannies start new ones."""
        addresses = [address for address, executing in self._executing.items() if not executing.isdisjoint(runs)]
        if addresses:
            log.warning("cluster.workers.restarted", workers=addresses, runs=sorted(runs))
            await self._client.restart_workers(addresses, timeout=30, raise_for_error=False)

    def _note_out_of_memory(self, event: tuple[float, dict[str, Any]]) -> None:
        self._out_of_memory[event[1]["worker"]] = event[1]["rss"]


def check_builds(mine: str, others: Mapping[str, str]) -> None:
    """Refuse to work with parts of another build.

    Raises:
        OtherBuild: names each part that is of another build, and both builds.
    """
    strange = [f"{who} runs build {theirs}" for who, theirs in sorted(others.items()) if theirs != mine]
    if strange:
        raise OtherBuild(f"The dispatcher runs build {mine}, but {', '.join(strange)}. Start all of one release.")


def _lost(message: str, *, is_bystander: bool = False) -> Outcome:
    return Outcome(failure=Failure(kind="machine", code="worker_lost", message=message), is_bystander=is_bystander)
