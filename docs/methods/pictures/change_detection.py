"""Draw `change_detection.png`: burnt fields of the generated landscape, before, after, severity and areas."""

import io
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
import shapely

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch
from PIL import Image
from pyarrow import parquet

from eorouter_compute import raster
from eorouter_compute.attempt import read_object
from eorouter_compute.landscape import generate
from eorouter_compute.method import OutputItem, Params
from eorouter_compute.methods.change_detection import ChangeDetectionParams
from eorouter_compute.methods.spectral_index import SpectralIndexParams
from eorouter_compute.testing import run_local

DAYS = {"20240519": "NBR, 19 May", "20240812": "NBR, 12 August"}


def made(task: dict, inputs: list, params: type[Params]) -> tuple[OutputItem, dict]:
    """The first item of a job, and its summary."""
    result = run_local(msgspec.convert(task, params), inputs)
    return result.items[0], result.summary


def pixels(item: OutputItem, key: str) -> np.ndarray:
    """Band 1 of an output, masked where missing."""
    described = next(asset.raster for asset in item.assets if asset.key == key)
    assert described is not None
    block = raster.read_block(described, [1], described.window)
    return np.ma.array(block.pixels[0], mask=False if block.valid is None else ~block.valid[0])


def main(target: Path) -> None:
    """Run the job of the page and draw its outputs."""
    items = generate(Path(tempfile.mkdtemp()), size_px=256).items()
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.6), layout="constrained")
    for axis, (day, title) in zip(axes, DAYS.items(), strict=False):
        scene = [item for item in items if item.id.endswith(day)]
        task = {"method": "spectral_index", "indices": ["NBR"], "mask": "sentinel-2-scl"}
        index, _ = made(task, scene, SpectralIndexParams)
        shown = axis.imshow(pixels(index, "data"), cmap="RdYlGn", vmin=-0.4, vmax=0.8, interpolation="none")
        axis.set_title(title, fontsize=10)
    figure.colorbar(shown, ax=axes[:2], orientation="horizontal", shrink=0.5, pad=0.02)
    task = {
        "method": "change_detection", "statistic": {"type": "index_difference"}, "masks": ["sentinel-2-scl"],
        "before": ["landscape-20240519"], "after": ["landscape-20240812"], "direction": "increase",
        "minimum_area_m2": 5000,
    }  # fmt: skip
    found, summary = made(task, items, ChangeDetectionParams)
    classes = pixels(found, "classes")
    rows = [row for row in summary["classes"] if row["pixels"]]
    colors = np.ones((256, 3))
    for row in rows:
        colors[row["class"]] = mpl.colors.to_rgb(row["color"])
    axes[2].imshow(colors[classes.filled(255)], interpolation="none")
    axes[2].set_title("Severity by dNBR", fontsize=10)
    patches = [Patch(facecolor=row["color"], edgecolor="gray", label=row["name"]) for row in rows]
    axes[2].legend(handles=patches, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False)
    href = next(asset.object.href for asset in found.assets if asset.key == "table")
    table = parquet.read_table(io.BytesIO(read_object(href)))
    described = next(asset.raster for asset in found.assets if asset.key == "classes")
    a, _, c, _, e, f = described.transform
    ramp, limits = mpl.colormaps["viridis"], (0.0, 0.9)
    for row in table.to_pylist():
        for part in shapely.get_parts(shapely.from_wkb(row["geometry"])):
            for ring in (part.exterior, *part.interiors):
                x, y = ring.xy
                color = ramp(row["confidence"] / limits[1])
                axes[3].plot((np.array(x) - c) / a - 0.5, (np.array(y) - f) / e - 0.5, color=color, linewidth=1.2)
    axes[3].set_xlim(-0.5, 255.5)
    axes[3].set_ylim(255.5, -0.5)
    axes[3].set_aspect("equal")
    axes[3].set_title(f"{table.num_rows} areas by confidence", fontsize=10)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(*limits), ramp)
    figure.colorbar(scale, ax=axes[3], orientation="horizontal", shrink=0.8, pad=0.02)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(target, dpi=72, bbox_inches="tight")
    Image.open(target).convert("RGB").quantize(160).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
