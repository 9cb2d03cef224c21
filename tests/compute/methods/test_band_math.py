"""The method band_math: values against NumPy and real scenes, several items, grids, packing, attacks and refusals."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numexpr
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.warp import reproject

from eorouter_compute import method, raster, testing
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import (
    AoiOutside,
    BandNotFound,
    InvalidExpression,
    InvalidParameter,
    RequestFault,
    SourceFault,
)
from eorouter_compute.expression import Operand, compile_expression, evaluate
from eorouter_compute.method import InputItem
from eorouter_compute.methods.band_math import METHOD, BandMathParams


def asked(*expressions: str, **fields: Any) -> BandMathParams:
    """Parameters as a caller sends them; plain formulas become outputs a, b, c …"""
    outputs = [{"name": "abcdefgh"[place], "expression": text} for place, text in enumerate(expressions)]
    return msgspec.convert({"method": "band_math", "outputs": outputs} | fields, BandMathParams)


def read(asset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and valid flags as GDAL sees them."""
    with rasterio.open(local_path(asset.object.href)) as source:
        return source.read(), source.read_masks() != 0


def made(params: BandMathParams, items: list[InputItem], **how: Any) -> np.ndarray:
    result = testing.run_local(params, items, **how)
    return read(result.items[0].assets[0])[0]


def scene(folder: Path, *, seed: int = 1, shape: tuple[int, int] = (300, 420), **fields: Any) -> InputItem:
    """Red and nir at 10 m with scale and holes, one 20 m band; `fields` of the item."""
    folder.mkdir(exist_ok=True)
    fine = testing.asymmetric(shape, bands=2, seed=seed)
    coarse = testing.asymmetric((shape[0] // 2, shape[1] // 2), bands=1, seed=seed + 1)
    fine[:, 100:130, 200:260] = 0
    fine[1, 30:40] = 0
    a, b, c, d, e, f = testing.UTM_TRANSFORM
    ten = testing.write_raster(folder / "ten.tif", fine, nodata=0, names=("red", "nir"))
    twenty = testing.write_raster(
        folder / "twenty.tif", coarse, nodata=0, names=("B12",), transform=(2 * a, b, c, d, 2 * e, f)
    )
    scaled = [
        msgspec.structs.replace(
            asset, key=key, bands=tuple(msgspec.structs.replace(one, scale=1e-4, offset=-0.1) for one in asset.bands)
        )
        for key, asset in (("ten", ten), ("twenty", twenty))
    ]
    return testing.input_item(*scaled, **fields)


def physical(item: InputItem, name: str) -> np.ndarray:
    asset, band = item.band(name)
    block = raster.read_block(asset, [band.index], asset.window)
    values = block.pixels[0] * band.scale + band.offset
    return values if block.valid is None else np.where(block.valid[0], values, np.nan)


def test_formulas_equal_numpy_bit_for_bit(tmp_path):
    item = scene(tmp_path)
    red, nir = physical(item, "red"), physical(item, "nir")
    got = made(asked("(nir - red) / (nir + red)", "where(nir > red, sqrt(nir), -red)", "1e-3 + pi * red"), [item])
    with np.errstate(all="ignore"):
        ndvi = (nir - red) / (nir + red)
        wanted = [
            ndvi,
            np.where(np.isnan(nir + red), np.nan, np.where(nir > red, np.sqrt(nir), -red)),
            1e-3 + np.pi * red,
        ]
    for band, values in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(band, np.where(np.isfinite(values), values, np.nan).astype(np.float32))


def test_bands_by_every_name_and_stored_numbers(tmp_path):
    item = scene(tmp_path)
    variables = {"x": {"band": "ten:nir"}, "y": {"band": "twenty"}}
    named = made(asked("x * 2", variables={"x": variables["x"]}), [item])
    np.testing.assert_array_equal(named, made(asked("nir * 2"), [item]))
    stored = made(
        asked("nir", use_scale=False, outputs=[{"name": "n", "expression": "nir", "dtype": "uint16"}]), [item]
    )
    asset, band = item.band("nir")
    block = raster.read_block(asset, [band.index], asset.window)
    np.testing.assert_array_equal(stored[0], np.where(block.valid[0], block.pixels[0], 0))
    assert made(asked("twenty + y", variables={"y": variables["y"]}), [item]).shape == (1, 150, 210)


def test_sentinel_2_offset_is_taken_once(tmp_path):
    item = scene(tmp_path, properties={"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": True})
    asset, _ = item.band("red")
    stored = raster.read_block(asset, [1], asset.window)
    got = made(asked("red"), [item])[0]
    wanted = np.where(stored.valid[0], stored.pixels[0] * 1e-4 + 0.0, np.nan).astype(np.float32)
    np.testing.assert_array_equal(got, wanted)


def test_items_are_joined_where_every_name_is_bound_to_one(tmp_path):
    before, after = (scene(tmp_path / name, seed=seed, id=name) for name, seed in (("one", 1), ("two", 5)))
    variables = {"b": {"item": 0, "band": "nir"}, "a": {"item": "two", "band": "nir"}}
    result = testing.run_local(asked("a - b", variables=variables), [before, after])
    assert len(result.items) == 1
    assert result.items[0].properties["eorouter:derived_from"] == ["two", "one"]
    wanted = (physical(after, "nir") - physical(before, "nir")).astype(np.float32)
    np.testing.assert_array_equal(read(result.items[0].assets[0])[0][0], wanted)


def test_each_item_gets_its_own_where_a_name_is_not_bound(tmp_path):
    at = datetime(2024, 5, 17, tzinfo=UTC)
    items = [scene(tmp_path / f"{seed}", seed=seed, id=name, at=at) for name, seed in (("twin", 1), ("/twin", 5))]
    params = asked("nir - base", variables={"base": {"item": 0, "band": "nir"}})
    result = testing.run_local(params, items, shard_pixels=40_000)
    assert [item.name for item in result.items] == ["twin_band_math", "twin_band_math-2"]
    assert {item.at for item in result.items} == {at}
    for item, made_ in zip(items, result.items, strict=True):
        wanted = (physical(item, "nir") - physical(items[0], "nir")).astype(np.float32)
        np.testing.assert_array_equal(read(made_.assets[0])[0][0], wanted)


def test_outputs_of_several_types_are_packed_with_scale_nodata_and_mask(tmp_path):
    item = scene(tmp_path)
    red, nir = physical(item, "red"), physical(item, "nir")
    result = testing.run_local(
        asked(
            outputs=[
                {
                    "name": "i",
                    "expression": "nir - red",
                    "dtype": "int16",
                    "scale": 1e-4,
                    "offset": 0.5,
                    "nodata": -32768,
                },
                {"name": "m", "expression": "nir > red", "dtype": "uint8", "description": "brighter"},
                {"name": "j", "expression": "red", "dtype": "int16", "scale": 1e-4, "nodata": -32768, "unit": "1"},
                {"name": "f", "expression": "nir", "dtype": "float32", "nodata": -9999},
            ]
        ),
        [item],
    )
    assert [asset.key for asset in result.items[0].assets] == ["int16", "uint8", "float32", "preview"]
    whole, mask, floats = result.items[0].assets[:3]
    known = ~np.isnan(nir - red)
    pixels, valid = read(whole)
    np.testing.assert_array_equal(valid, [known, ~np.isnan(red)])
    np.testing.assert_array_equal(pixels[0][known], np.rint(((nir - red)[known] - 0.5) / 1e-4))
    with rasterio.open(local_path(whole.object.href)) as source:
        assert source.descriptions == ("i", "j")
        assert (source.scales, source.offsets, source.nodata) == ((1e-4, 1e-4), (0.5, 0.0), -32768)
    pixels, valid = read(mask)
    np.testing.assert_array_equal(valid[0], known)
    np.testing.assert_array_equal(pixels[0], np.where(known, nir > red, 0))
    pixels, valid = read(floats)
    np.testing.assert_array_equal(pixels[0], np.where(np.isnan(nir), -9999, nir).astype(np.float32))


def test_what_does_not_fit_is_clamped_or_missing_and_never_becomes_nodata(tmp_path):
    values = np.array([[[-300.0, -0.4, 0.5, 1.5, 254.5, 254.6, 300.0, np.nan]]])
    item = testing.input_item(testing.write_raster(tmp_path / "v.tif", values, names=("v",)))

    def packed(**fields: Any) -> tuple[list[float], list[bool]]:
        output = {"name": "p", "expression": "v", "dtype": "uint8"} | fields
        pixels, valid = read(testing.run_local(asked(outputs=[output]), [item]).items[0].assets[0])
        return pixels.ravel().tolist(), valid.ravel().tolist()

    assert packed() == ([0, 0, 0, 2, 254, 255, 255, 0], [True] * 7 + [False])
    assert packed(nodata=255) == ([0, 0, 0, 2, 254, 254, 254, 255], [True] * 7 + [False])
    assert packed(nodata=0)[0] == [1, 1, 1, 2, 254, 255, 255, 0]
    assert packed(overflow="missing")[1] == [False, True, True, True, True, True, False, False]


def test_missing_rule_any_or_all(tmp_path):
    item = scene(tmp_path)
    red, nir = physical(item, "red"), physical(item, "nir")
    both = np.isnan(red) & np.isnan(nir)
    got = made(asked("max(nir, red) + 0 * nir", missing="all", fill=-1.0), [item])[0]
    filled = np.fmax(np.where(np.isnan(nir), -1.0, nir), red) + 0.0
    np.testing.assert_array_equal(got, np.where(both, np.nan, filled).astype(np.float32))
    assert both.any()
    assert (np.isnan(nir) & ~np.isnan(red)).any()
    strict = made(asked("max(nir, red) + 0 * nir"), [item])[0]
    np.testing.assert_array_equal(np.isnan(strict), np.isnan(red + nir))


def test_mixed_resolutions_lie_on_the_finest_grid(tmp_path):
    item = scene(tmp_path)
    got = made(asked("nir - B12"), [item])[0]
    coarse = physical(item, "B12").repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(got, (physical(item, "nir") - coarse).astype(np.float32))
    plan = method.plan(asked("nir - B12", resampling="bilinear"), [item])
    assert any("bilinear" in note and "twenty (B12)" in note for note in plan.notes)


def test_other_grid_equals_gdal(tmp_path):
    item = scene(tmp_path)
    params = asked("nir", grid={"crs": "EPSG:32633", "resolution": 30}, resampling="nearest", tolerance_px=0)
    result = testing.run_local(params, [item])
    asset = result.items[0].assets[0]
    pixels, _ = read(asset)
    source = item.band("nir")[0]
    wanted = np.full(pixels.shape[1:], np.nan)
    from affine import Affine

    reproject(
        physical(item, "nir"), wanted, src_transform=Affine(*source.transform), src_crs=source.crs, src_nodata=np.nan,
        dst_transform=Affine(*asset.raster.transform), dst_crs="EPSG:32633", dst_nodata=np.nan, tolerance=0,
    )  # fmt: skip
    same = np.isclose(pixels[0], wanted.astype(np.float32), equal_nan=True)
    assert same.mean() > 0.997, "positions on the very edge of a pixel may fall to either side"


def test_area_cuts_and_masks(tmp_path):
    item = scene(tmp_path)
    box = [400500.0, 4498500.0, 401500.0, 4499500.0]
    result = testing.run_local(asked("red", aoi=box, crs="EPSG:32632"), [item])
    asset = result.items[0].assets[0]
    assert asset.raster.shape == (100, 100)
    np.testing.assert_array_equal(read(asset)[0][0], physical(item, "red")[50:150, 54:154].astype(np.float32))
    with pytest.raises(AoiOutside, match="km"):
        method.plan(asked("red", aoi=[100.0, 10.0, 101.0, 11.0]), [item])
    wedge = {
        "type": "Polygon",
        "coordinates": [[[400500, 4498500], [401500, 4498500], [401500, 4499500], [400500, 4498500]]],
    }
    pixels, valid = read(
        testing.run_local(
            asked(aoi=wedge, crs="EPSG:32632", outputs=[{"name": "r", "expression": "red", "dtype": "uint8"}]), [item]
        )
        .items[0]
        .assets[0]
    )
    assert 0.4 < valid.mean() < 0.6
    assert not pixels[~valid].any()


def test_any_sharding_gives_the_same_bytes(tmp_path):
    item = scene(tmp_path, shape=(1100, 1300))
    params = asked(
        resampling="bilinear",
        outputs=[
            {"name": "n", "expression": "(nir - B12) / (nir + B12)"},
            {"name": "q", "expression": "nir * 100", "dtype": "uint8"},
        ],
    )
    digests = {
        tuple(
            asset.object.sha256
            for asset in testing.run_local(params, [item], shard_pixels=s, threads=t).items[0].assets
        )
        for s, t in ((512 * 512, 2), (1024 * 1024, 1), (1 << 24, 1))
    }
    assert len(digests) == 1


def test_bounds_hold_against_a_measured_process(tmp_path):
    item = scene(tmp_path, shape=(1100, 1300))  # more than a piece, and no more than it takes
    output = {"name": "n", "expression": "(nir - B12) / (nir + B12)", "dtype": "int16", "scale": 1e-4, "nodata": -32768}
    found = testing.measured(asked(outputs=[output], resampling="bilinear"), [item], tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= max(found.job_bytes_bound, found.shard_bytes_bound)
    assert found.written_bytes <= found.written_bytes_bound
    assert found.pixels <= found.pixels_bound


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), flip=st.sampled_from([(1, -1), (-1, 1), (-1, -1)]))
def test_flipped_pixels_give_the_flipped_result(tmp_path, seed, flip):
    pixels = testing.asymmetric((60, 70), bands=2, seed=seed)
    pixels[:, 5:9, 3:20] = 0
    rows, cols = flip
    results = []
    for name, stored in (("a", pixels), ("b", np.ascontiguousarray(pixels[:, ::rows, ::cols]))):
        asset = testing.write_raster(tmp_path / f"{name}.tif", stored, nodata=0, names=("red", "nir"))
        raster.forget(asset.href)
        results.append(made(asked("(nir - red) / (nir + red) ** 2", use_scale=False), [testing.input_item(asset)]))
    np.testing.assert_array_equal(results[0][:, ::rows, ::cols], results[1])


SMOOTH = ("({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} / ({1} * {1} + 1.5))", "where({0} < {1}, {1}, {0} + 2.0)")
CURVED = ("sqrt({0} * {0})", "exp(sin({0}))", "log({0} * {0} + 0.5)", "cos({0})")
FORMULAS = st.recursive(
    st.sampled_from(["red", "nir", "0.25", "3.0"]),
    lambda inner: st.one_of(
        st.builds(lambda form, a, b: form.format(a, b), st.sampled_from(SMOOTH), inner, inner),
        st.builds(lambda form, a: form.format(a), st.sampled_from(CURVED), inner),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(text=FORMULAS.filter(lambda text: "red" in text or "nir" in text), seed=st.integers(0, 50))
def test_any_formula_equals_numexpr(text, seed):
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 9000, (2, 5, 9), dtype=np.uint16)
    stored[:, 2, 3:6] = 0
    stored[1, 4] = 0
    red, nir = (np.where(band > 0, band * 1e-4 - 0.1, np.nan) for band in stored)
    operands = {
        name: Operand(band, 1e-4, -0.1, band > 0) for name, band in (("red", stored[0]), ("nir", stored[1]))
    }  # fmt: skip
    program = compile_expression(text, ["red", "nir"])
    got = evaluate(program, {name: operands[name] for name in program.names}, dtype="float64")[0]
    wanted = np.broadcast_to(numexpr.evaluate(text, {"red": red, "nir": nir}), got.shape)
    missing = np.logical_or.reduce([np.isnan({"red": red, "nir": nir}[name]) for name in program.names])
    np.testing.assert_array_equal(np.isnan(got), missing)
    np.testing.assert_allclose(got[~missing], wanted[~missing], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("crs", "transform", "bounds"),
    [
        ("EPSG:3413", (40.0, 0.0, -2_000.0, 0.0, -40.0, 1_500.0), None),  # over the pole itself
        ("EPSG:32660", (100.0, 0.0, 630_000.0, 0.0, -100.0, 7_300_000.0), None),
        ("EPSG:4326", (0.001, 0.0, 179.95, 0.0, -0.001, 66.0), (179.97, 65.93, 180.05, 65.98)),
    ],
)
def test_polar_grids_and_the_antimeridian(tmp_path, crs, transform, bounds):
    pixels = testing.asymmetric((80, 110), bands=2, seed=3)
    asset = testing.write_raster(tmp_path / "a.tif", pixels, names=("red", "nir"), crs=crs, transform=transform)
    choice = {} if bounds is None else {"grid": {"bounds": bounds}}
    result = testing.run_local(asked("nir - red", **choice), [testing.input_item(asset)])
    item, (got, _) = result.items[0], read(result.items[0].assets[0])
    wanted = (pixels[1].astype(float) - pixels[0])[20:70, 20:100] if bounds else pixels[1].astype(float) - pixels[0]
    np.testing.assert_array_equal(got[0], wanted)
    if crs == "EPSG:3413":
        assert item.bbox[3] == pytest.approx(90.0)
    else:
        assert item.bbox[0] > item.bbox[2]
        assert item.footprint["type"] == "MultiPolygon"


def test_bands_on_both_sides_of_the_antimeridian_meet(tmp_path):
    """One scene drawn past 180°, the other from −180° on: the same place, so each finds its pixels in the other."""
    pixels = testing.asymmetric((60, 90), bands=2, seed=7)
    east = testing.write_raster(
        tmp_path / "e.tif", pixels[:1], names=["red"], crs="EPSG:4326", transform=(0.01, 0, 180.1, 0, -0.01, 10)
    )
    west = testing.write_raster(
        tmp_path / "w.tif", pixels[1:], names=["nir"], crs="EPSG:4326", transform=(0.01, 0, -179.9, 0, -0.01, 10)
    )
    item = testing.input_item(east, west)
    got = made(asked("nir - red", grid={"like": item.id, "like_asset": item.rasters[0].key}), [item])[0]
    np.testing.assert_array_equal(got, pixels[1].astype(float) - pixels[0])


def test_real_scene_equals_rasterio_and_numpy(data_dir):
    folder = data_dir / "optical" / "landsat8_zion"
    assets = [raster.describe((folder / f"landsat_b{n}.tif").as_uri(), f"b{n}") for n in (4, 5)]
    item = InputItem(id="zion", assets=tuple(assets))
    got = made(asked("where(b5 + b4 > 0, (b5 - b4) / (b5 + b4), 0)"), [item], shard_pixels=600_000)
    with rasterio.open(folder / "landsat_b4.tif") as red, rasterio.open(folder / "landsat_b5.tif") as nir:
        r, n = (np.where(one.read_masks(1) > 0, one.read(1).astype(float), np.nan) for one in (red, nir))
    with np.errstate(all="ignore"):
        wanted = np.where(n + r > 0, (n - r) / (n + r), np.where(np.isnan(n + r), np.nan, 0))
    np.testing.assert_array_equal(got[0], wanted.astype(np.float32))


ATTACKS = [
    ("__import__('os').system('id')", 11),
    ("nir.__class__.__mro__", 3),
    ("(lambda: nir)()", 7),
    ("[x for x in nir]", 0),
    ("(nir := 1)", 5),
    ("nir = 1", 4),
    ("f'{nir}'", 1),
    ("f\"{nir}\"", 1),
    ("9**9**9", 1),
    ("9**9**9**9**9**9", 10),
    ("nir + 1e400", 6),
    ("nir * 9" + "9" * 400, 6),
    ("1 / 0 + nir", 2),
    ("(" * 5_00 + "nir" + ")" * 500, 48),
    ("-" * 900 + "(" * 100 + "nir", None),
    ("nir+" * 250_000, 4_096),
    ("nir" + " " * 999_990, 4_096),
    ("nіr + red", 1),  # Cyrillic і
    ("ｎir", 0),  # a full-width letter
    ("nir + \u202ered\u202c", 6),  # right-to-left override
    ("nir\u200d", 3),
    ("nir − red", 4),
    ("nir\x00red", 3),
    ("\ufeffnir", 0),
    ("(nir", 4),
    ("nir)", 3),
    ("((nir) + red", 12),
    ("exec(nir)", 0),
    ("system(nir)", 0),
    ("getattr(nir, red)", 0),
    ("open", 0),
    ("nir; red", 3),
    ("nir;import os", 3),
    ("`id`", 0),
    ("$(id)", 0),
    ("nir | cat", 6),
    ("nir && rm", 5),
    ("nir' OR '1'='1", 3),
    ("nir UNION SELECT red", 4),
    ("nir -- red\n; DROP TABLE jobs", None),
    ("nir /* red */", None),
    ("{{nir}}", 0),
    ("${nir}", 0),
    ("%s % nir", 0),
    ("nir if red else nir", 4),
    ("nir[0]", 3),
    ("nir.__getattribute__", 3),
    ("1_0 + nir", 0),
    ("0b1", 0),
    ("1j", 0),
    ("nir @ red", 4),
    ("nir # red", 4),
    ("nir\\\nred", 3),
    ("globals()", 0),
    ("where(nir, red)", 0),
    ("min(nir)", 0),
    ("nir red", 4),
    ("*nir", 0),
    ("", 0),
    (" \n\t", 3),
    ("+".join(f"(nir+{n})*(red+{n})**{n}" for n in range(300)), None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "position"), ATTACKS, ids=[repr(text[:20]) for text, _ in ATTACKS])
def test_attack_is_refused_at_its_place(tmp_path_factory, text, position):
    params = asked("nir", text)
    with pytest.raises(InvalidExpression) as caught:
        method.plan(params, [_item()])
    assert caught.value.pointer == "/outputs/1/expression"
    assert caught.value.data["expression"] == 1
    assert 0 <= caught.value.data["position"] <= max(len(text), 1)
    if position is not None:
        assert caught.value.data["position"] == position
    assert len(caught.value.message) < 1_000


def _item() -> InputItem:
    bands = tuple(method.Band(name=name, index=n, dtype="uint16") for n, name in enumerate(("red", "nir"), 1))
    return InputItem(
        id="scene",
        assets=(
            method.RasterAsset(
                key="data", href="file:///nowhere.tif", crs="EPSG:32632", transform=testing.UTM_TRANSFORM,
                shape=(64, 64), bands=bands, block_shape=(64, 64),
            ),
        ),
    )  # fmt: skip


def test_too_many_registers_are_refused():
    parts = [f"sin(nir * {n}.5)" for n in range(200)]
    while len(parts) > 1:  # a tree in which everything is alive at once
        half = len(parts) // 2
        parts = (
            [f"({a} / {b})" for a, b in zip(parts[:half], parts[half:], strict=True)]
            if len(parts) % 2 == 0
            else [f"({parts[0]} / {parts[1]})", *parts[2:]]
        )
    with pytest.raises(InvalidExpression):
        method.plan(asked(parts[0]), [_item()])


@pytest.mark.parametrize(
    ("fields", "kind", "pointer", "why"),
    [
        ({"variables": {"x": {"band": "swir"}}, "e": "x"}, BandNotFound, "/variables/x/band", "red, nir"),
        ({"e": "swir"}, InvalidExpression, "/outputs/0/expression", "known are nir, red, e, pi"),
        ({"variables": {"x": {"band": "nir", "item": 3}}, "e": "x"}, InvalidParameter, "/variables/x/item", "item 3"),
        ({"variables": {"x": {"band": "nir", "item": "q"}}, "e": "x"}, InvalidParameter, "/variables/x/item", "scene"),
        ({"variables": {"x": {"band": "nir"}}, "e": "red"}, InvalidParameter, "/variables/x", "No formula reads"),
        ({"variables": {"sin": {"band": "nir"}}, "e": "red"}, InvalidParameter, "/variables", "cannot be a variable"),
        ({"e": "pi"}, InvalidParameter, "/outputs/0/expression", "read no band"),
        ({"o": {"scale": 0}}, InvalidParameter, "/outputs/0/scale", "other than 0"),
        ({"o": {"dtype": "uint8", "nodata": -1}}, InvalidParameter, "/outputs/0/nodata", "uint8 cannot hold"),
        ({"o": {"nodata": 0.1}}, InvalidParameter, "/outputs/0/nodata", "float32 .*0.1"),
        ({"o": {"expression": "", "formula_id": "frm_x"}}, InvalidParameter, "/outputs/0/formula_id", "not known here"),
        ({"grid": {"like": "other"}}, InvalidParameter, "/grid/like", "other"),
        ({"aoi": [0.0, 0.0, 1.0, 1.0]}, AoiOutside, "/aoi", "km"),
        (
            {"aoi": [399963.0, 4499930.0, 399964.0, 4499990.0], "crs": "EPSG:32632"},
            InvalidParameter, "/pixel_rule", "covers no pixel of the grid by the rule center",
        ),
    ],
)  # fmt: skip
def test_request_that_cannot_be_done_is_refused_before_a_pixel_is_read(fields, kind, pointer, why):
    text, output = fields.pop("e", "nir"), fields.pop("o", {})
    params = asked(outputs=[{"name": "a", "expression": text} | output], **fields)
    with pytest.raises(RequestFault, match=why) as caught:
        method.plan(params, [_item()])
    assert isinstance(caught.value, kind)
    assert caught.value.pointer == pointer


def test_two_outputs_of_one_name_or_no_item_are_refused():
    with pytest.raises(InvalidParameter, match="called a"):
        method.plan(asked(outputs=[{"name": "a", "expression": "nir"}, {"name": "a", "expression": "red"}]), [_item()])
    with pytest.raises(InvalidParameter, match="at least one item"):
        method.plan(asked("nir"), [])


def test_broken_source_fails_by_name_or_is_missing_where_that_is_allowed(tmp_path):
    item = scene(tmp_path)
    (tmp_path / "twenty.tif").unlink()
    with pytest.raises(SourceFault, match=r"twenty\.tif"):
        testing.run_local(asked("nir + B12"), [item])
    result = testing.run_local(asked("nir + B12", "nir", allow_missing=True), [item])
    got = read(result.items[0].assets[0])[0]
    assert np.isnan(got[0]).all()
    assert not np.isnan(got[1]).all()
    assert {Path(failed.source).name for failed in result.report.failed} == {"twenty.tif"}


def test_worked_number_of_the_page(tmp_path):
    """docs/methods/band_math.md: red 1,600 and nir 4,600 stored at × 0.0001 − 0.1 give 0.7143, stored 7143."""
    stored = np.array([[[1600]], [[4600]]], np.uint16)
    asset = testing.write_raster(tmp_path / "one.tif", stored, names=("red", "nir"))
    bands = tuple(msgspec.structs.replace(band, scale=1e-4, offset=-0.1) for band in asset.bands)
    item = testing.input_item(msgspec.structs.replace(asset, bands=bands))
    output = {
        "name": "ndvi",
        "expression": "(nir - red) / (nir + red)",
        "dtype": "int16",
        "scale": 1e-4,
        "nodata": -32768,
    }
    assert made(asked(outputs=[output]), [item]).item() == 7143


def test_method_is_registered():
    assert method.get("band_math") is METHOD
