"""Draw `clip.png`: a polygon over the generated landscape, and which pixels belong to it by each of the three rules."""

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
from eorouter_compute.methods.clip import ClipParams
from eorouter_compute.testing import run_local

RULES = ({"pixel_rule": "center"}, {"pixel_rule": "all_touched"}, {"pixel_rule": "coverage", "min_coverage": 0.9})


def main(target: Path) -> None:
    """Clip a dozen pixels by a slanted polygon and draw the outline over what was kept."""
    place = generate(Path(tempfile.mkdtemp()), seed=5, size_px=320, dates=[date(2024, 6, 5)], cloud_shares=[0.0])
    east, north = place.transform[2], place.transform[5]
    ring = np.array([[1015, 1030], [1165, 1012], [1188, 1105], [1110, 1182], [1022, 1128], [1015, 1030]], float)
    ring = ring * [1, -1] + [east, north]
    area = {"type": "Polygon", "coordinates": [ring.tolist()]}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
    for axis, rule in zip(axes, RULES, strict=True):
        task = {"method": "clip", "aoi": area, "crs": place.crs, "bands": ["nir"], **rule}
        item = run_local(msgspec.convert(task, ClipParams), place.items()).items[0]
        asset = next(each.raster for each in item.assets if each.raster is not None)
        block = raster.read_block(asset, [1], asset.window)
        hidden = np.zeros(block.pixels[0].shape, bool) if block.valid is None else ~block.valid[0]
        a, _, c, _, e, f = asset.transform
        box = (c, c + a * asset.shape[1], f + e * asset.shape[0], f)
        axis.imshow(np.ma.array(block.pixels[0], mask=hidden), cmap="YlGn", extent=box, interpolation="none")
        axis.plot(ring[:, 0], ring[:, 1], color="#c1121f", linewidth=1.5)
        axis.set_title(
            ", ".join(f"{value}" for value in rule.values()) + f": {int((~hidden).sum())} pixels", fontsize=10
        )
        axis.set_axis_off()
    figure.savefig(target, dpi=72)
    Image.open(target).convert("RGB").quantize(64).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
