"""Saved formulas for band math: an organisation's own, and templates that nobody can change.

A job uses one by its id: `"outputs": [{"name": "ndvi", "formula_id": "frm_…"}]` in a `band_math` task.
"""

from datetime import datetime
from typing import Annotated, Any

import sqlalchemy as sa
from msgspec import Meta
from sqlalchemy.exc import IntegrityError

from eorouter.errors import ComputeRefused, Conflict, InvalidCursor, MissingScope, NotFound
from eorouter.operation import Context, Example, Route, Tier, operation
from eorouter.storage import band_formulas as stored
from eorouter.storage.band_formulas import TEMPLATES, Template
from eorouter.storage.pages import following, start
from eorouter.storage.tables import band_formulas, owned
from eorouter.types import Id, Input, Output, PageInput, Principal, new_id
from eorouter_compute.errors import InvalidExpression, InvalidParameter
from eorouter_compute.expression import names_of

DOMAINS = ("band_formulas",)

FormulaName = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"\S", description="Name, unique in the organisation.")
]
FormulaDescription = Annotated[str, Meta(max_length=2000, description="What the formula is for.")]
FormulaText = Annotated[
    str,
    Meta(min_length=1, max_length=4096, description="Formula; its names are bands, as items or a job's variables say."),
]
_FORMULA_ID = "frm_01k0d5f3q8y7x2w9v4t6s1r0pn"


class BandFormula(Output):
    """A saved formula. `bands` are the names it reads; `version` counts its texts; templates have no dates."""

    formula_id: str
    name: str
    description: str
    expression: str
    bands: tuple[str, ...]
    is_template: bool
    version: int
    created_at: datetime | None
    updated_at: datetime | None


class BandFormulaPage(Output):
    """Formulas, newest first, then the templates."""

    formulas: tuple[BandFormula, ...]
    next_cursor: str | None


class BandFormulasCreateInput(Input):
    """A new formula."""

    name: FormulaName
    expression: FormulaText
    description: FormulaDescription = ""


@operation(
    "band_formulas.create",
    tier=Tier.WRITE,
    scope="band_formulas:write",
    status=201,
    errors=(Conflict, ComputeRefused, MissingScope),
    routes=(Route("POST", "/v1/band-formulas"),),
    examples=(
        Example(
            summary="Save a formula",
            request={"name": "Vine vigour", "expression": "(nir - rededge) / (nir + rededge)", "description": "July"},
        ),
    ),
)
async def create(ctx: Context, request: BandFormulasCreateInput) -> BandFormula:
    """Save a formula for the organisation.

    The text is compiled first: `invalid_expression` says at which character it is at fault. A name that is taken, by a
    template too, is a `conflict`. A key that is restricted to a project is refused with `missing_scope`.
    """
    _check_writer(ctx.principal)
    name = request.name.strip()
    _bands(request.expression)
    now = ctx.clock()
    values = {
        "id": new_id("frm"),
        "org_id": ctx.principal.org_id,
        "name": name,
        "description": request.description,
        "expression": request.expression,
        "version": 1,
        "created_by": ctx.principal.id,
        "created_at": now,
        "updated_at": now,
    }
    async with ctx.stores.db.write() as tx:
        await _check_name_is_free(tx, ctx.principal, name)
        await _saved(tx, band_formulas.insert().values(values), name)
        return _formula(await stored.get(tx, ctx.principal, values["id"]))


class BandFormulasGetInput(Input):
    """Which formula."""

    formula_id: Id


@operation(
    "band_formulas.get",
    tier=Tier.READ,
    scope="band_formulas:read",
    errors=(NotFound,),
    routes=(Route("GET", "/v1/band-formulas/{formula_id}"),),
    examples=(Example(summary="A template", request={"formula_id": "frm_00_ndvi"}),),
)
async def get(ctx: Context, request: BandFormulasGetInput) -> BandFormula:
    """Show a formula of the organisation, or a template."""
    async with ctx.stores.db.read() as tx:
        return _formula(await stored.get(tx, ctx.principal, request.formula_id))


class BandFormulasListInput(PageInput):
    """Which formulas."""

    is_template: Annotated[bool, Meta(description="Only templates, or only the organisation's own.")] | None = None


@operation(
    "band_formulas.list",
    tier=Tier.READ,
    scope="band_formulas:read",
    errors=(InvalidCursor,),
    routes=(Route("GET", "/v1/band-formulas"),),
    examples=(Example(summary="The templates", request={"is_template": True}),),
)
async def list_(ctx: Context, request: BandFormulasListInput) -> BandFormulaPage:
    """List the organisation's formulas, newest first, then the templates."""
    before = start(ctx.settings, "band_formulas", request)
    found: list[Any] = []
    if request.is_template is not True:
        query = sa.select(band_formulas).where(owned(band_formulas, ctx.principal))
        if before is not None:
            query = query.where(band_formulas.c.id < before)
        async with ctx.stores.db.read() as tx:
            rows = await tx.execute(query.order_by(band_formulas.c.id.desc()).limit(request.limit + 1))
            found.extend(rows)
    if request.is_template is not False:
        ids = sorted((each for each in TEMPLATES if before is None or each < before), reverse=True)
        found.extend(TEMPLATES[each] for each in ids)
    shown = found[: request.limit]
    last = shown[-1].id if len(found) > len(shown) else None
    return BandFormulaPage(
        formulas=tuple(_formula(each) for each in shown),
        next_cursor=following(ctx.settings, "band_formulas", request, last),
    )


class BandFormulasUpdateInput(Input):
    """What to change; what is absent or null stays."""

    formula_id: Id
    name: FormulaName | None = None
    expression: FormulaText | None = None
    description: FormulaDescription | None = None


@operation(
    "band_formulas.update",
    tier=Tier.WRITE,
    scope="band_formulas:write",
    errors=(NotFound, Conflict, ComputeRefused, MissingScope),
    routes=(Route("PATCH", "/v1/band-formulas/{formula_id}"),),
    examples=(
        Example(
            summary="Mend a formula",
            request={"formula_id": _FORMULA_ID, "expression": "(nir - rededge071) / (nir + rededge071)"},
        ),
    ),
)
async def update(ctx: Context, request: BandFormulasUpdateInput) -> BandFormula:
    """Change a formula; another text makes another `version`. Jobs that are there keep the text they were made with.

    A template cannot be changed: `conflict`.
    """
    _check_writer(ctx.principal)
    _check_no_template(request.formula_id, "changed")
    if request.expression is not None:
        _bands(request.expression)
    async with ctx.stores.db.write() as tx:
        before: Any = await stored.get(tx, ctx.principal, request.formula_id)
        changes: dict[str, Any] = {}
        if request.name is not None and request.name.strip() != before.name:
            changes["name"] = request.name.strip()
            await _check_name_is_free(tx, ctx.principal, changes["name"])
        if request.description is not None and request.description != before.description:
            changes["description"] = request.description
        if request.expression is not None and request.expression != before.expression:
            changes |= {"expression": request.expression, "version": band_formulas.c.version + 1}
        if changes:
            one = (band_formulas.c.id == request.formula_id) & owned(band_formulas, ctx.principal)
            statement = band_formulas.update().where(one).values(changes | {"updated_at": ctx.clock()})
            await _saved(tx, statement, changes.get("name", before.name))
        return _formula(await stored.get(tx, ctx.principal, request.formula_id))


class BandFormulasDeleteInput(Input):
    """Which formula to delete."""

    formula_id: Id


@operation(
    "band_formulas.delete",
    tier=Tier.DESTRUCTIVE,
    scope="band_formulas:write",
    errors=(NotFound, Conflict, MissingScope),
    routes=(Route("DELETE", "/v1/band-formulas/{formula_id}"),),
    examples=(Example(summary="Delete a formula", request={"formula_id": _FORMULA_ID}),),
)
async def delete(ctx: Context, request: BandFormulasDeleteInput) -> None:
    """Delete a formula; what jobs made with it stays. A template cannot be deleted: `conflict`."""
    _check_writer(ctx.principal)
    _check_no_template(request.formula_id, "deleted")
    async with ctx.stores.db.write() as tx:
        await stored.get(tx, ctx.principal, request.formula_id)
        one = (band_formulas.c.id == request.formula_id) & owned(band_formulas, ctx.principal)
        await tx.execute(band_formulas.delete().where(one))


def _check_writer(principal: Principal) -> None:
    if principal.project_id is not None:
        raise MissingScope(
            f"This key is restricted to project {principal.project_id}; formulas belong to the organisation."
        )


def _check_no_template(formula_id: str, verb: str) -> None:
    if formula_id in TEMPLATES:
        raise Conflict(
            f"{TEMPLATES[formula_id].name} is a template and cannot be {verb}. Save a formula of your own under "
            "another name."
        )


async def _check_name_is_free(tx: Any, principal: Principal, name: str) -> None:
    if name.casefold() in {each.name.casefold() for each in TEMPLATES.values()}:
        raise Conflict(f"{name!r} is the name of a template. Choose another.")
    query = sa.select(band_formulas.c.id).where(owned(band_formulas, principal), band_formulas.c.name == name)
    if (await tx.execute(query)).first() is not None:
        raise Conflict(f"There is already a formula called {name!r}.")


async def _saved(tx: Any, statement: Any, name: str) -> None:
    """Execute; of two writers of one name the later gets the conflict that the first look could not see."""
    try:
        await tx.execute(statement)
    except IntegrityError as error:
        raise Conflict(f"There is already a formula called {name!r}.") from error


def _bands(expression: str) -> tuple[str, ...]:
    """The bands a formula reads, once it is known to be one."""
    try:
        names = names_of(expression)
    except InvalidExpression as error:
        raise InvalidExpression(error.message, pointer="/expression", **error.data) from None
    if not names:
        raise InvalidParameter("The formula reads no band.", pointer="/expression")
    return names


def _formula(each: Template | sa.Row[tuple[Any, ...]]) -> BandFormula:
    row: Any = each
    is_template = isinstance(each, Template)
    return BandFormula(
        formula_id=row.id,
        name=row.name,
        description=row.description,
        expression=row.expression,
        bands=names_of(row.expression),
        is_template=is_template,
        version=1 if is_template else row.version,
        created_at=None if is_template else row.created_at,
        updated_at=None if is_template else row.updated_at,
    )
