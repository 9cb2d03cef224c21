"""What an operation is. Read this first.

    input struct + handler + output struct ──@operation──► Operation ──► Registry
                                                                            │
          HTTP routes · POST /v1/op/{id} · OpenAPI · command line · reference pages · SDK (all derived)

A handler is a plain coroutine `(ctx, request) -> output`; the decorator reads both structs from its annotations and
adds nothing to the call, so tests call handlers directly. Faulty definitions are refused when they are imported, all
faults at once. Authority to spend is an argument: only `surface` makes a `SpendAuthority`, and a handler without one
has nothing to hand to the ledger.
"""

import inspect
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType, ModuleType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from eorouter.errors import ApiError, IdempotencyKeyMissing, PaymentRequired
from eorouter.settings import Settings
from eorouter.types import Input, Json, Output, Principal

if TYPE_CHECKING:  # annotations only: storage stands a floor above
    from eorouter.storage import Stores

PUBLIC = "public"
"""Scope of what anyone may call: sign-up, log-in, and addresses that carry their own signature."""

ANY = "account"
"""Scope that every principal has: reading who one is."""

_ID = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,3}$")
_SCOPE = re.compile(r"^[a-z_]+:(read|write)$")
_PATH_FIELD = re.compile(r"{([a-z_]+)}")
# A short list keeps ids guessable; a new verb is a decision, so it is added here and nowhere else. `me`, `progress`,
# `balance` and `signed_url` are published names.
# fmt: off
_VERBS = frozenset((
    "search", "get", "list", "estimate", "place", "cancel", "create", "update", "delete", "execute", "dispatch",
    "download", "initiate", "receive", "complete", "fail", "revoke", "signup", "login", "logout", "refresh", "change",
    "me", "progress", "signed_url", "balance", "pause", "resume",
))
# fmt: on


class Tier(StrEnum):
    """What a call can do, in order of consequence."""

    READ = "read"
    COMPUTE = "compute"
    WRITE = "write"
    SPEND = "spend"
    DESTRUCTIVE = "destructive"
    EXPORT = "export"


class Route(msgspec.Struct, frozen=True):
    """An idiomatic address of an operation. `{name}` in the path is a field of the input."""

    method: str
    path: str

    @property
    def path_fields(self) -> tuple[str, ...]:
        """Names of the input's fields that stand in the path."""
        return tuple(_PATH_FIELD.findall(self.path))


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a client would send it; decoded at import, shown in the documents."""

    summary: str
    request: Json


class SpendAuthority(msgspec.Struct, frozen=True, kw_only=True):
    """Proof that scope, idempotency key and approval were checked; made by `surface` only, demanded by the ledger.

    `digest` stands for what was asked under the key: the operation, its request, the mode, and the key's project.
    """

    principal: Principal
    idempotency_key: str
    digest: str = ""


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is a stored object: `surface` streams it, with ranges and conditional requests."""

    key: str
    media_type: str
    filename: str
    size: int
    etag: str


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a list that goes on: `id` is where a client that comes back resumes, `kind` names the event."""

    id: int
    kind: str
    entry: Output


Follow = Callable[["Context", Any, int | None], AsyncIterator[Followed | None]]
"""`(ctx, request, id of the last entry the caller has) -> entries`; None says that the list is still alive. The first
comes at once, so that a refusal can still be an answer."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a handler may use besides its request.

    Attributes:
        principal: who asks; `ANONYMOUS` on public operations.
        clock: the time, so that tests can turn it.
        stores: database and objects.
        settings: the operator's settings.
        registry: every operation, for those that speak about operations.
        request_id: id in logs, errors and events.
        base_url: address under which the caller reached the API, without a slash at the end.
        address: where the request comes from, of IPv6 the network; empty where nobody is told.
        content: raw body of the request, for operations that receive bytes.
    """

    principal: Principal
    clock: Callable[[], datetime]
    stores: "Stores"
    settings: Settings
    registry: "Registry"
    request_id: str
    base_url: str
    address: str = ""
    content: AsyncIterator[bytes] | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One capability, whole. Everything outside is derived from these fields."""

    id: str
    tier: Tier
    scope: str
    summary: str
    description: str
    input: type[Input]
    output: type[Output] | type[Blob] | None
    errors: tuple[type[ApiError], ...]
    routes: tuple[Route, ...]
    examples: tuple[Example, ...]
    status: int
    receives_bytes: bool
    takes_spend: bool
    handler: Callable[..., Awaitable[Any]]
    follow: Follow | None = None

    @property
    def domain(self) -> str:
        """First part of the id; the tag in the documents."""
        return self.id.split(".", 1)[0]


class BadOperation(TypeError):
    """Definitions that are refused; the message lists every fault."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("Operations refused:\n  " + "\n  ".join(self.faults))


H = TypeVar("H", bound=Callable[..., Awaitable[Any]])


def operation(
    operation_id: str,
    *,
    tier: Tier,
    scope: str,
    errors: tuple[type[ApiError], ...] = (),
    routes: tuple[Route, ...] = (),
    examples: tuple[Example, ...] = (),
    status: int | None = None,
    receives_bytes: bool = False,
    follow: Follow | None = None,
) -> Callable[[H], H]:
    """Declare a handler as an operation.

    Args:
        operation_id: `domain.verb` or `domain.noun.verb`; the last part starts with a verb of the short list.
        tier: what the call can do.
        scope: `domain:read` or `domain:write`, `PUBLIC` or `ANY`.
        errors: the errors this operation can answer with beyond those every operation can.
        routes: idiomatic addresses besides `POST /v1/op/{id}`.
        examples: requests that decode; at least one.
        status: of success; by default 204 without an output, 200 otherwise.
        receives_bytes: the body is raw bytes in `ctx.content`; the input comes from path and query.
        follow: how a list goes on, for callers of a GET route that ask for a stream.

    Raises:
        BadOperation: the definition is refused, with all its faults.
    """

    def decorate(handler: H) -> H:
        hints = _hints(handler)
        names = list(inspect.signature(handler).parameters)
        output = hints.get("return")
        text = inspect.cleandoc(handler.__doc__ or "")
        summary, _, description = text.partition("\n")
        definition = Operation(
            id=operation_id,
            tier=tier,
            scope=scope,
            summary=summary.strip(),
            description=description.strip(),
            input=hints.get(names[1], NoneType) if len(names) > 1 else NoneType,  # pyright: ignore[reportArgumentType]
            output=None if output is NoneType else output,
            errors=errors,
            routes=routes,
            examples=examples,
            status=status or (204 if output is NoneType else 200),
            receives_bytes=receives_bytes,
            takes_spend=hints.get("spend") is SpendAuthority,
            handler=handler,
            follow=follow,
        )
        faults = list(_faults(definition))
        if faults:
            raise BadOperation(f"{operation_id}: {fault}" for fault in faults)
        handler.__operation__ = definition  # type: ignore[attr-defined]
        return handler

    return decorate


def _hints(handler: Callable[..., Any]) -> dict[str, Any]:
    """Annotations that matter; `Context` is left out because it names a type of a higher floor."""
    annotations = {name: value for name, value in handler.__annotations__.items() if name != "ctx"}
    carrier = type("carrier", (), {"__annotations__": annotations, "__module__": handler.__module__})
    return typing.get_type_hints(carrier, globalns=getattr(handler, "__globals__", {}))


def _faults(op: Operation) -> Iterator[str]:
    """Every reason to refuse a definition taken alone."""
    if not _ID.match(op.id):
        yield "the id must be domain.verb or domain.noun.verb in snake case"
    elif op.id.rsplit(".", 1)[1] not in _VERBS and op.id.rsplit(".", 1)[1].split("_")[0] not in _VERBS:
        yield f"the last part must start with one of the verbs: {', '.join(sorted(_VERBS))}"
    yield from _input_faults(op)
    yield from _output_faults(op)
    yield from _authority_faults(op)
    if not op.summary or len(op.summary) > 120 or not op.summary.endswith("."):
        yield "the docstring's first line must be one sentence of at most 120 characters, ending in a full stop"
    if not inspect.iscoroutinefunction(op.handler):
        yield "the handler must be a coroutine function"
    for error in op.errors:
        if not (isinstance(error, type) and issubclass(error, ApiError)):
            yield f"{error!r} in errors is not an ApiError"


def _input_faults(op: Operation) -> Iterator[str]:
    if not (isinstance(op.input, type) and issubclass(op.input, Input)):
        yield "the second parameter must be annotated with a struct that extends Input"
        return
    config = op.input.__struct_config__
    if not (config.frozen and config.forbid_unknown_fields):
        yield f"{op.input.__name__} must be frozen and forbid unknown fields"
    if not op.input.__name__.endswith("Input"):
        yield f"{op.input.__name__} must end in Input"
    if not (op.input.__doc__ or "").strip():
        yield f"{op.input.__name__} needs a docstring"
    if not op.examples:
        yield "at least one example is needed"
    for example in op.examples:
        try:
            msgspec.convert(example.request, op.input)
        except msgspec.ValidationError as error:
            yield f"example {example.summary!r} does not decode: {error}"
    fields = {field.encode_name: field for field in msgspec.structs.fields(op.input)}
    for route in op.routes:
        yield from _route_faults(op, route, fields)


def _route_faults(op: Operation, route: Route, fields: dict[str, Any]) -> Iterator[str]:
    where = f"route {route.method} {route.path}"
    if route.method not in {"GET", "POST", "PUT", "PATCH", "DELETE"}:
        yield f"{where}: unknown HTTP method"
    if not route.path.startswith("/v"):
        yield f"{where}: the path must start with its version, /v1/…"
    if route.method == "GET" and op.tier not in {Tier.READ, Tier.EXPORT}:
        yield f"{where}: GET is for operations that change nothing"
    for name in route.path_fields:
        if name not in fields:
            yield f"{where}: {{{name}}} is not a field of {op.input.__name__}"
    if route.method in {"GET", "DELETE"} or op.receives_bytes:
        for name, field in fields.items():
            if not _is_query_type(field.type):
                yield f"{where}: field {name} cannot stand in a query: it must be a scalar or a list of scalars"


def _is_query_type(kind: Any) -> bool:
    if hasattr(kind, "__metadata__"):
        return _is_query_type(typing.get_args(kind)[0])
    origin = typing.get_origin(kind)
    if origin in {tuple, list, frozenset, typing.Union, UnionType}:
        return all(_is_query_type(part) for part in typing.get_args(kind) if part not in {NoneType, Ellipsis})
    if origin is typing.Literal:
        return True
    return isinstance(kind, type) and not issubclass(kind, (msgspec.Struct, dict))


def _output_faults(op: Operation) -> Iterator[str]:
    if op.output is None or op.output is Blob:
        return
    if not (isinstance(op.output, type) and issubclass(op.output, Output)):
        yield "the return annotation must be a struct that extends Output, Blob, or None"
        return
    if op.output.__name__.endswith(("Response", "Result", "Data", "Output")):
        yield f"{op.output.__name__}: name the answer after the resource"
    for field in msgspec.structs.fields(op.output):
        if not field.required:
            yield f"{op.output.__name__}.{field.name} has a default; an answer always carries every field"


def _authority_faults(op: Operation) -> Iterator[str]:
    if op.scope not in {PUBLIC, ANY} and not _SCOPE.match(op.scope):
        yield f"scope {op.scope!r} must be domain:read, domain:write, PUBLIC or ANY"
    if op.tier is Tier.READ and op.scope.endswith(":write"):
        yield "a read cannot need a :write scope"
    if op.tier not in {Tier.READ, Tier.EXPORT} and op.scope.endswith(":read"):
        yield f"tier {op.tier} cannot be had with a :read scope"
    if op.tier is Tier.SPEND:
        if not op.takes_spend:
            yield "tier spend must take `spend: SpendAuthority`"
        if not any(issubclass(error, PaymentRequired) for error in op.errors):
            yield "tier spend must declare PaymentRequired or a kind of it"
        if IdempotencyKeyMissing not in op.errors:
            yield "tier spend must declare IdempotencyKeyMissing"
    elif op.takes_spend:
        yield f"tier {op.tier} cannot hold a SpendAuthority"


class Registry:
    """All operations, by id; what every projection is a pure function of."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        every = sorted(operations, key=lambda op: op.id)
        faults = list(_registry_faults(every))
        if faults:
            raise BadOperation(faults)
        self._by_id = MappingProxyType({op.id: op for op in every})

    @classmethod
    def of(cls, modules: Iterable[ModuleType]) -> "Registry":
        """Collect the operations of modules, each of which declares the domains it owns in `DOMAINS`.

        Raises:
            BadOperation: ids or structs clash, or a module declares an operation of a domain that is not its own.
        """
        found: list[Operation] = []
        faults: list[str] = []
        for module in modules:
            domains = getattr(module, "DOMAINS", ())
            own = [
                value.__operation__
                for value in vars(module).values()
                if hasattr(value, "__operation__") and value.__module__ == module.__name__
            ]
            faults.extend(
                f"{op.id}: {module.__name__} owns {', '.join(domains) or 'no domain'}; say so in DOMAINS or move it"
                for op in own
                if op.domain not in domains
            )
            found.extend(own)
        if faults:
            raise BadOperation(faults)
        return cls(found)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, operation_id: str) -> Operation | None:
        """The operation of that id, if there is one."""
        return self._by_id.get(operation_id)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every scope a key can be given, sorted."""
        return tuple(sorted({op.scope for op in self} - {PUBLIC, ANY}))


def _registry_faults(operations: list[Operation]) -> Iterator[str]:
    ids: dict[str, Operation] = {}
    routes: dict[tuple[str, str], str] = {}
    structs: dict[str, type] = {}
    for op in operations:
        if op.id in ids:
            yield f"{op.id}: defined twice"
        ids[op.id] = op
        for route in op.routes:
            shape = (route.method, _PATH_FIELD.sub("{}", route.path))
            if shape in routes:
                yield f"{op.id}: route {route.method} {route.path} belongs to {routes[shape]}"
            routes[shape] = op.id
        for struct in (op.input, op.output):
            if struct is None or struct is Blob:
                continue
            if structs.setdefault(struct.__name__, struct) is not struct:
                yield f"{op.id}: another struct is also called {struct.__name__}"
