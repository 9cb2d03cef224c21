"""Bytes by key, through obstore: a local folder, S3, Google Cloud Storage or Azure, with the same few verbs.

Keys: `{org}/{project}/items/{item}/{asset file}`, `{org}/{project}/uploads/{upload}`,
`{org}/{project}/jobs/{job}/attempts/{shard}/{token}/…`. A key's `href` is what workers and rasterio understand.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import LocalStore, from_url

CHUNK_BYTES = 1 << 20


class ObjectMissing(Exception):
    """No object has this key."""


class ObjectExists(Exception):
    """An object has this key already."""


class Objects:
    """An object store under one prefix."""

    def __init__(self, url: str, data_dir: Path) -> None:
        self.is_local = not url
        self.root = (data_dir / "objects").absolute() if self.is_local else None
        self.url = f"file://{quote(str(self.root))}" if self.is_local else url.rstrip("/")
        self._store: Any = LocalStore(str(self.root), mkdir=True) if self.is_local else from_url(self.url)

    def href(self, key: str) -> str:
        """The URL of an object, as workers read and write it."""
        return f"{self.url}/{quote(key)}"

    def local_path(self, key: str) -> Path | None:
        """The file behind a key, where objects are files."""
        return None if self.root is None else self.root / key

    async def put(self, key: str, data: bytes, *, overwrite: bool = True) -> None:
        """Store `data` under `key`.

        Raises:
            ObjectExists: `overwrite` is False and the key is taken.
        """
        try:
            await obstore.put_async(self._store, key, data, mode="overwrite" if overwrite else "create")
        except AlreadyExistsError as error:
            raise ObjectExists(key) from error

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, bytes_max: int) -> tuple[int, str]:
        """Store a stream in bounded memory; returns its size and SHA-256.

        Raises:
            ValueError: the stream is longer than `bytes_max`; nothing is left under the key.
        """
        digest, size = hashlib.sha256(), 0
        writer = obstore.open_writer_async(self._store, key, buffer_size=8 * CHUNK_BYTES)
        finished = False
        try:
            async with writer:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > bytes_max:
                        raise ValueError(f"The stream is longer than {bytes_max} bytes.")
                    digest.update(chunk)
                    await writer.write(chunk)
            finished = True
        finally:
            if not finished:
                await self.delete([key])
        return size, digest.hexdigest()

    async def size(self, key: str) -> int:
        """Size of an object in bytes.

        Raises:
            ObjectMissing: there is none.
        """
        try:
            return (await obstore.head_async(self._store, key))["size"]
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(key) from error

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes `start … stop - 1` of an object, all of it by default."""
        if stop is None:
            stop = await self.size(key)
        if stop <= start:
            return b""
        try:
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=stop))
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(key) from error

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes `start … stop - 1` in chunks, in bounded memory."""
        while start < stop:
            step = min(start + 4 * CHUNK_BYTES, stop)
            yield await self.read(key, start, step)
            start = step

    async def copy(self, source: str, target: str) -> None:
        """Copy within the store, over whatever is there; where objects are files this is a hard link."""
        if self.root is not None:
            _link(self.root / source, self.root / target)
            return
        await obstore.copy_async(self._store, source, target)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; absent ones are not an error."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                continue

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Keys and sizes below a prefix, in pages of the store."""
        async for page in obstore.list(self._store, prefix=prefix):
            for entry in page:
                yield entry["path"], entry["size"]

    def sign(self, key: str, method: Literal["GET", "PUT"], lifetime: timedelta) -> str | None:
        """A signed address at the store itself, or None where the store cannot sign (a local folder)."""
        if self.is_local:
            return None
        return obstore.sign(self._store, method, key, lifetime)

    async def check(self) -> None:
        """Write and delete a probe; raises what the store raises."""
        await self.put(".probe", b"eorouter")
        await self.delete([".probe"])


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.hardlink_to(source)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # where both names were the same file already, a rename leaves both
