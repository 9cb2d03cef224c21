"""What others build on is checked in, so that every change of it is seen in review.

`make derive` writes these files anew.
"""

from pathlib import Path

import pytest

from eorouter import app

ROOT = Path(__file__).resolve().parents[2]
HINT = "run `make derive` (eorouter derive --write) and look at the difference"


def test_everything_derived_from_the_code_is_as_checked_in():
    assert app.differing(ROOT, app.derived()) == [], HINT


def test_deriving_twice_gives_the_same():
    assert app.derived() == app.derived()


def test_write_makes_what_was_missing_mends_what_differs_and_removes_what_is_left_over(tmp_path):
    every = app.derived()
    assert app.write_derived(tmp_path) == sorted(every)
    assert app.differing(tmp_path, every) == []
    changed, gone, left = "tests/contract/openapi.json", "docs/reference/errors.md", "docs/reference/old.md"
    (tmp_path / changed).write_text("{}")
    (tmp_path / gone).unlink()
    (tmp_path / left).write_text("# old")
    assert app.differing(tmp_path, every) == sorted([changed, gone, left])
    assert app.write_derived(tmp_path) == sorted([changed, gone, left])
    assert app.write_derived(tmp_path) == []


@pytest.mark.parametrize("name", ["openapi.json", "operations.md"])
def test_snapshot_ends_in_a_newline_and_has_no_path_of_a_machine(name):
    text = app.derived()[f"tests/contract/{name}"]
    assert text.endswith("\n")
    assert str(ROOT) not in text
