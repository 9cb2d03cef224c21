"""The story: a service is started, scenes go in, a clip, NDVI and field statistics come out, a report is written.

Everything after the start goes over HTTP through the Python client, as any user's program would. Whatever was started
is stopped at the end, also after an error or an interrupt.
"""

import csv
import math
import platform
import secrets
import signal
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from eorouter.client import ApiProblem, EoRouterClient, EoRouterError, Job, JobFailed
from eorouter.demo import pictures, report, world
from eorouter.demo.service import Service, ServiceFailed, running
from eorouter.demo.story import Day, OutputFile, Reading, Step, Story
from eorouter.demo.telling import Bars, Teller
from eorouter.demo.world import Scene, World

DEFAULT_OUT = Path("demo-output")
SIZE_PX = 768
_PATIENCE = "The first start on a machine compiles the kernels for its processor; that takes a minute, once."
_PACKAGES = ("eorouter", "numpy", "numba", "rasterio", "dask", "litestar", "sqlalchemy")


def main(
    *,
    data: Path | None = None,
    out: Path | None = None,
    opens: bool = False,
    keep_serving: bool = False,
    port: int | None = None,
    size_px: int = SIZE_PX,
) -> int:
    """Run the demonstration, or with `keep_serving` its world; returns the exit status.

    Args:
        data: folder with rasters and a polygon file, instead of the generated landscape.
        out: folder for the results; `demo-output` by default.
        opens: show the report in the browser at the end.
        keep_serving: leave the service running, and print its address and an API key.
        port: port to listen on; a free one by default.
        size_px: side of the generated landscape, in pixels of 10 m.
    """
    teller = Teller()
    try:
        with _interruptible(), tempfile.TemporaryDirectory(prefix="eorouter-demo-") as name:
            folder = Path(name)
            if keep_serving:
                serve_world(teller, folder, data=data, port=8000 if port is None else port, size_px=size_px)
            else:
                path = tell(teller, folder, out=out or DEFAULT_OUT, data=data, port=port or 0, size_px=size_px)
                if opens:
                    webbrowser.open(path.absolute().as_uri())
    except KeyboardInterrupt:
        teller.say("Stopped. Nothing is left running.")
        return 0 if keep_serving else 130
    except (EoRouterError, ServiceFailed, ValueError) as error:
        teller.console.print(f"\n[bold red]The demonstration failed.[/]\n{escape(str(error))}", soft_wrap=True)
        return 1
    return 0


@dataclass
class _Run:
    """What the chapters share and add to."""

    teller: Teller
    service: Service
    client: EoRouterClient
    project_id: str
    api_key: str
    out: Path
    steps: list[Step] = field(default_factory=list)
    outputs: list[OutputFile] = field(default_factory=list)


def tell(
    teller: Teller, folder: Path, *, out: Path, data: Path | None = None, port: int = 0, size_px: int = SIZE_PX
) -> Path:
    """Tell the whole story; returns the report.

    Raises:
        EoRouterError, ServiceFailed: it could not be told to its end.
        ValueError: there is nothing to show in `data`.
    """
    start, started_at = time.monotonic(), datetime.now(UTC)
    out.mkdir(parents=True, exist_ok=True)
    with _opened(teller, folder, out, data=data, port=port, size_px=size_px) as (run, scenery):
        items, fields_item = _take_in(run, scenery)
        dated = sorted(items, key=lambda pair: pair[0].at or datetime.max.replace(tzinfo=UTC))
        clip_path = _clip(run, dated, scenery)
        ndvi = _ndvi(run, dated)
        readings = _statistics(run, ndvi, fields_item, scenery)
        zones, days, view = pictures.collect(
            [(scene, item_id, path) for scene, item_id, path in ndvi], scenery, clip_path
        )
        story = Story(
            title=scenery.title, place=scenery.place, is_synthetic=scenery.is_synthetic, zones=zones,
            readings=readings, days=days, view=view, truth=scenery.curves, truth_on_days=scenery.truth, steps=run.steps,
            outputs=run.outputs, versions=_versions(), service_url=run.client.base_url, project_id=run.project_id,
            started_at=started_at, seconds=time.monotonic() - start, notes=scenery.notes,
        )  # fmt: skip
        _show(run, story)
        path = report.write(story, out / "report.html")
    teller.chapter("Done")
    teller.say(f"Everything is in {out.absolute()}")
    teller.say(f"The report: {path.absolute()}")
    return path


def serve_world(
    teller: Teller, folder: Path, *, data: Path | None = None, port: int = 8000, size_px: int = SIZE_PX
) -> None:
    """Take the world in and keep its service running until it is interrupted; prints its address and an API key."""
    with _opened(teller, folder, folder, data=data, port=port, size_px=size_px) as (run, scenery):
        _take_in(run, scenery)
        teller.chapter("Serving until Ctrl-C")
        teller.say(f"documents  {run.client.base_url}/docs")
        teller.say(f"project    {run.project_id}")
        teller.say("In another shell:")
        teller.console.print(
            f"export EOROUTER_URL={run.client.base_url} EOROUTER_API_KEY={run.api_key}", markup=False, soft_wrap=True
        )
        while True:
            time.sleep(1.0)
            run.service.check()


@contextmanager
def _opened(
    teller: Teller, folder: Path, out: Path, *, data: Path | None, port: int, size_px: int
) -> Iterator[tuple[_Run, World]]:
    """A running service with an account, a project and a key, and the world to put into it."""
    teller.chapter("Starting a service of its own")
    # The scenes are made while the service starts: both take some seconds, and there are two cores.
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(world.find, data) if data else pool.submit(world.generate, folder, size_px=size_px)
        with running(folder / "service", port=port, on_slow=lambda: teller.say(_PATIENCE)) as service:
            teller.say(f"It answers at {service.address}")
            scenery = making.result()
            teller.say(scenery.place)
            with EoRouterClient(service.address) as client:
                client.signup(
                    f"demo-{secrets.token_hex(4)}@example.org", secrets.token_urlsafe(18), name="Demonstration"
                )
                project = client.projects.create(scenery.title[:200], description=scenery.place[:2000])
                key = client.api_keys.create("Demonstration", project_id=project["project_id"])
                client.use_key(key["secret"])
                teller.say(f"Project {project['project_id']}, API key …{key['last4']}")
                yield _Run(teller, service, client, project["project_id"], key["secret"], out), scenery


def _take_in(run: _Run, scenery: World) -> tuple[list[tuple[Scene, str]], str | None]:
    """Upload everything; the scenes with their items, and the item of the fields."""
    run.teller.chapter(f"Taking in {len(scenery.scenes)} scenes" + (" and the fields" if scenery.fields else ""))
    with run.teller.bars() as bars, ThreadPoolExecutor(2) as pool:
        uploads = [pool.submit(_upload, run, bars, scene.path, _about(scene)) for scene in scenery.scenes]
        fields = pool.submit(_upload, run, bars, scenery.fields, {"title": "Fields"}) if scenery.fields else None
        try:
            items = [(scene, upload.result()) for scene, upload in zip(scenery.scenes, uploads, strict=True)]
            return items, fields.result() if fields else None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _about(scene: Scene) -> dict[str, Any]:
    about: dict[str, Any] = {"title": scene.title}
    if scene.at is not None:
        about["datetime"] = scene.at.isoformat()
    if scene.bands:
        about["bands"] = [{"name": name, "common_name": common} for name, common in scene.bands]
    return about


def _upload(run: _Run, bars: Bars, path: Path, about: Mapping[str, Any]) -> str:
    label = f"{path.name:<22}"
    size = path.stat().st_size

    def moved(sent: int, total: int) -> None:
        # The last part of the bar is the service's: reading the file, checking it, writing its item.
        bars.show(label, sent * 0.9, total, f"{sent / 1e6:.1f} of {total / 1e6:.1f} MB sent")

    try:
        done = run.client.uploads.upload(path, project_id=run.project_id, on_progress=moved, **about)
    except ApiProblem as problem:
        raise EoRouterError(f"{path.name} was refused: {problem}") from problem
    bars.show(label, size, size, f"{size / 1e6:.1f} MB → {done['item_id']}")
    return done["item_id"]


def _clip(run: _Run, items: Sequence[tuple[Scene, str]], scenery: World) -> Path | None:
    """Cut the clearest scene of the season's height to an area of interest."""
    dated = [pair for pair in items if pair[0].at is not None] or list(items)
    scene, item_id = min(
        dated,
        key=lambda pair: (pair[0].cloud_fraction or 0.0, -(pair[0].at or datetime.min.replace(tzinfo=UTC)).timestamp()),
    )
    area = area_of_interest(run.client.items.get(item_id)["bbox"])
    run.teller.chapter(f"Clipping {scene.title} to an area of interest")
    done = _follow(run, {"Clip": run.client.execute(item_id, method="clip", aoi=area, name="Clip")})
    if not done:
        return None
    return _download_raster(run, done["Clip"], "clip" + _stamp(scene), f"Clip of {scene.title}")


def area_of_interest(bbox: Sequence[float]) -> dict[str, Any]:
    """A rounded, uneven area in the middle of a bounding box, as GeoJSON; no rectangle could stand for it."""
    west, south, east, north = bbox
    x, y = (west + east) / 2, (south + north) / 2
    ring = []
    for step in range(72):
        angle = 2 * math.pi * step / 72
        reach = 0.4 * (1 + 0.08 * math.sin(3 * angle + 0.6) + 0.05 * math.cos(5 * angle))
        ring.append(
            [
                round(x + reach * (east - west) * math.cos(angle), 6),
                round(y + reach * (north - south) * math.sin(angle), 6),
            ]
        )
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def _ndvi(run: _Run, items: Sequence[tuple[Scene, str]]) -> list[tuple[Scene, str, Path]]:
    """NDVI of every scene that has a red and a near-infrared band."""
    run.teller.chapter(f"NDVI of {len(items)} scenes")
    jobs: dict[str, Job] = {}
    scenes: dict[str, Scene] = {}
    for scene, item_id in items:
        label = f"NDVI {_label(scene)}"
        try:
            jobs[label] = run.client.execute(item_id, method="spectral_index", indices=["NDVI"], name=label)
            scenes[label] = scene
        except ApiProblem as problem:
            if problem.code != "band_not_found":
                raise
            run.teller.say(f"{scene.path.name} is left out: {problem.message}")
    found = []
    for label, job in _follow(run, jobs).items():
        scene = scenes[label]
        found.append((scene, job.item_ids[0], _download_raster(run, job, "ndvi" + _stamp(scene), label)))
    return found


def _statistics(
    run: _Run, ndvi: Sequence[tuple[Scene, str, Path]], fields_item: str | None, scenery: World
) -> list[Reading]:
    """Statistics of NDVI in every field, for every scene."""
    if fields_item is None or not ndvi:
        what = "polygons" if fields_item is None else "rasters of NDVI"
        run.teller.say(f"There are no {what}, so there are no statistics of fields.")
        return []
    run.teller.chapter("Statistics of every field")
    include = [name for name in (scenery.crop_field,) if name]
    jobs = {
        f"Statistics {_label(scene)}": run.client.execute(
            item_id, fields_item, method="zonal_statistics", zones={"item_id": fields_item},
            zone_id=scenery.zone_field or None, include=include, name=f"Statistics {_label(scene)}",
            statistics=["count", "mean", "median", "stdev", "min", "max", "valid_fraction"],
        )
        for scene, item_id, _ in ndvi
    }  # fmt: skip
    readings: list[Reading] = []
    for (scene, _, _), (label, job) in zip(ndvi, _follow(run, jobs).items(), strict=True):
        name = "fields" + _stamp(scene)
        table = _download(run, job.item_ids[0], "csv", run.out / f"{name}.csv", label + ", CSV")
        _download(run, job.item_ids[0], "table", run.out / f"{name}.parquet", label + ", GeoParquet")
        readings.extend(_readings(table, pictures.time_of(scene)))
    return readings


def _readings(table: Path, at: datetime) -> Iterator[Reading]:
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Reading(
                zone_id=row["zone_id"], at=at, mean=_number(row["mean"]), median=_number(row["median"]),
                std=_number(row["stdev"]), valid_fraction=_number(row["valid_fraction"]) or 0.0,
            )  # fmt: skip


def _number(text: str) -> float | None:
    return float(text) if text else None


def _follow(run: _Run, jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Wait for jobs together, showing each; they come back completed, in the order given."""
    start = time.monotonic()
    waiting = dict(jobs)
    with run.teller.bars() as bars:
        while waiting:
            for label, job in list(waiting.items()):
                job.refresh()
                done, total = job.pixels
                if not job.is_over:
                    bars.show(
                        label,
                        min(done, total * 0.999),
                        total,
                        f"{job.state}, {done / 1e6:.1f} of {total / 1e6:.1f} Mpixel",
                    )
                    continue
                try:
                    job.wait()
                except JobFailed as failure:
                    raise EoRouterError(f"{label}: {failure}") from failure
                seconds = job.seconds if job.seconds is not None else time.monotonic() - start
                bars.show(label, 1, 1, f"{total / 1e6:.1f} Mpixel in {seconds:.2f} s")
                run.steps.append(
                    Step(
                        title=label,
                        method=job.method,
                        job_id=job.id,
                        seconds=seconds,
                        pixels=total,
                        shards=job.shards[1],
                    )
                )
                del waiting[label]
            run.service.check()
            time.sleep(0.1 if waiting else 0.0)
    return dict(jobs)


def _download_raster(run: _Run, job: Job, name: str, title: str) -> Path:
    """The COG of a job's item, and its quicklook if it has one."""
    item_id = job.item_ids[0]
    assets = run.client.items.get(item_id)["assets"]
    cog = next(key for key, asset in assets.items() if asset.get("type", "").startswith("image/tiff"))
    path = _download(run, item_id, cog, run.out / f"{name}.tif", title)
    for key, asset in assets.items():
        if asset.get("type") == "image/png":
            _download(run, item_id, key, run.out / f"{name}.png", title + ", quicklook")
    return path


def _download(run: _Run, item_id: str, asset: str, path: Path, title: str) -> Path:
    run.client.items.download(item_id, asset, to=path)
    sha256 = run.client.items.sha256(item_id, asset) or ""
    run.outputs.append(
        OutputFile(title=title, path=path, size_bytes=path.stat().st_size, sha256=sha256, item_id=item_id)
    )
    return path


def _show(run: _Run, story: Story) -> None:
    """The results as a table, and where the files are."""
    if story.readings:
        table = Table(
            title="Mean NDVI (no unit) per crop: measured" + (", difference to what was put in" if story.truth else "")
        )
        for name in ("crop", "fields", "area (ha)"):
            table.add_column(name, justify="left" if name == "crop" else "right")
        for day in story.days:
            table.add_column(f"{day.at:%d %b}\n{story.valid_fraction(day.at):.0%} seen", justify="right")
        for crop in story.crops:
            zones = [zone for zone in story.zones if zone.crop == crop]
            cells = [_cell(story, crop, day) for day in story.days]
            table.add_row(escape(crop), str(len(zones)), f"{sum(zone.area_ha for zone in zones):,.1f}", *cells)
        run.teller.show(table)
    run.teller.chapter("Files")
    for output in story.outputs:
        run.teller.say(f"{output.path}  {output.size_bytes / 1e6:.2f} MB  {output.title}")


def _cell(story: Story, crop: str, day: Day) -> str:
    mean = story.crop_mean(crop, day.at)
    if mean is None:
        return "[dim]not seen[/]"
    truth = story.truth_at(crop, day.at)
    return f"{mean:.3f}" + ("" if truth is None else f"\n[dim]{mean - truth:+.3f}[/]")


def _label(scene: Scene) -> str:
    return scene.path.stem if scene.at is None else f"{scene.at:%d %b %Y}"


def _stamp(scene: Scene) -> str:
    return f"_{scene.path.stem}" if scene.at is None else f"_{scene.at:%Y%m%d}"


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the story as Ctrl-C does: in order, with everything stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
