"""The dates that are compared: which items are before and after, and a group of dates as one picture."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np

from eorouter_compute import observations, warp, witness
from eorouter_compute.attempt import read_exactly
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Grid, Window
from eorouter_compute.method import InputItem
from eorouter_compute.observations import Day, Seen
from eorouter_compute.stored import EVERY, Cut
from eorouter_kernels import temporal

Moments = Sequence[Sequence[Day]]

STACK_BYTES = 64 << 20
"""Most bytes of the dates read together, unless a part of 64 × 64 pixels needs more."""

_READ_BYTES = 2 << 20
_THREADS = 2  # objects are put together between rounds, when a worker's threads have no shards of the job
_UNDATED = datetime(1970, 1, 1, 12, tzinfo=UTC)


def groups(
    inputs: Sequence[InputItem], earlier: Sequence[str], later: Sequence[str], *, is_series: bool
) -> tuple[list[InputItem], list[InputItem]]:
    """The items before and after: as named, or two by their dates, or with `is_series` all dates.

    Raises:
        InvalidParameter: an id that is not there or on both sides; nothing said and not two dated items.
    """
    by_id = {item.id: item for item in inputs if item.rasters}
    for name, ids in (("before", earlier), ("after", later)):
        for place, each in enumerate(ids):
            if each not in by_id:
                raise InvalidParameter(
                    f"`{name}` names item {each!r}; the inputs are: {', '.join(by_id) or 'none'}.",
                    pointer=f"/{name}/{place}",
                )
    if both := set(earlier) & set(later):
        raise InvalidParameter(f"{min(both)} cannot be before and after.", pointer="/after")
    if earlier and later:
        return [by_id[each] for each in earlier], [by_id[each] for each in later]
    items = list(by_id.values())
    is_series = is_series and len(items) >= 2
    if earlier or later or not (is_series or len(items) == 2):
        raise InvalidParameter(
            f"Say which items are `before` and which `after`; {len(items)} were given and only two can be told "
            "apart by their dates.",
            pointer="/before" if not earlier else "/after",
        )
    if any(item.at is None for item in items):
        raise InvalidParameter("An item has no date; say which are `before` and `after`.", pointer="/before")
    items.sort(key=lambda item: (str(item.at), item.id))
    return items[:1], items[1:]


def dated(items: Sequence[InputItem], place: int) -> list[InputItem]:
    """Items that say no date get one: what is before and after has been said."""
    return [
        item if item.at is not None else msgspec.structs.replace(item, at=_UNDATED + timedelta(days=place + number))
        for number, item in enumerate(items)
    ]  # fmt: skip


def reduced(group: Sequence[Day], part: Window, how: str, seen: Seen, out: np.ndarray, *, cut: Cut = EVERY) -> None:
    """One picture (band, y, x) of a group of days, of the pixels of the part that `cut` takes."""
    if len(group) == 1:
        observations.read(group[0], part, out, seen, cut=cut)
        return
    stack = observations.stack(group, range(len(group)), part, seen, cut=cut)
    for band in range(stack.shape[1]):
        target = out[band].reshape(1, -1)
        if how == "median":
            temporal.ranks(np.ascontiguousarray(stack[:, band]), np.array([0.5]), target)
            continue
        known = np.isfinite(stack[:, band])
        with np.errstate(invalid="ignore"):
            target[0] = np.where(known, stack[:, band], 0.0).sum(axis=0, dtype=np.float64) / known.sum(axis=0)


def complete(stack: np.ndarray) -> np.ndarray:
    """The pixels of a stack (time, band, pixel) that have every value."""
    rows = stack.reshape(-1, stack.shape[2])
    known = np.ones(stack.shape[2], np.bool_)
    for row in rows:
        known &= np.isfinite(row)
    if known.all():
        return stack
    return np.stack([row[known] for row in rows]).reshape(*stack.shape[:2], -1)


def read_planes(planes: np.ndarray, href: str) -> None:
    """Read float32 planes (plane, y, x) from an object, a few at a time: their bytes are not all held once more."""
    size = 4 * planes[0].size
    count = max(_READ_BYTES // size, 1)
    for first in range(0, len(planes), count):
        some = planes[first : first + count]
        data = read_exactly(href, first * size, (first + len(some)) * size)
        some[...] = np.frombuffer(data, np.float32).reshape(some.shape)


def put_together(places: Sequence[tuple[Window, str]], planes: np.ndarray) -> None:
    """Fill planes (plane, y, x) with windows of them, each an object of its own."""

    def put(place: tuple[Window, str]) -> None:
        window, href = place
        read_planes(planes[:, window.row : window.row_stop, window.col : window.col_stop], href)

    with witness.reading(), ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(put, places))
    # The witness sits on this thread, and did not see what the others read.
    witness.count_read(sum(planes[:, 0, 0].nbytes * window.pixels for window, _ in places))


def step(grid: Grid, most: int) -> int:
    """Every how many pixels, in both directions, one is sampled, for at most `most`."""
    found = 1
    while -(-grid.shape[0] // found) * -(-grid.shape[1] // found) > most:
        found += 1
    return found


def side_of(moments: Moments, bands: int) -> int:
    """Side of the parts in which all dates are held together."""
    side, depth = 1024, max(sum(len(group) for group in moments), 2) * bands
    while side > 64 and 4 * depth * side * side > STACK_BYTES:
        side //= 2
    return side


def placements(moments: Moments) -> list[warp.Placement]:
    """Every source, as often as it is read."""
    return [
        placement
        for group in moments
        for day in group
        for scene in day.scenes
        for placement in (
            *(placement for placement, _ in scene.sources),
            *(placement for mask in scene.masks for placement, _ in mask.sources),
        )
    ]


def bytes_read(moments: Moments, bands: int, grid: Grid, placement: warp.Placement) -> float:
    """Bytes read per output pixel, at most: whole blocks, again where parts share them."""
    rows, cols = placement.asset.block_shape
    side = side_of(moments, bands)
    rim = min((1 + rows / side) * (1 + cols / side), 16.0)
    density = max(placement.asset.window.pixels / grid.window.pixels, 1.0)
    return rim * density * sum(np.dtype(band.dtype).itemsize for band in placement.asset.bands)
