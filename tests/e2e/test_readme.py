"""Every block of the README is carried out, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.report import END, START

from eorouter_compute.testing import asymmetric, write_raster

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The one block of that language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"the README has {len(found)} blocks of {language}"
    return found[0]


@pytest.fixture(scope="module")
def environment(service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The two variables, on a service that holds an item with a red and a near-infrared band."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    write_raster(path, asymmetric((300, 200), bands=2), names=["red", "nir"])
    bands = [{"name": "red", "common_name": "red"}, {"name": "nir", "common_name": "nir"}]
    with service.client() as client:
        client.uploads.upload(path, project_id=service.project_id, bands=bands)
    return os.environ | {"EOROUTER_URL": service.url, "EOROUTER_API_KEY": service.api_key}


def test_readme_fits_one_screen_beside_its_table() -> None:
    table = README.partition(START)[2].partition(END)[0]
    assert len(README.splitlines()) - len(table.splitlines()) <= 52


def test_readme_targets_exist_and_the_map_is_true() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"[\w/.-]+/(?=[\s·])|\]\(([\w/.-]+)\)", README):
        assert not name or (ROOT / name).exists(), name
    for folder in ("kernels/eorouter_kernels", "compute/eorouter_compute", "src/eorouter/operations"):
        assert folder.split("/")[-1] in README
        assert (ROOT / folder).is_dir()


def test_readme_curl_lists_items(environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-euc", block("bash")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"items"' in done.stdout or '"features"' in done.stdout


def test_readme_python_computes_an_index(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("python")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "itm_" in done.stdout
