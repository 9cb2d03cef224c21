"""Where pixels of one grid lie in another: PROJ at few places, straight lines between them.

The target is cut into squares that lie on multiples of their side, counted from its first pixel. A square is asked at
nine places; where its corners predict the other five to within the tolerance it is a leaf, else it is quartered, and
small ones that still bend get a node per pixel. A square's fate depends on the two grids alone, never on the window
asked for, so positions are the same however the work is cut. Longitudes wrap. Where PROJ has no answer, or one that
does not lead back to where it came from, there is no position.
"""

import threading
from typing import Any, NamedTuple

import numpy as np

from eorouter_compute.grid import Grid, Window

TOLERANCE_PX = 0.125
"""Largest error of an approximated pixel position, in source pixels; 0 asks for exact positions."""

ROOT_SIDE = 256
DENSE_SIDE = 16
_EXACT_SIDE = 64
_VOID_SIDE = 32
_BACK_PX = 0.05
_LINEAR_PX = 1e-6


class Mesh(NamedTuple):
    """Leaves (n, 8) and nodes (m, 2) as `eorouter_kernels.resample` takes them; `period`: see `Locator`."""

    leaves: np.ndarray
    nodes: np.ndarray
    period: float


class Locator:
    """Finds places of a target grid in a source grid.

    Attributes:
        period: source columns around the globe; 0 where x does not wrap or the source is turned against it.
        wraps: the source covers every longitude, its last column is beside its first; `period` is whole then.
    """

    def __init__(self, source: Grid, target: Grid) -> None:
        self.source, self.target = source, target
        self._there, self._back = _transformers.between(target.crs, source.crs)
        around = _transformers.around(source.crs)
        a, b, c, d, e, f = source.transform
        height, width = source.shape
        self._around = around
        self._centre = c + 0.5 * (a * width + b * height)
        self._inverse = (e, -b, -d, a, a * e - b * d, c, f)
        self.period = abs(around / a) if around and b == 0 and d == 0 else 0.0
        self.wraps = bool(self.period) and abs(width - self.period) < 0.01 and width > 1
        if self.wraps:
            self.period = float(width)
        self.is_linear = self._there is None

    def locate(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source (x, y) in pixels of target places given in pixels, 0.5 being the centre of the first; NaN for none."""
        a, b, c, d, e, f = self.target.transform
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        u, v = x, y
        if self._there is not None:
            u, v = self._there.transform(x, y)
            u, v = np.asarray(u), np.asarray(v)
            lost = ~(np.isfinite(u) & np.isfinite(v)) | self._strays(x, y, u, v)
            u, v = np.where(lost, np.nan, u), np.where(lost, np.nan, v)
        if self._around:
            u = u - self._around * np.floor((u - self._centre) / self._around + 0.5)
        p, q, r, s, det, left, top = self._inverse
        return (p * (u - left) + q * (v - top)) / det, (r * (u - left) + s * (v - top)) / det

    def _strays(self, x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Places that PROJ projects, but to where another place belongs."""
        back_x, back_y = (np.asarray(each) for each in self._back.transform(u, v))
        away_x, away_y = back_x - x, back_y - y
        around = _transformers.around(self.target.crs)
        if around:
            away_x = away_x - around * np.rint(away_x / around)
            if _transformers.is_geographic(self.target.crs):
                away_x = np.where(np.abs(y) > around / 4 * (1 - 1e-9), 0.0, away_x)
        a, b, _, d, e, _ = self.target.transform
        return ~(np.hypot(away_x, away_y) <= _BACK_PX * min(np.hypot(a, d), np.hypot(b, e)))

    def mesh(self, window: Window, tolerance_px: float) -> Mesh:
        """Positions of the pixels of a window; of whole squares, so of some beyond it."""
        is_exact = tolerance_px == 0 and not self.is_linear
        side = _EXACT_SIDE if is_exact else ROOT_SIDE
        tolerance = max(tolerance_px, _LINEAR_PX) if self.is_linear else tolerance_px
        tops = np.arange(window.row - window.row % side, window.row_stop, side)
        lefts = np.arange(window.col - window.col % side, window.col_stop, side)
        corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
        leaves: list[np.ndarray] = []
        nodes: list[np.ndarray] = []
        while not is_exact and len(corners):
            squares = self._squares(corners, side)
            at = self._at_nine(squares)
            kept = self._fits(at, tolerance)
            if side <= _VOID_SIDE:
                kept |= np.isnan(at[:, 0]).all(axis=(1, 2))
            leaves.append(squares[kept])
            nodes.append(at[kept][:, :, ::2, ::2].transpose(0, 2, 3, 1).reshape(-1, 2))
            corners = corners[~kept]
            if side <= DENSE_SIDE:
                break
            side //= 2
            corners = self._quartered(corners, side, window)
        if len(corners):
            squares = self._squares(corners, side)
            squares[:, 6] = 1
            leaves.append(squares)
            nodes.append(self._at_every(squares))
        every = np.concatenate(leaves)
        counts = np.where(every[:, 6] == 1, (every[:, 2] + 1) * (every[:, 3] + 1), 4)
        every[:, 7] = np.cumsum(counts) - counts
        return Mesh(every, np.concatenate(nodes), self.period)

    def _squares(self, corners: np.ndarray, side: int) -> np.ndarray:
        squares = np.zeros((len(corners), 8), np.int64)
        squares[:, :2] = corners
        for axis in (0, 1):
            stop = np.minimum(corners[:, axis] + side, self.target.shape[axis])
            squares[:, 2 + axis] = stop - corners[:, axis]
            # At the grid's rim the last pixel carries the node: there need be no place beyond.
            squares[:, 4 + axis] = np.maximum(np.where(stop < corners[:, axis] + side, stop - 1, stop), 1)
            squares[:, 4 + axis] = np.maximum(squares[:, 4 + axis] - corners[:, axis], 1)
        return squares

    def _quartered(self, corners: np.ndarray, side: int, window: Window) -> np.ndarray:
        """Quarters that the window touches and the grid holds."""
        steps = np.array([(0, 0), (0, side), (side, 0), (side, side)])
        each = (corners[:, None, :] + steps).reshape(-1, 2)
        starts = np.array([window.row - side, window.col - side])
        stops = np.minimum([window.row_stop, window.col_stop], self.target.shape)
        return each[((each > starts) & (each < stops)).all(axis=1)]

    def _at_nine(self, squares: np.ndarray) -> np.ndarray:
        """Positions (square, xy, 3, 3)."""
        halves = np.array([0.0, 0.5, 1.0])
        rows = squares[:, 0, None, None] + 0.5 + halves[:, None] * squares[:, 4, None, None]
        cols = squares[:, 1, None, None] + 0.5 + halves[None, :] * squares[:, 5, None, None]
        rows, cols = np.broadcast_arrays(rows, cols)
        x, y = self.locate(rows.ravel(), cols.ravel())
        x, y = x.reshape(rows.shape), y.reshape(rows.shape)
        if self.wraps:
            # One branch per square; whole periods may then be added to it.
            x = _unwrapped(_unwrapped(x, 2, self.period), 1, self.period)
        return np.stack([x, y], axis=1)

    def _at_every(self, squares: np.ndarray) -> np.ndarray:
        rows, cols = [], []
        for square in squares:
            row, col = np.mgrid[: square[2] + 1, : square[3] + 1]
            rows.append(row.ravel() + (square[0] + 0.5))
            cols.append(col.ravel() + (square[1] + 0.5))
        return np.stack(self.locate(np.concatenate(rows), np.concatenate(cols)), axis=1)

    @staticmethod
    def _fits(at: np.ndarray, tolerance: float) -> np.ndarray:
        corners = at[:, :, ::2, ::2]
        middle = corners.mean(axis=(2, 3))
        errors = [np.abs(at[:, :, 1, 1] - middle).sum(axis=1)]
        for near, far, row, col in ((0, 0, 0, 1), (1, 1, 2, 1)):
            errors.append(np.abs(at[:, :, row, col] - corners[:, :, near].mean(axis=2)).sum(axis=1))
            errors.append(np.abs(at[:, :, col, row] - corners[:, :, :, far].mean(axis=2)).sum(axis=1))
        worst = np.max(errors, axis=0)
        return worst <= tolerance


def _unwrapped(x: np.ndarray, axis: int, period: float) -> np.ndarray:
    """`x` with jumps of whole periods along an axis taken out; the first stays."""
    steps = np.rint(np.diff(x, axis=axis) / period)
    turns = np.concatenate([np.zeros_like(np.take(x, [0], axis=axis)), np.cumsum(steps, axis=axis)], axis=axis)
    return x - period * turns


class _Transformers(threading.local):
    """PROJ's pipelines of one thread: they must not be shared, and are slow to make."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._known: dict[str, tuple[float, bool]] = {}

    def between(self, one: str, other: str) -> tuple[Any, Any]:
        """There and back; None twice where both are the same."""
        found = self._pairs.get((one, other))
        if found is None:
            import pyproj

            first, second = pyproj.CRS.from_user_input(one), pyproj.CRS.from_user_input(other)
            found = (None, None)
            if one != other and not first.equals(second, ignore_axis_order=True):
                found = (
                    pyproj.Transformer.from_crs(first, second, always_xy=True),
                    pyproj.Transformer.from_crs(second, first, always_xy=True),
                )
            self._pairs[one, other] = found
        return found

    def around(self, crs: str) -> float:
        """How far x goes round the globe, in units of the CRS; 0 where it does not wrap."""
        return self._facts(crs)[0]

    def is_geographic(self, crs: str) -> bool:
        return self._facts(crs)[1]

    def _facts(self, crs: str) -> tuple[float, bool]:
        if crs not in self._known:
            import pyproj

            self._known[crs] = _facts(pyproj.CRS.from_user_input(crs))
        return self._known[crs]


_CYLINDRICAL = ("mercator (", "popular visualisation pseudo mercator", "equidistant cylindrical", "equal area cylindrical",
                "cylindrical equal area", "plate carr", "miller cylindrical")  # fmt: skip


def _facts(crs: Any) -> tuple[float, bool]:
    if crs.is_geographic:
        return 2 * np.pi / crs.axis_info[0].unit_conversion_factor, True
    operation = crs.coordinate_operation
    name = "" if operation is None else operation.method_name.lower()
    if not any(name.startswith(each) or f"lambert {each}" in name for each in _CYLINDRICAL):
        return 0.0, False
    import pyproj

    geodetic = crs.geodetic_crs
    there = pyproj.Transformer.from_crs(geodetic, crs, always_xy=True)
    origin = next((each.value for each in operation.params if each.name == "Longitude of natural origin"), 0.0)
    x, _ = there.transform([origin, origin + 90.0], [0.0, 0.0])
    return 4.0 * (x[1] - x[0]), False


_transformers = _Transformers()
