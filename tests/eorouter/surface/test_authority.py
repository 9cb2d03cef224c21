"""Every operation × every caller who must not have it: nobody, a key without the scope, a stranger, a revoked key."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest
import sqlalchemy as sa

from eorouter import identity
from eorouter.app import registry
from eorouter.operation import ANY, PUBLIC, Operation
from eorouter.settings import Settings
from eorouter.storage import Stores, tables
from eorouter.storage.database import UtcDateTime
from eorouter.surface import http
from eorouter.types import new_id, utc_now

OPERATIONS = list(registry())
GUARDED = [op for op in OPERATIONS if op.scope != PUBLIC]
_ID = re.compile(r"^([a-z]{3})_[0-9a-z]{6,}$")
_FILLERS: dict[type, Any] = {str: "x", int: 0, float: 0.0, bool: False, bytes: b""}


def ids(operations: list[Operation]) -> list[str]:
    return [op.id for op in operations]


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Two organisations; the first has one thing of every kind."""

    client: httpx2.AsyncClient
    things: dict[str, str]  # id of the first organisation's thing, by prefix
    owner: str
    stranger: str
    revoked: str
    narrow: dict[str, str]  # a key with every scope but that one, by scope

    async def call(self, op: Operation, key: str | None, request: dict[str, Any]) -> httpx2.Response:
        """Call an operation by its id, or by its route where it takes bytes."""
        headers = {"idempotency-key": "once"} | ({"authorization": f"Bearer {key}"} if key else {})
        if not op.receives_bytes:
            return await self.client.post(f"/v1/op/{op.id}", json=request, headers=headers)
        route, query = op.routes[0], dict(request)
        path = route.path
        for name in route.path_fields:
            path = path.replace(f"{{{name}}}", str(query.pop(name)))
        return await self.client.request(route.method, path, params=query, content=b"bytes", headers=headers)

    def pointed(self, value: Any) -> Any:
        """An example's request that speaks of the first organisation's things."""
        if isinstance(value, dict):
            return {name: self.pointed(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.pointed(each) for each in value]
        match = _ID.match(value) if isinstance(value, str) else None
        return self.things.get(match[1], value) if match else value


def row(table: sa.Table, **known: Any) -> dict[str, Any]:
    """Values for a row whose other columns hold something of their type."""
    values = dict(known)
    for column in table.columns:
        if column.name not in values and not column.nullable and column.autoincrement is not True:
            is_time = isinstance(column.type, UtcDateTime)
            values[column.name] = utc_now() if is_time else _FILLERS.get(column.type.python_type, {})
    return values


async def account(client: httpx2.AsyncClient, email: str) -> tuple[str, str]:
    """A new organisation: its id and an access token of its owner."""
    signup = {"email": email, "password": "four unrelated words here", "name": email}
    answer = await client.post("/v1/op/auth.signup", json=signup)
    assert answer.is_success, answer.text
    session = answer.json()
    token = session["access_token"]
    me = await client.post("/v1/op/auth.me", json={}, headers={"authorization": f"Bearer {token}"})
    return me.json()["organisation_id"], token


async def make_key(client: httpx2.AsyncClient, token: str, scopes: list[str], **extra: str) -> dict[str, Any]:
    request = {"name": "k", "scopes": scopes, **extra}
    answer = await client.post("/v1/op/api_keys.create", json=request, headers={"authorization": f"Bearer {token}"})
    assert answer.is_success, answer.text
    return answer.json()


@pytest.fixture
async def world(stores: Stores, settings: Settings) -> AsyncIterator[World]:
    async def current(_: Any) -> None:
        """These tables were made from the metadata."""

    app = http.create(registry(), stores, settings, authenticate=identity.authenticate, schema_check=current)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver.local") as client:
        org_id, owner = await account(client, "ada@example.org")
        _, eve = await account(client, "eve@example.org")
        scopes = list(registry().scopes)
        stranger = (await make_key(client, eve, scopes))["secret"]
        project = await client.post(
            "/v1/op/projects.create", json={"name": "p"}, headers={"authorization": f"Bearer {owner}"}
        )
        things = {"prj": project.json()["project_id"]}
        async with stores.db.write() as tx:
            for prefix, table in (("itm", tables.items), ("job", tables.jobs), ("upl", tables.uploads)):
                things[prefix] = new_id(prefix)
                known = {"id": things[prefix], "org_id": org_id, "project_id": things["prj"]}
                await tx.execute(sa.insert(table).values(row(table, **known)))
        narrow: dict[str, str] = {}
        for scope in scopes:
            others = [each for each in scopes if each != scope]
            narrow[scope] = (await make_key(client, owner, others))["secret"]
        revoked = await make_key(client, owner, scopes)
        things[revoked["key_id"].partition("_")[0]] = revoked["key_id"]
        ended = await client.post(
            "/v1/op/api_keys.revoke", json={"key_id": revoked["key_id"]}, headers={"authorization": f"Bearer {owner}"}
        )
        assert ended.is_success, ended.text
        yield World(
            client=client, things=things, owner=owner, stranger=stranger, revoked=revoked["secret"], narrow=narrow
        )


async def test_nobody_is_401_everywhere(world: World):
    for op in GUARDED:
        answer = await world.call(op, None, op.examples[0].request)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), op.id
        assert answer.headers["www-authenticate"].startswith("Bearer"), op.id


async def test_revoked_key_is_401_everywhere(world: World):
    for op in GUARDED:
        answer = await world.call(op, world.revoked, op.examples[0].request)
        assert answer.status_code == 401, op.id


async def test_key_without_the_scope_is_403_and_the_scope_is_named(world: World):
    for op in GUARDED:
        if op.scope == ANY:
            continue
        answer = await world.call(op, world.narrow[op.scope], op.examples[0].request)
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), op.id
        assert op.scope in answer.json()["message"], op.id


async def test_stranger_finds_nothing_of_the_others(world: World):
    pointing: set[str] = set()
    for op in GUARDED:
        for example in op.examples:
            request = world.pointed(example.request)
            answer = await world.call(op, world.stranger, request)
            assert answer.status_code < 500, (op.id, answer.text)
            if request != example.request:
                pointing.add(op.id)
                assert answer.status_code == 404, (op.id, answer.status_code, answer.text)
            else:
                leaked = [each for each in world.things.values() if each in answer.text]
                assert not leaked, (op.id, leaked)
    assert {"projects.get", "projects.delete", "api_keys.revoke"} <= pointing


async def test_owner_may_read_what_the_stranger_may_not(world: World):
    """The walk above proves something only if the same requests do work for their owner."""
    for operation_id in ("projects.get", "projects.update"):
        op = next(op for op in OPERATIONS if op.id == operation_id)
        answer = await world.call(op, world.owner, world.pointed(op.examples[0].request))
        assert answer.is_success, answer.text


def test_scopes_of_the_registry_are_pairs_of_domain_and_verb():
    assert registry().scopes
    assert all(re.fullmatch(r"[a-z_]+:(read|write)", scope) for scope in registry().scopes)
