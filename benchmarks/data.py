"""Scenes and polygons by seed: the same bytes on every machine, made once per folder."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio.transform import from_origin

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"small": 2048, "tile": 10_980, "large": 21_960}
ORIGIN = (600_000.0, 5_900_040.0)
PIXEL_M = 10.0
CRS = "EPSG:32632"
PATCH_PX = 40
CLOUDY = (3, 8, 9, 10)
"""Classes of Sentinel-2's scene classification that are no ground: shadow, clouds, cirrus."""

Rows = Callable[[int, int], np.ndarray]
"""`(first row, number of rows) -> pixels (y, x)` of one band; called once for each stripe, top to bottom."""


def scene(folder: Path, side: int, name: str, seed: int, *, bands: int = 1, is_cog: bool = False) -> Path:
    """A tiled uint16 GeoTIFF with field-like patches, slopes and sensor noise; deflate, 512 px blocks, nodata 0."""
    path = folder / f"{name}-{side}-{bands}{'-cog' if is_cog else ''}.tif"
    return written(path, side, [fields(side, seed, band) for band in range(1, bands + 1)], is_cog=is_cog)


def written(path: Path, side: int, bands: list[Rows], *, dtype: str = "uint16", is_cog: bool = True) -> Path:
    """Write a raster from the stripes of its bands, unless it is there already."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": len(bands), "dtype": dtype, "crs": CRS, "nodata": 0,
        "transform": from_origin(*ORIGIN, PIXEL_M, PIXEL_M), "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate", "predictor": 2, "zlevel": 6, "num_threads": 2, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    temporary = path.with_suffix(".part")
    with rasterio.open(temporary, "w", **profile) as target:
        for number, pixels in enumerate(bands, start=1):
            for row in range(0, side, 512):
                rows = min(512, side - row)
                target.write(pixels(row, rows), number, window=((row, row + rows), (0, side)))
    if is_cog:
        finished = path.with_suffix(".cog.part")
        # In a process of its own: where our modules were imported, GDAL has no COG driver any more.
        command = [sys.executable, "-m", "benchmarks.data", str(temporary), str(finished)]
        subprocess.run([*command, "average" if dtype == "uint16" else "mode"], check=True, cwd=ROOT)
        temporary.unlink()
        finished.replace(path)
    else:
        temporary.replace(path)
    return path


def fields(side: int, seed: int, band: int) -> Rows:
    """Patches of 300 to 4,000 with noise of 25; sheared, so that their edges do not fall on block edges."""
    rng = np.random.default_rng([seed, band])
    patches = _patches(side, lambda shape: rng.integers(300, 4000, shape))

    def rows(row: int, count: int) -> np.ndarray:
        noise = rng.normal(0, 25, (count, side))
        return np.clip(_spread(patches, row, count, side) + noise, 1, 10_000).astype(np.uint16)

    return rows


def fields_later(side: int, seed: int, band: int) -> Rows:
    """The same fields under another sun and another sensor's gain, a twentieth of them changed for good."""
    before = fields(side, seed, band)
    rng = np.random.default_rng([seed, 99])  # the same patches change in every band
    is_changed = _patches(side, lambda shape: rng.random(shape) < 0.05)
    other = np.random.default_rng([seed, 100, band])
    new = _patches(side, lambda shape: other.integers(300, 4000, shape))

    def rows(row: int, count: int) -> np.ndarray:
        kept = before(row, count) * (0.8 + 0.03 * band) + 150.0 + other.normal(0, 25, (count, side))
        changed = _spread(is_changed, row, count, side)
        return np.clip(np.where(changed, _spread(new, row, count, side), kept), 1, 10_000).astype(np.uint16)

    return rows


def classes(side: int, seed: int) -> Rows:
    """Scene classification with a third of the ground under clouds and their shadows."""
    rng = np.random.default_rng([seed, 7])
    kinds, shares = np.array([4, 5, *CLOUDY], np.uint8), [0.4, 0.27, 0.08, 0.1, 0.1, 0.05]
    patches = _patches(side, lambda shape: rng.choice(kinds, shape, p=shares))
    return lambda row, count: _spread(patches, row, count, side)


def _patches(side: int, draw: Callable[[tuple[int, int]], np.ndarray]) -> np.ndarray:
    drawn = draw((side // PATCH_PX + 2, side // PATCH_PX + 2))
    return drawn.astype(np.uint16) if drawn.dtype == np.int64 else drawn


def _spread(patches: np.ndarray, row: int, count: int, side: int) -> np.ndarray:
    y, x = np.arange(row, row + count)[:, None], np.arange(side)[None, :]
    return patches[y // PATCH_PX, ((x + (y % 977) // 3) // PATCH_PX) % patches.shape[1]]


def polygons(folder: Path, side: int, kind: str, count: int, seed: int = 7) -> Path:
    """GeoJSON in the scene's CRS: `blobs` of about 60 px, `large` of about 300 px, or a Voronoi `partition`."""
    path = folder / f"{kind}-{count}-{side}.geojson"
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    extent = side * PIXEL_M
    if kind == "partition":
        points = shapely.multipoints(rng.uniform(0, extent, (count, 2)))
        frame = shapely.box(0, 0, extent, extent)
        cells = shapely.intersection(shapely.get_parts(shapely.voronoi_polygons(points, extend_to=frame)), frame)
        rings = cells
    else:
        radius = (30 if kind == "blobs" else 150) * PIXEL_M
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        centres = rng.uniform(radius, extent - radius, (count, 1, 2))
        reach = radius * rng.uniform(0.5, 1.0, (count, 24, 1))
        rings = shapely.polygons(centres + reach * np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None])
    shift = np.array([ORIGIN[0], ORIGIN[1] - extent])
    placed = shapely.transform(rings, lambda xy: xy + shift)
    features = [
        {"type": "Feature", "properties": {"id": number}, "geometry": json.loads(shapely.to_geojson(geometry))}
        for number, geometry in enumerate(placed)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


def main() -> None:
    """Make a COG of a GeoTIFF: source, target, resampling of the overviews."""
    from rasterio.shutil import copy

    source, target, resampling = sys.argv[1:]
    copy(
        source, target, driver="COG", compress="DEFLATE", predictor=2, num_threads=2, bigtiff="IF_SAFER",
        overview_resampling=resampling,
    )  # fmt: skip


if __name__ == "__main__":
    main()
