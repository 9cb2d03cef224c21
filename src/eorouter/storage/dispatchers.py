"""Which dispatchers are alive: each writes a heartbeat with what its cluster looks like, whoever asks reads it here."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.storage.database import Database
from eorouter.storage.tables import processes

HEARTBEAT_S = 2.0
ALIVE = timedelta(seconds=15)
"""Without a heartbeat for this long a dispatcher is taken for dead: its shards are run again, readiness forgets it."""

_FORGOTTEN = timedelta(hours=1)
_MINE = processes.c.role == "dispatcher"


async def beat(
    tx: AsyncConnection,
    db: Database,
    dispatcher_id: str,
    *,
    host: str,
    started_at: datetime,
    detail: Mapping[str, Any],
    now: datetime,
) -> None:
    """Say that a dispatcher is alive, and forget those that have been silent for long."""
    said = {"seen_at": now, "detail": dict(detail)}
    new = {"id": dispatcher_id, "role": "dispatcher", "host": host, "started_at": started_at}
    upsert = db.insert(processes).values(new | said)
    await tx.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=said))
    await tx.execute(sa.delete(processes).where(_MINE, processes.c.seen_at < now - _FORGOTTEN))


async def known(
    tx: AsyncConnection, *, host: str | None = None, since: datetime | None = None
) -> list[sa.Row[tuple[Any, ...]]]:
    """Dispatchers by their last heartbeat, dead ones included; of one host, or started since, where that is asked."""
    query = sa.select(processes).where(_MINE)
    if host is not None:
        query = query.where(processes.c.host == host)
    if since is not None:
        query = query.where(processes.c.started_at >= since)
    return list((await tx.execute(query)).all())


def is_alive(row: sa.Row[tuple[Any, ...]], *, now: datetime) -> bool:
    """The heartbeat is recent enough."""
    return now - row.seen_at <= ALIVE


async def forget(tx: AsyncConnection, dispatcher_id: str) -> None:
    """The dispatcher has ended, or its process is known to be gone."""
    await tx.execute(sa.delete(processes).where(processes.c.id == dispatcher_id))
