"""The tables between sensors: the published numbers, and the laws they must obey."""

import itertools

import numpy as np
import pytest

from eorouter_compute import bandpass
from eorouter_compute.bandpass import ROLES, SAME, Fit

# HLS, "Coefficients of linear regression used to adjust from Sentinel-2A,B/MSI to Landsat 8/OLI": slope and offset of
# 2A, slope and offset of 2B, as https://hls.gsfc.nasa.gov/algorithms/bandpass-adjustment/ prints them.
HLS = """
coastal 0.9959 -0.0002 0.9959 -0.0002
blue    0.9778 -0.004  0.9778 -0.004
green   1.0053 -0.0009 1.0075 -0.0008
red     0.9765  0.0009 0.9761  0.001
nir     0.9983 -0.0001 0.9966  0.000
swir16  0.9987 -0.0011 1.000  -0.0003
swir22  1.003  -0.0012 0.9867  0.0004
"""


def test_hls_table_is_the_published_one():
    rows = [line.split() for line in HLS.split("\n") if line]
    assert [row[0] for row in rows] == list(ROLES)
    for role, *numbers in rows:
        slope_a, offset_a, slope_b, offset_b = map(float, numbers)
        assert bandpass.HLS_MSI_TO_OLI["sentinel-2a"][role] == (slope_a, offset_a)
        assert bandpass.HLS_MSI_TO_OLI["sentinel-2b"][role] == (slope_b, offset_b)


@pytest.mark.parametrize("role", ROLES[1:])
def test_roys_two_regressions_agree_with_each_other(role):
    """The slope of the reduced major axis is the root of the quotient of the two least-squares slopes; both were typed
    from the table on their own."""
    forth, back = bandpass.ROY_OLS_ETM_TO_OLI[role], bandpass.ROY_OLS_OLI_TO_ETM[role]
    assert bandpass.ROY_RMA_ETM_TO_OLI[role].slope == pytest.approx(np.sqrt(forth.slope / back.slope), abs=6e-5)
    # Every regression line passes through the means of both sensors, so three lines meet in one point: to the digits
    # given in five bands, and 0.0009 apart in red, in every copy of the table that was found.
    rma = bandpass.ROY_RMA_ETM_TO_OLI[role]
    etm = (back.offset + back.slope * forth.offset) / (1 - forth.slope * back.slope)
    apart = abs((etm * rma.slope + rma.offset) - (etm * forth.slope + forth.offset))
    assert apart < (1e-3 if role == "red" else 2e-4)


def test_a_fit_turned_round_and_put_behind_itself_is_nothing():
    fit = Fit(0.9765, 0.0009)
    back = fit.then(fit.inverse())
    assert back == pytest.approx(SAME, abs=1e-15)


@pytest.mark.parametrize(
    ("platform", "target"),
    [*itertools.product(["sentinel-2a", "sentinel-2b", "landsat-7", "landsat-8", "landsat-9"], ["msi", "oli", "etm"])],
)
def test_every_way_keeps_dark_dark_and_bright_bright(platform, target):
    for msi_oli, etm_oli in itertools.product(["hls", "chastain-2019"], ["roy-2016-rma", "roy-2016-ols"]):
        found = bandpass.fits(platform, target, msi_oli=msi_oli, etm_oli=etm_oli)
        crosses_etm = "landsat-7" in platform or target == "etm"
        assert len(found) >= 6
        assert ("coastal" in found) == (
            not crosses_etm and not (msi_oli == "chastain-2019" and ("sentinel" in platform) != (target == "msi"))
        )
        for fit in found.values():
            assert 0.7 < fit.slope < 1.35
            assert abs(fit.offset) < 0.06


def test_ways_through_oli_are_the_two_lines_one_after_the_other():
    way = bandpass.fits("sentinel-2b", "etm")["red"]
    at_oli = 0.9761 * 0.1 + 0.0010
    assert way.slope * 0.1 + way.offset == pytest.approx((at_oli + 0.0022) / 0.9825, rel=1e-12)
    assert bandpass.fits("landsat-8", "oli")["red"] == SAME
    assert bandpass.fits("sentinel-2a", "msi", target_platform="sentinel-2a")["nir"] == SAME
    between = bandpass.fits("sentinel-2a", "msi", target_platform="sentinel-2b")["swir22"]
    assert between.slope == pytest.approx(1.0030 / 0.9867)


def test_chastain_is_turned_round_on_the_way_to_oli():
    way = bandpass.fits("sentinel-2a", "oli", msi_oli="chastain-2019")["nir"]
    assert 0.8954 * (way.slope * 0.3 + way.offset) + 0.0033 == pytest.approx(0.3, rel=1e-12)


def test_instruments_by_platform():
    assert [bandpass.instrument_of(p) for p in ("sentinel-2a", "landsat-7", "landsat-9", "sentinel-2c", "")] == [
        "msi",
        "etm",
        "oli",
        None,
        None,
    ]
