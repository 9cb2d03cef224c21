"""Projects as those see them who put something into one."""

from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import NotFound
from eorouter.storage.tables import owned, projects
from eorouter.types import Principal


async def get(
    tx: AsyncConnection, principal: Principal, project_id: str, *, held: Literal["shared", "alone"] | None = None
) -> sa.Row[tuple[Any, ...]]:
    """The row of a project.

    Args:
        tx: the caller's transaction; one that writes, where the row is `held`.
        principal: who asks.
        project_id: the project.
        held: until the transaction ends, `shared` keeps the project from being deleted, so that what is put into it has
            something to refer to; `alone` keeps all others from putting anything into it.

    Raises:
        NotFound: unknown, somebody else's, or not the one that the principal's key is restricted to.
    """
    query = sa.select(projects).where(owned(projects, principal), projects.c.id == project_id)
    if held == "shared":
        query = query.with_for_update(read=True, key_share=True)
    elif held == "alone":
        query = query.with_for_update()
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"There is no project {project_id!r}.")
    return row
