# ruff: noqa: PLR0917  numba passes arguments by position
"""What values the cells under each polygon have, and how often: quantiles, modes and counts by value, all exact.

    pixels ──keys──► unsigned integers ──collect──► Runs per pair ──join──► Runs per zone ──┬─ quantiles ─► numbers
           └─bins──►                                                                        ├─ frequent ──► numbers
                                                                                            └─ counts ────► a matrix

Values become `keys`, unsigned integers in the same order, so that nothing is ever compared: keys of 16 bits are counted
in a table and read off it in order, wider ones go through a radix sort. Weights are kept in fixed point, whole cells
beside a fraction in steps of 2⁻⁶⁰ (finer than a double at 2⁻⁷, and 1e-9 of the smallest fraction that counts): sums are
those of integers, so `join` is associative to the last bit and a zone can be finished wherever all of it is at hand.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eorouter_kernels._jit import allocating_kernel, kernel
from eorouter_kernels.coverage import BIT_INDEX, DE_BRUIJN, Spans
from eorouter_kernels.zonal import SLIVER

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]
Keys = NDArray[Any]
Bits = NDArray[np.uint64]
Count = int | np.int64

STEPS_LOG2 = 60
STEPS = 1 << STEPS_LOG2
"""Steps of a cell in which fractions are summed. A fraction added to a rest stays below 2⁶¹, far inside an int64."""

NARROW_KEYS = 1 << 16
SMALL = 48
"""Up to here, insertion sorts faster than four passes over the digits."""


class Runs(NamedTuple):
    """Distinct values in rising order, owner after owner, and the cells that hold each.

    Attributes:
        first: (owner + 1) first run of each owner.
        key: (run) value as `keys` gives it.
        whole: (run) whole cells.
        part: (run) what is left of a cell, in 2⁻⁶⁰ (`STEPS`).
    """

    first: NDArray[np.int64]
    key: NDArray[Any]
    whole: NDArray[np.int64]
    part: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> "Runs":
        """The runs of some owners."""
        lengths = np.diff(self.first)
        runs = np.repeat(chosen, lengths)
        first = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        return Runs(first, self.key[runs], self.whole[runs], self.part[runs])


def keys(pixels: NDArray[np.generic]) -> NDArray[Any]:
    """Unsigned integers in the order of the pixels: uint16 for integers of at most 16 bits, else uint32 or uint64.

    Args:
        pixels: integers or floats; NaN gets some key and must be marked as not valid.
    """
    if pixels.dtype.kind in "bu":
        return pixels.astype(np.uint16) if pixels.dtype.itemsize == 1 else pixels
    if pixels.dtype.kind == "f":
        # A sum with zero makes −0 to 0, which is no other value. Negative floats fall as their bits rise.
        wide = pixels.astype(np.float32 if pixels.dtype.itemsize <= 4 else np.float64, copy=False) + np.float32(0)
        bits = wide.view(f"u{wide.itemsize}")
        top = bits.dtype.type(1 << (8 * wide.itemsize - 1))
        return np.where(bits & top, ~bits, bits | top)
    bits = np.ascontiguousarray(pixels).view(f"u{pixels.dtype.itemsize}")
    flipped = bits ^ bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return flipped.astype(np.uint16) if bits.itemsize == 1 else flipped


def values(key: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """What keys stand for, as doubles."""
    if dtype.kind in "bu":
        return key.astype(np.float64)
    if dtype.kind == "f":
        top = key.dtype.type(1 << (8 * key.itemsize - 1))
        return np.where(key & top, key ^ top, ~key).view(f"f{key.itemsize}").astype(np.float64)
    bits = key.astype(f"u{dtype.itemsize}")
    return (bits ^ bits.dtype.type(1 << (8 * dtype.itemsize - 1))).view(f"i{dtype.itemsize}").astype(np.float64)


def collect(batch: Spans, key: NDArray[Any], valid: NDArray[np.bool_] | None, corner: tuple[int, int]) -> Runs:
    """The values under the spans of a batch; an owner is a pair of the batch.

    Args:
        batch: covered cells, all inside the pixels.
        key: (y, x) of one band, from `keys`.
        valid: (y, x), None where every pixel is valid.
        corner: row and column of key[0, 0] in the raster.
    """
    has_mask = valid is not None
    # One memory layout, so that one compiled version serves all callers.
    key = np.ascontiguousarray(key)
    mask = np.ones((1, 1), np.bool_) if valid is None else np.ascontiguousarray(valid)
    cells = np.concatenate([[0], np.cumsum(batch.length, dtype=np.int64)])[batch.first]
    first = np.zeros(len(batch.first), np.int64)
    out = _room(int(cells[-1]), key.dtype)
    if key.dtype == np.uint16:
        _collect_narrow(batch, key, mask, has_mask, *corner, *_table(), first, *out)
    else:
        most = int(np.diff(cells).max(initial=0))
        _collect_wide(
            batch, key, mask, has_mask, *corner, *_room(most, key.dtype), *_scratch(most, key.dtype), first, *out
        )
    return Runs(first, *(array[: first[-1]].copy() for array in out))


def join(owners: Sequence[NDArray[np.int64]], pieces: Sequence[Runs], count: int) -> Runs:
    """Runs of the same owners brought together.

    Args:
        owners: per piece, the new owner (0 … count - 1) of each of its owners.
        pieces: runs over keys of one dtype, at least one piece.
        count: how many owners there are.
    """
    owner = np.concatenate(owners).astype(np.int64)
    lengths = np.concatenate([np.diff(piece.first) for piece in pieces])
    stop = np.cumsum(lengths)
    order = np.argsort(owner, kind="stable")
    groups = np.searchsorted(owner[order], np.arange(count + 1)).astype(np.int64)
    lengths, stop = lengths[order], stop[order]
    key, whole, part = (np.concatenate([piece[at] for piece in pieces]) for at in (1, 2, 3))
    first = np.zeros(count + 1, np.int64)
    out = _room(len(key), key.dtype)
    if key.dtype == np.uint16:
        _join_narrow(groups, stop - lengths, stop, key, whole, part, *_table(), first, *out)
    else:
        ends = np.concatenate([[0], np.cumsum(lengths)])[groups]
        most = int(np.diff(ends).max(initial=0))
        _join_wide(
            groups, stop - lengths, stop, key, whole, part,
            *_room(most, key.dtype), *_scratch(most, key.dtype), first, *out,
        )  # fmt: skip
    return Runs(first, *(array[: first[-1]] for array in out))


def quantiles(runs: Runs, dtype: np.dtype[Any], levels: Sequence[float]) -> NDArray[np.float64]:
    """Weighted quantiles of each owner, (owner, level); NaN for one without values.

    Each *distinct value* x_k, k = 0 … n − 1 in rising order, has the summed fraction w_k of the cells that hold it. It
    stands at s_k = k·w_k + (n − 1)·Σ_{i<k} w_i, the quantile q at q·(n − 1)·Σw, and between values we interpolate.
    This is exactextract's definition, so that numbers can be compared; exactextract then cuts the quantiles of integer
    rasters to integers, which we do not. For values that all differ and weigh alike it is the usual linear quantile.
    """
    asked = np.asarray(levels, np.float64)
    order = np.argsort(asked, kind="stable")
    out = np.full((len(runs.first) - 1, len(asked)), np.nan)
    found = np.full_like(out, np.nan)
    _interpolate(runs.first, values(runs.key, dtype), runs.whole, runs.part, asked[order], found)
    out[:, order] = found
    return out


FREQUENT = ("mode", "minority", "variety")
"""What `frequent` gives, in this order."""


def frequent(runs: Runs, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """The value most cells hold, the value fewest hold, and how many values there are; (owner, 3), NaN without values.

    Of values held alike, the greatest is the mode and the least the minority, as in exactextract.
    """
    out = np.full((len(runs.first) - 1, len(FREQUENT)), np.nan)
    _frequent(runs.first, values(runs.key, dtype), runs.whole, runs.part, out)
    return out


def bins(pixels: NDArray[np.generic], edges: NDArray[np.float64], scale: float, offset: float) -> NDArray[np.uint16]:
    """In which bin pixel × scale + offset lies: 0 below all, 1 … n, n + 1 above all; the keys of a histogram.

    Args:
        pixels: integers or floats; NaN gets some bin and must be marked as not valid.
        edges: (n + 1) rising; a bin holds its lower edge, the last bin its upper edge too, as in `numpy.histogram`.
        scale: of the stored values.
        offset: of the stored values.
    """
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2:
        # One look-up per pixel in place of a search: a table over all values of the type.
        every = np.arange(1 << 8 * pixels.dtype.itemsize, dtype=f"u{pixels.dtype.itemsize}")
        return _sorted_in(every.view(pixels.dtype), edges, scale, offset)[pixels.view(every.dtype)]
    return _sorted_in(pixels, edges, scale, offset)


def _sorted_in(pixels: NDArray[Any], edges: Floats, scale: float, offset: float) -> NDArray[np.uint16]:
    physical = pixels.astype(np.float64) * scale + offset
    found = np.searchsorted(edges, physical, side="right")
    return (found - (physical == edges[-1])).astype(np.uint16)


def counts(runs: Runs, keys_wanted: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cells that hold each wanted key, (owner, key), and cells that hold any key at all, (owner).

    Args:
        runs: by owner.
        keys_wanted: rising.
    """
    owners = len(runs.first) - 1
    cells = runs.whole + runs.part * (1.0 / STEPS)
    owner = np.repeat(np.arange(owners), np.diff(runs.first))
    out = np.zeros((owners, len(keys_wanted)))
    at = np.searchsorted(keys_wanted, runs.key)
    known = at < len(keys_wanted)
    known[known] = keys_wanted[at[known]] == runs.key[known]
    out[owner[known], at[known]] = cells[known]
    return out, np.bincount(owner, cells, minlength=owners).astype(np.float64, copy=False)


def _room(size: int, dtype: np.dtype[Any]) -> tuple[Keys, Ints, Ints]:
    return np.empty(size, dtype), np.empty(size, np.int64), np.empty(size, np.int64)


def _table() -> tuple[Ints, Ints, Bits]:
    """Counts by 16-bit key, and a bit for each key that occurs; left clean by whoever uses them."""
    return np.zeros(NARROW_KEYS, np.int64), np.zeros(NARROW_KEYS, np.int64), np.zeros(NARROW_KEYS // 64, np.uint64)


def _scratch(size: int, dtype: np.dtype[Any]) -> tuple[Ints32, Keys, Ints32]:
    return np.empty(size, np.int32), np.empty(size, dtype), np.empty(size, np.int32)


@kernel
def _drain(whole: Ints, part: Ints, bits: Bits, made: Count, out_key: Keys, out_whole: Ints, out_part: Ints) -> Count:
    """Empty the table into runs, in rising order of keys; returns how many runs there are now."""
    for word in range(len(bits)):
        pending = bits[word]
        if pending == 0:
            continue
        bits[word] = 0
        while pending != 0:
            lowest = pending & (~pending + np.uint64(1))
            pending ^= lowest
            k = (word << 6) + BIT_INDEX[(lowest * DE_BRUIJN) >> np.uint64(58)]
            out_key[made], out_whole[made], out_part[made] = k, whole[k], part[k]
            whole[k] = part[k] = 0
            made += 1
    return made


@kernel
def _collect_narrow(
    batch: Spans, key: Keys, valid: NDArray[np.bool_], has_mask: bool, row0: int, col0: int,
    whole: Ints, part: Ints, bits: Bits, first: Ints, out_key: Keys, out_whole: Ints, out_part: Ints,
) -> None:  # fmt: skip
    """Count the 16-bit keys under each pair.

    Shapes: spans as in `Spans`; key, valid (y, x), valid (1, 1) where has_mask is false; whole, part (65,536) and bits
        (1,024) zero before and after; first (pair + 1); outputs hold as many cells as the spans cover.
    Units: cells, and 2⁻⁶⁰ of a cell.
    Nodata: cells that are not valid, and slivers, are left out.
    Reference: counting sort; Knuth, TAOCP vol. 3, 5.2, with a bitmap instead of a scan of the table.
    """
    made = np.int64(0)  # a plain 0 would be a type of its own to numba, and its callees compiled twice
    one, low = np.uint64(1), np.int64(STEPS - 1)
    for pair in range(len(batch.first) - 1):
        for span in range(batch.first[pair], batch.first[pair + 1]):
            w = batch.weight[span]
            if w < SLIVER:
                continue
            r, c = batch.row[span] - row0, batch.col[span] - col0
            steps = np.int64(w * STEPS)
            for i in range(c, c + batch.length[span]):
                if has_mask and not valid[r, i]:
                    continue
                k = np.int64(key[r, i])
                bits[k >> 6] |= one << np.uint64(k & 63)
                if w == 1.0:
                    whole[k] += 1
                else:
                    rest = part[k] + steps
                    whole[k] += rest >> STEPS_LOG2
                    part[k] = rest & low
        made = _drain(whole, part, bits, made, out_key, out_whole, out_part)
        first[pair + 1] = made


@kernel
def _join_narrow(
    groups: Ints, begin: Ints, stop: Ints, key: Keys, whole: Ints, part: Ints,
    table: Ints, rests: Ints, bits: Bits, first: Ints, out_key: Keys, out_whole: Ints, out_part: Ints,
) -> None:  # fmt: skip
    """Add up runs of 16-bit keys by owner; those of group g stand at begin[g] … stop[g] - 1.

    Shapes: groups (owner + 1) first group of each owner; begin, stop (group); key, whole, part (run); table, rests
        (65,536) and bits (1,024) zero before and after; first (owner + 1); outputs (run).
    Units: cells, and 2⁻⁶⁰ of a cell.
    Nodata: none.
    Reference: as `_collect_narrow`.
    """
    made = np.int64(0)
    one, low = np.uint64(1), np.int64(STEPS - 1)
    for owner in range(len(groups) - 1):
        for group in range(groups[owner], groups[owner + 1]):
            for i in range(begin[group], stop[group]):
                k = np.int64(key[i])
                bits[k >> 6] |= one << np.uint64(k & 63)
                rest = rests[k] + part[i]
                table[k] += whole[i] + (rest >> STEPS_LOG2)
                rests[k] = rest & low
        made = _drain(table, rests, bits, made, out_key, out_whole, out_part)
        first[owner + 1] = made


@allocating_kernel
def _sort(n: Count, key: Keys, index: Ints32, other_key: Keys, other_index: Ints32) -> None:
    """Sort keys 0 … n - 1 in place, and say in `index` where each came from; equal keys in any order.

    Shapes: all (≥ n).
    Units: any.
    Nodata: none.
    Reference: radix sort from the least digit, Knuth, TAOCP vol. 3, 5.2.5; digits that all keys share are passed over.
    """
    for i in range(n):
        index[i] = i
    if n <= SMALL:
        for i in range(1, n):
            k, came = key[i], index[i]
            at = i
            while at > 0 and key[at - 1] > k:
                key[at], index[at] = key[at - 1], index[at - 1]
                at -= 1
            key[at], index[at] = k, came
        return
    digits = key.itemsize
    counts = np.zeros((digits, 256), np.int64)
    for i in range(n):
        k = np.uint64(key[i])
        for digit in range(digits):
            counts[digit, np.int64((k >> np.uint64(8 * digit)) & np.uint64(255))] += 1
    from_key, from_index, to_key, to_index = key, index, other_key, other_index
    swapped = False
    for digit in range(digits):
        count, shift = counts[digit], np.uint64(8 * digit)
        if count[np.int64((np.uint64(key[0]) >> shift) & np.uint64(255))] == n:
            continue
        total = np.int64(0)
        for i in range(256):
            count[i], total = total, total + count[i]
        for i in range(n):
            k = from_key[i]
            place = np.int64((np.uint64(k) >> shift) & np.uint64(255))
            at = count[place]
            to_key[at], to_index[at] = k, from_index[i]
            count[place] = at + 1
        from_key, from_index, to_key, to_index = to_key, to_index, from_key, from_index
        swapped = not swapped
    if swapped:
        for i in range(n):  # a slice would make numba compile the text of its error: five seconds
            key[i], index[i] = from_key[i], from_index[i]


@kernel
def _condense(
    n: Count, key: Keys, index: Ints32, whole: Ints, part: Ints,
    made: Count, out_key: Keys, out_whole: Ints, out_part: Ints,
) -> Count:  # fmt: skip
    """Runs of sorted keys 0 … n - 1, one per distinct key; returns how many runs there are now."""
    i = 0
    while i < n:
        k = key[i]
        cells = rest = np.int64(0)
        while i < n and key[i] == k:
            rest += part[index[i]]
            cells += whole[index[i]] + (rest >> STEPS_LOG2)
            rest &= np.int64(STEPS - 1)
            i += 1
        out_key[made], out_whole[made], out_part[made] = k, cells, rest
        made += 1
    return made


@allocating_kernel
def _collect_wide(
    batch: Spans, key: Keys, valid: NDArray[np.bool_], has_mask: bool, row0: int, col0: int,
    seen: Keys, whole: Ints, part: Ints, index: Ints32, other_key: Keys, other_index: Ints32,
    first: Ints, out_key: Keys, out_whole: Ints, out_part: Ints,
) -> None:  # fmt: skip
    """Sort the keys under each pair.

    Shapes: as `_collect_narrow`; seen, whole, part, index, other_key, other_index hold the cells of any one pair.
    Units: cells, and 2⁻⁶⁰ of a cell.
    Nodata: cells that are not valid, and slivers, are left out.
    Reference: see `_sort`.
    """
    made = np.int64(0)
    for pair in range(len(batch.first) - 1):
        n = np.int64(0)
        for span in range(batch.first[pair], batch.first[pair + 1]):
            w = batch.weight[span]
            if w < SLIVER:
                continue
            r, c = batch.row[span] - row0, batch.col[span] - col0
            steps = np.int64(w * STEPS)
            for i in range(c, c + batch.length[span]):
                if has_mask and not valid[r, i]:
                    continue
                seen[n], whole[n], part[n] = key[r, i], steps >> STEPS_LOG2, steps & np.int64(STEPS - 1)
                n += 1
        _sort(n, seen, index, other_key, other_index)
        made = _condense(n, seen, index, whole, part, made, out_key, out_whole, out_part)
        first[pair + 1] = made


@allocating_kernel
def _join_wide(
    groups: Ints, begin: Ints, stop: Ints, key: Keys, whole: Ints, part: Ints,
    seen: Keys, cells: Ints, rests: Ints, index: Ints32, other_key: Keys, other_index: Ints32,
    first: Ints, out_key: Keys, out_whole: Ints, out_part: Ints,
) -> None:  # fmt: skip
    """Add up runs of wide keys by owner.

    Shapes: as `_join_narrow`; seen, cells, rests, index, other_key, other_index hold the runs of any one owner.
    Units: cells, and 2⁻⁶⁰ of a cell.
    Nodata: none.
    Reference: see `_sort`.
    """
    made = np.int64(0)
    for owner in range(len(groups) - 1):
        n = np.int64(0)
        for group in range(groups[owner], groups[owner + 1]):
            for i in range(begin[group], stop[group]):
                seen[n], cells[n], rests[n] = key[i], whole[i], part[i]
                n += 1
        _sort(n, seen, index, other_key, other_index)
        made = _condense(n, seen, index, cells, rests, made, out_key, out_whole, out_part)
        first[owner + 1] = made


@kernel
def _interpolate(first: Ints, value: Floats, whole: Ints, part: Ints, levels: Floats, out: Floats) -> None:
    """Quantiles of distinct values with weights, linear between them.

    Shapes: first (owner + 1); value, whole, part (run), rising within an owner; levels (level), rising, 0 … 1; out
        (owner, level).
    Units: those of the values.
    Nodata: an owner without runs is left as it is.
    Reference: the definition at https://stats.stackexchange.com/a/13223 over distinct values, as in exactextract 0.3.
    """
    step = 1.0 / STEPS
    for owner in range(len(first) - 1):
        begin, end = first[owner], first[owner + 1]
        if begin == end:
            continue
        gaps = float(end - begin - 1)
        cells = rest = np.int64(0)
        for i in range(begin, end):
            rest += part[i]
            cells += whole[i] + (rest >> STEPS_LOG2)
            rest &= np.int64(STEPS - 1)
        total = cells + rest * step
        i = begin
        before = stood = 0.0
        for level in range(len(levels)):
            wanted = levels[level] * (total * gaps)
            found = value[end - 1]
            while i < end and levels[level] < 1.0:  # else rounding sets back a greatest value that weighs little
                weight = whole[i] + part[i] * step
                stands = (i - begin) * weight + gaps * before
                if stands > wanted:
                    found = value[i - 1] + (wanted - stood) * (value[i] - value[i - 1]) / (stands - stood)
                    break
                before += weight
                stood = stands
                i += 1
            out[owner, level] = found


@kernel
def _frequent(first: Ints, value: Floats, whole: Ints, part: Ints, out: Floats) -> None:
    """Mode, minority and variety of distinct values with weights.

    Shapes: as `_interpolate`; out (owner, 3).
    Units: those of the values; variety counts.
    Nodata: an owner without runs is left as it is.
    Reference: exactextract 0.3, README, "mode", "minority", "variety".
    """
    for owner in range(len(first) - 1):
        begin, end = first[owner], first[owner + 1]
        if begin == end:
            continue
        most = least = begin
        for i in range(begin + 1, end):
            if whole[i] > whole[most] or (whole[i] == whole[most] and part[i] >= part[most]):
                most = i
            if whole[i] < whole[least] or (whole[i] == whole[least] and part[i] < part[least]):
                least = i
        out[owner, 0], out[owner, 1], out[owner, 2] = value[most], value[least], float(end - begin)


def warm_up() -> None:
    """Compile the kernels of this module for the usual pixel types, or load them from the cache."""
    place = np.array([0, 1], np.int32)
    batch = Spans(0, np.array([0, 2]), place, place, np.ones(2, np.int32), np.array([1.0, 0.5]))
    for dtype in (np.uint16, np.float32):
        runs = collect(batch, keys(np.ones((2, 2), dtype)), None, (0, 0))
        whole = join([np.zeros(1, np.int64)], [runs], 1)
        quantiles(whole, np.dtype(dtype), (0.5,))
    frequent(whole, np.dtype(np.float32))
