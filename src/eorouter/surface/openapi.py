"""The registry as an OpenAPI 3.1 document; a pure function, so the same registry gives the same bytes.

Beyond the standard: `x-side-effect` (the tier), `x-scope`, and `x-error-codes` on each error response.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from eorouter.errors import (
    ApiError,
    BodyTooLarge,
    ComputeRefused,
    InternalFault,
    InvalidCursor,
    InvalidInput,
    MalformedBody,
    MissingScope,
    Problem,
    RangeNotSatisfiable,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from eorouter.operation import ANY, PUBLIC, Blob, Operation, Registry, Route
from eorouter.surface import streams
from eorouter.surface.binding import is_list
from eorouter_compute.errors import RequestFault, SourceFault

REF = "#/components/schemas/{name}"
API_VERSION = "1.0.0"
"""Version of the contract, not of the release: the document of a registry is the same wherever it is made."""
BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})

_DESCRIPTION = """Earth-observation gateway and raster compute service.

Every operation has `POST /v1/op/{operation_id}`, most have an idiomatic route as well; both take the same fields and
give the same answer. Errors have one body, `application/problem+json`, with a `code` to program against and a JSON
pointer per fault. Lists are paged by `cursor`; GET routes also send the next page as a `Link` header."""


def document(registry: Registry) -> dict[str, Any]:
    """The OpenAPI document of a registry."""
    schemas = components(registry)
    paths: dict[str, dict[str, Any]] = {}
    for op in registry:
        if not op.receives_bytes:
            paths.setdefault(f"/v1/op/{op.id}", {})["post"] = _by_id(op)
        for number, route in enumerate(op.routes):
            name = f"{op.id}_{route.method.lower()}" + (f"_{number + 1}" if number else "")
            paths.setdefault(route.path, {})[route.method.lower()] = _idiomatic(op, route, schemas, name)
    errors = {error for op in registry for error in errors_of(op)}
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "eorouter",
            "version": API_VERSION,
            "summary": "Earth-observation gateway and raster compute service.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": domain} for domain in sorted({op.domain for op in registry})],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {
            "schemas": {name: schemas[name] for name in sorted(schemas)},
            "responses": {
                error.code: _problem([error])
                for error in sorted(errors, key=lambda error: error.code)
                if error is not ComputeRefused
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key (`eor_live_sk_…`, `eor_test_sk_…`) or an access token of a session.",
                }
            },
        },
    }
    return msgspec.json.decode(msgspec.json.encode(made))  # plain JSON values: defaults of structs are tuples


def components(registry: Registry) -> dict[str, Any]:
    """JSON schemas, by name, of everything that operations take and give."""
    structs: list[Any] = [Problem]
    for op in registry:
        structs.append(op.input)
        if op.output is not None and op.output is not Blob:
            structs.append(op.output)
    return msgspec.json.schema_components(structs, ref_template=REF)[1]


def component_name(struct: type) -> str:
    """Name of a struct's schema."""
    reference = msgspec.json.schema_components([struct], ref_template="{name}")[0][0]
    return reference["$ref"]


def errors_of(op: Operation) -> tuple[type[ApiError], ...]:
    """Every error an operation can answer with: its own and those that any can, by status and code."""
    errors = {*op.errors, InvalidInput, InternalFault, Unavailable}
    if op.scope != PUBLIC:
        errors |= {Unauthenticated}
    if op.scope not in {PUBLIC, ANY}:
        errors |= {MissingScope}
    errors |= {MalformedBody, BodyTooLarge, UnsupportedMediaType}
    if op.output is Blob:
        errors |= {RangeNotSatisfiable}
    if "cursor" in {field.encode_name for field in msgspec.structs.fields(op.input)}:
        errors |= {InvalidCursor}
    return tuple(sorted(errors, key=lambda error: (error.status, error.code)))


def compute_codes() -> tuple[str, ...]:
    """Codes of compute's own errors, which `ComputeRefused` carries."""
    return tuple(sorted({kind.code for base in (RequestFault, SourceFault) for kind in base.__subclasses__()}))


def _by_id(op: Operation) -> dict[str, Any]:
    schema = {"$ref": REF.format(name=component_name(op.input))}
    return _operation(op, op.id) | {"requestBody": _json_body(op, schema, ()), "responses": _responses(op, None)}


def _idiomatic(op: Operation, route: Route, schemas: dict[str, Any], name: str) -> dict[str, Any]:
    described = _operation(op, name)
    schema = schemas[component_name(op.input)]
    fields = {field.encode_name: field for field in msgspec.structs.fields(op.input)}
    path = route.path_fields
    parameters = [*described.pop("parameters", []), *(_parameter(op, schema, each, place="path") for each in path)]
    rest = [each for each in fields if each not in path]
    if op.follow is not None:
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "Of a stream that broke off: the id of the last entry that came.",
                "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
            }
        )
    if op.receives_bytes or route.method not in BODY_METHODS:
        parameters += [
            _parameter(op, schema, each, place="query")
            | ({"style": "form", "explode": True} if is_list(fields[each].type) else {})
            for each in rest
        ]
    if parameters:
        described["parameters"] = parameters
    if op.receives_bytes:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        described["requestBody"] = {"required": True, "content": content}
    elif route.method in BODY_METHODS and rest:
        described["requestBody"] = _json_body(op, _without(schema, path, op), path)
    return described | {"responses": _responses(op, route)}


def _operation(op: Operation, name: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": name,
        "summary": op.summary,
        "tags": [op.domain],
        "x-side-effect": op.tier.value,
        "x-scope": op.scope,
        "security": [] if op.scope == PUBLIC else [{"bearer": [] if op.scope == ANY else [op.scope]}],
    }
    if op.description:
        described["description"] = op.description
    if op.takes_spend:
        described["parameters"] = [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "description": "Names this spending; the same key spends once.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        ]
    return described


def _json_body(op: Operation, schema: dict[str, Any], path: Iterable[str]) -> dict[str, Any]:
    examples: dict[str, Any] = {}
    for number, example in enumerate(op.examples):
        value = {name: value for name, value in example.request.items() if name not in path}
        examples[f"example_{number + 1}"] = {"summary": example.summary, "value": value}
    is_required = any(field.required and field.encode_name not in path for field in msgspec.structs.fields(op.input))
    return {"required": is_required, "content": {"application/json": {"schema": schema, "examples": examples}}}


def _without(schema: dict[str, Any], path: tuple[str, ...], op: Operation) -> dict[str, Any]:
    """The schema of a body whose other fields stand in the path."""
    if not path:
        return {"$ref": REF.format(name=component_name(op.input))}
    changed = {key: value for key, value in schema.items() if key not in {"title", "required"}}
    changed["properties"] = {name: value for name, value in schema["properties"].items() if name not in path}
    required = [name for name in schema.get("required", ()) if name not in path]
    return changed | ({"required": required} if required else {})


def _parameter(op: Operation, schema: dict[str, Any], name: str, *, place: str) -> dict[str, Any]:
    kind = _without_null(dict(schema["properties"][name]))
    parameter: dict[str, Any] = {"name": name, "in": place, "required": place == "path"}
    parameter["required"] |= name in schema.get("required", ())
    if description := kind.pop("description", None):
        parameter["description"] = description
    if place == "path" or kind.get("default", ...) is None:
        kind.pop("default", None)
    parameter["schema"] = kind
    value = next((example.request[name] for example in op.examples if name in example.request), None)
    return parameter if value is None else parameter | {"example": value}


def _without_null(kind: dict[str, Any]) -> dict[str, Any]:
    """A query has no null; the parameter is left out instead."""
    options = [option for option in kind.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        return {key: value for key, value in kind.items() if key != "anyOf"} | options[0]
    return kind | {"anyOf": options} if options else kind


def _responses(op: Operation, route: Route | None) -> dict[str, Any]:
    headers: dict[str, Any] = {
        "X-Request-ID": {"description": "Finds this request in the logs.", "schema": {"type": "string"}}
    }
    done: dict[str, Any] = {"description": HTTPStatus(op.status).phrase, "headers": headers}
    responses = {str(op.status): done}
    if op.output is Blob:
        binary = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        done["content"] = binary
        if route is not None and route.method == "GET":
            responses["206"] = {"description": "The range asked for.", "headers": headers, "content": binary}
            responses["304"] = {"description": "The copy that the caller has is current.", "headers": headers}
    elif op.output is not None:
        done["content"] = {"application/json": {"schema": {"$ref": REF.format(name=component_name(op.output))}}}
        if op.follow is not None and route is not None and route.method == "GET":
            lines = {"type": "string", "description": "Entries of the list as they come, until the last."}
            done["content"] |= {kind: {"schema": lines} for kind in (streams.EVENT_STREAM, streams.NDJSON)}
        is_page = "next_cursor" in {field.encode_name for field in msgspec.structs.fields(op.output)}
        if is_page and route is not None and route.method == "GET":
            link = {"description": 'The next page, `rel="next"` (RFC 8288).', "schema": {"type": "string"}}
            done["headers"] = headers | {"Link": link}
    has_body = route is None or route.method in BODY_METHODS
    by_status: dict[int, list[type[ApiError]]] = {}
    for error in errors_of(op):
        if has_body or error is not UnsupportedMediaType:
            by_status.setdefault(error.status, []).append(error)
    for status, errors in by_status.items():
        shared = {"$ref": f"#/components/responses/{errors[0].code}"}
        is_single = len(errors) == 1 and errors[0] is not ComputeRefused
        responses[str(status)] = shared if is_single else _problem(errors)
    return {status: responses[status] for status in sorted(responses)}


def _problem(errors: list[type[ApiError]]) -> dict[str, Any]:
    codes = [error.code for error in errors if error is not ComputeRefused]
    if ComputeRefused in errors:
        codes += compute_codes()
    lines = [f"`{error.code}`: {(error.__doc__ or '').strip().splitlines()[0]}" for error in errors]
    return {
        "description": "\n\n".join(lines),
        "x-error-codes": codes,
        "content": {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}},
    }
