"""Dask's pages reach operators whole, and nothing else passes: no other target, no header, no path, no stranger."""

import asyncio
import json
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from eorouter.storage.tables import processes
from eorouter.surface.operator import dashboard
from eorouter.surface.operator.dashboard import Target, admissible
from eorouter.surface.operator.door import COOKIE
from eorouter.types import new_id, utc_now

ADA, BOB, ORIGIN = "ada@example.org", "bob@example.org", "http://testserver.local"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8787/status", Target(host="127.0.0.1", port=8787)),
        ("http://localhost:8787/status", Target(host="127.0.0.1", port=8787)),
        ("http://10.1.2.3:8787/status", Target(host="10.1.2.3", port=8787)),
        ("http://192.168.1.9:80/some/base/status", Target(host="192.168.1.9", port=80, base="/some/base")),
        ("http://[::1]:8787/status", Target(host="::1", port=8787)),
        ("http://[fd00::5]:8787/", Target(host="fd00::5", port=8787)),
        *((url, None) for url in (
            "", "http://", "https://127.0.0.1:8787/status", "http://127.0.0.1/status", "http://8.8.8.8:80/status",
            "http://169.254.169.254:80/latest", "http://0.0.0.0:80/", "http://224.0.0.1:80/", "http://[fe80::1]:80/",
            "http://localhost.evil:8787/status", "http://scheduler.lan:8787/status", "http://10.0.0.1:99999/status",
            "http://u:p@10.0.0.1:80/status", "http://10.0.0.1:80/status?x", "http://10.0.0.1:80/../status",
            "ftp://10.0.0.1:21/status", "file:///etc/passwd", "http://10.0.0.1:80/a b/status", "http://[::ffff:8.8.8.8]:80/",
        )),
    ],
)  # fmt: skip
def test_only_addresses_of_our_own_network_are_asked(url, target):
    assert admissible(url, host="here", here="here") == target


def test_loopback_of_another_machine_is_somebody_elses():
    for name in ("127.0.0.1", "127.9.9.9", "localhost", "[::1]"):
        assert admissible(f"http://{name}:8787/status", host="there", here="here") is None
    assert admissible("http://10.1.2.3:8787/status", host="there", here="here") is not None


class Upstream(BaseHTTPRequestHandler):
    """Notes what it is asked, and answers with everything that must not pass."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status = {"/fails": 500, "/moved": 302, "/away": 302}.get(self.path, 200)
        body = b"x" * 300_000 if self.path == "/large" else b"<p>from Dask</p>"
        self.send_response(status)
        for name, value in (
            ("content-type", "text/html"), ("content-length", str(len(body))), ("set-cookie", "stolen=1; Path=/"),
            ("content-security-policy", "default-src *"), ("access-control-allow-origin", "*"), ("x-strange", "1"),
            ("keep-alive", "timeout=9"), ("etag", '"e"'), ("strict-transport-security", "max-age=1"),
        ):  # fmt: skip
            self.send_header(name, value)
        if status == 302:
            self.send_header("location", "status?a=1" if self.path == "/moved" else "http://evil.example/status")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def upstream() -> Iterator[str]:
    """Address of a server that stands for Dask's."""
    Upstream.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/status"
        server.shutdown()
        thread.join()


@pytest.fixture
async def place(upstream, beat, log_in) -> str:
    """Where the pages of a living dispatcher are, for Ada, who is logged in."""
    await log_in()
    return f"/operator/dashboard/{await beat(upstream)}"


async def test_page_passes_without_any_header_that_is_not_about_its_bytes(client, place):
    answer = await client.get(f"{place}/status?a=1&b=%2F")
    assert (answer.status_code, answer.text) == (200, "<p>from Dask</p>")
    for name in ("set-cookie", "x-strange", "keep-alive", "access-control-allow-origin", "strict-transport-security"):
        assert name not in answer.headers, name
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["etag"] == '"e"'
    assert Upstream.seen[0][0] == "/status?a=1&b=%2F"
    assert (await client.get(f"{place}/large")).content == b"x" * 300_000
    head = await client.head(f"{place}/large")
    assert (head.status_code, head.content) == (200, b"")


async def test_of_the_request_only_what_says_how_to_answer_passes(client, place):
    smuggled = {
        "authorization": "", "cookie": f"{COOKIE}={client.cookies[COOKIE]}; other=1", "x-forwarded-for": "1.2.3.4",
        "connection": "x-strange", "x-strange": "1", "host": "evil.example", "proxy-authorization": "Basic x",
        "te": "trailers", "upgrade": "h2c", "forwarded": "for=1", "referer": "http://x/", "accept": "text/html",
        "if-none-match": '"f"', "origin": ORIGIN, "transfer-encoding": "chunked",
    }  # fmt: skip
    answer = await client.get(f"{place}/status", headers={k: v for k, v in smuggled.items() if v})
    assert answer.status_code == 200
    _, headers = Upstream.seen[0]
    assert headers.pop("host").startswith("127.0.0.1:")
    assert headers.pop("accept") == "text/html"
    assert headers.pop("if-none-match") == '"f"'
    assert set(headers) <= {"accept-encoding", "connection", "user-agent"}
    assert headers.get("connection", "keep-alive") == "keep-alive"


async def test_redirection_stays_below_our_address_and_failure_is_an_outage(client, place):
    moved = await client.get(f"{place}/moved")
    assert (moved.status_code, moved.headers["location"]) == (302, f"{place}/status?a=1")
    away = await client.get(f"{place}/away")
    assert (away.status_code, "location" in away.headers) == (302, False)
    failed = await client.get(f"{place}/fails")
    assert (failed.status_code, failed.json()["code"]) == (503, "unavailable")


async def test_dispatcher_that_is_dead_unknown_elsewhere_or_silent_has_no_pages(client, upstream, beat, log_in):
    await log_in()
    gone = [
        await beat(upstream, age_s=20),
        await beat(upstream, host="another-machine"),
        await beat("http://8.8.8.8:80/status"),
        await beat(""),
        new_id("dsp"),
    ]
    for each in gone:
        assert (await client.get(f"/operator/dashboard/{each}/status")).status_code == 404
    assert Upstream.seen == []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        deaf = await beat(f"http://127.0.0.1:{closed.getsockname()[1]}/status")
        assert (await client.get(f"/operator/dashboard/{deaf}/status")).status_code == 503


async def sent(served: Any, target: str, cookie: str) -> int:
    """Status of a request whose target is sent as it is."""
    parts = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    request = f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"
    writer.write(request.encode("latin-1"))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


async def test_path_leads_nowhere_but_below_the_dashboard(served, client, log_in, upstream, beat):
    await log_in()
    place, cookie = f"/operator/dashboard/{await beat(upstream)}", f"{COOKIE}={client.cookies[COOKIE]}"
    for rest in (
        "/../status", "/a/../../status", "/%2e%2e/status", "/.%2e/x", "/%252e%252e/x", "/./status", "//evil.example/x",
        "/x//y", "/..%2fstatus", "/..%5cstatus", "/\\evil", "/%00", "/x%0d%0aset-cookie:a", "/x%20y", "/é", "/x?a=é",
        "/%2f..%2f..", "@evil.example/", ":80/", "/x/..", "/..",
    ):  # fmt: skip
        assert await sent(served, place + rest, cookie) in {400, 404}, rest
    for target in (
        f"http://evil.example{place}/status", f"/operator//dashboard/{place[-30:]}/status", f"//evil{place}/status",
        f"/operator/dashboard/{place[-30:].upper()}/status", "/operator/dashboard/127.0.0.1:80/status",
        "/operator/dashboard/http:%2f%2fevil/status",
    ):  # fmt: skip
        assert await sent(served, target, cookie) in {400, 404}, target
    assert Upstream.seen == []
    assert await sent(served, f"{place}/info/worker/tls%3A%2F%2F127.0.0.1%3A1.html", cookie) == 200
    assert Upstream.seen[0][0] == "/info/worker/tls%3A%2F%2F127.0.0.1%3A1.html"


async def test_body_that_goes_on_ends_when_the_operator_is_none_any_more(people, monkeypatch):
    answers = [True, False]

    class Still:
        async def still(self, _: Any) -> bool:
            return answers.pop(0)

    class Endless:
        is_closed = False

        async def aiter_raw(self, _: int) -> AsyncIterator[bytes]:
            while True:
                yield b"x"

        async def aclose(self) -> None:
            self.is_closed = True

    monkeypatch.setattr(dashboard, "STILL_S", -1)
    got: Any = Endless()
    passed = dashboard.Dashboard(people, Still(), clock=utc_now)  # pyright: ignore[reportArgumentType]
    chunks = []
    with pytest.raises(dashboard.MissingScope):
        chunks.extend([chunk async for chunk in passed._body(got, None, depth=None)])  # pyright: ignore[reportArgumentType]
    assert got.is_closed


# Websockets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cookie(client, log_in) -> str:
    await log_in()
    return f"{COOKIE}={client.cookies[COOKIE]}"


class Echo:
    """A websocket server that notes handshakes and says everything twice."""

    def __init__(self) -> None:
        self.handshakes: list[dict[str, str]] = []
        self.closed = asyncio.Event()

    async def __call__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.handshakes.append({name.lower(): value for name, value in connection.request.headers.raw_items()})
        try:
            async for message in connection:
                if message == "close":
                    await connection.close(4001, "enough")
                    return
                while message == "flood":
                    await connection.send(os.urandom(100_000))  # which does not compress
                await connection.send(message)
                await connection.send(message)
        finally:
            self.closed.set()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, str]]:
    made = Echo()
    async with serve(
        made, "127.0.0.1", 0, select_subprotocol=lambda _, offered: offered[0] if offered else None, ping_interval=None
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield made, f"http://127.0.0.1:{port}/status"


def ws(served: Any, dispatcher_id: str, rest: str = "/status/ws") -> str:
    return f"{served.url.replace('http', 'ws', 1)}/operator/dashboard/{dispatcher_id}{rest}"


async def test_messages_pass_both_ways_and_no_credential_does(served, echo, beat, cookie):
    server, url = echo
    address = ws(served, await beat(url), "/status/ws?a=1")
    headers = {"cookie": cookie, "x-strange": "1"}
    protocols = [websockets.Subprotocol("bokeh"), websockets.Subprotocol("token")]
    async with connect(
        address, origin=served.url, additional_headers=headers, subprotocols=protocols, proxy=None
    ) as browser:
        assert browser.subprotocol == "bokeh"
        for message in ("text", b"\x00\xff", "", "x" * 500_000):
            await browser.send(message)
            assert [await browser.recv(), await browser.recv()] == [message, message]
        await browser.send("close")
        await browser.wait_closed()
        assert browser.close_code == 4001
    (handshake,) = server.handshakes
    assert handshake["sec-websocket-protocol"] == "bokeh, token"
    assert not {"cookie", "authorization", "origin", "x-strange", "user-agent"} & set(handshake)


async def test_upstream_is_closed_when_the_browser_leaves(served, echo, beat, cookie):
    server, url = echo
    async with connect(
        ws(served, await beat(url)), origin=served.url, additional_headers={"cookie": cookie}, proxy=None
    ) as browser:
        await browser.send("x")
        await browser.recv()
    await asyncio.wait_for(server.closed.wait(), 30)


async def test_websocket_closes_when_the_operator_is_none_any_more(served, echo, beat, *, cookie, unmark, monkeypatch):
    monkeypatch.setattr(dashboard, "STILL_S", 0.1)
    server, url = echo
    async with connect(
        ws(served, await beat(url)), origin=served.url, additional_headers={"cookie": cookie}, proxy=None
    ) as browser:
        await browser.send("x")
        assert await browser.recv() == "x"
        await unmark()
        await asyncio.wait_for(browser.wait_closed(), 30)
        assert browser.close_code == 1008
    await asyncio.wait_for(server.closed.wait(), 30)


async def test_browser_that_reads_nothing_is_cut_off_and_fills_no_memory(
    served, echo, beat, *, cookie, unmark, monkeypatch
):
    monkeypatch.setattr(dashboard, "STILL_S", 0.1)
    monkeypatch.setattr(dashboard, "_FAREWELL_S", 0.5)
    server, url = echo
    deaf = await connect(
        ws(served, await beat(url)), origin=served.url, additional_headers={"cookie": cookie}, proxy=None, max_queue=1,
        close_timeout=1, ping_interval=None,
    )  # fmt: skip
    await deaf.send("flood")
    await unmark()
    await asyncio.wait_for(server.closed.wait(), 30)
    await deaf.close()


async def refusal(address: str, **options: Any) -> int:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(address, proxy=None, **options):
            pass
    return caught.value.response.status_code


async def test_handshake_of_anybody_else_is_refused(served, echo, beat, *, cookie, bearer, people, clock):
    server, url = echo
    address = ws(served, await beat(url))
    mine = {"cookie": cookie}
    assert await refusal(address, origin=served.url) == 404
    assert await refusal(address, origin=served.url, additional_headers=await bearer(BOB)) == 404
    for origin in ("https://evil.example", "null", f"{served.url}.evil.example", None):
        assert await refusal(address, origin=origin, additional_headers=mine) == 403, origin
    assert await refusal(address, origin="http://evil.example", additional_headers=await bearer(ADA)) == 403
    for rest in ("/../x/ws", "/%2e%2e/ws", "//evil.example/ws", "/x%0a/ws"):
        raw = ws(served, address.split("/")[-3], rest)
        assert await refusal(raw, origin=served.url, additional_headers=mine) == 404, rest
    assert await refusal(ws(served, new_id("dsp")), origin=served.url, additional_headers=mine) == 404
    async with people.db.write() as tx:
        await tx.execute(sa.update(processes).values(seen_at=utc_now() - timedelta(seconds=20)))
    assert await refusal(address, origin=served.url, additional_headers=mine) == 404
    clock.ahead = timedelta(hours=13)
    assert await refusal(address, origin=served.url, additional_headers=mine) == 404
    assert server.handshakes == []


async def test_script_of_an_operator_may_join_with_a_token_and_without_an_origin(served, echo, beat, bearer):
    _, url = echo
    headers = await bearer(ADA)
    async with connect(ws(served, await beat(url)), additional_headers=headers, proxy=None) as script:
        await script.send("x")
        assert await script.recv() == "x"


async def test_deaf_upstream_is_an_outage(served, beat, cookie, upstream):
    address = ws(served, await beat(upstream))
    assert await refusal(address, origin=served.url, additional_headers={"cookie": cookie}) == 503


# Dask's own pages -----------------------------------------------------------------------------------------------------


def fetched(page):
    """What a browser asks for when it shows a page, without anybody following a link."""

    class Finder(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            if tag != "a":
                self.found += [value or "" for name, value in attrs if name in {"src", "href", "data", "srcset"}]

    finder = Finder()
    finder.feed(page)
    return finder.found


def fetched_from_elsewhere(page):
    return [link for link in fetched(page) if re.match(r"(https?:)?//", link)]


@pytest.mark.parametrize("page", ["workers", "logs", "exceptions"])
async def test_info_pages_of_dask_ask_no_other_host_and_find_what_they_ask_of_ours(
    served, scheduler, beat, cookie, page
):
    place = f"{served.url}/operator/dashboard/{await beat(scheduler)}"
    async with httpx2.AsyncClient(headers={"cookie": cookie}, trust_env=False, timeout=60) as browser:
        plain = await browser.get(f"{scheduler.removesuffix('status')}info/main/{page}.html")
        info = await browser.get(f"{place}/info/main/{page}.html")
        assert "text/html" in info.headers["content-type"]
        assert len(fetched_from_elsewhere(plain.text)) == 1
        assert fetched_from_elsewhere(info.text) == []
        assert info.text.index("<style>") < info.text.index("</head>")
        body = plain.text.partition("</head>")[2]
        assert info.text.partition("</head>")[2] == body.replace("../../../statics", "../../statics") != ""
        own = fetched(info.text)
        assert len(own) == 3
        for link in own:
            answer = await browser.get(urljoin(str(info.url), link))
            assert (answer.status_code, bool(answer.content)) == (200, True), link


@pytest.mark.parametrize(
    ("depth", "page", "wanted"),
    [
        (2, b'<p>../../../statics/</p><script src="../../../statics/a.js">', b'<script src="../../statics/a.js">'),
        (0, b"<link href='../statics/a.css'><a href=\"../x/\">", b"<link href='statics/a.css'><a href=\"../x/\">"),
        (1, b'<a href="statics/x">' + b"text" * 20_000, b'<a href="statics/x">'),
    ],
)
async def test_links_to_statics_are_set_right_wherever_the_bytes_are_cut(depth, page, wanted):
    async def cut(*places):
        for start, end in zip((0, *places), (*places, len(page)), strict=True):
            yield page[start:end]

    ways = [(place,) for place in range(min(len(page), 60))] + [tuple(range(1, min(len(page), 60)))]
    told = {b"".join([chunk async for chunk in dashboard._rooted(cut(*places), depth)]) for places in ways}
    assert len(told) == 1
    assert wanted in told.pop()


async def test_status_page_of_dask_loads_and_its_websocket_speaks(served, scheduler, beat, cookie):
    name = await beat(scheduler)
    place = f"{served.url}/operator/dashboard/{name}"
    async with httpx2.AsyncClient(headers={"cookie": cookie}, trust_env=False) as browser:
        page = await browser.get(f"{place}/status", timeout=60)
        assert page.status_code == 200
        local = [link for link in re.findall(r'(?:src|href)="([^"]+)"', page.text) if ":" not in link]
        assert any("bokeh" in link for link in local)
        for link in local:
            if link.startswith("stati"):
                answer = await browser.get(f"{place}/{link}", timeout=60)
                assert (answer.status_code, bool(answer.content)) == (200, True), link
        assert fetched_from_elsewhere(page.text) == []
    (token,) = set(re.findall(r'"token":"([^"]+)"', page.text))
    protocols = [websockets.Subprotocol("bokeh"), websockets.Subprotocol(token)]
    async with connect(
        ws(served, name), origin=served.url, additional_headers={"cookie": cookie}, subprotocols=protocols, proxy=None
    ) as socket:
        first = json.loads(await asyncio.wait_for(socket.recv(), 60))
        assert first["msgtype"] == "ACK"


async def test_dask_itself_refuses_websockets_that_another_sites_page_opens(scheduler):
    page = await asyncio.to_thread(httpx2.get, scheduler, timeout=60, trust_env=False)
    (token,) = set(re.findall(r'"token":"([^"]+)"', page.text))
    protocols = [websockets.Subprotocol("bokeh"), websockets.Subprotocol(token)]
    address = f"{scheduler.replace('http', 'ws', 1)}/ws"
    for origin in ("https://evil.example", "http://127.0.0.1:1"):
        assert await refusal(address, origin=origin, subprotocols=protocols) == 403, origin
