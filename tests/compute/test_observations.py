from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from eorouter_compute import observations
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.grid import Grid, Window
from eorouter_compute.observations import Seen, Value
from eorouter_compute.quality import QualityMask
from eorouter_compute.testing import UTM_TRANSFORM, input_item, write_raster

GRID = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(20, 30))
CLOUD = QualityMask(band="scl", classes=(9,))


def item(folder, name, value, clouds, at, **properties):
    """A scene of one value, with clouds at these pixels."""
    scl = np.full((1, 20, 30), 4, "uint8")
    for y, x in clouds:
        scl[0, y, x] = 9
    return input_item(
        write_raster(folder / f"{name}.tif", np.full((1, 20, 30), value, "uint16"), names=["v"]),
        write_raster(folder / f"{name}-q.tif", scl, names=["SCL"]),
        id=name, at=at, properties=properties,
    )  # fmt: skip


def read(day, away=None, window=GRID.window):
    out = np.empty((1, window.height, window.width), np.float32)
    observations.read(day, window, out, Seen(allow_missing=False), away)
    return out[0]


@pytest.fixture
def two(tmp_path):
    """Two scenes of one solar day."""
    noon = datetime(2024, 5, 3, 10, tzinfo=UTC)
    return [
        item(tmp_path, "b", 2, [(5, 6)], noon.replace(minute=5), **{"eo:cloud_cover": 5}),
        item(tmp_path, "a", 1, [(2, 3), (10, 20)], noon, **{"eo:cloud_cover": 60}),
    ]


@pytest.mark.parametrize(("same_day", "first"), [("first", 1), ("last", 2), ("clearest", 2)])
def test_scenes_of_a_day_come_in_the_order_asked_for_and_fill_gaps(two, same_day, first):
    (day,) = observations.observe(Value(band="v"), (CLOUD,), two, GRID, same_day=same_day)
    found = read(day)
    holes = [(2, 3), (10, 20)] if first == 1 else [(5, 6)]
    assert all(found[place] == 3 - first for place in holes)
    assert (found == first).sum() == found.size - len(holes)


def test_distances_are_those_in_the_scene_that_shows_the_pixel(two):
    (day,) = observations.observe(Value(band="v"), (CLOUD,), two, GRID, reach=7)
    away = np.empty((20, 30), np.float32)
    read(day, away)
    assert away[2, 5] == 2.0
    assert away[19, 0] == 7.0
    # The first scene is cloudy there; the second has its cloud √(3² + 3²) away.
    assert away[2, 3] == pytest.approx(np.sqrt(18))
    # A cloud outside of the window counts as well.
    part = np.empty((4, 4), np.float32)
    read(day, part, Window(6, 18, 4, 4))
    assert np.array_equal(part, away[6:10, 18:22])


def test_without_masks_every_pixel_is_far_from_a_cloud(two):
    (day,) = observations.observe(Value(band="v"), (), two, GRID, reach=7)
    away = np.empty((20, 30), np.float32)
    read(day, away)
    assert np.isinf(away).all()


def test_what_an_item_says_of_its_clouds_is_taken_and_silence_is_full_cover(two, tmp_path):
    silent = item(tmp_path, "c", 3, [], datetime(2024, 6, 3, 10, tzinfo=UTC))
    days = observations.observe(Value(band="v"), (), [*two, silent], GRID)
    assert [observations.cloud_cover(scene) for day in days for scene in day.scenes] == [60.0, 5.0, 100.0]


def test_a_band_is_asked_for_once(two):
    with pytest.raises(InvalidParameter, match="Band v is asked for twice") as caught:
        observations.observe(Value(bands=("v", "SCL", "v")), (), two, GRID)
    assert caught.value.pointer == "/value/bands/2"


@pytest.mark.parametrize("stored", ["float32", "float64"])
def test_what_is_not_finite_is_missing_and_the_next_scene_fills_it(tmp_path, stored):
    worth = np.array([[[1.0, np.inf, -np.inf, np.nan, 1e300]]])
    noon = datetime(2024, 5, 3, 10, tzinfo=UTC)
    with np.errstate(over="ignore"):
        first = write_raster(tmp_path / "a.tif", worth.astype(stored), names=["v"])
    second = write_raster(tmp_path / "b.tif", np.full((1, 1, 5), 2, "uint8"), names=["v"])
    items = [input_item(first, id="a", at=noon), input_item(second, id="b", at=noon.replace(minute=5))]
    grid = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(1, 5))
    (alone,) = observations.observe(Value(band="v"), (), items[:1], grid)
    np.testing.assert_array_equal(read(alone, window=grid.window)[0], [1, *[np.nan] * 4])
    (both,) = observations.observe(Value(band="v"), (), items, grid)
    assert read(both, window=grid.window)[0].tolist() == [1, 2, 2, 2, 2]


def test_a_condition_of_a_mask_is_over_the_physical_values_of_the_value(tmp_path):
    """Stored 2,600 and 4,600 of baseline 05.10 are 0.16 and 0.36."""
    asset = write_raster(tmp_path / "a.tif", np.array([[[2600, 4600]]], "uint16"), names=["red"])
    item = input_item(asset, at=datetime(2024, 5, 3, tzinfo=UTC), properties={"s2:processing_baseline": "05.10"})
    grid = Grid(crs="EPSG:32632", transform=UTM_TRANSFORM, shape=(1, 2))
    (day,) = observations.observe(Value(band="red"), (QualityMask(expression="red > 0.3"),), [item], grid)
    np.testing.assert_allclose(read(day, window=grid.window)[0], [0.16, np.nan], rtol=1e-6)


@pytest.mark.parametrize("said", [None, "a", "7", [], {}, True, float("nan"), float("inf"), -1, 10**400])
def test_what_is_no_percentage_of_clouds_is_silence(two, said):
    unclear = msgspec.structs.replace(two[1], properties={"eo:cloud_cover": said})
    (day,) = observations.observe(Value(band="v"), (), [two[0], unclear], GRID, same_day="clearest")
    assert [observations.cloud_cover(scene) for scene in day.scenes] == [5.0, 100.0]


@pytest.mark.parametrize("at", [datetime(9999, 12, 29, tzinfo=UTC), datetime(1, 1, 3, tzinfo=UTC)])
def test_a_date_that_stands_for_none_is_refused_with_its_item(two, at):
    astray = msgspec.structs.replace(two[1], at=at)
    with pytest.raises(InvalidParameter, match=f"Item a is dated {at.date()}") as caught:
        observations.observe(Value(band="v"), (), [two[0], astray], GRID)
    assert caught.value.pointer == "/inputs/1"


@pytest.mark.parametrize("value", [Value(), Value(band="v", index="NDVI"), Value(bands=("v",), expression="v + 1")])
def test_a_value_is_exactly_one_thing(two, value):
    with pytest.raises(InvalidParameter, match="exactly one of band, bands, index or expression"):
        observations.observe(value, (), two, GRID)
