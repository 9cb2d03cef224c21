"""From the parts of an HTTP request to an operation's input.

Path fields, then either the query (GET, DELETE, and operations that receive bytes) or a JSON body (POST, PUT, PATCH).
Whatever can never be stored or compared is refused here, once for all operations: NUL, lone surrogates, integers
beyond 64 bits, numbers that are not finite, nesting without end.
"""

import math
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec

from eorouter.errors import Fault, InvalidInput, MalformedBody, UnsupportedMediaType
from eorouter.operation import Operation
from eorouter.surface.faults import FAULTS_MAX, convert, did_you_mean, invalid, locate, pointer

DEPTH_MAX = 64
_INTEGER_BITS = 63
_BYTE = re.compile(r"\(byte (\d+)\)")
_LONG_INTEGER = re.compile(rb"[0-9]{19}")
_SUSPECT = re.compile(rb"\x00|\\u0000|\\u[dD][89a-fA-F]")


def from_query(op: Operation, path: Mapping[str, str], query: bytes) -> Any:
    """The input of a route without a body: path fields and query parameters, which may repeat or be comma separated.

    Raises:
        MalformedBody: the query is not UTF-8.
        InvalidInput: with each fault located.
    """
    given: dict[str, list[str]] = {}
    for name, text in _pairs(query):
        given.setdefault(name, []).append(text)
    fields = {field.encode_name: field for field in msgspec.structs.fields(op.input)}
    faults: list[Fault] = []
    data: dict[str, Any] = {}
    for name, texts in given.items():
        if name in path or name not in fields:
            hint = " It stands in the path." if name in path else did_you_mean(name, set(fields) - set(path))
            message = f"There is no query parameter {name[:200]!r}.{hint}"
            faults.append(Fault(pointer=pointer((name[:200],)), code="unknown_field", message=message))
        elif is_list(fields[name].type):
            data[name] = [part for text in texts for part in text.split(",") if part]
        elif len(texts) > 1:
            message = f"{name} is given {len(texts)} times; once is expected."
            faults.append(Fault(pointer=pointer((name,)), code="repeated", message=message))
        else:
            data[name] = texts[0]
    if faults:
        raise invalid(faults[:FAULTS_MAX])
    data |= path
    _refuse_unstorable(data)
    request = convert(data, op.input, strict=False)
    _refuse_unstorable({name: getattr(request, field.name) for name, field in fields.items() if name in data})
    return request


def from_body(op: Operation, path: Mapping[str, str], body: bytes, media_type: str, query: bytes) -> Any:
    """The input of a route with a JSON body; a field of the path may be repeated in it with the same value.

    Raises:
        UnsupportedMediaType: the body is of another type than JSON.
        MalformedBody: the body is not JSON; says the line and column.
        InvalidInput: with each fault located.
    """
    if stray := _pairs(query):
        names = sorted({name[:200] for name, _ in stray})[:FAULTS_MAX]
        raise invalid(
            [Fault(pointer=pointer((n,)), code="unknown_field", message=f"Send {n!r} in the JSON body.") for n in names]
        )
    data = decode(body, media_type)
    for name, value in _path_values(op, path).items():
        if name in data and data[name] != value and str(data[name]) != path[name]:
            fault = Fault(
                pointer=pointer((name,)),
                code="contradiction",
                message=f"The body says another {name} than the address. Leave it out of the body.",
                expected=path[name],
            )
            raise InvalidInput(f"{fault.pointer}: {fault.message}", errors=[fault])
        data[name] = value
    return convert(data, op.input)


def decode(body: bytes, media_type: str) -> dict[str, Any]:
    """The JSON object of a body; an empty one is an empty object."""
    if not body.strip():
        return {}
    kind, _, parameters = media_type.partition(";")
    kind, charset = kind.strip().lower(), parameters.strip().lower().removeprefix("charset=").strip('"')
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise UnsupportedMediaType(f"Expected a body of type application/json, got {kind[:100] or 'none stated'}.")
    if charset not in {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType("JSON is sent as UTF-8 (RFC 8259); send the body without another charset.")
    try:
        data = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The body is not UTF-8: {_position(body, error.start)}.") from error
    except msgspec.ValidationError as error:  # the only one without a type: a number beyond float64
        raise MalformedBody("The body holds a number beyond the range of a 64-bit float.") from error
    except msgspec.DecodeError as error:
        raise MalformedBody(_malformed(body, str(error))) from error
    if not isinstance(data, dict):
        raise invalid([locate(msgspec.ValidationError("Expected `object`"), data, dict)])
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX and _depth(data) > DEPTH_MAX:
        raise _too_deep()
    if _SUSPECT.search(body) or _LONG_INTEGER.search(body):
        _refuse_unstorable(data)
    return data


def is_list(kind: Any) -> bool:
    """The field takes several values."""
    if hasattr(kind, "__metadata__"):
        return is_list(get_args(kind)[0])
    origin = get_origin(kind)
    if origin in {Union, UnionType}:
        return any(is_list(part) for part in get_args(kind) if part is not NoneType)
    return (origin or kind) in {tuple, list, set, frozenset}


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=1000
        )
    except UnicodeDecodeError as error:
        raise MalformedBody("The query is not percent-encoded UTF-8.") from error
    except ValueError as error:
        raise MalformedBody("The query has more than 1000 parameters.") from error


def _path_values(op: Operation, path: Mapping[str, str]) -> dict[str, Any]:
    _refuse_unstorable(path)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(op.input):
        if (name := field.encode_name) not in path:
            continue
        try:
            values[name] = msgspec.convert(path[name], field.type, strict=False)
        except msgspec.ValidationError as error:
            raise invalid([locate(error, path[name], field.type, strict=False, prefix=(name,))]) from error
    _refuse_unstorable(values)
    return values


def _malformed(body: bytes, message: str) -> str:
    found = _BYTE.search(message)
    if found is None:  # msgspec says so of lone surrogates too
        return f"The body is not JSON: {message[0].lower()}{message[1:]}, or it holds half a surrogate pair."
    reason = message[: found.start()].removeprefix("JSON is malformed:").strip()
    return f"The body is not JSON: {reason} at {_position(body, int(found[1]))}."


def _position(body: bytes, offset: int) -> str:
    before = body[:offset]
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    newlines = before.count(b"\n")
    return f"line {newlines + 1}, column {column}"


def _too_deep() -> MalformedBody:
    return MalformedBody(f"The body is nested deeper than {DEPTH_MAX} levels.")


def _depth(data: Any) -> int:
    depth, level = 0, [data]
    while level and depth <= DEPTH_MAX:
        depth += 1
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    return depth


def _refuse_unstorable(data: Any) -> None:
    """Raise for values that neither database can hold, wherever they stand."""
    faults: list[Fault] = []
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    while stack and len(faults) < FAULTS_MAX:
        where, value = stack.pop()
        if isinstance(value, Mapping):
            faults.extend(_unstorable(where, key) for key in value if _complaint(key))
            stack.extend(((*where, str(key)), child) for key, child in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            stack.extend(((*where, number), child) for number, child in enumerate(value))
        elif _complaint(value):
            faults.append(_unstorable(where, value))
    if faults:
        raise invalid(faults)


def _unstorable(where: tuple[str | int, ...], value: Any) -> Fault:
    printable = tuple(str(step).encode("utf-8", "replace").decode().replace("\0", "�") for step in where)
    return Fault(pointer=pointer(printable), code="not_storable", message=_complaint(value) or "")


def _complaint(value: Any) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            return "The text holds a NUL character."
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return "The text holds half a surrogate pair, which is not Unicode text."
    elif isinstance(value, bool):
        return None
    elif isinstance(value, int):
        if value.bit_length() > _INTEGER_BITS:
            return "The integer does not fit into 64 bits."
    elif isinstance(value, float) and not math.isfinite(value):
        return "The number is not finite."
    return None
