"""Every step at which a job's money moves, killed at every statement and every commit: what then, and how it goes on.

A step is done by a process that dies at its n-th moment (`mortal`): with an exception, and with SIGKILL in a process of
its own. Afterwards the ledger balances at once. Then whoever would find the wreck goes on: the caller repeats the
request under its key, a fresh dispatcher takes over, its next pass comes. In the end every job has ended once, what was
reserved for it is resolved once, nobody has paid twice, and no budget counts what was given back.
"""

import asyncio
import multiprocessing
import signal
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from itertools import count
from typing import Any

import mortal
import msgspec
import pytest
import scene
import sqlalchemy as sa
from mortal import ALICE

from eorouter.commerce import ledger
from eorouter.jobs import charges, claims, dispatcher, leases, queue
from eorouter.jobs.fairness import FairShare
from eorouter.jobs.leases import Landed
from eorouter.jobs.states import TERMINAL
from eorouter.operation import SpendAuthority
from eorouter.storage import Stores
from eorouter.storage.tables import (
    budget_usage,
    budgets,
    job_events,
    job_shards,
    jobs,
    ledger_open,
    ledger_transfers,
    requests_done,
)
from eorouter.types import Mode, new_id, utc_now
from eorouter_compute.attempt import Attempt
from eorouter_compute.method import OutputAsset, OutputItem, Part, Result
from eorouter_compute.orders import Failure, Outcome

pytestmark = pytest.mark.timeout(900)

WELCOME = 10_000_000
DONE = Outcome(part=msgspec.msgpack.encode(Part()), seconds=0.1)
STOPPED = Outcome(failure=Failure(kind="cancelled", code="cancelled", message="The job was cancelled."))
Kill = Callable[[str, dict[str, Any], int], Awaitable[bool]]


class World:
    """An installation, and subjects for every step."""

    def __init__(self, stores: Stores, settings: Any, create: Any) -> None:
        self.stores, self.settings, self.create = stores, settings, create

    async def subject(self, step: str) -> dict[str, Any]:
        """Something that the step can be done to, once."""
        return await getattr(self, "_" + step.replace(" ", "_"))()

    def _asked(self, operation: str, body: Any, **more: Any) -> dict[str, Any]:
        return {"operation": operation, "body": body, "key": new_id("key")} | more

    async def _create(self) -> dict[str, Any]:
        clip = {"method": "clip", "aoi": [0.1, 0.1, 0.4, 0.4]}
        body = {"project_id": "prj_a", "task": clip, "inputs": [{"item_id": "itm_scene"}]}
        return self._asked("processing.create_and_dispatch", body)

    async def _refuse(self) -> dict[str, Any]:
        return self._asked("processing.dispatch", {"job_id": "job_of_nobody"})

    async def _dispatch(self) -> dict[str, Any]:
        job_id = await self.create(shards=1, dispatches=False)
        return self._asked("processing.dispatch", {"job_id": job_id}, job_id=job_id)

    async def _cancel(self) -> dict[str, Any]:
        job_id = await self._paid(shards=1)
        return self._asked("processing.jobs.cancel", {"job_id": job_id}, job_id=job_id)

    async def _resume(self) -> dict[str, Any]:
        failed = await self._paid(shards=2)
        first, second = await self._claimed(failed)
        await self._landed(first, DONE)
        await self._landed(second, Outcome(failure=mortal.BROKEN))
        return self._asked("processing.resume", {"job_id": failed}, failed=failed)

    async def _complete(self) -> dict[str, Any]:
        job_id = await self._paid(shards=1)
        (shard,) = await self._claimed(job_id)
        await self._landed(shard, DONE)
        (merge,) = await self._claimed(job_id)
        await self._landed(merge, Outcome(part=msgspec.msgpack.encode(self._result(job_id))))
        return {"job_id": job_id}

    _give_up = _complete

    async def _fail(self) -> dict[str, Any]:
        job_id = await self._paid(shards=1, ills={"0": "source"})
        (shard,) = await self._claimed(job_id)
        return {"job_id": job_id, "claim": shard}

    async def _overdue(self) -> dict[str, Any]:
        job_id = await self._paid(shards=1, time_limit_s=1)
        await self._claimed(job_id)
        return {"job_id": job_id}

    async def _stop(self) -> dict[str, Any]:
        job_id = await self._paid(shards=1)
        (shard,) = await self._claimed(job_id)
        async with self.stores.db.write() as tx:
            await queue.cancel(tx, job_id, ALICE, utc_now())
        await self._landed(shard, STOPPED)
        return {"job_id": job_id}

    async def _expire(self) -> dict[str, Any]:
        names = [await self.create(shards=1, dispatches=False) for _ in range(2)]  # drafts: nobody runs them
        async with self.stores.db.write() as tx:
            for name in names:
                await ledger.reserve(
                    tx, self.stores.db, SpendAuthority(principal=ALICE, idempotency_key=name), transfer_id=name,
                    amount=7, project_id="prj_a", reference=name, memo="", now=utc_now(), expires_at=utc_now(),
                )  # fmt: skip
        return {"references": names}

    async def _paid(self, **fields: Any) -> str:
        job_id = await self.create(**fields)
        async with self.stores.db.write() as tx:
            paying = SpendAuthority(principal=ALICE, idempotency_key=new_id("key"))
            await charges.reserve(tx, self.stores.db, paying, job_id, welcome=WELCOME, now=utc_now())
        return job_id

    async def _claimed(self, job_id: str) -> list[claims.Claim]:
        """The job's ready shards, leased to a dispatcher that nobody knows."""
        async with self.stores.db.write() as tx:
            only = [claims.OpenJob(id=job_id, lane=("org_a", False))]
            taken = await claims.claim(tx, only, share=FairShare(), room=9, owner="dsp_dead", now=utc_now())
        return taken.claims

    async def _landed(self, claim: claims.Claim, outcome: Outcome) -> None:
        async with self.stores.db.write() as tx:
            await leases.record(tx, [Landed(claim=claim, outcome=outcome)], now=utc_now())

    def _result(self, job_id: str) -> Result:
        attempt = Attempt(self.stores.objects.href(f"org_a/prj_a/jobs/{job_id}/attempts/-1/1/"))
        asset = OutputAsset(
            key="sums", object=attempt.write("sums.bin", b"x" * 100), media_type="application/octet-stream",
            roles=("data",), filename="sums.bin",
        )  # fmt: skip
        return Result(items=(OutputItem(name="sums", assets=(asset,), footprint=scene.SQUARE, bbox=(0, 0, 1, 1)),))

    # Afterwards

    async def faults(self) -> list[str]:
        paid = sa.select(ledger_transfers.c.reference).where(ledger_transfers.c.kind == "reserve")
        unpaid = sa.select(jobs.c.id).where(jobs.c.queued_at.is_not(None), jobs.c.id.not_in(paid))
        async with self.stores.db.read(sees_one_moment=True) as tx:
            found = await ledger.verify(tx, ended=await charges.forgotten(tx))
            return found + [f"Nobody pays for {job_id}." for job_id in (await tx.execute(unpaid)).scalars()]

    async def goes_on(self, step: str, subject: dict[str, Any]) -> list[str]:
        """What follows a death at once; returns the references whose money is to be resolved in the end."""
        if step in {"create", "dispatch", "resume"}:
            return [await self._repeated(subject)]
        if step == "refuse":
            return await self._refused(subject)
        if step == "cancel":
            assert (await mortal.ask(self.stores, self.settings, subject)).status_code in {200, 409}
        elif step in {"overdue", "stop", "expire"}:
            await mortal.STEPS[step](self.stores, self.settings, subject)
        return subject["references"] if step == "expire" else [subject["job_id"]]

    async def _refused(self, subject: dict[str, Any]) -> list[str]:
        """The caller sends the request until it is refused; the key is as if it had never been used."""
        await self._free_the_busy()
        assert (await mortal.ask(self.stores, self.settings, subject)).status_code == 404
        async with self.stores.db.read() as tx:
            assert (await tx.execute(sa.select(requests_done))).all() == []
        return []

    async def _free_the_busy(self) -> None:
        """So much time passes that a request which nobody answered may be carried out again."""
        async with self.stores.db.write() as tx:
            busy = requests_done.c.busy_until.is_not(None)
            await tx.execute(sa.update(requests_done).where(busy).values(busy_until=utc_now() - timedelta(seconds=1)))

    async def _repeated(self, subject: dict[str, Any]) -> str:
        """The caller, who has no answer, sends the request until there is one; then it is always the same."""
        await self._free_the_busy()
        answer = await mortal.ask(self.stores, self.settings, subject)
        assert answer.is_success, answer.text
        again = await mortal.ask(self.stores, self.settings, subject)
        assert (again.content, again.headers["idempotent-replayed"]) == (answer.content, "true")
        job_id = answer.json()["job_id"]
        async with self.stores.db.read() as tx:
            bought = sa.select(ledger_transfers.c.reference).where(ledger_transfers.c.idempotency_key == subject["key"])
            assert (await tx.execute(bought)).scalars().all() == [job_id]
            if failed := subject.get("failed"):
                heirs = sa.select(jobs.c.id).where(jobs.c.resumed_from == failed)
                assert (await tx.execute(heirs)).scalars().all() == [job_id]
        return job_id

    async def assert_settled(self, references: list[str], *, are_jobs: bool) -> None:
        """Everything ended once, and is paid once or not at all; the counters say the same."""
        assert len(set(references)) == len(references)
        async with self.stores.db.read(sees_one_moment=True) as tx:
            for reference in references:
                kinds = sa.select(ledger_transfers.c.kind).where(ledger_transfers.c.reference == reference)
                resolved = sorted(set((await tx.execute(kinds)).scalars()) - {"reserve"})
                count = (await tx.execute(sa.select(sa.func.count()).select_from(kinds.subquery()))).scalar_one()
                assert (len(resolved), count) == (1, 2), (reference, resolved)
                if are_jobs:
                    await self._assert_ended(tx, reference, resolved[0])
            live = sa.select(jobs.c.id).where(jobs.c.finished_at.is_(None), jobs.c.queued_at.is_not(None))
            assert (await tx.execute(live)).all() == []
            assert (await tx.execute(sa.select(ledger_open))).all() == []
            spent = sa.select(sa.func.sum(ledger_transfers.c.amount)).where(ledger_transfers.c.kind == "capture")
            spent_cents = int((await tx.execute(spent)).scalar_one() or 0)
            found = await ledger.balance(tx, "org_a", Mode.LIVE)
            committed = (await tx.execute(sa.select(sa.func.sum(budget_usage.c.committed)))).scalar_one() or 0
        assert found == ledger.Balance(WELCOME - spent_cents, 0, spent_cents)
        assert committed == spent_cents
        assert await self.faults() == []

    async def _assert_ended(self, tx: Any, job_id: str, resolution: str) -> None:
        job = (await tx.execute(sa.select(jobs).where(jobs.c.id == job_id))).one()
        assert job.state in TERMINAL, (job_id, job.state)
        assert resolution == ("capture" if job.state == "completed" else "release")
        ends = [f"job.{state}" for state in sorted(TERMINAL)]
        kinds = sa.select(job_events.c.type).where(job_events.c.job_id == job_id, job_events.c.type.in_(ends))
        assert (await tx.execute(kinds)).scalars().all() == [f"job.{job.state}"]
        leased = sa.select(job_shards.c.number).where(job_shards.c.job_id == job_id, job_shards.c.state == "leased")
        assert (await tx.execute(leased)).all() == []


@pytest.fixture
async def world(stores, settings, create) -> World:
    """Somebody with money, a budget that counts all of it, and an item whose file is not there."""
    async with stores.db.write() as tx:
        await ledger.open_accounts(tx, stores.db, "org_a", Mode.LIVE, now=utc_now(), welcome=WELCOME)
        row = {
            "id": "bud_1", "org_id": "org_a", "project_id": None, "key_id": None, "mode": "live", "name": "all",
            "period": "ever", "limit_cents": WELCOME, "created_at": utc_now(),
        }  # fmt: skip
        await tx.execute(sa.insert(budgets).values(row))
    await scene.shelve(stores.db, "org_a", "prj_a", "itm_scene")
    return World(stores, settings, create)


async def survives(world: World, step: str, kill: Kill, cluster: Any, numbers: Iterable[int]) -> int:
    """Kill a step at these moments, until it had fewer; let everybody go on, and look; returns how often it died."""
    references: list[str] = []
    deaths = 0
    for number in numbers:
        subject = await world.subject(step)
        dies = await kill(step, subject, number)
        assert await world.faults() == [], (step, number)
        references += await world.goes_on(step, subject)
        if not dies:
            break
        deaths += 1
    await a_fresh_dispatcher_ends_all(world, cluster)
    await world.assert_settled(references, are_jobs=step != "expire")
    return deaths


async def a_fresh_dispatcher_ends_all(world: World, cluster: Any) -> None:
    """It is a real one, on a cluster of threads; nothing is told it but what is in the database."""
    made = dispatcher.Dispatcher(world.settings, world.stores, cluster=cluster)
    running = asyncio.create_task(made.run())
    live = sa.select(jobs.c.id).where(jobs.c.finished_at.is_(None), jobs.c.queued_at.is_not(None))

    async def is_anything_left() -> bool:
        async with world.stores.db.read() as tx:
            return (await tx.execute(live)).first() is not None

    async with asyncio.timeout(240):
        while await is_anything_left():  # noqa: ASYNC110 - what is awaited happens in the database
            await asyncio.sleep(0.1)
    made.stop()
    await running


@pytest.fixture(autouse=True)
def hasty(monkeypatch) -> None:
    """A dispatcher that looks after others' jobs more often than once a second."""
    monkeypatch.setattr(dispatcher, "_TEND_S", 0.2)


# Dispatching has the statements of creating and of resuming, and nearly none of its own.
LONG = {("sqlite", "dispatch"), ("postgresql", "dispatch"), ("sqlite", "resume")}
RAISED = [
    pytest.param(engine, step, id=f"{engine}-{step}", marks=pytest.mark.slow if (engine, step) in LONG else ())
    for engine in ("sqlite", "postgresql")
    for step in mortal.STEPS
]


@pytest.mark.parametrize(("empty_database_url", "step"), RAISED, indirect=["empty_database_url"])
async def test_step_survives_a_death_between_any_two_statements(world, cluster, step):
    async def kill(name: str, subject: dict[str, Any], number: int) -> bool:
        return await mortal.in_process(name, world.stores, world.settings, subject, number)

    assert await survives(world, step, kill, cluster, count(1)) > 5


KILLED = [
    pytest.param("complete", (2, 9, 19), id="complete-some"),
    *(pytest.param(step, None, id=step, marks=pytest.mark.slow) for step in mortal.STEPS),
]


@pytest.mark.parametrize(("step", "numbers"), KILLED)
async def test_step_survives_a_kill_at_any_statement(world, cluster, nursery, step, numbers):
    async def kill(name: str, subject: dict[str, Any], number: int) -> bool:
        made = nursery.Process(
            target=mortal.in_child, args=(name, world.settings, world.stores.db.url, subject, number), daemon=True
        )
        made.start()
        await asyncio.to_thread(made.join)
        assert made.exitcode in {0, -signal.SIGKILL}
        return made.exitcode != 0

    deaths = await survives(world, step, kill, cluster, numbers or count(1))
    assert deaths == len(numbers) if numbers else deaths > 5


@pytest.fixture
def nursery(toy):
    """Where processes are born that have loaded everything and opened nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mortal"])
    return context
