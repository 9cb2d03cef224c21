import numpy as np
import pytest

from eorouter_compute import thresholds
from eorouter_compute.errors import InvalidParameter


def test_otsu_is_the_best_of_all_cuts():
    rng = np.random.default_rng(0)
    counts = np.histogram(np.concatenate([rng.normal(0, 1, 5000), rng.normal(6, 2, 900)]), 64)[0]
    at = np.repeat(np.arange(64), counts)
    within = [
        np.inf if not ((at <= cut).any() and (at > cut).any())
        else (at <= cut).sum() * at[at <= cut].var() + (at > cut).sum() * at[at > cut].var()
        for cut in range(63)
    ]  # fmt: skip
    assert thresholds.otsu(counts) == int(np.argmin(within))


def test_kittler_illingworth_finds_where_two_normals_cross():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 1, 200_000), rng.normal(8, 2, 20_000)])
    x = np.linspace(0, 8, 8001)
    one, two = 10 * np.exp(-(x**2) / 2), np.exp(-((x - 8) ** 2) / 8) / 2
    _, found = thresholds.found(thresholds.KittlerIllingworth(), values)
    assert found == pytest.approx(x[np.argmin(np.abs(one - two))], abs=0.15)


def test_sigmas_and_refusal():
    centre, limit = thresholds.found(thresholds.Sigmas(k=3), np.array([1.0, 3.0]))
    assert (centre, limit) == (2.0, 3.0)
    with pytest.raises(InvalidParameter, match="no two different values"):
        thresholds.found(thresholds.Otsu(), np.ones(9))
