# ruff: noqa: PLR0917  a piece, its labels and its classes go together
"""Connected areas of a class map that is cut into pieces: what they are in all, which are too small, their outlines.

    piece ──survey──► PieceRecord (labels of its rim, sums per label) ──settle──► which labels stay, whose area they are
    piece + what was settled ──outlines──► polygons of a piece ──joined──► one shape per area

Only rims and sums leave a piece. All sums are whole numbers and areas are numbered by their first pixel, so nothing
depends on the cut.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import shapely
from msgspec import Struct

from eorouter_compute.errors import TooLarge
from eorouter_compute.grid import Grid, Window
from eorouter_compute.polygons import as_crs
from eorouter_kernels import labels as kernels

REGIONS_MAX = 1 << 24
"""Most labels of all pieces together."""

POLYGONS_MAX = 100_000
"""Most areas that are drawn: the largest."""

AREA_UNIT_M2 = 1e-3
"""Areas are summed in whole numbers of this."""

SUMS = 3


class PieceRecord(Struct, frozen=True, array_like=True):
    """Of a piece: rim labels (top, bottom, left, right; int32, packed), and per label its group and sums (packed)."""

    window: Window
    count: int
    rim: bytes
    groups: bytes
    counts: bytes
    sums: bytes


class Settled(Struct, frozen=True, array_like=True):
    """What became of the labels of a piece: bits of those that stay, and for those that are drawn (label, area)."""

    keep: bytes
    drawn: bytes


class Outline(Struct, frozen=True, array_like=True):
    """The part of an area in one piece, in pixels of the grid (WKB), and its sums."""

    area: int
    shape: bytes
    counts: tuple[int, ...]
    sums: tuple[int, int]


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


def labelled(groups: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """Labels (y, x) int32 of a piece and their number."""
    out = np.empty(groups.shape, np.int32)
    return out, kernels.label(np.ascontiguousarray(groups), connectivity == 8, out)


def survey(
    grid: Grid, window: Window, classes: np.ndarray, groups: np.ndarray, score: np.ndarray, *, connectivity: int,
    kinds: int,
) -> PieceRecord:  # fmt: skip
    """Label a piece and sum what its labels hold.

    Args:
        grid: the whole grid.
        window: the piece.
        classes: uint8 (y, x).
        groups: uint8 (y, x), 0 for no change.
        score: int64 (y, x).
        connectivity: 4 or 8.
        kinds: number of classes.
    """
    labels, count = labelled(groups, connectivity)
    counts, sums = _tallied(grid, window, labels, count, classes, score, kinds)
    kind = np.zeros(count + 1, np.uint8)
    kind[labels.reshape(-1)] = groups.reshape(-1)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return PieceRecord(window, count, _pack(rim), _pack(kind[1:]), _pack(counts[1:]), _pack(sums[1:]))


def _tallied(
    grid: Grid, window: Window, labels: np.ndarray, count: int, classes: np.ndarray, score: np.ndarray, kinds: int
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros((count + 1, kinds), np.int64)
    sums = np.zeros((count + 1, SUMS), np.int64)
    sums[:, 2] = np.iinfo(np.int64).max
    kernels.tally(labels, classes, score, row_areas(grid, window), counts, sums)
    # From the first pixel in the piece to the first pixel in the grid.
    y, x = sums[1:, 2] // window.width, sums[1:, 2] % window.width
    sums[1:, 2] = (window.row + y) * grid.shape[1] + window.col + x
    return counts, sums


def _pack(array: np.ndarray) -> bytes:
    return zlib.compress(np.ascontiguousarray(array).tobytes(), 1)


def _unpack(data: bytes, dtype: str, width: int = 0) -> np.ndarray:
    found = np.frombuffer(zlib.decompress(data), dtype)
    return found.reshape(-1, width) if width else found


def settle(
    grid: Grid, pieces: Sequence[PieceRecord], *, connectivity: int, kinds: int, least_pixels: int, least_area: int,
    is_drawn: bool,
) -> tuple[list[Settled], int]:  # fmt: skip
    """Join labels across pieces; which areas stay and which are drawn, per piece; how many that stay are not drawn.

    Args:
        grid: the whole grid.
        pieces: records that cover it once.
        connectivity: 4 or 8.
        kinds: number of classes.
        least_pixels: smaller areas go.
        least_area: in `AREA_UNIT_M2`; smaller areas go.
        is_drawn: whether areas are drawn at all.

    Raises:
        TooLarge: there are more than `REGIONS_MAX` labels.
    """
    offsets = np.concatenate([[0], np.cumsum([piece.count for piece in pieces])]).astype(np.int64)
    if offsets[-1] > REGIONS_MAX:
        raise TooLarge(
            f"The class map falls into {int(offsets[-1]):,} areas; at most {REGIONS_MAX:,} are sorted. "
            "Raise the threshold, or ask for neither polygons nor a smallest area.",
            pointer="/threshold",
        )
    parent = np.arange(offsets[-1] + 1, dtype=np.int64)
    kind = np.concatenate([[np.uint8(0)], *(_unpack(piece.groups, "uint8") for piece in pieces)])
    pairs = _touching(grid, pieces, offsets, kind, is_eight=connectivity == 8)
    kernels.unite(pairs, parent)
    totals = np.zeros((len(parent), kinds + 2), np.int64)
    first = np.full(len(parent), np.iinfo(np.int64).max)
    for piece, offset in zip(pieces, offsets, strict=False):
        roots = parent[offset + 1 : offset + 1 + piece.count]
        sums = _unpack(piece.sums, "int64", SUMS)
        np.add.at(totals, roots, np.hstack([_unpack(piece.counts, "int64", kinds), sums[:, :2]]))
        np.minimum.at(first, roots, sums[:, 2])
    pixels = totals[:, :kinds].sum(axis=1)
    stays = (pixels >= max(least_pixels, 1)) & (totals[:, kinds] >= least_area)
    number = np.full(len(parent), -1, np.int64)
    left_out = 0
    if is_drawn:
        places = np.flatnonzero(stays)
        by_size = places[np.lexsort((first[places], -pixels[places]))][:POLYGONS_MAX]
        left_out = len(places) - len(by_size)
        by_place = by_size[np.argsort(first[by_size], kind="stable")]
        number[by_place] = np.arange(len(by_place))
    out = []
    for piece, offset in zip(pieces, offsets, strict=False):
        roots = parent[offset + 1 : offset + 1 + piece.count]
        drawn = np.flatnonzero(number[roots] >= 0)
        table = np.column_stack([drawn + 1, number[roots][drawn]]).astype(np.int64)
        out.append(Settled(_pack(np.packbits(stays[roots])), _pack(table)))
    return out, left_out


def _touching(
    grid: Grid, pieces: Sequence[PieceRecord], offsets: np.ndarray, kind: np.ndarray, *, is_eight: bool
) -> np.ndarray:
    """Pairs of labels of different pieces that touch and are of one group."""
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
    found = [np.zeros((0, 2), np.int64)]
    for one, other in (*rows.values(), *cols.values()):
        shifts = [(one, other), (one[1:], other[:-1]), (one[:-1], other[1:])] if is_eight else [(one, other)]
        for a, b in shifts:
            is_pair = (a > 0) & (b > 0) & (kind[a] == kind[b])
            found.append(np.unique(np.column_stack([a[is_pair], b[is_pair]]), axis=0))
    return np.ascontiguousarray(np.concatenate(found))


def sieved(labels: np.ndarray, count: int, settled: Settled, classes: np.ndarray, unchanged: int) -> None:
    """Give pixels of areas that go the class `unchanged`, in place."""
    keep = np.concatenate([[True], np.unpackbits(_unpack(settled.keep, "uint8"), count=count).astype(np.bool_)])
    classes[~keep[labels]] = unchanged


def outlines(
    grid: Grid, window: Window, labels: np.ndarray, count: int, settled: Settled, classes: np.ndarray,
    score: np.ndarray, kinds: int,
) -> list[Outline]:  # fmt: skip
    """Shapes and sums, within a piece, of the areas that are drawn."""
    from rasterio.features import shapes

    table = _unpack(settled.drawn, "int64", 2)
    if not len(table):
        return []
    area_of = np.full(count + 1, -1, np.int64)
    area_of[table[:, 0]] = table[:, 1]
    parts: dict[int, list[shapely.Geometry]] = {}
    for shape, value in shapes(labels, mask=area_of[labels] >= 0, connectivity=4):
        parts.setdefault(int(value), []).append(shapely.geometry.shape(shape))
    counts, sums = _tallied(grid, window, labels, count, classes, score, kinds)
    out = []
    for number, polygons in sorted(parts.items()):
        place = shapely.transform(shapely.multipolygons(polygons), lambda xy: xy + np.array([window.col, window.row]))
        row = sums[number]
        out.append(
            Outline(
                int(area_of[number]),
                bytes(shapely.to_wkb(place)),
                tuple(map(int, counts[number])),
                (int(row[0]), int(row[1])),
            )
        )
    return out


def joined(outlines: Sequence[Outline]) -> shapely.Geometry:
    """The parts of one area as one shape in pixels, the same however it was cut: only corners, rings in fixed order."""
    shape = shapely.union_all(shapely.from_wkb([outline.shape for outline in outlines]))
    polygons = [
        shapely.Polygon(_corners(polygon.exterior), [_corners(ring) for ring in polygon.interiors])
        for polygon in shapely.get_parts(shape)
    ]
    return shapely.normalize(polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons))


def _corners(ring: shapely.LinearRing) -> np.ndarray:
    """Points of a ring along pixel sides where it turns."""
    xy = shapely.get_coordinates(ring)[:-1]
    turns = (np.roll(xy, 1, axis=0) != np.roll(xy, -1, axis=0)).all(axis=1)
    return xy[turns]
