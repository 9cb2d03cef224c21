"""The table of zonal statistics: a row per zone, or per zone and item, with what became of each.

Rows run by zone and then by item, in the order the items were given. A zone that could not be measured keeps its row.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from eorouter_compute import measures, polygons, tables
from eorouter_compute.attempt import Attempt
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.measures import Request, Seen
from eorouter_compute.method import Band, InputItem, OutputItem
from eorouter_compute.strata import Column, Stratum
from eorouter_compute.zones import Zones
from eorouter_kernels import zonal

PREVIEW_ROWS = 20

_FIXED = ("zone_id", "item_id", "datetime", "status", "detail", "geometry")


class Found(NamedTuple):
    """What was found of all items.

    Attributes:
        touched: (item, zone) whether the zone lies on the item's raster at all.
        valid: (item, zone) whether a valid pixel lies in it.
        columns: by prefix the band, and by suffix the values (zone) of each item that has them.
    """

    touched: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    columns: dict[str, tuple[Band, dict[str, dict[int, NDArray[np.float64]]]]]

    @classmethod
    def empty(cls, items: int, zones: int) -> "Found":
        """Nothing yet."""
        return cls(np.zeros((items, zones), np.bool_), np.zeros((items, zones), np.bool_), {})

    def add(self, request: Request, column: Column, seen: Seen) -> None:
        """Take in a band of an item; raises as `measures.columns`."""
        weight = seen.state[:, zonal.WEIGHT]
        self.touched[column.item] |= weight + seen.state[:, zonal.MASKED] > 0.0
        self.valid[column.item] |= weight > 0.0
        _, by_suffix = self.columns.setdefault(column.prefix, (column.band, {}))
        for suffix, values in measures.columns(request, column.band, seen).items():
            by_suffix.setdefault(suffix, {})[column.item] = values


def names(request: Request, strata: Sequence[Stratum]) -> list[str]:
    """Names of the columns, as far as they are known before anything is read."""
    bands = {column.prefix: column.band for stratum in strata for column in stratum.columns}
    found = [_name(prefix, suffix) for prefix, band in bands.items() for suffix in request.suffixes(band)]
    return [*_FIXED, *found]


def check(include: Sequence[str], request: Request, strata: Sequence[Stratum]) -> None:
    """Refuse what would give two columns one name.

    Raises:
        InvalidParameter: a field of the zones is asked for twice or has the name of a column, or two bands would share
            one; says which.
    """
    known = names(request, strata)
    for name, count in Counter(known).items():
        if count > 1:
            raise InvalidParameter(
                f"Two columns of the result would be called {name!r}. Measure these bands one by one.", pointer="/bands"
            )
    prefixes = {column.prefix for stratum in strata for column in stratum.columns}
    classes = [_name(prefix, "frac_") for prefix in prefixes] if request.has_open_classes else []
    for place, name in enumerate(include):
        pointer = f"/include/{place}"
        if name in include[:place]:
            raise InvalidParameter(f"The field {name!r} is asked for twice.", pointer=pointer)
        if name in known or any(re.fullmatch(rf"{re.escape(each)}-?\d+", name) for each in classes):
            raise InvalidParameter(f"The field {name!r} has the name of a column of the result.", pointer=pointer)


def width(request: Request, strata: Sequence[Stratum]) -> int:
    """Most numbers of a row."""
    bands = {column.prefix: column.band for stratum in strata for column in stratum.columns}
    return sum(request.width(band) for band in bands.values())


def write(
    found: Found,
    request: Request,
    placed: Zones,
    *,
    name: str,
    items: Sequence[InputItem],
    lacking: Sequence[Sequence[str]],
    include: Sequence[str],
    attempt: Attempt,
) -> tuple[OutputItem, dict[str, Any]]:
    """Write the table, and sum it up; `lacking` are the bands that were asked for and that each item does not have."""
    many = len(items) > 1
    rows = pa.array(np.repeat(np.arange(len(placed)), len(items)))
    status, detail = _statuses(placed, found, lacking)
    columns: dict[str, Any] = {"zone_id": placed.ids.take(rows) if many else placed.ids}
    if many:
        columns["item_id"] = pa.array([item.id for item in items] * len(placed))
        columns["datetime"] = pa.array([item.at for item in items] * len(placed), pa.timestamp("ms", tz="UTC"))
    columns |= {each: placed.attributes[each].take(rows) if many else placed.attributes[each] for each in include}
    columns |= {"status": pa.array(status, pa.string()), "detail": pa.array(detail, pa.string())}
    listed = []
    for prefix, (band, by_suffix) in found.columns.items():
        for suffix in _ordered(request, band, by_suffix):
            values = _filled(suffix, by_suffix, found).T.ravel()
            columns[_name(prefix, suffix)] = pa.array(values, mask=np.isnan(values))
            unit = measures.unit_of(suffix, band, request.use_scale)
            listed.append({"name": _name(prefix, suffix), "band": band.name, "unit": unit})
    table = pa.table(columns)
    assets, bbox = tables.write_all(attempt, name, table, placed.geometries, placed.crs, rows_each=len(items))
    output = OutputItem(
        name=name,
        assets=assets,
        footprint=msgspec.json.decode(shapely.to_geojson(polygons.box_of(bbox))),
        bbox=bbox,
        at=None if many else items[0].at,
        title=f"Zonal statistics of {f'{len(items)} items' if many else items[0].id}",
    )
    summary: dict[str, Any] = {
        "rows": table.num_rows,
        "statuses": {value: status.count(value) for value in sorted(set(status))},
        "columns": listed,
        "preview": msgspec.to_builtins(table.slice(0, PREVIEW_ROWS).to_pylist()),
    }
    if request.edges is not None:
        summary["histogram_edges"] = request.edges.tolist()
    return output, summary


def _name(prefix: str, suffix: str) -> str:
    return f"{prefix}_{suffix}" if prefix else suffix


def _ordered(request: Request, band: Band, found: dict[str, Any]) -> list[str]:
    """Columns of a band: those known before, then classes as they rise."""
    known = [name for name in request.suffixes(band) if name in found]
    classes = sorted((name for name in found if name not in known), key=lambda name: int(name.rpartition("_")[2]))
    return known + classes


def _filled(suffix: str, by_suffix: dict[str, dict[int, NDArray[np.float64]]], found: Found) -> NDArray[np.float64]:
    """A column of all items, (item, zone); NaN where an item does not have it."""
    out = np.full(found.valid.shape, np.nan)
    for item, values in by_suffix[suffix].items():
        out[item] = values
    if suffix.startswith("frac_"):
        # A class that an item does not have at all has no share of its zones.
        siblings = [values for name, values in by_suffix.items() if name.startswith("frac_")]
        for item in {item for values in siblings for item in values} - set(by_suffix[suffix]):
            shares = np.array([values[item] for values in siblings if item in values])
            out[item] = np.where(np.isnan(shares).all(axis=0), np.nan, 0.0)
    return out


def _statuses(placed: Zones, found: Found, lacking: Sequence[Sequence[str]]) -> tuple[list[str], list[str | None]]:
    """What became of each row, by zone and item, and why."""
    count = found.valid.shape[0]
    status = np.repeat(np.array([value.value for value in placed.status], object)[:, None], count, axis=1)
    detail = np.repeat(np.array(placed.detail, object)[:, None], count, axis=1)
    measured = np.zeros(count, np.bool_)
    measured[[item for _, by_suffix in found.columns.values() for values in by_suffix.values() for item in values]] = (
        True
    )

    def say(zone: int, item: int, why: str) -> None:
        detail[zone, item] = why if detail[zone, item] is None else f"{detail[zone, item]} {why}"

    bad = (placed.usable & ~found.valid & measured[:, None]).T
    for zone, item in zip(*np.nonzero(bad), strict=True):
        is_on = found.touched[item, zone]
        status[zone, item] = "no_data" if is_on else "outside"
        say(zone, item, "No valid pixel lies in the zone." if is_on else "The zone lies outside the raster.")
    for item, bands in enumerate(lacking):
        for zone in np.flatnonzero(placed.usable).tolist() if bands else ():
            status[zone, item] = status[zone, item] if measured[item] else "no_band"
            say(zone, item, f"The item has no band {', '.join(bands)}.")
    return status.ravel().tolist(), detail.ravel().tolist()
