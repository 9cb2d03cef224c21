import warnings
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from eorouter_compute import moments, observations, witness
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Grid, Window
from eorouter_compute.observations import Seen, Value
from eorouter_compute.testing import UTM_TRANSFORM, input_item, write_raster


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Four dated scenes of two bands with holes, in a shuffled order."""
    folder = tmp_path_factory.mktemp("moments")
    rng = np.random.default_rng(4)
    out = []
    for number in (2, 0, 3, 1):
        pixels = rng.integers(1, 900, (2, 30, 40)).astype("uint16")
        pixels[:, rng.random((30, 40)) < 0.3] = 0
        out.append(
            input_item(
                write_raster(folder / f"{number}.tif", pixels, nodata=0, names=["a", "b"]), id=f"day-{number}",
                at=datetime(2022, 1 + number, 1, 10, tzinfo=UTC),
            )
        )  # fmt: skip
    return out


def ids(pair):
    return tuple([item.id for item in side] for side in pair)


def test_two_items_are_told_apart_by_their_dates_and_a_series_is_all_of_them(items):
    assert ids(moments.groups(items[:2], (), (), is_series=False)) == (["day-0"], ["day-2"])
    assert ids(moments.groups(items, (), (), is_series=True)) == (["day-0"], ["day-1", "day-2", "day-3"])
    named = moments.groups(items, ("day-3", "day-1"), ("day-0",), is_series=False)
    assert ids(named) == (["day-3", "day-1"], ["day-0"])


@pytest.mark.parametrize(
    ("count", "sides", "words", "pointer"),
    [
        (4, ((), ()), "4 were given", "/before"),
        (1, ((), ()), "1 were given", "/before"),
        (2, (("day-2",), ()), "Say which items", "/after"),
        (2, ((), ("day-2",)), "Say which items", "/before"),
        (2, (("day-2", "day-9"), ("day-0",)), "`before` names item 'day-9'; the inputs are: day-2, day-0", "/before/1"),
        (2, (("day-2",), ("day-2",)), "day-2 cannot be before and after", "/after"),
    ],
)
def test_groups_that_cannot_be_told_are_refused(items, count, sides, words, pointer):
    with pytest.raises(InvalidParameter, match=words) as caught:
        moments.groups(items[:count], *sides, is_series=False)
    assert caught.value.pointer == pointer


def test_items_without_dates_must_be_named_and_then_get_one(items):
    undated = [msgspec.structs.replace(item, at=None) for item in items[:2]]
    with pytest.raises(InvalidParameter, match="no date"):
        moments.groups(undated, (), (), is_series=False)
    before, after = moments.groups(undated, ("day-0",), ("day-2",), is_series=False)
    first, second = moments.dated(before, 0), moments.dated(after, 400)
    assert first[0].at < second[0].at
    assert moments.dated(items, 0) == list(items)


@pytest.mark.parametrize("how", ["median", "mean"])
def test_a_group_is_reduced_per_pixel_over_the_dates_that_have_it(items, how):
    grid = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(30, 40))
    days = observations.observe(Value(bands=("a", "b")), (), items, grid)
    part = Window(5, 3, 20, 30)
    out = np.empty((2, 20, 30), np.float32)
    moments.reduced(days, part, how, Seen(allow_missing=False), out)
    values = np.empty((4, 2, 20, 30), np.float32)
    for place, day in enumerate(days):
        observations.read(day, part, values[place], Seen(allow_missing=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = getattr(np, f"nan{how}")(values.astype(float), axis=0)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert np.isnan(out).any()


def test_only_pixels_with_every_value_are_sampled():
    stack = np.arange(24, dtype="float32").reshape(2, 3, 4)
    assert moments.complete(stack) is stack
    stack[1, 2, 1] = np.nan
    np.testing.assert_array_equal(moments.complete(stack), stack[:, :, [0, 2, 3]])


@pytest.mark.parametrize(("shape", "most"), [((100, 100), 10_000), ((100, 100), 9_999), ((10_980, 7_001), 1 << 20)])
def test_the_step_is_the_smallest_that_keeps_the_sample_small(shape, most):
    grid = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=shape)

    def sampled(step):
        return len(range(0, shape[0], step)) * len(range(0, shape[1], step))

    step = moments.step(grid, most)
    assert sampled(step) <= most
    assert step == 1 or sampled(step - 1) > most


def test_parts_get_smaller_the_more_is_held(items):
    grid = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(30, 40))
    days = observations.observe(Value(band="a"), (), items, grid)
    for count, bands in ((1, 1), (4, 8), (4, 200)):
        group = [days[:count]]
        side = moments.side_of(group, bands)
        assert side == 64 or 4 * max(count, 2) * bands * side * side <= moments.STACK_BYTES
    assert moments.side_of([days], 2000) == 64
    assert len(moments.placements([days, days[:1]])) == 5


@pytest.mark.parametrize("how", ["median", "mean"])
@pytest.mark.parametrize("value", [Value(bands=("a", "b")), Value(expression="(a - b) / (a + b)"), Value(band="a")])
def test_a_cut_of_a_picture_is_the_picture_cut(items, value, how):
    grid = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(30, 40))
    for chosen in (items[:1], items):
        days = observations.observe(value, (), chosen, grid)
        window, cut = Window(3, 5, 24, 31), (slice(2, None, 3), slice(1, None, 3))
        bands = len(value.names)
        whole, some = np.empty((bands, 24, 31), np.float32), np.empty((bands, 8, 10), np.float32)
        seen = Seen(allow_missing=False)
        moments.reduced(days, window, how, seen, whole)
        before = seen.pixels
        moments.reduced(days, window, how, seen, some, cut=cut)
        assert np.isfinite(some).any()
        assert np.array_equal(some, whole[:, *cut], equal_nan=True)
        assert seen.pixels - before == 80 * len(chosen)


def test_planes_are_put_together_from_objects_and_what_was_read_is_noted(tmp_path):
    planes = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    places = []
    for number, window in enumerate((Window(0, 0, 3, 7), Window(3, 0, 2, 4), Window(3, 4, 2, 3))):
        path = tmp_path / str(number)
        path.write_bytes(planes[:, *window.relative_to(Window(0, 0, 5, 7))].tobytes())
        places.append((window, path.as_uri()))
    out = np.zeros_like(planes)
    with witness.Witness() as notes:
        moments.put_together(places, out)
    assert np.array_equal(out, planes)
    assert notes.read_bytes == planes.nbytes
