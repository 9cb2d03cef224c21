"""Draw `cog.png`: one level of a small picture's pyramid by average, by max, and of classes by mode."""

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
import rasterio
from PIL import Image

from eorouter_compute.attempt import local_path
from eorouter_compute.methods.cog import CogParams
from eorouter_compute.testing import input_item, run_local, write_raster

SIDE = 256
LEVEL = 2


def level(pixels: np.ndarray, resampling: str) -> np.ndarray:
    """Level 2 of the COG that the job makes of a raster."""
    asset = write_raster(Path(tempfile.mkdtemp()) / "a.tif", pixels[None])
    task = {"method": "cog", "block_size": 256, "overview_levels": LEVEL + 1, "overview_resampling": resampling}
    made = run_local(msgspec.convert(task, CogParams), [input_item(asset)]).items[0].assets[0]
    with rasterio.open(local_path(made.object.href), overview_level=LEVEL) as source:
        return source.read(1)


def main(target: Path) -> None:
    """Ships on a rough sea, and fields in stripes."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    sea = 40 + 12 * np.sin((x + 2 * y) / 25) + rng.gamma(2, 4, (SIDE, SIDE))
    sea[rng.integers(0, SIDE, 14), rng.integers(0, SIDE, 14)] = 250
    fields = ((x // 37 + y // 53) % 4 + (rng.random((SIDE, SIDE)) < 0.15)) % 4
    panels = (
        ("sea with ships", sea, "gray", 160),
        ("level 3, average", level(sea.astype(np.uint8), "average"), "gray", 160),
        ("level 3, max", level(sea.astype(np.uint8), "max"), "gray", 160),
        ("classes", fields, "Set2", 7),
        ("level 3, mode", level(fields.astype(np.uint8), "mode"), "Set2", 7),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 2.8), layout="constrained")
    for axis, (title, pixels, ramp, top) in zip(axes, panels, strict=True):
        axis.imshow(pixels, cmap=ramp, vmin=0, vmax=top, interpolation="none")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(target, dpi=72)
    Image.open(target).convert("RGB").quantize(64, method=Image.Quantize.FASTOCTREE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
