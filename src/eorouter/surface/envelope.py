"""What every exchange has, whatever answers it: a request id, a line in the log, security headers, no traceback."""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import structlog

from eorouter.errors import InternalFault
from eorouter.surface.meters import ApiMeters
from eorouter.types import new_id
from eorouter_compute import tracing

Message = MutableMapping[str, Any]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]

PROBLEM_TYPE = b"application/problem+json"
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_HTML_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
     b"form-action 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)  # fmt: skip

log = structlog.get_logger("eorouter.http")


class Envelope:
    """ASGI application around the framework's, so that its own errors pass here too."""

    def __init__(self, app: Asgi, meters: ApiMeters) -> None:
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one exchange."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(send, request_id, is_head=scope["method"] == "HEAD")
        started = time.perf_counter()
        self.meters.in_flight.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id), _span(scope) as span:
            try:
                await self.app(scope, receive, exchange.send)
            except Exception:
                log.exception("answer_broken", path=scope["path"], status=exchange.status)
                if exchange.status is None:
                    await exchange.fail()
            finally:
                operation, seconds = scope["state"].get("operation") or "", time.perf_counter() - started
                self.meters.in_flight.dec()
                self.meters.answered(operation, exchange.status, seconds, is_stream=exchange.is_stream)
                span.set("operation", operation)
                span.set("http.response.status_code", exchange.status or 0)
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=exchange.status,
                    duration_ms=round(seconds * 1000, 2),
                    operation=scope["state"].get("operation"),
                    principal=scope["state"].get("principal"),
                    sent_bytes=exchange.sent_bytes,
                )


class _Exchange:
    """One answer on its way out."""

    def __init__(self, send: Any, request_id: str, *, is_head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._is_head = is_head
        self.status: int | None = None
        self.sent_bytes = 0
        self.is_stream = False

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            present = {name.lower() for name, _ in headers}
            wanted = [(b"x-request-id", self._request_id.encode()), (b"x-content-type-options", b"nosniff")]
            kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
            self.is_stream = kind.startswith((b"text/event-stream", b"application/x-ndjson"))
            if kind.startswith(b"text/html"):
                wanted.extend(_HTML_HEADERS)
            elif b"cache-control" not in present:
                wanted.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers + [pair for pair in wanted if pair[0] not in present]}
        elif message["type"] == "http.response.body":
            if self._is_head:
                message = {**message, "body": b""}
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def fail(self) -> None:
        """Answer that something broke."""
        problem = InternalFault(f"Something broke on our side. The logs have it under {self._request_id}.")
        body = msgspec.json.encode(problem.problem(self._request_id))
        headers = [(b"content-type", PROBLEM_TYPE), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _span(scope: Any) -> tracing.Span:
    """The span of a request, which belongs to the caller's where that sends a `traceparent`."""
    if not tracing.is_on():
        return tracing.span("")
    parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), "")
    about: dict[str, tracing.Value] = {"http.request.method": scope["method"], "url.path": scope["path"]}
    about["request_id"] = scope["state"]["request_id"]
    return tracing.span("request", parent=parent, kind="SERVER", attributes=about)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The caller's `X-Request-ID` where it is one that logs can hold, else a new one."""
    given = next((value.decode("latin-1") for name, value in headers if name.lower() == b"x-request-id"), "")
    return given if _REQUEST_ID.match(given) else new_id("req")
