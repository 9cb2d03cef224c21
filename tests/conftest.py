"""What every test may use: where the real scenes are. Nothing domain-specific."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real scenes; tests that need it are skipped, and say so, where it is absent."""
    folder = Path(os.environ.get("EOROUTER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real scenes are absent: set EOROUTER_TEST_DATA (looked in {folder})")
    return folder
