"""Coordinates read and written, against the standard library, digit for digit."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_kernels import coordinates
from eorouter_kernels.reference import coordinates as twin

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.one_of(
    FINITE.map(repr),
    st.floats(-180, 180).map(repr),
    st.decimals(-10_000_000, 10_000_000, places=7).map(str),
    st.integers(-(10**18), 10**18).map(str),
    st.from_regex(r"-?[1-9][0-9]{0,20}(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)


def read(*texts: str, depth: int = coordinates.POLYGON) -> coordinates.Positions:
    first = np.cumsum([0, *(len(text) for text in texts)])
    return coordinates.read("".join(texts).encode(), first, np.full(len(texts), depth))


def ring_of(number: str) -> str:
    return f"[[[{number},0],[1,0],[1,1],[{number},0]]]"


@settings(max_examples=400, deadline=None, derandomize=True)
@given(number=NUMBERS)
def test_numbers_are_rounded_as_python_rounds_them_or_left_alone(number: str):
    found = read(ring_of(number))
    value = float(number)
    if found.strange[0]:
        digits = len(number.lower().split("e")[0].replace(".", "").replace("-", "").strip("0"))
        assert digits > 15 or not 1e-40 < abs(value) < 1e40
    else:
        assert (found.vertices[0, 0], math.copysign(1, found.vertices[0, 0])) == (value, math.copysign(1, value))


@pytest.mark.parametrize(
    "number",
    [
        "18446744073709551616",
        "9007199254740993", "9007199254740992.5", "0.1", "1e22", "1e23", "8.5e22", "-0.0", "-0", "5e-324", "1e400",
        "7.2057594037927933e16", "123456789012345678", "1.7976931348623157e40", "0.000000000000000000001",
    ],
)  # fmt: skip
def test_numbers_half_way_and_at_the_ends_are_right(number: str):
    found = read(ring_of(number))
    assert found.strange[0] or found.vertices[0, 0] == float(number)


def test_holes_parts_heights_and_spaces_are_read_as_the_twin_reads_them():
    shell, hole = [[0, 0], [9, 0], [9, 9], [0, 0]], [[1, 1, 5.5], [2, 1, 0], [2, 2, 0], [1, 1, 7]]
    texts = [json.dumps([[shell, hole], [shell]], indent=1), json.dumps([[shell]])]
    found = read(*texts, depth=coordinates.MULTIPOLYGON)
    assert (found.geometries.tolist(), found.polygons.tolist()) == ([0, 2, 3], [0, 2, 3, 4])
    assert found.rings.tolist() == [0, 4, 8, 12, 16]
    expected = [
        point for geometry in twin.read(texts, [4, 4]) for rings in geometry or () for ring in rings for point in ring
    ]
    assert found.vertices.tolist() == expected


STRANGE = [
    "[]", "[[]]", "[[[]]]", "[[[0,0],[1,0],[0,0]]]", "[[[0,0],[1,0],[1,1],[0,1]]]", "[[[0,0],[1],[1,1],[0,0]]]",
    "[[[0,0,0,0],[1,0],[1,1],[0,0]]]", "[[[0,null],[1,0],[1,1],[0,null]]]", '[[["0",0],[1,0],[1,1],["0",0]]]',
    "[[0,0],[1,0],[1,1],[0,0]]", "[[[[0,0],[1,0],[1,1],[0,0]]]]", "3", "null", "{}",
    "[[[1e999,0],[1,0],[1,1],[1e999,0]]]",
]  # fmt: skip


def test_what_is_no_plain_polygon_is_told_and_disturbs_no_neighbour():
    texts = [text for strange in STRANGE for text in (strange, ring_of("5"))]
    found = read(*texts)
    assert found.strange.tolist() == [True, False] * len(STRANGE)
    assert np.diff(found.geometries).tolist() == [0, 1] * len(STRANGE)
    assert found.vertices.tolist() == [[5, 0], [1, 0], [1, 1], [5, 0]] * len(STRANGE)
    assert [geometry is None for geometry in twin.read(texts, [3] * len(texts))] == found.strange.tolist()


@pytest.mark.parametrize(
    "broken",
    [
        "", "[[[0,0],[1,0],[1,1],[0,0]]", "[[[0,0],[1,0],[1,1],[0,0]]]]", "[[[0,0],,[1,0],[1,1],[0,0]]]",
        "[[[0,0][1,0],[1,1],[0,0]]]", "[[[0,0],[1.,0],[1,1],[0,0]]]", "[[[.5,0],[1,0],[1,1],[.5,0]]]",
        "[[[-,0],[1,0],[1,1],[-,0]]]", "[[[1e,0],[1,0],[1,1],[1e,0]]]",
    ],
)  # fmt: skip
def test_text_that_is_not_even_json_is_strange(broken: str):
    assert read(broken).strange[0]


POINTS = st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rings=st.lists(POINTS, min_size=1, max_size=3), decimals=st.integers(0, 12))
def test_polygons_are_written_as_the_twin_writes_them(rings: list[list[tuple[float, float]]], decimals: int):
    vertices = np.array([point for ring in rings for point in ring])
    offsets = np.cumsum([0, *(len(ring) for ring in rings)])
    text, first = coordinates.write(vertices, offsets, np.array([0, len(rings)]), decimals)
    (expected,) = twin.write([[list(map(list, ring)) for ring in rings]], decimals)
    assert text.decode() == expected
    assert first.tolist() == [0, len(text)]


def test_what_is_written_is_what_geos_reads():
    shapes = shapely.buffer(shapely.points(np.random.default_rng(0).uniform(-80, 80, (50, 2))), 3.3)
    _, vertices, (rings, polygons) = shapely.to_ragged_array(shapes)
    text, first = coordinates.write(vertices, rings.astype(np.int64), polygons.astype(np.int64), 9)
    documents = [f'{{"type":"Polygon","coordinates":{text[a:b].decode()}}}' for a, b in pairwise(first)]
    assert shapely.equals_exact(shapely.from_geojson(documents), shapes, tolerance=1e-9).all()


@pytest.mark.parametrize(("value", "decimals"), [(1e9, 9), (np.nan, 0), (np.inf, 3), (1.0, 13)])
def test_numbers_without_room_are_refused(value: float, decimals: int):
    with pytest.raises(ValueError, match="64 bits"):
        coordinates.write(np.array([[value, 0.0]]), np.array([0, 1]), np.array([0, 1]), decimals)
