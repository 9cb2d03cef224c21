"""Follow a job's events as they are written: from the table, so that nothing depends on who wrote them or when.

All followers of a process share one look at the table, when something was committed and now and then besides; each then
reads its own rows. Ids of one job's events are given out under the lock of its row, so within a job they are committed
in order and none appears behind one that was read (between jobs that does not hold, hence the look is by job).
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from eorouter.errors import TooManyWaits
from eorouter.jobs.states import TERMINAL, JobEvent
from eorouter.jobs.wakeup import watch
from eorouter.operation import Context
from eorouter.storage.database import Database
from eorouter.storage.tables import job_events, jobs

LOOK_S = 0.2
"""Longest between two looks: on PostgreSQL not every commit is told."""

_SHARE = 0.2  # of the time may be spent looking, however often something is committed
KEEPALIVE_S = 15.0
"""A follower hears something at least this often; proxies close connections that are silent for a minute."""

RETRY_S = 2
"""When whoever may not wait should ask again, in seconds."""

_ROWS = 500
_LAST = frozenset({JobEvent.COMPLETE.value, JobEvent.FAIL.value, JobEvent.CANCEL.value})

log = structlog.get_logger(__name__)


class _Follower:
    """Somebody who wants events of a job behind `after`, or only its end where that is None."""

    def __init__(self, job_id: str, after: int | None) -> None:
        self.job_id = job_id
        self.after = after
        self.news = asyncio.Event()

    def hear(self, state: str | None, newest: int) -> None:
        """What a look found: the job's state, None when it is gone, and the id of its newest event."""
        if state is None or (state in TERMINAL if self.after is None else newest > self.after):
            self.news.set()


class Feed:
    """The followers of one process on one database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._followers: set[_Follower] = set()
        self._looking: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._is_leaving = False
        self._places: Counter[str] = Counter()

    async def close(self) -> None:
        """Let everybody go, and end the looking."""
        self.let_go()
        if self._looking is not None:
            await asyncio.gather(self._looking, return_exceptions=True)

    def let_go(self) -> None:
        """Keep nobody any longer: this process stops. Who waits is told what is, who follows comes back to another."""
        self._is_leaving = True
        self._woken.set()
        for follower in self._followers:
            follower.news.set()

    @contextlib.contextmanager
    def place(self, who: str, most: int) -> Iterator[None]:
        """One of the `most` places that a caller has for requests that wait here.

        Raises:
            TooManyWaits: all are taken.
        """
        if self._places[who] >= most:
            raise TooManyWaits(
                f"{most} requests of yours wait for jobs here already, which is as many as may. Ask without waiting, "
                "or again when one of them has ended.",
                headers={"retry-after": str(RETRY_S)},
            )
        self._places[who] += 1
        try:
            yield
        finally:
            self._places[who] -= 1
            if not self._places[who]:
                del self._places[who]

    async def follow(self, job_id: str, after: int) -> AsyncIterator[list[sa.Row[Any]]]:
        """Events of a job with an id above `after`, until the one that ends it; an empty list is a sign of life.

        The first list comes at once, empty when there is nothing yet; of a job that has ended, nothing comes behind
        its last event. It ends sooner when this process stops.
        """
        is_due = True  # a sign of life
        with self._following(job_id, after) as follower:
            while True:
                follower.news.clear()
                rows, is_over = await self._read(job_id, after)
                if is_over and not rows:
                    return
                if rows:
                    follower.after = after = rows[-1].id
                if rows or is_due:
                    yield rows
                if self._is_leaving or (rows and rows[-1].type in _LAST):
                    return
                is_due = False
                if not rows:
                    self._look()
                    try:
                        await asyncio.wait_for(follower.news.wait(), KEEPALIVE_S)
                    except TimeoutError:
                        is_due = True

    async def end(self, job_id: str, timeout_s: float) -> None:
        """Wait until a job has ended or is gone, until the time is over, or until this process stops."""
        with self._following(job_id, None) as follower:
            if self._looking is not None:
                self._woken.set()  # the next look is for all who have come since the last
            else:
                async with self._db.read() as tx:
                    state = (await tx.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id))).scalar_one_or_none()
                follower.hear(state, 0)
            if follower.news.is_set() or self._is_leaving:
                return  # a look opens a connection of its own
            self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(follower.news.wait(), timeout_s)

    @contextlib.contextmanager
    def _following(self, job_id: str, after: int | None) -> Iterator[_Follower]:
        follower = _Follower(job_id, after)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            if not self._followers:
                self._woken.set()

    async def _read(self, job_id: str, after: int) -> tuple[list[sa.Row[Any]], bool]:
        query = sa.select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        async with self._db.read() as tx:
            state = (await tx.execute(sa.select(jobs.c.state).where(jobs.c.id == job_id))).scalar_one_or_none()
            rows = list((await tx.execute(query.order_by(job_events.c.id).limit(_ROWS))).all())
        return rows, state is None or state in TERMINAL

    def _look(self) -> None:
        if self._looking is None:
            self._looking = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        """One look for all, for as long as somebody follows; a database that is away is looked at again."""
        watching = asyncio.create_task(watch(self._db.url, self._woken.set))
        try:
            while self._followers and not self._is_leaving:
                self._woken.clear()
                began = time.monotonic()
                try:
                    await self._look_once()
                except (SQLAlchemyError, OSError) as error:  # a pool without a free connection, too
                    log.warning("feed.look.failed", error=str(error))
                took = time.monotonic() - began
                await asyncio.sleep(min(took / _SHARE, LOOK_S))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), LOOK_S)
        finally:
            self._looking = None  # whoever comes from now on has another begun
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _look_once(self) -> None:
        ids = sorted({follower.job_id for follower in self._followers})
        mine = sa.select(job_events.c.job_id, sa.func.max(job_events.c.id).label("id"))
        newest = mine.where(job_events.c.job_id.in_(ids)).group_by(job_events.c.job_id)
        async with self._db.read() as tx:
            states = {
                row.id: row.state
                for row in await tx.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids)))
            }
            seen = {row.job_id: row.id for row in await tx.execute(newest)}
        for follower in self._followers:
            follower.hear(states.get(follower.job_id), seen.get(follower.job_id, 0))


def feed_of(db: Database) -> Feed:
    """The feed of this process on that database; it ends with it."""
    return db.attached(Feed)


def place_of(ctx: Context) -> AbstractContextManager[None]:
    """One of the places that whoever asks has here.

    Raises:
        TooManyWaits: on entering: all are taken.
    """
    return feed_of(ctx.stores.db).place(ctx.principal.id, ctx.settings.waits_max)


async def attend(ctx: Context, job_id: str, timeout_s: float) -> None:
    """Wait for the end of a job as somebody who asks for nothing else.

    Raises:
        TooManyWaits: they wait at as many places as they have.
    """
    with place_of(ctx):
        await feed_of(ctx.stores.db).end(job_id, timeout_s)
