"""What a method is, what it is given and what it gives back; the registry of methods.

    Params + inputs ──plan──► Plan(shards) ──run──► Part per shard ──merge──► Result
                                  ▲                         │
                                  └── turn: the next round ◄┘   where a later pass needs what an earlier one found

`plan` is pure: it sees parameters and item metadata, never a pixel, so a price and a bound exist before anything
starts. `run` and `merge` execute on a worker. Parts are msgspec bytes; large outputs are objects of the attempt. A
method is one module in `eorouter_compute.methods` that defines `METHOD`, or an entry point of `eorouter.methods`.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from eorouter_compute.attempt import Attempt, ObjectRef
from eorouter_compute.errors import BandNotFound, InvalidParameter, UnknownMethod
from eorouter_compute.grid import Grid, Window

T = TypeVar("T")


class Params(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method"):
    """Base of every method's parameters; a subclass sets `tag` to the method's id, and documents units and bounds."""


class Band(Struct, frozen=True, kw_only=True):
    """One band of a raster asset. Physical value = stored value × `scale` + `offset`."""

    name: str
    index: Annotated[int, Meta(ge=1)]
    dtype: str
    common_name: str | None = None
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    unit: str | None = None
    description: str | None = None


class RasterAsset(Struct, frozen=True, kw_only=True, tag_field="kind", tag="raster"):
    """A readable raster: where it is and the grid it lies on. `transform` is (a, b, c, d, e, f) from pixel to CRS."""

    key: str
    href: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]
    bands: tuple[Band, ...]
    block_shape: tuple[int, int]
    has_mask: bool = False
    sha256: str | None = None

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in units of the CRS."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    @property
    def window(self) -> Window:
        """The whole raster as a window."""
        return Window(0, 0, *self.shape)

    @property
    def grid(self) -> Grid:
        """Where its pixels lie."""
        return Grid(crs=self.crs, transform=self.transform, shape=self.shape)


class VectorAsset(Struct, frozen=True, kw_only=True, tag_field="kind", tag="vector"):
    """A readable layer of features. `bounds` is (x_min, y_min, x_max, y_max) in `crs`."""

    key: str
    href: str
    crs: str
    feature_count: int
    bounds: tuple[float, float, float, float]
    fields: tuple[str, ...] = ()
    layer: str | None = None
    sha256: str | None = None


class InputItem(Struct, frozen=True, kw_only=True):
    """An item as a method sees it."""

    id: str
    assets: tuple[RasterAsset | VectorAsset, ...]
    at: datetime | None = None
    properties: dict[str, Any] = {}

    @property
    def rasters(self) -> tuple[RasterAsset, ...]:
        """The raster assets, in the item's order."""
        return tuple(asset for asset in self.assets if isinstance(asset, RasterAsset))

    @property
    def vectors(self) -> tuple[VectorAsset, ...]:
        """The vector assets, in the item's order."""
        return tuple(asset for asset in self.assets if isinstance(asset, VectorAsset))

    @property
    def bands(self) -> tuple[tuple[RasterAsset, Band], ...]:
        """Every band with the asset that holds it, in the item's order."""
        return tuple((asset, band) for asset in self.rasters for band in asset.bands)

    def named(self, name: str) -> tuple[tuple[RasterAsset, Band], ...]:
        """Every band of that name: by band name, `asset:band`, common name or, of one-band assets, asset key.

        The first of these spellings that fits anything counts; none does where the item has no such band.
        """
        spellings: tuple[Callable[[RasterAsset, Band], bool], ...] = (
            lambda asset, band: band.name == name,
            lambda asset, band: f"{asset.key}:{band.name}" == name,
            lambda asset, band: band.common_name == name,
            lambda asset, band: asset.key == name and len(asset.bands) == 1,
        )
        pairs = self.bands
        found = (tuple(pair for pair in pairs if matches(*pair)) for matches in spellings)
        return next((each for each in found if each), ())

    def band(self, name: str) -> tuple[RasterAsset, Band]:
        """The band of that name, found as by `named`.

        Raises:
            BandNotFound: nothing has this name, or only a common name that two bands share; names the bands there are.
        """
        found = self.named(name)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{asset.key}:{band.name}" for asset, band in found)
            raise BandNotFound(f"Item {self.id} has several bands called {name!r}: {names}. Say which one.", band=name)
        names = ", ".join(
            band.name + (f" ({band.common_name})" if band.common_name and band.common_name != band.name else "")
            for _, band in self.bands
        )
        raise BandNotFound(f"Item {self.id} has no band {name!r}. It has: {names or 'no raster bands'}.", band=name)


def by_asset(entries: Iterable[tuple[RasterAsset, T]]) -> list[tuple[RasterAsset, list[T]]]:
    """Entries gathered by the asset they belong to, assets in order of their first entry: each is read once."""
    gathered: dict[str, tuple[RasterAsset, list[T]]] = {}
    for asset, entry in entries:
        gathered.setdefault(asset.key, (asset, []))[1].append(entry)
    return list(gathered.values())


class Bound(Struct, frozen=True, kw_only=True):
    """An upper bound of one shard or, by `total`, of a job.

    pixels: output and input pixels touched; bytes_read, bytes_written: at the object store; memory_bytes: peak of one
    shard above the worker's idle size; seconds: of one core of the reference machine.
    """

    pixels: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    memory_bytes: int = 0
    seconds: float = 0.0


def total(bounds: Iterable[Bound]) -> Bound:
    """Bound of shards that run in any order: sums, and the largest memory."""
    every = tuple(bounds)
    return Bound(
        pixels=sum(b.pixels for b in every),
        bytes_read=sum(b.bytes_read for b in every),
        bytes_written=sum(b.bytes_written for b in every),
        memory_bytes=max((b.memory_bytes for b in every), default=0),
        seconds=sum(b.seconds for b in every),
    )


class Shard(Struct, frozen=True, kw_only=True):
    """A piece of work: `body` is what the method's `run` decodes, `bound` is what it may cost."""

    body: bytes
    bound: Bound


class Plan(Struct, frozen=True, kw_only=True):
    """All shards of a job's first round, and what the rest costs.

    `later` has one bound per further round, of its shards together with the turn that makes them; its length is the
    number of turns. A method whose passes need nothing of each other has one round and no turn.
    """

    shards: tuple[Shard, ...]
    merge_bound: Bound = Bound()
    later: tuple[Bound, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bound(self) -> Bound:
        """Upper bound of the whole job."""
        return total([*(shard.bound for shard in self.shards), *self.later, self.merge_bound])


class FailedRead(Struct, frozen=True, kw_only=True):
    """A source window that could not be read, and why."""

    source: str
    window: Window
    reason: str


class ReadReport(Struct, frozen=True, kw_only=True):
    """What was read and what was not: silence never stands for data."""

    reads: int = 0
    pixels: int = 0
    valid_pixels: int = 0
    failed: tuple[FailedRead, ...] = ()

    def __add__(self, other: "ReadReport") -> "ReadReport":
        """Merge two reports."""
        return ReadReport(
            reads=self.reads + other.reads,
            pixels=self.pixels + other.pixels,
            valid_pixels=self.valid_pixels + other.valid_pixels,
            failed=self.failed + other.failed,
        )


class Part(Struct, frozen=True, kw_only=True):
    """What one shard hands to the merge: small state in `body`, large state in `objects`."""

    body: bytes = b""
    objects: dict[str, ObjectRef] = {}
    report: ReadReport = ReadReport()


class OutputAsset(Struct, frozen=True, kw_only=True):
    """One file of an output item. `raster` or `vector` describe data files; their href is the attempt's object."""

    key: str
    object: ObjectRef
    media_type: str
    roles: tuple[str, ...]
    filename: str
    title: str = ""
    raster: RasterAsset | None = None
    vector: VectorAsset | None = None
    statistics: tuple[dict[str, float | int | None], ...] = ()


class OutputItem(Struct, frozen=True, kw_only=True):
    """A new item: `name` is unique in the job; footprint is GeoJSON in longitude/latitude (WGS 84)."""

    name: str
    assets: tuple[OutputAsset, ...]
    footprint: dict[str, Any]
    bbox: tuple[float, float, float, float]
    at: datetime | None = None
    title: str = ""
    properties: dict[str, Any] = {}


class Result(Struct, frozen=True, kw_only=True):
    """What a job leaves: items, a small summary for the answer, and what was read."""

    items: tuple[OutputItem, ...] = ()
    summary: dict[str, Any] = {}
    report: ReadReport = ReadReport()


class Kind(StrEnum):
    """What a method makes."""

    RASTER = "raster"
    TABLE = "table"


class Retries(Struct, frozen=True, kw_only=True):
    """What is done about a shard that did not make it.

    Attributes:
        attempts: tries in all of a shard that a machine or a defect broke; so many failures are the shard's own.
        source_attempts: tries in all where a source could not be read; 1 where a source does not mend by itself.
        backoff_s, backoff_max_s: pause before the second try, doubled before each further one up to the second number.
        attempt_s: longest that one try may execute, seconds; then its worker is ended and the try has failed.
    """

    attempts: int = 4
    source_attempts: int = 1
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    attempt_s: float = 6 * 3600.0


class Method(Struct, frozen=True, kw_only=True):
    """One method, whole.

    Attributes:
        id: snake case; also the `method` tag of its parameters.
        title: one line for lists.
        makes: rasters or tables.
        params: its `Params` subclass; the published JSON schema comes from it.
        plan: `(params, inputs) -> Plan`, pure; raises `RequestFault` with a pointer.
        run: `(params, inputs, shard body, attempt) -> Part`, on a worker.
        merge: `(params, inputs, parts of the last round in shard order, attempt) -> Result`, on a worker.
        turn: `(params, inputs, number, parts in shard order, attempt) -> shards`, on a worker: the shards of round
            `number` (1, 2 …) from the parts of the round before; needed when plans have later rounds.
        retries: what is done about shards that fail.
        item_limit: most input items.
        is_internal: not offered to callers; the service uses it itself (ingest).
        is_blind: its plan knows nothing of what it will read, so its bound is the most that is accepted at all; what it
            reports as done is told instead.
        examples: JSON documents of `params`, shown in the docs and decoded by a test.
    """

    id: str
    title: str
    makes: Kind
    params: type[Params]
    plan: Callable[[Any, Sequence[InputItem]], Plan]
    run: Callable[[Any, Sequence[InputItem], bytes, Attempt], Part]
    merge: Callable[[Any, Sequence[InputItem], Sequence[Part], Attempt], Result]
    turn: Callable[[Any, Sequence[InputItem], int, Sequence[Part], Attempt], Sequence[Shard]] | None = None
    retries: Retries = Retries()
    item_limit: int = 1
    is_internal: bool = False
    is_blind: bool = False
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def summary(self) -> str:
        """First line of the parameters' docstring."""
        return (self.params.__doc__ or "").strip().splitlines()[0]


def plan(params: Params, inputs: Sequence[InputItem]) -> Plan:
    """Plan the method that `params` belongs to.

    Raises:
        RequestFault: the request cannot be done; says what, where and how to mend it.
    """
    method = get(params.__struct_config__.tag)  # pyright: ignore[reportArgumentType]
    if len(inputs) > method.item_limit:
        raise InvalidParameter(
            f"{method.id} takes at most {method.item_limit} item(s), {len(inputs)} were given.", pointer="/inputs"
        )
    places: dict[str, int] = {}
    for place, item in enumerate(inputs):
        first = places.setdefault(item.id, place)
        if first < place:
            raise InvalidParameter(
                f"Item {item.id} is given twice, first as input {first}. Leave out one.", pointer=f"/inputs/{place}"
            )
    return method.plan(params, inputs)


def get(method_id: str) -> Method:
    """The method of that id.

    Raises:
        UnknownMethod: it is not installed; names those that are.
    """
    try:
        return methods()[method_id]
    except KeyError:
        raise UnknownMethod(
            f"There is no method {method_id!r}. Installed: {', '.join(methods())}.", pointer="/task/method"
        ) from None


def is_blind(method_id: str) -> bool:
    """Whether that method tells what it did rather than what was planned; False of one that is not installed here."""
    known = methods().get(method_id)
    return known is not None and known.is_blind


@cache
def methods() -> MappingProxyType[str, Method]:
    """Every installed method by id, sorted: those of this package and those of the entry points `eorouter.methods`."""
    package = import_module("eorouter_compute.methods")
    own = [import_module(f"{package.__name__}.{found.name}").METHOD for found in iter_modules(package.__path__)]
    foreign = [entry.load() for entry in entry_points(group="eorouter.methods")]
    faults: list[str] = []
    registry: dict[str, Method] = {}
    for method in [*own, *foreign]:
        faults.extend(_faults(method, registry))
        registry[getattr(method, "id", repr(method))] = method
    if faults:
        raise TypeError("Bad method definitions:\n  " + "\n  ".join(faults))
    return MappingProxyType(dict(sorted(registry.items())))


def _faults(method: object, registry: dict[str, Method]) -> list[str]:
    """Why a definition is refused, all reasons at once."""
    if not isinstance(method, Method):
        return [f"{method!r} is not a Method record"]
    faults = []
    where = f"method {method.id!r}"
    if method.id in registry:
        faults.append(f"{where}: the id is taken")
    if not method.id.isidentifier() or method.id != method.id.lower():
        faults.append(f"{where}: the id must be snake case")
    if not issubclass(method.params, Params):
        return [*faults, f"{where}: params must extend Params"]
    if method.params.__struct_config__.tag != method.id:
        faults.append(f"{where}: params must have tag={method.id!r}")
    if not (method.params.__doc__ or "").strip():
        faults.append(f"{where}: params need a docstring; it is the method's public description")
    for example in method.examples:
        try:
            msgspec.convert(example, method.params)
        except msgspec.ValidationError as error:
            faults.append(f"{where}: an example does not decode: {error}")
    if not method.examples and not method.is_internal:
        faults.append(f"{where}: at least one example is needed")
    return faults


def task_type() -> Any:
    """The tagged union, on `method`, of the parameters of every method offered to callers."""
    offered = tuple(method.params for method in methods().values() if not method.is_internal)
    union: Any = offered[0]
    for params in offered[1:]:
        union |= params
    return union
