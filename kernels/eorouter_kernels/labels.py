# ruff: noqa: PLR0917  numba passes arguments by position
"""Connected areas of equal number: labels of a piece, what each holds, and which labels of pieces are one.

Labels count from 1 in reading order of an area's first pixel; 0 is background. All sums are whole numbers, so that the
parts of an area may be added in any order.
"""

import numpy as np
import numpy.typing as npt

from eorouter_kernels._jit import allocating_kernel, kernel

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


@kernel
def _root(parent: Ints, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def _join(parent: Ints, one: int, other: int) -> int:
    one, other = _root(parent, one), _root(parent, other)
    low, high = min(one, other), max(one, other)
    parent[high] = low
    return low


@allocating_kernel
def label(groups: Bytes, is_eight: bool, out: Labels) -> int:
    """Label areas of equal nonzero groups (y, x), joined along sides, with `is_eight` at corners, too; their number."""
    height, width = groups.shape
    parent = np.empty(height * ((width + 1) // 2) + width + 2, np.int64)
    parent[0] = 0
    count = 0
    for y in range(height):
        for x in range(width):
            group = groups[y, x]
            if group == 0:
                out[y, x] = 0
                continue
            found = 0
            if x > 0 and groups[y, x - 1] == group:
                found = out[y, x - 1]
            if y > 0:
                if groups[y - 1, x] == group:
                    above = out[y - 1, x]
                    found = above if found == 0 else _join(parent, found, above)
                if is_eight and x > 0 and groups[y - 1, x - 1] == group:
                    above = out[y - 1, x - 1]
                    found = above if found == 0 else _join(parent, found, above)
                if is_eight and x + 1 < width and groups[y - 1, x + 1] == group:
                    above = out[y - 1, x + 1]
                    found = above if found == 0 else _join(parent, found, above)
            if found == 0:
                count += 1
                if count >= parent.size:
                    larger = np.empty(2 * parent.size, np.int64)
                    larger[:count] = parent
                    parent = larger
                parent[count] = count
                found = count
            out[y, x] = found
    number = np.zeros(count + 1, np.int64)
    used = 0
    for node in range(1, count + 1):
        root = _root(parent, node)
        if root == node:
            used += 1
            number[node] = used
        else:
            number[node] = number[root]
    for y in range(height):
        for x in range(width):
            out[y, x] = number[out[y, x]]
    return used


@kernel
def tally(labels: Labels, classes: Bytes, score: Ints, row_area: Ints, counts: Ints, sums: Ints) -> None:
    """Add to counts (label, class) the pixels, to sums (label, 4) area, score, first pixel and sides of the outline.

    The first pixel is the lowest y · width + x; `sums[:, 2]` begins at a number no pixel has. Sides along the rim of
    the array count as outline. Row 0, the background, is left alone.
    """
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            place = labels[y, x]
            if place == 0:
                continue
            counts[place, classes[y, x]] += 1
            sums[place, 0] += row_area[y]
            sums[place, 1] += score[y, x]
            sums[place, 2] = min(sums[place, 2], y * width + x)
            sides = 0
            if y == 0 or labels[y - 1, x] != place:
                sides += 1
            if y + 1 == height or labels[y + 1, x] != place:
                sides += 1
            if x == 0 or labels[y, x - 1] != place:
                sides += 1
            if x + 1 == width or labels[y, x + 1] != place:
                sides += 1
            sums[place, 3] += sides


@kernel
def unite(pairs: Ints, parent: Ints) -> None:
    """Join the nodes of each pair (pair, 2); afterwards `parent` has every node's lowest companion."""
    for k in range(pairs.shape[0]):
        _join(parent, pairs[k, 0], pairs[k, 1])
    for node in range(parent.size):
        parent[node] = _root(parent, node)


def warm_up() -> None:
    """Compile."""
    groups = np.ones((2, 2), np.uint8)
    out = np.empty((2, 2), np.int32)
    label(groups, True, out)
    ints = np.ones((2, 2), np.int64)
    tally(out, groups, ints, ints[0].copy(), np.zeros((2, 2), np.int64), np.zeros((2, 4), np.int64))
    unite(np.zeros((1, 2), np.int64), np.zeros(2, np.int64))
