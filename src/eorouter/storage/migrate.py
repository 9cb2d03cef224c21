"""Brings the schema of a database to the version this build speaks, through Alembic and without any file beside it.

The versions are modules of this package, so a wheel carries them. A database knows its version (`alembic_version`).
An upgrade is one transaction under a lock (an advisory one on PostgreSQL, the write lock on SQLite): of several
processes that start at once, one migrates and the others find it done; one that is killed leaves what was before.

A new version is a module `migrations/versions/v<number>_<what>.py` written by hand; the tests compare what the versions
make with `tables.metadata`, and say what is missing. On SQLite, which cannot alter much, use `op.batch_alter_table`.
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from eorouter.storage.database import BUSY_TIMEOUT_MS, Database
from eorouter.storage.tables import metadata

_FOLDER = Path(__file__).parent / "migrations"
_LOCK_ID = 0x656F726F75746572  # "eorouter", the advisory lock of this service on PostgreSQL
_proxies = threading.Lock()  # Alembic's `op` is one for the whole process


class SchemaMismatch(Exception):
    """The database's schema is not the one this build speaks."""


class OldSchema(SchemaMismatch):
    """The database was not migrated yet, or by an older build."""


class NewSchema(SchemaMismatch):
    """The database was migrated by a newer build."""


@functools.cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_FOLDER))


def head() -> str:
    """Version of the schema that this build speaks."""
    (revision,) = _scripts().get_heads()
    return revision


async def current(db: Database) -> str | None:
    """Version of the database's schema; None where nothing was migrated yet."""

    def read(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with db.read() as tx:
        return await tx.run_sync(read)


async def check(db: Database) -> None:
    """Refuse to work on a schema of another version.

    Raises:
        OldSchema: the database is behind this build, or empty.
        NewSchema: this build is behind the database.
    """
    found, expected = await current(db), head()
    if found == expected:
        return
    if found is None:
        raise OldSchema(
            f"The database holds no schema of eorouter, version {expected} is needed: run `eorouter migrate`."
        )
    if found in {script.revision for script in _scripts().walk_revisions()}:
        raise OldSchema(
            f"The database's schema is version {found}, this build needs {expected}: run `eorouter migrate`."
        )
    raise _newer(found)


def _newer(found: str) -> NewSchema:
    return NewSchema(
        f"The database's schema is version {found}, which is newer than this build ({head()}): "
        "install the release that migrated it, or restore the backup made before."
    )


async def upgrade(db: Database) -> None:
    """Bring the schema to `head()`; does nothing where it is there already.

    Raises:
        NewSchema: the database was migrated by a newer build; nothing was changed.
    """
    await asyncio.to_thread(_migrate, db, _steps_up)


async def downgrade(db: Database, revision: str) -> None:
    """Take the schema back to an older version, or to nothing with `base`; drops what that version does not have."""
    await asyncio.to_thread(_migrate, db, functools.partial(_steps_down, revision))


def _steps_up(found: str | None) -> Iterable[MigrationStep]:
    scripts = _scripts()
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise _newer(found)
    path = reversed(list(scripts.iterate_revisions("head", found or "base")))
    return [MigrationStep.upgrade_from_script(scripts.revision_map, script) for script in path]


def _steps_down(target: str, found: str | None) -> Iterable[MigrationStep]:
    scripts = _scripts()
    path = [] if found is None else scripts.iterate_revisions(found, target)
    return [MigrationStep.downgrade_from_script(scripts.revision_map, script) for script in path]


def _migrate(db: Database, steps: Callable[[str | None], Iterable[MigrationStep]]) -> None:
    """Walk the steps in one locked transaction, on a connection of its own and outside of the event loop."""

    def plan(heads: tuple[str, ...] | str, _context: MigrationContext) -> Iterable[MigrationStep]:
        return steps(heads[0] if heads else None)

    engine = _engine(db)
    scripts = _scripts()
    try:
        with (
            _proxies,
            engine.begin() as connection,
            EnvironmentContext(Config(), scripts, fn=plan) as environment,
        ):
            if not db.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
            environment.configure(connection=connection, target_metadata=metadata)
            environment.run_migrations()
            if db.is_sqlite:
                _check_references(connection)
    finally:
        engine.dispose()


def _engine(db: Database) -> Engine:
    if not db.is_sqlite:
        return sa.create_engine(db.url, poolclass=NullPool)
    url = sa.make_url(db.url).set(drivername="sqlite")
    engine = sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    """Leave transactions to us, and references unchecked until the end.

    A batch operation copies a table and drops the old one; with foreign keys on, that drop would delete every row that
    refers to the table. https://www.sqlite.org/lang_altertable.html#otheralter
    """
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=OFF")


def _check_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables = ", ".join(sorted({f"{row[0]} → {row[2]}" for row in broken}))
        raise SchemaMismatch(f"The migration would leave rows that refer to nothing ({tables}); nothing was changed.")
