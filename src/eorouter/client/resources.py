"""The client's nouns: what is nicer to say than `call`. Every method is a thin walk over operations; none is private.

Answers stay plain dictionaries, exactly as the service gives them, so nothing is hidden and nothing can be out of date.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from eorouter.client.problems import EoRouterError, JobCancelled, JobFailed, UploadFailed, WaitTimeout
from eorouter.client.runtime import Json, Polling, Session, entries
from eorouter.client.transfers import Progress, receive_file, send_file, sha256_of

_SHA256_MULTIHASH = "1220"  # multihash prefix of a 32-byte SHA-256: how STAC's file extension writes checksums


class Projects:
    """Folders of one organisation's items and jobs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, name: str, *, description: str | None = None) -> Json:
        """Make a project."""
        return self._session.call("projects.create", {"name": name, "description": description})

    def get(self, project_id: str) -> Json:
        """One project."""
        return self._session.call("projects.get", {"project_id": project_id})

    def list(self) -> Iterator[Json]:
        """Every project, page after page."""
        return entries(self._session, "projects.list", {})


class ApiKeys:
    """Keys for programs. The secret is in the answer of `create` and nowhere else."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, name: str, **fields: Any) -> Json:
        """Make a key; `fields` as the operation `api_keys.create` takes them."""
        return self._session.call("api_keys.create", {"name": name, **fields})

    def list(self) -> Iterator[Json]:
        """Every key, without its secret."""
        return entries(self._session, "api_keys.list", {})

    def revoke(self, key_id: str) -> None:
        """End a key at once."""
        self._session.call("api_keys.revoke", {"key_id": key_id})


class Uploads:
    """Files on their way to becoming items."""

    def __init__(self, session: Session, polling: Polling) -> None:
        self._session = session
        self._polling = polling

    def get(self, upload_id: str) -> Json:
        """One upload."""
        return self._session.call("uploads.get", {"upload_id": upload_id})

    def upload(
        self,
        path: Path | str,
        *,
        project_id: str,
        filename: str | None = None,
        on_progress: Progress | None = None,
        transfer_timeout_s: float = 600.0,
        timeout_s: float | None = 3600.0,
        **fields: Any,
    ) -> Json:
        """Upload a raster or vector file and wait until it is an item.

        Args:
            path: the file; it is streamed, never held in memory.
            project_id: where the item shall be.
            filename: name to give it there; the file's own by default.
            on_progress: called with (bytes sent, bytes in all).
            transfer_timeout_s: longest that one read or write on the connection may stand still.
            timeout_s: longest to wait for the service to take the file in; None waits for ever.
            fields: what else is known of it, as `uploads.initiate` takes it: title, datetime, bands…

        Returns:
            the completed upload; `item_id` in it is the new item.

        Raises:
            UploadFailed: the service could not take it in; says why.
            WaitTimeout: it is still being taken in.
        """
        file = Path(path)
        upload = self._session.call(
            "uploads.initiate",
            {
                "project_id": project_id,
                "filename": filename or file.name,
                "size_bytes": file.stat().st_size,
                "sha256": sha256_of(file),
                **fields,
            },
        )
        send_file(
            self._session, "PUT", upload["upload_url"], file,
            headers={}, on_progress=on_progress, timeout_s=transfer_timeout_s,
        )  # fmt: skip
        upload_id = upload["id"]
        upload = self._session.call("uploads.complete", {"upload_id": upload_id})
        for _ in self._polling.beats(timeout_s):
            if upload["state"] == "completed":
                return upload
            if upload["state"] == "failed":
                problem = upload.get("problem") or {}
                raise UploadFailed(
                    f"{file.name} was not taken in: {problem.get('message', 'no reason given')} "
                    f"[{problem.get('code', 'unknown')}, upload {upload_id}]",
                    upload,
                )
            upload = self.get(upload_id)
        raise WaitTimeout(f"{file.name} is still being taken in after {timeout_s:g} s (upload {upload_id}).")


class Items:
    """Rasters and tables of a project, as STAC items."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, item_id: str) -> Json:
        """One item, as a STAC 1.1 document."""
        return self._session.call("items.get", {"item_id": item_id})

    def search(
        self,
        *,
        project_id: str | None = None,
        bbox: Sequence[float] | None = None,
        intersects: Mapping[str, Any] | None = None,
        datetime: str | None = None,
        **fields: Any,
    ) -> Iterator[Json]:
        """Every item that matches, page after page; `fields` as the operation `items.search` takes them."""
        asked = {"project_id": project_id, "bbox": bbox, "intersects": intersects, "datetime": datetime, **fields}
        return entries(self._session, "items.search", asked)

    def download(
        self,
        item_id: str,
        asset: str,
        *,
        to: Path | str,
        on_progress: Progress | None = None,
    ) -> Path:
        """Download one file of an item, resuming if it breaks off, and check it against its published checksum.

        Args:
            item_id: the item.
            asset: key of the asset, as in the item's `assets`.
            to: the file to write, or a folder to write it into under its own name.
            on_progress: called with (bytes here, bytes in all, 0 when unknown).

        Returns:
            where it was written.
        """
        found = self._asset(item_id, asset)
        goal = Path(to)
        if goal.is_dir():
            goal /= _filename(found, asset)
        checksum = str(found.get("file:checksum", ""))
        sha256 = checksum.removeprefix(_SHA256_MULTIHASH) if checksum.startswith(_SHA256_MULTIHASH) else None
        return receive_file(self._session, found["href"], goal, sha256=sha256, on_progress=on_progress)

    def delete(self, item_id: str) -> None:
        """Remove an item and its files."""
        self._session.call("items.delete", {"item_id": item_id})

    def _asset(self, item_id: str, asset: str) -> Json:
        assets = self.get(item_id)["assets"]
        if asset not in assets:
            raise EoRouterError(f"Item {item_id} has no asset {asset!r}. It has: {', '.join(assets)}.")
        return assets[asset]


def _filename(asset: Json, key: str) -> str:
    """The last part of the asset's address, as a plain name whatever the address tries; the key without one."""
    name = unquote(urlsplit(asset["href"]).path).replace("\\", "/").rsplit("/", 1)[-1]
    return name if name.strip(". ") and name.isprintable() else key


class Job:
    """One job and the means to follow it. `document` is what the service last said of it."""

    def __init__(self, session: Session, polling: Polling, document: Json) -> None:
        self._session = session
        self._polling = polling
        self.document = document

    def __repr__(self) -> str:
        """Id and state."""
        return f"Job({self.id!r}, {self.state!r})"

    @property
    def id(self) -> str:
        """Its id."""
        return self.document["id"]

    @property
    def state(self) -> str:
        """Its state, when last asked."""
        return self.document["state"]

    @property
    def item_ids(self) -> list[str]:
        """The items it made; empty until it completed."""
        return list(self.document.get("item_ids") or ())

    def refresh(self) -> "Job":
        """Ask the service again."""
        self.document = self._session.call("jobs.get", {"job_id": self.id})
        return self

    def cancel(self) -> "Job":
        """Ask the service to stop it."""
        self.document = self._session.call("jobs.cancel", {"job_id": self.id}) or self.refresh().document
        return self

    def wait(
        self, *, timeout_s: float | None = None, on_progress: Callable[["Job"], object] | None = None
    ) -> "Job":
        """Wait for it to complete.

        Args:
            timeout_s: longest to wait; None waits as long as it takes.
            on_progress: called with this job each time it was asked.

        Raises:
            JobFailed: it failed; carries the problem.
            JobCancelled: somebody cancelled it.
            WaitTimeout: it goes on.
        """
        for _ in self._polling.beats(timeout_s):
            if on_progress is not None:
                on_progress(self)
            if self.state == "completed":
                return self
            if self.state == "failed":
                problem = self.document.get("problem") or {}
                raise JobFailed(
                    f"Job {self.id} failed: {problem.get('message', 'no reason given')} "
                    f"[{problem.get('code', 'unknown')}]",
                    self.document,
                )
            if self.state == "cancelled":
                raise JobCancelled(f"Job {self.id} was cancelled.", self.document)
            self.refresh()
        raise WaitTimeout(f"Job {self.id} is still {self.state} after {timeout_s:g} s; it goes on.")


class Jobs:
    """Work over items."""

    def __init__(self, session: Session, polling: Polling) -> None:
        self._session = session
        self._polling = polling

    def create(
        self,
        task: Mapping[str, Any],
        *,
        inputs: Sequence[str],
        project_id: str | None = None,
        name: str | None = None,
    ) -> Job:
        """Start a task: a method's parameters with the method's id under `method`."""
        asked = {"task": task, "inputs": list(inputs), "project_id": project_id, "name": name}
        return Job(self._session, self._polling, self._session.call("analytics.execute", asked))

    def get(self, job_id: str) -> Job:
        """One job."""
        return Job(self._session, self._polling, self._session.call("jobs.get", {"job_id": job_id}))

    def list(self, **fields: Any) -> Iterator[Json]:
        """Every job, newest first; `fields` as the operation takes them."""
        return entries(self._session, "jobs.list", fields)
