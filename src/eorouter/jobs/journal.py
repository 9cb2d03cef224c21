"""What is kept of how a job went, written in the transactions that record its shards: timings, and what workers said.

Neither costs a statement of its own in the usual case: timings ride on updates that are made anyway, and the lines of
all shards that landed together are one insert. Of a job at most `LINES_MAX` lines are kept, and after those only
warnings and errors, up to `WARNINGS_MAX`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.storage.database import Database
from eorouter.storage.tables import job_logs, throughput
from eorouter_compute.orders import Outcome

LINES_MAX = 2000
WARNINGS_MAX = 4000
STAGES = ("queued", "claimed", "read", "compute", "write")
"""Ready until claimed; with the cluster but not on a worker; and the three ways to spend time on a worker."""

_THROUGHPUT_KEPT_MIN = 48 * 60
_QUIET = frozenset({"info", "debug"})


def timing(outcome: Outcome, *, ready_at: datetime, now: datetime) -> dict[str, Any]:
    """Where the time of a shard that landed just now went, in seconds."""
    claimed_at = now - timedelta(seconds=outcome.waited_s + outcome.seconds)
    return {
        "queued": round(max((claimed_at - ready_at).total_seconds(), 0.0), 6),
        "claimed": round(outcome.waited_s, 6),
        "read": round(outcome.read_s, 6),
        "compute": round(outcome.compute_s, 6),
        "write": round(outcome.write_s, 6),
        "seconds": round(outcome.seconds, 6),
        "read_bytes": outcome.read_bytes,
        "written_bytes": outcome.written_bytes,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "worker": outcome.worker,
    }


def total(before: Mapping[str, Any] | None, new: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A job's timings with those of more shards: sums, and the largest peak."""
    found = dict(before or dict.fromkeys((*STAGES, "read_bytes", "written_bytes", "peak_rss_bytes"), 0))
    for each in new:
        peak = max(found["peak_rss_bytes"], each["peak_rss_bytes"])
        found = {name: round(value + each[name], 6) for name, value in found.items()} | {"peak_rss_bytes": peak}
    return found


async def keep(tx: AsyncConnection, job: sa.Row[Any], landed: Sequence[Any], now: datetime) -> int:
    """Keep the lines of tries that landed, as far as there is room; returns how many were kept.

    Args:
        tx: a transaction that holds the job's row.
        job: the row.
        landed: `leases.Landed` of the job.
        now: the time.
    """
    rows = [row for each in landed for row in _rows(job.id, each, now)]
    room, last_room = LINES_MAX - job.log_lines, WARNINGS_MAX - job.log_lines
    if len(rows) > room:
        loud = [row for row in rows[max(room, 0) :] if row["level"] not in _QUIET]
        rows = (rows[: max(room, 0)] + loud)[: max(last_room, 0)]
    if rows:
        await tx.execute(sa.insert(job_logs), rows)
    return len(rows)


def _rows(job_id: str, landed: Any, now: datetime) -> list[dict[str, Any]]:
    claim, outcome = landed.claim, landed.outcome
    common = {"job_id": job_id, "number": claim.number, "attempt": claim.attempt}
    rows = [
        common
        | {
            "at": datetime.fromtimestamp(line.at, UTC),
            "level": line.level,
            "logger": line.logger,
            "event": line.event,
            "data": line.data,
        }
        for line in outcome.lines
    ]
    ours = common | {"at": now, "level": "warning", "logger": __name__}
    if outcome.lines_lost:
        rows.append(ours | {"event": "lines.lost", "data": {"lines": outcome.lines_lost}})
    if (failure := outcome.failure) is not None:
        told = {"code": failure.code, "message": failure.message[:2000]}
        rows.append(ours | {"event": "shard.failed", "data": told})
    return rows


def without_addresses(outcome: Outcome, url: str) -> Outcome:
    """An outcome that names sources by object key: where the store lies is not for the job's owner."""
    if (failure := outcome.failure) is not None:
        failure = msgspec.structs.replace(failure, message=failure.message.replace(f"{url}/", ""))
        outcome = msgspec.structs.replace(outcome, failure=failure)
    said = msgspec.json.encode(outcome.lines)
    if url.encode() in said:
        lines = msgspec.json.decode(said.replace(f"{url}/".encode(), b""), type=type(outcome).__annotations__["lines"])
        outcome = msgspec.structs.replace(outcome, lines=lines)
    return outcome


async def count(tx: AsyncConnection, db: Database, *, shards: int, failures: int, pixels: int, now: datetime) -> None:
    """Add to this minute's throughput, and forget what is older than two days."""
    minute = int(now.timestamp()) // 60
    added = {"shards": shards, "failures": failures, "pixels": pixels}
    sums = {name: throughput.c[name] + value for name, value in added.items()}
    upsert = db.insert(throughput).values({"minute": minute} | added)
    await tx.execute(upsert.on_conflict_do_update(index_elements=["minute"], set_=sums))
    await tx.execute(sa.delete(throughput).where(throughput.c.minute < minute - _THROUGHPUT_KEPT_MIN))
