"""Keeps a dispatcher alive beside an API, as a child process.

Its settings travel in the environment, its life hangs on a pipe: when this process is gone, however it went, the
child's standard input closes and the child ends. When the child dies it is started again, later each time.
"""

import asyncio
import contextlib
import os
import sys
import time
from datetime import datetime

import msgspec
import structlog

from eorouter.errors import Unavailable
from eorouter.settings import PREFIX, Settings
from eorouter.storage import dispatchers
from eorouter.storage.database import Database, database_url
from eorouter.types import utc_now

_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.2, 30.0
_STEADY_S = 60.0  # a child that lived this long starts the backoff afresh
_STOP_S = 20.0
_POLL_S = 0.1

log = structlog.get_logger(__name__)


class Supervisor:
    """Starts, watches and stops a dispatcher."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._watch: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the dispatcher that runs now."""
        return None if self._child is None or self._child.returncode is not None else self._child.pid

    async def start(self, *, timeout_s: float = 180.0) -> None:
        """Start the dispatcher and wait until it has a worker; the first start compiles kernels.

        Workers elsewhere are not waited for: jobs do, in the queue.

        Raises:
            Unavailable: no worker came up in time.
        """
        workers = 0 if self._settings.scheduler_address else 1
        started_at = utc_now()
        self._watch = asyncio.create_task(self._keep_alive())
        db = Database(database_url(self._settings.database_url, self._settings.data_dir), pool_size=1)
        deadline = time.monotonic() + timeout_s
        try:
            while not await _is_up(db, started_at, workers):
                if time.monotonic() > deadline:
                    await self.stop()
                    raise Unavailable(f"The dispatcher had no worker within {timeout_s:.0f} s; its log says why.")
                await asyncio.sleep(_POLL_S)
        finally:
            await db.close()

    async def stop(self) -> None:
        """Stop the dispatcher: politely, then for certain."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        if child.stdin is not None:
            child.stdin.close()
        try:
            await asyncio.wait_for(child.wait(), _STOP_S)
        except TimeoutError:
            log.warning("supervisor.dispatcher.killed", pid=child.pid, waited_s=_STOP_S)
            child.kill()
            await child.wait()

    async def _keep_alive(self) -> None:
        pause_s = _BACKOFF_FIRST_S
        while True:
            born = time.monotonic()
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "eorouter.jobs", "--supervised",
                stdin=asyncio.subprocess.PIPE, env=environment(self._settings),
            )  # fmt: skip
            code = await self._child.wait()
            if time.monotonic() - born > _STEADY_S:
                pause_s = _BACKOFF_FIRST_S
            log.error("supervisor.dispatcher.died", code=code, restart_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _BACKOFF_MAX_S)


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings as `settings.load` reads them, the secret among them."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return others | {PREFIX + name.upper(): str(value) for name, value in msgspec.structs.asdict(settings).items()}


async def _is_up(db: Database, since: datetime, workers: int) -> bool:
    async with db.read() as tx:
        return any(row.detail.get("workers", 0) >= workers for row in await dispatchers.known(tx, since=since))
