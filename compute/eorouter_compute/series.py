"""What is made of a series: which analyses there are, what their bands are called, and how they are computed.

    days (time, band, pixel) ──by period──► series (period, pixel) ──prepare──► filled, smooth ──analyse──► bands

Each analysis is one struct of the tagged union `Analysis`; `bands` names what it gives and `analyse` gives it. Time is
counted in days of 24 hours since the epoch, slopes and waves in years of 365.25 days.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from eorouter_compute.calendars import Cycle, Period, place_in_cycle
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.quality import DILATE_MAX
from eorouter_kernels import smoothing, temporal, trend

YEAR_DAYS = 365.25

Reducer = Literal["mean", "median", "min", "max", "stdev", "count", "valid_fraction"]
BestBy = Literal["highest", "lowest", "nearest", "clearest", "least_cloud"]


class BestPixel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which date a pixel is taken from, whole.

    Attributes:
        by: the date with the "highest" or "lowest" value of `band`; the date "nearest" to `day`; the "clearest", on
            which the pixel lies farthest from what the masks drop; or that with the "least_cloud" by `eo:cloud_cover`,
            of its first scene. Of equal dates the earliest.
        band: one of the value's bands; its only one by default. With "highest" and "lowest" only.
        day: the day to be near to.
        reach_px: from where on one is as clear as another, in pixels of the output grid, for "clearest".
    """

    by: BestBy = "highest"
    band: str | None = None
    day: date | None = None
    reach_px: Annotated[int, Meta(ge=1, le=DILATE_MAX)] = 50


class Composite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="composite"):
    """One picture per period, from what is clear in it.

    Attributes:
        statistics: one band each; "stdev" is that of the population, "count" the clear dates, "valid_fraction" their
            share of the days observed.
        percentiles: further bands, 0 to 100, interpolated between dates.
        medoid: bands of the date that lies nearest to all others in band space.
        geometric_median: bands of the point with the least sum of distances to all dates.
        best: bands of one date, chosen per pixel, and `best_day`, its day of year.
    """

    statistics: Annotated[tuple[Reducer, ...], Meta(max_length=7)] = ()
    percentiles: Annotated[tuple[Annotated[float, Meta(ge=0, le=100)], ...], Meta(max_length=16)] = ()
    medoid: bool = False
    geometric_median: bool = False
    best: BestPixel | None = None


class Curve(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="series"):
    """The series itself, filled and smoothed, one band per period."""


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="trend"):
    """The trend: slope per year and its probability.

    Attributes:
        model: "least_squares" gives slope, intercept, r2, p_value, stderr, count; "theil_sen" gives slope, intercept
            and, by Mann and Kendall, tau, s, p_value, count. The intercept is the value on the first day.
        at_least: fewest values for a trend.
    """

    model: Literal["least_squares", "theil_sen"] = "least_squares"
    at_least: Annotated[int, Meta(ge=3, le=1000)] = 3


class Waves(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="harmonic"):
    """Waves of a year and its parts: mean, per harmonic amplitude and the day of its crest, r2, rmse, count.

    Attributes:
        harmonics: how many waves; the second has two crests a year.
        has_slope: fit a slope per year beside them.
        period_days: length of the first wave, in days; crests are counted from the start of the first day's year.
    """

    harmonics: Annotated[int, Meta(ge=1, le=trend.HARMONICS_MAX)] = 1
    has_slope: bool = False
    period_days: Annotated[float, Meta(gt=0, le=36_525)] = YEAR_DAYS


class Phenology(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="phenology"):
    """Start, peak, end, length, base, peak value, amplitude and integral of each year's season.

    Days are counted from the beginning of the year of growth, 0 its first; the integral is in value × days.

    Attributes:
        threshold: share of the amplitude, from the base of either side, at which the season starts and ends; half of it
            lies near the turning points of the curve.
        year_begins: month and day from which a year of growth runs, "01-01"; "07-01" suits the south.
        least_amplitude: seasons with less are none.
    """

    threshold: Annotated[float, Meta(ge=0.05, le=0.9)] = 0.5
    year_begins: Annotated[str, Meta(pattern=r"^(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])$")] = "01-01"
    least_amplitude: Annotated[float, Meta(ge=0)] = 0.05


class Anomaly(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="anomaly"):
    """Difference of every period outside the baseline from the baseline's mean of the same time of year; and z-score.

    Attributes:
        baseline: first and last day of the years that make the mean.
        cycle: what counts as the same time of year.
        at_least: fewest baseline values of a time of year for a mean.
        include_baseline: give the periods of the baseline, too.
    """

    baseline: tuple[date, date]
    cycle: Cycle = "month"
    at_least: Annotated[int, Meta(ge=1, le=1000)] = 2
    include_baseline: bool = False


Analysis = Composite | Curve | Line | Waves | Phenology | Anomaly


class Fill(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How gaps between values are filled; never before the first or after the last.

    Attributes:
        by: "linear" between the neighbours, "harmonic" from waves fitted to the whole series of the pixel.
        gap_days: widest gap a line is drawn across, in days.
        harmonics: waves, with "harmonic".
    """

    by: Literal["linear", "harmonic"] = "linear"
    gap_days: Annotated[float, Meta(gt=0)] = 1e9
    harmonics: Annotated[int, Meta(ge=1, le=trend.HARMONICS_MAX)] = 2


class Smooth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a series is smoothed.

    Attributes:
        by: "whittaker" (fills gaps as it goes) or "savitzky_golay".
        roughness: Whittaker's λ; larger is smoother.
        window: samples of a Savitzky–Golay window, odd.
        order: degree of its polynomial.
    """

    by: Literal["whittaker", "savitzky_golay"] = "whittaker"
    roughness: Annotated[float, Meta(gt=0, le=1e9)] = 10.0
    window: Annotated[int, Meta(ge=3, le=99)] = 7
    order: Annotated[int, Meta(ge=0, le=5)] = 2


def checked(analysis: Analysis, names: Sequence[str], smooth: Smooth | None) -> Analysis:
    """The analysis with its defaults in place.

    Raises:
        InvalidParameter: parts of it contradict each other or the value.
    """
    if smooth and smooth.by == "savitzky_golay" and (smooth.window % 2 == 0 or smooth.order >= smooth.window):
        raise InvalidParameter(
            f"A Savitzky–Golay window has an odd number of samples, more than the order {smooth.order}; "
            f"it is {smooth.window}.",
            pointer="/smooth/window",
        )
    if isinstance(analysis, Composite):
        is_empty = not (analysis.statistics or analysis.percentiles or analysis.medoid or analysis.geometric_median)
        if is_empty and analysis.best is None:
            return Composite(statistics=("median",))
        _check_best(analysis.best, names)
    if isinstance(analysis, Anomaly) and analysis.baseline[0] > analysis.baseline[1]:
        raise InvalidParameter("The baseline ends before it begins.", pointer="/analysis/baseline")
    return analysis


def _check_best(best: BestPixel | None, names: Sequence[str]) -> None:
    if best is None:
        return
    if (best.by == "nearest") != (best.day is not None):
        raise InvalidParameter('`day` goes with "by": "nearest", and only with it.', pointer="/analysis/best/day")
    if best.by in {"highest", "lowest"} and (best.band not in names if best.band else len(names) > 1):
        raise InvalidParameter(
            f"`best` needs the band whose value decides: one of {', '.join(names)}.", pointer="/analysis/best/band"
        )


# What an analysis gives


def bands(analysis: Analysis, names: Sequence[str], periods: Sequence[Period]) -> tuple[tuple[str, str | None], ...]:
    """Name and unit of every band of the analysis, in order; of several bands those of the first come first."""
    if isinstance(analysis, Composite):
        return tuple(_composite_bands(analysis, names))
    rows = _of_one_band(analysis, periods)
    return rows if len(names) == 1 else tuple((f"{name}_{row}", unit) for name in names for row, unit in rows)


def _of_one_band(
    analysis: Curve | Line | Waves | Phenology | Anomaly, periods: Sequence[Period]
) -> tuple[tuple[str, str | None], ...]:
    if isinstance(analysis, Curve):
        return tuple((period.name, None) for period in periods)
    if isinstance(analysis, Line):
        rows = trend.LINE if analysis.model == "least_squares" else trend.SEN
        return tuple((row, {"slope": "1/year", "stderr": "1/year"}.get(row)) for row in rows)
    if isinstance(analysis, Waves):
        waves = [
            each
            for number in range(1, analysis.harmonics + 1)
            for each in ((f"amplitude_{number}", None), (f"crest_{number}", "day"))
        ]
        lead = [("mean", None), ("slope", "1/year")] if analysis.has_slope else [("mean", None)]
        return (*lead, *waves, ("r2", None), ("rmse", None), ("count", None))
    if isinstance(analysis, Phenology):
        units = {"start": "day", "peak": "day", "end": "day", "length": "day", "integral": "day"}
        years = seasons(analysis, periods)
        return tuple(
            (f"{row}_{year}" if len(years) > 1 else row, units.get(row))
            for year, _, _ in years
            for row in smoothing.SEASON
        )
    shown = [periods[place] for place in _targets(analysis, periods)]
    return tuple((f"{period.name}_{what}", None) for period in shown for what in ("anomaly", "z_score"))


def _composite_bands(analysis: Composite, names: Sequence[str]) -> list[tuple[str, str | None]]:
    out: list[tuple[str, str | None]] = []
    for name in names:
        out += [(f"{name}_{row}", None) for row in analysis.statistics]
        out += [(f"{name}_p{level:g}", None) for level in analysis.percentiles]
    if analysis.medoid:
        out += [(f"{name}_medoid", None) for name in names]
    if analysis.geometric_median:
        out += [(f"{name}_geometric_median", None) for name in names]
    if analysis.best is not None:
        out += [*((f"{name}_best", None) for name in names), ("best_day", "day")]
    return out


def seasons(analysis: Phenology, periods: Sequence[Period]) -> list[tuple[int, float, float]]:
    """The years of growth that hold three periods or more: name, first and last moment in days since the epoch."""
    month, day = (int(part) for part in analysis.year_begins.split("-"))
    times = moments_of(periods)
    found = []
    for year in range(periods[0].start.year - 1, periods[-1].stop.year + 1):
        start, stop = _days(date(year, month, day)), _days(date(year + 1, month, day))
        if ((times >= start) & (times < stop)).sum() >= 3:
            found.append((year, start, stop))
    if not found:
        raise InvalidParameter("No year of growth holds three dates or more.", pointer="/analysis/year_begins")
    return found


def _targets(analysis: Anomaly, periods: Sequence[Period]) -> list[int]:
    inside = [_in_baseline(analysis, period) for period in periods]
    if not any(inside):
        first, last = analysis.baseline
        raise InvalidParameter(
            f"No date lies in the baseline {first} … {last}; there are {periods[0].start} … {periods[-1].start}.",
            pointer="/analysis/baseline",
        )
    found = [place for place, is_base in enumerate(inside) if analysis.include_baseline or not is_base]
    if not found:
        raise InvalidParameter(
            "Every date lies in the baseline; nothing is left to compare with it.", pointer="/analysis/baseline"
        )
    return found


def _in_baseline(analysis: Anomaly, period: Period) -> bool:
    return analysis.baseline[0] <= period.start <= analysis.baseline[1]


def _days(day: date) -> float:
    return float((day - date(1970, 1, 1)).days)


def moments_of(periods: Sequence[Period]) -> np.ndarray:
    """The middle of every period, in days since the epoch; of a single day the day itself."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return np.array([
        _days(p.start) if (p.stop - p.start).days == 1 else (p.middle - epoch).total_seconds() / 86_400
        for p in periods
    ])  # fmt: skip


# Pixels: everything below is (time or band, pixel)


def composite(
    analysis: Composite, stack: np.ndarray, days: Sequence[date], names: Sequence[str], out: np.ndarray,
    *, rank: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Bands of a composite, into out (band, pixel), of a stack (time, band, pixel); see `bands` for their order.

    `rank` (time, pixel), or (time, 1), is how clear each date is, for "clearest" and "least_cloud".
    """
    count = stack.shape[1]
    width = len(analysis.statistics) + len(analysis.percentiles)
    for band in range(count):
        _reduced(analysis, np.ascontiguousarray(stack[:, band]), out[band * width : (band + 1) * width])
    rest = out[count * width :]
    if analysis.medoid:
        temporal.medoid(stack, rest[:count])
        rest = rest[count:]
    if analysis.geometric_median:
        temporal.geometric_median(stack, rest[:count])
        rest = rest[count:]
    if analysis.best is not None:
        _best(analysis.best, stack, days, rest, names=names, rank=rank)


def _reduced(analysis: Composite, one: np.ndarray, out: np.ndarray) -> None:
    """Statistics and percentiles of one band (time, pixel)."""
    statistics = analysis.statistics
    if set(statistics) - {"median"}:
        plain = np.empty((len(temporal.MOMENTS), one.shape[1]), np.float32)
        temporal.moments(one, plain)
        for row, name in zip(out, statistics, strict=False):
            if name == "valid_fraction":
                np.divide(plain[0], np.float32(len(one)), out=row)
            elif name != "median":
                row[:] = plain[temporal.MOMENTS.index(name)]
    # The median, if there is one, and the percentiles after the statistics are ranked in one go, then put in place.
    places = [place for place, name in enumerate(statistics) if name == "median"]
    levels = np.array([*(0.5 for _ in places), *(level / 100.0 for level in analysis.percentiles)], np.float64)
    places += range(len(statistics), len(out))
    if places == list(range(len(out))):
        temporal.ranks(one, levels, out)
    elif places:
        ranked = np.empty((len(levels), one.shape[1]), np.float32)
        temporal.ranks(one, levels, ranked)
        out[places] = ranked


def _best(
    best: BestPixel, stack: np.ndarray, days: Sequence[date], out: np.ndarray, *, names: Sequence[str],
    rank: np.ndarray | None,
) -> None:  # fmt: skip
    """Bands of the best date, and its day of year behind them."""
    if rank is not None:
        score = rank
    elif best.day is not None:
        score = np.array([[-abs((day - best.day).days)] for day in days], np.float32)
    else:
        score = stack[:, names.index(best.band) if best.band else 0]
        score = score if best.by == "highest" else -score
    place = np.empty(stack.shape[2], np.float32)
    temporal.pick(stack, np.ascontiguousarray(score), out[:-1], place)
    day_of_year = np.array([day.timetuple().tm_yday for day in days], np.float32)
    is_known = ~np.isnan(place)
    out[-1] = np.where(is_known, day_of_year[np.where(is_known, place, 0).astype(np.int64)], np.float32(np.nan))


def prepare(series: np.ndarray, times: np.ndarray, fill: Fill | None, smooth: Smooth | None) -> None:
    """Fill gaps, then smooth, in place: series (time, pixel), times in days."""
    if fill is not None and fill.by == "linear":
        smoothing.fill_linear(series, times, float(fill.gap_days))
    elif fill is not None:
        years = (times - times[0]) / YEAR_DAYS
        basis = trend.basis(years, fill.harmonics, 1.0, has_slope=False)
        fitted = np.empty_like(series)
        rows = np.empty((basis.shape[1] + 3, series.shape[1]), np.float32)
        trend.harmonic(series, basis, fill.harmonics, 1.0, rows, fitted)
        known = ~np.isnan(series)
        # Waves know no end; a series does.
        begun, ended = np.maximum.accumulate(known, axis=0), np.maximum.accumulate(known[::-1], axis=0)[::-1]
        np.copyto(series, fitted, where=~known & begun & ended)
    if smooth is not None and smooth.by == "whittaker":
        smoothing.whittaker(series, times, float(smooth.roughness))
    elif smooth is not None:
        smoothing.savitzky_golay(series, times, smooth.window, smooth.order)


def analyse(analysis: Analysis, series: np.ndarray, periods: Sequence[Period]) -> np.ndarray:
    """Bands (band, pixel) of a prepared series (time, pixel); see `bands` for their order."""
    times, pixels = moments_of(periods), series.shape[1]
    if isinstance(analysis, Line):
        out = np.empty((6, pixels), np.float32)
        fit = trend.least_squares if analysis.model == "least_squares" else trend.theil_sen
        fit(series, (times - times[0]) / YEAR_DAYS, analysis.at_least, out)
        return out
    if isinstance(analysis, Waves):
        begin = _days(date(periods[0].start.year, 1, 1))
        count = analysis.harmonics
        basis = trend.basis(times - begin, count, analysis.period_days, has_slope=analysis.has_slope)
        if analysis.has_slope:
            basis[:, 1] /= YEAR_DAYS
        out = np.empty((basis.shape[1] + 3, pixels), np.float32)
        trend.harmonic(series, basis, count, analysis.period_days, out, np.empty((0, 0), np.float32))
        return out
    if isinstance(analysis, Phenology):
        years = seasons(analysis, periods)
        out = np.empty((len(years) * len(smoothing.SEASON), pixels), np.float32)
        for place, (_, start, stop) in enumerate(years):
            rows = out[8 * place : 8 * place + 8]
            smoothing.phenology(series, times, start, stop, analysis.threshold, analysis.least_amplitude, rows)
        return out
    if isinstance(analysis, Anomaly):
        cycle = np.array([place_in_cycle(period.start, analysis.cycle) for period in periods], np.int64)
        baseline = np.array([_in_baseline(analysis, period) for period in periods])
        away, score = np.empty_like(series), np.empty_like(series)
        trend.anomaly(series, cycle, baseline, analysis.at_least, away, score)
        shown = _targets(analysis, periods)
        return np.stack([away[shown], score[shown]], axis=1).reshape(-1, pixels)
    return series
