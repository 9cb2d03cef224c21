"""Workers on other machines: a client to a scheduler that several dispatchers may share.

What of it is ours is looked at once a second, on the scheduler: the workers of our build and how many dispatchers share
them. Workers of another build are named in the log and left to dispatchers of theirs, so that a release can be rolled
out while jobs run.

A scheduler that is gone takes its orders with it: they come back as lost, which counts as no try. The client is not
trusted to find its way back alone, since what answers then may be another build: whoever sees that this is not healthy
closes it and starts it again.
"""

import asyncio
import contextlib
import math
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from distributed import Client, Security

from eorouter_compute import nodes
from eorouter_compute.build import build
from eorouter_compute.cluster import Link, check_builds, configure
from eorouter_compute.nodes import Seen

_LOOK_S, _LOOK_WAIT_S = 1.0, 5.0
_BLIND_S = 15.0
"""Without a look at the scheduler for this long it is taken for gone; a connection that is cut says so sooner."""

_CONNECT_S = 10.0
_CLOSE_S = 5.0
_NAME = "eorouter-dispatcher"

log = structlog.get_logger(__name__)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler knows: its build, how many dispatchers it has, its workers."""

    build: str
    dispatchers: int
    workers: tuple[Seen, ...]


def look(dask_scheduler: Any = None) -> bytes:
    """The view of the scheduler that this is executed on, as msgpack."""
    view = View(
        build=build(),
        dispatchers=sum(_NAME in name for name in dask_scheduler.clients),
        workers=tuple(nodes.census(dask_scheduler)),
    )
    return msgspec.msgpack.encode(view)


class DistantCluster(Link):
    """A client to the scheduler at `address`, on the running event loop.

    `worker_memory_bytes` is what a worker is taken to have until one is seen.
    """

    def __init__(self, address: str, security: Security | None, *, worker_memory_bytes: int) -> None:
        super().__init__(worker_memory_bytes)
        self.address = address
        self._security = security
        self._view: View | None = None
        self._seen_at = 0.0
        self._connection: Any = None
        self._strangers: frozenset[str] = frozenset()
        self._watching: asyncio.Task[None] | None = None

    @property
    def threads(self) -> int:
        """Our share of the threads: every dispatcher of this scheduler takes as much."""
        if self._view is None:
            return 0
        return math.ceil(sum(worker.threads for worker in self.census()) / max(self._view.dispatchers, 1))

    @property
    def alive_count(self) -> int:
        """Workers of our build that are connected now."""
        return len(self.census())

    @property
    def is_healthy(self) -> bool:
        """The client has the connection that it started with, and heard of the scheduler lately."""
        if self._client is None or self._view is None or self._client.scheduler_comm is not self._connection:
            return False
        return self._client.status == "running" and time.monotonic() - self._seen_at < _BLIND_S

    @property
    def dashboard_url(self) -> str:
        """Where Dask's pages are: on the loopback of the scheduler's machine, so empty unless that is this one."""
        host = urlsplit(self.address).hostname or ""
        is_here = host == "localhost" or host.startswith("127.") or host == "::1"
        return self._client.dashboard_link if is_here and self.is_healthy else ""

    async def start(self) -> None:
        """Connect to the scheduler. Where none answers that is said in the log, and this is not healthy.

        Raises:
            OtherBuild: the scheduler runs another build, or other versions of libraries.
        """
        configure()
        self._client = Client(
            self.address,
            security=self._security,
            asynchronous=True,
            set_as_default=False,
            timeout=_CONNECT_S,
            name=_NAME,
        )
        try:
            await self._client
            view = await self._look()
            check_builds(build(), {f"the scheduler {self.address}": view.build})
            self._take(view)
            await self._join()
        except (OSError, TimeoutError) as error:
            log.warning("cluster.scheduler.unreachable", address=self.address, error=str(error))
            await self.close()
            return
        except BaseException:
            await self.close()
            raise
        self._connection = self._client.scheduler_comm
        self._watching = asyncio.create_task(self._watch())
        log.info("cluster.scheduler.connected", address=self.address, workers=self.alive_count)

    def refill(self) -> None:
        """Workers elsewhere are started by whoever looks after them."""

    async def close(self) -> None:
        """Let the scheduler go; orders that wait are lost."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        client, self._client = self._client, None
        self._view = None
        if client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(client.close(), _CLOSE_S)

    def census(self) -> list[Seen]:
        """The workers of our build, as the scheduler knew them a second ago."""
        return [] if self._view is None else [worker for worker in self._view.workers if worker.build == build()]

    async def _look(self) -> View:
        told = await asyncio.wait_for(self._client.run_on_scheduler(look), _LOOK_WAIT_S)
        return msgspec.msgpack.decode(told, type=View)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                view = await self._look()
            except (OSError, TimeoutError) as error:
                log.warning("cluster.scheduler.silent", address=self.address, error=str(error))
                continue
            self._take(view)

    def _take(self, view: View) -> None:
        self._view, self._seen_at = view, time.monotonic()
        self._memory_bytes = max((worker.memory_limit_bytes for worker in self.census()), default=self._memory_bytes)
        strangers = frozenset(worker.address for worker in view.workers if worker.build != build())
        if strangers - self._strangers:
            builds = {worker.address: worker.build for worker in view.workers if worker.address in strangers}
            log.warning("cluster.workers.of_another_build", mine=build(), workers=builds)
        self._strangers = strangers
