"""Zonal statistics, file to table."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.bounds import Read
from benchmarks.harness import Answer, Row
from benchmarks.rows.looking import pixels

STATISTICS = ["count", "sum", "mean", "min", "max", "stdev"]
Inputs = tuple[Path, Path]


def inputs_of(kind: str, count: int) -> Callable[[Path, int], Inputs]:
    """Scene and polygons; as many per area as on a tile."""

    def prepare(folder: Path, side: int) -> Inputs:
        zones_count = max(10, count * side * side // data.SIDES["tile"] ** 2)
        return data.scene(folder, side, "zonal", 1, is_cog=True), data.polygons(folder, side, kind, zones_count)

    return prepare


def ours(inputs: Inputs, folder: Path) -> np.ndarray:
    """The zones are read anew each time."""
    from pyarrow import parquet

    from benchmarks.ours import item, output, run
    from eorouter_compute import vector, zones
    from eorouter_compute.method import InputItem

    zones.forget()
    place, polygons = inputs
    items = [item(place), InputItem(id="zones", assets=(vector.describe(polygons.as_uri()),))]
    task = {"method": "zonal_statistics", "zones": {"item_id": "zones"}, "statistics": STATISTICS}
    table = parquet.read_table(output(run(task, items, folder), "table"))
    return np.column_stack([table[name].to_numpy() for name in STATISTICS])


def exactextract(inputs: Inputs, folder: Path) -> np.ndarray:
    """Its fastest strategy for one raster and many small polygons: the raster once, in the largest pieces."""
    import geopandas
    from exactextract import exact_extract

    place, polygons = inputs
    layer = geopandas.read_file(polygons, use_arrow=True)
    table = exact_extract(
        str(place), layer, STATISTICS, output="pandas", strategy="raster-sequential", max_cells_in_memory=2**27
    )
    table.to_parquet(folder / "table.parquet")
    return table[STATISTICS].to_numpy(float)


def rasterstats(inputs: Inputs, folder: Path) -> np.ndarray:
    """Centre-in-polygon statistics: another definition, so only the means are compared, loosely."""
    import pandas as pd
    from rasterstats import zonal_stats

    place, polygons = inputs
    names = ["count", "sum", "mean", "min", "max", "std"]
    rows = zonal_stats(str(polygons), str(place), stats=names)
    table = pd.DataFrame(rows, columns=names)
    table.to_parquet(folder / "table.parquet")
    return table.to_numpy(float)


def look(table: np.ndarray, inputs: Inputs) -> Answer:
    """The table, and how many pixels each polygon covers by its own area."""
    import shapely

    features = json.loads(inputs[1].read_text())["features"]
    areas = [shapely.geometry.shape(feature["geometry"]).area for feature in features]
    return {"table": table, "covered": np.array(areas) / data.PIXEL_M**2}


def same_numbers(ours: Answer, theirs: Answer) -> None:
    """Equal to 1e-6, zone by zone, and our covered areas to 1e-9 of what geometry says."""
    error = np.abs(ours["table"][:, 0] / ours["covered"] - 1).max()
    assert error <= 1e-9, f"our covered areas are off by up to {error:.1e}"
    np.testing.assert_allclose(ours["table"], theirs["table"], rtol=1e-6, equal_nan=True)


def near_means(ours: Answer, theirs: Answer) -> None:
    """Means within 5 %: the other side counts whole pixels."""
    np.testing.assert_allclose(ours["table"][:, 2], theirs["table"][:, 2], rtol=0.05)


def _row(row: str, kind: str, count: int, floor: float, peer: str) -> Row:
    is_exact = peer == "exactextract"
    return Row(
        id=row,
        peer="exactextract (raster-sequential)" if is_exact else "rasterstats",
        floor=floor,
        pixels=pixels,
        prepare=inputs_of(kind, count),
        ours=ours,
        theirs=exactextract if is_exact else rasterstats,
        look=look,
        agree=same_numbers if is_exact else near_means,
        reads=lambda inputs: [Read(path=inputs[0])],
        method="zonal_statistics",
        needs=(peer,),
    )


ROWS = [
    _row("zonal-20k", "blobs", 20_000, 5.0, "exactextract"),
    _row("zonal-2k", "large", 2_000, 3.0, "exactextract"),
    _row("zonal-2k", "large", 2_000, 10.0, "rasterstats"),
    _row("zonal-partition", "partition", 1_500, 5.0, "exactextract"),
]
