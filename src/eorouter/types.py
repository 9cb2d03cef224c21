"""Value types that every domain shares: wire structs, ids, principals, time.

Ids are a prefix that names the thing and 26 characters that sort by creation time (48 bits of milliseconds, 80 random
bits, Crockford base 32), so an id is also a keyset: `ORDER BY id` is creation order and needs no second column.
"""

import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, dataclass_transform

import msgspec
from msgspec import Meta

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_PATTERN = r"^[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}$"

Id = Annotated[str, Meta(min_length=1, max_length=64, description="Identifier, as this service returned it.")]
PageLimit = Annotated[int, Meta(ge=1, le=1000, description="Most entries to return.")]
Cursor = Annotated[str, Meta(max_length=1024, description="`next_cursor` of the page before this one.")]
Json = dict[str, Any]


# Told to type checkers: the subclasses of a frozen, keyword-only struct are so too, without saying it again.
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operation is asked; unknown fields are refused."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation answers; fields have no defaults, so every field is always present."""


class PageInput(Input):
    """A request for a page of a list, which adds its filters. Keep them the same while following cursors."""

    limit: PageLimit = 100
    cursor: Cursor | None = None


class Mode(StrEnum):
    """Live spends money, test does not; the two never meet."""

    LIVE = "live"
    TEST = "test"


class Role(StrEnum):
    """What a member of an organisation may do."""

    OWNER = "owner"
    MEMBER = "member"
    VIEWER = "viewer"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking. `project_id` restricts a key to one project; `scopes` are what it may do.

    `session_id` is the log-in of a user; keys have none.
    """

    kind: Literal["user", "key", "system", "anonymous"]
    id: str
    org_id: str
    scopes: frozenset[str]
    user_id: str | None = None
    project_id: str | None = None
    mode: Mode = Mode.LIVE
    session_id: str | None = None


ANONYMOUS = Principal(kind="anonymous", id="", org_id="", scopes=frozenset())


def new_id(prefix: str) -> str:
    """A fresh id, `prefix` being three lower-case letters; later ids sort after earlier ones, to the millisecond."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -5, -5))


def utc_now() -> datetime:
    """Now, aware, in UTC, to the microsecond."""
    return datetime.now(UTC)
