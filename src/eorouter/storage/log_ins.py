"""Failed log-ins lately, by account and address and by address alone, for all API processes together.

Not by account alone: then anybody could lock its owner out. The rows are bounded: what is older than the window is
deleted, and of the rest what is oldest where there are too many.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

import sqlalchemy as sa

from eorouter.storage.database import Database
from eorouter.storage.tables import log_in_tries

PAIR_LIMIT, ADDRESS_LIMIT = 5, 30
WINDOW = timedelta(minutes=15)
ROWS_MAX = 10_000

_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


class TooMany(Exception):
    """Too many failed log-ins; `wait_s` says for how long."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"Wait {wait_s:.0f} s.")
        self.wait_s = wait_s


def _key(*who: str) -> str:
    return hashlib.sha256("\0".join(who).encode()).hexdigest()


@asynccontextmanager
async def trying(db: Database, account: str, address: str, *, now: datetime) -> AsyncIterator[None]:
    """A try: counted before it is made, and forgiven when it ends without an error.

    Tries from one address take turns in a process. A dozen log-ins at once that all go well would be refused otherwise:
    while they are made they count like failures.

    Raises:
        TooMany: see `take`.
    """
    await _looked(db, {_key(address): ADDRESS_LIMIT}, now)  # a flood is refused without waiting for a turn
    async with _turns.setdefault(address, asyncio.Lock()):
        await take(db, account, address, now=now)
        yield
        await forgive(db, account, address)


async def take(db: Database, account: str, address: str, *, now: datetime) -> None:
    """Count a try before it is made, so that many at once do not slip through.

    Raises:
        TooMany: of the account from this address, or of any account from it; then it was not counted.
    """
    counts = {_key(address): ADDRESS_LIMIT, _key(address, account): PAIR_LIMIT}
    if await _looked(db, counts, now):
        await _prune(db, now)
    async with db.write() as tx:
        for key, limit in counts.items():
            upsert = db.insert(log_in_tries).values(key=key, tries=1, since=now)
            is_old = log_in_tries.c.since <= now - WINDOW
            counted = {
                "tries": sa.case((is_old, 1), else_=log_in_tries.c.tries + 1),
                "since": sa.case((is_old, upsert.excluded.since), else_=log_in_tries.c.since),
            }
            upsert = upsert.on_conflict_do_update(index_elements=["key"], set_=counted)
            row = (await tx.execute(upsert.returning(log_in_tries.c.tries, log_in_tries.c.since))).one()
            if row.tries > limit:
                raise TooMany((row.since + WINDOW - now).total_seconds())


async def _looked(db: Database, limits: Mapping[str, int], now: datetime) -> bool:
    """Refuse who is over a limit without a write, which a flood of tries would keep others from; True to prune first.

    Raises:
        TooMany: it is sure already.
    """
    tries = log_in_tries.c
    lately = sa.select(tries.key, tries.tries, tries.since).where(tries.since > now - WINDOW)
    is_old = sa.exists().where(tries.since <= now - WINDOW)
    surplus = sa.exists(sa.select(tries.key).order_by(tries.since.desc()).offset(ROWS_MAX))
    async with db.read() as tx:
        for row in await tx.execute(lately.where(tries.key.in_(list(limits)))):
            if row.tries >= limits[row.key]:
                raise TooMany((row.since + WINDOW - now).total_seconds())
        return bool((await tx.execute(sa.select(is_old | surplus))).scalar_one())


async def forgive(db: Database, account: str, address: str) -> None:
    """The try went well: it does not count."""
    one_less = {"tries": log_in_tries.c.tries - 1}
    has_some = log_in_tries.c.tries > 0
    async with db.write() as tx:
        await tx.execute(sa.update(log_in_tries).where(log_in_tries.c.key == _key(address), has_some).values(one_less))
        await tx.execute(sa.delete(log_in_tries).where(log_in_tries.c.key == _key(address, account)))


async def _prune(db: Database, now: datetime) -> None:
    """Delete what no longer counts. Rows that somebody is changing are left to the next look."""
    newest = sa.select(log_in_tries.c.since).order_by(log_in_tries.c.since.desc()).offset(ROWS_MAX).limit(1)
    async with db.write() as tx:
        surplus = (await tx.execute(newest)).scalar_one_or_none()
        until = now - WINDOW if surplus is None else max(surplus, now - WINDOW)
        old = sa.select(log_in_tries.c.key).where(log_in_tries.c.since <= until).with_for_update(skip_locked=True)
        await tx.execute(sa.delete(log_in_tries).where(log_in_tries.c.key.in_(old.scalar_subquery())))
