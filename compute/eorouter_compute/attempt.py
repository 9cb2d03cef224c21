"""What a running shard may do to the world: write its own objects once, read parts, say how far it is, notice a cancel.

An attempt is one try at one shard, under one fencing token. Its objects live under a prefix nobody else writes to; the
dispatcher decides afterwards whether they count. `reads` names what earlier stages wrote.
"""

import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import msgspec

from eorouter_compute import witness
from eorouter_compute.errors import AttemptExists, Cancelled


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True):
    """A finished object: `href` is its URL, `sha256` the digest of its `size` bytes."""

    href: str
    size: int
    sha256: str


class HashingWriter(io.RawIOBase):
    """Counts and digests what passes through to `target`; append-only."""

    def __init__(self, target: IO[bytes]) -> None:
        super().__init__()
        self._target = target
        self._digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self.size

    def write(self, data: Any, /) -> int:  # noqa: D102
        with witness.writing():
            self._target.write(data)
            self._digest.update(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    @property
    def sha256(self) -> str:
        """Digest of everything written so far, in hex."""
        return self._digest.hexdigest()


class Attempt:
    """The hands of one shard.

    Attributes:
        prefix: URL under which this attempt writes, ending in `/`.
        refs: objects finished so far, by name.
    """

    def __init__(
        self,
        prefix: str,
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int], None] = lambda pixels: None,
    ) -> None:
        self.prefix = prefix if prefix.endswith("/") else prefix + "/"
        self.refs: dict[str, ObjectRef] = {}
        self._is_cancelled = is_cancelled
        self._on_progress = on_progress

    def advance(self, pixels: int) -> None:
        """Report `pixels` more done; call between blocks.

        Raises:
            Cancelled: the job was cancelled; let it pass through.
        """
        if self._is_cancelled():
            raise Cancelled("The job was cancelled.")
        self._on_progress(pixels)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open object `name` of this attempt for writing, append-only; it appears whole when the block ends, or never.

        Raises:
            AttemptExists: the object is there already: two processes run the same attempt, and this one lost.
        """
        href = self.prefix + name
        with _Timed(_create_once(href)) as target:
            writer = HashingWriter(target)
            yield cast("BinaryIO", writer)
        witness.count_written(writer.size)
        self.refs[name] = ObjectRef(href=href, size=writer.size, sha256=writer.sha256)

    def write(self, name: str, data: bytes) -> ObjectRef:
        """Create object `name` with `data` and return its reference."""
        with self.create(name) as target:
            target.write(data)
        return self.refs[name]


class _Timed:
    """A sink whose opening and closing count as writing, as its writes do: what was buffered moves when it closes."""

    def __init__(self, sink: AbstractContextManager[IO[bytes]]) -> None:
        self._sink = sink

    def __enter__(self) -> IO[bytes]:
        with witness.writing():
            return self._sink.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        with witness.writing():
            return self._sink.__exit__(kind, error, trace)


@contextmanager
def _create_once(href: str) -> Iterator[IO[bytes]]:
    path = local_path(href)
    if path is None:
        with _create_once_remote(href) as target:
            yield target
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb", buffering=1 << 20) as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        try:
            path.hardlink_to(temporary)  # fails when the name is taken, which a rename would not
        except FileExistsError as error:
            raise AttemptExists(f"{href} was already written by another process.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _create_once_remote(href: str) -> Iterator[IO[bytes]]:
    import obstore
    from obstore.exceptions import AlreadyExistsError

    store, key = remote_store(href)
    # A multipart upload has no create-once condition at every vendor; the name carries a fencing token, so a second
    # writer of the same name is a re-run of the same attempt. The small marker makes the second one lose early.
    try:
        obstore.put(store, f"{key}.claim", b"", mode="create")
    except AlreadyExistsError as error:
        raise AttemptExists(f"{href} was already claimed by another process.") from error
    writer = obstore.open_writer(store, key, buffer_size=8 << 20)
    with writer:
        yield cast("IO[bytes]", writer)
    obstore.delete(store, f"{key}.claim")


def local_path(href: str) -> Path | None:
    """The file behind a `file://` URL or a plain path; None for an object in a remote store."""
    parts = urlsplit(href)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(href) if not parts.scheme else None


def remote_store(href: str) -> tuple[Any, str]:
    """Store and key of an `s3://`, `gs://` or `az://` URL; credentials come from the process's environment."""
    import obstore.store

    parts = urlsplit(href)
    return obstore.store.from_url(f"{parts.scheme}://{parts.netloc}"), parts.path.lstrip("/")


def read_object(href: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes `start … stop - 1` of an object, all of it by default."""
    with witness.reading():
        data = _bytes_of(href, start, stop)
    witness.count_read(len(data))
    return data


def _bytes_of(href: str, start: int, stop: int | None) -> bytes:
    path = local_path(href)
    if path is not None:
        with path.open("rb") as source:
            source.seek(start)
            return source.read() if stop is None else source.read(stop - start)
    import obstore

    store, key = remote_store(href)
    if stop is None:
        stop = obstore.head(store, key)["size"]
    return bytes(obstore.get_range(store, key, start=start, end=stop))
