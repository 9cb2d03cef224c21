# ruff: noqa: PLR0917  numba passes arguments by position
"""What fraction of every cell a polygon covers, exactly, as run-length spans.

Signed-area accumulation: every edge adds, to each cell it crosses, its height (*cover*) and the area to its right
inside the cell; one running sum along a row then gives the covered fraction of each cell. Between two crossed cells the
fraction is constant, so the interior of a polygon is a handful of spans per row and no array of fractions is made.

Coordinates are *pixel coordinates*: x counts columns and y counts rows from the raster's upper-left corner, so that
cell (row, col) is the unit square [col, col + 1] × [row, row + 1]. Polygons must be valid in the OGC sense and holes
wound against their shell; whether shells run clockwise does not matter. A polygon outside the window costs nothing, one
to the left of it counts, as it must.

Exactness: y is kept on a lattice of 2⁻⁴⁴ px (`LATTICE`), so heights of edges are integers in disguise and their sums
have no rounding: a span inside is exactly 1 and outside exactly 0, with no tolerance. Only the area inside crossed
cells rounds, at about 1e-16 per edge.

Work is cut along *canonical blocks* of `BLOCK` × `BLOCK` cells anchored at the raster's origin. The arithmetic of a
block never depends on which other blocks are computed with it, which is what makes sharded answers identical to the
last bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eorouter_kernels._jit import allocating_kernel, kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]

BLOCK = 512
"""Side of a canonical block, cells; part of the definition of a result's bytes."""

LATTICE = 2.0**44
"""Steps per pixel of the lattice that y is kept on: 2⁴⁴ steps × 2⁹ rows fill the 53 bits of a double."""

CHUNK_EDGES = 64
"""Edges that share one bounding box, so that a block passes over the far parts of a long outline quickly."""

FEW_CROSSINGS = 32
"""Crossings of a row that are sorted by insertion."""

SPAN_CAPACITY = 1 << 19
"""Spans made before they are handed on; at least BLOCK × BLOCK, the most that one polygon can make in one block."""

# Index of the lowest set bit by de Bruijn multiplication (Leiserson, Prokop, Randall 1998, "Using de Bruijn Sequences
# to Index a 1 in a Computer Word"): numba offers the machine instruction only under an `unsafe` private name.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
BIT_INDEX = np.zeros(64, np.int64)
for _bit in range(64):
    BIT_INDEX[((0x03F79D71B4CB0A89 << _bit) & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


class Outlines(NamedTuple):
    """Polygons ready for rasterising; made by `outlines`.

    Attributes:
        vertices: (vertex, 2) x, y in pixel coordinates, y on the lattice.
        chunks: (chunk, 2) first and last vertex of a run of consecutive edges.
        chunk_boxes: (chunk, 4) x_min, y_min, x_max, y_max.
        zone_chunks: (zone + 1) first chunk of each zone.
        boxes: (zone, 4) bounding box of each zone; NaN for an empty one.
        areas: (zone) area in cells, ≥ 0, wherever the zone lies.
        signs: (zone) +1 or −1, the winding of its shells.
    """

    vertices: NDArray[np.float64]
    chunks: NDArray[np.int64]
    chunk_boxes: NDArray[np.float64]
    zone_chunks: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    signs: NDArray[np.float64]


class Pairs(NamedTuple):
    """Which zone may touch which canonical block, sorted by block (row-major) and then by zone.

    Attributes:
        zone: (pair) index of the zone.
        block: (pair, 2) row and column of the block, counted in blocks.
        window: (pair, 4) row, col, row_stop, col_stop: cells of the block inside the zone's bounding box.
    """

    zone: NDArray[np.int64]
    block: NDArray[np.int64]
    window: NDArray[np.int64]


class Spans(NamedTuple):
    """Cells of constant covered fraction: `length` cells from (row, col) to the right, each covered by `weight`.

    `first` (pair + 1) says where the spans of each pair `start … start + len(first) - 2` begin.
    """

    start: int
    first: NDArray[np.int64]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    length: NDArray[np.int32]
    weight: NDArray[np.float64]


def outlines(vertices: NDArray[np.float64], ring_offsets: NDArray[np.int64], zone_rings: NDArray[np.int64]) -> Outlines:
    """Index closed rings for rasterising.

    Args:
        vertices: (vertex, 2) x, y in pixel coordinates; the last vertex of a ring repeats the first.
        ring_offsets: (ring + 1) first vertex of each ring.
        zone_rings: (zone + 1) first ring of each zone.
    """
    placed = np.empty((len(vertices), 2), np.float64)
    placed[:, 0] = vertices[:, 0]
    placed[:, 1] = np.rint(vertices[:, 1] * LATTICE) / LATTICE
    edges = np.maximum(np.diff(ring_offsets) - 1, 0)
    per_ring = -(-edges // CHUNK_EDGES)
    ring_chunks = np.concatenate([[0], np.cumsum(per_ring)]).astype(np.int64)
    chunks = np.empty((ring_chunks[-1], 2), np.int64)
    boxes = np.empty((ring_chunks[-1], 4), np.float64)
    _chunk(placed, ring_offsets.astype(np.int64), ring_chunks, chunks, boxes)
    zone_chunks = ring_chunks[zone_rings]
    zones = len(zone_rings) - 1
    zone_boxes, signed = np.empty((zones, 4), np.float64), np.empty(zones, np.float64)
    _measure(placed, chunks, boxes, zone_chunks, zone_boxes, signed)
    # Coverage is −∮x dy: positive where the shoelace sum is negative.
    return Outlines(placed, chunks, boxes, zone_chunks, zone_boxes, np.abs(signed), np.where(signed > 0, -1.0, 1.0))


def pairs(shapes: Outlines, window: tuple[int, int, int, int]) -> Pairs:
    """Zones against the canonical blocks of a window.

    Args:
        shapes: the zones.
        window: (row, col, row_stop, col_stop) in cells; whole blocks, or blocks cut by the edge of the raster.
    """
    touching, lower, upper = _reach(shapes, window)
    first = lower[touching] // BLOCK
    counts = (upper[touching] - 1) // BLOCK - first + 1
    sizes = counts[:, 0] * counts[:, 1]
    owner = np.repeat(np.arange(len(touching)), sizes)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    block_row = first[owner, 1] + within // counts[owner, 0]
    block_col = first[owner, 0] + within % counts[owner, 0]
    zone = touching[owner]
    order = np.lexsort((zone, block_col, block_row))
    zone, block_row, block_col = zone[order], block_row[order], block_col[order]
    cells = np.stack(
        [
            np.maximum(lower[zone, 1], block_row * BLOCK),
            np.maximum(lower[zone, 0], block_col * BLOCK),
            np.minimum(upper[zone, 1], (block_row + 1) * BLOCK),
            np.minimum(upper[zone, 0], (block_col + 1) * BLOCK),
        ],
        axis=1,
    )
    return Pairs(zone, np.stack([block_row, block_col], axis=1), cells)


def block_counts(shapes: Outlines, window: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """How many canonical blocks of a window each zone may touch, (zone): as many pairs as `pairs` gives it."""
    touching, lower, upper = _reach(shapes, window)
    counts = np.zeros(len(shapes.areas), np.int64)
    counts[touching] = ((upper[touching] - 1) // BLOCK - lower[touching] // BLOCK + 1).prod(axis=1)
    return counts


def _reach(
    shapes: Outlines, window: tuple[int, int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Zones whose boxes touch a window, and the first and last cell (x, y) of all boxes, cut to it."""
    row, col, row_stop, col_stop = window
    boxes = np.nan_to_num(shapes.boxes, nan=-1.0, posinf=-1.0, neginf=-1.0)
    limit = np.array([col, row, col_stop, row_stop], np.float64)
    lower = np.clip(np.floor(boxes[:, :2]), limit[:2], limit[2:]).astype(np.int64)
    upper = np.clip(np.ceil(boxes[:, 2:]), limit[:2], limit[2:]).astype(np.int64)
    return np.flatnonzero((lower < upper).all(axis=1) & ~np.isnan(shapes.boxes[:, 0])), lower, upper


def spans(shapes: Outlines, work: Pairs) -> Iterator[Spans]:
    """Covered fractions of all pairs, in bounded batches of whole pairs; a batch is overwritten by the next one."""
    if not len(work.zone):
        return
    cells = np.zeros((BLOCK * BLOCK, 2), np.float64)
    bits = np.zeros(BLOCK * (BLOCK // 64), np.uint64)
    left = np.zeros(BLOCK, np.float64)
    row, col, length = (np.empty(SPAN_CAPACITY, np.int32) for _ in range(3))
    weight = np.empty(SPAN_CAPACITY, np.float64)
    first = np.empty(len(work.zone) + 1, np.int64)
    start = 0
    while start < len(work.zone):
        stop = _cover(shapes, work, start, cells, bits, left, first, row, col, length, weight)
        made = first[stop - start]
        yield Spans(start, first[: stop - start + 1], row[:made], col[:made], length[:made], weight[:made])
        start = stop


def coverage(shapes: Outlines, window: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Covered fraction of each cell of a window by each zone.

    Shapes: window is (row, col, row_stop, col_stop); the result is (zone, y, x).
    Units: fraction of a cell, 0 … 1.
    Nodata: none; an empty zone covers nothing.
    Reference: signed-area accumulation as in D. Turner and others, FreeType `ftgrays.c`; L. Levien 2016, "Inside the
        fastest font renderer in the world".
    """
    row, col, row_stop, col_stop = window
    out = np.zeros((len(shapes.areas), row_stop - row, col_stop - col), np.float64)
    work = pairs(shapes, window)
    for batch in spans(shapes, work):
        _paint(batch.first, batch.row, batch.col, batch.length, batch.weight, work.zone[batch.start :], row, col, out)
    return out


def centers(shapes: Outlines, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Which cells of a window have their centre inside the polygons, all zones taken as one area.

    Every edge crosses the rows whose centre line lies between its ends; the cells between the first and the second
    crossing of a row are inside, and so on (even-odd rule). Crossings are those of the whole edge, so the answer for a
    cell does not depend on the window. A centre on an edge belongs to the area on the edge's left, as with GDAL.

    Shapes: window is (row, col, row_stop, col_stop); the result is (y, x).
    """
    row, col, row_stop, col_stop = window
    edges = (shapes.vertices, shapes.chunks, shapes.chunk_boxes)
    counts = np.zeros(row_stop - row, np.int64)
    _crossings(*edges, row, col, col_stop, counts, counts, np.empty(0, np.int64))
    stops = np.cumsum(counts)
    columns, ends = np.empty(stops[-1], np.int64), stops - counts
    _crossings(*edges, row, col, col_stop, counts, ends, columns)
    out = np.zeros((row_stop - row, col_stop - col), np.bool_)
    _between(columns, ends, out)
    return out


@kernel
def _crossings(
    vertices: Floats, chunks: Ints, boxes: Floats, row: int, col: int, col_stop: int,
    counts: Ints, ends: Ints, columns: Ints,
) -> None:  # fmt: skip
    """Count the crossings of each row, or put their columns at `ends`, which then are where a row's columns end."""
    is_counting = len(columns) == 0
    rows = len(counts)
    for chunk in range(len(chunks)):
        if boxes[chunk, 3] < row or boxes[chunk, 1] > row + rows:
            continue
        for i in range(chunks[chunk, 0], chunks[chunk, 1]):
            # From the upper end down, so that two polygons make the same of the edge they share.
            upper, lower = (i, i + 1) if vertices[i, 1] < vertices[i + 1, 1] else (i + 1, i)
            x, y = vertices[upper, 0], vertices[upper, 1]
            first = min(max(np.ceil(y - 0.5), row), row + rows)
            stop = max(min(np.ceil(vertices[lower, 1] - 0.5), row + rows), row)
            if first >= stop:
                continue
            slope = (vertices[lower, 0] - x) / (vertices[lower, 1] - y)
            for place in range(int(first) - row, int(stop) - row):
                if is_counting:
                    counts[place] += 1
                else:
                    at = np.floor(x + (place + row + 0.5 - y) * slope + 0.5)
                    columns[ends[place]] = int(min(max(at, col), col_stop)) - col
                    ends[place] += 1


@allocating_kernel
def _between(columns: Ints, ends: Ints, out: NDArray[np.bool_]) -> None:
    """Fill rows between their crossings, two by two; `columns` gets sorted row by row."""
    start = 0
    for row in range(len(ends)):
        if ends[row] - start > FEW_CROSSINGS:
            columns[start : ends[row]].sort()
        else:
            for i in range(start + 1, ends[row]):
                kept, j = columns[i], i
                while j > start and columns[j - 1] > kept:
                    columns[j] = columns[j - 1]
                    j -= 1
                columns[j] = kept
        for i in range(start, ends[row] - 1, 2):
            out[row, columns[i] : columns[i + 1]] = True
        start = ends[row]


@kernel
def _chunk(
    vertices: Floats,
    ring_offsets: Ints,
    ring_chunks: Ints,
    chunks: Ints,
    boxes: Floats,
) -> None:
    for ring in range(len(ring_offsets) - 1):
        at = ring_offsets[ring]
        for chunk in range(ring_chunks[ring], ring_chunks[ring + 1]):
            last = min(at + CHUNK_EDGES, ring_offsets[ring + 1] - 1)
            chunks[chunk, 0], chunks[chunk, 1] = at, last
            x_min = x_max = vertices[at, 0]
            y_min = y_max = vertices[at, 1]
            for i in range(at + 1, last + 1):
                x_min, x_max = min(x_min, vertices[i, 0]), max(x_max, vertices[i, 0])
                y_min, y_max = min(y_min, vertices[i, 1]), max(y_max, vertices[i, 1])
            boxes[chunk, 0], boxes[chunk, 1], boxes[chunk, 2], boxes[chunk, 3] = x_min, y_min, x_max, y_max
            at = last


@kernel
def _measure(
    vertices: Floats,
    chunks: Ints,
    boxes: Floats,
    zone_chunks: Ints,
    zone_boxes: Floats,
    signed: Floats,
) -> None:
    for zone in range(len(zone_chunks) - 1):
        zone_boxes[zone] = np.nan
        signed[zone] = 0.0
        if zone_chunks[zone] == zone_chunks[zone + 1]:
            continue
        x_min = y_min = np.inf
        x_max = y_max = -np.inf
        # Relative to a vertex of the zone: shoelace terms of the size of the zone, not of its distance to the origin.
        x_ref, y_ref = vertices[chunks[zone_chunks[zone], 0], 0], vertices[chunks[zone_chunks[zone], 0], 1]
        for chunk in range(zone_chunks[zone], zone_chunks[zone + 1]):
            x_min, y_min = min(x_min, boxes[chunk, 0]), min(y_min, boxes[chunk, 1])
            x_max, y_max = max(x_max, boxes[chunk, 2]), max(y_max, boxes[chunk, 3])
            for i in range(chunks[chunk, 0], chunks[chunk, 1]):
                x0, y0 = vertices[i, 0] - x_ref, vertices[i, 1] - y_ref
                x1, y1 = vertices[i + 1, 0] - x_ref, vertices[i + 1, 1] - y_ref
                signed[zone] += x0 * y1 - x1 * y0
        signed[zone] *= 0.5
        zone_boxes[zone, 0], zone_boxes[zone, 1], zone_boxes[zone, 2], zone_boxes[zone, 3] = x_min, y_min, x_max, y_max


@kernel
def _add(
    at: int,
    word: int,
    bit: int,
    height: float,
    x_mid: float,
    col: int,
    cells: Floats,
    bits: NDArray[np.uint64],
) -> None:
    cells[at, 0] += height
    cells[at, 1] += height * (1.0 - (x_mid - col))
    bits[word] |= np.uint64(1) << np.uint64(bit)


@kernel
def _add_row(
    row: int,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    sign: float,
    col: int,
    col_stop: int,
    cells: Floats,
    bits: NDArray[np.uint64],
    left: Floats,
) -> None:
    """One edge inside one row of the window; columns and rows are relative to the window, x and y to the block."""
    width = col_stop - col
    words = (width + 63) >> 6
    if x0 > x1:
        x0, y0, x1, y1, sign = x1, y1, x0, y0, -sign
    if x1 <= col:
        left[row] += sign * (y1 - y0)
        return
    if x0 >= col_stop:
        return
    slope = 0.0 if x1 == x0 else (y1 - y0) / (x1 - x0)
    y_low, y_high = min(y0, y1), max(y0, y1)
    x, y = x0, y0
    if x < col:
        y = min(max(np.rint((y0 + (col - x0) * slope) * LATTICE) / LATTICE, y_low), y_high)
        left[row] += sign * (y - y0)
        x = float(col)
    c = int(np.floor(x))
    while c < col_stop:
        if x1 <= c + 1:
            x_next, y_next = x1, y1
        else:
            x_next = float(c + 1)
            y_next = min(max(np.rint((y0 + (x_next - x0) * slope) * LATTICE) / LATTICE, y_low), y_high)
        k = c - col
        _add(row * width + k, row * words + (k >> 6), k & 63, sign * (y_next - y), 0.5 * (x + x_next), c, cells, bits)
        if x1 <= c + 1:
            break
        x, y = x_next, y_next
        c += 1


@kernel
def _add_left(
    y0: float,
    y1: float,
    sign: float,
    row: int,
    row_stop: int,
    left: Floats,
) -> None:
    """An edge left of the window, y0 < y1: all cells to its right gain its height in their row."""
    y0, y1 = max(y0, float(row)), min(y1, float(row_stop))
    r = int(np.floor(y0))
    while y0 < y1:
        y_next = min(float(r + 1), y1)
        left[r - row] += sign * (y_next - y0)
        y0 = y_next
        r += 1


@kernel
def _add_edge(
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    row: int,
    col: int,
    row_stop: int,
    col_stop: int,
    cells: Floats,
    bits: NDArray[np.uint64],
    left: Floats,
) -> None:
    # Both directions of an edge are computed upward from the same end, so that neighbours that share it share its bits.
    if y0 == y1:
        return
    sign = 1.0
    if y0 > y1:
        x0, y0, x1, y1, sign = x1, y1, x0, y0, -1.0
    if y1 <= row or y0 >= row_stop or min(x0, x1) >= col_stop:
        return
    if max(x0, x1) <= col:
        _add_left(y0, y1, sign, row, row_stop, left)
        return
    slope = (x1 - x0) / (y1 - y0)
    x_low, x_high = min(x0, x1), max(x0, x1)
    x, y, y_end = x0, y0, min(y1, float(row_stop))
    if y < row:
        y = float(row)
        x = min(max(x0 + (y - y0) * slope, x_low), x_high)
    r = int(np.floor(y))
    while y < y_end:
        y_next = min(float(r + 1), y_end)
        x_next = x1 if y_next == y1 else min(max(x0 + (y_next - y0) * slope, x_low), x_high)
        _add_row(r - row, x, y, x_next, y_next, sign, col, col_stop, cells, bits, left)
        x, y = x_next, y_next
        r += 1


@kernel
def _trace(
    shapes: Outlines, zone: int, row0: int, col0: int, inside: tuple[int, int, int, int], cells: Floats,
    bits: NDArray[np.uint64], left: Floats,
) -> None:  # fmt: skip
    """Add all edges of a zone to the scratch of a window, whose rows and columns count from the block's corner."""
    row, col, row_stop, col_stop = inside
    for chunk in range(shapes.zone_chunks[zone], shapes.zone_chunks[zone + 1]):
        y_min, y_max = shapes.chunk_boxes[chunk, 1] - row0, shapes.chunk_boxes[chunk, 3] - row0
        if y_max <= row or y_min >= row_stop or shapes.chunk_boxes[chunk, 0] - col0 >= col_stop:
            continue
        begin, end = shapes.chunks[chunk, 0], shapes.chunks[chunk, 1]
        if shapes.chunk_boxes[chunk, 2] - col0 <= col:
            # A line wholly to the left: heights telescope, only its two ends matter.
            y0, y1 = shapes.vertices[begin, 1] - row0, shapes.vertices[end, 1] - row0
            if y0 < y1:
                _add_left(y0, y1, 1.0, row, row_stop, left)
            else:
                _add_left(y1, y0, -1.0, row, row_stop, left)
            continue
        x0, y0 = shapes.vertices[begin, 0] - col0, shapes.vertices[begin, 1] - row0
        for i in range(begin + 1, end + 1):
            x1, y1 = shapes.vertices[i, 0] - col0, shapes.vertices[i, 1] - row0
            _add_edge(x0, y0, x1, y1, row, col, row_stop, col_stop, cells, bits, left)
            x0, y0 = x1, y1


@kernel
def _sum_rows(
    window: Ints, sign: float, cells: Floats, bits: NDArray[np.uint64], left: Floats, made: int | np.int64,
    span_row: Ints32, span_col: Ints32, span_length: Ints32, span_weight: Floats,
) -> int | np.int64:  # fmt: skip
    """The running sum along each row of a window, as spans; clears the scratch and returns how many spans there are."""
    row, col, width = window[0], window[1], window[3] - window[1]
    words = (width + 63) >> 6
    for r in range(window[2] - row):
        total = left[r] * sign
        left[r] = 0.0
        done = 0
        for word in range(words):
            pending = bits[r * words + word]
            if pending == 0:
                continue
            bits[r * words + word] = 0
            while pending != 0:
                lowest = pending & (~pending + np.uint64(1))
                pending ^= lowest
                k = (word << 6) + BIT_INDEX[(lowest * DE_BRUIJN) >> np.uint64(58)]
                if k > done and total > 0.0:
                    span_row[made], span_col[made] = row + r, col + done
                    span_length[made], span_weight[made] = k - done, min(total, 1.0)
                    made += 1
                fraction = total + cells[r * width + k, 1] * sign
                if fraction > 0.0:
                    span_row[made], span_col[made] = row + r, col + k
                    span_length[made], span_weight[made] = 1, min(fraction, 1.0)
                    made += 1
                total += cells[r * width + k, 0] * sign
                cells[r * width + k, 0] = 0.0
                cells[r * width + k, 1] = 0.0
                done = k + 1
        if done < width and total > 0.0:
            span_row[made], span_col[made] = row + r, col + done
            span_length[made], span_weight[made] = width - done, min(total, 1.0)
            made += 1
    return made


@kernel
def _cover(
    shapes: Outlines, work: Pairs, start: int, cells: Floats, bits: NDArray[np.uint64], left: Floats, first: Ints,
    span_row: Ints32, span_col: Ints32, span_length: Ints32, span_weight: Floats,
) -> int:  # fmt: skip
    """Signed-area accumulation of pairs `start …` until the spans are full; returns the first pair not done.

    Shapes: cells (BLOCK², 2), bits (BLOCK²/64), left (BLOCK) are scratch, zero before and after; first (pair + 1)
        and the spans (SPAN_CAPACITY) are filled from 0.
    Units: pixel coordinates in, fractions of a cell out.
    Nodata: none.
    Reference: see `coverage`.
    """
    made = np.int64(0)  # a plain 0 would be a type of its own to numba, and its callees compiled twice
    first[0] = 0
    pair = start
    while pair < len(work.zone):
        zone, window = work.zone[pair], work.window[pair]
        if made + (window[2] - window[0]) * (window[3] - window[1]) > len(span_row):
            break
        row0, col0 = window[0] // BLOCK * BLOCK, window[1] // BLOCK * BLOCK
        inside = (window[0] - row0, window[1] - col0, window[2] - row0, window[3] - col0)
        _trace(shapes, zone, row0, col0, inside, cells, bits, left)
        sign = float(shapes.signs[zone])
        made = _sum_rows(window, sign, cells, bits, left, made, span_row, span_col, span_length, span_weight)
        pair += 1
        first[pair - start] = made
    return pair


@kernel
def _paint(
    first: Ints,
    row: Ints32,
    col: Ints32,
    length: Ints32,
    weight: Floats,
    zone: Ints,
    row0: int,
    col0: int,
    out: Floats,
) -> None:
    for pair in range(len(first) - 1):
        for span in range(first[pair], first[pair + 1]):
            for c in range(col[span], col[span] + length[span]):
                out[zone[pair], row[span] - row0, c - col0] += weight[span]


def warm_up() -> None:
    """Compile the kernels of this module, or load them from the cache."""
    square = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5], [0.5, 0.5]])
    shapes = outlines(square, np.array([0, 5]), np.array([0, 1]))
    coverage(shapes, (0, 0, 3, 3))
    centers(shapes, (0, 0, 3, 3))
