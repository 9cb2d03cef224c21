"""An application with the operator's pages, an operator, a user who is none, and dispatchers.

On SQLite: every statement behind these pages is also sent to PostgreSQL by the tests of jobs, ledger and storage.
"""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import argon2
import dask
import httpx2
import msgspec
import pytest
import sqlalchemy as sa
import uvicorn
from distributed import Scheduler
from litestar import Litestar
from websockets.asyncio.client import ClientConnection, connect

from eorouter import identity
from eorouter.operation import Registry
from eorouter.settings import Settings
from eorouter.storage import Stores, migrate, operators
from eorouter.storage.database import database_url
from eorouter.storage.tables import memberships, organisations, processes, users
from eorouter.surface import http
from eorouter.surface.operator.console import Console
from eorouter.types import new_id, utc_now
from eorouter_compute import cluster

PASSWORD = "four unrelated words"
ORIGIN = "http://testserver.local"
ADA, BOB = "ada@example.org", "bob@example.org"

LogIn = Callable[..., Awaitable[httpx2.Response]]


class Clock:
    """Tells the time, and can be put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


@pytest.fixture
def empty_database_url(tmp_path: Path) -> str:
    """Address of a database without tables."""
    return database_url("", tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def people(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """Ada is an operator; Bob is none, and owner of another organisation."""
    monkeypatch.setattr(identity, "_argon2", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    now, password_hash = utc_now(), await identity.hash_password(PASSWORD)
    async with stores.db.write() as tx:
        for email in (ADA, BOB):
            name = email.partition("@")[0]
            row = {"id": f"org_{name}", "name": name, "quota_bytes": 1, "used_bytes": 0, "created_at": now}
            await tx.execute(sa.insert(organisations).values(row))
            row = {"id": f"usr_{name}", "email": email, "name": name, "password_hash": password_hash}
            await tx.execute(sa.insert(users).values(row | {"created_at": now}))
            row = {"org_id": f"org_{name}", "user_id": f"usr_{name}", "role": "owner"}
            await tx.execute(sa.insert(memberships).values(row))
        await operators.mark(tx, ADA, is_operator=True)
    return stores


@pytest.fixture
async def api(people: Stores, settings: Settings, clock: Clock) -> AsyncIterator[Litestar]:
    """The application."""
    registry = Registry([])
    console = Console(people, settings, registry, schema_check=migrate.check, clock=clock)
    yield http.create(
        registry, people, settings, authenticate=identity.authenticate, schema_check=migrate.check, clock=clock,
        pages=console.handlers(),
    )  # fmt: skip
    await console.close()


@pytest.fixture
async def client(api: Litestar) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser without a script, in process."""
    transport = httpx2.ASGITransport(app=api, client=("203.0.113.9", 1234))
    async with httpx2.AsyncClient(transport=transport, base_url=ORIGIN) as made:
        yield made


@pytest.fixture
def log_in(client: httpx2.AsyncClient) -> LogIn:
    """Send the form of the log-in page; the client keeps the cookie."""

    async def send(email: str = ADA, password: str = PASSWORD, origin: str | None = ORIGIN) -> httpx2.Response:
        headers = {} if origin is None else {"origin": origin}
        return await client.post("/operator/login", data={"email": email, "password": password}, headers=headers)

    return send


@pytest.fixture
def bearer(people: Stores, settings: Settings, clock: Clock) -> Callable[[str], Awaitable[dict[str, str]]]:
    """Headers of a user who logged in over the API."""

    async def make(email: str) -> dict[str, str]:
        tokens = await identity.log_in(people, settings, email, PASSWORD, now=clock())
        return {"authorization": f"Bearer {tokens.access_token}"}

    return make


@pytest.fixture
def unmark(people: Stores) -> Callable[[], Awaitable[None]]:
    """Ada is an operator no longer."""

    async def do() -> None:
        async with people.db.write() as tx:
            await operators.mark(tx, ADA, is_operator=False)

    return do


@pytest.fixture
def beat(people: Stores) -> Callable[..., Awaitable[str]]:
    """Write a dispatcher's heartbeat; returns its id. By default it is from the future, for as long as a test takes."""

    async def write(dashboard_url: str = "", *, age_s: float = -600, host: str | None = None, **detail: Any) -> str:
        seen = utc_now() - timedelta(seconds=age_s)
        row = {
            "id": new_id("dsp"), "role": "dispatcher", "host": host or socket.gethostname(), "started_at": seen,
            "seen_at": seen, "detail": {"dashboard_url": dashboard_url, "workers": 1} | detail,
        }  # fmt: skip
        async with people.db.write() as tx:
            await tx.execute(sa.insert(processes).values(row))
        return row["id"]

    return write


class Served(msgspec.Struct, frozen=True):
    """A server on loopback."""

    url: str


@pytest.fixture
async def served(api: Litestar) -> AsyncIterator[Served]:
    """The application behind the server that the service uses, on a port of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        config = uvicorn.Config(
            api, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2, ws_ping_interval=None
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        yield Served(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.should_exit = True
        await running


@pytest.fixture
async def scheduler() -> AsyncIterator[str]:
    """Address of Dask's pages of a real scheduler, set up as ours is, which has no workers."""
    with dask.config.set(cluster._DASK_CONFIG):
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as made:
            yield f"http://127.0.0.1:{made.http_server.port}/status"


class Browser:
    """One tab of a real browser, told what to do by the DevTools protocol; `complaints` are errors of its console."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._session: dict[str, str] = {}
        self._count = 0
        self.complaints: list[str] = []

    async def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; empty where the browser could not, as while it leaves a page."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters} | self._session
        await self._connection.send(json.dumps(command))
        while True:
            message = json.loads(await self._connection.recv())
            if message.get("method") in {"Log.entryAdded", "Runtime.exceptionThrown"}:
                self.complaints.append(json.dumps(message["params"]))
            if message.get("id") == self._count:
                return message.get("result", {})

    async def open_tab(self) -> None:
        """Open the tab."""
        target = await self.do("Target.createTarget", url="about:blank")
        attached = await self.do("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            await self.do(f"{domain}.enable")

    async def run(self, script: str) -> Any:
        """Value of an expression in the page; None where it raises, or the page is just being left."""
        told = await self.do("Runtime.evaluate", expression=script, returnByValue=True)
        return told.get("result", {}).get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(90):
            while True:
                if await self.run(condition):
                    return
                await asyncio.sleep(0.1)

    async def follow(self, selector: str) -> None:
        """Click on what leads to another page, as soon as it is there, and wait for that page."""
        found = f"const found = document.querySelector({json.dumps(selector)});"
        await self.until(f"(() => {{ {found} if (found) {{ window.left = true; found.click(); }} return !!found; }})()")
        await self.until("window.left === undefined && document.readyState === 'complete'")

    async def screenshot(self, path: Path) -> bytes:
        """Picture of the whole page."""
        told = await self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        picture = base64.b64decode(told["data"])
        await asyncio.to_thread(path.write_bytes, picture)
        return picture


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """A headless Chromium; tests that need one are skipped where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    process = await asyncio.create_subprocess_exec(
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1360,900", "about:blank",
        stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(90):
            while b"DevTools listening on" not in (line := await process.stderr.readline()):
                assert line, "Chromium ended before it listened"
        async with connect(line.split()[-1].decode(), max_size=1 << 28, proxy=None) as connection:
            made = Browser(connection)
            await made.open_tab()
            yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()
