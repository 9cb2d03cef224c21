"""What one sensor's reflectance is on another: published linear fits between the bands of MSI, OLI and ETM+.

    OLI = slope × MSI + offset      one `Fit` per band; turned round and put one behind the other as straight lines are

Only coefficients that at least two sources give alike are here. Those of Chastain et al. for ETM+ are not: copies of
their tables 5 and 6 carry a fifth digit on some numbers that looks like a footnote mark, and the paper was not at hand.

References:
    hls: Claverie et al. 2018, The Harmonized Landsat and Sentinel-2 surface reflectance data set, Remote Sensing of
        Environment 219, 145–161; coefficients of product versions 1.5 and 2.0, HLS Product User Guide, section
        "Bandpass adjustment", also at https://hls.gsfc.nasa.gov/algorithms/bandpass-adjustment/.
    chastain-2019: Chastain et al. 2019, Empirical cross sensor comparison of Sentinel-2A and 2B MSI, Landsat-8 OLI, and
        Landsat-7 ETM+ top of atmosphere spectral characteristics over the conterminous United States, Remote Sensing of
        Environment 221, 274–285, table 4; major axis regression, so it may be turned round.
    roy-2016: Roy et al. 2016, Characterization of Landsat-7 to Landsat-8 reflective wavelength and normalized
        difference vegetation index continuity, Remote Sensing of Environment 185, 57–70, table 2, surface; reduced
        major axis, or ordinary least squares, which has coefficients of its own for each direction. The three lines of
        a band should meet in the sensors' means: they do, but for red, where they pass 0.0009 apart as published.
"""

from types import MappingProxyType
from typing import Literal, NamedTuple

Instrument = Literal["msi", "oli", "etm"]
"""Sentinel-2 MultiSpectral Instrument, Landsat 8/9 Operational Land Imager, Landsat 7 Enhanced Thematic Mapper Plus."""

MsiOli = Literal["hls", "chastain-2019"]
EtmOli = Literal["roy-2016-rma", "roy-2016-ols"]

ROLES = ("coastal", "blue", "green", "red", "nir", "swir16", "swir22")
"""Bands that the instruments have in common, by common name; ETM+ has no coastal one."""


class Fit(NamedTuple):
    """Reflectance on the target = `slope` × reflectance + `offset`."""

    slope: float
    offset: float

    def inverse(self) -> "Fit":
        """The same line, read the other way."""
        return Fit(1.0 / self.slope, -self.offset / self.slope)

    def then(self, other: "Fit") -> "Fit":
        """This line, and `other` of its result."""
        return Fit(self.slope * other.slope, self.offset * other.slope + other.offset)


SAME = Fit(1.0, 0.0)


def _fits(slopes: str, offsets: str, roles: tuple[str, ...] = ROLES[1:]) -> MappingProxyType[str, Fit]:
    pairs = zip(roles, map(float, slopes.split()), map(float, offsets.split()), strict=True)
    return MappingProxyType({role: Fit(slope, offset) for role, slope, offset in pairs})


HLS_MSI_TO_OLI = MappingProxyType({
    "sentinel-2a": _fits(
        "0.9959 0.9778 1.0053 0.9765 0.9983 0.9987 1.0030", "-0.0002 -0.0040 -0.0009 0.0009 -0.0001 -0.0011 -0.0012",
        ROLES,
    ),
    "sentinel-2b": _fits(
        "0.9959 0.9778 1.0075 0.9761 0.9966 1.0000 0.9867", "-0.0002 -0.0040 -0.0008 0.0010 0.0000 -0.0003 0.0004",
        ROLES,
    ),
})  # fmt: skip
"""By spacecraft. `nir` is MSI's narrow band 8A."""

CHASTAIN_OLI_TO_MSI = _fits("1.0946 1.0043 1.0524 0.8954 1.0049 1.0002", "-0.0107 0.0026 -0.0015 0.0033 0.0065 0.0046")
"""Of both spacecraft, at the top of the atmosphere. `nir` is MSI's broad band 8."""

ROY_RMA_ETM_TO_OLI = _fits(
    "0.9785 0.9542 0.9825 1.0073 1.0171 0.9949", "-0.0095 -0.0016 -0.0022 -0.0021 -0.0030 0.0029"
)
ROY_OLS_ETM_TO_OLI = _fits("0.8474 0.8483 0.9047 0.8462 0.8937 0.9071", "0.0003 0.0088 0.0061 0.0412 0.0254 0.0172")
ROY_OLS_OLI_TO_ETM = _fits("0.8850 0.9317 0.9372 0.8339 0.8639 0.9165", "0.0183 0.0123 0.0123 0.0448 0.0306 0.0116")


def instrument_of(platform: str) -> Instrument | None:
    """The instrument of a spacecraft called as STAC does (`sentinel-2a`, `landsat-8`), None for others."""
    return {
        "sentinel-2a": "msi",
        "sentinel-2b": "msi",
        "landsat-7": "etm",
        "landsat-8": "oli",
        "landsat-9": "oli",
    }.get(platform)  # pyright: ignore[reportReturnType]


def fits(
    platform: str,
    target: Instrument,
    *,
    target_platform: str = "sentinel-2a",
    msi_oli: MsiOli = "hls",
    etm_oli: EtmOli = "roy-2016-rma",
) -> dict[str, Fit]:
    """Per band that both have, the line from a spacecraft's reflectance to that of an instrument.

    Between MSI and ETM+ there is no table: the way goes over OLI, the reference of both others.

    Args:
        platform: a spacecraft that `instrument_of` knows.
        target: what the reflectance is to look like.
        target_platform: which Sentinel-2 it is when `target` is MSI and the table tells them apart.
        msi_oli: table between MSI and OLI.
        etm_oli: table between ETM+ and OLI.
    """
    source = instrument_of(platform)
    if source == target and (source != "msi" or platform == target_platform or msi_oli != "hls"):
        return dict.fromkeys(ROLES if source != "etm" else ROLES[1:], SAME)
    to_oli = _to_oli(source, platform, msi_oli, etm_oli)
    from_oli = _from_oli(target, target_platform, msi_oli, etm_oli)
    return {role: to_oli[role].then(from_oli[role]) for role in ROLES if role in to_oli and role in from_oli}


def _to_oli(source: Instrument | None, platform: str, msi_oli: MsiOli, etm_oli: EtmOli) -> dict[str, Fit]:
    if source == "msi":
        if msi_oli == "hls":
            return dict(HLS_MSI_TO_OLI[platform])
        return {role: fit.inverse() for role, fit in CHASTAIN_OLI_TO_MSI.items()}
    if source == "etm":
        return dict(ROY_RMA_ETM_TO_OLI if etm_oli == "roy-2016-rma" else ROY_OLS_ETM_TO_OLI)
    return dict.fromkeys(ROLES, SAME)


def _from_oli(target: Instrument, platform: str, msi_oli: MsiOli, etm_oli: EtmOli) -> dict[str, Fit]:
    if target == "msi":
        if msi_oli == "hls":
            return {role: fit.inverse() for role, fit in HLS_MSI_TO_OLI[platform].items()}
        return dict(CHASTAIN_OLI_TO_MSI)
    if target == "etm":
        if etm_oli == "roy-2016-ols":
            return dict(ROY_OLS_OLI_TO_ETM)
        return {role: fit.inverse() for role, fit in ROY_RMA_ETM_TO_OLI.items()}
    return dict.fromkeys(ROLES, SAME)
