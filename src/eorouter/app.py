"""Where everything meets: settings, stores, operations, surface, and the processes of one installation.

settings ─► stores ─► Registry.of(eorouter.operations.*) ─► surface.http ─► uvicorn
                                                                └─ supervisor ─► dispatcher (child) ─► workers
"""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import msgspec

from eorouter.operation import Registry
from eorouter.settings import PREFIX, Settings

if TYPE_CHECKING:
    from litestar import Litestar

    from eorouter.storage import Stores

GRACE_S = 10
"""Longest that a stopping server waits for answers under way."""

CONTRACTS = "tests/contract"
REFERENCE = "docs/reference"


class BadStart(Exception):
    """The service cannot start; the message says why and how to mend it."""


@cache
def registry() -> Registry:
    """Every operation of this build."""
    package = import_module("eorouter.operations")
    names = sorted(found.name for found in iter_modules(package.__path__))
    return Registry.of([import_module(f"{package.__name__}.{name}") for name in names])


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of this build."""
    from eorouter.surface import openapi

    return openapi.document(registry())


def derived() -> dict[str, str]:
    """Everything that is checked in and made from the code, by path below the repository."""
    from eorouter.surface import docs

    every = registry()
    pages = {f"{REFERENCE}/{path}": text for path, text in docs.reference_pages(every).items()}
    contract = msgspec.json.format(msgspec.json.encode(document()), indent=1).decode() + "\n"
    return {
        f"{CONTRACTS}/openapi.json": contract,
        f"{CONTRACTS}/operations.md": docs.operations_table(every),
        **pages,
    }


def open_stores(settings: Settings) -> "Stores":
    """Database and objects of an installation.

    Raises:
        BadStart: an address is not one of a database or an object store we can use.
    """
    from obstore.exceptions import BaseError
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    from eorouter.storage import Stores
    from eorouter.storage.database import Database, database_url
    from eorouter.storage.objects import Objects

    try:
        db = Database(database_url(settings.database_url, settings.data_dir))
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadStart(f"{PREFIX}DATABASE_URL is not an address of PostgreSQL: {error}") from error
    try:
        objects = Objects(settings.objects_url, settings.data_dir)
    except (BaseError, ValueError, OSError) as error:
        raise BadStart(f"{PREFIX}OBJECTS_URL cannot be used: {error}") from error
    return Stores(db=db, objects=objects)


async def migrate(settings: Settings) -> str:
    """Bring the schema to this build's version; returns that version."""
    from eorouter.storage import migrate as migration

    stores = open_stores(settings)
    try:
        await _reached(migration.upgrade(stores.db))
    except migration.SchemaMismatch as error:
        raise BadStart(str(error)) from error
    finally:
        await stores.db.close()
    return migration.head()


async def allot(settings: Settings, org_id: str, *, weight: float | None, shards_max: int | None) -> None:
    """Set what an organisation may take of the workers."""
    from eorouter.errors import NotFound
    from eorouter.storage import allotments

    await _check_schema(settings)
    stores = open_stores(settings)
    try:
        async with stores.db.write() as tx:
            await allotments.allot(tx, org_id, weight=weight, shards_max=shards_max)
    except NotFound as error:
        raise BadStart(error.message) from error
    finally:
        await stores.db.close()


async def operators(settings: Settings, *, add: str | None = None, remove: str | None = None) -> list[tuple[str, str]]:
    """Make one user an operator and another one no longer; returns address and name of all who are one then."""
    from eorouter import identity
    from eorouter.errors import InvalidInput, NotFound
    from eorouter.storage import operators as marks

    await _check_schema(settings)
    stores = open_stores(settings)
    try:
        async with stores.db.write() as tx:
            for email, is_operator in ((add, True), (remove, False)):
                if email is not None:
                    await marks.mark(tx, identity.normalise_email(email), is_operator=is_operator)
            return [(row.email, row.name) for row in await marks.listed(tx)]
    except (NotFound, InvalidInput) as error:
        raise BadStart(error.message) from error
    finally:
        await stores.db.close()


async def verify_ledger(settings: Settings) -> list[str]:
    """Everything in the ledger that does not agree, reservations of ended jobs among it."""
    from eorouter.commerce import ledger
    from eorouter.jobs import charges

    await _check_schema(settings)
    stores = open_stores(settings)
    try:
        async with stores.db.read(sees_one_moment=True) as tx:
            return await ledger.verify(tx, ended=await charges.forgotten(tx))
    finally:
        await stores.db.close()


async def grant_credits(
    settings: Settings, org_id: str, cents: int, *, memo: str, transfer_id: str, is_test: bool
) -> int:
    """Give an organisation credits; returns what it has then.

    Raises:
        ValueError: the amount or the id cannot be used.
    """
    from eorouter.commerce import ledger
    from eorouter.errors import NotFound
    from eorouter.storage import allotments
    from eorouter.types import Mode, utc_now

    await _check_schema(settings)
    stores = open_stores(settings)
    mode, now = Mode.TEST if is_test else Mode.LIVE, utc_now()
    try:
        async with stores.db.write() as tx:
            await allotments.check(tx, org_id)
            await ledger.open_accounts(tx, stores.db, org_id, mode, now=now, welcome=settings.welcome_cents)
            await ledger.grant(tx, org_id, mode, transfer_id, cents, memo=memo, now=now)
            found = await ledger.balance(tx, org_id, mode)
    except NotFound as error:
        raise BadStart(error.message) from error
    finally:
        await stores.db.close()
    return found.available if found else 0


async def _check_schema(settings: Settings) -> None:
    from eorouter.storage import migrate as migration

    stores = open_stores(settings)
    try:
        await _reached(migration.check(stores.db))
    except migration.SchemaMismatch as error:
        raise BadStart(str(error)) from error
    finally:
        await stores.db.close()


async def _reached(step: Any) -> None:
    """Await a step of the database; one that does not answer is said in a sentence."""
    from sqlalchemy.exc import DBAPIError

    try:
        await step
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise BadStart(f"The database does not answer: {reason}. Check {PREFIX}DATABASE_URL.") from error


def create(settings: Settings) -> "Litestar":
    """The API of an installation; its lifespan refuses a schema of another version and closes what was opened."""
    from litestar import Litestar

    from eorouter import identity
    from eorouter.jobs.feed import feed_of
    from eorouter.storage import migrate as migration
    from eorouter.surface import http, pages
    from eorouter.surface.operator.console import Console
    from eorouter_compute import tracing

    stores = open_stores(settings)
    console = Console(stores, settings, registry(), schema_check=migration.check)

    @asynccontextmanager
    async def opened(_: Litestar) -> AsyncIterator[None]:
        tracing.configure("eorouter-api", settings.otlp_endpoint)
        try:
            await migration.check(stores.db)
            yield
        finally:
            tracing.shut_down()
            await console.close()
            await stores.db.close()

    api = http.create(
        registry(),
        stores,
        settings,
        authenticate=identity.authenticate,
        schema_check=migration.check,
        pages=[*pages.handlers(registry(), document()), *console.handlers()],
        lifespan=[opened],
    )
    api.state.let_go = feed_of(stores.db).let_go
    return api


def bind(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything else is started.

    Raises:
        BadStart: the port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends without delay only where the protocol is named: an answer's body waited 40 ms behind its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise BadStart(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. "
            f"Choose another port with --port or {PREFIX}PORT (0 takes a free one)."
        ) from error
    return listener


async def serve(
    settings: Settings, *, has_cluster: bool, migrates_postgresql: bool, announce: Callable[[Settings], None]
) -> None:
    """Run the API, and beside it the embedded dispatcher, until a signal says to stop; then stop both in order.

    Args:
        settings: prepared ones.
        has_cluster: jobs run here; otherwise dispatchers elsewhere take them.
        migrates_postgresql: bring a PostgreSQL schema up to date; an embedded SQLite always is.
        announce: called with the addresses as they turned out, once requests are answered.

    Raises:
        BadStart: port, database or schema do not let it start.
    """
    listener = bind(settings)
    with listener:
        settings = _addressed(settings, listener)
        if not settings.database_url or migrates_postgresql:
            await migrate(settings)
        else:
            await _check_schema(settings)
        api = create(settings)
        server = _server(api, settings, on_started=lambda: announce(settings), on_stopping=api.state.let_go)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        async with _dispatching(settings, server) if has_cluster else nullcontext():
            await server.serve(sockets=[listener])


@asynccontextmanager
async def _dispatching(settings: Settings, server: Any) -> AsyncIterator[None]:
    """A dispatcher beside the server. It comes up while requests are answered already: jobs wait in the queue."""
    from eorouter.jobs.supervisor import Supervisor

    supervisor = Supervisor(settings)
    starting = asyncio.create_task(supervisor.start())
    starting.add_done_callback(lambda task: setattr(server, "should_exit", server.should_exit or _failed(task)))
    try:
        yield
        if _failed(starting):
            raise BadStart(f"No worker came up: {starting.exception()}") from starting.exception()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await supervisor.stop()


def _failed(task: "asyncio.Task[None]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _addressed(settings: Settings, listener: socket.socket) -> Settings:
    """The settings with the port that was really taken."""
    return msgspec.structs.replace(settings, port=listener.getsockname()[1])


def _server(api: Any, settings: Settings, *, on_started: Callable[[], None], on_stopping: Callable[[], None]) -> Any:
    """uvicorn, which restores the signal handlers of before and raises again what it caught: those are ours.

    `on_stopping` is called before it waits for the requests that are under way.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            on_stopping()
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            api,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def prepared(environment: Any = None, **overrides: Any) -> Settings:
    """Settings read, the data folder made, logs set up: how every command starts."""
    from eorouter import logs
    from eorouter.settings import load, prepare

    settings = prepare(load(environment, **overrides))
    logs.configure(settings)
    return settings


def run(coroutine: Any) -> Any:
    """Run a command's coroutine."""
    return asyncio.run(coroutine)


def write_derived(root: Path) -> list[str]:
    """Write what is derived below a repository, remove pages that are no more; returns the paths that changed."""
    changed: list[str] = []
    every = derived()
    for path in differing(root, every):
        changed.append(path)
        target = root / path
        if path in every:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(every[path])
        else:
            target.unlink()
    return changed


def differing(root: Path, every: dict[str, str]) -> list[str]:
    """Paths whose file is not what is derived, absent, or left over."""
    stale = [path for path, text in every.items() if not (root / path).is_file() or (root / path).read_text() != text]
    kept = {root / path for path in every}
    left = [page.relative_to(root).as_posix() for page in (root / REFERENCE).glob("*.md") if page not in kept]
    return sorted([*stale, *left])
