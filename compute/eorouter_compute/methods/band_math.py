"""Band math: formulas over named bands of one or several items, written as the bands of new rasters.

Formulas are text, compiled by `eorouter_compute.expression` and never evaluated by Python. A name in a formula is a
declared variable or a band of the item at hand. Where every name is a variable bound to one item, the job makes one
item; where one is not, it makes one per input item. Outputs of one dtype and nodata share a COG and one pass.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from eorouter_compute import catalogue, operands, product, target_grid
from eorouter_compute.aoi import CRS84, Bbox, Coverage, PixelRule, onto, parse, refuse_empty
from eorouter_compute.attempt import Attempt
from eorouter_compute.catalogue import Scaling
from eorouter_compute.cog import CogSpec, Pixels
from eorouter_compute.errors import BandNotFound, InvalidExpression, InvalidParameter
from eorouter_compute.expression import FUNCTIONS, Operand, Program, compile_expressions, evaluate
from eorouter_compute.grid import Window
from eorouter_compute.method import (
    Band,
    FailedRead,
    InputItem,
    Kind,
    Method,
    OutputAsset,
    OutputItem,
    Params,
    Part,
    Plan,
    RasterAsset,
    ReadReport,
    Result,
    Shard,
    total,
)
from eorouter_compute.operands import Named, Source
from eorouter_compute.packing import Packing, pack
from eorouter_compute.raster import storable
from eorouter_compute.target_grid import GridChoice
from eorouter_compute.warp import Resampling

ITEM_LIMIT = 50
OUTPUTS_MAX = 32

# Packed results are computed in double precision, strip by strip, so that no piece is ever held as doubles.
_STRIP_PIXELS = 1 << 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_AS_STORED = Scaling(1.0, 0.0, "as stored")
_KEPT_PROPERTIES = ("platform", "constellation", "instruments", "gsd", "eo:cloud_cover")

Dtype = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


class BandVariable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a name in the formulas stands for.

    Attributes:
        band: a band name, `asset:band`, a common name, or the key of an asset with one band.
        item: whose band: an item's id, or its place among the inputs, from 0. Left out, each input item's own in turn.
    """

    band: Annotated[str, Meta(min_length=1, max_length=200)]
    item: Annotated[int, Meta(ge=0, le=999)] | Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class BandMathOutput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One band to make.

    Attributes:
        name: of the band; letters, digits and . _ -.
        expression: the formula; conditions are 1 and 0.
        formula_id: a saved formula in place of `expression`; the service puts its text here before the job is planned.
        dtype: of the stored numbers. Integers are rounded half to even.
        scale: physical value = stored × scale + offset; results are divided by it before they are stored. Not 0.
        offset: see `scale`, in the unit of the result.
        nodata: stored where missing. By default NaN for floats, and a mask for integers.
        overflow: what becomes of results an integer dtype cannot hold: "clamp" to the end of its range, or "missing".
            A float32 that would be infinite is always missing.
        unit: of the physical value, written into the file.
        description: written into the file; the formula by default.
    """

    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    expression: Annotated[str, Meta(max_length=1_000_000)] = ""
    formula_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    dtype: Dtype = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    overflow: Literal["clamp", "missing"] = "clamp"
    unit: Annotated[str, Meta(max_length=50)] | None = None
    description: Annotated[str, Meta(max_length=500)] | None = None


class BandMathParams(Params, frozen=True, kw_only=True, tag="band_math"):
    """Formulas over bands: arithmetic, conditions, roots, logarithms and angles, several results in one pass.

    Attributes:
        outputs: the bands to make, in this order. Those of one dtype and nodata share a COG; others get their own.
        variables: names for bands that formulas cannot call directly: bands of a certain item, names with other signs
            than letters, digits and _. A variable hides a band of its name, a band hides the constants pi and e.
        use_scale: formulas see physical values, stored × scale + offset with Sentinel-2's offset taken once (true), or
            the stored numbers (false).
        missing: "any": a result is missing where any band of its formula is. "all": only where all are; a band that is
            missing alone reads as `fill`.
        fill: what a missing band reads as where `missing` is "all"; physical, or stored where `use_scale` is false.
        grid: where the outputs lie; by default on the finest grid among the bands, over all it can hold.
        resampling: how bands come onto another grid; those whose pixels are the grid's are copied.
        tolerance_px: largest error of a resampled position, in source pixels; 0 is exact.
        aoi: polygons or [west, south, east, north] that the outputs are cut to; pixels outside are missing.
        crs: what the coordinates of `aoi` are in; longitude and latitude by default.
        pixel_rule: a pixel belongs to the area when its centre is inside, or when the area touches it.
        allow_missing: windows of sources that cannot be read count as missing and are listed in the read report.
        overview_resampling: how overviews are made; "mode" or "nearest" for classes.
    """

    outputs: Annotated[tuple[BandMathOutput, ...], Meta(min_length=1, max_length=OUTPUTS_MAX)]
    variables: Annotated[dict[str, BandVariable], Meta(max_length=64)] = msgspec.field(default_factory=dict)
    use_scale: bool = True
    missing: Literal["any", "all"] = "any"
    fill: float = 0.0
    grid: GridChoice = msgspec.field(default_factory=GridChoice)
    resampling: Resampling = "nearest"
    tolerance_px: Annotated[float, Meta(ge=0, le=10)] = 0.125
    aoi: dict[str, Any] | Bbox | None = None
    crs: str = CRS84
    pixel_rule: PixelRule = "center"
    allow_missing: bool = False
    overview_resampling: Literal["average", "nearest", "mode"] = "average"


class _Formulas(Struct, frozen=True, kw_only=True):
    """The outputs of one COG, compiled: `places` among all outputs, and the names each of them reads."""

    places: tuple[int, ...]
    program: Program
    names: tuple[tuple[str, ...], ...]
    nodata: float | None
    has_mask: bool


class _Product(Struct, frozen=True, kw_only=True):
    """Everything about one COG but its pixels; the same wherever it is worked out."""

    formulas: _Formulas
    spec: CogSpec
    sources: tuple[Source, ...]
    area: Any


class _Body(Struct, frozen=True, array_like=True):
    """Body of a shard or a part: of which item and which COG of it, and what the product module made of it."""

    item: int
    asset: int
    product: bytes


def plan(params: BandMathParams, inputs: Sequence[InputItem]) -> Plan:
    """Shards of every COG, item by item."""
    if not inputs:
        raise InvalidParameter("band_math needs at least one item.", pointer="/inputs")
    formulas = _formulas(params, inputs)
    shards: list[Shard] = []
    merges, notes = [], []
    for number in _subjects(params, inputs, formulas):
        for place, each in enumerate(formulas):
            made = _product(params, inputs, number, each)
            width = len(made.spec.bands) * (np.dtype(made.spec.dtype).itemsize + 1)
            for shard in product.plan_product(
                made.spec,
                bytes_read_per_pixel=sum(operands.bytes_read(source) for source in made.sources),
                memory_bytes_per_pixel=operands.bytes_held(made.sources) + width + 2,
                seconds_per_pixel=operands.seconds(each.program, made.sources) + 3e-9 * len(each.places),
            ):
                bound = msgspec.structs.replace(
                    shard.bound, memory_bytes=shard.bound.memory_bytes + operands.bytes_beside(made.sources)
                )
                shards.append(Shard(body=msgspec.msgpack.encode(_Body(number, place, shard.body)), bound=bound))
            merges.append(product.merge_bound(made.spec))
            notes.extend(_notes(params, made))
    return Plan(shards=tuple(shards), merge_bound=total(merges), notes=tuple(dict.fromkeys(notes)))


def run(params: BandMathParams, inputs: Sequence[InputItem], shard: bytes, attempt: Attempt) -> Part:
    """One shard of one COG."""
    body = msgspec.msgpack.decode(shard, type=_Body)
    made = _product(params, inputs, body.item, _formulas(params, inputs)[body.asset])
    reports: list[ReadReport] = []
    part = product.run_product(
        made.spec, body.product, attempt, _computer(params, made, reports.append), lambda: sum(reports, ReadReport())
    )
    return msgspec.structs.replace(part, body=msgspec.msgpack.encode(_Body(body.item, body.asset, part.body)))


def merge(params: BandMathParams, inputs: Sequence[InputItem], parts: Sequence[Part], attempt: Attempt) -> Result:
    """One item for all inputs, or one per input item."""
    formulas = _formulas(params, inputs)
    bodies = [msgspec.msgpack.decode(part.body, type=_Body) for part in parts]
    keys = _asset_keys(params, formulas)
    names: list[str] = []
    items: list[OutputItem] = []
    for number in _subjects(params, inputs, formulas):
        names.append(_item_name(inputs[number].id, names))
        made = [_product(params, inputs, number, each) for each in formulas]
        assets = [
            product.merge_asset(
                each.spec,
                [
                    msgspec.structs.replace(part, body=body.product)
                    for part, body in zip(parts, bodies, strict=True)
                    if (body.item, body.asset) == (number, place)
                ],
                attempt,
                name=names[-1],
                asset_key=keys[place],
                title=", ".join(band.name for band in each.spec.bands),
            )
            for place, each in enumerate(made)
        ]
        items.append(_item(params, inputs, number, made=made, assets=assets, attempt=attempt, name=names[-1]))
    statistics = {
        item.name: {
            band.name: dict(row)
            for asset in item.assets
            if asset.raster is not None
            for band, row in zip(asset.raster.bands, asset.statistics, strict=True)
        }
        for item in items
    }
    report = sum((part.report for part in parts), ReadReport())
    return Result(items=tuple(items), summary={"items": len(items), "statistics": statistics}, report=report)


# Formulas -------------------------------------------------------------------------------------------------------------


def _formulas(params: BandMathParams, inputs: Sequence[InputItem]) -> tuple[_Formulas, ...]:
    """The outputs by COG, compiled; the same for every item.

    Raises:
        InvalidExpression: a formula is refused; the pointer names it, `position` the character.
        InvalidParameter: an output or a variable is not well said.
    """
    _check_variables(params, inputs)
    known = set(params.variables) | _callable_names(inputs)
    groups: dict[tuple[str, str], list[int]] = {}
    for place, output in enumerate(params.outputs):
        _check_output(params, place)
        groups.setdefault((output.dtype, repr(output.nodata)), []).append(place)
    found = []
    used: set[str] = set()
    for places in groups.values():
        texts = [params.outputs[place].expression for place in places]
        names = tuple(_compiled([text], known, [place]).names for text, place in zip(texts, places, strict=True))
        used.update(*names)
        first = params.outputs[places[0]]
        is_float = first.dtype.startswith("float")
        nodata = float("nan") if is_float and first.nodata is None else first.nodata
        found.append(
            _Formulas(
                places=tuple(places),
                program=_compiled(texts, known, places),
                names=names,
                nodata=nodata,
                has_mask=nodata is None,
            )
        )
    if not used:
        raise InvalidParameter(
            "The formulas read no band: there would be nothing to compute from.", pointer="/outputs/0/expression"
        )
    if idle := sorted(set(params.variables) - used):
        raise InvalidParameter(f"No formula reads the variable {idle[0]}.", pointer=f"/variables/{idle[0]}")
    return tuple(found)


def _compiled(texts: Sequence[str], known: set[str], places: Sequence[int]) -> Program:
    try:
        return compile_expressions(texts, known)
    except InvalidExpression as error:
        place = places[error.data["expression"]]
        raise InvalidExpression(
            error.message, pointer=f"/outputs/{place}/expression", **(error.data | {"expression": place})
        ) from None


def _callable_names(inputs: Sequence[InputItem]) -> set[str]:
    """Every spelling of every band that a formula can contain."""
    names = {
        name
        for item in inputs
        for asset, band in item.bands
        for name in (band.name, band.common_name, asset.key if len(asset.bands) == 1 else None)
        if name and _NAME.fullmatch(name)
    }
    return names - {"and", "or", "not", "if", "else", *FUNCTIONS}


def _check_variables(params: BandMathParams, inputs: Sequence[InputItem]) -> None:
    for name, variable in params.variables.items():
        if not _NAME.fullmatch(name) or len(name) > 100 or name in {"and", "or", "not", "if", "else", *FUNCTIONS}:
            raise InvalidParameter(
                f"{name[:100]!r} cannot be a variable: a name is letters, digits and _, and no word or function of "
                "formulas.",
                pointer="/variables",
            )
        if variable.item is not None:
            _bound_item(variable.item, inputs, f"/variables/{name}/item")


def _bound_item(wanted: int | str, inputs: Sequence[InputItem], pointer: str) -> int:
    """The place of the item that a variable is bound to."""
    if isinstance(wanted, int):
        if wanted < len(inputs):
            return wanted
        there = f"There are {len(inputs)} items, from 0" if len(inputs) != 1 else "There is one item, 0"
        raise InvalidParameter(f"{there}; item {wanted} is none of them.", pointer=pointer)
    places = [place for place, item in enumerate(inputs) if item.id == wanted]
    if not places:
        given = ", ".join(item.id for item in inputs)
        raise InvalidParameter(f"There is no input item {wanted!r}. There are: {given}.", pointer=pointer)
    return places[0]


def _check_output(params: BandMathParams, place: int) -> None:
    output = params.outputs[place]
    pointer = f"/outputs/{place}"
    if any(other.name == output.name for other in params.outputs[:place]):
        raise InvalidParameter(f"Two outputs are called {output.name}.", pointer=f"{pointer}/name")
    if not output.expression and output.formula_id is not None:
        raise InvalidParameter(
            f"The text of formula {output.formula_id} is not known here: give `expression`.",
            pointer=f"{pointer}/formula_id",
        )
    if output.scale == 0 or not np.isfinite([output.scale, output.offset]).all():
        raise InvalidParameter("scale must be a finite number other than 0, offset finite.", pointer=f"{pointer}/scale")
    if output.nodata is not None:
        if storable(output.nodata, output.dtype) is None:
            raise InvalidParameter(
                f"{output.dtype} cannot hold the nodata value {output.nodata:g}.", pointer=f"{pointer}/nodata"
            )
        if (
            output.dtype == "float32"
            and np.isfinite(output.nodata)
            and float(np.float32(output.nodata)) != output.nodata
        ):
            raise InvalidParameter(
                f"float32 stores {output.nodata!r} as {float(np.float32(output.nodata))!r}: name that, or use float64.",
                pointer=f"{pointer}/nodata",
            )


# Products -------------------------------------------------------------------------------------------------------------


def _subjects(params: BandMathParams, inputs: Sequence[InputItem], formulas: Sequence[_Formulas]) -> Sequence[int]:
    """Places of the items that results are made for: every one, or the first alone where no name asks for more."""
    used = {name for each in formulas for name in each.program.names}
    is_each = any(name not in params.variables or params.variables[name].item is None for name in used)
    return range(len(inputs)) if is_each else range(1)


def _product(params: BandMathParams, inputs: Sequence[InputItem], number: int, formulas: _Formulas) -> _Product:
    every = [_named(params, inputs, number, name, formulas) for name in formulas.program.names]
    if not every:
        # A constant beside formulas with bands: it fills the item's own grid.
        rasters: tuple[RasterAsset, ...] = inputs[number].rasters
    else:
        rasters = tuple(entry.asset for entry in every)
    area = None if params.aoi is None else parse(params.aoi, params.crs)
    grid = target_grid.choose(params.grid, inputs, rasters, area=area, area_crs=params.crs)
    if area is not None:
        area = onto(area, params.crs, grid.crs, grid.transform, grid.shape)
        mend = 'Use "pixel_rule": "all_touched".'
        refuse_empty(
            area, grid.transform, grid.shape, params.pixel_rule, of="the grid", mend=mend, pointer="/pixel_rule"
        )
    sources = operands.placed(every, grid, resampling=params.resampling, tolerance_px=params.tolerance_px)
    spec = CogSpec(
        shape=grid.shape,
        transform=grid.transform,
        crs=grid.crs,
        dtype=params.outputs[formulas.places[0]].dtype,
        bands=tuple(_band(params.outputs[place], index) for index, place in enumerate(formulas.places, start=1)),
        nodata=formulas.nodata,
        has_mask=formulas.has_mask,
        overview_resampling=params.overview_resampling,
    )
    return _Product(formulas=formulas, spec=spec, sources=sources, area=area)


def _band(output: BandMathOutput, index: int) -> Band:
    return Band(
        name=output.name,
        index=index,
        dtype=output.dtype,
        scale=output.scale,
        offset=output.offset,
        unit=output.unit,
        description=output.description or " ".join(output.expression.split())[:500],
    )


def _named(params: BandMathParams, inputs: Sequence[InputItem], number: int, name: str, formulas: _Formulas) -> Named:
    variable = params.variables.get(name)
    if variable is None:
        item, wanted = inputs[number], name
        place = next(place for place, used in zip(formulas.places, formulas.names, strict=True) if name in used)
        pointer = f"/outputs/{place}/expression"
    else:
        bound = number if variable.item is None else _bound_item(variable.item, inputs, f"/variables/{name}/item")
        item, wanted, pointer = inputs[bound], variable.band, f"/variables/{name}/band"
    try:
        asset, band = item.band(wanted)
    except BandNotFound as error:
        raise BandNotFound(error.message, pointer=pointer, **error.data) from None
    return Named(name, item, asset, band, catalogue.scaling(item, band) if params.use_scale else _AS_STORED)


# Pixels ---------------------------------------------------------------------------------------------------------------


def _computer(
    params: BandMathParams, made: _Product, report: Callable[[ReadReport], None]
) -> Callable[[Window], Pixels]:
    spec = made.spec
    coverage = None if made.area is None else Coverage(made.area, spec.transform, spec.shape, params.pixel_rule)
    outputs = [params.outputs[place] for place in made.formulas.places]
    is_plain = spec.dtype.startswith("float") and all((each.scale, each.offset) == (1.0, 0.0) for each in outputs)
    is_plain = is_plain and spec.nodata is not None and bool(np.isnan(spec.nodata)) and params.missing == "any"

    def compute(window: Window) -> Pixels:
        inside = None if coverage is None else coverage.covered(window)
        failed: list[FailedRead] = []
        if inside is not None and not inside.any():
            return np.zeros((len(outputs), window.height, window.width), spec.dtype), inside
        read = operands.read(made.sources, window, failed=failed if params.allow_missing else None)
        report(operands.report(made.sources, read, window, failed))
        if not read:
            read = {"": Operand(np.zeros((window.height, window.width), np.uint8))}
        if is_plain:
            return evaluate(made.formulas.program, read, dtype=spec.dtype), inside
        pixels, valid = _packed(params, made, outputs, read)
        return pixels, valid if inside is None else valid & inside

    return compute


def _packed(
    params: BandMathParams, made: _Product, outputs: Sequence[BandMathOutput], read: dict[str, Operand]
) -> tuple[np.ndarray, np.ndarray]:
    """Stored numbers and valid flags (band, y, x), computed in strips of rows."""
    height, width = next(iter(read.values())).pixels.shape
    pixels = np.empty((len(outputs), height, width), made.spec.dtype)
    valid = np.empty(pixels.shape, np.bool_)
    step = max(_STRIP_PIXELS // width, 1)
    for row in range(0, height, step):
        rows = slice(row, min(row + step, height))
        strip = {name: _cut(operand, rows) for name, operand in read.items()}
        if params.missing == "all":
            settled = {name: _settled(operand, params.fill) for name, operand in strip.items()}
            values = evaluate(made.formulas.program, settled, dtype="float64")
            for place, names in enumerate(made.formulas.names):
                masks = [mask for name in names if (mask := strip[name].valid) is not None]
                if names and len(masks) == len(names):
                    values[place][~np.logical_or.reduce(masks)] = np.nan
        else:
            values = evaluate(made.formulas.program, strip, dtype="float64")
        for place, output in enumerate(outputs):
            packing = Packing(
                dtype=output.dtype,
                scale=output.scale,
                offset=output.offset,
                nodata=made.formulas.nodata,
                is_clamped=output.overflow == "clamp",
            )
            pixels[place, rows], valid[place, rows] = pack(values[place], packing)
    return pixels, valid


def _cut(operand: Operand, rows: slice) -> Operand:
    valid = operand.valid if operand.valid is None else operand.valid[rows]
    return operand._replace(pixels=operand.pixels[rows], valid=valid)


def _settled(operand: Operand, fill: float) -> Operand:
    """A band without gaps: what is missing reads as `fill`."""
    if operand.valid is None:
        return operand
    physical = operand.pixels.astype(np.float64) * operand.scale + operand.offset
    return Operand(np.where(operand.valid, physical, fill))


# Words ----------------------------------------------------------------------------------------------------------------


def _asset_keys(params: BandMathParams, formulas: Sequence[_Formulas]) -> list[str]:
    """`data` for one COG; for several, the dtype with a number where it comes again."""
    if len(formulas) == 1:
        return ["data"]
    keys: list[str] = []
    for each in formulas:
        dtype = params.outputs[each.places[0]].dtype
        count = sum(key.partition("_")[0] == dtype for key in keys)
        keys.append(f"{dtype}_{count + 1}" if count else dtype)
    return keys


def _item_name(item_id: str, taken: Sequence[str]) -> str:
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "-", item_id).strip(".-")[:80] or "item") + "_band_math"
    name, copy = plain, 1
    while name in taken:
        copy += 1
        name = f"{plain}-{copy}"
    return name


def _item(
    params: BandMathParams,
    inputs: Sequence[InputItem],
    number: int,
    *,
    made: Sequence[_Product],
    assets: Sequence[OutputAsset],
    attempt: Attempt,
    name: str,
) -> OutputItem:
    used = {
        entry.name: {"item": entry.item.id, "band": f"{entry.asset.key}:{entry.band.name}"}
        | {"scale": entry.scaling.scale, "offset": entry.scaling.offset, "scaling": entry.scaling.source}
        for each in made
        for entry in (_named(params, inputs, number, one, each.formulas) for one in each.formulas.program.names)
    }
    origins = list(dict.fromkeys(entry["item"] for entry in used.values()))
    formulas = [
        {"name": output.name, "expression": output.expression}
        | ({} if output.formula_id is None else {"formula_id": output.formula_id})
        for output in params.outputs
    ]
    own = inputs[number]
    kept = {key: own.properties[key] for key in _KEPT_PROPERTIES if key in own.properties}
    return product.item(
        assets,
        attempt,
        name=name,
        at=own.at,
        title=f"{', '.join(output.name for output in params.outputs)} of {', '.join(origins)}"[:500],
        properties=kept | {"eorouter:formulas": formulas, "eorouter:bands": used, "eorouter:derived_from": origins},
        style="class" if params.overview_resampling == "mode" else None,
    )


def _notes(params: BandMathParams, made: _Product) -> list[str]:
    """What a caller should know; without item ids, so that fifty items alike say it once."""
    moved = [
        f"{source.asset.key} ({', '.join(name for name, _, _ in source.bands)})"
        for source in made.sources
        if not source.is_direct
    ]
    return [f"Brought onto the output's grid by {params.resampling}: {', '.join(moved)}."] if moved else []


METHOD = Method(
    id="band_math",
    title="Band math",
    makes=Kind.RASTER,
    params=BandMathParams,
    plan=plan,
    run=run,
    merge=merge,
    item_limit=ITEM_LIMIT,
    examples=(
        {"method": "band_math", "outputs": [{"name": "ndvi", "expression": "(nir - red) / (nir + red)"}]},
        {
            "method": "band_math",
            "variables": {"before": {"item": 0, "band": "nir"}, "after": {"item": 1, "band": "nir"}},
            "outputs": [
                {"name": "change", "expression": "after - before", "dtype": "int16", "scale": 0.0001, "nodata": -32768},
                {"name": "dropped", "expression": "after < 0.5 * before", "dtype": "uint8"},
            ],
        },
        {
            "method": "band_math",
            "outputs": [{"name": "water", "expression": "where(green > nir, 1, 0)", "dtype": "uint8", "nodata": 255}],
            "grid": {"crs": "EPSG:3857", "resolution": 20},
            "resampling": "bilinear",
            "overview_resampling": "mode",
        },
    ),
)
