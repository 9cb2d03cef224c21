"""Rows about the service: how soon a job ends, how many shards pass the dispatcher, what a second worker brings.

They have no peer. Each gives seconds of its own, and a ratio of what was measured to what is wanted, so that a ratio
of at least `floor` is good, as in the other rows:

- `job-latency`: seconds from POST to completed; ratio 0.150 / p50 (its least: 0.150 / p99).
- `shards`: seconds per shard; ratio shards per second / 200.
- `scale-2`: seconds with two workers beside those with one (as `peer_s`); the ratio is the speed-up.
- `memory`: seconds of the job on 1, 10 and 100 times the pixels; ratio 1.2 / growth of peak memory.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import psutil

from benchmarks import curves, data
from benchmarks.harness import NO_PEER, Measured, not_run, peak_mb, reset_peak
from benchmarks.rows import series
from eorouter.client import EoRouterClient, Polling

ROOT = Path(__file__).resolve().parent.parent
LATENCY_S, SHARDS_PER_S, SPEED_UP, GROWTH = 0.150, 200.0, 1.85, 1.2
LATENCY_JOBS, SHARDS = 60, 1000


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A service with an account on it."""

    client: EoRouterClient
    project_id: str
    pid: int
    url: str
    token: str
    place: Path
    workers: int

    @property
    def data_dir(self) -> Path:
        """Where it keeps everything."""
        return self.place / "data"

    def kill(self) -> None:
        """End all its processes at once, without a word."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def again(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The same command over the same data, to be called after `kill`."""
        return _serving(self.place, self.workers)

    def peak_mb(self) -> float:
        """Of all its processes since `reset`."""
        return peak_mb(self._pids())

    def reset(self) -> None:
        """Begin the high-water marks anew."""
        reset_peak(self._pids())

    def _pids(self) -> list[int]:
        return [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]


@contextmanager
def running(folder: Path, *, workers: int) -> Iterator[Running]:
    """Run `eorouter serve` with so many workers, with the method that does nothing installed beside ours."""
    place = Path(tempfile.mkdtemp(prefix="service-", dir=folder))
    with _serving(place, workers) as process:
        url = _address(process, place / "log")
        with EoRouterClient(url, polling=Polling()) as client:
            session = client.signup("bench@example.org", "correct horse battery", name="Bench")
            yield Running(
                client=client, project_id=client.projects.create("bench")["project_id"], pid=process.pid, url=url,
                token=session["access_token"], place=place, workers=workers,
            )  # fmt: skip


@contextmanager
def _serving(place: Path, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EOROUTER_")}
    path = os.pathsep.join([str(ROOT / "tests" / "toys"), *(entry for entry in sys.path if entry)])
    command = [
        sys.executable, "-m", "eorouter", "serve", "--port", "0", "--data-dir", str(place / "data"),
        "--workers", str(workers),
    ]  # fmt: skip
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=kept | {"PYTHONPATH": path},
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        told = log.read_text(errors="replace")
        found = [line.split()[3] for line in told.splitlines() if line.startswith("eorouter listening on ")]
        if process.poll() is not None:
            raise RuntimeError(f"the service ended: {told[-2000:]}")
        if found:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{found[0]}/readyz", timeout=30).is_success:
                    return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"the service is not ready: {log.read_text(errors='replace')[-2000:]}")


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row without a peer. `run` is `(folder, side, pairs) -> Measured`."""

    id: str
    floor: float
    run: Callable[[Path, int, int], Measured]
    peer: str = NO_PEER


def measure(row: ServiceRow, folder: Path, side: int, pairs: int) -> Measured:
    """Run it; a service that does not start is told as the row's note."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return row.run(folder, side, pairs)
    except RuntimeError as error:
        return not_run(row.id, row.peer, row.floor, str(error))


def result(row: str, seconds: list[float], *, floor: float, median: float, least: float, **fields: Any) -> Measured:
    """What a row without a peer came to; seconds of its own, and ratios as it defines them."""
    given = {"peer_s": [], "mpixel_per_s": 0.0, "peak_rss_mb": 0.0, "peer_peak_rss_mb": 0.0, "bound_s": 0.0} | fields
    return Measured(
        id=row, peer=NO_PEER, agrees=True, ours_s=seconds, ratio_median=median, ratio_min=least, floor=floor, **given
    )


def job_latency(folder: Path, _: int, pairs: int) -> Measured:
    """NDVI of 256 × 256 pixels: one shard and its merge, published as an item; one caller, one job after the other."""
    place = data.scene(folder, 256, "tiny", 8, bands=2, is_cog=False)
    with running(folder, workers=2) as service:
        client = service.client
        bands = [{"name": "red", "common_name": "red"}, {"name": "nir", "common_name": "nir"}]
        item = client.uploads.upload(place, project_id=service.project_id, bands=bands)["item_id"]
        seconds = []
        for number in range(5 + (LATENCY_JOBS if pairs > 1 else 10)):
            started = time.perf_counter()
            job = client.execute(item, method="spectral_index", indices=["NDVI"]).wait(timeout_s=120)
            taken = time.perf_counter() - started
            assert job.shards == (1, 1), job.shards
            if number >= 5:
                seconds.append(taken)
    p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return result(
        "job-latency", seconds, floor=1.0, median=LATENCY_S / p50, least=LATENCY_S / p99,
        shown=f"p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms of {len(seconds)} jobs (wanted: p50 under 150 ms)",
    )  # fmt: skip


def shards(folder: Path, _: int, pairs: int) -> Measured:
    """Jobs of a thousand shards that each write one small object and do nothing else."""
    with running(folder, workers=2) as service:
        rates = []
        for number in range(1 + pairs):
            task = {"method": "toy", "shards": SHARDS, "makes_item": False}
            job = service.client.jobs.create(task, project_id=service.project_id).wait(timeout_s=300)
            assert job.seconds
            if number:
                rates.append(SHARDS / job.seconds)
    return result(
        "shards", [1 / rate for rate in rates], floor=1.0, median=statistics.median(rates) / SHARDS_PER_S,
        least=min(rates) / SHARDS_PER_S,
        shown=f"{statistics.median(rates):.0f} shards/s through the dispatcher (wanted: 200)",
    )  # fmt: skip


def scale_2(folder: Path, side: int, pairs: int) -> Measured:
    """The same job on services of one and of two workers, in turn."""
    seconds = workers_curve(folder, side, pairs, (1, 2))
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return result(
        "scale-2", seconds[2], floor=SPEED_UP, median=statistics.median(ratios), least=min(ratios), peer_s=seconds[1],
        shown=f"{statistics.median(ratios):.2f} times as fast with two workers as with one (wanted: 1.85)",
    )  # fmt: skip


def workers_curve(folder: Path, side: int, pairs: int, counts: tuple[int, ...]) -> dict[int, list[float]]:
    """Seconds of a CPU-bound job (the geometric median of six bands on twelve dates) by number of workers.

    Each time by a service of its own, warm and alone: one that only waits takes a twentieth of a core.
    """
    dates = series.six_band_dates(folder, series.side_of(side) // 2)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(pairs):
        for count in counts:
            with running(folder, workers=count) as service:
                items = [_six(service, paths["data"], at) for at, paths in dates]
                service.client.execute(*items, **series.GEOMEDIAN).wait(timeout_s=600)
                job = service.client.execute(*items, **series.GEOMEDIAN).wait(timeout_s=600)
            assert job.seconds
            seconds[count].append(job.seconds)
    return seconds


def _six(service: Running, path: Path, at: datetime) -> str:
    bands = [{"name": name, "common_name": name} for name in series.SIX]
    uploaded = service.client.uploads.upload(path, project_id=service.project_id, bands=bands, datetime=at.isoformat())
    return uploaded["item_id"]


def memory(folder: Path, _: int, pairs: int) -> Measured:
    """NDVI, COG to COG, by a worker of one thread, on 2,048² pixels and on ten and a hundred times as many."""
    points, idle = curves.pixels(folder, steps=(1, 10, 100)), curves.idle_mb()
    least, most = points[0].peak_rss_mb, points[-1].peak_rss_mb
    growth = (idle + most) / (idle + least)
    return result(
        "memory", [point.seconds for point in points], floor=1.0, median=GROWTH / growth, least=GROWTH / growth,
        peak_rss_mb=idle + most,
        shown=f"{growth:.2f} times the peak memory for 100 times the pixels (wanted: 1.2 at most); above the idle "
        f"process's {idle:.0f} MB the job takes {least:.0f} and {most:.0f} MB",
    )  # fmt: skip


ROWS = [
    ServiceRow(id="job-latency", floor=1.0, run=job_latency),
    ServiceRow(id="shards", floor=1.0, run=shards),
    ServiceRow(id="scale-2", floor=SPEED_UP, run=scale_2),
    ServiceRow(id="memory", floor=1.0, run=memory),
]
