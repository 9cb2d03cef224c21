"""What every test may use: where the real scenes are. Nothing domain-specific."""

import os
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
