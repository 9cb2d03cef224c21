"""What every test may use: where the real scenes are, and which engines are here. Nothing domain-specific."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest
from hypothesis import settings

# The same examples on every run and no deadline: two busy cores say nothing about the code.
# `HYPOTHESIS_PROFILE=explore` draws new ones.
settings.register_profile("house", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real scenes; tests that need it are skipped, and say so, where it is absent."""
    folder = Path(os.environ.get("EOROUTER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real scenes are absent: set EOROUTER_TEST_DATA (looked in {folder})")
    return folder


def _postgres_programs() -> Path | None:
    """Folder of initdb and pg_ctl: on the path, or where Debian keeps them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    """Folder of PostgreSQL's own programs; tests that need it are not collected where there is none."""
    folder = _postgres_programs()
    assert folder is not None
    return folder


def _needs_postgres(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    is_parameter = parameters is not None and "postgresql" in parameters.params.values()
    return is_parameter or "postgres_server" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a PostgreSQL where there is none; the summary says so, once."""
    if _postgres_programs() is None:
        left_out = [item for item in items if _needs_postgres(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _needs_postgres(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what this machine could not test."""
    if _postgres_programs() is None:
        terminalreporter.write_line("PostgreSQL is not installed: storage was tested on SQLite only.")


class Store:
    """A bucket on loopback, reached through a proxy that counts what is asked and fails when it is told to."""

    def __init__(self, upstream: str) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.faults: list[int] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                store.asked.append((self.command, self.path, self.headers.get("Range")))
                if store.faults and self.command == "GET" and "list-type" not in self.path:
                    self.reply(store.faults.pop(0), {}, b"<Error><Code>SlowDown</Code></Error>")
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                found = httpx2.request(self.command, upstream + self.path, headers=headers, content=body, timeout=60)
                kept = {
                    name: value for name, value in found.headers.items()
                    if name.lower() not in {"connection", "transfer-encoding", "content-encoding"}
                }  # fmt: skip
                self.reply(found.status_code, kept, found.content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() != "content-length" or self.command == "HEAD":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, name: str, data: bytes) -> str:
        """An object of the bucket; where it is."""
        httpx2.put(f"{self.url}/rasters/{name}", content=data, timeout=60).raise_for_status()
        self.asked.clear()
        return f"s3://rasters/{name}"

    def ranges(self) -> list[str]:
        return [span for method, _, span in self.asked if method == "GET" and span]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    """Address of an S3 server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    try:
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/moto-api/", timeout=5)
                break
            except httpx2.TransportError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail("the S3 server did not start")
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def s3(_moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The bucket `s3://rasters`, for this process and those it starts."""
    store = Store(_moto)
    for name, value in {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx2.put(f"{store.url}/rasters", timeout=60)
    try:
        yield store
    finally:
        store.close()
