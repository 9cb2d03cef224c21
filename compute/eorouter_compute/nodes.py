"""The workers of a cluster as its scheduler sees them: for the heartbeat, and so for whoever watches."""

import time
from typing import Any

from msgspec import Struct


class Seen(Struct, frozen=True, kw_only=True):
    """A worker as its scheduler sees it.

    Attributes:
        shards: those it was given, as the dashboard names them.
        build: empty where the worker does not say which it runs.
        silent_s: since its last word to the scheduler, which a worker that is well says twice a second.
    """

    name: str
    address: str
    build: str
    host: str
    threads: int
    memory_bytes: int
    memory_limit_bytes: int
    shards: tuple[str, ...]
    silent_s: float
    metrics_url: str


_BUILD = "BUILD "


def resource(build: str) -> str:
    """Name of the resource that workers of a build have and its orders ask for: no other worker is given them."""
    return _BUILD + build


def census(scheduler: Any) -> list[Seen]:
    """The workers of a scheduler; it also forgets the names of tasks of which none is left.

    Dask keeps a record per name for ever, and ours name jobs.
    """
    for name, prefix in list(scheduler.task_prefixes.items()):
        if not prefix.groups:
            del scheduler.task_prefixes[name]
    return [
        Seen(
            name=str(worker.name),
            address=worker.address,
            build=_build(worker),
            host=worker.host,
            threads=worker.nthreads,
            memory_bytes=int(worker.metrics.get("memory", 0)),
            memory_limit_bytes=worker.memory_limit,
            shards=tuple(f"{task.key[0]} #{task.key[1]}" for task in worker.processing if isinstance(task.key, tuple)),
            silent_s=round(max(time.time() - worker.last_seen, 0.0), 1),
            metrics_url=_metrics_url(worker),
        )
        for worker in scheduler.workers.values()
    ]


def _build(worker: Any) -> str:
    return next((name.removeprefix(_BUILD) for name in worker.resources if name.startswith(_BUILD)), "")


def _metrics_url(worker: Any) -> str:
    port = worker.services.get("dashboard")
    return f"http://{worker.host}:{port}/metrics" if port else ""
