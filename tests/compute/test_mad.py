import numpy as np
import pytest
from scipy import linalg

from eorouter_compute import mad
from eorouter_compute.errors import InvalidParameter


def two_dates(bands=3, pixels=70_000, changed=700):
    """Linearly related dates with noise, and some pixels that do not follow."""
    rng = np.random.default_rng(bands)
    ground = rng.normal(size=(bands, pixels))
    before = 1000 + 100 * ground
    after = 500 + 80 * (np.eye(bands) + 0.3) @ ground + rng.normal(0, 20, ground.shape)
    after[:, :changed] += 600 * (-1.0) ** np.arange(bands)[:, None]
    return np.vstack([before, after]).astype("float32")


def projected(found, sample):
    return np.array(found.matrix) @ sample.astype(float) - np.array(found.shift)[:, None]


def test_one_round_is_canonical_correlation():
    sample = two_dates()
    found = mad.irmad(sample, tolerance=1e-9, rounds=1)
    spread = np.cov(sample.astype(float), ddof=0)
    one, two, cross = spread[:3, :3], spread[3:, 3:], spread[:3, 3:]
    squares = linalg.eigh(cross @ np.linalg.solve(two, cross.T), one, eigvals_only=True)
    np.testing.assert_allclose(found.correlations, np.sqrt(squares[::-1]), rtol=1e-8)
    variates = projected(found, sample)
    # Uncorrelated, centred, of unit variance: Var(a'x - b'y) = 2 (1 - rho).
    np.testing.assert_allclose(np.cov(variates, ddof=0), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(variates.mean(axis=1), 0, atol=1e-6)


def test_weights_take_the_changed_pixels_out_of_the_transform():
    sample = two_dates()
    plain, weighted = (mad.irmad(sample, tolerance=1e-4, rounds=rounds) for rounds in (1, 60))
    clean = mad.irmad(sample[:, 700:], tolerance=1e-4, rounds=1)
    assert 1 < weighted.rounds < 60

    def off(found):
        return np.abs(np.array(found.correlations) - clean.correlations).max()

    assert off(weighted) < off(plain) / 5
    z = (projected(weighted, sample) ** 2).sum(axis=0)
    # Weights make the variance of what did not change too small; what did change still lies far beyond it.
    assert z[:700].min() > z[700:].max()


def test_neither_gain_nor_offset_of_a_date_matters():
    sample = two_dates().astype("float64")
    changed = sample.copy()
    changed[3:] = changed[3:] * np.array([[2.0], [0.25], [4.0]]) + 64
    one, other = (mad.irmad(each.astype("float32"), tolerance=1e-6, rounds=5) for each in (sample, changed))
    z, same = ((projected(found, each) ** 2).sum(axis=0) for found, each in ((one, sample), (other, changed)))
    np.testing.assert_allclose(same, z, rtol=2e-3, atol=2e-3)


def test_sums_of_runs_are_added_in_the_same_order_every_time():
    sample = two_dates(pixels=200_000)
    assert mad.irmad(sample, tolerance=1e-6, rounds=8) == mad.irmad(sample, tolerance=1e-6, rounds=8)


@pytest.mark.parametrize("is_stacked", [False, True])
def test_components_have_the_variances_of_the_spectrum(is_stacked):
    sample = two_dates()
    data = sample.astype(float) if is_stacked else sample[3:].astype(float) - sample[:3]
    spectrum = np.linalg.eigvalsh(np.cov(data, ddof=0))[::-1]
    for number, variance in enumerate(spectrum, 1):
        found = mad.component(sample, number=number, is_stacked=is_stacked)
        score = projected(found, sample)[0]
        assert score.mean() == pytest.approx(0, abs=1e-6)
        assert score.var() == pytest.approx(variance, rel=1e-6)
        assert sum(found.matrix[0][3:]) >= 0


def constant(sample):
    sample[1] = 7


def repeated(sample):
    sample[5] = 2 * sample[3] - sample[4]


@pytest.mark.parametrize(("spoil", "side"), [(constant, "before"), (repeated, "after")])
def test_bands_that_say_nothing_new_are_refused_by_side(spoil, side):
    sample = two_dates(pixels=5000)
    spoil(sample)
    with pytest.raises(InvalidParameter, match=f"bands {side} are linear combinations") as caught:
        mad.irmad(sample, tolerance=1e-3, rounds=5)
    assert caught.value.pointer == "/value/bands"


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize("level", [0.0, 300.0, 1e5])
def test_components_of_equal_dates_are_refused_beyond_the_bands_own(is_stacked, level):
    ground = np.random.default_rng(3).normal(level, 1.0, (3, 40_000)).astype("float32")
    sample = np.vstack([ground, ground])
    kept = 3 if is_stacked else 0
    for number in range(1, 6 if is_stacked else 4):
        if number <= kept:
            assert projected(mad.component(sample, number=number, is_stacked=is_stacked), sample).std() > 0.5
            continue
        with pytest.raises(InvalidParameter, match=f"Component {number} of .* no two different values") as caught:
            mad.component(sample, number=number, is_stacked=is_stacked)
        assert caught.value.pointer == "/statistic/component"


def test_a_band_that_others_make_up_leaves_a_component_without_variance():
    sample = two_dates(bands=2, pixels=5000)
    before, after = sample[:2], sample[2:]
    sample = np.vstack([before, before.sum(axis=0), after, after.sum(axis=0)]).astype("float32")
    assert projected(mad.component(sample, number=2, is_stacked=False), sample).std() > 1
    with pytest.raises(InvalidParameter, match="no two different values"):
        mad.component(sample, number=3, is_stacked=False)


def test_one_changed_pixel_of_a_million_is_a_component():
    before = np.random.default_rng(1).integers(0, 10_000, (2, 1_000_000)).astype("float32")
    sample = np.vstack([before, before])
    sample[2, 123_456] += 10
    score = projected(mad.component(sample, number=1, is_stacked=False), sample)[0]
    assert np.argmax(np.abs(score)) == 123_456


def test_too_small_samples_and_absent_components_are_refused():
    sample = two_dates(pixels=59, changed=0)
    with pytest.raises(InvalidParameter, match="needs 60 valid pixels at least; the sample has 59"):
        mad.irmad(sample, tolerance=1e-3, rounds=5)
    with pytest.raises(InvalidParameter, match="no component 4: 3 bands") as caught:
        mad.component(sample, number=4, is_stacked=False)
    assert caught.value.pointer == "/statistic/component"
    with pytest.raises(InvalidParameter, match="1 sampled pixels"):
        mad.component(sample[:, :1], number=1, is_stacked=True)
