"""The glossary: spectral indices, the letters of their formulas, and methods, for anybody to look up."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from eorouter import signing
from eorouter.errors import InvalidCursor, NotFound
from eorouter.operation import PUBLIC, Context, Example, Route, Tier, operation
from eorouter.types import Input, Json, Output, PageInput
from eorouter_compute import catalogue, method
from eorouter_compute.catalogue import SpectralIndex
from eorouter_compute.errors import UnknownIndex, UnknownMethod

DOMAINS = ("glossary",)


class GlossaryIndex(Output):
    """A spectral index. `parameters` have their defaults, null where a job must give one; `bands` are letters."""

    name: str
    long_name: str
    domain: str
    formula: str
    bands: tuple[str, ...]
    parameters: dict[str, float | None]
    is_kernel: bool
    platforms: tuple[str, ...]
    reference: str
    contributor: str
    added: str


class GlossaryIndexPage(Output):
    """Spectral indices by name."""

    indices: tuple[GlossaryIndex, ...]
    next_cursor: str | None


class GlossarySensorBand(Output):
    """The band of one sensor that a letter stands for."""

    band: str
    name: str
    wavelength_nm: float


class GlossaryBand(Output):
    """A letter of the formulas: wavelengths in nanometres, and which band it is on which sensor."""

    letter: str
    long_name: str
    common_name: str | None
    wavelength_nm: tuple[float, float] | None
    sensors: dict[str, GlossarySensorBand]


class GlossaryBandList(Output):
    """Every letter."""

    bands: tuple[GlossaryBand, ...]


class GlossaryMethod(Output):
    """A method: what it makes, how many items it takes, the JSON schema of its parameters, and examples."""

    id: str
    title: str
    summary: str
    makes: str
    item_limit: int
    parameters: Json
    examples: tuple[Json, ...]


class GlossaryMethodList(Output):
    """Every installed method."""

    methods: tuple[GlossaryMethod, ...]


class GlossaryIndicesListInput(PageInput):
    """Which indices."""

    domain: Annotated[str, Meta(max_length=40, description="Only of this domain: vegetation, water, burn …")] | None = (
        None
    )
    band: Annotated[str, Meta(max_length=10, description="Only those that need this letter.")] | None = None
    sensor: (
        Annotated[str, Meta(max_length=40, description="Only those all of whose bands this sensor has: sentinel2a …")]
        | None
    ) = None
    text: (
        Annotated[str, Meta(max_length=100, description="Only those with this text in a name, in any case.")] | None
    ) = None


@operation(
    "glossary.indices.list",
    tier=Tier.READ,
    scope=PUBLIC,
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/glossary/indices"),),
    examples=(
        Example(summary="Burn indices that Sentinel-2 can make", request={"domain": "burn", "sensor": "sentinel2a"}),
    ),
)
async def list_indices(ctx: Context, request: GlossaryIndicesListInput) -> GlossaryIndexPage:
    """List the spectral indices of the catalogue by name."""
    after = ""
    if request.cursor is not None:
        (after,) = signing.position(ctx.settings, "glossary.indices", request, request.cursor)
    found = [each for each in catalogue.indices().values() if each.short_name > after and _is_wanted(each, request)]
    found.sort(key=lambda each: each.short_name)
    shown = found[: request.limit]
    cursor = None
    if len(found) > len(shown):
        cursor = signing.cursor(ctx.settings, "glossary.indices", request, [shown[-1].short_name])
    return GlossaryIndexPage(indices=tuple(_index(each) for each in shown), next_cursor=cursor)


def _is_wanted(record: SpectralIndex, request: GlossaryIndicesListInput) -> bool:
    if request.domain is not None and record.domain != request.domain.lower():
        return False
    if request.band is not None and request.band not in record.bands:
        return False
    if request.sensor is not None and not catalogue.is_made_by(record, request.sensor):
        return False
    return request.text is None or request.text.casefold() in f"{record.short_name} {record.long_name}".casefold()


class GlossaryIndicesGetInput(Input):
    """Which index; case matters."""

    name: Annotated[str, Meta(min_length=1, max_length=64, description="Short name, such as NDVI.")]


@operation(
    "glossary.indices.get",
    tier=Tier.READ,
    scope=PUBLIC,
    errors=(NotFound,),
    routes=(Route("GET", "/v1/glossary/indices/{name}"),),
    examples=(Example(summary="One index", request={"name": "NDVI"}),),
)
async def get_index(ctx: Context, request: GlossaryIndicesGetInput) -> GlossaryIndex:
    """Show a spectral index: formula, bands, parameters with their defaults, and where it was published."""
    del ctx
    try:
        return _index(catalogue.index(request.name))
    except UnknownIndex as error:
        raise NotFound(error.message) from None


class GlossaryBandsListInput(Input):
    """Nothing to say: there are few."""


@operation(
    "glossary.bands.list",
    tier=Tier.READ,
    scope=PUBLIC,
    routes=(Route("GET", "/v1/glossary/bands"),),
    examples=(Example(summary="Every letter", request={}),),
)
async def list_bands(ctx: Context, request: GlossaryBandsListInput) -> GlossaryBandList:
    """List the letters of the formulas with the bands that sensors have for them."""
    del ctx, request
    letters = catalogue.letters().values()
    return GlossaryBandList(bands=tuple(msgspec.convert(msgspec.to_builtins(each), GlossaryBand) for each in letters))


class GlossaryMethodsListInput(Input):
    """Nothing to say: there are few."""


@operation(
    "glossary.methods.list",
    tier=Tier.READ,
    scope=PUBLIC,
    routes=(Route("GET", "/v1/glossary/methods"),),
    examples=(Example(summary="Every method", request={}),),
)
async def list_methods(ctx: Context, request: GlossaryMethodsListInput) -> GlossaryMethodList:
    """List the methods that jobs can run, third parties' too, with the schema of their parameters."""
    del ctx, request
    offered = [each for each in method.methods().values() if not each.is_internal]
    return GlossaryMethodList(methods=tuple(_method(each) for each in offered))


class GlossaryMethodsGetInput(Input):
    """Which method."""

    method: Annotated[str, Meta(min_length=1, max_length=64, description="Id, such as band_math.")]


@operation(
    "glossary.methods.get",
    tier=Tier.READ,
    scope=PUBLIC,
    errors=(NotFound,),
    routes=(Route("GET", "/v1/glossary/methods/{method}"),),
    examples=(Example(summary="One method", request={"method": "band_math"}),),
)
async def get_method(ctx: Context, request: GlossaryMethodsGetInput) -> GlossaryMethod:
    """Show a method with the JSON schema of its parameters."""
    del ctx
    try:
        found = method.get(request.method)
    except UnknownMethod as error:
        raise NotFound(error.message) from None
    if found.is_internal:
        raise NotFound(f"{request.method} is not offered to callers.")
    return _method(found)


def _index(record: SpectralIndex) -> GlossaryIndex:
    fields: dict[str, Any] = msgspec.structs.asdict(record)
    return GlossaryIndex(name=fields.pop("short_name"), **fields)


def _method(found: method.Method) -> GlossaryMethod:
    return GlossaryMethod(
        id=found.id,
        title=found.title,
        summary=found.summary,
        makes=found.makes.value,
        item_limit=found.item_limit,
        parameters=msgspec.json.schema(found.params),
        examples=found.examples,
    )
