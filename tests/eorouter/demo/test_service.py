"""Starting and stopping: a service that cannot start says why."""

import socket
from pathlib import Path

import pytest

from eorouter.demo.service import ServiceFailed, running


def test_service_that_cannot_listen_ends_the_story_with_its_own_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceFailed, match=r"ended with status") as caught, running(tmp_path, port=port):
            pytest.fail("it must not become ready")
    assert "The end of its log" in str(caught.value)
    assert str(port) in str(caught.value)
