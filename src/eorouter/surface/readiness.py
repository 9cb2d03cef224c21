"""Whether this installation can do its work: database, schema, objects, cluster; each part is really tried.

`GET /readyz?parts=database,objects` asks for some of them: an API that waits for workers still takes jobs in, and
a balancer should not take it out for that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import Any

import msgspec

from eorouter.errors import InvalidInput
from eorouter.storage import Stores, dispatchers
from eorouter.storage.database import Database

PROBE_S = 5.0

PARTS = ("database", "schema", "objects", "cluster")

SchemaCheck = Callable[[Database], Awaitable[None]]
"""Raises, with a sentence for the operator, where the schema is not that of this release."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """State of one part of the installation."""

    state: str
    message: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """State of the installation; `ready` when every part is."""

    state: str
    parts: dict[str, Part]


def wanted(text: str | None) -> tuple[str, ...]:
    """The parts that a caller names with commas; all of them when it names none.

    Raises:
        InvalidInput: there is no such part.
    """
    if not text:
        return PARTS
    names = tuple(dict.fromkeys(text.split(",")))
    strange = [name for name in names if name not in PARTS]
    if strange:
        raise InvalidInput(f"There is no part {strange[0][:100]!r}. Name parts of {', '.join(PARTS)}, with commas.")
    return names


async def probe(
    stores: Stores, *, schema_check: SchemaCheck, now: datetime, parts: Collection[str] = PARTS
) -> Readiness:
    """Try these parts, all at once, each for at most `PROBE_S` seconds."""
    every: Mapping[str, Callable[[], Awaitable[str | None]]] = {
        "database": stores.db.check,
        "schema": lambda: schema_check(stores.db),
        "objects": stores.objects.check,
        "cluster": lambda: _cluster(stores.db, now),
    }
    states = await asyncio.gather(*(_try(every[name]()) for name in parts))
    found = dict(zip(parts, states, strict=True))
    is_ready = all(part.state == "ready" for part in states)
    return Readiness(state="ready" if is_ready else "not_ready", parts=found)


async def _try(part: Awaitable[str | None]) -> Part:
    try:
        async with asyncio.timeout(PROBE_S):
            message = await part
    except TimeoutError:
        return Part(state="not_ready", message=f"No answer within {PROBE_S:g} s.")
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is the state we report
        is_ours = type(error).__module__.startswith("eorouter")
        text = str(error) if is_ours else f"{type(error).__name__}: {error}"
        return Part(state="not_ready", message=text.splitlines()[0][:300])
    return Part(state="ready", message=message or "Answers.")


class NoCluster(Exception):
    """Nobody runs jobs now."""


async def _cluster(db: Database, now: datetime) -> str:
    async with db.read() as tx:
        found = await dispatchers.known(tx)
    fresh = [row for row in found if dispatchers.is_alive(row, now=now)]
    if not fresh:
        hint = "Start one with `eorouter dispatcher`, or use `eorouter serve`, which has one."
        last = max((row.seen_at for row in found), default=None)
        seen = f"the last one was seen {last:%Y-%m-%d %H:%M:%S} UTC" if last else "none was ever seen"
        raise NoCluster(f"No dispatcher is alive ({seen}). {hint}")
    workers = sum(_worker_count(row.detail) for row in fresh)
    if workers < 1:
        raise NoCluster(f"{len(fresh)} dispatcher(s) alive, but no worker.")
    return f"{len(fresh)} dispatcher(s), {workers} worker(s)."


def _worker_count(detail: Mapping[str, Any]) -> int:
    workers = detail.get("workers", 0)
    return workers if isinstance(workers, int) else len(workers)
