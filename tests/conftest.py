"""What every test may use: where the real scenes are, and which engines are here. Nothing domain-specific."""

import os
import shutil
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
