"""What a worker counts for Prometheus: shards, pixels, bytes, seconds by stage.

Dask's own endpoint of a worker, `/metrics` on loopback, shows the process's default registry, and so these beside
Dask's. Labels are methods and outcomes: a job or an organisation is never one, because there is no end of them.
"""

from prometheus_client import Counter

from eorouter_compute.witness import Witness

SHARDS = Counter("eorouter_worker_shards", "Tries that ended, by method and how they ended.", ["method", "outcome"])
PIXELS = Counter("eorouter_worker_pixels", "Pixels that shards reported as done.", ["method"])
BYTES = Counter(
    "eorouter_worker_bytes", "Bytes of decoded pixels and objects read, and of objects written.", ["direction"]
)
SECONDS = Counter("eorouter_worker_seconds", "Seconds of shards, by stage.", ["stage"])

_READ_BYTES, _WRITTEN_BYTES = BYTES.labels("read"), BYTES.labels("written")
_READ_S, _COMPUTE_S, _WRITE_S = (SECONDS.labels(stage) for stage in ("read", "compute", "write"))


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
