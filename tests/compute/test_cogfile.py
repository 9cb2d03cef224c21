"""A COG apart from its pixels: what a specification refuses and works out, and a front that GDAL reads on."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from eorouter_compute import cogfile, tiff
from eorouter_compute.cogfile import BandStatistics, CogSpec
from eorouter_compute.method import Band
from eorouter_compute.testing import ROTATED_TRANSFORM, asymmetric
from eorouter_compute.tiff import Code

NOTHING = BandStatistics(minimum=None, maximum=None, mean=None, stdev=None, valid_fraction=0.0)


def spec_of(shape=(20, 20), dtype="uint8", count=1, **fields):
    bands = tuple(Band(name=f"b{n}", index=n, dtype=dtype) for n in range(1, count + 1))
    given = {"crs": "EPSG:32632", "transform": ROTATED_TRANSFORM, "bands": bands, "dtype": dtype, "shape": shape}
    return CogSpec(**{**given, **fields})


def laid_out(spec, levels, masks=()):
    """A whole file: the front, then unpacked tiles of every level cut by NumPy, from small to large."""
    side, sizes, bodies = spec.block_size, [], []
    for level, pixels in enumerate(levels):
        rows, cols = spec.tile_grid(level)
        room = np.zeros((pixels.shape[0], rows * side, cols * side), pixels.dtype)
        room[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        shown = np.zeros((rows * side, cols * side), np.bool_)
        if masks:
            shown[: pixels.shape[1], : pixels.shape[2]] = masks[level]
        tiles = []
        for row in range(0, rows * side, side):
            for col in range(0, cols * side, side):
                tile = [room[:, row : row + side, col : col + side].transpose(1, 2, 0).tobytes()]
                if masks:
                    tile.append(zlib.compress(np.packbits(shown[row : row + side, col : col + side], axis=1).tobytes()))
                tiles.append(tile)
        sizes.append(np.array([[len(part) for part in tile] for tile in tiles], "<u4"))
        bodies.insert(0, b"".join(
            len(part).to_bytes(4, "little") + part + part[-4:] for tile in tiles for part in tile
        ))  # fmt: skip
        assert cogfile.span(sizes[-1]) == len(bodies[0])
    start, is_big = cogfile.front(spec, [NOTHING] * len(spec.bands), sizes)
    assert not is_big
    return start + b"".join(bodies)


@pytest.mark.parametrize("has_mask", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize(("dtype", "count"), [("uint8", 1), ("int16", 3), ("float32", 2)])
def test_gdal_reads_every_level_behind_the_front(tmp_path, dtype, count, has_mask):
    spec = spec_of((75, 101), dtype, count, block_size=32, compression="none", has_mask=has_mask)
    levels = [asymmetric(spec.level_shape(n), bands=count, dtype=dtype, seed=n) for n in range(spec.level_count + 1)]
    masks = [np.random.default_rng(n).random(each.shape[1:]) > 0.4 for n, each in enumerate(levels)]
    path = tmp_path / "0.tif"
    path.write_bytes(laid_out(spec, levels, masks if has_mask else ()))
    with rasterio.open(path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.overviews(1) == [2, 4]
        assert source.transform.almost_equals(Affine(*ROTATED_TRANSFORM), 1e-12)
        assert source.crs.to_epsg() == 32632
        assert source.descriptions == tuple(band.name for band in spec.bands)
    for level, pixels in enumerate(levels):
        with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as source:
            np.testing.assert_array_equal(source.read(), pixels)
            shown = masks[level] if has_mask else np.ones(pixels.shape[1:], np.bool_)
            np.testing.assert_array_equal(source.dataset_mask() > 0, shown)


def test_colours_bands_and_statistics_are_gdals(tmp_path):
    spec = spec_of((16, 16), "uint8", 3, block_size=16, compression="none", nodata=0.0, tags={"KEY": "a & b"},
                   color_interpretation=("red", "green", "blue"), band_tags=({}, {"OF": "two"}, {}))  # fmt: skip
    row = BandStatistics(minimum=1, maximum=254, mean=1 / 3, stdev=0.1, valid_fraction=0.98765)
    start, _ = cogfile.front(spec, [row, NOTHING, row], [np.array([[768]], "<u4")])
    path = tmp_path / "0.tif"
    path.write_bytes(start + (768).to_bytes(4, "little") + bytes(768) + bytes(4))
    with rasterio.open(path) as source:
        assert [each.name for each in source.colorinterp] == ["red", "green", "blue"]
        assert (source.nodata, source.tags()["KEY"], source.tags(2)["OF"]) == (0, "a & b", "two")
        told = source.tags(1)
        assert float(told["STATISTICS_MEAN"]) == 1 / 3
        assert float(told["STATISTICS_VALID_PERCENT"]) == pytest.approx(98.765, rel=1e-3)
        assert "STATISTICS_MEAN" not in source.tags(2)
        assert float(source.tags(3)["STATISTICS_MAXIMUM"]) == 254
    assert row.as_dict() == {"minimum": 1, "maximum": 254, "mean": 1 / 3, "stdev": 0.1, "valid_percent": 98.765}


def test_a_table_of_colours_is_gdals(tmp_path):
    table = {0: (0, 0, 0), 3: (200, 100, 50)}
    spec = spec_of((16, 16), block_size=16, compression="none", color_table=table)
    path = tmp_path / "0.tif"
    path.write_bytes(laid_out(spec, [np.full((1, 16, 16), 3, np.uint8)]))
    with rasterio.open(path) as source:
        assert source.colorinterp[0].name == "palette"
        assert source.colormap(1)[3] == (200, 100, 50, 255)


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.sampled_from([16, 64, 512]),
    st.none() | st.integers(0, 20),
)
def test_levels_halve_until_one_tile_holds_all_or_as_asked(shape, side, asked):
    spec = spec_of(shape, block_size=side, overview_count=asked)
    sizes = [spec.level_shape(level) for level in range(spec.level_count + 1)]
    assert sizes[0] == shape
    for (height, width), (h, w) in pairwise(sizes):
        assert 2 * h - height in {0, 1}
        assert 2 * w - width in {0, 1}
    if asked is None:
        assert max(sizes[-1]) <= side
        assert all(max(each) > side for each in sizes[:-1])
    else:
        assert spec.level_count <= asked
        assert spec.level_count == asked or sizes[-1] == (1, 1)
        assert (1, 1) not in sizes[:-1]
    for level, (height, width) in enumerate(sizes):
        rows, cols = spec.tile_grid(level)
        assert (rows - 1) * side < height <= rows * side
        assert (cols - 1) * side < width <= cols * side


@pytest.mark.parametrize(
    ("dtype", "compression", "predictor", "expected"),
    [("uint8", "deflate", "auto", 2), ("float32", "zstd", "auto", 3), ("float64", "lzw", "none", 1),
     ("float32", "deflate", "horizontal", 2), ("int16", "none", "horizontal", 1), ("float32", "lerc", "auto", 1),
     ("float64", "deflate", "floating_point", 3)],
)  # fmt: skip
def test_the_predictor_suits_type_and_codec(dtype, compression, predictor, expected):
    assert spec_of(dtype=dtype, compression=compression, predictor=predictor).prediction == expected


@pytest.mark.parametrize(
    ("dtype", "colours", "names", "expected"),
    [("uint8", ("red", "green", "blue"), (None,) * 3, 2), ("uint16", (), ("red", "green", "blue"), 2),
     ("uint8", ("gray", "green", "blue"), ("red", "green", "blue"), 1), ("uint8", (), ("red", "green", "nir"), 1),
     ("float32", (), ("red", "green", "blue"), 1), ("uint8", (), ("blue", "green", "red"), 1)],
)  # fmt: skip
def test_red_green_and_blue_make_a_picture_of_colours(dtype, colours, names, expected):
    bands = tuple(Band(name=f"b{n}", index=n + 1, dtype=dtype, common_name=name) for n, name in enumerate(names))
    assert spec_of(dtype=dtype, bands=bands, color_interpretation=colours).photometric == expected


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"dtype": "complex64"}, "holds one of"), ({"block_size": 500}, "must be"), ({"block_size": 0}, "must be"),
     ({"block_size": -16}, "must be"), ({"nodata": -1.0}, "cannot hold"), ({"nodata": 0.5}, "cannot hold"),
     ({"nodata": 256.0}, "cannot hold"), ({"nodata": float("nan")}, "cannot hold"), ({"shape": (0, 5)}, "nothing"),
     ({"bands": ()}, "nothing"), ({"predictor": "floating_point"}, "for floats"),
     ({"dtype": "int16", "color_table": {0: (0, 0, 0)}}, "colour table"),
     ({"count": 2, "color_table": {0: (0, 0, 0)}}, "colour table")],
)  # fmt: skip
def test_impossible_specs_are_refused_and_say_why(wrong, why):
    with pytest.raises(ValueError, match=why):
        spec_of(**wrong)


def test_a_specification_takes_the_edges_of_its_types():
    for value in (0.0, 255.0):
        assert spec_of(nodata=value).nodata == value
    assert np.isnan(spec_of(dtype="float32", nodata=float("nan")).nodata)
    assert spec_of((1, 1), block_size=16).window.pixels == 1


@given(st.integers(-40, 40))
def test_a_big_tiff_begins_where_a_classic_one_ends(beyond):
    spec = spec_of((64, 64), block_size=16, overview_count=0)
    size = 100
    classic = len(cogfile.front(spec, [NOTHING], [np.full((16, 1), size, "<u4")])[0])
    rest = tiff.CLASSIC_LIMIT + beyond - classic - 16 * 8
    sizes = np.full((16, 1), rest // 16, "<u4")
    sizes[-1] += rest % 16
    assert cogfile.front(spec, [NOTHING], [sizes])[1] == (beyond >= 0)


def test_offsets_beyond_four_gigabytes_make_a_big_tiff():
    spec = spec_of((40000, 40000), has_mask=True)
    rng = np.random.default_rng(0)
    sizes = [
        rng.integers(600_000, 900_000, (rows * cols, 2)).astype("<u4")
        for rows, cols in (spec.tile_grid(level) for level in range(spec.level_count + 1))
    ]
    start, is_big = cogfile.front(spec, [NOTHING], sizes)
    assert is_big
    assert start[:4] == b"II+\0"
    size = len(start) + sum(int(s.astype(np.int64).sum()) + 8 * s.size for s in sizes)
    found = tiff.directories(lambda a, b: start[a:b], len(start))
    assert not tiff.ends_early(found, size)
    assert tiff.ends_early(found, size - 5)
    # Every tile begins four bytes after the end of the one before, smallest level first, in reading order.
    place = len(start)
    for level in reversed(range(spec.level_count + 1)):
        images, masks = found[2 * level].tile_spans[0], found[2 * level + 1].tile_spans[0]
        for number in range(len(images)):
            assert images[number] == place + 4
            place += 8 + int(sizes[level][number, 0])
            assert masks[number] == place + 4
            place += 8 + int(sizes[level][number, 1])
    assert place == size > tiff.CLASSIC_LIMIT
    assert cogfile.front(spec, [NOTHING], [s // 9 for s in sizes])[1] is False


@pytest.mark.parametrize(
    ("count", "colours", "extra"), [(1, (), 0), (3, (), 2), (4, ("red", "green", "blue", "nir"), 1)]
)
def test_bands_beyond_the_colours_are_said_to_be_extra(count, colours, extra):
    bands = tuple(Band(name=f"b{n}", index=n, dtype="uint8", common_name=name)
                  for n, name in enumerate(colours or [None] * count, start=1))  # fmt: skip
    start, _ = cogfile.front(spec_of(bands=bands), [NOTHING] * count, [np.ones((1, 1), "<u4")])
    tags = tiff.directories(lambda a, b: start[a:b], len(start))[0].tags
    assert (tags[Code.EXTRA_SAMPLES].length if Code.EXTRA_SAMPLES in tags else 0) == extra
