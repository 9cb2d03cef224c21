"""Values under zones across shards: a zone is finished where all of it is at hand, and only what is left open travels.

Sums of weights are exact (see `eorouter_kernels.quantiles`), so it makes no difference to a bit of the answer where a
zone is finished.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eorouter_compute.errors import TooLarge
from eorouter_kernels import coverage, quantiles

RUNS_BYTES_MAX = 4 << 30
"""Values held at once, in one shard or in the merge, at most."""


class Plane(NamedTuple):
    """What is asked of the keys of one band.

    Attributes:
        dtype: of the pixels that the keys stand for; "uint16" for bins.
        levels: quantiles, of stored values.
        is_frequent: mode, minority and variety, too.
        is_counted: the cells by value are asked for: runs of all zones travel.
    """

    dtype: str
    levels: tuple[float, ...] = ()
    is_frequent: bool = False
    is_counted: bool = False

    @property
    def key_dtype(self) -> np.dtype[Any]:
        """Type of its keys."""
        return quantiles.keys(np.empty(0, self.dtype)).dtype

    @property
    def width(self) -> int:
        """Numbers of a finished zone: its quantiles, then `quantiles.FREQUENT`."""
        return len(self.levels) + len(quantiles.FREQUENT) * self.is_frequent

    def finished(self, runs: quantiles.Runs) -> NDArray[np.float64]:
        """The numbers of each owner, (owner, width)."""
        kind = np.dtype(self.dtype)
        found = [quantiles.quantiles(runs, kind, self.levels)] if self.levels else []
        if self.is_frequent:
            found.append(quantiles.frequent(runs, kind))
        return np.concatenate(found, axis=1) if found else np.empty((len(runs.first) - 1, 0))


class Values(Struct, frozen=True, array_like=True):
    """What one shard knows of one plane: `done` zones with their numbers, `open` zones with their `quantiles.Runs`."""

    done: bytes
    numbers: bytes
    open: bytes
    first: bytes
    key: bytes
    whole: bytes
    part: bytes

    @property
    def size(self) -> int:
        """Bytes of runs that the merge will hold."""
        return len(self.key) + len(self.whole) + len(self.part)


class Harvest:
    """Values of a shard: finished for the zones that lie in it whole, runs for the others."""

    def __init__(self, planes: Sequence[Plane], blocks: NDArray[np.int64], work: coverage.Pairs) -> None:
        """Begin a shard.

        Args:
            planes: what is asked.
            blocks: (zone) how many blocks of the whole raster each zone touches.
            work: what the shard measures.
        """
        self._planes = planes
        here = np.bincount(work.zone, minlength=len(blocks))
        self._is_alone = blocks == 1
        self._is_whole = (here > 0) & (here == blocks)
        self._is_here = here > 0
        self._found = [np.full((len(blocks), plane.width), np.nan) for plane in planes]
        self._owners: list[NDArray[np.int64]] = []
        self._kept: list[list[quantiles.Runs]] = [[] for _ in planes]
        self._bytes = 0

    def gather(
        self,
        batch: coverage.Spans,
        zone: NDArray[np.int64],
        planes: Sequence[tuple[NDArray[Any], NDArray[np.bool_] | None]],
        corner: tuple[int, int],
    ) -> None:
        """Take in a batch; `planes` are keys and validity of each plane."""
        own = zone[batch.start : batch.start + len(batch.first) - 1]
        alone = self._is_alone[own]
        for number, (key, valid) in enumerate(planes):
            plane = self._planes[number]
            runs = quantiles.collect(batch, key, valid, corner)
            if plane.is_counted:
                rest = runs
            else:
                self._found[number][own[alone]] = plane.finished(runs.take(alone))
                rest = runs.take(~alone)
            self._kept[number].append(rest)
            self._bytes += rest.key.nbytes + rest.whole.nbytes + rest.part.nbytes
        self._owners.append(own)
        _check_runs(self._bytes)

    def finish(self) -> list[Values]:
        """What the shard hands on, plane by plane; the harvest is empty then."""
        return [self._finish(number, plane) for number, plane in enumerate(self._planes)]

    def _finish(self, number: int, plane: Plane) -> Values:
        is_done = np.zeros_like(self._is_whole) if plane.is_counted else self._is_whole
        is_open = self._is_here & ~is_done
        found = self._found[number]
        rest = quantiles.Runs(np.zeros(1, np.int64), *(np.empty(0, kind) for kind in (plane.key_dtype, "i8", "i8")))
        if self._owners:
            owners = self._owners if plane.is_counted else [own[~self._is_alone[own]] for own in self._owners]
            joined = quantiles.join(owners, self._kept[number], len(found))
            many = is_done & ~self._is_alone
            found[many] = plane.finished(joined.take(many))
            rest = joined.take(is_open)
        self._kept[number] = []
        return Values(
            np.flatnonzero(is_done).astype(np.int32).tobytes(),
            found[is_done].tobytes(),
            np.flatnonzero(is_open).astype(np.int32).tobytes(),
            rest.first.tobytes(),
            rest.key.tobytes(),
            rest.whole.astype(np.int32).tobytes(),
            rest.part.tobytes(),
        )


def _check_runs(size: int) -> None:
    if size > RUNS_BYTES_MAX:
        raise TooLarge(
            f"Quantiles, classes and histograms of these zones hold more than {RUNS_BYTES_MAX >> 30} GiB of values at "
            "once. Ask for fewer bands, or for zones that overlap less.",
            pointer="/zones",
        )


class Found(NamedTuple):
    """A plane, whole: numbers (zone, width), NaN where there are none; and the runs of the zones `owners`."""

    numbers: NDArray[np.float64]
    owners: NDArray[np.int64]
    runs: quantiles.Runs


def joined(parts: Sequence[Sequence[Values]], number: int, plane: Plane, count: int) -> Found:
    """A plane from what the shards finished and left open, for `count` zones.

    Raises:
        TooLarge: what they left open is more than one process may hold.
    """
    packed = [part[number] for part in parts]
    _check_runs(sum(values.size for values in packed))
    numbers = np.full((count, plane.width), np.nan)
    owners, pieces = [], []
    for values in packed:
        numbers[np.frombuffer(values.done, np.int32)] = np.frombuffer(values.numbers).reshape(
            len(values.done) // 4, plane.width
        )
        if values.key:
            owners.append(np.frombuffer(values.open, np.int32).astype(np.int64))
            pieces.append(
                quantiles.Runs(
                    np.frombuffer(values.first, np.int64),
                    np.frombuffer(values.key, plane.key_dtype),
                    np.frombuffer(values.whole, np.int32).astype(np.int64),
                    np.frombuffer(values.part, np.int64),
                )
            )
    if not pieces:
        empty = (np.empty(0, kind) for kind in (plane.key_dtype, "i8", "i8"))
        return Found(numbers, np.empty(0, np.int64), quantiles.Runs(np.zeros(1, np.int64), *empty))
    is_open = np.unique(np.concatenate(owners))
    renumbered = [np.searchsorted(is_open, owner) for owner in owners]
    runs = quantiles.join(renumbered, pieces, len(is_open))
    numbers[is_open] = plane.finished(runs)
    return Found(numbers, is_open, runs)
