"""Dask as an executor of bounded, idempotent shards, and nothing more.

Nothing depends on Dask's retries (there are none: a re-run under the same fencing token would meet its own objects) or
on its queue (the caller keeps few orders in flight). `Link` sends orders over a client, whoever brought the workers;
`Cluster` brings them itself, `distant.DistantCluster` finds them on other machines.

Facts about Dask this module rests on, measured with 2026.8: a cancelled future's function keeps running, so a shard
asks a flag between its blocks; all tasks of a dead worker fail with `KilledWorker`, also those that had not begun; a
worker whose scheduler is gone exits after about two seconds. A `LocalCluster` closes the nanny of a worker that is not
back after `lost-worker-timeout` (15 s; a loaded machine needs longer to start one), and starts none in its place.
"""

import asyncio
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
from dask import config as dask_config
from distributed import Client, KilledWorker, LocalCluster, Security
from distributed.client import FutureCancelledError
from distributed.core import Status
from distributed.versions import error_message, get_versions

from eorouter_compute import nodes, orders, tracing
from eorouter_compute.build import build
from eorouter_compute.errors import ShardOutOfMemory
from eorouter_compute.nodes import Seen
from eorouter_compute.orders import Failure, Outcome, Running, ShardOrder, pulse, run_order

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
    # Each server of a dispatcher's process does these by itself; as they come, they take a tenth of a core when idle.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.diagnostics.erred-tasks.max-history": 1,
    "distributed.admin.large-graph-warning-threshold": "1GB",
    "distributed.admin.log-length": 1000,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "20s",  # a host that was cut off says no goodbye
    "distributed.deploy.lost-worker-timeout": "15m",  # more than a warm-up on a cold machine takes, waiting its turn
    "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
}

_PULSE_WAIT_S, _PULSE_GAP_S = 1.0, 10.0
_REMEMBERED_S = 300.0
_NANNY_WAIT_S = 0.5
_FROZEN_S = 30.0  # Dask itself gives a worker five minutes

_MEMORY = "MEMORY"
_OUT_OF_MEMORY_TOPIC = "worker-restart-memory"  # what a nanny logs before it ends a worker over its limit


class OtherBuild(RuntimeError):
    """Client, scheduler and workers are not of one build; the message says which is which."""


def configure(otlp_endpoint: str = "") -> None:
    """Set Dask up in this process, and for workers that it starts."""
    for name in ("distributed", "distributed.worker", "distributed.scheduler", "distributed.nanny"):
        logging.getLogger(name).setLevel(logging.WARNING)
    dask_config.set(_DASK_CONFIG)
    if otlp_endpoint:
        environment = _WORKER_ENVIRONMENT | {tracing.ENDPOINT: otlp_endpoint}
        dask_config.set({"distributed.nanny.pre-spawn-environ": environment})


def worker_resources(memory_bytes: int) -> dict[str, float]:
    """What a worker has to give: its memory, and its build, of which there is no end."""
    return {_MEMORY: memory_bytes, nodes.resource(build()): 1e9}


class Link(ABC):
    """A client's hold on workers: it sends them orders, hears how far they are, and ends those that do not listen.

    Several of these may share one scheduler. Orders have names of their own, what one gives up another does not take
    back, and each hears of every worker that ran out of memory.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._id = uuid.uuid4().hex
        self._client: Any = None
        self._executing: dict[str, set[tuple[str, int, int]]] = {}
        self._silent_since: dict[str, float] = {}
        self._pulsed_at = 0.0
        self._out_of_memory: dict[str, tuple[float, int]] = {}  # when, and how much it had
        self._told = asyncio.Event()  # set at the next word of a nanny

    @property
    @abstractmethod
    def threads(self) -> int:
        """Shards of ours that can execute at a time when all workers are there."""

    @property
    @abstractmethod
    def alive_count(self) -> int:
        """Workers that are connected now."""

    @property
    @abstractmethod
    def is_healthy(self) -> bool:
        """The scheduler runs and the client is connected to it."""

    @property
    @abstractmethod
    def dashboard_url(self) -> str:
        """Where Dask's pages are; empty where they cannot be reached from here."""

    @abstractmethod
    async def start(self) -> None:
        """Have workers, or begin to look for them.

        Raises:
            OtherBuild: client, scheduler and workers do not run the same build or the same versions of libraries.
        """

    @abstractmethod
    def refill(self) -> None:
        """Replace workers that gave up, where that is ours to do."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything that `start` took hold of; orders that wait are lost."""

    @abstractmethod
    def census(self) -> list[Seen]:
        """The workers, as the scheduler knows them."""

    async def _join(self) -> None:
        """What a new client asks of its scheduler."""
        self._client.subscribe_topic(_OUT_OF_MEMORY_TOPIC, self._note_out_of_memory)
        scheduler, workers = await self._client.run_on_scheduler(versions_known)
        mine = {worker.address for worker in self.census()}
        check_versions(scheduler, {address: each for address, each in workers.items() if address in mine})

    async def run(self, order: ShardOrder, *, is_urgent: bool = False) -> Outcome:
        """Execute an order on some worker; a lost worker is an outcome, too."""
        client = self._client
        if client is None or not self.is_healthy:
            return _lost("The cluster is not running.", is_bystander=True)
        submitted = time.perf_counter()
        future = client.submit(
            run_order,
            msgspec.msgpack.encode(order),
            key=(f"{order.label} {order.job_id}", order.number, order.token),  # the pages show the first part whole
            pure=False,
            retries=0,
            priority=1 if is_urgent else 0,
            # A bound above the worker's memory would wait for ever; such a shard gets a worker for itself.
            resources={_MEMORY: min(order.memory_bytes, self._memory_bytes), nodes.resource(build()): 1},
        )
        try:
            outcome = msgspec.msgpack.decode(await future, type=Outcome)
        except KilledWorker as error:
            worker = error.last_worker.address
            # Asked now: the next pulse forgets what a worker that is gone was doing.
            is_bystander = self._is_bystander(order, worker)
            self._forget_out_of_memory()
            await self._hear_nanny_of(worker)
            return self._killed(order, worker, is_bystander=is_bystander)
        except FutureCancelledError as error:
            return _lost(f"The scheduler lost the shard ({error}).", is_bystander=True)
        finally:
            future.release()
        for runs in self._executing.values():
            runs.discard(order.run)
        waited_s = max(time.perf_counter() - submitted - outcome.seconds, 0.0)
        return msgspec.structs.replace(outcome, waited_s=waited_s)

    async def _hear_nanny_of(self, worker: str) -> None:
        """Wait until a nanny says that memory ran out, or is not going to.

        Its word takes another connection than the scheduler's that the worker is gone, and may come after it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_NANNY_WAIT_S):
                while worker not in self._out_of_memory:
                    await self._told.wait()

    def _killed(self, order: ShardOrder, worker: str, *, is_bystander: bool) -> Outcome:
        if worker not in self._out_of_memory:
            return _lost(f"The worker of shard {order.number} died.", is_bystander=is_bystander)
        failure = Failure(
            kind="memory",
            code=ShardOutOfMemory.code,
            message=(
                f"Shard {order.number} needed more memory than a worker has ({self._memory_bytes >> 20} MiB): "
                f"it was planned to need {order.memory_bytes >> 20} MiB above an idle worker's, and the worker was at "
                f"{self._out_of_memory[worker][1] >> 20} MiB when it was ended. "
                "Ask for a smaller area or fewer inputs, or raise EOROUTER_WORKER_MEMORY_MB."
            ),
        )
        return Outcome(failure=failure, worker=worker, is_bystander=is_bystander)

    def _is_bystander(self, order: ShardOrder, worker: str) -> bool:
        """The order only waited at the worker that died: the last pulse saw another execute, which never ended."""
        executing = self._executing.get(worker, set())
        return bool(executing) and order.run not in executing

    async def pulse(self, cancelled: Collection[str]) -> list[Running]:
        """Tell workers which jobs and single tries (`run_name`) to give up; hear what they execute, and how far."""
        told = sorted(cancelled)
        addresses = [worker.address for worker in self.census()]
        said = await asyncio.gather(*(self._pulse_of(each, told) for each in addresses))
        answers = dict(zip(addresses, said, strict=True))
        heard = {worker: each for worker, each in answers.items() if each is not None}
        silent = {worker: self._executing.get(worker, set()) for worker in answers.keys() - heard.keys()}
        self._executing = {worker: {(j, n, t) for j, n, t, _ in each} for worker, each in heard.items()} | silent
        await self._end_frozen(silent.keys())
        return [Running(job_id=j, number=n, token=t, pixels=p) for each in heard.values() for j, n, t, p in each]

    async def _pulse_of(self, address: str, cancelled: list[str]) -> list[tuple[str, int, int, int]] | None:
        """What one worker says; None where it says nothing in time, so that it does not keep the others waiting."""
        asking = self._client.run(pulse, cancelled, self._id, workers=[address], on_error="ignore")
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
        self._forget_out_of_memory()
        self._out_of_memory[event[1]["worker"]] = time.monotonic(), event[1]["rss"]
        self._told.set()
        self._told = asyncio.Event()

    def _forget_out_of_memory(self) -> None:
        """Its shards have come back by then, and another worker, which dies of something else, may have the address."""
        since = time.monotonic() - _REMEMBERED_S
        self._out_of_memory = {each: told for each, told in self._out_of_memory.items() if told[0] > since}


class Cluster(Link):
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
        super().__init__(worker_memory_bytes)
        self.worker_count = worker_count
        self.worker_threads = worker_threads
        self._dashboard_port = dashboard_port
        self._scratch = scratch
        self._otlp_endpoint = otlp_endpoint
        self._cluster: Any = None

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
        configure(self._otlp_endpoint)
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
            preload=[orders.__name__],
            resources=worker_resources(self._memory_bytes),
        )
        self._client = await Client(self._cluster, asynchronous=True, set_as_default=False)
        await self._join()
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

    def census(self) -> list[Seen]:
        """The workers, as the scheduler knows them."""
        return [] if self._cluster is None else nodes.census(self._cluster.scheduler)


def versions_known(dask_scheduler: Any = None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Versions of libraries of the scheduler that this is executed on, and those that its workers came with."""
    return get_versions(), {address: worker.versions for address, worker in dask_scheduler.workers.items()}


def check_versions(scheduler: dict[str, Any], workers: Mapping[str, dict[str, Any]]) -> None:
    """Refuse to work with parts that have other versions of Dask, Python and what both speak with.

    Raises:
        OtherBuild: a table of the libraries that differ.
    """
    told = error_message(scheduler, dict(workers), get_versions(), "Dispatcher")
    if differing := told["error"] or told["warning"]:
        raise OtherBuild(f"Scheduler or workers have other versions of libraries than the dispatcher. {differing}")


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
