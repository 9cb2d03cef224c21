# ruff: noqa: PLR0917  a piece, its labels and its classes go together
"""Connected areas of a class map that is cut into pieces: what they are in all, which are too small, their outlines.

    piece ──looked_at──► Piece ──survey──► PieceRecord ──settle──► Settled: which labels stay, whose area they are
    Piece + Settled ──outlines──► Outlines of a piece ──drawn──► one shape per area

Areas that lie within a piece and are too small go at once; of the others only a line each leaves the piece, and the
rim. All sums are whole numbers and areas are numbered by their first pixel, so nothing depends on the cut.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import shapely
from msgspec import Struct

from eorouter_compute.errors import TooLarge
from eorouter_compute.grid import Grid, Window
from eorouter_compute.polygons import as_crs
from eorouter_kernels import labels as kernels
from eorouter_kernels import outlines as tracing

REGIONS_MAX = 1 << 24
"""Most labels on the rims of all pieces together."""

POLYGONS_MAX = 100_000
"""Most areas that are drawn: the largest."""

SIDES_MAX = 2_000_000
"""Most pixel sides of all outlines drawn together: largest areas first, longer outlines than that not at all."""

AREA_UNIT_M2 = 1e-3
"""Areas are summed in whole numbers of this."""

_AREA, _SCORE, _FIRST, _SIDES = range(4)


class Rule(Struct, frozen=True, kw_only=True):
    """What an area is, and which areas stay.

    Attributes:
        connectivity: 4 or 8.
        kinds: number of classes.
        least_pixels: smaller areas go.
        least_area: in `AREA_UNIT_M2`; smaller areas go.
        is_drawn: whether areas are drawn at all.
    """

    connectivity: int
    kinds: int
    least_pixels: int
    least_area: int
    is_drawn: bool


class Piece(Struct, frozen=True, kw_only=True):
    """A labelled piece: labels (y, x), 0 also where a small area went; by label from 0 on class counts and sums.

    Attributes:
        window: where it lies.
        groups: uint8 (y, x), 0 for no change.
        labels: int32 (y, x).
        counts: (label, class) int64.
        sums: (label, 4) int64: area, score, first pixel of the grid, sides.
        rim: labels that touch the rim of the piece, ascending.
    """

    window: Window
    groups: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    sums: np.ndarray
    rim: np.ndarray


class PieceRecord(Struct, frozen=True, array_like=True):
    """Of a piece, packed: places in `rim_rows` of the labels of its sides (top, bottom, left, right; int32, 0 none).

    `rim_rows` has group, pixels, area, first pixel, sides; `inner_rows` label, pixels, first pixel, sides of the
    largest areas that lie within the piece, `inner` of which there are.
    """

    window: Window
    rim: bytes
    rim_rows: bytes
    inner_rows: bytes
    inner: int


class Settled(Struct, frozen=True, array_like=True):
    """What became of a piece, packed: bits of the rim's labels that stay; which are drawn, (place in rim, area).

    And (label, area) of what is drawn of the areas within.
    """

    keep: bytes
    rim: bytes
    inner: bytes


class Outlines(Struct, frozen=True, array_like=True):
    """The parts in one piece of areas, packed, in pixels of the grid: areas, class counts, sums, and ragged shapes."""

    areas: bytes
    counts: bytes
    sums: bytes
    vertices: bytes
    rings: bytes
    polygons: bytes
    zones: bytes


def row_areas(grid: Grid, window: Window) -> np.ndarray:
    """Ground area of a pixel of each row of the window, int64 in `AREA_UNIT_M2`.

    In geographic systems on the system's ellipsoid, by the authalic formula (Snyder 1987, equation 3-12), rows
    along parallels; in projected systems in the plane of projection.
    """
    crs = as_crs(grid.crs)
    if not crs.is_geographic:
        factor = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
        area = grid.pixel_area * factor * factor
        return np.full(window.height, round(area / AREA_UNIT_M2), np.int64)
    ellipsoid = crs.ellipsoid
    major = ellipsoid.semi_major_metre if ellipsoid else 6378137.0
    flattening = 1.0 / ellipsoid.inverse_flattening if ellipsoid and ellipsoid.inverse_flattening else 0.0
    e2 = flattening * (2.0 - flattening)
    _, _, _, d, e, f = grid.transform
    # A rotated grid has no parallels for rows: those of the middle column stand for the row.
    edges = f + d * grid.shape[1] / 2 + e * np.arange(window.row, window.row_stop + 1)
    s = np.sin(np.radians(np.clip(edges, -90.0, 90.0)))
    if e2 > 0:
        root = np.sqrt(e2)
        q = s / (2 * (1 - e2 * s * s)) + np.arctanh(root * s) / (2 * root)
    else:
        q = s
    width = np.radians(grid.pixel_area / abs(e)) if e else 0.0
    return np.rint(major**2 * (1 - e2) * width * np.abs(np.diff(q)) / AREA_UNIT_M2).astype(np.int64)


def memory_bound(grid: Grid, rule: Rule) -> int:
    """Most bytes that settling the areas of a grid takes, or drawing them, if neither is more than noise makes it."""
    pixels = grid.window.pixels
    lines = min(REGIONS_MAX, pixels // 64) * 160 + (4 * POLYGONS_MAX * 160 if rule.is_drawn else 0)
    drawn = min(SIDES_MAX, 2 * pixels) * 180 + min(POLYGONS_MAX, pixels) * 1_000 if rule.is_drawn else 0
    return max(min(lines, pixels * 160), drawn) + (64 << 20)


def looked_at(
    grid: Grid, window: Window, classes: np.ndarray, groups: np.ndarray, score: np.ndarray, rule: Rule
) -> Piece:
    """Label a piece, sum what its labels hold, and let go what is too small whatever lies around the piece.

    Args:
        grid: the whole grid.
        window: the piece.
        classes: uint8 (y, x).
        groups: uint8 (y, x), 0 for no change.
        score: int64 (y, x).
        rule: what stays.
    """
    labels = np.empty(groups.shape, np.int32)
    count = kernels.label(np.ascontiguousarray(groups), rule.connectivity == 8, labels)
    counts = np.zeros((count + 1, rule.kinds), np.int64)
    sums = np.zeros((count + 1, 4), np.int64)
    sums[:, _FIRST] = np.iinfo(np.int64).max
    kernels.tally(labels, classes, score, row_areas(grid, window), counts, sums)
    keep = (counts.sum(axis=1) >= rule.least_pixels) & (sums[:, _AREA] >= rule.least_area)
    sides = labels[0], labels[-1], labels[:, 0], labels[:, -1]
    keep[np.concatenate(sides)] = True
    keep[0] = True
    if not keep.all():
        number = (np.cumsum(keep, dtype=np.int32) - 1) * keep
        labels, counts, sums = number[labels], counts[keep], sums[keep]
    # From the first pixel in the piece to the first pixel in the grid.
    y, x = np.divmod(sums[1:, _FIRST], window.width)
    sums[1:, _FIRST] = (window.row + y) * grid.shape[1] + window.col + x
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return Piece(window=window, groups=groups, labels=labels, counts=counts, sums=sums, rim=rim[rim > 0])


def survey(piece: Piece, rule: Rule) -> PieceRecord:
    """What the others must know of a piece."""
    labels, pixels = piece.labels, piece.counts.sum(axis=1)
    kind = np.zeros(len(pixels), np.int64)
    kind[labels.reshape(-1)] = piece.groups.reshape(-1)
    place = np.zeros(len(pixels), np.int32)
    place[piece.rim] = np.arange(1, len(piece.rim) + 1)
    rim = place[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])]
    rows = [kind, pixels, *piece.sums[:, [_AREA, _FIRST, _SIDES]].T]
    inner = np.flatnonzero(place[1:] == 0) + 1
    found = len(inner)
    short = inner[piece.sums[inner, _SIDES] <= SIDES_MAX]
    if len(short) > POLYGONS_MAX:
        short = np.sort(_largest(short, pixels[short], piece.sums[short, _FIRST]))
    inner_rows = np.column_stack([short, pixels[short], piece.sums[short][:, [_FIRST, _SIDES]]])
    return PieceRecord(
        piece.window,
        _pack(rim),
        _pack(np.column_stack([row[piece.rim] for row in rows])),
        _pack(inner_rows if rule.is_drawn else inner_rows[:0]),
        found,
    )


def _largest(places: np.ndarray, pixels: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The places of the largest areas that may be drawn, of equal ones those that come first."""
    return places[np.lexsort((first, -pixels))[:POLYGONS_MAX]]


def _pack(array: np.ndarray) -> bytes:
    return zlib.compress(np.ascontiguousarray(array).tobytes(), 1)


def _unpack(data: bytes, dtype: str, width: int = 0) -> np.ndarray:
    found = np.frombuffer(zlib.decompress(data), dtype)
    return found.reshape(-1, width) if width else found


def settle(grid: Grid, pieces: Sequence[PieceRecord], rule: Rule) -> tuple[list[Settled], int]:
    """Join labels across pieces; which areas stay and which are drawn, per piece; how many that stay are not drawn.

    Args:
        grid: the whole grid.
        pieces: records that cover it once.
        rule: what stays.

    Raises:
        TooLarge: there are more than `REGIONS_MAX` labels on the rims.
    """
    rows = [_unpack(piece.rim_rows, "int64", 5) for piece in pieces]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in rows])]).astype(np.int64)
    if offsets[-1] > REGIONS_MAX:
        raise TooLarge(
            f"The class map falls into {int(offsets[-1]):,} areas at the rims of its pieces; at most {REGIONS_MAX:,} "
            "are sorted. Raise the threshold, or ask for neither polygons nor a smallest area.",
            pointer="/threshold",
        )
    table = np.concatenate([np.zeros((1, 5), np.int64), *rows])
    parent = np.arange(len(table), dtype=np.int64)
    pairs, shared = _touching(grid, pieces, offsets, table[:, 0], is_eight=rule.connectivity == 8)
    kernels.unite(pairs, parent)
    totals = np.zeros((len(table), 3), np.int64)  # pixels, area, sides
    first = np.full(len(table), np.iinfo(np.int64).max)
    np.add.at(totals, parent, table[:, [1, 2, 4]])
    np.minimum.at(first, parent[1:], table[1:, 3])
    np.subtract.at(totals[:, 2], parent[shared[:, 0]], 2 * shared[:, 1])
    stays = (totals[:, 0] >= max(rule.least_pixels, 1)) & (totals[:, 1] >= rule.least_area)
    # An area: pixels, first pixel, sides, the piece it lies within (or none), and its label there (or its root).
    roots = np.flatnonzero(stays & (parent == np.arange(len(parent))))
    found = len(roots) + sum(piece.inner for piece in pieces)
    known = np.column_stack([totals[roots, 0], first[roots], totals[roots, 2], np.full(len(roots), -1), roots])
    chosen = _chosen(known[known[:, 2] <= SIDES_MAX], pieces) if rule.is_drawn else known[:0]
    chosen = np.column_stack([chosen[np.argsort(chosen[:, 1])], np.arange(len(chosen))])
    number = np.full(len(table), -1, np.int64)
    across = chosen[chosen[:, 3] < 0]
    number[across[:, 4]] = across[:, 5]
    within = chosen[np.argsort(chosen[:, 3], kind="stable")]
    begins = np.searchsorted(within[:, 3], np.arange(len(pieces) + 1))
    out = []
    for place, (begin, end) in enumerate(pairwise(offsets)):
        own = parent[begin + 1 : end + 1]
        on_rim = np.flatnonzero(number[own] >= 0)
        inner = within[begins[place] : begins[place + 1], 4:6]
        rim = np.column_stack([on_rim, number[own][on_rim]])
        out.append(Settled(_pack(np.packbits(stays[own])), _pack(rim), _pack(inner)))
    return out, found - len(chosen) if rule.is_drawn else 0


def _chosen(known: np.ndarray, pieces: Sequence[PieceRecord]) -> np.ndarray:
    """The areas that are drawn: the largest, as many as may be. Piece after piece, so that few are held at once."""

    def largest(rows: np.ndarray) -> np.ndarray:
        return rows[_largest(np.arange(len(rows)), rows[:, 0], rows[:, 1])]

    for place, piece in enumerate(pieces):
        rows = _unpack(piece.inner_rows, "int64", 4)
        known = np.concatenate([known, np.column_stack([rows[:, 1:], np.full(len(rows), place), rows[:, 0]])])
        if len(known) > 4 * POLYGONS_MAX:
            known = largest(known)
    known = largest(known)
    return known[np.cumsum(known[:, 2]) <= SIDES_MAX]


def _touching(
    grid: Grid, pieces: Sequence[PieceRecord], offsets: np.ndarray, kind: np.ndarray, *, is_eight: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of labels of different pieces that touch and are of one group; and (label, sides) that they share."""
    height, width = grid.shape
    rows: dict[int, list[np.ndarray]] = {}
    cols: dict[int, list[np.ndarray]] = {}

    def line(lines: dict[int, list[np.ndarray]], at: int, side: int, begin: int, part: np.ndarray, size: int) -> None:
        pair = lines.setdefault(at, [np.zeros(size, np.int64), np.zeros(size, np.int64)])
        pair[side][begin : begin + len(part)] = part

    for piece, offset in zip(pieces, offsets, strict=False):
        rim = _unpack(piece.rim, "int32").astype(np.int64)
        rim[rim > 0] += offset
        place = piece.window
        top, bottom, left, right = np.split(rim, np.cumsum([place.width, place.width, place.height]))
        line(rows, place.row, 1, place.col, top, width)
        line(rows, place.row_stop, 0, place.col, bottom, width)
        line(cols, place.col, 1, place.row, left, height)
        line(cols, place.col_stop, 0, place.row, right, height)
    none = np.zeros((0, 2), np.int64)
    found, shared = [none], [none]
    for one, other in (*rows.values(), *cols.values()):
        shifts = [(one, other), (one[1:], other[:-1]), (one[:-1], other[1:])] if is_eight else [(one, other)]
        for number, (a, b) in enumerate(shifts):
            is_pair = (a > 0) & (b > 0) & (kind[a] == kind[b])
            pairs, times = np.unique(np.column_stack([a[is_pair], b[is_pair]]), axis=0, return_counts=True)
            found.append(pairs)
            if number == 0:
                shared.append(np.column_stack([pairs[:, 0], times]))
    return np.ascontiguousarray(np.concatenate(found)), np.concatenate(shared)


def sieve(piece: Piece, settled: Settled, classes: np.ndarray, unchanged: int) -> None:
    """Give pixels of areas that go the class `unchanged`, in place."""
    keep = np.ones(len(piece.counts), np.bool_)
    keep[0] = False
    keep[piece.rim] = np.unpackbits(_unpack(settled.keep, "uint8"), count=len(piece.rim)).astype(np.bool_)
    classes[(piece.groups > 0) & ~keep[piece.labels]] = unchanged


def outlines(piece: Piece, settled: Settled, rule: Rule) -> Outlines | None:
    """Shapes and sums, within a piece, of the areas that are drawn; None where there are none."""
    on_rim, inner = _unpack(settled.rim, "int64", 2), _unpack(settled.inner, "int64", 2)
    areas = np.concatenate([on_rim[:, 1], inner[:, 1]])
    if not len(areas):
        return None
    own = np.concatenate([piece.rim[on_rim[:, 0]], inner[:, 0]])[np.argsort(areas)]
    areas.sort()
    place = np.zeros(len(piece.counts), np.int32)
    place[own] = np.arange(1, len(own) + 1)
    drawn = place[piece.labels]
    parts, zone_of = drawn, np.arange(len(own) + 1)
    if rule.connectivity == 8:
        parts = np.empty_like(drawn)
        count = kernels.label(piece.groups * (drawn > 0), False, parts)
        zone_of = np.zeros(count + 1, np.int64)
        zone_of[parts.reshape(-1)] = drawn.reshape(-1)
    xy, ends, owners, holes = _traced(drawn, parts)
    offsets, vertices, polygons, zones = _gathered(xy, ends, owners, holes, zone_of[owners])
    return Outlines(
        _pack(areas),
        _pack(piece.counts[own]),
        _pack(piece.sums[own][:, [_AREA, _SCORE]]),
        _pack(vertices + np.array([piece.window.col, piece.window.row], np.int32)),
        _pack(offsets),
        _pack(polygons),
        _pack(np.searchsorted(zones, np.arange(1, len(own) + 2))),
    )


def _traced(areas: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Vertices (vertex, 2) int32, and of each ring its end, its part, and whether it is a hole."""
    most = tracing.vertices_most(areas)
    xy, ends = np.empty((most, 2), np.int32), np.empty(most // 4, np.int64)
    owners, holes = np.empty(most // 4, np.int32), np.empty(most // 4, np.bool_)
    count = tracing.trace(areas, parts, xy, ends, owners, holes)
    return xy, ends[:count], owners[:count], holes[:count]


def drawn(found: Sequence[Outlines], kinds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapes in pixels of the grid, class counts (area, class), ground area and score (area, 2) of all areas in order.

    The same however the areas were cut: only corners, rings in the normal order of GEOS.
    """
    zones = np.concatenate([_unpack(each.areas, "int64") for each in found])
    counts, sums = (
        np.concatenate([_unpack(getattr(each, name), "int64", width) for each in found])
        for name, width in (("counts", kinds), ("sums", 2))
    )
    order = np.argsort(zones, kind="stable")
    begins = np.flatnonzero(np.diff(zones[order], prepend=-1))
    points, after, parts, areas = _sides(found, zones)
    after, parts, knots = _stitched(points, after, parts, areas)
    most = len(points) + len(points) // 4
    xy, ends = np.empty((most, 2), np.int32), np.empty(most // 5 + 1, np.int64)
    owners, holes = np.empty(len(ends), np.int64), np.empty(len(ends), np.bool_)
    count = tracing.stitch(after, knots, points, parts, xy, ends, owners, holes)
    area_of = np.empty(int(parts.max()) + 1, np.int64)
    area_of[parts] = areas
    shapes = _assembled(xy, ends[:count], owners[:count], holes[:count], area_of)
    return shapes, np.add.reduceat(counts[order], begins), np.add.reduceat(sums[order], begins)


def _sides(found: Sequence[Outlines], zones: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sides of all rings: where each begins (side, 2), the next one, and the part and the area it bounds."""
    points, after, parts, areas = [], [], [], []
    sides, polygons, entries = 0, 0, 0
    for each in found:
        vertices, rings, shells, own = (
            _unpack(each.vertices, "int32", 2), _unpack(each.rings, "int64"), _unpack(each.polygons, "int64"),
            _unpack(each.zones, "int64"),
        )  # fmt: skip
        is_last = np.zeros(len(vertices), np.bool_)
        is_last[rings[1:] - 1] = True
        points.append(vertices[~is_last])
        lengths = np.diff(rings) - 1
        stops = np.cumsum(lengths)
        following = np.arange(1, stops[-1] + 1)
        following[stops - 1] = stops - lengths
        after.append(following + sides)
        part = np.repeat(np.arange(len(shells) - 1), np.add.reduceat(lengths, shells[:-1]))
        parts.append(part + polygons)
        areas.append(np.repeat(zones[entries : entries + len(own) - 1], np.diff(own))[part])
        sides, polygons, entries = sides + int(stops[-1]), polygons + len(shells) - 1, entries + len(own) - 1
    return tuple(np.concatenate(each) for each in (points, after, parts, areas))


def _stitched(
    points: np.ndarray, after: np.ndarray, parts: np.ndarray, areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Links, parts and knots (see `outlines.stitch`) when sides that two pieces of one area share have gone.

    Of the sides of one area that meet at a point, at most one has lost its next side, and then one its last one.
    """
    width, height = (points.max(axis=0).astype(np.int64) + 1).tolist()
    key = (areas * height + points[:, 1]) * width + points[:, 0]
    goal = key[after]
    # A shared side is there twice, once each way; on the rim of a piece all are one pixel long.
    short = np.flatnonzero((np.abs(goal - key) == 1) | (np.abs(goal - key) == width))
    low = np.minimum(key, goal)[short]
    across = np.abs(goal - key)[short] == width
    order = np.lexsort((across, low))
    same = (low[order][1:] == low[order][:-1]) & (across[order][1:] == across[order][:-1])
    pairs = np.column_stack([short[order[:-1]][same], short[order[1:]][same]])
    whole = np.arange(int(parts.max()) + 1)
    kernels.unite(parts[pairs], whole)
    is_gone = np.zeros(len(key), np.bool_)
    is_gone[pairs] = True
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    ending = np.flatnonzero(~is_gone & is_gone[after])
    beginning = np.flatnonzero(~is_gone & is_gone[before])
    after[ending[np.argsort(goal[ending])]] = beginning[np.argsort(key[beginning])]
    after[is_gone] = -1
    left = np.flatnonzero(~is_gone)
    order = left[np.argsort(key[left])]
    twice = key[order][1:] == key[order][:-1]
    knots = np.full(len(key), -1)
    knots[order[:-1][twice]], knots[order[1:][twice]] = order[1:][twice], order[:-1][twice]
    return after, whole[parts], knots


def _assembled(
    xy: np.ndarray, ends: np.ndarray, owners: np.ndarray, holes: np.ndarray, area_of: np.ndarray
) -> np.ndarray:
    """Polygons and multipolygons of rings, one of each area, in order of their numbers."""
    offsets, vertices, polygons, areas = _gathered(xy, ends, owners, holes, area_of[owners])
    zones = np.flatnonzero(np.diff(areas, prepend=-1, append=areas[-1] + 1))
    levels = offsets, polygons, zones
    shapes = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, vertices.astype(np.float64), levels)
    single = np.diff(zones) == 1
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    return shapely.normalize(shapes)


def _gathered(
    xy: np.ndarray, ends: np.ndarray, owners: np.ndarray, holes: np.ndarray, areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rings by area and part, shell before holes: offsets of rings, vertices, offsets of polygons, their areas."""
    rings = np.lexsort((holes, owners, areas))
    begins = np.concatenate([[0], ends[:-1]])
    sizes = (ends - begins)[rings]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    taken = np.repeat(begins[rings] - offsets[:-1], sizes) + np.arange(offsets[-1])
    shells = np.flatnonzero(~holes[rings])
    return offsets, xy[taken], np.append(shells, len(rings)), areas[rings[shells]]
