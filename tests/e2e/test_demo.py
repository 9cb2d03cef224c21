"""`eorouter demo` from nothing to its report, against the real service; and its end by an interrupt."""

import csv
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
import rasterio

from eorouter.demo import run

SIZE_PX = 256


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that temporary files go to, so that a test sees what is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_demo_leaves_rasters_tables_and_a_report_that_agree_with_the_truth(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run.main(out=out, size_px=SIZE_PX) == 0
    told = capsys.readouterr().out
    names = sorted(path.name for path in out.iterdir())
    assert len([name for name in names if re.fullmatch(r"ndvi_\d{8}\.tif", name)]) == 7
    assert len([name for name in names if re.fullmatch(r"fields_\d{8}\.(csv|parquet)", name)]) == 14
    assert [name for name in names if name.startswith("clip") and name.endswith(".tif")]
    report = (out / "report.html").read_text()
    for path in [*out.glob("*.tif"), *out.glob("*.parquet")]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in report

    differences = [float(found) for found in re.findall(r"<small>0\.\d{3} · ([+-]\d\.\d{3})</small>", report)]
    assert len(differences) > 20
    # At 256 pixels a side some crops have a handful of small fields, half of them under cloud, so single means stray.
    assert float(np.median(np.abs(differences))) < 0.03

    cloudy = list(csv.DictReader((out / "fields_20241026.csv").read_text().splitlines()))
    assert any(float(row["valid_fraction"]) < 0.5 for row in cloudy)
    with rasterio.open(out / "ndvi_20240519.tif") as ndvi:
        values = ndvi.read(1)
        assert values.shape == (SIZE_PX, SIZE_PX)
        assert -1.0 <= np.nanmin(values) < 0.5 < np.nanmax(values) <= 1.0

    address = re.search(r"It answers at (\S+)", told)
    assert address is not None
    assert not answers(address[1])
    assert list(temporary.glob("eorouter-demo-*")) == []


def test_interrupted_demo_stops_its_service_and_removes_its_folder(tmp_path: Path, temporary: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import signal, sys; from eorouter.demo import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells ignore it\n"
        f"sys.exit(run.main(keep_serving=True, port=0, size_px={SIZE_PX}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 200
        while "EOROUTER_API_KEY=" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        found = re.search(r"EOROUTER_URL=(\S+) EOROUTER_API_KEY=(\S+)", log.read_text())
        assert found is not None
        assert len(list(list_items(found[1], found[2]))) == 8
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "Nothing is left running" in log.read_text()
    assert not answers(found[1])
    assert list(temporary.glob("eorouter-demo-*")) == []


def list_items(url: str, key: str) -> list[dict]:
    """What a user with the printed address and key sees."""
    from eorouter import EoRouterClient

    with EoRouterClient(url, key) as client:
        return list(client.items.search(limit=3))


def answers(address: str) -> bool:
    try:
        httpx2.get(address + "/healthz", timeout=2)
    except httpx2.TransportError:
        return False
    return True
