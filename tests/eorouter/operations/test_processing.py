"""Jobs as callers see them, on both engines."""

from contextlib import ExitStack
from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.errors import Conflict, InvalidCursor, NotFound, TooManyWaits
from eorouter.jobs import queue
from eorouter.jobs.feed import feed_of
from eorouter.operation import Registry, SpendAuthority
from eorouter.operations import processing
from eorouter.operations.processing import (
    AnalyticsExecuteInput,
    ClipCreateFromItemInput,
    InputRef,
    ProcessingCreateInput,
    ProcessingDispatchInput,
    ProcessingEventsListInput,
    ProcessingJobsCancelInput,
    ProcessingJobsGetInput,
    ProcessingJobsListInput,
    ProcessingResumeInput,
)
from eorouter.storage import items
from eorouter.storage.tables import job_shards, jobs
from eorouter.types import Principal, new_id, utc_now
from eorouter_compute import method
from eorouter_compute.errors import AoiOutside, BandNotFound, InvalidParameter

ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset())
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset())
CLIP = method.get("clip").params
BOX = (0.1, 0.1, 0.4, 0.4)


def paying(who, key=None):
    return SpendAuthority(principal=who, idempotency_key=key or new_id("key"))


def asked(item_id, **changes):
    fields = {"project_id": "prj_a", "task": CLIP(aoi=BOX), "inputs": (InputRef(item_id=item_id),), "name": "field"}
    return ProcessingCreateInput(**(fields | changes))


def test_registry_takes_the_module_whole():
    registry = Registry.of([processing])
    assert [op.id for op in registry] == [
        "analytics.estimate",
        "analytics.execute",
        "clip.create_from_item",
        "processing.create",
        "processing.create_and_dispatch",
        "processing.dispatch",
        "processing.estimate",
        "processing.events.list",
        "processing.jobs.cancel",
        "processing.jobs.get",
        "processing.jobs.list",
        "processing.resume",
    ]
    assert registry.scopes == ("processing:read", "processing:write")


def test_task_union_offers_every_method_but_internal_ones():
    schema = msgspec.json.schema(ProcessingCreateInput)
    offered = set(schema["$defs"]["ProcessingCreateInput"]["properties"]["task"]["discriminator"]["mapping"])
    assert offered == {found.id for found in method.methods().values() if not found.is_internal}


def test_clip_input_has_the_methods_own_fields_and_limits():
    mine = {field.name: field for field in msgspec.structs.fields(ClipCreateFromItemInput)}
    for field in msgspec.structs.fields(CLIP):
        assert (mine[field.name].type, mine[field.name].default) == (field.type, field.default)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"item_id": "i", "aoi": BOX, "aio": 1}, ClipCreateFromItemInput)


async def test_create_tells_the_bound_and_starts_nothing(context, item):
    job = await processing.create(context(ME), asked(item))
    assert (job.state, job.method, job.name, job.input_item_ids) == ("created", "clip", "field", (item,))
    assert job.bound.pixels >= 300 * 300
    assert job.bound.memory_bytes > 0
    assert (job.progress.pixels_done, job.progress.pixels_total) == (0, job.bound.pixels)
    assert (job.progress.fraction, job.result, job.problem, job.queued_at) == (0.0, None, None, None)


async def test_create_shards_are_those_of_the_plan(context, item, stores):
    job = await processing.create_and_dispatch(context(ME), asked(item), spend=paying(ME))
    assert job.state == "queued"
    async with stores.db.read() as tx:
        inputs = await items.load_inputs(tx, stores.objects, ME, [item])
        rows = await tx.execute(sa.select(job_shards.c.body, job_shards.c.state).order_by(job_shards.c.number))
        merge, *shards = rows.all()
    plan = method.plan(CLIP(aoi=BOX), inputs)
    assert [row.body for row in shards] == [shard.body for shard in plan.shards]
    assert {row.state for row in shards} == {"ready"}
    assert merge.state == "waiting"


@pytest.mark.parametrize("change", [{"project_id": "prj_other"}, {"inputs": (InputRef(item_id="itm_unknown"),)}])
async def test_create_on_what_is_not_mine_is_not_found_and_writes_nothing(context, item, stores, change):
    with pytest.raises(NotFound):
        await processing.create_and_dispatch(context(ME), asked(item, **change), spend=paying(ME))
    with pytest.raises(NotFound):
        await processing.create_and_dispatch(context(OTHER), asked(item, project_id="prj_other"), spend=paying(OTHER))
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(jobs))).scalar() == 0


async def test_create_on_an_item_deleted_while_it_was_planned_is_not_found(context, item, stores, monkeypatch):
    plan = queue.prepare

    async def plan_slowly(*arguments):
        made = await plan(*arguments)
        async with stores.db.write() as tx:
            await items.delete(tx, ME, item, utc_now())
        return made

    monkeypatch.setattr(queue, "prepare", plan_slowly)
    with pytest.raises(NotFound) as refusal:
        await processing.create_and_dispatch(context(ME), asked(item), spend=paying(ME))
    assert [fault.pointer for fault in refusal.value.errors] == ["/inputs/0"]
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(jobs))).scalar() == 0


async def test_create_refused_by_the_method_carries_its_own_code(context, item):
    with pytest.raises(AoiOutside):
        await processing.create(context(ME), asked(item, task=CLIP(aoi=(50.0, 50.0, 51.0, 51.0))))
    with pytest.raises(BandNotFound):
        await processing.create(context(ME), asked(item, task=CLIP(aoi=BOX, bands=("nir",))))


async def test_dispatch_queues_once(context, item):
    job = await processing.create(context(ME), asked(item))
    request = ProcessingDispatchInput(job_id=job.job_id)
    with pytest.raises(NotFound):
        await processing.dispatch(context(OTHER), request, spend=paying(OTHER))
    assert (await processing.dispatch(context(ME), request, spend=paying(ME))).state == "queued"
    with pytest.raises(Conflict, match="queued"):
        await processing.dispatch(context(ME), request, spend=paying(ME))


async def test_clip_from_item_goes_to_the_items_project_and_first(context, item, stores):
    job = await processing.clip_from_item(
        context(ME), ClipCreateFromItemInput(item_id=item, aoi=BOX, crop=False), spend=paying(ME)
    )
    assert (job.project_id, job.method, job.state) == ("prj_a", "clip", "queued")
    row = await queue.wait(stores.db, job.job_id, 0)
    assert row.is_interactive
    assert msgspec.convert(row.task, CLIP) == CLIP(aoi=BOX, crop=False)


async def test_results_go_to_the_first_items_project_unless_another_is_named(context, item, stores):
    request = AnalyticsExecuteInput(task=CLIP(aoi=BOX), inputs=(InputRef(item_id=item),))
    job = await processing.execute(context(ME), request, spend=paying(ME))
    async with stores.db.read() as tx:
        assert (await tx.execute(sa.select(jobs.c.project_id).where(jobs.c.id == job.job_id))).scalar() == "prj_a"


async def test_without_items_and_project_it_is_asked_which(context, item):
    with pytest.raises(InvalidParameter) as caught:
        await processing.create(context(ME), ProcessingCreateInput(task=CLIP(aoi=BOX)))
    assert caught.value.pointer == "/project_id"


async def test_analytics_answers_after_its_wait_with_the_job_as_it_is(context, item):
    request = AnalyticsExecuteInput(
        project_id="prj_a", task=CLIP(aoi=BOX), inputs=(InputRef(item_id=item),), wait_s=0.2
    )
    assert (await processing.execute(context(ME), request, spend=paying(ME))).state == "queued"


async def test_who_waits_too_often_is_refused_and_may_still_ask_and_start(context, item):
    ctx = context(ME)
    job = await processing.create_and_dispatch(ctx, asked(item), spend=paying(ME))
    wait = ProcessingJobsGetInput(job_id=job.job_id, wait_s=60)
    events = processing.follow_events(ctx, ProcessingEventsListInput(job_id=job.job_id), None)
    assert (await anext(events)).kind == "job.created"
    with ExitStack() as places:
        for _ in range(ctx.settings.waits_max - 1):
            places.enter_context(feed_of(ctx.stores.db).place(ME.id, ctx.settings.waits_max))
        with pytest.raises(TooManyWaits, match="100 requests"):
            await processing.get_job(ctx, wait)
        with pytest.raises(TooManyWaits):
            await anext(processing.follow_events(ctx, ProcessingEventsListInput(job_id=job.job_id), None))
        assert (await processing.get_job(ctx, ProcessingJobsGetInput(job_id=job.job_id))).state == "queued"
        request = AnalyticsExecuteInput(task=CLIP(aoi=BOX), inputs=(InputRef(item_id=item),), wait_s=60)
        assert (await processing.execute(ctx, request, spend=paying(ME))).state == "queued"
    await events.aclose()
    assert feed_of(ctx.stores.db)._places == {}


async def test_get_tells_task_and_events_and_is_the_owners_only(context, item):
    job = await processing.create_and_dispatch(context(ME), asked(item), spend=paying(ME))
    told = await processing.get_job(context(ME), ProcessingJobsGetInput(job_id=job.job_id))
    assert told.task["aoi"] == list(BOX)
    assert [event.type for event in told.events] == ["job.created", "job.queued"]
    assert told.events[0].data["pixels_total"] == job.bound.pixels
    with pytest.raises(NotFound):
        await processing.get_job(context(OTHER), ProcessingJobsGetInput(job_id=job.job_id))
    restricted = msgspec.structs.replace(ME, project_id="prj_b")
    with pytest.raises(NotFound):
        await processing.get_job(context(restricted), ProcessingJobsGetInput(job_id=job.job_id))


async def test_list_pages_through_each_job_once_newest_first(context, item):
    made = [(await processing.create(context(ME), asked(item))).job_id for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = await processing.list_jobs(context(ME), ProcessingJobsListInput(limit=2, cursor=cursor))
        seen += [job.job_id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == sorted(made, reverse=True)
    assert (await processing.list_jobs(context(OTHER), ProcessingJobsListInput())).jobs == ()


async def test_list_filters_and_binds_its_cursor_to_them(context, item):
    drafts = [await processing.create(context(ME), asked(item)) for _ in range(2)]
    await processing.create_and_dispatch(context(ME), asked(item, project_id="prj_b"), spend=paying(ME))
    page = await processing.list_jobs(context(ME), ProcessingJobsListInput(state="created", limit=1))
    assert page.jobs[0].job_id in {job.job_id for job in drafts}
    with pytest.raises(InvalidCursor):
        await processing.list_jobs(context(ME), ProcessingJobsListInput(state="queued", cursor=page.next_cursor))
    queued = await processing.list_jobs(context(ME), ProcessingJobsListInput(project_id="prj_b"))
    assert [job.state for job in queued.jobs] == ["queued"]


async def test_cancel_ends_a_queued_job_and_refuses_an_ended_one(context, item):
    job = await processing.create_and_dispatch(context(ME), asked(item), spend=paying(ME))
    request = ProcessingJobsCancelInput(job_id=job.job_id)
    with pytest.raises(NotFound):
        await processing.cancel_job(context(OTHER), request)
    cancelled = await processing.cancel_job(context(ME), request)
    assert (cancelled.state, cancelled.is_cancelling) == ("cancelled", False)
    assert cancelled.finished_at is not None
    with pytest.raises(Conflict, match="cancelled"):
        await processing.cancel_job(context(ME), request)


async def test_events_follow_a_job_without_gap_or_repeat(context, item):
    job = await processing.create_and_dispatch(context(ME), asked(item), spend=paying(ME))
    first = await processing.list_events(context(ME), ProcessingEventsListInput(job_id=job.job_id, limit=1))
    rest = await processing.list_events(
        context(ME), ProcessingEventsListInput(job_id=job.job_id, after=first.next_after)
    )
    assert [event.type for event in (*first.events, *rest.events)] == ["job.created", "job.queued"]
    idle = await processing.list_events(
        context(ME), ProcessingEventsListInput(job_id=job.job_id, after=rest.next_after)
    )
    assert (idle.events, idle.next_after) == ((), rest.next_after)
    with pytest.raises(NotFound):
        await processing.list_events(context(OTHER), ProcessingEventsListInput(job_id=job.job_id))


async def test_resume_a_failed_job_gives_another_that_names_it(peopled, context, item, worker):
    job = await processing.create(context(principal=ME), asked(item, priority="interactive", time_limit_s=90))
    assert (job.priority, job.time_limit_s, job.resumed_from) == ("interactive", 90, None)
    with pytest.raises(Conflict, match="only a job that failed"):
        await processing.resume(context(principal=ME), ProcessingResumeInput(job_id=job.job_id), spend=paying(ME))
    async with peopled.db.write() as tx:
        failed = {"state": "failed", "problem": {"code": "x", "message": "y"}}
        until = utc_now() + timedelta(hours=1)
        await tx.execute(sa.update(jobs).where(jobs.c.id == job.job_id).values(resumable_until=until, **failed))
    heir = await processing.resume(context(principal=ME), ProcessingResumeInput(job_id=job.job_id), spend=paying(ME))
    assert (heir.resumed_from, heir.priority, heir.time_limit_s) == (job.job_id, "interactive", 90)
    assert heir.state == "queued"
