"""The catalogue: every formula against Python's own evaluation of its text, and letters against real items."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eorouter_compute import catalogue
from eorouter_compute.errors import BandNotFound, InvalidParameter, UnknownIndex
from eorouter_compute.expression import Operand, evaluate
from eorouter_compute.method import Band, InputItem, RasterAsset

SENSOR = "sentinel2a"
EXTRA = {"PAR": 3.5}


def item(*bands: Band, assets: tuple[str, ...] = ("data",), **properties: Any) -> InputItem:
    rasters = tuple(
        RasterAsset(
            key=key, href=f"memory:{key}", crs="EPSG:32633", transform=(10, 0, 0, 0, -10, 0), shape=(8, 8), bands=bands,
            block_shape=(8, 8),
        )
        for key in assets
    )  # fmt: skip
    return InputItem(id="scene", assets=rasters, properties=properties)


def band(name: str, common_name: str | None = None, **more) -> Band:
    return Band(name=name, index=1, dtype=more.pop("dtype", "uint16"), common_name=common_name, **more)


def reflectances(seed: int, size: int = 2_000) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    found = {letter: generator.uniform(0.01, 0.7, size) for letter in catalogue.letters()}
    for letter in ("T", "T1", "T2"):
        found[letter] = generator.uniform(270.0, 320.0, size)
    return found


def test_catalogue_is_whole():
    known = catalogue.indices()
    assert len(known) >= 280
    assert {"NDVI", "EVI", "NBR", "BAI", "BaI", "kNDVI", "RFDI"} <= known.keys()
    for record in known.values():
        assert record.bands, record.short_name
        assert record.reference.startswith("http"), record.short_name
    evi = catalogue.index("EVI")
    assert evi.bands == ("N", "R", "B")
    assert evi.parameters == {"g": 2.5, "C1": 6.0, "C2": 7.5, "L": 1.0}
    assert evi.domain == "vegetation"
    assert "spyndex" not in sys.modules, "the package is data to us"


@pytest.mark.parametrize("name", sorted(catalogue.indices()))
def test_every_formula_equals_pythons_evaluation_of_its_text(name):
    record = catalogue.index(name)
    values = reflectances(len(name))
    parameters = {key: value for key, value in EXTRA.items() if key in record.parameters}
    program = catalogue.compile_indices([record], parameters=parameters, sensor=SENSOR)
    got = evaluate(program, {letter: Operand(values[letter]) for letter in program.names}, dtype="float64")[0]

    numbers = catalogue.parameters_of(record, parameters=parameters, sensor=SENSOR)

    def rbf(a, b):
        return np.exp((-1.0 * (a - b) ** 2.0) / (2.0 * numbers["sigma"] ** 2.0))

    names = {**values, **numbers}
    terms = {f"k{a}{b}": rbf(names[a], names[b]) for a in "NG" for b in "NRGBL" if record.is_kernel and b in names}
    with np.errstate(all="ignore"):
        wanted = eval(record.formula, {"__builtins__": {}}, {**names, **terms})  # the catalogue's text is trusted here
    wanted = np.where(np.isfinite(wanted), wanted, np.nan)
    if record.is_kernel or re.search(r"\*\*\s*(?!(?:2|2\.0|0\.5|nexp)\b)", record.formula):
        # NumPy's exponential and power are its own and may differ from the C library's in the last bit.
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)
    else:
        np.testing.assert_array_equal(got, wanted)
    assert np.isfinite(got).mean() > 0.3, "the test must see values, not only gaps"


def test_compile_indices_all_optical_share_one_pass():
    records = [catalogue.index(name) for name in ("NDVI", "NIRv", "SAVI", "EVI", "TVI", "IPVI")]
    program = catalogue.compile_indices(records)
    assert len(program.texts) == 6
    assert set(program.names) == {"N", "R", "B"}
    values = reflectances(1)
    got = evaluate(program, {name: Operand(values[name]) for name in program.names}, dtype="float64")
    n, r = values["N"], values["R"]
    np.testing.assert_array_equal(got[0], (n - r) / (n + r))
    np.testing.assert_array_equal(got[1], (n - r) / (n + r) * n)
    np.testing.assert_array_equal(got[2], (1.0 + 1.0) * (n - r) / (n + r + 1.0))


def test_compile_indices_one_parameter_name_may_mean_two_values():
    ebi, wci = catalogue.index("EBI"), catalogue.index("WCI1")
    assert (ebi.parameters["epsilon"], wci.parameters["epsilon"]) == (1, 1e-10)
    program = catalogue.compile_indices([ebi, wci])
    assert 1e-10 in program.constants


@pytest.mark.parametrize(
    ("kernel", "parameters", "expected"),
    [
        # drawn by hand for N = 0.5, R = 0.1: k(N, N) and k(N, R)
        ("RBF", {}, (1 - math.exp(-0.16 / 0.5)) / (1 + math.exp(-0.16 / 0.5))),
        ("RBF", {"sigma": 0.3}, math.tanh(0.16 / (4 * 0.09))),  # (1 - k) / (1 + k) of k = exp(-2x) is tanh(x)
        ("linear", {}, (0.25 - 0.05) / (0.25 + 0.05)),
        ("poly", {}, (1.25**2 - 1.05**2) / (1.25**2 + 1.05**2)),
        ("poly", {"c": 0.5, "p": 3.0}, (0.75**3 - 0.55**3) / (0.75**3 + 0.55**3)),
    ],
)
def test_compile_indices_kernels_follow_their_definition(kernel, parameters, expected):
    program = catalogue.compile_indices([catalogue.index("kNDVI")], kernel=kernel, parameters=parameters)
    got = evaluate(program, {"N": Operand(np.array([0.5])), "R": Operand(np.array([0.1]))}, dtype="float64")
    assert got[0, 0] == pytest.approx(expected, rel=1e-12)


def test_compile_indices_parameter_without_default_is_asked_for():
    with pytest.raises(InvalidParameter, match=r"PAR.*Photosynthetically") as caught:
        catalogue.compile_indices([catalogue.index("NIRvP")])
    assert caught.value.pointer == "/parameters/PAR"
    with pytest.raises(InvalidParameter, match="lambda"):
        catalogue.compile_indices([catalogue.index("FAI")])
    assert catalogue.compile_indices([catalogue.index("FAI")], sensor="landsat5").names


def test_compile_indices_strange_parameter_or_kernel_is_refused():
    with pytest.raises(InvalidParameter, match=r"SAVI take no parameter LL\. They take: L"):
        catalogue.compile_indices([catalogue.index("SAVI")], parameters={"LL": 1.0})
    with pytest.raises(InvalidParameter, match="RBF, linear, poly"):
        catalogue.compile_indices([catalogue.index("kNDVI")], kernel="sigmoid")


@pytest.mark.parametrize(
    ("name", "near"), [("ndvi", "NDVI"), ("NDV", "NDVI"), ("bai", "BaI"), ("EVI3", "EVI"), ("Floating Algae", "FAI")]
)
def test_index_unknown_name_suggests_near_ones(name, near):
    with pytest.raises(UnknownIndex) as caught:
        catalogue.index(name, pointer="/indices/0")
    assert near in caught.value.data["suggestions"]
    assert near in caught.value.message
    assert caught.value.pointer == "/indices/0"


def test_index_nothing_near_says_what_there_is():
    with pytest.raises(UnknownIndex, match="NDVI, EVI"):
        catalogue.index("qqqqqqqq")


def test_resolve_common_names_numbers_and_the_callers_map():
    sentinel = item(band("B04"), band("B08"), band("B8A"), band("B05"), band("B11"), platform="sentinel-2b")
    assert [catalogue.resolve(sentinel, letter)[1].name for letter in ("R", "N", "N2", "RE1", "S1")] == [
        "B04", "B08", "B8A", "B05", "B11",
    ]  # fmt: skip
    landsat = item(band("SR_B4"), band("SR_B5"), band("SR_B6"), platform="landsat-8")
    assert [catalogue.resolve(landsat, letter)[1].name for letter in ("R", "N", "S1")] == ["SR_B4", "SR_B5", "SR_B6"]
    older = item(band("SR_B4"), band("SR_B5"), platform="landsat-5")
    assert [catalogue.resolve(older, letter)[1].name for letter in ("N", "S1")] == ["SR_B4", "SR_B5"]
    named = item(band("one", "red"), band("two", "nir"), band("three", "nir08"))
    assert [catalogue.resolve(named, letter)[1].name for letter in ("R", "N", "N2")] == ["one", "two", "three"]
    assert catalogue.resolve(named, "N", bands={"N": "three"})[1].name == "three"
    assert catalogue.resolve(item(band("vv"), band("VH")), "VV")[1].name == "vv"
    plain = item(band("R"), band("G"), band("B"))
    assert catalogue.resolve(plain, "B")[1].name == "B"


def test_resolve_shared_names_are_settled_by_the_asset_or_refused():
    twice = item(band("B04", "red"), assets=("red", "red-jp2"))
    assert catalogue.resolve(twice, "R")[0].key == "red"
    with pytest.raises(BandNotFound, match="a:one") as caught:
        catalogue.resolve(item(band("one", "red"), assets=("a", "b")), "R")
    assert caught.value.pointer == "/bands/R"


def test_resolve_missing_band_names_the_letter_and_what_there_is():
    with pytest.raises(BandNotFound, match=r'S1 \(.*swir16\).*data:B04 \(red\).*"bands": \{"S1"'):
        catalogue.resolve(item(band("B04", "red"), platform="sentinel-2a"), "S1")
    with pytest.raises(BandNotFound, match="no band 'nope'"):
        catalogue.resolve(item(band("B04", "red")), "R", bands={"R": "nope"})


def _recorded_items(folder: Path) -> list[InputItem]:
    """Items of recorded Earth Search answers, with their bands as they declare them."""
    found = []
    for name in ("POST_v1_search_2", "POST_v1_search_7"):
        text = (folder / "stac" / "earthsearch" / f"{name}.json").read_text()
        for feature in _features(json.loads(text)):
            rasters = []
            for key, asset in feature["assets"].items():
                eo, raster = asset.get("eo:bands"), asset.get("raster:bands")
                if eo and raster and len(eo) == 1:
                    rasters.append(
                        RasterAsset(
                            key=key, href=asset["href"], crs="EPSG:32633", transform=(10, 0, 0, 0, -10, 0),
                            shape=(8, 8), block_shape=(8, 8),
                            bands=(
                                Band(
                                    name=eo[0]["name"], index=1, dtype=raster[0]["data_type"],
                                    common_name=eo[0].get("common_name"), scale=raster[0].get("scale", 1.0),
                                    offset=raster[0].get("offset", 0.0), nodata=raster[0].get("nodata"),
                                ),
                            ),
                        )
                    )  # fmt: skip
            item_id, properties = f"{feature['collection']}/{feature['id']}", feature["properties"]
            found.append(InputItem(id=item_id, assets=tuple(rasters), properties=properties))
    return found


def _features(node):
    if isinstance(node, str) and '"features"' in node:
        node = json.loads(node)
    if isinstance(node, dict):
        if "features" in node:
            return node["features"]
        node = list(node.values())
    return [feature for part in node for feature in _features(part)] if isinstance(node, list) else []


def test_resolve_recorded_items_every_letter_of_the_sensor(data_dir):
    items = _recorded_items(data_dir)
    sentinel = [one for one in items if one.id.startswith("sentinel-2")]
    assert len(sentinel) >= 3
    keys = {
        "A": "coastal", "B": "blue", "G": "green", "R": "red", "RE1": "rededge1", "RE2": "rededge2", "RE3": "rededge3",
        "N": "nir", "N2": "nir08", "S1": "swir16", "S2": "swir22",
    }  # fmt: skip
    for one in sentinel:
        found = {letter: catalogue.resolve(one, letter)[0].key for letter in keys}
        assert found == keys, one.id
    landsat = next(one for one in items if one.id.startswith("landsat"))
    assert catalogue.resolve(landsat, "N")[1].name == "OLI_B5"
    assert catalogue.resolve(landsat, "S2")[1].name == "OLI_B7"
    assert catalogue.scaling(landsat, catalogue.resolve(landsat, "R")[1]) == (2.75e-05, -0.2, "declared")


def test_scaling_recorded_items_take_the_offset_exactly_once(data_dir):
    seen = set()
    for one in _recorded_items(data_dir):
        if not one.id.startswith("sentinel-2"):
            continue
        red = catalogue.resolve(one, "R")[1]
        assert (red.scale, red.offset) == (1e-4, -0.1), "all of them declare the offset, those without it too"
        is_removed = one.properties.get("earthsearch:boa_offset_applied") is True
        assert catalogue.scaling(one, red)[:2] == (1e-4, 0.0 if is_removed else -0.1)
        seen.add(is_removed)
    assert seen == {True, False}


def test_scaling_undeclared_sentinel_2_follows_its_baseline():
    red = band("B04", "red")
    assert catalogue.scaling(item(red, **{"s2:processing_baseline": "05.11"}), red)[:2] == (1e-4, -0.1)
    assert catalogue.scaling(item(red, **{"s2:processing_baseline": "04.00"}), red)[:2] == (1e-4, -0.1)
    assert catalogue.scaling(item(red, **{"s2:processing_baseline": "03.01"}), red)[:2] == (1e-4, 0.0)
    assert catalogue.scaling(item(red), red) == (1.0, 0.0, "as stored")
    scene = item(red, **{"s2:processing_baseline": "05.11"})
    assert catalogue.scaling(scene, band("SCL", dtype="uint8"))[:2] == (1.0, 0.0)
    assert catalogue.scaling(scene, band("B04", dtype="float32"))[:2] == (1.0, 0.0)
    assert catalogue.scaling(scene, band("B04", scale=1e-4)) == (1e-4, 0.0, "declared")
