import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from eorouter.errors import Conflict, NotFound, QuotaExceeded
from eorouter.storage import Stores, uploads
from eorouter.storage.tables import jobs, organisations, outbox
from eorouter.storage.tables import uploads as table
from eorouter.types import Principal, new_id

NOW = datetime(2026, 5, 4, tzinfo=UTC)
ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=frozenset())
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=frozenset())
QUOTA = 1000


@pytest.fixture
def quota_bytes() -> int:
    return QUOTA


async def start(stores: Stores, size: int = 100, *, expires_at: datetime = NOW + timedelta(days=1)):
    async with stores.db.write() as tx:
        return await uploads.create(
            tx, ME, upload_id=new_id("upl"), project_id="prj_a", filename="a.tif", declared_bytes=size, sha256=None,
            description={"bands": []}, now=NOW, expires_at=expires_at,
        )  # fmt: skip


async def used(stores: Stores) -> int:
    async with stores.db.read() as tx:
        query = sa.select(organisations.c.used_bytes).where(organisations.c.id == "org_me")
        return (await tx.execute(query)).scalar_one()


async def row_of(stores: Stores, upload_id: str):
    async with stores.db.read() as tx:
        return await uploads.get(tx, ME, upload_id)


async def ordered_away(stores: Stores) -> list[str]:
    async with stores.db.read() as tx:
        rows = await tx.execute(sa.select(outbox.c.payload).where(outbox.c.topic == "objects.delete"))
        return [key for (payload,) in rows for key in payload["keys"]]


async def ingesting(stores: Stores, job_id: str = "job_1", count: int = 1) -> list[str]:
    ids = [(await start(stores)).id for _ in range(count)]
    async with stores.db.write() as tx:
        await uploads.claim(tx, ids)
        await uploads.assign(tx, ids, job_id)
    return ids


class TestQuota:
    async def test_reservation_that_does_not_fit_says_what_is_left(self, peopled):
        await start(peopled, 900)
        with pytest.raises(QuotaExceeded, match="100 bytes of the storage quota are left") as caught:
            await start(peopled, 101)
        assert caught.value.data["left_bytes"] == 100
        await start(peopled, 100)
        assert await used(peopled) == QUOTA

    async def test_fifty_reservations_at_once_never_exceed_the_quota(self, peopled):
        results = await asyncio.gather(*(start(peopled, 90) for _ in range(50)), return_exceptions=True)
        won = [result for result in results if not isinstance(result, BaseException)]
        assert len(won) == QUOTA // 90
        assert {type(result) for result in results if isinstance(result, BaseException)} == {QuotaExceeded}
        assert await used(peopled) == len(won) * 90
        async with peopled.db.read() as tx:
            assert (await tx.execute(sa.select(sa.func.count()).select_from(table))).scalar_one() == len(won)

    async def test_quota_that_was_lowered_below_use_leaves_nothing_and_not_less(self, peopled):
        await start(peopled, 900)
        async with peopled.db.write() as tx:
            await tx.execute(sa.update(organisations).values(quota_bytes=10))
        with pytest.raises(QuotaExceeded, match="0 bytes of the storage quota are left"):
            await start(peopled, 1)

    async def test_growing_takes_and_gives_back(self, peopled):
        row = await start(peopled, 0)
        for step in (600, 300, -250):
            async with peopled.db.write() as tx:
                await uploads.grow(tx, row, step)
        assert await used(peopled) == (await row_of(peopled, row.id)).declared_bytes == 650
        with pytest.raises(QuotaExceeded):
            async with peopled.db.write() as tx:
                await uploads.grow(tx, row, 351)
        assert (await row_of(peopled, row.id)).declared_bytes == 650

    async def test_growing_by_some_takes_what_fits(self, peopled):
        row = await start(peopled, 0)
        taken = []
        for at_least in (10, 10, 200):
            async with peopled.db.write() as tx:
                taken.append(await uploads.grow_some(tx, row, at_least=at_least, at_most=600))
        assert taken == [600, 10, 200]
        with pytest.raises(QuotaExceeded, match="191 bytes do not fit: 190 bytes"):
            async with peopled.db.write() as tx:
                await uploads.grow_some(tx, row, at_least=191, at_most=600)
        assert await used(peopled) == (await row_of(peopled, row.id)).declared_bytes == 810


class TestOwnership:
    async def test_foreign_project_and_foreign_upload_are_not_found(self, peopled):
        row = await start(peopled)
        async with peopled.db.write() as tx:
            with pytest.raises(NotFound):
                await uploads.get(tx, OTHER, row.id)
            with pytest.raises(NotFound):
                await uploads.create(
                    tx, OTHER, upload_id="upl_x", project_id="prj_a", filename="a", declared_bytes=1, sha256=None,
                    description={}, now=NOW, expires_at=NOW,
                )  # fmt: skip
            assert (await tx.execute(uploads.select(OTHER))).all() == []


class TestReceive:
    async def test_each_attempt_has_a_recorded_key_of_its_own(self, peopled):
        row = await start(peopled)
        keys = []
        for _ in range(3):
            async with peopled.db.write() as tx:
                keys.append(await uploads.open_attempt(tx, row))
        assert len(set(keys)) == 3
        assert (await row_of(peopled, row.id)).description["keys"] == [row.object_key, *keys]

    async def test_received_bytes_replace_those_before_until_the_claim(self, peopled):
        row = await start(peopled)
        for key in ("first", "second"):
            async with peopled.db.write() as tx:
                await uploads.receive(tx, row.id, key=key, size_bytes=100, sha256=key * 10)
        found = await row_of(peopled, row.id)
        assert (found.state, found.object_key, found.received_bytes) == ("received", "second", 100)
        async with peopled.db.write() as tx:
            await uploads.claim(tx, [row.id])
        for refused in (
            lambda tx: uploads.receive(tx, row.id, key="third", size_bytes=100, sha256="x"),
            lambda tx: uploads.open_attempt(tx, row),
            lambda tx: uploads.claim(tx, [row.id]),
        ):
            with pytest.raises(Conflict):
                async with peopled.db.write() as tx:
                    await refused(tx)
        assert (await row_of(peopled, row.id)).object_key == "second"

    async def test_claim_of_several_is_all_or_none(self, peopled):
        first, second = await start(peopled), await start(peopled)
        async with peopled.db.write() as tx:
            await uploads.claim(tx, [first.id])
        with pytest.raises(Conflict):
            async with peopled.db.write() as tx:
                await uploads.claim(tx, [first.id, second.id])
        assert (await row_of(peopled, second.id)).state == "initiated"

    async def test_one_of_many_claims_at_once_wins(self, peopled):
        row = await start(peopled)

        async def claim() -> None:
            async with peopled.db.write() as tx:
                await uploads.claim(tx, [row.id])

        results = await asyncio.gather(*(claim() for _ in range(10)), return_exceptions=True)
        assert [type(result) for result in results if result is not None] == [Conflict] * 9


class TestSettle:
    async def test_settle_with_item_completes_every_upload_of_the_job(self, peopled):
        ids = await ingesting(peopled, count=2)
        bystander = await start(peopled)
        async with peopled.db.write() as tx:
            await uploads.settle(tx, "job_1", item_id="itm_1", problem=None, now=NOW)
        rows = [await row_of(peopled, one) for one in ids]
        assert [(row.state, row.item_id, row.problem) for row in rows] == [("completed", "itm_1", None)] * 2
        assert await used(peopled) == bystander.declared_bytes
        assert sorted(await ordered_away(peopled)) == sorted(row.object_key for row in rows)

    async def test_settle_with_problem_fails_the_upload(self, peopled):
        (upload_id,) = await ingesting(peopled)
        problem = {"code": "not_a_raster", "message": "No."}
        async with peopled.db.write() as tx:
            await uploads.settle(tx, "job_1", item_id=None, problem=problem, now=NOW)
        row = await row_of(peopled, upload_id)
        assert (row.state, row.item_id, row.problem) == ("failed", None, problem)
        assert await used(peopled) == 0

    async def test_settle_twice_or_of_another_job_changes_nothing(self, peopled):
        await ingesting(peopled)
        for job in ("job_1", "job_1", "job_2"):
            async with peopled.db.write() as tx:
                await uploads.settle(tx, job, item_id="itm_1", problem=None, now=NOW)
        assert await used(peopled) == 0
        assert len(await ordered_away(peopled)) == 1

    async def test_settle_without_an_outcome_is_a_mistake_of_ours(self, peopled):
        async with peopled.db.write() as tx:
            with pytest.raises(ValueError, match="item or with a problem"):
                await uploads.settle(tx, "job_1", item_id=None, problem=None, now=NOW)


class TestEnd:
    async def test_fail_gives_back_and_deletes_every_attempt(self, peopled):
        row = await start(peopled)
        async with peopled.db.write() as tx:
            key = await uploads.open_attempt(tx, row)
            assert await uploads.fail(tx, [row.id], problem={"code": "x", "message": "y"}, now=NOW) == 1
            assert await uploads.fail(tx, [row.id], problem={"code": "x", "message": "y"}, now=NOW) == 0
        assert await used(peopled) == 0
        assert await ordered_away(peopled) == [row.object_key, key]

    async def test_expire_ends_what_is_late_and_only_that(self, peopled):
        late = await start(peopled, expires_at=NOW - timedelta(seconds=1))
        fresh = await start(peopled)
        (busy,) = await ingesting(peopled)
        async with peopled.db.write() as tx:
            assert await uploads.expire(tx, NOW) == 1
        states = [(await row_of(peopled, one)).state for one in (late.id, fresh.id, busy)]
        assert states == ["failed", "initiated", "ingesting"]
        assert (await row_of(peopled, late.id)).problem["code"] == "upload_expired"
        assert await used(peopled) == 200

    async def test_expire_deletes_once_more_what_came_after_the_end(self, peopled):
        (upload_id,) = await ingesting(peopled)
        key = (await row_of(peopled, upload_id)).object_key
        async with peopled.db.write() as tx:
            await uploads.settle(tx, "job_1", item_id="itm_1", problem=None, now=NOW)
        for later, expected in ((NOW, 1), (NOW + timedelta(days=2), 2), (NOW + timedelta(days=3), 2)):
            async with peopled.db.write() as tx:
                assert await uploads.expire(tx, later) == 0
            assert await ordered_away(peopled) == [key] * expected

    @pytest.mark.parametrize(("state", "ends"), [("cancelled", True), ("failed", True), ("running", False)])
    async def test_expire_ends_uploads_whose_job_ended_unsettled(self, peopled, state, ends):
        (upload_id,) = await ingesting(peopled)
        async with peopled.db.write() as tx:
            await tx.execute(
                sa.insert(jobs).values(
                    id="job_1", org_id="org_me", project_id="prj_a", mode="live", name="", method="ingest", task={},
                    inputs=[], state=state, bound={}, is_interactive=True, pixels_done=0, shards_total=1, shards_done=0,
                    is_cancelling=False, created_by="usr_me", request_id="r", created_at=NOW,
                )
            )  # fmt: skip
            assert await uploads.expire(tx, NOW) == ends
        assert (await row_of(peopled, upload_id)).state == ("failed" if ends else "ingesting")
        assert await used(peopled) == (0 if ends else 100)


class TestSentAgain:
    async def test_bytes_that_are_replaced_are_deleted_and_not_kept_beside_the_quota(self, peopled):
        row = await start(peopled)
        keys = []
        for _ in range(3):
            async with peopled.db.write() as tx:
                keys.append(await uploads.open_attempt(tx, row))
                await uploads.receive(tx, row.id, key=keys[-1], size_bytes=100, sha256="0" * 64)
        assert await ordered_away(peopled) == keys[:2]
        assert (await row_of(peopled, row.id)).object_key == keys[2]

    async def test_transfers_of_one_upload_are_not_without_number(self, peopled):
        row = await start(peopled)
        for _ in range(uploads.ATTEMPTS_MAX):
            async with peopled.db.write() as tx:
                await uploads.open_attempt(tx, row)
        with pytest.raises(Conflict, match="Start a new one"):
            async with peopled.db.write() as tx:
                await uploads.open_attempt(tx, row)
