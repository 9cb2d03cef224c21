"""How the client talks: one connection pool, credentials, retries that are safe, errors with a type, paging, files.

What may be repeated is decided here and nowhere else. A request that never left (no connection) is always repeated; an
answer 429, 502, 503, 504 or a broken connection only when doing the request twice is the same as once: reads, and
transfers of whole files. Waits between tries grow and are drawn at random, so that many clients do not return in step;
`Retry-After` (seconds) is honoured.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
import msgspec

from eorouter.client.problems import (
    ApiProblem,
    ConnectionFailed,
    EoRouterError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    problem_of,
)

Json = dict[str, Any]

_READ_VERBS = frozenset({"search", "get", "list", "estimate", "me", "progress", "signed_url", "balance"})
SPENDING = frozenset({
    "analytics.execute", "clip.create_from_item", "processing.create_and_dispatch", "processing.dispatch",
    "processing.resume",
})  # fmt: skip
"""Operations that spend: each call carries an idempotency key of its own, so that sending it again spends once."""

_REPEATABLE = SPENDING | frozenset({"uploads.complete"})  # repeating the call repeats the answer, as its documents say
_SILENCE_S = 60.0  # a stream says that it is alive several times in this time
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_BROKEN = (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ReadTimeout, httpx2.WriteTimeout)


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how patiently.

    Attributes:
        tries: most times that one request is sent.
        first_wait_s, longest_wait_s: the n-th wait is drawn between 0.5 and 1 times
            min(longest_wait_s, first_wait_s · 2ⁿ); a `Retry-After` of the service is a lower bound of it.
        patience_s: a `Retry-After` beyond this is not waited for; the error is raised.
    """

    tries: int = 4
    first_wait_s: float = 0.2
    longest_wait_s: float = 8.0
    patience_s: float = 60.0

    def wait_s(self, failures: int, asked_s: float | None = None) -> float:
        """Seconds to wait after that many failures (1 or more)."""
        ceiling = min(self.longest_wait_s, self.first_wait_s * 2 ** (failures - 1))
        drawn = ceiling * random.uniform(0.5, 1.0)  # noqa: S311
        return max(drawn, asked_s or 0.0)


class Session:
    """Connections and credentials of one client; everything else calls through it.

    Safe to share between threads: the pool is, and credentials are replaced as one value.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None, timeout_s: float, retries: Retries, user_agent: str
    ) -> None:
        url = httpx2.URL(base_url)
        if url.scheme not in {"http", "https"} or not url.host:
            raise ValueError(
                f"base_url is the service's address with its scheme, like http://127.0.0.1:8000; got {base_url!r}."
            )
        self.base_url = str(url).rstrip("/")
        self.retries = retries
        self.timeout_s = timeout_s
        self._origin = _origin(url)
        self._bearer = api_key
        self._refresh_token: str | None = None
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            headers={"user-agent": user_agent, "accept": "application/json"},
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        """Address and kind of credentials, never the credentials."""
        return f"Session({self.base_url!r}, {self.credentials})"

    @property
    def credentials(self) -> str:
        """What kind of credentials are in use: `anonymous`, `session` or `key`."""
        return "anonymous" if self._bearer is None else "session" if self._refresh_token else "key"

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def authenticate(self, bearer: str | None, refresh_token: str | None = None) -> None:
        """Use these credentials from now on; `None` for none."""
        self._bearer, self._refresh_token = bearer, refresh_token

    def url(self, path_or_url: str) -> str:
        """An absolute address; paths are those of this service."""
        return self.base_url + path_or_url if path_or_url.startswith("/") else path_or_url

    def call(self, operation_id: str, fields: Mapping[str, Any]) -> Any:
        """Run an operation by id and return its decoded answer; fields that are None are left out."""
        body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
        headers = {"content-type": "application/json"}
        if operation_id in SPENDING:
            headers["idempotency-key"] = str(uuid.uuid4())
        is_repeatable = operation_id in _REPEATABLE or operation_id.rsplit(".", 1)[-1] in _READ_VERBS
        path = f"/v1/op/{operation_id}"
        try:
            return self.send("POST", path, content=lambda: body, headers=headers, is_repeatable=is_repeatable)
        except Unauthenticated as problem:
            if problem.code != "unauthenticated" or not self._refresh():
                raise
            return self.send("POST", path, content=lambda: body, headers=headers, is_repeatable=is_repeatable)

    def send(
        self,
        method: str,
        path_or_url: str,
        *,
        content: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool,
        timeout_s: float | None = None,
    ) -> Any:
        """Send a request, whole answer; repeated where that is safe. `content` makes the body afresh for each try.

        Raises:
            ApiProblem: the service refused.
            ConnectionFailed: no answer.
        """

        def attempt() -> Any:
            with self.stream(method, path_or_url, content=content, headers=headers, timeout_s=timeout_s) as response:
                body = response.read()
                if not body:
                    return None
                return msgspec.json.decode(body)

        return self.persist(attempt, is_repeatable=is_repeatable)

    @contextmanager
    def stream(
        self,
        method: str,
        path_or_url: str,
        *,
        content: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[httpx2.Response]:
        """One try, body not yet read; credentials go to this service's own origin only, whatever a link says.

        Raises:
            ApiProblem: the service refused.
        """
        url = self.url(path_or_url)
        sent = dict(headers or {})
        if self._bearer is not None and _origin(httpx2.URL(url)) == self._origin:
            sent["authorization"] = f"Bearer {self._bearer}"
        request = self._http.build_request(
            method,
            url,
            headers=sent,
            content=None if content is None else content(),
            timeout=httpx2.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
        )
        response = self._http.send(request, stream=True, follow_redirects=method == "GET")
        try:
            if not response.is_success:
                raise problem_of(response.status_code, response.read(), response.headers)
            yield response
        finally:
            response.close()

    def persist(self, attempt: Callable[[], Any], *, is_repeatable: bool) -> Any:
        """Run `attempt` until it succeeds, fails for good, or the tries are used up.

        Raises:
            ApiProblem: the last refusal.
            ConnectionFailed: the last try had no answer.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except (httpx2.TransportError, TooManyRequests, Unavailable) as error:
                failures += 1
                asked_s = getattr(error, "retry_after_s", None)
                may_repeat = is_repeatable or isinstance(error, _NEVER_SENT)
                is_passing = isinstance(error, (*_NEVER_SENT, *_BROKEN, ApiProblem))
                is_patient = asked_s is None or asked_s <= self.retries.patience_s
                if not (may_repeat and is_passing and is_patient) or failures >= self.retries.tries:
                    raise self._final(error, failures) from error
                time.sleep(self.retries.wait_s(failures, asked_s))
            except msgspec.DecodeError as error:
                raise EoRouterError(
                    f"{self.base_url} answered with something that is not JSON. Is this the address of eorouter?"
                ) from error

    def _final(self, error: Exception, failures: int) -> Exception:
        if isinstance(error, ApiProblem):
            return error
        tries = f" after {failures} tries" if failures > 1 else ""
        hint = " Is the service running there?" if isinstance(error, httpx2.ConnectError) else ""
        return ConnectionFailed(f"No answer from {self.base_url}{tries}: {_reason(error)}.{hint}")

    def _refresh(self) -> bool:
        """Trade the refresh token for a new session; False when there is none to trade."""
        token = self._refresh_token
        if token is None:
            return False
        self._bearer = self._refresh_token = None
        self.start(self.call("auth.refresh", {"refresh_token": token}))
        return True

    def start(self, session: Mapping[str, Any]) -> None:
        """Use the tokens of a log-in's answer from now on."""
        self.authenticate(session["access_token"], session.get("refresh_token"))


def pages(session: Session, operation_id: str, fields: Mapping[str, Any]) -> Iterator[Json]:
    """Every page of a list, following `next_cursor`."""
    asked = dict(fields)
    while True:
        page = session.call(operation_id, asked)
        yield page
        cursor = page.get("next_cursor")
        if not cursor:
            return
        asked["cursor"] = cursor


def entries(session: Session, operation_id: str, fields: Mapping[str, Any]) -> Iterator[Json]:
    """Every entry of every page. A page has one list; that is where its entries are."""
    for page in pages(session, operation_id, fields):
        lists = [value for value in page.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise EoRouterError(f"{operation_id} does not answer with a list: it has {', '.join(page)}.")
        yield from lists[0]


def follow(session: Session, path: str, *, after: int) -> Iterator[Json]:
    """Every entry of a list that goes on, behind the event `after`; a stream that breaks off is taken up where it was.

    The list is over when a stream has nothing more to send (204); whatever else ends it, the next one tells.

    Raises:
        ApiProblem: the service refused.
        ConnectionFailed: it does not answer any more.
    """
    is_over = False
    stream: Iterator[Json] | None = None

    def read() -> Iterator[Json]:
        nonlocal is_over
        headers = {"accept": "application/x-ndjson"}
        with session.stream("GET", f"{path}?after={after}", headers=headers, timeout_s=_SILENCE_S) as response:
            is_over = response.status_code == 204
            yield from (msgspec.json.decode(line) for line in response.iter_lines() if line)

    def advance() -> Json | None:
        nonlocal stream
        stream = stream or read()
        try:
            return next(stream, None)
        except Exception:
            stream = None  # the next try opens another
            raise

    while True:
        entry = session.persist(advance, is_repeatable=True)
        if entry is not None:
            after = entry["event_id"]
            yield entry
        elif is_over:
            return
        else:
            stream = None
            time.sleep(session.retries.wait_s(1))


class Polling(msgspec.Struct, frozen=True, kw_only=True):
    """Rhythm of asking whether something is done: `first_s` apart, each wait 1.5 times the last, up to `longest_s`."""

    first_s: float = 0.05
    longest_s: float = 2.0

    def beats(self, timeout_s: float | None) -> Iterator[float]:
        """Sleep between questions; yields the seconds left, and ends when there are none."""
        start, wait = time.monotonic(), self.first_s
        while True:
            left = float("inf") if timeout_s is None else timeout_s - (time.monotonic() - start)
            if left <= 0:
                return
            yield left
            time.sleep(min(wait, left))
            wait = min(wait * 1.5, self.longest_s)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
