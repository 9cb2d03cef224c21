"""What a job is made of and what it said: its shards with their timings, and the lines its workers logged."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Meta

from eorouter import signing
from eorouter.errors import InvalidCursor, NotFound
from eorouter.jobs import queue
from eorouter.jobs.queue import MERGE
from eorouter.operation import Context, Example, Route, Tier, operation
from eorouter.storage.tables import job_logs, job_shards
from eorouter.types import Id, Input, Json, Output, PageInput, PageLimit

DOMAINS = ("jobs",)

_JOB_ID = "job_01hv8e7m3k9q2w4r6t8y0a1b2c"

ShardState = Literal["waiting", "ready", "leased", "done", "failed"]


class ShardTiming(Output):
    """Where the time of a shard went, in seconds, and what passed.

    `queued_s` from ready to claimed, `claimed_s` with the cluster but not on a worker; the other three on the worker.
    Bytes read are those of decoded pixels and of whole objects.
    """

    queued_s: float
    claimed_s: float
    read_s: float
    compute_s: float
    write_s: float
    read_bytes: int
    written_bytes: int
    peak_rss_bytes: int


class JobShard(Output):
    """A shard: `kind` is `shard`, `turn` (what comes between two rounds) or `merge`; timing once it is done."""

    number: int
    kind: Literal["shard", "turn", "merge"]
    round: int
    state: ShardState
    attempts: int
    pixels: int
    timing: ShardTiming | None


class JobShardPage(Output):
    """Shards of a job by number, turns and the merge last; `timing` sums up those done, its peak is the largest."""

    shards: tuple[JobShard, ...]
    timing: ShardTiming | None
    next_cursor: str | None


class JobsShardsListInput(PageInput, kw_only=True):
    """Which job's shards."""

    job_id: Id
    state: Annotated[ShardState, Meta(description="Only shards in this state.")] | None = None
    limit: PageLimit = 100


@operation(
    "jobs.shards.list",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound, InvalidCursor),
    routes=(Route("GET", "/v1/jobs/{job_id}/shards"),),
    examples=(Example(summary="Shards that are done", request={"job_id": _JOB_ID, "state": "done"}),),
)
async def list_shards(ctx: Context, request: JobsShardsListInput) -> JobShardPage:
    """List a job's shards with their tries and where their time went."""
    name = "jobs.shards.list"
    is_late = sa.case((job_shards.c.number <= MERGE, 1), else_=0)
    place = sa.tuple_(is_late, job_shards.c.number)
    columns = [job_shards.c[each] for each in ("number", "round", "state", "attempt", "bound", "timing")]
    query = sa.select(*columns).where(job_shards.c.job_id == request.job_id)
    if request.state is not None:
        query = query.where(job_shards.c.state == request.state)
    if request.cursor is not None:
        late, number = signing.position(ctx.settings, name, request, request.cursor)
        query = query.where(place > sa.tuple_(sa.literal(late), sa.literal(number)))
    async with ctx.stores.db.read() as tx:
        job = await queue.find(tx, ctx.principal, request.job_id)
        rows = (await tx.execute(query.order_by(is_late, job_shards.c.number).limit(request.limit + 1))).all()
    shown = rows[: request.limit]
    cursor = None
    if len(rows) > len(shown):
        last = shown[-1].number
        cursor = signing.cursor(ctx.settings, name, request, [int(last <= MERGE), last])
    return JobShardPage(shards=tuple(_shard(row) for row in shown), timing=_timing(job.timing), next_cursor=cursor)


class JobLine(Output):
    """A line that a worker logged; `shard` is −1 for the merge. Times are by the worker's clock."""

    line_id: int
    at: datetime
    level: str
    logger: str
    event: str
    data: Json
    shard: int
    attempt: int


class JobLogPage(Output):
    """Lines of a job, oldest first. `next_after` is where to go on; it stays the same while nothing is said."""

    lines: tuple[JobLine, ...]
    next_after: int


class JobsLogsListInput(Input):
    """Which job's lines, and after which one."""

    job_id: Id
    after: Annotated[int, Meta(ge=0, description="Only lines with a higher id.")] = 0
    shard: Annotated[int, Meta(description="Only lines of this shard; -1 is the merge.")] | None = None
    level: Annotated[Literal["info", "warning", "error"], Meta(description="Only lines of this level.")] | None = None
    limit: PageLimit = 100


@operation(
    "jobs.logs.list",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/jobs/{job_id}/logs"),),
    examples=(Example(summary="What went wrong", request={"job_id": _JOB_ID, "level": "warning"}),),
)
async def list_lines(ctx: Context, request: JobsLogsListInput) -> JobLogPage:
    """List what workers logged of a job, oldest first; ask again with `next_after` for more.

    Of a job the first 2000 lines are kept, and after them warnings and errors up to 4000.
    """
    query = sa.select(job_logs).where(job_logs.c.job_id == request.job_id, job_logs.c.id > request.after)
    for column, wanted in ((job_logs.c.number, request.shard), (job_logs.c.level, request.level)):
        if wanted is not None:
            query = query.where(column == wanted)
    async with ctx.stores.db.read() as tx:
        await queue.find(tx, ctx.principal, request.job_id)
        rows = (await tx.execute(query.order_by(job_logs.c.id).limit(request.limit))).all()
    return JobLogPage(lines=tuple(_line(row) for row in rows), next_after=rows[-1].id if rows else request.after)


def _shard(row: sa.Row[Any]) -> JobShard:
    return JobShard(
        number=row.number,
        kind="shard" if row.number > MERGE else "merge" if row.number == MERGE else "turn",
        round=row.round,
        state=row.state,
        attempts=row.attempt,
        pixels=int(row.bound.get("pixels", 0)),
        timing=_timing(row.timing) if row.state == "done" else None,
    )


def _timing(kept: Json | None) -> ShardTiming | None:
    if not kept or "queued" not in kept:
        return None
    named = {f"{name}_s": kept[name] for name in ("queued", "claimed", "read", "compute", "write")}
    return msgspec.convert(kept | named, ShardTiming)


def _line(row: sa.Row[Any]) -> JobLine:
    return JobLine(
        line_id=row.id,
        at=row.at,
        level=row.level,
        logger=row.logger,
        event=row.event,
        data=row.data,
        shard=row.number,
        attempt=row.attempt,
    )
