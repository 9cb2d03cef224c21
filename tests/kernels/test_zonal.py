"""Weighted statistics: the textbook twin, exactextract, and the laws of accumulators that shards rely on."""

import numpy as np
import pytest
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_kernels import coverage, quantiles, zonal
from eorouter_kernels.reference import zonal as reference

SEEDED = settings(deadline=None, derandomize=True, max_examples=60)

DTYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64)


def outlines_of(*shapes: shapely.Geometry) -> coverage.Outlines:
    parts = shapely.orient_polygons(np.array([shapely.MultiPolygon(list(shapely.get_parts(s))) for s in shapes]))
    _, vertices, (rings, polygons, zones) = shapely.to_ragged_array(parts)
    return coverage.outlines(vertices, rings.astype(np.int64), polygons[zones].astype(np.int64))


def measure(
    shapes: coverage.Outlines, pixels: np.ndarray, valid: np.ndarray | None = None, levels: tuple[float, ...] = (0.5,)
) -> tuple[np.ndarray, np.ndarray]:
    """State (zone, band, STATE) and quantiles (zone, level) of the first band."""
    work = coverage.pairs(shapes, (0, 0, *pixels.shape[1:]))
    partial = zonal.empty((len(work.zone), len(pixels)))
    owners, runs = [], []
    for batch in coverage.spans(shapes, work):
        zonal.update(batch, pixels, valid, (0, 0), np.ones(pixels.shape[1]), partial)
        runs.append(quantiles.collect(batch, quantiles.keys(pixels[0]), None if valid is None else valid[0], (0, 0)))
        owners.append(work.zone[batch.start : batch.start + len(batch.first) - 1])
    zones = len(shapes.areas)
    state = zonal.empty((zones, len(pixels)))
    order = np.argsort(work.zone, kind="stable")
    zonal.merge(work.zone[order], partial[order], state)
    joined = quantiles.join(owners, runs, zones)
    return state, quantiles.quantiles(joined, pixels.dtype, levels)


def random_pixels(seed: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(1000, 3, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -30_000), min(info.max, 3_000_000_000), shape, dtype=np.int64).astype(dtype)


def circle(seed: int, size: float) -> shapely.Geometry:
    x, y = np.random.default_rng(seed).uniform(2, 14, 2)
    return shapely.Point(x, y).buffer(size, quad_segs=5)


def test_statistics_of_the_drawn_square_are_those_done_by_hand():
    # Cells weigh ¼ ½ ¼ / ½ 1 ½ / ¼ ½ ¼.
    pixels = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    state, asked = measure(outlines_of(shapely.box(0.5, 0.5, 2.5, 2.5)), pixels)
    found = {name: float(values[0, 0]) for name, values in zonal.finish(state, np.zeros(1)).items()}
    assert found["count"] == 4.0
    assert found["sum"] == 20.0
    assert found["mean"] == 5.0
    assert (found["min"], found["max"]) == (1.0, 9.0)
    # ¼·16 + ½·9 + ¼·4 + ½·1 + 0, twice, over 4.
    assert found["variance"] == 5.0
    assert found["stdev"] == pytest.approx(np.sqrt(5.0), rel=1e-15)
    assert found["valid_fraction"] == 1.0
    assert found["area"] == 4.0
    assert asked[0, 0] == 5.0


def test_maskedand_outside_cells_lower_the_valid_fraction_and_nothing_else():
    pixels = np.full((1, 3, 3), 7, np.int16)
    pixels[0, 1, 1] = -32768
    valid = pixels != -32768
    shapes = outlines_of(shapely.box(0, 0, 3, 6))
    state, asked = measure(shapes, pixels, valid)
    found = zonal.finish(state, shapes.areas - 9.0)
    assert found["count"][0, 0] == 8.0
    assert found["min"][0, 0] == found["mean"][0, 0] == found["max"][0, 0] == asked[0, 0] == 7.0
    assert found["valid_fraction"][0, 0] == 8.0 / 18.0


def test_a_zone_without_valid_cells_has_no_statistics_but_a_count_of_zero():
    pixels = np.ones((1, 3, 3), np.float32)
    state, asked = measure(outlines_of(shapely.box(0.5, 0.5, 2, 2)), pixels, np.zeros((1, 3, 3), bool))
    found = zonal.finish(state, np.zeros(1))
    assert found["count"][0, 0] == 0.0
    assert found["valid_fraction"][0, 0] == 0.0
    for name in ("sum", "mean", "min", "max", "variance", "stdev"):
        assert np.isnan(found[name][0, 0]), name
    assert np.isnan(asked[0, 0])


def test_a_sliver_of_a_neighbour_is_not_counted():
    pixels = np.array([[[1, 1, 250]]], np.uint8)
    state, _ = measure(outlines_of(shapely.box(0, 0, 2 + 1e-11, 1)), pixels)
    assert zonal.finish(state, np.zeros(1))["max"][0, 0] == 1.0


def test_scale_and_offset_give_physical_values_and_a_falling_scale_swaps_the_extremes():
    pixels = np.array([[[10, 20]]], np.uint16)
    state, _ = measure(outlines_of(shapely.box(0, 0, 2, 1)), pixels)
    found = zonal.finish(state, np.zeros(1), np.array([-0.5]), np.array([3.0]))
    assert {name: found[name][0, 0] for name in ("sum", "mean", "min", "max", "stdev")} == {
        "sum": -9.0, "mean": -4.5, "min": -7.0, "max": -2.0, "stdev": 2.5,
    }  # fmt: skip


@SEEDED
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(0.1, 12),
    dtype=st.sampled_from(DTYPES),
    masked=st.floats(0, 1) | st.none(),
)
def test_statistics_equal_twin(seed: int, size: float, dtype: type, masked: float | None):
    pixels = random_pixels(seed, dtype, (2, 16, 17))
    valid = None if masked is None else np.random.default_rng(seed).random(pixels.shape) >= masked
    shapes = outlines_of(circle(seed, size), circle(seed + 1, size / 2))
    weights = coverage.coverage(shapes, (0, 0, 16, 17))
    weights[weights < zonal.SLIVER] = 0.0
    levels = (0.0, 0.1, 0.5, 0.77, 1.0)
    state, asked = measure(shapes, pixels, valid, levels)
    found = zonal.finish(state, np.zeros(2))
    everywhere = np.ones(pixels.shape[1:], bool)
    rounding = 1e-15 * float(np.abs(pixels.astype(np.float64)).max())  # of the twin, which has no pivot
    for zone in range(2):
        for band in range(2):
            mask = everywhere if valid is None else valid[band]
            expected = reference.zonal_moments(weights[zone], pixels[band], mask)
            for name, value in expected.items():
                assert found[name][zone, band] == pytest.approx(value, rel=1e-9, abs=1e-9 + rounding, nan_ok=True), name
        mask = everywhere if valid is None else valid[0]
        twin = [reference.zonal_quantile(weights[zone], pixels[0], mask, level) for level in levels]
        np.testing.assert_allclose(asked[zone], twin, rtol=1e-9)


@SEEDED
@given(seed=st.integers(0, 10_000), size=st.floats(0.3, 12), distinct=st.integers(1, 300))
def test_statistics_equal_exactextract(seed: int, size: float, distinct: int):
    values = np.random.default_rng(seed).integers(1, 1 + distinct, (16, 17)).astype(np.float64)
    shape = circle(seed, size)
    state, asked = measure(outlines_of(shape), values[None], None, (0.1, 0.5, 0.9))
    found = zonal.finish(state, np.zeros(1))
    source = NumPyRasterSource(values, xmin=0, ymin=-16, xmax=17, ymax=0)
    flipped = shapely.transform(shape, lambda points: points * [1, -1])
    names = ["count", "sum", "mean", "min", "max", "stdev", "variance"]
    foreign = exact_extract(
        source,
        [{"type": "Feature", "geometry": shapely.geometry.mapping(flipped)}],
        [*names, "quantile(q=0.1)", "quantile(q=0.5)", "quantile(q=0.9)"],
    )[0]["properties"]
    for name in names:
        assert found[name][0, 0] == pytest.approx(foreign[name], rel=1e-5, abs=1e-5), name
    # Exactextract keeps fractions as float32, which a steep quantile feels.
    for level, ours in zip((10, 50, 90), asked[0], strict=True):
        assert ours == pytest.approx(foreign[f"quantile_{level}"], rel=1e-3), level


def test_variance_survives_a_mean_that_is_large_against_the_spread():
    rng = np.random.default_rng(0)
    pixels = (1e8 + rng.normal(0, 1e-2, (1, 700, 700))).astype(np.float64)
    state, _ = measure(outlines_of(shapely.box(0, 0, 700, 700)), pixels)
    assert zonal.finish(state, np.zeros(1))["variance"][0, 0] == pytest.approx(pixels.var(), rel=1e-6)


def test_integer_sums_are_exact():
    pixels = np.full((1, 600, 600), 65535, np.uint16)
    pixels[0, 0, 0] = 65533
    state, _ = measure(outlines_of(shapely.box(0, 0, 600, 600)), pixels)
    found = zonal.finish(state, np.zeros(1))
    assert found["sum"][0, 0] == 65535 * 600 * 600 - 2
    assert found["min"][0, 0] == 65533.0
    assert found["variance"][0, 0] == pytest.approx(pixels.astype(np.float64).var(), rel=1e-9)


@SEEDED
@given(seed=st.integers(0, 10_000), parts=st.integers(2, 6))
def test_merge_is_associative_and_an_empty_accumulator_changes_nothing(seed: int, parts: int):
    rng = np.random.default_rng(seed)
    shapes = outlines_of(*(circle(seed + i, 1 + 3 * rng.random()) for i in range(parts)))
    pixels = random_pixels(seed, np.float64, (1, 16, 17))
    rows = measure(shapes, pixels)[0]
    at_once, in_two, left = zonal.empty((1, 1)), zonal.empty((1, 1)), zonal.empty((1, 1))
    zone = np.zeros(parts, np.int64)
    zonal.merge(zone, rows, at_once)
    cut = int(rng.integers(1, parts))
    zonal.merge(zone[:cut], rows[:cut], left)
    right = zonal.empty((1, 1))
    zonal.merge(zone[cut:], rows[cut:], right)
    zonal.merge(np.zeros(3, np.int64), np.concatenate([left, zonal.empty((1, 1)), right]), in_two)
    np.testing.assert_allclose(in_two, at_once, rtol=1e-12)
    # The order of folding is fixed by the caller: the same order, the same bits.
    again = zonal.empty((1, 1))
    zonal.merge(zone, rows, again)
    assert again.tobytes() == at_once.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_batches_or_on_which_blocks_come_together(dtype: type):
    pixels = random_pixels(3, dtype, (1, 1100, 1200))
    shapes = outlines_of(
        shapely.Point(600, 520).buffer(430.5, quad_segs=90), shapely.box(-4, 100.25, 1300, 900.75), circle(1, 5)
    )
    whole, _ = measure(shapes, pixels)
    rows, zones, blocks = [], [], []
    for row in (1024, 0, 512):
        for col in (512, 0, 1024):
            work = coverage.pairs(shapes, (row, col, min(row + 512, 1100), min(col + 512, 1200)))
            partial = zonal.empty((len(work.zone), 1))
            cut = pixels[:, row : row + 512, col : col + 512]
            for batch in coverage.spans(shapes, work):
                zonal.update(batch, cut, None, (row, col), np.ones(512), partial)
            rows.append(partial)
            zones.append(work.zone)
            blocks.append(work.block)
    zone, block = np.concatenate(zones), np.concatenate(blocks)
    order = np.lexsort((block[:, 1], block[:, 0], zone))
    state = zonal.empty((3, 1))
    zonal.merge(zone[order], np.concatenate(rows)[order], state)
    assert state.tobytes() == whole.tobytes()


def test_warm_up_compiles_every_kernel():
    coverage.warm_up()
    zonal.warm_up()
    assert zonal.merge.signatures
