"""Sentinel-1 annotation: read as the product specification writes it, refused where it is hostile or broken."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from eorouter_compute import calibration
from eorouter_compute.calibration import AzimuthBlock, NoiseTable, Vector
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Window

LINES, PIXELS = (-10, 30, 90), (0, 20, 55)


def words(numbers) -> str:
    return " ".join(f"{number:.6e}" if isinstance(number, float) else str(number) for number in numbers)


def calibration_xml(value=lambda line, pixel: 300.0 + line + 2 * pixel) -> str:
    """Three vectors of three columns, with every element and attribute that a product has."""
    vectors = "".join(
        f"""
    <calibrationVector>
      <azimuthTime>2024-05-17T05:26:{20 + place}.123456</azimuthTime>
      <line>{line}</line>
      <pixel count="3">{words(PIXELS)}</pixel>
      <sigmaNought count="3">{words([value(line, pixel) for pixel in PIXELS])}</sigmaNought>
      <betaNought count="3">{words([237.0] * 3)}</betaNought>
      <gamma count="3">{words([value(line, pixel) - 30.0 for pixel in PIXELS])}</gamma>
      <dn count="3">{words([237.0] * 3)}</dn>
    </calibrationVector>"""
        for place, line in enumerate(LINES)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<calibration>
  <adsHeader><missionId>S1A</missionId><productType>GRD</productType><polarisation>VV</polarisation></adsHeader>
  <calibrationInformation><absoluteCalibrationConstant>1.0</absoluteCalibrationConstant></calibrationInformation>
  <calibrationVectorList count="3">{vectors}
  </calibrationVectorList>
</calibration>
"""


def noise_xml() -> str:
    vectors = "".join(
        f"<noiseRangeVector><azimuthTime>2024-05-17T05:26:20</azimuthTime><line>{line}</line>"
        f"<pixel count='3'>{words(PIXELS)}</pixel><noiseRangeLut count='3'>{words([900.0, 800.0, 1000.0 + line])}"
        "</noiseRangeLut></noiseRangeVector>"
        for line in LINES
    )
    return (
        f"<noise><noiseRangeVectorList count='3'>{vectors}</noiseRangeVectorList><noiseAzimuthVectorList count='2'>"
        "<noiseAzimuthVector><swath>IW1</swath><firstAzimuthLine>0</firstAzimuthLine><firstRangeSample>0"
        "</firstRangeSample><lastAzimuthLine>79</lastAzimuthLine><lastRangeSample>29</lastRangeSample>"
        "<line count='2'>0 40</line><noiseAzimuthLut count='2'>1.0e+00 2.0e+00</noiseAzimuthLut></noiseAzimuthVector>"
        "<noiseAzimuthVector><swath>IW2</swath><firstAzimuthLine>0</firstAzimuthLine><firstRangeSample>30"
        "</firstRangeSample><lastAzimuthLine>79</lastAzimuthLine><lastRangeSample>55</lastRangeSample>"
        "<line count='1'>0</line><noiseAzimuthLut count='1'>5.0e-01</noiseAzimuthLut></noiseAzimuthVector>"
        "</noiseAzimuthVectorList></noise>"
    )


def test_vectors_of_each_quantity_are_read():
    found = calibration.vectors(calibration_xml(), "sigma0")
    assert [vector.line for vector in found] == list(LINES)
    assert found[1] == Vector(line=30, pixel=PIXELS, values=(330.0, 370.0, 440.0))
    assert calibration.vectors(calibration_xml(), "gamma0")[1].values == (300.0, 340.0, 410.0)
    assert calibration.vectors(calibration_xml(), "beta0")[1].values == (237.0, 237.0, 237.0)


def test_columns_are_filled_in_as_scipy_does():
    window, origin = Window(20, 5, 40, 30), (3, 7)
    table, lines = calibration.at_columns(calibration.vectors(calibration_xml(), "sigma0"), window, origin)
    assert lines.tolist() == [-13.0, 27.0, 87.0]
    values = np.array([[300.0 + line + 2 * pixel for pixel in PIXELS] for line in LINES])
    wanted = RegularGridInterpolator((np.array(LINES, float), np.array(PIXELS, float)), values)
    columns = np.arange(5, 35) + 7
    np.testing.assert_allclose(table[1], wanted(np.stack([np.full(30, 30), columns], axis=1)))


def test_only_the_vectors_a_window_needs_are_filled_in():
    found = [Vector(line=100 * n, pixel=(0, 9), values=(1.0, 2.0)) for n in range(50)]
    table, lines = calibration.at_columns(found, Window(450, 0, 100, 10))
    assert lines.tolist() == [400.0, 500.0, 600.0]
    assert table.shape == (3, 10)
    assert calibration.at_columns(found, Window(9000, 0, 10, 10))[1].tolist() == [4900.0]
    assert calibration.at_columns(found[3:], Window(0, 0, 10, 10))[1].tolist() == [300.0]


def test_noise_is_range_times_azimuth_by_block():
    table = calibration.noise(noise_xml())
    power = calibration.noise_power(table, Window(0, 0, 90, 56))
    # Line 20, column 10: range 850 on every vector; azimuth half way between 1 and 2.
    assert power[20, 10] == pytest.approx(850.0 * 1.5)
    # Column 55 of line 30 is 1030 in range; the second swath halves it. Line 85 lies in no block.
    assert power[30, 55] == pytest.approx(1030.0 * 0.5)
    assert power[85, 55] == pytest.approx(1000.0 + 85.0)
    moved = calibration.noise_power(table, Window(10, 0, 5, 20), (10, 10))
    np.testing.assert_allclose(moved, power[20:25, 10:30])


def test_noise_before_ipf_2_90_has_no_azimuth_part():
    text = (
        "<noise><noiseVectorList count='1'><noiseVector><line>0</line><pixel count='2'>0 9</pixel>"
        "<noiseLut count='2'>10 20</noiseLut></noiseVector></noiseVectorList></noise>"
    )
    table = calibration.noise(text)
    assert table == NoiseTable(range=(Vector(line=0, pixel=(0, 9), values=(10.0, 20.0)),))
    np.testing.assert_allclose(
        calibration.noise_power(table, Window(0, 0, 1, 10))[0], np.interp(range(10), [0, 9], [10, 20])
    )


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><calibration>&c;</calibration>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><calibration>&b;</calibration>'
REMOTE = '<!DOCTYPE a SYSTEM "http://example.org/a.dtd"><calibration/>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "declares a document type"),
        (OUTSIDE, "declares a document type"),
        (REMOTE, "declares a document type"),
        ("<calibration>&undeclared;</calibration>", "undefined entity"),
        ("no xml at all", "syntax error"),
        ("<calibration><calibrationVector>", "no element|not well|unclosed"),
        ("<calibration/>", "no calibrationVector"),
        (calibration_xml().replace("sigmaNought", "sigma"), "no sigmaNought"),
        (calibration_xml().replace("0 20 55", "0 55"), "2 columns and 3 values"),
        (calibration_xml().replace("0 20 55", "0 20 15"), "rising columns"),
        (calibration_xml().replace("<line>30</line>", "<line>90</line>"), "two vectors of line 90"),
        (calibration_xml().replace("<line>30</line>", "<line>x</line>"), "invalid literal"),
        (calibration_xml(lambda line, pixel: float("nan")), "finite values"),
        (calibration_xml(lambda line, pixel: 0.0), "holds 0; numbers are divided"),
    ],
)
def test_hostile_or_broken_annotation_is_refused_with_a_reason(text, why):
    with pytest.raises(InvalidParameter, match=why) as error:
        calibration.vectors(text, "sigma0", pointer="/calibration/bands/vv/vectors")
    assert error.value.pointer == "/calibration/bands/vv/vectors"


def test_broken_noise_is_refused():
    with pytest.raises(InvalidParameter, match="neither noiseRangeVector nor noiseVector"):
        calibration.noise("<noise/>", pointer="/n")
    with pytest.raises(InvalidParameter, match="rising lines"):
        calibration.noise(noise_xml().replace("0 40", "40 0"))
    table = NoiseTable(
        range=(Vector(line=0, pixel=(0,), values=(1.0,)),),
        azimuth=(
            AzimuthBlock(first_line=0, last_line=9, first_sample=0, last_sample=9, line=(0, 5), values=(1.0,)),
        ),
    )  # fmt: skip
    with pytest.raises(InvalidParameter, match="one value each") as error:
        calibration.check_noise(table, pointer="/noise")
    assert error.value.pointer == "/noise/azimuth/0"
