"""Colours, colour tables and tags that rasterio writes, as they are carried to a file made of several."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from eorouter_compute import markings
from eorouter_compute.cogfile import CogSpec
from eorouter_compute.method import Band, RasterAsset
from eorouter_compute.testing import UTM_TRANSFORM, write_raster

TABLE = {0: (0, 0, 0), 4: (10, 200, 30)}


def _asset(path: Path, key: str, names: list[str], **marks: Any) -> RasterAsset:
    asset = write_raster(path / f"{key}.tif", np.ones((len(names), 16, 16), "uint8"), names=names)
    with rasterio.open(path / f"{key}.tif", "r+") as file:
        if "colors" in marks:
            file.colorinterp = marks["colors"]
        if "table" in marks:
            file.write_colormap(1, marks["table"])
        file.update_tags(**marks.get("tags", {}))
        file.update_tags(1, **marks.get("band_tags", {}))
    return msgspec.structs.replace(asset, key=key)


def _carried(*pairs: tuple[RasterAsset, Band]) -> CogSpec:
    spec = CogSpec(
        shape=(16, 16), transform=UTM_TRANSFORM, crs="EPSG:32632", dtype="uint8", bands=tuple(b for _, b in pairs)
    )
    return markings.carried(spec, pairs)


def test_colours_follow_the_bands_into_another_order(tmp_path: Path) -> None:
    colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    asset = _asset(tmp_path, "rgb", ["a", "b", "c"], colors=colors)
    found = _carried((asset, asset.bands[2]), (asset, asset.bands[0]))
    assert found.color_interpretation == ("blue", "red")


def test_a_band_taken_twice_has_no_colour_of_its_own(tmp_path: Path) -> None:
    colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    asset = _asset(tmp_path, "rgb", ["a", "b", "c"], colors=colors)
    assert _carried((asset, asset.bands[0]), (asset, asset.bands[0])).color_interpretation == ()


def test_a_colour_table_is_kept_for_one_band_alone_and_makes_classes(tmp_path: Path) -> None:
    table = _asset(tmp_path, "table", ["x"], table=TABLE)
    plain = _asset(tmp_path, "plain", ["y"])
    alone, both = _carried((table, table.bands[0])), _carried((table, table.bands[0]), (plain, plain.bands[0]))

    assert {value: alone.color_table[value][:3] for value in TABLE} == TABLE
    assert markings.are_classes(alone, {})
    assert not both.color_table
    assert not markings.are_classes(both, {})
    assert markings.are_classes(both, {"classification:classes": []})


def test_tags_are_those_on_which_all_files_agree_and_statistics_are_left_behind(tmp_path: Path) -> None:
    one = _asset(tmp_path, "one", ["x"], tags={"SENSOR": "MSI", "ORBIT": "1"},
                 band_tags={"STATISTICS_MEAN": "1", "WAVELENGTH": "665"})  # fmt: skip
    two = _asset(tmp_path, "two", ["y"], tags={"SENSOR": "MSI", "ORBIT": "2"})
    found = _carried((one, one.bands[0]), (two, two.bands[0]))

    assert found.tags["SENSOR"] == "MSI"
    assert "ORBIT" not in found.tags
    assert found.band_tags[0]["WAVELENGTH"] == "665"
    assert not any(key.startswith("STATISTICS_") for own in found.band_tags for key in own)


@pytest.mark.parametrize(("names", "is_classes"), [
    (["SCL"], True), (["qa_pixel"], True), (["land_cover"], True), (["pixel_qa", "fmask"], True),
    (["scl", "red"], False), (["sclera"], False), (["qa60x", "nir"], False),
])  # fmt: skip
def test_names_tell_classes_only_where_every_band_has_one(tmp_path: Path, names: list[str], is_classes: bool) -> None:
    asset = _asset(tmp_path, "file", names)
    assert markings.are_classes(_carried(*((asset, band) for band in asset.bands)), {}) is is_classes
