"""The routes below `/operator`, and what is open behind them as long as the application is.

Whoever is no operator finds nothing here but the log-in page: everything else answers 404, as an address that does not
exist. Pages run one script of their own and nothing from elsewhere.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Request, Response, get, post, route, websocket
from litestar.connection import WebSocket
from litestar.datastructures import Cookie

from eorouter.errors import InvalidCredentials, NotFound
from eorouter.operation import Registry
from eorouter.settings import Settings
from eorouter.storage import Stores
from eorouter.storage.log_ins import TooMany
from eorouter.surface.operator import page
from eorouter.surface.operator.dashboard import Dashboard
from eorouter.surface.operator.door import PATH, Door, Pass
from eorouter.surface.operator.state import LedgerCheck, State, gather
from eorouter.surface.readiness import SchemaCheck
from eorouter.types import utc_now

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cache-control": "no-store",
    # Not `no-referrer`, under which browsers send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

AnyRequest = Request[Any, Any, Any]
AnySocket = WebSocket[Any, Any, Any]


class Console:
    """The operator's pages of one application."""

    def __init__(
        self,
        stores: Stores,
        settings: Settings,
        registry: Registry,
        *,
        schema_check: SchemaCheck,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._stores = stores
        self._schema_check = schema_check
        self._clock = clock
        self._door = Door(stores, settings, registry, clock=clock)
        self._ledger = LedgerCheck(stores.db, clock=clock)
        self._dashboard = Dashboard(stores, self._door, clock=clock)

    async def close(self) -> None:
        """Give up what runs, close what is open."""
        await asyncio.gather(self._ledger.close(), self._dashboard.close())

    def handlers(self) -> list[Any]:
        """Route handlers of the pages, of their data, and of Dask's pages."""
        return [*self._entrance(), *self._pages(), *self._passages(), _file("console.css", "text/css"),
                _file("console.js", "text/javascript")]  # fmt: skip

    def _entrance(self) -> list[Any]:
        @get(f"{PATH}/login")
        async def form(request: AnyRequest) -> Response[Any]:
            if await self._door.who(request) is not None:
                return _see(PATH)
            return _html(page.login())

        @post(f"{PATH}/login", status_code=200)
        async def log_in(request: AnyRequest) -> Response[Any]:
            try:
                cookie = await self._door.log_in(request)
            except InvalidCredentials:
                return _html(page.login("E-mail and password do not belong to an operator."), 401)
            except TooMany as error:
                minutes = int(error.wait_s // 60) + 1
                answer = _html(page.login(f"Too many failed log-ins. Try again in {minutes} min."), 429)
                answer.headers["retry-after"] = str(int(error.wait_s) + 1)
                return answer
            return _see(PATH, cookie)

        @post(f"{PATH}/logout", status_code=200)
        async def log_out(request: AnyRequest) -> Response[Any]:
            return _see(f"{PATH}/login", await self._door.log_out(request))

        return [form, log_in, log_out]

    def _pages(self) -> list[Any]:
        @get(PATH)
        async def show(request: AnyRequest) -> Response[Any]:
            seen = await self._door.who(request)
            if seen is None:
                return _see(f"{PATH}/login")
            return _html(page.console(await self._state(), seen.operator))

        @get(f"{PATH}/state")
        async def state(request: AnyRequest) -> Response[bytes]:
            await self._admitted(request)
            return Response(msgspec.json.encode(await self._state()), headers=_HEADERS, media_type="application/json")

        @post(f"{PATH}/ledger", status_code=200)
        async def check_ledger(request: AnyRequest) -> Response[Any]:
            await self._admitted(request)
            self._door.check_origin(request)
            await self._ledger.now()
            return _see(PATH)

        return [show, state, check_ledger]

    def _passages(self) -> list[Any]:
        below = f"{PATH}/dashboard/{{dispatcher_id:str}}/{{rest:path}}"

        @route(below, http_method=["GET", "HEAD"], status_code=200)
        async def pass_on(request: AnyRequest) -> Response[Any]:
            return await self._dashboard.answer(request)

        @websocket(below)
        async def join(socket: AnySocket) -> None:
            await self._dashboard.connect(socket)

        return [pass_on, join]

    async def _admitted(self, request: AnyRequest) -> Pass:
        seen = await self._door.who(request)
        if seen is None:
            raise NotFound("There is nothing at this address. /docs lists the addresses there are.")
        return seen

    async def _state(self) -> State:
        return await gather(self._stores, self._ledger, schema_check=self._schema_check, now=self._clock())


def _html(text: str, status: int = 200) -> Response[Any]:
    return Response(text.encode(), status_code=status, headers=dict(_HEADERS), media_type="text/html")


def _see(path: str, cookie: Cookie | None = None) -> Response[Any]:
    """Send the browser to a page of ours."""
    headers = {"location": path, "cache-control": "no-store"}
    cookies = [cookie] if cookie else []
    return Response(b"", status_code=303, headers=headers, cookies=cookies, media_type="text/plain")


def _file(name: str, kind: str) -> Any:
    body = files("eorouter.surface.operator").joinpath(name).read_bytes()

    @get(f"{PATH}/{name}")
    async def show(request: AnyRequest) -> Response[bytes]:
        return Response(body, headers={"cache-control": "no-cache"}, media_type=kind)

    return show
