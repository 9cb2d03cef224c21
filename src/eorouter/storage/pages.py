"""Lists in pages, newest first. Ids sort by creation, so the last id shown is where the next page starts.

A cursor is that id under a signature which also covers the filters: it cannot be made up, nor moved to another list.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter import signing
from eorouter.settings import Settings
from eorouter.types import PageInput


async def page(
    tx: AsyncConnection,
    settings: Settings,
    list_name: str,
    request: PageInput,
    query: sa.Select[Any],
    *,
    by: sa.Column[Any],
) -> tuple[Sequence[sa.Row[Any]], str | None]:
    """The rows of the page that `request` asks for, and the cursor of the next one, if there is one.

    Args:
        tx: a transaction.
        settings: hold the secret that signs cursors.
        list_name: a cursor is good for the list of this name only.
        request: how many, after which cursor, with which filters.
        query: every row of the list, in no order, `id` among its columns.
        by: that column.

    Raises:
        InvalidCursor: altered, or made for another list or other filters.
    """
    before_id = start(settings, list_name, request)
    if before_id is not None:
        query = query.where(by < before_id)
    rows = (await tx.execute(query.order_by(by.desc()).limit(request.limit + 1))).all()
    shown = rows[: request.limit]
    last_id = shown[-1].id if len(rows) > len(shown) else None
    return shown, following(settings, list_name, request, last_id)


def start(settings: Settings, list_name: str, request: PageInput) -> str | None:
    """The id below which the page starts; None for the first page.

    Raises:
        InvalidCursor: altered, or made for another list or other filters.
    """
    if request.cursor is None:
        return None
    (before_id,) = signing.position(settings, list_name, request, request.cursor)
    return before_id


def following(settings: Settings, list_name: str, request: PageInput, last_id: str | None) -> str | None:
    """The cursor of the page after `last_id`; None where there is none."""
    return None if last_id is None else signing.cursor(settings, list_name, request, [last_id])
