"""Radiometric correction: digital numbers to radar brightness, or to radiance and reflectance above the atmosphere.

Three ways to say what a number is worth: the tables of a Sentinel-1 product, which vary over the image; a constant in
decibels, as for ALOS PALSAR, with the incidence angle where another area is asked for; gains and offsets with the sun's
place, as for Landsat. What is stored are the digital numbers: a scale that a band declares is not applied to them.
Every asset stays on its own grid; an incidence angle on another is brought there by bilinear interpolation.
"""

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import calibration, operands, product, raster
from eorouter_compute.attempt import Attempt
from eorouter_compute.calibration import NoiseTable, Quantity, Vector
from eorouter_compute.catalogue import Scaling
from eorouter_compute.cog import CogSpec, Pixels
from eorouter_compute.errors import BandNotFound, InvalidParameter
from eorouter_compute.expression import Operand, Program, compile_expression, evaluate
from eorouter_compute.grid import Window
from eorouter_compute.method import (
    Band,
    FailedRead,
    InputItem,
    Kind,
    Method,
    Params,
    Part,
    Plan,
    RasterAsset,
    ReadReport,
    Result,
    by_asset,
    total,
)
from eorouter_compute.product import NumberedShard
from eorouter_kernels import radiometry

ITEM_LIMIT = 50
_POLE_DEGREES = 1e-9
_NOWHERE = np.empty((0, 0), np.bool_)
_QUIET = np.empty((0, 0))
_KEPT_PROPERTIES = ("platform", "constellation", "instruments", "gsd", "sat:orbit_state", "sat:relative_orbit",
                    "sar:instrument_mode", "sar:frequency_band", "view:sun_elevation", "view:sun_azimuth")  # fmt: skip
_SYMBOL = {"beta0": "β⁰", "sigma0": "σ⁰", "gamma0": "γ⁰"}
# What a brightness is of σ⁰ at the incidence angle (radians): β⁰ = σ⁰ / sin θ, γ⁰ = σ⁰ / cos θ.
_OF_SIGMA = {"beta0": "(1 / sin(t))", "sigma0": "1", "gamma0": "(1 / cos(t))"}

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Annotation = Annotated[str, Meta(min_length=1, max_length=calibration.TEXT_MAX)]


class BandTables(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What turns the digital numbers of one polarisation into brightness.

    Attributes:
        vectors: the text of the product's `calibration-….xml`, or its vectors of the wanted quantity.
        noise: the text of its `noise-….xml`, or the parsed table; thermal noise is then removed.
    """

    vectors: Annotation | Annotated[tuple[Vector, ...], Meta(min_length=1, max_length=calibration.VECTORS_MAX)]
    noise: Annotation | NoiseTable | None = None


class Sentinel1(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="sentinel1"):
    """(DN² − noise) / A², A interpolated in the product's tables; for detected products in the geometry of the image.

    Attributes:
        bands: tables by band, one entry per band to correct, in the order of the output.
        quantity: what the numbers become, per area in the slant range, on the ground, or across the beam.
        origin: line and column of the product's image that the raster begins on; for a raster that was cut out.
    """

    bands: Annotated[dict[Name, BandTables], Meta(min_length=1, max_length=8)]
    quantity: Quantity = "sigma0"
    origin: Annotated[tuple[int, ...], Meta(min_length=2, max_length=2)] = (0, 0)


class Constant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="constant"):
    """10 log₁₀(DN²) + K, for products with one absolute calibration constant.

    Attributes:
        factor_db: K in decibels; −83 for ALOS PALSAR and PALSAR-2.
        factor_quantity: what K is for.
        quantity: what the numbers become; another than `factor_quantity` needs the incidence angle.
        stored: whether a digital number is an amplitude, and squared, or already an intensity.
        incidence_angle: degrees from the vertical, above 0 and below 90, or the name of a band that holds it; where the
            band holds another number, the result is missing.
        bands: bands to correct; all but the incidence angle by default.
    """

    factor_db: Annotated[float, Meta(ge=-300, le=300)]
    factor_quantity: Quantity = "sigma0"
    quantity: Quantity = "sigma0"
    stored: Literal["amplitude", "intensity"] = "amplitude"
    incidence_angle: float | Name | None = None
    bands: Annotated[tuple[Name, ...], Meta(max_length=256)] = ()


class Gain(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Radiance or reflectance = DN × `gain` + `offset`.

    Attributes:
        gain: per digital number.
        offset: in the unit of the result.
        of: what gain and offset give; reflectance is Landsat's, not yet divided by the sine of the sun's elevation.
        solar_irradiance: mean exoatmospheric irradiance of the band, W m⁻² µm⁻¹; needed to go from one to the other.
    """

    gain: float
    offset: float = 0.0
    of: Literal["radiance", "reflectance"] = "reflectance"
    solar_irradiance: Annotated[float, Meta(gt=0)] | None = None


class Optical(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="optical"):
    """Radiance or reflectance at the top of the atmosphere, from gains and offsets such as those of Landsat's MTL file.

    Attributes:
        bands: gains by band, one entry per band to correct, in the order of the output.
        quantity: reflectance, or radiance in W m⁻² sr⁻¹ µm⁻¹.
        sun_elevation: degrees above the horizon at the scene's centre; by default the item's `view:sun_elevation`.
        earth_sun_distance: astronomical units; by default that of the item's date.
    """

    bands: Annotated[dict[Name, Gain], Meta(min_length=1, max_length=256)]
    quantity: Literal["radiance", "reflectance"] = "reflectance"
    sun_elevation: Annotated[float, Meta(gt=0, le=90)] | None = None
    earth_sun_distance: Annotated[float, Meta(ge=0.9, le=1.1)] | None = None


class RadiometricCorrectionParams(Params, frozen=True, kw_only=True, tag="radiometric_correction"):
    """Turn digital numbers into radar brightness (β⁰, σ⁰, γ⁰) or into radiance and reflectance above the atmosphere.

    Every input item gives one item; every asset with a band to correct gives one float32 COG on its own grid, NaN where
    there is no value.

    Attributes:
        calibration: "sentinel1" with the product's tables, "constant" with one factor, or "optical" with gains.
        scale: radar brightness as a ratio or in decibels; optical quantities are linear.
        zero_is_missing: a digital number of 0 is no measurement, as at the rim of Sentinel-1 and Landsat scenes.
        allow_missing: windows of sources that cannot be read count as missing and are listed in the read report.
    """

    calibration: Sentinel1 | Constant | Optical
    scale: Literal["linear", "db"] = "linear"
    zero_is_missing: bool = True
    allow_missing: bool = False


class _Law(Struct, frozen=True, kw_only=True):
    """How one band becomes physical: by tables, or by a program over `dn` and, in radians, `t`."""

    vectors: tuple[Vector, ...] = ()
    noise: NoiseTable | None = None
    program: Program | None = None


class _Target(Struct, frozen=True, kw_only=True):
    """One output COG: bands of one asset, a law for each, and where the incidence angle is read."""

    item: InputItem
    asset: RasterAsset
    indexes: tuple[int, ...]
    laws: tuple[_Law, ...]
    angle: tuple[operands.Source, ...]
    spec: CogSpec


def earth_sun_distance(at: datetime) -> float:
    """Distance of the Earth from the Sun in astronomical units, to about 2e-4.

    Reference: The Astronomical Almanac, section C, low-precision formulas for the Sun:
    R = 1.00014 − 0.01671 cos g − 0.00014 cos 2g, g = 357.528° + 0.9856003° n, n days from 2000-01-01 12:00.
    """
    days = (at - datetime(2000, 1, 1, 12, tzinfo=at.tzinfo)).total_seconds() / 86_400
    anomaly = math.radians(357.528 + 0.9856003 * days)
    return 1.00014 - 0.01671 * math.cos(anomaly) - 0.00014 * math.cos(2 * anomaly)


def plan(params: RadiometricCorrectionParams, inputs: Sequence[InputItem]) -> Plan:
    """Cut every output into shards."""
    if not inputs:
        raise InvalidParameter("radiometric_correction needs at least one input item.", pointer="/inputs")
    shards, merges = [], []
    for number, target in enumerate(_targets(params, inputs)):
        size, count = np.dtype(target.asset.bands[0].dtype).itemsize, len(target.indexes)
        read = product.read_bytes_per_pixel(target.asset, target.asset.window)
        held = count * (2 * size + 8) + operands.bytes_held(target.angle) + _table_bytes(target)
        # Decibels take a logarithm per pixel.
        seconds = count * (1.2e-8 * size + (2.5e-8 if params.scale == "db" else 6e-9))
        for made in product.plan_product(
            target.spec,
            bytes_read_per_pixel=read + sum(operands.bytes_read(source) for source in target.angle),
            memory_bytes_per_pixel=held,
            seconds_per_pixel=seconds + (6e-8 if target.angle else 0.0),
        ):
            bound = msgspec.structs.replace(
                made.bound, memory_bytes=made.bound.memory_bytes + operands.bytes_beside(target.angle)
            )
            shards.append(product.numbered(msgspec.structs.replace(made, bound=bound), number))
        merges.append(product.merge_bound(target.spec))
    return Plan(shards=tuple(shards), merge_bound=total(merges))


def _table_bytes(target: _Target) -> float:
    """Bytes of tables and noise per pixel of a piece: a table has no more lines than the piece, and two."""
    lines = max(len(law.vectors) + (len(law.noise.range) if law.noise else 0) for law in target.laws)
    return 8.0 * min(2.0, (lines + 4) / 512) + (8.0 if any(law.noise for law in target.laws) else 0.0)


def run(params: RadiometricCorrectionParams, inputs: Sequence[InputItem], body: bytes, attempt: Attempt) -> Part:
    """Read, correct and encode one shard."""
    shard = msgspec.msgpack.decode(body, type=NumberedShard)
    target = _targets(params, inputs)[shard.number]
    reports: list[ReadReport] = []

    def compute(window: Window) -> Pixels:
        failed: list[FailedRead] = []
        if params.allow_missing:
            block = raster.read_tolerant(target.asset, target.indexes, window, failed)
        else:
            block = raster.read_block(target.asset, target.indexes, window)
        angle = _angles(target, window, failed if params.allow_missing else None)
        out = np.empty(block.pixels.shape, np.float32)
        known = np.zeros(out.shape[1:], np.bool_)
        for place, law in enumerate(target.laws):
            valid = None if block.valid is None else block.valid[place]
            if params.zero_is_missing:
                data = block.pixels[place] != 0
                valid = data if valid is None else valid & data
            _correct(params, law, block.pixels[place], valid, angle=angle, window=window, out=out[place])
            known |= ~np.isnan(out[place])
        reads = 1 + len(target.angle)
        reports.append(
            ReadReport(
                reads=reads, pixels=window.pixels, valid_pixels=int(np.count_nonzero(known)), failed=tuple(failed)
            )
        )
        return out, None

    part = product.run_product(target.spec, shard.body, attempt, compute, lambda: sum(reports, ReadReport()))
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(NumberedShard(shard.number, part.body)))


def _angles(target: _Target, window: Window, failed: list[FailedRead] | None) -> dict[str, Operand]:
    """The incidence angle of a window, by its name in the formulas; as a number must, it lies between 0 and 90 degrees.

    Both ends are poles of the formulas: rounding of stored × scale must not carry an angle past them.
    """
    found = operands.read(target.angle, window, failed=failed)
    for source in target.angle:
        for name, band, _ in source.bands:
            pixels, valid = found[name].pixels, found[name].valid
            degrees = pixels * np.float64(band.scale) + band.offset
            known = (degrees > _POLE_DEGREES) & (degrees < 90.0 - _POLE_DEGREES)
            found[name] = found[name]._replace(valid=known if valid is None else known & valid)
    return found


def _correct(
    params: RadiometricCorrectionParams,
    law: _Law,
    pixels: np.ndarray,
    valid: np.ndarray | None,
    *,
    angle: dict[str, Operand],
    window: Window,
    out: np.ndarray,
) -> None:
    """One band of a window, into `out` (y, x) float32."""
    if law.program is not None:
        values = {"dn": Operand(pixels, valid=valid)} | angle
        out[:] = evaluate(law.program, {name: values[name] for name in law.program.names})[0]
        return
    chosen = params.calibration
    origin = (chosen.origin[0], chosen.origin[1]) if isinstance(chosen, Sentinel1) else (0, 0)
    table, lines = calibration.at_columns(law.vectors, window, origin)
    noise = _QUIET if law.noise is None else calibration.noise_power(law.noise, window, origin)
    radiometry.calibrate(
        np.ascontiguousarray(pixels),
        _NOWHERE if valid is None else np.ascontiguousarray(valid),
        table,
        lines,
        window.row,
        noise,
        params.scale == "db",
        out,
    )


def merge(
    params: RadiometricCorrectionParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt
) -> Result:
    """Put every COG together and make the items."""
    every = _targets(params, inputs)
    by_target = product.by_number(parts)
    report = sum((part.report for part in parts), start=ReadReport())
    quantity = params.calibration.quantity
    items = []
    for number, item in enumerate(inputs):
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', item.id)[:80]}_{quantity}"
        name += f"_{number}" if len(inputs) > 1 else ""
        title = f"{item.id}, {_SYMBOL.get(quantity, quantity)}"
        assets = [
            product.merge_asset(
                target.spec, by_target[place], attempt, name=name, asset_key=target.asset.key, title=title
            )
            for place, target in enumerate(every)
            if target.item is item
        ]
        kept = {key: item.properties[key] for key in _KEPT_PROPERTIES if key in item.properties}
        made = {"derived_from": item.id, "eorouter:calibration": _said(params, item)}
        items.append(
            product.item(assets, attempt, name=name, at=item.at, title=title, properties=kept | made, style=None)
        )
    fraction = report.valid_pixels / report.pixels if report.pixels else None
    summary = {"items": len(items), "quantity": quantity, "scale": params.scale, "valid_fraction": fraction}
    return Result(items=tuple(items), summary=summary, report=report)


def _said(params: RadiometricCorrectionParams, item: InputItem) -> dict[str, Any]:
    """What was done, for the item's properties; tables are named, not repeated."""
    chosen = params.calibration
    said: dict[str, Any] = {"quantity": chosen.quantity, "scale": params.scale}
    if isinstance(chosen, Sentinel1):
        noisy = sorted(name for name, tables in chosen.bands.items() if tables.noise is not None)
        return said | {"type": "sentinel1", "noise_removed": noisy}
    if isinstance(chosen, Constant):
        return said | {"type": "constant", "factor_db": chosen.factor_db, "incidence_angle": chosen.incidence_angle}
    gains = {name: msgspec.to_builtins(gain) for name, gain in chosen.bands.items()}
    needs = {part for gain in chosen.bands.values() for part in _needs(chosen.quantity, gain)}
    if "sun_elevation" in needs:
        said["sun_elevation"] = _sun_elevation(chosen, item)
    if "solar_irradiance" in needs:
        said["earth_sun_distance"] = _distance(chosen, item)
    return said | {"type": "optical", "gains": gains}


# What the job makes ---------------------------------------------------------------------------------------------------


def _targets(params: RadiometricCorrectionParams, inputs: Sequence[InputItem]) -> list[_Target]:
    """Every COG the job makes, in a fixed order; the same in planning, running and merging.

    Raises:
        RequestFault: a band is not there, tables cannot be used, or something the formula needs is not known.
    """
    chosen = params.calibration
    if isinstance(chosen, Sentinel1) and len(inputs) > 1:
        raise InvalidParameter(
            f"Sentinel-1 tables belong to one product; {len(inputs)} items were given. Start a job for each.",
            pointer="/inputs",
        )
    if isinstance(chosen, Optical) and params.scale == "db":
        raise InvalidParameter('Decibels are for radar brightness. Leave out "scale".', pointer="/scale")
    return [target for item in inputs for target in _targets_of(params, item)]


def _targets_of(params: RadiometricCorrectionParams, item: InputItem) -> list[_Target]:
    chosen = params.calibration
    angle = _angle(chosen, item) if isinstance(chosen, Constant) else None
    if isinstance(chosen, Constant):
        wanted = chosen.bands or tuple(
            f"{asset.key}:{band.name}" for asset, band in item.bands if angle is None or (asset, band) != angle
        )
        pointers = [f"/calibration/bands/{place}" for place in range(len(wanted))]
    else:
        wanted = tuple(chosen.bands)
        pointers = [f"/calibration/bands/{name}" for name in wanted]
    if not wanted:
        raise InvalidParameter(f"Item {item.id} has no band to correct.", pointer="/inputs")
    entries = []
    for name, pointer in zip(wanted, pointers, strict=True):
        try:
            asset, band = item.band(name)
        except BandNotFound as error:
            raise BandNotFound(error.message, pointer=pointer, **error.data) from None
        entries.append((asset, (band, _law(params, item, name, has_angle=angle is not None))))
    unit = {"db": "dB"}.get(params.scale, "W m-2 sr-1 um-1" if chosen.quantity == "radiance" else None)
    is_angle_read = any(law.program is not None and "angle" in law.program.names for _, (_, law) in entries)
    targets = []
    for asset, pairs in by_asset(entries):
        placed: tuple[operands.Source, ...] = ()
        if angle is not None and is_angle_read:
            band = angle[1]
            named = operands.Named(
                "angle", item, *angle, Scaling(math.radians(band.scale), math.radians(band.offset), "degrees")
            )
            placed = operands.placed([named], asset.grid, resampling="bilinear")
        bands = tuple(
            Band(
                name=band.name,
                index=place,
                dtype="float32",
                common_name=band.common_name,
                unit=unit,
                description=chosen.quantity,
            )
            for place, (band, _) in enumerate(pairs, start=1)
        )
        spec = CogSpec(
            shape=asset.shape,
            transform=asset.transform,
            crs=asset.crs,
            dtype="float32",
            bands=bands,
            nodata=float("nan"),
        )
        targets.append(
            _Target(
                item=item,
                asset=asset,
                indexes=tuple(band.index for band, _ in pairs),
                laws=tuple(law for _, law in pairs),
                angle=placed,
                spec=spec,
            )
        )
    return targets


def _angle(chosen: Constant, item: InputItem) -> tuple[RasterAsset, Band] | None:
    """The band of the incidence angle, if it is one."""
    if not isinstance(chosen.incidence_angle, str):
        return None
    try:
        return item.band(chosen.incidence_angle)
    except BandNotFound as error:
        raise BandNotFound(error.message, pointer="/calibration/incidence_angle", **error.data) from None


def _law(params: RadiometricCorrectionParams, item: InputItem, name: str, *, has_angle: bool) -> _Law:
    chosen = params.calibration
    if isinstance(chosen, Sentinel1):
        tables, pointer = chosen.bands[name], f"/calibration/bands/{name}"
        given, heard = tables.vectors, tables.noise
        vectors = (
            calibration.vectors(given, chosen.quantity, pointer=f"{pointer}/vectors")
            if isinstance(given, str)
            else calibration.check(given, pointer=f"{pointer}/vectors", divides=True)
        )
        if heard is not None:
            where = f"{pointer}/noise"
            heard = (
                calibration.noise(heard, pointer=where)
                if isinstance(heard, str)
                else calibration.check_noise(heard, pointer=where)
            )
        return _Law(vectors=vectors, noise=heard)
    if isinstance(chosen, Constant):
        text = _brightness(chosen, has_angle=has_angle)
        return _Law(program=_compiled(f"10 * log10({text})" if params.scale == "db" else text))
    gain = chosen.bands[name]
    return _Law(program=_compiled(f"(dn * {gain.gain!r} + {gain.offset!r}) * {_sunlight(chosen, item, name)!r}"))


def _compiled(text: str) -> Program:
    return compile_expression(text, [name for name in ("dn", "angle") if re.search(rf"\b{name}\b", text)])


def _brightness(chosen: Constant, *, has_angle: bool) -> str:
    """The formula of a constant, as text over `dn` and `angle` (radians)."""
    power = "dn * dn" if chosen.stored == "amplitude" else "dn"
    text = f"{10.0 ** (chosen.factor_db / 10)!r} * {power}"
    if chosen.quantity == chosen.factor_quantity:
        return text
    if chosen.incidence_angle is None:
        raise InvalidParameter(
            f"From {chosen.factor_quantity} to {chosen.quantity} the incidence angle is needed: give it in degrees, or "
            "the name of a band that holds it.",
            pointer="/calibration/incidence_angle",
        )
    if not has_angle and not 0 < float(chosen.incidence_angle) < 90:
        raise InvalidParameter(
            f"An incidence angle lies between 0 and 90 degrees; got {chosen.incidence_angle}.",
            pointer="/calibration/incidence_angle",
        )
    at = "angle" if has_angle else repr(math.radians(float(chosen.incidence_angle)))
    over, under = _OF_SIGMA[chosen.quantity], _OF_SIGMA[chosen.factor_quantity]
    return f"{text} * ({over} / {under})".replace("(t)", f"({at})")


def _needs(quantity: str, gain: Gain) -> tuple[str, ...]:
    """What a band's formula needs beside gain and offset."""
    needs = () if gain.of == quantity else ("solar_irradiance",)
    return (*needs, "sun_elevation") if quantity == "reflectance" else needs


def _sunlight(chosen: Optical, item: InputItem, name: str) -> float:
    """What DN × gain + offset is multiplied by: the sun's elevation, and the way from radiance to reflectance or back.

    Reference: Landsat 8 Data Users Handbook, LSDS-1574, section 5 (ρ = ρ' / sin θ); Chander, Markham and Helder 2009,
    Remote Sensing of Environment 113, 893, equation 5 (ρ = π L d² / (E sin θ)).
    """
    gain, factor = chosen.bands[name], 1.0
    needs = _needs(chosen.quantity, gain)
    if "solar_irradiance" in needs:
        if gain.solar_irradiance is None:
            raise InvalidParameter(
                f"Band {name}: from {gain.of} to {chosen.quantity} its solar irradiance is needed.",
                pointer=f"/calibration/bands/{name}/solar_irradiance",
            )
        per_radiance = math.pi * _distance(chosen, item) ** 2 / gain.solar_irradiance
        factor = per_radiance if chosen.quantity == "reflectance" else 1.0 / per_radiance
    if "sun_elevation" in needs:
        factor /= math.sin(math.radians(_sun_elevation(chosen, item)))
    return factor


def _sun_elevation(chosen: Optical, item: InputItem) -> float:
    given = chosen.sun_elevation if chosen.sun_elevation is not None else item.properties.get("view:sun_elevation")
    if not isinstance(given, int | float) or not 0 < given <= 90:
        has = "it has no view:sun_elevation" if given is None else f"its view:sun_elevation is {given}"
        raise InvalidParameter(
            f"Item {item.id}: reflectance needs the sun's elevation, above 0 and at most 90 degrees; {has}. "
            "Give it as `sun_elevation`.",
            pointer="/calibration/sun_elevation",
        )
    return float(given)


def _distance(chosen: Optical, item: InputItem) -> float:
    if chosen.earth_sun_distance is not None:
        return chosen.earth_sun_distance
    if item.at is None:
        raise InvalidParameter(
            f"Item {item.id} has no date to take the distance of the sun from. Give it as `earth_sun_distance`.",
            pointer="/calibration/earth_sun_distance",
        )
    return earth_sun_distance(item.at)


METHOD = Method(
    id="radiometric_correction",
    title="Radiometric correction",
    makes=Kind.RASTER,
    params=RadiometricCorrectionParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=ITEM_LIMIT,
    examples=(
        {
            "method": "radiometric_correction",
            "calibration": {
                "type": "constant",
                "factor_db": -83.0,
                "quantity": "gamma0",
                "incidence_angle": "angle",
                "bands": ["HH", "HV"],
            },
            "scale": "db",
        },
        {
            "method": "radiometric_correction",
            "calibration": {
                "type": "sentinel1",
                "quantity": "sigma0",
                "bands": {
                    "vv": {
                        "vectors": [
                            {"line": 0, "pixel": [0, 40, 80], "values": [512.0, 510.5, 509.1]},
                            {"line": 600, "pixel": [0, 40, 80], "values": [511.8, 510.4, 509.0]},
                        ]
                    }
                },
            },
        },
        {
            "method": "radiometric_correction",
            "calibration": {
                "type": "optical",
                "bands": {"B4": {"gain": 2e-5, "offset": -0.1}, "B5": {"gain": 2e-5, "offset": -0.1}},
                "sun_elevation": 57.3,
            },
        },
    ),
)
