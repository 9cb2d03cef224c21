"""Curves of zones: the value of every period averaged over every polygon, weighted by the exact fraction of a pixel.

    days + zones ──plan──► windows of blocks ──measure──► accumulators (zone, block, curve) ──table──► files and chart

A curve is a band at every period, one band after the other: those of the value, each period the median of its days, or
those of a composite. Either is made of every pixel first and only then averaged, so whatever a raster can show of a
period a zone can be measured of: the mean of maxima is not the maximum of means.

As in zonal statistics, accumulators are those of canonical blocks and are folded in one order, so neither shards nor
workers change a bit of the answer. Every zone has a row for every band and period, measured or not.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import shapely
from msgspec import Struct
from numpy.typing import NDArray

from eorouter_compute import composites, curves, observations, polygons, series, tables, warp, zones
from eorouter_compute.aoi import Coverage
from eorouter_compute.attempt import Attempt, read_object
from eorouter_compute.calendars import Period
from eorouter_compute.errors import AoiOutside, InvalidGeometry, TooLarge
from eorouter_compute.grid import Grid, Window, tiles
from eorouter_compute.method import Bound, OutputAsset, OutputItem, Part, RasterAsset, Shard, VectorAsset
from eorouter_compute.observations import Day, Seen
from eorouter_compute.series import Analysis, Composite, Curve, Fill, Smooth
from eorouter_kernels import coverage, zonal

ROWS_MAX = 2_000_000
"""Most zones times bands times periods of one table."""

SHARD_BLOCKS = 4
"""Side of a shard in canonical blocks."""

STACK_BYTES = 48 << 20
"""Most bytes of the dates read together, and of the curves of a block, unless the least of either need more."""

_SIDE_MIN = 64
_BODY_BYTES_MAX = 256 << 10
COLUMNS = ("mean", "stdev", "min", "max", "count", "valid_fraction")


class Work(Struct, frozen=True, kw_only=True):
    """What is measured, on which grid, in which zones; `zone_id` and `crs` as the caller gave them.

    `values` are the names of the value's bands; `composite` is None where their series is measured. Pixels outside of
    `area`, if there is one, are missing.
    """

    name: str
    values: tuple[str, ...]
    composite: Composite | None
    days: tuple[Day, ...]
    periods: tuple[Period, ...]
    grid: Grid
    area: Any
    zones: dict[str, Any]
    layer: VectorAsset | None
    zone_id: str | None
    crs: str | None

    @property
    def bands(self) -> tuple[str, ...]:
        """One name per curve."""
        if self.composite is None:
            return self.values
        return tuple(name for name, _ in series.bands(self.composite, self.values, self.periods))

    @property
    def depth(self) -> int:
        """Values held per pixel while a period is made."""
        most = max(len(period.members) for period in self.periods)
        held = len(self.values) if self.composite is None else composites.depth(self.composite, self.values)
        return most * held + len(self.bands)


class _Partials(Struct, frozen=True, array_like=True):
    zone: bytes
    block: bytes
    state: bytes


def _asset(grid: Grid) -> RasterAsset:
    """The grid as `zones` takes it."""
    return RasterAsset(
        key="the grid", href="", crs=grid.crs, transform=grid.transform, shape=grid.shape, bands=(),
        block_shape=(coverage.BLOCK, coverage.BLOCK),
    )  # fmt: skip


def _place(work: Work) -> tuple[zones.Zones, coverage.Outlines]:
    source = work.zones if work.layer is None else work.layer
    return zones.place(source, _asset(work.grid), crs=work.crs, id_field=work.zone_id)


def plan(work: Work, bytes_read_per_pixel: float, held_bytes: int) -> tuple[tuple[Shard, ...], Bound]:
    """Shards, and the bound of the merge.

    Raises:
        AoiOutside: no zone touches the grid; says how far away they are.
        InvalidGeometry: none of the zones has an area.
        TooLarge: zones times bands times periods exceed ROWS_MAX.
    """
    grid, count = _asset(work.grid), 0
    if work.layer is None:
        placed, shapes = _place(work)
        count = len(placed)
        if not placed.usable.any():
            raise InvalidGeometry(zones.why_unusable(placed), pointer="/zones")
        pairs, box = coverage.pairs(shapes, (0, 0, *grid.shape)), zones.box_of(shapes)
        windows = list(zones.touched(pairs, grid, SHARD_BLOCKS))
    else:
        count, box = work.layer.feature_count, zones.box_of_layer(work.layer, grid)
        windows = list(zones.overlap(box, grid, SHARD_BLOCKS))
    if not windows:
        raise AoiOutside(zones.how_far(box, grid), pointer="/zones")
    depth = len(work.bands) * len(work.periods)
    rows = count * depth
    if rows > ROWS_MAX:
        raise TooLarge(
            f"{count:,} zones with {len(work.bands)} bands at {len(work.periods)} periods are {rows:,} rows; one job "
            f"gives at most {ROWS_MAX:,}. Ask for fewer zones or bands, or longer periods.",
            pointer="/zones",
        )
    days = sum(len(period.members) for period in work.periods)
    # The dates and what is worked out from them, and the curves of a block with their flags.
    held_bytes += 2 * max(STACK_BYTES, 4 * work.depth * _SIDE_MIN**2)
    held_bytes += 5 * max(STACK_BYTES // 4, len(work.bands) * coverage.BLOCK**2)
    shards = []
    for window in windows:
        blocks = max(-(-window.height // coverage.BLOCK) * -(-window.width // coverage.BLOCK), 1)
        state = min(count * blocks, count + window.pixels) * depth * zonal.STATE * 8
        shards.append(
            Shard(
                body=msgspec.msgpack.encode(window),
                bound=Bound(
                    pixels=window.pixels * days,
                    bytes_read=int(window.pixels * bytes_read_per_pixel),
                    bytes_written=state + (1 << 16),
                    memory_bytes=held_bytes + 3 * state + count * 8192 + (96 << 20) + warp.READ_BYTES,
                    seconds=0.05
                    + window.pixels * (len(work.values) * days * 4e-8 + bytes_read_per_pixel * 1e-8)
                    + count * 2e-5,
                ),
            )
        )
    written = rows * 3000
    merge = Bound(
        bytes_read=sum(shard.bound.bytes_written for shard in shards),
        bytes_written=written,
        memory_bytes=(128 << 20) + 2 * written + rows * zonal.STATE * 24,
        seconds=0.3 + rows * 2e-5,
    )
    return tuple(shards), merge


def measure(work: Work, body: bytes, attempt: Attempt, seen: Seen) -> Part:
    """Accumulators of one shard."""
    window = msgspec.msgpack.decode(body, type=Window)
    _, shapes = _place(work)
    pairs = coverage.pairs(shapes, (window.row, window.col, window.row_stop, window.col_stop))
    bands = len(work.bands)
    state = zonal.empty((len(pairs.zone), bands, len(work.periods)))
    cuts = np.flatnonzero((np.diff(pairs.block, axis=0) != 0).any(axis=1)) + 1
    for own in np.split(np.arange(len(pairs.zone)), cuts) if len(pairs.zone) else []:
        low, high = pairs.window[own, :2].min(axis=0), pairs.window[own, 2:].max(axis=0)
        part = Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))
        some = coverage.Pairs(pairs.zone[own], pairs.block[own], pairs.window[own])
        areas = zones.row_areas(_asset(work.grid), part.row, part.height)
        step = max(STACK_BYTES // (4 * bands * part.pixels), 1)
        for first in range(0, len(work.periods), step):
            batch = work.periods[first : first + step]
            values = _values(work, batch, part, seen)
            rows = zonal.empty((len(own), len(values)))
            for spans in coverage.spans(shapes, some):
                zonal.update(spans, values, ~np.isnan(values), (part.row, part.col), areas, rows)
            state[own, :, first : first + step] = rows.reshape(len(own), bands, len(batch), -1)
        attempt.advance(part.pixels)
    touched = (state[..., zonal.WEIGHT] + state[..., zonal.MASKED] > 0.0).any(axis=(1, 2))
    data = msgspec.msgpack.encode(
        _Partials(
            pairs.zone[touched].astype(np.int32).tobytes(),
            pairs.block[touched].astype(np.int32).tobytes(),
            state[touched].tobytes(),
        )
    )
    if len(data) <= _BODY_BYTES_MAX:
        return Part(body=data, report=seen.report())
    return Part(objects={"partials": attempt.write("partials.msgpack", data)}, report=seen.report())


def _values(work: Work, periods: Sequence[Period], part: Window, seen: Seen) -> NDArray[np.float32]:
    """Curves (band and period, y, x) of a part of a block, in tiles small enough for all dates of a period."""
    out = np.empty((len(work.bands), len(periods), part.height, part.width), np.float32)
    side = coverage.BLOCK
    while side > _SIDE_MIN and 4 * work.depth * side * side > STACK_BYTES:
        side //= 2
    for tile in tiles(part, side):
        rows, cols = tile.relative_to(part)
        shape = (tile.height, tile.width)
        if work.composite is None:
            found = observations.by_period(work.days, periods, tile, seen)
            out[:, :, rows, cols] = found.reshape(len(work.bands), len(periods), *shape)
            continue
        for place, period in enumerate(periods):
            if not period.members:
                out[:, place, rows, cols] = np.nan
                continue
            pixels = composites.pixels(work.composite, work.days, period.members, tile, seen, names=work.values)
            out[:, place, rows, cols] = pixels.reshape(-1, *shape)
    if work.area is not None:
        inside = Coverage(work.area, work.grid.transform, work.grid.shape, "center").covered(part)
        out[:, :, ~inside] = np.nan
    return out.reshape(-1, part.height, part.width)


def _folded(parts: Sequence[Part], count: int, depth: int) -> NDArray[np.float64]:
    found = [
        msgspec.msgpack.decode(
            read_object(part.objects["partials"].href) if "partials" in part.objects else part.body, type=_Partials
        )
        for part in parts
    ]
    zone = np.concatenate([np.frombuffer(partial.zone, np.int32) for partial in found])
    block = np.concatenate([np.frombuffer(partial.block, np.int32).reshape(-1, 2) for partial in found])
    rows = np.concatenate([np.frombuffer(partial.state).reshape(-1, depth, zonal.STATE) for partial in found])
    order = np.lexsort((block[:, 1], block[:, 0], zone))
    state = zonal.empty((count, depth))
    zonal.merge(zone[order].astype(np.int64), rows[order], state)
    return state


def table(
    work: Work,
    parts: Sequence[Part],
    attempt: Attempt,
    *,
    analysis: Analysis,
    fill: Fill | None,
    smooth: Smooth | None,
) -> tuple[tuple[OutputItem, ...], dict[str, Any]]:
    """The table of zone, band and period with a chart per band, and with an analysis a row of numbers per zone.

    The second part of the answer is a summary.

    Raises:
        AoiOutside: no zone touches the grid.
    """
    placed, shapes = _place(work)
    count, bands, depth = len(placed), len(work.bands), len(work.periods)
    state = _folded(parts, count, bands * depth)
    seen = state[..., zonal.WEIGHT] + state[..., zonal.MASKED]
    if not (seen > 0).any():
        raise AoiOutside(zones.how_far(zones.box_of(shapes), _asset(work.grid)), pointer="/zones")
    outside = np.maximum(shapes.areas - seen.max(axis=1), 0.0)
    numbers = zonal.finish(state, np.where(outside > zonal.SLIVER * shapes.areas, outside, 0.0))
    raw = numbers["mean"].reshape(count, bands, depth).transpose(1, 2, 0).astype(np.float32)
    smoothed = raw.copy()
    is_changed = fill is not None or smooth is not None
    if depth > 1:
        for curve in smoothed:
            series.prepare(curve, series.moments_of(work.periods), fill, smooth)
    status = _statuses(placed, seen, state)
    measures = {name: numbers[name] for name in COLUMNS}
    if is_changed:
        measures["smoothed"] = smoothed.transpose(2, 0, 1).astype(np.float64)
    full = _rows(work, placed, status, measures)
    label = f"{work.name}_by_zone"
    items = [_item(label, full, np.repeat(placed.geometries, bands * depth), placed.crs, attempt)]
    labels = [str(value) for value in placed.ids.to_pylist()]
    charts = [
        _chart(work, number, attempt, labels=labels, raw=raw[number], smooth=smoothed[number] if is_changed else None)
        for number in range(bands)
    ]
    items[0] = msgspec.structs.replace(items[0], assets=(*items[0].assets, *charts))
    if depth > 1 and not isinstance(analysis, Composite | Curve):
        rows = [row for curve in smoothed for row in series.analyse(analysis, curve, work.periods)]
        named = series.bands(analysis, work.values, work.periods)
        per_zone = pa.table({
            "zone_id": placed.ids,
            "status": pa.array(status),
            **{name: _column(row.astype(np.float64)) for (name, _), row in zip(named, rows, strict=True)},
        })  # fmt: skip
        kind = str(type(analysis).__struct_config__.tag)
        items.append(_item(f"{work.name}_{kind}_by_zone", per_zone, placed.geometries, placed.crs, attempt))
    summary = {
        "rows": full.num_rows,
        "zones": count,
        "statuses": {value: status.count(value) for value in sorted(set(status))},
        "preview": full.slice(0, 20).to_pylist(),
    }
    return tuple(items), summary


def _rows(
    work: Work, placed: zones.Zones, status: Sequence[str], measures: Mapping[str, NDArray[np.float64]]
) -> pa.Table:
    """A row for every zone, band and period, in this order; so are the numbers of each measure."""
    count, bands, depth = len(placed), len(work.bands), len(work.periods)
    middles = [period.start + (period.stop - period.start - timedelta(days=1)) // 2 for period in work.periods]
    zone = pa.array(np.repeat(np.arange(count), bands * depth))
    columns: dict[str, Any] = {"zone_id": placed.ids.take(zone), "status": pa.array(status).take(zone)}
    if bands > 1 or work.composite is not None:
        columns["band"] = pa.array(work.bands).take(pa.array(np.tile(np.repeat(np.arange(bands), depth), count)))
    columns |= {
        "period": pa.array([period.name for period in work.periods] * (count * bands)),
        "date": pa.array(middles * (count * bands)),
        "dates": pa.array([len(period.members) for period in work.periods] * (count * bands)),
    }
    return pa.table(columns | {name: _column(values.reshape(-1)) for name, values in measures.items()})


def _column(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _statuses(placed: zones.Zones, seen: NDArray[np.float64], state: NDArray[np.float64]) -> list[str]:
    status = [value.value for value in placed.status]
    valid = (state[..., zonal.WEIGHT] > 0).any(axis=1)
    for at in np.flatnonzero(placed.usable & ~valid):
        status[at] = "no_data" if (seen[at] > 0).any() else "outside"
    return status


def _item(name: str, full: pa.Table, shapes: NDArray[np.object_], crs: str, attempt: Attempt) -> OutputItem:
    assets, bbox = tables.write_all(attempt, name, full, shapes, crs)
    footprint = msgspec.json.decode(shapely.to_geojson(polygons.box_of(bbox)))
    return OutputItem(name=name, assets=assets, footprint=footprint, bbox=bbox, title=name.replace("_", " "))


def _chart(
    work: Work, number: int, attempt: Attempt, *, labels: Sequence[str], raw: np.ndarray, smooth: np.ndarray | None
) -> OutputAsset:
    """The chart of one band's curves (period, zone)."""
    suffix = f"_{number + 1}" if len(work.bands) > 1 else ""
    days = [period.middle.date() for period in work.periods]
    seen = [at for at in range(len(labels)) if np.isfinite(raw[:, at]).any()]
    names = {at: labels[at] if labels.count(labels[at]) == 1 else f"{labels[at]} ({at})" for at in seen}
    document = curves.draw(
        days,
        {names[at]: raw[:, at].tolist() for at in seen},
        title=f"{work.bands[number]} by zone",
        lines=None if smooth is None else {names[at]: smooth[:, at].tolist() for at in seen},
    )
    path = f"{work.name}_by_zone{suffix}.svg"
    return OutputAsset(
        key=f"chart{suffix}",
        object=attempt.write(path, document),
        media_type="image/svg+xml",
        roles=("overview",),
        filename=path,
        title=f"Curves of the zones: {work.bands[number]}",
    )
