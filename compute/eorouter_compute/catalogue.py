"""The catalogue of spectral indices, and how its letters find the bands of an item.

The formulas are those of Awesome Spectral Indices (Montero et al. 2023, Scientific Data 10, 197), read as data from
the installed `spyndex` distribution; that package is never imported and its evaluator never called. A formula is
written in letters (N, R, S1 …) and parameters (L, g, sigma …). Kernel indices use terms such as kNR, the kernel of
bands N and R; `KERNELS` says what a kernel is.

Here too: what a stored number of a Sentinel-2 product is worth (`scaling`), because every formula depends on it.
"""

import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from eorouter_compute.errors import BandNotFound, InvalidParameter, UnknownIndex
from eorouter_compute.expression import Program, compile_expressions
from eorouter_compute.method import Band, InputItem, RasterAsset

# k(a, b) of the kernel indices. Reference: Camps-Valls et al. 2021, "A unified vegetation index for quantifying the
# terrestrial biosphere", Science Advances 7(9), eabc7447, equations 2 and 3 and supplement S1.
KERNELS = {
    "RBF": "exp((-1.0 * ({a} - {b}) ** 2.0) / (2.0 * sigma ** 2.0))",
    "linear": "({a} * {b})",
    "poly": "(({a} * {b} + c) ** p)",
}
_KERNEL_PARAMETERS = {"RBF": ("sigma",), "linear": (), "poly": ("c", "p")}
_KERNEL_TERM = re.compile(r"\bk([A-Z])([A-Z])\b")
# The catalogue's own note on epsilon: "For WCx indices use epsilon = 1e-10"; its table has one default per parameter.
_OWN_DEFAULTS = {"WCI1": {"epsilon": 1e-10}, "WCI2": {"epsilon": 1e-10}}
_POLARISATIONS = ("HH", "HV", "VH", "VV")
# Names other catalogues give a letter's band, after the common name of the table. Landsat 8 and 9 have a narrow near
# infrared only, which the table knows as N2; it lies inside the range of N.
_ALIASES = {
    "N": ("nir08",), "N2": ("nir_narrow",), "RE1": ("rededge1", "rededge"), "RE2": ("rededge2",), "RE3": ("rededge3",),
    "S1": ("swir1",), "S2": ("swir2",),
}  # fmt: skip
_FALLBACK = {"N": "N2"}
_SENSORS = {
    "sentinel2": "sentinel2a", "sentinel2c": "sentinel2a", "worldview2": "wv2", "worldview3": "wv3", "terra": "modis",
    "aqua": "modis", "wv02": "wv2", "wv03": "wv3",
}  # fmt: skip
_BAND_NUMBER = re.compile(r"(?:\w+_)?B0*([0-9]+A?)", re.IGNORECASE)
_NOT_REFLECTANCE = {"scl", "aot", "wvp", "cld", "snw", "cloud", "snow", "visual", "tci"}


class SpectralIndex(Struct, frozen=True, kw_only=True):
    """One index.

    Attributes:
        formula: as published, in letters, parameters and kernel terms.
        bands: letters the formula needs, kernel terms resolved.
        parameters: numbers the formula needs, with their defaults; None where the caller must give one.
        is_kernel: the formula has kernel terms; parameters of the kernel come on top (see `KERNELS`).
        domain: vegetation, water, burn, urban, soil, snow, clouds, radar or kernel.
    """

    short_name: str
    long_name: str
    formula: str
    bands: tuple[str, ...]
    parameters: dict[str, float | None]
    is_kernel: bool
    domain: str
    platforms: tuple[str, ...]
    reference: str
    contributor: str
    added: str


class SensorBand(Struct, frozen=True, kw_only=True):
    """The band of one sensor that a letter stands for."""

    band: str
    name: str
    wavelength_nm: float


class Letter(Struct, frozen=True, kw_only=True):
    """A band as the formulas call it."""

    letter: str
    long_name: str
    common_name: str | None
    wavelength_nm: tuple[float, float] | None
    sensors: dict[str, SensorBand]


class Scaling(NamedTuple):
    """Physical value = stored × `scale` + `offset`; `source` says who says so."""

    scale: float
    offset: float
    source: str


@cache
def _data(name: str) -> Any:
    spec = importlib.util.find_spec("spyndex")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The catalogue of spectral indices is missing: pip install 'eorouter[worker]'.")
    return msgspec.json.decode((Path(spec.submodule_search_locations[0]) / "data" / name).read_bytes())


@cache
def letters() -> MappingProxyType[str, Letter]:
    """Every letter by name: the optical and thermal bands and the radar polarisations."""
    found = {
        letter: Letter(
            letter=letter,
            long_name=record["long_name"],
            common_name=record["common_name"],
            wavelength_nm=(float(record["min_wavelength"]), float(record["max_wavelength"])),
            sensors={
                sensor: SensorBand(band=band["band"], name=band["name"], wavelength_nm=float(band["wavelength"]))
                for sensor, band in record["platforms"].items()
            },
        )
        for letter, record in _data("bands.json").items()
    }
    for polarisation in _POLARISATIONS:
        found[polarisation] = Letter(
            letter=polarisation,
            long_name=f"Radar backscatter, {polarisation} polarisation",
            common_name=None,
            wavelength_nm=None,
            sensors={},
        )
    return MappingProxyType(found)


@cache
def indices() -> MappingProxyType[str, SpectralIndex]:
    """Every index of the catalogue by short name, sorted."""
    defaults = {name: record["default"] for name, record in _data("constants.json").items()}
    found: dict[str, SpectralIndex] = {}
    for name, record in sorted(_data("spectral-indices-dict.json")["SpectralIndices"].items()):
        terms = [part for term in record["bands"] for part in _parts(term)]
        own = _OWN_DEFAULTS.get(name, {})
        found[name] = SpectralIndex(
            short_name=name,
            long_name=record["long_name"],
            formula=record["formula"],
            bands=tuple(dict.fromkeys(term for term in terms if term in letters())),
            parameters={term: own.get(term, defaults[term]) for term in terms if term not in letters()},
            is_kernel=_KERNEL_TERM.search(record["formula"]) is not None,
            domain=record["application_domain"],
            platforms=tuple(record["platforms"]),
            reference=record["reference"],
            contributor=record["contributor"],
            added=record["date_of_addition"],
        )
    return MappingProxyType(found)


def _parts(term: str) -> tuple[str, ...]:
    kernel = _KERNEL_TERM.fullmatch(term)
    return kernel.groups() if kernel else (term,)


def index(short_name: str, *, pointer: str = "") -> SpectralIndex:
    """The index of that short name; case matters (BAI is a burn index, BaI a soil index).

    Raises:
        UnknownIndex: there is none; the message suggests near ones.
    """
    known = indices()
    if short_name in known:
        return known[short_name]
    folded: dict[str, list[str]] = {}
    for name in known:
        folded.setdefault(name.casefold(), []).append(name)
    near = [
        name
        for key in difflib.get_close_matches(short_name.casefold(), folded, n=5, cutoff=0.6)
        for name in folded[key]
    ]
    if not near:
        near = [name for name, record in known.items() if short_name.casefold() in record.long_name.casefold()][:5]
    advice = f"Near: {', '.join(near)}." if near else f"The catalogue has {len(known)}, such as NDVI, EVI, NDWI, NBR."
    raise UnknownIndex(f"There is no spectral index {short_name!r}. {advice}", pointer=pointer, suggestions=near)


def compile_indices(
    records: Sequence[SpectralIndex],
    *,
    parameters: Mapping[str, float] | None = None,
    kernel: str = "RBF",
    sensor: str | None = None,
) -> Program:
    """Compile indices into one program over the letters they need.

    Args:
        records: the indices, one output each.
        parameters: values that replace the defaults.
        kernel: what kernel terms mean, a key of `KERNELS`.
        sensor: the sensor whose central wavelengths fill `lambdaN`, `lambdaR` …, as `sensor_of` gives it.

    Raises:
        InvalidParameter: a parameter is unknown to all of them, or has no default and was not given.
    """
    if kernel not in KERNELS:
        raise InvalidParameter(f"There is no kernel {kernel!r}. There are: {', '.join(KERNELS)}.", pointer="/kernel")
    given = dict(parameters or {})
    used: set[str] = set()
    texts: list[str] = []
    for record in records:
        values = parameters_of(record, parameters=given, kernel=kernel, sensor=sensor)
        used |= values.keys()
        text = _KERNEL_TERM.sub(lambda term: KERNELS[kernel].format(a=term[1], b=term[2]), record.formula)
        # Two indices may give one parameter two values (epsilon), so it is put into the text, exactly, not shared.
        names = "|".join(re.escape(name) for name in values)
        texts.append(re.sub(rf"\b(?:{names})\b", lambda m, v=values: f"({v[m[0]]!r})", text) if names else text)
    if strange := sorted(given.keys() - used):
        raise InvalidParameter(
            f"{', '.join(record.short_name for record in records)} take no parameter {', '.join(strange)}. "
            f"They take: {', '.join(sorted(used)) or 'none'}.",
            pointer=f"/parameters/{strange[0]}",
        )
    return compile_expressions(texts, {letter for record in records for letter in record.bands})


def parameters_of(
    record: SpectralIndex, *, parameters: Mapping[str, float], kernel: str = "RBF", sensor: str | None = None
) -> dict[str, float]:
    """The value of every parameter an index needs.

    Raises:
        InvalidParameter: one has no default and was not given; the message says what it is.
    """
    constants = _data("constants.json")
    wanted: dict[str, float | None] = dict(record.parameters)
    if record.is_kernel:
        wanted |= {name: constants[name]["default"] for name in _KERNEL_PARAMETERS[kernel]}
    values: dict[str, float] = {}
    for name, default in wanted.items():
        value = parameters.get(name, default)
        if value is None and sensor is not None and name.startswith("lambda"):
            band = letters()[name.removeprefix("lambda")].sensors.get(sensor)
            value = band.wavelength_nm if band else None
        if value is None:
            raise InvalidParameter(
                f"{record.short_name} needs the parameter {name} ({constants[name]['description']}), which has no "
                f'default: give it as "parameters": {{"{name}": …}}.',
                pointer=f"/parameters/{name}",
            )
        values[name] = float(value)
    return values


def sensor_of(item: InputItem) -> str | None:
    """The item's sensor as the tables call it (sentinel2a, landsat8 …), from `platform` or `constellation`."""
    known = {sensor for letter in letters().values() for sensor in letter.sensors}
    for key in ("platform", "constellation"):
        name = re.sub(r"[^a-z0-9]", "", str(item.properties.get(key, "")).lower())
        name = _SENSORS.get(name, name)
        if name in known:
            return name
    return None


def is_made_by(record: SpectralIndex, sensor: str) -> bool:
    """Whether a sensor of the tables has a band for every letter of an index, the narrow infrared standing for N."""
    known = letters()
    return all(
        sensor in known[letter].sensors or sensor in known[_FALLBACK.get(letter, letter)].sensors
        for letter in record.bands
    )


def resolve(item: InputItem, letter: str, *, bands: Mapping[str, str] | None = None) -> tuple[RasterAsset, Band]:
    """The band of an item that a letter stands for.

    In this order: the caller's map; the letter's common name (as common name, band name or asset key); the band number
    of the item's sensor; the letter itself as a band name.

    Raises:
        BandNotFound: none, or more than one and no way to choose; names the bands there are.
    """
    if bands and letter in bands:
        return item.band(bands[letter])
    known = letters()[letter]
    names = [known.common_name, *_ALIASES.get(letter, ())]
    for name in names:
        if name and (pair := _only(_called(item, name), name)):
            return pair
    sensor = sensor_of(item)
    for number in (known, letters().get(_FALLBACK.get(letter, ""))):
        if number and sensor in number.sensors and (pair := _numbered(item, number.sensors[sensor].band)):
            return pair
    for name in (letter, letter.lower()) if letter in _POLARISATIONS else (letter,):
        if pair := _only(_called(item, name), name):
            return pair
    raise _not_found(item, known)


def _called(item: InputItem, name: str) -> list[tuple[RasterAsset, Band]]:
    return [
        (asset, band)
        for asset, band in item.bands
        if name in (band.common_name, band.name) or (asset.key == name and len(asset.bands) == 1)
    ]


def _only(pairs: list[tuple[RasterAsset, Band]], name: str) -> tuple[RasterAsset, Band] | None:
    """The one pair; of several, the one whose asset or band has the very name (assets red and red-jp2 share `red`)."""
    for is_exact in (lambda a, b: True, lambda a, b: b.name == name, lambda a, b: a.key == name):
        found = [(asset, band) for asset, band in pairs if is_exact(asset, band)]
        if len(found) == 1:
            return found[0]
    return None


def _numbered(item: InputItem, number: str) -> tuple[RasterAsset, Band] | None:
    """The band with a sensor's number, however written: B8A, B08A, SR_B8A, OLI_B8A."""
    found = [
        (asset, band)
        for asset, band in item.bands
        if (match := _BAND_NUMBER.fullmatch(band.name)) and f"B{match[1].upper()}" == number
    ]
    return _only(found, number)


def _not_found(item: InputItem, letter: Letter) -> BandNotFound:
    present = ", ".join(
        f"{asset.key}:{band.name}" + (f" ({band.common_name})" if band.common_name else "")
        for asset, band in item.bands
    )
    called = f", common name {letter.common_name}" if letter.common_name else ""
    return BandNotFound(
        f"Item {item.id}: no single band is {letter.letter} ({letter.long_name}{called}). "
        f'It has: {present or "no raster bands"}. Say which: "bands": {{"{letter.letter}": "<band>"}}.',
        pointer=f"/bands/{letter.letter}",
        band=letter.letter,
    )


def scaling(item: InputItem, band: Band) -> Scaling:
    """How stored numbers of a band become physical values: what is declared, with Sentinel-2's two traps.

    Since processing baseline 04.00 (25 January 2022) Sentinel-2 products store reflectance × 10,000 + 1,000.

    1. Earth Search removes the 1,000 from its copies, says so in `earthsearch:boa_offset_applied`, and still declares
       the offset of −0.1 on their bands: the flag wins over the declared offset.
    2. Items that declare no scale at all get the product's own by their processing baseline.

    Whatever else is declared is applied as it stands, once.
    """
    properties = item.properties
    baseline = properties.get("s2:processing_baseline", properties.get("sentinel:processing_baseline"))
    is_declared = band.scale != 1.0 or band.offset != 0.0
    is_stored_reflectance = "int" in band.dtype and band.name.lower() not in _NOT_REFLECTANCE
    if baseline is not None and is_stored_reflectance:
        flags = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
        if flag := next((flag for flag in flags if properties.get(flag) is True), None):
            return Scaling(band.scale if band.scale != 1.0 else 1e-4, 0.0, flag)
        if not is_declared and (number := re.fullmatch(r"0?(\d+)\.\d+", str(baseline))):
            return Scaling(1e-4, -0.1 if int(number[1]) >= 4 else 0.0, f"Sentinel-2 processing baseline {baseline}")
    return Scaling(band.scale, band.offset, "declared" if is_declared else "as stored")
