"""The glossary tells what the catalogue and the methods say, to anybody."""

import pytest

from eorouter.errors import InvalidCursor, NotFound
from eorouter.operation import PUBLIC, Registry
from eorouter.operations import glossary
from eorouter.operations.glossary import (
    GlossaryBandsListInput,
    GlossaryIndicesGetInput,
    GlossaryIndicesListInput,
    GlossaryMethodsGetInput,
    GlossaryMethodsListInput,
)
from eorouter_compute import catalogue, method


def test_registry_takes_the_module_whole_and_open():
    assert {op.scope for op in Registry.of([glossary])} == {PUBLIC}


async def test_list_pages_through_the_whole_catalogue(context):
    seen, cursor = [], None
    while True:
        page = await glossary.list_indices(context(), GlossaryIndicesListInput(limit=100, cursor=cursor))
        seen.extend(each.name for each in page.indices)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == sorted(catalogue.indices())
    assert len(seen) >= 280


async def test_filters_narrow_the_list(context):
    async def names(**filters):
        page = await glossary.list_indices(context(), GlossaryIndicesListInput(limit=1000, **filters))
        return {each.name for each in page.indices}

    burn = await names(domain="burn")
    assert {"NBR", "BAI"} <= burn
    assert "NDVI" not in burn
    assert "NDVI" in await names(band="R")
    assert "NDVI" in await names(sensor="landsat8", text="difference vegetation")
    radar = await names(domain="radar")
    assert radar
    assert not radar & await names(sensor="sentinel2a")
    assert {"kNDVI"} <= await names(domain="kernel")
    assert await names(text="no such index") == set()


async def test_cursor_of_other_filters_is_refused(context):
    page = await glossary.list_indices(context(), GlossaryIndicesListInput(limit=2))
    with pytest.raises(InvalidCursor):
        await glossary.list_indices(context(), GlossaryIndicesListInput(cursor=page.next_cursor, domain="burn"))


async def test_get_tells_formula_parameters_and_source(context):
    evi = await glossary.get_index(context(), GlossaryIndicesGetInput(name="EVI"))
    assert evi.formula == "g * (N - R) / (N + C1 * R - C2 * B + L)"
    assert evi.parameters == {"g": 2.5, "C1": 6.0, "C2": 7.5, "L": 1.0}
    assert evi.reference.startswith("http")
    assert evi.contributor
    assert evi.added
    with pytest.raises(NotFound, match="NDVI"):
        await glossary.get_index(context(), GlossaryIndicesGetInput(name="ndvi"))


async def test_bands_tell_wavelengths_and_sensors(context):
    found = {each.letter: each for each in (await glossary.list_bands(context(), GlossaryBandsListInput())).bands}
    assert found["N"].common_name == "nir"
    assert found["N"].sensors["sentinel2a"].band == "B8"
    assert found["VV"].wavelength_nm is None


async def test_methods_tell_their_schema(context):
    listed = await glossary.list_methods(context(), GlossaryMethodsListInput())
    assert [each.id for each in listed.methods] == [m.id for m in method.methods().values() if not m.is_internal]
    band_math = await glossary.get_method(context(), GlossaryMethodsGetInput(method="band_math"))
    assert band_math in listed.methods
    assert "outputs" in band_math.parameters["$defs"]["BandMathParams"]["properties"]
    for unknown in ("ingest", "nothing"):
        with pytest.raises(NotFound):
            await glossary.get_method(context(), GlossaryMethodsGetInput(method=unknown))
