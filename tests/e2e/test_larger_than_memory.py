"""Every method, from HTTP through Dask, on rasters that do not fit the memory of the one worker there is.

The worker's limit counts all it holds, its libraries included. It is never exceeded: no shard's peak is above it, and
one and the same process does all of them, for Dask would end a worker above its limit and begin another. Samples of
each answer are compared with NumPy, GDAL or exactextract: what fits the memory must also be right.
"""

import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import msgspec
import numpy as np
import pytest
import rasterio
import shapely
from exactextract import exact_extract
from pyarrow import parquet
from rasterio.warp import Resampling, reproject
from rasterio.windows import Window as Place
from rasterio.windows import intersect

from eorouter.client import EoRouterClient
from eorouter_compute import cog
from eorouter_compute.cogfile import CogSpec
from eorouter_compute.grid import tiles
from eorouter_compute.method import Band, methods

LIMIT_MB = 1024
SIDE = 16_896
ORIGIN = (399_960.0, 4_500_000.0)
WIDTH_M = 10.0 * SIDE

AREA = {"type": "Polygon", "coordinates": [[
    [ORIGIN[0] + 0.02 * WIDTH_M, ORIGIN[1] - 0.03 * WIDTH_M], [ORIGIN[0] + 0.97 * WIDTH_M, ORIGIN[1] - 0.01 * WIDTH_M],
    [ORIGIN[0] + 0.93 * WIDTH_M, ORIGIN[1] - 0.98 * WIDTH_M], [ORIGIN[0] + 0.02 * WIDTH_M, ORIGIN[1] - 0.03 * WIDTH_M],
]]}  # fmt: skip

# Method: the items it reads, and its parameters. What takes longer than some ten seconds is for `make test-all`.
TASKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "clip": (("before",), {"aoi": AREA, "crs": "EPSG:32632"}),
    "spectral_index": (("before",), {"indices": ["NDVI"]}),
    "zonal_statistics": (
        ("before", "zones"),
        {"statistics": ["mean", "median", "stdev"]},
    ),
    "reproject": (("before",), {"grid": {"crs": "EPSG:3857"}, "resampling": "bilinear"}),
    "band_math": (("before",), {"outputs": [{"name": "ndvi", "expression": "(nir - red) / (nir + red)"}]}),
    "cog": (("before",), {"compression": "zstd"}),
    "radiometric_correction": (("before",), {"calibration": {"type": "constant", "factor_db": -83.0}, "scale": "db"}),
    "harmonize_sr": (("before",), {"platform": "landsat-7", "stored": {"scale": 0.0001}}),
    "change_detection": (
        ("before", "after"),
        {"statistic": {"type": "difference"}, "value": {"index": "NDVI"}, "polygons": False},
    ),
    "time_series": (
        ("before", "after"),
        {"value": {"index": "NDVI"}, "group": {"by": "all"}, "analysis": {"type": "composite", "statistics": ["mean"]}},
    ),
}
GAINS = {"before": 1.0, "after": 1.25}
QUICK = {"zonal_statistics"}
INSTALLED = {method for method, record in methods().items() if not record.is_internal}


def test_rasters_do_not_fit() -> None:
    assert 2 * 2 * SIDE * SIDE > LIMIT_MB << 20


def test_every_method_is_here() -> None:
    assert INSTALLED - set(TASKS) == set()


class World:
    """A service of one small worker, and items on it that are made when they are first asked for."""

    def __init__(self, service: Any, client: EoRouterClient, folder: Path) -> None:
        self.client = client
        self.database = folder / "eorouter.sqlite"
        self.pids: set[str] = set()
        self._service = service
        self._items: dict[str, str] = {}
        self.folder = folder

    def item(self, name: str) -> str:
        """Id of `before`, `after` or `zones`."""
        if name not in self._items:
            self._items[name] = self._taken_in(name)
        return self._items[name]

    def _taken_in(self, name: str) -> str:
        upload = self.client.uploads.upload
        if name == "zones":
            path = self.folder / "zones.geojson"
            path.write_text(json.dumps(strips(50)))
            return upload(path, project_id=self._service.project_id)["item_id"]
        month = {"before": 5, "after": 6}[name]
        path = scene(self.folder / f"{name}.tif", GAINS[name])
        bands = [{"name": band, "common_name": band} for band in ("red", "nir")]
        at = f"2024-0{month}-01T10:00:00Z"
        return upload(path, project_id=self._service.project_id, datetime=at, bands=bands)["item_id"]


@pytest.fixture(scope="module")
def world(start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("small")
    with start(folder, workers=1, worker_memory_mb=str(LIMIT_MB)) as service, service.client() as client:
        yield World(service, client, folder)


def scene(path: Path, gain: float) -> Path:
    """A two-band COG of four different pieces, over and over: quick to make, slow to hold."""
    bands = (Band(name="red", index=1, dtype="uint16"), Band(name="nir", index=2, dtype="uint16"))
    spec = CogSpec(
        shape=(SIDE, SIDE), transform=(10.0, 0.0, ORIGIN[0], 0.0, -10.0, ORIGIN[1]), crs="EPSG:32632", dtype="uint16",
        bands=bands, nodata=0,
    )  # fmt: skip
    pieces = drawn(gain)

    # Each piece is encoded once and copied to its places; the bytes are those of encoding them all.
    encoded: dict[tuple[int, int, int], tuple[cog.Piece, bytes]] = {}
    placed = []
    href = path.with_suffix(".segment").as_uri()
    with path.with_suffix(".segment").open("wb") as target:
        for place in tiles(spec.window, cog.PIECE_SIDE):
            number = (place.row // cog.PIECE_SIDE + 2 * (place.col // cog.PIECE_SIDE)) % 4
            key = (number, place.height, place.width)
            if key not in encoded:
                part = np.ascontiguousarray(pieces[number][:, : place.height, : place.width]), None
                buffer = io.BytesIO()
                made = cog.encode(spec, place, lambda _, part=part: part, buffer, href=href)
                encoded[key] = (made.pieces[0], buffer.getvalue())
            piece, data = encoded[key]
            placed.append(msgspec.structs.replace(piece, window=place, start=target.tell()))
            target.write(data)
    segment = cog.Segment(href=href, piece_side=cog.PIECE_SIDE, pieces=tuple(placed))
    with path.open("wb") as out:
        cog.assemble(spec, [segment], out)
    return path


def drawn(gain: float) -> list[np.ndarray]:
    """The four pieces (band, y, x)."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0 : cog.PIECE_SIDE, 0 : cog.PIECE_SIDE]
    pieces = []
    for number in range(4):
        wave = 2000 + 900 * np.sin((x + 2 * y) / (40 + number)) + rng.normal(0, 4, x.shape)
        pieces.append(np.stack([wave * gain, 3 * wave - 1500]).astype(np.uint16))
    return pieces


def strips(count: int) -> dict[str, Any]:
    """Polygons across the whole raster, each as wide as it and a part of its height, so that each meets many shards."""
    features = []
    for number in range(count):
        top, bottom = (ORIGIN[1] - WIDTH_M * (number + part) / count for part in (0.1, 1.3))
        left, right = ORIGIN[0] + 5.0, ORIGIN[0] + WIDTH_M - 3.0
        ring = [[left, top], [right, top - 7.0], [right, max(bottom, ORIGIN[1] - WIDTH_M)], [left, top]]
        features.append(
            {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        )  # fmt: skip
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    return {"type": "FeatureCollection", "crs": crs, "features": features}


def shards_of(database: Path, job_id: str) -> list[dict[str, Any]]:
    """What was noted about each shard of a job, its merge included."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT timing, attempt FROM job_shards WHERE job_id = ?", (job_id,)).fetchall()
    return [json.loads(timing) | {"tries": tries} for timing, tries in rows]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in sorted(TASKS, key=lambda name: name not in QUICK)
        if name in INSTALLED
    ],
)
def test_method_stays_below_the_memory_of_its_worker(world: World, method: str, tmp_path: Path) -> None:
    names, params = TASKS[method]
    zones = {"zones": {"item_id": world.item("zones")}} if "zones" in names else {}
    items = [world.item(name) for name in names]
    job = world.client.execute(*items, method=method, **params | zones).wait(timeout_s=800)
    assert job.state == "completed"
    noted = shards_of(world.database, job.id)
    assert len(noted) > 2
    peak = max(shard["peak_rss_bytes"] for shard in noted)
    assert peak <= LIMIT_MB << 20, f"a shard took {peak >> 20} MiB of {LIMIT_MB}"
    assert [shard["tries"] for shard in noted] == [1] * len(noted)
    world.pids.update(shard["worker"] for shard in noted)
    assert len(world.pids) == 1, f"workers were begun anew: {world.pids}"
    check(world, method, job.item_ids[0], tmp_path)


# Samples: a corner, a place where four pieces meet, and the far end
PLACES = [Place(0, 0, 300, 200), Place(2 * cog.PIECE_SIDE - 150, 3 * cog.PIECE_SIDE - 90, 300, 200),
          Place(SIDE - 300, SIDE - 200, 300, 200), Place(SIDE // 2, SIDE // 3, 300, 200)]  # fmt: skip


def truth(place: Place, gain: float = 1.0) -> np.ndarray:
    """What the scene holds there, (band, y, x), from the drawing and not from the file."""
    rows, cols = place.row_off + np.arange(place.height), place.col_off + np.arange(place.width)
    pieces, side = np.stack(drawn(gain)), cog.PIECE_SIDE
    number = ((rows // side)[:, None] + 2 * (cols // side)) % 4
    return np.moveaxis(pieces[number, :, (rows % side)[:, None], cols % side], -1, 0).astype(np.float64)


def ndvi(pixels: np.ndarray) -> np.ndarray:
    return (pixels[1] - pixels[0]) / (pixels[1] + pixels[0])


def expected(method: str, place: Place) -> np.ndarray:
    """The answer (band, y, x) at a place of the scene's own grid, NaN where there shall be none."""
    before, after = (truth(place, gain) for gain in GAINS.values())
    if method == "clip":
        x = ORIGIN[0] + 10 * (place.col_off + np.arange(place.width) + 0.5)
        y = ORIGIN[1] - 10 * (place.row_off + np.arange(place.height) + 0.5)
        return np.where(shapely.contains_xy(shapely.geometry.shape(AREA), *np.meshgrid(x, y)), before, np.nan)
    return {
        "cog": lambda: before,
        "spectral_index": lambda: ndvi(before)[None],
        "band_math": lambda: ndvi(before)[None],
        "radiometric_correction": lambda: 20 * np.log10(before) - 83,
        # Roy et al. 2016, table 2, reduced major axis: red, near infrared.
        "harmonize_sr": lambda: np.stack([0.9825 * before[0] - 22, 1.0073 * before[1] - 21]),
        "change_detection": lambda: (ndvi(after) - ndvi(before))[None],
        "time_series": lambda: ((ndvi(before) + ndvi(after)) / 2)[None],
    }[method]()


def check(world: World, method: str, item_id: str, folder: Path) -> None:
    """Compare samples of an answer with an oracle."""
    item = world.client.items.get(item_id)
    media = "application/vnd.apache.parquet" if method == "zonal_statistics" else "image/tiff"
    key = next(key for key, asset in item["assets"].items() if asset["type"].startswith(media))
    path = world.client.items.download(item_id, key, to=folder / "answer")
    if method == "zonal_statistics":
        check_zones(world, path)
    elif method == "reproject":
        check_warp(world, path)
    else:
        with rasterio.open(path) as found:
            left, top = (round(float(number)) for number in ~found.transform @ ORIGIN)
            for place in PLACES:
                inside = Place(place.col_off + left, place.row_off + top, place.width, place.height)
                whole = Place(0, 0, found.width, found.height)
                if not intersect(inside, whole):  # a corner that was cut off
                    continue
                inside = inside.intersection(whole)
                own = Place(inside.col_off - left, inside.row_off - top, inside.width, inside.height)
                pixels = (
                    found.read(window=inside, masked=True).filled(np.nan)
                    if found.dtypes[0].startswith("f")
                    else (
                        np.where(found.read_masks(window=inside) > 0, found.read(window=inside).astype(float), np.nan)
                    )
                )
                wanted = expected(method, own)
                step = 0.5 if method == "harmonize_sr" else 0
                np.testing.assert_allclose(pixels[: len(wanted)], wanted, rtol=2e-6, atol=1e-6 + 1.001 * step)
    path.unlink()


def check_zones(world: World, path: Path) -> None:
    rows = parquet.read_table(path).to_pylist()
    features = geopandas.read_file(world.folder / "zones.geojson").set_crs(32632, allow_override=True).iloc[[3, 31]]
    foreign = exact_extract(str(world.folder / "before.tif"), features, ["mean", "stdev"], output="pandas")
    for row, (_, other) in zip((rows[3], rows[31]), foreign.iterrows(), strict=True):
        for band, number in (("red", 1), ("nir", 2)):
            for name in ("mean", "stdev"):
                assert row[f"{band}_{name}"] == pytest.approx(other[f"band_{number}_{name}"], rel=1e-6)


def check_warp(world: World, path: Path) -> None:
    """Against GDAL without its approximation."""
    with rasterio.open(path) as found, rasterio.open(world.folder / "before.tif") as source:
        away = []
        for part in (2, 3, 5):
            place = Place(found.width // part, found.height // part, 300, 200)
            warped = np.zeros((2, place.height, place.width), np.uint16)
            there = found.transform @ rasterio.Affine.translation(place.col_off, place.row_off)
            reproject(
                rasterio.band(source, [1, 2]), warped, dst_crs=found.crs, dst_transform=there,
                resampling=Resampling.bilinear, tolerance=0.0,
            )  # fmt: skip
            away.append(np.abs(found.read(window=place).astype(float) - warped))
    # An eighth of a pixel, on slopes of 50 (red) and 150 (near infrared) a pixel; pieces meet with a step.
    for band, slope in enumerate((50, 150)):
        assert np.percentile(np.stack(away)[:, band], 98) <= slope / 8 + 1
        assert np.median(np.stack(away)[:, band]) <= slope / 40 + 1
