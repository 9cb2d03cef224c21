"""Credits: what an organisation has, what became of them, and budgets that hold its spending down.

1 credit is 1 EUR; amounts are whole cents. A test key sees and spends the test ledger, which never meets the live one.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import identity
from eorouter.commerce import ledger
from eorouter.errors import InvalidCursor, InvalidInput, MissingScope, NotFound
from eorouter.operation import Context, Example, Route, Tier, operation
from eorouter.storage import projects
from eorouter.storage.pages import page
from eorouter.storage.tables import api_keys, budget_usage, budgets, ledger_transfers, owned
from eorouter.types import Id, Input, Mode, Output, PageInput, Principal, new_id

DOMAINS = ("billing", "budgets")

Kind = Literal["grant", "reserve", "capture", "release", "expire"]
Period = Literal["day", "month", "ever"]
Cents = Annotated[int, Meta(ge=0, le=ledger.CENTS_MAX, description="Cents.")]
BudgetName = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"\S", description="What people call the budget.")
]
_BUDGET_ID = "bud_01hv8e7m3k9q2w4r6t8y0a1b2c"


class CreditBalance(Output):
    """What there is, in cents: to spend, set aside for work under way, and spent for good."""

    mode: Mode
    currency: str
    available_cents: int
    reserved_cents: int
    spent_cents: int


class BillingBalanceInput(Input):
    """Nothing: the balance is that of whoever asks."""


@operation(
    "billing.balance",
    tier=Tier.READ,
    scope="billing:read",
    routes=(Route("GET", "/v1/credits/balance"),),
    examples=(Example(summary="What is left", request={}),),
)
async def balance(ctx: Context, request: BillingBalanceInput) -> CreditBalance:
    """Tell how many credits the organisation has, in the ledger of the key's mode."""
    del request
    who = ctx.principal
    async with ctx.stores.db.read() as tx:
        found = await ledger.balance(tx, who.org_id, who.mode)
    if found is None:
        async with ctx.stores.db.write() as tx:
            welcome = ctx.settings.welcome_cents
            await ledger.open_accounts(tx, ctx.stores.db, who.org_id, who.mode, now=ctx.clock(), welcome=welcome)
            found = await ledger.balance(tx, who.org_id, who.mode) or ledger.Balance(0, 0, 0)
    return CreditBalance(
        mode=who.mode, currency="EUR", available_cents=found.available, reserved_cents=found.reserved,
        spent_cents=found.spent,
    )  # fmt: skip


class CreditTransaction(Output):
    """One transfer.

    `grant` adds credits; `reserve` sets the most that something can cost aside; `capture`, `release` and `expire`
    resolve the reservation `resolves`, at `amount_cents`.
    """

    transaction_id: str
    kind: Kind
    amount_cents: int
    project_id: str | None
    job_id: str | None
    resolves: str | None
    memo: str
    created_at: datetime


class CreditTransactionPage(Output):
    """Transfers, newest first."""

    transactions: tuple[CreditTransaction, ...]
    next_cursor: str | None


class BillingTransactionsListInput(PageInput):
    """Which transfers."""

    project_id: Annotated[str, Meta(max_length=64, description="Only of this project.")] | None = None
    job_id: Annotated[str, Meta(max_length=64, description="Only of this job.")] | None = None


@operation(
    "billing.transactions.list",
    tier=Tier.READ,
    scope="billing:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/credits/transactions"),),
    examples=(Example(summary="The latest ten", request={"limit": 10}),),
)
async def list_transactions(ctx: Context, request: BillingTransactionsListInput) -> CreditTransactionPage:
    """List every transfer of the organisation's credits, newest first, in the ledger of the key's mode."""
    table = ledger_transfers.c
    columns = (table.number.label("id"), table.id.label("transfer_id"), *(c for c in table if c.name != "id"))
    query = sa.select(*columns).where(owned(ledger_transfers, ctx.principal), table.mode == ctx.principal.mode.value)
    if request.project_id is not None:
        query = query.where(table.project_id == request.project_id)
    if request.job_id is not None:
        query = query.where(table.reference == request.job_id)
    async with ctx.stores.db.read() as tx:
        rows, cursor = await page(tx, ctx.settings, "billing.transactions.list", request, query, by=table.number)
    return CreditTransactionPage(transactions=tuple(_transaction(row) for row in rows), next_cursor=cursor)


def _transaction(row: sa.Row[Any]) -> CreditTransaction:
    return CreditTransaction(
        transaction_id=row.transfer_id, kind=row.kind, amount_cents=row.amount, project_id=row.project_id,
        job_id=row.reference, resolves=row.resolves, memo=row.memo, created_at=row.created_at,
    )  # fmt: skip


# Budgets --------------------------------------------------------------------------------------------------------------


class Budget(Output):
    """A limit on spending: of all, of one project, of one key, or of one key in one project. What is reserved counts.

    `committed_cents` is what is spent or reserved in the period that runs now.
    """

    budget_id: str
    name: str
    mode: Mode
    project_id: str | None
    key_id: str | None
    period: Period
    limit_cents: int
    committed_cents: int
    created_at: datetime


class BudgetPage(Output):
    """Budgets, newest first."""

    budgets: tuple[Budget, ...]
    next_cursor: str | None


class BudgetsCreateInput(Input):
    """A limit, over which period, and whose spending it counts; everybody's where neither project nor key is named."""

    name: BudgetName
    limit_cents: Cents
    period: Period = "month"
    project_id: Annotated[str, Meta(max_length=64, description="Only spending in this project.")] | None = None
    key_id: Annotated[str, Meta(max_length=64, description="Only spending by this API key.")] | None = None


@operation(
    "budgets.create",
    tier=Tier.WRITE,
    scope="billing:write",
    status=201,
    errors=(NotFound, MissingScope, InvalidInput),
    routes=(Route("POST", "/v1/budgets"),),
    examples=(
        Example(summary="At most 50 EUR a month", request={"name": "All", "limit_cents": 5000, "period": "month"}),
    ),
)
async def create_budget(ctx: Context, request: BudgetsCreateInput) -> Budget:
    """Limit spending from now on. What was spent before does not count; several budgets hold together.

    Only owners may; the check is made in the transaction that sets the money aside, so no race gets past it.
    """
    who = ctx.principal
    values = {
        "id": new_id("bud"), "org_id": who.org_id, "project_id": request.project_id, "key_id": request.key_id,
        "mode": who.mode.value, "name": request.name.strip(), "period": request.period,
        "limit_cents": request.limit_cents, "created_at": ctx.clock(),
    }  # fmt: skip
    async with ctx.stores.db.write() as tx:
        await identity.check_owner(tx, who, "set budgets")
        if request.project_id is not None:
            await projects.get(tx, who, request.project_id, held="shared")
        if request.key_id is not None:
            known = sa.select(api_keys.c.id).where(api_keys.c.id == request.key_id, owned(api_keys, who))
            if (await tx.execute(known)).one_or_none() is None:
                raise NotFound(f"There is no API key {request.key_id}.")
        await tx.execute(sa.insert(budgets).values(values))
        return _budget(await _found(tx, who, values["id"], ctx.clock()))


class BudgetsListInput(PageInput):
    """Which page."""


@operation(
    "budgets.list",
    tier=Tier.READ,
    scope="billing:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/budgets"),),
    examples=(Example(summary="All budgets", request={}),),
)
async def list_budgets(ctx: Context, request: BudgetsListInput) -> BudgetPage:
    """List the budgets of the key's mode with what is committed of them now."""
    async with ctx.stores.db.read() as tx:
        query = _with_usage(ctx.principal, ctx.clock())
        rows, cursor = await page(tx, ctx.settings, "budgets.list", request, query, by=budgets.c.id)
    return BudgetPage(budgets=tuple(_budget(row) for row in rows), next_cursor=cursor)


class BudgetsUpdateInput(Input):
    """Which budget, and its new limit."""

    budget_id: Id
    limit_cents: Cents


@operation(
    "budgets.update",
    tier=Tier.WRITE,
    scope="billing:write",
    errors=(NotFound, MissingScope),
    routes=(Route("PATCH", "/v1/budgets/{budget_id}"),),
    examples=(Example(summary="Raise a budget", request={"budget_id": _BUDGET_ID, "limit_cents": 10000}),),
)
async def update_budget(ctx: Context, request: BudgetsUpdateInput) -> Budget:
    """Change a budget's limit; below what is committed it stops all further spending, and takes nothing back."""
    async with ctx.stores.db.write() as tx:
        await identity.check_owner(tx, ctx.principal, "set budgets")
        await _found(tx, ctx.principal, request.budget_id, ctx.clock())
        change = sa.update(budgets).where(budgets.c.id == request.budget_id)
        await tx.execute(change.values(limit_cents=request.limit_cents))
        return _budget(await _found(tx, ctx.principal, request.budget_id, ctx.clock()))


class BudgetsDeleteInput(Input):
    """Which budget."""

    budget_id: Id


@operation(
    "budgets.delete",
    tier=Tier.DESTRUCTIVE,
    scope="billing:write",
    errors=(NotFound, MissingScope),
    routes=(Route("DELETE", "/v1/budgets/{budget_id}"),),
    examples=(Example(summary="Drop a budget", request={"budget_id": _BUDGET_ID}),),
)
async def delete_budget(ctx: Context, request: BudgetsDeleteInput) -> None:
    """Drop a budget; the credits are not touched."""
    async with ctx.stores.db.write() as tx:
        await identity.check_owner(tx, ctx.principal, "set budgets")
        await _found(tx, ctx.principal, request.budget_id, ctx.clock())
        await tx.execute(sa.delete(budgets).where(budgets.c.id == request.budget_id))


def _with_usage(who: Principal, now: datetime) -> sa.Select[Any]:
    """Budgets of the principal's mode, each with what is committed in the period that runs."""
    period = sa.case(
        *((budgets.c.period == kind, ledger.period_of(kind, now)) for kind in ("day", "month")),
        else_=ledger.period_of("ever", now),
    )
    used = sa.func.coalesce(budget_usage.c.committed, 0).label("committed")
    joined = sa.and_(budget_usage.c.budget_id == budgets.c.id, budget_usage.c.period == period)
    return (
        sa.select(budgets, used)
        .outerjoin(budget_usage, joined)
        .where(owned(budgets, who), budgets.c.mode == who.mode.value)
    )


async def _found(tx: AsyncConnection, who: Principal, budget_id: str, now: datetime) -> sa.Row[Any]:
    row = (await tx.execute(_with_usage(who, now).where(budgets.c.id == budget_id))).one_or_none()
    if row is None:
        raise NotFound(f"There is no budget {budget_id}.")
    return row


def _budget(row: sa.Row[Any]) -> Budget:
    return Budget(
        budget_id=row.id, name=row.name, mode=Mode(row.mode), project_id=row.project_id, key_id=row.key_id,
        period=row.period, limit_cents=row.limit_cents, committed_cents=row.committed, created_at=row.created_at,
    )  # fmt: skip
