"""How much a pixel changed: the statistics of change, their bands, their classes.

    before, after (band, y, x) or a series ──measure──► bands (band, y, x), the first of which is judged

The first band is put on a scale on which no change is 0 (`score`); a threshold on that scale makes the classes.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import mad
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.mad import Projection
from eorouter_compute.thresholds import Fixed, Sigmas, Significance, Threshold
from eorouter_kernels import change

UNKNOWN = 255
"""Class of a pixel that one of the dates does not show."""

Unit = Literal["linear", "db"]


class _Statistic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the statistics."""


class Difference(_Statistic, frozen=True, kw_only=True, tag="difference"):
    """After − before, of one value."""


class Ratio(_Statistic, frozen=True, kw_only=True, tag="ratio"):
    """After / before, of one positive value; no value where one of them is not positive."""


class LogRatio(_Statistic, frozen=True, kw_only=True, tag="log_ratio"):
    """10 log10(after / before) in dB, of one intensity.

    Attributes:
        unit: what the value is stored as; dB are subtracted.
    """

    unit: Unit = "linear"


class ChangeVector(_Statistic, frozen=True, kw_only=True, tag="cva"):
    """Length of the change vector over the bands, and its angle in degrees.

    With two bands the angle is the direction atan2(second, first), 0 to 360; with more it is the angle between the two
    spectra, 0 to 180 (Kruse et al. 1993).
    """


class IrMad(_Statistic, frozen=True, kw_only=True, tag="irmad"):
    """IR-MAD: chi-square of the MAD variates, and the probability that there is change (Nielsen 2007).

    Attributes:
        tolerance: iteration ends when no canonical correlation moves by more.
        rounds: most iterations.
    """

    tolerance: mad.Tolerance = 1e-3
    rounds: Annotated[int, Meta(ge=1, le=200)] = 50


class Components(_Statistic, frozen=True, kw_only=True, tag="pca"):
    """Score of one principal component.

    Attributes:
        of: the difference of the dates, or both dates stacked.
        component: which, counted from 1; with one band, the second of the stacked pair is the change.
    """

    of: Literal["difference", "stacked"] = "difference"
    component: Annotated[int, Meta(ge=1, le=64)] = 1


class IndexDifference(_Statistic, frozen=True, kw_only=True, tag="index_difference"):
    """Loss of an index, before − after, with severity classes; `value` is not given.

    Attributes:
        index: dNBR (Key & Benson 2006), RdNBR (Miller & Thode 2007), RBR (Parks et al. 2014), or dNDVI.
        breaks: ascending limits of classes of your own, in place of the published ones; RBR has none published here.
        letters: which band a letter of the index stands for, where its name does not tell: {"S2": "B12"}.
    """

    index: Literal["dNBR", "RdNBR", "RBR", "dNDVI"] = "dNBR"
    breaks: Annotated[tuple[float, ...], Meta(max_length=32)] = ()
    letters: Annotated[dict[str, str], Meta(max_length=8)] = {}


class Omnibus(_Statistic, frozen=True, kw_only=True, tag="omnibus"):
    """Test of multilook SAR intensities for equality: two dates, or with `after` left empty a whole series.

    Attributes:
        looks: equivalent number of looks of the product.
        unit: what the value is stored as.
    """

    looks: Annotated[float, Meta(ge=1, le=10_000)]
    unit: Unit = "linear"


Statistic = Difference | Ratio | LogRatio | ChangeVector | IrMad | Components | IndexDifference | Omnibus


class Severity(Struct, frozen=True, kw_only=True):
    """Classes between ascending breaks; `names` has one more; `unchanged` is the place of the class without change."""

    breaks: tuple[float, ...]
    names: tuple[str, ...]
    unchanged: int


SEVERITY = {
    # Key & Benson 2006, FIREMON landscape assessment, table LA-2 (there × 1000).
    "dNBR": Severity(
        breaks=(-0.25, -0.1, 0.1, 0.27, 0.44, 0.66),
        names=("enhanced regrowth, high", "enhanced regrowth, low", "unburned", "low severity",
               "moderate-low severity", "moderate-high severity", "high severity"),
        unchanged=2,
    ),
    # Miller & Thode 2007, doi:10.1016/j.rse.2006.12.006, table 5; in their scale of dNBR × 1000.
    "RdNBR": Severity(
        breaks=(69.0, 316.0, 641.0),
        names=("unchanged", "low severity", "moderate severity", "high severity"),
        unchanged=0,
    ),
    # Nobody's standard: our own steps, a tenth of NDVI being what season and atmosphere do.
    "dNDVI": Severity(
        breaks=(-0.4, -0.2, -0.1, 0.1, 0.2, 0.4),
        names=("strong gain", "gain", "slight gain", "unchanged", "slight loss", "loss", "strong loss"),
        unchanged=3,
    ),
}  # fmt: skip


def is_fitted(statistic: Statistic) -> bool:
    """Whether a sample must be seen before a pixel can be measured."""
    return isinstance(statistic, IrMad | Components)


def is_signed(statistic: Statistic) -> bool:
    """Whether an increase and a decrease differ."""
    return isinstance(statistic, Difference | Ratio | LogRatio | Components | IndexDifference)


def default_threshold(statistic: Statistic) -> Threshold:
    """Significance where there is a test, two standard deviations elsewhere."""
    return Significance() if isinstance(statistic, IrMad | Omnibus) else Sigmas()


def band_names(statistic: Statistic) -> tuple[tuple[str, str | None], ...]:
    """Name and unit of the bands `measure` gives."""
    if isinstance(statistic, ChangeVector):
        return ("magnitude", None), ("angle", "degree")
    if isinstance(statistic, IrMad):
        return ("chi_square", None), ("probability", None)
    if isinstance(statistic, Omnibus):
        return (
            ("minus_two_ln_q", None), ("probability", None), ("first_change", None), ("last_change", None),
            ("changes", None),
        )  # fmt: skip
    if isinstance(statistic, IndexDifference):
        return ((statistic.index.lower(), None),)
    name = str(type(statistic).__struct_config__.tag)
    return ((name, "dB" if isinstance(statistic, LogRatio) else None),)


def severity(statistic: IndexDifference) -> Severity | None:
    """The classes of an index difference: the caller's, or the published ones; None where there are none.

    Raises:
        InvalidParameter: breaks that do not ascend.
    """
    if not statistic.breaks:
        return SEVERITY.get(statistic.index)
    breaks = statistic.breaks
    if list(breaks) != sorted(set(breaks)):
        raise InvalidParameter("`breaks` must ascend.", pointer="/statistic/breaks")
    limits = ("", *(f"{limit:g}" for limit in breaks), "")
    names = tuple(
        f"below {high}" if not low else f"{low} and above" if not high else f"{low} to {high}"
        for low, high in pairwise(limits)
    )
    return Severity(breaks=breaks, names=names, unchanged=int(np.searchsorted(breaks, 0.0, side="right")))


def measure(
    statistic: Statistic, stack: np.ndarray, projection: Projection | None = None, level: float = 0.01
) -> np.ndarray:
    """Bands (band, pixel) float32 of a statistic; NaN where a date shows nothing.

    Args:
        statistic: which.
        stack: (time, band, pixel) float32, before and after, or the series of an omnibus test.
        projection: what the sample said, for IR-MAD and PCA.
        level: significance of single changes of an omnibus series.
    """
    out = np.empty((len(band_names(statistic)), stack.shape[2]), np.float32)
    if isinstance(statistic, Omnibus):
        linear = np.power(10.0, stack / 10.0, dtype=np.float32) if statistic.unit == "db" else stack
        change.omnibus(np.ascontiguousarray(linear), statistic.looks, level, out)
        out[1] = 1.0 - out[1]
        return out
    before, after = stack[0], stack[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        if isinstance(statistic, ChangeVector):
            _change_vector(before, after, out)
        elif projection is not None:
            _projected(statistic, before, after, projection, out)
        else:
            out[0] = _single(statistic, before[0].astype(np.float64), after[0].astype(np.float64))
    if not isinstance(statistic, IrMad):  # whose numbers are finite or NaN already
        out[~np.isfinite(out)] = np.nan
    return out


def _single(statistic: Statistic, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of one value, in double precision."""
    if isinstance(statistic, Ratio) or (isinstance(statistic, LogRatio) and statistic.unit == "linear"):
        ratio = np.where((before > 0) & (after > 0), after / before, np.nan)
        return ratio if isinstance(statistic, Ratio) else 10.0 * np.log10(ratio)
    if isinstance(statistic, IndexDifference):
        loss = before - after
        if statistic.index == "RdNBR":
            # √|NBR| as small as 0.001 blows noise up without limit: Miller & Thode use at least that.
            return 1000.0 * loss / np.sqrt(np.maximum(np.abs(before), 1e-3))
        return loss / (before + 1.001) if statistic.index == "RBR" else loss
    return after - before


def _change_vector(before: np.ndarray, after: np.ndarray, out: np.ndarray) -> None:
    one, two = before.astype(np.float64), after.astype(np.float64)
    step = two - one
    out[0] = np.sqrt(sum(part * part for part in step))
    if len(step) == 2:
        out[1] = np.degrees(np.arctan2(step[1], step[0])) % 360.0
    else:
        dot = sum(a * b for a, b in zip(one, two, strict=True))
        lengths = np.sqrt(sum(a * a for a in one) * sum(b * b for b in two))
        out[1] = np.degrees(np.arccos(np.clip(dot / lengths, -1.0, 1.0)))


def _projected(
    statistic: Statistic, before: np.ndarray, after: np.ndarray, projection: Projection, out: np.ndarray
) -> None:
    matrix, shift = np.array(projection.matrix), np.array(projection.shift)
    if isinstance(statistic, IrMad):
        change.chi_squares(before, after, change.padded(matrix, shift), out)
        return
    values = np.concatenate([before, after])
    score = np.full(values.shape[1], -projection.shift[0])
    for weight, row in zip(projection.matrix[0], values, strict=True):
        score += weight * row
    out[0] = score


def score(statistic: Statistic, first: np.ndarray) -> np.ndarray:
    """The first band on the scale that is judged, float64: no change is 0; a ratio by its logarithm."""
    plain = first.astype(np.float64)
    if isinstance(statistic, Ratio):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(plain)
    return plain


class Verdict(Struct, frozen=True, kw_only=True):
    """What decides a pixel's class: distance from `centre` beyond `limit`, or a probability, or severity breaks."""

    names: tuple[str, ...]
    centre: float = 0.0
    limit: float = 0.0
    level: float | None = None
    severity: Severity | None = None
    direction: Literal["both", "increase", "decrease"] = "both"

    @property
    def groups(self) -> np.ndarray:
        """By class: 0 no change, else the kind of change; areas of one kind are one."""
        table = np.zeros(256, np.uint8)
        for number in range(len(self.names)):
            if self.severity is not None:
                table[number] = 0 if number == self.severity.unchanged else 1 + (number > self.severity.unchanged)
            else:
                table[number] = number
        return table


def classified(statistic: Statistic, bands: np.ndarray, verdict: Verdict) -> tuple[np.ndarray, np.ndarray]:
    """Class (uint8, `UNKNOWN` where there is none) and confidence (0 … 1, NaN where there is none) of pixels.

    Confidence of a test is the probability of change; else 1 − limit / distance, 0 at the threshold and near 1 far
    beyond it, the limit of severity classes being the nearest edge of the class without change.
    """
    if verdict.level is not None and verdict.severity is None:
        classes = (bands[1] >= np.float32(1.0 - verdict.level)).view(np.uint8)
        classes[np.isnan(bands[0])] = UNKNOWN
        return classes, bands[1]
    first = score(statistic, bands[0])
    missing = np.isnan(first)
    if verdict.severity is not None:
        breaks, unchanged = np.array(verdict.severity.breaks), verdict.severity.unchanged
        classes = np.searchsorted(breaks, bands[0].astype(np.float64), side="right").astype(np.uint8)
        low = -breaks[unchanged - 1] if unchanged else np.inf
        high = breaks[unchanged] if unchanged < len(breaks) else np.inf
        limit = np.where(first < 0, low, high)
        confidence = _margin(np.abs(first), np.abs(limit))
        is_unwanted = {"increase": classes > unchanged, "decrease": classes < unchanged}.get(verdict.direction)
        if is_unwanted is not None:
            # A loss of the index is the positive side.
            classes[~is_unwanted] = unchanged
    else:
        away = first - verdict.centre
        size = away if verdict.direction == "increase" else -away if verdict.direction == "decrease" else np.abs(away)
        is_changed = size > verdict.limit
        up = 2 if is_signed(statistic) else 1
        classes = np.where(is_changed, np.where(away > 0, up, 1), 0).astype(np.uint8)
        confidence = _margin(np.abs(size), np.abs(verdict.limit))
    classes[missing] = UNKNOWN
    return classes, confidence


def in_units(confidence: np.ndarray) -> np.ndarray:
    """Confidence in whole units of 1/10,000 (int64), which can be summed in any order; 0 where there is none."""
    return np.rint(np.nan_to_num(confidence.astype(np.float64)) * 10_000).astype(np.int64)


def _margin(size: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(1.0 - limit / size, 0.0, 1.0)


def sampled_score(statistic: Statistic, first: np.ndarray, direction: str) -> np.ndarray:
    """What an automatic threshold is found in: finite scores, their size for both directions, turned for a decrease."""
    known = score(statistic, first)
    known = known[np.isfinite(known)]
    return {"increase": known, "decrease": -known}.get(direction, np.abs(known))


def class_names(statistic: Statistic, found: Severity | None) -> tuple[str, ...]:
    """Names of the classes from 0 on."""
    if found is not None:
        return found.names
    return ("unchanged", "decrease", "increase") if is_signed(statistic) else ("unchanged", "changed")


def refuse_bands(statistic: Statistic, names: Sequence[str]) -> None:
    """Refuse a number of bands that the statistic cannot use."""
    one = isinstance(statistic, Difference | Ratio | LogRatio)
    many = isinstance(statistic, ChangeVector | IrMad)
    tag = type(statistic).__struct_config__.tag
    if one and len(names) != 1:
        raise InvalidParameter(f"{tag} is of one value; {len(names)} bands were given.", pointer="/value/bands")
    if many and len(names) < 2:
        raise InvalidParameter(f"{tag} needs two bands at least.", pointer="/value/bands")


def name_of(statistic: Statistic) -> str:
    """What the caller calls it."""
    return statistic.index if isinstance(statistic, IndexDifference) else str(type(statistic).__struct_config__.tag)


def fixed(statistic: Statistic, threshold: Threshold) -> tuple[float, float]:
    """Centre and limit, on the judged scale, of a threshold that needs no sample."""
    if not isinstance(threshold, Fixed):
        return 0.0, 0.0
    return 0.0, float(np.log(threshold.value)) if isinstance(statistic, Ratio) else threshold.value


def words(statistic: Statistic, threshold: Threshold, verdict: Verdict) -> dict[str, Any]:
    """The threshold as the summary tells it, in units of the statistic."""
    if verdict.severity is not None:
        return {"by": "severity", "breaks": list(verdict.severity.breaks)}
    by = str(type(threshold).__struct_config__.tag)
    if isinstance(threshold, Significance):
        return {"by": by, "level": threshold.level}
    if isinstance(statistic, Ratio):
        return {"by": by, "centre": float(np.exp(verdict.centre)), "value": float(np.exp(verdict.limit))}
    return {"by": by, "centre": verdict.centre, "value": verdict.limit}


def refuse(statistic: Statistic, threshold: Threshold, direction: str) -> None:
    """Refuse what does not go together.

    Raises:
        InvalidParameter: a significance without a test, a factor of at most 1, a direction without a sign.
    """
    name = name_of(statistic)
    if isinstance(threshold, Significance) and not isinstance(statistic, IrMad | Omnibus):
        raise InvalidParameter(
            f"A significance needs a test (irmad, omnibus); {name} is none.", pointer="/threshold/by"
        )
    if isinstance(statistic, Ratio) and isinstance(threshold, Fixed) and threshold.value <= 1:
        raise InvalidParameter(
            f"The threshold of a ratio is a factor above 1; it is {threshold.value:g}.", pointer="/threshold/value"
        )
    if direction != "both" and not is_signed(statistic):
        raise InvalidParameter(
            f"{name} does not tell an increase from a decrease; leave `direction` out.", pointer="/direction"
        )
