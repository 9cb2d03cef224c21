"""Follow a job's events as they are written: from the table, so that nothing depends on who wrote them or when.

All followers of a process share one look at the table, a few times a second while there are any; each then reads its
own rows. Ids of one job's events are given out under the lock of its row, so within a job they are committed in order
and none appears behind one that was read (between jobs that does not hold, hence the look is by job).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from eorouter.jobs.states import TERMINAL, JobEvent
from eorouter.storage.database import Database
from eorouter.storage.tables import job_events, jobs

LOOK_S = 0.2
KEEPALIVE_S = 15.0
"""A follower hears something at least this often; proxies close connections that are silent for a minute."""

_ROWS = 500
_LAST = frozenset({JobEvent.COMPLETE.value, JobEvent.FAIL.value, JobEvent.CANCEL.value})

log = structlog.get_logger(__name__)


class _Follower:
    def __init__(self, job_id: str, after: int) -> None:
        self.job_id = job_id
        self.after = after
        self.news = asyncio.Event()


class Feed:
    """The followers of one process on one database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._followers: set[_Follower] = set()
        self._looking: asyncio.Task[None] | None = None

    async def follow(self, job_id: str, after: int) -> AsyncIterator[list[sa.Row[Any]]]:
        """Events of a job with an id above `after`, until the one that ends it; an empty list is a sign of life.

        The first list comes at once, empty when there is nothing yet; of a job that has ended, nothing comes behind
        its last event.
        """
        follower = _Follower(job_id, after)
        self._followers.add(follower)
        is_due = True  # a sign of life
        try:
            while True:
                follower.news.clear()
                rows, is_over = await self._read(job_id, follower.after)
                if is_over and not rows:
                    return
                if rows:
                    follower.after = rows[-1].id
                if rows or is_due:
                    yield rows
                if rows and rows[-1].type in _LAST:
                    return
                is_due = False
                if not rows:
                    self._look()
                    try:
                        await asyncio.wait_for(follower.news.wait(), KEEPALIVE_S)
                    except TimeoutError:
                        is_due = True
        finally:
            self._followers.discard(follower)

    async def _read(self, job_id: str, after: int) -> tuple[list[sa.Row[Any]], bool]:
        query = sa.select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        async with self._db.read() as tx:
            state = (await tx.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id))).scalar_one_or_none()
            rows = list((await tx.execute(query.order_by(job_events.c.id).limit(_ROWS))).all())
        return rows, state is None or state in TERMINAL

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        """One look for all, for as long as somebody follows; a database that is away is looked at again."""
        while self._followers:
            ids = sorted({follower.job_id for follower in self._followers})
            newest = sa.select(job_events.c.job_id, sa.func.max(job_events.c.id).label("id"))
            try:
                async with self._db.read() as tx:
                    rows = await tx.execute(newest.where(job_events.c.job_id.in_(ids)).group_by(job_events.c.job_id))
                    seen = {row.job_id: row.id for row in rows}
                    there = set((await tx.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(ids)))).scalars())
            except (DBAPIError, OSError) as error:
                log.warning("feed.look.failed", error=str(error))
            else:
                for follower in self._followers:
                    if seen.get(follower.job_id, 0) > follower.after or follower.job_id not in there:
                        follower.news.set()
            await asyncio.sleep(LOOK_S)


_feeds: WeakKeyDictionary[Database, Feed] = WeakKeyDictionary()


def feed_of(db: Database) -> Feed:
    """The feed of this process on that database."""
    return _feeds.setdefault(db, Feed(db))
