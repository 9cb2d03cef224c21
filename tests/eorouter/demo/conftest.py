"""A small story with everything a report must bear: clouds, fields not seen, holes, and hostile names."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from eorouter.demo.story import Day, OutputFile, Reading, Step, Story, View, Zone

WEST, NORTH, SIDE_M = 500_000.0, 5_300_000.0, 2_000.0
CROPS = ("wheat", "maize", "rapeseed", "meadow")


def _ring(west: float, south: float, side: float) -> np.ndarray:
    return np.array(
        [(west, south), (west + side, south), (west + side, south + side), (west, south + side), (west, south)]
    )


def _zones() -> list[Zone]:
    zones = []
    for number in range(16):
        west, south = WEST + 60 + number % 4 * 480, NORTH - 1_900 + number // 4 * 470
        rings = [_ring(west, south, 400)]
        if number == 5:
            rings.append(_ring(west + 100, south + 100, 120)[::-1])
        zones.append(Zone(id=f"f{number:02}", crop=CROPS[number % 4], area_ha=16.0, rings=rings))
    return zones


def _growth(crop: str, day: int) -> float:
    peak = {"wheat": 60, "maize": 120, "rapeseed": 40, "meadow": 90}[crop]
    return 0.15 + 0.7 * float(np.exp(-(((day - peak) / 45) ** 2)))


@pytest.fixture
def make_story() -> Callable[..., Story]:
    """Make the story; keyword arguments replace its fields."""

    def make(**changes: object) -> Story:
        random = np.random.default_rng(7)
        start = datetime(2025, 4, 1, 10, 30, tzinfo=UTC)
        zones = _zones()
        days, readings = [], []
        for number in range(5):
            at = start + timedelta(days=28 * number)
            ndvi = np.full((200, 200), 0.3, np.float32)
            for zone in zones:
                ring = zone.rings[0]
                rows = slice(int((NORTH - ring[2, 1]) / 10), int((NORTH - ring[0, 1]) / 10))
                columns = slice(int((ring[0, 0] - WEST) / 10), int((ring[1, 0] - WEST) / 10))
                ndvi[rows, columns] = _growth(zone.crop, 28 * number)
            ndvi += random.normal(0, 0.02, ndvi.shape).astype(np.float32)
            ndvi[:20] = -0.3
            if number == 2:
                ndvi[:, 100:] = np.nan
            for zone in zones:
                is_hidden = number == 2 and zone.rings[0][0, 0] > WEST + 900
                mean = None if is_hidden else _growth(zone.crop, 28 * number)
                readings.append(
                    Reading(zone_id=zone.id, at=at, mean=mean, median=mean, std=None if is_hidden else 0.02,
                            valid_fraction=0.0 if is_hidden else 1.0)
                )  # fmt: skip
            days.append(
                Day(at=at, ndvi=ndvi, valid_fraction=float(np.isfinite(ndvi).mean()),
                    cloud_fraction=0.5 if number == 2 else 0.0, item_id=f"itm_{number}")
            )  # fmt: skip
        colour = random.integers(20, 220, (200, 200, 4), dtype=np.uint8)
        colour[..., 3] = 255
        values: dict = {
            "title": "Sixteen fields, five looks",
            "place": "A square of two kilometres.",
            "is_synthetic": True,
            "zones": zones,
            "readings": readings,
            "days": days,
            "view": View(at=days[1].at, true_colour=colour, ndvi=days[1].ndvi,
                         bounds=(WEST, NORTH - SIDE_M, WEST + SIDE_M, NORTH), crs="EPSG:32633",
                         centre_lon_lat=(15.0134, 47.8412), ground_pixel_m=10.0),
            "truth_on_days": {
                (crop, day.at): _growth(crop, 28 * number) for crop in CROPS for number, day in enumerate(days)
            },
            "truth": {
                crop: [(start + timedelta(days=d), _growth(crop, d)) for d in range(0, 113, 4)] for crop in CROPS
            },
            "steps": [Step(title="NDVI of 1 April", method="spectral_index", job_id="job_1", seconds=0.4,
                           pixels=40_000, shards=1)],
            "outputs": [OutputFile(title="NDVI of 1 April", path=Path("ndvi.tif"), size_bytes=61_234,
                                   sha256="ab" * 32, item_id="itm_0")],
            "versions": {"eorouter": "0.1.0"},
            "service_url": "127.0.0.1:8000",
            "project_id": "prj_1",
            "started_at": start,
            "seconds": 12.0,
            "notes": ["On 27 May half of the scene lay under cloud."],
        }  # fmt: skip
        return Story(**(values | changes))

    return make
