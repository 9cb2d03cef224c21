"""Objects that are to go once the transaction that gave them up has committed.

A transaction leaves keys or whole prefixes in the outbox; a sweep of the dispatcher deletes them and ticks them off. A
crash between the two repeats a deletion, which does no harm, and forgets none.
"""

import asyncio
import shutil
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.storage import Stores
from eorouter.storage.objects import Objects
from eorouter.storage.tables import outbox

_TOPIC = "objects.delete"
_ROWS_AT_ONCE = 100
_KEPT = timedelta(days=1)  # how long what was carried out can still be looked up


async def delete_later(
    tx: AsyncConnection, org_id: str, *, now: datetime, keys: Collection[str] = (), prefixes: Collection[str] = ()
) -> None:
    """Have objects deleted after this transaction commits, not before `now`: `keys`, and all below `prefixes`."""
    await delete_all_later(tx, [(org_id, {"keys": list(keys), "prefixes": list(prefixes)})], now=now)


async def delete_all_later(
    tx: AsyncConnection, orders: Iterable[tuple[str, Mapping[str, Collection[str]]]], *, now: datetime
) -> None:
    """`delete_later` for several at once: each is an organisation, and `keys` or `prefixes` of its objects."""
    rows = [{"org_id": org_id, "payload": {name: list(each) for name, each in what.items()}} for org_id, what in orders]
    if rows:
        await tx.execute(sa.insert(outbox).values(topic=_TOPIC, created_at=now), rows)


async def sweep(stores: Stores, *, now: datetime) -> int:
    """Delete what was left for deletion, oldest first; returns how many orders were carried out."""
    open_orders = sa.select(outbox.c.id, outbox.c.payload).where(
        outbox.c.topic == _TOPIC, outbox.c.handled_at.is_(None), outbox.c.created_at <= now
    )
    async with stores.db.read() as tx:
        rows = (await tx.execute(open_orders.order_by(outbox.c.id).limit(_ROWS_AT_ONCE))).all()
    if not rows:
        return 0
    for row in rows:
        await _carry_out(stores.objects, row.payload)
    async with stores.db.write() as tx:
        done = outbox.c.id.in_([row.id for row in rows])
        await tx.execute(sa.update(outbox).where(done).values(handled_at=now))
        await tx.execute(sa.delete(outbox).where(outbox.c.topic == _TOPIC, outbox.c.handled_at < now - _KEPT))
    return len(rows)


async def _carry_out(objects: Objects, order: Mapping[str, Any]) -> None:
    await objects.delete(order.get("keys", ()))
    for prefix in order.get("prefixes", ()):
        folder = objects.local_path(prefix)
        if folder is None:
            await objects.delete([key async for key, _ in objects.list(prefix)])
        elif folder.is_dir():  # with its empty folders, and the unfinished files of killed workers
            await asyncio.to_thread(shutil.rmtree, folder, onerror=_unless_gone)


def _unless_gone(_: Any, path: str, fault: tuple[type[BaseException], BaseException, Any]) -> None:
    """A file that a dying worker removed first is no fault; one that cannot be removed keeps the order open."""
    del path
    if not isinstance(fault[1], FileNotFoundError):
        raise fault[1]
