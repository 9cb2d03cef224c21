"""Every part that can die, at every moment at which it can: the job ends once, with the bytes of an undisturbed run.

The processes are real ones: a supervisor as in `eorouter serve`, its dispatcher, the workers. `eorouter_compute.faults`
makes one of them stand still at a named moment; then somebody is killed (SIGKILL), frozen (SIGSTOP), cut off, refused
or out of space, and the one that stood still goes on, if it still can.

What makes no matrix of its own here: Dask's scheduler and the nannies live in the dispatcher's process, so the rows of
the dispatcher are theirs. Before a claim no worker has anything to lose, and publishing is the dispatcher's, so those
columns of the workers' rows do not exist.
"""

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx2
import msgspec
import psutil
import pytest
import pytest_asyncio
import s3
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.commerce import ledger
from eorouter.jobs import charges, queue, supervisor
from eorouter.jobs.supervisor import Supervisor, environment
from eorouter.operation import SpendAuthority
from eorouter.settings import Settings
from eorouter.storage import Stores, deletions, migrate
from eorouter.storage.database import Database, database_url
from eorouter.storage.objects import Objects
from eorouter.storage.tables import items, job_events, ledger_transfers, organisations, projects
from eorouter.types import Principal, new_id, utc_now
from eorouter_compute import faults, method

TOYS = Path(__file__).resolve().parents[2] / "toys"
ALICE = Principal(kind="user", id="usr_alice", org_id="org_a", scopes=frozenset(), user_id="usr_alice")
WAIT_S = 240
REFUSALS = {
    "503": 3,
    "outage": 40,
}  # few are the store client's own to try again; after many it gives up, and then we do

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

AT_WORKERS = ("read", "write", "written", "merge")
AT_DISPATCHER = ("claim", "record", "copy", "publish")
CELLS = [
    *(("dispatcher", "kill", moment) for moment in (*AT_DISPATCHER, *AT_WORKERS)),
    *(("dispatcher", "freeze", moment) for moment in (*AT_DISPATCHER, *AT_WORKERS)),
    *(("worker", "kill", moment) for moment in (*AT_WORKERS, "record")),
    *(("worker", "freeze", moment) for moment in AT_WORKERS),
    *(("api", "kill", moment) for moment in (*AT_DISPATCHER, *AT_WORKERS)),
    *(("database", "cut", moment) for moment in (*AT_DISPATCHER, *AT_WORKERS)),
    *(("disk", "full", moment) for moment in (*AT_DISPATCHER, *AT_WORKERS)),
    *(("store", "503", moment) for moment in (*AT_DISPATCHER, *AT_WORKERS)),
    *(("store", "outage", moment) for moment in ("read", "merge", "copy")),
]
FAST = {
    ("dispatcher", "kill", "record"),
    ("dispatcher", "freeze", "publish"),
    ("worker", "kill", "write"),
    ("disk", "full", "read"),
}
GRID = [pytest.param(*cell, id="-".join(cell), marks=() if cell in FAST else pytest.mark.slow) for cell in CELLS]


class Installation(msgspec.Struct):
    """A service under test: its supervisor, its stores with their gate, and the folder where processes stand still."""

    settings: Settings
    stores: Stores
    folder: Path
    supervisor: Supervisor
    gate: s3.Gate | None = None
    calm: dict[str, str] = {}

    @property
    def dispatcher(self) -> psutil.Process:
        assert self.supervisor.pid is not None
        return psutil.Process(self.supervisor.pid)

    def workers(self) -> list[psutil.Process]:
        return [each for each in self.dispatcher.children() if "spawn_main" in " ".join(each.cmdline())]

    async def create(self, **fields: object) -> str:
        """Queue a job, with the money for it set aside."""
        paying = SpendAuthority(principal=ALICE, idempotency_key=new_id("key"))
        async with self.stores.db.write() as tx:
            job_id = await queue.create(
                tx, principal=ALICE, project_id="prj_a", task=method.get("toy").params(**fields), inputs=[], name="",
                is_interactive=False, request_id="req_test", now=utc_now(), dispatches=True,
            )  # fmt: skip
            await charges.reserve(tx, self.stores.db, paying, job_id, welcome=100_000, now=utc_now())
        return job_id

    async def reached(self, moment: str) -> tuple[int, Path]:
        """Wait until a process stands still at an armed moment; its id, and the file that holds it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for path in self.folder.glob(f"{moment}.*"):
                    if path.suffix != ".armed":
                        return int(path.suffix[1:]), path
                await asyncio.sleep(0.01)

    async def happened(self, job_id: str, kind: str) -> None:
        """Wait for an event of a job."""
        query = sa.select(job_events.c.id).where(job_events.c.job_id == job_id, job_events.c.type == kind)
        async with asyncio.timeout(WAIT_S):
            while True:
                async with self.stores.db.read() as tx:
                    if (await tx.execute(query)).first() is not None:
                        return
                await asyncio.sleep(0.01)


async def installed(folder: Path, url: str, held: Path, *, objects: str = "") -> Installation:
    data = folder / "data"
    data.mkdir()
    db = Database(url or database_url("", data))
    await migrate.upgrade(db)
    now = utc_now()
    async with db.write() as tx:
        org = {"id": "org_a", "name": "a", "quota_bytes": 10**12, "used_bytes": 0, "created_at": now}
        await tx.execute(sa.insert(organisations).values(org))
        project = {"id": "prj_a", "org_id": "org_a", "name": "a", "description": "", "created_at": now}
        await tx.execute(sa.insert(projects).values(project))
    settings = Settings(data_dir=data, secret="s" * 40, worker_count=2, database_url=url, objects_url=objects)
    stores = Stores(db=db, objects=Objects(objects, data))
    return Installation(settings=settings, stores=stores, folder=held, supervisor=Supervisor(settings))


class Places:
    """Installations by what they keep their state in, started when first asked for."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._request = request
        self._patch = patch
        self.made: dict[str, Installation] = {}
        self.faults = folder / "faults"
        self.faults.mkdir()

    async def on(self, kind: str) -> Installation:
        if kind not in self.made:
            here = await getattr(self, f"_{kind}")()
            self.made[kind] = here
            await here.supervisor.start()
            row = await queue.wait(here.stores.db, await here.create(shards=4), WAIT_S)
            assert (row.state, row.problem) == ("completed", None)
            here.calm = row.result["checksums"]
        return self.made[kind]

    async def _sqlite(self) -> Installation:
        return await installed(self.new("sqlite"), "", self.faults)

    async def _postgresql(self) -> Installation:
        server = self._request.getfixturevalue("postgres_server")
        admin = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text("CREATE DATABASE matrix"))
        admin.dispose()
        return await installed(self.new("postgresql"), f"{server}/matrix", self.faults)

    async def _s3(self) -> Installation:
        """Objects behind a gate; only processes that are started from now on, and this one, go through it."""
        gate = s3.Gate(self._request.getfixturevalue("s3_server"))
        await gate.open()
        for name, value in s3.variables(gate.address).items():
            self._patch.setenv(name, value)
        await asyncio.to_thread(lambda: httpx2.put(f"{gate.address}/matrix").raise_for_status())
        here = await installed(self.new("s3"), "", self.faults, objects="s3://matrix/here")
        here.gate = gate
        return here

    def new(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def places(tmp_path_factory, request) -> AsyncIterator[Places]:
    """Where jobs are disturbed; every process that is started from here knows the toy and stands still when told."""
    with pytest.MonkeyPatch.context() as patch:
        made = Places(tmp_path_factory.mktemp("matrix"), request, patch)
        patch.syspath_prepend(str(TOYS))
        patch.setenv("PYTHONPATH", os.pathsep.join([path for path in sys.path if "site-packages" not in path]))
        patch.setenv(faults.VARIABLE, str(made.faults))
        patch.setattr(supervisor, "_STEADY_S", 0.0)  # deaths here are not a dispatcher's own fault
        method.methods.cache_clear()
        yield made
        for each in made.made.values():
            await each.supervisor.stop()
            await each.stores.db.close()
            if each.gate is not None:
                await each.gate.close()
        method.methods.cache_clear()


@pytest.fixture(autouse=True)
def toy() -> None:
    """In the place of the other tests' fixture: the module has installed it."""


async def disturb(here: Installation, who: str, how: str, pid: int) -> None:
    """Do it; what comes back by itself is back when this returns."""
    if who == "database":
        async with here.stores.db.read() as tx:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            await tx.execute(sa.text(others + "AND pid <> pg_backend_pid()"))
        return
    victim = here.dispatcher.pid if who == "dispatcher" else pid if _is_worker(here, pid) else here.workers()[0].pid
    os.kill(victim, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    if how == "freeze" and who == "dispatcher":
        asyncio.get_running_loop().call_later(2.0, os.kill, victim, signal.SIGCONT)


async def fill_the_disk(here, pid, held, job_id):
    """No file of theirs may grow: to them, a full disk. (A real one takes a mount, which tests may not have.)

    There is room again once a shard has failed of it; of the dispatcher, whose own tries are not written down, after a
    while.
    """
    is_worker = _is_worker(here, pid)
    sick = here.workers() if is_worker else [here.dispatcher]
    before = [(each, resource.prlimit(each.pid, resource.RLIMIT_FSIZE)) for each in sick]
    for each, (_, hard) in before:
        resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (0, hard))
    held.unlink()
    try:
        if is_worker:
            await here.happened(job_id, "shard.retried")
        else:
            await asyncio.sleep(0.4)
    finally:
        for each, limits in before:
            if each.is_running():
                resource.prlimit(each.pid, resource.RLIMIT_FSIZE, limits)


def _is_worker(here: Installation, pid: int) -> bool:
    return pid in {each.pid for each in here.workers()}


async def assert_settled(tx: AsyncConnection, job: sa.Row) -> None:
    """What was reserved for the job was captured, once and never more, and the ledger balances."""
    assert 0 < job.captured_cents <= job.reserved_cents
    kinds = sa.select(ledger_transfers.c.kind).where(ledger_transfers.c.reference == job.id)
    assert sorted((await tx.execute(kinds)).scalars()) == ["capture", "reserve"]
    assert await ledger.verify(tx, ended=await charges.forgotten(tx)) == []


async def assert_as_if_nothing_happened(here: Installation, job_id: str) -> None:
    row = await queue.wait(here.stores.db, job_id, WAIT_S)
    assert (row.state, row.problem) == ("completed", None)
    assert row.result["checksums"] == here.calm
    assert row.pixels_done == row.bound["pixels"]
    async with here.stores.db.read() as tx:
        await assert_settled(tx, row)
        ends = sa.select(sa.func.count()).where(job_events.c.job_id == job_id, job_events.c.type == "job.completed")
        assert (await tx.execute(ends)).scalar() == 1
        documents = (await tx.execute(sa.select(items.c.document))).scalars().all()
    while await deletions.sweep(here.stores, now=utc_now() + timedelta(hours=1)):
        pass
    kept = {asset["href"] for document in documents for asset in document["assets"].values()}
    assert await files(here.stores.objects) == kept


async def files(objects: Objects) -> set[str]:
    """Keys of everything there is, of unfinished files of dead workers too."""
    root = objects.local_path("org_a")
    if root is None:
        return {key async for key, _ in objects.list("org_a")}
    return {f"org_a/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("who", "how", "moment"), GRID)
async def test_job_survives(places, who, how, moment):
    if who == "api":
        await _kill_the_api(places, moment)
        return
    here = await places.on({"database": "postgresql", "store": "s3"}.get(who, "sqlite"))
    (here.folder / f"{moment}.armed").touch()
    job_id = await here.create(shards=4)
    pid, held = await here.reached(moment)
    if here.gate is not None:
        shut = asyncio.create_task(here.gate.refuse(REFUSALS[how]))
        held.unlink()
        await asyncio.wait_for(shut, WAIT_S)
    elif who == "disk":
        await fill_the_disk(here, pid, held, job_id)
    else:
        await disturb(here, who, how, pid)
        held.unlink()
    await assert_as_if_nothing_happened(here, job_id)


async def _kill_the_api(places: Places, moment: str) -> None:
    """The process of `eorouter serve` dies, and with it, sooner or later, all that hangs on it; then it is started."""
    folder = places.new(f"api-{moment}")
    here = await installed(folder, "", places.faults)
    command = [sys.executable, "-m", "eorouter", "serve", "--port", "0"]
    with (folder / "log").open("wb") as log:

        def serve() -> subprocess.Popen[bytes]:
            variables = environment(here.settings)
            return subprocess.Popen(command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

        (here.folder / f"{moment}.armed").touch()
        api = serve()
        try:
            job_id = await here.create(shards=4)
            _, held = await here.reached(moment)
            api.kill()
            await asyncio.to_thread(api.wait)
            held.unlink()
            api = serve()
            here.calm = {"sums/sums": hashlib.sha256(b"".join(bytes([n]) * 1000 for n in range(4))).hexdigest()}
            await assert_as_if_nothing_happened(here, job_id)
        finally:
            api.terminate()
            await asyncio.to_thread(api.wait, 60)
            await here.stores.db.close()
