"""Which build this process runs: the release, and a digest of the code that decides what bytes a job makes.

Parts of one job must not come from two builds, so whoever plans, sends and executes compares this text first.
"""

import hashlib
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("eorouter_compute", "eorouter_kernels")


@cache
def build() -> str:
    """Release and digest, such as `0.4.0+1f0c9a77b2d4`."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            root = Path(folder)
            for path in sorted(root.rglob("*.py"), key=lambda found: found.relative_to(root).as_posix()):
                digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return f"{version('eorouter')}+{digest.hexdigest()[:12]}"
