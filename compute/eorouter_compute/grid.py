"""Where pixels are: windows, shard plans and alignment, as pure functions.

The grid of a raster is an odc-geo `GeoBox` (CRS, pixel-to-world affine, shape). Windows are half-open in rows and
columns, counted from the raster's upper-left pixel. No function here opens a file.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """A rectangle of pixels: rows `row … row + height - 1`, columns `col … col + width - 1`."""

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def pixels(self) -> int:
        """Area in pixels, 0 for an empty window."""
        return max(self.height, 0) * max(self.width, 0)

    def intersect(self, other: "Window") -> "Window":
        """The common rectangle; `pixels == 0` when there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(
            row, col, max(min(self.row_stop, other.row_stop) - row, 0), max(min(self.col_stop, other.col_stop) - col, 0)
        )

    def relative_to(self, outer: "Window") -> tuple[slice, slice]:
        """Slices `(y, x)` that cut this window out of an array holding `outer`."""
        return (
            slice(self.row - outer.row, self.row_stop - outer.row),
            slice(self.col - outer.col, self.col_stop - outer.col),
        )


def tiles(area: Window, step: int) -> Iterator[Window]:
    """Cut `area` into windows of at most `step × step`, row by row.

    The cuts lie on multiples of `step` of the raster, not of the area, so that two plans over overlapping areas share
    their tiles.
    """
    for row in range(area.row - area.row % step, area.row_stop, step):
        for col in range(area.col - area.col % step, area.col_stop, step):
            window = Window(row, col, step, step).intersect(area)
            if window.pixels:
                yield window
