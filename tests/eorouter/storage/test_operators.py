"""The flag of an operator counts from its commit on, and so does its end; so does the end of a session."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from eorouter.errors import NotFound
from eorouter.storage import operators
from eorouter.storage.tables import organisations, sessions, users
from eorouter.types import utc_now

NOW = utc_now()


@pytest.fixture
async def people(stores):
    """Ada and Bob with a session each that is open, and one of Ada's that has ended."""
    async with stores.db.write() as tx:
        row = {"id": "org_a", "name": "a", "quota_bytes": 1, "used_bytes": 0, "created_at": NOW}
        await tx.execute(sa.insert(organisations).values(row))
        for name in ("ada", "bob"):
            row = {"id": f"usr_{name}", "email": f"{name}@example.org", "name": name, "password_hash": "x"}
            await tx.execute(sa.insert(users).values(row | {"created_at": NOW}))
        for name, user, ended_at in (("ada", "ada", None), ("bob", "bob", None), ("old", "ada", NOW)):
            row = {"id": f"ses_{name}", "user_id": f"usr_{user}", "org_id": "org_a", "token_sha256": name}
            times = {"created_at": NOW, "expires_at": NOW + timedelta(hours=1), "ended_at": ended_at}
            await tx.execute(sa.insert(sessions).values(row | times))
    return stores


async def who(stores, session_id, now=NOW):
    async with stores.db.read() as tx:
        found = await operators.in_session(tx, session_id, now=now)
    return found and found.email


async def test_nobody_is_an_operator_until_marked_and_none_after(people):
    assert await who(people, "ses_ada") is None
    async with people.db.write() as tx:
        await operators.mark(tx, "ada@example.org", is_operator=True)
    assert await who(people, "ses_ada") == "ada@example.org"
    assert await who(people, "ses_bob") is None
    async with people.db.read() as tx:
        assert [row.email for row in await operators.listed(tx)] == ["ada@example.org"]
    async with people.db.write() as tx:
        await operators.mark(tx, "ada@example.org", is_operator=False)
    assert await who(people, "ses_ada") is None


async def test_session_that_ended_expired_or_never_was_is_nobodys(people):
    async with people.db.write() as tx:
        await operators.mark(tx, "ada@example.org", is_operator=True)
    assert await who(people, "ses_old") is None
    assert await who(people, "ses_none") is None
    assert await who(people, "ses_ada", now=NOW + timedelta(hours=1)) is None


async def test_unknown_address_is_refused(people):
    async with people.db.write() as tx:
        with pytest.raises(NotFound, match="carol"):
            await operators.mark(tx, "carol@example.org", is_operator=True)
