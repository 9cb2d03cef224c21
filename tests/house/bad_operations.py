"""One refused definition per rule of `@operation` and of the registry, with words of the message it is refused with."""

from collections.abc import Callable
from typing import Any

import msgspec

from eorouter.errors import IdempotencyKeyMissing, PaymentRequired
from eorouter.operation import Context, Example, Registry, Route, SpendAuthority, Tier, operation
from eorouter.types import Input, Output


class ThingsGetInput(Input):
    """Which thing."""

    thing_id: str = "a"


class ThingsNestInput(Input):
    """A thing in a thing."""

    inner: ThingsGetInput


class UndocumentedInput(Input):
    thing_id: str = "a"


UndocumentedInput.__doc__ = ""


class Loose(msgspec.Struct):
    """No input of ours."""


class LaxInput(Input, forbid_unknown_fields=False):
    """Lets unknown fields pass."""


class ThingsGet(Input):
    """Has no Input at the end of its name."""


class Thing(Output):
    """A thing."""

    name: str


class ThingResponse(Output):
    """Named after the wire."""

    name: str


class Optional(Output):
    """A field may be absent."""

    name: str = "a"


EXAMPLE = (Example(summary="A", request={}),)
READ: dict[str, Any] = {"tier": Tier.READ, "scope": "things:read", "examples": EXAMPLE}
SPEND: dict[str, Any] = {
    "tier": Tier.SPEND, "scope": "things:write", "examples": EXAMPLE,
    "errors": (PaymentRequired, IdempotencyKeyMissing),
}  # fmt: skip


def definition(
    operation_id: str = "things.get",
    *,
    asks: Any = ThingsGetInput,
    answers: Any = Thing,
    doc: str | None = "Look at a thing.",
    spends: bool = False,
    **arguments: Any,
) -> Any:
    """Declare an operation with these faults; returns its record when it is taken."""

    async def plain(ctx: Context, request: Any) -> Any: ...

    async def spending(ctx: Context, request: Any, spend: SpendAuthority) -> Any: ...

    handler = spending if spends else plain
    handler.__doc__ = doc
    handler.__annotations__ |= {"request": asks, "return": answers}
    return operation(operation_id, **{**READ, **arguments})(handler).__operation__


def synchronous() -> Any:
    def handler(ctx: Context, request: ThingsGetInput) -> Thing:
        """Look at a thing."""
        return Thing(name="a")

    return operation("things.get", **READ)(handler)  # pyright: ignore[reportArgumentType]


def without_input() -> Any:
    async def handler(ctx: Context) -> Thing:
        """Look at a thing."""
        return Thing(name="a")

    return operation("things.get", **READ)(handler)


def routed(*routes: Route, **arguments: Any) -> Callable[[], Any]:
    return lambda: definition(routes=routes, **arguments)


def bad(*arguments: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: definition(*arguments, **keywords)


def twin(asks: type[Input]) -> type[Input]:
    """Another struct of the same name."""
    return type(
        asks.__name__, (Input,), {"__doc__": asks.__doc__, "__annotations__": {"thing_id": str}, "thing_id": "b"}
    )


GET = Route("GET", "/v1/things")

BAD_OPERATIONS: tuple[tuple[str, Callable[[], Any], str], ...] = (
    ("id without a verb part", bad("things"), "domain.verb"),
    ("id in capitals", bad("Things.get"), "domain.verb"),
    ("id of five parts", bad("things.b.c.d.get"), "domain.verb"),
    ("verb that is none", bad("things.fetch"), "must start with one of the verbs"),
    ("no input", without_input, "annotated with a struct that extends Input"),
    ("input of another kind", bad(asks=Loose), "annotated with a struct that extends Input"),
    ("input that is no struct", bad(asks=dict), "annotated with a struct that extends Input"),
    ("input that lets unknown fields pass", bad(asks=LaxInput), "frozen and forbid unknown fields"),
    ("input by another name", bad(asks=ThingsGet), "must end in Input"),
    ("input without a docstring", bad(asks=UndocumentedInput), "needs a docstring"),
    ("no example", bad(examples=()), "at least one example"),
    ("example that does not decode", bad(examples=(Example(summary="A", request={"x": 1}),)), "does not decode"),
    ("unknown HTTP method", routed(Route("FETCH", "/v1/things")), "unknown HTTP method"),
    ("route without a version", routed(Route("GET", "/things")), "must start with its version"),
    ("GET that changes something", routed(GET, tier=Tier.WRITE, scope="things:write"), "GET is for operations"),
    ("path field that is no field", routed(Route("GET", "/v1/things/{id}")), "{id} is not a field"),
    (
        "struct in a query",
        routed(GET, asks=ThingsNestInput, examples=(Example(summary="A", request={"inner": {}}),)),
        "cannot stand in a query",
    ),
    ("answer that is no Output", bad(answers=dict), "must be a struct that extends Output"),
    ("answer named after the wire", bad(answers=ThingResponse), "name the answer after the resource"),
    ("answer with an optional field", bad(answers=Optional), "has a default"),
    ("scope of another form", bad(scope="things"), "must be domain:read, domain:write"),
    ("read with a write scope", bad(scope="things:write"), "a read cannot need a :write scope"),
    ("write with a read scope", bad(tier=Tier.WRITE), "cannot be had with a :read scope"),
    ("spend without authority", bad(**SPEND), "must take `spend: SpendAuthority`"),
    (
        "spend without a payment error",
        bad(spends=True, **{**SPEND, "errors": (IdempotencyKeyMissing,)}),
        "PaymentRequired",
    ),
    (
        "spend without its key's error",
        bad(spends=True, **{**SPEND, "errors": (PaymentRequired,)}),
        "IdempotencyKeyMissing",
    ),
    ("authority outside of spend", bad(spends=True), "cannot hold a SpendAuthority"),
    ("no summary", bad(doc=None), "first line must be one sentence"),
    ("summary without a full stop", bad(doc="Look at a thing"), "first line must be one sentence"),
    ("summary over 120 characters", bad(doc=f"{'Look ' * 30}."), "first line must be one sentence"),
    ("handler that is no coroutine", synchronous, "must be a coroutine function"),
    ("error that is none of ours", bad(errors=(ValueError,)), "is not an ApiError"),
    ("id taken", lambda: Registry([definition(), definition()]), "defined twice"),
    (
        "route taken, whatever its fields are called",
        lambda: Registry([
            definition("things.get", routes=(Route("GET", "/v1/things/{thing_id}"),)),
            definition("things.list", routes=(Route("GET", "/v1/things/{thing_id}"),)),
        ]),
        "belongs to things.get",
    ),
    (
        "struct name taken",
        lambda: Registry([definition("things.get"), definition("things.list", asks=twin(ThingsGetInput))]),
        "another struct is also called ThingsGetInput",
    ),
)  # fmt: skip
