"""Days and periods of a series: which solar day a scene was taken on, and which days make a period.

Periods are those of the civil calendar, or windows counted from the first day. They come in order, with those that hold
no day at all between those that do: a gap in a series is a fact, not something to leave out.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct

from eorouter_compute.errors import InvalidParameter, TooLarge

PERIODS_MAX = 1000
"""Most periods of one series; a GeoTIFF is read with at most 1,024 bands."""

YEARS = (1000, 9000)
"""First and last year of a series. Beyond are the dates that stand for none, and the ends of what a date can say: the
season before the first day, or a window of ten years after the last, would not have a name."""

By = Literal["day", "dekad", "month", "quarter", "season", "year", "rolling", "all"]
SEASONS = ("DJF", "MAM", "JJA", "SON")


class Grouping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which days belong together.

    Attributes:
        by: "day" keeps every observed solar day; "dekad" is days 1–10, 11–20 and the rest of a month; "season" is
            DJF, MAM, JJA, SON, December counted to the year that follows; "rolling" are windows of `days` days, one
            every `step_days`; "all" is one period.
        days: length of a rolling window, in days.
        step_days: days from the start of one rolling window to the next; `days` by default. Windows may overlap.
    """

    by: By = "day"
    days: Annotated[int, Meta(ge=1, le=3660)] | None = None
    step_days: Annotated[int, Meta(ge=1, le=3660)] | None = None


class Period(Struct, frozen=True, kw_only=True):
    """Days `start … stop - 1`; `members` are places in the list of days given."""

    name: str
    start: date
    stop: date
    members: tuple[int, ...]

    @property
    def middle(self) -> datetime:
        """The middle of the period, UTC."""
        begin = datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC)
        return begin + (self.stop - self.start) / 2


def solar_day(at: datetime, longitude: float, *, whose: str = "A scene", pointer: str = "") -> date:
    """The day by the sun at a longitude: clocks there are `longitude` / 15 hours ahead of UTC.

    Raises:
        InvalidParameter: it does not lie in `YEARS`; says whose day it is.
    """
    _check_year(at.date(), whose, pointer)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    day = (at + timedelta(hours=longitude / 15.0)).date()
    _check_year(day, whose, pointer)
    return day


def _check_year(day: date, whose: str, pointer: str) -> None:
    first, last = YEARS
    if not first <= day.year <= last:
        raise InvalidParameter(
            f"{whose} is dated {day}; series have dates of the years {first} to {last}. Leave it out, or correct it.",
            pointer=pointer,
        )


def periods(days: Sequence[date], grouping: Grouping, *, pointer: str = "/group") -> tuple[Period, ...]:
    """The periods from the first day to the last, in order; with "day" one per day.

    Args:
        days: ascending, without repeats.
        grouping: what the caller asked for.
        pointer: where it stands in the parameters.

    Raises:
        InvalidParameter: `days` where no window is asked for, or none where it is; a day outside `YEARS`.
        TooLarge: more than PERIODS_MAX.
    """
    if (grouping.by == "rolling") != (grouping.days is not None):
        raise InvalidParameter('`days` goes with "by": "rolling", and only with it.', pointer=f"{pointer}/days")
    if grouping.step_days is not None and grouping.days is None:
        raise InvalidParameter('`step_days` goes with "by": "rolling".', pointer=f"{pointer}/step_days")
    for day in (days[0], days[-1]):
        _check_year(day, "A scene", "/inputs")
    if grouping.by == "day":
        spans = [(day.isoformat(), day, day + timedelta(days=1)) for day in days]
    elif grouping.by == "all":
        spans = [("all", days[0], days[-1] + timedelta(days=1))]
    else:
        spans = []
        start = days[0] if grouping.days else _first(days[0], grouping.by)
        while start <= days[-1]:
            stop = start + timedelta(days=grouping.days) if grouping.days else _next(start, grouping.by)
            spans.append((_name(start, grouping), start, stop))
            if len(spans) > PERIODS_MAX:
                break
            start = start + timedelta(days=grouping.step_days or grouping.days) if grouping.days else stop
    if len(spans) > PERIODS_MAX:
        raise TooLarge(
            f"{days[0]} … {days[-1]} by {grouping.by} gives more than {PERIODS_MAX} periods. Ask for longer ones.",
            pointer=pointer,
        )
    return tuple(
        Period(
            name=name,
            start=start,
            stop=stop,
            members=tuple(place for place, day in enumerate(days) if start <= day < stop),
        )
        for name, start, stop in spans
    )


def _first(day: date, by: By) -> date:
    """First day of the period that holds `day`."""
    if by == "dekad":
        return day.replace(day=1 + 10 * min((day.day - 1) // 10, 2))
    if by == "month":
        return day.replace(day=1)
    if by == "quarter":
        return date(day.year, (day.month - 1) // 3 * 3 + 1, 1)
    if by == "season":
        month = day.month // 3 * 3
        return date(day.year, month, 1) if month else date(day.year - 1, 12, 1)
    return date(day.year, 1, 1)


def _next(start: date, by: By) -> date:
    """First day of the period after the one that begins on `start`."""
    if by == "dekad" and start.day < 21:
        return start + timedelta(days=10)
    months = {"quarter": 3, "season": 3, "year": 12}.get(by, 1)
    year, month = divmod(start.month - 1 + months, 12)
    return date(start.year + year, month + 1, 1)


def _name(start: date, grouping: Grouping) -> str:
    if grouping.by == "dekad":
        return f"{start:%Y-%m}-D{(start.day - 1) // 10 + 1}"
    if grouping.by == "month":
        return f"{start:%Y-%m}"
    if grouping.by == "quarter":
        return f"{start:%Y}-Q{(start.month - 1) // 3 + 1}"
    if grouping.by == "season":
        return f"{start.year + (start.month == 12)}-{SEASONS[start.month % 12 // 3]}"
    if grouping.by == "year":
        return f"{start:%Y}"
    return f"{start.isoformat()}_{grouping.days}d"


Cycle = Literal["dekad", "month", "quarter", "season", "year"]


def place_in_cycle(day: date, cycle: Cycle) -> int:
    """Which dekad (0–35), month (0–11), quarter, season (DJF 0) of the year a day lies in; 0 for the year itself."""
    if cycle == "dekad":
        return 3 * (day.month - 1) + min((day.day - 1) // 10, 2)
    if cycle == "month":
        return day.month - 1
    if cycle == "quarter":
        return (day.month - 1) // 3
    return day.month % 12 // 3 if cycle == "season" else 0
