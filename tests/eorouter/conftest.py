"""A database of each kind, an object store, and a context to call handlers with.

PostgreSQL is a real server in a temporary folder, started once per session where its programs are installed; without it
the same tests run on SQLite alone and the summary says so.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import s3
import sqlalchemy as sa

from eorouter.operation import Context, Registry
from eorouter.settings import Settings
from eorouter.storage import Stores, migrate
from eorouter.storage.database import Database, database_url
from eorouter.storage.objects import Objects
from eorouter.storage.tables import organisations, projects
from eorouter.types import ANONYMOUS, Principal, utc_now


@pytest.fixture(scope="session")
def postgres_server(postgres_programs: Path) -> Iterator[str]:
    """Address of a fresh PostgreSQL server on loopback, without its database's name.

    Its folder is not one of pytest's: those lie below a folder that every other run of pytest closes to all but its own
    user, and for root the server runs as somebody else.
    """
    folder = Path(tempfile.mkdtemp(prefix="eorouter-postgres-"))
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        account = pwd.getpwnam("postgres")
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(folder, account.pw_uid, account.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [postgres_programs / program, "-D", folder / "data", *arguments],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **user,
        )  # fmt: skip

    run("initdb", "-U", "eorouter", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql+psycopg://eorouter@127.0.0.1:{port}"
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server in a process of its own."""
    with s3.server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database without tables, of each engine in turn."""
    if request.param == "sqlite":
        yield database_url("", tmp_path)
        return
    server: str = request.getfixturevalue("postgres_server")
    name = f"test_{os.getpid()}_{abs(hash(request.node.nodeid)) % 10**10}"
    admin = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield f"{server}/{name}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an installation in a temporary folder; verifiers are cheap so that tests are quick."""
    return Settings(data_dir=tmp_path, secret="s" * 40, bcrypt_cost=4)


@pytest.fixture
async def stores(empty_database_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    """Migrated database (SQLite, then PostgreSQL) and a local object store."""
    db = Database(empty_database_url)
    await migrate.upgrade(db)
    yield Stores(db=db, objects=Objects("", tmp_path))
    await db.close()


@pytest.fixture
def context(stores: Stores, settings: Settings) -> Callable[..., Context]:
    """Make a context; keyword arguments replace its fields, `principal` above all."""

    def make(principal: Principal = ANONYMOUS, **changes: object) -> Context:
        plain = Context(
            principal=principal,
            clock=utc_now,
            stores=stores,
            settings=settings,
            registry=Registry([]),
            request_id="req_test",
            base_url="http://127.0.0.1:8000",
        )
        return msgspec.structs.replace(plain, **changes)

    return make


@pytest.fixture
def quota_bytes() -> int:
    """Storage of each organisation of `peopled`; a file of tests about quotas has its own."""
    return 10**9


@pytest.fixture
async def peopled(stores: Stores, quota_bytes: int) -> Stores:
    """The stores with two organisations: `org_me` with `prj_a` and `prj_b`, `org_other` with `prj_other`."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    async with stores.db.write() as tx:
        for org in ("org_me", "org_other"):
            row = {"id": org, "name": org, "quota_bytes": quota_bytes, "used_bytes": 0, "created_at": now}
            await tx.execute(sa.insert(organisations).values(row))
        for project, org in (("prj_a", "org_me"), ("prj_b", "org_me"), ("prj_other", "org_other")):
            row = {"id": project, "org_id": org, "name": project, "description": "", "created_at": now}
            await tx.execute(sa.insert(projects).values(row))
    return stores
