"""Time series: composites, trends, waves, seasons and anomalies of many dates, per pixel or per zone.

A shard is a window of the output; it reads that window of every date, in parts small enough that the stack of all dates
stays within `STACK_BYTES`, and reduces them in one go. Nothing is kept between dates but the stack, and nothing but the
result leaves the shard. With `zones`, shards are windows of canonical blocks and hand on accumulators instead.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import composites, observations, product, series, vector, warp, zone_curves, zones
from eorouter_compute.aoi import CRS84, Bbox, Coverage, onto, parse, refuse_empty
from eorouter_compute.attempt import Attempt
from eorouter_compute.calendars import Grouping, Period, periods
from eorouter_compute.cog import CogSpec, Pixels
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Grid, Window, tiles
from eorouter_compute.method import (
    Band,
    Bound,
    InputItem,
    Kind,
    Method,
    Params,
    Part,
    Plan,
    ReadReport,
    Result,
    total,
)
from eorouter_compute.observations import Day, SameDay, Seen, Value
from eorouter_compute.quality import MaskChoice
from eorouter_compute.series import Analysis, Composite, Fill, Smooth
from eorouter_compute.target_grid import GridChoice, aligned, choose
from eorouter_compute.warp import Resampling

NAME = "time_series"
ITEM_LIMIT = 500

STACK_BYTES = 64 << 20
"""Most bytes of the stack of all dates, unless a part of 64 × 64 pixels needs more."""

_CACHED_BYTES = 16 << 20
"""Bytes of a stack that stay in a processor's last cache; memory that is used again need not be cleared, either."""

_SIDE_MAX, _SIDE_MIN = 2048, 64
# Copies an analysis holds beside its stack: filled waves and flags, anomalies and scores.
_COPIES = 4.0
_CACHE_BYTES = 256 << 20
_SECONDS_PER_VALUE = 4e-8


class TimeSeriesParams(Params, frozen=True, kw_only=True, tag=NAME):
    """Follow a band or an index through many dates: composites, trend, waves, season, anomaly, per pixel or per zone.

    Dates are solar days of the place; scenes of one day are laid together. What a mask drops, what is nodata and what
    no scene shows is missing, and stays missing where a result has nothing to stand on.

    Attributes:
        value: what is followed.
        analysis: what is made of it; a median composite by default.
        masks: quality masks; a pixel must be clear in all of them. A preset's name, or a rule of your own.
        group: days that belong together. A composite gives one item per period that has a date; every other analysis
            works on the series of periods, each the median of its days.
        same_day: which scene of a day comes first, the others filling its gaps: by time ("first", "last") or by
            `eo:cloud_cover` ("clearest").
        fill: fill gaps of the series; not with composites.
        smooth: smooth the series, after filling; not with composites.
        zones: polygons (GeoJSON, or a reference to an input item with a vector asset): the answer is a table of zone
            and period with a chart instead of rasters. A composite is made of every pixel first and is then measured
            over the zone, band by band; an analysis other than "composite" and "series" is made of each zone's curve.
        zone_id: field that names the zones.
        zones_crs: CRS of inline zones; GeoJSON's WGS 84 by default.
        aoi: GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection, or [west, south, east, north]; pixels whose
            centre lies outside are missing.
        aoi_crs: what the coordinates of `aoi` are in.
        grid: the grid of the outputs; by default that of the finest input, widened to all that are aligned with it.
        resampling: how inputs on other grids are brought onto it; quality bands always by the nearest pixel.
        allow_missing: unreadable windows count as missing data and are listed in the read report, instead of failing.
    """

    value: Value
    analysis: Analysis = msgspec.field(default_factory=Composite)
    masks: Annotated[tuple[MaskChoice, ...], Meta(max_length=4)] = ()
    group: Grouping = msgspec.field(default_factory=Grouping)
    same_day: SameDay = "first"
    fill: Fill | None = None
    smooth: Smooth | None = None
    zones: dict[str, Any] | None = None
    zone_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    zones_crs: str | None = None
    aoi: dict[str, Any] | Bbox | None = None
    aoi_crs: str = CRS84
    grid: GridChoice = msgspec.field(default_factory=GridChoice)
    resampling: Resampling = "bilinear"
    allow_missing: bool = False


class _Task(Struct, frozen=True, kw_only=True):
    """Everything about the job but its pixels; the same wherever it is worked out."""

    analysis: Analysis
    names: tuple[str, ...]
    grid: Grid
    area: Any
    days: tuple[Day, ...]
    periods: tuple[Period, ...]
    targets: tuple["_Target", ...]
    zones: zone_curves.Work | None


class _Target(Struct, frozen=True, kw_only=True):
    """One output raster, of these periods."""

    name: str
    periods: tuple[Period, ...]
    spec: CogSpec


class _Body(Struct, frozen=True, array_like=True):
    """Body of a shard or a part: which output, and what the product module made of it."""

    target: int
    product: bytes


def plan(params: TimeSeriesParams, inputs: Sequence[InputItem]) -> Plan:
    """Shards of every output, output by output."""
    task = _task(params, inputs)
    if task.zones is not None:
        whole = _Target(name="", periods=task.periods, spec=task.targets[0].spec)
        held = min(_CACHE_BYTES, int(_source_bytes(task, whole)))
        found, after = zone_curves.plan(task.zones, _bytes_read(task, whole), held)
        return Plan(shards=found, merge_bound=after, notes=_notes(task))
    shards, merges = [], []
    for number, target in enumerate(task.targets):
        days = sum(len(period.members) for period in target.periods)
        read = _bytes_read(task, target)
        held = _held_bytes(task, target, _side(task, target)) + min(_CACHE_BYTES, int(_source_bytes(task, target)))
        for shard in product.plan_product(
            target.spec,
            bytes_read_per_pixel=read,
            memory_bytes_per_pixel=8.0 * len(target.spec.bands),
            seconds_per_pixel=1e-8 * read + days * len(task.names) * _SECONDS_PER_VALUE,
        ):
            bound = msgspec.structs.replace(
                shard.bound, pixels=shard.bound.pixels * days, memory_bytes=shard.bound.memory_bytes + held
            )
            body = msgspec.msgpack.encode(_Body(number, shard.body))
            shards.append(msgspec.structs.replace(shard, body=body, bound=bound))
        merges.append(product.merge_bound(target.spec))
    return Plan(shards=tuple(shards), merge_bound=total(merges) if merges else Bound(), notes=_notes(task))


def run(params: TimeSeriesParams, inputs: Sequence[InputItem], shard: bytes, attempt: Attempt) -> Part:
    """One shard of one output."""
    task = _task(params, inputs)
    seen = Seen(allow_missing=params.allow_missing)
    if task.zones is not None:
        return zone_curves.measure(task.zones, shard, attempt, seen)
    body = msgspec.msgpack.decode(shard, type=_Body)
    target = task.targets[body.target]
    coverage = None if task.area is None else Coverage(task.area, task.grid.transform, task.grid.shape, "center")
    side = _side(task, target)

    def compute(window: Window) -> Pixels:
        out = np.empty((len(target.spec.bands), window.height, window.width), np.float32)
        for part in tiles(window, side):
            rows, cols = part.relative_to(window)
            inside = None if coverage is None else coverage.covered(part)
            if inside is not None and not inside.any():
                out[:, rows, cols] = np.nan
                continue
            out[:, rows, cols] = _bands(params, task, target, part, seen)
            if inside is not None:
                out[:, rows, cols][:, ~inside] = np.nan
            attempt.advance(0)
        return out, None

    part = product.run_product(target.spec, body.product, attempt, compute, seen.report)
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(_Body(body.target, part.body)))


def merge(params: TimeSeriesParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """One item per output."""
    task = _task(params, inputs)
    report = sum((part.report for part in parts), ReadReport())
    if task.zones is not None:
        items, summary = zone_curves.table(
            task.zones, parts, attempt, analysis=task.analysis, fill=params.fill, smooth=params.smooth
        )
        return Result(items=items, summary=summary, report=report)
    bodies = [msgspec.msgpack.decode(part.body, type=_Body) for part in parts]
    kind = str(type(task.analysis).__struct_config__.tag)
    items = []
    for number, target in enumerate(task.targets):
        own = [
            msgspec.structs.replace(part, body=body.product)
            for part, body in zip(parts, bodies, strict=True)
            if body.target == number
        ]
        first, last = target.periods[0], target.periods[-1]
        is_one_day = kind == "composite" and params.group.by == "day"
        items.append(
            product.merge_product(
                target.spec,
                own,
                attempt,
                name=target.name,
                at=task.days[first.members[0]].at if is_one_day else (first.middle if kind == "composite" else None),
                title=f"{kind.capitalize()} of {', '.join(task.names)}, {first.name}"
                + (f" to {last.name}" if len(target.periods) > 1 else ""),
                properties=_properties(task, target, kind),
                style="index",
            )
        )
    summary = {
        "items": len(items),
        "analysis": kind,
        "bands": [band.name for band in task.targets[0].spec.bands][:64],
        "days": len(task.days),
        "periods": [{"name": p.name, "dates": len(p.members)} for p in task.periods],
        "valid_fraction": report.valid_pixels / report.pixels if report.pixels else None,
    }
    return Result(items=tuple(items), summary=summary, report=report)


def _properties(task: _Task, target: _Target, kind: str) -> dict[str, Any]:
    members = sorted({member for period in target.periods for member in period.members})
    days = [task.days[member] for member in members]
    return {
        "derived_from": [scene.item.id for day in days for scene in day.scenes],
        "start_datetime": f"{target.periods[0].start.isoformat()}T00:00:00Z",
        "end_datetime": f"{target.periods[-1].stop.isoformat()}T00:00:00Z",
        "analysis": kind,
        "dates": [day.day.isoformat() for day in days],
    }


# What the outputs are


def _task(params: TimeSeriesParams, inputs: Sequence[InputItem]) -> _Task:
    """Worked out once per process and job: hundreds of items on their grid take longer than a small shard."""
    return _worked_out(msgspec.msgpack.encode(params), msgspec.msgpack.encode(tuple(inputs)))


@lru_cache(maxsize=4)
def _worked_out(task: bytes, items: bytes) -> _Task:
    params = msgspec.msgpack.decode(task, type=TimeSeriesParams)
    inputs = msgspec.msgpack.decode(items, type=tuple[InputItem, ...])
    if not any(item.rasters for item in inputs):
        raise InvalidParameter("time_series needs at least one item with a date.", pointer="/inputs")
    analysis = series.checked(params.analysis, params.value.names, params.smooth)
    for name in ("fill", "smooth"):
        if isinstance(analysis, Composite) and getattr(params, name) is not None and params.zones is None:
            raise InvalidParameter(
                f'`{name}` changes a series; a composite has none. Use "analysis": {{"type": "series"}}.',
                pointer=f"/{name}",
            )
    seen = [item for item in inputs if item.rasters]  # a layer of zones may be an item of its own
    area = None if params.aoi is None else parse(params.aoi, params.aoi_crs)
    rasters = observations.rasters_of(params.value, seen)
    grid = choose(params.grid, inputs, rasters, area=area, area_crs=params.aoi_crs)
    placed = None
    if area is not None:
        placed = onto(area, params.aoi_crs, grid.crs, grid.transform, grid.shape)
        mend = "Draw it larger, or ask for a finer `grid`."
        refuse_empty(placed, grid.transform, grid.shape, "center", of="the grid", mend=mend, pointer="/aoi")
    days = observations.observe(
        params.value, params.masks, seen, grid, resampling=params.resampling, same_day=params.same_day,
        reach=_reach(analysis, params.masks),
    )  # fmt: skip
    found = periods([day.day for day in days], params.group)
    made = _Task(
        analysis=analysis,
        names=params.value.names,
        grid=grid,
        area=placed,
        days=days,
        periods=found,
        targets=_targets(analysis, params.value.names, grid, found),
        zones=None,
    )
    return msgspec.structs.replace(made, zones=_zones(params, inputs, made))


def _reach(analysis: Analysis, masks: Sequence[MaskChoice]) -> int:
    best = analysis.best if isinstance(analysis, Composite) else None
    if best is None or best.by != "clearest":
        return 0
    if not masks:
        raise InvalidParameter(
            'The "clearest" date lies farthest from what `masks` drop, and there are none; "least_cloud" needs none.',
            pointer="/analysis/best/by",
        )
    return best.reach_px


def _zones(params: TimeSeriesParams, inputs: Sequence[InputItem], task: _Task) -> zone_curves.Work | None:
    if params.zones is None:
        return None
    layer = zones.layer_of(params.zones, inputs)
    if layer is not None and params.zone_id is not None:
        vector.refuse_unknown([params.zone_id], layer.fields, layer.key, "/zone_id")
    composite = task.analysis if isinstance(task.analysis, Composite) else None
    return zone_curves.Work(
        name=_label(task.names),
        values=task.names,
        composite=None if composite == composites.MEDIAN else composite,
        days=task.days,
        periods=task.periods,
        grid=task.grid,
        area=task.area,
        zones=params.zones,
        layer=layer,
        zone_id=params.zone_id,
        crs=params.zones_crs,
    )


def _label(names: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names)).strip(".-")[:60] or "value"


def _targets(analysis: Analysis, names: Sequence[str], grid: Grid, found: Sequence[Period]) -> tuple[_Target, ...]:
    label = _label(names)
    kind = str(type(analysis).__struct_config__.tag)
    groups = [(period,) for period in found if period.members] if isinstance(analysis, Composite) else [tuple(found)]
    if not isinstance(analysis, Composite) and len(found) < 2:
        raise InvalidParameter(f"`{kind}` needs two periods at least; there is {len(found)}.", pointer="/group")
    out = []
    for group in groups:
        rows = series.bands(analysis, names, group)
        if len(rows) > 1024:
            raise InvalidParameter(
                f"The {kind} would have {len(rows)} bands; at most 1,024 are read. Group the dates.", pointer="/group"
            )
        spec = CogSpec(
            shape=grid.shape,
            transform=grid.transform,
            crs=grid.crs,
            dtype="float32",
            nodata=float("nan"),
            bands=tuple(
                Band(name=name, index=place, dtype="float32", unit=unit) for place, (name, unit) in enumerate(rows, 1)
            ),
        )
        suffix = f"_{group[0].name}" if isinstance(analysis, Composite) else ""
        out.append(_Target(name=f"{label}_{kind}{suffix}", periods=group, spec=spec))
    return tuple(out)


# Pixels


def _bands(params: TimeSeriesParams, task: _Task, target: _Target, part: Window, seen: Seen) -> np.ndarray:
    """Bands (band, y, x) of an output in a part of the grid."""
    shape = (len(target.spec.bands), part.height, part.width)
    if isinstance(task.analysis, Composite):
        members = target.periods[0].members
        found = composites.pixels(task.analysis, task.days, members, part, seen, names=task.names)
        return found.reshape(shape)
    made = []
    for curve in observations.by_period(task.days, target.periods, part, seen):
        series.prepare(curve, series.moments_of(target.periods), params.fill, params.smooth)
        made.append(series.analyse(task.analysis, curve, target.periods))
    return (made[0] if len(made) == 1 else np.concatenate(made)).reshape(shape)


# Bounds and words


def _depth(task: _Task, target: _Target) -> int:
    """Values held per pixel."""
    most = max(len(period.members) for period in target.periods)
    if isinstance(task.analysis, Composite):
        return most * composites.depth(task.analysis, task.names)
    return len(task.names) * (len(target.periods) + max(1, most))


def _side(task: _Task, target: _Target) -> int:
    """Side of the parts in which all dates are held together.

    No larger than the processor's cache likes, unless blocks are: to unpack a block twice costs more than cold memory.
    """
    block = max((max(placement.asset.block_shape) for placement in _placements(task, target)), default=_SIDE_MIN)
    side = _SIDE_MAX
    while side > _SIDE_MIN:
        held = 4 * _depth(task, target) * side * side
        if held <= STACK_BYTES and (held <= _CACHED_BYTES or side < 2 * block):
            break
        side //= 2
    return side


def _held_bytes(task: _Task, target: _Target, side: int) -> int:
    pixels = min(side * side, task.grid.window.pixels)
    copies = 1.0 + 1.0 / len(task.names) if isinstance(task.analysis, Composite) else _COPIES
    reading = 24 * len(task.names) + 64
    return int(pixels * (4 * _depth(task, target) * copies + reading + 8 * len(target.spec.bands))) + warp.READ_BYTES


def _placements(task: _Task, target: _Target) -> list[warp.Placement]:
    """Every source of an output, as often as it is read."""
    return [
        placement
        for period in target.periods
        for member in period.members
        for scene in task.days[member].scenes
        for placement in (
            *(placement for placement, _ in scene.sources),
            *(placement for mask in scene.masks for placement, _ in mask.sources),
        )
    ]


def _source_bytes(task: _Task, target: _Target) -> float:
    return sum(placement.asset.window.pixels * _pixel_bytes(placement) for placement in _placements(task, target))


def _pixel_bytes(placement: warp.Placement) -> int:
    return sum(np.dtype(band.dtype).itemsize for band in placement.asset.bands)


def _bytes_read(task: _Task, target: _Target) -> float:
    """Bytes read per output pixel, at most: whole blocks of every date, again where parts share them."""
    side = _side(task, target)
    out = 0.0
    for placement in _placements(task, target):
        density = 1.0
        if aligned(placement.asset.grid, task.grid) is None:
            density = placement.asset.window.pixels / task.grid.window.pixels
        out += warp.overlap(placement, side) * density * _pixel_bytes(placement)
    return out


def _notes(task: _Task) -> tuple[str, ...]:
    empty = [period.name for period in task.periods if not period.members]
    merged = sum(len(day.scenes) > 1 for day in task.days)
    notes = []
    if empty:
        shown = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
        notes.append(f"{len(empty)} of {len(task.periods)} periods have no date and are missing: {shown}.")
    if merged:
        notes.append(f"Scenes of one solar day are laid together on {merged} days.")
    return tuple(notes)


METHOD = Method(
    id=NAME,
    title="Time series",
    makes=Kind.RASTER,
    params=TimeSeriesParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=ITEM_LIMIT,
    examples=(
        {
            "method": NAME,
            "value": {"index": "NDVI"},
            "masks": ["sentinel-2-scl"],
            "group": {"by": "month"},
            "analysis": {"type": "composite", "statistics": ["median", "count"]},
        },
        {
            "method": NAME,
            "value": {"bands": ["blue", "green", "red", "nir"]},
            "masks": [{"band": "qa_pixel", "bits": [{"first": 3}, {"first": 8, "count": 2, "values": [3]}]}],
            "group": {"by": "season"},
            "analysis": {"type": "composite", "geometric_median": True},
            "grid": {"crs": "EPSG:3035", "resolution": 30.0},
        },
        {
            "method": NAME,
            "value": {"expression": "(nir - red) / (nir + red)", "name": "ndvi"},
            "masks": [{"band": "scl", "keep_classes": [4, 5, 6], "dilate_px": 3}],
            "group": {"by": "dekad"},
            "smooth": {"by": "whittaker", "roughness": 10},
            "analysis": {"type": "phenology", "threshold": 0.5},
        },
        {"method": NAME, "value": {"band": "ndvi"}, "analysis": {"type": "trend", "model": "theil_sen"}},
    ),
)
