"""From a merged result to items: copy the objects, then one transaction that makes everything visible.

Both steps can be repeated. Item ids and object keys are functions of the job, so a second copy lands on the first, and
the transaction does nothing when the job is no longer publishing. A crash in between leaves the job publishing, and
whoever finds it starts again.
"""

import hashlib
from datetime import datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import ApiError
from eorouter.jobs import charges
from eorouter.jobs.attempts import forget
from eorouter.jobs.leases import fail_job
from eorouter.jobs.queue import move
from eorouter.jobs.states import JobEvent, JobState
from eorouter.storage import Stores, items, uploads
from eorouter.storage.deletions import delete_later
from eorouter.storage.tables import job_shards, jobs
from eorouter_compute import faults, method, tracing
from eorouter_compute.method import OutputItem, ReadReport, Result
from eorouter_compute.orders import MERGE

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TASK_BYTES_MAX = 1 << 16
_ID_TIME = 10
"""Characters of an id that hold its time; the rest is random."""


def item_id(job_id: str, name: str) -> str:
    """The id of a job's output: its time is the job's, its rest a digest, so that it is the same at every attempt."""
    value = int.from_bytes(hashlib.sha256(f"{job_id}/{name}".encode()).digest()[:10])
    rest = "".join(_ALPHABET[(value >> shift) & 31] for shift in range(75, -5, -5))
    return f"itm_{job_id.partition('_')[2][:_ID_TIME]}{rest}"


async def publish(stores: Stores, job_id: str, *, now: datetime) -> bool:
    """Bring a publishing job to its end; returns False when it was no longer publishing.

    A refusal that belongs to the request (the quota, say) fails the job by name; what the machine does wrong is raised,
    and the caller tries again.
    """
    async with stores.db.read() as tx:
        job, result = await _load(tx, job_id)
    structlog.contextvars.bind_contextvars(
        request_id=job.request_id
    )  # on every line of whoever publishes, failures too
    if job.state != JobState.PUBLISHING:
        return False
    with tracing.span("publish", parent=job.traceparent, attributes={"job": job_id}):
        return await _copy_and_commit(stores, job, result, now=now)


async def _copy_and_commit(stores: Stores, job: sa.Row[Any], result: Result, *, now: datetime) -> bool:
    job_id = job.id
    keys = {output.name: _keys(job, output) for output in result.items}
    faults.reached("copy")
    for output in result.items:
        for asset in output.assets:
            await stores.objects.copy(_key_of(stores, asset.object.href), keys[output.name][asset.key])
    faults.reached("publish")
    try:
        async with stores.db.write() as tx:
            return await _commit(tx, stores, job_id, result=result, keys=keys, now=now)
    except ApiError as error:
        await fail(stores, job_id, error.code, error.message, now=now)
        return True


async def fail(stores: Stores, job_id: str, code: str, message: str, *, now: datetime) -> None:
    """End a publishing job with a problem; what was copied is deleted."""
    async with stores.db.write() as tx:
        job, result = await _load(tx, job_id, locks=True)
        if job.state != JobState.PUBLISHING:
            return
        await fail_job(tx, job, JobState.PUBLISHING, {"code": code, "message": message}, now)
        copied = [key for output in result.items for key in _keys(job, output).values()]
        await delete_later(tx, job.org_id, now=now, keys=copied)


async def _load(tx: AsyncConnection, job_id: str, *, locks: bool = False) -> tuple[sa.Row[Any], Result]:
    query = sa.select(jobs).where(jobs.c.id == job_id)
    job = (await tx.execute(query.with_for_update() if locks else query)).one()
    merged = sa.select(job_shards.c.part).where(job_shards.c.job_id == job_id, job_shards.c.number == MERGE)
    part = (await tx.execute(merged)).scalar_one()
    return job, msgspec.msgpack.decode(part, type=Result) if part else Result()


def _keys(job: sa.Row[Any], output: OutputItem) -> dict[str, str]:
    """Object key of each of an item's assets."""
    new_id = item_id(job.id, output.name)
    return {asset.key: items.asset_key(job.org_id, job.project_id, new_id, asset.filename) for asset in output.assets}


def _key_of(stores: Stores, href: str) -> str:
    return unquote(href.removeprefix(f"{stores.objects.url}/"))


async def _commit(
    tx: AsyncConnection, stores: Stores, job_id: str, *, result: Result, keys: dict[str, dict[str, str]], now: datetime
) -> bool:
    query = sa.select(jobs).where(jobs.c.id == job_id).with_for_update()
    job = (await tx.execute(query)).one()
    if job.state != JobState.PUBLISHING:
        return False
    for output in result.items:
        await items.add(
            tx,
            stores.db,
            org_id=job.org_id,
            project_id=job.project_id,
            item_id=item_id(job.id, output.name),
            output=output,
            keys=keys[output.name],
            job_id=job.id,
            provenance=_provenance(job),
            now=now,
        )
    ids = {output.name: item_id(job.id, output.name) for output in result.items}
    answer = {
        "items": ids,
        "summary": result.summary,
        "report": msgspec.to_builtins(_named(stores, result.report)),
        "checksums": {
            f"{output.name}/{asset.key}": asset.object.sha256 for output in result.items for asset in output.assets
        },
    }
    pixels_done = job.pixels_done if method.is_blind(job.method) else int(job.bound.get("pixels", 0))
    await charges.capture(tx, job, result, now=now)
    await move(
        tx,
        job.id,
        JobState.PUBLISHING,
        JobEvent.COMPLETE,
        now=now,
        data={"items": ids, "pixels_done": pixels_done},
        result=answer,
        pixels_done=pixels_done,
        finished_at=now,
    )
    if ids:  # an upload's job has exactly one item; tables have none, and no upload either
        await uploads.settle(tx, job.id, item_id=next(iter(ids.values())), problem=None, now=now)
    await forget(tx, job, now)
    return True


def _provenance(job: sa.Row[Any]) -> dict[str, Any]:
    """What made the item: enough to run it again and compare checksums."""
    task = _public(job.task)
    encoded = msgspec.json.encode(task, order="deterministic")
    return {
        "job_id": job.id,
        "method": job.method,
        # The parameters themselves unless they carry a whole layer of zones; the job keeps those.
        "task": task if len(encoded) <= _TASK_BYTES_MAX else {"sha256": hashlib.sha256(encoded).hexdigest()},
        "inputs": [
            {
                "item_id": each["id"],
                "checksums": {asset["key"]: asset["sha256"] for asset in each["assets"] if asset.get("sha256")},
            }
            for each in job.inputs
        ],
        "software": f"eorouter {version('eorouter')}",
    }


def _public(value: Any) -> Any:
    """Parameters without addresses: where an upload lay is our own affair."""
    if isinstance(value, dict):
        return {name: _public(each) for name, each in value.items() if name != "href"}
    return [_public(each) for each in value] if isinstance(value, list) else value


def _named(stores: Stores, report: ReadReport) -> ReadReport:
    """A read report that names sources by object key instead of by the store's address."""
    failed = tuple(
        msgspec.structs.replace(each, source=each.source.removeprefix(f"{stores.objects.url}/"))
        for each in report.failed
    )
    return msgspec.structs.replace(report, failed=failed)
