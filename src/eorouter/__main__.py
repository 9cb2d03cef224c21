"""The `eorouter` command."""

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from eorouter.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8000"


class Refused(Exception):
    """A command cannot be done; the message is all the person sees. Exit code 2."""


def serve(
    *,
    host: str | None = None,
    port: int | None = None,
    data_dir: Path | None = None,
    workers: int | None = None,
    migrate: bool = False,
) -> None:
    """Run the whole service here: the API, and beside it the workers that do its jobs.

    Without any setting this keeps everything (SQLite, objects, secrets) in the folder `eorouter-data` and listens on
    http://127.0.0.1:8000. Ctrl-C or SIGTERM stops it cleanly; jobs under way are taken up again at the next start.

    Args:
        host: Address to listen on; 0.0.0.0 for all of this machine.
        port: Port to listen on; 0 takes a free one.
        data_dir: Folder for everything that is kept; made when absent.
        workers: Worker processes; 0 means one per core.
        migrate: Bring the schema of a PostgreSQL database up to date first. An embedded SQLite always is.
    """
    from eorouter import app

    settings = app.prepared(host=host, port=port, data_dir=data_dir, worker_count=workers)
    app.run(app.serve(settings, has_cluster=True, migrates_postgresql=migrate, announce=_announce))


def api(*, host: str | None = None, port: int | None = None, data_dir: Path | None = None) -> None:
    """Run the API alone. It keeps nothing: run as many as you like over one PostgreSQL and one object store.

    Give all of them the same EOROUTER_DATABASE_URL, EOROUTER_OBJECTS_URL and EOROUTER_SECRET; what is not set is kept
    in the data folder, and said at the start. `eorouter migrate` brings the schema up to date, `eorouter dispatcher`
    runs the jobs.

    Args:
        host: Address to listen on; 0.0.0.0 for all of this machine.
        port: Port to listen on; 0 takes a free one.
        data_dir: Folder for what is not kept elsewhere.
    """
    from eorouter import app
    from eorouter.settings import kept_here, load

    for fact in kept_here(load(data_dir=data_dir)):
        print(f"eorouter: {fact} Replicas on other machines do not share it.", file=sys.stderr)  # noqa: T201
    settings = app.prepared(host=host, port=port, data_dir=data_dir)
    app.run(app.serve(settings, has_cluster=False, migrates_postgresql=False, announce=_announce))


def _announce(settings: "Settings") -> None:
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104
    url = settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    kept = "PostgreSQL" if settings.database_url else settings.data_dir
    _say(f"eorouter listening on {url}")
    _say(f"Documents at {url}/docs, data in {kept}. Ctrl-C stops it.")


def dispatcher(
    *, scheduler_address: str | None = None, data_dir: Path | None = None, workers: int | None = None
) -> None:
    """Run jobs without the API: take them from the database, hand them to workers, publish what they make.

    One runs inside `eorouter serve`. Run more of them, on any machine that reaches the same database and object store.
    Without a scheduler's address each brings its own workers; with one they share those that `eorouter worker` brings.

    Args:
        scheduler_address: Scheduler to hand shards to, such as tls://scheduler.lan:8786.
        data_dir: Folder of an embedded database and objects; the one of `eorouter serve`.
        workers: Worker processes of its own; 0 means one per core.
    """
    from eorouter import app
    from eorouter.jobs import dispatcher as jobs

    settings = app.prepared(scheduler_address=scheduler_address, data_dir=data_dir, worker_count=workers)
    jobs.run(settings, supervised=False)


def scheduler(*, scheduler_address: str | None = None) -> None:
    """Run the scheduler that dispatchers and workers on several machines meet at.

    It needs the certificates (EOROUTER_TLS_CA, EOROUTER_TLS_CERTIFICATE, EOROUTER_TLS_KEY) and nothing else, and takes
    the secret and the database's address out of its environment. Dask's pages are on this machine's loopback.

    Args:
        scheduler_address: Where to listen: an IP address of this machine, or a name for all of them;
            tls://0.0.0.0:8786 by default.
    """
    from eorouter.jobs import processes

    settings = processes.part_settings(scheduler_address=scheduler_address)
    processes.run_scheduler(settings, lambda address: _say(f"eorouter scheduler listening on {address}"))


def worker(*, scheduler_address: str | None = None, data_dir: Path | None = None) -> None:
    """Run one worker for a scheduler; start as many as there are cores to use.

    It needs the certificates and the object store's own variables (AWS_… for S3), and takes the secret and the
    database's address out of its environment. SIGTERM lets it finish what it runs, for up to EOROUTER_WORKER_DRAIN_S.
    When the scheduler is gone it waits for it to come back.

    Args:
        scheduler_address: Scheduler to work for, such as tls://scheduler.lan:8786.
        data_dir: Folder for scratch files; workers of one machine share it.
    """
    from eorouter.jobs import processes

    processes.run_worker(processes.part_settings(scheduler_address=scheduler_address, data_dir=data_dir))


def certificates(folder: Path, /, *, host: tuple[str, ...] = ()) -> None:
    """Make the certificates by which scheduler, workers and dispatchers know each other: ca.crt, tls.crt and tls.key.

    Copy the three files to every machine, and set EOROUTER_TLS_CA, EOROUTER_TLS_CERTIFICATE and EOROUTER_TLS_KEY to
    them. They hold for ten years. Whoever has tls.key can run code on the workers.

    Args:
        folder: Where to write; made when absent. Files that exist are kept, and nothing is written.
        host: Name or address of the scheduler's machine, for those who look at the certificate; may be repeated.
    """
    from eorouter.jobs import certificates as making

    for path in making.make(folder, host):
        _say(f"wrote {path}")


def migrate(*, data_dir: Path | None = None) -> None:
    """Bring the database's schema to the version of this build. Does nothing where it is there already.

    Args:
        data_dir: Folder of an embedded database.
    """
    from eorouter import app

    reached = app.run(app.migrate(app.prepared(data_dir=data_dir)))
    _say(f"The schema is version {reached}.")


def allot(
    organisation_id: str, *, weight: float | None = None, shards_max: int | None = None, data_dir: Path | None = None
) -> None:
    """Say what part of the workers an organisation may take. Holds at once, for jobs under way too.

    Args:
        organisation_id: Whose, such as org_….
        weight: Its share beside others' who wait: one of weight 2 gets twice the time of one of weight 1. Left as it is
            when absent.
        shards_max: Most shards it may have under way at a time; without it there is no limit.
        data_dir: Folder of an embedded database.
    """
    from eorouter import app

    if (weight is not None and not 0.01 <= weight <= 100) or (shards_max is not None and shards_max < 1):
        raise Refused("A weight lies between 0.01 and 100, and a limit of shards is 1 or more.")
    app.run(app.allot(app.prepared(data_dir=data_dir), organisation_id, weight=weight, shards_max=shards_max))
    limit = "no limit" if shards_max is None else f"at most {shards_max}"
    _say(f"{organisation_id}: weight {'as it was' if weight is None else weight}, shards under way: {limit}.")


def op(
    operation_id: str | None = None,
    /,
    *,
    json: str = "{}",
    url: str | None = None,
    key: str | None = None,
    idempotency_key: str | None = None,
) -> int:
    """Call an operation of a running service and print its answer; without an id, list the operations.

    For example: eorouter op items.search --json '{"limit": 3}'

    Args:
        operation_id: What to call, as `eorouter operations` lists it.
        json: The request; `-` reads it from standard input.
        url: Address of the service; by default EOROUTER_URL, else http://127.0.0.1:8000.
        key: API key or access token; by default EOROUTER_API_KEY.
        idempotency_key: For operations that spend: repeating the call with the same key spends once.
            A fresh one by default.
    """
    from eorouter import app
    from eorouter.surface.faults import did_you_mean

    if operation_id is None:
        list_operations()
        return 0
    found = app.registry().get(operation_id)
    if found is None:
        hint = did_you_mean(operation_id, [each.id for each in app.registry()])
        raise Refused(f"There is no operation {operation_id!r}.{hint} `eorouter operations` lists them.")
    if found.receives_bytes:
        raise Refused(f"{found.id} takes raw bytes; send them with {found.routes[0].method} {found.routes[0].path}.")
    return _call(
        found.id,
        sys.stdin.read() if json == "-" else json,
        url=(url or os.environ.get("EOROUTER_URL") or DEFAULT_URL).rstrip("/"),
        key=key or os.environ.get("EOROUTER_API_KEY"),
        idempotency_key=idempotency_key or (str(uuid.uuid4()) if found.takes_spend else None),
    )


def _call(operation_id: str, body: str, *, url: str, key: str | None, idempotency_key: str | None) -> int:
    import httpx2
    import msgspec

    headers = {"content-type": "application/json"}
    headers |= {"authorization": f"Bearer {key}"} if key else {}
    headers |= {"idempotency-key": idempotency_key} if idempotency_key else {}
    try:
        answer = httpx2.post(f"{url}/v1/op/{operation_id}", content=body.encode(), headers=headers, timeout=300)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Refused(
            f"No service answers at {url}: {error}. Start one with `eorouter serve`, or give --url."
        ) from error
    kind = answer.headers.get("content-type", "")
    if answer.is_success and not kind.endswith("json"):
        sys.stdout.buffer.write(answer.content)
        return 0
    if kind.endswith("json"):
        text = msgspec.json.format(answer.content, indent=2).decode()
    else:
        text = f"{answer.status_code} {answer.text[:500]}"
    print(text, file=sys.stdout if answer.is_success else sys.stderr)
    return 0 if answer.is_success else 1


def list_operations() -> None:
    """List every operation: its id, what it can do, the scope it needs, and what it is for."""
    from eorouter import app

    _table(("operation", "tier", "scope", ""), [(op.id, op.tier.value, op.scope, op.summary) for op in app.registry()])


def list_settings() -> None:
    """List every setting: its environment variable, its default, and what it is for."""
    from eorouter.surface.docs import setting_rows

    _table(("variable", "default", ""), [(row.variable, row.default, row.description) for row in setting_rows()])


def list_methods() -> None:
    """List the installed compute methods, those of third-party packages included."""
    from eorouter_compute.method import methods

    _table(
        ("method", "makes", ""),
        [(each.id, each.makes.value, each.title) for each in methods().values() if not each.is_internal],
    )


def derive(*, write: bool = False, root: Path | None = None) -> int:
    """Compare everything that is made from the code with what is checked in: the contract and the reference pages.

    Args:
        write: Write what differs.
        root: The repository; by default the one this code lies in.
    """
    from eorouter import app

    root = root or Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise Refused(f"{root} is not the repository of eorouter; name it with --root.")
    paths = app.write_derived(root) if write else app.differing(root, app.derived())
    for path in paths:
        _say(f"{'wrote' if write else 'differs:'} {path}")
    if paths and not write:
        _say("Run `eorouter derive --write` and look at the difference.")
    return 1 if paths and not write else 0


def demo(
    *,
    data: Path | None = None,
    out: Path | None = None,
    open: bool = False,  # noqa: A002 - the option is called --open
    keep_serving: bool = False,
    port: int | None = None,
) -> int:
    """See the whole thing work in about a minute: from satellite scenes to a report on how the crops did.

    Starts a service of its own and uses it as your programs would: uploads seven scenes and the outlines of a thousand
    fields, clips the clearest scene, computes NDVI for all of them, and measures every field on every date. Afterwards
    it stops what it started; the maps, the tables and a report to look at stay in a folder.

    Args:
        data: Use your own imagery: a folder with GeoTIFF or JPEG 2000 files and one polygon file.
        out: Where to put the results; `demo-output` by default.
        open: Show the report in the browser when it is ready.
        keep_serving: Only take the scenes in, and keep the service running for you to go on by hand; prints its address
            and an API key.
        port: Port for the service; any free one by default.
    """
    from eorouter.demo import run

    return run.main(data=data, out=out, opens=open, keep_serving=keep_serving, port=port)


def operators(*, add: str | None = None, remove: str | None = None, data_dir: Path | None = None) -> None:
    """List who may see the operator's page, /operator, or change it. Holds at once, for pages that are open too.

    Args:
        add: E-mail address of an account that becomes an operator's.
        remove: E-mail address of an account that is an operator's no longer.
        data_dir: Folder of an embedded database.
    """
    from eorouter import app

    found = app.run(app.operators(app.prepared(data_dir=data_dir), add=add, remove=remove))
    if found:
        _table(("operator", "name"), found)
    else:
        _say("Nobody is an operator. Make an account one with: eorouter operators --add EMAIL")


def verify_ledger(*, data_dir: Path | None = None) -> int:
    """Replay the log of all transfers against the balances; exit code 1 when anything does not agree.

    Args:
        data_dir: Folder of an embedded database.
    """
    from eorouter import app

    faults = app.run(app.verify_ledger(app.prepared(data_dir=data_dir)))
    for fault in faults:
        _say(fault)
    _say(f"{len(faults)} faults." if faults else "The ledger balances.")
    return 1 if faults else 0


def grant_credits(
    org_id: str, cents: int, /, *, memo: str = "Credits", transfer_id: str | None = None, test: bool = False,
    data_dir: Path | None = None,
) -> None:  # fmt: skip
    """Give an organisation credits, in cents; the same transfer id never gives twice.

    For example: eorouter ledger grant org_01hv8e7m3k9q2w4r6t8y0a1b2c 50000 --memo "Invoice 2026-117"

    Args:
        org_id: Who gets them.
        cents: How many; 100 are one credit.
        memo: What its list of transactions says.
        transfer_id: Id of the transfer, say an invoice's number; a fresh one by default.
        test: Into the test ledger.
        data_dir: Folder of an embedded database.
    """
    from eorouter import app

    transfer_id = transfer_id or f"grant_{uuid.uuid4().hex}"
    settings = app.prepared(data_dir=data_dir)
    try:
        left = app.run(app.grant_credits(settings, org_id, cents, memo=memo, transfer_id=transfer_id, is_test=test))
    except ValueError as error:
        raise Refused(str(error)) from error
    _say(f"Transfer {transfer_id}: {org_id} has {left} cents to spend.")


COMMANDS = (
    (serve, "serve"),
    (api, "api"),
    (demo, "demo"),
    (op, "op"),
    (list_operations, "operations"),
    (list_methods, "methods"),
    (list_settings, "settings"),
    (migrate, "migrate"),
    (allot, "allot"),
    (dispatcher, "dispatcher"),
    (scheduler, "scheduler"),
    (worker, "worker"),
    (certificates, "certificates"),
    (derive, "derive"),
    (operators, "operators"),
    (verify_ledger, "ledger verify"),
    (grant_credits, "ledger grant"),
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and exit."""
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    from eorouter.settings import BadSetting

    try:
        application = _application()
        faults: tuple[type[Exception], ...] = (Refused, BadSetting, *_start_faults(arguments))
        try:
            return application(arguments, result_action="return_value", exit_on_error=True) or 0
        except faults as error:
            return _fail(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("eorouter"):
            raise  # a fault of ours, not an extra that was left out
        return _fail(
            f"This command needs the service's own packages ({missing} is not installed). "
            'Install them with: pip install "eorouter[server]"'
        )
    except KeyboardInterrupt:
        return 130


_OPENING = frozenset({"serve", "api", "migrate", "allot", "dispatcher", "demo", "operators", "ledger"})
_PARTS = frozenset({"dispatcher", "scheduler", "worker"})


def _start_faults(arguments: list[str]) -> tuple[type[Exception], ...]:
    """What may go wrong when a service or a part starts; loaded only for the commands that start one."""
    faults: tuple[type[Exception], ...] = ()
    if arguments and arguments[0] in _OPENING:
        from eorouter import app

        faults += (app.BadStart,)
    if arguments and arguments[0] in _PARTS:
        from eorouter.jobs import processes

        faults += processes.FAULTS
    return faults


def _application() -> Any:
    import cyclopts

    application = cyclopts.App(
        name="eorouter",
        help="Earth-observation gateway and raster compute service. Start with `eorouter demo` or `eorouter serve`.",
        version=_version,
        help_format="markdown",
    )
    ledger = cyclopts.App(name="ledger", help="Check the ledger; give credits.", help_format="markdown")
    application.command(ledger)
    for command, name in COMMANDS:
        group, _, own = name.rpartition(" ")
        (ledger if group else application).command(command, name=own)
    return application


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("eorouter")
    except PackageNotFoundError:
        return "not installed, run from its source"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _fail(text: str) -> int:
    print(f"eorouter: {text}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    main()
