"""Whatever is sent to whatever operation, the answer is ours: never a 5xx, and every error has the one body."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eorouter import identity
from eorouter.app import registry
from eorouter.operation import Operation, Route
from eorouter.settings import Settings
from eorouter.storage import Stores, migrate
from eorouter.storage.database import Database
from eorouter.storage.objects import Objects
from eorouter.surface import http

OPERATIONS = list(registry())
BOUNDED = settings(
    max_examples=12, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

HOSTILE: list[Any] = [
    None, True, 0, -1,
    2**31, 2**53, 2**63 - 1, -(2**63), 2**63, 10**40, 1.5, -0.0, 5e-324, 1e308, "", " ", "\0", "a\0b",
    "\u202e", "\U0001f4a9" * 50, "é" * 300, "'; DROP TABLE users; --", "%00", "../../etc/passwd", "${jndi:ldap://x}",
    "a" * 10_000, "nan", "Infinity", "0000-00-00", "9999-12-31T23:59:59Z", "2024-01-01T00:00:00",
    "0001-01-01T00:00:00+23:59",
    "2024-02-30T00:00:00Z", [], [[]], [None], {}, {"": {}}, {"type": "Polygon", "coordinates": [[[1e308, 1e308]]]},
    {"method": "x"}, [1] * 200, [[[[[[[[[]]]]]]]]], {"a": {"b": {"c": {}}}}, "prj_" + "0" * 26, "file:///etc/passwd",
    "http://169.254.169.254/latest", "//", "C:\\", "\r\nX-Evil: 1",
    "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"),
]  # fmt: skip
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
RAW_BODIES = [
    b"", b"{", b"[]", b"null", b'"x"', b'{"a":NaN}', b'{"a":1e999}', b"\xff\xfe", b"\x00" * 10,
    b"[" * 5000, b'{"a":' * 5000,
    b'{"project_id":"\\ud800"}', b'{"name":"\\u0000"}', b"{}" + b" " * 10_000, b'{"a":1}{"b":2}', b"\xef\xbb\xbf{}",
    b'{"limit":' + b"9" * 4000 + b"}", b'{"":""}', b'{"a":1,"a":2}',
]  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every path into a document."""
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*path, key))


def replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@st.composite
def documents(draw: Any, op: Operation) -> Any:
    """An example of the operation with one to three of its values, or of the fields it may have, made hostile."""
    document: Any = draw(st.sampled_from(op.examples)).request
    names = [field.encode_name for field in msgspec.structs.fields(op.input)]
    for _ in range(draw(st.integers(1, 3))):
        new = draw(
            st.sampled_from(HOSTILE)
            | st.text(max_size=20)
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
        )
        if names and isinstance(document, dict) and draw(st.booleans()):
            document = {**document, draw(st.sampled_from(names)): new}
        else:
            document = replaced(document, draw(st.sampled_from(list(places(document)))), new)
    return document


class Caller:
    """The application in process, called by an owner who may do everything."""

    def __init__(self, url: str, config: Settings) -> None:
        self.runner = asyncio.Runner()
        self.config, self.url = config, url
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.db = Database(self.url)
        await migrate.upgrade(self.db)
        stores = Stores(db=self.db, objects=Objects("", self.config.data_dir))
        app = http.create(
            registry(), stores, self.config, authenticate=identity.authenticate, schema_check=migrate.check
        )
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://testserver.local")
        await self.renew()

    async def renew(self) -> None:
        """A fresh account: the one before may have been logged out."""
        self.count = getattr(self, "count", 0) + 1
        signup = {"email": f"ada{self.count}@example.org", "password": "four unrelated words here", "name": "Ada"}
        session = (await self.client.post("/v1/op/auth.signup", json=signup)).json()
        self.client.headers["authorization"] = f"Bearer {session['access_token']}"

    def send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Send; the answer must be one that we meant to give."""
        answer = self.runner.run(self.client.request(method, path, **request))
        assert answer.status_code < 500, f"{method} {path} {request!r:.500} -> {answer.status_code} {answer.text[:500]}"
        if answer.status_code >= 400 and method != "HEAD":
            assert answer.headers["content-type"] == "application/problem+json", (method, path, answer.text[:200])
            body = answer.json()
            assert body["status"] == answer.status_code
            assert body["request_id"] == answer.headers["x-request-id"]
        return answer

    def close(self) -> None:
        async def close() -> None:
            await self.client.aclose()
            await self.db.close()

        self.runner.run(close())
        self.runner.close()


@pytest.fixture
def caller(empty_database_url: str, settings: Settings) -> Iterator[Caller]:
    made = Caller(empty_database_url, msgspec.structs.replace(settings, ingest_wait_s=0.0))
    yield made
    made.close()


def attack_with_documents(caller: Caller, op: Operation) -> None:
    @BOUNDED
    @given(documents(op))
    def attack(document: Any) -> None:
        body = json.dumps(document, allow_nan=False).encode()
        caller.send("POST", f"/v1/op/{op.id}", content=body, headers={"content-type": "application/json"})

    attack()


def attack_with_addresses(caller: Caller, op: Operation, route: Route) -> None:
    texts = [value for value in HOSTILE if isinstance(value, str)]
    names = [field.encode_name for field in msgspec.structs.fields(op.input)] or ["x"]
    text = st.sampled_from(texts) | st.text(max_size=12)

    @BOUNDED
    @given(text, text, st.sampled_from(names))
    def attack(segment: str, value: str, name: str) -> None:
        path = route.path
        for each in route.path_fields:
            path = path.replace(f"{{{each}}}", quote(segment, safe="", errors="replace") or "%00")
        query = f"{name}={quote(value, errors='replace')}"
        content = {"content": b"{}", "headers": {"content-type": "application/json"}}
        caller.send(route.method, f"{path}?{query}", **({} if route.method == "GET" else content))

    attack()


def test_hostile_documents_never_break_an_operation(caller: Caller):
    for op in OPERATIONS:
        if op.receives_bytes:
            continue
        caller.runner.run(caller.renew())
        attack_with_documents(caller, op)


def test_hostile_bodies_never_break_an_operation(caller: Caller):
    for op in OPERATIONS:
        caller.runner.run(caller.renew())
        for body in RAW_BODIES:
            caller.send("POST", f"/v1/op/{op.id}", content=body, headers={"content-type": "application/json"})


def test_hostile_addresses_never_break_a_route(caller: Caller):
    for op in OPERATIONS:
        caller.runner.run(caller.renew())
        for route in op.routes:
            attack_with_addresses(caller, op, route)


@pytest.mark.parametrize("query", ["limit=%ff", "%00=1", "a=1&" * 2000, "limit=%F0%28%8C%BC", "=", "&&&", "limit"])
def test_hostile_queries_are_refused(caller: Caller, query: str):
    for op in OPERATIONS:
        for route in op.routes:
            if route.method == "GET":
                path = route.path.replace("{", "").replace("}", "")
                caller.send("GET", f"{path}?{query}")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": b"Bearer \xff\xfe"}, {"authorization": b"Bearer " + b"x" * 5000},
        {"authorization": b"Basic eDp5"},
        {"authorization": b"Bearer eor_live_sk_\xc3\xa9"}, {"authorization": b"Bearer a.b.c"}, {"authorization": b""},
        {"x-request-id": b"\xff"}, {"host": b"\xff"}, {"content-length": b"-1"},
        {"content-length": "²".encode("latin-1")},
        {"content-length": b"9" * 50}, {"content-type": b"\xff/\xff"}, {"range": b"bytes=\xb2-"},
        {"if-none-match": b'"\xff'},
        {"idempotency-key": b"\x80"}, {"accept": b"\xff"}, {"cookie": b"\xff=\xff; a"},
    ],
)  # fmt: skip
def test_hostile_headers_are_refused_or_ignored(caller: Caller, headers: dict[str, bytes]):
    caller.send("GET", "/v1/projects", headers=headers)
    caller.send("POST", "/v1/op/projects.list", content=b"{}", headers={"content-type": b"application/json", **headers})
    caller.send("GET", "/docs", headers=headers)
