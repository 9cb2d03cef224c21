"""What is wrong with a request, located: msgspec's messages as faults with RFC 6901 pointers.

msgspec stops at the first fault and says where in its own notation (`Expected `int`, got `str` - at `$.a[0].b``). Here
every field of the request is looked at, so that a caller mends all of them at once, and unknown names get near ones.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from eorouter.errors import Fault, InvalidInput
from eorouter.types import Input

FAULTS_MAX = 20
_SEARCH_MAX = 64
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_GOT = re.compile(r"^Expected `(?P<expected>.*)`, got `(?P<received>.*)`$", re.DOTALL)
_LENGTH = re.compile(r"^Expected `array` (?P<expected>of length \d+), got (?P<received>\d+)$")
_EXPECTED = re.compile(r"^Expected (?P<expected>.*)$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<kind>missing required|contains unknown) field `(?P<name>.*)`$", re.DOTALL)
_SECRET = re.compile(r"password|secret|token|authorization", re.IGNORECASE)

Step = str | int


def pointer(steps: Iterable[Step]) -> str:
    """RFC 6901 pointer of a path."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def near(name: str, names: Iterable[str], *, limit: int = 3) -> list[str]:
    """Those of `names` that `name` may have been meant as, nearest first."""
    return difflib.get_close_matches(name[:200], list(names), n=limit, cutoff=0.6)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence that suggests near names, or nothing."""
    found = near(name, names)
    return f" Did you mean {' or '.join(repr(each) for each in found)}?" if found else ""


def invalid(faults: Sequence[Fault]) -> InvalidInput:
    """The error for located faults; its message is readable without the list."""
    first = faults[0]
    where = f"{first.pointer}: " if first.pointer else ""
    more = f" ({len(faults) - 1} more in `errors`.)" if len(faults) > 1 else ""
    return InvalidInput(f"{where}{first.message}{more}", errors=faults)


def convert(data: Mapping[str, Any], kind: type[Input], *, strict: bool = True) -> Any:
    """An input from plain data.

    Raises:
        InvalidInput: with every fault of the request's own fields, each located.
    """
    try:
        return msgspec.convert(data, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise invalid(_all(data, kind, error, strict=strict)) from error


def _all(data: Mapping[str, Any], kind: type[Input], first: msgspec.ValidationError, *, strict: bool) -> list[Fault]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found = [_unknown(name, (), fields) for name in data if name not in fields]
    for name, field in fields.items():
        if name not in data:
            if field.required:
                found.append(_missing((name,)))
            continue
        try:
            msgspec.convert(data[name], field.type, strict=strict)
        except msgspec.ValidationError as error:
            found.append(locate(error, data[name], field.type, strict=strict, prefix=(name,)))
    # A struct's own check (`__post_init__`) sees fields that are each in order.
    return found[:FAULTS_MAX] or [locate(first, data, kind, strict=strict)]


def locate(
    error: msgspec.ValidationError, data: Any, kind: Any, *, strict: bool = True, prefix: tuple[Step, ...] = ()
) -> Fault:
    """The fault that a message of msgspec describes, `data` being what was converted to `kind`."""
    text, path, of_key = _split(str(error))
    steps = _steps(path, data, kind, strict=strict)
    where = (*prefix, *steps)
    node = _node(kind, data, steps)
    if match := _FIELD.match(text):
        if match["kind"].startswith("missing"):
            return _missing((*where, match["name"]))
        return _unknown(match["name"], where, _names(node))
    value = _value(data, steps)
    if text.startswith(("Invalid value", "Invalid enum value")):
        choices = _choices(node) or _tags(_node(kind, data, steps[:-1]))
        return Fault(
            pointer=pointer(where),
            code="not_a_choice",
            message=f"{_show(where, value)} is not one of: {', '.join(choices)}.{did_you_mean(str(value), choices)}",
            expected=", ".join(choices),
            received=_show(where, value),
        )
    if of_key:
        return Fault(pointer=pointer(where), code="invalid_key", message=f"A key of this object: {_plain(text)}.")
    for shape in (_GOT, _LENGTH, _EXPECTED):
        if match := shape.match(text):
            parts = match.groupdict()
            expected = _plain(parts["expected"])
            received = parts.get("received") or _show(where, value)
            return Fault(
                pointer=pointer(where),
                message=f"Expected {expected}, got {_plain(received)}.",
                expected=expected,
                received=_plain(received),
            )
    return Fault(pointer=pointer(where), message=f"{_plain(text)}.", received=_show(where, value))


def _missing(where: tuple[Step, ...]) -> Fault:
    return Fault(pointer=pointer(where), code="missing", message=f"The field {str(where[-1])!r} is required.")


def _unknown(name: str, where: tuple[Step, ...], names: Iterable[str]) -> Fault:
    names = sorted(names)
    known = f" Known fields: {', '.join(names)}." if names else ""
    return Fault(
        pointer=pointer((*where, name[:200])),
        code="unknown_field",
        message=f"There is no field {name[:200]!r} here.{did_you_mean(name, names)}{known}",
    )


def _split(message: str) -> tuple[str, str, bool]:
    """Text, path and whether the fault is in a key."""
    text, separator, path = message.rpartition(" - at `")
    if not separator:
        return message, "", False
    if path.startswith("key` in `"):
        return text, path.removeprefix("key` in `").rstrip("`").removeprefix("$"), True
    return text, path.rstrip("`").removeprefix("$"), False


def _steps(path: str, data: Any, kind: Any, *, strict: bool) -> tuple[Step, ...]:
    """The path as steps into `data`; msgspec hides the keys of mappings (`[...]`), they are found by trying."""
    steps: list[Step] = []
    for match in _STEP.finditer(path):
        name, index, hidden = match.groups()
        if hidden:
            key = _culprit(data, kind, steps, strict=strict)
            if key is None:
                break
            steps.append(key)
        else:
            steps.append(name if index is None else int(index))
    return tuple(steps)


def _culprit(data: Any, kind: Any, steps: Sequence[Step], *, strict: bool) -> Step | None:
    """The entry of the container at `steps` that alone still makes the conversion fail."""
    container = _value(data, steps)
    if isinstance(container, Mapping):
        singles: list[tuple[Step, Any]] = [(str(key), {key: value}) for key, value in container.items()]
    elif isinstance(container, list | tuple):
        singles = [(number, [value]) for number, value in enumerate(container)]
    else:
        return None
    for key, single in singles[:_SEARCH_MAX]:
        try:
            msgspec.convert(_replaced(data, steps, single), kind, strict=strict)
        except msgspec.ValidationError:
            return key
    return None


def _replaced(data: Any, steps: Sequence[Step], value: Any) -> Any:
    if not steps:
        return value
    changed: Any = dict(data) if isinstance(data, Mapping) else list(data)
    changed[steps[0]] = _replaced(data[steps[0]], steps[1:], value)
    return changed


def _value(data: Any, steps: Sequence[Step]) -> Any:
    for step in steps:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _node(kind: Any, data: Any, steps: Sequence[Step]) -> inspect.Type | None:
    """The type at `steps`; in a union, the one that the data's tag or shape names."""
    node: inspect.Type | None = _chosen(inspect.type_info(kind), data)
    for step in steps:
        data = _value(data, (step,))
        if isinstance(node, inspect.StructType):
            node = next((field.type for field in node.fields if field.encode_name == step), None)
        elif isinstance(node, inspect.DictType):
            node = node.value_type
        elif isinstance(node, inspect.TupleType) and isinstance(step, int) and step < len(node.item_types):
            node = node.item_types[step]
        elif isinstance(node, inspect.CollectionType):
            node = node.item_type
        else:
            return None
        node = _chosen(node, data)
    return node


def _chosen(node: inspect.Type | None, data: Any) -> inspect.Type | None:
    while isinstance(node, inspect.Metadata):
        node = node.type
    if not isinstance(node, inspect.UnionType):
        return node
    options = [_chosen(option, data) for option in node.types if not isinstance(option, inspect.NoneType)]
    if isinstance(data, Mapping):
        structs = [option for option in options if isinstance(option, inspect.StructType)]
        tagged = [s for s in structs if s.tag_field is not None and data.get(s.tag_field) == s.tag]
        if tagged:
            return tagged[0]
        if len(structs) == 1:
            return structs[0]
    return options[0] if len(options) == 1 else node


def _names(node: inspect.Type | None) -> list[str]:
    if not isinstance(node, inspect.StructType):
        return []
    return [field.encode_name for field in node.fields] + ([node.tag_field] if node.tag_field else [])


def _choices(node: inspect.Type | None) -> list[str]:
    if isinstance(node, inspect.EnumType):
        return [str(member.value) for member in node.cls]
    return [str(value) for value in node.values] if isinstance(node, inspect.LiteralType) else []


def _tags(node: inspect.Type | None) -> list[str]:
    """Tags of a tagged union (or of the one struct it is)."""
    options = node.types if isinstance(node, inspect.UnionType) else (node,)
    return [str(option.tag) for option in options if isinstance(option, inspect.StructType) and option.tag is not None]


def _plain(text: str) -> str:
    return text.replace("`", "")


def _show(where: Sequence[Step], value: Any) -> str:
    """A value as it may be repeated to the caller: short, and never a secret."""
    if any(_SECRET.search(str(step)) for step in where):
        return "a hidden value"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, list | tuple):
        return f"array of length {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str) if value is not None else "null"
    return text if len(text) <= 80 else f"{text[:77]}…"
