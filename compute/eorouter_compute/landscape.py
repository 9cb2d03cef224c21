"""A made-up piece of country, seen by a made-up Sentinel-2: data whose truth is known, for demos, tests and benchmarks.

    countryside ──► clear picture of a day ──► clouds, shadows, swath edge, noise ──► stored numbers ──► COGs, truth

Stored numbers follow processing baseline 04.00: reflectance × 10,000 + 1,000, 0 for no data. The scene classification
is the truth, not an estimate, at 10 m. The same seed, size and dates give the same bytes.
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from eorouter_compute import cog
from eorouter_compute.countryside import COVERS, CRS, NIR, ORIGIN, PIXEL_M, RED, TABLE, Countryside, smooth_noise
from eorouter_compute.method import Band, InputItem, RasterAsset

DATES = (
    date(2024, 3, 12), date(2024, 4, 24), date(2024, 5, 19), date(2024, 6, 23), date(2024, 8, 12), date(2024, 9, 21),
    date(2024, 10, 26),
)  # fmt: skip
_CLOUD_SHARES = (0.06, 0.2, 0.0, 0.34, 0.04, 0.14, 0.5)
_SUN_AZIMUTH_DEG = 158.0

# name, common name, centre of the 10 m file, then of the 20 m file
BANDS_10M = (("B02", "blue"), ("B03", "green"), ("B04", "red"), ("B08", "nir"))
BANDS_20M = (("B05", "rededge071"), ("B8A", "nir08"), ("B11", "swir16"), ("B12", "swir22"))
SCALE, OFFSET, NODATA = 1e-4, -0.1, 0


class Scene(Struct, frozen=True, kw_only=True):
    """The files of one date: `bands_10m` (B02 B03 B04 B08), `bands_20m` (B05 B8A B11 B12), `scl` (classes, 10 m)."""

    at: datetime
    bands_10m: Path
    bands_20m: Path
    scl: Path
    cloud_share: float


class Landscape(Struct, frozen=True, kw_only=True):
    """Where a landscape lies: its scenes, its fields as GeoJSON (longitude, latitude) and everything planted in it."""

    folder: Path
    shape: tuple[int, int]
    transform: tuple[float, float, float, float, float, float]
    scenes: tuple[Scene, ...]
    fields: Path
    truth: Path
    crs: str = CRS

    def items(self) -> tuple[InputItem, ...]:
        """The scenes as methods see them."""
        return tuple(
            InputItem(
                id=f"landscape-{scene.at:%Y%m%d}",
                at=scene.at,
                properties={"platform": "sentinel-2a", "s2:processing_baseline": "05.10"},
                assets=(
                    self._asset("bands_10m", scene.bands_10m, _bands(BANDS_10M), 1),
                    self._asset("bands_20m", scene.bands_20m, _bands(BANDS_20M), 2),
                    self._asset("scl", scene.scl, _SCL_BANDS, 1),
                ),
            )
            for scene in self.scenes
        )

    def _asset(self, key: str, path: Path, bands: tuple[Band, ...], factor: int) -> RasterAsset:
        a, b, c, d, e, f = self.transform
        return RasterAsset(
            key=key,
            href=path.as_uri(),
            crs=self.crs,
            transform=(a * factor, b * factor, c, d * factor, e * factor, f),
            shape=(self.shape[0] // factor, self.shape[1] // factor),
            bands=bands,
            block_shape=(512, 512),
        )


def _bands(names: Sequence[tuple[str, str]]) -> tuple[Band, ...]:
    return tuple(
        Band(name=name, index=place, dtype="uint16", common_name=common, nodata=NODATA, scale=SCALE, offset=OFFSET)
        for place, (name, common) in enumerate(names, start=1)
    )


_SCL_BANDS = (Band(name="SCL", index=1, dtype="uint8", nodata=0, description="Scene classification"),)


def generate(
    folder: Path,
    *,
    seed: int = 7,
    size_px: int = 1024,
    dates: Sequence[date] = DATES,
    cloud_shares: Sequence[float] = (),
) -> Landscape:
    """Make a landscape and write it to `folder`.

    Args:
        folder: made if need be; files in it are replaced.
        seed: the same seed, size and dates give the same bytes.
        size_px: side of the square in pixels of 10 m; even, 256 to 4096. About 200 bytes per pixel are held.
        dates: one scene each, ascending.
        cloud_shares: share of the picture under cloud, per date; a varied year by default.

    Raises:
        ValueError: the size or the dates cannot be used.
    """
    if size_px % 2 or not 256 <= size_px <= 4096:
        raise ValueError(f"size_px is {size_px}; an even number from 256 to 4096 was expected")
    if not dates or list(dates) != sorted(set(dates)):
        raise ValueError("dates must be ascending, without repeats, at least one")
    shares = tuple(cloud_shares) or tuple(_CLOUD_SHARES[place % len(_CLOUD_SHARES)] for place in range(len(dates)))
    if len(shares) != len(dates) or not all(0 <= share <= 0.95 for share in shares):
        raise ValueError("cloud_shares must be one number from 0 to 0.95 per date")
    folder.mkdir(parents=True, exist_ok=True)
    ground = Countryside(seed, size_px, dates[0])
    shape, transform = (size_px, size_px), (PIXEL_M, 0.0, ORIGIN[0], 0.0, -PIXEL_M, ORIGIN[1])
    scenes, records = [], []
    for place, (day, share) in enumerate(zip(dates, shares, strict=True)):
        weather = _Weather(np.random.default_rng([seed, 100 + place]), size_px, share, day, is_at_edge=place % 6 == 1)
        scene = _write_scene(folder / f"{place:02d}_{day:%Y%m%d}", ground, weather, day, transform)
        scenes.append(scene)
        records.append(_scene_record(scene, weather))
    fields = folder / "fields.geojson"
    fields.write_text(json.dumps(ground.feature_collection(), separators=(",", ":")))
    truth = folder / "truth.json"
    truth.write_text(json.dumps(ground.truth(dates) | {"seed": seed, "size_px": size_px, "scenes": records}, indent=1))
    return Landscape(
        folder=folder, shape=shape, transform=transform, scenes=tuple(scenes), fields=fields, truth=truth
    )  # fmt: skip


# Weather and files


class _Weather:
    """Clouds of one day: opacity, shadow, and a wedge without data where the picture is at the edge of the swath."""

    def __init__(self, generator: np.random.Generator, size: int, share: float, day: date, *, is_at_edge: bool) -> None:
        self.generator = generator
        season = math.cos((day.timetuple().tm_yday - 172) / 365.25 * 2 * math.pi)
        self.sun_elevation_deg = 41.5 + 22.5 * season
        pad = 224
        wide = (size + 2 * pad, size + 2 * pad)
        drawn = smooth_noise(generator, wide, 210, 7)
        inner = drawn[pad:-pad, pad:-pad]
        if share > 0:
            level = float(np.quantile(inner, 1 - share))
            opacity = np.clip((drawn - level) / 0.45 + 0.12, 0, 1)
            thickness = np.clip((inner - level) / 1.6, 0, 1)
        else:
            opacity, thickness = np.zeros(wide, np.float32), np.float32(0)
        height_m = generator.uniform(900, 1_700)
        reach = height_m / math.tan(math.radians(self.sun_elevation_deg)) / PIXEL_M
        azimuth = math.radians(_SUN_AZIMUTH_DEG)
        down, right = round(reach * math.cos(azimuth)), round(-reach * math.sin(azimuth))
        down, right = max(-pad, min(pad, down)), max(-pad, min(pad, right))
        # The shadow falls away from the sun: what shades a pixel stands `reach` towards it.
        shade = opacity[pad - down : pad - down + size, pad - right : pad - right + size]
        self.opacity = opacity[pad:-pad, pad:-pad]
        self.shadow = shade * (1 - self.opacity)
        # Thick clouds are brighter, and their tops are lumpy.
        self.billow = np.clip(0.62 + 0.5 * thickness + 0.07 * smooth_noise(generator, (size, size), 26, 4), 0.45, 1.25)
        self.valid = np.ones((size, size), np.bool_)
        if is_at_edge:
            y, x = np.mgrid[0:size, 0:size]
            self.valid = x + 0.21 * y > 0.16 * size

    def over(self, picture: np.ndarray) -> None:
        """Put these clouds over a clear picture, with the sensor's noise; in place, band by band."""
        cloud = TABLE[COVERS.index("cloud")]
        light = 1 - 0.58 * self.shadow
        for band in range(len(picture)):
            seen = picture[band] * light
            seen += self.opacity * (cloud[band] * self.billow - seen)
            noise = self.generator.standard_normal(seen.shape, np.float32)
            picture[band] = seen + noise * (np.float32(0.0012) + np.float32(0.006) * seen)

    def classes(self, clear: np.ndarray, is_water: np.ndarray) -> np.ndarray:
        """Scene classification as Sen2Cor codes it, from the truth."""
        red, nir = clear[RED], clear[NIR]
        out = np.where((nir - red) > 0.4 * (nir + red), 4, 5).astype(np.uint8)
        out[is_water] = 6
        out[self.shadow > 0.25] = 3
        out[self.opacity > 0.08] = 10
        out[self.opacity > 0.3] = 8
        out[self.opacity > 0.75] = 9
        out[~self.valid] = 0
        return out


def _write_scene(start: Path, ground: Countryside, weather: _Weather, day: date, transform: tuple[float, ...]) -> Scene:
    seen = ground.reflectance(day)
    is_water = np.array([row.kind == "water" for row in ground.rows])[ground.cover]
    classes = weather.classes(seen, is_water)
    weather.over(seen)
    half = seen[4:].reshape(4, ground.size // 2, 2, ground.size // 2, 2).mean(axis=(2, 4))
    half_valid = (
        weather.valid[::2, ::2] & weather.valid[1::2, 1::2] & weather.valid[::2, 1::2] & weather.valid[1::2, ::2]
    )
    paths = [start.with_name(f"{start.name}_{kind}.tif") for kind in ("10m", "20m", "scl")]
    coarse = (transform[0] * 2, 0.0, transform[2], 0.0, transform[4] * 2, transform[5])
    _write(paths[0], _stored(seen[:4], weather.valid), _bands(BANDS_10M), transform)
    _write(paths[1], _stored(half, half_valid), _bands(BANDS_20M), coarse)
    _write(paths[2], classes[None], _SCL_BANDS, transform)
    share = float(np.isin(classes, (8, 9, 10)).sum() / max(int(weather.valid.sum()), 1))
    at = datetime.combine(day, time(10, 0, 31), UTC)
    return Scene(at=at, bands_10m=paths[0], bands_20m=paths[1], scl=paths[2], cloud_share=share)


def _stored(reflectance: np.ndarray, valid: np.ndarray) -> np.ndarray:
    stored = np.clip(np.rint((reflectance - OFFSET) / SCALE), 1, 65_535).astype(np.uint16)
    stored[:, ~valid] = NODATA
    return stored


def _write(path: Path, pixels: np.ndarray, bands: tuple[Band, ...], transform: tuple[float, ...]) -> None:
    """One COG, through the writer the methods use."""
    spec = cog.CogSpec(
        shape=(pixels.shape[1], pixels.shape[2]),
        transform=transform,  # pyright: ignore[reportArgumentType]
        crs=CRS,
        dtype=pixels.dtype.name,
        bands=bands,
        nodata=bands[0].nodata,
        overview_resampling="nearest" if bands is _SCL_BANDS else "average",
    )
    segment_path = path.with_suffix(".segment")
    try:
        with segment_path.open("wb") as target:
            segment = cog.encode(
                spec,
                spec.window,
                lambda w: (np.ascontiguousarray(pixels[:, w.row : w.row_stop, w.col : w.col_stop]), None),
                target,
                href=str(segment_path),
            )
        with path.open("wb") as out:
            cog.assemble(spec, [segment], out)
    finally:
        segment_path.unlink(missing_ok=True)


def _scene_record(scene: Scene, weather: _Weather) -> dict[str, Any]:
    return {
        "at": scene.at.isoformat(),
        "files": [scene.bands_10m.name, scene.bands_20m.name, scene.scl.name],
        "cloud_share": round(scene.cloud_share, 4),
        "valid_share": round(float(weather.valid.mean()), 4),
        "sun_azimuth_deg": _SUN_AZIMUTH_DEG,
        "sun_elevation_deg": round(weather.sun_elevation_deg, 2),
    }
