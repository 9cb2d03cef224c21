"""Draw `spectral_index.png`: four indices of one date of the generated landscape, made in one pass."""

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
from eorouter_compute.methods.spectral_index import SpectralIndexParams
from eorouter_compute.testing import run_local

PANELS = (
    ("NDVI", "YlGn", (0, 0.9)),
    ("NDWI", "BrBG", (-0.8, 0.8)),
    ("NBR", "RdYlGn", (-0.3, 0.8)),
    ("NDMI", "PuOr", (-0.5, 0.5)),
)


def main(target: Path) -> None:
    """Run the job of the page and draw its bands."""
    place = generate(Path(tempfile.mkdtemp()), seed=5, size_px=320, dates=[date(2024, 6, 5)], cloud_shares=[0.0])
    task = {"method": "spectral_index", "indices": [name for name, _, _ in PANELS]}
    asset = run_local(msgspec.convert(task, SpectralIndexParams), place.items()).items[0].assets[0].raster
    assert asset is not None
    block = raster.read_block(asset, [band.index for band in asset.bands], asset.window)
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
    for axis, pixels, (name, ramp, limits) in zip(axes, block.pixels, PANELS, strict=True):
        shown = axis.imshow(
            np.ma.masked_invalid(pixels), cmap=ramp, vmin=limits[0], vmax=limits[1], interpolation="none"
        )
        figure.colorbar(shown, ax=axis, orientation="horizontal", shrink=0.8, pad=0.02)
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    figure.savefig(target, dpi=72)
    Image.open(target).convert("RGB").quantize(64).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
