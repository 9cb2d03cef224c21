"""The runbook's way of a backup, carried out with its own commands on a real PostgreSQL."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from eorouter import app
from eorouter.commerce import ledger
from eorouter.settings import Settings
from eorouter.storage.database import Database
from eorouter.storage.tables import ledger_accounts, organisations
from eorouter.types import Mode, utc_now

RUNBOOK = (Path(__file__).resolve().parents[2] / "docs/runbook.md").read_text()
ORG = "org_01hv8e7m3k9q2w4r6t8y0a1b2c"


@pytest.fixture
def databases(postgres_server):
    """Addresses of two empty databases: one that works, one to restore into."""
    names = [f"backup_{os.getpid()}_{each}" for each in ("from", "to")]
    admin = sa.create_engine(f"{postgres_server}/postgres", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for name in names:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    plain = postgres_server.replace("postgresql+psycopg://", "postgresql://")
    yield [f"{plain}/{name}" for name in names]
    with admin.connect() as connection:
        for name in names:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(sa.text("DROP ROLE IF EXISTS eorouter_b"))
    admin.dispose()


@pytest.fixture
def shell(tmp_path, postgres_programs):
    """Runs a command of the runbook, with PostgreSQL's programs on the path."""

    def run(command, database):
        variables = os.environ | {"DATABASE": database, "PATH": f"{postgres_programs}:{os.environ['PATH']}"}
        ran = subprocess.run(
            ["sh", "-ec", command], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr

    return run


def command(start):
    (found,) = re.findall(rf"`({start} [^`]*)`", RUNBOOK)
    return found


def opened(address):
    return Database(address.replace("postgresql://", "postgresql+psycopg://"))


async def available(address):
    db = opened(address)
    async with db.read() as tx:
        found = await ledger.balance(tx, ORG, Mode.LIVE)
    await db.close()
    return found and found.available


@pytest.fixture
def installation(tmp_path):
    """Settings of an installation on a database."""
    return lambda database: Settings(database_url=database, data_dir=tmp_path)


async def grant(settings, cents, transfer_id):
    return await app.grant_credits(settings, ORG, cents, memo="", transfer_id=transfer_id, is_test=False)


async def test_what_was_backed_up_is_restored_and_its_ledger_is_verified(databases, shell, installation):
    working, restored = databases
    before, after = installation(working), installation(restored)
    await app.migrate(before)
    db = opened(working)
    row = {"id": ORG, "name": "Farm", "quota_bytes": 1, "used_bytes": 0, "created_at": utc_now()}
    async with db.write() as tx:
        await tx.execute(sa.insert(organisations).values(row))
    await db.close()
    backed_up = await grant(before, 50_000, "invoice-1")

    shell(command("pg_dump"), working)
    await grant(before, 700, "invoice-2")
    shell(command("pg_restore"), restored)

    assert await available(restored) == backed_up
    shell(f"EOROUTER_DATABASE_URL=$DATABASE {sys.executable} -m eorouter ledger verify", restored)
    await app.migrate(after)
    assert await grant(after, 700, "invoice-2") == backed_up + 700  # what came later is done again by its id

    db = opened(restored)
    async with db.write() as tx:
        posted = ledger_accounts.c.credits_posted
        await tx.execute(sa.update(ledger_accounts).where(ledger_accounts.c.org_id == ORG).values({posted: posted + 1}))
    await db.close()
    assert await app.verify_ledger(after)


async def test_second_user_of_the_database_acts_as_its_owner(databases, installation):
    database = databases[0]
    make, act = re.findall(r"((?:create|alter) role eorouter_b [^;`]*)", RUNBOOK)
    owner = sa.create_engine(database.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.execute(sa.text(make))
        connection.execute(sa.text(act))
    second = installation(database.replace("//eorouter@", "//eorouter_b@"))
    await app.migrate(second)
    assert await app.verify_ledger(second) == []
    with owner.connect() as connection:
        owners = set(
            connection.execute(sa.text("SELECT tableowner FROM pg_tables WHERE schemaname = 'public'")).scalars()
        )
    owner.dispose()
    assert owners == {"eorouter"}
