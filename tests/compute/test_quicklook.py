"""Pictures: PNGs that open, transparent where nothing is known."""

import warnings

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
STYLES = ["rgb", "gray", "index", "change", "terrain", "heat", "class"]


def drawn(pixels, **options):
    """The picture; a warning on the way is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return imagecodecs.png_decode(quicklook.render(pixels, **options))


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(STYLES))
def test_whatever_a_type_holds_becomes_a_picture(data, dtype, style):
    info = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    ends = [info.min, info.max, 0] + ([info.smallest_subnormal, np.inf, -np.inf, np.nan] if dtype[0] == "f" else [])
    values = st.sampled_from([info.dtype.type(end) for end in ends]) | arrays.from_dtype(np.dtype(dtype))
    pixels = data.draw(arrays.arrays(dtype, (3, 4, 5), elements=values))
    picture = drawn(pixels, style=style)
    shown = np.isfinite(pixels).any(axis=0) if style == "rgb" else np.isfinite(pixels[0])
    np.testing.assert_array_equal(picture[..., 3] > 0, shown)
    if style == "gray":  # nowhere darker than where the value is less
        order = np.argsort(pixels[0][shown])
        assert (np.diff(picture[shown][order, 0].astype(int)) >= 0).all()


@given(st.data(), st.sampled_from(DTYPES))
def test_a_constant_is_the_middle_of_the_colours_whatever_it_is(data, dtype):
    options = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    value = data.draw(arrays.from_dtype(np.dtype(dtype), **options))
    for bands in (1, 3):
        assert (drawn(np.full((bands, 3, 4), value, dtype))[..., :3] == 128).all()


@pytest.mark.parametrize("fill", [np.finfo(np.float32).min, np.finfo(np.float32).max])
@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_fill_that_nobody_declared_is_drawn_beside_the_data(fill, share):
    pixels = np.linspace(1, 2, 2000, dtype=np.float32).reshape(1, 40, 50)
    pixels.reshape(-1)[: int(2000 * share)] = fill
    picture = drawn(pixels)[..., 0].reshape(-1)
    assert len({int(level) for level in picture}) == 2
    assert (picture[-1] > picture[0]) == (fill < 0)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-30, 1.0, 1e30, 1e300])
def test_a_ramp_is_a_ramp_at_any_magnitude(scale):
    ramp = np.arange(-100, 101) * scale
    levels = quicklook.levels(ramp, ramp[0], ramp[-1], 200)
    assert levels.tolist() == list(range(201))


def test_the_whole_range_of_a_float_is_no_more_than_it_holds():
    top = np.finfo(np.float64).max
    assert quicklook.levels(np.array([-top, 0.0, top]), -top, top, 254).tolist() == [0, 127, 254]
