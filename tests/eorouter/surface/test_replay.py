"""Idempotency keys over HTTP: the first answer again, and what is refused."""

from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.client.runtime import SPENDING
from eorouter.errors import IdempotencyKeyReused
from eorouter.operation import SpendAuthority, Tier
from eorouter.storage.tables import requests_done
from eorouter.surface import replay
from eorouter.types import Mode, Principal, utc_now

BUY = "/v1/toys/ball/purchase"


def key(value: str) -> dict[str, str]:
    return {"idempotency-key": value}


async def test_first_answer_is_given_again(client_of):
    async with client_of() as client:
        first = await client.post(BUY, headers=key("k"))
        again = await client.post(BUY, headers=key("k"))
        fresh = await client.post(BUY, headers=key("k2"))
    assert (first.status_code, again.status_code) == (200, 200)
    assert (again.content, again.headers[replay.HEADER]) == (first.content, "true")
    assert replay.HEADER not in first.headers
    assert fresh.json()["request_id"] != first.json()["request_id"]


async def test_key_of_another_request_is_refused(client_of):
    async with client_of() as client:
        await client.post(BUY, headers=key("k"))
        other = await client.post("/v1/toys/bear/purchase", headers=key("k"))
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_request_under_way_is_told_and_one_whose_process_died_goes_on(client_of, toy_stores):
    async with client_of() as client:
        first = await client.post(BUY, headers=key("k"))
        async with toy_stores.db.write() as tx:
            busy = {"status": None, "body": None, "busy_until": utc_now() + timedelta(minutes=1)}
            await tx.execute(sa.update(requests_done).values(busy))
        waits = await client.post(BUY, headers=key("k"))
        assert (waits.status_code, waits.json()["code"]) == (409, "idempotency_key_in_flight")
        assert waits.headers["retry-after"] == "1"
        async with toy_stores.db.write() as tx:
            await tx.execute(sa.update(requests_done).values(busy_until=utc_now() - timedelta(seconds=1)))
        taken_up = await client.post(BUY, headers=key("k"))
    assert taken_up.json()["request_id"] != first.json()["request_id"]
    assert replay.HEADER not in taken_up.headers


async def test_who_was_overtaken_neither_keeps_nor_removes_the_answer(client_of, toy_stores, toys):
    who = SpendAuthority(
        principal=Principal(kind="key", id="key_1", org_id="org_1", scopes=frozenset()), idempotency_key="k"
    )
    op, now = toys.get("toys.place"), utc_now()
    request = op.input(toy_id="ball")
    slow = await replay.begin(toy_stores.db, op, request, who, now=now)
    quick = await replay.begin(toy_stores.db, op, request, who, now=now + replay.BUSY_FOR + timedelta(seconds=1))
    await replay.finish(toy_stores.db, slow, 200, b"late")
    await replay.abandon(toy_stores.db, slow)
    await replay.finish(toy_stores.db, quick, 200, b"first")
    again = await replay.begin(toy_stores.db, op, request, who, now=now + timedelta(hours=1))
    assert again == replay.Kept(200, b"first")


@pytest.mark.parametrize("restricted", [{"project_id": "prj_2"}, {"mode": Mode.TEST}])
async def test_an_answer_is_not_given_to_a_key_of_another_project_or_mode(toy_stores, toys, restricted):
    principal = Principal(kind="key", id="key_1", org_id="org_1", scopes=frozenset(), project_id="prj_1")
    first = SpendAuthority(principal=principal, idempotency_key="k")
    other = SpendAuthority(principal=msgspec.structs.replace(principal, **restricted), idempotency_key="k")
    op, now = toys.get("toys.place"), utc_now()
    request = op.input(toy_id="ball")
    turn = await replay.begin(toy_stores.db, op, request, first, now=now)
    await replay.finish(toy_stores.db, turn, 200, b"of the first project")
    with pytest.raises(IdempotencyKeyReused):
        await replay.begin(toy_stores.db, op, request, other, now=now)


async def test_refused_request_may_be_tried_again_under_its_key(client_of, toy_stores):
    async with client_of() as client:
        bad = await client.post("/v1/op/toys.place", json={"toy": "ball"}, headers=key("k"))
        assert bad.status_code == 422
        good = await client.post(BUY, headers=key("k"))
    assert good.status_code == 200
    async with toy_stores.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(requests_done))).scalar() == 1


async def test_answers_are_dropped_after_a_month(client_of, toy_stores):
    async with client_of() as client:
        await client.post(BUY, headers=key("old"))
        async with toy_stores.db.write() as tx:
            await tx.execute(sa.update(requests_done).values(created_at=utc_now() - timedelta(days=31)))
        await client.post(BUY, headers=key("new"))
    async with toy_stores.db.read() as tx:
        assert (await tx.execute(sa.select(requests_done.c.key))).scalars().all() == ["new"]


def test_sdk_sends_a_key_with_every_operation_that_spends():
    from eorouter.app import registry

    assert {op.id for op in registry() if op.tier is Tier.SPEND} == SPENDING
