# ruff: noqa: PLR0917  as the kernels
"""Plain-NumPy twins of `eorouter_kernels.labels`."""

from typing import Any

import numpy as np


def label(groups: Any, is_eight: bool, out: Any) -> int:
    """Twin: flood every area from its first pixel."""
    height, width = groups.shape
    reach = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy or dx) and (is_eight or not dy * dx)]
    out[...] = 0
    count = 0
    for y, x in zip(*np.nonzero(groups), strict=True):
        if out[y, x]:
            continue
        count += 1
        out[y, x] = count
        edge = [(int(y), int(x))]
        while edge:
            row, col = edge.pop()
            for dy, dx in reach:
                r, c = row + dy, col + dx
                if 0 <= r < height and 0 <= c < width and not out[r, c] and groups[r, c] == groups[y, x]:
                    out[r, c] = count
                    edge.append((r, c))
    return count


def tally(labels: Any, classes: Any, score: Any, row_area: Any, counts: Any, sums: Any) -> None:
    """Twin."""
    inside = labels > 0
    y, x = np.nonzero(inside)
    place = labels[inside]
    np.add.at(counts, (place, classes[inside]), 1)
    np.add.at(sums, (place, 0), row_area[y])
    np.add.at(sums, (place, 1), score[inside])
    np.minimum.at(sums, (place, 2), y * labels.shape[1] + x)
    around = np.pad(labels, 1)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        beside = around[dy : dy + labels.shape[0], dx : dx + labels.shape[1]]
        np.add.at(sums, (place, 3), (beside != labels)[inside])


def unite(pairs: Any, parent: Any) -> None:
    """Twin: pass the lowest number along the pairs until nothing changes."""
    while True:
        before = parent.copy()
        low = parent[pairs].min(axis=1)
        np.minimum.at(parent, pairs[:, 0], low)
        np.minimum.at(parent, pairs[:, 1], low)
        parent[...] = parent[parent]
        if (parent == before).all():
            return
