"""The Python client: `from eorouter import EoRouterClient`.

    with EoRouterClient("http://127.0.0.1:8000", api_key="eor_live_sk_…") as client:
        client.call("items.search", limit=10)          # every operation, by id
        client.execute(item_id, method="spectral_index", indices=["NDVI"]).wait()

It imports nothing of the service, only httpx2, msgspec and the standard library. Failures are exceptions of
`eorouter.client.problems`.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from eorouter.client.problems import (
    ApiProblem,
    BadRequest,
    ChecksumMismatch,
    Conflict,
    ConnectionFailed,
    EoRouterError,
    Fault,
    Forbidden,
    InvalidInput,
    JobCancelled,
    JobFailed,
    NotFound,
    PaymentRequired,
    ServiceFault,
    TooLarge,
    TooManyRequests,
    TransferFailed,
    Unauthenticated,
    Unavailable,
    WaitTimeout,
)
from eorouter.client.resources import ApiKeys, Items, Job, Jobs, Projects, Uploads
from eorouter.client.runtime import Json, Polling, Retries, Session, entries, pages

__all__ = [
    "ApiProblem",
    "BadRequest",
    "ChecksumMismatch",
    "Conflict",
    "ConnectionFailed",
    "EoRouterClient",
    "EoRouterError",
    "Fault",
    "Forbidden",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobFailed",
    "NotFound",
    "PaymentRequired",
    "Polling",
    "Retries",
    "ServiceFault",
    "TooLarge",
    "TooManyRequests",
    "TransferFailed",
    "Unauthenticated",
    "Unavailable",
    "WaitTimeout",
]


class EoRouterClient:
    """A service of eorouter, as seen by one caller.

    Attributes:
        projects, api_keys, uploads, items, jobs: what is nicer to say than `call`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        polling: Polling | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            base_url: the service's address, with its scheme; by default that of the variable `EOROUTER_URL`.
            api_key: a key, or an access token; by default that of the variable `EOROUTER_API_KEY`, unless an address
                was given: a key of the environment goes to the address of the environment only. Without one only what
                is public can be called, until `login`.
            timeout_s: longest to wait for an answer, or for the next bytes of one.
            retries: how often to try again, where that is safe.
            polling: how often to ask whether a job is done.

        Raises:
            ValueError: there is no address, or it is not one.
        """
        if base_url is None:
            base_url = os.environ.get("EOROUTER_URL", "")
            api_key = api_key or os.environ.get("EOROUTER_API_KEY") or None
            if not base_url:
                raise ValueError("Give the address of the service: EoRouterClient('http://…'), or set EOROUTER_URL.")
        self._session = Session(
            base_url,
            api_key=api_key,
            timeout_s=timeout_s,
            retries=retries or Retries(),
            user_agent=f"eorouter-python/{_version()}",
        )
        rhythm = polling or Polling()
        self.projects = Projects(self._session)
        self.api_keys = ApiKeys(self._session)
        self.uploads = Uploads(self._session, rhythm)
        self.items = Items(self._session)
        self.jobs = Jobs(self._session, rhythm)

    def __repr__(self) -> str:
        """Address and kind of credentials; never the credentials themselves."""
        return f"EoRouterClient({self.base_url!r}, {self._session.credentials})"

    def __enter__(self) -> Self:
        """Itself; the connections are closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def base_url(self) -> str:
        """Address of the service, without a slash at the end."""
        return self._session.base_url

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def call(self, operation_id: str, /, **fields: Any) -> Any:
        """Run any operation by its id; fields that are None are left out.

        Returns:
            the decoded answer; None when the operation has none.

        Raises:
            ApiProblem: the service refused; the subclass says which kind, `code` exactly what.
            ConnectionFailed: there was no answer.
        """
        return self._session.call(operation_id, fields)

    def pages(self, operation_id: str, /, **fields: Any) -> Iterator[Json]:
        """Every page of an operation that lists, following its cursors."""
        return pages(self._session, operation_id, fields)

    def entries(self, operation_id: str, /, **fields: Any) -> Iterator[Json]:
        """Every entry of every page of an operation that lists."""
        return entries(self._session, operation_id, fields)

    def signup(self, email: str, password: str, *, name: str | None = None, **fields: Any) -> Json:
        """Make an account and be logged in as it."""
        answer = self.call("auth.signup", email=email, password=password, name=name, **fields)
        self._session.start(answer)
        return answer

    def login(self, email: str, password: str) -> Json:
        """Log in; this client renews the session by itself when its token has run out."""
        answer = self.call("auth.login", email=email, password=password)
        self._session.start(answer)
        return answer

    def use_key(self, api_key: str) -> None:
        """Use this key from now on, instead of what was used before."""
        self._session.authenticate(api_key)

    def execute(
        self,
        *item_ids: str,
        method: str,
        inputs: Sequence[str] = (),
        project_id: str | None = None,
        name: str | None = None,
        **params: Any,
    ) -> Job:
        """Start a method over items: `execute(item_id, method="spectral_index", indices=["NDVI"]).wait()`.

        Args:
            item_ids: the items to work on.
            method: id of the method.
            inputs: further ids of items, for those who have them in a list.
            project_id: where the outputs shall be; the project of the first item by default.
            name: name of the job.
            params: the method's own parameters.
        """
        task = {"method": method, **{key: value for key, value in params.items() if value is not None}}
        return self.jobs.create(task, inputs=[*item_ids, *inputs], project_id=project_id, name=name)


def _version() -> str:
    try:
        return version("eorouter")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0"
