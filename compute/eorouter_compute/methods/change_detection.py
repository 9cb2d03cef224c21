"""Change detection: what changed between dates, how surely, over what area; as rasters, polygons, a table, a picture.

Up to three rounds over the same shards, as many as the request needs:

    sample ──turn: transform, threshold──► survey ──turn: areas across shards──► finish ──merge──► one item

A sample is every n-th pixel of the grid, counted from its corner; a survey hands on the rims of the class map's pieces.
Each round reads the sources again: nothing of the size of the raster is kept between rounds.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import (
    alteration,
    change_picture,
    change_report,
    cog,
    mad,
    moments,
    observations,
    product,
    regions,
    thresholds,
    warp,
)
from eorouter_compute.alteration import IndexDifference, IrMad, Omnibus, Statistic, Verdict
from eorouter_compute.aoi import CRS84, Bbox, Coverage, onto, parse, refuse_empty
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.cog import CogSpec, Pixels, Segment
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Grid, Window, tiles
from eorouter_compute.method import (
    Band,
    Bound,
    InputItem,
    Kind,
    Method,
    OutputAsset,
    Params,
    Part,
    Plan,
    ReadReport,
    Result,
    Shard,
    total,
)  # fmt: skip
from eorouter_compute.observations import Day, Seen, Value
from eorouter_compute.quality import MaskChoice
from eorouter_compute.regions import AREA_UNIT_M2, Outlines, PieceRecord, Rule, Settled
from eorouter_compute.target_grid import GridChoice, choose
from eorouter_compute.thresholds import Significance, Threshold
from eorouter_compute.warp import Resampling

NAME = "change_detection"
ITEM_LIMIT = 200

_SECONDS_PER_VALUE = 6e-8
_CACHE_BYTES = 256 << 20
_INDEX = {"dNBR": "NBR", "RdNBR": "NBR", "RBR": "NBR", "dNDVI": "NDVI"}

Ids = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=ITEM_LIMIT)]


class ChangeDetectionParams(Params, frozen=True, kw_only=True, tag=NAME):
    """Find what changed between two dates, two groups of dates or along a series of SAR scenes.

    The answer is one item: a raster of the statistic, a raster of classes, polygons with area and confidence, a table
    of areas by class, and a picture of before, after and change.

    Attributes:
        statistic: how change is measured.
        value: what is compared: a band, several bands, an index or a formula; not with `index_difference`.
        before: ids of the earlier items; with `after` left out, too, two inputs are ordered by their dates.
        after: ids of the later items. The omnibus test takes all dates of both as one series.
        reduce: how a group of several dates becomes one picture, per pixel and band.
        threshold: where change begins; by default significance 0.01 for tests and two standard deviations elsewhere.
            Severity classes of `index_difference` need none and replace it unless one is given.
        direction: report increases of the value, decreases, or both; for `index_difference`, "increase" is a loss.
        minimum_pixels: smaller connected areas of change become unchanged.
        minimum_area_m2: the same, in square metres on the ground.
        connectivity: whether areas are connected along sides (4) or at corners, too (8).
        polygons: draw the areas, the largest 100,000 of them.
        sample_pixels: most pixels from which transforms and thresholds are found; all, if there are no more.
        masks: quality masks; a pixel must be clear in all of them. A preset's name, or a rule of your own.
        aoi: GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection, or [west, south, east, north].
        aoi_crs: what the coordinates of `aoi` are in.
        grid: the grid of the outputs; by default that of the finest input, widened to all that are aligned with it.
        resampling: how inputs on other grids are brought onto it.
        allow_missing: unreadable windows count as missing data and are listed in the read report, instead of failing.
    """

    statistic: Statistic
    value: Value | None = None
    before: Ids = ()
    after: Ids = ()
    reduce: Literal["median", "mean"] = "median"
    threshold: Threshold | None = None
    direction: Literal["both", "increase", "decrease"] = "both"
    minimum_pixels: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    minimum_area_m2: Annotated[float, Meta(ge=0, le=1e14)] = 0.0
    connectivity: Literal[4, 8] = 8
    polygons: bool = True
    sample_pixels: Annotated[int, Meta(ge=1_000, le=4_194_304)] = 1 << 20
    masks: Annotated[tuple[MaskChoice, ...], Meta(max_length=4)] = ()
    aoi: dict[str, Any] | Bbox | None = None
    aoi_crs: str = CRS84
    grid: GridChoice = msgspec.field(default_factory=GridChoice)
    resampling: Resampling = "bilinear"
    allow_missing: bool = False


class _Task(Struct, frozen=True, kw_only=True):
    """Everything about the job but its pixels. `moments` are groups of days: before and after, or every day alone."""

    names: tuple[str, ...]
    grid: Grid
    area: Any
    moments: tuple[tuple[Day, ...], ...]
    threshold: Threshold
    severity: alteration.Severity | None
    stages: tuple[str, ...]
    change: CogSpec
    classes: CogSpec


class _Fit(Struct, frozen=True, array_like=True):
    """What the sample said."""

    projection: mad.Projection | None = None
    centre: float = 0.0
    limit: float = 0.0
    sampled: int = 0


class _Body(Struct, frozen=True, array_like=True):
    """Body of a shard, with the report of what the rounds before read."""

    stage: str
    product: bytes
    bound: Bound
    report: ReadReport = ReadReport()
    fit: _Fit = _Fit()
    settled: tuple[Settled, ...] = ()
    left_out: int = 0


class _Found(Struct, frozen=True, array_like=True):
    """Body of a part: the shard it is of, and by stage the lattice of a sample, records of pieces, or the end."""

    body: _Body
    lattice: Window | None = None
    pieces: tuple[PieceRecord, ...] = ()
    segments: tuple[Segment, Segment] | None = None
    counts: tuple[int, ...] = ()
    areas: tuple[int, ...] = ()


class _Drawn(Struct, frozen=True, array_like=True):
    """Object of a finished shard."""

    glimpses: list[change_picture.Glimpse]
    outlines: list[Outlines]


def plan(params: ChangeDetectionParams, inputs: Sequence[InputItem]) -> Plan:
    """Shards of the first round; later rounds work on the same windows."""
    task = _task(params, inputs)
    depth = sum(len(group) for group in task.moments) * len(task.names)
    read = sum(
        moments.bytes_read(task.moments, len(task.names), task.grid, placement)
        for placement in moments.placements(task.moments)
    )
    side = moments.side_of(task.moments, len(task.names))
    held = min(side * side, task.grid.window.pixels) * (depth * 8 + 32 * len(task.names) + 96) + warp.READ_BYTES
    held += min(_CACHE_BYTES, int(read * task.grid.window.pixels))
    shards = []
    for shard in product.plan_product(
        task.change,
        bytes_read_per_pixel=read,
        memory_bytes_per_pixel=4.0 * len(task.change.bands) + 48.0,
        seconds_per_pixel=1e-8 * read + depth * _SECONDS_PER_VALUE,
    ):
        window = msgspec.msgpack.decode(shard.body, type=product.ProductShard).window
        bound = msgspec.structs.replace(
            shard.bound,
            pixels=window.pixels * sum(len(group) for group in task.moments),
            bytes_written=shard.bound.bytes_written + 4 * window.pixels + (1 << 20),
            memory_bytes=shard.bound.memory_bytes + held + window.pixels * 2,
        )
        body = _Body(task.stages[0], shard.body, bound)
        shards.append(Shard(body=msgspec.msgpack.encode(body), bound=bound))
    every = total(shard.bound for shard in shards)
    sample = 4 * 4 * len(task.moments) * len(task.names) * min(params.sample_pixels, task.grid.window.pixels)
    areas = regions.memory_bound(task.grid, _rule(params, task))
    later = msgspec.structs.replace(every, memory_bytes=max(every.memory_bytes, sample + (64 << 20), areas))
    merges = [product.merge_bound(task.change), product.merge_bound(task.classes), Bound(memory_bytes=areas)]
    return Plan(
        shards=tuple(shards),
        merge_bound=total(merges),
        later=(later,) * (len(task.stages) - 1),
        notes=_notes(task, params),
    )


def run(params: ChangeDetectionParams, inputs: Sequence[InputItem], shard: bytes, attempt: Attempt) -> Part:
    """One shard of one round."""
    task = _task(params, inputs)
    body = msgspec.msgpack.decode(shard, type=_Body)
    seen = Seen(allow_missing=params.allow_missing)
    work = _Work(params, task, body, attempt, seen)
    found = {"sample": work.sample, "survey": work.survey, "finish": work.finish}[body.stage]()
    report = body.report + seen.report()
    return Part(body=msgspec.msgpack.encode(found), objects=dict(attempt.refs), report=report)


def turn(
    params: ChangeDetectionParams, inputs: Sequence[InputItem], number: int, parts: Sequence[Part], attempt: Attempt
) -> Sequence[Shard]:
    """The next round's shards: with the transform and threshold after a sample, with settled areas after a survey."""
    task = _task(params, inputs)
    found = [msgspec.msgpack.decode(part.body, type=_Found) for part in parts]
    stage = task.stages[number]
    if found[0].body.stage == "sample":
        fit = _fit(params, task, found, parts)
        attempt.advance(0)
        return [_next(each.body, stage, fit=fit, report=part.report) for each, part in zip(found, parts, strict=True)]
    pieces = [piece for each in found for piece in each.pieces]
    settled, rest = regions.settle(task.grid, pieces, _rule(params, task))
    ends = np.cumsum([len(each.pieces) for each in found])
    return [
        _next(each.body, stage, report=part.report, settled=tuple(settled[end - len(each.pieces) : end]), left_out=rest)
        for each, part, end in zip(found, parts, ends, strict=True)
    ]


def merge(
    params: ChangeDetectionParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt
) -> Result:
    """One item of everything."""
    task = _task(params, inputs)
    found = [msgspec.msgpack.decode(part.body, type=_Found) for part in parts]
    drawn = [msgspec.msgpack.decode(read_object(part.objects["drawn"].href), type=_Drawn) for part in parts]
    names, fit = _names(params, task), found[0].body.fit
    segments = [each.segments for each in found if each.segments is not None]
    assets: list[OutputAsset] = [
        product.assemble(spec, [each[at] for each in segments], attempt, path=f"{NAME}/{key}.tif", asset_key=key)
        for at, (key, spec) in enumerate((("change", task.change), ("classes", task.classes)))
    ]
    colors = change_report.colors(names, task.severity)
    rows = change_report.class_rows([each.counts for each in found], [each.areas for each in found], names, colors)
    assets.append(change_report.class_table(rows, attempt, NAME))
    outlines = [one for each in drawn for one in each.outlines]
    count = 0
    if outlines:
        found_assets, count = change_report.polygons(task.grid, outlines, names, attempt, NAME)
        assets.extend(found_assets)
    ref = attempt.write(
        f"{NAME}/picture.png",
        change_picture.draw(task.grid.shape, [one for each in drawn for one in each.glimpses], colors),
    )
    assets.append(
        OutputAsset(key="picture", object=ref, media_type="image/png", roles=("overview",),
                    filename=f"{NAME}_picture.png", title="Before, after, change")
    )  # fmt: skip
    is_signed = alteration.is_signed(params.statistic)
    ids = [[scene.item.id for day in group for scene in day.scenes] for group in task.moments]
    item = product.item(
        assets,
        attempt,
        name=NAME,
        at=max((day.at for group in task.moments for day in group), default=None),
        title=f"Change by {_tag(params)} of {', '.join(task.names)}"[:200],
        properties={"derived_from": [each for group in ids for each in group], "statistic": _tag(params)},
        style="change" if is_signed else "heat",
    )
    summary: dict[str, Any] = {
        "statistic": _tag(params),
        "moments": ids,
        "threshold": alteration.words(params.statistic, task.threshold, _verdict(params, task, fit)),
        "sampled_pixels": fit.sampled,
        "classes": rows,
        "polygons": count,
        "polygons_left_out": found[0].body.left_out,
    }
    if fit.projection is not None:
        summary["correlations"] = list(fit.projection.correlations)
        summary["iterations"] = fit.projection.rounds
    report = sum((part.report for part in parts), ReadReport())
    # What is broken is broken in every round.
    report = msgspec.structs.replace(report, failed=tuple(dict.fromkeys(report.failed)))
    return Result(items=(item,), summary=summary, report=report)


# A shard


class _Work:
    """One shard of one round: reads its pieces, in parts that fit the stack, and hands on what the round needs."""

    def __init__(self, params: ChangeDetectionParams, task: _Task, body: _Body, attempt: Attempt, seen: Seen) -> None:
        self.params, self.task, self.body, self.attempt, self.seen = params, task, body, attempt, seen
        self.shard = msgspec.msgpack.decode(body.product, type=product.ProductShard)
        self.rule = _rule(params, task)
        self.verdict = _verdict(params, task, body.fit)
        area = task.area
        self.coverage = None if area is None else Coverage(area, task.grid.transform, task.grid.shape, "center")

    def stacks(self, window: Window, step: int = 1) -> Iterator[tuple[Window, np.ndarray]]:
        """Values (moment, band, y, x) of every `step`-th pixel of a window, part by part; good for one turn.

        NaN outside the area of interest.
        """
        for part in tiles(window, moments.side_of(self.task.moments, len(self.task.names))):
            place, cut = change_picture.shown(part, step)
            shape = (len(self.task.moments), len(self.task.names), place.height, place.width)
            out = self.seen.reader.room("moments", shape, np.float32)
            inside = None if self.coverage is None else self.coverage.covered(part)[cut]
            if not place.pixels or (inside is not None and not inside.any()):
                out[...] = np.nan
            else:
                for at, group in enumerate(self.task.moments):
                    moments.reduced(group, part, self.params.reduce, self.seen, out[at], cut=cut)
                if inside is not None:
                    out[:, :, ~inside] = np.nan
            self.attempt.advance(0)
            yield part, out

    def sample(self) -> _Found:
        """Every n-th pixel of the shard, as an object."""
        step = moments.step(self.task.grid, self.params.sample_pixels)
        lattice, _ = change_picture.shown(self.shard.window, step)
        out = np.empty((len(self.task.moments), len(self.task.names), lattice.height, lattice.width), np.float32)
        for part, stack in self.stacks(self.shard.window, step):
            rows, cols = change_picture.shown(part, step)[0].relative_to(lattice)
            out[:, :, rows, cols] = stack
            self.attempt.advance(part.pixels)
        with self.attempt.create("sample", is_passing=True) as target:
            target.write(out.data)
        return _Found(self.body, lattice=lattice)

    def measured(
        self, window: Window, glimpses: list[change_picture.Glimpse] | None = None, *, is_outlined: bool = True
    ) -> tuple[np.ndarray, ...]:
        """Bands (band, y, x), classes and confidence (y, x) of a piece; confidence is anything unless `is_outlined`."""
        shape = (window.height, window.width)
        bands = self.seen.reader.room("bands", (len(self.task.change.bands), *shape), np.float32)
        classes, confidence = np.empty(shape, np.uint8), self.seen.reader.room("confidence", shape, np.int64)
        step = change_picture.stride(self.task.grid.shape)
        statistic, fit = self.params.statistic, self.body.fit
        level = self.task.threshold.level if isinstance(self.task.threshold, Significance) else 0.01
        for part, stack in self.stacks(window):
            rows, cols = part.relative_to(window)
            flat = stack.reshape(*stack.shape[:2], -1)
            found = alteration.measure(statistic, flat, fit.projection, level)
            kind, sure = alteration.classified(statistic, found, self.verdict)
            bands[:, rows, cols] = found.reshape(-1, part.height, part.width)
            classes[rows, cols] = kind.reshape(part.height, part.width)
            if is_outlined:
                confidence[rows, cols] = alteration.in_units(sure).reshape(part.height, part.width)
            if glimpses is not None:
                place, cut = change_picture.shown(part, step)
                ends = stack[:, :3, cut[0], cut[1]][[0, -1]]
                glimpses.append(change_picture.Glimpse(place, ends.shape[1], ends.tobytes(), b""))
        return bands, classes, confidence

    def survey(self) -> _Found:
        """Areas of the class map, piece by piece."""
        pieces = []
        groups = self.verdict.groups
        for window in tiles(self.shard.window, self.shard.piece_side):
            _, classes, confidence = self.measured(window)
            piece = regions.looked_at(self.task.grid, window, classes, groups[classes], confidence, self.rule)
            pieces.append(regions.survey(piece, self.rule))
            self.attempt.advance(window.pixels)
        return _Found(self.body, pieces=tuple(pieces))

    def finish(self) -> _Found:
        """Both rasters of the shard, its outlines, sums by class and its share of the picture."""
        whole = self.shard.window
        kept = np.empty((whole.height, whole.width), np.uint8)
        glimpses: list[change_picture.Glimpse] = []
        outlines: list[Outlines] = []
        settled = iter(self.body.settled)
        unchanged = 0 if self.verdict.severity is None else self.verdict.severity.unchanged

        def compute(window: Window) -> Pixels:
            begin = len(glimpses)
            bands, classes, confidence = self.measured(window, glimpses, is_outlined=bool(self.body.settled))
            if self.body.settled:
                found, groups = next(settled), self.verdict.groups[classes]
                piece = regions.looked_at(self.task.grid, window, classes, groups, confidence, self.rule)
                regions.sieve(piece, found, classes, unchanged)
                if (traced := regions.outlines(piece, found, self.rule)) is not None:
                    outlines.append(traced)
            kept[window.relative_to(whole)] = classes
            step = change_picture.stride(self.task.grid.shape)
            for place in range(begin, len(glimpses)):
                at = glimpses[place].window
                rows = (at.row + np.arange(at.height)) * step - window.row
                cols = (at.col + np.arange(at.width)) * step - window.col
                shown = classes[np.ix_(rows, cols)].tobytes()
                glimpses[place] = msgspec.structs.replace(glimpses[place], classes=shown)
            return bands, None

        change = self._encoded(self.task.change, "change", compute)
        classes = self._encoded(
            self.task.classes, "classes", lambda window: (kept[window.relative_to(whole)][np.newaxis].copy(), None)
        )
        areas = regions.row_areas(self.task.grid, whole)
        rows = [(kept == number).sum(axis=1) for number in range(self.rule.kinds)]
        self.attempt.write("drawn", msgspec.msgpack.encode(_Drawn(glimpses, outlines)))
        body = msgspec.structs.replace(self.body, settled=())
        return _Found(
            body,
            segments=(change, classes),
            counts=tuple(int(row.sum()) for row in rows),
            areas=tuple(int((row * areas).sum()) for row in rows),
        )

    def _encoded(self, spec: CogSpec, name: str, compute: Any) -> Segment:
        with self.attempt.create(name, is_passing=True) as target:
            return cog.encode(
                spec, self.shard.window, compute, target, href=self.attempt.prefix + name,
                piece_side=self.shard.piece_side, advance=self.attempt.advance,
            )  # fmt: skip


# Between the rounds


def _next(body: _Body, stage: str, **fields: Any) -> Shard:
    return Shard(body=msgspec.msgpack.encode(msgspec.structs.replace(body, stage=stage, **fields)), bound=body.bound)


def _fit(params: ChangeDetectionParams, task: _Task, found: Sequence[_Found], parts: Sequence[Part]) -> _Fit:
    """Transform and threshold, from the lattice put together."""
    step = moments.step(task.grid, params.sample_pixels)
    shape = (-(-task.grid.shape[0] // step), -(-task.grid.shape[1] // step))
    whole = np.empty((len(task.moments), len(task.names), *shape), np.float32)
    places = [
        (each.lattice, part.objects["sample"].href)
        for each, part in zip(found, parts, strict=True)
        if each.lattice is not None and each.lattice.pixels
    ]
    moments.put_together(places, whole.reshape(-1, *shape))
    stack = moments.complete(whole.reshape(*whole.shape[:2], -1))
    statistic, projection = params.statistic, None
    if alteration.is_fitted(statistic):
        values = stack.reshape(2 * len(task.names), -1)
        if isinstance(statistic, IrMad):
            projection = mad.irmad(values, tolerance=statistic.tolerance, rounds=statistic.rounds)
        else:
            of = getattr(statistic, "of", "difference")
            number = getattr(statistic, "component", 1)
            projection = mad.component(values, number=number, is_stacked=of == "stacked")
    if not thresholds.needs_sample(task.threshold):
        return _Fit(projection, *alteration.fixed(params.statistic, task.threshold), stack.shape[2])
    first = alteration.measure(statistic, stack, projection)[0]
    direction = "increase" if isinstance(task.threshold, thresholds.Sigmas) else params.direction
    if not alteration.is_signed(statistic):
        direction = "increase"
    centre, limit = thresholds.found(task.threshold, alteration.sampled_score(statistic, first, direction))
    return _Fit(projection, centre, limit, stack.shape[2])


def _verdict(params: ChangeDetectionParams, task: _Task, fit: _Fit) -> Verdict:
    if "sample" not in task.stages:
        fit = _Fit(None, *alteration.fixed(params.statistic, task.threshold))
    level = task.threshold.level if isinstance(task.threshold, Significance) else None
    return Verdict(
        names=_names(params, task), centre=fit.centre, limit=fit.limit, level=level if task.severity is None else None,
        severity=task.severity, direction=params.direction,
    )  # fmt: skip


# What the outputs are


def _tag(params: ChangeDetectionParams) -> str:
    if isinstance(params.statistic, IndexDifference):
        return params.statistic.index
    return str(type(params.statistic).__struct_config__.tag)


def _names(params: ChangeDetectionParams, task: _Task) -> tuple[str, ...]:
    return alteration.class_names(params.statistic, task.severity)


def _rule(params: ChangeDetectionParams, task: _Task) -> Rule:
    return Rule(
        connectivity=params.connectivity,
        kinds=len(_names(params, task)),
        least_pixels=params.minimum_pixels,
        least_area=round(params.minimum_area_m2 / AREA_UNIT_M2),
        is_drawn=params.polygons,
    )


def _value(params: ChangeDetectionParams) -> Value:
    statistic = params.statistic
    if isinstance(statistic, IndexDifference):
        if params.value is not None:
            raise InvalidParameter(f"{statistic.index} names its index itself; leave `value` out.", pointer="/value")
        return Value(index=_INDEX[statistic.index], letters=statistic.letters)
    if params.value is None:
        raise InvalidParameter(f"{_tag(params)} needs `value`: what is compared.", pointer="/value")
    alteration.refuse_bands(statistic, params.value.names)
    return params.value


def _task(params: ChangeDetectionParams, inputs: Sequence[InputItem]) -> _Task:
    value, statistic = _value(params), params.statistic
    before, after = (
        moments.dated(items, 400 * place)
        for place, items in enumerate(
            moments.groups(inputs, params.before, params.after, is_series=isinstance(statistic, Omnibus))
        )
    )
    area = None if params.aoi is None else parse(params.aoi, params.aoi_crs)
    rasters = observations.rasters_of(value, [*before, *after])
    grid = choose(params.grid, inputs, rasters, area=area, area_crs=params.aoi_crs)
    placed = None
    if area is not None:
        placed = onto(area, params.aoi_crs, grid.crs, grid.transform, grid.shape)
        mend = "Draw it larger, or ask for a finer `grid`."
        refuse_empty(placed, grid.transform, grid.shape, "center", of="the grid", mend=mend, pointer="/aoi")
    days = [
        observations.observe(value, params.masks, group, grid, resampling=params.resampling)
        for group in (before, after)
    ]
    dates = tuple(days)
    if isinstance(statistic, Omnibus):
        dates = tuple((day,) for day in sorted((*days[0], *days[1]), key=lambda day: day.at))
    severity = None
    if isinstance(statistic, IndexDifference) and params.threshold is None:
        severity = alteration.severity(statistic)
    threshold = params.threshold or alteration.default_threshold(statistic)
    alteration.refuse(statistic, threshold, params.direction)
    is_sampled = alteration.is_fitted(statistic) or (severity is None and thresholds.needs_sample(threshold))
    is_surveyed = params.polygons or params.minimum_pixels > 1 or params.minimum_area_m2 > 0
    names = alteration.band_names(statistic)
    change = CogSpec(
        shape=grid.shape, transform=grid.transform, crs=grid.crs, dtype="float32", nodata=float("nan"),
        bands=tuple(Band(name=n, index=at, dtype="float32", unit=unit) for at, (n, unit) in enumerate(names, 1)),
    )  # fmt: skip
    classes = CogSpec(
        shape=grid.shape, transform=grid.transform, crs=grid.crs, dtype="uint8", nodata=alteration.UNKNOWN,
        bands=(Band(name="class", index=1, dtype="uint8"),), predictor="none", overview_resampling="mode",
        tags={f"CLASS_{at}": name for at, name in enumerate(alteration.class_names(statistic, severity))},
    )  # fmt: skip
    stages = (*(("sample",) if is_sampled else ()), *(("survey",) if is_surveyed else ()), "finish")
    return _Task(
        names=value.names, grid=grid, area=placed, moments=dates, threshold=threshold, severity=severity,
        stages=stages, change=change, classes=classes,
    )  # fmt: skip


# Bounds and words


def _notes(task: _Task, params: ChangeDetectionParams) -> tuple[str, ...]:
    step = moments.step(task.grid, params.sample_pixels)
    if "sample" in task.stages and step > 1:
        return (f"Transforms and thresholds are found from every {step}th pixel of every {step}th row.",)
    return ()


METHOD = Method(
    id=NAME,
    title="Change detection",
    makes=Kind.RASTER,
    params=ChangeDetectionParams,
    plan=plan,
    run=run,
    turn=turn,
    merge=merge,
    item_limit=ITEM_LIMIT,
    examples=(
        {
            "method": NAME,
            "statistic": {"type": "index_difference", "index": "dNBR"},
            "masks": ["sentinel-2-scl"],
            "minimum_area_m2": 5000,
        },
        {
            "method": NAME,
            "statistic": {"type": "irmad"},
            "value": {"bands": ["blue", "green", "red", "nir", "swir16", "swir22"]},
            "before": ["scene-2016"],
            "after": ["scene-2017"],
            "threshold": {"by": "p_value", "level": 0.001},
        },
        {"method": NAME, "statistic": {"type": "omnibus", "looks": 4.4}, "value": {"bands": ["vv", "vh"]}},
    ),
)
