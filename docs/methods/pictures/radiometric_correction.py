"""Draw `radiometric_correction.png`: numbers whose gain and noise vary over the image, and the same as sigma nought."""

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from eorouter_compute import raster
from eorouter_compute.methods.radiometric_correction import RadiometricCorrectionParams
from eorouter_compute.testing import input_item, run_local, write_raster

SIDE = 360
COLUMNS = list(range(0, SIDE + 1, 40))


def main(target: Path) -> None:
    """Make a scene of dark water and brighter land, spoil it as a sensor does, and run the job of the page."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    shore = 170 + 45 * np.sin(y / 40) + 20 * np.sin(y / 13 + 1)
    sigma = np.where(x < shore, 0.006, 0.08 + 0.05 * np.sin(x / 19 + y / 31) ** 2)
    gain = 520 - 0.45 * COLUMNS[-1] * np.sin(np.pi * np.array(COLUMNS) / SIDE)
    noise = 500 + 900 * (np.array(COLUMNS) / SIDE - 0.5) ** 2 * 4
    power = sigma * rng.gamma(5, 1 / 5, sigma.shape) * np.interp(x, COLUMNS, gain) ** 2
    band = (x // 60) % 2
    numbers = np.rint(np.sqrt(power + np.interp(x, COLUMNS, noise) * (1 + band))).astype(np.uint16)
    blocks = [
        {"first_line": 0, "last_line": SIDE, "first_sample": n, "last_sample": n + 59, "line": [0], "values": [2.0]}
        for n in (60, 180, 300)
    ]
    tables = {
        "vectors": [{"line": 0, "pixel": COLUMNS, "values": gain.tolist()}],
        "noise": {"range": [{"line": 0, "pixel": COLUMNS, "values": noise.tolist()}], "azimuth": blocks},
    }
    item = input_item(write_raster(Path(tempfile.mkdtemp()) / "grd.tif", numbers[None], names=["vv"]))
    calibration = {"type": "sentinel1", "bands": {"vv": tables}}
    task = {"method": "radiometric_correction", "calibration": calibration}
    asset = run_local(msgspec.convert(task, RadiometricCorrectionParams), [item]).items[0].assets[0].raster
    assert asset is not None
    made = raster.read_block(asset, [1], asset.window).pixels[0]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, pixels, title, limits in (
        (axes[0], numbers, "digital numbers", (0, 180)),
        (axes[1], 10 * np.log10(np.maximum(made, 1e-4)), "σ⁰, dB", (-30, -5)),
    ):
        figure.colorbar(axis.imshow(pixels, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="none"), ax=axis)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    water = np.where(x < shore - 3, 1.0, np.nan)[:, :95]
    plain = numbers.astype(float) ** 2 / np.interp(x, COLUMNS, gain) ** 2
    axes[2].plot(np.nanmean(water * plain[:, :95], axis=0), color="#d73027", label="noise left in", linewidth=1)
    axes[2].plot(np.nanmean(water * made[:, :95], axis=0), color="#2166ac", label="noise removed", linewidth=1)
    axes[2].axhline(0.006, color="0.5", linewidth=0.8, label="truth")
    axes[2].set_title("σ⁰ of the water, mean by column", fontsize=10)
    axes[2].set_ylim(0, None)
    axes[2].legend(fontsize=8, frameon=False)
    figure.savefig(target, dpi=72)
    Image.open(target).convert("RGB").quantize(96, method=Image.Quantize.FASTOCTREE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
