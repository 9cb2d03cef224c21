"""The process of one side: reads `run`, `bound`, `answer FILE` or `quit`, and says a line of JSON for each."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import ROWS


def peak_mb() -> float:
    """High-water mark of this process's memory since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def timed(function: Callable[[Any, Path], Any], inputs: Any, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one call."""
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    function(inputs, folder)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def main() -> None:
    """Serve until `quit` or the end of input."""
    name, side, folder, pixels_side = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    row = next(row for row in ROWS if name in {row.id, f"{row.id}|{row.peer}"})
    inputs = row.prepare(folder, pixels_side)
    verbs = {"run": row.ours if side == "ours" else row.theirs, "bound": row.bound}
    for line in sys.stdin:
        verb, _, path = line.strip().partition(" ")
        if verb == "quit":
            return
        if verb == "answer":
            np.save(path, verbs["run"](inputs, folder))
            print("{}", flush=True)
        else:
            print(json.dumps(timed(verbs[verb], inputs, folder)), flush=True)


if __name__ == "__main__":
    main()
