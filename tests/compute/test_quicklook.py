"""Pictures: PNGs that open, transparent where nothing is known."""

import imagecodecs
import numpy as np
import pytest

from eorouter_compute import quicklook
from eorouter_compute.testing import asymmetric


def test_rgb_stretches_each_band_and_hides_missing_pixels():
    pixels = asymmetric((60, 90), bands=3)
    valid = np.ones((60, 90), np.bool_)
    valid[:10] = False
    picture = imagecodecs.png_decode(quicklook.render(pixels, valid))
    assert picture.shape == (60, 90, 4)
    assert (picture[:10] == 0).all()
    assert (picture[10:, :, 3] == 255).all()
    for channel in range(3):
        low, high = np.percentile(pixels[channel][valid], (2, 98))
        expected = np.clip((pixels[channel][10:] - low) / (high - low), 0, 1) * 255
        assert np.abs(picture[10:, :, channel] - expected).max() <= 0.51


def test_large_rasters_are_thinned():
    picture = imagecodecs.png_decode(quicklook.render(np.zeros((1, 2500, 1200), np.uint8)))
    assert max(picture.shape) <= quicklook.SIDE_MAX


def test_nan_is_transparent_and_an_empty_raster_is_a_picture():
    pixels = np.full((1, 20, 30), np.nan, np.float32)
    assert (imagecodecs.png_decode(quicklook.render(pixels, style="index"))[..., 3] == 0).all()
    pixels[0, 3, 4] = 0.5
    assert (imagecodecs.png_decode(quicklook.render(pixels, style="index"))[..., 3] > 0).sum() == 1


@pytest.mark.parametrize("value", [0.0, 7.0, 1e20, -1e31, np.finfo("float32").max])
def test_a_raster_of_one_value_is_a_picture_however_large_it_is(value):
    pixels = np.full((1, 4, 5), value, np.float32)
    low, high = quicklook.stretch(pixels, np.ones(pixels.shape, np.bool_))
    assert low < float(pixels[0, 0, 0]) < high
    assert (imagecodecs.png_decode(quicklook.render(pixels))[..., 3] == 255).all()


@pytest.mark.parametrize("style", ["gray", "index", "change", "terrain", "heat"])
def test_legend_colors_are_those_of_the_picture(style):
    pixels = np.linspace(-1, 1, 5, dtype=np.float32).reshape(1, 1, 5)
    picture = imagecodecs.png_decode(quicklook.render(pixels, style=style, limits=(-1.0, 1.0)))
    for entry, color in zip(quicklook.legend(style, -1.0, 1.0), picture[0], strict=True):
        drawn = [int(entry.color[at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(np.array(drawn) - color[:3].astype(int)).max() <= 2


def test_classes_have_one_color_each():
    picture = imagecodecs.png_decode(quicklook.render(np.arange(6, dtype=np.uint8).reshape(1, 2, 3), style="class"))
    assert len({tuple(color) for color in picture.reshape(-1, 4)}) == 6
    assert [entry.value for entry in quicklook.legend("class", 0, 2)] == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("size", [3, 50, 1001])
def test_the_stretch_is_that_of_numpys_percentiles(dtype, size):
    pixels = (np.random.default_rng(size).random((1, size)) * 200).astype(dtype)
    found = quicklook.stretch(pixels, np.ones(pixels.shape, np.bool_))
    np.testing.assert_allclose(found, np.percentile(pixels.astype(np.float64), (2, 98)), rtol=1e-12)
