"""Moving files: up from disk in one stream, down to disk in as many pieces as the network needs.

A download is written beside its goal as `<name>.part` and takes its name only when it is whole and its checksum is the
published one, so a file that has its name is right. A broken connection is continued with `Range` and `If-Range` from
the byte where it broke; if the object changed meanwhile the service sends all of it and we begin again.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2

from eorouter.client.problems import ApiProblem, ChecksumMismatch, TransferFailed
from eorouter.client.runtime import Session

_NAME_UTF8 = re.compile(r"filename\*=UTF-8''([^;]+)", re.IGNORECASE)
_NAME_PLAIN = re.compile(r'filename="([^"]*)"', re.IGNORECASE)
_CHUNK_BYTES = 1 << 18

Progress = Callable[[int, int], None]
"""Called with (bytes moved so far, bytes in all)."""


def send_file(
    session: Session,
    method: str,
    url: str,
    path: Path,
    *,
    headers: Mapping[str, str],
    on_progress: Progress | None,
    timeout_s: float,
) -> Any:
    """Stream a file as the body of one request; the whole is sent again if the connection breaks.

    Raises:
        TransferFailed: the file changed its size while it was read.
        ApiProblem: the service refused it.
        ConnectionFailed: it could not be sent.
    """
    size = path.stat().st_size

    def chunks() -> Iterator[bytes]:
        sent = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sent += len(chunk)
                if sent > size:
                    break
                yield chunk
                if on_progress is not None:
                    on_progress(sent, size)
        if sent != size:
            raise TransferFailed(f"{path} changed while it was uploaded: it had {size} bytes. Upload it again.")

    return session.send(
        method,
        url,
        content=chunks,
        headers={"content-type": "application/octet-stream", **headers, "content-length": str(size)},
        is_repeatable=True,
        timeout_s=timeout_s,
    )


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def receive_file(
    session: Session,
    url: str,
    goal: Path,
    *,
    sha256: str | None,
    on_progress: Progress | None = None,
    into: Path | None = None,
) -> Path:
    """Download to `goal`, continuing where an earlier try or an earlier process stopped.

    With `into`, a folder, the whole file takes the name that the service gives it there, if it gives one.

    Raises:
        ChecksumMismatch: the bytes are not those published; they are removed.
        ApiProblem: the service refused.
        ConnectionFailed: it broke off too often without any progress.
    """
    goal.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(goal)
    farthest, stalls = part.size, 0
    while True:
        try:
            session.persist(lambda: _piece(session, url, part, on_progress), is_repeatable=True)
            break
        except _BrokeOff:
            # Tries are counted against standing still: a line that drops every megabyte still brings the file.
            stalls = 0 if part.size > farthest else stalls + 1
            farthest = max(farthest, part.size)
            if stalls >= session.retries.tries:
                raise TransferFailed(f"{goal.name} breaks off at byte {part.size} again and again.") from None
            time.sleep(session.retries.wait_s(stalls + 1))
    part.check(sha256)
    if into is not None and part.filename:
        goal = into / part.filename
    part.path.replace(goal)
    part.tag_path.unlink(missing_ok=True)
    return goal


class _BrokeOff(Exception):
    """A try ended early, but brought bytes."""


class _Part:
    """The unfinished file, and beside it the entity tag of the object that its bytes came from."""

    def __init__(self, goal: Path) -> None:
        self.goal = goal
        self.path = goal.with_name(goal.name + ".part")
        self.filename = ""
        self.tag_path = goal.with_name(goal.name + ".part.etag")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def etag(self) -> str | None:
        """Tag of the object that was begun; without a strong one a piece cannot be continued."""
        tag = self.tag_path.read_text().strip() if self.tag_path.exists() else ""
        return tag if tag.startswith('"') else None

    def begin(self, etag: str | None) -> None:
        self.path.unlink(missing_ok=True)
        self.tag_path.write_text(etag or "")

    def check(self, sha256: str | None) -> None:
        if sha256 is None:
            return
        found = sha256_of(self.path)
        if found != sha256:
            self.path.unlink()
            self.tag_path.unlink(missing_ok=True)
            raise ChecksumMismatch(
                f"{self.goal.name} was published with sha256 {sha256}, but {found} arrived. The download was removed."
            )


def _piece(session: Session, url: str, part: _Part, on_progress: Progress | None) -> None:
    """One request: from where `part` ends to the end of the object, or as far as it gets."""
    begun = part.size if part.etag is not None else 0
    headers = {"accept": "*/*", "accept-encoding": "identity"}
    if begun:
        headers |= {"range": f"bytes={begun}-", "if-range": part.etag or ""}
    try:
        with session.stream("GET", url, headers=headers) as response:
            if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                begun = 0
                part.begin(response.headers.get("etag"))
            part.filename = _filename(response.headers.get("content-disposition", ""))
            length = response.headers.get("content-length")
            total = begun + int(length) if length is not None else 0
            with part.path.open("ab") as file:
                # As they come: asked for chunks of a size, httpx2 loses what it has gathered when the line breaks.
                for chunk in response.iter_raw():
                    file.write(chunk)
                    if on_progress is not None:
                        on_progress(file.tell(), total)
                file.flush()
                os.fsync(file.fileno())
    except httpx2.TransportError as error:
        if part.size > begun:
            raise _BrokeOff from error
        raise
    except ApiProblem as problem:
        if problem.status == httpx2.codes.RANGE_NOT_SATISFIABLE and begun:
            part.begin(None)  # nothing is missing, or the object shrank: only the whole of it tells
            raise _BrokeOff from problem
        raise


def _filename(disposition: str) -> str:
    """The name in a `Content-Disposition` (RFC 6266), as a plain name in one folder whatever the header tries."""
    found = _NAME_UTF8.search(disposition)
    name = unquote(found[1]) if found else (plain[1] if (plain := _NAME_PLAIN.search(disposition)) else "")
    name = name.replace("\\", "/").rsplit("/", 1)[-1].strip()
    return name if name.strip(".") and name.isprintable() else ""
