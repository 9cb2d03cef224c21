"""What all methods share before they plan: items each once and not too many, and bands found by any of their names."""

import msgspec
import pytest

from eorouter_compute import method
from eorouter_compute.errors import BandNotFound, InvalidParameter
from eorouter_compute.method import Band, InputItem, RasterAsset


def asset(key: str, *bands: Band) -> RasterAsset:
    return RasterAsset(
        key=key, href=f"{key}.tif", crs="EPSG:32632", transform=(10, 0, 0, 0, -10, 0), shape=(8, 8), bands=bands,
        block_shape=(8, 8),
    )  # fmt: skip


@pytest.mark.parametrize(
    "found",
    [each for each in method.methods().values() if not each.is_internal and each.item_limit >= 3],
    ids=lambda found: found.id,
)
def test_an_item_given_twice_is_refused_by_every_method(found):
    params = msgspec.convert(found.examples[0], found.params)
    with pytest.raises(InvalidParameter, match="Item b is given twice, first as input 1") as caught:
        method.plan(params, [InputItem(id=name, assets=()) for name in "abb"])
    assert caught.value.pointer == "/inputs/2"


SCENE = InputItem(
    id="scene",
    assets=(
        asset("B04", Band(name="red", index=1, dtype="uint8", common_name="nir08")),
        asset("edge", *(Band(name=name, index=at, dtype="uint8", common_name="rededge")
                        for at, name in enumerate(("B05", "B06"), 1))),
        asset("nir", Band(name="B08", index=1, dtype="uint8", common_name="red")),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [("B05", "B05"), ("edge:B06", "B06"), ("red", "red"), ("nir08", "red"), ("nir", "B08"), ("B04", "red")],
)
def test_a_band_goes_by_its_names_the_narrowest_first(name, found):
    assert SCENE.band(name)[1].name == found
    assert [band.name for _, band in SCENE.named(name)] == [found]


def test_a_name_of_none_or_of_two_bands_is_refused_naming_them():
    assert SCENE.named("swir") == ()
    with pytest.raises(BandNotFound, match=r"no band 'swir'\. It has: red \(nir08\), B05 \(rededge\)"):
        SCENE.band("swir")
    assert [band.name for _, band in SCENE.named("rededge")] == ["B05", "B06"]
    with pytest.raises(BandNotFound, match="several bands called 'rededge': edge:B05, edge:B06"):
        SCENE.band("rededge")
