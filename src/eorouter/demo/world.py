"""The data of the demonstration: a generated landscape whose truth is known, or whatever rasters a folder holds.

The generated scenes come with a scene classification, as Sentinel-2's do. Before they are uploaded, every pixel that it
calls cloud, cloud shadow, cirrus, saturated or missing is set to nodata, so that the valid fraction of each field tells
how much of it was really seen. That is what a user of such scenes would do, and the report says so.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from eorouter.demo.story import TRUSTED_VALID_FRACTION

RASTER_ENDINGS = (".tif", ".tiff", ".jp2")
VECTOR_ENDINGS = (".geojson", ".gpkg", ".fgb", ".parquet", ".json")
HIDDEN_CLASSES = (0, 1, 3, 8, 9, 10)
"""Classes of Sen2Cor's scene classification that do not show the ground: no data, saturated, shadow, cloud (medium and
high probability), thin cirrus."""

# https://github.com/stac-extensions/eo/tree/v2.0.0#common-band-names
SENTINEL_2 = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge071", "B06": "rededge075",
    "B07": "rededge078", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
_DATE = re.compile(r"(?<!\d)(19\d\d|20\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A raster to take in. `cloud_fraction` is what the scene says of itself, `bands` are names and common names."""

    path: Path
    title: str
    at: datetime | None
    cloud_fraction: float | None = None
    bands: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything there is to take in, and what is known of it.

    Attributes:
        place: one sentence on where and what.
        zone_field, crop_field: attributes of the fields; empty when they have none.
        curves: NDVI put into each crop over time, where it is known.
        truth: NDVI put into each crop on the day of each scene, by (crop, time).
        notes: what a reader of the results must know.
    """

    title: str
    place: str
    scenes: Sequence[Scene]
    fields: Path | None
    zone_field: str = ""
    crop_field: str = ""
    is_synthetic: bool = False
    curves: Mapping[str, Sequence[tuple[datetime, float]]] = field(default_factory=dict)
    truth: Mapping[tuple[str, datetime], float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def generate(folder: Path, *, size_px: int) -> World:
    """Generate the landscape and mask its scenes."""
    from eorouter_compute import countryside, landscape

    land = landscape.generate(folder / "landscape", size_px=size_px)
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    scenes = []
    for scene in land.scenes:
        path = folder / "scenes" / f"scene_{scene.at:%Y%m%d}.tif"
        _mask(scene.bands_10m, scene.scl, path)
        scenes.append(
            Scene(
                path=path,
                title=f"Landscape on {scene.at:%d %B %Y}",
                at=scene.at,
                cloud_fraction=scene.cloud_share,
                bands=landscape.BANDS_10M,
            )
        )
    features = json.loads(land.fields.read_text())["features"]
    truth = json.loads(land.truth.read_text())["fields"]["ndvi"]
    side_km = size_px * countryside.PIXEL_M / 1000
    return World(
        title="A season over the fields",
        place=f"A generated landscape of {side_km:.1f} × {side_km:.1f} km in the Marchfeld east of Vienna, "
        f"{len(features):,} fields, {len(scenes)} acquisitions of {scenes[0].at:%Y}; what grows where is known, so "
        "every number can be compared with the one that was put in.",
        scenes=scenes,
        fields=land.fields,
        zone_field="id",
        crop_field="crop",
        is_synthetic=True,
        curves=_curves(features, [scene.at for scene in land.scenes]),
        truth=_truth(features, truth, [scene.at for scene in land.scenes]),
        notes=(
            "The scenes are generated, not measured: reflectance of each field is mixed from soil and vegetation so "
            "that its NDVI is the one of its crop’s calendar, then texture, noise, clouds and shadows are laid over.",
            "Pixels that the scene classification calls cloud, shadow, cirrus, saturated or missing were set to nodata "
            "before upload, so “valid” means: seen. What the classification misses at cloud edges stays in.",
            f"Fields of which less than {TRUSTED_VALID_FRACTION:.0%} was seen on a day are drawn dashed and enter no "
            "mean of that day.",
            "A field’s own statistics weigh each pixel by the exact fraction of it that lies inside; pixels at a "
            "field’s edge also hold some of its neighbour, which pulls small fields towards what surrounds them.",
            "Lines are the calendars of the crops and do not know of bloom and fire: rapeseed in flower, at the end of "
            "April, reflects more red than its calendar’s NDVI allows, and some fields burnt at the end of July. The "
            "values “put in” of the table do know of both. They are means over all fields of a crop, seen or not.",
        ),
    )


def find(folder: Path) -> World:
    """The rasters and the polygons of a folder.

    Raises:
        ValueError: there is no raster in it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    rasters = [path for path in files if path.suffix.lower() in RASTER_ENDINGS]
    vectors = [path for path in files if path.suffix.lower() in VECTOR_ENDINGS]
    if not rasters:
        raise ValueError(f"{folder} has no raster. Expected files ending in {', '.join(RASTER_ENDINGS)}.")
    fields = next((path for path in vectors if "field" in path.stem.lower()), vectors[0] if vectors else None)
    zone_field, crop_field = _field_names(fields) if fields is not None else ("", "")
    scenes = [
        Scene(path=path, title=path.stem, at=date_of(path.name), bands=_sentinel_2_bands(path)) for path in rasters
    ]
    return World(
        title=f"Your data: {folder.name}",
        place=f"{len(rasters)} raster file(s) and {'the polygons of ' + fields.name if fields else 'no polygons'} "
        f"from {folder.name}.",
        scenes=sorted(scenes, key=lambda scene: (scene.at or datetime.max.replace(tzinfo=UTC), scene.path.name)),
        fields=fields,
        zone_field=zone_field,
        crop_field=crop_field,
        notes=(
            "Nothing was masked before upload: where a scene is cloudy, the numbers are those of the clouds.",
            f"Polygons of which less than {TRUSTED_VALID_FRACTION:.0%} held valid pixels enter no mean.",
        ),
    )


def date_of(name: str) -> datetime | None:
    """The first date in a file name, at noon UTC; None without one."""
    found = _DATE.search(name)
    if found is None:
        return None
    try:
        year, month, day = (int(part) for part in found.groups())
        return datetime(year, month, day, 12, tzinfo=UTC)
    except ValueError:
        return None


def _sentinel_2_bands(path: Path) -> list[tuple[str, str]]:
    """Names and common names, where the file calls all its bands as Sentinel-2 does; the file's own word otherwise."""
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(path) as raster:
            names = [name or "" for name in raster.descriptions]
    except RasterioIOError:
        return []  # the service will say what is wrong with it
    known = all(name in SENTINEL_2 for name in names)
    return [(name, SENTINEL_2[name]) for name in names] if known and names else []


def _field_names(path: Path) -> tuple[str, str]:
    """Attributes that look like an identifier and like what grows there; empty where none does."""
    import pyogrio

    names = {str(name).lower(): str(name) for name in pyogrio.read_info(path)["fields"]}
    zone = next((names[name] for name in ("id", "field_id", "fid", "zone_id", "name") if name in names), "")
    crop = next(
        (names[name] for name in ("crop", "crop_type", "class", "label", "landuse", "type") if name in names), ""
    )
    return zone, crop


def _mask(bands: Path, classes: Path, target: Path) -> None:
    """Copy a scene with nodata wherever its classification says that the ground is not seen."""
    import numpy as np
    import rasterio

    with rasterio.open(bands) as scene, rasterio.open(classes) as classification:
        pixels, hidden = scene.read(), np.isin(classification.read(1), HIDDEN_CLASSES)
        pixels[:, hidden] = scene.nodata
        profile = {
            "driver": "GTiff", "dtype": scene.dtypes[0], "count": scene.count, "width": scene.width,
            "height": scene.height,
            "crs": scene.crs, "transform": scene.transform, "nodata": scene.nodata, "tiled": True, "blockxsize": 256,
            "blockysize": 256, "compress": "deflate", "predictor": 2, "interleave": "pixel",
            "photometric": "minisblack",
        }  # fmt: skip
        with rasterio.open(target, "w", **profile) as copy:
            copy.descriptions, copy.scales, copy.offsets = scene.descriptions, scene.scales, scene.offsets
            copy.write(pixels)


def _curves(features: Sequence[Mapping[str, Any]], days: Sequence[datetime]) -> dict[str, list[tuple[datetime, float]]]:
    """Mean NDVI put into each crop, every third day from the first to the last acquisition, weighted by area."""
    from eorouter_compute import countryside

    step, day = timedelta(days=3), days[0]
    times = []
    while day <= days[-1]:
        times.append(day)
        day += step
    curves = {}
    for crop, calendar in countryside.CROPS.items():
        fields = [one["properties"] for one in features if one["properties"]["crop"] == crop]
        area = sum(one["area_ha"] for one in fields)
        if not fields:
            continue
        curves[crop] = [
            (
                at,
                sum(
                    one["area_ha"]
                    * float(
                        calendar.ndvi(at.timetuple().tm_yday, one["green_up_day"] - calendar.green_up, one["peak_ndvi"])
                    )
                    for one in fields
                )
                / area,
            )
            for at in times
        ]
    return curves


def _truth(
    features: Sequence[Mapping[str, Any]], ndvi: Mapping[str, Sequence[float]], days: Sequence[datetime]
) -> dict[tuple[str, datetime], float]:
    """Mean NDVI put into each crop on each day, burnt fields included, weighted by area."""
    found = {}
    for at in days:
        values = ndvi[at.date().isoformat()]
        for crop in {one["properties"]["crop"] for one in features}:
            mine = [
                (one["properties"]["area_ha"], value)
                for one, value in zip(features, values, strict=True)
                if one["properties"]["crop"] == crop
            ]
            found[crop, at] = sum(area * value for area, value in mine) / sum(area for area, _ in mine)
    return found
