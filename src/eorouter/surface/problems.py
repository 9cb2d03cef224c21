"""Any exception as the one error body of the API."""

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from obstore.exceptions import BaseError as ObjectStoreError
from sqlalchemy import exc as database

from eorouter.errors import (
    ApiError,
    BodyTooLarge,
    InternalFault,
    InvalidInput,
    MalformedBody,
    MethodNotAllowed,
    MissingScope,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    from_compute,
)
from eorouter.surface.envelope import PROBLEM_TYPE
from eorouter_compute.errors import ComputeError

_BY_STATUS: dict[int, type[ApiError]] = {
    400: MalformedBody,
    401: Unauthenticated,
    403: MissingScope,
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
    503: Unavailable,
}
_HEADERS: dict[int, dict[str, str]] = {
    401: {"www-authenticate": "Bearer"},
    503: {"retry-after": "5"},
}

log = structlog.get_logger("eorouter.http")


def from_exception(error: Exception, *, request_id: str = "") -> ApiError:
    """The error to answer with; what nobody foresaw becomes an internal fault that names the request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ComputeError):
        return from_compute(error)
    if isinstance(error, HTTPException) and error.status_code in _BY_STATUS:
        return _from_framework(error)
    if isinstance(error, database.DataError):
        return InvalidInput("A value of the request cannot be stored: it is too large or holds characters no text has.")
    if is_outage(error):
        return Unavailable("A part of this service does not answer now. Try again in a few seconds.")
    return InternalFault(f"Something broke on our side. The logs have it under {request_id}.")


def is_outage(error: Exception) -> bool:
    """The database or the object store does not answer; as opposed to: we asked it something wrong."""
    if isinstance(error, database.OperationalError):
        return not str(error.orig).startswith(("no such ", "near "))  # SQLite says so of faulty statements
    if isinstance(error, database.DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, database.InterfaceError | database.TimeoutError | ObjectStoreError | ConnectionError)


def _from_framework(error: HTTPException) -> ApiError:
    kind = _BY_STATUS[error.status_code]
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if kind is NotFound:
        return NotFound("There is nothing at this address. /docs lists the addresses there are.")
    if kind is MethodNotAllowed:
        allowed = ", ".join(sorted(headers.get("allow", "").split(", ")))
        return MethodNotAllowed(f"This address takes {allowed}.", headers={"allow": allowed})
    return kind(error.detail or kind.__doc__ or "", headers=headers)


def respond(request: Request, error: Exception) -> Response:
    """The problem response for an exception; the framework calls it for its own errors as well."""
    request_id = request.scope["state"].get("request_id", "")
    known = from_exception(error, request_id=request_id)
    if isinstance(known, InternalFault):
        log.error("internal_fault", path=request.scope["path"], exc_info=error)
    elif isinstance(known, Unavailable):
        log.warning("unavailable", path=request.scope["path"], reason=f"{type(error).__name__}: {error}"[:500])
    return Response(
        content=encode(known.problem(request_id)),
        status_code=known.status,
        media_type=PROBLEM_TYPE.decode(),
        headers={**_HEADERS.get(known.status, {}), **known.headers},
    )


def encode(problem: Problem) -> bytes:
    """JSON of a problem; text that is no Unicode (half a surrogate pair in an address) is replaced, not refused."""
    try:
        return msgspec.json.encode(problem)
    except UnicodeEncodeError:
        clean = msgspec.structs.replace(
            problem,
            errors=(),
            **{name: getattr(problem, name).encode("utf-8", "replace").decode() for name in ("detail", "message")},
        )
        return msgspec.json.encode(clean)
