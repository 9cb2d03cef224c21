# ruff: noqa: INP001
"""Whether the process in a container is well; the images have neither curl nor a shell for it.

`health.py http URL` asks an address. `health.py connected PORT` looks for a connection to that port, of anybody in the
container: a worker works when it is connected to its scheduler.
"""

import http.client
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

_ESTABLISHED = "01"
WAIT_S = 5.0


def answers(url: str) -> bool:
    """The address answers with 2xx in `WAIT_S`."""
    try:
        with urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310 - the address is the operator's
            return 200 <= answer.status < 300
    except (URLError, OSError, http.client.HTTPException):
        return False


def is_connected(port: int, *tables: Path) -> bool:
    """A connection to this port stands, by the kernel's tables of TCP connections."""
    return any(_connects(line.split(), port) for table in tables if table.exists() for line in _lines(table))


def _lines(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:]


def _connects(fields: list[str], port: int) -> bool:
    """A line of /proc/net/tcp: number, own address, other address, state; addresses as hexadecimal ip:port."""
    return len(fields) > 3 and fields[3] == _ESTABLISHED and int(fields[2].rpartition(":")[2], 16) == port


def main(arguments: list[str]) -> int:
    """0 when well, 1 when not, 2 when asked wrongly."""
    match arguments:
        case ["http", url] if url.startswith(("http://", "https://")):
            return 0 if answers(url) else 1
        case ["connected", port] if port.isdecimal():
            return 0 if is_connected(int(port), Path("/proc/net/tcp"), Path("/proc/net/tcp6")) else 1
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
