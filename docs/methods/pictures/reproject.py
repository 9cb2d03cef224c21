"""Draw reproject.png: a corner of the generated landscape, turned into Web Mercator pixels of 4 m in four ways."""

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

from eorouter_compute import landscape, raster, warp
from eorouter_compute.grid import Grid
from eorouter_compute.method import RasterAsset

mpl.use("Agg")
from matplotlib import pyplot as plt

KINDS = ("nearest", "bilinear", "cubic", "lanczos")


def main() -> None:
    """Write the picture beside this script."""
    with tempfile.TemporaryDirectory() as folder:
        made = landscape.generate(Path(folder), size_px=512)
        asset = raster.describe(made.scenes[2].bands_10m.as_uri())
        west, north = (float(each) for each in warp_corner(asset))
        grid = Grid(crs="EPSG:3857", transform=(4.0, 0.0, west, 0.0, -4.0, north), shape=(110, 110))
        pictures = {kind: picture(asset, grid, kind) for kind in KINDS}
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
    for axis, (kind, image) in zip(axes, pictures.items(), strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(kind, fontsize=9)
        axis.set_axis_off()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


def warp_corner(asset: RasterAsset) -> tuple[float, float]:
    """A place in the raster's middle, in Web Mercator."""
    from eorouter_compute.positions import moved

    a, _, c, _, e, f = asset.transform
    x, y = moved(asset.crs, "EPSG:3857", np.array([c + a * 200]), np.array([f + e * 200]))
    return x[0], y[0]


def picture(asset: RasterAsset, grid: Grid, kind: warp.Resampling) -> np.ndarray:
    """Red, green and blue, stretched."""
    block = warp.read(warp.placed(asset, grid, resampling=kind), [3, 2, 1], grid.window)
    values = block.pixels.transpose(1, 2, 0).astype(np.float64)
    low, high = 1000.0, 2600.0
    return np.clip((values - low) / (high - low), 0, 1) ** 0.7


if __name__ == "__main__":
    main()
