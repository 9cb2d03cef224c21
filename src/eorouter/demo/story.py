"""What the demonstration tells: plain values that the run fills in and the report draws. Nothing here does anything.

Distances are metres of the map's CRS, areas hectares, fractions 0…1, times UTC. Arrays have the axis order (y, x) and
(y, x, colour).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

TRUSTED_VALID_FRACTION = 0.5
"""A reading with less of its field valid than this is shown, but enters no mean."""


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A field: outer ring and holes in map coordinates, and what grows there."""

    id: str
    crop: str
    area_ha: float
    rings: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Statistics of one field's NDVI at one time; None where no cell of it was valid."""

    zone_id: str
    at: datetime
    mean: float | None
    median: float | None
    std: float | None
    valid_fraction: float

    @property
    def is_trusted(self) -> bool:
        """Enough of the field was seen for its mean to stand for it."""
        return self.mean is not None and self.valid_fraction >= TRUSTED_VALID_FRACTION


@dataclass(frozen=True, kw_only=True)
class Day:
    """One acquisition: its picture in NDVI, NaN where nothing valid was seen.

    Attributes:
        at: when it was taken.
        ndvi: the NDVI raster that the service computed, reduced in size for the report.
        valid_fraction: of the raster as computed.
        cloud_fraction: what the scene says of itself; None when it says nothing.
        item_id: the NDVI item.
    """

    at: datetime
    ndvi: np.ndarray
    valid_fraction: float
    cloud_fraction: float | None
    item_id: str


@dataclass(frozen=True, kw_only=True)
class View:
    """The map: one day in true colour (y, x, RGBA) and in NDVI on the same grid; clear and NaN where nothing was seen.

    Bounds are (west, south, east, north) in `crs`.
    """

    at: datetime
    true_colour: np.ndarray
    ndvi: np.ndarray
    bounds: tuple[float, float, float, float]
    crs: str
    centre_lon_lat: tuple[float, float]
    ground_pixel_m: float

    def shows(self, zone: Zone) -> bool:
        """The middle of a field lies where the picture is not clear."""
        west, south, east, north = self.bounds
        x, y = zone.rings[0].mean(axis=0)
        height, width = self.true_colour.shape[:2]
        row, column = int((north - y) / (north - south) * height), int((x - west) / (east - west) * width)
        return 0 <= row < height and 0 <= column < width and bool(self.true_colour[row, column, 3])


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing the service was asked to do, and how long it took from the request to the answer, seconds."""

    title: str
    method: str
    job_id: str
    seconds: float
    pixels: int
    shards: int


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file the run left in the output folder."""

    title: str
    path: Path
    size_bytes: int
    sha256: str
    item_id: str


@dataclass(frozen=True, kw_only=True)
class Story:
    """The whole of it.

    Attributes:
        title, place: headline and where it plays.
        is_synthetic: the scenes were generated, so the truth is known.
        truth: NDVI that was put into the scenes, per crop: (time, value) pairs in order of time.
        truth_on_days: the same on the days of the acquisitions, by (crop, time).
        notes: what a reader must know to not be misled.
    """

    title: str
    place: str
    is_synthetic: bool
    zones: Sequence[Zone]
    readings: Sequence[Reading]
    days: Sequence[Day]
    view: View | None
    truth: Mapping[str, Sequence[tuple[datetime, float]]]
    steps: Sequence[Step]
    outputs: Sequence[OutputFile]
    versions: Mapping[str, str]
    service_url: str
    project_id: str
    started_at: datetime
    seconds: float
    truth_on_days: Mapping[tuple[str, datetime], float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def crops(self) -> list[str]:
        """Every crop that has a field, in alphabetic order."""
        return sorted({zone.crop for zone in self.zones})

    def of_crop(self, crop: str, at: datetime) -> list[Reading]:
        """The readings of a crop's fields at a time."""
        ids = {zone.id for zone in self.zones if zone.crop == crop}
        return [reading for reading in self.readings if reading.at == at and reading.zone_id in ids]

    def crop_mean(self, crop: str, at: datetime) -> float | None:
        """Mean NDVI of a crop at a time: each trusted field weighs as its valid area. None when no field is trusted."""
        area = {zone.id: zone.area_ha for zone in self.zones}
        weights = total = 0.0
        for reading in self.of_crop(crop, at):
            if reading.is_trusted and reading.mean is not None:
                weight = area[reading.zone_id] * reading.valid_fraction
                weights += weight
                total += weight * reading.mean
        return total / weights if weights > 0 else None

    def crop_valid_fraction(self, crop: str, at: datetime) -> float:
        """How much of a crop's area was valid at a time."""
        area = {zone.id: zone.area_ha for zone in self.zones if zone.crop == crop}
        seen = sum(area[reading.zone_id] * reading.valid_fraction for reading in self.of_crop(crop, at))
        whole = sum(area.values())
        return seen / whole if whole > 0 else 0.0

    def valid_fraction(self, at: datetime) -> float:
        """How much of all fields' area was valid at a time."""
        area = {zone.id: zone.area_ha for zone in self.zones}
        seen = sum(area[reading.zone_id] * reading.valid_fraction for reading in self.readings if reading.at == at)
        whole = sum(area.values())
        return seen / whole if whole > 0 else 0.0

    def truth_at(self, crop: str, at: datetime) -> float | None:
        """The NDVI put into a crop's fields at a time, when it is known."""
        return self.truth_on_days.get((crop, at))
