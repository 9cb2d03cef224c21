"""Twin of the kernel that keeps data clear of nodata."""

import numpy as np

from eorouter_kernels.nodata import Nodata


def step_aside(pixels: np.ndarray, valid: np.ndarray, nodata: Nodata) -> None:
    """Move valid pixels that would be taken for nodata aside, in place."""
    taken = (pixels >= nodata.first) & (pixels <= nodata.last)
    pixels[taken & valid if valid.size else taken] = nodata.aside
