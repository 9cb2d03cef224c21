"""What an organisation may take of the workers."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from eorouter.errors import NotFound
from eorouter.storage import allotments
from eorouter.storage.tables import organisations
from eorouter.types import utc_now


async def row(tx):
    columns = organisations.c.weight, organisations.c.shards_max, organisations.c.paused_at
    return tuple((await tx.execute(sa.select(*columns).where(organisations.c.id == "org_me"))).one())


async def test_allot_sets_weight_and_limit(peopled):
    async with peopled.db.write() as tx:
        assert await row(tx) == (1.0, None, None)
        await allotments.allot(tx, "org_me", weight=2.5, shards_max=7)
        assert await row(tx) == (2.5, 7, None)
        await allotments.allot(tx, "org_me", weight=None, shards_max=None)
        assert await row(tx) == (2.5, None, None)
        with pytest.raises(NotFound):
            await allotments.allot(tx, "org_none", weight=1.0, shards_max=None)


async def test_pause_keeps_the_time_of_the_first(peopled):
    now = utc_now()
    async with peopled.db.write() as tx:
        await allotments.pause(tx, "org_me", at=now)
        await allotments.pause(tx, "org_me", at=now + timedelta(hours=1))
        assert (await row(tx))[2] == now
        await allotments.pause(tx, "org_me", at=None)
        assert (await row(tx))[2] is None
