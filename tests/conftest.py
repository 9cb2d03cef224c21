"""What every test may use: where the real scenes are, and which engines are here. Nothing domain-specific."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest
import s3 as equipment
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


@pytest.fixture(scope="session")
def _s3_address() -> Iterator[str]:
    with equipment.server() as address:
        yield address


@pytest.fixture
def s3(_s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[equipment.Bucket]:
    """The bucket `s3://rasters`, for this process and those it starts."""
    bucket = equipment.Bucket(_s3_address)
    for name, value in equipment.variables(bucket.url).items():
        monkeypatch.setenv(name, value)
    httpx2.put(f"{bucket.url}/rasters", timeout=60)
    try:
        yield bucket
    finally:
        bucket.close()
