"""The versions make what `tables.metadata` says, on both engines, once, whoever else is migrating."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from eorouter.storage import migrate
from eorouter.storage.database import Database, database_url
from eorouter.storage.tables import item_boxes, items, metadata, organisations, projects
from eorouter.types import new_id, utc_now

BOX_INDEX = re.compile(r"item_boxes_(rtree|inserted|updated|deleted|box)|ix_item_boxes_box")


@pytest.fixture
async def db(empty_database_url: str) -> AsyncIterator[Database]:
    database = Database(empty_database_url)
    yield database
    await database.close()


def _catalog(connection: sa.Connection) -> list[tuple[str, ...]]:
    """Every definition as the engine itself tells it, but for the version table, the index of boxes and triggers."""
    if connection.dialect.name == "sqlite":
        query = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    else:
        query = """
            SELECT 'index' AS kind, indexname AS name, indexdef AS definition FROM pg_indexes
            WHERE schemaname = 'public'
            UNION ALL
            SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace
            UNION ALL
            SELECT 'column', table_name || '.' || column_name,
                   concat_ws(' ', data_type, character_maximum_length, is_nullable, column_default, ordinal_position)
            FROM information_schema.columns WHERE table_schema = 'public'
        """
    rows = connection.execute(sa.text(query))
    return sorted(
        tuple(row) for row in rows if row[0] != "trigger" and not BOX_INDEX.search(row[1]) and "alembic" not in row[1]
    )


def _plain(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without blanks, and with the constraints inside a CREATE TABLE in one order.

    SQLite writes the name of a table that was renamed, as every batch of Alembic ends, in quotes.
    """

    def plain(text: str) -> str:
        head, *constraints = (
            re.sub(r'\s+|(?<=TABLE)"|"(?=\()', "", re.sub(r"\s+", "", text)).rstrip(")").split(",CONSTRAINT")
        )
        return ",".join([head, *sorted(part.rstrip(")") for part in constraints)])

    return [(*row[:-1], plain(row[-1])) for row in rows]


async def test_upgrade_of_an_empty_database_reaches_the_head(db: Database):
    assert await migrate.current(db) is None
    await migrate.upgrade(db)
    assert await migrate.current(db) == migrate.head()
    await migrate.check(db)


async def test_upgraded_schema_equals_the_metadata(db: Database):
    await migrate.upgrade(db)

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_object": lambda _object, name, *_: BOX_INDEX.search(name or "") is None,
            },
        )
        return compare_metadata(context, metadata)

    async with db.read() as tx:
        assert await tx.run_sync(differences) == []
        migrated = await tx.run_sync(_catalog)
    # Alembic compares neither checks nor cascades nor AUTOINCREMENT; the engine's own catalogue has all of them.
    await migrate.downgrade(db, "base")
    async with db.write() as tx:
        await tx.run_sync(metadata.create_all)
        created = await tx.run_sync(_catalog)
    assert len(created) > 14
    assert _plain(migrated) == _plain(created)


async def test_downgrade_to_base_leaves_nothing_behind(db: Database):
    await migrate.upgrade(db)
    await migrate.downgrade(db, "base")
    async with db.read() as tx:
        names = await tx.run_sync(lambda connection: sa.inspect(connection).get_table_names())
    assert names == ["alembic_version"]
    assert await migrate.current(db) is None
    await migrate.upgrade(db)
    await migrate.check(db)


async def test_upgrade_keeps_rows_that_are_there(db: Database):
    await migrate.upgrade(db)
    async with db.write() as tx:
        await tx.execute(
            organisations.insert().values(id="org_1", name="n", quota_bytes=1, used_bytes=0, created_at=utc_now())
        )
    await migrate.upgrade(db)
    async with db.read() as tx:
        assert (await tx.execute(sa.select(organisations.c.id))).scalars().all() == ["org_1"]


async def test_check_of_an_empty_database_says_to_migrate(db: Database):
    with pytest.raises(migrate.OldSchema, match="run `eorouter migrate`"):
        await migrate.check(db)


async def test_check_and_upgrade_of_a_newer_database_are_refused_and_change_nothing(db: Database):
    await migrate.upgrade(db)
    async with db.write() as tx:
        await tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrate.NewSchema, match=r"9999.*newer than this build"):
        await migrate.check(db)
    with pytest.raises(migrate.NewSchema, match="9999"):
        await migrate.upgrade(db)
    assert await migrate.current(db) == "9999"


async def test_failed_upgrade_leaves_the_schema_as_it_was(db: Database):
    async with db.write() as tx:
        await tx.execute(sa.text("CREATE TABLE processes (id INTEGER)"))  # the last table of the first version
    with pytest.raises(sa.exc.DBAPIError, match="processes"):
        await migrate.upgrade(db)
    async with db.read() as tx:
        names = await tx.run_sync(lambda connection: sa.inspect(connection).get_table_names())
    assert names == ["processes"]


async def test_concurrent_upgrades_in_one_process_all_succeed(db: Database):
    await asyncio.gather(*(migrate.upgrade(db) for _ in range(5)))
    await migrate.check(db)


def test_concurrent_upgrades_of_several_processes_all_succeed(empty_database_url: str):
    program = """
import asyncio, sys
from eorouter.storage import migrate
from eorouter.storage.database import Database

async def main():
    db = Database(sys.argv[1])
    sys.stdin.readline()
    await migrate.upgrade(db)
    await migrate.check(db)
    await db.close()

asyncio.run(main())
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_database_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:  # all at once, when all have imported what they need
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [(process.communicate(timeout=120)[0], process.returncode) for process in processes]
    assert [code for _, code in answers] == [0] * 4, answers


def test_upgrade_of_a_database_in_a_folder_with_odd_characters_succeeds(tmp_path: Path):
    folder = tmp_path / "50% of ü"
    folder.mkdir()

    async def run() -> str | None:
        db = Database(database_url("", folder))
        await migrate.upgrade(db)
        found = await migrate.current(db)
        await db.close()
        return found

    assert asyncio.run(run()) == migrate.head()


async def test_boxes_are_found_through_their_index_after_insert_update_and_delete(db: Database):
    await migrate.upgrade(db)
    org, project, item = new_id("org"), new_id("prj"), new_id("itm")
    at = utc_now()

    async def found(tx: sa.ext.asyncio.AsyncConnection, west: float, south: float, east: float, north: float) -> list:
        query = (
            "SELECT id FROM item_boxes_rtree "
            "WHERE west <= :east AND east >= :west AND south <= :north AND north >= :south"
            if db.is_sqlite
            else "SELECT id FROM item_boxes WHERE box(point(west, south), point(east, north)) "
            "&& box(point(:west, :south), point(:east, :north))"
        )
        box = {"west": west, "south": south, "east": east, "north": north}
        return sorted((await tx.execute(sa.text(query), box)).scalars())

    async with db.write() as tx:
        await tx.execute(organisations.insert().values(id=org, name="n", quota_bytes=1, used_bytes=0, created_at=at))
        await tx.execute(projects.insert().values(id=project, org_id=org, name="n", description="", created_at=at))
        await tx.execute(
            items.insert().values(
                id=item, org_id=org, project_id=project, title="t", document={}, input={}, size_bytes=1, created_at=at
            )
        )
        for west in (-180.0, 0.1, 170.0):
            await tx.execute(
                item_boxes.insert().values(item_id=item, west=west, south=-10.0, east=west + 10.0, north=10.0)
            )
        ids = (await tx.execute(sa.select(item_boxes.c.id).order_by(item_boxes.c.id))).scalars().all()
        assert await found(tx, 5, 5, 6, 6) == [ids[1]]
        assert await found(tx, -179, 0, 179, 1) == ids
        assert await found(tx, 10.1, 0, 10.1, 0) == [ids[1]], "a touching edge counts, whatever the index rounds to"
        await tx.execute(item_boxes.update().where(item_boxes.c.id == ids[1]).values(west=50.0, east=60.0))
        assert await found(tx, 5, 5, 6, 6) == []
        assert await found(tx, 55, 5, 55, 5) == [ids[1]]
        await tx.execute(item_boxes.delete().where(item_boxes.c.id == ids[1]))
        assert await found(tx, 55, 5, 55, 5) == []
    async with db.write() as tx:
        await tx.execute(items.delete().where(items.c.id == item))  # the boxes go with it, and so must the index
        assert await found(tx, -180, -90, 180, 90) == []


async def test_question_for_boxes_is_answered_by_the_index(db: Database):
    await migrate.upgrade(db)
    async with db.write() as tx:
        if db.is_sqlite:
            query = "EXPLAIN QUERY PLAN SELECT id FROM item_boxes_rtree WHERE west <= 1 AND east >= 0"
            expected = "SCAN item_boxes_rtree VIRTUAL TABLE INDEX 2"  # 2: constrained, https://sqlite.org/rtree.html
        else:
            await tx.execute(sa.text("SET LOCAL enable_seqscan = off"))  # on an empty table it would be the better plan
            query = (
                "EXPLAIN SELECT id FROM item_boxes WHERE box(point(west, south), point(east, north)) "
                "&& box(point(0, 0), point(1, 1))"
            )
            expected = "ix_item_boxes_box"
        plan = "\n".join(str(row[-1]) for row in await tx.execute(sa.text(query)))
    assert expected in plan
