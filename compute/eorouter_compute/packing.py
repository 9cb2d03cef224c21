"""Results as stored numbers: scaled, rounded, held to what the dtype can hold, and kept clear of nodata."""

import math

import numpy as np
from msgspec import Struct

from eorouter_kernels import expression as machine
from eorouter_kernels.nodata import kept_clear


class Packing(Struct, frozen=True, kw_only=True):
    """How results become stored numbers: (value − `offset`) / `scale`; for integers rounded half to even.

    Attributes:
        dtype: one of the raster writer's.
        nodata: stored where missing, and for nothing else: a value that would be taken for it steps aside, as
            `eorouter_kernels.nodata` says. Without one, 0 (NaN in floats) is stored and only the valid flags tell.
        is_clamped: what an integer dtype cannot hold is held to the nearer end of its range (true), or missing (false).
            What would be infinite in a float dtype is missing.
    """

    dtype: str
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    is_clamped: bool = True


def pack(values: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Stored numbers and valid flags, both of the shape of `values` (float64, NaN where missing)."""
    return _floats(values, packing) if np.dtype(packing.dtype).kind == "f" else _integers(values, packing)


def _integers(values: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    info = np.iinfo(packing.dtype)
    out, valid = np.empty(values.shape, packing.dtype), np.empty(values.shape, np.bool_)
    nodata = packing.nodata
    machine.pack_values(
        np.ascontiguousarray(values).reshape(-1),
        packing.scale,
        packing.offset,
        float(info.min),
        float(info.max),
        packing.is_clamped,
        math.nan if nodata is None else float(nodata),
        0.0 if nodata is None else float(nodata),
        out.reshape(-1),
        valid.reshape(-1),
    )
    return out, valid


def _floats(values: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        stored = ((values - packing.offset) / packing.scale).astype(packing.dtype)
    valid = np.isfinite(stored)
    stored = kept_clear(stored, valid, packing.nodata)
    stored[~valid] = math.nan if packing.nodata is None else packing.nodata
    return stored, valid
