import asyncio
import traceback
from urllib.parse import unquote

import psycopg
import pytest
import sqlalchemy as sa

from eorouter.storage import Stores
from eorouter.storage.database import Database, with_environment
from eorouter.storage.tables import organisations
from eorouter.types import utc_now

LONG = sa.text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT max(i) FROM n")


async def names(db: Database) -> list[str]:
    async with db.read() as tx:
        return list((await tx.execute(sa.select(organisations.c.name).order_by(organisations.c.name))).scalars())


async def add(tx, name: str) -> None:
    row = {"id": name, "name": name, "quota_bytes": 1, "used_bytes": 0, "created_at": utc_now()}
    await tx.execute(sa.insert(organisations).values(row))


class TestWrite:
    async def test_write_commits_at_its_end_and_not_where_it_raises(self, stores: Stores):
        async def write() -> None:
            async with stores.db.write() as tx:
                await add(tx, "lost")
                await add(tx, "lost")

        with pytest.raises(sa.exc.IntegrityError):
            await write()
        async with stores.db.write() as tx:
            await add(tx, "kept")
        assert await names(stores.db) == ["kept"]

    @pytest.mark.parametrize("cancels", [1, 2])
    async def test_write_cancelled_in_a_statement_leaves_no_lock(self, stores: Stores, cancels):
        """Also while somebody holds the traceback, and with it the cursor that was at work."""
        running, held = asyncio.Event(), []

        async def write() -> None:
            try:
                async with stores.db.write() as tx:
                    await add(tx, "lost")
                    running.set()
                    await tx.execute(LONG)
            except asyncio.CancelledError as error:
                held.append(error)
                raise

        task = asyncio.create_task(write())
        await running.wait()
        for _ in range(cancels):
            await asyncio.sleep(0.02)
            task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(10), stores.db.write() as tx:
            await add(tx, "kept")
        assert await names(stores.db) == ["kept"]
        assert "tx.execute(LONG)" in "".join(traceback.format_exception(held[0]))

    async def test_writes_at_once_all_take_place(self, stores: Stores):
        async def write(number: int) -> None:
            async with stores.db.write() as tx:
                await add(tx, f"{number:02}")

        await asyncio.gather(*(write(number) for number in range(30)))
        assert await names(stores.db) == [f"{number:02}" for number in range(30)]


class TestRead:
    async def test_read_that_sees_one_moment_does_not_see_what_is_committed_meanwhile(self, stores: Stores):
        async with stores.db.read(sees_one_moment=True) as tx:
            before = (await tx.execute(sa.select(sa.func.count()).select_from(organisations))).scalar()
            async with stores.db.write() as other:
                await add(other, "later")
            after = (await tx.execute(sa.select(sa.func.count()).select_from(organisations))).scalar()
        assert (before, after) == (0, 0)
        assert await names(stores.db) == ["later"]


class TestAttached:
    async def test_attached_is_made_once_and_closed_with_the_database(self, stores: Stores):
        closed = []

        class Kept:
            def __init__(self, db: Database) -> None:
                self.db = db

            async def close(self) -> None:
                closed.append(self)

        kept = stores.db.attached(Kept)
        assert stores.db.attached(Kept) is kept
        await stores.db.close()
        assert closed == [kept]


@pytest.mark.parametrize(
    ("url", "completed"),
    [
        ("", ""),
        ("postgresql://db/e", "postgresql+psycopg://ada:a%2Fb%40c@db/e?port=5433&sslmode=disable"),
        ("postgres://bob:pw@db:1/e?sslmode=require", "postgresql+psycopg://bob:pw@db:1/e?sslmode=require"),
        ("postgresql:///e", "postgresql+psycopg://ada:a%2Fb%40c@/e?host=/run/pg&port=5433&sslmode=disable"),
        (
            "postgresql://db/e?service=eo",
            "postgresql+psycopg://ada:a%2Fb%40c@db/e?options=-c%20a%3Db&port=5433&sslmode=disable",
        ),
    ],
)  # fmt: skip
def test_address_is_completed_by_what_its_library_reads_in_the_environment(tmp_path, monkeypatch, url, completed):
    (tmp_path / "services").write_text("[eo]\nhost=elsewhere\noptions=-c a=b\n")
    known = {"USER": "ada", "PASSWORD": "a/b@c", "HOST": "/run/pg", "PORT": "5433", "SSLMODE": "disable"}
    for name, value in known.items():
        monkeypatch.setenv(f"PG{name}", value)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "")
    made = with_environment(url)
    assert made.partition("?")[0] == completed.partition("?")[0]
    options = [
        set(unquote(each.partition("?")[2]).split("&")) - {"channel_binding=prefer"} for each in (made, completed)
    ]
    assert options[0] == options[1]
    if made:
        assert psycopg.conninfo.conninfo_to_dict(made.replace("+psycopg", ""))["password"] in {"a/b@c", "pw"}
