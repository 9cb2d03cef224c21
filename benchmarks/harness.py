"""Two processes that take turns, and what is said about them."""

import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from benchmarks.bounds import Read

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
NO_PEER = "–"

Answer = Mapping[str, np.ndarray]


class Failed(Exception):
    """A side could not do its work; the message says why."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work against one peer.

    Attributes:
        id: as in the design's table.
        peer: name of the other side and its settings.
        floor: least ratio peer / ours.
        pixels: `side -> pixels touched`.
        prepare: `(folder, side) -> inputs`, shared by both sides, not timed.
        ours, theirs: `(inputs, folder) -> what was made`, timed.
        look: `(what was made, inputs) -> arrays by name`, not timed.
        agree: `(our answer, their answer) -> None`, raises AssertionError.
        reads: `inputs -> rasters decoded`, for the bound.
        arrays: `(inputs, what we made) -> pixels in memory`, each copied once for the bound.
        method: of ours, which has to be installed.
        needs: modules of the peer.
        peer_environment: variables of the peer's process beside the common ones.
    """

    id: str
    peer: str
    floor: float
    pixels: Callable[[int], int]
    prepare: Callable[[Path, int], Any]
    ours: Callable[[Any, Path], Any]
    theirs: Callable[[Any, Path], Any]
    look: Callable[[Any, Any], Answer]
    agree: Callable[[Answer, Answer], None]
    reads: "Callable[[Any], Sequence[Read]]"
    method: str
    arrays: Callable[[Any, Any], Sequence[np.ndarray]] = lambda inputs, made: ()
    needs: tuple[str, ...] = ()
    peer_environment: dict[str, str] = {}

    @property
    def key(self) -> str:
        """Unique among rows."""
        return f"{self.id}|{self.peer}"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a row came to; the wire form of `--json`.

    `ratio_median` and `ratio_min` are peer / ours, pair by pair; a row without a peer defines its own, such that
    `floor` is the least that is wanted, and says in `shown` what was measured. A row that could not be run has no
    seconds, does not agree, and says why in `note`. CPU seconds tell more than the clock on a busy machine.
    """

    id: str
    peer: str
    agrees: bool
    ours_s: list[float]
    peer_s: list[float]
    ratio_median: float
    ratio_min: float
    mpixel_per_s: float
    peak_rss_mb: float
    peer_peak_rss_mb: float
    bound_s: float
    floor: float
    note: str = ""
    shown: str = ""
    ours_cpu_s: list[float] = []
    peer_cpu_s: list[float] = []

    @property
    def is_met(self) -> bool:
        """The answers agree, and the floor is reached."""
        return self.agrees and self.ratio_median >= self.floor


def not_run(row_id: str, peer: str, floor: float, why: str) -> Measured:
    """A row that says why there are no numbers."""
    return Measured(
        id=row_id, peer=peer, agrees=False, ours_s=[], peer_s=[], ratio_median=0.0, ratio_min=0.0, mpixel_per_s=0.0,
        peak_rss_mb=0.0, peer_peak_rss_mb=0.0, bound_s=0.0, floor=floor, note=why,
    )  # fmt: skip


class Side:
    """A process that stays up and runs one function of one row each time it is told to."""

    def __init__(self, row: Row, side: str, folder: Path, pixels_side: int) -> None:
        # One thread per library call: both sides get their two cores from the settings named in the row.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMEXPR_MAX_THREADS": "2"}
        if side == "theirs":
            environment |= row.peer_environment
        self._name = f"{side} of {row.key}"
        command = [sys.executable, "-m", "benchmarks.side", row.key, side, str(folder), str(pixels_side)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def run(self, verb: str) -> dict[str, Any]:
        """Run once; seconds and peak memory of that run.

        Raises:
            Failed: it raised, or the process is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(verb + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self._name} died with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self._name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate("quit\n", timeout=60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def measure(row: Row, folder: Path, side: int, pairs: int) -> Measured:
    """Compare the answers of both sides, warm them up, then time them in turn."""
    missing = [name for name in row.needs if importlib.util.find_spec(name) is None]
    if missing:
        return not_run(row.id, row.peer, row.floor, f"the peer is not installed: {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = Side(row, "ours", folder, side), Side(row, "theirs", folder, side)
    try:
        # Scenes are made on the peer's side, where GDAL has all its drivers.
        theirs.run("prepare")
        return _in_turn(row, ours, theirs, folder, side=side, pairs=pairs)
    except Failed as failure:
        return not_run(row.id, row.peer, row.floor, str(failure))
    finally:
        ours.close()
        theirs.close()


def _in_turn(row: Row, ours: Side, theirs: Side, folder: Path, *, side: int, pairs: int) -> Measured:
    verdict = _verdict(row, ours, theirs, folder)
    ours.run("run")
    theirs.run("run")
    runs = [(ours.run("run"), theirs.run("run")) for _ in range(pairs)]
    ours_s, peer_s = [a["seconds"] for a, _ in runs], [b["seconds"] for _, b in runs]
    bound = min(ours.run("bound")["seconds"] for _ in range(3))
    ratios = [b / a for a, b in zip(ours_s, peer_s, strict=True)]
    return Measured(
        id=row.id, peer=row.peer, agrees=not verdict, ours_s=ours_s, peer_s=peer_s,
        ratio_median=statistics.median(ratios), ratio_min=min(ratios),
        mpixel_per_s=row.pixels(side) / statistics.median(ours_s) / 1e6,
        peak_rss_mb=max(a["peak_mb"] for a, _ in runs), peer_peak_rss_mb=max(b["peak_mb"] for _, b in runs),
        bound_s=bound, floor=row.floor, note=verdict, ours_cpu_s=[a["cpu"] for a, _ in runs],
        peer_cpu_s=[b["cpu"] for _, b in runs],
    )  # fmt: skip


def _verdict(row: Row, ours: Side, theirs: Side, folder: Path) -> str:
    """Why the two answers differ; empty when they agree. Answers are arrays, and come through files."""
    answers = []
    for side, name in ((ours, "ours"), (theirs, "theirs")):
        path = folder / f"answer-{name}-{os.getpid()}.npz"
        side.run(f"answer {path}")
        with np.load(path) as arrays:
            answers.append(dict(arrays))
        path.unlink()
    try:
        row.agree(*answers)
    except AssertionError as difference:
        return "the answers differ: " + " ".join(str(difference).split())
    return ""


def peak_mb(pids: Sequence[int]) -> float:
    """Sum of the high-water marks of processes' memory since they were last reset, MiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    return total / 1024


def reset_peak(pids: Sequence[int]) -> None:
    """Begin the high-water marks anew."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
        return _machine(model or platform.processor())
    return _machine(platform.processor())


def _machine(model: str) -> dict[str, Any]:
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "system": platform.platform(),
        "taken": time.strftime("%Y-%m-%d", time.gmtime()),
    }
