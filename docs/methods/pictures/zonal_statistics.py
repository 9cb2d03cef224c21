"""Draw `zonal_statistics.png`: covered fractions of cells, fields by their mean, and their table by date as curves."""

import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
import shapely
from matplotlib.collections import PolyCollection
from PIL import Image
from pyarrow import parquet

from eorouter_compute import vector
from eorouter_compute.landscape import generate
from eorouter_compute.method import InputItem
from eorouter_compute.methods.zonal_statistics import ZonalStatisticsParams
from eorouter_compute.testing import run_local
from eorouter_kernels import coverage

DATES = [date(2024, month, 5) for month in range(3, 11)]
SHAPE = np.array([[0.6, 0.4], [5.2, 1.1], [4.3, 4.5], [1.4, 3.6], [0.6, 0.4]])


def fractions(axis: Any) -> None:
    """One polygon over cells, each with the share of it that counts."""
    outline = coverage.outlines(SHAPE, np.array([0, len(SHAPE)]), np.array([0, 1]))
    covered = coverage.coverage(outline, (0, 0, 5, 6))[0]
    axis.imshow(covered, cmap="Blues", vmax=1.6, extent=(0, 6, 5, 0), interpolation="none")
    for (row, col), value in np.ndenumerate(covered):
        if value:
            back = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
            axis.text(col + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=9, bbox=back)
    axis.plot(*SHAPE.T, color="firebrick", linewidth=2)
    axis.hlines(range(6), 0, 6, color="0.7", linewidth=0.5), axis.vlines(range(7), 0, 5, color="0.7", linewidth=0.5)
    axis.set_axis_off()
    axis.set_title("What counts of each cell", fontsize=11)


def main(target: Path) -> None:
    """Run the job of the page and draw its table."""
    place = generate(Path(tempfile.mkdtemp()), seed=5, size_px=320, dates=DATES)
    task = {"method": "zonal_statistics", "zones": {"item_id": "fields"}, "bands": ["nir"], "mask": "sentinel-2-scl"}
    task |= {"statistics": ["mean", "stdev", "valid_fraction"]}
    fields = InputItem(id="fields", assets=(vector.describe(place.fields.as_uri()),))
    result = run_local(msgspec.convert(task, ZonalStatisticsParams), [fields, *place.items()])
    table = parquet.read_table(result.items[0].assets[0].object.href.removeprefix("file://"))
    shapes = [shapely.geometry.shape(each["geometry"]) for each in json.loads(place.fields.read_text())["features"]]
    mean, stdev, seen = (table[name].to_numpy().reshape(-1, len(DATES)) for name in task["statistics"])
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    fractions(first)
    drawn = PolyCollection([np.array(each.exterior.coords) for each in shapes], edgecolors="0.3", linewidths=0.5)
    clear = int(np.nanargmax(seen.mean(axis=0)))
    drawn.set(array=mean[:, clear], cmap="YlGn", clim=(0.1, 0.5))
    second.add_collection(drawn)
    second.autoscale_view(), second.set_axis_off(), second.set_aspect(1.5)
    figure.colorbar(drawn, ax=second, label="mean near infrared", shrink=0.9)
    second.set_title(f"One row per field: {DATES[clear]:%d %B}", fontsize=11)
    chosen = np.argsort(-seen.mean(axis=1), kind="stable")[:3]
    for zone, colour in zip(chosen, ("seagreen", "darkorange", "slateblue"), strict=True):
        known = seen[zone] > 0.5
        days, middle, spread = np.array(DATES)[known], mean[zone, known], stdev[zone, known]
        third.plot(days, middle, marker="o", color=colour, label=f"field {zone}")
        third.fill_between(days, middle - spread, middle + spread, color=colour, alpha=0.2, linewidth=0)
    third.xaxis.set_major_formatter(mpl.dates.DateFormatter("%b"))
    third.set_ylabel("near infrared, mean ± stdev")
    third.legend(fontsize=9)
    third.set_title("… and date, where half is clear", fontsize=11), figure.savefig(target, dpi=84)
    Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
