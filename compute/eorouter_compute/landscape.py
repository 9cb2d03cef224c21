"""A made-up piece of country, seen by a made-up Sentinel-2: data whose truth is known, for demos, tests and benchmarks.

    parcels ──► cover of every pixel (rows of one table) ──► spectra of a day ──► clouds, shadows, noise ──► files

The ground is split into parcels by straight lines that a smooth bend then curves; forest, river, lake and towns lie
over them, and parcels that stay whole are fields. Every pixel belongs to a row of a table; a day's picture is that
table's vegetation fraction and background, mixed so that each field has exactly the NDVI its crop's calendar says.
Stored numbers follow processing baseline 04.00: reflectance × 10,000 + 1,000, 0 for no data. The same seed gives the
same bytes.
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from eorouter_compute import cog
from eorouter_compute.method import Band, InputItem, RasterAsset

CRS = "EPSG:32633"
ORIGIN = (620_000.0, 5_345_000.0)  # in the Marchfeld, east of Vienna
PIXEL_M = 10.0
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

# Reflectance in B02 B03 B04 B08 B05 B8A B11 B12, after typical spectra of the USGS and ECOSTRESS libraries.
SPECTRA = {
    "crop": (0.025, 0.066, 0.022, 0.50, 0.105, 0.52, 0.20, 0.09),
    "rapeseed_flower": (0.045, 0.175, 0.145, 0.47, 0.22, 0.49, 0.22, 0.11),
    "grass": (0.030, 0.078, 0.034, 0.44, 0.12, 0.46, 0.23, 0.11),
    "broadleaf": (0.017, 0.044, 0.019, 0.40, 0.085, 0.42, 0.17, 0.075),
    "conifer": (0.014, 0.027, 0.016, 0.22, 0.05, 0.235, 0.10, 0.045),
    "bare_wood": (0.042, 0.055, 0.065, 0.15, 0.09, 0.16, 0.19, 0.13),
    "soil": (0.075, 0.105, 0.142, 0.205, 0.165, 0.225, 0.30, 0.26),
    "straw": (0.095, 0.145, 0.195, 0.31, 0.245, 0.33, 0.40, 0.30),
    "burnt": (0.042, 0.047, 0.053, 0.078, 0.06, 0.084, 0.16, 0.17),
    "river": (0.062, 0.072, 0.050, 0.022, 0.036, 0.018, 0.009, 0.007),
    "lake": (0.036, 0.043, 0.021, 0.011, 0.016, 0.010, 0.006, 0.005),
    "gravel": (0.15, 0.18, 0.20, 0.24, 0.22, 0.25, 0.28, 0.26),
    "asphalt": (0.085, 0.093, 0.102, 0.125, 0.115, 0.13, 0.15, 0.14),
    "red_roof": (0.085, 0.105, 0.175, 0.25, 0.205, 0.26, 0.29, 0.25),
    "grey_roof": (0.15, 0.16, 0.17, 0.20, 0.185, 0.205, 0.22, 0.20),
    "hall_roof": (0.31, 0.33, 0.34, 0.37, 0.35, 0.37, 0.36, 0.32),
    "cloud": (0.62, 0.61, 0.61, 0.66, 0.63, 0.67, 0.42, 0.33),
}
_NAMES = tuple(SPECTRA)
_TABLE = np.array([SPECTRA[name] for name in _NAMES], np.float32)
_RED, _NIR = 2, 3


class Calendar(NamedTuple):
    """NDVI of a crop over the year: a double logistic from `low` to `peak` and back. Days of year; rates per day.

    Reference: Beck et al. 2006, "Improved monitoring of vegetation dynamics at very high latitudes", RSE 100, 321-334.
    """

    share: float
    low: float
    peak: float
    green_up: float
    up_rate: float
    harvest: float
    down_rate: float

    def ndvi(self, day: Any, shift: Any, peak: Any) -> Any:
        """NDVI on a day, for a field that is `shift` days late and reaches `peak`."""
        rise = 1 / (1 + np.exp(-self.up_rate * (day - self.green_up - shift)))
        fall = 1 / (1 + np.exp(self.down_rate * (day - self.harvest - shift)))
        return self.low + (peak - self.low) * rise * fall

    @property
    def peak_day(self) -> int:
        """Day of year of the highest NDVI."""
        days = np.arange(1, 366)
        return int(days[np.argmax(self.ndvi(days, 0.0, self.peak))])


CROPS = {
    "winter_wheat": Calendar(0.30, 0.30, 0.88, 92, 0.075, 182, 0.16),
    "winter_barley": Calendar(0.10, 0.32, 0.86, 84, 0.085, 165, 0.17),
    "rapeseed": Calendar(0.11, 0.38, 0.86, 82, 0.085, 176, 0.13),
    "maize": Calendar(0.19, 0.19, 0.87, 168, 0.10, 262, 0.10),
    "sugar_beet": Calendar(0.12, 0.19, 0.90, 150, 0.09, 290, 0.14),
    "sunflower": Calendar(0.07, 0.19, 0.82, 154, 0.10, 236, 0.09),
    "grassland": Calendar(0.11, 0.46, 0.80, 88, 0.07, 318, 0.04),
}


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
        size_px: side of the square in pixels of 10 m; even, 256 to 8192.
        dates: one scene each, ascending.
        cloud_shares: share of the picture under cloud, per date; a varied year by default.

    Raises:
        ValueError: the size or the dates cannot be used.
    """
    if size_px % 2 or not 256 <= size_px <= 8192:
        raise ValueError(f"size_px is {size_px}; an even number from 256 to 8192 was expected")
    if not dates or list(dates) != sorted(set(dates)):
        raise ValueError("dates must be ascending, without repeats, at least one")
    shares = tuple(cloud_shares) or tuple(_CLOUD_SHARES[place % len(_CLOUD_SHARES)] for place in range(len(dates)))
    if len(shares) != len(dates) or not all(0 <= share <= 0.95 for share in shares):
        raise ValueError("cloud_shares must be one number from 0 to 0.95 per date")
    folder.mkdir(parents=True, exist_ok=True)
    ground = _Ground(seed, size_px, dates[0])
    shape, transform = (size_px, size_px), (PIXEL_M, 0.0, ORIGIN[0], 0.0, -PIXEL_M, ORIGIN[1])
    scenes, records = [], []
    for place, (day, share) in enumerate(zip(dates, shares, strict=True)):
        weather = _Weather(np.random.default_rng([seed, 100 + place]), size_px, share, day)
        scene = _write_scene(folder, ground, weather, day, place, transform)
        scenes.append(scene)
        records.append(_scene_record(scene, weather))
    fields = folder / "fields.geojson"
    fields.write_text(json.dumps(ground.feature_collection(), separators=(",", ":")))
    truth = folder / "truth.json"
    truth.write_text(json.dumps(ground.truth(dates) | {"seed": seed, "size_px": size_px, "scenes": records}, indent=1))
    return Landscape(
        folder=folder, shape=shape, transform=transform, scenes=tuple(scenes), fields=fields, truth=truth
    )  # fmt: skip


# Noise and geometry


def _noise(generator: np.random.Generator, shape: tuple[int, int], scale_px: float, octaves: int = 4) -> np.ndarray:
    """Smooth noise of zero mean and unit deviation: random values on ever finer lattices, eased between."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(scale_px / 2**octave, 1.0)
        lattice = generator.standard_normal((int(shape[0] / step) + 3, int(shape[1] / step) + 3), np.float32)
        shift = generator.random(2)
        rows, along_y = _ease(shape[0], step, shift[0])
        cols, along_x = _ease(shape[1], step, shift[1])
        tall = lattice[rows] + (lattice[rows + 1] - lattice[rows]) * along_y[:, None]
        total += 0.5**octave * (tall[:, cols] + (tall[:, cols + 1] - tall[:, cols]) * along_x)
    return (total - total.mean()) / total.std()


def _ease(count: int, step: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(count) / step + shift
    cell = place.astype(np.int64)
    part = place - cell
    return cell, (part * part * (3 - 2 * part)).astype(np.float32)


def _blur(picture: np.ndarray, weight: float) -> np.ndarray:
    """The optics: every pixel takes `weight` from each of its two neighbours, along both axes."""
    for axis in (-2, -1):
        before, after = np.roll(picture, 1, axis), np.roll(picture, -1, axis)
        picture = (1 - 2 * weight) * picture + weight * (before + after)
    return picture


Ring = list[tuple[float, float]]


def _split(ring: Ring, normal: tuple[float, float], level: float) -> tuple[Ring, Ring]:
    """A convex ring cut by the line normal · p = level, and the side below it first."""
    sides: tuple[Ring, Ring] = ([], [])
    heights = [normal[0] * x + normal[1] * y - level for x, y in ring]
    for place, (x, y) in enumerate(ring):
        height, following = heights[place], heights[(place + 1) % len(ring)]
        sides[int(height > 0)].append((x, y))
        if (height > 0) != (following > 0):
            other = ring[(place + 1) % len(ring)]
            part = height / (height - following)
            crossing = (x + part * (other[0] - x), y + part * (other[1] - y))
            sides[0].append(crossing)
            sides[1].append(crossing)
    return sides


def _area(ring: Ring) -> float:
    return 0.5 * abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True)))


def _parcels(generator: np.random.Generator, ring: Ring, smallest: float, largest: float, angle: float) -> list[Ring]:
    """Cut a ring again and again until each part is as small as its own drawn size; the first cuts turn the angle."""
    done: list[Ring] = []
    waiting = [(ring, angle, 0)]
    while waiting:
        part, angle, depth = waiting.pop()
        size = smallest * (largest / smallest) ** generator.random()
        if depth > 1 and _area(part) < size:
            done.append(part)
            continue
        angle += generator.normal(0, 0.22 if depth < 4 else 0.012)
        along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
        extents = [[axis[0] * x + axis[1] * y for x, y in part] for axis in (along, across)]
        lengths = [max(extent) - min(extent) for extent in extents]
        # Beyond the first cuts parcels may grow to strips up to four times as long as wide.
        is_along = lengths[0] * (1.0 if depth < 5 else generator.uniform(0.8, 3.2)) > lengths[1]
        axis, extent = (along, extents[0]) if is_along else (across, extents[1])
        level = min(extent) + (max(extent) - min(extent)) * generator.uniform(0.36, 0.64)
        waiting.extend((half, angle, depth + 1) for half in _split(part, axis, level) if len(half) > 2)
    return done


class _Row(NamedTuple):
    """What the pixels of one cover are made of."""

    kind: str
    veg: str
    ground: str
    is_textured: bool = True
    brightness: float = 1.0


class _Ground:
    """Everything that does not change with the weather: covers, fields, and their state on any day."""

    def __init__(self, seed: int, size: int, start: date) -> None:
        self.size, self.start = size, start
        self.generator = np.random.default_rng([seed, 1])
        self.rows: list[_Row] = []
        self.cover = np.zeros((size, size), np.int32)
        self.calendars: dict[int, tuple[str, float, float]] = {}
        self._bend = self.generator.uniform(0, 2 * math.pi, 4)
        shapes = self._shapes()
        self.fields = self._lay_parcels(shapes)
        self._lay_nature(shapes)
        self.burnt_on = date(start.year, 7, 28)
        self.burnt = self._burn()
        shape = (size, size)
        self.fertility = np.clip(_noise(self.generator, shape, 60, 4), -2.5, 2.5)
        self.grain = np.clip(_noise(self.generator, shape, 3, 2), -2.5, 2.5)
        height = _noise(self.generator, shape, size / 3, 5)
        self.light = np.clip(
            1 + 1.6 * (np.roll(height, 1, 0) - height + 0.4 * (height - np.roll(height, 1, 1))), 0.9, 1.1
        )

    # Shapes

    def _shapes(self) -> dict[str, np.ndarray]:
        """Where nature and towns lie, as masks; a river runs through, a lake beside it, towns at a distance."""
        size, draw = self.size, self.generator
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        angle = draw.uniform(0.35, 0.7)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        phases = draw.uniform(0, 2 * math.pi, 3)
        middle = draw.uniform(-0.02, 0.1)
        course = middle + 0.045 * np.sin(7 * along + phases[0]) + 0.018 * np.sin(17 * along + phases[1])
        slope = 0.315 * np.cos(7 * along + phases[0]) + 0.306 * np.cos(17 * along + phases[1])
        metres = size * PIXEL_M
        river = np.abs(across - course) / np.sqrt(1 + slope**2) * metres
        width = 55 + 18 * np.sin(11 * along + phases[2])
        rough = _noise(draw, (size, size), 90, 5)
        lake_along = draw.uniform(0.35, 0.95)
        lake_across = middle + draw.choice([-1, 1]) * 0.14
        lake = np.hypot((along - lake_along) * 0.7, across - lake_across) * metres + 60 * rough
        wood = _noise(draw, (size, size), size / 4.5, 5)
        towns = [(draw.uniform(0.18, 0.82), draw.uniform(0.18, 0.82), radius) for radius in (0.085, 0.042, 0.036)]
        town = np.full((size, size), np.inf, np.float32)
        for centre_x, centre_y, radius in towns:
            town = np.minimum(town, np.hypot(x - centre_x, y - centre_y) / radius + 0.16 * rough)
        is_water = (river < width) | (lake < 300)
        return {
            "river": river < width,
            "bar": (river < width + 22) & (rough > 0.9) & (river >= width),
            "lake": lake < 300,
            "shore": (lake >= 300) & (lake < 360),
            "riparian": (river < width + 150 + 110 * rough) & ~is_water,
            "broadleaf": wood > 1.15,
            "conifer": wood < -1.25,
            "town": (town < 1) & ~is_water,
        }

    def _curve(self, points: np.ndarray) -> np.ndarray:
        """Bend the straight cuts of the parcels; metres in, metres out."""
        one, two, three, four = self._bend
        x, y = points[:, 0] - ORIGIN[0], points[:, 1] - ORIGIN[1]
        dx = 90 * np.sin(y / 1_400 + one) + 22 * np.sin(y / 420 + x / 800 + two)
        dy = 90 * np.sin(x / 1_700 + three) + 22 * np.sin(x / 460 - y / 900 + four)
        return points + np.column_stack([dx, dy])

    def _lay(self, polygons: Sequence[Any], numbers: Sequence[int], target: np.ndarray) -> None:
        from affine import Affine
        from rasterio.features import rasterize

        transform = Affine(PIXEL_M, 0, ORIGIN[0], 0, -PIXEL_M, ORIGIN[1])
        rasterize(zip(polygons, numbers, strict=True), out=target, transform=transform)

    def _polygons(self, rings: Sequence[Ring], gap_m: float) -> list[Any]:
        import shapely

        shapes = shapely.polygons([shapely.linearrings(ring) for ring in rings])
        bent = shapely.transform(shapely.segmentize(shapes, 60.0), self._curve)
        inner = shapely.buffer(bent, -gap_m, join_style="mitre")
        return list(shapely.simplify(inner, 0.5))

    # Covers

    def _row(self, row: _Row) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def _lay_parcels(self, shapes: dict[str, np.ndarray]) -> dict[int, Any]:
        """Parcels onto the cover; those that nature and towns leave whole become fields, returned by row."""
        draw, metres = self.generator, self.size * PIXEL_M
        x, y, rim = ORIGIN[0], ORIGIN[1], 400.0
        world = [(x - rim, y + rim), (x + metres + rim, y + rim), (x + metres + rim, y - metres - rim), (x - rim, y - metres - rim)]  # fmt: skip
        polygons = self._polygons(_parcels(draw, world, 18_000, 160_000, draw.uniform(-0.4, 0.4)), 6.0)
        verge = self._row(_Row("verge", "grass", "soil"))
        self.cover[:] = verge
        numbers = np.full((self.size, self.size), -1, np.int32)
        self._lay(polygons, range(len(polygons)), numbers)
        laid, count = numbers[numbers >= 0], len(polygons)
        pixels = np.bincount(laid, minlength=count)

        def share(name: str) -> np.ndarray:
            return np.bincount(numbers[(numbers >= 0) & shapes[name]], minlength=count) / np.maximum(pixels, 1)

        woods = {name: share(name) for name in ("broadleaf", "conifer")}
        wild = sum(share(name) for name in ("river", "lake", "shore", "riparian", "town", "bar"))
        from shapely import box

        inside = box(x, y - metres, x + metres, y)
        shares = np.array([crop.share for crop in CROPS.values()])
        table = np.full(count, verge, np.int32)
        fields: dict[int, Any] = {}
        for number, polygon in enumerate(polygons):
            wood = next((name for name in woods if woods[name][number] > 0.45), None)
            if wood:
                table[number] = self._row(_Row(wood, wood, "bare_wood", brightness=draw.normal(1, 0.07)))
                continue
            is_field = pixels[number] >= 30 and wild[number] == 0 and inside.contains(polygon)
            crop = str(draw.choice(list(CROPS), p=shares / shares.sum()))
            row = self._row(
                _Row(crop, "grass" if crop == "grassland" else "crop", "soil", brightness=draw.normal(0.92, 0.14))
            )
            table[number] = row
            self.calendars[row] = (crop, float(draw.normal(0, 6)), float(CROPS[crop].peak + draw.normal(0, 0.025)))
            if is_field:
                fields[row] = polygon
        self.cover[numbers >= 0] = table[laid]
        return fields

    def _lay_nature(self, shapes: dict[str, np.ndarray]) -> None:
        draw, cover = self.generator, self.cover
        rough = draw.random((self.size, self.size), np.float32)
        riparian = self._row(_Row("broadleaf", "broadleaf", "bare_wood"))
        cover[shapes["riparian"] | (shapes["shore"] & (rough < 0.7))] = riparian
        self._lay_towns(shapes["town"], rough)
        cover[shapes["bar"]] = self._row(_Row("gravel", "grass", "gravel", is_textured=False))
        cover[shapes["lake"]] = self._row(_Row("water", "crop", "lake", is_textured=False))
        cover[shapes["river"]] = self._row(_Row("water", "crop", "river", is_textured=False))
        hedge = self._row(_Row("hedge", "broadleaf", "bare_wood"))
        thicket = _noise(draw, cover.shape, 25, 2)
        cover[(cover == 0) & (thicket > 0.9)] = hedge
        self.declining = self._row(_Row("declining_conifer", "conifer", "bare_wood"))
        conifer = np.isin(cover, [number for number, row in enumerate(self.rows) if row.kind == "conifer"])
        y, x = np.nonzero(conifer)
        if len(y):
            middle = int(draw.integers(len(y)))
            near = np.hypot(y - y[middle], x - x[middle]) < self.size / 14
            cover[y[near], x[near]] = self.declining

    def _lay_towns(self, town: np.ndarray, rough: np.ndarray) -> None:
        """Blocks between streets; roofs and gardens inside, halls in some."""
        draw, metres = self.generator, self.size * PIXEL_M
        x, y = ORIGIN
        world = [(x, y), (x + metres, y), (x + metres, y - metres), (x, y - metres)]
        street = self._row(_Row("town", "grass", "asphalt", is_textured=False))
        kinds = [
            self._row(_Row("town", "grass", "red_roof", brightness=1.0)),
            self._row(_Row("town", "grass", "red_roof", brightness=0.75)),
            self._row(_Row("town", "grass", "grey_roof")),
            self._row(_Row("garden", "grass", "soil")),
            self._row(_Row("hedge", "broadleaf", "bare_wood")),
            self._row(_Row("town", "grass", "hall_roof")),
        ]
        # Only where towns are: blocks of the whole world would be tens of thousands.
        coarse = [ring for ring in _parcels(draw, world, 300_000, 600_000, 0.3) if self._touches(ring, town)]
        blocks = [part for ring in coarse for part in _parcels(draw, ring, 4_000, 12_000, draw.uniform(0, 1.5))]
        numbers = np.full(town.shape, -1, np.int32)
        if blocks:
            self._lay(self._polygons(blocks, 6.5), range(len(blocks)), numbers)
        built = draw.uniform(0.3, 0.75, len(blocks) + 1)
        is_hall = draw.random(len(blocks) + 1) < 0.07
        roofs = np.array(kinds)[np.minimum((rough * 97 % 1 * 3).astype(np.int32), 2)]
        gardens = np.where(rough * 89 % 1 < 0.65, kinds[3], kinds[4])
        picture = np.where(rough < built[numbers], roofs, gardens)
        picture = np.where(is_hall[numbers] & (rough < 0.9), kinds[5], picture)
        self.cover[town] = np.where(numbers < 0, street, picture)[town]

    def _touches(self, ring: Ring, mask: np.ndarray) -> bool:
        points = np.array(ring)
        cols = np.clip((points[:, 0] - ORIGIN[0]) / PIXEL_M, 0, self.size).astype(int)
        rows = np.clip((ORIGIN[1] - points[:, 1]) / PIXEL_M, 0, self.size).astype(int)
        return bool(mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].any())

    def _burn(self) -> list[int]:
        """Rows of the fields a stubble fire runs over: cereals around one of them."""
        cereals = [row for row in self.fields if self.rows[row].kind in {"winter_wheat", "winter_barley"}]
        if not cereals:
            return []
        middle = self.fields[cereals[int(self.generator.integers(len(cereals)))]].centroid
        reach = 0.09 * self.size * PIXEL_M
        return [row for row in cereals if self.fields[row].centroid.distance(middle) < reach]

    # A day

    def ndvi(self, day: date) -> np.ndarray:
        """NDVI every row of the table should have on a day, before texture."""
        number = day.timetuple().tm_yday
        leaves = 1 / (1 + math.exp(-0.12 * (number - 112))) / (1 + math.exp(0.12 * (number - 297)))
        grass = 0.42 + 0.36 / (1 + math.exp(-0.08 * (number - 95))) / (1 + math.exp(0.05 * (number - 310)))
        fixed = {
            "broadleaf": 0.36 + 0.52 * leaves, "hedge": 0.40 + 0.45 * leaves, "conifer": 0.84, "verge": grass - 0.08,
            "garden": grass, "declining_conifer": 0.84 + TREND_PER_YEAR * (day - self.start).days / 365.25,
        }  # fmt: skip
        out = np.array([fixed.get(row.kind, -1.0) for row in self.rows])
        for row, (crop, shift, peak) in self.calendars.items():
            out[row] = CROPS[crop].ndvi(number, shift, peak)
        if day >= self.burnt_on:
            out[self.burnt] = 0.19 + min(0.0011 * (day - self.burnt_on).days, 0.25)
        return out

    def state(self, day: date) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row: vegetation fraction, vegetation spectrum and ground spectrum, which together have its NDVI."""
        veg = _TABLE[[_NAMES.index(row.veg) for row in self.rows]].astype(np.float64)
        ground = _TABLE[[_NAMES.index(row.ground) for row in self.rows]].astype(np.float64)
        ground *= np.array([row.brightness for row in self.rows])[:, None]
        number = day.timetuple().tm_yday
        for row, (crop, shift, _) in self.calendars.items():
            if crop != "grassland":
                since = number - CROPS[crop].harvest - shift
                straw = min(max(since / 12, 0), 1) * (1 if since < 40 else 0.25)
                ground[row] += straw * (_TABLE[_NAMES.index("straw")] * 0.95 - ground[row])
            if crop == "rapeseed":
                bloom = math.exp(-(((number - 117 - shift) / 13) ** 2))
                veg[row] += bloom * (_TABLE[_NAMES.index("rapeseed_flower")] - veg[row])
        if day >= self.burnt_on:
            ground[self.burnt] = _TABLE[_NAMES.index("burnt")]
        wanted = self.ndvi(day)
        # (N - R) / (N + R) of f × veg + (1 - f) × ground, solved for f.
        rise, run = veg[:, _NIR] - ground[:, _NIR], veg[:, _RED] - ground[:, _RED]
        top, bottom = ground[:, _NIR] - ground[:, _RED], ground[:, _NIR] + ground[:, _RED]
        fraction = (wanted * bottom - top) / (rise - run - wanted * (rise + run))
        return np.where(wanted < 0, 0.0, np.clip(fraction, 0, 1)), veg, ground

    def reflectance(self, day: date) -> np.ndarray:
        """The picture under a clear sky: (8, y, x) float32, 10 m and 20 m bands alike at 10 m."""
        fraction, veg, ground = (part.astype(np.float32) for part in self.state(day))
        textured = np.array([row.is_textured for row in self.rows], np.float32)[self.cover]
        cover = self.cover
        share = fraction[cover]
        # The texture of growth vanishes at both ends, so that bare stays bare and closed stays closed.
        share = share + textured * (0.10 * self.fertility + 0.05 * self.grain) * (share * (1 - share) * 2)
        shade = 1 + textured * (0.05 * self.grain + 0.045 * self.fertility)
        out = np.empty((len(_TABLE[0]), self.size, self.size), np.float32)
        for band in range(len(out)):
            low = ground[:, band][cover]
            out[band] = (low + share * (veg[:, band][cover] - low)) * shade * self.light
        return _blur(out, 0.11)

    # Truth

    def feature_collection(self) -> dict[str, Any]:
        """The fields as GeoJSON."""
        import shapely
        from pyproj import Transformer

        to_degrees = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)

        def project(points: np.ndarray) -> np.ndarray:
            return np.round(np.column_stack(to_degrees.transform(points[:, 0], points[:, 1])), 7)

        features = []
        for number, (row, polygon) in enumerate(self.fields.items(), start=1):
            crop, shift, peak = self.calendars[row]
            calendar = CROPS[crop]
            properties = {
                "id": number,
                "crop": crop,
                "area_ha": round(polygon.area / 10_000, 4),
                "green_up_day": round(calendar.green_up + shift),
                "peak_day": round(calendar.peak_day + shift),
                "harvest_day": round(calendar.harvest + shift),
                "peak_ndvi": round(float(calendar.ndvi(calendar.peak_day, 0.0, peak)), 4),
                "is_burnt": row in self.burnt,
            }
            geometry = json.loads(shapely.to_geojson(shapely.transform(polygon, project)))
            features.append({"type": "Feature", "id": number, "properties": properties, "geometry": geometry})
        return {"type": "FeatureCollection", "name": "fields", "features": features}

    def truth(self, dates: Sequence[date]) -> dict[str, Any]:
        """What was planted, with the numbers a method should find."""
        rows = list(self.fields)
        ndvi = {day.isoformat(): [round(float(value), 4) for value in self.ndvi(day)[rows]] for day in dates}
        y, x = np.nonzero(self.cover == self.declining)
        trend = None
        if len(y):
            corner = (int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1)
            trend = {"ndvi_per_year": TREND_PER_YEAR, "pixels": len(y), "window_rows_cols": corner}
        return {
            "crs": CRS,
            "fields": {"count": len(rows), "ndvi": ndvi},
            "burn": {
                "date": self.burnt_on.isoformat(),
                "field_ids": [rows.index(row) + 1 for row in self.burnt],
            },
            "trend": trend,
        }


TREND_PER_YEAR = -0.45
"""What bark beetles do to the NDVI of one conifer stand."""


# Weather and files


class _Weather:
    """Clouds of one day: opacity, shadow, and the no-data wedge outside the swath on one day in five."""

    def __init__(self, generator: np.random.Generator, size: int, share: float, day: date) -> None:
        self.generator = generator
        season = math.cos((day.timetuple().tm_yday - 172) / 365.25 * 2 * math.pi)
        self.sun_elevation_deg = 41.5 + 22.5 * season
        pad = 224
        wide = (size + 2 * pad, size + 2 * pad)
        drawn = _noise(generator, wide, 210, 7)
        inner = drawn[pad:-pad, pad:-pad]
        if share > 0:
            level = float(np.quantile(inner, 1 - share))
            opacity = np.clip((drawn - level) / 0.32 + 0.18, 0, 1)
        else:
            opacity = np.zeros(wide, np.float32)
        height_m = generator.uniform(900, 1_700)
        reach = height_m / math.tan(math.radians(self.sun_elevation_deg)) / PIXEL_M
        azimuth = math.radians(_SUN_AZIMUTH_DEG)
        down, right = round(reach * math.cos(azimuth)), round(-reach * math.sin(azimuth))
        down, right = max(-pad, min(pad, down)), max(-pad, min(pad, right))
        # The shadow falls away from the sun: what shades a pixel stands `reach` towards it.
        shade = opacity[pad - down : pad - down + size, pad - right : pad - right + size]
        self.opacity = opacity[pad:-pad, pad:-pad]
        self.shadow = shade * (1 - self.opacity)
        self.billow = np.clip(1 + 0.09 * _noise(generator, (size, size), 30, 4), 0.75, 1.25)
        self.valid = np.ones((size, size), np.bool_)
        if day.toordinal() % 5 == 0:
            y, x = np.mgrid[0:size, 0:size]
            self.valid = x + 0.21 * y > 0.16 * size

    def over(self, clear: np.ndarray) -> np.ndarray:
        """The picture through these clouds, with the sensor's noise."""
        out = np.empty_like(clear)
        cloud = _TABLE[_NAMES.index("cloud")]
        for band in range(len(clear)):
            dimmed = clear[band] * (1 - 0.62 * self.shadow)
            seen = dimmed + self.opacity * (cloud[band] * self.billow - dimmed)
            noise = self.generator.standard_normal(seen.shape, np.float32)
            out[band] = seen + noise * (0.0012 + 0.006 * seen)
        return out

    def classes(self, clear: np.ndarray, is_water: np.ndarray) -> np.ndarray:
        """Scene classification as Sen2Cor codes it, from the truth."""
        red, nir = clear[_RED], clear[_NIR]
        out = np.where((nir - red) > 0.4 * (nir + red), 4, 5).astype(np.uint8)
        out[is_water] = 6
        out[self.shadow > 0.25] = 3
        out[self.opacity > 0.08] = 10
        out[self.opacity > 0.3] = 8
        out[self.opacity > 0.75] = 9
        out[~self.valid] = 0
        return out


def _write_scene(
    folder: Path, ground: _Ground, weather: _Weather, day: date, place: int, transform: tuple[float, ...]
) -> Scene:
    clear = ground.reflectance(day)
    is_water = np.array([row.kind == "water" for row in ground.rows])[ground.cover]
    classes = weather.classes(clear, is_water)
    seen = weather.over(clear)
    half = seen[4:].reshape(4, ground.size // 2, 2, ground.size // 2, 2).mean(axis=(2, 4))
    half_valid = (
        weather.valid[::2, ::2] & weather.valid[1::2, 1::2] & weather.valid[::2, 1::2] & weather.valid[1::2, ::2]
    )
    name = f"{place:02d}_{day:%Y%m%d}"
    paths = [folder / f"{name}_{kind}.tif" for kind in ("10m", "20m", "scl")]
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
