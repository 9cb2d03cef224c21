"""Uploads: from a promise of bytes to an item, or to nothing.

    initiated ──► received ──► ingesting ──► completed
        └─────────────┴────────────┴───────► failed

The declared size is taken from the organisation's quota at once and given back when the upload ends, by whatever way;
an item that comes out of it has a size of its own. Every attempt to send bytes has a key of its own that is recorded
before the first byte, so an upload's end can delete all of them, however the attempts ended.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import Conflict, NotFound, QuotaExceeded
from eorouter.storage import projects
from eorouter.storage.deletions import delete_all_later, delete_later
from eorouter.storage.tables import HAS_OBJECTS, jobs, organisations, owned, uploads
from eorouter.types import Principal, utc_now

Row = sa.Row[*tuple[Any, ...]]

ATTEMPTS_MAX = 16
"""Most times that the bytes of one upload may be sent; each may be under way at once, beside the quota."""

OPEN = ("initiated", "received")
"""States in which bytes may still come and the caller may give up."""

ENDED = ("completed", "failed")


async def reserve(tx: AsyncConnection, org_id: str, size_bytes: int) -> None:
    """Take bytes from the organisation's quota; one conditional UPDATE, so that no two requests take the same ones.

    Raises:
        QuotaExceeded: they do not fit; says how much is left.
    """
    c = organisations.c
    taken = await tx.execute(
        sa.update(organisations)
        .where(c.id == org_id, c.used_bytes + size_bytes <= c.quota_bytes)
        .values(used_bytes=c.used_bytes + size_bytes)
    )
    if taken.rowcount:
        return
    left = (await tx.execute(sa.select(c.quota_bytes - c.used_bytes).where(c.id == org_id))).scalar_one()
    raise QuotaExceeded(
        f"{size_bytes} bytes do not fit: {max(left, 0)} bytes of the storage quota are left. "
        "Delete items, give up unfinished uploads, or have the quota raised.",
        size_bytes=size_bytes,
        left_bytes=max(left, 0),
    )


async def release(tx: AsyncConnection, org_id: str, size_bytes: int) -> None:
    """Give bytes back to the quota."""
    c = organisations.c
    await tx.execute(sa.update(organisations).where(c.id == org_id).values(used_bytes=c.used_bytes - size_bytes))


async def create(
    tx: AsyncConnection,
    principal: Principal,
    *,
    upload_id: str,
    project_id: str,
    filename: str,
    declared_bytes: int,
    sha256: str | None,
    description: Mapping[str, Any],
    now: datetime,
    expires_at: datetime,
) -> Row:
    """Record an upload and reserve its bytes.

    Raises:
        NotFound: there is no such project.
        QuotaExceeded: the bytes do not fit.
    """
    await projects.get(tx, principal, project_id, held="shared")
    await reserve(tx, principal.org_id, declared_bytes)
    key = f"{principal.org_id}/{project_id}/uploads/{upload_id}/direct"
    row = {
        "id": upload_id, "org_id": principal.org_id, "project_id": project_id, "filename": filename,
        "state": "initiated", "declared_bytes": declared_bytes, "received_bytes": 0, "sha256": sha256,
        "object_key": key, "description": {**description, "keys": [key]}, "created_at": now, "expires_at": expires_at,
    }  # fmt: skip
    return (await tx.execute(sa.insert(uploads).values(row).returning(*uploads.c))).one()


async def get(tx: AsyncConnection, principal: Principal, upload_id: str) -> Row:
    """The row of an upload.

    Raises:
        NotFound: unknown or somebody else's.
    """
    return await _one(tx, upload_id, owned(uploads, principal))


async def get_signed(tx: AsyncConnection, upload_id: str) -> Row:
    """The row of an upload whose id came from a signature of ours, which is all the authority there is.

    Raises:
        NotFound: there is none.
    """
    return await _one(tx, upload_id)


async def _one(tx: AsyncConnection, upload_id: str, *conditions: sa.ColumnElement[bool]) -> Row:
    row = (await tx.execute(sa.select(uploads).where(uploads.c.id == upload_id, *conditions))).first()
    if row is None:
        raise NotFound(f"There is no upload {upload_id!r}.")
    return row


def select(principal: Principal, *, project_id: str | None = None, state: str | None = None) -> sa.Select[Any]:
    """The principal's uploads, of one project or in one state where that is asked."""
    statement = sa.select(uploads).where(owned(uploads, principal))
    if project_id is not None:
        statement = statement.where(uploads.c.project_id == project_id)
    return statement if state is None else statement.where(uploads.c.state == state)


async def open_attempt(tx: AsyncConnection, row: Row) -> str:
    """A fresh key for bytes of this upload, recorded so that the upload's end deletes it.

    Raises:
        Conflict: the upload takes no more bytes.
    """
    current = await _locked(tx, row.id)
    if current.state not in OPEN:
        raise Conflict(f"Upload {row.id} is {current.state} and takes no more bytes.")
    if len(current.description["keys"]) > ATTEMPTS_MAX:
        raise Conflict(f"Upload {row.id} was sent {ATTEMPTS_MAX} times and takes no more bytes. Start a new one.")
    key = f"{row.org_id}/{row.project_id}/uploads/{row.id}/{secrets.token_hex(8)}"
    description = {**current.description, "keys": [*current.description["keys"], key]}
    await tx.execute(sa.update(uploads).where(uploads.c.id == row.id).values(description=description))
    return key


async def note_received(tx: AsyncConnection, upload_id: str, received_bytes: int) -> None:
    """Say how far a transfer is; nothing depends on it."""
    await tx.execute(
        sa.update(uploads)
        .where(uploads.c.id == upload_id, uploads.c.state == "initiated")
        .values(received_bytes=received_bytes)
    )


async def receive(tx: AsyncConnection, upload_id: str, *, key: str, size_bytes: int, sha256: str) -> None:
    """The bytes under `key` are this upload's from now on; those they replace are deleted after the commit.

    Kept until the upload's end, they would be storage that no quota counts.

    Raises:
        Conflict: the upload ended or was completed while the bytes came.
    """
    before = await _locked(tx, upload_id)
    changed = await tx.execute(
        sa.update(uploads)
        .where(uploads.c.id == upload_id, uploads.c.state.in_(OPEN))
        .values(state="received", object_key=key, received_bytes=size_bytes, sha256=sha256)
    )
    if not changed.rowcount:
        raise Conflict(f"Upload {upload_id} was completed or given up while bytes were still coming.")
    if before.state == "received" and before.object_key != key:
        await delete_later(tx, before.org_id, now=utc_now(), keys=[before.object_key])


async def grow(tx: AsyncConnection, row: Row, by_bytes: int) -> None:
    """Declare `by_bytes` more (fewer when negative), for a source that did not say its size.

    Raises:
        QuotaExceeded: they do not fit.
    """
    if by_bytes > 0:
        await reserve(tx, row.org_id, by_bytes)
    else:
        await release(tx, row.org_id, -by_bytes)
    await tx.execute(
        sa.update(uploads).where(uploads.c.id == row.id).values(declared_bytes=uploads.c.declared_bytes + by_bytes)
    )


async def grow_some(tx: AsyncConnection, row: Row, *, at_least: int, at_most: int) -> int:
    """Declare `at_most` more bytes, or `at_least` where only those fit; returns how many. Spares a write per chunk.

    Raises:
        QuotaExceeded: not even `at_least` fit.
    """
    try:
        await grow(tx, row, max(at_least, at_most))
    except QuotaExceeded:  # nothing was changed
        await grow(tx, row, at_least)
        return at_least
    return max(at_least, at_most)


async def claim(tx: AsyncConnection, upload_ids: Sequence[str]) -> None:
    """Take uploads for their ingest, all or none.

    Raises:
        Conflict: another request took one of them, or it ended; the transaction must not be committed.
    """
    taken = await tx.execute(
        sa.update(uploads).where(uploads.c.id.in_(upload_ids), uploads.c.state.in_(OPEN)).values(state="ingesting")
    )
    if taken.rowcount != len(set(upload_ids)):
        raise Conflict("The upload was completed or given up by another request.")


async def assign(tx: AsyncConnection, upload_ids: Sequence[str], job_id: str) -> None:
    """Say which job ingests claimed uploads."""
    await tx.execute(
        sa.update(uploads).where(uploads.c.id.in_(upload_ids), uploads.c.state == "ingesting").values(job_id=job_id)
    )


async def settle(
    tx: AsyncConnection, job_id: str, *, item_id: str | None, problem: Mapping[str, Any] | None, now: datetime
) -> None:
    """End the uploads of a job, with its item or its problem, in the transaction that ends the job.

    Their declared bytes go back to the quota and their raw objects are deleted after the commit. Without uploads, or
    when they ended already, nothing happens.
    """
    if (item_id is None) == (problem is None):
        raise ValueError("A job ends with an item or with a problem.")
    await _end(
        tx,
        [uploads.c.job_id == job_id, uploads.c.state == "ingesting"],
        now,
        {"state": "completed" if item_id else "failed", "item_id": item_id, "problem": problem},
    )


async def fail(tx: AsyncConnection, upload_ids: Sequence[str], *, problem: Mapping[str, Any], now: datetime) -> int:
    """End uploads that have not come to their ingest; returns how many ended now."""
    return await _end(
        tx,
        [uploads.c.id.in_(upload_ids), uploads.c.state.in_(OPEN)],
        now,
        {"state": "failed", "problem": problem},
    )


async def expire(tx: AsyncConnection, now: datetime) -> int:
    """End uploads whose time is over; returns how many. For the dispatcher's sweep.

    Bytes can still arrive at the store after an upload's end, through an address signed before it. So the objects of
    ended uploads are deleted once more when their addresses have expired too.
    """
    late = {"code": "upload_expired", "message": "The upload was not completed in time. Start a new one."}
    count = await _end(
        tx,
        [uploads.c.state.in_(OPEN), uploads.c.expires_at < now, HAS_OBJECTS],
        now,
        {"state": "failed", "problem": late},
    )
    # A job can be cancelled before anything of it ran; then nobody was there to settle its uploads.
    over = sa.exists().where(jobs.c.id == uploads.c.job_id, jobs.c.state.in_(("failed", "cancelled")))
    gone = {"code": "ingest_ended", "message": "The job that read the upload was cancelled or failed. Start a new one."}
    count += await _end(
        tx,
        [uploads.c.state == "ingesting", HAS_OBJECTS, over],
        now,
        {"state": "failed", "problem": gone},
    )
    swept = await tx.execute(
        sa.update(uploads)
        .where(uploads.c.state.in_(ENDED), uploads.c.expires_at < now, HAS_OBJECTS)
        .values(object_key="")
        .returning(uploads.c.org_id, uploads.c.description)
    )
    await _delete_objects(tx, swept.all(), now)
    return count


async def _end(
    tx: AsyncConnection, conditions: Sequence[sa.ColumnElement[bool]], now: datetime, values: Mapping[str, Any]
) -> int:
    ended = await tx.execute(
        sa.update(uploads)
        .where(*conditions)
        .values({name: sa.null() if value is None else value for name, value in values.items()})
        .returning(uploads.c.org_id, uploads.c.declared_bytes, uploads.c.description)
    )
    rows = ended.all()
    for org_id in {row.org_id for row in rows}:
        await release(tx, org_id, sum(row.declared_bytes for row in rows if row.org_id == org_id))
    await _delete_objects(tx, rows, now)
    return len(rows)


async def _delete_objects(tx: AsyncConnection, rows: Sequence[Row], now: datetime) -> None:
    await delete_all_later(tx, [(row.org_id, {"keys": row.description["keys"]}) for row in rows], now=now)


async def _locked(tx: AsyncConnection, upload_id: str) -> Row:
    """The row, held against other writers until the end of the transaction (SQLite has only one writer)."""
    return (await tx.execute(sa.select(uploads).where(uploads.c.id == upload_id).with_for_update())).one()
