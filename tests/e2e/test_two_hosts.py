"""A job on two hosts, of which one is cut off in the middle.

The hosts are two network namespaces with a cable (a veth pair) between them: everything but one worker is on the first.
Pulling the cable says no goodbye: no connection is closed, packets are just not answered.
"""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec
import pytest

from benchmarks import data
from eorouter.client import EoRouterClient
from eorouter.client.resources import Job
from eorouter.jobs import certificates
from eorouter_compute import faults

SIDE = data.SIDES["tile"]
HERE, THERE = "10.77.86.1", "10.77.86.2"
_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),  # rasterio's own
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts(msgspec.Struct, frozen=True):
    """The names of two namespaces that reach each other at `HERE` and `THERE`."""

    first: str
    second: str

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """This thread, and what it starts, is on a host for as long as the block lasts."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            with Path(f"/run/netns/{name}").open() as host:
                _enter(host.fileno())
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def pull(self) -> None:
        """Pull the cable out of the second host."""
        ip("-n", self.second, "link", "set", "eor1", "down")

    def plug(self) -> None:
        """Put it back."""
        ip("-n", self.second, "link", "set", "eor1", "up")


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts need network namespaces: run as root, with iproute2 installed")
    names = Hosts(f"eorouter-{os.getpid()}-a", f"eorouter-{os.getpid()}-b")
    try:
        ip("netns", "add", names.first)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"two hosts need network namespaces, which cannot be made here: {error.stderr.strip()}")
    try:
        ip("netns", "add", names.second)
        ip("-n", names.first, "link", "add", "eor0", "type", "veth", "peer", "name", "eor1", "netns", names.second)
        for host, cable, address in ((names.first, "eor0", HERE), (names.second, "eor1", THERE)):
            ip("-n", host, "address", "add", f"{address}/24", "dev", cable)
            for each in ("lo", cable):
                ip("-n", host, "link", "set", each, "up")
        yield names
    finally:
        for host in (names.first, names.second):
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)


def until(check, timeout_s: float = 400) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not so after {timeout_s} s"
        time.sleep(0.1)


def workers(url: str) -> int:
    """How many workers the service says it has."""
    try:
        told = httpx2.get(f"{url}/readyz", timeout=30).text
    except httpx2.TransportError:
        return 0
    return next((count for count in (2, 1) if f" {count} worker(s)" in told), 0)


def test_a_host_that_is_cut_off_in_the_middle_changes_no_byte(hosts, commands, s3_servers, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    certificates.make(tmp_path / "tls", [HERE])
    scene = data.scene(tmp_path, SIDE, "scene", 1)
    told = {
        "SCHEDULER_ADDRESS": f"tls://{HERE}:8786", "TLS_CA": "tls/ca.crt", "TLS_CERTIFICATE": "tls/tls.crt",
        "TLS_KEY": "tls/tls.key", "WORKER_MEMORY_MB": 2048, "DATA_DIR": "data",
    }  # fmt: skip
    kept = {"EOROUTER_OBJECTS_URL": "s3://eorouter/here", "EOROUTER_BCRYPT_COST": "4"}
    parts = {f"EOROUTER_{name}": str(each) for name, each in told.items()}
    with hosts.on(hosts.first), s3_servers(HERE) as store, commands(tmp_path, **store, **parts) as start:
        httpx2.put(f"{store['AWS_ENDPOINT_URL']}/eorouter").raise_for_status()
        start("scheduler", log="scheduler")
        service = start("serve", "--host", HERE, "--port", "0", log="serve", **kept)
        start("worker", log="worker here")
        with hosts.on(hosts.second):
            start("worker", log="worker there", **{faults.VARIABLE: str(held)})
        assert service.stdout is not None
        url = service.stdout.readline().split()[-1]
        until(lambda: workers(url) == 2)
        with EoRouterClient(url) as client:
            client.signup("ada@example.org", "correct horse battery", name="Ada")
            project = client.projects.create("fields")["project_id"]
            item = client.uploads.upload(scene, project_id=project)["item_id"]

            def create() -> Job:
                task = {"method": "reproject", "grid": {"crs": "EPSG:3857"}, "resampling": "bilinear"}
                return client.jobs.create(task, inputs=[item], project_id=project)

            def checksum(job: Job) -> str | None:
                (made,) = job.item_ids
                return client.items.sha256(made, "data")

            calm = create().wait(timeout_s=400)

            (held / "write.armed").touch()  # the worker over there will stand still with a shard half written
            cut = create()
            until(lambda: [path for path in held.iterdir() if path.suffix != ".armed"])
            hosts.pull()
            pulled = time.monotonic()
            cut.wait(timeout_s=600)
            print(f"undisturbed {calm.seconds:.1f} s, cut off {cut.seconds:.1f} s")
            print(f"done {time.monotonic() - pulled:.1f} s after the cable was pulled")
            assert (calm.state, cut.state) == ("completed", "completed")
            assert checksum(cut) == checksum(calm)
            assert "shard.retried" in {event["type"] for event in cut.events()}
            assert workers(url) == 1

            hosts.plug()
            for path in held.iterdir():
                path.unlink()
            until(lambda: workers(url) == 2)
            print(f"both workers there again {time.monotonic() - pulled:.1f} s after it was pulled")
            assert checksum(create().wait(timeout_s=400)) == checksum(calm)
