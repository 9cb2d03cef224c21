"""The reference for people, in a browser: `/docs`, `/docs/errors`, `/docs/settings`; and `/openapi.json`.

Rendered once when the application is made; no script, nothing from other hosts.
"""

import hashlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Request, Response, get

from eorouter.operation import Operation, Registry
from eorouter.surface import docs, openapi
from eorouter.surface.blobs import matches

NAVIGATION = (
    ("/docs", "Operations"),
    ("/docs/errors", "Errors"),
    ("/docs/settings", "Settings"),
    ("/openapi.json", "OpenAPI"),
    ("/readyz", "State"),
)


class Page(msgspec.Struct, frozen=True):
    """Bytes to answer with, and their validator."""

    body: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """Digest of the bytes."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:20]}"'


def handlers(registry: Registry, document: dict[str, Any]) -> list[Any]:
    """Route handlers for every page."""
    html = "text/html"
    style = files("eorouter.surface").joinpath("docs.css").read_bytes()
    return [
        _handler("/openapi.json", Page(msgspec.json.encode(document), "application/json")),
        _handler("/docs", Page(operations_page(registry).encode(), html)),
        _handler("/docs/errors", Page(errors_page().encode(), html)),
        _handler("/docs/settings", Page(settings_page().encode(), html)),
        _handler("/docs/docs.css", Page(style, "text/css")),
        _handler("/", Page(_home(registry).encode(), html)),
    ]


def _handler(path: str, page: Page) -> Any:
    headers = {"etag": page.etag, "cache-control": "no-cache"}

    @get(path)
    async def show(request: Request[Any, Any, Any]) -> Response[bytes]:
        if matches(request.headers.get("if-none-match", ""), headers["etag"]):
            return Response(b"", status_code=304, headers=headers)
        return Response(page.body, headers=headers, media_type=page.media_type)

    return show


def operations_page(registry: Registry) -> str:
    """Every operation, by domain, and the types they speak in."""
    schemas = openapi.components(registry)
    parts = ["<h1>Operations</h1>", _contents(registry)]
    for domain in sorted({op.domain for op in registry}):
        parts.append(f'<h2 id="{domain}">{domain}</h2>')
        parts.extend(_operation(op, schemas) for op in registry if op.domain == domain)
    parts.append('<h2 id="types">Types</h2>')
    for name in docs.type_names(registry, schemas):
        parts.append(
            f'<h3 id="type-{escape(name)}">{escape(name)}</h3><p>{_text(schemas[name].get("description"))}</p>'
        )
        rows = docs.field_rows(schemas[name])
        parts.append(_fields(rows, schemas) if rows else f"<p>{escape(docs.kind_of(schemas[name]))}</p>")
    return _page("Operations", parts)


def errors_page() -> str:
    """Every error code with its status and meaning."""
    rows = [
        (f'<code id="{row.code}">{row.code}</code>', str(row.status), _text(row.description))
        for row in docs.error_rows()
    ]
    intro = (
        "<h1>Errors</h1><p>Every error answer is <code>application/problem+json</code> with a <code>code</code> "
        "to program against, a <code>message</code> to read, a JSON pointer per fault in <code>errors</code>, and the "
        "<code>request_id</code> that finds it in the logs.</p>"
    )
    return _page("Errors", [intro, _table(("Code", "Status", "Meaning"), rows)])


def settings_page() -> str:
    """Every setting with its default; never the values of this installation."""
    rows = [
        (f"<code>{row.variable}</code>", escape(row.kind), f"<code>{escape(row.default)}</code>" if row.default else "",
         _text(row.description))
        for row in docs.setting_rows()
    ]  # fmt: skip
    intro = (
        "<h1>Settings</h1><p>Environment variables, read once at start. "
        "The defaults are shown, not the values of this installation.</p>"
    )
    return _page("Settings", [intro, _table(("Variable", "Form", "Default", "What it is"), rows)])


def _home(registry: Registry) -> str:
    return _page(
        "eorouter",
        [
            "<h1>eorouter</h1>",
            "<p>A self-hosted Earth-observation gateway and raster compute service.</p>",
            f'<p>{len(registry)} <a href="/docs">operations</a>, one <a href="/openapi.json">OpenAPI document</a>, '
            'and the <a href="/readyz">state</a> of this installation.</p>',
        ],
    )


def _contents(registry: Registry) -> str:
    rows = [(f'<a href="#{op.id}"><code>{op.id}</code></a>', _tier(op), _text(op.summary)) for op in registry]
    return _table(("Operation", "Tier", "What it does"), rows)


def _tier(op: Operation) -> str:
    return f'<span class="tier {op.tier.value}">{op.tier.value}</span>'


def _operation(op: Operation, schemas: dict[str, Any]) -> str:
    ways = [] if op.receives_bytes else [f"POST /v1/op/{op.id}"]
    ways += [f"{route.method} {route.path}" for route in op.routes]
    parts = [
        f'<h3 id="{op.id}"><a href="#{op.id}">{op.id}</a></h3>',
        f"<p>{_text(op.summary)}</p>",
        *(f"<p>{_text(paragraph)}</p>" for paragraph in op.description.split("\n\n") if paragraph),
        f'<p class="facts">{_tier(op)} scope <code>{op.scope}</code></p>',
        f'<p class="routes">{" ".join(f"<code>{escape(way)}</code>" for way in ways)}</p>',
    ]
    rows = docs.field_rows(schemas[openapi.component_name(op.input)])
    if rows:
        parts.append(_fields(rows, schemas))
    if op.output is None:
        answer = "no body"
    elif op.output is openapi.Blob:
        answer = "the bytes of the file; ranges and conditional requests work"
    else:
        answer = _linked(openapi.component_name(op.output), schemas)
    codes = " ".join(
        f'<a href="/docs/errors#{error.code}"><code>{error.code}</code></a>' for error in openapi.errors_of(op)
    )
    parts.append(f'<p class="facts">Answers {op.status}: {answer}. Errors: {codes}</p>')
    for summary, command in docs.examples_of(op):
        parts.append(f"<p>{_text(summary)}</p><pre>{escape(command)}</pre>")
    return "\n".join(parts)


def _fields(rows: Iterable[docs.FieldRow], schemas: dict[str, Any]) -> str:
    cells = [
        (
            f"<code>{escape(row.name)}</code>",
            _linked(row.kind, schemas),
            "required" if row.is_required else f"<code>{escape(row.default)}</code>" if row.default else "",
            "; ".join(_text(text) for text in (row.description, row.bounds) if text),
        )
        for row in rows
    ]
    return _table(("Field", "Form", "Default", "What it is"), cells)


def _linked(kind: str, schemas: dict[str, Any]) -> str:
    """Words of a form, the names of types being links."""
    words = escape(kind).split(" ")
    return " ".join(f'<a href="#type-{word}">{word}</a>' if word in schemas else word for word in words)


def _text(text: str | None) -> str:
    """Prose with `code` in backquotes."""
    pieces = escape(text or "").split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _page(title: str, parts: Iterable[str]) -> str:
    links = "".join(f'<a href="{address}">{name}</a>' for address, name in NAVIGATION)
    heading = "eorouter" if title == "eorouter" else f"{title} · eorouter"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{heading}</title><link rel="stylesheet" href="/docs/docs.css"></head>\n'
        f"<body><nav>{links}</nav>\n<main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
