"""Rows about a service under load and after a crash; as those of `service`, they have no peer.

- `backlog-100k`: seconds per shard while 100,000 shards wait; ratio 1.2 / growth of the dispatcher's memory against a
  backlog of a thousand (its least: 2 / growth of a turn's time).
- `api-reads`: seconds per read of 16 callers while jobs run; no floor.
- `restart`: seconds from the start of the command, after every process was killed, to the next finished shard of the
  job that was interrupted; no floor.
"""

import asyncio
import contextlib
import itertools
import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import msgspec
import psutil

from benchmarks.harness import Measured
from benchmarks.service import GROWTH, Running, ServiceRow, result, running
from eorouter.client.resources import Job

BACKLOG, SHARDS_MAX, WATCHED_S = 100_000, 5_000, 20.0
CALLERS, READ_S = 16, 10.0
TURN_GROWTH = 2.0


def backlog_100k(folder: Path, _: int, __: int) -> Measured:
    """Shards that do nothing: a job of a thousand alone, then a hundred thousand that were queued meanwhile."""
    with running(folder, workers=2) as service:
        _warm(service)
        few = _watch(service, [_toy(service, 1_000)])
        service.client.call("organisations.pause")
        queued = [_toy(service, SHARDS_MAX) for _ in range(BACKLOG // SHARDS_MAX)]
        service.client.call("organisations.resume")
        many = _watch(service, queued)
        for job in queued:
            with contextlib.suppress(Exception):  # it may have ended
                job.cancel()
    memory, turn = many.rss_mb / few.rss_mb, many.turn_s / few.turn_s
    return result(
        "backlog-100k", [1 / many.rate], floor=1.0, median=GROWTH / memory, least=TURN_GROWTH / turn,
        peak_rss_mb=many.rss_mb,
        shown=f"with {BACKLOG:,} shards waiting the dispatcher takes {many.rss_mb:.0f} MB "
        f"(with 1,000: {few.rss_mb:.0f}), a turn {1000 * many.turn_s:.1f} ms ({1000 * few.turn_s:.1f}), "
        f"{many.rate:.0f} shards/s ({few.rate:.0f})",
    )  # fmt: skip


class _Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What a dispatcher did for a while: shards per second, seconds per turn, its memory at the end."""

    rate: float
    turn_s: float
    rss_mb: float


def _toy(service: Running, shards: int, **fields: object) -> Job:
    task = {"method": "toy", "shards": shards, "makes_item": False, **fields}
    return service.client.jobs.create(task, project_id=service.project_id)


def _warm(service: Running) -> None:
    _toy(service, 500).wait(timeout_s=300)


def _watch(service: Running, queued: list[Job]) -> _Watched:
    """Until a thousand shards are done, or the time is over."""
    before, began = _metrics(service), time.perf_counter()
    done = 0.0
    while done < sum(job.shards[1] for job in queued) and time.perf_counter() - began < WATCHED_S:
        time.sleep(0.1)
        after = _metrics(service)
        done = after["eorouter_dispatcher_completions_total"] - before["eorouter_dispatcher_completions_total"]
    seconds = time.perf_counter() - began
    after = _metrics(service)
    turns = after["eorouter_dispatcher_pass_seconds_count"] - before["eorouter_dispatcher_pass_seconds_count"]
    spent = after["eorouter_dispatcher_pass_seconds_sum"] - before["eorouter_dispatcher_pass_seconds_sum"]
    return _Watched(rate=done / seconds, turn_s=spent / turns, rss_mb=_dispatcher_mb(service))


def _dispatcher_mb(service: Running) -> float:
    every = psutil.Process(service.pid).children()
    return next(each.memory_info().rss / 1e6 for each in every if "eorouter.jobs" in each.cmdline())


def _metrics(service: Running) -> dict[str, float]:
    """What the dispatcher's page says; its address is in its heartbeat."""
    with contextlib.closing(sqlite3.connect(f"file:{service.data_dir}/eorouter.sqlite?mode=ro", uri=True)) as database:
        (detail,) = database.execute("SELECT detail FROM processes WHERE role = 'dispatcher'").fetchone()
    lines = httpx2.get(json.loads(detail)["metrics_url"], timeout=10).text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line}


def restart(folder: Path, _: int, pairs: int) -> Measured:
    """Every process killed at once in the middle of a job, then the same command again."""
    seconds = []
    for _ in range(pairs):
        with running(folder, workers=2) as service:
            job = _toy(service, 2_000, block_s=0.02)
            while job.refresh().shards[0] < 50:
                time.sleep(0.05)
            service.kill()
            done, began = _shards_done(service), time.perf_counter()
            with service.again():
                while _shards_done(service) == done:
                    time.sleep(0.01)
                seconds.append(time.perf_counter() - began)
    middle = statistics.median(seconds)
    return result(
        "restart", seconds, floor=0.0, median=0.0, least=0.0,
        shown=f"{middle:.1f} s from the command to the next finished shard, after all processes were killed",
    )  # fmt: skip


def _shards_done(service: Running) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{service.data_dir}/eorouter.sqlite?mode=ro", uri=True)) as database:
        return database.execute("SELECT max(shards_done) FROM jobs").fetchone()[0]


def api_reads(folder: Path, _: int, __: int) -> Measured:
    """Lists of jobs, projects and items and the balance, over and over on kept connections, while small jobs run."""
    with running(folder, workers=1) as service, _busy(service):
        seconds = asyncio.run(_read(service))
    p50, p99 = (1000 * part for part in _percentiles(seconds))
    return result(
        "api-reads", [READ_S / len(seconds)], floor=0.0, median=0.0, least=0.0,
        shown=f"{len(seconds) / READ_S:.0f} reads/s by {CALLERS} callers while jobs run: p50 {p50:.0f} ms, "
        f"p99 {p99:.0f} ms (one API process; callers and jobs share its cores)",
    )  # fmt: skip


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    parts = statistics.quantiles(seconds, n=100, method="inclusive")
    return parts[49], parts[98]


@contextlib.contextmanager
def _busy(service: Running) -> Iterator[None]:
    """Jobs one after the other, by a client of their own."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            _toy(service, 10).wait(timeout_s=60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def _read(service: Running) -> list[float]:
    paths = ["/v1/jobs?limit=20", "/v1/projects", "/v1/items?limit=20", "/v1/credits/balance"]
    end = time.perf_counter() + READ_S
    callers = [_call(service, itertools.islice(itertools.cycle(paths), n, None), end) for n in range(CALLERS)]
    return [each for some in await asyncio.gather(*callers) for each in some]


async def _call(service: Running, paths: Iterator[str], end: float) -> list[float]:
    """One caller: requests written by hand, since a full HTTP client would take more of the cores than the service."""
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    seconds = []
    while (began := time.perf_counter()) < end:
        head = f"GET {next(paths)} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {service.token}\r\n\r\n"
        writer.write(head.encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise RuntimeError(f"a read was refused: {answer[:200]!r}")
        await reader.readexactly(int(answer.partition(b"content-length:")[2].split(maxsplit=1)[0]))
        seconds.append(time.perf_counter() - began)
    writer.close()
    return seconds


ROWS = [
    ServiceRow(id="backlog-100k", floor=1.0, run=backlog_100k),
    ServiceRow(id="api-reads", floor=0.0, run=api_reads),
    ServiceRow(id="restart", floor=0.0, run=restart),
]
