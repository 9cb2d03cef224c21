"""The service as it is started: its socket; over HTTP, what a refused payment says and what a key is good for."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import scene
import sqlalchemy as sa
import uvicorn

from eorouter import app
from eorouter.client import EoRouterClient, PaymentRequired
from eorouter.commerce import ledger
from eorouter.settings import Settings
from eorouter.storage.database import Database, database_url
from eorouter.storage.tables import jobs, ledger_transfers, requests_done

WELCOME = 3


class Service:
    """The API on a port, somebody who has an account there, and what was sent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.port}"
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=60)
        self.sent: list[dict[bytes, bytes]] = []
        self.swallows = 0
        """So many answers to requests that carry a key are lost on their way; the caller hears of a bad gateway."""

    def recording(self, api: Any) -> Any:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            headers = dict(scope.get("headers", ()))
            if b"idempotency-key" not in headers:
                await api(scope, receive, send)
                return
            self.sent.append(headers)
            if self.swallows == 0:
                await api(scope, receive, send)
                return
            self.swallows -= 1
            await api(scope, receive, _nowhere)
            await send({"type": "http.response.start", "status": 502, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        return asgi

    async def prepare(self) -> None:
        signup = {"email": "ada@example.org", "password": "four unrelated words here", "name": "Ada"}
        session = await self.call("auth.signup", signup, token=None)
        self.token = session["access_token"]
        self.org_id = (await self.call("auth.me"))["organisation_id"]
        self.project_id = (await self.call("projects.create", {"name": "Vines"}))["project_id"]
        self.item_id = await self.new_item(self.project_id, "itm_scene")

    async def new_item(self, project_id: str, item_id: str) -> str:
        db = self.database()
        await scene.shelve(db, self.org_id, project_id, item_id)
        await db.close()
        return item_id

    def database(self) -> Database:
        return Database(database_url(self.settings.database_url, self.settings.data_dir))

    async def send(self, operation: str, body: Any = None, *, token: str | None = "", key: str = "") -> httpx2.Response:
        headers = {"authorization": f"Bearer {token or self.token}"} if token is not None else {}
        headers |= {"idempotency-key": key} if key else {}
        return await self.client.post(f"/v1/op/{operation}", json=body or {}, headers=headers)

    async def call(self, operation: str, body: Any = None, *, token: str | None = "") -> Any:
        answer = await self.send(operation, body, token=token)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def job(self, **changes: Any) -> dict[str, Any]:
        """A job that costs more than a little."""
        task = {"method": "clip", "aoi": [0.1, 0.1, 0.4, 0.4]}
        return {"project_id": self.project_id, "task": task, "inputs": [{"item_id": self.item_id}]} | changes

    async def order(self, key: str, *, token: str | None = "", **changes: Any) -> httpx2.Response:
        return await self.send("processing.create_and_dispatch", self.job(**changes), token=token, key=key)

    async def top_up(self, cents: int, name: str = "top-up") -> None:
        await app.grant_credits(self.settings, self.org_id, cents, memo="", transfer_id=name, is_test=False)

    async def bought(self) -> list[tuple[str, str]]:
        """Keys that spent, with the jobs they spent for; the ledger agrees with itself, and there are no other jobs."""
        assert await app.verify_ledger(self.settings) == []
        db = self.database()
        async with db.read() as tx:
            reserved = sa.select(ledger_transfers.c.idempotency_key, ledger_transfers.c.reference)
            rows = (await tx.execute(reserved.where(ledger_transfers.c.kind == "reserve"))).all()
            made = (await tx.execute(sa.select(jobs.c.id))).scalars().all()
        await db.close()
        assert sorted(made) == sorted(job_id for _, job_id in rows)
        return [tuple(row) for row in rows]


async def _nowhere(_: Any) -> None: ...


@pytest.fixture
async def service(empty_database_url: str, tmp_path: Path, settings: Settings) -> AsyncIterator[Service]:
    """The API of an installation without workers, on a port of loopback; a new organisation has next to nothing."""
    url = "" if empty_database_url.startswith("sqlite") else empty_database_url
    with app.bind(msgspec.structs.replace(settings, port=0)) as listener:
        changed = msgspec.structs.replace(
            settings, database_url=url, port=listener.getsockname()[1], welcome_cents=WELCOME
        )
        await app.migrate(changed)
        made = Service(changed)
        running = _Server(uvicorn.Config(made.recording(app.create(changed)), lifespan="on", log_config=None))
        serving = asyncio.create_task(running.serve(sockets=[listener]))
        await running.is_up.wait()
        await made.prepare()
        yield made
        await made.client.aclose()
        running.should_exit = True
        await serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


def refused(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    body = answer.json()
    assert (body["status"], body["code"], body["request_id"]) == (status, code, answer.headers["x-request-id"])
    return body


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
async def test_refused_payment_says_what_is_needed_what_there_is_and_what_to_do(service):
    cost = (await service.call("processing.estimate", service.job()))["cents"]
    assert cost > WELCOME
    body = refused(await service.order("k"), 402, "insufficient_balance")
    assert (body["required_cents"], body["available_cents"], "budget_id" in body) == (cost, WELCOME, False)
    assert body["message"] == (
        f"This can cost up to {ledger.euros(cost)}, and 0.03 EUR are available. Ask for less, or add credits."
    )
    assert (body["detail"], body["title"]) == (body["message"], "Payment Required")
    assert body["type"] == "/docs/errors#insufficient_balance"
    assert await service.bought() == []


async def test_refusal_is_not_kept_under_the_key_and_an_answer_is(service):
    refused(await service.order("k"), 402, "insufficient_balance")
    await service.top_up(1000)
    first = await service.order("k")
    assert (first.status_code, "idempotent-replayed" in first.headers) == (201, False)
    again = await service.order("k")
    assert (again.status_code, again.content, again.headers["idempotent-replayed"]) == (201, first.content, "true")
    other = refused(await service.order("k", name="another"), 422, "idempotency_key_reused")
    assert "Use a fresh key" in other["message"]
    assert await service.bought() == [("k", first.json()["job_id"])]


async def test_key_stands_for_its_first_request_after_the_answer_was_dropped(service):
    await service.top_up(1000)
    first = await service.order("k")
    db = service.database()
    async with db.write() as tx:
        await tx.execute(sa.delete(requests_done))
    await db.close()
    refused(await service.order("k", name="another"), 422, "idempotency_key_reused")
    again = await service.order("k")
    assert (again.status_code, again.json()["job_id"]) == (201, first.json()["job_id"])
    assert await service.bought() == [("k", first.json()["job_id"])]


async def test_many_at_once_under_one_key_spend_once(service):
    await service.top_up(1000)
    answers = await asyncio.gather(*(service.order("k") for _ in range(8)))
    done = [each for each in answers if each.status_code == 201]
    assert {refused(each, 409, "idempotency_key_in_flight")["status"] for each in answers if each not in done} <= {409}
    assert len({each.json()["job_id"] for each in done}) == 1
    assert await service.bought() == [("k", done[0].json()["job_id"])]


async def test_budget_is_kept_whichever_it_is(service):
    await service.top_up(10_000)
    scopes = ["processing:read", "processing:write"]
    mine, free = [await service.call("api_keys.create", {"name": name, "scopes": scopes}) for name in "ab"]
    elsewhere = (await service.call("projects.create", {"name": "Elsewhere"}))["project_id"]
    there = {"project_id": elsewhere, "inputs": [{"item_id": await service.new_item(elsewhere, "itm_there")}]}
    cost = (await service.call("processing.estimate", service.job()))["cents"]
    limits = {"organisation": {}, "project": {"project_id": service.project_id}, "key": {"key_id": mine["key_id"]}}
    for what, names in limits.items():
        budget = await service.call("budgets.create", {"name": "Tight", "limit_cents": cost + 1} | names)
        assert (await service.order(f"{what}-1", token=mine["secret"])).status_code == 201
        body = refused(await service.order(f"{what}-2", token=mine["secret"]), 402, "budget_exceeded")
        assert (body["required_cents"], body["available_cents"], body["budget_id"]) == (cost, 1, budget["budget_id"])
        assert body["message"].startswith(f"The budget 'Tight' allows {ledger.euros(cost + 1)} per month, and ")
        assert body["message"].endswith("Ask for less, or have an owner raise the budget.")
        by_another = await service.order(f"{what}-3", token=free["secret"])
        assert by_another.status_code == (201 if what == "key" else 402)
        in_another = await service.order(f"{what}-4", token=mine["secret"], **there)
        assert in_another.status_code == (201 if what == "project" else 402)
        await service.call("budgets.update", {"budget_id": budget["budget_id"], "limit_cents": 10 * cost})
        assert (await service.order(f"{what}-2", token=mine["secret"])).status_code == 201
        await service.call("budgets.delete", {"budget_id": budget["budget_id"]})
    bought = {key for key, _ in await service.bought()}
    assert bought == {f"{what}-{n}" for what in limits for n in (1, 2)} | {"project-4", "key-3"}


async def test_sdk_repeats_a_lost_answer_under_its_key_and_pays_once(service):
    await service.top_up(1000)
    service.swallows = 2

    def buy() -> tuple[Any, Any]:
        with EoRouterClient(service.url, api_key=service.token) as client:
            return [client.call("processing.create_and_dispatch", **service.job()) for _ in range(2)]

    first, second = await asyncio.to_thread(buy)
    keys = [headers[b"idempotency-key"].decode() for headers in service.sent]
    assert len(keys) == 4
    assert (keys[0], keys[1], len(set(keys))) == (keys[1], keys[2], 2)
    assert sorted(await service.bought()) == sorted([(keys[0], first["job_id"]), (keys[3], second["job_id"])])


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
async def test_sdk_tells_the_amounts_of_a_refused_payment(service):
    def buy() -> None:
        with EoRouterClient(service.url, api_key=service.token) as client:
            client.call("processing.create_and_dispatch", **service.job())

    with pytest.raises(PaymentRequired, match=r"0\.03 EUR are available") as refusal:
        await asyncio.to_thread(buy)
    assert refusal.value.data["available_cents"] == WELCOME < refusal.value.data["required_cents"]
    assert len(service.sent) == 1


async def test_answers_leave_without_delay():
    """Without TCP_NODELAY the second write of an answer waits for the first one's acknowledgement."""
    listener = app.bind(Settings(port=0))
    seen: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(handle, sock=listener):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        await reader.read()
        writer.close()
    assert seen == [1]


def test_a_taken_port_is_refused_with_what_to_do():
    settings = Settings(port=0)
    with app.bind(settings) as first:
        taken = msgspec.structs.replace(settings, port=first.getsockname()[1])
        with pytest.raises(app.BadStart, match="--port"):
            app.bind(taken)


async def test_who_waits_is_answered_when_the_server_stops(tmp_path):
    settings = app._addressed(Settings(data_dir=tmp_path), listener := app.bind(Settings(data_dir=tmp_path, port=0)))
    await app.migrate(settings)
    api, started, asked, stopping = app.create(settings), asyncio.Event(), asyncio.Event(), asyncio.Event()
    assert callable(api.state.let_go)

    async def held(scope, receive, send):
        if scope["type"] == "lifespan":
            await api(scope, receive, send)
            return
        asked.set()
        await stopping.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server = app._server(held, settings, on_started=started.set, on_stopping=stopping.set)
    with listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(60), httpx2.AsyncClient(trust_env=False) as client:
            await started.wait()
            asking = asyncio.create_task(client.get(f"http://127.0.0.1:{settings.port}/"))
            await asked.wait()
            server.should_exit = True
            assert (await asking).status_code == 200
            await serving
