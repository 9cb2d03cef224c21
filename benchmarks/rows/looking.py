"""How answers are looked at and compared."""

from pathlib import Path

import numpy as np
import rasterio

from benchmarks.harness import Answer

_CUT = 512


def pixels(side: int) -> int:
    """Of a whole scene."""
    return side * side


def cuts(path: Path, _: object = None) -> dict[str, np.ndarray]:
    """Five windows of a raster at full resolution, the last overview, where it lies, and how large the file is."""
    with rasterio.open(path) as source:
        height, width = source.shape
        side = min(_CUT, height, width)
        found = {}
        for name, down, right in (("a", 0.0, 0.0), ("b", 0.1, 0.7), ("c", 0.5, 0.5), ("d", 0.8, 0.2), ("e", 1.0, 1.0)):
            row, col = int(down * (height - side)), int(right * (width - side))
            window = ((row, row + side), (col, col + side))
            found[f"pixels_{name}"] = source.read(window=window)
            found[f"valid_{name}"] = source.read_masks(window=window) > 0
        overviews = source.overviews(1)
        return found | {
            "transform": np.array(source.transform[:6]),
            "shape": np.array(source.shape),
            "overviews": np.array(overviews),
            "bytes": np.array(path.stat().st_size),
        }


def same_pixels(ours: Answer, theirs: Answer) -> None:
    """Equal grid, equal pixels where both have data, and data in the same places."""
    compare(ours, theirs)


def near_pixels(ours: Answer, theirs: Answer) -> None:
    """Equal to the last digits of float32."""
    compare(ours, theirs, rtol=1e-5, atol=1e-6)


def compare(ours: Answer, theirs: Answer, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Equal grid and data in the same places, with values equal to a tolerance."""
    np.testing.assert_array_equal(ours["shape"], theirs["shape"])
    np.testing.assert_allclose(ours["transform"], theirs["transform"], rtol=1e-12)
    for name in (name for name in ours if name.startswith("pixels_")):
        valid = ours[name.replace("pixels", "valid")]
        np.testing.assert_array_equal(valid, theirs[name.replace("pixels", "valid")])
        np.testing.assert_allclose(
            ours[name][valid].astype(float), theirs[name][valid].astype(float), rtol=rtol, atol=atol
        )


def not_larger(ours: Answer, theirs: Answer, *, most: float = 1.02) -> None:
    """Our file is at most 2 % larger."""
    ratio = float(ours["bytes"] / theirs["bytes"])
    assert ratio <= most, f"our file has {ratio:.3f} times the bytes of theirs, at most {most} is allowed"
