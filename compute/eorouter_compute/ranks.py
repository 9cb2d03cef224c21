"""Quantiles across shards: a zone is finished where all of it is at hand, and only what is left open travels.

Sums of weights are exact (see `eorouter_kernels.quantiles`), so it makes no difference to a bit of the answer where a
zone is finished.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eorouter_compute.errors import TooLarge
from eorouter_kernels import coverage, quantiles

RUNS_BYTES_MAX = 4 << 30
"""Values held for quantiles, in one shard or in the merge, at most."""


class Values(Struct, frozen=True, array_like=True):
    """What one shard knows of one band: finished quantiles, and `quantiles.Runs` of zones that other shards see too."""

    done: bytes
    first: bytes
    key: bytes
    whole: bytes
    part: bytes


class Ranks(Struct, frozen=True, array_like=True):
    """What one shard hands on: `done` are the zones that are finished, `open` those whose runs are joined."""

    done: bytes
    open: bytes
    values: list[Values]

    @property
    def size(self) -> int:
        """Bytes of runs that the merge will hold."""
        return sum(len(band.key) + len(band.whole) + len(band.part) for band in self.values)


class Harvest:
    """Quantiles of a shard: finished for the zones that lie in it whole, runs of values for the others."""

    def __init__(
        self, bands: Sequence[tuple[str, Sequence[float]]], blocks: NDArray[np.int64], work: coverage.Pairs
    ) -> None:
        """Begin a shard.

        Args:
            bands: dtype and levels of each.
            blocks: (zone) how many blocks of the whole raster each zone touches.
            work: what the shard measures.
        """
        self._dtypes = [np.dtype(dtype) for dtype, _ in bands]
        self._asked = [levels for _, levels in bands]
        here = np.bincount(work.zone, minlength=len(blocks))
        self._is_alone = blocks == 1
        self._is_whole = (here > 0) & (here == blocks)
        self._is_open = (here > 0) & (here < blocks)
        self._found = [np.full((len(blocks), len(asked)), np.nan) for asked in self._asked]
        self._owners: list[NDArray[np.int64]] = []
        self._kept: list[list[quantiles.Runs]] = [[] for _ in bands]
        self._bytes = 0

    def gather(
        self,
        batch: coverage.Spans,
        zone: NDArray[np.int64],
        bands: Sequence[tuple[NDArray[Any], NDArray[np.bool_] | None]],
        corner: tuple[int, int],
    ) -> None:
        """Take in a batch; `bands` are keys and validity of each band."""
        own = zone[batch.start : batch.start + len(batch.first) - 1]
        alone = self._is_alone[own]
        for number, (key, valid) in enumerate(bands):
            runs = quantiles.collect(batch, key, valid, corner)
            found = quantiles.quantiles(runs.take(alone), self._dtypes[number], self._asked[number])
            self._found[number][own[alone]] = found
            rest = runs.take(~alone)
            self._kept[number].append(rest)
            self._bytes += rest.key.nbytes + rest.whole.nbytes + rest.part.nbytes
        self._owners.append(own[~alone])
        _check_runs(self._bytes)

    def finish(self) -> Ranks:
        """What the shard hands on; the harvest is empty then."""
        done, still = np.flatnonzero(self._is_whole), np.flatnonzero(self._is_open)
        values = []
        for number, found in enumerate(self._found):
            if self._owners:
                joined = quantiles.join(self._owners, self._kept[number], len(found))
                many = self._is_whole & ~self._is_alone
                found[many] = quantiles.quantiles(joined.take(many), self._dtypes[number], self._asked[number])
                rest = joined.take(self._is_open)
            else:
                rest = quantiles.Runs(np.zeros(1, np.int64), *(np.empty(0, kind) for kind in ("u2", "i8", "i8")))
            self._kept[number] = []
            values.append(
                Values(
                    found[done].tobytes(),
                    rest.first.tobytes(),
                    rest.key.tobytes(),
                    rest.whole.astype(np.int32).tobytes(),
                    rest.part.tobytes(),
                )
            )
        return Ranks(done.astype(np.int32).tobytes(), still.astype(np.int32).tobytes(), values)


def _check_runs(size: int) -> None:
    if size > RUNS_BYTES_MAX:
        raise TooLarge(
            f"Quantiles of these zones hold more than {RUNS_BYTES_MAX >> 30} GiB of values at once. Ask for fewer "
            "bands, or for zones that overlap less.",
            pointer="/quantiles",
        )


def joined(parts: Sequence[Ranks], band: int, dtype: str, levels: Sequence[float], count: int) -> NDArray[np.float64]:
    """Quantiles of a band, (zone, level), from what the shards finished and left open; NaN where there are none.

    Raises:
        TooLarge: what they left open is more than one process may hold.
    """
    kind = np.dtype(dtype)
    key_dtype = quantiles.keys(np.empty(0, kind)).dtype
    _check_runs(sum(part.size for part in parts))
    out = np.full((count, len(levels)), np.nan)
    owners, pieces = [], []
    for part in parts:
        packed = part.values[band]
        out[np.frombuffer(part.done, np.int32)] = np.frombuffer(packed.done).reshape(-1, len(levels))
        if packed.key:
            owners.append(np.frombuffer(part.open, np.int32).astype(np.int64))
            pieces.append(
                quantiles.Runs(
                    np.frombuffer(packed.first, np.int64),
                    np.frombuffer(packed.key, key_dtype),
                    np.frombuffer(packed.whole, np.int32).astype(np.int64),
                    np.frombuffer(packed.part, np.int64),
                )
            )
    if pieces:
        is_open = np.unique(np.concatenate(owners))
        renumbered = [np.searchsorted(is_open, owner) for owner in owners]
        out[is_open] = quantiles.quantiles(quantiles.join(renumbered, pieces, len(is_open)), kind, levels)
    return out
