"""What an organisation may take of the workers: its weight beside others, a limit on shards under way, a pause.

Weight and limit are the operator's to set, from the command line; the pause is the organisation's own.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import NotFound
from eorouter.storage.tables import organisations


async def allot(tx: AsyncConnection, org_id: str, *, weight: float | None, shards_max: int | None) -> None:
    """Set an organisation's weight (left as it is when None) and its limit of shards under way (none when None).

    Raises:
        NotFound: there is no such organisation.
    """
    values: dict[str, Any] = {"shards_max": shards_max} | ({} if weight is None else {"weight": weight})
    await _change(tx, org_id, values)


async def pause(tx: AsyncConnection, org_id: str, *, at: datetime | None) -> None:
    """Begin nothing more of an organisation's jobs from `at` on; None lets them go on.

    A second pause leaves the time of the first.

    Raises:
        NotFound: there is no such organisation.
    """
    paused_at = None if at is None else sa.func.coalesce(organisations.c.paused_at, sa.literal(at, _MOMENT))
    await _change(tx, org_id, {"paused_at": paused_at})


async def check(tx: AsyncConnection, org_id: str) -> None:
    """Raise NotFound where there is no such organisation."""
    if (await tx.execute(sa.select(organisations.c.id).where(organisations.c.id == org_id))).one_or_none() is None:
        raise NotFound(f"There is no organisation {org_id!r}.")


_MOMENT = organisations.c.paused_at.type


async def _change(tx: AsyncConnection, org_id: str, values: dict[str, Any]) -> None:
    changed = await tx.execute(sa.update(organisations).where(organisations.c.id == org_id).values(values))
    if changed.rowcount == 0:
        raise NotFound(f"There is no organisation {org_id!r}.")
