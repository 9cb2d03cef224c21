"""Which bands a method works on: the order asked for, each asset once, and refusals that name what there is."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from eorouter_compute import selection
from eorouter_compute.errors import BandNotFound, InvalidParameter
from eorouter_compute.method import InputItem
from eorouter_compute.testing import input_item, write_raster


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> InputItem:
    folder: Path = tmp_path_factory.mktemp("selection")
    optical = write_raster(folder / "a.tif", np.ones((3, 8, 8), "uint16"), names=["red", "green", "nir"])
    classes = write_raster(folder / "b.tif", np.ones((1, 8, 8), "uint8"), names=["scl"])
    assets = [msgspec.structs.replace(asset, key=key) for asset, key in ((optical, "optical"), (classes, "quality"))]
    return input_item(*assets, id="scene-7")


def _names(item: InputItem, assets: list[str], bands: list[str]) -> list[tuple[str, list[str]]]:
    return [(asset.key, [band.name for band in own]) for asset, own in selection.chosen(item, 0, assets, bands)]


def test_nothing_named_is_everything(item: InputItem) -> None:
    assert _names(item, [], []) == [("optical", ["red", "green", "nir"]), ("quality", ["scl"])]
    assert _names(item, ["quality"], []) == [("quality", ["scl"])]


def test_bands_come_in_the_order_asked_and_each_asset_once(item: InputItem) -> None:
    assert _names(item, [], ["nir", "scl", "red"]) == [("optical", ["nir", "red"]), ("quality", ["scl"])]


def test_a_band_of_an_asset_not_chosen_is_not_found(item: InputItem) -> None:
    with pytest.raises(BandNotFound) as caught:
        selection.chosen(item, 0, ["optical"], ["red", "scl"])
    assert caught.value.pointer == "/bands/1"


def test_an_asset_that_is_not_there_is_refused_with_those_that_are(item: InputItem) -> None:
    with pytest.raises(
        InvalidParameter, match=r"scene-7 has no raster asset x, y\. It has: optical, quality"
    ) as caught:
        selection.chosen(item, 0, ["y", "optical", "x"], [])
    assert caught.value.pointer == "/assets"


def test_an_item_without_a_raster_is_named_by_its_input() -> None:
    with pytest.raises(InvalidParameter, match="has no raster") as caught:
        selection.chosen(input_item(id="empty"), 4, [], [])
    assert caught.value.pointer == "/inputs/4"


def test_bands_of_two_types_cannot_share_a_file(item: InputItem) -> None:
    bands = [band for _, band in item.bands]
    assert selection.common_dtype(bands[:3], "scene-7") == "uint16"
    with pytest.raises(InvalidParameter, match=r"scene-7 have different types \(uint16, uint8\)"):
        selection.common_dtype(bands, "scene-7")
