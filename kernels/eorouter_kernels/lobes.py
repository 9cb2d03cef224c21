# ruff: noqa: PLR0917  numba passes arguments by position
"""Interpolation kernels along one axis: which source pixels they touch, and with what weights."""

import numpy as np

from eorouter_kernels._jit import kernel

BILINEAR, CUBIC, LANCZOS, AVERAGE, SUM = range(5)

SCALE_MIN = 1.05
"""Kernels are widened where a target pixel is more than this many source pixels wide, as GDAL does (0.95⁻¹)."""

SLIVER = 1e-6
"""Overlaps narrower than this, in source pixels, are rounding."""


@kernel
def taps(kind: int, scale: float) -> int:
    """Source pixels that a kernel of this width can touch along one axis."""
    if kind >= AVERAGE:
        return int(np.ceil(scale)) + 1
    radius = 1.0 if kind == BILINEAR else 2.0 if kind == CUBIC else 3.0
    return int(np.ceil(2.0 * radius * scale))


@kernel
def _lobes(
    kind: int, taps: int, rows: int, is_wide: bool, count: int, offset: np.ndarray, inverse: np.ndarray,
    whole: np.ndarray, weights: np.ndarray,
) -> None:  # fmt: skip
    """The kernel at every tap, and in `whole` the sum over them where it is not 1 by construction.

    Shapes: offset, inverse, whole (≥ count,); weights (≥ rows, ≥ count), zero in rows from `taps` on. `offset` is the
        centre, counted from the first tap, `inverse` one over the kernel's width; of a box they are its lower end and
        its width.
    """
    real = weights.dtype.type
    zero, one, two = real(0), real(1), real(2)
    for k in range(rows):
        if k >= taps:
            for j in range(count):
                weights[k, j] = zero
        elif kind >= AVERAGE:
            for j in range(count):
                cut = min(real(k) + one, offset[j] + inverse[j]) - max(real(k), offset[j])
                weights[k, j] = cut if cut > real(SLIVER) else zero
                whole[j] += weights[k, j]
        elif kind == CUBIC and not is_wide and 1 <= k <= 2:
            for j in range(count):
                d = abs(real(k) - offset[j])
                weights[k, j] = (real(1.5) * d - real(2.5)) * d * d + one
        elif kind == CUBIC and not is_wide:
            for j in range(count):
                d = abs(real(k) - offset[j])
                weights[k, j] = ((real(2.5) - real(0.5) * d) * d - real(4)) * d + two
        elif kind == BILINEAR and not is_wide:
            for j in range(count):
                weights[k, j] = one - abs(real(k) - offset[j])
        elif kind == BILINEAR:
            for j in range(count):
                weights[k, j] = max(one - abs(real(k) - offset[j]) * inverse[j], zero)
                whole[j] += weights[k, j]
        elif kind == CUBIC:
            for j in range(count):
                d = abs(real(k) - offset[j]) * inverse[j]
                near = (real(1.5) * d - real(2.5)) * d * d + one
                far = ((real(2.5) - real(0.5) * d) * d - real(4)) * d + two
                weights[k, j] = near if d < one else (far if d < two else zero)
                whole[j] += weights[k, j]
        else:
            for j in range(count):
                d = abs(float(k) - offset[j]) * inverse[j]
                s = np.sin(np.pi / 3.0 * d)
                # sin 3a = sin a (3 − 4 sin² a): one sine instead of two.
                lobe = s * s * (3.0 - 4.0 * s * s) * 3.0 / (np.pi * np.pi * max(d * d, 1e-12))
                weights[k, j] = real(1.0 if d < 1e-6 else lobe if d < 3.0 else 0.0)
                whole[j] += weights[k, j]


@kernel
def weights_along(
    kind: int, centre: np.ndarray, scale: np.ndarray, taps: int, rows: int, is_wide: bool, is_even: bool, count: int,
    first: np.ndarray, weights: np.ndarray, offset: np.ndarray, inverse: np.ndarray, whole: np.ndarray,
) -> None:  # fmt: skip
    """First source pixel and weights of a kernel along one axis, for pixels of one row.

    Shapes: centre, scale (≥ count,) float64; first (≥ count,) int32; weights (≥ rows, ≥ count), zero in rows from
        `taps` on; offset, inverse, whole (≥ count,) are room to work in.
    Units: source pixels. The weights of each pixel sum to 1; of SUM they are overlaps. `is_even` says that the scales
        are all alike.
    Reference: triangle; Keys 1981, IEEE ASSP 29(6), a = −1/2; Lanczos with three lobes; box overlap.
    """
    real = weights.dtype.type
    zero, one = real(0), real(1)
    radius = 0.5 if kind >= AVERAGE else 1.0 if kind == BILINEAR else 2.0 if kind == CUBIC else 3.0
    # One array per loop, see `row_positions`.
    if kind >= AVERAGE:
        for j in range(count):
            low = np.floor(centre[j] - 0.5 * scale[j] + SLIVER)
            first[j] = np.int32(min(max(low, -1e9), 1e9))
        for j in range(count):
            offset[j] = real(centre[j] - 0.5 * scale[j] - first[j])
        for j in range(count):
            inverse[j] = real(scale[j])
    elif is_wide:
        for j in range(count):
            low = np.floor(centre[j] - 0.5 - radius * scale[j]) + 1.0
            first[j] = np.int32(min(max(low, -1e9), 1e9))
        for j in range(count):
            offset[j] = real(centre[j] - 0.5 - first[j])
        if is_even:
            inverse[:count] = real(1.0 / scale[0])
        else:
            for j in range(count):
                inverse[j] = real(1.0 / scale[j])
    else:
        for j in range(count):
            low = np.floor(centre[j] - 0.5) + (1.0 - radius)
            first[j] = np.int32(min(max(low, -1e9), 1e9))
        for j in range(count):
            offset[j] = real(centre[j] - 0.5 - first[j])
        for j in range(count):
            inverse[j] = one
    for j in range(count):
        whole[j] = zero
    _lobes(kind, taps, rows, is_wide, count, offset, inverse, whole, weights)
    if kind == SUM or (not is_wide and kind <= CUBIC):
        return
    for j in range(count):
        whole[j] = one / whole[j] if whole[j] != zero else one
    for k in range(taps):
        for j in range(count):
            weights[k, j] *= whole[j]
