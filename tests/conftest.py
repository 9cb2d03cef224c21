"""What every test may use: where the real scenes are, and which engines are here. Nothing domain-specific."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

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


Start = Callable[..., subprocess.Popen[str]]


@contextmanager
def _commands(folder: Path, **everywhere: str) -> Iterator[Start]:
    """`start("worker", log="first", EOROUTER_…="…")` runs `eorouter worker`; all that were started end with the block.

    What they say on standard error is appended to `log` in the folder; standard output is the test's to read.
    """
    started: list[subprocess.Popen[str]] = []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EOROUTER_")}
    clean["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path and "site-packages" not in path)

    def start(*arguments: str, log: str = "log", **environment: str) -> subprocess.Popen[str]:
        with (folder / log).open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "eorouter", *arguments],
                env=clean | everywhere | environment, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
            )  # fmt: skip
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="session")
def commands() -> Callable[..., AbstractContextManager[Start]]:
    """`with commands(folder, AWS_REGION="…") as start:` for tests that run parts of the service as processes."""
    return _commands


@contextmanager
def _s3_server(host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '{host}', '-p', '{port}'])"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert process.poll() is None, "the S3 server ended at once"
            with socket.socket() as probe:
                if probe.connect_ex((host, port)) == 0:
                    break
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
            # GDAL's own names for the same
            "AWS_S3_ENDPOINT": f"{host}:{port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        }  # fmt: skip
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def s3_servers() -> Callable[..., AbstractContextManager[dict[str, str]]]:
    """`with s3_servers() as variables:` an S3 server in a process of its own, and the environment that finds it."""
    return _s3_server


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
