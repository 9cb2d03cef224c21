"""A toy registry that has every shape of operation, and an application of it on both engines."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import msgspec
import pytest
import sqlalchemy as sa
from msgspec import Meta
from structlog.testing import capture_logs

from eorouter.errors import IdempotencyKeyMissing, NotFound, PaymentRequired, Unauthenticated
from eorouter.operation import (
    ANY,
    PUBLIC,
    Blob,
    Context,
    Example,
    Followed,
    Registry,
    Route,
    SpendAuthority,
    Tier,
    operation,
)
from eorouter.settings import Settings
from eorouter.storage import Stores
from eorouter.storage.database import Database, database_url
from eorouter.storage.objects import Objects
from eorouter.storage.tables import metadata, organisations, requests_done
from eorouter.surface import http
from eorouter.types import ANONYMOUS, Cursor, Id, Input, Output, PageLimit, Principal, utc_now
from eorouter_compute.errors import AoiOutside

SCENE = bytes(range(256)) * 20_000  # longer than one chunk of the object store


class Square(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="shape", tag="square"):
    """Four equal sides."""

    side_m: Annotated[float, Meta(gt=0, description="Length of a side, metres.")]


class Disc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="shape", tag="disc"):
    """Everything within a radius."""

    radius_m: Annotated[float, Meta(gt=0, description="Radius, metres.")]


class Toy(Output):
    """A thing to play with."""

    toy_id: str
    name: str
    shape: Square | Disc | None
    colours: tuple[str, ...]


class ToyPage(Output):
    """Toys, newest first."""

    toys: tuple[Toy, ...]
    next_cursor: str | None


class ToysCreateInput(Input):
    """What the toy is like."""

    name: Annotated[str, Meta(min_length=1, max_length=40, description="Name on the box.")]
    shape: Square | Disc | None = None
    weights_g: tuple[Annotated[int, Meta(ge=1, le=10_000)], ...] = ()
    labels: dict[str, int] = msgspec.field(default_factory=dict)


class ToysGetInput(Input):
    """Which toy."""

    toy_id: Id


class ToysListInput(Input):
    """Which toys."""

    colours: tuple[str, ...] = ()
    kind: Literal["soft", "hard"] = "soft"
    mass_kg_max: float = 1.0
    is_new: bool = False
    limit: PageLimit = 2
    cursor: Cursor | None = None


class ToysUpdateInput(Input):
    """What to change."""

    toy_id: Id
    number: int = 0
    name: Annotated[str, Meta(max_length=40)] = ""


class ToysDeleteInput(Input):
    """Which toy to give away."""

    toy_id: Id


class ToysReceiveInput(Input):
    """Where the bytes belong."""

    toy_id: Id


class ToyBytes(Output):
    """What arrived."""

    size_bytes: int


class ToysDownloadInput(Input):
    """Which picture."""

    toy_id: Id


class ToysPlaceInput(Input):
    """What to buy."""

    toy_id: Id


class Tick(Output):
    """A moment."""

    number: int


class TickList(Output):
    """The moments so far."""

    ticks: tuple[Tick, ...]


class TicksListInput(Input):
    """How many."""

    limit: Annotated[int, Meta(ge=0, le=9, description="Most to list.")] = 3


async def follow_ticks(ctx: Context, request: TicksListInput, last_id: int | None) -> AsyncIterator[Followed | None]:
    if request.limit == 7:
        raise NotFound("There are no seven ticks.")
    for number in range(1 + (last_id or 0), request.limit + 1):
        yield None
        yield Followed(id=number, kind="tick", entry=Tick(number=number))


@operation(
    "ticks.list",
    tier=Tier.READ,
    scope="toys:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/ticks"),),
    follow=follow_ticks,
    examples=(Example(summary="List", request={}),),
)
async def ticks(ctx: Context, request: TicksListInput) -> TickList:
    """List moments."""
    return TickList(ticks=tuple(Tick(number=number) for number in range(1, request.limit + 1)))


class MeInput(Input):
    """Nothing."""


class ToyOwner(Output):
    """Who asks."""

    id: str
    base_url: str
    request_id: str


def _toy(name: str, shape: Square | Disc | None = None, colours: tuple[str, ...] = ()) -> Toy:
    return Toy(toy_id="toy_1", name=name, shape=shape, colours=colours)


@operation(
    "toys.create",
    tier=Tier.WRITE,
    scope="toys:write",
    status=201,
    routes=(Route("POST", "/v1/toys"),),
    examples=(Example(summary="A ball", request={"name": "ball", "shape": {"shape": "disc", "radius_m": 0.1}}),),
)
async def create(ctx: Context, request: ToysCreateInput) -> Toy:
    """Make a toy."""
    return _toy(request.name, request.shape)


@operation(
    "toys.get",
    tier=Tier.READ,
    scope="toys:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/toys/{toy_id}"),),
    examples=(Example(summary="One toy", request={"toy_id": "toy_1"}),),
)
async def get(ctx: Context, request: ToysGetInput) -> Toy:
    """Look at a toy."""
    match request.toy_id:
        case "broken":
            raise RuntimeError("the spring is loose: secret-detail")
        case "outside":
            raise AoiOutside("The area is 3 km away.", pointer="/aoi")
        case "outage":
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("connection refused"))
        case "faulty":
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("no such table: toys"))
        case "gone":
            raise NotFound("There is no toy gone.")
        case name:
            return _toy(name)


@operation(
    "toys.list",
    tier=Tier.READ,
    scope="toys:read",
    routes=(Route("GET", "/v1/toys"),),
    examples=(Example(summary="Soft ones", request={"kind": "soft"}),),
)
async def list_(ctx: Context, request: ToysListInput) -> ToyPage:
    """List toys."""
    more = request.cursor is None
    return ToyPage(toys=(_toy(request.kind, None, request.colours),), next_cursor="c&2" if more else None)


@operation(
    "toys.update",
    tier=Tier.WRITE,
    scope="toys:write",
    routes=(Route("PATCH", "/v1/toys/{toy_id}"), Route("PUT", "/v1/toys/numbered/{number}/{toy_id}")),
    examples=(Example(summary="Rename", request={"toy_id": "toy_1", "name": "bear"}),),
)
async def update(ctx: Context, request: ToysUpdateInput) -> Toy:
    """Change a toy."""
    return _toy(f"{request.name}:{request.number}")


@operation(
    "toys.delete",
    tier=Tier.DESTRUCTIVE,
    scope="toys:write",
    routes=(Route("DELETE", "/v1/toys/{toy_id}"),),
    examples=(Example(summary="Give away", request={"toy_id": "toy_1"}),),
)
async def delete(ctx: Context, request: ToysDeleteInput) -> None:
    """Give a toy away."""


@operation(
    "toys.content.receive",
    tier=Tier.WRITE,
    scope="toys:write",
    routes=(Route("PUT", "/v1/toys/{toy_id}/content"),),
    examples=(Example(summary="Bytes", request={"toy_id": "toy_1"}),),
    receives_bytes=True,
)
async def content_receive(ctx: Context, request: ToysReceiveInput) -> ToyBytes:
    """Take the bytes of a toy."""
    assert ctx.content is not None
    return ToyBytes(size_bytes=sum([len(chunk) async for chunk in ctx.content]))


@operation(
    "toys.picture.download",
    tier=Tier.EXPORT,
    scope="toys:read",
    routes=(Route("GET", "/v1/toys/{toy_id}/picture"),),
    examples=(Example(summary="Picture", request={"toy_id": "toy_1"}),),
)
async def picture_download(ctx: Context, request: ToysDownloadInput) -> Blob:
    """Show the picture of a toy."""
    name = 'to"y\r\n é/../x.tif'
    return Blob(key=f"toys/{request.toy_id}", media_type="image/tiff", filename=name, size=len(SCENE), etag="abc")


@operation(
    "toys.place",
    tier=Tier.SPEND,
    scope="toys:write",
    errors=(PaymentRequired, IdempotencyKeyMissing),
    routes=(Route("POST", "/v1/toys/{toy_id}/purchase"),),
    examples=(Example(summary="Buy", request={"toy_id": "toy_1"}),),
)
async def place(ctx: Context, request: ToysPlaceInput, spend: SpendAuthority) -> ToyOwner:
    """Buy a toy."""
    return ToyOwner(id=spend.idempotency_key, base_url=spend.principal.id, request_id=ctx.request_id)


@operation(
    "toys.me",
    tier=Tier.READ,
    scope=ANY,
    routes=(Route("GET", "/v1/me"),),
    examples=(Example(summary="Me", request={}),),
)
async def me(ctx: Context, request: MeInput) -> ToyOwner:
    """Say who asks."""
    return ToyOwner(id=ctx.principal.id, base_url=ctx.base_url, request_id=ctx.request_id)


class PublicGetInput(Input):
    """Nothing."""


@operation(
    "toys.public.get",
    tier=Tier.READ,
    scope=PUBLIC,
    routes=(Route("GET", "/v1/public"),),
    examples=(Example(summary="Anyone", request={}),),
)
async def public_get(ctx: Context, request: PublicGetInput) -> ToyOwner:
    """Answer anyone."""
    return ToyOwner(id=ctx.principal.kind, base_url=ctx.base_url, request_id=ctx.request_id)


HANDLERS = (create, get, list_, update, delete, content_receive, picture_download, place, me, public_get, ticks)
SCOPES = {"Bearer all": ("toys:read", "toys:write"), "Bearer reads": ("toys:read",), "Bearer none": ()}


async def authenticate(stores: Stores, settings: Settings, authorization: str | None, **_: Any) -> Principal:
    """Three callers who are told apart by their header."""
    if authorization is None:
        return ANONYMOUS
    if authorization not in SCOPES:
        raise Unauthenticated("These credentials are not known.")
    return Principal(kind="key", id="key_1", org_id="org_1", scopes=frozenset(SCOPES[authorization]))


async def schema_check(db: Any) -> None:
    """The schema of these tests is made by hand and always current."""


@pytest.fixture
def toys() -> Registry:
    """Operations of every shape."""
    return Registry([handler.__operation__ for handler in HANDLERS])


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What was logged, as mappings."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
async def toy_stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """Stores with what spending needs, and nothing else: no toy asks anything of them but objects."""
    stores = Stores(db=Database(database_url("", tmp_path)), objects=Objects("", tmp_path))
    async with stores.db.write() as tx:
        await tx.run_sync(lambda sync: metadata.create_all(sync, tables=[organisations, requests_done]))
        row = {"id": "org_1", "name": "", "quota_bytes": 0, "used_bytes": 0, "created_at": utc_now(), "weight": 1.0}
        await tx.execute(sa.insert(organisations).values(row))
    yield stores
    await stores.db.close()


@pytest.fixture
def client_of(toy_stores: Stores, settings: Settings, toys: Registry) -> Callable[..., httpx2.AsyncClient]:
    """Make a client that calls the application in process, by default with every scope."""

    def make(authorization: str | None = "Bearer all", **changes: Any) -> httpx2.AsyncClient:
        changed = msgspec.structs.replace(settings, body_bytes_max=4096, upload_bytes_max=8192, **changes)
        app = http.create(toys, toy_stores, changed, authenticate=authenticate, schema_check=schema_check)
        headers = {"authorization": authorization} if authorization else {}
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://testserver.local", headers=headers)

    return make
