"""The pages that say what a new operation and a new method cost are carried out, in a copy of the house."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python file=(?P<path>\S+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of everything that an added file needs around it."""
    for part in (
        "src",
        "compute",
        "kernels",
        "pyproject.toml",
        "tests/conftest.py",
        "tests/equipment",
        "tests/eorouter/conftest.py",
    ):
        source, target = ROOT / part, tmp_path / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    return tmp_path


def run(house: Path, *arguments: str) -> str:
    """Run Python in the copy; its output, when it ends well."""
    roots = os.pathsep.join(str(house / root) for root in ("src", "compute", "kernels"))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=house, env=os.environ | {"PYTHONPATH": roots}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("page", ["new-operation", "new-method"])
def test_worked_example_as_written_passes_its_own_test_and_the_linter(house: Path, page: str) -> None:
    blocks = {m["path"]: m["text"] for m in BLOCK.finditer((ROOT / "docs" / f"{page}.md").read_text())}
    assert len(blocks) == 2
    for path, text in blocks.items():
        (house / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (house / path).exists()
        (house / path).write_text(text)
    tests = next(path for path in blocks if path.startswith("tests/"))
    assert "passed" in run(house, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
    run(house, "-m", "ruff", "check", "--no-cache", *blocks)


def test_added_operation_is_served_documented_and_offered_by_the_command_line(house: Path) -> None:
    block = next(BLOCK.finditer((ROOT / "docs/new-operation.md").read_text()))
    (house / block["path"]).write_text(block["text"])
    listing = run(house, "-m", "eorouter", "operations")
    assert "weather.get" in listing
    document = run(house, "-c", "from eorouter.app import document; print(sorted(document()['paths']))")
    assert "/v1/op/weather.get" in document
    assert "/v1/items/{item_id}/weather" in document


def test_added_method_appears_in_the_schema_of_analytics_execute(house: Path) -> None:
    block = next(BLOCK.finditer((ROOT / "docs/new-method.md").read_text()))
    (house / block["path"]).write_text(block["text"])
    document = run(house, "-c", "from eorouter.app import document; print(document()['components']['schemas'].keys())")
    assert "ExceedanceParams" in document
