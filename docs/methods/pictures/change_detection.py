"""Draw the picture of the method's page: burnt fields of the generated landscape, before, after, severity classes."""

import tempfile
from pathlib import Path

import msgspec

from eorouter_compute.attempt import read_object
from eorouter_compute.landscape import generate
from eorouter_compute.methods.change_detection import ChangeDetectionParams
from eorouter_compute.testing import run_local

with tempfile.TemporaryDirectory() as folder:
    land = generate(Path(folder) / "landscape", size_px=256)
    task = {
        "method": "change_detection",
        "statistic": {"type": "index_difference"},
        "before": ["landscape-20240519"],
        "after": ["landscape-20240812"],
        "masks": ["sentinel-2-scl"],
        "direction": "increase",
        "minimum_area_m2": 5000,
    }
    result = run_local(msgspec.convert(task, ChangeDetectionParams), land.items(), Path(folder) / "job")
    asset = next(asset for asset in result.items[0].assets if asset.key == "picture")
    Path(__file__).with_suffix(".png").write_bytes(read_object(asset.object.href))
