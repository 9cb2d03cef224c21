"""Workers found through a scheduler in a process of its own: shared by two, certified, lost and found again."""

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import pytest_asyncio
from distributed import Client, Security

from eorouter.jobs import certificates, processes
from eorouter.settings import Settings
from eorouter_compute import distant, method
from eorouter_compute.cluster import OtherBuild
from eorouter_compute.distant import DistantCluster, View
from eorouter_compute.nodes import Seen
from eorouter_compute.orders import Outcome, ShardOrder

TOYS = Path(__file__).resolve().parents[1] / "toys"
MEMORY_MB = 700

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

Start = Callable[..., subprocess.Popen[str]]


def variables(folder: Path, address: str) -> dict[str, str]:
    """Settings of a part with the certificates of a folder."""
    plain = {
        "SCHEDULER_ADDRESS": address, "TLS_CA": folder / "ca.crt", "TLS_CERTIFICATE": folder / "tls.crt",
        "TLS_KEY": folder / "tls.key", "WORKER_MEMORY_MB": MEMORY_MB,
    }  # fmt: skip
    return {f"EOROUTER_{name}": str(value) for name, value in plain.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates of two authorities that do not know each other."""
    folder = tmp_path_factory.mktemp("distant")
    certificates.make(folder / "ours", [])
    certificates.make(folder / "theirs", [])
    return folder


@pytest.fixture(scope="module")
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tls://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def start(commands, place: Path, address: str) -> Iterator[Start]:
    """`start("worker", authority="theirs")` runs a part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOYS))
        method.methods.cache_clear()
        with commands(place, EOROUTER_DATA_DIR=str(place / "data")) as start:

            def run(part: str, *, authority: str = "ours", log: str = "log") -> subprocess.Popen[str]:
                return start(part, log=log, **variables(place / authority, address))

            yield run
    method.methods.cache_clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(start: Start) -> dict[str, subprocess.Popen[str]]:
    """A scheduler and two workers."""
    return {"scheduler": start("scheduler"), "first": start("worker"), "second": start("worker")}


@pytest.fixture(scope="module")
def link(place: Path, address: str) -> Callable[[], DistantCluster]:
    chosen = {name.removeprefix("EOROUTER_").lower(): each for name, each in variables(place / "ours", address).items()}
    settings = msgspec.convert(chosen, Settings, strict=False, dec_hook=lambda kind, value: kind(value))

    def make() -> DistantCluster:
        made = processes.cluster_of(settings)
        assert isinstance(made, DistantCluster)
        return made

    return make


async def until(check: Callable[[], object], timeout_s: float = 150) -> None:
    async with asyncio.timeout(timeout_s):
        while not check():  # noqa: ASYNC110 - what is awaited happens in other processes
            await asyncio.sleep(0.05)


async def until_healthy(cluster: DistantCluster, workers: int) -> None:
    """Connect as a dispatcher does: again and again, and anew whenever the cluster is not healthy."""
    async with asyncio.timeout(200):
        while not (cluster.is_healthy and cluster.alive_count >= workers):
            if not cluster.is_healthy:
                await cluster.close()
                await cluster.start()
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(parts: object, link: Callable[[], DistantCluster]) -> AsyncIterator[tuple[DistantCluster, ...]]:
    """Two dispatchers' links to the one scheduler."""
    made = link(), link()
    for each in made:
        await until_healthy(each, 2)
    yield made
    for each in made:
        await each.close()


@pytest.fixture
def order(tmp_path):
    """Make an order of a toy job."""
    tokens = iter(range(1, 100))

    def make(number=0, *, job_id="job_1", **fields):
        token = next(tokens)
        return ShardOrder(
            job_id=job_id, number=number, token=token, label="toy", prefix=f"file://{tmp_path}/{number}/{token}/",
            task=msgspec.json.encode({"method": "toy", **fields}), inputs=msgspec.msgpack.encode([]),
            body=msgspec.msgpack.encode(number),
        )  # fmt: skip

    return make


async def until_runs(cluster, job_id):
    """Pulse until a shard of the job is seen to execute; its worker."""
    async with asyncio.timeout(150):
        while True:
            if any(each.job_id == job_id and each.pixels for each in await cluster.pulse(())):
                return next(at for at, runs in cluster._executing.items() if any(run[0] == job_id for run in runs))
            await asyncio.sleep(0.05)


async def test_two_dispatchers_share_the_workers_of_one_scheduler(pair, order):
    outcomes = await asyncio.gather(*(each.run(order(number)) for each in pair for number in range(3)))
    assert [each.failure for each in outcomes] == [None] * 6
    await until(lambda: [each.threads for each in pair] == [1, 1])
    assert [each.alive_count for each in pair] == [2, 2]
    assert {seen.memory_limit_bytes for seen in pair[0].census()} == {MEMORY_MB << 20}
    assert all(each.dashboard_url.startswith("http://127.0.0.1:") for each in pair)


async def test_what_one_gives_up_the_pulse_of_the_other_does_not_bring_back(pair, order):
    mine, other = pair
    flight = asyncio.create_task(mine.run(order(job_id="job_slow", blocks=1000, block_s=0.05)))
    await until_runs(mine, "job_slow")
    await mine.pulse({"job_slow"})
    async with asyncio.timeout(150):
        while not flight.done():
            await other.pulse(())
    assert (await flight).failure.kind == "cancelled"
    await mine.pulse(())


async def test_a_plain_client_and_another_authority_are_refused(pair, place, address, start):
    with pytest.raises((OSError, TimeoutError)):
        await Client(address.replace("tls", "tcp"), asynchronous=True, set_as_default=False, timeout=2)
    strange = {f"tls_client_{kind}": str(place / "theirs" / f"tls.{kind}") for kind in ("cert", "key")}
    strange["tls_client_cert"] = str(place / "theirs" / "tls.crt")
    for authority in ("ours", "theirs"):
        security = Security(require_encryption=True, tls_ca_file=str(place / authority / "ca.crt"), **strange)
        with pytest.raises((OSError, TimeoutError)):
            await Client(address, security=security, asynchronous=True, set_as_default=False, timeout=2)
    intruder = start("worker", authority="theirs", log="intruder")
    await until(lambda: "worker.not_connected" in (place / "intruder").read_text())
    assert pair[0].alive_count == 2
    intruder.terminate()
    assert await asyncio.to_thread(intruder.wait, 150) == 0


async def test_a_worker_that_dies_costs_its_own_order_only_and_comes_back(pair, order, place):
    mine, other = pair
    quiet = asyncio.create_task(other.run(order(job_id="job_quiet", blocks=120, block_s=0.05)))
    await until_runs(other, "job_quiet")
    sick = {"ills": {"1": "die_once"}, "marker": str(place)}
    outcome = await mine.run(order(1, **sick))
    assert (outcome.failure.code, outcome.is_bystander) == ("worker_lost", False)
    assert (await quiet).failure is None
    await until(lambda: mine.alive_count == 2)
    assert (await mine.run(order(1, **sick))).failure is None


async def test_a_scheduler_of_another_build_is_refused_by_name(pair, link, monkeypatch, address):
    strange = link()
    monkeypatch.setattr(distant, "build", lambda: "9.9+other")
    with pytest.raises(OtherBuild, match=f"runs build 9.9.other, but the scheduler {address} runs build"):
        await strange.start()
    assert not strange.is_healthy


async def test_workers_of_another_build_are_left_to_dispatchers_of_theirs(link, monkeypatch):
    monkeypatch.setattr(distant, "build", lambda: "1+a")
    known = {"host": "h", "threads": 4, "memory_bytes": 1, "memory_limit_bytes": 7, "shards": (), "metrics_url": ""}
    known |= {"silent_s": 0.0}
    workers = tuple(Seen(name=build, address=build, build=build, **known) for build in ("1+a", "1+b", ""))
    cluster = link()
    cluster._take(View(build="1+a", dispatchers=2, workers=workers))
    assert [seen.build for seen in cluster.census()] == ["1+a"]
    assert (cluster.threads, cluster._memory_bytes) == (2, 7)
    assert cluster._strangers == {"1+b", ""}


@pytest.mark.slow
async def test_out_of_memory_is_told_to_whose_order_it_was(pair, order):
    mine, other = pair
    quiet = asyncio.create_task(other.run(order(job_id="job_quiet", blocks=200, block_s=0.05)))
    await until_runs(other, "job_quiet")
    outcome = await mine.run(order(ills={"0": "memory"}))
    assert (outcome.failure.kind, outcome.failure.code) == ("memory", "job_out_of_memory")
    assert (await quiet).failure is None
    await until(lambda: mine.alive_count == 2)


@pytest.mark.slow
async def test_a_worker_told_to_stop_finishes_what_it_runs_and_what_waited_goes_elsewhere(pair, order, parts):
    mine, _ = pair
    slow = order(job_id="job_slow", blocks=40, block_s=0.1)
    flight = asyncio.create_task(mine.run(slow))
    at = await until_runs(mine, "job_slow")
    waiting = [asyncio.create_task(mine.run(order(number, blocks=4, block_s=0.1))) for number in range(4)]
    leaving = next(name for name in ("first", "second") if has_worker(parts[name], at))
    parts[leaving].terminate()
    outcome = await flight
    assert outcome.failure is None
    assert [each.failure for each in await asyncio.gather(*waiting)] == [None] * 4
    assert await asyncio.to_thread(parts[leaving].wait, 150) == 0
    await until(lambda: mine.alive_count == 1)


def has_worker(part: subprocess.Popen[str], at: str) -> bool:
    """Whether the worker that listens there is a child of this part."""
    port = int(at.rpartition(":")[2])
    children = psutil.Process(part.pid).children(recursive=True)
    return any(each.laddr.port == port for child in children for each in child.net_connections("tcp"))


@pytest.mark.slow
async def test_a_scheduler_that_dies_loses_its_orders_uncounted_and_workers_come_back(pair, order, parts, start):
    mine, other = pair
    flight = asyncio.create_task(mine.run(order(job_id="job_slow", blocks=1000, block_s=0.05)))
    await until_runs(mine, "job_slow")
    parts["scheduler"].send_signal(signal.SIGKILL)
    outcome: Outcome = await asyncio.wait_for(flight, 150)
    assert (outcome.failure.code, outcome.is_bystander) == ("worker_lost", True)
    assert not mine.is_healthy
    assert (await mine.run(order())).is_bystander
    await mine.close()
    await mine.start()  # nobody answers: that is no error
    assert not mine.is_healthy
    assert mine.alive_count == 0
    parts["scheduler"] = start("scheduler")
    await until_healthy(mine, 1)
    assert (await mine.run(order())).failure is None
    await until_healthy(other, 1)
    assert (await other.run(order())).failure is None


@pytest.mark.slow
async def test_close_loses_the_orders_that_wait(pair, order):
    mine, other = pair
    flight = asyncio.create_task(mine.run(order(job_id="job_slow", blocks=1000, block_s=0.05)))
    await until_runs(mine, "job_slow")
    await mine.close()
    outcome = await asyncio.wait_for(flight, 150)
    assert (outcome.failure.kind, outcome.is_bystander) == ("machine", True)
    with contextlib.suppress(TimeoutError):
        await other.pulse({"job_slow"})
