"""A method that a third party installed, two organisations, and a cluster without processes."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.jobs import queue
from eorouter.jobs.dispatcher import Dispatcher
from eorouter.settings import Settings
from eorouter.storage import Stores
from eorouter.storage.tables import organisations, projects
from eorouter.types import Principal, utc_now
from eorouter_compute import method, orders
from eorouter_compute.nodes import Seen
from eorouter_compute.orders import Outcome, Running, ShardOrder

TOYS = Path(__file__).resolve().parents[2] / "toys"

ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")
BOB = Principal(kind="user", id="usr_bob", org_id="org_b", scopes=frozenset(), user_id="usr_bob")

Create = Callable[..., Awaitable[str]]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy method, found through its entry point here and in every process started from here."""
    monkeypatch.syspath_prepend(str(TOYS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([path for path in sys.path if "site-packages" not in path]))
    method.methods.cache_clear()
    yield
    method.methods.cache_clear()


@pytest.fixture
async def create(stores: Stores) -> Create:
    """Create a toy job: `await create(shards=3)`; `principal`, `dispatches` and `is_interactive` are the queue's."""
    now = utc_now()
    async with stores.db.write() as tx:
        for org in ("org_a", "org_b"):
            row = {"id": org, "name": org, "quota_bytes": 10**12, "used_bytes": 0, "created_at": now}
            await tx.execute(sa.insert(organisations).values(row))
            row = {"id": f"prj_{org[-1]}", "org_id": org, "name": org, "description": "", "created_at": now}
            await tx.execute(sa.insert(projects).values(row))

    async def make(
        *,
        principal: Principal = ALICE,
        dispatches: bool = True,
        is_interactive: bool = False,
        time_limit_s: int | None = None,
        **fields: object,
    ) -> str:
        task = method.get("toy").params(**fields)
        async with stores.db.write() as tx:
            return await queue.create(
                tx,
                principal=principal,
                project_id=f"prj_{principal.org_id[-1]}",
                task=task,
                inputs=[],
                name="",
                is_interactive=is_interactive,
                request_id="req_test",
                now=utc_now(),
                dispatches=dispatches,
                time_limit_s=time_limit_s,
            )

    return make


class ThreadCluster:
    """Runs orders as workers do, bytes to bytes, on two threads of this process; keeps the order of what began."""

    def __init__(self) -> None:
        self.worker_count = self.threads = 2
        self.alive_count = 2
        self.is_healthy = True
        self.dashboard_url = ""
        self.begun: list[ShardOrder] = []
        self.repeats = 0
        """So many orders are run twice, and only the second answer arrives, as Dask does when it loses the first."""
        self.lost: set[tuple[str, int, int]] = set()
        self._places = asyncio.Semaphore(2)

    async def start(self) -> None:
        method.methods()

    def refill(self) -> None:
        """Threads do not die."""

    async def close(self) -> None:
        """What runs ends, as with its worker: a thread is told to, and nobody hears what it says."""
        self.is_healthy = False
        running = [orders.run_name((job, number, token)) for job, number, token, _ in orders.pulse([], "close")]
        orders.pulse(running, "close")

    async def run(self, order: ShardOrder, *, is_urgent: bool = False) -> Outcome:
        async with self._places:
            self.begun.append(order)
            answer = await asyncio.to_thread(orders.run_order, msgspec.msgpack.encode(order))
            if self.repeats > 0:
                self.repeats -= 1
                answer = await asyncio.to_thread(orders.run_order, msgspec.msgpack.encode(order))
        return msgspec.msgpack.decode(answer, type=Outcome)

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """No order begins until the block ends."""
        async with self._places, self._places:
            yield

    async def pulse(self, cancelled: set[str]) -> list[Running]:
        return [
            Running(job_id=job, number=number, token=token, pixels=pixels)
            for job, number, token, pixels in orders.pulse(sorted(cancelled))
        ]

    def census(self) -> list[Seen]:
        return []

    async def restart_workers_of(self, runs: set[tuple[str, int, int]]) -> None:
        raise AssertionError("no toy of these tests is deaf")


@pytest.fixture
async def cluster() -> ThreadCluster:
    """A cluster of two threads."""
    return ThreadCluster()


@pytest.fixture
async def dispatcher(settings: Settings, stores: Stores, cluster: ThreadCluster) -> AsyncIterator[Dispatcher]:
    """A dispatcher that runs, on that cluster."""
    made = Dispatcher(settings, stores, cluster=cluster)  # pyright: ignore[reportArgumentType]
    running = asyncio.create_task(made.run())
    yield made
    made.stop()
    await running
