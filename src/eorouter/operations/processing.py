"""Processing jobs: any installed method on items of a project, as a job that outlives whoever asked.

`processing.create`, `.dispatch` and `.create_and_dispatch` take any method; `clip.create_from_item` and
`analytics.execute` are the short ways to the most wanted ones; `processing.jobs.*` and `processing.events.list` tell
how a job is doing and what it left.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.commerce import ledger
from eorouter.errors import (
    BudgetExceeded,
    ComputeRefused,
    Conflict,
    IdempotencyKeyInFlight,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    InsufficientBalance,
    InvalidCursor,
    NotFound,
    TooManyWaits,
)
from eorouter.jobs import charges, queue
from eorouter.jobs import resume as resuming
from eorouter.jobs.feed import attend, feed_of, place_of
from eorouter.jobs.forecast import forecast
from eorouter.jobs.views import Job, JobBound, JobEvent, Priority, State, event_of, job_of
from eorouter.operation import Context, Example, Followed, Route, SpendAuthority, Tier, operation
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

SPENDING = (
    InsufficientBalance, BudgetExceeded, IdempotencyKeyMissing, IdempotencyKeyInFlight, IdempotencyKeyReused,
)  # fmt: skip

_EVENTS_SHOWN = 200
_WAIT_MAX_S = 60
_TIME_LIMIT_MAX_S = 30 * 86_400
_PROJECT_ID, _ITEM_ID = "prj_01hv8e7m3k9q2w4r6t8y0a1b2c", "itm_01hv8e7m3k9q2w4r6t8y0a1b2c"
_JOB_ID = "job_01hv8e7m3k9q2w4r6t8y0a1b2c"

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


Destination = Annotated[
    str, Meta(min_length=1, max_length=64, description="Project that gets the results; the first item's by default.")
]
Inputs = Annotated[
    tuple[InputRef, ...],
    Meta(max_length=1000, description="Items the method reads, in the order it takes them, zones among them."),
]


class JobDetail(Job):
    """A job with its parameters and its latest events, oldest first.

    `queue_position` is the place among your jobs of that priority that have not begun; `expected_at` is when the job
    will be done by what was measured of its method, null where nothing was or where your organisation is paused.
    """

    task: Json
    queue_position: int | None
    expected_at: datetime | None
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

    task: Task
    inputs: Inputs = ()
    project_id: Destination | None = None
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
    return await _create(ctx, request, None)


@operation(
    "processing.create_and_dispatch",
    tier=Tier.SPEND,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused, *SPENDING),
    routes=(Route("POST", "/v1/jobs"),),
    examples=_task_examples(),
)
async def create_and_dispatch(ctx: Context, request: ProcessingCreateInput, spend: SpendAuthority) -> Job:
    """Plan a job and queue it."""
    return await _create(ctx, request, spend)


class EstimateLine(Output):
    """One line of an estimate: at most so much of a unit, at a price in euros each; `cents` is rounded up."""

    unit: str
    quantity: float
    unit_price: str
    cents: int


class Estimate(Output):
    """The most a job can take and cost. A job queued at this price book never costs more."""

    bound: JobBound
    shards: int
    lines: tuple[EstimateLine, ...]
    cents: int
    currency: str
    price_book: str
    available_cents: int
    is_affordable: bool


class ProcessingEstimateInput(Input):
    """A method, its parameters, and the items it would read."""

    task: Task
    inputs: Inputs = ()
    project_id: Destination | None = None


@operation(
    "processing.estimate",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound, ComputeRefused),
    routes=(Route("POST", "/v1/jobs/estimate"),),
    examples=_task_examples(),
)
async def estimate(ctx: Context, request: ProcessingEstimateInput) -> Estimate:
    """Say what a job can take and cost at most, before it is made; nothing is kept and nothing is spent."""
    return await _estimate(ctx, request)


@operation(
    "analytics.estimate",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound, ComputeRefused),
    routes=(Route("POST", "/v1/analytics/estimate"),),
    examples=_task_examples(),
)
async def estimate_analytics(ctx: Context, request: ProcessingEstimateInput) -> Estimate:
    """Say what `analytics.execute` would take and cost at most; nothing is kept and nothing is spent."""
    return await _estimate(ctx, request)


class ProcessingDispatchInput(Input):
    """Which job."""

    job_id: Id


@operation(
    "processing.dispatch",
    tier=Tier.SPEND,
    scope="processing:write",
    errors=(NotFound, Conflict, *SPENDING),
    routes=(Route("POST", "/v1/jobs/{job_id}/dispatch"),),
    examples=(Example(summary="Start a job that was planned", request={"job_id": _JOB_ID}),),
)
async def dispatch(ctx: Context, request: ProcessingDispatchInput, spend: SpendAuthority) -> Job:
    """Queue a job that was created without being started."""
    if (bought := await _bought(ctx, spend)) is not None:
        return bought
    async with ctx.stores.db.write() as tx:
        await queue.dispatch(tx, request.job_id, ctx.principal, ctx.clock())
        await _reserve(ctx, tx, spend, request.job_id)
        return job_of(await queue.find(tx, ctx.principal, request.job_id))


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
            ("project_id", Destination | None, None),
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
    tier=Tier.SPEND,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused, *SPENDING),
    routes=(Route("POST", "/v1/items/{item_id}/clip"),),
    examples=(
        Example(
            summary="Clip an item to a box in longitude and latitude",
            request={"item_id": _ITEM_ID, "aoi": [11.1, 46.2, 11.4, 46.4]},
        ),
    ),
)
async def clip_from_item(ctx: Context, request: ClipCreateFromItemInput, spend: SpendAuthority) -> Job:
    """Clip an item to an area: a new item with one COG per raster asset."""
    fields = msgspec.structs.asdict(request)
    item_id, name, project_id = (fields.pop(each) for each in ("item_id", "name", "project_id"))
    task = method.get("clip").params(**fields)
    asked = ProcessingCreateInput(project_id=project_id, task=task, inputs=(InputRef(item_id=item_id),), name=name)
    return await _create(ctx, asked, spend, is_interactive=True)


class AnalyticsExecuteInput(Input):
    """A method, its parameters, the items it reads, and how long to wait for the answer."""

    task: Task
    inputs: Inputs = ()
    project_id: Destination | None = None
    name: JobName = ""
    wait_s: WaitSeconds = 0.0


@operation(
    "analytics.execute",
    tier=Tier.SPEND,
    scope="processing:write",
    status=201,
    errors=(NotFound, ComputeRefused, *SPENDING),
    routes=(Route("POST", "/v1/analytics"),),
    examples=_task_examples(),
)
async def execute(ctx: Context, request: AnalyticsExecuteInput, spend: SpendAuthority) -> Job:
    """Run any installed method; with `wait_s`, answer with its result where it is done in time.

    A job that takes longer goes on: the answer then tells how far it is, and `processing.jobs.get` tells the rest.
    """
    asked = ProcessingCreateInput(
        project_id=request.project_id, task=request.task, inputs=request.inputs, name=request.name
    )
    job = await _create(ctx, asked, spend, is_interactive=request.wait_s > 0)
    if request.wait_s == 0:
        return job
    return job_of(await queue.wait(ctx.stores.db, job.job_id, request.wait_s, place=place_of(ctx)))


class ProcessingJobsGetInput(Input):
    """Which job, and how long to wait for its end."""

    job_id: Id
    wait_s: WaitSeconds = 0.0


@operation(
    "processing.jobs.get",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound, TooManyWaits),
    routes=(Route("GET", "/v1/jobs/{job_id}"),),
    examples=(Example(summary="Read a job", request={"job_id": _JOB_ID}),),
)
async def get_job(ctx: Context, request: ProcessingJobsGetInput) -> JobDetail:
    """Read a job: its state, progress, result or problem, and its latest events."""
    async with ctx.stores.db.read() as tx:
        await queue.find(tx, ctx.principal, request.job_id)
    if request.wait_s:
        await attend(ctx, request.job_id, request.wait_s)
    async with ctx.stores.db.read() as tx:
        row = await queue.find(tx, ctx.principal, request.job_id)
        latest = sa.select(job_events).where(job_events.c.job_id == row.id).order_by(job_events.c.id.desc())
        events = (await tx.execute(latest.limit(_EVENTS_SHOWN))).all()
        foretold = await forecast(tx, row, now=ctx.clock())
    return JobDetail(
        **{field: getattr(job_of(row), field) for field in Job.__struct_fields__},
        task=row.task,
        queue_position=foretold.position,
        expected_at=foretold.expected_at,
        events=tuple(event_of(each) for each in reversed(events)),
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
    return JobPage(jobs=tuple(job_of(row) for row in rows), next_cursor=cursor)


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
        return job_of(await queue.find(tx, ctx.principal, request.job_id))


class ProcessingResumeInput(Input):
    """Which job."""

    job_id: Id


@operation(
    "processing.resume",
    tier=Tier.SPEND,
    scope="processing:write",
    status=201,
    errors=(NotFound, Conflict, *SPENDING),
    routes=(Route("POST", "/v1/jobs/{job_id}/resume"),),
    examples=(Example(summary="Go on where a job failed", request={"job_id": _JOB_ID}),),
)
async def resume(ctx: Context, request: ProcessingResumeInput, spend: SpendAuthority) -> Job:
    """Go on where a job failed: a new job takes over its finished shards and runs the rest.

    Possible for a day after the failure, once, on the build that planned the job. The failed job stays as it is.
    """
    if (bought := await _bought(ctx, spend)) is not None:
        return bought
    async with ctx.stores.db.write() as tx:
        job_id = await resuming.resume(tx, request.job_id, ctx.principal, request_id=ctx.request_id, now=ctx.clock())
        await _reserve(ctx, tx, spend, job_id)
        return job_of(await queue.find(tx, ctx.principal, job_id))


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
    with place_of(ctx):
        async for rows in feed_of(ctx.stores.db).follow(request.job_id, after):
            if not rows:
                yield None
            for row in rows:
                yield Followed(id=row.id, kind=row.type, entry=event_of(row))


@operation(
    "processing.events.list",
    tier=Tier.READ,
    scope="processing:read",
    errors=(NotFound, TooManyWaits),
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
    return JobEventPage(events=tuple(event_of(row) for row in rows), next_after=rows[-1].id if rows else request.after)


async def _create(
    ctx: Context, request: ProcessingCreateInput, spend: SpendAuthority | None, *, is_interactive: bool = False
) -> Job:
    """Read what is known of the items, plan outside any transaction, then write the job if all is still there.

    With authority to spend it is queued, and the most it can cost is set aside; without, it is kept as a draft.
    """
    if spend is not None and (bought := await _bought(ctx, spend)) is not None:
        return bought
    project_id, task, inputs, plan = await _planned(ctx, request)
    async with ctx.stores.db.write() as tx:
        await projects.get(tx, ctx.principal, project_id, held="shared")
        await items.hold(tx, ctx.principal, [each.item_id for each in request.inputs])
        job_id = await queue.create(
            tx,
            principal=ctx.principal,
            project_id=project_id,
            task=task,
            inputs=inputs,
            name=request.name,
            is_interactive=is_interactive or request.priority == "interactive",
            request_id=ctx.request_id,
            now=ctx.clock(),
            dispatches=spend is not None,
            plan=plan,
            time_limit_s=request.time_limit_s,
        )
        if spend is not None:
            await _reserve(ctx, tx, spend, job_id)
        return job_of(await queue.find(tx, ctx.principal, job_id))


async def _planned(
    ctx: Context, request: ProcessingCreateInput | ProcessingEstimateInput
) -> tuple[str, Params, list[method.InputItem], method.Plan]:
    """Where the results go, the task with its formulas, the items as they are known, and the plan.

    Nothing is read of the rasters.
    """
    item_ids = [each.item_id for each in request.inputs]
    project_id = request.project_id
    if project_id is None and not item_ids:
        raise InvalidParameter("Without items it must be said which project gets the results.", pointer="/project_id")
    async with ctx.stores.db.read() as tx:
        inputs = await items.load_inputs(tx, ctx.stores.objects, ctx.principal, item_ids)
        if project_id is None:
            project_id = (await items.get(tx, ctx.principal, item_ids[0])).project_id
        await projects.get(tx, ctx.principal, project_id)
        task = await _with_formulas(tx, ctx.principal, request.task)
    return project_id, task, inputs, await queue.prepare(task, inputs)


async def _estimate(ctx: Context, request: ProcessingEstimateInput) -> Estimate:
    _, task, _, plan = await _planned(ctx, request)
    book, price = charges.promised(str(task.__struct_config__.tag), plan.bound)
    who = ctx.principal
    async with ctx.stores.db.read() as tx:
        has = await ledger.balance(tx, who.org_id, who.mode)
    available = ctx.settings.welcome_cents if has is None else has.available
    return Estimate(
        bound=msgspec.convert(msgspec.to_builtins(plan.bound), JobBound),
        shards=len(plan.shards),
        lines=tuple(
            EstimateLine(
                unit=line.unit, quantity=float(line.quantity), unit_price=str(line.unit_price), cents=line.cents
            )
            for line in price.lines
        ),
        cents=price.cents,
        currency=book.currency,
        price_book=book.name,
        available_cents=available,
        is_affordable=price.cents <= available,
    )


async def _bought(ctx: Context, spend: SpendAuthority) -> Job | None:
    """The job that was queued under this idempotency key, when its first answer was lost."""
    async with ctx.stores.db.read() as tx:
        job_id = await ledger.spent_under(tx, spend)
        return None if job_id is None else job_of(await queue.find(tx, ctx.principal, job_id))


async def _reserve(ctx: Context, tx: AsyncConnection, spend: SpendAuthority, job_id: str) -> None:
    welcome = ctx.settings.welcome_cents
    await charges.reserve(tx, ctx.stores.db, spend, job_id, welcome=welcome, now=ctx.clock())


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
