"""What a job's money does at the turns of its life: set aside when it is queued, taken or given back at its end.

All in the transaction of the turn itself, so that a crash leaves neither a job without its reservation nor money held
for a job that has ended.
"""

from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.commerce import ledger, pricing
from eorouter.commerce.pricing import Price, PriceBook, Use
from eorouter.operation import SpendAuthority
from eorouter.storage.database import Database
from eorouter.storage.tables import job_shards, jobs
from eorouter_compute.method import Bound, Result


def promised(method_id: str, bound: Bound) -> tuple[PriceBook, Price]:
    """The most a job can cost, and the book that says so."""
    book = pricing.book()
    return book, book.promise(method_id, bound)


async def reserve(
    tx: AsyncConnection, db: Database, authority: SpendAuthority, job_id: str, *, welcome: int, now: datetime
) -> None:
    """Set aside the most that a job can cost; whoever queues it calls this in the same transaction.

    Raises:
        InsufficientBalance: the organisation has less.
        BudgetExceeded: a budget does not allow it.
    """
    job = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id))).one()
    book, price = promised(job.method, msgspec.convert(job.bound, Bound))
    who = authority.principal
    if price.cents:
        await ledger.open_accounts(tx, db, who.org_id, who.mode, now=now, welcome=welcome)
        await ledger.reserve(
            tx, db, authority, transfer_id=job_id, amount=price.cents, project_id=job.project_id, reference=job_id,
            memo=job.name, now=now,
        )  # fmt: skip
    values = {"reserved_cents": price.cents, "price_book": book.name}
    await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(values))


async def capture(tx: AsyncConnection, job: sa.Row[Any], result: Result, *, now: datetime) -> None:
    """Take what a completed job came to, at the prices it was promised."""
    held = await ledger.reserved_for(tx, job.id)
    if held is None:
        return
    # Shards that were taken over from a failed job were never claimed here: what they took was that job's, and free.
    own = (job_shards.c.job_id == job.id) & (job_shards.c.token > 0)
    seconds = sa.select(sa.func.sum(job_shards.c.timing["seconds"].as_float())).where(own)
    use = Use(
        pixels=int(job.bound.get("pixels", 0)),
        core_seconds=float((await tx.execute(seconds)).scalar_one() or 0.0),
        bytes_written=sum(asset.object.size for output in result.items for asset in output.assets),
    )
    price = pricing.book_named(job.price_book).price(job.method, use)
    taken = await ledger.capture(tx, held, price.cents, now=now)
    await tx.execute(sa.update(jobs).where(jobs.c.id == job.id).values(captured_cents=taken))


async def release(tx: AsyncConnection, job_id: str, *, now: datetime) -> None:
    """Give back what was set aside for a job that failed or was cancelled."""
    held = await ledger.reserved_for(tx, job_id)
    if held is not None:
        await ledger.release(tx, held, now=now)
        await tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(captured_cents=0))


async def forgotten(tx: AsyncConnection) -> list[str]:
    """Jobs that have ended, or are gone, and still have money set aside: never any, unless something is broken."""
    held = await ledger.open_references(tx)
    found: list[str] = []
    for start in range(0, len(held), 500):
        some = held[start : start + 500]
        live = sa.select(jobs.c.id).where(jobs.c.id.in_(some), jobs.c.finished_at.is_(None))
        found += sorted(set(some) - set((await tx.execute(live)).scalars()))
    return found
