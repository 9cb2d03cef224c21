"""Learning within milliseconds that another process committed something.

SQLite counts commits of other connections in `PRAGMA data_version`, a read of shared memory that costs microseconds;
we ask every few milliseconds. PostgreSQL tells: whoever changes the queue calls `notify` in its transaction. Both wait
in a thread: it closes its connection whatever becomes of the event loop and however often a task is cancelled. What
goes wrong there is logged, and listening begins anew.
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
_STOP_S = 0.1
_RECONNECT_S = 1.0
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

log = structlog.get_logger(__name__)


async def notify(tx: AsyncConnection) -> None:
    """Wake the dispatchers when `tx` commits; on SQLite the commit itself does."""
    if tx.dialect.name == "postgresql":
        await tx.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


async def watch(url: str, wake: Callable[[], object]) -> None:
    """Call `wake` whenever something was committed; runs until cancelled."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell() -> None:
        if not stop.is_set():
            loop.call_soon_threadsafe(wake)

    listen = _listen_sqlite if url.startswith("sqlite") else _listen_postgresql
    thread = asyncio.create_task(asyncio.to_thread(_keep_listening, listen, url, tell, stop))
    try:
        await asyncio.shield(thread)
    finally:
        stop.set()
        await asyncio.gather(thread, return_exceptions=True)


Listen = Callable[[str, Callable[[], object], threading.Event], None]


def _keep_listening(listen: Listen, url: str, tell: Callable[[], object], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            listen(url, tell, stop)
        except (sqlite3.Error, psycopg.Error, OSError) as error:
            log.warning("jobs.wakeup.lost", error=str(error), retry_s=_RECONNECT_S)
        except Exception:
            log.exception("jobs.wakeup.failed", retry_s=_RECONNECT_S)
        else:
            continue
        stop.wait(_RECONNECT_S)


def _listen_sqlite(url: str, tell: Callable[[], object], stop: threading.Event) -> None:
    path = make_url(url).database or ""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        seen = None
        while not stop.wait(_POLL_S):
            try:
                (version,) = connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF in _BUSY:
                    continue  # with recovery after another process's crash; ask again
                raise
            if version != seen:
                seen = version
                tell()


def _listen_postgresql(url: str, tell: Callable[[], object], stop: threading.Event) -> None:
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        tell()  # what was missed while not listening
        while not stop.is_set():
            for _ in connection.notifies(timeout=_STOP_S, stop_after=1):
                tell()
