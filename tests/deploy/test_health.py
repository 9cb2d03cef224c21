"""What containers are asked whether they are well."""

import importlib.util
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/health.py"


def asked(*arguments):
    ran = subprocess.run([sys.executable, "-I", str(SCRIPT), *map(str, arguments)], capture_output=True, check=False)
    return ran.returncode


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_address_that_answers_is_well_and_any_other_is_not(server):
    assert asked("http", f"{server}/healthz") == 0
    assert asked("http", f"{server}/broken") == 1
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert asked("http", f"http://127.0.0.1:{unused.getsockname()[1]}/healthz") == 1


def test_address_that_answers_no_http_is_not_well():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer():
            with listening.accept()[0] as peer:
                peer.recv(1000)
                peer.sendall(b"SSH-2.0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert asked("http", f"http://127.0.0.1:{port}/") == 1
        thread.join()


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_worker_is_well_while_its_connection_stands(family, address):
    try:
        listening = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"{address} is not an address of this machine")
    with listening:
        port = listening.getsockname()[1]
        assert asked("connected", port) == 1  # listening is not connected
        with socket.create_connection((address, port)):
            assert asked("connected", port) == 0


def test_only_standing_connections_to_the_port_count(tmp_path):
    spec = importlib.util.spec_from_file_location("health", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    health = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(health)
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 00000000:2252 00000000:0000 0A 00000000\n"  # listens on 8786
        "   1: 0100007F:1F90 0100007F:2252 06 00000000\n"  # was connected to it
        "   2: 0100007F:2252 0100007F:1F90 01 00000000\n"  # others are connected to us
    )
    assert not health.is_connected(8786, table, tmp_path / "absent")
    table.write_text(table.read_text() + "   3: 0100007F:1F91 0100007F:2252 01 00000000\n")
    assert health.is_connected(8786, table, tmp_path / "absent")


@pytest.mark.parametrize("arguments", [(), ("http",), ("http", "ftp://x"), ("connected", "-1"), ("well", "1")])
def test_whoever_asks_wrongly_is_told(arguments):
    assert asked(*arguments) == 2
