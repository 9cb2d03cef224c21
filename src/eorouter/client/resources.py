"""The client's nouns: what is nicer to say than `call`. Every method is a thin walk over operations; none is private.

Answers stay plain dictionaries, exactly as the service gives them, so nothing is hidden and nothing can be out of date.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eorouter.client.problems import EoRouterError, JobCancelled, JobFailed, TooManyRequests, WaitTimeout
from eorouter.client.runtime import Json, Polling, Session, entries, follow
from eorouter.client.transfers import Progress, receive_file, send_file, sha256_of

_LONG_WAIT_S = 20.0
_OVER = frozenset({"completed", "failed", "cancelled"})
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

    def create(self, name: str, *, scopes: Sequence[str] | None = None, **fields: Any) -> Json:
        """Make a key; `secret` in the answer is the key itself.

        Args:
            name: what it is for.
            scopes: what it may do; all that the caller may, by default.
            fields: what else the operation `api_keys.create` takes.
        """
        if scopes is None:
            scopes = self._session.call("auth.me", {})["scopes"]
        return self._session.call("api_keys.create", {"name": name, "scopes": scopes, **fields})

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

    def progress(self, upload_id: str) -> Json:
        """How far an upload is."""
        return self._session.call("uploads.progress", {"upload_id": upload_id})

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
            InvalidInput: the service cannot take the file in; says why.
            WaitTimeout: it is still being taken in.
        """
        file = Path(path)
        asked = {
            "project_id": project_id,
            "filename": filename or file.name,
            "size_bytes": file.stat().st_size,
            "sha256": sha256_of(file),
            **fields,
        }
        ticket = self._session.call("uploads.initiate", asked)
        upload, address = ticket["upload"], ticket["address"]
        send_file(
            self._session, address["method"], address["url"], file,
            headers=address["headers"], on_progress=on_progress, timeout_s=transfer_timeout_s,
        )  # fmt: skip
        for _ in self._polling.beats(timeout_s):
            # The call waits for some time, answers the same when repeated, and raises what the ingest ended with.
            upload = self._session.call("uploads.complete", {"upload_id": upload["upload_id"]})
            if upload["state"] == "completed":
                return upload
        raise WaitTimeout(
            f"{file.name} is still being taken in after {timeout_s:g} s: "
            f"upload {upload['upload_id']} is {upload['state']}."
        )


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
        **fields: Any,
    ) -> Iterator[Json]:
        """Every item that matches, page after page; `fields` as the operation `items.search` takes them."""
        return entries(self._session, "items.search", {"project_id": project_id, "bbox": bbox, **fields})

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
            to: the file to write, or a folder to write it into under the name that the service gives it.
            on_progress: called with (bytes here, bytes in all, 0 when unknown).

        Returns:
            where it was written.
        """
        found, goal = self._asset(item_id, asset), Path(to)
        if goal.is_dir():
            folder, goal = goal, goal / f"{item_id}.{asset}"
            return receive_file(
                self._session, found["href"], goal, sha256=_sha256(found), on_progress=on_progress, into=folder
            )
        return receive_file(self._session, found["href"], goal, sha256=_sha256(found), on_progress=on_progress)

    def sha256(self, item_id: str, asset: str) -> str | None:
        """The published checksum of one file of an item, in hex; None when there is none."""
        return _sha256(self._asset(item_id, asset))

    def delete(self, item_id: str) -> None:
        """Remove an item and its files."""
        self._session.call("items.delete", {"item_id": item_id})

    def _asset(self, item_id: str, asset: str) -> Json:
        assets = self.get(item_id)["assets"]
        if asset not in assets:
            raise EoRouterError(f"Item {item_id} has no asset {asset!r}. It has: {', '.join(assets)}.")
        return assets[asset]


def _sha256(asset: Json) -> str | None:
    checksum = str(asset.get("file:checksum", ""))
    return checksum.removeprefix(_SHA256_MULTIHASH) if checksum.startswith(_SHA256_MULTIHASH) else None


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
        return self.document["job_id"]

    @property
    def state(self) -> str:
        """Its state, when last asked."""
        return self.document["state"]

    @property
    def items(self) -> dict[str, str]:
        """The items it made: ids by the method's names for them; empty until it completed."""
        result = self.document.get("result") or {}
        return dict(result.get("items") or {})

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items it made; empty until it completed."""
        return list(self.items.values())

    @property
    def is_over(self) -> bool:
        """It had ended, one way or another, when last asked."""
        return self.state in _OVER

    @property
    def method(self) -> str:
        """Id of its method."""
        return self.document["method"]

    @property
    def pixels(self) -> tuple[int, int]:
        """Pixels done, and at most to do, when last asked."""
        progress = self.document["progress"]
        return progress["pixels_done"], progress["pixels_total"]

    @property
    def shards(self) -> tuple[int, int]:
        """Shards done, and in all, when last asked."""
        progress = self.document["progress"]
        return progress["shards_done"], progress["shards_total"]

    @property
    def seconds(self) -> float | None:
        """How long it worked, from its start to its end; None before its end, or when it never started."""
        start, end = self.document.get("started_at"), self.document.get("finished_at")
        if start is None or end is None:
            return None
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()

    def refresh(self, *, wait_s: float = 0.0) -> "Job":
        """Ask the service again; with `wait_s` it answers when the job has ended, or after that time."""
        self.document = self._session.call("processing.jobs.get", {"job_id": self.id, "wait_s": wait_s or None})
        return self

    def events(self, *, after: int = 0) -> Iterator[Json]:
        """Every event of it behind `after`, as they happen, until it has ended; a connection that breaks is taken up.

        Raises:
            ApiProblem: the service refused.
            ConnectionFailed: it does not answer any more.
        """
        return follow(self._session, f"/v1/jobs/{self.id}/events", after=after)

    def cancel(self) -> "Job":
        """Ask the service to stop it."""
        self.document = self._session.call("processing.jobs.cancel", {"job_id": self.id})
        return self

    def wait(self, *, timeout_s: float | None = None, on_progress: Callable[["Job"], object] | None = None) -> "Job":
        """Wait for it to complete.

        Args:
            timeout_s: longest to wait; None waits as long as it takes.
            on_progress: called with this job each time it was asked, several times a second at first.

        Raises:
            JobFailed: it failed; carries the problem.
            JobCancelled: somebody cancelled it.
            WaitTimeout: it goes on.
        """
        for left in self._polling.beats(timeout_s):
            if on_progress is not None:
                on_progress(self)
            elif not self.is_over:
                # Who only waits for the end lets the service do the waiting: the answer comes the moment it is there.
                try:
                    self.refresh(wait_s=min(_LONG_WAIT_S, left))
                except TooManyRequests:  # as many wait as may: this one asks now and then instead
                    self.refresh()
            if self.is_over:
                return self._completed()
            if on_progress is not None:
                self.refresh()
        raise WaitTimeout(f"Job {self.id} is still {self.state} after {timeout_s:g} s; it goes on.")

    def _completed(self) -> "Job":
        if self.state == "failed":
            problem = self.document.get("problem") or {}
            raise JobFailed(
                f"Job {self.id} failed: {problem.get('message', 'no reason given')} [{problem.get('code', 'unknown')}]",
                self.document,
            )
        if self.state == "cancelled":
            raise JobCancelled(f"Job {self.id} was cancelled.", self.document)
        return self


class Jobs:
    """Work over items."""

    def __init__(self, session: Session, polling: Polling) -> None:
        self._session = session
        self._polling = polling

    def create(
        self,
        task: Mapping[str, Any],
        *,
        inputs: Sequence[str] = (),
        project_id: str | None = None,
        name: str | None = None,
    ) -> Job:
        """Start a task.

        Args:
            task: a method's parameters, with the method's id under `method`.
            inputs: ids of the items it reads, in the order it takes them.
            project_id: where the results go; by default the project of the first item. Without items it is the one
                that the key is restricted to, or the only one there is.
            name: what people call the job.
        """
        asked = {
            "task": task,
            "inputs": [{"item_id": item_id} for item_id in inputs],
            "project_id": project_id or (None if inputs else self._only_project()),
            "name": name,
        }
        return Job(self._session, self._polling, self._session.call("analytics.execute", asked))

    def get(self, job_id: str) -> Job:
        """One job."""
        return Job(self._session, self._polling, self._session.call("processing.jobs.get", {"job_id": job_id}))

    def list(self, **fields: Any) -> Iterator[Json]:
        """Every job, newest first; `fields` as the operation `processing.jobs.list` takes them."""
        return entries(self._session, "processing.jobs.list", fields)

    def _only_project(self) -> str:
        restricted = self._session.call("auth.me", {}).get("project_id")
        if restricted:
            return restricted
        there_are = [project["project_id"] for project in entries(self._session, "projects.list", {})]
        if len(there_are) != 1:
            raise EoRouterError(
                f"Say which project gets the results: project_id=… of {', '.join(there_are) or 'none yet'}."
            )
        return there_are[0]
