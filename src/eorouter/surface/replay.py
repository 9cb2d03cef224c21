"""Idempotency: the first answer to a request that spends is kept, and given again to whoever repeats the request.

    first      ── row (busy) ── handler ── row (status, body) ──► answer
    again      ── same request: the kept answer · still busy: 409 · another request under the key: 422
    refused    ── the row is removed: nothing was spent, so the key may be used again

A process that dies in between leaves a busy row; after `BUSY_FOR` the request may be carried out again, and the ledger,
which keeps the key and what was asked with the transfer for ever, sees to it that it spends once. Answers are kept for
`KEPT_FOR`.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from eorouter.errors import IdempotencyKeyInFlight, IdempotencyKeyReused
from eorouter.operation import Operation, SpendAuthority
from eorouter.storage.database import Database
from eorouter.storage.tables import requests_done

BUSY_FOR = timedelta(seconds=120)
KEPT_FOR = timedelta(days=30)

HEADER = "idempotent-replayed"


class Kept(Struct, frozen=True):
    """An answer as it was given first."""

    status: int
    body: bytes


class Turn(Struct, frozen=True):
    """The right to carry a request out: it is lost to whoever takes the request up after `busy_until`.

    The authority in it knows what was asked.
    """

    authority: SpendAuthority
    busy_until: datetime


def _mine(authority: SpendAuthority) -> sa.ColumnElement[bool]:
    return sa.and_(
        requests_done.c.org_id == authority.principal.org_id, requests_done.c.key == authority.idempotency_key
    )


async def begin(db: Database, op: Operation, request: Any, authority: SpendAuthority, *, now: datetime) -> Kept | Turn:
    """Note that a request is being carried out, or find its first answer.

    Raises:
        IdempotencyKeyInFlight: somebody is at it.
        IdempotencyKeyReused: the key belongs to another request.
    """
    who = authority.principal  # what one of them may not see is not given to another as an answer kept
    asked = (op.id, who.mode.value, who.project_id, request)
    digest = hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()
    fresh = {
        "org_id": authority.principal.org_id, "key": authority.idempotency_key, "operation": op.id, "digest": digest,
        "busy_until": now + BUSY_FOR, "created_at": now,
    }  # fmt: skip
    turn = Turn(msgspec.structs.replace(authority, digest=digest), now + BUSY_FOR)
    async with db.write() as tx:
        await tx.execute(sa.delete(requests_done).where(requests_done.c.created_at < now - KEPT_FOR))
        insert = db.insert(requests_done).values(fresh).on_conflict_do_nothing().returning(requests_done.c.key)
        if (await tx.execute(insert)).one_or_none() is not None:
            return turn
        row = (await tx.execute(sa.select(requests_done).where(_mine(authority)).with_for_update())).one_or_none()
        if row is not None and row.digest != digest:
            raise IdempotencyKeyReused(
                f"The Idempotency-Key {authority.idempotency_key[:80]!r} was used for another request, of "
                f"{row.operation} at {row.created_at:%Y-%m-%d %H:%M:%S} UTC. Use a fresh key for each request."
            )
        if row is not None and row.status is not None:
            return Kept(row.status, row.body)
        if row is None or row.busy_until > now:
            raise IdempotencyKeyInFlight(
                "A request with this Idempotency-Key is being carried out. Repeat it in a moment for its answer.",
                headers={"retry-after": "1"},
            )
        await tx.execute(sa.update(requests_done).where(_mine(authority)).values(busy_until=turn.busy_until))
        return turn


async def finish(db: Database, turn: Turn, status: int, body: bytes) -> None:
    """Keep the first answer."""
    async with db.write() as tx:
        values = {"busy_until": None, "status": status, "body": body}
        await tx.execute(sa.update(requests_done).where(_at(turn)).values(values))


async def abandon(db: Database, turn: Turn) -> None:
    """Forget a request that was refused."""
    async with db.write() as tx:
        await tx.execute(sa.delete(requests_done).where(_at(turn)))


def _at(turn: Turn) -> sa.ColumnElement[bool]:
    return sa.and_(_mine(turn.authority), requests_done.c.busy_until == turn.busy_until)
