"""Saved formulas: checked when they are saved, seen by their own, used by jobs; templates stand fast."""

import asyncio

import msgspec
import pytest
import sqlalchemy as sa

from eorouter.errors import Conflict, InvalidCursor, MissingScope, NotFound
from eorouter.operation import Registry
from eorouter.operations import band_formulas, processing
from eorouter.operations.band_formulas import (
    BandFormulasCreateInput,
    BandFormulasDeleteInput,
    BandFormulasGetInput,
    BandFormulasListInput,
    BandFormulasUpdateInput,
)
from eorouter.storage import items
from eorouter.storage.band_formulas import TEMPLATES
from eorouter.storage.tables import jobs
from eorouter.types import Principal, utc_now
from eorouter_compute import method
from eorouter_compute.attempt import ObjectRef
from eorouter_compute.errors import InvalidExpression, InvalidParameter
from eorouter_compute.method import Band, OutputAsset, OutputItem, RasterAsset

SCOPES = frozenset({"band_formulas:read", "band_formulas:write"})
ME = Principal(kind="user", id="usr_me", org_id="org_me", scopes=SCOPES)
OTHER = Principal(kind="user", id="usr_other", org_id="org_other", scopes=SCOPES)
KEY = msgspec.structs.replace(ME, kind="key", project_id="prj_a")
NDVI = "(nir - red) / (nir + red)"


def new(ctx, name="vigour", expression=NDVI, **fields):
    return band_formulas.create(ctx, BandFormulasCreateInput(name=name, expression=expression, **fields))


def test_registry_takes_the_module_whole():
    registry = Registry.of([band_formulas])
    assert [op.id.split(".")[1] for op in registry] == ["create", "delete", "get", "list", "update"]
    assert registry.scopes == ("band_formulas:read", "band_formulas:write")


async def test_create_get_and_update_keep_what_was_said(context, peopled):
    ctx = context(ME)
    made = await new(ctx, " vigour ", description="July")
    assert (made.name, made.description, made.bands, made.version) == ("vigour", "July", ("nir", "red"), 1)
    assert not made.is_template
    assert await band_formulas.get(ctx, BandFormulasGetInput(formula_id=made.formula_id)) == made
    one = {"formula_id": made.formula_id}
    renamed = await band_formulas.update(ctx, BandFormulasUpdateInput(**one, name="vine"))
    assert (renamed.name, renamed.version) == ("vine", 1)
    mended = await band_formulas.update(ctx, BandFormulasUpdateInput(**one, expression="nir / red", description=""))
    assert (mended.expression, mended.version, mended.description) == ("nir / red", 2, "")
    assert mended.updated_at >= made.updated_at
    assert await band_formulas.update(ctx, BandFormulasUpdateInput(**one, expression="nir / red")) == mended


@pytest.mark.parametrize(
    ("text", "position"), [("nir.__class__", 3), ("(nir", 4), ("9**9**9", 1), ("__import__('os')", 11), ("nіr", 1)]
)
async def test_text_at_fault_is_refused_at_its_place(context, peopled, text, position):
    made = await new(context(ME))
    with pytest.raises(InvalidExpression, match=f"At character {position}") as caught:
        await new(context(ME), "other", text)
    assert (caught.value.pointer, caught.value.data["position"]) == ("/expression", position)
    with pytest.raises(InvalidExpression):
        await band_formulas.update(context(ME), BandFormulasUpdateInput(formula_id=made.formula_id, expression=text))
    with pytest.raises(InvalidParameter, match="no band"):
        await new(context(ME), "other", "2 * pi")


async def test_names_are_taken_once_in_an_organisation(context, peopled):
    await new(context(ME))
    await new(context(OTHER))
    with pytest.raises(Conflict, match="already a formula called 'vigour'"):
        await new(context(ME))
    with pytest.raises(Conflict, match="name of a template"):
        await new(context(ME), "ndvi")
    second = await new(context(ME), "second")
    with pytest.raises(Conflict, match="already"):
        await band_formulas.update(context(ME), BandFormulasUpdateInput(formula_id=second.formula_id, name="vigour"))


async def test_simultaneous_writers_of_one_name_succeed_once(context, peopled):
    answers = await asyncio.gather(*(new(context(ME)) for _ in range(4)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["BandFormula"] + ["Conflict"] * 3


async def test_templates_are_there_and_cannot_be_changed_or_deleted(context, peopled):
    ctx = context(ME)
    shown = await band_formulas.list_(ctx, BandFormulasListInput(is_template=True))
    assert {each.formula_id for each in shown.formulas} == set(TEMPLATES)
    for each in shown.formulas:
        assert each.is_template
        assert each.bands
    ndvi = await band_formulas.get(ctx, BandFormulasGetInput(formula_id="frm_00_ndvi"))
    assert ndvi.expression == NDVI
    with pytest.raises(Conflict, match="NDVI is a template and cannot be changed"):
        await band_formulas.update(ctx, BandFormulasUpdateInput(formula_id="frm_00_ndvi", expression="nir"))
    with pytest.raises(Conflict, match="cannot be deleted"):
        await band_formulas.delete(ctx, BandFormulasDeleteInput(formula_id="frm_00_ndvi"))


async def test_list_pages_through_own_formulas_and_then_templates(context, peopled):
    ctx = context(ME)
    own = [(await new(ctx, f"f{number}")).formula_id for number in range(5)]
    await new(context(OTHER), "foreign")
    seen, cursor = [], None
    while True:
        page = await band_formulas.list_(ctx, BandFormulasListInput(limit=3, cursor=cursor))
        seen.extend(each.formula_id for each in page.formulas)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == sorted(own, reverse=True) + sorted(TEMPLATES, reverse=True)
    mine = await band_formulas.list_(ctx, BandFormulasListInput(is_template=False))
    assert [each.formula_id for each in mine.formulas] == sorted(own, reverse=True)
    with pytest.raises(InvalidCursor):
        await band_formulas.list_(ctx, BandFormulasListInput(cursor="x"))


async def test_a_foreign_formula_is_not_found(context, peopled):
    made = await new(context(OTHER))
    one = {"formula_id": made.formula_id}
    with pytest.raises(NotFound):
        await band_formulas.get(context(ME), BandFormulasGetInput(**one))
    with pytest.raises(NotFound):
        await band_formulas.update(context(ME), BandFormulasUpdateInput(**one, name="stolen"))
    with pytest.raises(NotFound):
        await band_formulas.delete(context(ME), BandFormulasDeleteInput(**one))
    await band_formulas.delete(context(OTHER), BandFormulasDeleteInput(**one))
    with pytest.raises(NotFound):
        await band_formulas.get(context(OTHER), BandFormulasGetInput(**one))


async def test_key_of_a_project_reads_but_does_not_write(context, peopled):
    made = await new(context(ME))
    one = {"formula_id": made.formula_id}
    assert await band_formulas.get(context(KEY), BandFormulasGetInput(**one)) == made
    with pytest.raises(MissingScope, match="prj_a"):
        await new(context(KEY), "other")
    with pytest.raises(MissingScope):
        await band_formulas.update(context(KEY), BandFormulasUpdateInput(**one, name="x"))
    with pytest.raises(MissingScope):
        await band_formulas.delete(context(KEY), BandFormulasDeleteInput(**one))


@pytest.fixture
async def item(peopled):
    """An item of `prj_a` with red and nir."""
    bands = tuple(
        Band(name=name, index=index, dtype="uint16", common_name=common)
        for index, (name, common) in enumerate((("B04", "red"), ("B08", "nir")), 1)
    )
    raster = RasterAsset(
        key="data", href="", crs="EPSG:4326", transform=(0.001, 0.0, 0.0, 0.0, -0.001, 1.0), shape=(100, 100),
        bands=bands, block_shape=(256, 256),
    )  # fmt: skip
    asset = OutputAsset(
        key="data", object=ObjectRef(href="x", size=10, sha256="0" * 64), media_type="image/tiff", roles=("data",),
        filename="data.tif", raster=raster,
    )  # fmt: skip
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    output = OutputItem(name="scene", assets=(asset,), footprint=square, bbox=(0, 0, 1, 1))
    async with peopled.db.write() as tx:
        await items.add(
            tx, peopled.db, org_id="org_me", project_id="prj_a", item_id="itm_scene", output=output,
            keys={"data": "org_me/prj_a/items/itm_scene/data.tif"}, job_id=None, provenance={}, now=utc_now(),
        )  # fmt: skip
    return "itm_scene"


def job(item_id, *outputs):
    task = msgspec.convert({"method": "band_math", "outputs": list(outputs)}, method.get("band_math").params)
    inputs = (processing.InputRef(item_id=item_id),)
    return processing.ProcessingCreateInput(project_id="prj_a", task=task, inputs=inputs)


async def test_job_keeps_the_text_of_the_formula_it_names(context, item, stores):
    ctx = context(ME)
    made = await new(ctx, "mine", "nir - red")
    asked = job(item, {"name": "a", "formula_id": made.formula_id}, {"name": "b", "formula_id": "frm_00_ndvi"})
    planned = await processing.create(ctx, asked)
    await band_formulas.delete(ctx, BandFormulasDeleteInput(formula_id=made.formula_id))
    async with stores.db.read() as tx:
        task = (await tx.execute(sa.select(jobs.c.task).where(jobs.c.id == planned.job_id))).scalar_one()
    assert [output["expression"] for output in task["outputs"]] == ["nir - red", NDVI]
    assert task["outputs"][0]["formula_id"] == made.formula_id


async def test_job_with_a_foreign_formula_or_two_texts_is_refused(context, item):
    foreign = await new(context(OTHER))
    with pytest.raises(NotFound):
        await processing.create(context(ME), job(item, {"name": "a", "formula_id": foreign.formula_id}))
    both = job(item, {"name": "a", "formula_id": "frm_00_ndvi", "expression": "nir"})
    with pytest.raises(InvalidParameter, match="Leave one out") as caught:
        await processing.create(context(ME), both)
    assert caught.value.pointer == "/outputs/0/expression"
    missing = job(item, {"name": "a", "formula_id": "frm_00_ndwi"})
    with pytest.raises(InvalidExpression, match=r"'green' is not known; known are .*nir, red"):
        await processing.create(context(ME), missing)
