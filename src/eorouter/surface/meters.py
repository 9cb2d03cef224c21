"""What the API counts for Prometheus, and where it shows it: `GET /metrics`.

With `EOROUTER_METRICS_TOKEN` whoever asks must send it as a bearer token; without, callers on loopback are answered and
to all others the page is not there. A proxy on the same machine does not make its callers local: what was forwarded is
never answered without the token. The operation is the finest label there is.
"""

import hmac
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

from eorouter.settings import Settings
from eorouter.storage.database import Database, DatabaseTime

_LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class ApiMeters:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "eorouter_http_requests", "Requests answered, by operation and status.", ["operation", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "eorouter_http_request_seconds", "Time to answer a request; streams, which last, are left out.",
            ["operation"], buckets=_LATENCIES, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("eorouter_http_in_flight", "Requests being answered.", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def answered(self, operation: str, status: int | None, seconds: float, *, is_stream: bool) -> None:
        """An exchange is over; `operation` is empty for pages and for addresses that do not exist."""
        self._requests.labels(operation or "none", str(status or 499)).inc()
        if not is_stream:
            self._seconds.labels(operation or "none").observe(seconds)


def handler(settings: Settings, meters: ApiMeters, db: Database) -> Any:
    """The route of the exposition."""
    meters.registry.register(DatabaseTime(db))

    @get("/metrics")
    async def show(request: Request[Any, Any, Any]) -> Response[bytes]:
        if not _may_see(request, settings.metrics_token):
            raise NotFoundException
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    return show


def _may_see(request: Request[Any, Any, Any], token: str) -> bool:
    if token:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
    is_forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
    return not is_forwarded and request.client is not None and request.client.host in _LOOPBACK
