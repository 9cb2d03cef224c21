"""One frozen struct, read once from the environment; the reference page of the settings is generated from it.

Every field is an environment variable `EOROUTER_<FIELD IN UPPER CASE>`. A bad value stops the start with the variable's
name, the form it must have, and an example.
"""

import contextlib
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

PREFIX = "EOROUTER_"
NOT_SETTINGS = frozenset({"EOROUTER_URL", "EOROUTER_API_KEY", "EOROUTER_TEST_DATA"})
"""Variables of the same prefix that clients and tests read; a shell that has them can still start the service."""


_SCHEDULER = re.compile(r"(tls://[^/@\s]+|tcp://(127(\.\d{1,3}){3}|localhost|\[::1\])):\d{1,5}")

WITHHELD = ("secret", "database_url", "metrics_token")
"""Settings that workers and schedulers never read."""

WORKER_VARIABLES = (
    # the process and its language
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR", "TERM",
    "TMPDIR", "TEMP", "TMP", "XDG_*", "LD_*", "DYLD_*", "__CF*", "PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "COVERAGE_*",
    # libraries
    "GDAL_*", "CPL_*", "VSI*", "OGR_*", "GTIFF_*", "PROJ_*", "NUMBA_*", "OMP_*", "OPENBLAS_*", "MKL_*", "NUMEXPR_*",
    "MALLOC_*", "DASK_*", "OTEL_*", "EOR_FAULTS",
    # the object store and the way to it
    "AWS_*", "GS_*", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT*", "GOOGLE_BUCKET*",
    "GOOGLE_CLOUD_PROJECT", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_*", "AZURE_CLIENT_*", "AZURE_TENANT_ID",
    "AZURE_AUTHORITY*", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CONTAINER_NAME", "AZURE_ENDPOINT", "AZURE_MSI_*",
    "IDENTITY_*", "MSI_*", "SSL_CERT_*", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip
"""Variables of the environment that workers get, besides those that `worker_environment` names; `*` is any ending."""


class BadSetting(Exception):
    """Settings that cannot be used; the message has a line per fault."""


def _field(description: str, example: str, **limits: Any) -> Meta:
    return Meta(description=description, examples=[example], **limits)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator can set."""

    data_dir: Annotated[
        Path, _field("Folder for the embedded database, objects and secrets; made when absent.", "/var/lib/eorouter")
    ] = Path("eorouter-data")
    database_url: Annotated[
        str,
        _field(
            "PostgreSQL address; empty keeps SQLite in the data folder.", "postgresql://user:pw@db.example/eorouter"
        ),
    ] = ""
    objects_url: Annotated[
        str, _field("Object store (s3://, gs://, az://); empty keeps objects in the data folder.", "s3://bucket/prefix")
    ] = ""
    host: Annotated[str, _field("Address the API listens on.", "0.0.0.0")] = "127.0.0.1"  # noqa: S104
    port: Annotated[int, _field("Port the API listens on; 0 takes a free one.", "8000", ge=0, le=65535)] = 8000
    public_url: Annotated[
        str,
        _field("Address under which clients reach the API; empty derives it from host and port.", "https://eo.example"),
    ] = ""
    secret: Annotated[
        str,
        _field(
            "Key for sessions, cursors, signed addresses; 32+ characters; empty keeps one in the data folder.",
            "…",
        ),
    ] = ""
    worker_count: Annotated[
        int, _field("Worker processes that a dispatcher brings; 0 means one per core.", "4", ge=0, le=256)
    ] = 0
    worker_threads: Annotated[int, _field("Threads per worker process.", "1", ge=1, le=64)] = 1
    worker_memory_mb: Annotated[int, _field("Memory limit of one worker, MiB.", "4096", ge=256)] = 4096
    dashboard_port: Annotated[
        int, _field("Port of the Dask dashboard, on loopback only; 0 takes a free one.", "8787", ge=0, le=65535)
    ] = 0
    scheduler_address: Annotated[
        str,
        _field(
            "Scheduler elsewhere that dispatchers and workers connect to; empty: a dispatcher brings its own workers.",
            "tls://scheduler.lan:8786",
        ),
    ] = ""
    tls_ca: Annotated[
        Path, _field("Certificate of the authority that signed every part's certificate.", "/etc/eorouter/tls/ca.crt")
    ] = Path()
    tls_certificate: Annotated[
        Path, _field("Certificate of this part: scheduler, worker or dispatcher.", "/etc/eorouter/tls/tls.crt")
    ] = Path()
    tls_key: Annotated[Path, _field("Private key of that certificate.", "/etc/eorouter/tls/tls.key")] = Path()
    worker_environment: Annotated[
        str,
        _field(
            "Further variables of the environment that workers get, separated by commas. Besides these they get what "
            "Python, GDAL, Dask and the object store read; no setting of ours, nothing of the database, no other key.",
            "MODEL_FOLDER,LICENCE_FILE",
            pattern=r"^([A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*)?$",
        ),
    ] = ""
    worker_drain_s: Annotated[
        float, _field("How long a worker that is told to stop may go on with what it runs, seconds.", "120", ge=0)
    ] = 120.0
    upload_bytes_max: Annotated[int, _field("Largest upload, bytes.", "10737418240", ge=1)] = 10 << 30
    quota_bytes: Annotated[int, _field("Storage of a new organisation, bytes.", "107374182400", ge=0)] = 100 << 30
    welcome_cents: Annotated[
        int, _field("Credits of a new organisation, in cents, in the live and in the test ledger.", "100000", ge=0)
    ] = 100_000
    raster_pixels_max: Annotated[int, _field("Largest raster taken in, pixels times bands.", "20000000000", ge=1)] = (
        20_000_000_000
    )
    body_bytes_max: Annotated[int, _field("Largest JSON body, bytes.", "33554432", ge=1024)] = 32 << 20
    ingest_wait_s: Annotated[
        float,
        _field("Longest that completing an upload waits for its ingest before it answers with the job.", "30", ge=0),
    ] = 30.0
    waits_max: Annotated[
        int,
        _field(
            "Requests of one caller that may wait for jobs, or follow them, at a time per API process.", "100", ge=1
        ),
    ] = 100
    access_token_s: Annotated[int, _field("Life of an access token, seconds.", "900", ge=30)] = 900
    refresh_token_days: Annotated[int, _field("Life of a session without use, days.", "30", ge=1)] = 30
    bcrypt_cost: Annotated[int, _field("Cost of the stored verifier of API keys.", "12", ge=4, le=16)] = 12
    remote_hosts: Annotated[
        str,
        _field(
            "Private hosts from which assets may be fetched, host:port separated by commas; public ones always may.",
            "minio.lan:9000",
        ),
    ] = ""
    trusted_proxies: Annotated[
        str,
        _field(
            "Addresses and networks of proxies whose X-Forwarded-For and -Proto are believed, separated by commas.",
            "10.0.0.0/8",
        ),
    ] = "127.0.0.1,::1"
    metrics_token: Annotated[
        str,
        _field("Who asks for /metrics sends it as a bearer token; empty answers callers on loopback only.", "…"),
    ] = ""
    metrics_address: Annotated[
        str,
        _field(
            "Where a dispatcher, or a worker of its own, shows metrics, host:port; port 0 takes a free one. Empty: a "
            "dispatcher shows none, a worker on loopback.",
            "0.0.0.0:9464",
            pattern=r"^(|.+:[0-9]{1,5})$",
        ),
    ] = "127.0.0.1:0"
    otlp_endpoint: Annotated[
        str,
        _field("Where traces are sent by OTLP over HTTP; empty sends none.", "http://collector.lan:4318"),
    ] = ""
    log_format: Annotated[Literal["text", "json"], _field("How logs are written.", "json")] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _field("Least level written.", "info")] = "info"


def load(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings; `overrides` (from the command line) win where they are not None.

    Raises:
        BadSetting: unknown variable, or a value of the wrong form; all faults at once.
    """
    source = os.environ if environment is None else environment
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for variable, text in source.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in fields:
            faults.append(f"{variable} is not a setting. `eorouter settings` lists them.")
            continue
        try:
            values[name] = _convert(text, fields[name].type)
        except (msgspec.ValidationError, ValueError) as error:
            faults.append(f"{variable}={text!r}: {error}. {describe(name)}")
    if faults:
        raise BadSetting("\n".join(faults))
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = msgspec.convert(values, Settings, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        raise BadSetting(f"{error}. `eorouter settings` lists what each setting takes.") from error
    if settings.secret and len(settings.secret) < 32:
        raise BadSetting(f"EOROUTER_SECRET has {len(settings.secret)} characters; use 32 or more random ones.")
    for network in filter(None, settings.trusted_proxies.split(",")):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise BadSetting(f"{PREFIX}TRUSTED_PROXIES: {error}. {describe('trusted_proxies')}") from error
    if settings.scheduler_address and not _SCHEDULER.fullmatch(settings.scheduler_address):
        raise BadSetting(
            f"{PREFIX}SCHEDULER_ADDRESS={settings.scheduler_address!r} is not tls://host:port. Without encryption "
            "(tcp://) it may only be a loopback address: whoever reaches a scheduler can run code on its workers. "
            + describe("scheduler_address")
        )
    return settings


def _convert(text: str, kind: Any) -> Any:
    base = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if base is Path:
        return Path(text).expanduser()
    return msgspec.convert(text, kind, strict=False)


def describe(name: str) -> str:
    """One sentence for the setting: what it is and an example."""
    field = next(f for f in msgspec.structs.fields(Settings) if f.name == name)
    meta: Meta = field.type.__metadata__[0]
    return f"{meta.description} Example: {PREFIX}{name.upper()}={(meta.examples or [''])[0]}"


def prepare(settings: Settings) -> Settings:
    """Make the data folder and fill in the secret kept there, so that every process of an installation shares it.

    Raises:
        BadSetting: the folder cannot be made or written to.
    """
    folder = settings.data_dir.absolute()
    secret_file = folder / "secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # its database and objects are nobody else's to read
        if not settings.secret:
            _make_secret(secret_file)
            settings = msgspec.structs.replace(settings, secret=secret_file.read_text().strip())
    except OSError as error:
        raise BadSetting(
            f"The data folder {folder} cannot be used: {error.strerror}. "
            f"Make it writable, or choose another with --data-dir or {PREFIX}DATA_DIR."
        ) from error
    return msgspec.structs.replace(settings, data_dir=folder)


def kept_here(settings: Settings) -> list[str]:
    """What loaded settings leave on this machine, where a process on another does not find it; a sentence each."""
    said = {
        "database_url": "the database is SQLite in the data folder",
        "objects_url": "objects are files in the data folder",
        "secret": "the secret is made for the data folder",
    }
    return [f"{PREFIX}{name.upper()} is not set: {fact}." for name, fact in said.items() if not getattr(settings, name)]


def for_workers(environment: Mapping[str, str], also: str) -> dict[str, str]:
    """What of an environment workers get, who open strangers' files: what they need, and of settings nothing.

    `also` names further variables as `Settings.worker_environment` does.
    """
    wanted = [*WORKER_VARIABLES, *filter(None, also.split(","))]
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(PREFIX) and any(fnmatchcase(name, each) for each in wanted)
    }


def withdraw(also: str) -> None:
    """Leave nothing in this process's environment but what its workers, who inherit it, may know, see `for_workers`."""
    kept = for_workers(os.environ, also)
    for variable in os.environ.keys() - kept.keys():
        del os.environ[variable]


def _make_secret(path: Path) -> None:
    """Write a fresh secret unless there is one; linked into place whole, so that no other process reads half of it."""
    if path.exists():
        return
    temporary = path.with_name(f".secret.{secrets.token_hex(4)}")
    temporary.touch(mode=0o600)
    temporary.write_text(secrets.token_urlsafe(48))
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(temporary)
    temporary.unlink()
