"""Time and memory of our side against the size of the work: pixels, zones, dates, workers.

Each point is a job in a process of its own, warm, on one thread as a worker has it; memory is what the job adds to the
idle process, its merge included.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks import data
from benchmarks.report import Point

if TYPE_CHECKING:
    from eorouter_compute.method import InputItem

SIDE = 2048
"""One whole piece of a shard: below it memory would grow with the raster because there is less than a worker takes."""


def alone(x: float, task: dict[str, Any], inputs: "Sequence[InputItem]", folder: Path) -> Point:
    """Seconds and peak memory of a job in a fresh process."""
    from eorouter_compute import method
    from eorouter_compute.testing import measured

    params = msgspec.convert(task, method.get(task["method"]).params)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        took = measured(params, inputs, Path(place))
    return Point(x=x, seconds=took.seconds, peak_rss_mb=took.job_bytes / 2**20)


def idle_mb() -> float:
    """Memory of a warm process that does nothing yet: the libraries and the compiled kernels."""
    code = (
        "import eorouter_kernels; from eorouter_compute import method, raster; method.methods(); "
        "eorouter_kernels.warm_up(); raster.warm_up(); import psutil; print(psutil.Process().memory_info().rss)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(told.stdout) / 2**20


def pixels(folder: Path, *, steps: Sequence[int] = (1, 10, 100)) -> list[Point]:
    """NDVI, COG to COG."""
    from benchmarks.ours import item

    points = []
    for step in steps:
        side = round(SIDE * step**0.5)
        place = data.scene(folder, side, "ndvi", 4, bands=2, is_cog=True)
        task = {"method": "spectral_index", "indices": ["NDVI"], "bands": {"R": "red", "N": "nir"}}
        points.append(alone(side * side, task, [item(place, "red", "nir")], folder))
    return points


def zones(folder: Path, side: int) -> list[Point]:
    """Six statistics of 100 to 100,000 polygons on one raster."""
    from benchmarks.ours import item
    from benchmarks.rows.zones import STATISTICS
    from eorouter_compute import vector
    from eorouter_compute.method import InputItem

    place = data.scene(folder, side, "zonal", 1, is_cog=True)
    points = []
    for count in (100, 1_000, 10_000, 100_000):
        polygons = data.polygons(folder, side, "blobs", count)
        items = [item(place), InputItem(id="zones", assets=(vector.describe(polygons.as_uri()),))]
        task = {"method": "zonal_statistics", "zones": {"item_id": "zones"}, "statistics": STATISTICS}
        points.append(alone(count, task, items, folder))
    return points


def dates(folder: Path, side: int, *, counts: Sequence[int] = (3, 6, 12, 24)) -> list[Point]:
    """The composite of `median-12` with fewer and with more dates; `x` is their number."""
    from benchmarks.rows import series

    every = series.masked_dates(folder, side, dates=max(counts))
    return [alone(count, series.MEDIAN, series.items_of(every[:count]), folder) for count in counts]


def workers(folder: Path, side: int) -> list[Point]:
    """The job of `scale-2` on one worker and on two."""
    import statistics

    from benchmarks.service import workers_curve

    seconds = workers_curve(folder, side, 3, (1, 2))
    return [Point(x=count, seconds=statistics.median(taken)) for count, taken in seconds.items()]


def measure(folder: Path, side: int, say: Callable[[str], Any]) -> Iterator[tuple[str, list[Point]]]:
    """Every curve by name; one that cannot be drawn is said and left out."""
    every: dict[str, Callable[[], list[Point]]] = {
        "pixels": lambda: pixels(folder),
        "zones": lambda: zones(folder, side),
        "dates": lambda: dates(folder, side),
        "workers": lambda: workers(folder, side),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in every.items():
        say(f"time and memory against {name} …")
        try:
            points = draw()
        except Exception as error:  # noqa: BLE001 - said in red; the other curves must not be lost
            say(f"[red]not drawn: {type(error).__name__}: {error}")
            continue
        for point in points:
            say(f"  {point.x:,.0f}: {point.seconds:.2f} s, {point.peak_rss_mb:.0f} MB")
        yield name, points
