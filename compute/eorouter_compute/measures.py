"""What can be measured of a band under a zone: the names, what each needs, and the columns made of what was found.

Request ──planes, needs──► accumulators and runs of a shard ──columns──► one array per zone and column
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from eorouter_compute import ranks
from eorouter_compute.errors import InvalidParameter, TooLarge
from eorouter_compute.method import Band
from eorouter_compute.ranks import Plane
from eorouter_kernels import quantiles, weighted, zonal

Statistic = Literal[
    "count", "sum", "mean", "min", "max", "stdev", "variance", "coefficient_of_variation", "median", "mode", "minority",
    "variety", "class_fractions", "valid_fraction", "area", "weighted_count", "weighted_sum", "weighted_mean",
    "weighted_stdev", "weighted_variance",
]  # fmt: skip

CLASSES_MAX = 256
"""Most classes that fractions are given of, where the caller does not name them."""

BINS_MAX = 256

_UNITS = {
    "count": "cells", "valid_fraction": "1", "area": "m²", "variety": "values", "coefficient_of_variation": "1",
    "weighted_count": "cells × weight",
}  # fmt: skip


class Histogram(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bins of a histogram: `edges`, or a number of equal `bins` over a `range`.

    Attributes:
        edges: rising, in units of the values; a bin holds its lower edge, the last bin its upper edge too.
        bins: how many of equal width.
        range: lower edge of the first and upper edge of the last bin.
    """

    edges: Annotated[tuple[float, ...], Meta(min_length=2, max_length=BINS_MAX + 1)] | None = None
    bins: Annotated[int, Meta(ge=1, le=BINS_MAX)] | None = None
    range: tuple[float, float] | None = None

    def resolved(self) -> NDArray[np.float64]:
        """The edges.

        Raises:
            InvalidParameter: neither edges nor bins with a range, or edges that do not rise.
        """
        if (self.edges is None) == (self.bins is None) or (self.bins is None) != (self.range is None):
            raise InvalidParameter(
                "A histogram needs either `edges`, or `bins` with a `range`: the range of the data is not known before "
                "they are read.",
                pointer="/histogram",
            )
        if self.edges is not None:
            edges = np.array(self.edges)
        else:
            edges = np.linspace(*cast("tuple[float, float]", self.range), cast("int", self.bins) + 1)
        if not np.isfinite(edges).all() or (np.diff(edges) <= 0.0).any():
            raise InvalidParameter("The edges of a histogram must be finite numbers that rise.", pointer="/histogram")
        return edges


class Request(NamedTuple):
    """What is measured of every band.

    Attributes:
        statistics: names, each once.
        levels: quantiles by the suffix of their column.
        classes: values that fractions are given of; None for those that are found.
        edges: of the histogram, None for none.
        use_scale: physical values instead of stored ones.
        skips_unweighed: cells without a weight are left out instead of spoiling their zone.
    """

    statistics: tuple[str, ...]
    levels: Mapping[str, float]
    classes: tuple[int, ...] | None
    edges: NDArray[np.float64] | None
    use_scale: bool
    skips_unweighed: bool

    @property
    def is_weighted(self) -> bool:
        """Whether a raster of weights is needed."""
        return any(name in weighted.MOMENTS for name in self.statistics)

    @property
    def has_open_classes(self) -> bool:
        """Whether there is a column for every class that is found."""
        return "class_fractions" in self.statistics and self.classes is None

    def scale_of(self, band: Band) -> tuple[float, float]:
        """Scale and offset to apply."""
        return (band.scale, band.offset) if self.use_scale else (1.0, 0.0)

    def planes(self, band: Band) -> list[Plane]:
        """What is asked of a band's keys: its values, then its bins."""
        found = []
        is_frequent = any(name in quantiles.FREQUENT for name in self.statistics)
        is_counted = "class_fractions" in self.statistics
        if self.levels or is_frequent or is_counted:
            is_falling = self.scale_of(band)[0] < 0
            levels = tuple(1.0 - level if is_falling else level for level in self.levels.values())
            found.append(Plane(band.dtype, levels, is_frequent, is_counted))
        if self.edges is not None:
            found.append(Plane("uint16", is_counted=True))
        return found

    def keys(self, band: Band, pixels: NDArray[Any]) -> list[NDArray[Any]]:
        """Keys of the planes, (y, x) each, of the band's pixels (y, x)."""
        found = []
        planes = self.planes(band)
        if len(planes) > (self.edges is not None):
            found.append(quantiles.keys(pixels))
        if self.edges is not None:
            found.append(quantiles.bins(pixels, self.edges, *self.scale_of(band)))
        return found

    def suffixes(self, band: Band) -> list[str]:
        """Names of the columns of a band as far as they are known before it is read."""
        names: list[str] = []
        for name in self.statistics:
            if name != "class_fractions":
                names.append("area_m2" if name == "area" else name)
            elif self.classes is not None:
                names.extend(class_suffix(value) for value in self.classes)
        names.extend(self.levels)
        if self.edges is not None:
            names.extend(bin_suffixes(len(self.edges) - 1))
        return list(dict.fromkeys(names))

    def width(self, band: Band) -> int:
        """Most columns a band can have."""
        return len(self.suffixes(band)) + (_classes_most(band) if self.has_open_classes else 0)

    def check(self, band: Band) -> None:
        """Raise InvalidParameter where a band cannot be measured so."""
        if "class_fractions" in self.statistics and np.dtype(band.dtype).kind == "f":
            raise InvalidParameter(
                f"`class_fractions` counts whole numbers; band {band.name} holds {band.dtype}. Ask for a `histogram`.",
                pointer="/statistics",
            )
        info = None if np.dtype(band.dtype).kind == "f" else np.iinfo(band.dtype)
        for place, value in enumerate(self.classes or ()):
            if info is not None and not info.min <= value <= info.max:
                raise InvalidParameter(
                    f"Class {value} is no value of band {band.name}, which holds {band.dtype}.",
                    pointer=f"/classes/{place}",
                )


def class_suffix(value: float) -> str:
    """Name of the column of a class."""
    return f"frac_{int(value)}"


def bin_suffixes(bins: int) -> list[str]:
    """Names of the columns of a histogram: below, the bins from 1, above."""
    return ["hist_below", *(f"hist_{number}" for number in range(1, bins + 1)), "hist_above"]


def unit_of(suffix: str, band: Band, use_scale: bool) -> str | None:
    """Unit of a column, as far as it is known."""
    if suffix.startswith("frac_"):
        return "1"
    if suffix.startswith("hist_"):
        return "cells"
    own = band.unit if use_scale or band.scale == 1.0 else None
    if suffix in {"variance", "weighted_variance"}:
        return f"({own})²" if own else None
    return _UNITS.get("area" if suffix == "area_m2" else suffix, own)


class Seen(NamedTuple):
    """What was found of one band.

    Attributes:
        state: (zone, `zonal.STATE`).
        weighed: (zone, `weighted.STATE`), None where no weights were asked for.
        planes: as `Request.planes` of the band.
        outside: (zone) cells of the zone beyond the raster.
        has_area: (zone) whether there is something to measure.
    """

    state: NDArray[np.float64]
    weighed: NDArray[np.float64] | None
    planes: Sequence[ranks.Found]
    outside: NDArray[np.float64]
    has_area: NDArray[np.bool_]


def columns(request: Request, band: Band, seen: Seen) -> dict[str, NDArray[np.float64]]:
    """Values of each column of a band by suffix, (zone) each; NaN where a zone has no such number.

    Raises:
        TooLarge: more than `CLASSES_MAX` classes were found.
    """
    scale, offset = request.scale_of(band)
    factors = np.array([scale]), np.array([offset])
    found = {name: each[:, 0] for name, each in zonal.finish(seen.state[:, None], seen.outside, *factors).items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = found["stdev"] / found["mean"]
        found["coefficient_of_variation"] = np.where(np.isfinite(variation), variation, np.nan)
    found["area_m2"] = found.pop("area")
    if seen.weighed is not None:
        made = weighted.finish(seen.weighed[:, None], *factors, skips_unknown=request.skips_unweighed)
        found |= {name: each[:, 0] for name, each in made.items()}
    rest = list(seen.planes)
    if len(rest) > (request.edges is not None):
        found |= _of_values(request, band, rest.pop(0), len(seen.state))
    if request.edges is not None:
        cells, _ = quantiles.counts(rest[0].runs, np.arange(len(request.edges) + 1, dtype=np.uint16))
        dense = np.zeros((len(seen.state), cells.shape[1]))
        dense[rest[0].owners] = cells
        found |= dict(zip(bin_suffixes(len(request.edges) - 1), dense.T, strict=True))
    names = request.suffixes(band)
    if request.has_open_classes:
        names += sorted((name for name in found if name.startswith("frac_")), key=lambda name: int(name[5:]))
    return {name: np.where(seen.has_area, found[name], np.nan) for name in names}


def _of_values(request: Request, band: Band, plane: ranks.Found, count: int) -> dict[str, NDArray[np.float64]]:
    scale, offset = request.scale_of(band)
    levels = len(request.levels)
    numbers = plane.numbers[:, :levels] * scale + offset
    found = dict(zip(request.levels, numbers.T, strict=True))
    if plane.numbers.shape[1] > levels:
        frequent = plane.numbers[:, levels:].T
        found |= dict(
            zip(
                quantiles.FREQUENT,
                (frequent[0] * scale + offset, frequent[1] * scale + offset, frequent[2]),
                strict=True,
            )
        )
    if "class_fractions" in request.statistics:
        found |= _fractions(request, band, plane, count)
    return found


def _fractions(request: Request, band: Band, plane: ranks.Found, count: int) -> dict[str, NDArray[np.float64]]:
    dtype = np.dtype(band.dtype)
    if request.classes is None:
        wanted = np.unique(plane.runs.key)
        if len(wanted) > CLASSES_MAX:
            raise TooLarge(
                f"Band {band.name} has {len(wanted):,} different values in these zones; fractions are given of at most "
                f"{CLASSES_MAX} classes. Name them in `classes`, or ask for a `histogram`.",
                pointer="/statistics",
            )
    else:
        wanted = np.unique(quantiles.keys(np.array(request.classes).astype(dtype)))
    cells, total = quantiles.counts(plane.runs, wanted)
    shares = np.full((count, len(wanted)), np.nan)
    shares[plane.owners] = cells / np.where(total > 0.0, total, np.nan)[:, None]
    values = quantiles.values(wanted, dtype)
    return dict(zip(map(class_suffix, values), shares.T, strict=True))


def _classes_most(band: Band) -> int:
    return min(CLASSES_MAX, 1 << min(8 * np.dtype(band.dtype).itemsize, 16))
