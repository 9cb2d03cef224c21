"""Two builds that make other bytes have other names."""

import re
import subprocess
import sys

from eorouter_compute.build import build


def test_build_names_release_and_digest():
    assert re.fullmatch(r"\d[\w.]*\+[0-9a-f]{12}", build())


def test_build_is_the_same_in_another_process():
    script = "from eorouter_compute.build import build; print(build())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == build()


def test_build_changes_with_the_code_of_compute(tmp_path, monkeypatch):
    for package in ("eorouter_compute", "eorouter_kernels"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    monkeypatch.setattr("eorouter_compute.build.find_spec", lambda name: _Spec([str(tmp_path / name)]))
    first = build.__wrapped__()
    (tmp_path / "eorouter_kernels" / "sums.py").write_text("x = 1\n")
    assert build.__wrapped__() != first


class _Spec:
    def __init__(self, places):
        self.submodule_search_locations = places
