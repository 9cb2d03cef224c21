"""The errors of the API: one class per code, each naming its HTTP status.

    ApiError
    ├── 400  MalformedBody · InvalidCursor · IdempotencyKeyMissing
    ├── 401  Unauthenticated · InvalidCredentials · WrongPassword · InvalidToken
    ├── 402  PaymentRequired ── InsufficientBalance · BudgetExceeded
    ├── 403  MissingScope · SignatureInvalid
    ├── 404  NotFound · UnknownOperation
    ├── 405  MethodNotAllowed
    ├── 409  EmailTaken · Conflict · IdempotencyKeyInFlight
    ├── 413  BodyTooLarge · QuotaExceeded
    ├── 415  UnsupportedMediaType
    ├── 416  RangeNotSatisfiable
    ├── 422  InvalidInput · IdempotencyKeyReused · SourceRefused · ComputeRefused (with the code of compute's class)
    ├── 429  TooManyWaits · TooManyTries
    ├── 500  InternalFault
    └── 503  Unavailable

The body is RFC 9457 problem details with `code` and `message` on top; `errors` locates each fault by JSON pointer
(RFC 6901) into the request. A foreign resource is `not_found`, never a 403: its existence is not ours to tell.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec

from eorouter_compute.errors import ComputeError, ShardFault


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with a request: where, what was expected, what came."""

    pointer: str
    message: str
    code: str = "invalid"
    expected: str | None = None
    received: str | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every error answer, `application/problem+json`; the last three are a refused payment's."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    message: str
    errors: tuple[Fault, ...]
    request_id: str
    required_cents: int | msgspec.UnsetType = msgspec.UNSET
    available_cents: int | msgspec.UnsetType = msgspec.UNSET
    budget_id: str | msgspec.UnsetType = msgspec.UNSET


class ApiError(Exception):
    """Base of every error the API answers with; `message` is written for the person who reads it."""

    code: ClassVar[str] = "api_error"
    status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, errors: Sequence[Fault] = (), headers: Mapping[str, str] | None = None, **data: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.data = data

    def problem(self, request_id: str) -> Problem:
        """The body to answer with."""
        return Problem(
            type=f"/docs/errors#{self.code}",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.message,
            code=self.code,
            message=self.message,
            errors=self.errors,
            request_id=request_id,
        )


class MalformedBody(ApiError):
    """The body is not JSON, or not of the stated media type."""

    code, status = "malformed_body", 400


class InvalidCursor(ApiError):
    """The cursor was not made by this service for this list, or was altered."""

    code, status = "invalid_cursor", 400


class IdempotencyKeyMissing(ApiError):
    """An operation that spends needs an `Idempotency-Key` header."""

    code, status = "idempotency_key_missing", 400


class Unauthenticated(ApiError):
    """No credentials, or credentials that are unknown, expired or revoked."""

    code, status = "unauthenticated", 401


class InvalidCredentials(ApiError):
    """E-mail and password do not belong together."""

    code, status = "invalid_credentials", 401


class WrongPassword(ApiError):
    """The current password given with a password change is wrong."""

    code, status = "wrong_password", 401


class InvalidToken(ApiError):
    """A refresh token is unknown, expired, or was used before; reuse ends the whole session."""

    code, status = "invalid_token", 401


class PaymentRequired(ApiError):
    """The account cannot pay for this."""

    code, status = "payment_required", 402

    def problem(self, request_id: str) -> Problem:
        """The body, with the amounts for programs."""
        return msgspec.structs.replace(super().problem(request_id), **self.data)


class InsufficientBalance(PaymentRequired):
    """Fewer credits are available than this can cost; the message says how many are."""

    code, status = "insufficient_balance", 402


class BudgetExceeded(PaymentRequired):
    """A budget does not allow this; the message names it and says what is left of it."""

    code, status = "budget_exceeded", 402


class MissingScope(ApiError):
    """The principal is known but may not do this; the message names the scope."""

    code, status = "missing_scope", 403


class SignatureInvalid(ApiError):
    """A signed address was altered or has expired."""

    code, status = "signature_invalid", 403


class NotFound(ApiError):
    """There is no such thing, or it belongs to somebody else."""

    code, status = "not_found", 404


class UnknownOperation(ApiError):
    """No operation has this id; the message suggests near ones."""

    code, status = "unknown_operation", 404


class MethodNotAllowed(ApiError):
    """The address exists, but not for this HTTP method."""

    code, status = "method_not_allowed", 405


class EmailTaken(ApiError):
    """An account with this e-mail exists."""

    code, status = "email_taken", 409


class Conflict(ApiError):
    """The thing is not in a state that allows this; the message names the state."""

    code, status = "conflict", 409


class IdempotencyKeyInFlight(ApiError):
    """A request with this `Idempotency-Key` is being carried out; ask again in a moment."""

    code, status = "idempotency_key_in_flight", 409


class BodyTooLarge(ApiError):
    """The request body exceeds the limit; the message names it."""

    code, status = "body_too_large", 413


class QuotaExceeded(ApiError):
    """The organisation's storage quota does not hold this; the message says how much is left."""

    code, status = "quota_exceeded", 413


class UnsupportedMediaType(ApiError):
    """The body has a media type this address does not take."""

    code, status = "unsupported_media_type", 415


class RangeNotSatisfiable(ApiError):
    """The requested byte range lies outside the object."""

    code, status = "range_not_satisfiable", 416


class InvalidInput(ApiError):
    """The request does not have the form the operation takes; each fault is located."""

    code, status = "invalid_input", 422


class IdempotencyKeyReused(ApiError):
    """The `Idempotency-Key` belongs to another request; use a fresh one for each."""

    code, status = "idempotency_key_reused", 422


class SourceRefused(ApiError):
    """A remote address may not be fetched, or did not answer with what was expected."""

    code, status = "source_refused", 422


class ComputeRefused(ApiError):
    """A request or file that compute refuses; `code` is that of compute's own error class."""

    code, status = "compute_refused", 422

    def __init__(self, message: str, *, code: str, pointer: str = "") -> None:
        super().__init__(message, errors=(Fault(pointer=pointer, message=message, code=code),))
        self.compute_code = code

    def problem(self, request_id: str) -> Problem:
        """The body, under compute's code."""
        return msgspec.structs.replace(
            super().problem(request_id), code=self.compute_code, type=f"/docs/errors#{self.compute_code}"
        )


class TooManyWaits(ApiError):
    """As many requests of this caller wait for jobs as may; ask without waiting, or when one of them has ended."""

    code, status = "too_many_waits", 429


class TooManyTries(ApiError):
    """Too many failed log-ins from one address lately; `Retry-After` says when the next may be tried."""

    code, status = "too_many_tries", 429


class InternalFault(ApiError):
    """Something broke on our side; the request id finds it in the logs."""

    code, status = "internal_fault", 500


class Unavailable(ApiError):
    """A part this request needs (database, object store, cluster) does not answer now; retry later."""

    code, status = "unavailable", 503


def from_compute(error: ComputeError, *, prefix: str = "") -> ApiError:
    """The API's error for one of compute's; `prefix` is the pointer of the value that compute looked at."""
    if isinstance(error, ShardFault):
        return Unavailable(error.message)
    return ComputeRefused(error.message, code=error.code, pointer=prefix + error.pointer)
