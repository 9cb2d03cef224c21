"""What the API says of a job: the answer made of a job's row, the same wherever a job is shown."""

from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from eorouter.jobs.states import TERMINAL
from eorouter.types import Json, Output

State = Literal["created", "queued", "running", "publishing", "completed", "failed", "cancelled"]
Priority = Literal["interactive", "batch"]


class JobBound(Output):
    """The most a job can take. `memory_bytes` is the peak of its largest shard; `seconds` are of one core."""

    pixels: int
    bytes_read: int
    bytes_written: int
    memory_bytes: int
    seconds: float


class JobProgress(Output):
    """How far a job is. Pixels are those of the bound; `fraction` is 1 exactly when the job is completed."""

    pixels_done: int
    pixels_total: int
    shards_done: int
    shards_total: int
    fraction: float


class FailedSource(Output):
    """A window of a source that could not be read: row, column, height and width, and why."""

    source: str
    window: tuple[int, int, int, int]
    reason: str


class ReadSummary(Output):
    """What was read and what was not: silence never stands for data."""

    reads: int
    pixels: int
    valid_pixels: int
    failed: tuple[FailedSource, ...]


class JobResult(Output):
    """What a job left: new items by name, the method's summary, what was read, and SHA-256 by `item/asset`."""

    items: dict[str, str]
    summary: Json
    report: ReadSummary
    checksums: dict[str, str]


class JobCost(Output):
    """What a job costs, in cents: set aside when it was queued, and taken at its end (null until then)."""

    reserved_cents: int
    captured_cents: int | None
    currency: str
    price_book: str


class JobProblem(Output):
    """Why a job failed; `shard` and `pointer` (into the task) where they are known."""

    code: str
    message: str
    pointer: str | None
    shard: int | None


class Job(Output):
    """A job. One that failed can be resumed until `resumable_until`, by another whose `resumed_from` names it."""

    job_id: str
    project_id: str
    name: str
    method: str
    state: State
    priority: Priority
    is_cancelling: bool
    input_item_ids: tuple[str, ...]
    bound: JobBound
    cost: JobCost | None
    progress: JobProgress
    result: JobResult | None
    problem: JobProblem | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    time_limit_s: int | None
    resumed_from: str | None
    resumable_until: datetime | None


class JobEvent(Output):
    """Something that happened to a job; ids rise."""

    event_id: int
    type: str
    at: datetime
    data: Json


def job_of(row: sa.Row[Any]) -> Job:
    """A job, of its row."""
    pixels_total = int(row.bound.get("pixels", 0))
    pixels_done = min(max(row.pixels_done, 0), pixels_total)
    fraction = 1.0 if row.state == "completed" else min(pixels_done / max(pixels_total, 1), 0.999)
    return Job(
        job_id=row.id,
        project_id=row.project_id,
        name=row.name,
        method=row.method,
        state=row.state,
        priority="interactive" if row.is_interactive else "batch",
        is_cancelling=row.is_cancelling and row.state not in TERMINAL,
        input_item_ids=tuple(each["id"] for each in row.inputs),
        bound=msgspec.convert(row.bound, JobBound),
        cost=None
        if row.reserved_cents is None
        else JobCost(
            reserved_cents=row.reserved_cents,
            captured_cents=row.captured_cents,
            currency="EUR",
            price_book=row.price_book,
        ),
        progress=JobProgress(
            pixels_done=pixels_done,
            pixels_total=pixels_total,
            shards_done=row.shards_done,
            shards_total=row.shards_total,
            fraction=fraction,
        ),
        result=None if row.result is None else msgspec.convert(row.result, JobResult),
        problem=None
        if row.problem is None
        else JobProblem(
            code=row.problem["code"],
            message=row.problem["message"],
            pointer=row.problem.get("pointer"),
            shard=row.problem.get("shard"),
        ),
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        time_limit_s=row.time_limit_s,
        resumed_from=row.resumed_from,
        resumable_until=row.resumable_until,
    )


def event_of(row: sa.Row[Any]) -> JobEvent:
    """An event, of its row."""
    return JobEvent(event_id=row.id, type=row.type, at=row.at, data=row.data)
