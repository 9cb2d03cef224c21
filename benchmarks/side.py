"""The process of one side: told `prepare`, `run`, `bound`, `answer FILE` or `quit`, it answers with a line of JSON."""

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import THREADS, Row, peak_mb, reset_peak
from benchmarks.rows import ROWS


class Worker:
    """Does a row's work, and keeps what the answer was made of: the bound encodes the same tiles once more."""

    def __init__(self, row: Row, side: str, folder: Path, pixels_side: int) -> None:
        self._row = row
        self._do = row.ours if side == "ours" else row.theirs
        self._folder = folder
        self._inputs = row.prepare(folder, pixels_side)
        self._kept: Any = None
        self._kept_in: Path | None = None
        if side == "ours":
            self._require()

    def _require(self) -> None:
        from eorouter_compute import method

        method.get(self._row.method)

    def prepare(self) -> dict[str, float]:
        """Nothing more: the inputs are there."""
        return {}

    def run(self) -> dict[str, float]:
        """Seconds and peak memory of one call, its children's included."""
        place = Path(tempfile.mkdtemp(dir=self._folder))
        reset_peak(_family())
        cpu, start = _cpu_seconds(), time.perf_counter()
        self._do(self._inputs, place)
        seconds = time.perf_counter() - start
        told = {"seconds": seconds, "cpu": _cpu_seconds() - cpu, "peak_mb": peak_mb(_family())}
        shutil.rmtree(place)
        return told

    def answer(self, path: str) -> dict[str, float]:
        """Work once, and leave the answer in a file."""
        self._kept_in = Path(tempfile.mkdtemp(dir=self._folder))
        self._kept = self._do(self._inputs, self._kept_in)
        np.savez(path, **self._row.look(self._kept, self._inputs))
        return {}

    def bound(self) -> dict[str, float]:
        """Seconds of decoding, touching and encoding what this row does."""
        from benchmarks import bounds

        writes = [self._kept] if isinstance(self._kept, Path) and self._kept.suffix == ".tif" else []
        arrays = self._row.arrays(self._inputs, self._kept)
        return {"seconds": bounds.seconds(self._row.reads(self._inputs), writes, arrays, THREADS)}

    def close(self) -> None:
        """Remove what was kept."""
        if self._kept_in is not None:
            shutil.rmtree(self._kept_in)


def _cpu_seconds() -> float:
    """Of this process, and of its children as long as they live."""
    taken = 0.0
    for pid in _family():
        times = psutil.Process(pid).cpu_times()
        taken += times.user + times.system
    return taken


def _family() -> list[int]:
    """This process and its children."""
    return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


def main() -> None:
    """Serve until `quit` or the end of input."""
    key, side, folder, pixels_side = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    # What libraries print must not stand between the lines of JSON.
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        if verb == "quit":
            break
        try:
            if worker is None:
                worker = Worker(next(row for row in ROWS if row.key == key), side, folder, pixels_side)
            told = worker.answer(argument) if verb == "answer" else getattr(worker, verb)()
        except Exception as error:  # noqa: BLE001 - told to the harness, which says it with the row
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=say, flush=True)
    if worker is not None:
        worker.close()


if __name__ == "__main__":
    main()
