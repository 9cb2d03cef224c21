"""Two processes that take turns, and what is said about them."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

THREADS = 2


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work against one peer.

    Attributes:
        id: as in the design's table.
        peer: name of the other side and its settings.
        floor: least ratio peer / ours.
        pixels: `side -> pixels touched`.
        prepare: `(folder, side) -> inputs`, shared by both sides, not timed.
        ours, theirs: `(inputs, folder) -> answer`, timed.
        agree: `(our answer, their answer) -> None`, raises AssertionError.
        bound: `(inputs, folder) -> None`, timed: decode, one pass, encode.
    """

    id: str
    peer: str
    floor: float
    pixels: Callable[[int], int]
    prepare: Callable[[Path, int], Any]
    ours: Callable[[Any, Path], Any]
    theirs: Callable[[Any, Path], Any]
    agree: Callable[[Any, Any], None]
    bound: Callable[[Any, Path], None]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a row came to; the wire form of `--json`."""

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


class Side:
    """A process that stays up and runs one function of one row each time it is told to."""

    def __init__(self, row: str, side: str, folder: Path, pixels_side: int) -> None:
        # One thread per library call: both sides get their two cores from the settings named in the row.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.side", row, side, str(folder), str(pixels_side)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, verb: str) -> dict[str, Any]:
        """Run once; seconds and peak memory of that run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(verb + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} died")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate("quit\n", timeout=60)


def measure(row: Row, folder: Path, side: int, pairs: int) -> Measured:
    """Warm both sides up, compare their answers, then time them in turn."""
    row.prepare(folder, side)
    ours, theirs = Side(row.id, "ours", folder, side), Side(f"{row.id}|{row.peer}", "theirs", folder, side)
    try:
        verdict = check(row, ours, theirs, folder)
        ours.run("run")
        theirs.run("run")
        ours_s, peer_s, ours_mb, peer_mb = [], [], [], []
        for _ in range(pairs):
            a, b = ours.run("run"), theirs.run("run")
            ours_s.append(a["seconds"])
            peer_s.append(b["seconds"])
            ours_mb.append(a["peak_mb"])
            peer_mb.append(b["peak_mb"])
        bound = min(ours.run("bound")["seconds"] for _ in range(3))
    finally:
        ours.close()
        theirs.close()
    ratios = [b / a for a, b in zip(ours_s, peer_s, strict=True)]
    return Measured(
        id=row.id, peer=row.peer, agrees=not verdict, ours_s=ours_s, peer_s=peer_s,
        ratio_median=statistics.median(ratios), ratio_min=min(ratios),
        mpixel_per_s=row.pixels(side) / statistics.median(ours_s) / 1e6,
        peak_rss_mb=max(ours_mb), peer_peak_rss_mb=max(peer_mb), bound_s=bound, floor=row.floor, note=verdict,
    )  # fmt: skip


def check(row: Row, ours: Side, theirs: Side, folder: Path) -> str:
    """Why the two answers differ; empty when they agree. Answers are arrays, and come through files."""
    answers = []
    for side, name in ((ours, "ours"), (theirs, "theirs")):
        path = folder / f"answer-{name}.npy"
        side.run(f"answer {path}")
        answers.append(np.load(path))
    try:
        row.agree(*answers)
    except AssertionError as difference:
        return f"the answers differ: {difference}"
    return ""


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "system": platform.platform(),
        "taken": time.strftime("%Y-%m-%d", time.gmtime()),
    }
