"""Failed log-ins are counted for all API processes together, forgiven, forgotten, and bounded."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from eorouter.storage import log_ins
from eorouter.storage.database import Database
from eorouter.storage.log_ins import ADDRESS_LIMIT, PAIR_LIMIT, WINDOW, TooMany
from eorouter.storage.tables import log_in_tries

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
async def replica(stores):
    """The database as another API process sees it."""
    other = Database(stores.db.url)
    yield other
    await other.close()


async def rows(db):
    async with db.read() as tx:
        return (await tx.execute(sa.select(sa.func.count()).select_from(log_in_tries))).scalar_one()


async def test_replicas_count_together_and_success_is_forgiven(stores, replica):
    for turn in range(PAIR_LIMIT):
        await log_ins.take((stores.db, replica)[turn % 2], "ada", "10.0.0.1", now=NOW)
    for db in (stores.db, replica):
        with pytest.raises(TooMany) as caught:
            await log_ins.take(db, "ada", "10.0.0.1", now=NOW + timedelta(minutes=5))
        assert caught.value.wait_s == 600
    await log_ins.take(replica, "ada", "10.0.0.2", now=NOW)
    await log_ins.forgive(replica, "ada", "10.0.0.1")
    await log_ins.take(stores.db, "ada", "10.0.0.1", now=NOW)


async def test_flood_of_refused_tries_writes_nothing(stores, replica, monkeypatch):
    for _ in range(PAIR_LIMIT):
        await log_ins.take(stores.db, "ada", "10.0.0.1", now=NOW)

    def refuse():
        raise AssertionError("a refusal wrote")

    monkeypatch.setattr(replica, "write", refuse)
    for second in range(3):
        with pytest.raises(TooMany) as caught:
            await log_ins.take(replica, "ada", "10.0.0.1", now=NOW + timedelta(seconds=second))
        assert caught.value.wait_s == WINDOW.total_seconds() - second


async def test_many_tries_at_once_do_not_slip_through(stores, replica):
    tries = [log_ins.take(db, "ada", "10.0.0.1", now=NOW) for db in (stores.db, replica) for _ in range(10)]
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["NoneType"] * PAIR_LIMIT + ["TooMany"] * (20 - PAIR_LIMIT)


async def test_one_address_cannot_try_every_account_until_the_window_is_over(stores):
    for number in range(ADDRESS_LIMIT):
        await log_ins.take(stores.db, f"user{number}", "10.0.0.1", now=NOW)
    with pytest.raises(TooMany):
        await log_ins.take(stores.db, "another", "10.0.0.1", now=NOW)
    assert await rows(stores.db) == ADDRESS_LIMIT + 1
    await log_ins.take(stores.db, "another", "10.0.0.1", now=NOW + WINDOW)
    assert await rows(stores.db) == 2


async def test_rows_are_bounded(stores, monkeypatch):
    monkeypatch.setattr(log_ins, "ROWS_MAX", 10)
    for number in range(30):
        await log_ins.take(stores.db, "ada", f"10.0.0.{number}", now=NOW + timedelta(seconds=number))
    assert await rows(stores.db) <= 10 + 2
