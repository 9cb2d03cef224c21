"""The pages of Dask, for operators: `/operator/dashboard/{dispatcher}/…`, HTTP and websockets.

Dask's own server knows no log-in, so it listens where nobody but us comes: on loopback, or on a private network. Which
address that is comes from the heartbeat of a dispatcher that lives, never from a request; of a request we take a path,
a query, and the few headers that say how to answer. Its links are relative and so work below
any address; those that climb above its root are set right, and what pages would have from other hosts is left out.

    browser ──cookie──► door ──► heartbeat of the dispatcher ──► path ──► Dask
            ◄──────────── status, known headers, our policy, bytes ◄───────┘

Nothing is collected: bytes and messages pass one by one, the reader sets the pace, and both ends have bounded buffers.
"""

import asyncio
import contextlib
import re
import socket as sockets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx2
import msgspec
import structlog
import websockets
from litestar import Request, Response
from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.response import Stream
from websockets.asyncio.client import ClientConnection, connect

from eorouter.errors import ApiError, MissingScope, NotFound, Unavailable
from eorouter.storage import Stores, dispatchers
from eorouter.surface.operator.door import Door, Pass
from eorouter.surface.problems import encode

MESSAGE_BYTES_MAX = 16 << 20
"""Largest message either way; the first one of a page with a long history has some hundred kilobytes."""

STILL_S = 2.0
"""So often an open connection asks whether its operator still is one."""

_FAREWELL_S = 3.0
_CHUNK_BYTES = 1 << 16
_QUEUE_MESSAGES = 16
_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
_PATH = re.compile(r"^/operator/dashboard/(?P<id>[a-z]{3}_[0-9a-z]{26})(?P<rest>/[A-Za-z0-9._~!$&'()*+,;=:@/%-]*)$")
_QUERY = re.compile(rb"^[\x21\x23-\x7e]*$")
_ASKED = ("accept", "accept-encoding", "if-modified-since", "if-none-match", "range")
_ANSWERED = (
    "accept-ranges", "cache-control", "content-encoding", "content-length", "content-range", "content-type", "etag",
    "last-modified", "vary",
)  # fmt: skip
# Bokeh writes its pages as inline scripts, and compiles some of what it draws; nothing may come from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_OF_EXACT_BYTES = frozenset({"accept-ranges", "content-encoding", "content-length"})
_HEAD_BYTES_MAX = 1 << 16
_ELSEWHERE = re.compile(
    rb"""<(?:link|script)\b[^>]*?\s(?:href|src)=["']?(?:https?:)?//[^>]*>(?:\s*</script>)?""", re.IGNORECASE
)
_STATICS = re.compile(rb"""(["'])(?:\.\./)+statics/""")
_STYLE = (
    b"<style>body{font:14px/1.5 system-ui,sans-serif;margin:1rem}table{border-collapse:collapse}"
    b"td,th{padding:.25rem .75rem;text-align:left;border-bottom:1px solid #ddd}</style>"
)
_NOWHERE = "There is nothing at this address. /docs lists the addresses there are."

log = structlog.get_logger(__name__)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where Dask's pages are: an address of ours, its port, and what stands before every path."""

    host: str
    port: int
    base: str = ""

    @property
    def origin(self) -> str:
        """As it stands in an address."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def admissible(url: str, *, host: str, here: str) -> Target | None:
    """The target that a heartbeat names, where it is one that we may ask; else None.

    It has to be plain HTTP, to a private address, or to loopback where the dispatcher's machine `host` is the one we
    run on, `here`: on another one the same port is somebody else's. Names other than `localhost` are not looked up:
    what they mean can change between the look and the request.
    """
    try:
        parts = urlsplit(url)
        named = parts.hostname or ""
        port, address = parts.port, ip_address("127.0.0.1" if named == "localhost" else named)
    except ValueError:
        return None
    if parts.scheme != "http" or not port or parts.username or parts.password or parts.query or parts.fragment:
        return None
    if not (host == here if address.is_loopback else _is_private(address)):
        return None
    base = parts.path.removesuffix("/status").rstrip("/")
    return Target(host=str(address), port=port, base=base) if _is_plain(base) else None


def _is_private(address: IPv4Address | IPv6Address) -> bool:
    """Of a network like ours; link-local ones are where clouds answer with credentials."""
    strange = address.is_link_local or address.is_unspecified or address.is_multicast or address.is_reserved
    return address.is_private and not strange


def _is_plain(path: str) -> bool:
    """No step of the path leads up or elsewhere, however it is spelled."""
    plain = unquote(unquote(path))
    return not re.search(r"[\x00-\x20\x7f\\]", plain) and not {".", ".."} & set(plain.split("/"))


class Dashboard:
    """Passes requests of operators on to Dask."""

    def __init__(self, stores: Stores, door: Door, *, clock: Callable[[], datetime]) -> None:
        self._stores = stores
        self._door = door
        self._clock = clock
        self._exits = contextlib.AsyncExitStack()

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=8)
        client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=_TIMEOUT, limits=limits)
        self._exits.push_async_callback(client.aclose)
        return client

    async def close(self) -> None:
        """Close what is open towards Dask."""
        await self._exits.aclose()

    async def answer(self, request: Request[Any, Any, Any]) -> Response[Any]:
        """Dask's answer, with nothing of it but bytes and what describes them.

        Raises:
            NotFound: whoever asks is no operator, or there is no such dispatcher, or its address is none of ours.
            Unavailable: Dask does not answer.
        """
        seen = await self._door.who(request)
        if seen is None:
            raise NotFound(_NOWHERE)
        dispatcher_id, target, raw = await self._place(request.scope)
        headers = {name: request.headers[name] for name in _ASKED if name in request.headers}
        url = httpx2.URL(scheme="http", host=target.host, port=target.port, raw_path=raw)
        asked = self._client.build_request(request.method, url, headers={"accept-encoding": "identity"} | headers)
        try:
            got = await self._client.send(asked, stream=True)
        except httpx2.HTTPError as error:
            raise Unavailable("The dashboard of this dispatcher does not answer now.") from error
        if got.status_code >= 500:
            await got.aclose()
            raise Unavailable(f"The dashboard of this dispatcher answered {got.status_code}.")
        kept = {name: got.headers[name] for name in _ANSWERED if name in got.headers}
        kept |= {"content-security-policy": _POLICY, "cross-origin-resource-policy": "same-origin"}
        kept.setdefault("cache-control", "private, no-cache")
        is_page = got.status_code == 200 and got.headers.get("content-type", "").startswith("text/html")
        if is_page:
            kept = {name: value for name, value in kept.items() if name not in _OF_EXACT_BYTES}
        if place := _relocated(got.headers.get("location", ""), str(url), target, dispatcher_id):
            kept["location"] = place
        if request.method == "HEAD" or got.status_code in {204, 304}:
            await got.aclose()
            return Response(b"", status_code=got.status_code, headers=kept)
        depth = raw.partition(b"?")[0].count(b"/") - f"{target.base}/".count("/")
        body = self._body(got, seen, depth=depth if is_page else None)
        return Stream(body, status_code=got.status_code, headers=kept)

    async def _body(self, got: httpx2.Response, seen: Pass, *, depth: int | None) -> AsyncIterator[bytes]:
        """What Dask sends; of a page, `depth` folders below its root, as a browser here can show it."""
        if depth is None:
            chunks = got.aiter_raw(_CHUNK_BYTES)
        else:
            chunks = _at_home(_rooted(got.aiter_bytes(_CHUNK_BYTES), depth))
        looked = time.monotonic()
        try:
            async for chunk in chunks:
                if time.monotonic() - looked > STILL_S:
                    if not await self._door.still(seen):
                        raise MissingScope("Whoever asked is no longer an operator.")
                    looked = time.monotonic()
                yield chunk
        finally:
            await got.aclose()

    async def _place(self, scope: Any) -> tuple[str, Target, bytes]:
        """Dispatcher, target and the path and query to ask it for, from the address as it was sent.

        Raises:
            NotFound: the address names none, or leads elsewhere.
        """
        match = _PATH.match(scope.get("raw_path", b"").decode("latin-1"))
        query: bytes = scope["query_string"]
        if match is None or not _QUERY.match(query) or "//" in match["rest"] or not _is_plain(match["rest"]):
            raise NotFound(_NOWHERE)
        now, here = self._clock(), sockets.gethostname()
        async with self._stores.db.read() as tx:
            rows = [row for row in await dispatchers.known(tx) if row.id == match["id"]]
        for row in rows:
            target = admissible(str(row.detail.get("dashboard_url", "")), host=row.host, here=here)
            if target is not None and dispatchers.is_alive(row, now=now):
                raw = f"{target.base}{match['rest']}".encode("ascii")
                return row.id, target, raw + (b"?" + query if query else b"")
        raise NotFound(_NOWHERE)

    async def connect(self, socket: WebSocket[Any, Any, Any]) -> None:
        """Join a browser's websocket with one to Dask, until either ends or the operator is none any more."""
        try:
            seen = await self._door.who(socket)
            if seen is None:
                raise NotFound(_NOWHERE)
            if seen.by_cookie or "origin" in socket.headers:
                self._door.check_origin(socket)
            _, target, raw = await self._place(socket.scope)
            upstream = await _open(target, raw, socket.scope.get("subprotocols", []))
        except ApiError as error:
            await _refuse(socket, error)
            return
        about = {"operator": seen.operator.email, "path": socket.scope["path"]}
        log.info("operator.dashboard.opened", **about)
        async with upstream:
            await socket.accept(subprotocols=upstream.subprotocol)
            code = await self._join(socket, upstream, seen)
            log.info("operator.dashboard.closed", code=code, **about)

    async def _join(self, socket: WebSocket[Any, Any, Any], upstream: ClientConnection, seen: Pass) -> int:
        """Carry messages both ways; returns the code that the browser was, or had, told."""
        ways = [_spawn(_inward(socket, upstream)), _spawn(_outward(socket, upstream)), _spawn(self._guard(seen))]
        done, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in rest:
            way.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        code = min(_ended(way) for way in done)
        if socket.connection_state != "disconnect":
            with contextlib.suppress(TimeoutError):  # a browser that reads nothing is not told; it is cut off
                async with asyncio.timeout(_FAREWELL_S):
                    await socket.close(code=code)
        return code

    async def _guard(self, seen: Pass) -> int:
        while True:
            await asyncio.sleep(STILL_S)
            if not await self._door.still(seen):
                return 1008


def _ended(way: "asyncio.Task[int]") -> int:
    """The code of a way that came to its end; 1011 where it broke, as when the database cannot say who still may."""
    error = way.exception()
    if error is None:
        return way.result()
    if not isinstance(error, OSError | WebSocketDisconnect):  # the browser may leave in the middle of a message
        log.error("operator.dashboard.broken", exc_info=error)
    return 1011


def _spawn(way: Coroutine[Any, Any, int]) -> "asyncio.Task[int]":
    return asyncio.create_task(way)


async def _open(target: Target, raw: bytes, subprotocols: list[str]) -> ClientConnection:
    """A websocket to Dask.

    Raises:
        Unavailable: it takes none there.
    """
    try:
        return await connect(
            f"{target.origin.replace('http', 'ws', 1)}{raw.decode('ascii')}",
            subprotocols=[websockets.Subprotocol(name) for name in subprotocols] or None,
            compression=None,
            proxy=None,
            user_agent_header=None,
            max_size=MESSAGE_BYTES_MAX,
            max_queue=_QUEUE_MESSAGES,
            open_timeout=10,
            close_timeout=2,
        )
    except (OSError, TimeoutError, websockets.WebSocketException) as error:
        raise Unavailable("The dashboard of this dispatcher takes no websocket here.") from error


async def _inward(socket: WebSocket[Any, Any, Any], upstream: ClientConnection) -> int:
    """From the browser to Dask, until the browser leaves."""
    while True:
        message = await socket.receive()
        if message["type"] != "websocket.receive":
            return int(message.get("code") or 1000)
        text, data = message.get("text"), message.get("bytes")
        try:
            await upstream.send(text if text is not None else data or b"")
        except websockets.ConnectionClosed as error:
            return _code(error)


async def _outward(socket: WebSocket[Any, Any, Any], upstream: ClientConnection) -> int:
    """From Dask to the browser, until Dask closes."""
    while True:
        try:
            message = await upstream.recv()
        except websockets.ConnectionClosed as error:
            return _code(error)
        kind = "text" if isinstance(message, str) else "bytes"
        await socket.send({"type": "websocket.send", kind: message})  # pyright: ignore[reportArgumentType]


def _code(error: websockets.ConnectionClosed) -> int:
    """What to tell the browser when Dask closes; 1011 where Dask only went away."""
    return error.rcvd.code if error.rcvd is not None and error.rcvd.code not in {1005, 1006} else 1011


async def _refuse(socket: WebSocket[Any, Any, Any], error: ApiError) -> None:
    """Answer a handshake with a problem, as any other request; where the server cannot, it answers 403."""
    await socket.receive()
    if "websocket.http.response" not in (socket.scope.get("extensions") or {}):
        await socket.close(code=1008)
        return
    headers = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    start = {"type": "websocket.http.response.start", "status": error.status, "headers": headers}
    body = {"type": "websocket.http.response.body", "body": encode(error.problem("")), "more_body": False}
    for message in (start, body):
        await socket.send(message)  # pyright: ignore[reportArgumentType]


async def _at_home(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A page whose head asks no other host for anything: some take their style from one, and get ours instead."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if b"</head>" in head or len(head) > _HEAD_BYTES_MAX:
            break
    plain, dropped = _ELSEWHERE.subn(b"", head)
    yield plain.replace(b"</head>", _STYLE + b"</head>", 1) if dropped else head
    async for chunk in chunks:
        yield chunk


async def _rooted(chunks: AsyncIterator[bytes], depth: int) -> AsyncIterator[bytes]:
    """A page, `depth` folders down, that finds its style and scripts: some climb further up than Dask's root."""
    place, held = b"\\1" + depth * b"../" + b"statics/", b""
    async for chunk in chunks:
        held += chunk
        whole = held.rfind(b"<")  # what follows may be the beginning of a tag
        if whole < len(held) - _HEAD_BYTES_MAX:
            whole = len(held)
        if whole:
            yield _STATICS.sub(place, held[:whole])
            held = held[whole:]
    yield _STATICS.sub(place, held)


def _relocated(location: str, asked: str, target: Target, dispatcher_id: str) -> str:
    """Where a redirection of Dask leads below our address; empty where it leads anywhere else."""
    if not location:
        return ""
    parts = urlsplit(urljoin(asked, location))
    if f"{parts.scheme}://{parts.netloc}" != target.origin or not parts.path.startswith(f"{target.base}/"):
        return ""
    query = f"?{parts.query}" if parts.query else ""
    return f"/operator/dashboard/{dispatcher_id}{parts.path.removeprefix(target.base)}{query}"
