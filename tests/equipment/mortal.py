"""Steps at which money moves, done by a process that dies at a chosen moment: before a statement, or before a commit.

`dying` counts the moments of a database and ends whoever comes to the n-th: with an exception that nobody catches, or,
in a process of its own (`in_child`), with SIGKILL. How many moments a step has is nowhere written down: a step that
comes to its end had fewer.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any

import httpx2
from sqlalchemy import event

from eorouter.app import registry
from eorouter.commerce import ledger
from eorouter.jobs import leases, publish
from eorouter.jobs.leases import Landed
from eorouter.operation import Registry
from eorouter.settings import Settings
from eorouter.storage import Stores, migrate
from eorouter.storage.database import Database
from eorouter.storage.objects import Objects
from eorouter.surface import http
from eorouter.types import Principal, utc_now
from eorouter_compute.orders import Failure, Outcome

ALICE = Principal(
    kind="user", id="usr_alice", org_id="org_a", scopes=frozenset({"processing:read", "processing:write"}),
    user_id="usr_alice",
)  # fmt: skip
FAR = timedelta(hours=1)
OPERATIONS = registry()  # here, so that a process that is forked has them
BROKEN = Failure(kind="source", code="source_truncated", message="The file ends early.")

Subject = Mapping[str, Any]
Step = Callable[[Stores, Settings, Subject], Awaitable[None]]


class Death(BaseException):
    """Nothing catches it, as nothing catches a killed process."""


def _raise() -> None:
    raise Death


@contextmanager
def dying(db: Database, number: int, die: Callable[[], None] = _raise) -> Iterator[None]:
    """Die at the n-th moment of a database; an exception is raised at every later one, too: the dead do not tidy up."""
    reached = 0

    def moment(*_: object) -> None:
        nonlocal reached
        reached += 1
        if reached >= number:
            die()

    engine = db.engine.sync_engine
    kinds = ("before_cursor_execute", "commit")
    for kind in kinds:
        event.listen(engine, kind, moment)
    try:
        yield
    finally:
        for kind in kinds:
            event.remove(engine, kind, moment)


async def in_process(step: str, stores: Stores, settings: Settings, subject: Subject, number: int) -> bool:
    """Do a step up to its n-th moment; False when it had fewer."""
    try:
        with dying(stores.db, number):
            await STEPS[step](stores, settings, subject)
    except Death:
        return True
    return False


def in_child(step: str, settings: Settings, url: str, subject: Subject, number: int) -> None:
    """Do a step in this process, which ends itself at the n-th moment."""
    asyncio.run(_mortal(step, settings, url, subject, number))


async def _mortal(step: str, settings: Settings, url: str, subject: Subject, number: int) -> None:
    stores = Stores(db=Database(url), objects=Objects("", settings.data_dir))
    with dying(stores.db, number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        await STEPS[step](stores, settings, subject)
    await stores.db.close()


# What is asked over HTTP ----------------------------------------------------------------------------------------------


async def _as_alice(*_: Any, registry: Registry, **__: Any) -> Principal:
    return ALICE


@lru_cache(maxsize=1)
def _application(stores: Stores, settings: Settings) -> Any:
    return http.create(OPERATIONS, stores, settings, authenticate=_as_alice, schema_check=migrate.check)


async def ask(stores: Stores, settings: Settings, subject: Subject) -> httpx2.Response:
    """Send a subject's request to an application with every operation there is."""
    transport = httpx2.ASGITransport(app=_application(stores, settings), raise_app_exceptions=False)
    headers = {"idempotency-key": subject["key"]}
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver.local", headers=headers) as client:
        return await client.post(f"/v1/op/{subject['operation']}", json=subject["body"])


async def _ask(stores: Stores, settings: Settings, subject: Subject) -> None:
    answer = await ask(stores, settings, subject)
    assert answer.is_success, answer.text


async def _ask_in_vain(stores: Stores, settings: Settings, subject: Subject) -> None:
    assert (await ask(stores, settings, subject)).status_code == 404


# What a dispatcher does -----------------------------------------------------------------------------------------------


async def _complete(stores: Stores, settings: Settings, subject: Subject) -> None:
    assert await publish.publish(stores, subject["job_id"], now=utc_now())


async def _give_up(stores: Stores, settings: Settings, subject: Subject) -> None:
    await publish.fail(stores, subject["job_id"], "publish_failed", "The results could not be stored.", now=utc_now())


async def _fail(stores: Stores, settings: Settings, subject: Subject) -> None:
    async with stores.db.write() as tx:
        await leases.record(tx, [Landed(claim=subject["claim"], outcome=Outcome(failure=BROKEN))], now=utc_now())


async def _overdue(stores: Stores, settings: Settings, subject: Subject) -> None:
    async with stores.db.write() as tx:
        await leases.fail_overdue(tx, now=utc_now() + FAR)


async def _stop(stores: Stores, settings: Settings, subject: Subject) -> None:
    async with stores.db.write() as tx:
        await leases.end_cancelled(tx, now=utc_now())


async def _expire(stores: Stores, settings: Settings, subject: Subject) -> None:
    await ledger.expire(stores.db, now=utc_now())


STEPS: Mapping[str, Step] = {
    "create": _ask,
    "dispatch": _ask,
    "resume": _ask,
    "refuse": _ask_in_vain,
    "cancel": _ask,
    "complete": _complete,
    "give up": _give_up,
    "fail": _fail,
    "overdue": _overdue,
    "stop": _stop,
    "expire": _expire,
}
