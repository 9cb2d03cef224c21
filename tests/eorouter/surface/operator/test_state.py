"""What is told of the installation is what heartbeats, rows and the ledger say; what is wrong is said first."""

from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.commerce import ledger
from eorouter.storage import migrate
from eorouter.storage.tables import jobs, ledger_accounts, organisations, projects
from eorouter.surface.operator import state
from eorouter.surface.operator.state import LEDGER_EVERY, LedgerCheck
from eorouter.types import Mode, utc_now

NOW = utc_now()


def node(name="0", *, shards=(), silent_s=0.2, threads=2):
    return {
        "name": name, "host": "10.0.0.7", "threads": threads, "memory_bytes": 1 << 28, "memory_limit_bytes": 1 << 32,
        "shards": list(shards), "silent_s": silent_s, "metrics_url": "",
    }  # fmt: skip


@pytest.fixture
async def look(people, clock):
    """Gather the state, with a ledger that was checked."""
    check = LedgerCheck(people.db, clock=clock)
    await check.now()

    async def gather():
        return await state.gather(people, check, schema_check=migrate.check, now=clock())

    yield gather
    await check.close()


async def queued(stores, name, *, seconds_ago, **changes):
    """A job of Bob's whose two shards nobody has taken yet."""
    at = utc_now() - timedelta(seconds=seconds_ago)
    row = {
        "id": f"job_{name}", "org_id": "org_bob", "project_id": "prj_bob", "mode": "live", "name": "", "method": "toy",
        "task": {}, "inputs": [], "state": "queued", "bound": {}, "is_interactive": False, "pixels_done": 0,
        "shards_total": 2, "shards_done": 0, "is_cancelling": False, "created_by": "", "request_id": "",
        "created_at": at, "queued_at": at,
    } | changes  # fmt: skip
    shard = {"job_id": row["id"], "state": "ready", "body": b"", "bound": {}, "attempt": 0, "token": 0, "ready_at": at}
    async with stores.db.write() as tx:
        project = {"id": "prj_bob", "org_id": "org_bob", "name": "", "description": "", "created_at": at}
        await tx.execute(stores.db.insert(projects).values(project).on_conflict_do_nothing())
        await tx.execute(sa.insert(jobs).values(row))
        for number in range(2):
            await tx.execute(
                sa.insert(state.census.job_shards).values(shard | {"number": number, "round": 0, "halvings": 0})
            )


async def test_installation_that_works_has_no_troubles(look, beat):
    name = await beat("http://127.0.0.1:4321/status", threads=2, nodes=[node(shards=["clip job_1 #0"])], build="b1")
    found = await look()
    assert found.troubles == ()
    (dispatcher,), (worker,) = found.dispatchers, found.workers
    assert (dispatcher.id, dispatcher.is_alive, dispatcher.build) == (name, True, "b1")
    assert dispatcher.dashboard == f"/operator/dashboard/{name}/status"
    assert (worker.dispatcher_id, worker.executing, worker.threads, worker.shards) == (name, 1, 2, ("clip job_1 #0",))
    assert found.ledger.checked_at is not None
    assert msgspec.json.decode(msgspec.json.encode(found))["jobs"]["queued"] == 0


async def test_workers_that_dispatchers_share_are_told_once(look, beat):
    shared = [node("a") | {"address": "tls://10.0.0.7:1"}, node("b") | {"address": "tls://10.0.0.7:2"}]
    for _ in range(2):
        await beat(threads=2, nodes=shared)
    await beat(threads=2, nodes=[node("a")])
    found = await look()
    assert sorted(worker.name for worker in found.workers) == ["a", "a", "b"]
    assert found.troubles == ()


async def test_queue_is_told_by_class_and_by_organisation_with_the_oldest_job(look, beat, people):
    await beat(threads=2, nodes=[node(shards=["toy job_x #0"])])
    await queued(people, "1", seconds_ago=30, is_interactive=True)
    await queued(people, "2", seconds_ago=300)
    found = await look()
    lanes = {lane.kind: lane for lane in found.lanes}
    assert (lanes["batch"].queued, lanes["batch"].shards, lanes["interactive"].shards) == (1, 2, 2)
    assert 300 <= lanes["batch"].age_s < 400
    assert found.oldest is not None
    assert (found.oldest.job_id, found.oldest.org_name, found.oldest.state) == ("job_2", "bob", "queued")
    assert {(each.org_name, each.kind) for each in found.organisations} == {("bob", "batch"), ("bob", "interactive")}
    assert found.troubles == ()


@pytest.mark.parametrize(
    ("heartbeats", "trouble"),
    [
        ([], "cluster: No dispatcher is alive"),
        ([{"age_s": 30}], "no heartbeat for 30 s"),
        ([{"threads": 4, "nodes": [node()]}], "2 of 4 threads are there"),
        ([{"threads": 2, "nodes": [node(silent_s=12)]}], "worker 0: silent for 12 s"),
        ([{"build": "a"}, {"build": "b"}], "2 builds run beside each other"),
    ],
)
async def test_trouble_of_the_cluster_is_named(look, beat, heartbeats, trouble):
    for heartbeat in heartbeats:
        await beat(**heartbeat)
    assert any(trouble in each for each in (await look()).troubles)


async def test_work_that_waits_while_all_are_idle_is_trouble_unless_its_owner_paused_it(look, beat, people):
    await beat(threads=2, nodes=[node()])
    await queued(people, "1", seconds_ago=90)
    assert any("every worker is idle" in each for each in (await look()).troubles)
    async with people.db.write() as tx:
        await tx.execute(sa.update(organisations).values(paused_at=NOW))
    assert (await look()).troubles == ()


async def test_interactive_work_that_waits_and_publishing_that_lasts_are_troubles(look, beat, people):
    await beat(threads=2, nodes=[node(shards=["toy job_x #0"])])
    await queued(people, "1", seconds_ago=90, is_interactive=True)
    await queued(people, "0", seconds_ago=1500, state="publishing")
    told = (await look()).troubles
    assert any("interactive shard has waited" in each for each in told)
    assert any("job_0 is publishing" in each for each in told)


async def test_ledger_is_checked_beside_now_and_then_and_on_demand(people, clock):
    check = LedgerCheck(people.db, clock=clock)
    first = check.look()
    assert (first.checked_at, first.is_running) == (None, True)
    await check.now()
    done = check.look()
    assert (done.faults, done.problem, done.is_running) == ((), "", False)
    async with people.db.write() as tx:
        await ledger.open_accounts(tx, people.db, "org_bob", Mode.LIVE, now=NOW, welcome=500)
        await tx.execute(sa.update(ledger_accounts).values(credits_posted=ledger_accounts.c.credits_posted + 1))
    assert check.look().faults == ()
    clock.ahead = LEDGER_EVERY
    assert check.look().is_running
    await check.now()
    assert any("the log says" in fault for fault in check.look().faults)
    await check.close()


async def test_ledger_that_cannot_be_checked_says_so(people, clock, monkeypatch):
    async def broken(*_, **__):
        raise OSError("the disk is gone")

    monkeypatch.setattr(ledger, "verify", broken)
    check = LedgerCheck(people.db, clock=clock)
    await check.now()
    found = check.look()
    assert (found.faults, "OSError" in found.problem, found.checked_at is not None) == ((), True, True)


async def test_faults_of_the_ledger_are_trouble(look, people, beat, monkeypatch):
    await beat(threads=2, nodes=[node()])
    found = await look()
    with_faults = msgspec.structs.replace(found, ledger=state.LedgerState(checked_at=NOW, faults=("a", "b")))
    assert state._troubles(with_faults) == ["ledger: 2 do not agree, first: a"]
