from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter_compute.calendars import YEARS, Grouping, periods, place_in_cycle, solar_day
from eorouter_compute.errors import InvalidParameter, TooLarge

DAYS = [date(2019, 12, 3), date(2020, 2, 29), date(2020, 3, 1), date(2020, 3, 31), date(2021, 1, 1)]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("day", [day.isoformat() for day in DAYS]),
        ("year", ["2019", "2020", "2021"]),
        ("season", ["2020-DJF", "2020-MAM", "2020-JJA", "2020-SON", "2021-DJF"]),
        ("quarter", ["2019-Q4", "2020-Q1", "2020-Q2", "2020-Q3", "2020-Q4", "2021-Q1"]),
        ("all", ["all"]),
    ],
)
def test_periods_have_names_and_gaps_stay(by, names):
    assert [period.name for period in periods(DAYS, Grouping(by=by))] == names


def test_dekads_end_with_the_month():
    found = periods([date(2020, 2, 9), date(2020, 3, 1)], Grouping(by="dekad"))
    assert [(p.name, p.start.day, p.stop) for p in found] == [
        ("2020-02-D1", 1, date(2020, 2, 11)),
        ("2020-02-D2", 11, date(2020, 2, 21)),
        ("2020-02-D3", 21, date(2020, 3, 1)),
        ("2020-03-D1", 1, date(2020, 3, 11)),
    ]
    assert found[1].members == ()
    assert found[0].middle == datetime(2020, 2, 6, tzinfo=UTC)


@given(
    st.lists(st.dates(date(2000, 1, 1), date(2004, 12, 31)), min_size=1, max_size=30, unique=True),
    st.sampled_from(["day", "dekad", "month", "quarter", "season", "year", "all"]),
)
def test_calendar_periods_hold_every_day_once(days, by):
    days = sorted(days)
    found = periods(days, Grouping(by=by))
    assert [member for period in found for member in period.members] == list(range(len(days)))
    if by != "day":
        assert all(a.stop == b.start for a, b in pairwise(found))


def test_rolling_windows_overlap():
    days = [date(2020, 1, 1) + timedelta(days=5 * n) for n in range(7)]
    found = periods(days, Grouping(by="rolling", days=20, step_days=10))
    assert [period.members for period in found] == [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6), (6,)]
    assert found[1].name == "2020-01-11_20d"


GROUPINGS = [Grouping(by=by) for by in ("day", "dekad", "month", "quarter", "season", "year", "all")] + [
    Grouping(by="rolling", days=days, step_days=step) for days in (1, 90, 3660) for step in (None, 1, 3660)
]


@given(
    st.lists(st.dates() | st.dates(date(9990, 1, 1)) | st.dates(max_value=date(2, 1, 1)), min_size=1, max_size=5),
    st.sampled_from(GROUPINGS),
)
def test_any_dates_have_periods_or_are_refused_by_name(days, grouping):
    days = sorted(set(days))
    if any(not YEARS[0] <= day.year <= YEARS[1] for day in days):
        with pytest.raises(InvalidParameter, match="years 1000 to 9000") as caught:
            periods(days, grouping)
        assert caught.value.pointer == "/inputs"
        return
    try:
        found = periods(days, grouping)
    except TooLarge:
        assert days[-1] - days[0] > timedelta(days=900)
        return
    for period in found:
        assert period.start < period.stop
        assert period.start <= period.middle.date() <= period.stop
        assert [days[member] for member in period.members] == [d for d in days if period.start <= d < period.stop]
        assert len(period.name) >= 3


@given(st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=14))])), st.floats(-180, 180))
def test_any_time_has_a_day_or_is_refused_by_name(at, longitude):
    if YEARS[0] < at.year < YEARS[1]:
        assert abs(solar_day(at, longitude) - at.date()) <= timedelta(days=2)
    elif not YEARS[0] <= at.year <= YEARS[1]:
        with pytest.raises(InvalidParameter, match=f"Item a is dated {at.date()}") as caught:
            solar_day(at, longitude, whose="Item a", pointer="/inputs/3")
        assert caught.value.pointer == "/inputs/3"


def test_the_day_is_that_of_the_sun():
    late = datetime(2020, 6, 1, 23, 30, tzinfo=UTC)
    assert solar_day(late, 175.0) == date(2020, 6, 2)
    assert solar_day(late, -120.0) == date(2020, 6, 1)
    assert solar_day(datetime(2020, 6, 1, 2, tzinfo=UTC), -120.0) == date(2020, 5, 31)
    assert solar_day(late.replace(tzinfo=None), 0.0) == date(2020, 6, 1)


def test_places_in_the_year():
    assert [place_in_cycle(date(2021, 12, 31), c) for c in ("dekad", "month", "quarter", "season", "year")] == [
        35, 11, 3, 0, 0
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grouping", "error"),
    [
        (Grouping(by="rolling"), InvalidParameter),
        (Grouping(by="month", days=3), InvalidParameter),
        (Grouping(by="month", step_days=3), InvalidParameter),
        (Grouping(by="rolling", days=1, step_days=1), TooLarge),
    ],
)
def test_refusals(grouping, error):
    with pytest.raises(error):
        periods([date(1990, 1, 1), date(2020, 1, 1)], grouping)
