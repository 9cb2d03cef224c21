"""The reference in a browser."""

import re
from html.parser import HTMLParser

import httpx2
import pytest

from eorouter.app import document, registry
from eorouter.surface import docs, http, pages

VOID = {"meta", "link", "br"}


class Checker(HTMLParser):
    """Collects ids and links, and complains of tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker


@pytest.fixture
async def client(toy_stores, settings):
    async def anyone(*_: object, **__: object):
        raise AssertionError("pages are public")

    app = http.create(
        registry(), toy_stores, settings, authenticate=anyone, schema_check=anyone,
        pages=pages.handlers(registry(), document()),
    )  # fmt: skip
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver.local") as made:
        yield made


async def test_pages_are_html_that_runs_nothing(client):
    for path in ("/", "/docs", "/docs/errors", "/docs/settings"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert not re.search(r"<script|style=|(src|href)=\"https?:", answer.text)
        checked(answer.text)


async def test_every_link_leads_somewhere(client):
    seen: dict[str, Checker] = {}
    for path in ("/docs", "/docs/errors", "/docs/settings"):
        seen[path] = checked((await client.get(path)).text)
        assert len(seen[path].ids) == len(set(seen[path].ids))
    for path, checker in seen.items():
        for link in checker.links:
            target, _, fragment = link.partition("#")
            if fragment:
                assert fragment in seen[target or path].ids, link
            elif target != "/readyz":
                assert (await client.get(target)).status_code == 200, link


async def test_document_is_served_as_json_and_revalidates(client):
    answer = await client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document()
    again = await client.get("/openapi.json", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_every_operation_has_its_place(toys):
    for every in (toys, registry()):
        checker = checked(pages.operations_page(every))
        assert {op.id for op in every} <= set(checker.ids)


def test_text_is_escaped(toys):
    page = pages.operations_page(toys)
    assert "<file" not in page
    assert pages._text('<b> & "`x<y`"') == "&lt;b&gt; &amp; &quot;<code>x&lt;y</code>&quot;"


def test_errors_and_settings_are_all_listed():
    assert {row.code for row in docs.error_rows()} <= set(checked(pages.errors_page()).ids)
    page = pages.settings_page()
    assert all(row.variable in page for row in docs.setting_rows())
