"""Every route below /operator × everybody who must not get in; and what those get who may."""

import pytest

from eorouter.surface.operator.door import COOKIE, LIFE

ADA, BOB, ORIGIN = "ada@example.org", "bob@example.org", "http://testserver.local"
DEAD = "dsp_00000000000000000000000000"
ROUTES = [
    ("GET", "/operator/state"),
    ("POST", "/operator/ledger"),
    ("GET", f"/operator/dashboard/{DEAD}/status"),
    ("HEAD", f"/operator/dashboard/{DEAD}/status"),
    ("GET", f"/operator/dashboard/{DEAD}/"),
    ("GET", "/operator/nothing"),
]


@pytest.fixture(params=["nobody", "made up", "other owner", "expired", "logged out", "unmarked"])
async def stranger(request, client, log_in, *, bearer, clock, unmark):
    """Headers of somebody who is no operator, or no longer."""
    match request.param:
        case "nobody":
            return {}
        case "made up":
            return {"cookie": f"{COOKIE}=bjEsSmQtH4YvIedwLb2pFpK"}
        case "other owner":
            return await bearer(BOB)
    await log_in()
    cookie = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
    if request.param == "expired":
        clock.ahead = LIFE * 1.01
    if request.param == "logged out":
        await client.post("/operator/logout", headers={"origin": ORIGIN})
    if request.param == "unmarked":
        await unmark()
    client.cookies.clear()
    return cookie


async def test_stranger_finds_nothing_but_the_log_in_page(client, stranger, beat):
    alive = await beat("http://127.0.0.1:1/status")
    for method, path in [*ROUTES, ("GET", f"/operator/dashboard/{alive}/status")]:
        answer = await client.request(method, path, headers={"origin": ORIGIN} | stranger)
        assert answer.status_code == 404, (method, path)
        if method != "HEAD":
            assert answer.json()["code"] == "not_found", (method, path)
    page = await client.get("/operator", headers=stranger)
    assert (page.status_code, page.headers["location"]) == (303, "/operator/login")
    form = await client.get("/operator/login", headers=stranger)
    assert (form.status_code, "password" in form.text) == (200, True)


@pytest.mark.parametrize("path", ["/operator", "/operator/login"])
async def test_pages_run_only_our_script_and_are_not_kept(client, log_in, path):
    if path == "/operator":
        await log_in()
    answer = await client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "same-origin"
    for name, kind in (("console.css", "text/css"), ("console.js", "text/javascript")):
        file = await client.get(f"/operator/{name}")
        assert (file.status_code, file.headers["content-type"].partition(";")[0]) == (200, kind)


async def test_operator_sees_page_state_and_checks_the_ledger(client, log_in, beat):
    name = await beat("http://127.0.0.1:1/status", threads=0, nodes=[])
    await log_in()
    assert (await client.get("/operator/login")).headers["location"] == "/operator"
    checked = await client.post("/operator/ledger", headers={"origin": ORIGIN})
    assert (checked.status_code, checked.headers["location"]) == (303, "/operator")
    page = (await client.get("/operator")).text
    assert f'href="/operator/dashboard/{name}/status"' in page
    assert "balances" in page
    state = (await client.get("/operator/state")).json()
    assert state["dispatchers"][0]["id"] == name
    assert state["ledger"]["faults"] == []
    assert state["readiness"]["parts"]["database"]["state"] == "ready"
    assert len(state["minutes"]) == 60


async def test_other_methods_are_refused(client, log_in):
    await log_in()
    for method, path in (("PUT", "/operator"), ("GET", "/operator/ledger"), ("POST", f"/operator/dashboard/{DEAD}/x")):
        assert (await client.request(method, path, headers={"origin": ORIGIN})).status_code == 405, (method, path)


async def test_real_browser_logs_in_sees_a_page_that_refreshes_itself_and_dask_drawing(
    browser, served, scheduler, beat, tmp_path
):
    await beat(scheduler, threads=0, nodes=[])
    await browser.do("Page.navigate", url=f"{served.url}/operator")
    await browser.until("document.querySelector('input[name=password]') !== null")
    await browser.run(
        f"document.querySelector('input[name=email]').value = '{ADA}';"
        "document.querySelector('input[name=password]').value = 'four unrelated words'"
    )
    await browser.follow("form button")
    await browser.until("document.querySelector('.verdict h1')?.textContent === 'All is well'")
    await browser.run("document.querySelector('main').id = 'first'")
    await browser.until("document.querySelector('main')?.id === ''")  # the script has put a new one there
    await browser.follow("#check")
    assert await browser.run("document.querySelector('.tile:last-child .big').textContent") == "balances"
    picture = await browser.screenshot(tmp_path / "operator.png")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert await browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    await browser.follow("a[href^='/operator/dashboard/']")
    await browser.until("document.querySelectorAll('.bk-Figure').length > 2")
    assert browser.complaints == []
