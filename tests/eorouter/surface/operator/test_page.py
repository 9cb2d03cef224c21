"""The page says first whether all is well, shows every number of the state, and nothing a user wrote becomes markup."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import msgspec
import pytest

from eorouter.jobs.census import Failures, Minute, Queue, Waiting
from eorouter.storage.operators import Operator
from eorouter.surface.operator import page
from eorouter.surface.operator.state import Dispatcher, Lane, LedgerState, State, Worker
from eorouter.surface.readiness import Part, Readiness

AT = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>\"'&<b>"
ADA = Operator(user_id="usr_a", email=HOSTILE, name=HOSTILE)
VOID = {"meta", "link", "input", "rect", "line"}

STATE = State(
    at=AT,
    troubles=(),
    readiness=Readiness(state="ready", parts={"database": Part(state="ready", message=HOSTILE)}),
    lanes=(
        Lane(kind="batch", queued=1234, running=2, shards=56789, age_s=7300),
        Lane(kind="interactive", queued=0, running=0, shards=0, age_s=0),
    ),
    organisations=(
        Queue(
            org_id="org_1", org_name=HOSTILE * 9, kind="batch", queued=1, running=2, shards=3, age_s=4,
            oldest_id="job_1", oldest_s=5, is_paused=True,
        ),
    ),
    oldest=Waiting(job_id="job_1", org_id="org_1", org_name=HOSTILE, method=HOSTILE, state="running", age_s=600),
    jobs={"created": 0, "queued": 1234, "running": 2, "completed": 7, "failed": 1},
    minutes=tuple(Minute(shards=number, failures=number % 7 == 0, pixels=number * 10**8) for number in range(60)),
    failures=(
        Failures(
            code=HOSTILE, jobs=3, last_id="job_2", last_org_name=HOSTILE, last_method=HOSTILE, last_message=HOSTILE,
            last_at=AT,
        ),
    ),
    dispatchers=(
        Dispatcher(
            id="dsp_1", host=HOSTILE, started_at=AT, silent_s=1, is_alive=True, version="1", build=HOSTILE, workers=1,
            threads=2, threads_there=2, in_flight=3, dashboard="/operator/dashboard/dsp_1/status",
        ),
    ),
    workers=(
        Worker(
            name=HOSTILE, dispatcher_id="dsp_1", host=HOSTILE, threads=2, executing=1, shards=(HOSTILE,) * 5,
            memory_bytes=1 << 28, memory_limit_bytes=1 << 32, silent_s=0.3,
        ),
    ),
    ledger=LedgerState(checked_at=AT, seconds=1.25, faults=()),
)  # fmt: skip
EMPTY = msgspec.structs.replace(
    STATE, lanes=STATE.lanes[1:] * 2, organisations=(), oldest=None, minutes=(Minute(),) * 60, failures=(),
    dispatchers=(), workers=(), ledger=LedgerState(),
)  # fmt: skip
EMPTY = msgspec.structs.replace(EMPTY, lanes=(msgspec.structs.replace(EMPTY.lanes[0], kind="batch"), EMPTY.lanes[0]))


class Checker(HTMLParser):
    """Notes tags and attributes, and complains of tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("state", [STATE, EMPTY], ids=["busy", "empty"])
def test_page_nests_runs_one_script_and_loads_nothing_from_elsewhere(state):
    checked = Checker(page.console(state, ADA))
    assert checked.tags.count("script") == 1
    assert not [name for name, _ in checked.attributes if name == "style" or name.startswith("on")]
    addresses = [value or "" for name, value in checked.attributes if name in {"href", "src", "action"}]
    assert addresses
    assert all(address.startswith(("/operator", "data:,")) for address in addresses)
    ids = [value for name, value in checked.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_what_users_wrote_is_text():
    text = page.console(STATE, ADA)
    assert "<script>alert" not in text
    assert "<b>'" not in text
    assert text.count("&lt;script&gt;alert") >= 10


def test_verdict_comes_first_and_is_the_title():
    well = page.console(STATE, ADA)
    assert "<title>All is well" in well
    assert well.index("All is well</h1>") < well.index("tiles")
    ill = page.console(msgspec.structs.replace(STATE, troubles=("ledger: 2 faults <b>", "x")), ADA)
    assert "<title>2 to look at" in ill
    assert "ledger: 2 faults &lt;b&gt;" in ill
    assert "All is well" not in ill


def test_numbers_are_there():
    text = re.sub(r"<[^>]+>|\N{NARROW NO-BREAK SPACE}", " ", page.console(STATE, ADA))
    for told in ("1 234", "56 789", "2 h", "10 min", "256 MiB of 4.0 GiB", "paused", "job_2", "5.9 G"):
        assert told in text, told
    assert "balances" in text


def test_ledger_is_said_in_words():
    def words(**ledger):
        return page._ledger_words(LedgerState(**ledger), STATE)

    assert words()[1] == "being checked"
    assert words(checked_at=AT)[::2] == ("balances", "")
    assert words(checked_at=AT, faults=("a",))[::2] == ("1 fault", "ill")
    assert words(checked_at=AT, problem="x")[::2] == ("unchecked", "ill")


def test_log_in_page_is_whole_and_escapes_what_it_says():
    text = page.login(HOSTILE)
    assert "<script" not in text
    Checker(text)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (page.span(0), "0 s"), (page.span(119), "119 s"), (page.span(180), "3 min"), (page.span(7200), "2 h"),
        (page.span(400000), "5 d"), (page.span(-3), "0 s"), (page.count(1234567), "1 234 567"), (page.rate(0), "0"),
        (page.rate(2.54), "2.5"), (page.rate(1234.4), "1 234"), (page.si(0), "0 "), (page.si(1234), "1.23 k"),
        (page.si(2.5e9), "2.5 G"), (page.size(1 << 20), "1 MiB"), (page.size(5 << 29), "2.5 GiB"),
    ],
)  # fmt: skip
def test_quantities_are_written_for_people(told, expected):
    assert told.replace("\N{NARROW NO-BREAK SPACE}", " ") == expected
