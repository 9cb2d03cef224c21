"""Radiometric correction: ESA's, JAXA's and the USGS's formulas on real scenes, any sharding, refusals."""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from eorouter_compute import method, raster, testing
from eorouter_compute.attempt import local_path
from eorouter_compute.errors import BandNotFound, InvalidParameter, SourceFault
from eorouter_compute.method import InputItem
from eorouter_compute.methods.radiometric_correction import (
    METHOD,
    RadiometricCorrectionParams,
    earth_sun_distance,
)

LINES, PIXELS = (0, 250, 600), (0, 200, 450, 800)


def asked(calibration: dict[str, Any], **fields: Any) -> RadiometricCorrectionParams:
    return msgspec.convert(
        {"method": "radiometric_correction", "calibration": calibration, **fields}, RadiometricCorrectionParams
    )


def made(params: RadiometricCorrectionParams, items: list[InputItem], **options: Any) -> np.ndarray:
    asset = testing.run_local(params, items, **options).items[0].assets[0]
    with rasterio.open(local_path(asset.object.href)) as source:
        return source.read()


def amplitudes(tmp_path, shape=(620, 830), *, names=("vv", "vh"), **fields) -> InputItem:
    pixels = testing.asymmetric(shape, bands=len(names), seed=4) // 20 + 30
    pixels[:, :20] = 0
    pixels[-1, 100:140, 300:333] = 0
    asset = testing.write_raster(tmp_path / "grd.tif", pixels, names=names)
    return testing.input_item(asset, id="grd", **fields)


def tables(quantity=0.0) -> dict[str, Any]:
    return {
        name: {
            "vectors": [
                {
                    "line": line,
                    "pixel": list(PIXELS),
                    "values": [500 + quantity + 40 * math.sin(line / 90 + pixel / 150 + shift) for pixel in PIXELS],
                }
                for line in LINES
            ],
            "noise": {
                "range": [
                    {"line": line, "pixel": list(PIXELS), "values": [900.0 + pixel / 2 + line for pixel in PIXELS]}
                    for line in LINES
                ],
                "azimuth": [
                    {
                        "first_line": 0, "last_line": 399, "first_sample": 0, "last_sample": 829,
                        "line": [0, 399], "values": [0.9, 1.2],
                    }
                ],
            },
        }
        for name, shift in (("vv", 0.0), ("vh", 0.3))
    }  # fmt: skip


def on_grid(vectors: list[dict[str, Any]], shape: tuple[int, int]) -> np.ndarray:
    table = RegularGridInterpolator(
        (np.array(LINES, float), np.array(PIXELS, float)),
        np.array([v["values"] for v in vectors]),
        bounds_error=False,
        fill_value=None,
    )
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    return table(np.stack([np.clip(y, 0, LINES[-1]), np.clip(x, 0, PIXELS[-1])], axis=-1))


def test_sentinel_1_is_esas_formula_with_scipys_interpolation(tmp_path):
    item = amplitudes(tmp_path)
    given_tables = tables()
    got = made(asked({"type": "sentinel1", "bands": given_tables}), [item], shard_pixels=512 * 512)
    asset = item.rasters[0]
    dn = raster.read_block(asset, [1, 2], asset.window).pixels.astype(float)
    for place, name in enumerate(("vv", "vh")):
        gain = on_grid(given_tables[name]["vectors"], asset.shape)
        noise = on_grid(given_tables[name]["noise"]["range"], asset.shape)
        noise[:400] *= np.interp(np.arange(400), [0, 399], [0.9, 1.2])[:, None]
        wanted = np.maximum(dn[place] ** 2 - noise, 0) / gain**2
        wanted[dn[place] == 0] = np.nan
        np.testing.assert_allclose(got[place], wanted, rtol=1e-6)
    assert np.isnan(got).mean() > 0.02
    assert (got[~np.isnan(got)] >= 0).all()


def test_worked_number_of_the_page(tmp_path):
    """DN 154 where A is 308 (four tenths from 300 to 320): σ⁰ = 0.25, −6.02 dB."""
    asset = testing.write_raster(tmp_path / "one.tif", np.full((1, 11, 3), 154, np.uint16), names=["vv"])
    vectors = [{"line": n, "pixel": [0, 2], "values": [300.0 + 2 * n] * 2} for n in (0, 10)]
    task = {"type": "sentinel1", "bands": {"vv": {"vectors": vectors}}}
    item = testing.input_item(asset)
    assert made(asked(task), [item])[0, 4, 1] == 0.25
    assert made(asked(task, scale="db"), [item])[0, 4, 1] == pytest.approx(-6.0206, abs=1e-4)


def test_annotation_text_and_a_cut_out_raster_give_the_same_pixels(tmp_path):
    item = amplitudes(tmp_path, names=("vv",))
    vectors = tables()["vv"]["vectors"]
    text = "<calibration>" + "".join(
        f"<calibrationVector><line>{v['line']}</line><pixel>{' '.join(map(str, v['pixel']))}</pixel>"
        f"<sigmaNought>{' '.join(map(repr, v['values']))}</sigmaNought></calibrationVector>"
        for v in vectors
    ) + "</calibration>"  # fmt: skip
    whole = made(asked({"type": "sentinel1", "bands": {"vv": {"vectors": vectors}}}), [item])
    np.testing.assert_array_equal(made(asked({"type": "sentinel1", "bands": {"vv": {"vectors": text}}}), [item]), whole)
    part = raster.read_block(item.rasters[0], [1], item.rasters[0].window).pixels[:, 150:400, 90:700]
    cut = testing.input_item(testing.write_raster(tmp_path / "cut.tif", part, names=["vv"]))
    task = {"type": "sentinel1", "bands": {"vv": {"vectors": vectors}}, "origin": [150, 90]}
    np.testing.assert_array_equal(made(asked(task), [cut]), whole[:, 150:400, 90:700])


def test_palsar_constant_is_jaxas_formula_and_areas_follow_the_incidence_angle(tmp_path):
    dn = np.array([[[0, 1000, 5000, 14125]]], np.uint16)
    item = testing.input_item(testing.write_raster(tmp_path / "hh.tif", dn, names=["HH"]))
    sigma = made(asked({"type": "constant", "factor_db": -83.0}, scale="db"), [item])[0, 0]
    assert np.isnan(sigma[0])
    np.testing.assert_allclose(sigma[1:], 10 * np.log10(dn[0, 0, 1:].astype(float) ** 2) - 83.0, rtol=1e-6)
    assert sigma[3] == pytest.approx(0.0, abs=1e-3)  # 14,125² is 83.0 dB
    task = {"type": "constant", "factor_db": -83.0, "incidence_angle": 34.3}
    flat = made(asked(task), [item])[0, 0, 1:]
    for quantity, ratio in (("beta0", 1 / math.sin(math.radians(34.3))), ("gamma0", 1 / math.cos(math.radians(34.3)))):
        np.testing.assert_allclose(
            made(asked(task | {"quantity": quantity}), [item])[0, 0, 1:], flat * ratio, rtol=1e-6
        )
    back = task | {"factor_quantity": "gamma0", "quantity": "beta0"}
    np.testing.assert_allclose(
        made(asked(back), [item])[0, 0, 1:], flat / math.tan(math.radians(34.3)), rtol=1e-6
    )  # fmt: skip
    power = made(asked(task | {"stored": "intensity"}), [item])[0, 0, 1:]
    np.testing.assert_allclose(power, dn[0, 0, 1:] * 10**-8.3, rtol=1e-6)
    assert made(asked(task, zero_is_missing=False), [item])[0, 0, 0] == 0.0


def test_incidence_angle_of_a_coarse_raster_is_interpolated(tmp_path):
    item = amplitudes(tmp_path, shape=(120, 200), names=("HH",))
    a, b, c, d, e, f = testing.UTM_TRANSFORM
    degrees = np.repeat(np.linspace(2500, 4500, 10)[None, None], 6, axis=1).astype(np.int16)
    angle = testing.write_raster(
        tmp_path / "angle.tif", degrees, names=["angle"], transform=(20 * a, b, c, d, 20 * e, f)
    )
    bands = (msgspec.structs.replace(angle.bands[0], scale=0.01),)
    both = testing.input_item(item.rasters[0], msgspec.structs.replace(angle, bands=bands))
    task = {"type": "constant", "factor_db": -60.0, "quantity": "gamma0", "incidence_angle": "angle"}
    got, flat = made(asked(task), [both]), made(asked(task | {"quantity": "sigma0"}), [both])
    assert got.shape == flat.shape == (1, 120, 200)
    ratio = got[0, 60] / flat[0, 60]
    middle = 20 * np.arange(10) + 10  # centres of the coarse pixels lie between fine ones
    theta = np.interp(np.arange(200) + 0.5, middle, degrees[0, 0] * 0.01)
    np.testing.assert_allclose(ratio[10:190], 1 / np.cos(np.radians(theta[10:190])), rtol=1e-4)


@pytest.mark.parametrize("quantity", ["gamma0", "beta0"])
@pytest.mark.parametrize("scale", ["linear", "db"])
def test_pixels_whose_incidence_angle_no_number_may_have_are_missing(tmp_path, quantity, scale):
    """Local incidence angles reach 90° and more where the slope lies in shadow, where cos θ is 0 or below."""
    degrees = np.array([[[-5, 0, 1, 45, 89, 90, 91, 180, -9999]]], np.float32)
    angle = testing.write_raster(tmp_path / "angle.tif", degrees, names=["lia"], nodata=-9999)
    power = testing.write_raster(tmp_path / "vv.tif", np.full((1, 1, 9), 100, np.uint16), names=["vv"])
    task = {"type": "constant", "factor_db": -40, "quantity": quantity, "incidence_angle": "lia", "bands": ["vv"]}
    both = testing.input_item(power, angle)
    found = made(asked(task, scale=scale), [both])[0, 0]
    assert np.flatnonzero(~np.isnan(found)).tolist() == [2, 3, 4]
    turn = np.cos if quantity == "gamma0" else np.sin
    wanted = 1 / turn(np.radians([1, 45, 89]))
    np.testing.assert_allclose(found[2:5], 10 * np.log10(wanted) if scale == "db" else wanted, rtol=1e-5)
    report = testing.run_local(asked(task, scale=scale), [both]).report
    assert (report.valid_pixels, report.pixels) == (3, 9)
    # Whatever rounds on the way to 90 degrees is 90 degrees.
    hundredths = testing.write_raster(tmp_path / "a.tif", np.full((1, 1, 9), 9000, np.uint16), names=["lia"])
    steep = msgspec.structs.replace(hundredths, bands=(msgspec.structs.replace(hundredths.bands[0], scale=0.01),))
    assert np.isnan(made(asked(task, scale=scale), [testing.input_item(power, steep)])).all()
    # Where the angle is not needed, it drops nothing.
    plain = made(asked(task | {"quantity": "sigma0"}, scale=scale), [both])
    assert not np.isnan(plain).any()


def test_real_radar_scene_comes_back_from_its_numbers(tmp_path, data_dir):
    with rasterio.open(data_dir / "sar" / "S1A__IW___A_20150309T173017_VV_grd_mli_geo_norm_db.tif") as source:
        db, profile = source.read(1), source.profile
    known = np.isfinite(db) & (db != profile["nodata"]) & (db > -40)
    y, x = np.mgrid[0 : db.shape[0], 0 : db.shape[1]]
    vectors = [
        {"line": n, "pixel": [0, 150, 300], "values": [3000.0 + n, 3300.0 + n, 2900.0 + n]} for n in (0, 100, 400)
    ]
    gain = 3000.0 + y + np.interp(x, [0, 150, 300], [0, 300, -100])
    numbers = np.where(known, np.rint(np.sqrt(10 ** (db.astype(float) / 10)) * gain), 0).astype(np.uint16)
    asset = testing.write_raster(
        tmp_path / "dn.tif", numbers[None], names=["VV"], crs=profile["crs"].to_string(),
        transform=tuple(profile["transform"])[:6],
    )  # fmt: skip
    task = {"type": "sentinel1", "bands": {"VV": {"vectors": vectors}}}
    got = made(asked(task, scale="db"), [testing.input_item(asset)])[0]
    np.testing.assert_array_equal(np.isnan(got), numbers == 0)
    # Half a digital number, in decibels.
    assert (np.abs(got - db)[numbers > 0] <= 20 * np.log10(1 + 0.5001 / numbers[numbers > 0].astype(float)) * 1.1).all()


def test_real_landsat_scene_is_the_usgss_formula(data_dir):
    folder = data_dir / "optical" / "landsat8_zion"
    assets = [raster.describe((folder / f"landsat_b{n}.tif").as_uri(), f"b{n}") for n in (4, 5)]
    item = InputItem(id="zion", assets=tuple(assets), properties={"view:sun_elevation": 61.5})
    gains = {"b4": {"gain": 2e-5, "offset": -0.1}, "b5": {"gain": 2e-5, "offset": -0.1}}
    result = testing.run_local(asked({"type": "optical", "bands": gains}), [item], shard_pixels=600_000)
    assert [asset.key for asset in result.items[0].assets] == ["b4", "b5", "preview"]
    for asset, source in zip(result.items[0].assets, ("landsat_b4.tif", "landsat_b5.tif"), strict=False):
        with rasterio.open(local_path(asset.object.href)) as ours, rasterio.open(folder / source) as theirs:
            dn = theirs.read(1).astype(float)
            wanted = (dn * 2e-5 - 0.1) / math.sin(math.radians(61.5))
            wanted[(theirs.read_masks(1) == 0) | (dn == 0)] = np.nan
            np.testing.assert_allclose(ours.read(1), wanted, rtol=1e-6, atol=1e-9)
            assert ours.transform == theirs.transform
    assert result.items[0].properties["eorouter:calibration"]["sun_elevation"] == 61.5


def test_radiance_and_reflectance_are_chanders_formula(tmp_path):
    dn = np.array([[[0, 57, 120, 255]]], np.uint8)
    at = datetime(2001, 7, 4, 15, tzinfo=UTC)
    item = testing.input_item(testing.write_raster(tmp_path / "b3.tif", dn, names=["B3"]), at=at)
    gain = {"gain": 0.621654, "offset": -5.62, "of": "radiance", "solar_irradiance": 1533.0}
    radiance = made(asked({"type": "optical", "quantity": "radiance", "bands": {"B3": gain}}), [item])[0, 0]
    np.testing.assert_allclose(radiance[1:], dn[0, 0, 1:] * 0.621654 - 5.62, rtol=1e-6)
    task = {"type": "optical", "bands": {"B3": gain}, "sun_elevation": 60.0}
    reflectance = made(asked(task), [item])[0, 0]
    distance = earth_sun_distance(at)
    wanted = math.pi * radiance[1:] * distance**2 / (1533.0 * math.sin(math.radians(60.0)))
    np.testing.assert_allclose(reflectance[1:], wanted, rtol=1e-6)
    fixed = made(asked(task | {"earth_sun_distance": 1.0}), [item])[0, 0]
    np.testing.assert_allclose(reflectance[1:], fixed[1:] * distance**2, rtol=1e-6)
    # And back: reflectance that is not yet divided by the sine of the sun's elevation.
    apart = gain | {"gain": 2e-5, "offset": -0.1, "of": "reflectance"}
    back = made(asked({"type": "optical", "quantity": "radiance", "bands": {"B3": apart}}), [item])[0, 0]
    np.testing.assert_allclose(
        back[1:], (dn[0, 0, 1:] * 2e-5 - 0.1) * 1533.0 / (math.pi * distance**2), rtol=1e-6
    )  # fmt: skip


@pytest.mark.parametrize(
    ("at", "distance"),
    [
        # Perihelion and aphelion of 2024, in astronomical units.
        (datetime(2024, 1, 3, 0, 38, tzinfo=UTC), 0.983307),
        (datetime(2024, 7, 5, 5, 6, tzinfo=UTC), 1.016725),
    ],
)
def test_distance_of_the_sun(at, distance):
    assert earth_sun_distance(at) == pytest.approx(distance, abs=2e-4)


def test_any_sharding_gives_the_same_bytes(tmp_path):
    item = amplitudes(tmp_path, shape=(1100, 1300))
    params = asked({"type": "sentinel1", "bands": tables()}, scale="db")
    digests = {
        testing.run_local(params, [item], shard_pixels=s, threads=t).items[0].assets[0].object.sha256
        for s, t in ((512 * 512, 2), (1024 * 1024, 1), (1 << 24, 1))
    }
    assert len(digests) == 1


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), row=st.integers(0, 40), col=st.integers(0, 40))
def test_a_shifted_raster_with_its_origin_gives_the_shifted_result(tmp_path, seed, row, col):
    pixels = np.random.default_rng(seed).integers(0, 900, (1, 70, 80), dtype=np.uint16)
    results = []
    for name, stored, origin in (("a", pixels, (0, 0)), ("b", np.ascontiguousarray(pixels[:, row:, col:]), (row, col))):
        asset = testing.write_raster(tmp_path / f"{name}.tif", stored, names=["vv"])
        raster.forget(asset.href)
        task = {"type": "sentinel1", "bands": {"vv": tables()["vv"]}, "origin": origin}
        results.append(made(asked(task), [testing.input_item(asset)]))
    np.testing.assert_array_equal(results[0][:, row:, col:], results[1])


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", (0.001, 0.0, 179.95, 0.0, -0.001, 60.0)),
        ("EPSG:3413", (40.0, 0.0, -900_000.0, 0.0, -40.0, -1_200_000.0)),
        ("EPSG:32660", (10.0, 0.0, 780_000.0, 0.0, -10.0, 6_000_000.0)),
    ],
)
def test_grids_across_the_antimeridian_and_at_the_pole_keep_their_place(tmp_path, crs, transform):
    pixels = testing.asymmetric((90, 120), seed=2)
    asset = testing.write_raster(tmp_path / "there.tif", pixels, names=["HH"], crs=crs, transform=transform)
    item = testing.run_local(asked({"type": "constant", "factor_db": 0.0}), [testing.input_item(asset)]).items[0]
    assert item.assets[0].raster is not None
    assert item.assets[0].raster.grid == asset.grid
    if crs == "EPSG:4326":
        assert item.bbox[0] > item.bbox[2]
        assert item.footprint["type"] == "MultiPolygon"


def test_bounds_hold_against_a_measured_process(tmp_path):
    item = amplitudes(tmp_path, shape=(1700, 1900))
    found = testing.measured(asked({"type": "sentinel1", "bands": tables()}, scale="db"), [item], tmp_path)
    assert found.shard_bytes <= found.shard_bytes_bound
    assert found.job_bytes <= max(found.job_bytes_bound, found.shard_bytes_bound)
    assert found.written_bytes <= found.written_bytes_bound
    assert found.pixels <= found.pixels_bound


def test_broken_source_fails_by_name_or_is_missing_where_that_is_allowed(tmp_path):
    item = amplitudes(tmp_path, shape=(600, 700), names=("HH",))
    path = local_path(item.rasters[0].href)
    with rasterio.open(path) as source:
        place = int(source.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[place : place + 400] = b"\xff" * 400
    path.write_bytes(data)
    raster.forget(item.rasters[0].href)
    task = {"type": "constant", "factor_db": -83.0}
    with pytest.raises(SourceFault, match=r"grd\.tif"):
        testing.run_local(asked(task), [item])
    result = testing.run_local(asked(task, allow_missing=True), [item])
    assert [failed.window[:2] for failed in result.report.failed] == [(256, 256)]
    assert result.report.failed[0].source.endswith("grd.tif")
    assert result.report.valid_pixels == 600 * 700 - 256 * 256 - 20 * 700 - 40 * 33  # zeros at the rim and inside


def vector(**fields: Any) -> dict[str, Any]:
    return {"line": 0, "pixel": [0, 5], "values": [1.0, 2.0]} | fields


@pytest.mark.parametrize(
    ("calibration", "fields", "kind", "pointer", "why"),
    [
        (
            {"type": "sentinel1", "bands": {"hh": {"vectors": [vector()]}}},
            {}, BandNotFound, "/calibration/bands/hh", "vv",
        ),
        (
            {"type": "sentinel1", "bands": {"vv": {"vectors": [vector(values=[1.0])]}}},
            {}, InvalidParameter, "/calibration/bands/vv/vectors/0", "2 columns and 1 values",
        ),
        (
            {"type": "sentinel1", "bands": {"vv": {"vectors": "<a/>"}}},
            {}, InvalidParameter, "/calibration/bands/vv/vectors", "no calibrationVector",
        ),
        (
            {"type": "sentinel1", "bands": {"vv": {"vectors": [vector()], "noise": "<a/>"}}},
            {}, InvalidParameter, "/calibration/bands/vv/noise", "neither",
        ),
        (
            {"type": "constant", "factor_db": -83, "quantity": "gamma0"},
            {}, InvalidParameter, "/calibration/incidence_angle", "incidence angle is needed",
        ),
        (
            {"type": "constant", "factor_db": -83, "quantity": "gamma0", "incidence_angle": 90},
            {}, InvalidParameter, "/calibration/incidence_angle", "between 0 and 90",
        ),
        (
            {"type": "constant", "factor_db": -83, "incidence_angle": "theta"},
            {}, BandNotFound, "/calibration/incidence_angle", "vv",
        ),
        (
            {"type": "constant", "factor_db": -83, "bands": ["vv", "xx"]},
            {}, BandNotFound, "/calibration/bands/1", "vv",
        ),
        (
            {"type": "optical", "bands": {"vv": {"gain": 1.0}}},
            {}, InvalidParameter, "/calibration/sun_elevation", "has no view:sun_elevation",
        ),
        (
            {"type": "optical", "quantity": "radiance", "bands": {"vv": {"gain": 1.0}}},
            {}, InvalidParameter, "/calibration/bands/vv/solar_irradiance", "irradiance is needed",
        ),
        (
            {"type": "optical", "quantity": "radiance", "bands": {"vv": {"gain": 1.0, "solar_irradiance": 1500.0}}},
            {}, InvalidParameter, "/calibration/earth_sun_distance", "no date",
        ),
        ({"type": "optical", "bands": {"vv": {"gain": 1.0}}}, {"scale": "db"}, InvalidParameter, "/scale", "Decibels"),
    ],
)  # fmt: skip
def test_request_that_cannot_be_done_is_refused(tmp_path, calibration, fields, kind, pointer, why):  # noqa: PLR0917
    item = amplitudes(tmp_path, shape=(20, 20))
    with pytest.raises(kind, match=why) as error:
        method.plan(asked(calibration, **fields), [item])
    assert error.value.pointer == pointer


def test_two_products_or_none_are_refused(tmp_path):
    item = amplitudes(tmp_path, shape=(20, 20))
    params = asked({"type": "sentinel1", "bands": {"vv": {"vectors": [vector()]}}})
    with pytest.raises(InvalidParameter, match="belong to one product"):
        method.plan(params, [item, msgspec.structs.replace(item, id="other")])
    with pytest.raises(InvalidParameter, match="at least one"):
        method.plan(params, [])


def test_several_items_share_a_constant(tmp_path):
    (tmp_path / "b").mkdir()
    items = [amplitudes(tmp_path, shape=(20, 30)), amplitudes(tmp_path / "b", shape=(25, 35))]
    items[1] = msgspec.structs.replace(items[1], id="other")
    result = testing.run_local(asked({"type": "constant", "factor_db": -83.0}), items)
    assert [item.assets[0].raster.shape for item in result.items] == [(20, 30), (25, 35)]
    assert [band.name for band in result.items[1].assets[0].raster.bands] == ["vv", "vh"]


def test_method_is_registered():
    assert method.get("radiometric_correction") is METHOD
    assert METHOD.summary.startswith("Turn digital numbers into radar brightness")
