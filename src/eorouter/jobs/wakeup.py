"""Learning within milliseconds that another process committed something.

SQLite counts commits of other connections in `PRAGMA data_version`, a read of shared memory that costs microseconds;
a thread asks every few milliseconds. PostgreSQL tells: whoever changes the queue calls `notify` in its transaction.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

CHANNEL = "eorouter_jobs"
_POLL_S = 0.005
_RECONNECT_S = 1.0

log = structlog.get_logger(__name__)


async def notify(tx: AsyncConnection) -> None:
    """Wake the dispatchers when `tx` commits; on SQLite the commit itself does."""
    if tx.dialect.name == "postgresql":
        await tx.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


async def watch(url: str, wake: Callable[[], object]) -> None:
    """Call `wake` whenever something was committed; runs until cancelled."""
    if url.startswith("sqlite"):
        await _watch_sqlite(url, wake)
    else:
        await _watch_postgresql(url, wake)


async def _watch_sqlite(url: str, wake: Callable[[], object]) -> None:
    path = make_url(url).database or ""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def poll() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            seen = None
            while not stop.wait(_POLL_S):
                try:
                    (version,) = connection.execute("PRAGMA data_version").fetchone()
                except sqlite3.OperationalError:
                    continue  # busy with recovery after another process's crash; ask again
                if version != seen:
                    seen = version
                    loop.call_soon_threadsafe(wake)

    thread = asyncio.create_task(asyncio.to_thread(poll))
    try:
        await asyncio.shield(thread)
    finally:
        stop.set()
        await asyncio.gather(thread, return_exceptions=True)


async def _watch_postgresql(url: str, wake: Callable[[], object]) -> None:
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                wake()  # what was missed while not listening
                async for _ in connection.notifies():
                    wake()
        except psycopg.OperationalError as error:
            log.warning("jobs.wakeup.lost", error=str(error), retry_s=_RECONNECT_S)
        await asyncio.sleep(_RECONNECT_S)
