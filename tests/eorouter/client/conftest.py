"""A real HTTP server in a process of its own, told by each test what to answer and made to misbehave on purpose.

It keeps no state but a journal of what arrived, which tests read back through `/journal`.
"""

import json
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import urlopen

import pytest

from eorouter.client import EoRouterClient, Polling, Retries


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: dict[str, list[dict[str, Any]]]
    journal: list[dict[str, Any]]

    def log_message(self, *_: object) -> None: ...

    def _any(self) -> None:
        if self.path == "/journal":
            return self._answer({"json": list(self.journal)})
        answers = self.script.get(f"{self.command} {self.path}", [])
        step = answers.pop(0) if len(answers) > 1 else answers[0] if answers else {"status": 404, "json": {}}
        length = int(self.headers.get("content-length") or 0)
        body = b"" if step.get("refuse_early") else self.rfile.read(length)
        self.journal.append(
            {
                "line": f"{self.command} {self.path}",
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": body.decode("latin-1") if len(body) < 100_000 else f"{len(body)} bytes",
            }
        )
        self._answer(step)
        return None

    def _answer(self, step: dict[str, Any]) -> None:
        if "hang_s" in step:
            time.sleep(step["hang_s"])
        if step.get("drop"):
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
            return
        body = (
            step["bytes"].encode("latin-1")
            if "bytes" in step
            else json.dumps(step["json"]).encode()
            if "json" in step
            else b""
        )
        headers = dict(step.get("headers", {}))
        status = step.get("status", 200)
        wanted, tag = self.headers.get("range"), headers.get("etag")
        if step.get("ranged") and wanted and self.headers.get("if-range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                status, body = 416, b"{}"
            else:
                status, headers["content-range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if "stop_after" in step:
            self.wfile.write(body[: step["stop_after"]])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _any  # noqa: N815 - names that the base class looks for


def _serve(script: dict[str, list[dict[str, Any]]], port: Any) -> None:
    handler = type("Handler", (_Handler,), {"script": script, "journal": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.send(server.server_address[1])
    server.serve_forever()


class Service:
    """What a test holds of the server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def journal(self, line: str = "") -> list[dict[str, Any]]:
        """What arrived, in order; only one kind of request when `line` is given."""
        with urlopen(self.url + "/journal") as answer:
            return [entry for entry in json.load(answer) if line in entry["line"]]

    def client(self, **changes: Any) -> EoRouterClient:
        """A client that does not wait long between tries."""
        fields: dict[str, Any] = {
            "api_key": "eor_live_sk_secret",
            "retries": Retries(first_wait_s=0.001, longest_wait_s=0.002),
            "polling": Polling(first_s=0.001, longest_s=0.002),
        }
        return EoRouterClient(self.url, **(fields | changes))


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Start a server: `serve({"POST /v1/op/x.get": [answer, answer, …]})`; the last answer is given for ever."""
    context = multiprocessing.get_context("fork" if hasattr(socket, "AF_UNIX") else "spawn")
    started = []

    def start(script: dict[str, Any]) -> Service:
        steps = {line: answers if isinstance(answers, list) else [answers] for line, answers in script.items()}
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(steps, theirs), daemon=True)
        process.start()
        started.append(process)
        return Service(f"http://127.0.0.1:{ours.recv()}")

    yield start
    for process in started:
        process.terminate()
        process.join()
