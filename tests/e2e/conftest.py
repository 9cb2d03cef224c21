"""The real service: API, dispatcher and Dask workers as processes, on a free port and a temporary folder."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import msgspec
import pytest

from eorouter.client import EoRouterClient


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A running service and an account on it."""

    url: str
    api_key: str
    project_id: str
    data_dir: Path
    process: subprocess.Popen[str]

    def client(self) -> EoRouterClient:
        """A client with the account's key."""
        return EoRouterClient(self.url, api_key=self.api_key)


def start_service(data_dir: Path, *, workers: int = 2, **settings: str) -> tuple[subprocess.Popen[str], str]:
    """Start `eorouter serve` with these settings (`worker_memory_mb="512"`) and wait until it says where it listens."""
    chosen = {f"EOROUTER_{name.upper()}": value for name, value in {"bcrypt_cost": "4", **settings}.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EOROUTER_")}
    with (data_dir / "stderr.log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "eorouter", "serve", "--port", "0", "--data-dir", str(data_dir),
                "--workers", str(workers),
            ],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment | chosen,
        )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("eorouter listening on "):
            return process, line.split()[3]
    raise AssertionError(f"the service did not start: {(data_dir / 'stderr.log').read_text()[-2000:]}")


def wait_until_ready(url: str, timeout_s: float = 180.0) -> None:
    """Wait until database, objects and workers all answer."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            answer = httpx2.get(f"{url}/readyz", timeout=30)
            if answer.status_code == 200:
                return
            last = answer.text
        except httpx2.TransportError as error:
            last = str(error)
        assert time.monotonic() < end, f"not ready after {timeout_s} s: {last}"
        time.sleep(0.2)


def stop_service(process: subprocess.Popen[str]) -> None:
    """Stop it as an operator would."""
    process.terminate()
    try:
        process.wait(timeout=60)
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one organisation, one project and one key that may do everything."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@contextmanager
def running_service(data_dir: Path, *, workers: int = 2, **settings: str) -> Iterator[Service]:
    """A service of one's own, for as long as the block lasts."""
    process, url = start_service(data_dir, workers=workers, **settings)
    try:
        with EoRouterClient(url) as client:
            wait_until_ready(url)
            client.signup("ada@example.org", "correct horse battery", name="Ada")
            project = client.projects.create("fields")
            key = client.api_keys.create("tests")
        yield Service(
            url=url, api_key=key["secret"], project_id=project["project_id"], data_dir=data_dir, process=process
        )
    finally:
        stop_service(process)


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[Service]]:
    """`start(data_dir, workers=1, worker_memory_mb="512")`: for tests that need other settings than everybody's."""
    return running_service
