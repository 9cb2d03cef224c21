# ruff: noqa: PLR0917  numba passes arguments by position
"""Outlines of areas of equal number: rings along pixel sides, as whole numbers of pixels.

A ring runs with its area on the right, y pointing down: shells have a positive area, holes a negative one. Rings are
simple: where an area meets itself at a corner, a ring that would come by twice is cut in two there. A part, pixels that
are joined along sides, so has one shell, and with its holes it is a valid polygon.
"""

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel

Labels = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@kernel
def _at(areas: Labels, row: int, col: int) -> int:
    """The area of a pixel, 0 outside."""
    if row < 0 or col < 0 or row >= areas.shape[0] or col >= areas.shape[1]:
        return 0
    return areas[row, col]


@kernel
def vertices_most(areas: Labels) -> int:
    """Most vertices that `trace` gives: corners, lattice points on the rim, and a last point for every ring."""
    height, width = areas.shape
    count = 0
    for y in range(height):
        for x in range(width):
            area = areas[y, x]
            if area == 0:
                continue
            for dy in (-1, 1):
                for dx in (-1, 1):
                    is_down, is_across = _at(areas, y + dy, x) == area, _at(areas, y, x + dx) == area
                    if is_down == is_across and not (is_down and _at(areas, y + dy, x + dx) == area):
                        count += 1
    return count + count // 4 + 2 * (height + width)


@kernel
def _emit(stack: Labels, begin: int, end: int, used: int, xy: Labels) -> int:
    """Copy a ring to `xy` from `used` on, closed; twice its area."""
    twice = 0
    for k in range(begin, end):
        after = k + 1 if k + 1 < end else begin
        twice += stack[k, 0] * stack[after, 1] - stack[after, 0] * stack[k, 1]
        xy[used + k - begin, 0], xy[used + k - begin, 1] = stack[k, 0], stack[k, 1]
    xy[used + end - begin, 0], xy[used + end - begin, 1] = stack[begin, 0], stack[begin, 1]
    return twice


@allocating_kernel
def trace(areas: Labels, parts: Labels, xy: Labels, ends: Ints, owners: Labels, holes: Flags) -> int:
    """Rings of all nonzero areas, and how many.

    Vertices are corners, and every lattice point of sides that run along the rim of the array, so that what is traced
    on its other side has the same ones.

    Shapes: areas, parts (y, x), xy (vertex, 2) x before y, `vertices_most(areas)` of them; ends, owners and holes
    (ring) for a fourth as many: one past a ring's last vertex, the number in `parts` of what it bounds, and whether it
    bounds it from inside.
    """
    height, width = areas.shape
    seen = np.zeros((height, width), np.bool_)
    # Where on the stack a corner at which two pixels of the area meet was put down, less than 0 for nowhere.
    knots = np.full((height + 1, width + 1), -1, np.int32)
    stack = np.empty((len(xy), 2), np.int32)
    rings, used = 0, 0
    for y0 in range(height):
        for x0 in range(width):
            area = areas[y0, x0]
            if area == 0 or seen[y0, x0] or _at(areas, y0 - 1, x0) == area:
                continue
            stack[0, 0], stack[0, 1] = x0, y0
            knots[y0, x0] = 0
            depth = 1
            row, col, dy, dx = y0, x0, 0, 1
            while True:
                if dx == 1:
                    seen[row, col] = True
                is_ahead = _at(areas, row + dy, col + dx) == area
                is_aside = _at(areas, row + dy - dx, col + dx + dy) == area
                is_turn, is_knot = True, False
                if not is_ahead:
                    dy, dx = dx, -dy
                    is_knot = is_aside
                elif is_aside:
                    row, col = row + dy - dx, col + dx + dy
                    dy, dx = -dx, dy
                else:
                    row, col = row + dy, col + dx
                    is_turn = False
                if row == y0 and col == x0 and dx == 1:
                    break
                y, x = row + (dx < 0 or dy < 0), col + (dy > 0 or dx < 0)
                is_rim = (dx != 0 and y in (0, height)) or (dy != 0 and x in (0, width))
                if is_knot and knots[y, x] >= 0:
                    begin = knots[y, x]
                    holes[rings] = _emit(stack, begin, depth, used, xy) < 0
                    for k in range(begin, depth):
                        knots[stack[k, 1], stack[k, 0]] = -1
                    used += depth - begin + 1
                    owners[rings], ends[rings] = parts[y0, x0], used
                    rings += 1
                    depth = begin + 1
                elif is_turn or is_rim:
                    if is_knot:
                        knots[y, x] = depth
                    stack[depth, 0], stack[depth, 1] = x, y
                    depth += 1
            holes[rings] = _emit(stack, 0, depth, used, xy) < 0
            for k in range(depth):
                knots[stack[k, 1], stack[k, 0]] = -1
            used += depth + 1
            owners[rings], ends[rings] = parts[y0, x0], used
            rings += 1
    return rings


@allocating_kernel
def stitch(
    after: Ints, knots: Ints, points: Labels, parts: Ints, xy: Labels, ends: Ints, owners: Ints, holes: Flags
) -> int:
    """Rings of sides that were linked anew, cut in two where they would come by a point twice; how many.

    Shapes: after, knots, parts (side), points (side, 2): each side's next one, less than 0 for a side that is none; the
    other side of the same area that begins at the same point, less than 0 for none; the part it bounds; where it
    begins. xy, ends, owners, holes: as of `trace`, for five vertices and a ring in four sides; vertices are corners.
    """
    count = len(after)
    place = np.full(count, -1, np.int64)
    is_walked = np.zeros(count, np.bool_)
    stack = np.empty(count, np.int64)
    rings, used = 0, 0
    for start in range(count):
        if after[start] < 0 or is_walked[start]:
            continue
        depth, side = 0, int(start)
        while True:
            is_walked[side] = True
            if knots[side] >= 0 and place[knots[side]] >= 0:
                begin = int(place[knots[side]])
                used = _emit_corners(stack, begin, depth, used, points, xy, holes, rings)
                owners[rings], ends[rings] = parts[start], used
                rings += 1
                for k in range(begin, depth):
                    place[stack[k]] = -1
                depth = begin
            stack[depth] = side
            place[side] = depth
            depth += 1
            side = int(after[side])
            if side == start:
                break
        used = _emit_corners(stack, 0, depth, used, points, xy, holes, rings)
        owners[rings], ends[rings] = parts[start], used
        rings += 1
        for k in range(depth):
            place[stack[k]] = -1
    return rings


@kernel
def _emit_corners(
    stack: Ints, begin: int, end: int, used: int, points: Labels, xy: Labels, holes: Flags, ring: int
) -> int:
    """Copy the corners of a ring, closed; where the next ring begins."""
    first, twice = used, 0
    for k in range(begin, end):
        here = points[stack[k]]
        last = points[stack[k - 1 if k > begin else end - 1]]
        after = points[stack[k + 1 if k + 1 < end else begin]]
        twice += int(here[0]) * after[1] - int(after[0]) * here[1]
        if last[0] != after[0] and last[1] != after[1]:
            xy[used, 0], xy[used, 1] = here[0], here[1]
            used += 1
    xy[used, 0], xy[used, 1] = xy[first, 0], xy[first, 1]
    holes[ring] = twice < 0
    return used + 1


def warm_up() -> None:
    """Compile."""
    areas = np.ones((2, 2), np.int32)
    count = vertices_most(areas)
    rings = count // 4
    trace(
        areas, areas, np.empty((count, 2), np.int32), np.empty(rings, np.int64), np.empty(rings, np.int32),
        np.empty(rings, np.bool_),
    )  # fmt: skip
    ints = np.zeros(4, np.int64)
    points = np.zeros((5, 2), np.int32)
    stitch(ints - 1, ints, points[:4], ints, points, ints.copy(), ints.copy(), np.empty(1, np.bool_))
