"""What is told about a class map: areas by class, polygons of connected areas, and the colours of the classes."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from eorouter_compute import regions, tables
from eorouter_compute.alteration import Severity
from eorouter_compute.attempt import Attempt
from eorouter_compute.grid import Grid
from eorouter_compute.method import OutputAsset
from eorouter_compute.regions import AREA_UNIT_M2, Outlines

_GRAY, _LOSS, _GAIN = (222, 222, 218), (178, 34, 52), (28, 92, 156)


def class_rows(
    counts: Sequence[Sequence[int]], ground: Sequence[Sequence[int]], names: Sequence[str], colors: np.ndarray
) -> list[dict[str, Any]]:
    """Pixels, ground area, share and colour of every class, from the sums of shards (shard, class)."""
    pixels = np.sum(counts, axis=0)
    areas = np.sum(ground, axis=0)
    return [
        {
            "class": number,
            "name": name,
            "pixels": int(pixels[number]),
            "area_m2": int(areas[number]) * AREA_UNIT_M2,
            "share": int(pixels[number]) / int(pixels.sum()) if pixels.sum() else None,
            "color": "#" + bytes(colors[number]).hex(),
        }
        for number, name in enumerate(names)
    ]


def class_table(rows: Sequence[dict[str, Any]], attempt: Attempt, name: str) -> OutputAsset:
    """The rows as CSV, object of an attempt."""
    lines = ["class,name,pixels,area_m2,share,color"]
    lines += [
        f'{row["class"]},"{row["name"]}",{row["pixels"]},{row["area_m2"]:.3f},'
        + ("" if row["share"] is None else f"{row['share']:.6f}")
        + f",{row['color']}"
        for row in rows
    ]
    ref = attempt.write(f"{name}/class_areas.csv", ("\n".join(lines) + "\n").encode())
    return OutputAsset(
        key="class_areas", object=ref, media_type="text/csv", roles=("data",), filename=f"{name}_class_areas.csv",
        title="Area by class",
    )  # fmt: skip


def polygons(
    grid: Grid, outlines: Sequence[Outlines], names: Sequence[str], attempt: Attempt, name: str
) -> tuple[list[OutputAsset], int]:
    """Files of the areas: one row each, with class, pixels, area and confidence."""
    import pyarrow as pa
    import shapely

    shapes, counts, sums = regions.drawn(outlines, len(names))
    a, b, c, d, e, f = grid.transform
    placed = shapely.transform(
        shapes,
        lambda xy: np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f]),
    )
    kinds, pixels = counts.argmax(axis=1), counts.sum(axis=1)
    table = pa.table({
        "id": pa.array(range(1, len(shapes) + 1), pa.int64()),
        "class": pa.array(kinds, pa.int64()),
        "name": pa.array(np.array(names, np.object_)[kinds], pa.string()),
        "pixels": pa.array(pixels, pa.int64()),
        "area_m2": pa.array(sums[:, 0] * AREA_UNIT_M2, pa.float64()),
        "confidence": pa.array(sums[:, 1] / pixels / 10_000, pa.float64()),
    })  # fmt: skip
    written, _ = tables.write_all(attempt, f"{name}/areas", table, placed, grid.crs)
    titles = {"table": "Changed areas, GeoParquet", "csv": "Changed areas without geometries",
              "geojson": "Changed areas, longitude and latitude"}  # fmt: skip
    named = [
        msgspec.structs.replace(one, title=titles[one.key], filename=one.filename.replace("/", "_")) for one in written
    ]
    return named, len(shapes)


def colors(names: Sequence[str], severity: Severity | None) -> np.ndarray:
    """Gray for no change, towards red for loss and blue for gain."""
    out = np.tile(np.array(_GRAY, np.uint8), (256, 1))
    if severity is None:
        for number, color in zip(range(1, len(names)), (_LOSS, _GAIN), strict=False):
            out[number] = color
        return out
    middle = severity.unchanged
    for number in range(len(names)):
        steps = len(names) - 1 - middle if number > middle else middle
        share = abs(number - middle) / steps if number != middle else 0.0
        end = np.array(_LOSS if number > middle else _GAIN, float)
        out[number] = np.rint(np.array(_GRAY) + share * (end - np.array(_GRAY)))
    return out
