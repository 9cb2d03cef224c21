# ruff: noqa: PLR0917  as the kernels
"""Plain-NumPy twins of `eorouter_kernels.outlines`."""

from typing import Any

import numpy as np


def _sides(areas: Any, number: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Steps (dy, dx) along sides of the area that leave each lattice point (y, x), the area on their right."""
    inside = np.pad(areas == number, 1)
    out: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in zip(*np.nonzero(areas == number), strict=True):
        for (row, col), step, (dy, dx) in (
            ((y, x), (0, 1), (-1, 0)), ((y, x + 1), (1, 0), (0, 1)), ((y + 1, x + 1), (0, -1), (1, 0)),
            ((y + 1, x), (-1, 0), (0, -1)),
        ):  # fmt: skip
            if not inside[1 + y + dy, 1 + x + dx]:
                out.setdefault((int(row), int(col)), []).append(step)
    return out


def vertices_most(areas: Any) -> int:
    """Twin: corners are where a side does not go straight on."""
    count = 0
    for number in np.unique(areas[areas > 0]):
        sides = _sides(areas, number)
        for (y, x), steps in sides.items():
            count += sum(step not in sides.get((y - step[0], x - step[1]), []) for step in steps)
    return count + count // 4 + 2 * sum(areas.shape)


def trace(areas: Any, parts: Any, xy: Any, ends: Any, owners: Any, holes: Any) -> int:
    """Twin: walk from lattice point to lattice point, and cut at every one that comes twice."""
    height, width = areas.shape
    rings: list[tuple[int, list[tuple[int, int]]]] = []
    for number in np.unique(areas[areas > 0]):
        sides = _sides(areas, number)
        while any(sides.values()):
            start = min(point for point, steps in sides.items() if (0, 1) in steps)
            point, step, walk = start, (0, 1), [start]
            while True:
                sides[point].remove(step)
                point = (point[0] + step[0], point[1] + step[1])
                right = (step[1], -step[0])
                if point == start and (0, 1) not in sides[point] and right not in sides[point]:
                    break
                # Rightmost first: stay with the pixel.
                step = next(turn for turn in (right, step, (-step[1], step[0])) if turn in sides[point])
                if point in walk:
                    at = walk.index(point)
                    rings.append((parts[start], walk[at:]))
                    walk = walk[:at]
                walk.append(point)
            rings.append((parts[start], walk))
    used = 0
    for number, (owner, walk) in enumerate(rings):
        points = np.array(walk)
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        is_rim = np.isin(points, 0) | (points == [height, width])
        on_rim = (is_rim & (np.roll(is_rim, -1, axis=0)) & (after == 0)).any(axis=1)
        kept = points[(before != after).any(axis=1) | on_rim][:, ::-1]
        x, y = points[:, 1], points[:, 0]
        holes[number] = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0
        owners[number] = owner
        xy[used : used + len(kept)] = kept
        xy[used + len(kept)] = kept[0]
        used += len(kept) + 1
        ends[number] = used
    return len(rings)


def stitch(after: Any, knots: Any, points: Any, parts: Any, xy: Any, ends: Any, owners: Any, holes: Any) -> int:
    """Twin: walk, and cut at every point that comes twice."""
    rings: list[tuple[int, list[tuple[int, int]]]] = []
    left = {side for side in range(len(after)) if after[side] >= 0}
    while left:
        start = side = min(left)
        walk: list[tuple[int, int]] = []
        while True:
            left.discard(side)
            point = (int(points[side][0]), int(points[side][1]))
            if point in walk:
                rings.append((parts[start], walk[walk.index(point) :]))
                walk = walk[: walk.index(point)]
            walk.append(point)
            side = int(after[side])
            if side == start:
                break
        rings.append((parts[start], walk))
    used = 0
    for number, (owner, walk) in enumerate(rings):
        ring = np.array(walk)
        x, y = ring.T.astype(int)
        holes[number] = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0
        kept = ring[(np.roll(ring, 1, axis=0) != np.roll(ring, -1, axis=0)).all(axis=1)]
        xy[used : used + len(kept)] = kept
        xy[used + len(kept)] = kept[0]
        used += len(kept) + 1
        owners[number], ends[number] = owner, used
    return len(rings)
