"""Processing jobs: any installed method on items of a project, as a job that outlives whoever asked.

`processing.create`, `.dispatch` and `.create_and_dispatch` take any method; `clip.create_from_item` and
`analytics.execute` are the short ways to the most wanted ones; `processing.jobs.*` and `processing.events.list` tell
how a job is doing and what it left.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import ComputeRefused, Conflict, InvalidCursor, NotFound
from eorouter.jobs import queue
from eorouter.jobs import resume as resuming
from eorouter.jobs.feed import feed_of
from eorouter.operation import Context, Example, Followed, Route, Tier, operation
from eorouter.storage import band_formulas, items, projects
from eorouter.storage.pages import page
from eorouter.storage.tables import job_events, jobs, owned
from eorouter.types import Id, Input, Json, Output, PageInput, PageLimit, Principal
from eorouter_compute import method
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.method import Params

if TYPE_CHECKING:
    Task = Params
else:
    Task = method.task_type()  # every installed method, third parties' too: one union, told apart by `method`

DOMAINS = ("processing", "clip", "analytics")

_EVENTS_SHOWN = 200
_WAIT_MAX_S = 60
_TIME_LIMIT_MAX_S = 30 * 86_400
_PROJECT_ID, _ITEM_ID = "prj_01hv8e7m3k9q2w4r6t8y0a1b2c", "itm_01hv8e7m3k9q2w4r6t8y0a1b2c"
_JOB_ID = "job_01hv8e7m3k9q2w4r6t8y0a1b2c"

State = Literal["created", "queued", "running", "publishing", "completed", "failed", "cancelled"]
Priority = Literal["interactive", "batch"]
TimeLimit = Annotated[
    int, Meta(ge=1, le=_TIME_LIMIT_MAX_S, description="Longest the job may run before it fails, seconds.")
]
JobName = Annotated[str, Meta(max_length=200, description="What people call the job; the method's id when empty.")]
WaitSeconds = Annotated[
    float, Meta(ge=0, le=_WAIT_MAX_S, description="Longest to wait for the job's end before answering, seconds.")
]


class InputRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item that a job reads."""

    item_id: Id


Inputs = Annotated[
    tuple[InputRef, ...],
    Meta(max_length=1000, description="Items the method reads, in the order it takes them, zones among them."),
]


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


class JobDetail(Job):
    """A job with its parameters and its latest events, oldest first."""

    task: Json
    events: tuple[JobEvent, ...]


class JobPage(Output):
    """Jobs, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


class JobEventPage(Output):
    """Events of a job, oldest first. `next_after` is where to go on; it stays the same while nothing happens."""

    events: tuple[JobEvent, ...]
    next_after: int


class ProcessingCreateInput(Input):
    """A method, its parameters, and the items it reads."""

    project_id: Annotated[str, Meta(min_length=1, max_length=64, description="Project that gets the results.")]
    task: Task
    inputs: Inputs = ()
    name: JobName = ""
    priority: Annotated[
        Priority, Meta(description="Somebody waits for it (interactive), or it may take its time (batch).")
    ] = "batch"
    time_limit_s: TimeLimit | None = None


def _task_examples() -> tuple[Example, ...]:
    """One request per installed method, from its own example."""
    return tuple(
        Example(
            summary=found.title,
            request={"project_id": _PROJECT_ID, "inputs": [{"item_id": _ITEM_ID}], "task": dict(found.examples[0])},
        )
        for found in method.methods().values()
        if not found.is_internal
    )


@operation(
    "processing.create",
    tier=Tier.COMPUTE,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused),
    routes=(Route("POST", "/v1/jobs/drafts"),),
    examples=_task_examples(),
)
async def create(ctx: Context, request: ProcessingCreateInput) -> Job:
    """Plan a job and keep it without starting it; the answer has the bound of what it can take.

    Nothing is read yet: plans are made from what is known of the items. Start the job with `processing.dispatch`.
    """
    return await _create(ctx, request, dispatches=False)


@operation(
    "processing.create_and_dispatch",
    tier=Tier.COMPUTE,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused),
    routes=(Route("POST", "/v1/jobs"),),
    examples=_task_examples(),
)
async def create_and_dispatch(ctx: Context, request: ProcessingCreateInput) -> Job:
    """Plan a job and queue it."""
    return await _create(ctx, request, dispatches=True)


class ProcessingDispatchInput(Input):
    """Which job."""

    job_id: Id


@operation(
    "processing.dispatch",
    tier=Tier.COMPUTE,
    scope="processing:write",
    errors=(NotFound, Conflict),
    routes=(Route("POST", "/v1/jobs/{job_id}/dispatch"),),
    examples=(Example(summary="Start a job that was planned", request={"job_id": _JOB_ID}),),
)
async def dispatch(ctx: Context, request: ProcessingDispatchInput) -> Job:
    """Queue a job that was created without being started."""
    async with ctx.stores.db.write() as tx:
        await queue.dispatch(tx, request.job_id, ctx.principal, ctx.clock())
        return _job(await queue.find(tx, ctx.principal, request.job_id))


if TYPE_CHECKING:

    class ClipCreateFromItemInput(Input):
        """See below; the checker needs only what the handler names."""

        item_id: str
        project_id: str | None
        name: str

else:
    # The method's own parameters, flat, beside the item: one definition, so they cannot drift.
    _CLIP = method.get("clip").params
    ClipCreateFromItemInput = msgspec.defstruct(
        "ClipCreateFromItemInput",
        [
            ("item_id", Annotated[str, Meta(min_length=1, max_length=64, description="Item to clip.")]),
            (
                "project_id",
                Annotated[str, Meta(max_length=64, description="Project that gets the result; the item's by default.")]
                | None,
                None,
            ),
            ("name", JobName, ""),
            *(
                (field.name, field.type)
                if field.required
                else (field.name, field.type, msgspec.field(default=field.default))
                for field in msgspec.structs.fields(_CLIP)
            ),
        ],
        bases=(Input,),
        module=__name__,
        namespace={"__doc__": "An item, an area, and how to clip."},
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


@operation(
    "clip.create_from_item",
    tier=Tier.COMPUTE,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused),
    routes=(Route("POST", "/v1/items/{item_id}/clip"),),
    examples=(
        Example(
            summary="Clip an item to a box in longitude and latitude",
            request={"item_id": _ITEM_ID, "aoi": [11.1, 46.2, 11.4, 46.4]},
        ),
    ),
)
async def clip_from_item(ctx: Context, request: ClipCreateFromItemInput) -> Job:
    """Clip an item to an area: a new item with one COG per raster asset."""
    fields = msgspec.structs.asdict(request)
    item_id, name = fields.pop("item_id"), fields.pop("name")
    project_id = fields.pop("project_id")
    if project_id is None:
        async with ctx.stores.db.read() as tx:
            project_id = (await items.get(tx, ctx.principal, item_id)).project_id
    task = method.get("clip").params(**fields)
    asked = ProcessingCreateInput(project_id=project_id, task=task, inputs=(InputRef(item_id=item_id),), name=name)
    return await _create(ctx, asked, dispatches=True, is_interactive=True)


class AnalyticsExecuteInput(Input):
    """A method, its parameters, the items it reads, and how long to wait for the answer."""

    project_id: Id
    task: Task
    inputs: Inputs = ()
    name: JobName = ""
    wait_s: WaitSeconds = 0.0


@operation(
    "analytics.execute",
    tier=Tier.COMPUTE,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused),
    routes=(Route("POST", "/v1/analytics"),),
    examples=_task_examples(),
)
async def execute(ctx: Context, request: AnalyticsExecuteInput) -> Job:
    """Run any installed method; with `wait_s`, answer with its result where it is done in time.

    A job that takes longer goes on: the answer then tells how far it is, and `processing.jobs.get` tells the rest.
    """
    asked = ProcessingCreateInput(
        project_id=request.project_id, task=request.task, inputs=request.inputs, name=request.name
    )
    job = await _create(ctx, asked, dispatches=True, is_interactive=request.wait_s > 0)
    return job if request.wait_s == 0 else _job(await queue.wait(ctx.stores.db, job.job_id, request.wait_s))


class ProcessingJobsGetInput(Input):
    """Which job, and how long to wait for its end."""

    job_id: Id
    wait_s: WaitSeconds = 0.0


@operation(
    "processing.jobs.get",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/jobs/{job_id}"),),
    examples=(Example(summary="Read a job", request={"job_id": _JOB_ID}),),
)
async def get_job(ctx: Context, request: ProcessingJobsGetInput) -> JobDetail:
    """Read a job: its state, progress, result or problem, and its latest events."""
    async with ctx.stores.db.read() as tx:
        await queue.find(tx, ctx.principal, request.job_id)
    if request.wait_s:
        await queue.wait(ctx.stores.db, request.job_id, request.wait_s)
    async with ctx.stores.db.read() as tx:
        row = await queue.find(tx, ctx.principal, request.job_id)
        latest = sa.select(job_events).where(job_events.c.job_id == row.id).order_by(job_events.c.id.desc())
        events = (await tx.execute(latest.limit(_EVENTS_SHOWN))).all()
    return JobDetail(
        **{field: getattr(_job(row), field) for field in Job.__struct_fields__},
        task=row.task,
        events=tuple(_event(each) for each in reversed(events)),
    )


class ProcessingJobsListInput(PageInput):
    """Which jobs."""

    project_id: Annotated[str, Meta(max_length=64, description="Only jobs of this project.")] | None = None
    state: Annotated[State, Meta(description="Only jobs in this state.")] | None = None
    limit: PageLimit = 50


@operation(
    "processing.jobs.list",
    tier=Tier.READ,
    scope="processing:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/jobs"),),
    examples=(Example(summary="Jobs that run now", request={"state": "running"}),),
)
async def list_jobs(ctx: Context, request: ProcessingJobsListInput) -> JobPage:
    """List jobs, newest first."""
    query = sa.select(jobs).where(owned(jobs, ctx.principal))
    if request.project_id is not None:
        query = query.where(jobs.c.project_id == request.project_id)
    if request.state is not None:
        query = query.where(jobs.c.state == request.state)
    async with ctx.stores.db.read() as tx:
        rows, cursor = await page(tx, ctx.settings, "processing.jobs.list", request, query, by=jobs.c.id)
    return JobPage(jobs=tuple(_job(row) for row in rows), next_cursor=cursor)


class ProcessingJobsCancelInput(Input):
    """Which job."""

    job_id: Id


@operation(
    "processing.jobs.cancel",
    tier=Tier.COMPUTE,
    scope="processing:write",
    errors=(NotFound, Conflict),
    routes=(Route("POST", "/v1/jobs/{job_id}/cancel"),),
    examples=(Example(summary="Cancel a job", request={"job_id": _JOB_ID}),),
)
async def cancel_job(ctx: Context, request: ProcessingJobsCancelInput) -> Job:
    """Cancel a job. One that runs is cancelled when its shards have noticed; until then `is_cancelling` is true."""
    async with ctx.stores.db.write() as tx:
        await queue.cancel(tx, request.job_id, ctx.principal, ctx.clock())
        return _job(await queue.find(tx, ctx.principal, request.job_id))


class ProcessingResumeInput(Input):
    """Which job."""

    job_id: Id


@operation(
    "processing.resume",
    tier=Tier.COMPUTE,
    scope="processing:write",
    status=201,
    errors=(NotFound, Conflict),
    routes=(Route("POST", "/v1/jobs/{job_id}/resume"),),
    examples=(Example(summary="Go on where a job failed", request={"job_id": _JOB_ID}),),
)
async def resume(ctx: Context, request: ProcessingResumeInput) -> Job:
    """Go on where a job failed: a new job takes over its finished shards and runs the rest.

    Possible for a day after the failure, once, on the build that planned the job. The failed job stays as it is.
    """
    async with ctx.stores.db.write() as tx:
        job_id = await resuming.resume(tx, request.job_id, ctx.principal, request_id=ctx.request_id, now=ctx.clock())
        return _job(await queue.find(tx, ctx.principal, job_id))


class ProcessingEventsListInput(Input):
    """Which job's events, and after which one."""

    job_id: Id
    after: Annotated[int, Meta(ge=0, description="Only events with a higher id.")] = 0
    limit: PageLimit = 100


async def follow_events(
    ctx: Context, request: ProcessingEventsListInput, last_id: int | None
) -> AsyncIterator[Followed | None]:
    """Every event of a job behind the last one the caller has, as they happen, until the job has ended."""
    async with ctx.stores.db.read() as tx:
        await queue.find(tx, ctx.principal, request.job_id)
    after = request.after if last_id is None else max(request.after, last_id)
    async for rows in feed_of(ctx.stores.db).follow(request.job_id, after):
        if not rows:
            yield None
        for row in rows:
            yield Followed(id=row.id, kind=row.type, entry=_event(row))


@operation(
    "processing.events.list",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/jobs/{job_id}/events"),),
    follow=follow_events,
    examples=(Example(summary="What happened since event 17", request={"job_id": _JOB_ID, "after": 17}),),
)
async def list_events(ctx: Context, request: ProcessingEventsListInput) -> JobEventPage:
    """List a job's events, oldest first; ask again with `next_after`, or ask for a stream, to follow the job.

    `GET` with `Accept: text/event-stream` (server-sent events; `Last-Event-ID` goes on behind that event) or
    `Accept: application/x-ndjson` sends every event when it happens and ends with the job.
    """
    async with ctx.stores.db.read() as tx:
        await queue.find(tx, ctx.principal, request.job_id)
        query = sa.select(job_events).where(job_events.c.job_id == request.job_id, job_events.c.id > request.after)
        rows = (await tx.execute(query.order_by(job_events.c.id).limit(request.limit))).all()
    return JobEventPage(events=tuple(_event(row) for row in rows), next_after=rows[-1].id if rows else request.after)


async def _create(
    ctx: Context, request: ProcessingCreateInput, *, dispatches: bool, is_interactive: bool = False
) -> Job:
    """Read what is known of the items, plan outside any transaction, then write the job if all is still there."""
    item_ids = [each.item_id for each in request.inputs]
    async with ctx.stores.db.read() as tx:
        await projects.get(tx, ctx.principal, request.project_id)
        inputs = await items.load_inputs(tx, ctx.stores.objects, ctx.principal, item_ids)
        task = await _with_formulas(tx, ctx.principal, request.task)
    plan = await queue.prepare(task, inputs)
    async with ctx.stores.db.write() as tx:
        await projects.get(tx, ctx.principal, request.project_id, held="shared")
        await items.hold(tx, ctx.principal, item_ids)
        job_id = await queue.create(
            tx,
            principal=ctx.principal,
            project_id=request.project_id,
            task=task,
            inputs=inputs,
            name=request.name,
            is_interactive=is_interactive or request.priority == "interactive",
            request_id=ctx.request_id,
            now=ctx.clock(),
            dispatches=dispatches,
            plan=plan,
            time_limit_s=request.time_limit_s,
        )
        return _job(await queue.find(tx, ctx.principal, job_id))


async def _with_formulas(tx: AsyncConnection, principal: Principal, task: Params) -> Params:
    """The task with the texts of the saved formulas it names; the job keeps them, whatever becomes of the formulas."""
    if not isinstance(task, method.get("band_math").params):
        return task
    named: Any = task
    outputs = list(named.outputs)
    for place, output in enumerate(outputs):
        if output.formula_id is None:
            continue
        text = (await band_formulas.get(tx, principal, output.formula_id)).expression
        if output.expression not in {"", text}:
            raise InvalidParameter(
                f"Output {output.name} has an expression and a formula that says otherwise ({text[:200]}). "
                "Leave one out.",
                pointer=f"/outputs/{place}/expression",
            )
        outputs[place] = msgspec.structs.replace(output, expression=text)
    return msgspec.structs.replace(named, outputs=tuple(outputs))


def _job(row: sa.Row[Any]) -> Job:
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
        is_cancelling=row.is_cancelling and row.state not in queue.TERMINAL,
        input_item_ids=tuple(each["id"] for each in row.inputs),
        bound=msgspec.convert(row.bound, JobBound),
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


def _event(row: sa.Row[Any]) -> JobEvent:
    return JobEvent(event_id=row.id, type=row.type, at=row.at, data=row.data)
