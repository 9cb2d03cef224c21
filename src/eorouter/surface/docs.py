"""The reference as Markdown, from the registry, the settings and the error classes; nothing in it is written by hand.

The same rows feed the HTML pages, so what `/docs` shows and what `docs/reference` holds cannot differ.
"""

import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import quote, urlencode

import msgspec

from eorouter import errors
from eorouter.operation import Operation, Registry, Route
from eorouter.settings import PREFIX, Settings
from eorouter.surface import openapi
from eorouter_compute.errors import RequestFault, SourceFault

BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matches {}",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "minProperties": "at least {} entries",
    "maxProperties": "at most {} entries",
}


class FieldRow(msgspec.Struct, frozen=True, kw_only=True):
    """One field as the tables show it."""

    name: str
    kind: str
    is_required: bool
    default: str
    bounds: str
    description: str


class ErrorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One error code."""

    code: str
    status: int
    description: str


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the operator."""

    variable: str
    kind: str
    default: str
    description: str
    example: str


def reference_pages(registry: Registry) -> dict[str, str]:
    """Every page of the reference, by file name."""
    schemas = openapi.components(registry)
    domains = sorted({op.domain for op in registry})
    pages = {f"{domain}.md": _domain_page(domain, registry, schemas) for domain in domains}
    index = ["# Reference", "", _MADE, "", operations_table(registry, link=True).strip(), ""]
    index += ["Also: [errors](errors.md), [settings](settings.md), [types](types.md)."]
    return {
        **pages,
        "README.md": "\n".join(index) + "\n",
        "errors.md": _errors_page(),
        "settings.md": _settings_page(),
        "types.md": _types_page(registry, schemas),
    }


_MADE = "Made from the code by `eorouter derive --write`; change the code, not this page."


def operations_table(registry: Registry, *, link: bool = False) -> str:
    """Every operation in one table: what a review sees change."""
    rows = []
    for op in registry:
        name = f"[{op.id}]({op.domain}.md#{anchor(op.id)})" if link else op.id
        routes = "<br>".join(f"{route.method} {route.path}" for route in op.routes)
        rows.append((name, op.tier.value, op.scope, routes, op.summary))
    return _table(("Operation", "Tier", "Scope", "Routes", "What it does"), rows) + "\n"


def anchor(operation_id: str) -> str:
    """The fragment under which a heading is found (that of GitHub's Markdown)."""
    return operation_id.replace(".", "")


def field_rows(schema: dict[str, Any]) -> list[FieldRow]:
    """The fields of a struct's JSON schema, required ones first."""
    required = set(schema.get("required", ()))
    rows = [
        FieldRow(
            name=name,
            kind=kind_of(kind),
            is_required=name in required,
            default="" if "default" not in kind else _default(kind["default"]),
            bounds=", ".join(bounds_of(kind)),
            description=kind.get("description", ""),
        )
        for name, kind in schema.get("properties", {}).items()
    ]
    return sorted(rows, key=lambda row: not row.is_required)


def kind_of(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[1]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return " · ".join(json.dumps(value) for value in schema["enum"])
    name = schema.get("type", "any value")
    if name == "array":
        parts = [kind_of(part) for part in schema.get("prefixItems", ())]
        return f"[{', '.join(parts)}]" if parts else f"list of {kind_of(schema.get('items') or {})}"
    if name == "object" and isinstance(values := schema.get("additionalProperties"), dict) and values:
        return f"object of {kind_of(values)}"
    return schema.get("format", name)


def bounds_of(schema: dict[str, Any]) -> Iterator[str]:
    """Limits of a value and, said as such, of the entries of a list."""
    for key, words in BOUNDS.items():
        if key in schema and not (key.endswith("Items") and "prefixItems" in schema):
            yield words.format(schema[key])
    for option in schema.get("anyOf", ()):
        yield from bounds_of(option)
    if isinstance(schema.get("items"), dict):
        yield from (f"each {bound}" for bound in bounds_of(schema["items"]))


def _default(value: Any) -> str:
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


def type_names(registry: Registry, schemas: dict[str, Any]) -> list[str]:
    """Schemas that are no operation's own input: what the tables of fields refer to."""
    inputs = {openapi.component_name(op.input) for op in registry}
    return sorted(name for name in schemas if name not in inputs)


def curl(op: Operation, route: Route | None, request: dict[str, Any]) -> str:
    """An example as a command; `EOROUTER_URL` and `EOROUTER_API_KEY` are the variables the client reads too."""
    parts = ["curl"]
    path, method, left = f"/v1/op/{op.id}", "POST", dict(request)
    if route is not None:
        path, method = route.path, route.method
        for name in route.path_fields:
            path = path.replace(f"{{{name}}}", quote(str(left.pop(name, f"<{name}>"))))
    is_query = route is not None and (op.receives_bytes or method not in openapi.BODY_METHODS)
    if is_query and left:
        pairs = [(name, _query_text(value)) for name, value in left.items()]
        path += f"?{urlencode(pairs, safe=',:<>')}"
    if method != "GET":
        parts.append(f"-X {method}")
    parts.append(f'"$EOROUTER_URL{path}"')
    if op.scope != "public":
        parts.append('-H "Authorization: Bearer $EOROUTER_API_KEY"')
    if op.takes_spend:
        parts.append('-H "Idempotency-Key: $(uuidgen)"')
    if op.receives_bytes:
        parts.append("-H 'Content-Type: application/octet-stream' --data-binary @file.tif")
    elif not is_query:
        body = json.dumps(left, ensure_ascii=False)
        parts.append(f"-H 'Content-Type: application/json' -d {shlex.quote(body)}")
    if op.output is openapi.Blob:
        parts.append("--remote-name --remote-header-name")
    return " \\\n  ".join(parts)


def _query_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_query_text(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def examples_of(op: Operation) -> list[tuple[str, str]]:
    """Summary and command of each example, through the first idiomatic route where there is one."""
    route = op.routes[0] if op.routes else None
    return [(example.summary, curl(op, route, example.request)) for example in op.examples]


def error_rows() -> list[ErrorRow]:
    """Every code an answer can carry, the API's own and compute's."""
    own = {kind.code: kind for kind in _below(errors.ApiError)}
    rows = [ErrorRow(code=code, status=kind.status, description=_doc(kind)) for code, kind in own.items()]
    refused = {kind.code: kind for base in (RequestFault, SourceFault) for kind in _below(base)}
    rows += [
        ErrorRow(code=code, status=errors.ComputeRefused.status, description=_doc(kind))
        for code, kind in refused.items()
        if code not in own
    ]
    return sorted(rows, key=lambda row: (row.status, row.code))


def _below(kind: type) -> Iterator[Any]:
    for child in kind.__subclasses__():
        if child.__module__ in {errors.__name__, RequestFault.__module__}:
            yield child
        yield from _below(child)


def _doc(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def setting_rows() -> list[SettingRow]:
    """Every setting, in the order of the struct."""
    rows = []
    for field in msgspec.structs.fields(Settings):
        kind, meta = get_args(field.type)
        rows.append(
            SettingRow(
                variable=PREFIX + field.name.upper(),
                kind=_setting_kind(kind),
                default=_setting_default(field.default),
                description=meta.description or "",
                example=str((meta.examples or [""])[0]),
            )
        )
    return rows


def _setting_default(value: Any) -> str:
    if value == Path():
        return ""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _setting_kind(kind: Any) -> str:
    if get_origin(kind) is not None:
        return " · ".join(str(value) for value in get_args(kind))
    return {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}[kind]


def _domain_page(domain: str, registry: Registry, schemas: dict[str, Any]) -> str:
    lines = [f"# {domain}", "", _MADE, ""]
    for op in registry:
        if op.domain == domain:
            lines += _operation_section(op, schemas)
    return "\n".join(lines).rstrip() + "\n"


def _operation_section(op: Operation, schemas: dict[str, Any]) -> list[str]:
    routes = [f"`{route.method} {route.path}`" for route in op.routes]
    if not op.receives_bytes:
        routes.insert(0, f"`POST /v1/op/{op.id}`")
    lines = [f"## {op.id}", "", op.summary, ""]
    if op.description:
        lines += [op.description, ""]
    lines += [f"Tier `{op.tier.value}`, scope `{op.scope}`. {' · '.join(routes)}", ""]
    rows = field_rows(schemas[openapi.component_name(op.input)])
    if rows:
        lines += [_field_table(rows), ""]
    lines += [f"Answers {op.status} {_answer(op)}.", ""]
    codes = [f"[`{error.code}`](errors.md#{error.code})" for error in openapi.errors_of(op)]
    lines += [f"Errors: {', '.join(codes)}.", ""]
    for summary, command in examples_of(op):
        lines += [f"{summary}:", "", "```bash", command, "```", ""]
    return lines


def _answer(op: Operation) -> str:
    if op.output is None:
        return "with no body"
    if op.output is openapi.Blob:
        return "with the bytes of the file; ranges and conditional requests work"
    name = openapi.component_name(op.output)
    return f"with [{name}](types.md#{name.lower()})"


def _types_page(registry: Registry, schemas: dict[str, Any]) -> str:
    lines = ["# Types", "", _MADE, ""]
    for name in type_names(registry, schemas):
        schema = schemas[name]
        lines += [f"## {name}", "", schema.get("description", ""), ""]
        rows = field_rows(schema)
        lines += [_field_table(rows) if rows else f"One of: {kind_of(schema)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _errors_page() -> str:
    rows = [(f'<a id="{row.code}"></a>`{row.code}`', str(row.status), row.description) for row in error_rows()]
    intro = (
        "Every error answer is `application/problem+json` (RFC 9457) with `code` to program against, `message` to "
        "read, `errors` with a JSON pointer (RFC 6901) per fault, and `request_id`, which finds it in the logs."
    )
    return "\n".join(["# Errors", "", _MADE, "", intro, "", _table(("Code", "Status", "Meaning"), rows)]) + "\n"


def _settings_page() -> str:
    rows = [
        (f"`{row.variable}`", row.kind, f"`{row.default}`" if row.default else "", row.description, f"`{row.example}`")
        for row in setting_rows()
    ]
    intro = "Read once, at start, from the environment. A value that cannot be used stops the start and says why."
    table = _table(("Variable", "Form", "Default", "What it is", "Example"), rows)
    return f"# Settings\n\n{_MADE}\n\n{intro}\n\n{table}\n"


def _field_table(rows: Iterable[FieldRow]) -> str:
    cells = [
        (
            f"`{row.name}`",
            row.kind,
            "required" if row.is_required else f"`{row.default}`" if row.default else "",
            "; ".join(text for text in (row.description, row.bounds) if text),
        )
        for row in rows
    ]
    return _table(("Field", "Form", "Default", "What it is"), cells)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [_row(heads), _row("---" for _ in heads)]
    lines += [_row(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
