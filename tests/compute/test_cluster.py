"""Orders on real worker processes: what they answer, and what is answered for them when they die."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import pytest_asyncio
from dask import config as dask_config
from distributed.core import Status
from distributed.scheduler import KilledWorker
from distributed.versions import get_versions

from eorouter_compute import cluster as cluster_module
from eorouter_compute import method
from eorouter_compute.build import build
from eorouter_compute.cluster import Cluster
from eorouter_compute.method import Part, Result
from eorouter_compute.orders import MERGE, ShardOrder

TOYS = Path(__file__).resolve().parents[1] / "toys"
MEMORY_BYTES = 700 << 20

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two worker processes of one thread each, that know the toy method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOYS))
        patch.setenv("PYTHONPATH", os.pathsep.join([path for path in sys.path if "site-packages" not in path]))
        method.methods.cache_clear()
        made = Cluster(
            worker_count=2,
            worker_threads=1,
            worker_memory_bytes=MEMORY_BYTES,
            dashboard_port=0,
            scratch=tmp_path_factory.mktemp("scratch"),
        )
        await made.start()
        yield made
        await made.close()
        method.methods.cache_clear()


@pytest.fixture
def order(tmp_path):
    """Make an order of a toy job."""
    tokens = iter(range(1, 100))

    def make(number=0, *, job_id="job_1", token=None, parts=(), merge_prefix="", **fields):
        token = token or next(tokens)
        return ShardOrder(
            job_id=job_id, number=number, token=token, label="toy", prefix=f"file://{tmp_path}/{number}/{token}/",
            task=msgspec.json.encode({"method": "toy", **fields}), inputs=msgspec.msgpack.encode([]),
            body=msgspec.msgpack.encode(number), parts=parts, merge_prefix=merge_prefix,
        )  # fmt: skip

    return make


async def until_pulse(cluster, flight, check):
    """Pulse until what the workers tell passes `check`, which it must while the order is in flight."""
    async with asyncio.timeout(120):
        while True:
            running = await cluster.pulse(())
            if check(running):
                return running
            assert not flight.done(), flight.result()
            await asyncio.sleep(0.05)


async def until_alive(cluster):
    """Wait until both nannies have their workers, and no other worker is left."""

    def is_alive():
        nannies = cluster._cluster.workers.values()
        workers = cluster._cluster.scheduler.workers.values()
        return len(nannies) == 2 and sorted(each.nanny for each in workers) == sorted(each.address for each in nannies)

    async with asyncio.timeout(200):
        while not is_alive():  # noqa: ASYNC110 - a nanny starts the new worker
            await asyncio.sleep(0.1)


async def test_run_shard_and_merge_answer_in_bytes(cluster, order, tmp_path):
    outcomes = await asyncio.gather(*(cluster.run(order(number)) for number in range(3)))
    assert [each.failure for each in outcomes] == [None] * 3
    assert all(each.seconds > 0 and each.peak_rss_bytes > 10 << 20 for each in outcomes)
    parts = tuple(each.part for each in outcomes)
    merged = await cluster.run(order(MERGE, parts=parts))
    result = msgspec.msgpack.decode(merged.part, type=Result)
    assert result.summary == {"sum": 3, "numbers": 3}
    assert (tmp_path / "-1" / "4" / "sums.bin").read_bytes() == b"".join(bytes([n]) * 1000 for n in range(3))


async def test_run_of_the_only_shard_merges_too(cluster, order, tmp_path):
    alone = await cluster.run(order(0, shards=1, merge_prefix=f"file://{tmp_path}/-1/1/"))
    assert alone.failure is None
    part = msgspec.msgpack.decode(alone.part, type=Part)
    result = msgspec.msgpack.decode(alone.result, type=Result)
    (asset,) = result.items[0].assets
    assert asset.object.href.startswith(f"file://{tmp_path}/-1/1/")
    apart = await cluster.run(order(MERGE, shards=1, parts=(alone.part,)))
    assert msgspec.msgpack.decode(apart.part, type=Result).items[0].assets[0].object.sha256 == asset.object.sha256
    assert part.objects


async def test_run_whose_merge_fails_has_no_part(cluster, order, tmp_path):
    await cluster.run(order(0, shards=1, merge_prefix=f"file://{tmp_path}/-1/2/"))
    outcome = await cluster.run(order(0, shards=1, merge_prefix=f"file://{tmp_path}/-1/2/"))
    assert outcome.failure is not None
    assert outcome.failure.code == "attempt_exists"
    assert (outcome.part, outcome.result) == (None, None)


async def test_run_request_fault_comes_back_as_data(cluster, order):
    failure = (await cluster.run(order(ills={"0": "request"}))).failure
    assert (failure.kind, failure.code, failure.pointer) == ("request", "invalid_parameter", "/ills")
    failure = (await cluster.run(order(ills={"0": "source"}))).failure
    assert (failure.kind, failure.code, failure.data) == ("source", "source_truncated", {"source": "scene"})


async def test_run_defect_tells_its_traceback_to_the_logs_only(cluster, order):
    failure = (await cluster.run(order(ills={"0": "defect"}))).failure
    assert (failure.kind, failure.code) == ("defect", "internal_fault")
    assert "a bug" in failure.traceback
    assert "a bug" not in failure.message


async def test_run_same_attempt_twice_loses_to_its_own_objects(cluster, order):
    first = order(token=7)
    assert (await cluster.run(first)).failure is None
    outcome = await cluster.run(msgspec.structs.replace(first, job_id="job_ghost"))
    assert (outcome.failure.kind, outcome.failure.code) == ("machine", "attempt_exists")
    assert outcome.is_bystander


async def test_pulse_reports_progress_and_carries_a_cancellation(cluster, order):
    flight = asyncio.create_task(cluster.run(order(job_id="job_slow", blocks=1000, block_s=0.1)))
    await until_pulse(cluster, flight, lambda running: any(each.pixels > 0 for each in running))
    await cluster.pulse({"job_slow"})
    outcome = await asyncio.wait_for(flight, 60)  # undisturbed it takes a hundred seconds
    assert (outcome.failure.kind, outcome.failure.code) == ("cancelled", "cancelled")
    await cluster.pulse(())
    assert (await cluster.run(order(job_id="job_slow"))).failure is None


async def test_run_on_a_worker_that_dies_is_lost_and_the_next_try_succeeds(cluster, order, tmp_path):
    sick = {"ills": {"0": "die_once"}, "marker": str(tmp_path)}
    outcome = await cluster.run(order(**sick))
    assert (outcome.part, outcome.failure.kind, outcome.failure.code) == (None, "machine", "worker_lost")
    outcome = await cluster.run(order(**sick))
    assert msgspec.msgpack.decode(outcome.part, type=Part).objects["numbers"].size == 1000
    await until_alive(cluster)


async def test_a_dead_worker_that_is_slow_to_come_back_costs_no_other_and_is_replaced(cluster):
    """Dask, asked to, closes its nanny for good: `refill` starts another, and what runs elsewhere stays."""
    nannies = cluster._cluster.workers
    assert dask_config.get("distributed.deploy.lost-worker-timeout") == "15m"
    given_up, kept = nannies[0], nannies[1].pid
    with dask_config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        os.kill(given_up.pid, signal.SIGKILL)
        async with asyncio.timeout(120):
            # It may have a new worker by then, which it ends as it closes.
            while given_up.status != Status.closed:  # noqa: ASYNC110 - Dask takes its time
                await asyncio.sleep(0.01)
    cluster.refill()
    await until_alive(cluster)
    assert nannies[1].pid == kept


async def test_refill_replaces_nannies_that_gave_up():
    bare = Cluster(worker_count=2, worker_threads=1, worker_memory_bytes=1, dashboard_port=0, scratch=Path())
    asked = []
    nannies = {0: SimpleNamespace(status=Status.failed), 1: SimpleNamespace(status=Status.running)}
    bare._cluster = SimpleNamespace(workers=nannies, scale=asked.append)
    bare.refill()
    assert (list(nannies), asked) == ([1], [2])
    nannies[0] = SimpleNamespace(status=Status.starting)
    bare.refill()
    assert asked == [2]


async def test_restart_workers_of_ends_a_shard_that_does_not_listen(cluster, order):
    flight = asyncio.create_task(cluster.run(order(job_id="job_deaf", ills={"0": "deaf"})))
    running = await until_pulse(cluster, flight, lambda running: any(each.job_id == "job_deaf" for each in running))
    await cluster.restart_workers_of({(each.job_id, each.number, each.token) for each in running})
    outcome = await asyncio.wait_for(flight, 120)
    assert outcome.failure.code in {"worker_lost", "cancelled"}
    await until_alive(cluster)


async def test_bystander_is_whom_the_last_pulse_did_not_see_at_work(order):
    bare = Cluster(worker_count=1, worker_threads=1, worker_memory_bytes=1, dashboard_port=0, scratch=Path())
    working, waiting = order(0), order(1)
    bare._executing = {"tls://1": {working.run}}
    assert bare._is_bystander(waiting, "tls://1")
    assert not bare._is_bystander(working, "tls://1")
    assert not bare._is_bystander(waiting, "tls://2")


async def test_only_silence_on_pulse_after_pulse_ends_a_worker(monkeypatch):
    bare = Cluster(worker_count=1, worker_threads=1, worker_memory_bytes=1, dashboard_port=0, scratch=Path())
    ended = []

    class Client:
        async def restart_workers(self, addresses, **_):
            ended.extend(addresses)

    bare._client = Client()
    clock = iter([0, 1, 2, 40, 41, *range(42, 90)])
    monkeypatch.setattr(cluster_module.time, "monotonic", lambda: float(next(clock)))
    for silent in (["a"], ["a"], [], ["a"], ["a", "b"]):  # a pause of 38 s in between, and an answer before it
        await bare._end_frozen(silent)
    assert ended == []
    for _ in range(31):
        await bare._end_frozen(["a"])
    assert ended == ["a"]


async def test_a_nanny_that_is_heard_after_the_scheduler_is_believed(order, monkeypatch):
    bare = Cluster(worker_count=1, worker_threads=1, worker_memory_bytes=1, dashboard_port=0, scratch=Path())

    class Lost(asyncio.Future[bytes]):
        def release(self) -> None: ...

    def submit(*_: object, **__: object) -> Lost:
        future = Lost()
        future.set_exception(KilledWorker("it", SimpleNamespace(address="tls://1"), 1))
        return future

    monkeypatch.setattr(Cluster, "is_healthy", True)
    bare._client = SimpleNamespace(submit=submit)
    bare._executing = {"tls://1": {("another", 7, 1)}}

    def pulse() -> None:
        bare._executing = {}
        bare._note_out_of_memory((0.0, {"worker": "tls://1", "rss": 3 << 20}))

    asyncio.get_running_loop().call_later(0.1, pulse)
    outcome = await bare.run(order())
    assert outcome.failure.kind == "memory"
    assert outcome.is_bystander
    bare._out_of_memory = {}
    assert (await bare.run(order())).failure.kind == "machine"


async def test_what_ran_out_of_memory_is_forgotten_before_its_address_is_anothers(order, monkeypatch):
    bare = Cluster(worker_count=1, worker_threads=1, worker_memory_bytes=1, dashboard_port=0, scratch=Path())
    now = [0.0]
    monkeypatch.setattr(cluster_module.time, "monotonic", lambda: now[0])
    for number in range(1000):
        now[0] += 1.0
        bare._note_out_of_memory((0.0, {"worker": f"tls://{number}", "rss": 3 << 20}))
        if number == 8:
            assert bare._killed(order(), "tls://7", is_bystander=False).failure.kind == "memory"
    assert len(bare._out_of_memory) <= 300
    assert bare._killed(order(), "tls://7", is_bystander=False).failure.kind == "machine"


async def test_run_without_a_cluster_is_a_lost_try(order):
    bare = Cluster(worker_count=1, worker_threads=1, worker_memory_bytes=1, dashboard_port=0, scratch=Path())
    failure = (await bare.run(order())).failure
    assert failure is not None
    assert failure.kind == "machine"
    assert not bare.is_healthy


async def test_a_worker_of_another_build_refuses_by_name(cluster, order):
    strange = msgspec.structs.replace(order(), build="0.0+other")
    failure = (await cluster.run(strange)).failure
    assert failure.kind == "machine"
    assert "0.0+other" in failure.message
    assert build() in failure.message


async def test_check_builds_says_which_part_is_of_another():
    cluster_module.check_builds("1+a", {"the scheduler": "1+a", "worker tls://h:1": "1+a"})
    with pytest.raises(cluster_module.OtherBuild, match=r"runs build 1\+a, but worker tls://h:1 runs build 1\+b\."):
        cluster_module.check_builds("1+a", {"the scheduler": "1+a", "worker tls://h:1": "1+b"})


async def test_check_versions_says_which_library_differs():
    mine = get_versions()
    cluster_module.check_versions(mine, {"tls://h:1": mine})
    other = {"packages": mine["packages"] | {"distributed": "1.0"}}
    with pytest.raises(cluster_module.OtherBuild, match=r"distributed .*1\.0"):
        cluster_module.check_versions(mine, {"tls://h:1": mine, "tls://h:2": other})
    with pytest.raises(cluster_module.OtherBuild, match="than the dispatcher"):
        cluster_module.check_versions(other, {})


async def test_run_out_of_memory_is_a_named_result(cluster, order):
    # The last of this file, so that nobody waits for the worker that takes its place.
    greedy = msgspec.structs.replace(order(ills={"0": "memory"}), memory_bytes=64 << 20)
    outcome = await asyncio.wait_for(cluster.run(greedy), 240)
    assert (outcome.failure.kind, outcome.failure.code) == ("memory", "job_out_of_memory")
    told = re.search(r"has \(700 MiB\).* need 64 MiB .* at (\d+) MiB when", outcome.failure.message)
    assert told
    assert int(told[1]) >= 0.95 * 700  # Dask's limit, told in whole MiB
