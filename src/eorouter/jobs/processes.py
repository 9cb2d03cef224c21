"""The parts of an installation on several machines, made from its settings.

Which workers a dispatcher has, and the scheduler and the worker as processes. Those two run strangers' work: what they
must not know they do not read, and where more was given to them than workers get (`settings.for_workers`) and their own
settings, the process starts itself again without it: what a process was started with can be read as long as it lives.
"""

import asyncio
import ipaddress
import os
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog
from distributed import Security

from eorouter import logs
from eorouter.settings import (
    NOT_SETTINGS,
    PREFIX,
    WITHHELD,
    BadSetting,
    Settings,
    describe,
    for_workers,
    load,
    withdraw,
)
from eorouter_compute.cluster import Cluster, Link, OtherBuild
from eorouter_compute.distant import DistantCluster
from eorouter_compute.parts import BadPart, WorkerPart, serve_scheduler

LISTEN = "tls://0.0.0.0:8786"
"""Where a scheduler listens unless `EOROUTER_SCHEDULER_ADDRESS` says otherwise."""

_CONFINED = "_EOROUTER_CONFINED"
"""Set for a process that was started again with what it may know, so that this is done once."""

_SAME_S = 1.0

FAULTS: tuple[type[Exception], ...] = (BadPart, OtherBuild)
"""What may go wrong when a part starts, told in a sentence."""

log = structlog.get_logger(__name__)


def cluster_of(settings: Settings) -> Link:
    """The workers of a dispatcher: those of a distant scheduler where one is named, its own otherwise.

    Raises:
        BadSetting: the certificates cannot be used.
    """
    if settings.scheduler_address:
        return DistantCluster(
            settings.scheduler_address, security(settings), worker_memory_bytes=settings.worker_memory_mb << 20
        )
    return Cluster(
        worker_count=settings.worker_count or os.cpu_count() or 1,
        worker_threads=settings.worker_threads,
        worker_memory_bytes=settings.worker_memory_mb << 20,
        dashboard_port=settings.dashboard_port,
        scratch=settings.data_dir / "scratch",
        otlp_endpoint=settings.otlp_endpoint,
    )


def security(settings: Settings) -> Security | None:
    """Mutual TLS: each end shows a certificate of our authority. None for a plain address, which is on loopback.

    Raises:
        BadSetting: files are not named, cannot be read, or do not belong together.
    """
    if settings.scheduler_address.startswith("tcp://"):
        return None
    paths = {"tls_ca": settings.tls_ca, "tls_certificate": settings.tls_certificate, "tls_key": settings.tls_key}
    absent = [describe(name) for name, path in paths.items() if path == Path()]
    if absent:
        raise BadSetting("\n".join([*absent, "`eorouter certificates FOLDER` makes these files."]))
    authority, certificate, key = (str(path.absolute()) for path in paths.values())
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    except OSError as error:
        variables = ", ".join(PREFIX + name.upper() for name in paths)
        raise BadSetting(f"The files of {variables} cannot be used: {error.strerror or error}.") from error
    ends = {f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")}
    ends |= {f"tls_{role}_key": key for role in ("client", "scheduler", "worker")}
    return Security(require_encryption=True, tls_ca_file=authority, **ends)


def part_settings(**overrides: object) -> Settings:
    """Settings of a scheduler or worker, withdrawn from this process's environment; logs are set up.

    Raises:
        BadSetting: a value cannot be used, or the folder for scratch cannot be made.
    """
    withheld = {PREFIX + name.upper() for name in WITHHELD} | NOT_SETTINGS
    ours = {name: each for name, each in os.environ.items() if name.startswith(PREFIX) and name not in withheld}
    settings = load(ours, **overrides)
    settings = msgspec.structs.replace(settings, data_dir=settings.data_dir.absolute())
    logs.configure(settings)
    remaining = for_workers(os.environ, settings.worker_environment) | ours
    is_confined = os.environ.get(_CONFINED) is not None
    if not is_confined and (given := sorted(os.environ.keys() - remaining.keys())):
        log.info("part.environment.withheld", variables=given, why="EOROUTER_WORKER_ENVIRONMENT names what is needed")
        sys.stderr.flush()
        confined = remaining | {_CONFINED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], confined)  # noqa: S606 - our own command line
    withdraw(settings.worker_environment)
    return settings


def run_scheduler(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run a scheduler until told to stop; `announce` hears where it listens.

    Raises:
        BadSetting: the certificates cannot be used.
        BadPart: the port is taken, or the address is not one of this machine.
    """
    address = settings.scheduler_address or LISTEN
    parts = urlsplit(address)
    protected = security(msgspec.structs.replace(settings, scheduler_address=address))
    asyncio.run(
        _until_told(
            lambda stop: serve_scheduler(
                stop,
                host=_listening(parts.hostname or ""),
                port=parts.port or 0,
                security=protected,
                dashboard_port=settings.dashboard_port,
                announce=announce,
            )
        )
    )


def _listening(host: str) -> str:
    """An address as it is; of a name, which may stand for a balancer before us, every address of this machine."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "0.0.0.0"  # noqa: S104 - only those with a certificate of ours get past the first message


def run_worker(settings: Settings) -> None:
    """Run a worker until told to stop, then let it finish what it runs for up to `worker_drain_s`.

    Raises:
        BadSetting: no scheduler is named, or the certificates or the folder for scratch cannot be used.
    """
    if not settings.scheduler_address:
        raise BadSetting(f"A worker needs a scheduler. {describe('scheduler_address')}")
    scratch = settings.data_dir / "scratch"
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadSetting(
            f"The folder {scratch} for scratch cannot be made: {error.strerror}. Choose another {PREFIX}DATA_DIR."
        ) from error
    part = WorkerPart(
        settings.scheduler_address,
        security(settings),
        threads=settings.worker_threads,
        memory_bytes=settings.worker_memory_mb << 20,
        scratch=scratch,
        drain_s=settings.worker_drain_s,
        metrics_address=settings.metrics_address,
        otlp_endpoint=settings.otlp_endpoint,
    )
    asyncio.run(_until_told(part.serve))


async def _until_told(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Do `work`, whose event is set by SIGTERM or SIGINT; another one later ends it at once.

    One that comes with the first is the same: who stops a group of processes may tell each of them twice.
    """
    stop = asyncio.Event()
    working = asyncio.ensure_future(work(stop))
    loop = asyncio.get_running_loop()
    told_at = 0.0

    def told() -> None:
        nonlocal told_at
        if stop.is_set() and loop.time() - told_at > _SAME_S:
            working.cancel()
        elif not stop.is_set():
            told_at = loop.time()
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        await working
    except asyncio.CancelledError:
        log.warning("part.ended_at_once")
