"""Logs for people and for machines."""

import json
import logging

import pytest
import structlog

from eorouter import logs as configured
from eorouter.settings import Settings


@pytest.fixture(autouse=True)
def logs():
    """The configuration of this process comes back afterwards; nothing is captured here."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


def written(capsys: pytest.CaptureFixture[str], **changes: str) -> list[str]:
    configured.configure(Settings(**changes))
    log = structlog.get_logger("eorouter.test")
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        log.debug("quiet")
        log.info("request", status=200)
        try:
            int("broken")
        except ValueError:
            log.exception("fault")
    logging.getLogger("elsewhere").warning("old %s", "style")
    logging.getLogger("aiosqlite").info("chatter")
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_json_is_one_object_per_line_with_the_request_id(capsys):
    lines = [json.loads(line) for line in written(capsys, log_format="json")]
    assert [line["event"] for line in lines] == ["request", "fault", "old style"]
    assert [line.get("request_id") for line in lines] == ["req_1", "req_1", None]
    assert (lines[0]["status"], lines[0]["level"], lines[0]["logger"]) == (200, "info", "eorouter.test")
    assert "ValueError: invalid literal" in lines[1]["exception"]
    assert lines[0]["timestamp"].endswith("Z")


def test_libraries_that_bring_a_handler_of_their_own_write_through_ours(capsys):
    noisy = logging.getLogger("distributed")
    before = list(noisy.handlers), noisy.propagate, noisy.level
    noisy.addHandler(logging.StreamHandler())
    noisy.propagate = False
    noisy.setLevel(logging.INFO)
    try:
        configured.configure(Settings(log_format="json"))
        logging.getLogger("distributed.scheduler").info("a line per worker")
        logging.getLogger("distributed.scheduler").warning("a worker is gone")
    finally:
        noisy.handlers[:], noisy.propagate, _ = before
        noisy.setLevel(before[2])
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "a worker is gone"


def test_text_is_readable_and_has_no_colours_in_a_file(capsys):
    text = "\n".join(written(capsys, log_format="text"))
    assert "request_id=req_1" in text
    assert "ValueError: invalid literal" in text
    assert "old style" in text
    assert "\x1b" not in text
    assert "chatter" not in text


def test_level_is_the_least_that_is_written(capsys):
    assert [json.loads(line)["event"] for line in written(capsys, log_format="json", log_level="warning")] == [
        "fault",
        "old style",
    ]
