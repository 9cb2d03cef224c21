"""Who may see the whole installation: a flag of a user, set from the command line and read on every request.

An operator sees and changes nothing of an organisation's: the flag opens the operator's page and no operation.
"""

from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import NotFound
from eorouter.storage.tables import sessions, users


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """A user with the flag."""

    user_id: str
    email: str
    name: str


_COLUMNS = (users.c.id.label("user_id"), users.c.email, users.c.name)


async def mark(tx: AsyncConnection, email: str, *, is_operator: bool) -> None:
    """Make a user an operator, or make them one no longer; `email` is in its normal form.

    Raises:
        NotFound: no account has this address.
    """
    changed = await tx.execute(sa.update(users).where(users.c.email == email).values(is_operator=is_operator))
    if changed.rowcount == 0:
        raise NotFound(f"There is no account {email!r}. Sign up first, then make it an operator's.")


async def listed(tx: AsyncConnection) -> list[Operator]:
    """Every operator, in order of the address."""
    query = sa.select(*_COLUMNS).where(users.c.is_operator.is_(True)).order_by(users.c.email)
    return [Operator(**row) for row in (await tx.execute(query)).mappings()]


async def in_session(tx: AsyncConnection, session_id: str, *, now: datetime) -> Operator | None:
    """The operator behind a session that is open now; None where it has ended, or is not an operator's.

    A change of password ends sessions, and so does a log-out: both count at once.
    """
    query = (
        sa.select(*_COLUMNS)
        .join(sessions, sessions.c.user_id == users.c.id)
        .where(sessions.c.id == session_id, sessions.c.ended_at.is_(None), sessions.c.expires_at > now)
        .where(users.c.is_operator.is_(True))
    )
    row = (await tx.execute(query)).mappings().one_or_none()
    return None if row is None else Operator(**row)
