"""Where change begins: thresholds given, or found in the histogram of a sample.

Otsu and Kittler-Illingworth look at `BINS` bins of equal width over the range of the sample; its counts do not
depend on the order of its values, so the threshold depends on the set of sampled pixels alone.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from eorouter_compute.errors import InvalidParameter

BINS = 1024
"""Bins of a histogram; the threshold is the edge of one."""


class Fixed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="fixed"):
    """A number, in units of the statistic; a factor above 1 for a ratio.

    Attributes:
        value: change begins above it; for a decrease, below its negative, or its reciprocal for a ratio.
    """

    value: Annotated[float, Meta(ge=0)]


class Otsu(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="otsu"):
    """Largest variance between the two classes: Otsu 1979, doi:10.1109/TSMC.1979.4310076."""


class KittlerIllingworth(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="kittler_illingworth"
):
    """Smallest error of two normal classes: Kittler & Illingworth 1986, doi:10.1016/0031-3203(86)90030-0."""


class Sigmas(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="k_sigma"):
    """Further than `k` standard deviations from the mean of the sample.

    Attributes:
        k: how many.
    """

    k: Annotated[float, Meta(gt=0, le=20)] = 2.0


class Significance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="p_value"):
    """For IR-MAD and the omnibus test: the probability of what is seen, if nothing changed, is at most `level`.

    Attributes:
        level: the significance.
    """

    level: Annotated[float, Meta(gt=0, lt=1)] = 0.01


Threshold = Fixed | Otsu | KittlerIllingworth | Sigmas | Significance


def needs_sample(threshold: Threshold) -> bool:
    """Whether pixels must be seen before it is known."""
    return isinstance(threshold, Otsu | KittlerIllingworth | Sigmas)


def found(threshold: Threshold, values: np.ndarray) -> tuple[float, float]:
    """Centre and threshold: change is what lies further than the threshold from the centre, given sampled values.

    Raises:
        InvalidParameter: the sample has no two different values, or no two classes.
    """
    if isinstance(threshold, Fixed):
        return 0.0, threshold.value
    if values.size < 2 or float(values.min()) == float(values.max()):
        raise InvalidParameter(
            f"No threshold can be found: the sample has {values.size} pixels and no two different values. "
            'Give a number: "threshold": {"by": "fixed", "value": …}.',
            pointer="/threshold",
        )
    if isinstance(threshold, Sigmas):
        return float(values.mean()), threshold.k * float(values.std())
    counts, edges = np.histogram(values, BINS)
    best = otsu(counts) if isinstance(threshold, Otsu) else kittler_illingworth(counts)
    return 0.0, float(edges[best + 1])


def otsu(counts: np.ndarray) -> int:
    """The last bin of the lower class."""
    weight = counts / counts.sum()
    below = np.cumsum(weight)[:-1]
    moment = np.cumsum(weight * np.arange(counts.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below - moment[:-1]) ** 2 / (below * (1.0 - below))
    return int(np.argmax(np.nan_to_num(between, posinf=0.0)))


def kittler_illingworth(counts: np.ndarray) -> int:
    """The last bin of the lower class: the minimum of J(T) = 1 + Σ P (ln σ² − 2 ln P), both classes of some width.

    Raises:
        InvalidParameter: no cut leaves two classes with a variance each.
    """
    weight, at = counts / counts.sum(), np.arange(counts.size, dtype=np.float64)
    sums = [np.cumsum(weight * at**power) for power in range(3)]
    lower = [part[:-1] for part in sums]
    upper = [part[-1] - part[:-1] for part in sums]
    cost = np.ones(counts.size - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        for share, first, second in (lower, upper):
            # A bin is as wide as 1: a class within one bin still has the variance of the bin, 1/12.
            variance = second / share - (first / share) ** 2 + 1.0 / 12.0
            cost = cost + share * (np.log(variance) - 2.0 * np.log(share))
        share = lower[0]
    cost[~np.isfinite(cost) | (share < 1e-12) | (share > 1.0 - 1e-12)] = np.inf
    if not np.isfinite(cost).any():
        raise InvalidParameter("The sample has no two classes; give a fixed threshold.", pointer="/threshold")
    return int(np.argmin(cost))
