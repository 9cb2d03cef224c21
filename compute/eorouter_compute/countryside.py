"""The ground of a made-up landscape: what grows and stands where, and what it looks like on any day under a clear sky.

    parcels ──► cover of every pixel (rows of one table) ──► fraction, vegetation and ground of each row on a day

The ground is split into parcels by straight lines that a smooth bend then curves; forest, river, lake, towns and roads
lie over them, and parcels that stay whole are fields. Every pixel belongs to a row of a table. A day mixes each row's
vegetation with its ground so that the row has exactly the NDVI its crop's calendar says.
"""

import json
import math
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np

CRS = "EPSG:32633"
ORIGIN = (620_000.0, 5_345_000.0)  # in the Marchfeld, east of Vienna
PIXEL_M = 10.0
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
COVERS = tuple(SPECTRA)
TABLE = np.array([SPECTRA[name] for name in COVERS], np.float32)
RED, NIR = 2, 3


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


# Noise and geometry


_PEAK_MAX = 0.905  # a little under the NDVI of the spectrum "crop", so that every calendar can be kept


def smooth_noise(
    generator: np.random.Generator, shape: tuple[int, int], scale_px: float, octaves: int = 4
) -> np.ndarray:
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


def _blur(band: np.ndarray, weight: float) -> None:
    """The optics: every pixel takes `weight` from each of its two neighbours, along both axes; in place, edges kept."""
    for view in (band, band.T):
        inner = view[1:-1] * np.float32(1 - 2 * weight)
        inner += np.float32(weight) * view[:-2]
        inner += np.float32(weight) * view[2:]
        view[1:-1] = inner


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


class Countryside:
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
        fertility = np.clip(smooth_noise(self.generator, shape, 60, 4), -2.5, 2.5)
        # Of zero mean on every cover: a field as a whole keeps the NDVI of its calendar.
        flat, count = self.cover.ravel(), len(self.rows)
        means = np.bincount(flat, fertility.ravel(), count) / np.maximum(np.bincount(flat, minlength=count), 1)
        self.fertility = fertility - means.astype(np.float32)[self.cover]
        self.grain = np.clip(smooth_noise(self.generator, shape, 3, 2), -2.5, 2.5)
        height = smooth_noise(self.generator, shape, size / 3, 5)
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
        rough = smooth_noise(draw, (size, size), 90, 5)
        lake_along = draw.uniform(0.35, 0.95)
        lake_across = middle + draw.choice([-1, 1]) * 0.14
        lake = np.hypot((along - lake_along) * 0.7, across - lake_across) * metres + 60 * rough
        wood = smooth_noise(draw, (size, size), size / 4.5, 5)
        towns = [(draw.uniform(0.18, 0.82), draw.uniform(0.18, 0.82), radius) for radius in (0.085, 0.042, 0.036)]
        town = np.full((size, size), np.inf, np.float32)
        for centre_x, centre_y, radius in towns:
            town = np.minimum(town, np.hypot(x - centre_x, y - centre_y) / radius + 0.16 * rough)
        is_water = (river < width) | (lake < 300)
        road = np.zeros((size, size), np.int32)
        self._lay(self._roads([(town_x, town_y) for town_x, town_y, _ in towns]), [1] * 4, road)
        return {
            "road": road == 1,
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

    def _roads(self, towns: Sequence[tuple[float, float]]) -> list[Any]:
        """Roads between three towns, and one that leaves the picture."""
        import shapely

        metres = self.size * PIXEL_M
        ends = [
            *towns,
            towns[0],
            (towns[0][0] + 0.6 * (1 if towns[0][0] > 0.5 else -1), self.generator.uniform(0.2, 0.8)),
        ]
        points = np.array([(ORIGIN[0] + x * metres, ORIGIN[1] - y * metres) for x, y in ends])
        lines = [
            shapely.segmentize(shapely.linestrings(points[place : place + 2]), 60.0) for place in range(len(ends) - 1)
        ]
        return [shapely.buffer(shapely.transform(line, self._curve), 6.5) for line in lines]

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
        west, east, north, south = x - rim, x + metres + rim, y + rim, y - metres - rim
        world = [(west, north), (east, north), (east, south), (west, south)]
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
        wild = np.sum([share(name) for name in ("river", "lake", "shore", "riparian", "town", "bar", "road")], axis=0)
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
            self.calendars[row] = (
                crop,
                float(draw.normal(0, 6)),
                float(min(CROPS[crop].peak + draw.normal(0, 0.025), _PEAK_MAX)),
            )
            if is_field:
                fields[row] = polygon
        self.cover[numbers >= 0] = table[laid]
        self._close_woods(verge)
        return fields

    def _close_woods(self, verge: int) -> None:
        """Forest has no verges: a gap between two of its stands becomes the stand beside it."""
        is_wood = np.array([row.kind in {"broadleaf", "conifer"} for row in self.rows])
        for reach in (1, 2, 3):
            for axis in (0, 1):
                before, after = np.roll(self.cover, reach, axis), np.roll(self.cover, -reach, axis)
                gap = (self.cover == verge) & is_wood[before] & is_wood[after]
                self.cover[gap] = before[gap]

    def _lay_nature(self, shapes: dict[str, np.ndarray]) -> None:
        draw, cover = self.generator, self.cover
        rough = draw.random((self.size, self.size), np.float32)
        riparian = self._row(_Row("broadleaf", "broadleaf", "bare_wood"))
        cover[shapes["riparian"] | (shapes["shore"] & (rough < 0.7))] = riparian
        self._lay_towns(shapes["town"], rough)
        cover[shapes["bar"]] = self._row(_Row("gravel", "grass", "gravel", is_textured=False))
        cover[shapes["lake"]] = self._row(_Row("water", "crop", "lake", is_textured=False))
        cover[shapes["river"]] = self._row(_Row("water", "crop", "river", is_textured=False))
        cover[shapes["road"]] = self._row(_Row("road", "grass", "asphalt", is_textured=False))
        hedge = self._row(_Row("hedge", "broadleaf", "bare_wood"))
        thicket = smooth_noise(draw, cover.shape, 25, 2)
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
        veg = TABLE[[COVERS.index(row.veg) for row in self.rows]].astype(np.float64)
        ground = TABLE[[COVERS.index(row.ground) for row in self.rows]].astype(np.float64)
        ground *= np.array([row.brightness for row in self.rows])[:, None]
        number = day.timetuple().tm_yday
        for row, (crop, shift, _) in self.calendars.items():
            if crop != "grassland":
                since = number - CROPS[crop].harvest - shift
                straw = min(max(since / 12, 0), 1) * (1 if since < 40 else 0.25)
                ground[row] += straw * (TABLE[COVERS.index("straw")] * 0.95 - ground[row])
            if crop == "rapeseed":
                bloom = math.exp(-(((number - 117 - shift) / 13) ** 2))
                veg[row] += bloom * (TABLE[COVERS.index("rapeseed_flower")] - veg[row])
        if day >= self.burnt_on:
            ground[self.burnt] = TABLE[COVERS.index("burnt")]
        wanted = self.ndvi(day)
        # (N - R) / (N + R) of f × veg + (1 - f) × ground, solved for f.
        rise, run = veg[:, NIR] - ground[:, NIR], veg[:, RED] - ground[:, RED]
        top, bottom = ground[:, NIR] - ground[:, RED], ground[:, NIR] + ground[:, RED]
        fraction = (wanted * bottom - top) / (rise - run - wanted * (rise + run))
        return np.where(wanted < 0, 0.0, np.clip(fraction, 0, 1)), veg, ground

    def _shown_ndvi(self, day: date) -> np.ndarray:
        """NDVI every row has in the picture: as wanted, save where its plants cannot reach it (rapeseed in flower)."""
        fraction, veg, ground = self.state(day)
        mixed = ground + fraction[:, None] * (veg - ground)
        return (mixed[:, NIR] - mixed[:, RED]) / (mixed[:, NIR] + mixed[:, RED])

    def reflectance(self, day: date) -> np.ndarray:
        """The picture under a clear sky: (8, y, x) float32, 10 m and 20 m bands alike at 10 m."""
        fraction, veg, ground = (part.astype(np.float32) for part in self.state(day))
        textured = np.array([row.is_textured for row in self.rows], np.float32)[self.cover]
        cover = self.cover
        share = fraction[cover]
        # The texture of growth vanishes at both ends, so that bare stays bare and closed stays closed.
        share = share + textured * (0.10 * self.fertility + 0.05 * self.grain) * (share * (1 - share) * 2)
        shade = (1 + textured * (0.05 * self.grain + 0.045 * self.fertility)) * self.light
        out = np.empty((len(TABLE[0]), self.size, self.size), np.float32)
        for band in range(len(out)):
            low = ground[:, band][cover]
            out[band] = (low + share * (veg[:, band][cover] - low)) * shade
            _blur(out[band], 0.11)
        return out

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
        ndvi = {day.isoformat(): [round(float(value), 4) for value in self._shown_ndvi(day)[rows]] for day in dates}
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
