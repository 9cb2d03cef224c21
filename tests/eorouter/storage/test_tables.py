"""What is asked all the time is answered by an index, in its order, however much a table holds.

SQLite tells its plan without any rows; PostgreSQL's depends on them, so its indexes are the same ones by the migration.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.storage import migrate, uploads
from eorouter.storage.database import Database, database_url
from eorouter.storage.tables import HAS_OBJECTS, api_keys, items, job_events, job_shards, jobs, outbox
from eorouter.storage.tables import uploads as upload_rows

SHARD, EVENT = job_shards.c, job_events.c
LISTS = [
    sa.select(table).where(table.c[owner] == "x", table.c.id < "y").order_by(table.c.id.desc()).limit(9)
    for table in (items, jobs, upload_rows, api_keys)
    for owner in ("org_id", "project_id")
]
QUERIES = {
    "claim": sa.select(SHARD.number).where(SHARD.job_id == "x", SHARD.state == "ready").order_by(SHARD.number).limit(9),
    "events": sa.select(job_events).where(EVENT.job_id == "x", EVENT.id > 7).order_by(EVENT.id).limit(9),
    "open jobs": sa.select(jobs.c.id).where(jobs.c.state.in_(["queued", "running"])),
    "ended jobs": sa.select(jobs.c.id).where(jobs.c.state == "failed", jobs.c.finished_at > sa.func.now()),
    "leases": sa.select(SHARD.owner).where(SHARD.state == "leased", SHARD.lease_until < sa.func.now()),
    "settle": sa.update(upload_rows).where(upload_rows.c.job_id == "x").values(state="failed"),
    "expire": sa.select(upload_rows.c.id).where(
        upload_rows.c.state.in_(uploads.OPEN), upload_rows.c.expires_at < sa.func.now(), HAS_OBJECTS
    ),
    "deletions": sa.select(outbox.c.id).where(outbox.c.handled_at.is_(None)).order_by(outbox.c.id).limit(9),
    **{f"list {number}": query for number, query in enumerate(LISTS)},
}


@pytest.fixture
async def tx(tmp_path: Path) -> AsyncIterator[AsyncConnection]:
    db = Database(database_url("", tmp_path))
    await migrate.upgrade(db)
    async with db.read() as connection:
        yield connection
    await db.close()


async def plan(tx: AsyncConnection, query: sa.Select | sa.Update) -> str:
    text = query.compile(dialect=tx.dialect, compile_kwargs={"literal_binds": True})
    return "; ".join(row[-1] for row in await tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}"))


@pytest.mark.parametrize("name", QUERIES)
async def test_frequent_query_is_answered_by_an_index_in_its_order(tx, name):
    told = await plan(tx, QUERIES[name])
    assert "SEARCH" in told
    assert "SCAN" not in told
    assert "TEMP B-TREE" not in told


async def test_plan_of_a_query_without_an_index_would_be_told(tx):
    assert "SCAN" in await plan(tx, sa.select(jobs).where(jobs.c.name == "x"))
