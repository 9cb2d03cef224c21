"""Draw `time_series.png`: a year of the generated landscape as a strip of months, its season, and curves of crops."""

import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from PIL import Image

from eorouter_compute import quicklook, raster
from eorouter_compute.attempt import read_object
from eorouter_compute.landscape import generate
from eorouter_compute.method import Result
from eorouter_compute.methods.time_series import TimeSeriesParams
from eorouter_compute.testing import run_local

MASKED = {"method": "time_series", "value": {"index": "NDVI"}, "masks": ["sentinel-2-scl"]}
SMOOTH = {"by": "whittaker", "roughness": 0.5}


def pixels(item: Any) -> np.ndarray:
    """Bands of an item's raster."""
    asset = item.assets[0].raster
    return raster.read_block(asset, [band.index for band in asset.bands], asset.window).pixels


def main(target: Path) -> None:
    """Draw it."""
    dates = [date(2024, 1, 6) + timedelta(days=10 * n) for n in range(36)]
    shares = [(0.0, 0.3, 0.1, 0.5, 0.05)[n % 5] for n in range(36)]
    place = generate(Path(tempfile.mkdtemp()), seed=5, size_px=256, dates=dates, cloud_shares=shares)
    items, fields = place.items(), msgspec.json.decode(place.fields.read_bytes())

    def run(**task: Any) -> Result:
        return run_local(msgspec.convert({**MASKED, **task}, TimeSeriesParams), items)

    months = run(group={"by": "month"}).items
    season = run(smooth=SMOOTH, analysis={"type": "phenology"}).items[0]
    curves = run(smooth=SMOOTH, analysis={"type": "series"}, zones=fields, zone_id="crop").items[0]
    table = read_object(next(asset for asset in curves.assets if asset.key == "geojson").object.href)
    rows = [feature["properties"] for feature in msgspec.json.decode(table)["features"]]
    ramp = ListedColormap(quicklook.color_table("index") / 255)
    figure = plt.figure(figsize=(9, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=[1, 2.1])
    for place_in_row, item in enumerate(months[2:8]):
        axes = figure.add_subplot(grid[0, place_in_row])
        axes.imshow(pixels(item)[0], cmap=ramp, vmin=0.1, vmax=0.9)
        axes.set_title(item.name[-7:], fontsize=9)
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :3])
    shown = axes.imshow(pixels(season)[1], cmap="twilight_shifted", vmin=90, vmax=280)
    axes.set_title("Peak of season, day of year", fontsize=10)
    axes.axis("off")
    figure.colorbar(shown, ax=axes, shrink=0.85)
    axes = figure.add_subplot(grid[1, 3:])
    for crop in ("winter_wheat", "maize", "sugar_beet", "grassland"):
        own = [row for row in rows if row["zone_id"] == crop and row["mean"] is not None]
        days = sorted({row["date"] for row in own})
        dots = [np.median([r["mean"] for r in own if r["date"] == d]) for d in days]
        line = [np.median([r["smoothed"] for r in own if r["date"] == d]) for d in days]
        drawn = axes.plot([date.fromisoformat(d) for d in days], line, label=crop.replace("_", " "), linewidth=1.5)
        axes.plot([date.fromisoformat(d) for d in days], dots, ".", color=drawn[0].get_color(), markersize=4)
    axes.set_title("NDVI of fields, measured and smoothed", fontsize=10)
    axes.xaxis.set_major_formatter(mpl.dates.DateFormatter("%b"))
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(target, dpi=80)
    Image.open(target).convert("RGB").quantize(48).save(target, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
