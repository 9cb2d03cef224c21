"""What a worker counts for Prometheus: shards, pixels, bytes, seconds by stage.

Dask's own endpoint of a worker, `/metrics` on loopback, shows the process's default registry, and so these beside
Dask's. Labels are methods and outcomes: a job or an organisation is never one, because there is no end of them.
"""

import time

from prometheus_client import Counter

from eorouter_compute import tracing
from eorouter_compute.witness import Witness

SHARDS = Counter("eorouter_worker_shards", "Tries that ended, by method and how they ended.", ["method", "outcome"])
PIXELS = Counter("eorouter_worker_pixels", "Pixels that shards reported as done.", ["method"])
BYTES = Counter(
    "eorouter_worker_bytes", "Bytes of decoded pixels and objects read, and of objects written.", ["direction"]
)
SECONDS = Counter("eorouter_worker_seconds", "Seconds of shards, by stage.", ["stage"])

_READ_BYTES, _WRITTEN_BYTES = BYTES.labels("read"), BYTES.labels("written")
_READ_S, _COMPUTE_S, _WRITE_S = (SECONDS.labels(stage) for stage in ("read", "compute", "write"))

_LEAST_STRETCH_NS = 100_000  # shorter computing between two reads is not worth a span


def count(method: str, outcome: str, *, seconds: float, pixels: int, notes: Witness) -> None:
    """Count a try that ended."""
    SHARDS.labels(method, outcome).inc()
    if pixels:
        PIXELS.labels(method).inc(pixels)
    _READ_BYTES.inc(notes.read_bytes)
    _WRITTEN_BYTES.inc(notes.written_bytes)
    _READ_S.inc(notes.read_s)
    _WRITE_S.inc(notes.write_s)
    _COMPUTE_S.inc(max(seconds - notes.read_s - notes.write_s, 0.0))


def note_end(
    method: str, outcome: str, notes: Witness, span: tracing.Span, *, seconds: float, pixels: int, worker: str
) -> None:
    """Tell the metrics, the job's log and the trace how a try went."""
    count(method, outcome, seconds=seconds, pixels=pixels, notes=notes)
    if outcome == "completed":
        stages = {"seconds": round(seconds, 4), "read_s": round(notes.read_s, 4), "write_s": round(notes.write_s, 4)}
        notes.note({"event": "shard.completed", "logger": "eorouter", **stages, "pixels": pixels, "worker": worker})
    if not tracing.is_on():
        return
    facts = {"pixels": pixels, "read_bytes": notes.read_bytes, "written_bytes": notes.written_bytes}
    for name, value in (facts | {"outcome": outcome}).items():
        span.set(name, value)
    end = time.time_ns()
    begin = end - int(seconds * 1e9)
    for stage, since, until in [*notes.spans, ("", end, end)]:
        if since - begin > _LEAST_STRETCH_NS:
            span.stretch("compute", begin, since)
        if stage:
            span.stretch(stage, since, until)
        begin = until
