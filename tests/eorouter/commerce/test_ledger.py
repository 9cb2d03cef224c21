"""The ledger against a model in plain Python, against many at once, and against a death between any two statements."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError

from eorouter.commerce import ledger
from eorouter.errors import BudgetExceeded, IdempotencyKeyReused, InsufficientBalance
from eorouter.operation import SpendAuthority
from eorouter.storage import migrate
from eorouter.storage.database import Database
from eorouter.storage.tables import budget_usage, budgets, ledger_transfers, organisations, projects
from eorouter.types import Mode, Principal, new_id

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def spender(org_id: str = "org_me", *, key: str | None = None, mode: Mode = Mode.LIVE, who: str = "key_a"):
    principal = Principal(kind="key", id=who, org_id=org_id, scopes=frozenset(), mode=mode)
    return SpendAuthority(principal=principal, idempotency_key=key or new_id("key"), digest="0" * 64)


async def reserve(db: Database, authority: SpendAuthority, amount: int, *, now: datetime = NOW, **more):
    fields = {"transfer_id": new_id("trf"), "project_id": "prj_a", "memo": ""} | more
    fields.setdefault("reference", fields["transfer_id"])
    async with db.write() as tx:
        return await ledger.reserve(tx, db, authority, amount=amount, now=now, **fields)


async def opened(db: Database, org_id: str = "org_me", cents: int = 1000, mode: Mode = Mode.LIVE) -> None:
    async with db.write() as tx:
        await ledger.open_accounts(tx, db, org_id, mode, now=NOW, welcome=cents)


async def balance(db: Database, org_id: str = "org_me", mode: Mode = Mode.LIVE) -> ledger.Balance:
    async with db.read() as tx:
        found = await ledger.balance(tx, org_id, mode)
    assert found is not None
    return found


async def faults(db: Database) -> list[str]:
    async with db.read() as tx:
        return await ledger.verify(tx)


class Held(NamedTuple):
    """An open reservation as the model knows it."""

    reservation: ledger.Reservation
    mode: Mode
    ends: datetime | None
    counted: tuple[tuple[str, str], ...]


class Limit(NamedTuple):
    """A budget as the model knows it."""

    mode: Mode
    project: str | None
    key: str | None
    period: str
    cents: int


MODES = st.sampled_from(list(Mode))
PROJECTS, KEYS = ("a", "b"), ("key_a", "key_b")


class Machine(RuleBasedStateMachine):
    """One organisation of a database that all runs share; every run has an organisation of its own."""

    db: Database
    run: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.org = new_id("org")
        self.available, self.spent = dict.fromkeys(Mode, 500), dict.fromkeys(Mode, 0)
        self.held: dict[str, Held] = {}
        self.closed: list[ledger.Reservation] = []
        self.limits: dict[str, Limit] = {}
        self.committed: dict[tuple[str, str], int] = {}
        self.now = NOW
        self.do(self._begin())

    def do(self, work):
        return self.run.run(work)

    def project(self, name: str) -> str:
        return f"prj_{name}{self.org}"

    async def _begin(self) -> None:
        async with self.db.write() as tx:
            row = {"id": self.org, "name": "o", "quota_bytes": 1, "used_bytes": 0, "created_at": NOW}
            await tx.execute(sa.insert(organisations).values(row))
            fields = {"org_id": self.org, "name": "p", "description": "", "created_at": NOW}
            rows = [fields | {"id": self.project(name)} for name in PROJECTS]
            await tx.execute(sa.insert(projects), rows)
        for mode in Mode:
            await opened(self.db, self.org, 500, mode)
            await opened(self.db, self.org, 9, mode)  # a second time changes nothing

    async def _resolve(self, how, reservation: ledger.Reservation, *more):
        async with self.db.write() as tx:
            return await how(tx, reservation, *more, now=self.now)

    def _closed(self, held: Held, taken: int) -> None:
        amount = held.reservation.amount
        self.spent[held.mode] += taken
        self.available[held.mode] += amount - taken
        for place in held.counted:
            if place in self.committed:  # its budget is still there
                self.committed[place] -= amount - taken
        self.closed.append(held.reservation)

    def _draw_held(self, data) -> Held:
        return self.held.pop(data.draw(st.sampled_from(sorted(self.held))))

    @rule(amount=st.integers(1, 400), name=st.sampled_from(["a", "b", "c"]), mode=MODES)
    def grant(self, amount: int, name: str, mode: Mode) -> None:
        async def give() -> bool:
            async with self.db.write() as tx:
                name_ = f"{self.org}/{mode}/{name}/{amount}"
                return await ledger.grant(tx, self.org, mode, name_, amount, memo="", now=NOW)

        if self.do(give()):
            self.available[mode] += amount

    @precondition(lambda self: len(self.limits) < 4)
    @rule(
        mode=MODES, project=st.sampled_from([None, *PROJECTS]), key=st.sampled_from([None, *KEYS]),
        period=st.sampled_from(["day", "month", "ever"]), cents=st.integers(0, 900),
    )  # fmt: skip
    def limit(self, mode: Mode, project: str | None, key: str | None, period: str, cents: int) -> None:
        name = new_id("bud")
        self.limits[name] = Limit(mode, project, key, period, cents)
        where = None if project is None else self.project(project)
        row = {"id": name, "org_id": self.org, "project_id": where, "key_id": key, "mode": mode.value, "name": name,
               "period": period, "limit_cents": cents, "created_at": NOW}  # fmt: skip
        self.do(self._write(sa.insert(budgets).values(row)))

    @precondition(lambda self: self.limits)
    @rule(data=st.data(), cents=st.none() | st.integers(0, 2000))
    def limit_anew(self, data, cents: int | None) -> None:
        """Change a budget, or take it away with all that it counted."""
        name = data.draw(st.sampled_from(sorted(self.limits)))
        found = self.limits.pop(name)
        mine = budgets.c.id == name
        if cents is None:
            self.committed = {place: count for place, count in self.committed.items() if place[0] != name}
            self.do(self._write(sa.delete(budgets).where(mine)))
        else:
            self.limits[name] = found._replace(cents=cents)
            self.do(self._write(sa.update(budgets).where(mine).values(limit_cents=cents)))

    async def _write(self, statement) -> None:
        async with self.db.write() as tx:
            await tx.execute(statement)

    @rule(
        amount=st.integers(1, 700), life=st.sampled_from([None, 1, 5]), mode=MODES, project=st.sampled_from(PROJECTS),
        key=st.sampled_from(KEYS),
    )  # fmt: skip
    def reserve(self, amount: int, life: int | None, mode: Mode, project: str, key: str) -> None:
        ends = None if life is None else self.now + timedelta(hours=life)
        counted = tuple(
            (name, ledger.period_of(limit.period, self.now)) for name, limit in sorted(self.limits.items())
            if limit.mode is mode and limit.project in {None, project} and limit.key in {None, key}
        )  # fmt: skip
        who = spender(self.org, mode=mode, who=key)
        more = {"now": self.now, "expires_at": ends, "project_id": self.project(project)}
        work = reserve(self.db, who, amount, **more)
        over = [place for place in counted if self.committed.get(place, 0) + amount > self.limits[place[0]].cents]
        if over:
            left = max(self.limits[over[0][0]].cents - self.committed.get(over[0], 0), 0)
            with pytest.raises(BudgetExceeded) as refusal:
                self.do(work)
            data = {"budget_id": over[0][0], "required_cents": amount, "available_cents": left}
            assert refusal.value.data == data
        elif amount > self.available[mode]:
            with pytest.raises(InsufficientBalance) as lack:
                self.do(work)
            assert lack.value.data == {"required_cents": amount, "available_cents": self.available[mode]}
        else:
            found = self.do(work)
            self.held[found.transfer_id] = Held(found, mode, ends, counted)
            self.available[mode] -= amount
            self.committed |= {place: self.committed.get(place, 0) + amount for place in counted}

    @precondition(lambda self: self.held)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.3, 1.0, 2.0]))
    def capture(self, data, share: float) -> None:
        held = self._draw_held(data)
        asked = int(held.reservation.amount * share)
        taken = self.do(self._resolve(ledger.capture, held.reservation, asked))
        assert taken == min(asked, held.reservation.amount)
        self._closed(held, taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data) -> None:
        held = self._draw_held(data)
        assert self.do(self._resolve(ledger.release, held.reservation))
        self._closed(held, 0)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def resolve_again(self, data) -> None:
        reservation = data.draw(st.sampled_from(self.closed))
        assert self.do(self._resolve(ledger.capture, reservation, reservation.amount)) == 0
        assert not self.do(self._resolve(ledger.release, reservation))

    @rule(hours=st.integers(1, 14))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

        due = [name for name, held in self.held.items() if held.ends is not None and held.ends <= self.now]
        assert self.do(ledger.expire(self.db, now=self.now)) >= len(due)
        for name in due:
            self._closed(self.held.pop(name), 0)

    @invariant()
    def balances(self) -> None:
        for mode in Mode:
            reserved = sum(held.reservation.amount for held in self.held.values() if held.mode is mode)
            expected = ledger.Balance(self.available[mode], reserved, self.spent[mode])
            assert self.do(balance(self.db, self.org, mode)) == expected
        assert self.do(self._counted()) == {place: count for place, count in self.committed.items() if count}

    async def _counted(self) -> dict[tuple[str, str], int]:
        query = sa.select(budget_usage).join(budgets).where(budgets.c.org_id == self.org)
        async with self.db.read() as tx:
            rows = (await tx.execute(query.where(budget_usage.c.committed != 0))).all()
        return {(row.budget_id, row.period): row.committed for row in rows}

    def teardown(self) -> None:
        assert self.do(faults(self.db)) == []


@pytest.fixture
def machine(empty_database_url: str) -> Iterator[type[Machine]]:
    with asyncio.Runner() as runner:
        db = Database(empty_database_url)
        runner.run(migrate.upgrade(db))
        yield type("Bound", (Machine,), {"db": db, "run": runner})
        runner.run(db.close())


def test_ledger_does_what_the_model_does(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=30, deadline=None))


async def test_transfers_are_never_changed(peopled):
    await opened(peopled.db)
    for statement in (sa.update(ledger_transfers).values(amount=1), sa.delete(ledger_transfers)):
        with pytest.raises(DBAPIError, match="never changed"):
            async with peopled.db.write() as tx:
                await tx.execute(statement)


async def test_live_and_test_never_meet(peopled):
    await opened(peopled.db, cents=100)
    await opened(peopled.db, cents=7, mode=Mode.TEST)
    await reserve(peopled.db, spender(mode=Mode.TEST), 7)
    with pytest.raises(InsufficientBalance, match="test ledger"):
        await reserve(peopled.db, spender(mode=Mode.TEST), 1)
    assert (await balance(peopled.db)).available == 100


async def test_refusal_says_what_is_needed_and_what_is_there(peopled):
    await opened(peopled.db, cents=150)
    with pytest.raises(InsufficientBalance, match=r"up to 2\.00 EUR, and 1\.50 EUR are available") as refusal:
        await reserve(peopled.db, spender(), 200)
    assert refusal.value.data == {"required_cents": 200, "available_cents": 150}


async def test_one_key_spends_once_for_ever(peopled):
    await opened(peopled.db)
    first = await reserve(peopled.db, spender(key="k"), 10)
    with pytest.raises(IntegrityError):
        await reserve(peopled.db, spender(key="k"), 10)
    async with peopled.db.read() as tx:
        assert await ledger.spent_under(tx, spender(key="k")) == first.reference
        assert await ledger.spent_under(tx, spender("org_other", key="k")) is None
    assert (await balance(peopled.db)).reserved == 10
    assert await faults(peopled.db) == []


@pytest.mark.parametrize(("kept", "asked"), [("1" * 64, "0" * 64), (None, "0" * 64), ("", ""), ("0" * 64, "")])
async def test_what_another_request_bought_is_not_taken_for_this_ones(peopled, kept, asked):
    await opened(peopled.db)
    paid = msgspec.structs.replace(spender(key="k"), digest=kept)
    first = await reserve(peopled.db, paid, 10)
    async with peopled.db.read() as tx:
        with pytest.raises(IdempotencyKeyReused, match=first.reference):
            await ledger.spent_under(tx, msgspec.structs.replace(spender(key="k"), digest=asked))


@pytest.mark.parametrize(
    ("limits", "spent_by", "allowed"),
    [
        ({}, "key_a", False),
        ({"project_id": "prj_a"}, "key_a", False),
        ({"project_id": "prj_b"}, "key_a", True),
        ({"key_id": "key_a"}, "key_a", False),
        ({"key_id": "key_a"}, "key_b", True),
        ({"mode": "test"}, "key_a", True),
    ],
)
async def test_budget_holds_whom_it_names(peopled, limits, spent_by, allowed):
    await opened(peopled.db)
    await _limit(peopled.db, **limits)
    await reserve(peopled.db, spender(who="key_a"), 30)
    work = reserve(peopled.db, spender(who=spent_by), 30)
    if allowed:
        await work
        return
    with pytest.raises(BudgetExceeded, match=r"allows 0\.50 EUR per month, and 0\.30 EUR"):
        await work
    assert (await balance(peopled.db)).reserved == 30


async def test_budget_counts_what_was_taken_and_begins_anew_with_its_period(peopled):
    await opened(peopled.db)
    await _limit(peopled.db, period="day")
    held = await reserve(peopled.db, spender(), 50)
    async with peopled.db.write() as tx:
        assert await ledger.capture(tx, held, 20, now=NOW) == 20
    await reserve(peopled.db, spender(), 30)
    with pytest.raises(BudgetExceeded):
        await reserve(peopled.db, spender(), 1)
    await reserve(peopled.db, spender(), 50, now=NOW + timedelta(days=1))


async def _limit(db: Database, **changes) -> None:
    row = {"id": "bud_1", "org_id": "org_me", "project_id": None, "key_id": None, "mode": "live", "name": "b",
           "period": "month", "limit_cents": 50, "created_at": NOW}  # fmt: skip
    async with db.write() as tx:
        await tx.execute(sa.insert(budgets).values(row | changes))


# Many at once ---------------------------------------------------------------------------------------------------------


SPENDER = """
import asyncio, sys
from datetime import UTC, datetime
from eorouter.commerce import ledger
from eorouter.errors import InsufficientBalance
from eorouter.operation import SpendAuthority
from eorouter.storage.database import Database
from eorouter.types import Principal, new_id

async def spend(url, tries, amount):
    db, room = Database(url), asyncio.Semaphore(8)
    who = Principal(kind="key", id="key_a", org_id="org_me", scopes=frozenset())

    async def one():
        name = new_id("trf")
        authority = SpendAuthority(principal=who, idempotency_key=name)
        async with room:
            try:
                async with db.write() as tx:
                    await ledger.reserve(tx, db, authority, transfer_id=name, amount=amount, project_id="prj_a",
                                         reference=name, memo="", now=datetime.now(UTC))
            except InsufficientBalance:
                return 0
        return 1

    print(sum(await asyncio.gather(*(one() for _ in range(tries)))))
    await db.close()

asyncio.run(spend(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""
PROCESSES, CENTS = 4, 7


@pytest.mark.parametrize("tries", [120, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_processes_at_once_spend_what_there_is_and_no_more(peopled, empty_database_url, tries):
    affordable = tries * 2 // 3
    has = affordable * CENTS + CENTS - 1  # nearly one more
    await opened(peopled.db, cents=has)
    await _limit(peopled.db, limit_cents=2 * has)
    command = [sys.executable, "-c", SPENDER, empty_database_url, str(tries // PROCESSES), str(CENTS)]
    started = [await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    storm = asyncio.gather(*(each.communicate() for each in started))
    seen = [await balance(peopled.db)]
    while not (await asyncio.wait([storm], timeout=0.05))[0]:
        seen.append(await balance(peopled.db))
    shares = [int(told) for told, _ in await storm]
    assert [each for each in seen if each.available < 0 or each.available + each.reserved != has] == []
    assert sum(shares) == has // CENTS == affordable
    assert await balance(peopled.db) == ledger.Balance(CENTS - 1, affordable * CENTS, 0)
    async with peopled.db.read() as tx:
        assert (await tx.execute(sa.select(budget_usage.c.committed))).scalar_one() == affordable * CENTS
    assert await faults(peopled.db) == []


# A death between any two statements -----------------------------------------------------------------------------------


class Death(BaseException):
    """Nothing catches it, as nothing catches a killed process."""


async def dying_at(db: Database, number: int, work) -> bool:
    """Do `work` until its n-th statement; False when it had fewer."""
    left = number

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Death

    event.listen(db.engine.sync_engine, "before_cursor_execute", count)
    try:
        await work()
    except Death:
        return True
    finally:
        event.remove(db.engine.sync_engine, "before_cursor_execute", count)
    return False


async def test_death_between_any_two_statements_leaves_all_or_nothing(peopled):
    await opened(peopled.db)
    await _limit(peopled.db, limit_cents=900)
    number = 1
    while await dying_at(peopled.db, number, lambda: reserve(peopled.db, spender(), 10)):
        assert await balance(peopled.db) == ledger.Balance(1000, 0, 0)
        assert await faults(peopled.db) == []
        number += 1
    assert number > 5
    assert (await balance(peopled.db)).reserved == 10
    held = await reserve(peopled.db, spender(), 20)

    async def capture() -> None:
        async with peopled.db.write() as tx:
            await ledger.capture(tx, held, 15, now=NOW)

    number = 1
    while await dying_at(peopled.db, number, capture):
        assert await balance(peopled.db) == ledger.Balance(970, 30, 0)
        assert await faults(peopled.db) == []
        number += 1
    assert number > 5
    assert await balance(peopled.db) == ledger.Balance(975, 10, 15)
    assert await faults(peopled.db) == []


async def test_verify_names_what_does_not_agree(peopled):
    await opened(peopled.db)
    async with peopled.db.write() as tx:
        await tx.execute(sa.text("UPDATE ledger_accounts SET credits_posted = 1001 WHERE kind = 'customer'"))
    found = await faults(peopled.db)
    assert any("credits_posted is 1001, the log says 1000" in fault for fault in found)
    assert any("differ by -1 cents" in fault for fault in found)


async def test_accounts_outlive_a_deleted_project(peopled):
    await opened(peopled.db)
    await _limit(peopled.db, project_id="prj_b")
    async with peopled.db.write() as tx:
        await tx.execute(sa.delete(projects).where(projects.c.id == "prj_b"))
        assert (await tx.execute(sa.select(sa.func.count()).select_from(budgets))).scalar() == 0
