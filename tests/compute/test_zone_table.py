"""The table's columns and rows: each name once, each row told what became of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from eorouter_compute import zone_table, zones
from eorouter_compute.attempt import Attempt, local_path
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.measures import Request, Seen
from eorouter_compute.method import Band, InputItem, RasterAsset
from eorouter_compute.strata import Column, Stratum
from eorouter_compute.zone_table import Found
from eorouter_kernels import zonal


def request_of(*statistics: str, **fields: Any) -> Request:
    plain = {"levels": {}, "classes": None, "edges": None, "use_scale": True, "skips_unweighed": False}
    return Request(statistics=statistics, **(plain | fields))


def strata_of(*prefixes: str) -> list[Stratum]:
    bands = tuple(Band(name=name or "b", index=at, dtype="uint8") for at, name in enumerate(prefixes, 1))
    asset = RasterAsset(
        key="r", href="r.tif", crs="EPSG:32632", transform=(1, 0, 0, 0, -1, 9), shape=(9, 9), bands=bands,
        block_shape=(9, 9),
    )  # fmt: skip
    columns = tuple(Column(0, name, asset, band) for name, band in zip(prefixes, bands, strict=True))
    return [Stratum(asset, columns, ())]


@pytest.mark.parametrize(
    ("include", "place", "says"),
    [
        (["crop", "crop"], 1, "'crop' is asked for twice"),
        (["a", "crop", "a"], 2, "'a' is asked for twice"),
        (["mean"], 0, "name of a column"),
        (["crop", "zone_id"], 1, "name of a column"),
        (["datetime"], 0, "name of a column"),
        (["frac_12"], 0, "name of a column"),
        (["frac_-3"], 0, "name of a column"),
    ],
)
def test_a_field_whose_name_is_taken_is_refused_where_it_stands(include, place, says):
    with pytest.raises(InvalidParameter, match=says) as caught:
        zone_table.check(include, request_of("mean", "class_fractions"), strata_of(""))
    assert caught.value.pointer == f"/include/{place}"


def test_fields_of_other_names_are_taken_along():
    zone_table.check(["crop", "frac_12", "frac", "nir_mean"], request_of("mean"), strata_of(""))
    zone_table.check(["frac_12", "nir_frac_a", "mean"], request_of("mean", "class_fractions"), strata_of("nir", "red"))
    with pytest.raises(InvalidParameter, match="nir_frac_4"):
        zone_table.check(["nir_frac_4"], request_of("class_fractions"), strata_of("nir", "red"))


def test_bands_whose_columns_would_share_a_name_are_refused():
    with pytest.raises(InvalidParameter, match="would be called 'a_weighted_mean'") as caught:
        zone_table.check([], request_of("mean", "weighted_mean"), strata_of("a", "a_weighted"))
    assert caught.value.pointer == "/bands"


def test_a_row_says_what_became_of_it(tmp_path: Path):
    shape = {"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]]}
    features = [{"type": "Feature", "geometry": each, "properties": {}} for each in (shape, None, shape)]
    placed = zones.read({"type": "FeatureCollection", "features": features}, target_crs="EPSG:4326")
    items = [InputItem(id=name, assets=(), at=datetime(2024, 1, 1, tzinfo=UTC)) for name in "abc"]
    found, request = Found.empty(3, 3), request_of("count")
    column = strata_of("")[0].columns[0]
    for item, weights, masked in ((0, [4, 0, 0], [0, 0, 2]), (1, [0, 0, 0], [0, 0, 0])):
        state = zonal.empty((3,))
        state[:, zonal.WEIGHT], state[:, zonal.MASKED] = weights, masked
        seen = Seen(state, None, [], np.zeros(3), np.array([True, False, True]))
        found.add(request, column._replace(item=item), seen)
    output, summary = zone_table.write(
        found, request, placed, name="t", items=items, lacking=[(), ("nir",), ("red", "nir")], include=(),
        attempt=Attempt(tmp_path.as_uri()),
    )  # fmt: skip
    table = parquet.read_table(local_path(output.assets[0].object.href)).to_pylist()
    told = [(row["zone_id"], row["item_id"], row["status"], row["detail"], row["count"]) for row in table]
    gone, nothing, none = "The zone lies outside the raster.", "The feature has no geometry.", "The item has no band"
    assert told == [
        (0, "a", "ok", None, 4.0),
        (0, "b", "outside", f"{gone} {none} nir.", 0.0),
        (0, "c", "no_band", f"{none} red, nir.", None),
        *((1, item, "empty", nothing, None) for item in "abc"),
        (2, "a", "no_data", "No valid pixel lies in the zone.", 0.0),
        (2, "b", "outside", f"{gone} {none} nir.", 0.0),
        (2, "c", "no_band", f"{none} red, nir.", None),
    ]
    assert summary["statuses"] == {"empty": 3, "no_band": 2, "no_data": 1, "ok": 1, "outside": 2}
