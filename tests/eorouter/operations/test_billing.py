"""Credits and budgets as callers see them, and a job's money from its estimate to its end, on both engines."""

import pytest
import sqlalchemy as sa

from eorouter.errors import BudgetExceeded, InsufficientBalance, MissingScope, NotFound
from eorouter.operation import SpendAuthority
from eorouter.operations import billing, processing
from eorouter.operations.billing import (
    BillingBalanceInput,
    BillingTransactionsListInput,
    BudgetsCreateInput,
    BudgetsDeleteInput,
    BudgetsListInput,
    BudgetsUpdateInput,
)
from eorouter.operations.processing import (
    InputRef,
    ProcessingCreateInput,
    ProcessingDispatchInput,
    ProcessingEstimateInput,
    ProcessingJobsCancelInput,
)
from eorouter.settings import Settings
from eorouter.storage.tables import jobs, memberships, users
from eorouter.types import Mode, Principal, new_id, utc_now
from eorouter_compute import method

ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset(), user_id="usr_me")
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset(), user_id="usr_other")


@pytest.fixture(autouse=True)
async def owners(peopled):
    async with peopled.db.write() as tx:
        for who in (ME, OTHER):
            row = {
                "id": who.id,
                "email": f"{who.id}@example.org",
                "name": "",
                "password_hash": "",
                "created_at": utc_now(),
            }
            await tx.execute(sa.insert(users).values(row))
            await tx.execute(sa.insert(memberships).values(org_id=who.org_id, user_id=who.id, role="owner"))


CLIP = method.get("clip").params(aoi=(0.1, 0.1, 0.4, 0.4))


def asked(item, kind=ProcessingCreateInput):
    return kind(project_id="prj_a", task=CLIP, inputs=(InputRef(item_id=item),))


def paying(who=ME, key=None):
    return SpendAuthority(principal=who, idempotency_key=key or new_id("key"), digest="0" * 64)


async def balance(context, who=ME):
    found = await billing.balance(context(who), BillingBalanceInput())
    return found.available_cents, found.reserved_cents, found.spent_cents


async def kinds(context, who=ME, **more):
    page = await billing.list_transactions(context(who), BillingTransactionsListInput(**more))
    return [(each.kind, each.amount_cents) for each in page.transactions]


async def test_new_organisation_has_its_welcome_in_each_ledger(context):
    assert await balance(context) == (100_000, 0, 0)
    tester = Principal(kind="key", id="key_t", org_id="org_me", scopes=frozenset(), mode=Mode.TEST)
    assert (await billing.balance(context(tester), BillingBalanceInput())).mode is Mode.TEST
    assert await kinds(context) == [("grant", 100_000)]
    assert await kinds(context, OTHER) == []


async def test_job_is_estimated_reserved_and_released(context, item):
    question = asked(item, ProcessingEstimateInput)
    estimate = await processing.estimate(context(ME), question)
    assert estimate == await processing.estimate_analytics(context(ME), question)
    assert estimate.cents == sum(line.cents for line in estimate.lines) > 0
    assert (estimate.is_affordable, estimate.available_cents) == (True, 100_000)
    request = asked(item)
    draft = await processing.create(context(ME), request)
    assert (draft.cost, await balance(context)) == (None, (100_000, 0, 0))
    job = await processing.dispatch(context(ME), ProcessingDispatchInput(job_id=draft.job_id), spend=paying())
    assert (job.cost.reserved_cents, job.cost.captured_cents, job.cost.price_book) == (
        estimate.cents, None, estimate.price_book,
    )  # fmt: skip
    assert await balance(context) == (100_000 - estimate.cents, estimate.cents, 0)
    ended = await processing.cancel_job(context(ME), ProcessingJobsCancelInput(job_id=job.job_id))
    assert (ended.state, ended.cost.captured_cents) == ("cancelled", 0)
    assert await balance(context) == (100_000, 0, 0)
    assert await kinds(context, job_id=job.job_id) == [("release", 0), ("reserve", estimate.cents)]


async def test_same_key_gives_the_same_job_and_spends_once(context, item):
    request = asked(item)
    first = await processing.create_and_dispatch(context(ME), request, spend=paying(key="k"))
    again = await processing.create_and_dispatch(context(ME), request, spend=paying(key="k"))
    assert again.job_id == first.job_id
    assert [kind for kind, _ in await kinds(context)] == ["reserve", "grant"]


async def test_who_cannot_pay_gets_no_job(context, item, peopled):
    poor = Settings(data_dir=context(ME).settings.data_dir, secret="s" * 40, welcome_cents=1)
    request = asked(item)
    with pytest.raises(InsufficientBalance):
        await processing.create_and_dispatch(context(ME, settings=poor), request, spend=paying())
    async with peopled.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(jobs))).scalar() == 0


async def test_budget_from_its_making_to_its_end(context, item):
    made = await billing.create_budget(
        context(ME), BudgetsCreateInput(name=" All ", limit_cents=1, project_id="prj_a", period="ever")
    )
    assert (made.name, made.committed_cents) == ("All", 0)
    request = asked(item)
    with pytest.raises(BudgetExceeded, match=r"'All' allows 0\.01 EUR"):
        await processing.create_and_dispatch(context(ME), request, spend=paying())
    raised = await billing.update_budget(context(ME), BudgetsUpdateInput(budget_id=made.budget_id, limit_cents=1000))
    assert raised.limit_cents == 1000
    job = await processing.create_and_dispatch(context(ME), request, spend=paying())
    (listed,) = (await billing.list_budgets(context(ME), BudgetsListInput())).budgets
    assert listed.committed_cents == job.cost.reserved_cents
    with pytest.raises(NotFound):
        await billing.delete_budget(context(OTHER), BudgetsDeleteInput(budget_id=made.budget_id))
    await billing.delete_budget(context(ME), BudgetsDeleteInput(budget_id=made.budget_id))
    assert (await billing.list_budgets(context(ME), BudgetsListInput())).budgets == ()


async def test_budgets_are_the_owners(context, peopled):
    request = BudgetsCreateInput(name="b", limit_cents=1)
    restricted = Principal(kind="key", id="key_p", org_id="org_me", scopes=frozenset(), project_id="prj_a")
    with pytest.raises(MissingScope, match="restricted to project prj_a"):
        await billing.create_budget(context(restricted), request)
    async with peopled.db.write() as tx:
        await tx.execute(sa.update(memberships).where(memberships.c.user_id == "usr_me").values(role="member"))
    with pytest.raises(MissingScope, match="Only an owner"):
        await billing.create_budget(context(ME), request)
    with pytest.raises(NotFound, match="no API key"):
        await billing.create_budget(context(OTHER), BudgetsCreateInput(name="b", limit_cents=1, key_id="key_of_me"))
