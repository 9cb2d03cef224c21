"""Everything the client can raise: one class per kind of answer, so that callers catch what they can mend.

    EoRouterError
    ├── ApiProblem                 the service refused; `code` says exactly what, the class says which kind
    │   ├── BadRequest 400 · Unauthenticated 401 · PaymentRequired 402 · Forbidden 403 · NotFound 404
    │   ├── Conflict 409 · TooLarge 413 · InvalidInput 422 · TooManyRequests 429
    │   └── ServiceFault 5xx ── Unavailable 502, 503, 504
    ├── ConnectionFailed           no answer at all, after every try that was safe
    ├── TransferFailed             a file did not arrive whole ── ChecksumMismatch
    ├── JobFailed · JobCancelled   the job ended without its outputs
    └── WaitTimeout                it goes on, but not within the time given

Classes follow the HTTP status, codes are the service's own and finer: `invalid_credentials` and `unauthenticated` are
both `Unauthenticated`. A code that this version does not know still has the right class.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong with a request: a JSON pointer into it, what was expected, what came."""

    pointer: str = ""
    message: str = ""
    code: str = "invalid"
    expected: str | None = None
    received: str | None = None


class EoRouterError(Exception):
    """Base of everything this client raises of its own."""


class ApiProblem(EoRouterError):
    """The service answered with an error.

    Attributes:
        status: HTTP status.
        code: what is wrong, in the service's words; stable, for programs.
        message: what is wrong, for people.
        errors: each fault of the request, located.
        request_id: finds this request in the service's logs.
        retry_after_s: how long the service asks to wait, when it says so.
        data: what else the answer says: of a refused payment `required_cents` and `available_cents`, say.
    """

    def __init__(
        self,
        *,
        status: int,
        code: str,
        message: str,
        errors: tuple[Fault, ...] = (),
        request_id: str = "",
        retry_after_s: float | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.errors = errors
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.data = dict(data or {})

    def __str__(self) -> str:
        """Message, code and request id on the first line; then a line per located fault."""
        lines = [f"{self.message} [{self.code}, {self.status}, request {self.request_id or 'unknown'}]"]
        for fault in self.errors:
            if not fault.pointer and fault.message == self.message:
                continue
            detail = f"  {fault.pointer or '/'}: {fault.message}"
            if fault.expected is not None or fault.received is not None:
                detail += f" (expected {fault.expected or 'something else'}, got {fault.received or 'nothing'})"
            lines.append(detail)
        return "\n".join(lines)


class BadRequest(ApiProblem):
    """400: the request cannot be read."""


class Unauthenticated(ApiProblem):
    """401: no credentials, or credentials that are not valid."""


class PaymentRequired(ApiProblem):
    """402: the account cannot pay for this."""


class Forbidden(ApiProblem):
    """403: known, but not allowed; the message names the scope that is missing."""


class NotFound(ApiProblem):
    """404: there is no such thing, or it belongs to somebody else."""


class Conflict(ApiProblem):
    """409: not in a state that allows this."""


class TooLarge(ApiProblem):
    """413: the body, or what the organisation stores, would exceed a limit."""


class InvalidInput(ApiProblem):
    """422: the request has not the form, or asks for something that cannot be computed; `errors` says where."""


class TooManyRequests(ApiProblem):
    """429: slow down; `retry_after_s` says how long."""


class ServiceFault(ApiProblem):
    """5xx: something broke on the service's side; quote `request_id` when reporting it."""


class Unavailable(ServiceFault):
    """502, 503, 504: a part this request needs does not answer now."""


class ConnectionFailed(EoRouterError):
    """There was no answer: the address, the network or the service is at fault."""


class TransferFailed(EoRouterError):
    """A file could not be moved whole."""


class ChecksumMismatch(TransferFailed):
    """A downloaded file is not the one that the service published; it was removed."""


class JobFailed(EoRouterError):
    """A job ended in failure.

    Attributes:
        job: the job as the service describes it.
        problem: code, message and, where known, pointer and shard.
    """

    def __init__(self, message: str, job: dict[str, Any]) -> None:
        super().__init__(message)
        self.job = job
        self.problem: dict[str, Any] = job.get("problem") or {}


class JobCancelled(EoRouterError):
    """A job was cancelled before it completed.

    Attributes:
        job: the job as the service describes it.
    """

    def __init__(self, message: str, job: dict[str, Any]) -> None:
        super().__init__(message)
        self.job = job


class WaitTimeout(EoRouterError, TimeoutError):
    """The time given for waiting is over; the job or upload itself goes on."""


_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_BY_STATUS: dict[int, type[ApiProblem]] = {
    400: BadRequest,
    401: Unauthenticated,
    402: PaymentRequired,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


_KNOWN = frozenset({"type", "title", "status", "detail", "code", "message", "errors", "request_id"})


def problem_of(status: int, body: bytes, headers: Mapping[str, str]) -> ApiProblem:
    """The exception for an error answer, also when a proxy wrote it and the body is no problem document."""
    kind = _BY_STATUS.get(status, ServiceFault if status >= 500 else ApiProblem)
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = None
    if not isinstance(document, dict):
        document = {}
    return kind(
        status=status,
        code=str(document.get("code") or f"http_{status}"),
        message=str(
            document.get("message")
            or document.get("detail")
            or f"The service answered {status} {_PHRASES.get(status, '')}".rstrip() + "."
        ),
        errors=_faults(document.get("errors")),
        request_id=str(document.get("request_id") or headers.get("x-request-id", "")),
        retry_after_s=retry_after_s(headers),
        data={name: value for name, value in document.items() if name not in _KNOWN},
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header; its rarely used date form is read as absent."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _faults(value: object) -> tuple[Fault, ...]:
    try:
        return msgspec.convert(value or [], tuple[Fault, ...])
    except msgspec.ValidationError:
        return ()
