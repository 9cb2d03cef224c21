"""The parts of an installation as processes: what each is given, what each may not know, and one job across all."""

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import msgspec
import psutil
import pytest
import s3
from cryptography import x509
from sqlalchemy import make_url

from eorouter.client import EoRouterClient
from eorouter.client.resources import Job
from eorouter.jobs import certificates, processes
from eorouter.settings import BadSetting, Settings
from eorouter_compute import faults, testing
from eorouter_compute.cluster import Cluster
from eorouter_compute.distant import DistantCluster

Process = subprocess.Popen[str]
Start = Callable[..., Process]

SECRET = "a secret that no worker may ever know"


def certified(folder: Path, address: str = "tls://scheduler.lan:8786") -> Settings:
    paths = {"tls_ca": "ca.crt", "tls_certificate": "tls.crt", "tls_key": "tls.key"}
    return Settings(data_dir=folder, scheduler_address=address, **{name: folder / file for name, file in paths.items()})


def until(check: Callable[[], object], timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not so after {timeout_s} s"
        time.sleep(0.1)


def tree(process: Process) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def workers(process: Process) -> list[psutil.Process]:
    """The Dask workers below a dispatcher or a worker's part."""
    return [each for each in tree(process) if "spawn_main" in " ".join(each.cmdline())]


def environment(process: psutil.Process) -> str:
    """What a process was started with, as anybody of its user can read it."""
    return Path(f"/proc/{process.pid}/environ").read_text()


class TestCertificates:
    def test_make_writes_an_authority_and_a_certificate_that_names_the_hosts(self, tmp_path):
        paths = certificates.make(tmp_path / "tls", ["scheduler.lan", "10.1.2.3"])
        assert [path.name for path in paths] == ["ca.crt", "tls.crt", "tls.key"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
        authority, certificate = (x509.load_pem_x509_certificate(path.read_bytes()) for path in paths[:2])
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["scheduler.lan", "localhost"]
        assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "127.0.0.1"]
        assert processes.security(certified(tmp_path / "tls")).require_encryption

    def test_make_overwrites_nothing(self, tmp_path):
        (tmp_path / "tls.key").write_text("mine")
        with pytest.raises(BadSetting, match=r"tls\.key exists already"):
            certificates.make(tmp_path, [])
        assert [path.name for path in tmp_path.iterdir()] == ["tls.key"]

    @pytest.mark.parametrize("host", ["", "a b", "tls://host", "host:8786", "ü.lan", "x" * 254])
    def test_make_refuses_what_is_no_host(self, tmp_path, host):
        with pytest.raises(BadSetting, match="neither a host's name nor an IP address"):
            certificates.make(tmp_path / "tls", [host])
        assert not (tmp_path / "tls").exists()

    def test_make_says_where_it_cannot_write(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(BadSetting, match="cannot be written to"):
            certificates.make(tmp_path / "file" / "tls", [])


class TestSecurity:
    def test_files_that_are_not_named_are_asked_for(self):
        with pytest.raises(BadSetting) as raised:
            processes.security(Settings(scheduler_address="tls://h:1", tls_ca=Path("/ca.crt")))
        text = str(raised.value)
        assert "EOROUTER_TLS_CERTIFICATE" in text
        assert "EOROUTER_TLS_KEY" in text
        assert "EOROUTER_TLS_CA" not in text
        assert "eorouter certificates" in text

    def test_files_that_cannot_be_used_are_named(self, tmp_path):
        certificates.make(tmp_path / "one", [])
        certificates.make(tmp_path / "two", [])
        mixed = msgspec.structs.replace(certified(tmp_path / "one"), tls_key=tmp_path / "two" / "tls.key")
        for settings in (mixed, certified(tmp_path / "absent")):
            with pytest.raises(BadSetting, match="EOROUTER_TLS_CA, EOROUTER_TLS_CERTIFICATE, EOROUTER_TLS_KEY cannot"):
                processes.security(settings)

    def test_loopback_may_be_plain(self):
        assert processes.security(Settings(scheduler_address="tcp://127.0.0.1:8786")) is None


def test_a_dispatcher_brings_workers_unless_a_scheduler_is_named(tmp_path):
    certificates.make(tmp_path, [])
    assert isinstance(processes.cluster_of(Settings(data_dir=tmp_path)), Cluster)
    assert isinstance(processes.cluster_of(certified(tmp_path)), DistantCluster)


@pytest.mark.parametrize(
    ("host", "listening"),
    [("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("localhost", "127.0.0.1"), ("scheduler.lan", "0.0.0.0")],
)
def test_a_scheduler_listens_on_its_address_or_for_a_name_on_all(host, listening):
    assert processes._listening(host) == listening


def test_a_scheduler_whose_port_is_taken_says_so(commands, tmp_path):
    with socket.socket() as taken, commands(tmp_path) as start:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert start("scheduler", "--scheduler-address", address).wait(120) == 2
    said = (tmp_path / "log").read_text()
    assert "eorouter: The scheduler cannot listen on 127.0.0.1" in said
    assert "Traceback" not in said


def test_a_worker_needs_a_scheduler_and_a_folder(tmp_path):
    with pytest.raises(BadSetting, match="A worker needs a scheduler"):
        processes.run_worker(Settings())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting, match="EOROUTER_DATA_DIR"):
        processes.run_worker(Settings(scheduler_address="tcp://127.0.0.1:1", data_dir=tmp_path / "file"))


def test_a_scheduler_forgets_what_it_must_not_know_and_says_so(commands, tmp_path):
    told = {"EOROUTER_SECRET": SECRET, "EOROUTER_DATABASE_URL": "postgresql://u:pw@db/e", "EOROUTER_LOG_LEVEL": "info"}
    told |= {"PGPASSWORD": "hunter2"}
    with commands(tmp_path, **told) as start:
        process = start("scheduler", "--scheduler-address", "tcp://127.0.0.1:0")
        assert process.stdout.readline().startswith("eorouter scheduler listening on tcp://127.0.0.1:")
        assert not [name for name in told if name != "EOROUTER_LOG_LEVEL" and name in environment(tree(process)[0])]
        process.terminate()
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "part.environment.withheld" in log
    assert "EOROUTER_SECRET" in log
    assert "EOROUTER_DATABASE_URL" in log
    assert "PGPASSWORD" in log
    assert SECRET not in log


def test_a_worker_shows_its_metrics_where_it_is_told(commands, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    with commands(tmp_path) as start:
        scheduler = start("scheduler", "--scheduler-address", "tcp://127.0.0.1:0")
        address = scheduler.stdout.readline().split()[-1]
        start("worker", "--scheduler-address", address, EOROUTER_METRICS_ADDRESS=place)

        def page() -> str:
            try:
                return httpx2.get(f"http://{place}/metrics", timeout=10).text
            except httpx2.TransportError:
                return ""

        until(lambda: "eorouter_worker_shards" in page())
        assert httpx2.get(f"http://{place}/health", timeout=10).text == "ok"


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
def test_workers_of_a_dispatcher_alone_know_what_they_need_and_nothing_else(commands, tmp_path, empty_database_url):
    url = make_url(empty_database_url)
    told = {"EOROUTER_SECRET": SECRET, "EOROUTER_DATA_DIR": str(tmp_path / "data"), "EOROUTER_METRICS_TOKEN": "t" * 20}
    told |= {"EOROUTER_DATABASE_URL": f"postgresql:///{url.database}", "EOROUTER_WORKER_ENVIRONMENT": "MODEL_FOLDER"}
    told |= {"PGHOST": url.host or url.query["host"], "PGUSER": url.username, "PGPASSWORD": url.password or SECRET}
    told |= {"PGPORT": str(url.port or 5432), "PGAPPNAME": "known", "PLANET_API_KEY": SECRET}
    needed = {"AWS_ACCESS_KEY_ID": "of-the-store", "GDAL_HTTP_TIMEOUT": "9", "MODEL_FOLDER": "/models"}
    with commands(tmp_path, **told, **needed) as start:
        assert start("migrate").wait(120) == 0
        process = start("dispatcher", "--workers", "1")
        until(lambda: workers(process))
        for each in workers(process):
            known = dict(line.split("=", 1) for line in environment(each).split("\0") if line)
            assert known.items() >= needed.items()
            assert not [name for name in known if name in told or name.startswith(("PG", "EOROUTER_"))]
            assert not [name for name, value in known.items() if SECRET in value]
        process.terminate()
        assert process.wait(120) == 0


class Installation:
    """A scheduler, two workers, two dispatchers and two APIs over PostgreSQL and S3, all given the same environment."""

    def __init__(self, start: Start, held: Path) -> None:
        assert start("migrate").wait(120) == 0
        self.scheduler = start("scheduler")
        self.workers = [start("worker", log=f"worker {n}", **{faults.VARIABLE: str(held)}) for n in range(2)]
        self.dispatchers = [start("dispatcher", log=f"dispatcher {n}") for n in range(2)]
        self.apis = [start("api", "--port", "0", log=f"api {n}") for n in range(2)]
        self.urls = [api.stdout.readline().split()[-1] for api in self.apis]
        for url in self.urls:
            until(lambda url=url: ready(url))


def ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=30).is_success
    except httpx2.TransportError:
        return False


@pytest.fixture
def installation(commands, tmp_path: Path, empty_database_url: str) -> Iterator[Installation]:
    held = tmp_path / "held"
    held.mkdir()
    certificates.make(tmp_path / "tls", [])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {
        "SECRET": SECRET, "DATABASE_URL": empty_database_url, "OBJECTS_URL": "s3://eorouter/here", "BCRYPT_COST": 4,
        "SCHEDULER_ADDRESS": f"tls://127.0.0.1:{port}", "TLS_CA": "tls/ca.crt", "TLS_CERTIFICATE": "tls/tls.crt",
        "TLS_KEY": "tls/tls.key", "WORKER_MEMORY_MB": 1024, "DATA_DIR": "data",
    }  # fmt: skip
    settings = {f"EOROUTER_{name}": str(each) for name, each in told.items()}
    with s3.server() as store, commands(tmp_path, **s3.variables(store), **settings) as start:
        httpx2.put(f"{store}/eorouter").raise_for_status()
        yield Installation(start, held)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
def test_an_installation_of_many_processes_does_a_job_and_outlives_a_worker(installation, tmp_path, empty_database_url):
    scene = tmp_path / "scene.tif"
    testing.write_raster(scene, testing.asymmetric((1500, 1400)))
    with EoRouterClient(installation.urls[0]) as client, EoRouterClient(installation.urls[1]) as other:
        client.signup("ada@example.org", "correct horse battery", name="Ada")
        project = client.projects.create("fields")["project_id"]
        item = client.uploads.upload(scene, project_id=project)["item_id"]

        def cog(caller: EoRouterClient) -> Job:
            return caller.jobs.create({"method": "cog", "compression": "zstd"}, inputs=[item], project_id=project)

        def checksum(job: Job) -> str | None:
            (made,) = job.item_ids
            return client.items.sha256(made, "data")

        calm = cog(client).wait(timeout_s=240)
        assert calm.state == "completed"

        other.login("ada@example.org", "correct horse battery")
        assert other.jobs.get(calm.id).state == "completed"

        (tmp_path / "held" / "write.armed").touch()
        shaken = cog(other)
        until(lambda: [path for path in (tmp_path / "held").iterdir() if path.suffix != ".armed"])
        (held,) = (tmp_path / "held").iterdir()
        os.kill(int(held.suffix[1:]), signal.SIGKILL)
        assert shaken.wait(timeout_s=240).state == "completed"
        assert checksum(shaken) == checksum(calm)
        assert "shard.retried" in {event["type"] for event in shaken.events()}

    untrusted = [each for part in (installation.scheduler, *installation.workers) for each in tree(part)]
    assert len(untrusted) >= 5
    known = [environment(each) for each in untrusted]
    assert not [text for text in known if SECRET in text or empty_database_url in text]
    for part in (*installation.apis, *installation.dispatchers, *installation.workers, installation.scheduler):
        part.terminate()
        assert part.wait(120) == 0, part.args
