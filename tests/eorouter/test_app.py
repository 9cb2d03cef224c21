"""The listening socket is what a server can be built on, or the start is refused in words."""

import asyncio
import socket

import msgspec
import pytest

from eorouter import app
from eorouter.settings import Settings


async def test_answers_leave_without_delay():
    """Without TCP_NODELAY the second write of an answer waits for the first one's acknowledgement."""
    listener = app.bind(Settings(port=0))
    seen: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(handle, sock=listener):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        await reader.read()
        writer.close()
    assert seen == [1]


def test_a_taken_port_is_refused_with_what_to_do():
    settings = Settings(port=0)
    with app.bind(settings) as first:
        taken = msgspec.structs.replace(settings, port=first.getsockname()[1])
        with pytest.raises(app.BadStart, match="--port"):
            app.bind(taken)
