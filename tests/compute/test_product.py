"""From windows to items: shards cover the output once, bounds hold, nothing depends on the cut."""

import msgspec
import numpy as np
import pytest

from eorouter_compute import cog, product, raster
from eorouter_compute.attempt import Attempt, local_path
from eorouter_compute.errors import AttemptExists, Cancelled
from eorouter_compute.grid import SHARD_PIXELS, Window
from eorouter_compute.method import Band, Part, ReadReport, get
from eorouter_compute.testing import ROTATED_TRANSFORM, asymmetric, input_item, measured, write_raster

COSTS = {"bytes_read_per_pixel": 2.0, "memory_bytes_per_pixel": 6.0, "seconds_per_pixel": 1e-8}


def spec_for(pixels, **fields):
    names = ("red", "green", "blue", "nir")
    bands = tuple(
        Band(name=names[n], index=n + 1, dtype=pixels.dtype.name, common_name=names[n]) for n in range(len(pixels))
    )
    return cog.CogSpec(shape=pixels.shape[1:], transform=ROTATED_TRANSFORM, crs="EPSG:32632", dtype=pixels.dtype.name,
                       bands=bands, **fields)  # fmt: skip


def made(folder, spec, pixels, *, shard_pixels, halvings=lambda number: 0):
    advanced = []
    parts = []
    for number, shard in enumerate(product.plan_product(spec, **COSTS, shard_pixels=shard_pixels)):
        attempt = Attempt((folder / str(number)).as_uri(), on_progress=advanced.append, halvings=halvings(number))
        report = ReadReport(reads=1, pixels=number)
        told = [report]
        part = product.run_product(
            spec,
            shard.body,
            attempt,
            lambda w: (pixels[:, w.row : w.row_stop, w.col : w.col_stop], None),
            told.pop,
        )
        assert part.report == report
        parts.append(msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=Part))
    assert sum(advanced) == spec.shape[0] * spec.shape[1]
    return product.merge_product(spec, parts, Attempt((folder / "merge").as_uri()), name="thing", title="A thing")


def test_an_item_is_a_cog_and_a_preview_whatever_the_shards(tmp_path):
    pixels = asymmetric((1300, 1100), bands=3, dtype="uint8")
    spec = spec_for(pixels)
    items = [made(tmp_path / str(n), spec, pixels, shard_pixels=n) for n in (1, 512 * 512, 1024 * 1024, 10**8)]
    assert len({tuple(asset.object.sha256 for asset in item.assets) for item in items}) == 1
    data, preview = items[0].assets
    assert (data.media_type, data.roles) == (product.COG_MEDIA_TYPE, ("data",))
    assert preview.media_type == "image/png"
    block = raster.read_block(data.raster, [1, 2, 3], Window(500, 300, 100, 200))
    np.testing.assert_array_equal(block.pixels, pixels[:, 500:600, 300:500])
    assert data.raster.sha256 == data.object.sha256
    assert items[0].footprint["type"] == "Polygon"
    assert data.statistics[2]["maximum"] == pixels[2].max()


def test_shards_that_ran_out_of_memory_give_the_same_bytes_in_smaller_pieces(tmp_path):
    pixels = asymmetric((2300, 4300), bands=3, dtype="uint8")
    spec = spec_for(pixels, block_size=256)
    items = [
        made(tmp_path / str(place), spec, pixels, shard_pixels=2048 * 2048, halvings=halvings)
        for place, halvings in enumerate([lambda _: 0, lambda number: number % 3, lambda _: 9])
    ]
    assert len({tuple(asset.object.sha256 for asset in item.assets) for item in items}) == 1


@pytest.mark.parametrize("halvings", [1, 2, 9])
def test_an_attempt_that_needs_less_memory_asks_for_smaller_windows(tmp_path, halvings):
    pixels = asymmetric((700, 900), bands=2, dtype="uint8")
    spec = spec_for(pixels, block_size=128, has_mask=True)
    flat, deep = np.ones((700, 900), np.bool_), np.ones((2, 700, 900), np.bool_)
    flat[5:60, 200:300] = deep[0, 300:400, 600:] = False
    asked = []

    def compute(w):
        asked.append(w)
        window = np.s_[..., w.row : w.row_stop, w.col : w.col_stop]
        valid = None if w.row >= 512 else flat[window] if w.row < 256 else deep[window]
        return pixels[window], valid

    def objects(attempt, side):
        segment, _ = product.encode(spec, spec.window, side, attempt, compute)
        return [msgspec.structs.replace(segment, href=""), attempt.refs["segment.bin"].sha256]

    whole = objects(Attempt((tmp_path / "whole").as_uri()), 512)
    asked.clear()
    assert objects(Attempt((tmp_path / "less").as_uri(), halvings=halvings), 512) == whole
    assert max(window.height for window in asked) == max(512 >> halvings, 128)


def test_shards_cover_the_output_once_and_their_bounds_hold():
    spec = spec_for(np.zeros((1, 10, 10), np.uint16), nodata=0.0)
    spec = msgspec.structs.replace(spec, shape=(10_980, 10_980))
    shards = product.plan_product(spec, **COSTS)
    bodies = [msgspec.msgpack.decode(shard.body, type=product.ProductShard) for shard in shards]
    assert sum(body.window.pixels for body in bodies) == 10_980**2
    assert len({body.window for body in bodies}) == len(bodies) == 36
    assert all(shard.bound.pixels == body.window.pixels for shard, body in zip(shards, bodies, strict=True))
    assert all(shard.bound.memory_bytes < 300 << 20 for shard in shards)
    token = SHARD_PIXELS.set(10**9)
    try:
        assert len(product.plan_product(spec, **COSTS)) == 1
    finally:
        SHARD_PIXELS.reset(token)


def test_long_shards_are_cut_so_that_every_worker_has_work():
    spec = msgspec.structs.replace(spec_for(np.zeros((1, 9, 9), np.float32)), shape=(2048, 2048))
    shards = product.plan_product(spec, **(COSTS | {"seconds_per_pixel": 4e-6}))
    bodies = [msgspec.msgpack.decode(shard.body, type=product.ProductShard) for shard in shards]
    assert [body.window.pixels for body in bodies] == [1024**2] * 4
    (whole,) = product.plan_product(spec, **(COSTS | {"seconds_per_pixel": 1e-6}))
    assert msgspec.msgpack.decode(whole.body, type=product.ProductShard).window.pixels == 2048**2


def test_heavy_pixels_get_small_pieces():
    spec = msgspec.structs.replace(spec_for(np.zeros((1, 9, 9), np.float32)), shape=(9000, 9000))
    assert product.piece_side(spec, 4.0) == 2048
    assert product.piece_side(spec, 150.0) == 1024
    assert product.piece_side(spec, 5000.0) == 512


def test_a_cancelled_shard_leaves_nothing(tmp_path):
    pixels = asymmetric((100, 100), dtype="uint8")
    spec = spec_for(pixels)
    (shard,) = product.plan_product(spec, **COSTS)
    attempt = Attempt(tmp_path.as_uri(), is_cancelled=lambda: True)
    with pytest.raises(Cancelled):
        product.run_product(spec, shard.body, attempt, lambda w: (pixels, None), ReadReport)
    assert not list(tmp_path.iterdir())


def test_an_attempt_is_written_once(tmp_path):
    pixels = asymmetric((100, 100), dtype="uint8")
    spec = spec_for(pixels)
    (shard,) = product.plan_product(spec, **COSTS)
    product.run_product(spec, shard.body, Attempt(tmp_path.as_uri()), lambda w: (pixels, None), ReadReport)
    before = (tmp_path / "segment.bin").read_bytes()
    with pytest.raises(AttemptExists):
        product.run_product(spec, shard.body, Attempt(tmp_path.as_uri()), lambda w: (pixels + 1, None), ReadReport)
    assert (tmp_path / "segment.bin").read_bytes() == before


def test_preview_shows_the_colors_of_three_assets(tmp_path):
    import imagecodecs

    from eorouter_compute.testing import write_raster

    assets = []
    for n, name in enumerate(("blue", "green", "red")):
        pixels = np.zeros((1, 40, 60), np.uint8)
        pixels[0, :, n * 20 : n * 20 + 20] = 200
        assets.append(write_raster(tmp_path / f"{name}.tif", pixels, names=[name]))
    shown = product.preview(assets, Attempt((tmp_path / "out").as_uri()), name="x")
    picture = imagecodecs.png_decode(local_path(shown.object.href).read_bytes())
    assert picture[5, 5].tolist() == [0, 0, 255, 255]
    assert picture[5, 55].tolist() == [255, 0, 0, 255]


def test_memory_does_not_grow_with_the_raster(tmp_path):
    """Nine times the pixels in the memory of one piece. Off the file's blocks, what `blocks` keeps comes on top."""
    peaks = []
    square = asymmetric((1024, 1024), dtype="uint8")
    for times in (3, 9):
        pixels = np.tile(square, (1, times, times))
        side = 1024 * times
        asset = write_raster(tmp_path / f"{times}.tif", pixels, transform=(1.0, 0.0, 0.0, 0.0, -1.0, float(side)),
                             nodata=0, zlevel=1)  # fmt: skip
        task = get("clip").params(aoi=(0.0, 0.0, float(side), float(side)), crs="EPSG:32632")
        folder = tmp_path / str(times)
        folder.mkdir()
        found = measured(task, [input_item(asset)], folder)
        assert found.shard_bytes <= found.shard_bytes_bound
        peaks.append(found.shard_bytes)
    assert peaks[1] <= 1.2 * peaks[0], peaks
