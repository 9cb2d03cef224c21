"""The scheduler and a worker as processes of their own, for workers on more than one machine.

Neither knows a database, a secret or a person: a scheduler hands bytes on, a worker reads and writes objects. A worker
whose scheduler is gone ends; the part that holds it starts another, again and again, until it is told to stop.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from distributed import Nanny, Scheduler, Security
from distributed.core import Status
from distributed.protocol.pickle import dumps

from eorouter_compute import orders
from eorouter_compute.cluster import configure, worker_resources

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.5, 5.0
_STEADY_S = 60.0  # a worker that lived this long starts the pauses afresh
_CLOSE_S = 10.0
_POLL_S = 0.05
_BUSY = frozenset({"executing", "long-running", "memory"})

log = structlog.get_logger(__name__)


class BadPart(Exception):
    """A part cannot start; the message says why and how to mend it."""


async def serve_scheduler(
    stop: asyncio.Event,
    *,
    host: str,
    port: int,
    security: Security | None,
    dashboard_port: int,
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Run a scheduler until `stop` is set; `announce` hears its address. Dask's pages are on loopback only.

    Raises:
        BadPart: the port is taken, or the address is not one of this machine.
    """
    configure()
    try:
        scheduler = await Scheduler(
            host=host,
            port=port,
            protocol="tcp://" if security is None else "tls://",
            security=security or Security(),
            dashboard=True,
            dashboard_address=f"127.0.0.1:{dashboard_port}",
        )
    except (OSError, RuntimeError) as error:  # Dask wraps what the system said
        reason = error.__cause__ or error
        raise BadPart(f"The scheduler cannot listen on {host}:{port}: {reason}. Choose another address.") from error
    log.info("scheduler.started", address=scheduler.address)
    announce(scheduler.address)
    try:
        await stop.wait()
    finally:
        await scheduler.close(reason="told to stop")


class WorkerPart:
    """One worker process under a nanny, which ends it when it takes more memory than it may and starts another."""

    def __init__(
        self,
        address: str,
        security: Security | None,
        *,
        threads: int,
        memory_bytes: int,
        scratch: Path,
        drain_s: float,
        metrics_address: str = "",
        otlp_endpoint: str = "",
    ) -> None:
        self._address = address
        self._security = security
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._scratch = scratch
        self._drain_s = drain_s
        self._metrics_address = metrics_address or "127.0.0.1:0"
        self._otlp_endpoint = otlp_endpoint

    async def serve(self, stop: asyncio.Event) -> None:
        """Work for the scheduler until `stop` is set: then finish what runs, and leave."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        configure(self._otlp_endpoint)
        pause_s = _PAUSE_FIRST_S
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                born = time.monotonic()
                await self._serve_once(stopping)
                if stop.is_set():
                    return
                if time.monotonic() - born > _STEADY_S:
                    pause_s = _PAUSE_FIRST_S
                log.warning("worker.left_alone", address=self._address, again_s=pause_s)
                await asyncio.wait([stopping], timeout=pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        finally:
            stopping.cancel()

    async def _serve_once(self, stopping: "asyncio.Task[Any]") -> None:
        """One worker, from its start to its end."""
        nanny = Nanny(
            self._address,
            nthreads=self._threads,
            memory_limit=str(self._memory_bytes),
            resources=worker_resources(self._memory_bytes),
            security=self._security or Security(),
            local_directory=str(self._scratch),
            preload=[orders.__name__, __name__],
            dashboard=False,
            dashboard_address=self._metrics_address,  # Dask's own server: metrics and health, no pages
        )
        starting = asyncio.ensure_future(nanny)
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return
            try:
                await starting
            except (OSError, RuntimeError, TimeoutError) as error:
                log.warning("worker.not_connected", address=self._address, error=str(error.__cause__ or error))
                return
            log.info("worker.started", address=nanny.worker_address, threads=self._threads)
            ending = asyncio.create_task(nanny.finished())
            await asyncio.wait([ending, stopping], return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if nanny.status == Status.running and nanny.worker_address:
                await self._drain(nanny)
        finally:
            if starting.done():
                await nanny.close(timeout=_CLOSE_S, reason="the worker's part ends")
            else:
                await _abandon(nanny, starting)

    async def _drain(self, nanny: Nanny) -> None:
        log.info("worker.draining", address=nanny.worker_address, limit_s=self._drain_s)
        nanny.close_gracefully(reason="told to stop")  # what dies from here on is not started again
        told = {"function": dumps(drain), "kwargs": dumps({"limit_s": self._drain_s}), "wait": True}
        try:
            async with asyncio.timeout(self._drain_s + _CLOSE_S):
                answer: Any = await nanny.rpc(nanny.worker_address).run(**told)
                await nanny.finished()
        except (OSError, TimeoutError) as error:
            log.warning("worker.not_drained", address=nanny.worker_address, error=str(error))
            return
        log.info("worker.drained", left_behind=answer["result"])


async def _abandon(nanny: Nanny, starting: "asyncio.Future[Any]") -> None:
    """End a worker that is not up yet, and so does not listen."""
    starting.cancel()
    await asyncio.wait([starting])
    process = nanny.process.process if nanny.process is not None else None
    if process is not None and process.is_alive():
        await process.kill()


def dask_setup(worker: Any) -> None:
    """Have a worker leave signals to the part that holds it: supervisors and terminals send them to whole groups."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


async def drain(limit_s: float, dask_worker: Any = None) -> int:
    """On a worker: take no more, finish what runs and hand the answers over, for up to `limit_s`; then sign off.

    Returns how many shards were left behind. The scheduler gives those, and what only waited here, to other workers.
    Then the worker closes: were it only signed off, it would ask its nanny why at the next heartbeat.
    """
    dask_worker.status = Status.closing_gracefully
    end = time.monotonic() + limit_s
    while (left := _busy(dask_worker)) and time.monotonic() < end:  # noqa: ASYNC110 - Dask tells nobody
        await asyncio.sleep(_POLL_S)
    with contextlib.suppress(OSError):
        await dask_worker.scheduler.unregister(
            address=dask_worker.address, expected=True, close=False, stimulus_id=f"drained-{time.time()}"
        )
    dask_worker.loop.add_callback(dask_worker.close, nanny=False, executor_wait=False, reason="drained")
    return left


def _busy(dask_worker: Any) -> int:
    return sum(task.state in _BUSY for task in dask_worker.state.tasks.values())
