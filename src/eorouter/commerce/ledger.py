"""The ledger: double entry, two phases, and the only place that writes money.

    customer ──reserve──► revenue        pending: the customer cannot spend it, nobody has it yet
             ──capture──► revenue        posted:  at most what was reserved, the rest is free again
             ◄─release──                 voided, or expired when nobody came for it

Every organisation has, per mode, three accounts: `customer` (what it may spend), `funding` (where its credits come
from) and `revenue` (what it has paid). No account is shared by organisations, so none is a point where all wait. A
transfer is never changed: a reservation is resolved by a second transfer that names it, and a unique index lets only
one do so. Balances are four counters per account, kept in the same transaction; `verify` replays the log
against them. Amounts are whole cents; 1 credit is 1 EUR.

Functions work in the caller's transaction, after all other locks it takes: first budgets in order of id, then accounts
in order of id.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import BudgetExceeded, IdempotencyKeyReused, InsufficientBalance
from eorouter.operation import SpendAuthority
from eorouter.storage.database import Database
from eorouter.storage.tables import budget_usage, budgets, ledger_accounts, ledger_open, ledger_transfers
from eorouter.types import Mode, Principal

CENTS_MAX = 1 << 52
"""Largest amount of one transfer; sums of a great many stay within 64 bits."""

_FUNDING, _CUSTOMER, _REVENUE = "funding", "customer", "revenue"

_AVAILABLE = ledger_accounts.c.credits_posted - ledger_accounts.c.debits_posted - ledger_accounts.c.debits_pending


class Balance(NamedTuple):
    """What an organisation has, in cents: `available` to spend, `reserved` by work under way, `spent` for good."""

    available: int
    reserved: int
    spent: int


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Money set aside: under which transfer, how much, and for what."""

    transfer_id: str
    amount: int
    reference: str


def account_id(org_id: str, mode: Mode, kind: str) -> str:
    """The id of an account."""
    return f"{org_id}:{mode.value}:{kind}"


async def open_accounts(
    tx: AsyncConnection, db: Database, org_id: str, mode: Mode, *, now: datetime, welcome: int
) -> None:
    """Make an organisation's accounts, with `welcome` cents to begin with; does nothing where there are some."""
    rows = [
        {"id": account_id(org_id, mode, kind), "org_id": org_id, "mode": mode.value, "kind": kind, "created_at": now}
        | dict.fromkeys(("debits_pending", "debits_posted", "credits_pending", "credits_posted"), 0)
        for kind in (_CUSTOMER, _FUNDING, _REVENUE)
    ]
    made = await tx.execute(
        db.insert(ledger_accounts).values(rows).on_conflict_do_nothing().returning(ledger_accounts.c.id)
    )
    if made.all() and welcome:
        await grant(
            tx, org_id, mode, f"welcome:{org_id}:{mode.value}", welcome, memo="Credits of a new account", now=now
        )


async def grant(
    tx: AsyncConnection, org_id: str, mode: Mode, transfer_id: str, amount: int, *, memo: str, now: datetime
) -> bool:
    """Give an organisation credits; False when a transfer of this id did so before.

    Raises:
        ValueError: the amount is not positive, or the id stands for another transfer.
    """
    if not 0 < amount <= CENTS_MAX:
        raise ValueError(f"{amount} cents cannot be granted: give 1 to {CENTS_MAX}.")
    if known := await _transfer(tx, transfer_id):
        if (known.org_id, known.mode, known.kind, known.amount) != (org_id, mode.value, "grant", amount):
            raise ValueError(f"Transfer {transfer_id!r} is another one: {known.kind} of {known.amount} cents.")
        return False
    await _write(tx, transfer_id, "grant", org_id=org_id, mode=mode, amount=amount, now=now, memo=memo)
    await _count(tx, account_id(org_id, mode, _CUSTOMER), credits_posted=amount)
    await _count(tx, account_id(org_id, mode, _FUNDING), debits_posted=amount)
    return True


async def balance(tx: AsyncConnection, org_id: str, mode: Mode) -> Balance | None:
    """What an organisation has; None before its accounts were opened."""
    query = sa.select(ledger_accounts, _AVAILABLE.label("available"))
    row = (await tx.execute(query.where(ledger_accounts.c.id == account_id(org_id, mode, _CUSTOMER)))).one_or_none()
    return None if row is None else Balance(row.available, row.debits_pending, row.debits_posted)


async def spent_under(tx: AsyncConnection, authority: SpendAuthority) -> str | None:
    """What was bought by the same request under this idempotency key before, for ever; None when nothing was.

    Raises:
        IdempotencyKeyReused: another request bought something under the key, or one from before that was written down.
    """
    columns = (ledger_transfers.c[name] for name in ("reference", "digest", "created_at"))
    query = sa.select(*columns).where(
        ledger_transfers.c.org_id == authority.principal.org_id,
        ledger_transfers.c.idempotency_key == authority.idempotency_key,
    )
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        return None
    if not authority.digest or row.digest != authority.digest:  # who does not say what is asked has not bought it
        raise IdempotencyKeyReused(
            f"Under the Idempotency-Key {authority.idempotency_key[:80]!r} something else was bought at "
            f"{row.created_at:%Y-%m-%d %H:%M:%S} UTC ({row.reference}). Use a fresh key for each request."
        )
    return str(row.reference)


async def reserve(
    tx: AsyncConnection,
    db: Database,
    authority: SpendAuthority,
    *,
    transfer_id: str,
    amount: int,
    project_id: str,
    reference: str,
    memo: str,
    now: datetime,
    expires_at: datetime | None = None,
) -> Reservation:
    """Set money aside, in one conditional update; the accounts have been opened.

    Args:
        tx: a write transaction, the one that makes what is paid for.
        db: its database.
        authority: from `surface`; carries who spends and the idempotency key.
        transfer_id: chosen by the caller; the same one never spends twice.
        amount: cents, the most it can come to.
        project_id: whose budget counts it.
        reference: id of what is bought.
        memo: what people read in the list.
        now: the time.
        expires_at: when it is released by itself; None holds it until it is resolved.

    Raises:
        InsufficientBalance: less than that is available; says how much is.
        BudgetExceeded: a budget does not allow it; says which and how much is left.
    """
    if not 0 < amount <= CENTS_MAX:
        raise ValueError(f"{amount} cents cannot be reserved: 1 to {CENTS_MAX}.")
    who = authority.principal
    counted = await _charge_budgets(tx, db, who, project_id=project_id, amount=amount, now=now)
    customer = account_id(who.org_id, who.mode, _CUSTOMER)
    changed = await tx.execute(
        sa.update(ledger_accounts)
        .where(ledger_accounts.c.id == customer, amount <= _AVAILABLE)
        .values(debits_pending=ledger_accounts.c.debits_pending + amount)
    )
    if changed.rowcount == 0:
        has = await balance(tx, who.org_id, who.mode)
        raise InsufficientBalance(
            f"This can cost up to {euros(amount)}, and {euros(has.available if has else 0)} are available"
            f"{' in the test ledger' if who.mode is Mode.TEST else ''}. Ask for less, or add credits.",
            required_cents=amount,
            available_cents=has.available if has else 0,
        )
    await _count(tx, account_id(who.org_id, who.mode, _REVENUE), credits_pending=amount)
    await _write(
        tx, transfer_id, "reserve", org_id=who.org_id, mode=who.mode, amount=amount, now=now, memo=memo,
        project_id=project_id, principal_id=who.id, reference=reference,
        idempotency_key=authority.idempotency_key, digest=authority.digest, expires_at=expires_at,
    )  # fmt: skip
    await tx.execute(
        sa.insert(ledger_open).values(
            transfer_id=transfer_id, org_id=who.org_id, mode=who.mode.value, project_id=project_id, amount=amount,
            reference=reference, budgets=counted, expires_at=expires_at,
        )
    )  # fmt: skip
    return Reservation(transfer_id=transfer_id, amount=amount, reference=reference)


async def reserved_for(tx: AsyncConnection, reference: str) -> Reservation | None:
    """The open reservation for what has this id."""
    row = (await tx.execute(sa.select(ledger_open).where(ledger_open.c.reference == reference))).one_or_none()
    if row is None:
        return None
    return Reservation(transfer_id=row.transfer_id, amount=row.amount, reference=row.reference)


async def capture(tx: AsyncConnection, reservation: Reservation, amount: int, *, now: datetime) -> int:
    """Take what was used, never more than was reserved, and release the rest; returns the cents taken.

    Whoever resolves a reservation first decides: 0 is returned when it is not open any more.
    """
    taken = min(max(amount, 0), reservation.amount)
    if taken == 0:
        await release(tx, reservation, now=now)
        return 0
    return taken if await _resolve(tx, reservation.transfer_id, "capture", taken, now) else 0


async def release(tx: AsyncConnection, reservation: Reservation, *, now: datetime) -> bool:
    """Give all of a reservation back; False when it is not open any more."""
    return await _resolve(tx, reservation.transfer_id, "release", 0, now)


async def expire(db: Database, *, now: datetime, limit: int = 500) -> int:
    """Release reservations nobody came for in time, each in a transaction of its own; returns how many."""
    query = sa.select(ledger_open.c.transfer_id).where(ledger_open.c.expires_at <= now)
    async with db.read() as tx:
        due = (await tx.execute(query.order_by(ledger_open.c.expires_at).limit(limit))).scalars().all()
    expired = 0
    for transfer_id in due:
        async with db.write() as tx:
            expired += await _resolve(tx, transfer_id, "expire", 0, now)
    return expired


def euros(cents: int) -> str:
    """Cents as people read them."""
    sign, cents = ("−" if cents < 0 else ""), abs(cents)
    return f"{sign}{cents // 100:,}.{cents % 100:02} EUR"


async def _resolve(tx: AsyncConnection, transfer_id: str, kind: str, taken: int, now: datetime) -> bool:
    """Close a reservation once: whoever deletes its open row writes the second transfer."""
    closed = await tx.execute(
        sa.delete(ledger_open).where(ledger_open.c.transfer_id == transfer_id).returning(*ledger_open.c)
    )
    row = closed.one_or_none()
    if row is None:
        return False
    mode = Mode(row.mode)
    for budget_id, period in sorted(map(tuple, row.budgets)):
        await tx.execute(
            sa.update(budget_usage)
            .where(budget_usage.c.budget_id == budget_id, budget_usage.c.period == period)
            .values(committed=budget_usage.c.committed - (row.amount - taken))
        )
    await _count(tx, account_id(row.org_id, mode, _CUSTOMER), debits_pending=-row.amount, debits_posted=taken)
    await _count(tx, account_id(row.org_id, mode, _REVENUE), credits_pending=-row.amount, credits_posted=taken)
    await _write(
        tx, f"{transfer_id}/{kind}", kind, org_id=row.org_id, mode=mode, amount=taken, now=now, memo="",
        project_id=row.project_id, reference=row.reference, resolves=transfer_id,
    )  # fmt: skip
    return True


async def _charge_budgets(
    tx: AsyncConnection, db: Database, who: Principal, *, project_id: str, amount: int, now: datetime
) -> list[tuple[str, str]]:
    """Count an amount in every budget that it falls under; returns which, with their periods."""
    reaches = sa.and_(
        budgets.c.org_id == who.org_id,
        budgets.c.mode == who.mode.value,
        sa.or_(budgets.c.project_id.is_(None), budgets.c.project_id == project_id),
        sa.or_(budgets.c.key_id.is_(None), budgets.c.key_id == who.id),
    )
    counted: list[tuple[str, str]] = []
    for budget in (await tx.execute(sa.select(budgets).where(reaches).order_by(budgets.c.id))).all():
        period = period_of(budget.period, now)
        is_here = sa.and_(budget_usage.c.budget_id == budget.id, budget_usage.c.period == period)
        fresh = {"budget_id": budget.id, "period": period, "committed": 0}
        await tx.execute(db.insert(budget_usage).values(fresh).on_conflict_do_nothing())
        changed = await tx.execute(
            sa.update(budget_usage)
            .where(is_here, budget_usage.c.committed + amount <= budget.limit_cents)
            .values(committed=budget_usage.c.committed + amount)
        )
        if changed.rowcount == 0:
            committed = (await tx.execute(sa.select(budget_usage.c.committed).where(is_here))).scalar_one()
            raise BudgetExceeded(
                f"The budget {budget.name!r} allows {euros(budget.limit_cents)} per {budget.period}, and "
                f"{euros(committed)} of it are spent or reserved; this can cost up to {euros(amount)}. "
                "Ask for less, or have an owner raise the budget.",
                budget_id=budget.id,
                required_cents=amount,
                available_cents=max(budget.limit_cents - committed, 0),
            )
        counted.append((budget.id, period))
    return counted


def period_of(kind: str, now: datetime) -> str:
    """The period that a moment falls into: its day or month in UTC, or everything."""
    return {"day": now.strftime("%Y-%m-%d"), "month": now.strftime("%Y-%m")}.get(kind, "ever")


async def _transfer(tx: AsyncConnection, transfer_id: str) -> sa.Row[Any] | None:
    return (await tx.execute(sa.select(ledger_transfers).where(ledger_transfers.c.id == transfer_id))).one_or_none()


_SIDES = {
    "grant": (_FUNDING, _CUSTOMER),
    "reserve": (_CUSTOMER, _REVENUE),
    "capture": (_CUSTOMER, _REVENUE),
    "release": (_CUSTOMER, _REVENUE),
    "expire": (_CUSTOMER, _REVENUE),
}


async def _write(
    tx: AsyncConnection,
    transfer_id: str,
    kind: str,
    *,
    org_id: str,
    mode: Mode,
    amount: int,
    now: datetime,
    memo: str,
    **more: Any,
) -> None:
    debit, credit = _SIDES[kind]
    sides = {"debit_id": account_id(org_id, mode, debit), "credit_id": account_id(org_id, mode, credit)}
    fields = {"id": transfer_id, "kind": kind, "org_id": org_id, "mode": mode.value, "amount": amount, "memo": memo}
    await tx.execute(sa.insert(ledger_transfers).values(fields | sides | more | {"created_at": now}))


async def _count(tx: AsyncConnection, account: str, **changes: int) -> None:
    values = {name: ledger_accounts.c[name] + change for name, change in changes.items() if change}
    changed = await tx.execute(sa.update(ledger_accounts).where(ledger_accounts.c.id == account).values(values))
    if changed.rowcount != 1:
        raise LookupError(f"There is no account {account}.")


# Checking -------------------------------------------------------------------------------------------------------------

_COUNTERS = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")


async def verify(tx: AsyncConnection, *, ended: Sequence[str] = ()) -> list[str]:
    """Replay the log against the counters; a sentence for each thing that does not agree, none when all does.

    Args:
        tx: a transaction.
        ended: references of open reservations whose work is known to have ended.
    """
    faults = [f"Reservation for {reference} is open, and its work has ended." for reference in ended]
    resolution = ledger_transfers.alias("resolution")
    pending = (
        sa.select(
            ledger_transfers.c.debit_id, ledger_transfers.c.credit_id, ledger_transfers.c.kind,
            ledger_transfers.c.amount, ledger_transfers.c.id, resolution.c.id.label("by"),
            resolution.c.amount.label("taken"), ledger_open.c.amount.label("held"),
        )
        .outerjoin(resolution, resolution.c.resolves == ledger_transfers.c.id)
        .outerjoin(ledger_open, ledger_open.c.transfer_id == ledger_transfers.c.id)
        .where(ledger_transfers.c.kind.in_(["grant", "reserve"]))
        .order_by(ledger_transfers.c.id)
    )  # fmt: skip
    wanted: dict[str, dict[str, int]] = {}
    async for row in await tx.stream(pending):
        debit, credit = (wanted.setdefault(row[n], dict.fromkeys(_COUNTERS, 0)) for n in (0, 1))
        is_open = row.kind == "reserve" and row.by is None
        if is_open != (row.held is not None) or (is_open and row.held != row.amount):
            faults.append(f"Reservation {row.id} of {row.amount} cents: the list of open ones says {row.held}.")
        if row.taken is not None and row.taken > row.amount:
            faults.append(f"Reservation {row.id} of {row.amount} cents was captured at {row.taken}.")
        which = "pending" if is_open else "posted"
        amount = int(row.amount if row.kind == "grant" or is_open else row.taken or 0)
        debit[f"debits_{which}"] += amount
        credit[f"credits_{which}"] += amount
    total = 0
    async for row in await tx.stream(sa.select(ledger_accounts).order_by(ledger_accounts.c.id)):
        replayed = wanted.pop(row.id, dict.fromkeys(_COUNTERS, 0))
        faults += [
            f"Account {row.id}: {name} is {getattr(row, name)}, the log says {replayed[name]}."
            for name in _COUNTERS
            if getattr(row, name) != replayed[name]
        ]
        total += row.debits_posted - row.credits_posted
    faults += [f"Account {name} is named by transfers and does not exist." for name in wanted]
    if total:
        faults.append(f"Debits and credits differ by {total} cents over all accounts.")
    return faults


async def open_references(tx: AsyncConnection) -> list[str]:
    """What open reservations are for."""
    return list((await tx.execute(sa.select(ledger_open.c.reference).order_by(ledger_open.c.reference))).scalars())
