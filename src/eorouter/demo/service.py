"""A service of one's own: started in a process, waited for, and stopped for certain.

The service leads a process group of its own, so an interrupt at the keyboard reaches only us and we stop it in order;
whatever it started dies with the group, also when it does not answer any more.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

_ANNOUNCEMENT = re.compile(r"eorouter (?:listening on|answers at) (http://\S+)")
_STOP_S = 20.0
_SLOW_S = 15.0


class ServiceFailed(Exception):
    """The service did not start, or ended by itself; the message has the end of its log."""


class Service:
    """A running service. `address` answers, `process` runs it, `log` is what it says."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    def check(self) -> None:
        """Make sure that it still runs.

        Raises:
            ServiceFailed: it ended.
        """
        if self.process.poll() is not None:
            raise ServiceFailed(_obituary(self.process, self.log))


@contextmanager
def running(
    data_dir: Path, *, port: int = 0, start_s: float = 300.0, on_slow: Callable[[], object] = lambda: None
) -> Iterator[Service]:
    """Run `eorouter serve` over a data folder for as long as the block lasts.

    Args:
        data_dir: made if need be.
        port: to listen on; 0 takes a free one.
        start_s: longest that it may take to become ready.
        on_slow: called once when it takes more than a few seconds.

    Raises:
        ServiceFailed: it did not become ready.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "service.log"
    command = [sys.executable, "-m", "eorouter", "serve", "--port", str(port), "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
    try:
        yield Service(process, _wait_until_ready(process, log, start_s, on_slow), log)
    finally:
        _stop(process)


def _environment() -> dict[str, str]:
    """Ours without the operator's settings: the demonstration must not touch an installation that exists."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EOROUTER_")}
    # The same packages as ours, also when they come from the path and not from an installation.
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUNBUFFERED": "1"}


def _wait_until_ready(
    process: subprocess.Popen[bytes], log: Path, start_s: float, on_slow: Callable[[], object]
) -> str:
    start, is_slow, address = time.monotonic(), False, ""
    while (waited := time.monotonic() - start) < start_s:
        if waited > _SLOW_S and not is_slow:
            is_slow = True
            on_slow()
        if process.poll() is not None:
            raise ServiceFailed(_obituary(process, log))
        if not address and (found := _ANNOUNCEMENT.search(log.read_text("utf-8", "replace"))):
            address = found[1].rstrip("/")
        if address:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(address + "/readyz", timeout=5.0).is_success:
                    return address
        time.sleep(0.1)
    where = f"at {address}" if address else "anywhere"
    raise ServiceFailed(f"The service is not ready {where} after {start_s:.0f} s.\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, wait, and end what is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _obituary(process: subprocess.Popen[bytes], log: Path) -> str:
    return f"The service ended with status {process.returncode}.\n{_tail(log)}"


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-25:]
    return "The end of its log:\n  " + "\n  ".join(lines)
