import warnings

import imagecodecs
import numpy as np
import pytest

from eorouter_compute import change_picture
from eorouter_compute.change_picture import Glimpse
from eorouter_compute.grid import Window, tiles

COLORS = np.zeros((256, 3), np.uint8)
COLORS[:3] = [(222, 222, 218), (178, 34, 52), (28, 92, 156)]


def glimpses(values, classes, side):
    """What shards of this side hand on."""
    step = change_picture.stride(classes.shape)
    for window in tiles(Window(0, 0, *classes.shape), side):
        place, cut = change_picture.shown(window, step)
        rows, cols = window.relative_to(Window(0, 0, *classes.shape))
        part = np.ascontiguousarray(values[:, :, rows, cols][:, :, cut[0], cut[1]])
        yield Glimpse(place, values.shape[1], part.tobytes(), classes[rows, cols][cut].tobytes())


@pytest.mark.parametrize(("shape", "step"), [((60, 420), 1), ((60, 421), 2), ((10_980, 10_980), 27)])
def test_a_panel_is_never_wider_than_its_most(shape, step):
    assert change_picture.stride(shape) == step
    assert -(-max(shape) // step) <= change_picture.SIDE_MAX


@pytest.mark.parametrize(("bands", "shape"), [(1, (90, 70)), (2, (45, 900)), (3, (600, 430))])
def test_panels_are_before_after_and_classes_however_cut(bands, shape):
    rng = np.random.default_rng(bands)
    values = rng.normal(100, 30, (2, bands, *shape)).astype("float32")
    values[1, :, : shape[0] // 4] = np.nan
    classes = rng.integers(0, 3, shape).astype("uint8")
    classes[: shape[0] // 4] = change_picture.UNKNOWN
    pictures = [change_picture.draw(shape, list(glimpses(values, classes, side)), COLORS) for side in (32, 97, 4096)]
    assert len(set(pictures)) == 1
    step = change_picture.stride(shape)
    seen = classes[::step, ::step]
    drawn = imagecodecs.png_decode(pictures[0])
    height, width = seen.shape
    assert drawn.shape == (height, 3 * width + 12, 4)
    before, after, kinds = (drawn[:, begin : begin + width] for begin in (0, width + 6, 2 * width + 12))
    assert not drawn[:, width : width + 6].any()
    known = seen != change_picture.UNKNOWN
    np.testing.assert_array_equal(kinds[known][:, :3], COLORS[seen[known]])
    for panel, missing in ((before, None), (after, ~known), (kinds, ~known)):
        opaque = panel[..., 3] == 255
        assert opaque.all() if missing is None else np.array_equal(opaque, ~missing)
    # Stretched alike: a brighter pixel is nowhere darker than a darker one of the other date.
    shown = values[:, :, ::step, ::step]
    for channel in range(3 if bands == 3 else 1):
        value = np.concatenate([shown[0, channel].ravel(), shown[1, channel][known].ravel()])
        level = np.concatenate([before[..., channel].ravel(), after[..., channel][known].ravel()]).astype(int)
        assert (np.diff(level[np.argsort(value, kind="stable")]) >= 0).all()
        assert len(np.unique(level)) > 50


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("ends", [(7e20, 7e20), (-3.4e38, 3.4e38), (-3.4e38, 1.0), (0.0, 1e-45)])
def test_constants_and_the_ends_of_float32_are_drawn(bands, ends):
    values = np.empty((2, bands, 30, 40), np.float32)
    values[0], values[1] = ends
    values[1, :, 3, 4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = change_picture.draw((30, 40), list(glimpses(values, np.zeros((30, 40), "uint8"), 32)), COLORS)
    drawn = imagecodecs.png_decode(data)
    before, after = drawn[0, 0, 0], drawn[0, 46, 0]
    assert (before, after) == ((128, 128) if ends[0] == ends[1] else (0, 255))
    assert drawn[3, 50].tolist() == [0, 0, 0, 0]
