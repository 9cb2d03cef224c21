"""The command line as a person meets it."""

import contextlib
import inspect
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from eorouter import __main__ as command
from eorouter.app import registry

COMMANDS = (
    "serve", "api", "demo", "op", "operations", "methods", "settings", "migrate", "allot", "dispatcher", "scheduler",
    "worker", "certificates", "derive", "operators", "ledger verify", "ledger grant",
)  # fmt: skip
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("EOROUTER_")}


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, run in this process."""
    with pytest.raises(SystemExit) as ended:
        command.main(list(arguments))
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eorouter", *arguments],
        env=CLEAN | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in set(os.environ) - set(CLEAN):
        monkeypatch.delenv(name)
    monkeypatch.setattr("eorouter.logs.configure", lambda _: None)  # the logs of this process are pytest's


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_each_command_and_option_does(capfd, name):
    code, out, _ = run(capfd, *name.split(), "--help")
    assert code == 0
    function = {listed: function for function, listed in command.COMMANDS}[name]
    assert " ".join(function.__doc__.splitlines()[0].split()[:4]) in " ".join(out.split())
    for option in inspect.signature(function).parameters.values():
        assert option.name.upper() in out or f"--{option.name.replace('_', '-')} " in out, option.name


def test_help_lists_every_command(capfd):
    code, out, _ = run(capfd, "--help")
    assert code == 0
    assert all(f" {name.split()[0]} " in out for name in COMMANDS)


def test_operations_and_op_alone_list_every_operation(capfd):
    _, listed, _ = run(capfd, "operations")
    _, alone, _ = run(capfd, "op")
    assert listed == alone
    assert all(f" {op.id} " in listed for op in registry())


def test_settings_lists_every_variable_with_its_default(capfd):
    code, out, _ = run(capfd, "settings")
    assert code == 0
    assert "EOROUTER_PORT" in out
    assert "8000" in out


def test_unknown_operation_suggests(capfd):
    code, out, err = run(capfd, "op", "projects.lst")
    assert (code, out) == (2, "")
    assert "'projects.list'" in err
    assert "Traceback" not in err


def test_unknown_option_is_refused_with_exit_code_2(capfd):
    code, out, err = run(capfd, "serve", "--prot", "1")
    assert code == 2
    assert "--prot" in out + err


def test_op_without_a_service_says_how_to_start_one(capfd):
    code, _, err = run(capfd, "op", "projects.list", "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "eorouter serve" in err


@pytest.fixture
def service():
    """A service that answers with what it was asked; the paths of test are its own."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_known = self.headers["authorization"] == "Bearer k"
            answer = {"path": self.path, "body": json.loads(body), "key": self.headers.get("idempotency-key")}
            data = json.dumps(answer if is_known else {"code": "unauthenticated"}).encode()
            self.send_response(200 if is_known else 401)
            self.send_header("content-type", "application/json" if is_known else "application/problem+json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_op_calls_the_service_and_prints_its_answer(capfd, service, monkeypatch):
    monkeypatch.setenv("EOROUTER_API_KEY", "k")
    code, out, _ = run(
        capfd, "op", "projects.list", "--json", '{"limit": 3}', "--url", service, "--idempotency-key", "i"
    )
    assert code == 0
    assert json.loads(out) == {"path": "/v1/op/projects.list", "body": {"limit": 3}, "key": "i"}


def test_op_prints_a_problem_as_an_error(capfd, service, monkeypatch):
    monkeypatch.setenv("EOROUTER_URL", service)
    code, out, err = run(capfd, "op", "projects.list", "--key", "wrong")
    assert (code, out) == (1, "")
    assert json.loads(err) == {"code": "unauthenticated"}


def test_certificates_are_made_once(capfd, tmp_path):
    code, out, _ = run(capfd, "certificates", str(tmp_path / "tls"), "--host", "a.lan", "--host", "b.lan")
    assert code == 0
    assert [Path(line.split()[1]).name for line in out.splitlines()] == ["ca.crt", "tls.crt", "tls.key"]
    code, out, err = run(capfd, "certificates", str(tmp_path / "tls"))
    assert (code, out) == (2, "")
    assert "exists already" in err


def test_bad_setting_is_one_message_and_exit_code_2(tmp_path):
    done = started("serve", "--data-dir", str(tmp_path), EOROUTER_WORKER_COUNT="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert "EOROUTER_WORKER_COUNT='many'" in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_port_is_one_message_and_exit_code_2(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = started("api", "--port", port, "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_api_says_what_other_replicas_would_not_share(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("EOROUTER_SECRET", "s" * 40)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, out, err = run(capfd, "api", "--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path))
    assert (code, out) == (2, "")
    said = [line for line in err.splitlines() if "Replicas on other machines do not share it" in line]
    assert [line.split()[1] for line in said] == ["EOROUTER_DATABASE_URL", "EOROUTER_OBJECTS_URL"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"EOROUTER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "The database does not answer"),
        ({"EOROUTER_DATABASE_URL": "mysql+nothing://x"}, "EOROUTER_DATABASE_URL"),
        ({"EOROUTER_OBJECTS_URL": "ftp://bucket"}, "EOROUTER_OBJECTS_URL"),
    ],
)
def test_part_that_cannot_be_reached_is_one_message(capfd, tmp_path, monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capfd, "api", "--port", "0", "--data-dir", str(tmp_path))
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_folder_that_is_a_file_is_one_message(capfd, tmp_path):
    (tmp_path / "data").write_text("")
    code, _, err = run(capfd, "migrate", "--data-dir", str(tmp_path / "data"))
    assert code == 2
    assert "cannot be used" in err


def test_migrate_says_the_version_and_may_be_repeated(capfd, tmp_path):
    first = run(capfd, "migrate", "--data-dir", str(tmp_path))
    assert first[0] == 0
    assert "The schema is version" in first[1]
    assert run(capfd, "migrate", "--data-dir", str(tmp_path))[:2] == first[:2]


def test_old_postgresql_schema_is_not_touched_unasked(capfd, tmp_path, postgres_server, monkeypatch):
    monkeypatch.setenv("EOROUTER_DATABASE_URL", f"{postgres_server}/template1")
    code, _, err = run(capfd, "api", "--port", "0", "--data-dir", str(tmp_path))
    assert code == 2
    assert "eorouter migrate" in err


def test_missing_extra_says_what_to_install(tmp_path):
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'cyclopts', 'rich', 'litestar', 'sqlalchemy', 'numpy', 'structlog'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    done = started("serve", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'pip install "eorouter[server]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_service_answers_and_a_signal_stops_it_cleanly(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "eorouter", "api", "--port", "0", "--data-dir", str(tmp_path)],
        env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("eorouter listening on http://127.0.0.1:"), line
        url = line.split()[-1]
        assert httpx2.get(f"{url}/healthz").json() == {"state": "alive"}
        state = httpx2.get(f"{url}/readyz")
        assert state.status_code == 503
        assert state.json()["parts"]["schema"]["state"] == "ready"
        assert httpx2.post(f"{url}/v1/op/auth.me", json={}).status_code == 401
        huge = httpx2.post(
            f"{url}/v1/op/auth.login", content=b" " * (33 << 20), headers={"content-type": "application/json"}
        )
        assert huge.status_code == 413
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "path=/healthz" in err


def test_allot_tells_what_it_set_and_refuses_what_makes_no_sense(tmp_path, capfd):
    assert run(capfd, "allot", "org_x", "--weight", "0")[0] == 2
    assert run(capfd, "migrate", "--data-dir", str(tmp_path))[0] == 0
    code, _, err = run(capfd, "allot", "org_x", "--weight", "2", "--data-dir", str(tmp_path))
    assert (code, "no organisation 'org_x'" in err) == (2, True)
    with contextlib.closing(sqlite3.connect(tmp_path / "eorouter.sqlite")) as db, db:
        db.execute("INSERT INTO organisations VALUES ('org_x', 'X', 1, 0, '2026-01-01', NULL, 1.0, NULL)")
    code, out, _ = run(capfd, "allot", "org_x", "--weight", "2", "--shards-max", "8", "--data-dir", str(tmp_path))
    assert (code, out.strip()) == (0, "org_x: weight 2.0, shards under way: at most 8.")


def test_operators_are_marked_unmarked_and_listed(tmp_path, capfd):
    folder = ("--data-dir", str(tmp_path))
    assert run(capfd, "migrate", *folder)[0] == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "eorouter.sqlite")) as db, db:
        db.execute("INSERT INTO users VALUES ('usr_a', 'ada@example.org', 'Ada', 'x', NULL, '2026-01-01', 0)")
    assert "Nobody" in run(capfd, "operators", *folder)[1]
    code, out, _ = run(capfd, "operators", "--add", "Ada@Example.org", *folder)
    assert (code, "ada@example.org" in out) == (0, True)
    assert "ada@example.org" in run(capfd, "operators", *folder)[1]
    for wrong in ("bob@example.org", "no address"):
        code, _, err = run(capfd, "operators", "--add", wrong, *folder)
        assert (code, "Traceback" in err) == (2, False)
    assert "Nobody" in run(capfd, "operators", "--remove", "ada@example.org", *folder)[1]
