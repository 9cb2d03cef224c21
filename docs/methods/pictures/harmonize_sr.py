"""Draw `harmonize_sr.png`: how far each table moves a reflectance, by band."""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from eorouter_compute import bandpass

WAYS = (
    ("Sentinel-2A → OLI, HLS", "sentinel-2a", {}),
    ("Sentinel-2B → OLI, HLS", "sentinel-2b", {}),
    ("ETM+ → OLI, Roy RMA", "landsat-7", {}),
    ("ETM+ → OLI, Roy OLS", "landsat-7", {"etm_oli": "roy-2016-ols"}),
)
COLORS = {"coastal": "#5b4fa3", "blue": "#2166ac", "green": "#1a9850", "red": "#d73027", "nir": "#7f3b08",
          "swir16": "#666666", "swir22": "#111111"}  # fmt: skip


def main(target: Path) -> None:
    """One panel per table: harmonised minus original reflectance."""
    figure, axes = plt.subplots(1, len(WAYS), figsize=(12, 3.4), sharey=True, layout="constrained")
    reflectance = np.linspace(0, 0.5, 51)
    for axis, (title, platform, tables) in zip(axes, WAYS, strict=True):
        for role, fit in bandpass.fits(platform, "oli", **tables).items():
            moved = fit.slope * reflectance + fit.offset - reflectance
            axis.plot(reflectance, moved, color=COLORS[role], label=role, linewidth=1.5)
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("reflectance before")
    axes[0].set_ylabel("after − before")
    axes[0].legend(fontsize=7, ncols=2, frameon=False, loc="lower left")
    figure.savefig(target, dpi=72)
    Image.open(target).convert("RGB").quantize(96, method=Image.Quantize.FASTOCTREE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
