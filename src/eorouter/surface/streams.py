"""Lists that go on: server-sent events (WHATWG HTML, section 9.2) and newline-delimited JSON.

What is sent is what the list would hold, entry by entry; a quiet time is bridged by a comment or an empty line. A
client that comes back with `Last-Event-ID` goes on behind the last entry it got.
"""

from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
from litestar import Response
from litestar.response import Stream

from eorouter.errors import Fault, InvalidInput
from eorouter.operation import Followed

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"
_RETRY_MS = 2000


def wanted(accept: str) -> str | None:
    """The media type of a stream where the caller asks for one before JSON, else None."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in {EVENT_STREAM, NDJSON}:
            return kind
        if kind in {"application/json", "*/*", "application/*"}:
            return None
    return None


def last_event_id(headers: Mapping[str, str]) -> int | None:
    """Where a client that comes back wants to go on.

    Raises:
        InvalidInput: the header is not an id of ours.
    """
    text = headers.get("last-event-id", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidInput(
            f"`Last-Event-ID` is {text[:40]!r}; it is the id of an event of this list, a number.",
            errors=[Fault(pointer="", code="invalid", message="not an event id", expected="digits")],
        )
    return int(text)


async def answer(entries: AsyncIterator[Followed | None], media_type: str) -> Response:
    """The response; what is wrong with the request is raised here, before a status is sent.

    Of a list that will not go on it is 204, which tells an `EventSource` not to come back.
    """
    try:
        first = await anext(entries)
    except StopAsyncIteration:
        return Response(content=None, status_code=204)
    encode = _event if media_type == EVENT_STREAM else _line
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(_encoded(first, entries, encode, media_type), headers=headers, media_type=media_type)


async def _encoded(
    first: Followed | None,
    rest: AsyncIterator[Followed | None],
    encode: Callable[[Followed | None], bytes],
    media_type: str,
) -> AsyncIterator[bytes]:
    if media_type == EVENT_STREAM:
        yield f"retry: {_RETRY_MS}\n\n".encode()
    yield encode(first)
    async for entry in rest:
        yield encode(entry)


def _event(entry: Followed | None) -> bytes:
    if entry is None:
        return b": still here\n\n"
    return f"id: {entry.id}\nevent: {entry.kind}\ndata: ".encode() + msgspec.json.encode(entry.entry) + b"\n\n"


def _line(entry: Followed | None) -> bytes:
    return b"\n" if entry is None else msgspec.json.encode(entry.entry) + b"\n"
