"""IR-MAD of two dates of six bands (Nielsen 2007): canonical variates of reweighted pixels, and their chi-square."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import rasterio

from benchmarks import data
from benchmarks.bounds import Read
from benchmarks.harness import Answer, Row
from benchmarks.rows.arithmetic import write_bands
from benchmarks.rows.looking import cuts
from benchmarks.rows.series import SIX, START, side_of

Pair = tuple[Path, Path]


def pair(folder: Path, side: int) -> Pair:
    """The same fields before and after."""
    across = side_of(side)
    before = [data.fields(across, 60, band) for band in range(len(SIX))]
    after = [data.fields_later(across, 60, band) for band in range(len(SIX))]
    return (
        data.written(folder / f"before-{across}.tif", across, before),
        data.written(folder / f"after-{across}.tif", across, after),
    )


STEPS_MAX = 50
SAMPLE_MAX = 1 << 22
RHO_STEP = 1e-3


def irmad_numpy(inputs: Pair, folder: Path) -> Path:
    """Straight NumPy: whole arrays, two BLAS threads, iterated until the canonical correlations rest."""
    stacks = []
    for path in inputs:
        with rasterio.open(path, num_threads=2) as source:
            stacks.append(source.read().reshape(source.count, -1).T.astype(np.float64))
            profile = {"crs": source.crs, "transform": source.transform, "shape": source.shape}
    # Fitted on the same pixels as ours: every n-th along both axes, as many as its largest sample holds.
    height, width = profile["shape"]
    step = next(n for n in range(1, height) if -(-height // n) * -(-width // n) <= SAMPLE_MAX)
    chosen = [stack.reshape(height, width, -1)[::step, ::step].reshape(-1, stack.shape[1]) for stack in stacks]
    variates, chi2 = irmad(chosen, stacks)
    return write_bands(np.vstack([variates.T, chi2[None]]).reshape(-1, *profile.pop("shape")), profile, folder)


def irmad(sample: list[np.ndarray], stacks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """MAD variates (pixel, band) and their chi-square (pixel) of the stacks (pixel, band), fitted on the sample."""
    count, both = sample[0].shape[1], np.hstack(sample)
    weights, last = np.ones(len(both)), np.full(count, np.inf)
    for _ in range(STEPS_MAX):
        mean = weights @ both / weights.sum()
        centred = both - mean
        covariance = (centred * weights[:, None]).T @ centred / weights.sum()
        s11, s12, s22 = covariance[:count, :count], covariance[:count, count:], covariance[count:, count:]
        root = np.linalg.inv(np.linalg.cholesky(s11))
        squares, vectors = np.linalg.eigh(root @ s12 @ np.linalg.solve(s22, s12.T) @ root.T)
        rho = np.sqrt(np.clip(squares, 0, 1))
        a = root.T @ vectors
        b = np.linalg.solve(s22, s12.T @ a) / rho
        variates = centred[:, :count] @ a - centred[:, count:] @ b
        chi2 = (np.square(variates) / (2 * (1 - rho))).sum(axis=1)
        if np.abs(rho - last).max() < RHO_STEP:
            break
        weights, last = 1 - _chi_square_cdf_even(chi2, count), rho
    if len(stacks[0]) > len(both):
        variates = (stacks[0] - mean[:count]) @ a - (stacks[1] - mean[count:]) @ b
        chi2 = (np.square(variates) / (2 * (1 - rho))).sum(axis=1)
    return variates, chi2


def _chi_square_cdf_even(x: np.ndarray, freedom: int) -> np.ndarray:
    """Of an even number of degrees of freedom: 1 − exp(−x/2) Σ (x/2)ᵏ / k!."""
    half, term = x / 2, np.ones_like(x)
    total = term.copy()
    for k in range(1, freedom // 2):
        term = term * half / k
        total += term
    return 1 - np.exp(-half) * total


def irmad_ours(inputs: Pair, folder: Path) -> Path:
    """The same iteration, in rounds of shards."""
    from benchmarks.ours import item, output, run

    before, after = inputs
    task = {
        "method": "change_detection",
        "statistic": {"type": "irmad", "tolerance": RHO_STEP, "rounds": STEPS_MAX},
        "value": {"bands": list(SIX)},
        "before": ["before"],
        "after": ["after"],
        "sample_pixels": SAMPLE_MAX,
        "polygons": False,
    }
    items = [item(before, *SIX, id="before", at=START), item(after, *SIX, id="after", at=START + timedelta(days=365))]
    return output(run(task, items, folder), "change")


def near_chi2(ours: Answer, theirs: Answer) -> None:
    """Chi-square, our first band and their last, within a hundredth for all but one pixel of a hundred."""
    for name in (name for name in ours if name.startswith("pixels_")):
        mine, other = ours[name][0], theirs[name][-1]
        apart = np.abs(mine - other) / np.maximum(np.abs(other), 1e-3)
        assert np.quantile(apart, 0.99) <= 0.01, f"the 99th percentile of differences is {np.quantile(apart, 0.99):.3f}"


ROWS = [
    Row(
        id="irmad", peer="NumPy (whole arrays, BLAS on 2 threads)", floor=8.0,
        pixels=lambda side: side_of(side) ** 2, prepare=pair, ours=irmad_ours, theirs=irmad_numpy, look=cuts,
        agree=near_chi2, reads=lambda inputs: [Read(path=path) for path in inputs], method="change_detection",
        peer_environment={"OPENBLAS_NUM_THREADS": "2"},
    )
]  # fmt: skip
