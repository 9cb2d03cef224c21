"""Draw `band_math.png`: two dates of the generated landscape, what changed between them, and where it fell by half."""

import sys
import tempfile
from datetime import date
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from eorouter_compute import raster
from eorouter_compute.landscape import generate
from eorouter_compute.method import OutputAsset
from eorouter_compute.methods.band_math import BandMathParams
from eorouter_compute.testing import run_local

NDVI = "(nir - red) / (nir + red)"
VARIABLES = {f"{band}{place}": {"band": band, "item": place} for place in (0, 1) for band in ("nir", "red")}
BEFORE, AFTER = (NDVI.replace("nir", f"nir{place}").replace("red", f"red{place}") for place in (0, 1))
PANELS = (
    (0, "ndvi, 5 June", "YlGn", (0, 0.9)),
    (1, "ndvi, 25 August", "YlGn", (0, 0.9)),
    (2, "after − before", "RdBu", (-0.7, 0.7)),
)


def pixels(asset: OutputAsset) -> np.ma.MaskedArray:
    """Pixels (band, y, x) of an output, masked where missing."""
    described = asset.raster
    assert described is not None
    block = raster.read_block(described, [band.index for band in described.bands], described.window)
    return np.ma.array(block.pixels, mask=False if block.valid is None else ~block.valid)


def main(target: Path) -> None:
    """Run the job of the page and draw its outputs."""
    days = [date(2024, 6, 5), date(2024, 8, 25)]
    place = generate(Path(tempfile.mkdtemp()), seed=5, size_px=320, dates=days, cloud_shares=[0.0, 0.0])
    outputs = [
        {"name": "before", "expression": BEFORE},
        {"name": "after", "expression": AFTER},
        {"name": "change", "expression": f"{AFTER} - {BEFORE}"},
        {"name": "fell", "expression": f"{AFTER} < 0.5 * {BEFORE}", "dtype": "uint8"},
    ]
    task = {"method": "band_math", "outputs": outputs, "variables": VARIABLES}
    floats, flags = run_local(msgspec.convert(task, BandMathParams), place.items()).items[0].assets[:2]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
    for axis, (band, title, ramp, limits) in zip(axes, PANELS, strict=False):
        drawn = axis.imshow(pixels(floats)[band], cmap=ramp, vmin=limits[0], vmax=limits[1], interpolation="none")
        figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.8, pad=0.02)
        axis.set_title(title, fontsize=10)
    axes[3].imshow(pixels(flags)[0], cmap="gray_r", vmin=0, vmax=1, interpolation="none")
    axes[3].set_title("after < 0.5 × before", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(target, dpi=72)
    Image.open(target).convert("RGB").quantize(64).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
