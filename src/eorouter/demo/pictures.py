"""From the files that the service gave back to the values that the report draws."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.windows import from_bounds

from eorouter.demo.story import Day, View, Zone
from eorouter.demo.world import Scene, World

_LONGEST_PX = 900
_EQUAL_AREA = "EPSG:6933"
_UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
_RED_GREEN_BLUE = (("red", "B04"), ("green", "B03"), ("blue", "B02"))


def time_of(scene: Scene) -> datetime:
    """When a scene was taken; scenes without a time all fall on the same one."""
    return scene.at or _UNDATED


def collect(
    ndvi: Sequence[tuple[Scene, str, Path]], scenery: World, clip: Path | None
) -> tuple[list[Zone], list[Day], View | None]:
    """Fields, days and the map; the NDVI rasters are given with their scenes and items."""
    days = [_day(scene, item_id, path) for scene, item_id, path in ndvi]
    if not ndvi:
        return [], days, None
    with rasterio.open(ndvi[0][2]) as raster:
        crs = raster.crs.to_string()
    zones = _zones(scenery, crs) if scenery.fields else []
    return zones, days, None if clip is None else _view(ndvi, clip)


def _day(scene: Scene, item_id: str, path: Path) -> Day:
    with rasterio.open(path) as raster:
        step = max(1, math.ceil(max(raster.shape) / _LONGEST_PX))
        shape = (math.ceil(raster.height / step), math.ceil(raster.width / step))
        small = raster.read(1, out_shape=shape, resampling=Resampling.nearest)
        values = np.where(np.isfinite(small), small, np.nan).astype(np.float32)
    return Day(
        at=time_of(scene), ndvi=values, valid_fraction=float(np.isfinite(values).mean()),
        cloud_fraction=scene.cloud_fraction, item_id=item_id,
    )  # fmt: skip


def _zones(scenery: World, crs: str) -> list[Zone]:
    """The fields in the map's CRS; areas on an equal-area plane, so that they hold whatever the map's CRS is."""
    frame = pyogrio.read_dataframe(scenery.fields)
    areas_ha = frame.to_crs(_EQUAL_AREA).area.to_numpy() / 10_000
    zones = []
    for number, row in enumerate(frame.to_crs(crs).itertuples(index=False)):
        polygons = shapely.get_parts(row.geometry)
        rings = [
            shapely.get_coordinates(ring)
            for polygon in polygons
            for ring in (polygon.exterior, *polygon.interiors)
            if not polygon.is_empty
        ]
        zone_id = getattr(row, scenery.zone_field) if scenery.zone_field else number
        crop = getattr(row, scenery.crop_field) if scenery.crop_field else "all fields"
        zones.append(Zone(id=str(zone_id), crop=str(crop), area_ha=float(areas_ha[number]), rings=rings))
    return zones


def _view(ndvi: Sequence[tuple[Scene, str, Path]], clip: Path) -> View | None:
    """The clip in true colour, and the NDVI of its day over the same ground: both come from one scene, on its grid."""
    stamp = clip.stem.removeprefix("clip")
    matching = [entry for entry in ndvi if entry[2].stem.removeprefix("ndvi") == stamp]
    if not matching:  # the scene that was clipped has no NDVI: there is nothing to show beside it
        return None
    scene, _, ndvi_path = matching[0]
    with rasterio.open(clip) as raster:
        step = max(1, math.ceil(max(raster.shape) / _LONGEST_PX))
        shape = (math.ceil(raster.height / step), math.ceil(raster.width / step))
        indexes = _colour_indexes(raster)
        pixels = raster.read(indexes, out_shape=(len(indexes), *shape), resampling=Resampling.average, masked=True)
        if not raster.crs.is_projected:  # a scale bar would lie
            return None
        bounds, crs, ground_pixel_m = raster.bounds, raster.crs, abs(raster.transform.a)
    with rasterio.open(ndvi_path) as raster:
        window = from_bounds(*bounds, transform=raster.transform).round_offsets().round_lengths()
        values = raster.read(1, window=window, out_shape=shape)
    seen = np.asarray(~np.ma.getmaskarray(pixels).any(axis=0))
    to_degrees = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    longitude, latitude = to_degrees.transform((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2)
    return View(
        at=time_of(scene),
        true_colour=true_colour(np.ma.getdata(pixels).astype(np.float32), seen),
        ndvi=np.where(seen, values, np.nan).astype(np.float32),
        bounds=tuple(bounds),
        crs=crs.to_string(),
        centre_lon_lat=(float(longitude), float(latitude)),
        ground_pixel_m=ground_pixel_m,
    )


def true_colour(bands: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Bands (3, y, x) to a picture (y, x, RGBA), clear where nothing was seen.

    Stretched from a little under the darkest to the 99th percentile, the same for all three bands so that colours stay
    true, and brightened by a gamma as screens and eyes want it.
    """
    picture = np.zeros((*seen.shape, 4), np.uint8)
    if seen.any():
        dark, bright = np.percentile(bands[:, seen], (0.5, 99))
        floor = dark - 0.06 * (bright - dark)
        stretched = np.clip((bands - floor) / max(bright - floor, 1e-9), 0, 1) ** (1 / 1.25)
        picture[..., :3] = np.moveaxis((stretched * 255).round().astype(np.uint8), 0, -1)
        picture[..., 3] = seen * np.uint8(255)
    return picture


def _colour_indexes(raster: rasterio.DatasetReader) -> list[int]:
    """Band numbers of red, green and blue by their names; the first three, or the first alone, without such names."""
    names = [(name or "").lower() for name in raster.descriptions]
    found = [
        next((names.index(name.lower()) + 1 for name in choices if name.lower() in names), 0)
        for choices in _RED_GREEN_BLUE
    ]
    if all(found):
        return found
    return [1, 2, 3] if raster.count >= 3 else [1, 1, 1]
