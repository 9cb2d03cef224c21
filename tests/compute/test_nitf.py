"""What is let into NITF, by the word of GDAL's driver: it writes whatever passes, and puts it where it lies."""

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import UTMConversion
from rasterio.errors import RasterioError

from eorouter_compute import gdal, method, nitf, raster
from eorouter_compute.attempt import local_path
from eorouter_compute.cogfile import CogSpec
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.method import Band
from eorouter_compute.methods.cog import CogParams
from eorouter_compute.testing import asymmetric, input_item, run_local, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

METRES = (10.0, 0.0, 399_960.0, 0.0, -10.0, 4_500_000.0)
DEGREES = (0.01, 0.0, 11.0, 0.0, -0.01, 47.0)
MERCATOR = "+proj=tmerc +lat_0=0 +lon_0={} +k={} +x_0=500000 +y_0={} +datum=WGS84 +units=m +type=crs"


def spec_of(crs, transform, shape=(20, 30), **fields):
    bands = (Band(name="a", index=1, dtype="uint8"),)
    return CogSpec(**{"shape": shape, "transform": transform, "crs": crs, "dtype": "uint8", "bands": bands} | fields)


def passes(spec):
    try:
        nitf.check(spec, where="This")
    except InvalidParameter:
        return False
    return True


def is_written(spec):
    """Whether GDAL writes it, and reads its corners back where they were, to half a step."""
    height, width = spec.shape
    for icords, step in (("D", 0.001), ("N", 1.0), ("S", 1.0)):
        with tempfile.TemporaryDirectory() as folder, rasterio.Env(**gdal.OPTIONS):
            path, profile = Path(folder) / "a.ntf", {"crs": spec.crs, "transform": rasterio.Affine(*spec.transform)}
            try:
                with rasterio.open(
                    path, "w", driver="NITF", width=width, height=height, count=1, dtype="uint8", ICORDS=icords,
                    BLOCKXSIZE=256, BLOCKYSIZE=256, IC="NC", **profile,
                ) as target:  # fmt: skip
                    target.write(np.ones((1, height, width), np.uint8))
                with rasterio.open(path) as found:
                    if found.crs is None:
                        continue
                    transform, crs = tuple(found.transform)[:6], found.crs.to_wkt()
            except (RasterioError, rasterio._err.CPLE_BaseError):
                continue
            back = pyproj.Transformer.from_crs(crs, spec.crs, always_xy=True)
            off = np.array(back.transform(*middles(spec.shape, transform))) - middles(spec.shape, spec.transform)
            return bool(np.abs(off).max() <= step * 0.51)
    return False


def middles(shape, transform):
    """Of the pixels at the corners, x and y: the places that the file states."""
    rows, cols = (np.array(ends) + 0.5 for ends in ((0, 0, shape[0] - 1, shape[0] - 1), (0, shape[1] - 1) * 2))
    return np.array(rasterio.Affine(*transform) @ (cols, rows))


def utm_on(code):
    return ProjectedCRS(UTMConversion(32), "WGS 84 / UTM zone 32N", geodetic_crs=pyproj.CRS.from_epsg(code)).to_wkt()


ZONE = pyproj.CRS.from_epsg(32632).to_wkt()
WRITTEN = {
    "utm north": ("EPSG:32632", METRES),
    "utm south": ("EPSG:32733", METRES),
    "degrees": ("EPSG:4326", DEGREES),
    "degrees, longitude first": ("OGC:CRS84", DEGREES),
    "utm by proj": ("+proj=utm +zone=32 +datum=WGS84 +type=crs", METRES),
    "utm by its parameters": (MERCATOR.format(9, 0.9996, 0), METRES),
    "utm south by its parameters": (MERCATOR.format(-51, 0.9996, 10_000_000), METRES),
    "utm by another name": (ZONE.replace("WGS 84 / UTM zone 32N", "mine").replace('"UTM zone 32N"', '"ours"'), METRES),
    "utm with heights": ("EPSG:32632+5773", METRES),
    "degrees with heights": ("EPSG:9518", DEGREES),
}
REFUSED = {
    "ups north": ("EPSG:32661", (10.0, 0.0, 2_000_000.0, 0.0, -10.0, 2_000_000.0)),
    "ups south": ("EPSG:5042", (10.0, 0.0, 2_000_000.0, 0.0, -10.0, 2_000_000.0)),
    "G730": ("EPSG:9053", DEGREES),
    "utm on G730": (utm_on(9053), METRES),
    "transit": ("EPSG:8888", DEGREES),
    "three dimensions": ("EPSG:4979", DEGREES),
    "etrs89": ("EPSG:4258", DEGREES),
    "utm on etrs89": ("EPSG:25832", METRES),
    "utm on etrs89 by another name": (utm_on(4258), METRES),
    "utm on nad83": ("EPSG:26915", METRES),
    "utm on wgs 72": ("EPSG:32232", METRES),
    "web mercator": ("EPSG:3857", METRES),
    "between zones": (MERCATOR.format(9.5, 0.9996, 0), METRES),
    "another scale": (MERCATOR.format(9, 1, 0), METRES),
    "an ellipsoid without a datum": ("+proj=utm +zone=32 +ellps=WGS84 +type=crs", METRES),
    "in feet": ("+proj=utm +zone=32 +datum=WGS84 +units=us-ft +type=crs", METRES),
    "from Paris": ("+proj=longlat +datum=WGS84 +pm=paris +type=crs", DEGREES),
    "utm only by name": (
        ZONE.replace('"Latitude of natural origin",0', '"Latitude of natural origin",5').replace(
            ',ID["EPSG",32632]', ""
        ),
        METRES,
    ),
}


@pytest.mark.parametrize(("crs", "transform"), [*WRITTEN.values(), *REFUSED.values()], ids=[*WRITTEN, *REFUSED])
def test_the_crs_that_passes_is_the_one_gdal_writes(crs, transform):
    spec = spec_of(crs, transform)
    assert passes(spec) == is_written(spec) == ((crs, transform) in WRITTEN.values())


@pytest.mark.parametrize("zone", range(1, 61))
def test_every_zone_of_utm_passes_in_its_hemisphere(zone):
    assert [nitf.icords_of(f"EPSG:{side + zone}") for side in (32600, 32700)] == ["N", "S"]


@settings(max_examples=150, deadline=None)
@example(-99_994.0, 0.0, 10.0, (1, 5))
@example(-100_005.6, 0.0, 10.0, (5, 5))
@example(999_954.6, 9_999_999.6, 10.0, (5, 5))
@example(0.0, -999_999.4, -10.0, (5, 5))
@given(
    st.floats(-150_000, 1_050_000),
    st.floats(-1_050_000, 10_050_000),
    st.sampled_from([-30.0, 1e-4, 0.2, 0.6, 10.0, 900.0]),
    st.tuples(st.sampled_from([1, 2, 5, 300]), st.sampled_from([1, 2, 5, 300])),
)
def test_the_place_in_utm_that_passes_is_the_one_gdal_writes(x, y, size, shape):
    spec = spec_of("EPSG:32633", (abs(size), 0.0, x, 0.0, -size, y), shape)
    assert passes(spec) == is_written(spec)


@settings(max_examples=100, deadline=None)
@example(179.97, 89.97, 0.01, (3, 3))
@example(-180.0, -90.0, -0.01, (3, 3))
@given(
    st.floats(-180, 180),
    st.floats(-90, 90),
    st.sampled_from([-0.5, 1e-7, 0.0004, 0.01, 1.0]),
    st.tuples(st.sampled_from([1, 2, 5, 300]), st.sampled_from([1, 2, 5, 300])),
)
def test_the_place_in_degrees_that_passes_is_one_gdal_writes(x, y, size, shape):
    spec = spec_of("EPSG:4326", (abs(size), 0.0, x, 0.0, -size, y), shape)
    if passes(spec):
        assert is_written(spec)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"crs": "EPSG:9053", "transform": DEGREES}, r"not in WGS 84 \(G730\)"),
        ({"transform": (10.0, 1.0, 0.0, 0.0, -10.0, 0.0)}, "not turned or sheared"),
        ({"transform": (10.0, 0.0, 999_900.0, 0.0, -10.0, 0.0)}, "eastings of −99,999 to 999,999"),
        ({"shape": (1, 30)}, "four corners in whole metres"),
        ({"crs": "EPSG:4326", "transform": (1e-6, 0.0, 8.0, 0.0, -1e-6, 8.0)}, "whole thousandths of a degree"),
        ({"crs": "EPSG:4326", "transform": (0.1, 0.0, 179.0, 0.0, -0.1, 8.0)}, "clip it on either side"),
        ({"dtype": "int8"}, "no int8, only float32, float64"),
        ({"shape": (100, 100_000_000)}, "99999999 pixels along a side"),
        ({"shape": (90_000, 90_000), "dtype": "float64"}, "at most 9999999998 bytes"),
        ({"bands": tuple(Band(name=f"{n}", index=n, dtype="uint8") for n in range(1, 1001))}, "999 bands"),
    ],
)
def test_a_refusal_says_why_and_what_to_use(fields, word):
    with pytest.raises(InvalidParameter, match=f'{word}.*Use "format": "cog"') as caught:
        nitf.check(spec_of(**{"crs": "EPSG:32632", "transform": METRES} | fields), where="Item a, data")
    assert caught.value.pointer == "/format"
    assert caught.value.message.startswith("Item a, data does not fit into NITF: ")


def test_a_real_file_with_a_datum_of_wgs_84_only_by_name_is_refused_before_the_job_starts(data_dir):
    asset = raster.describe(str(data_dir / "formats" / "cog_scale_offset.tif"))
    with pytest.raises(InvalidParameter, match="does not fit into NITF") as caught:
        method.plan(CogParams(format="nitf"), [input_item(asset)])
    assert caught.value.pointer == "/format"


@pytest.mark.parametrize("drawn", ["utm south by its parameters", "utm with heights", "degrees, longitude first"])
def test_what_passes_is_made_by_the_job(tmp_path, drawn):
    crs, transform = WRITTEN[drawn]
    pixels = asymmetric((40, 300), bands=2)
    asset = msgspec.structs.replace(write_raster(tmp_path / "a.tif", pixels, transform=transform, crs=crs), crs=crs)
    made = run_local(CogParams(format="nitf"), [input_item(asset)], tmp_path / "out").items[0].assets[-1]
    with rasterio.open(local_path(made.object.href)) as found:
        assert found.driver == "NITF"
        np.testing.assert_array_equal(found.read(), pixels)
        assert found.transform.almost_equals(rasterio.Affine(*transform), 1e-9)
        back = pyproj.Transformer.from_crs(found.crs.to_wkt(), crs, always_xy=True)
        np.testing.assert_allclose(back.transform(transform[2], transform[5]), (transform[2], transform[5]), atol=1e-6)
