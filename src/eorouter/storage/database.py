"""Transactions on SQLite and on PostgreSQL, with one set of statements.

`read()` sees a snapshot; `write()` begins as a writer. On SQLite that is `BEGIN IMMEDIATE`: a transaction that starts
as a reader and turns into a writer fails at once under WAL, whatever the busy timeout. One request is one transaction.
"""

import asyncio
import math
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

BUSY_TIMEOUT_MS = 30_000


class Closing(Protocol):
    """What has something to let go of."""

    async def close(self) -> None:
        """Let it go."""
        ...


Attached = TypeVar("Attached", bound=Closing)


def spelled(value: Any) -> Any:
    """`value` for a JSON column: JSON has no NaN and no infinity, which are nodata values, so they become words.

    `msgspec.convert(…, strict=False)` reads them back as floats.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: spelled(each) for key, each in value.items()}
    return [spelled(each) for each in value] if isinstance(value, (list, tuple)) else value


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on both engines; a naive one is refused: it would mean another moment on each."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC, and for SQLite to its naive form."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone.")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Make aware again."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def database_url(text: str, data_dir: Path) -> str:
    """SQLAlchemy's address for a setting: empty means SQLite in the data folder; PostgreSQL goes through psycopg 3."""
    if not text:
        return f"sqlite+aiosqlite:///{data_dir.absolute() / 'eorouter.sqlite'}"
    for prefix in ("postgresql://", "postgres://"):
        if text.startswith(prefix):
            return "postgresql+psycopg://" + text.removeprefix(prefix)
    return text


def with_environment(text: str) -> str:
    """A setting's address of PostgreSQL with all that its library would take from the environment (PGPASSWORD, …).

    A process whose workers inherit its environment takes it out of there, and has to connect again later.
    """
    if not text.startswith(("postgresql", "postgres:")):
        return text
    import psycopg

    url = sa.make_url(database_url(text, Path()))
    if service := url.query.get("service"):
        os.environ["PGSERVICE"] = str(service)
    said = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val and option.val != option.compiled
    }
    parts = {"user": "username", "password": "password", "host": "host", "port": "port", "dbname": "database"}
    given = {name for name, part in parts.items() if getattr(url, part)} | url.query.keys()
    missing = {name: value for name, value in said.items() if name not in given}
    # Host and port stay parameters: a host may be a folder, and there may be several of both.
    places = [name for name in ("user", "password", "dbname") if name in missing]
    login: dict[str, Any] = {parts[name]: missing.pop(name) for name in places}
    url = url.set(**login).update_query_dict(missing).difference_update_query(["service"])
    address, mark, query = url.render_as_string(hide_password=False).partition("?")
    return address + mark + query.replace("+", "%20")  # which libpq does not take for a blank


class Database:
    """A pool of connections to one database."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            pool_pre_ping=not self.is_sqlite,
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
        )
        # SQLite has one writer; queueing here costs nothing, while its own wait is a poll.
        self._writer = asyncio.Lock()
        self._attached: dict[Any, Any] = {}
        self.statements = 0
        self.seconds = 0.0
        event.listen(self.engine.sync_engine, "before_cursor_execute", self._on_statement)
        event.listen(self.engine.sync_engine, "after_cursor_execute", self._on_answer)
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _on_sqlite_connect)
            event.listen(self.engine.sync_engine, "begin", _on_sqlite_begin)
            event.listen(self.engine.sync_engine, "invalidate", _on_sqlite_invalidate)

    def _on_statement(self, *event: Any) -> None:
        event[4].eorouter_began = time.perf_counter()

    def _on_answer(self, *event: Any) -> None:
        self.statements += 1
        self.seconds += time.perf_counter() - event[4].eorouter_began

    @asynccontextmanager
    async def read(self, *, sees_one_moment: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads; it is rolled back at the end.

        With `sees_one_moment` all its statements see the database as it was at the first, as on SQLite they always do.
        """
        async with self.engine.connect() as connection:
            if sees_one_moment and not self.is_sqlite:
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; committed when the block ends, rolled back when it raises."""
        if not self.is_sqlite:
            async with self.engine.begin() as connection:
                yield connection
            return
        async with self._writer, self.engine.connect() as connection:
            await connection.execution_options(eorouter_writes=True)
            async with connection.begin():
                yield connection

    def insert(self, table: sa.Table) -> Any:
        """The dialect's INSERT, which has `on_conflict_do_nothing` and `on_conflict_do_update` on both engines."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def check(self) -> None:
        """Ask the database something; raises what the driver raises."""
        async with self.read() as tx:
            await tx.execute(sa.text("SELECT 1"))

    def attached(self, kind: Callable[["Database"], Attached]) -> Attached:
        """What this process keeps one of for this database, made when it is first asked for and closed with it."""
        if kind not in self._attached:
            self._attached[kind] = kind(self)
        return self._attached[kind]

    async def close(self) -> None:
        """Close what is attached, and give all connections back."""
        attached, self._attached = self._attached, {}
        for each in attached.values():
            await each.close()
        await self.engine.dispose()


class DatabaseTime(Collector):
    """Statements and seconds of a process with its database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def collect(self) -> Iterator[Metric]:
        """The two counters."""
        yield CounterMetricFamily("eorouter_db_statements", "Statements sent.", value=self._db.statements)
        yield CounterMetricFamily("eorouter_db_seconds", "Seconds waited for their answers.", value=self._db.seconds)


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event below says how each transaction starts
    cursor = connection.cursor()
    _enter_wal(cursor)
    for pragma in (
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "cache_size=-65536",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _enter_wal(cursor: Any) -> None:
    """Switch to write-ahead logging; the switch of a new file does not heed the busy timeout, so it is tried again."""
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _on_sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("eorouter_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_sqlite_invalidate(connection: Any, _record: Any, _error: BaseException | None) -> None:
    """End the transaction of a connection that is thrown away because its task was cancelled in a statement.

    Closing would not: SQLite keeps a closed connection alive while one of its statements is, and the traceback of the
    cancellation holds the statement. The lock of the writer stayed taken, and the next writer waited for it in vain.
    """
    with suppress(asyncio.CancelledError):  # a second one; the first is on its way up
        connection.run_async(lambda driver: asyncio.shield(driver.rollback()))
