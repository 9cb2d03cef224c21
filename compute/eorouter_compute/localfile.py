"""Files on a disk of this machine, written once, front to back, and there whole or not at all.

What is to outlast the machine passes the page cache by, once it is large. Pages that the cache has not held lately are
dear on a virtual machine, dearer than the copying (of a merge of 467 MB they took half of the time), and what lies in
it must be waited for at the end. What another shard of the job reads in a moment stays in the cache and is not waited
for at all; should the machine be lost meanwhile, it is made anew.
"""

import errno
import io
import mmap
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

try:
    import fcntl
except ImportError:  # Windows, where nothing is written past the cache
    fcntl = None

_BLOCK_BYTES = 4 << 20
_CACHED_BLOCKS = 4  # what begins a file is read again soon: a picture is made of a raster's overviews
_ALIGNMENT = 4096  # of disks and their file systems, or a multiple of it
_BUFFER_BYTES = 1 << 17  # larger tiles go to the file without being copied here


@contextmanager
def create_once(path: Path, *, is_durable: bool) -> Iterator[IO[bytes]]:
    """Open `path` for writing, append-only; it appears when the block ends well, on the disk where it `is_durable`.

    Raises:
        FileExistsError: somebody else wrote it meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with _BlockFile(temporary) if is_durable else temporary.open("xb", buffering=_BUFFER_BYTES) as target:
            yield cast("IO[bytes]", target)
            target.flush()
        path.hardlink_to(temporary)  # fails when the name is taken, which a rename would not
    finally:
        temporary.unlink(missing_ok=True)


class _BlockFile(io.RawIOBase):
    """A new file that takes its bytes in blocks, one on its way to the disk while the next is filled."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._filling, self._leaving = (mmap.mmap(-1, _BLOCK_BYTES) for _ in range(2))  # on the boundary of a page
        self._filled = self._size = self._blocks = 0
        self._beside: ThreadPoolExecutor | None = None
        self._left: Future[None] | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        with memoryview(data) as given:
            if not given.nbytes:
                return 0
            with given.cast("B") as rest:
                for start in range(0, len(rest), _BLOCK_BYTES):
                    self._take(rest[start : start + _BLOCK_BYTES])
                self._size += len(rest)
                return len(rest)

    def _take(self, data: memoryview) -> None:
        """At most a block's bytes: what this block has room for, and the rest into the next one."""
        here = min(_BLOCK_BYTES - self._filled, len(data))
        self._filling[self._filled : self._filled + here] = data[:here]
        self._filled += here
        if self._filled < _BLOCK_BYTES:
            return
        self._wait()
        if self._blocks == _CACHED_BLOCKS:
            with suppress(OSError):  # a file system that knows no direct writing
                _pass_the_cache_by(self._descriptor, True)
        self._blocks += 1
        self._beside = self._beside or ThreadPoolExecutor(1)
        self._filling, self._leaving = self._leaving, self._filling
        self._left = self._beside.submit(_write, self._descriptor, self._leaving, _BLOCK_BYTES)
        self._filled = len(data) - here
        self._filling[: self._filled] = data[here:]

    def _wait(self) -> None:
        if self._left is not None:
            left, self._left = self._left, None
            left.result()

    def flush(self) -> None:
        """Write what is left and wait for the disk; nothing can be written after it."""
        if self._descriptor < 0:
            return
        self._wait()
        if self._filled:
            _write(self._descriptor, self._filling, -(-self._filled // _ALIGNMENT) * _ALIGNMENT)
            os.ftruncate(self._descriptor, self._size)
            self._filled = 0
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._descriptor >= 0:
            if self._beside is not None:
                self._beside.shutdown()
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


def _pass_the_cache_by(descriptor: int, is_direct: bool) -> None:
    if fcntl is None or not hasattr(os, "O_DIRECT"):
        return
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if is_direct else flags & ~os.O_DIRECT)


def _write(descriptor: int, block: mmap.mmap, size: int) -> None:
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    with memoryview(block) as view:
        done = 0
        while done < size:
            try:
                done += os.write(descriptor, view[done:size])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                _pass_the_cache_by(descriptor, False)  # a disk of larger sectors
                done += os.write(descriptor, view[done:size])
    if hasattr(os, "posix_fadvise"):
        # Linux begins to write pages it is told to drop; those not yet written it keeps.
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)
