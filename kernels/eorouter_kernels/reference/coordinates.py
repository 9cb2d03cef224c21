"""Twins of the readers and writers of coordinates: the standard library's JSON and decimal numbers."""

import json
from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np


def read(texts: list[str], depths: list[int]) -> list[list[list[list[list[float]]]] | None]:
    """Polygons of each geometry as lists of rings of (x, y); None where a geometry is no plain polygon."""
    found = []
    for text, depth in zip(texts, depths, strict=True):
        value = json.loads(text)
        polygons = [value] if depth == 3 else value
        found.append([[[p[:2] for p in ring] for ring in rings] for rings in polygons] if _is_plain(polygons) else None)
    return found


def _is_plain(polygons: object) -> bool:
    if not isinstance(polygons, list) or not polygons:
        return False
    for rings in polygons:
        if not isinstance(rings, list) or not rings:
            return False
        for ring in rings:
            if not isinstance(ring, list) or len(ring) < 4 or not all(_is_position(point) for point in ring):
                return False
            if ring[0][:2] != ring[-1][:2]:
                return False
    return True


def _is_position(point: object) -> bool:
    return (
        isinstance(point, list)
        and 2 <= len(point) <= 3
        and all(isinstance(number, int | float) and np.isfinite(number) for number in point)
    )


def write(polygons: list[list[list[list[float]]]], decimals: int) -> list[str]:
    """JSON of each polygon, numbers in fixed point without zeros at the end."""
    return [
        json.dumps([[[_fixed(value, decimals) for value in point] for point in ring] for ring in rings])
        .replace('"', "")
        .replace(" ", "")
        for rings in polygons
    ]


def _fixed(value: float, decimals: int) -> str:
    scaled = Decimal(value * 10.0**decimals).quantize(Decimal(1), ROUND_HALF_EVEN)
    text = f"{scaled.scaleb(-decimals):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"-0", ""} else text
