"""What a running shard may do to the world: write its own objects once, read parts, say how far it is, notice a cancel.

An attempt is one try at one shard, under one fencing token. Its objects live under a prefix nobody else writes to; the
dispatcher decides afterwards whether they count. `reads` names what earlier stages wrote.
"""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import msgspec

from eorouter_compute import faults, localfile, witness
from eorouter_compute.errors import AttemptExists, Cancelled

_BESIDE_FROM_BYTES = 32 << 20
_WAITING_BYTES = 8 << 20


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True):
    """A finished object: `href` is its URL, `sha256` the digest of its `size` bytes.

    No digest is taken, and `sha256` is empty, of what shards hand to the merge of their own job: nobody would ever
    compare it. Nor is the disk waited for: what a lost machine takes along is made anew (`PartsLost`).
    """

    href: str
    size: int
    sha256: str


class HashingWriter(io.RawIOBase):
    """Counts and, where it `is_digested`, digests what passes through to `target`; append-only.

    The digest of a large object is taken by a thread of its own while the next bytes are read and written.
    """

    def __init__(self, target: IO[bytes], *, is_digested: bool = True) -> None:
        super().__init__()
        self._target = target
        self._digest = hashlib.sha256() if is_digested else None
        self._beside: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._waiting_bytes = 0
        self.size = 0

    def writable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self.size

    def write(self, data: Any, /) -> int:  # noqa: D102
        size = memoryview(data).nbytes
        self.size += size
        if self._digest is not None:
            self._digested(self._digest, data, size)
        with witness.writing():
            self._target.write(data)
        return size

    def _digested(self, digest: Any, data: Any, size: int) -> None:
        if self.size > _BESIDE_FROM_BYTES and self._beside is None:
            self._beside = ThreadPoolExecutor(1)
        if self._beside is None:
            digest.update(data)
            return
        # What is not `bytes` may change before its turn comes.
        kept = data if isinstance(data, bytes) else bytes(data)
        self._waiting.append((self._beside.submit(digest.update, kept), size))
        self._waiting_bytes += size
        self._wait(_WAITING_BYTES)

    def _wait(self, most: int) -> None:
        """Until at most so many bytes wait for the digest."""
        while self._waiting and self._waiting_bytes > most:
            update, size = self._waiting.popleft()
            update.result()
            self._waiting_bytes -= size

    def close(self) -> None:
        """End the thread; `target` stays open."""
        if self._beside is not None:
            self._beside.shutdown()
        super().close()

    @property
    def sha256(self) -> str:
        """Digest of everything written so far, in hex; empty where none is taken."""
        self._wait(0)
        return "" if self._digest is None else self._digest.hexdigest()


class Attempt:
    """The hands of one shard.

    Attributes:
        prefix: URL under which this attempt writes, ending in `/`.
        refs: objects finished so far, by name.
        halvings: how often the side of the windows that the method computes at a time is halved, because the shard ran
            out of memory before; the bytes it makes stay the same.
    """

    def __init__(
        self,
        prefix: str,
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int], None] = lambda pixels: None,
        halvings: int = 0,
    ) -> None:
        self.prefix = prefix if prefix.endswith("/") else prefix + "/"
        self.refs: dict[str, ObjectRef] = {}
        self.halvings = halvings
        self._names: set[str] = set()
        self._is_cancelled = is_cancelled
        self._on_progress = on_progress

    def advance(self, pixels: int) -> None:
        """Report `pixels` more done; call between blocks.

        Raises:
            Cancelled: the job was cancelled; let it pass through.
        """
        faults.reached("read")
        if self._is_cancelled():
            raise Cancelled("The job was cancelled.")
        self._on_progress(pixels)

    @contextmanager
    def create(self, name: str, *, is_passing: bool = False) -> Iterator[BinaryIO]:
        """Open object `name` of this attempt for writing, append-only; it appears whole when the block ends, or never.

        What `is_passing` is read by what follows in the job alone: it gets no digest, and nobody waits for the disk.

        Raises:
            AttemptExists: the object is there already: two processes run the same attempt, and this one lost.
            ValueError: this very process wrote it, or is about to: a defect of the method, and no loss to another.
        """
        if name in self._names:
            raise ValueError(f"A shard writes {name} twice.")
        self._names.add(name)
        href = self.prefix + name
        try:
            with (
                _Timed(_create_once(href, is_durable=not is_passing)) as target,
                closing(HashingWriter(target, is_digested=not is_passing)) as writer,
            ):
                yield cast("BinaryIO", writer)
                faults.reached("write")
        except BaseException:
            self._names.discard(name)
            raise
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
def _create_once(href: str, *, is_durable: bool) -> Iterator[IO[bytes]]:
    path = local_path(href)
    if path is None:
        with _create_once_remote(href) as target:
            yield target
        return
    try:
        with localfile.create_once(path, is_durable=is_durable) as target:
            yield target
    except FileExistsError as error:
        raise AttemptExists(f"{href} was already written by another process.") from error


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


def read_exactly(href: str, start: int, stop: int) -> bytes:
    """Bytes `start … stop - 1` of an object, every one of them.

    Raises:
        OSError: the object ends before `stop`.
    """
    data = read_object(href, start, stop)
    if len(data) != stop - start:
        raise OSError(f"{href} ends at byte {start + len(data)}, expected {stop}")
    return data


def is_whole(ref: ObjectRef) -> bool:
    """Whether an object is there, with all its bytes."""
    import obstore
    from obstore.exceptions import NotFoundError

    path = local_path(ref.href)
    try:
        size = obstore.head(*remote_store(ref.href))["size"] if path is None else path.stat().st_size
    except (FileNotFoundError, NotFoundError):
        return False
    return size == ref.size


def _bytes_of(href: str, start: int, stop: int | None) -> bytes:
    path = local_path(href)
    if path is not None:
        with path.open("rb", buffering=0) as source:
            source.seek(start)
            return source.read() if stop is None else source.read(stop - start)
    import obstore

    store, key = remote_store(href)
    if stop is None:
        stop = obstore.head(store, key)["size"]
    return bytes(obstore.get_range(store, key, start=start, end=stop))
