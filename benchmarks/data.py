"""Scenes and polygons by seed: the same bytes on every machine, made once per folder."""

import json
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio.transform import from_origin

SIDES = {"small": 2048, "tile": 10_980, "large": 21_960}
ORIGIN = (600_000.0, 5_900_040.0)
PIXEL_M = 10.0
CRS = "EPSG:32632"


def scene(folder: Path, side: int, name: str, seed: int, *, bands: int = 1, is_cog: bool = False) -> Path:
    """A tiled uint16 GeoTIFF with field-like patches, slopes and sensor noise; deflate, 512 px blocks, nodata 0."""
    path = folder / f"{name}-{side}-{bands}{'-cog' if is_cog else ''}.tif"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": bands, "dtype": "uint16", "crs": CRS, "nodata": 0,
        "transform": from_origin(*ORIGIN, PIXEL_M, PIXEL_M), "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate", "predictor": 2, "zlevel": 6, "num_threads": 2, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    temporary = path.with_suffix(".part")
    with rasterio.open(temporary, "w", **profile) as target:
        for band in range(1, bands + 1):
            rng = np.random.default_rng([seed, band])
            patches = rng.integers(300, 4000, (side // 40 + 2, side // 40 + 2)).astype(np.uint16)
            for row in range(0, side, 512):
                rows = min(512, side - row)
                y, x = np.arange(row, row + rows), np.arange(side)
                # Patches are sheared so that their edges do not fall on block edges.
                values = patches[
                    (y // 40)[:, None], (((x[None, :] + (y % 977)[:, None] // 3) // 40) % patches.shape[1])
                ]
                noise = rng.normal(0, 25, (rows, side))
                pixels = np.clip(values + noise, 1, 10_000).astype(np.uint16)
                target.write(pixels, band, window=((row, row + rows), (0, side)))
    if is_cog:
        from rio_cogeo.cogeo import cog_translate
        from rio_cogeo.profiles import cog_profiles

        cog_translate(temporary, path, cog_profiles.get("deflate"), quiet=True, in_memory=False)
        temporary.unlink()
    else:
        temporary.replace(path)
    return path


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
