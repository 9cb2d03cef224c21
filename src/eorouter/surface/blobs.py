"""Stored objects as answers: ranges, conditional requests, a safe file name (RFC 9110 sections 13 and 14, RFC 6266)."""

import re
from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote

from litestar import Response
from litestar.response import Stream

from eorouter.errors import NotFound, RangeNotSatisfiable
from eorouter.operation import Blob
from eorouter.storage.objects import ObjectMissing, Objects

_RANGE = re.compile(r"^\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*$", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


async def answer(objects: Objects, blob: Blob, *, method: str, headers: Mapping[str, str]) -> Response:
    """The response for a stored object.

    Raises:
        RangeNotSatisfiable: the range lies outside of the object.
        NotFound: the object went away since its row was read.
    """
    etag = entity_tag(blob.etag)
    described = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": disposition(blob.filename),
        "content-security-policy": "sandbox",  # whatever was uploaded never runs under our address
    }
    if matches(headers.get("if-none-match", ""), etag):
        return Response(content=None, status_code=304, headers=described)
    start, stop, status = 0, blob.size, 200
    if method == "GET" and _range_applies(headers.get("if-range"), etag):
        wanted = byte_range(headers.get("range", ""), blob.size)
        if wanted is not None:
            (start, stop), status = wanted, 206
            described["content-range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    described["content-length"] = str(stop - start)
    if method == "HEAD" or start == stop:
        return Response(content=b"", status_code=status, headers=described, media_type=blob.media_type)
    stream = objects.stream(blob.key, start, stop)
    try:  # an object that is gone must be known before the status is sent
        first = await anext(stream)
    except ObjectMissing as error:
        raise NotFound("The stored object is gone.") from error
    return Stream(_chain(first, stream), status_code=status, headers=described, media_type=blob.media_type)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last-plus-one byte of a `Range` header; None where there is none, several, or one of another unit.

    Raises:
        RangeNotSatisfiable: the range starts behind the end of the object.
    """
    match = _RANGE.match(header)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = (int(text[:18]) if text else None for text in match.groups())
    if first is None:
        start, stop = max(0, size - (last or 0)), size
    else:
        if last is not None and last < first:
            return None
        start, stop = first, size if last is None else min(last + 1, size)
    if start >= stop:
        raise RangeNotSatisfiable(
            f"The range {header[:100]!r} lies outside of this object of {size} bytes.",
            headers={"content-range": f"bytes */{size}"},
        )
    return start, stop


def entity_tag(text: str) -> str:
    """A strong validator in quotes."""
    return '"' + re.sub(r"[^\x21\x23-\x7e]", "", text.strip('"')) + '"'


def matches(header: str, etag: str) -> bool:
    """`If-None-Match` names this tag; the comparison is the weak one."""
    return header.strip() == "*" or etag in {tag.removeprefix("W/") for tag in _TAG.findall(header)}


def _range_applies(if_range: str | None, etag: str) -> bool:
    """Without `If-Range` always; with one only for the same strong tag (we send no dates to compare with)."""
    return if_range is None or if_range.strip() == etag


def disposition(filename: str) -> str:
    """`Content-Disposition` for a file to keep; only the last part of the name, in ASCII and, in full, as UTF-8."""
    name = re.split(r"[/\\]", filename)[-1]
    name = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "", name).strip(". ")[:150] or "download"
    plain = re.sub(r"[^ !#$&+.^_`{}~0-9A-Za-z()\[\]=,@-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
