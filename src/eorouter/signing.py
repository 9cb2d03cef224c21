"""Tokens that this installation made and can recognise: cursors of lists and signed addresses.

A token is base64url(msgpack) and a truncated HMAC-SHA-256 over purpose and payload. It is not secret, only unforgeable;
a token of one purpose is refused for every other.
"""

import base64
import hashlib
import hmac
from datetime import datetime
from typing import Any

import msgspec

from eorouter.errors import InvalidCursor, SignatureInvalid
from eorouter.settings import Settings
from eorouter.types import Input

_MAC_BYTES = 16


def sign(settings: Settings, purpose: str, payload: Any, *, expires_at: datetime) -> str:
    """A token for `payload` that `verify` accepts under the same purpose until `expires_at`."""
    return _seal(settings, purpose, [payload, int(expires_at.timestamp())])


def verify(settings: Settings, purpose: str, token: str, *, now: datetime) -> Any:
    """The payload of a token.

    Raises:
        SignatureInvalid: altered, made for another purpose, or expired.
    """
    try:
        payload, expires = _open(settings, purpose, token)
    except ValueError as error:
        raise SignatureInvalid("The signature of this address is not valid. Ask for a new address.") from error
    if now.timestamp() > expires:
        raise SignatureInvalid("This signed address has expired. Ask for a new one.")
    return payload


def cursor(settings: Settings, list_name: str, request: Input, position: list[Any]) -> str:
    """A cursor after `position` (the sort key of the last entry), good only for the same list and the same filters."""
    return _seal(settings, f"cursor:{list_name}", [_filters(request), position])


def position(settings: Settings, list_name: str, request: Input, token: str) -> list[Any]:
    """The position a cursor stands for.

    Raises:
        InvalidCursor: altered, or made for another list or other filters.
    """
    try:
        filters, where = _open(settings, f"cursor:{list_name}", token)
    except ValueError as error:
        raise InvalidCursor("The cursor is not one of this service. Start again without a cursor.") from error
    if filters != _filters(request):
        raise InvalidCursor("The cursor belongs to other filters. Keep all parameters the same while paging.")
    return where


def _filters(request: Input) -> bytes:
    """Digest of everything in a request that selects, which neither the cursor nor the page size does."""
    fields = {k: v for k, v in msgspec.to_builtins(request).items() if k not in {"cursor", "limit"}}
    return hashlib.sha256(msgspec.json.encode(fields, order="deterministic")).digest()[:8]


def _seal(settings: Settings, purpose: str, payload: Any) -> str:
    data = msgspec.msgpack.encode(payload)
    return _text(_mac(settings, purpose, data) + data)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _open(settings: Settings, purpose: str, token: str) -> Any:
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    if _text(raw) != token:  # one token, one spelling: stray bits, padding and foreign letters are refused
        raise ValueError("not base64url as we write it")
    mac, data = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(settings, purpose, data)):
        raise ValueError("altered")
    return msgspec.msgpack.decode(data)


def _mac(settings: Settings, purpose: str, data: bytes) -> bytes:
    return hmac.digest(settings.secret.encode(), purpose.encode() + b"\0" + data, "sha256")[:_MAC_BYTES]
