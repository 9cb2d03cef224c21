"""Operators come in, by their log-in and as long as they are operators; nobody else does, whatever they bring."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from eorouter import identity, signing
from eorouter.storage.log_ins import PAIR_LIMIT, WINDOW
from eorouter.storage.tables import sessions
from eorouter.surface.operator.door import COOKIE, LIFE
from eorouter.types import utc_now

ADA, BOB, ORIGIN = "ada@example.org", "bob@example.org", "http://testserver.local"


async def status(client, **headers):
    return (await client.get("/operator/state", headers=headers)).status_code


async def test_log_in_sets_a_cookie_that_scripts_and_other_sites_cannot_use(client, log_in):
    answer = await log_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/operator")
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/operator", "Max-Age=43200"))
    assert "Secure" not in cookie
    assert await status(client) == 200
    assert (await client.get("/operator")).status_code == 200


async def test_cookie_is_secure_where_the_browser_speaks_https(client, settings):
    headers = {"origin": "https://testserver.local"}
    form = {"email": ADA, "password": "four unrelated words"}
    answer = await client.post("https://testserver.local/operator/login", data=form, headers=headers)
    assert (answer.status_code, "Secure" in answer.headers["set-cookie"]) == (303, True)


async def test_wrong_password_unknown_address_and_a_user_who_is_no_operator_are_told_the_same(client, log_in, people):
    answers = [await log_in(ADA, "wrong"), await log_in("nobody@example.org"), await log_in(BOB), await log_in("x\0")]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert not any("set-cookie" in answer.headers for answer in answers)
    async with people.db.read() as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(sessions))).scalar_one() == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://testserver.local:81", None, ""])
async def test_form_of_another_site_is_refused_and_opens_nothing(client, log_in, origin):
    answer = await log_in(origin=origin)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    await log_in()
    headers = {} if origin is None else {"origin": origin}
    assert (await client.post("/operator/logout", headers=headers)).status_code == 403
    assert (await client.post("/operator/ledger", headers=headers)).status_code == 403
    assert await status(client) == 200


async def test_log_out_ends_the_session_also_for_who_kept_the_cookie(client, log_in):
    await log_in()
    kept = client.cookies[COOKIE]
    answer = await client.post("/operator/logout", headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/operator/login")
    client.cookies.clear()
    assert await status(client, cookie=f"{COOKIE}={kept}") == 404
    assert (await client.post("/operator/logout", headers={"origin": ORIGIN})).status_code == 303


async def test_flag_is_read_on_every_request(client, log_in, unmark, bearer):
    await log_in()
    by_token = await bearer(ADA)
    assert await status(client) == 200
    await unmark()
    assert await status(client) == 404
    client.cookies.clear()
    assert await status(client, **by_token) == 404


async def test_log_in_ends_after_its_time_and_with_its_session(client, log_in, clock, people):
    await log_in()
    clock.ahead = LIFE - timedelta(minutes=1)
    assert await status(client) == 200
    clock.ahead = LIFE + timedelta(seconds=1)
    assert await status(client) == 404
    clock.ahead = timedelta()
    async with people.db.write() as tx:
        await identity.end_sessions(tx, "usr_ada", now=utc_now())
    assert await status(client) == 404


async def test_access_token_of_an_operator_opens_and_no_other_credential_does(client, bearer, settings, people):
    assert await status(client, **await bearer(ADA)) == 200
    assert await status(client, **await bearer(BOB)) == 404
    for wrong in ("Bearer x", "Basic eDp5", "Bearer eor_live_sk_x", "Bearer "):
        assert await status(client, authorization=wrong) == 404
    tokens = await identity.log_in(people, settings, ADA, "four unrelated words", now=utc_now())
    for wrong in (tokens.access_token, tokens.refresh_token, tokens.session_id, "", "é", "a" * 5000):
        assert await status(client, cookie=f"{COOKIE}={wrong}".encode()) == 404
    other = signing.sign(settings, "other", tokens.session_id, expires_at=utc_now() + LIFE)
    assert await status(client, cookie=f"{COOKIE}={other}") == 404


async def test_form_that_is_none_is_refused(client):
    for body in (b"", b"\xff\xfe", b"email=ada%00&password=", b"&" * 4000, b"email=%ff&email=2&password[]=1"):
        answer = await client.post("/operator/login", content=body, headers={"origin": ORIGIN})
        assert answer.status_code == 401, body
    long = await client.post("/operator/login", content=b"x" * 9000, headers={"origin": ORIGIN})
    assert long.status_code == 413
    form = {"email": BOB, "password": "x" * 2000}
    assert (await client.post("/operator/login", data=form, headers={"origin": ORIGIN})).status_code == 401


async def test_guessing_is_slowed_down_and_the_right_password_waits_too(client, log_in, clock):
    for _ in range(PAIR_LIMIT):
        assert (await log_in(password="guess")).status_code == 401
    answer = await log_in()
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= WINDOW.total_seconds() + 1
    assert "Try again" in answer.text
    clock.ahead = WINDOW
    assert (await log_in()).status_code == 303
