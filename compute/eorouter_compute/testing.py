"""For tests and for a look at a method on one's own machine: rasters without symmetry, and a job without a cluster."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from eorouter_compute import method, raster
from eorouter_compute.attempt import Attempt
from eorouter_compute.grid import SHARD_PIXELS, Transform
from eorouter_compute.method import InputItem, Params, RasterAsset, Result

UTM_TRANSFORM: Transform = (10.0, 0.0, 399960.0, 0.0, -10.0, 4500000.0)
"""North-up 10 m grid of the Sentinel-2 tile 32TQM's kind."""

ROTATED_TRANSFORM: Transform = (7.5, 2.25, 412345.0, 1.5, -11.0, 4512345.0)
"""A grid turned and sheared, with different steps along x and y: an exchange of axes or a lost term shows."""


def asymmetric(
    shape: tuple[int, int], *, bands: int = 1, dtype: str = "uint16", seed: int = 0, noise: float = 0.02
) -> np.ndarray:
    """Pixels (band, y, x) that look different from every side: tilted waves plus some noise, over the type's range."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.empty((bands, height, width), dtype)
    for band in range(bands):
        u, v = 0.83 * x + 0.21 * y, -0.13 * x + 0.57 * y
        wave = (
            0.5
            + 0.2 * np.sin(u / (17 + band))
            + 0.15 * np.cos(v / (29 - band))
            + 0.1 * (x / width - 2 * y / height) / 2
        )
        wave = np.clip(wave + noise * rng.standard_normal(shape), 0.01, 0.99)
        if np.dtype(dtype).kind == "f":
            out[band] = wave * 2 - 0.5
        else:
            info = np.iinfo(dtype)
            top = min(info.max, 20000)
            low = max(info.min, -5000)
            out[band] = np.rint(low + wave * (top - low))
    return out


def write_raster(
    path: Path,
    pixels: np.ndarray,
    *,
    transform: Transform = UTM_TRANSFORM,
    crs: str = "EPSG:32632",
    nodata: float | None = None,
    mask: np.ndarray | None = None,
    names: Sequence[str] = (),
    **options: Any,
) -> RasterAsset:
    """Write pixels (band, y, x) with GDAL, tiled by default, and describe the file."""
    import rasterio
    from affine import Affine

    bands, height, width = pixels.shape
    profile: dict[str, Any] = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", **options}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=width,
            height=height,
            count=bands,
            dtype=pixels.dtype.name,
            crs=crs,
            transform=Affine(*transform),
            nodata=nodata,
            **profile,
        ) as target,
    ):
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
        if names:
            target.descriptions = tuple(names)
    return raster.describe(path.as_uri())


def input_item(*assets: RasterAsset, id: str = "scene", **fields: Any) -> InputItem:  # noqa: A002
    """An input item of these assets; keys are made unique."""
    keys = [asset.key for asset in assets]
    if len(set(keys)) < len(keys):
        assets = tuple(msgspec.structs.replace(a, key=f"{a.key}{n}" if n else a.key) for n, a in enumerate(assets))
    return InputItem(id=id, assets=assets, **fields)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a job took in a process of its own beside what its plan said it may take; memory above the idle process.

    shard_bytes, job_bytes: peak memory of the shards, and of all with the merge; pixels: by the read report;
    written_bytes: objects of the shards. Each has its bound beside it.
    """

    shard_bytes: int
    shard_bytes_bound: int
    job_bytes: int
    job_bytes_bound: int
    written_bytes: int
    written_bytes_bound: int
    pixels: int
    pixels_bound: int
    seconds: float
    seconds_bound: float


def measured(params: Params, inputs: Sequence[InputItem], folder: Path) -> Measured:
    """Run a job in a fresh, warm process and measure it; Linux only."""
    import subprocess
    import sys

    (folder / "task.json").write_bytes(msgspec.json.encode(params))
    (folder / "inputs.msgpack").write_bytes(msgspec.msgpack.encode(list(inputs)))
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "eorouter_compute.testing", str(folder)], capture_output=True, check=False, timeout=280
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return msgspec.json.decode(done.stdout, type=Measured)


def _measure(folder: Path) -> Measured:
    import time

    import eorouter_kernels

    task = msgspec.json.decode((folder / "task.json").read_bytes())
    found = method.get(task["method"])
    params = msgspec.convert(task, found.params, strict=False)
    inputs = msgspec.msgpack.decode((folder / "inputs.msgpack").read_bytes(), type=list[InputItem])
    eorouter_kernels.warm_up()
    raster.warm_up()
    status = Path("/proc/self/status")

    def peak() -> int:
        return int(status.read_text().partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    idle = peak()
    started = time.perf_counter()
    plan = method.plan(params, inputs)
    parts = _run_rounds(params, inputs, plan, folder)
    shard_bytes = peak() - idle
    result = found.merge(params, inputs, parts, Attempt((folder / "merge").as_uri()))
    return Measured(
        shard_bytes=shard_bytes,
        shard_bytes_bound=max(b.memory_bytes for b in (*(shard.bound for shard in plan.shards), *plan.later)),
        job_bytes=peak() - idle,
        job_bytes_bound=plan.bound.memory_bytes,
        written_bytes=sum(path.stat().st_size for path in folder.glob("shards-*/**/*") if path.is_file()),
        written_bytes_bound=sum(b.bytes_written for b in (*(shard.bound for shard in plan.shards), *plan.later)),
        pixels=result.report.pixels,
        pixels_bound=plan.bound.pixels,
        seconds=time.perf_counter() - started,
        seconds_bound=plan.bound.seconds,
    )


def run_local(
    params: Params,
    inputs: Sequence[InputItem],
    folder: Path | None = None,
    *,
    shard_pixels: int | None = None,
    threads: int = 1,
) -> Result:
    """Plan, run every round of shards and merge, as a cluster would: all that passes between steps passes as bytes.

    Args:
        params: of any installed method.
        inputs: the items it works on.
        folder: where objects are written; a fresh temporary folder by default.
        shard_pixels: output pixels per shard, for proving that results do not depend on it.
        threads: shards at a time.
    """
    folder = Path(tempfile.mkdtemp(prefix="eorouter-")) if folder is None else folder
    params = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=type(params))
    inputs = msgspec.msgpack.decode(msgspec.msgpack.encode(list(inputs)), type=list[InputItem])
    token = SHARD_PIXELS.set(shard_pixels or SHARD_PIXELS.get())
    try:
        plan = method.plan(params, inputs)
    finally:
        SHARD_PIXELS.reset(token)
    plan = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=method.Plan)
    parts = _run_rounds(params, inputs, plan, folder, threads)
    task = method.get(str(params.__struct_config__.tag))
    result = task.merge(params, inputs, parts, Attempt((folder / "merge").as_uri()))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(result), type=Result)


def _run_rounds(
    params: Params, inputs: Sequence[InputItem], plan: method.Plan, folder: Path, threads: int = 1
) -> list[method.Part]:
    """Parts of the last round."""
    task = method.get(str(params.__struct_config__.tag))
    shards: Sequence[method.Shard] = plan.shards
    parts: list[method.Part] = []
    for number in range(1 + len(plan.later)):

        def run(place: int, shards: Sequence[method.Shard] = shards, number: int = number) -> method.Part:
            attempt = Attempt((folder / f"shards-{number}" / str(place)).as_uri())
            part = task.run(params, inputs, shards[place].body, attempt)
            return msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=method.Part)

        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(run, range(len(shards))))
        if number < len(plan.later):
            if task.turn is None:
                raise TypeError(f"{task.id} plans later rounds and has no turn")
            shards = task.turn(params, inputs, number + 1, parts, Attempt((folder / f"turn-{number + 1}").as_uri()))
    return parts


if __name__ == "__main__":
    import sys

    sys.stdout.buffer.write(msgspec.json.encode(_measure(Path(sys.argv[1]))))
