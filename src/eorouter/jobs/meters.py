"""What a dispatcher counts for Prometheus, and tells in its heartbeat.

The metrics have a registry and an endpoint of their own, on the address of `EOROUTER_METRICS_ADDRESS`: loopback unless
somebody says otherwise. Labels are classes, outcomes and codes, never jobs or organisations. `docs/watching.md` lists
every metric.
"""

import os
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import msgspec
import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from eorouter.jobs import journal
from eorouter.jobs.census import CLASSES, Queue, queues
from eorouter.jobs.claims import Claim
from eorouter.jobs.leases import Landed
from eorouter.settings import Settings
from eorouter.storage import dispatchers
from eorouter.storage.database import Database, DatabaseTime
from eorouter.types import utc_now
from eorouter_compute import tracing
from eorouter_compute.build import build
from eorouter_compute.cluster import Link
from eorouter_compute.orders import ShardOrder

_PASSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class Meters:
    """The metrics of one dispatcher."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.registry = CollectorRegistry()
        self._settings = settings
        self._db = db
        self._server: Any = None
        self._shards = self._failures = self._pixels = 0

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"eorouter_dispatcher_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"eorouter_{name}", text, labels, registry=self.registry)

        self._claimed = counter("claims", "Shards claimed, by class.", "class")
        self._completed = counter("completions", "Shards that were recorded as done.")
        self._failed = counter("failures", "Tries that failed, by kind and code.", "kind", "code")
        self._retried = counter("retries", "Tries after the first, claimed.")
        self.expired = counter("lease_expiries", "Shards taken back because their lease ran out or their owner died.")
        self._stages = counter("shard_seconds", "Seconds of completed shards, by stage.", "stage")
        self._pass = Histogram(
            "eorouter_dispatcher_pass_seconds", "Turns that did something: recording and claiming in one transaction.",
            buckets=_PASSES, registry=self.registry,
        )  # fmt: skip
        self._in_flight = gauge("dispatcher_in_flight", "Shards with the cluster.")
        self._workers = gauge("dispatcher_workers", "Workers connected.")
        self._depth = gauge("queue_shards", "Shards not done of open jobs, by class.", "class")
        self._age = gauge("queue_age_seconds", "How long the longest waiting shard was ready, by class.", "class")
        self._by_class = {name: self._claimed.labels(name) for name in CLASSES}
        self._by_stage = {name: self._stages.labels(name) for name in ("claimed", "read", "compute", "write")}
        self.registry.register(DatabaseTime(db))

    def _listen(self) -> str:
        """Address of the endpoint, opened when it is first asked for; empty where it is switched off."""
        host, _, port = self._settings.metrics_address.rpartition(":")
        if not port:
            return ""
        if self._server is None:
            self._server, _ = start_http_server(int(port), host.strip("[]"), self.registry)
        return f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Close the endpoint."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def turned(self, seconds: float, claims: Sequence[Claim], landed: Sequence[Landed]) -> None:
        """A turn was committed."""
        self._pass.observe(seconds)
        for claim in claims:
            self._by_class[CLASSES[claim.is_interactive]].inc()
            if claim.attempt > 1:
                self._retried.inc()
        for each in landed:
            outcome = each.outcome
            if outcome.failure is not None:
                self._failures += 1
                self._failed.labels(outcome.failure.kind, outcome.failure.code).inc()
                continue
            self._shards += 1
            self._pixels += each.outcome.pixels
            self._completed.inc()
            spent = (outcome.waited_s, outcome.read_s, outcome.compute_s, outcome.write_s)
            for meter, seconds_spent in zip(self._by_stage.values(), spent, strict=True):
                meter.inc(seconds_spent)

    async def beat(
        self, dispatcher_id: str, cluster: Link, *, in_flight: int, started_at: datetime, costs: Any
    ) -> None:
        """Say that the dispatcher is alive, and what its cluster looks like; look at the queue; count throughput."""
        now = utc_now()
        detail = {
            "workers": cluster.alive_count,
            "threads": cluster.threads,
            "in_flight": in_flight,
            "costs": costs,
            "dashboard_url": cluster.dashboard_url,
            "metrics_url": self._listen(),
            "nodes": msgspec.to_builtins(cluster.census()),
            "version": version("eorouter"),
            "build": build(),
            "pid": os.getpid(),
            "pid_started": psutil.Process().create_time(),
        }
        async with self._db.read() as tx:
            self._look(await queues(tx, now), workers=cluster.alive_count, in_flight=in_flight)
        host = socket.gethostname()
        async with self._db.write() as tx:
            await dispatchers.beat(
                tx, self._db, dispatcher_id, host=host, started_at=started_at, detail=detail, now=now
            )
            if self._shards or self._failures:
                done = {"shards": self._shards, "failures": self._failures, "pixels": self._pixels}
                self._shards = self._failures = self._pixels = 0
                await journal.count(tx, self._db, now=now, **done)

    def _look(self, found: Iterable[Queue], *, workers: int, in_flight: int) -> None:
        self._workers.set(workers)
        self._in_flight.set(in_flight)
        depth: dict[str, int] = dict.fromkeys(CLASSES, 0)
        age: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
        for queue in found:
            depth[queue.kind] += queue.shards
            age[queue.kind] = max(age[queue.kind], queue.age_s)
        for name in CLASSES:
            self._depth.labels(name).set(depth[name])
            self._age.labels(name).set(age[name])


def shard_span(order: ShardOrder, claimed: float) -> tracing.Span:
    """The span of a try, from its claim at `claimed` of the monotonic clock; its claim is a child."""
    now = time.time_ns()
    begin = now - int((time.monotonic() - claimed) * 1e9)
    about: dict[str, tracing.Value] = {"job": order.job_id, "shard": order.number, "token": order.token}
    span = tracing.span(
        f"shard {order.label}", parent=order.traceparent, kind="PRODUCER", attributes=about, begin_ns=begin
    )
    span.stretch("claim", begin, now)
    return span
