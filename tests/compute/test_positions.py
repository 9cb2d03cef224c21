"""Positions of a grid in another: PROJ asked directly for every pixel, in any window, across any seam."""

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eorouter_compute import positions
from eorouter_compute.grid import Grid, Window

UTM = Grid(crs="EPSG:32632", transform=(10.0, 0.0, 600_000.0, 0.0, -10.0, 5_200_000.0), shape=(600, 500))
DEGREES = Grid(crs="EPSG:4326", transform=(1.2e-4, 0.0, 10.31, 0.0, -9e-5, 46.95), shape=(560, 640))
WORLD = Grid(crs="EPSG:4326", transform=(0.5, 0.0, -180.0, 0.0, -0.5, 90.0), shape=(360, 720))
POLAR = Grid(crs="EPSG:3413", transform=(5e3, 0.0, -2e6, 0.0, -5e3, 2e6), shape=(800, 800))


def direct(source: Grid, target: Grid, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels by PROJ and the inverse of an affine matrix, nothing else."""
    matrix = np.array([*target.transform, 0, 0, 1]).reshape(3, 3)
    x, y, _ = matrix @ np.stack([cols, rows, np.ones_like(rows)])
    u, v = pyproj.Transformer.from_crs(target.crs, source.crs, always_xy=True).transform(x, y)
    inverse = np.linalg.inv(np.array([*source.transform, 0, 0, 1]).reshape(3, 3))
    col, row, _ = inverse @ np.stack([u, v, np.ones_like(u)])
    return col, row


def spread(mesh: positions.Mesh, window: Window) -> np.ndarray:
    """Positions (xy, y, x) that a mesh gives the pixels of a window, weighted between the corners of its leaves."""
    out = np.full((2, window.height, window.width), np.nan)
    for row, col, height, width, down, right, is_dense, first in mesh.leaves:
        r, c = np.mgrid[:height, :width]
        if is_dense:
            at = mesh.nodes[first : first + (height + 1) * (width + 1)].reshape(height + 1, width + 1, 2)[:-1, :-1]
        else:
            corners = mesh.nodes[first : first + 4].reshape(2, 2, 2)
            fr, fc = (r / down)[..., None], (c / right)[..., None]
            at = (corners[0, 0] * (1 - fr) * (1 - fc) + corners[0, 1] * (1 - fr) * fc
                  + corners[1, 0] * fr * (1 - fc) + corners[1, 1] * fr * fc)  # fmt: skip
        rows, cols = r + row - window.row, c + col - window.col
        inside = (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)
        out[:, rows[inside], cols[inside]] = at[inside].T
    return out


@pytest.mark.parametrize(("source", "target"), [(UTM, DEGREES), (DEGREES, UTM), (WORLD, POLAR), (UTM, UTM)])
def test_places_are_projs(source, target):
    rng = np.random.default_rng(1)
    rows, cols = rng.uniform(0, target.shape[0], 400), rng.uniform(0, target.shape[1], 400)
    x, y = positions.Locator(source, target).locate(rows, cols)
    col, row = direct(source, target, rows, cols)
    np.testing.assert_allclose(x, col, atol=1e-5)
    np.testing.assert_allclose(y, row, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(UTM, DEGREES), (DEGREES, UTM), (WORLD, POLAR)])
@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.125])
def test_a_mesh_keeps_its_tolerance_at_every_pixel(source, target, tolerance):
    window = Window(300, 250, 200, 220)
    locator = positions.Locator(source, target)
    found = spread(locator.mesh(window, tolerance), window)
    rows, cols = (each.ravel() + 0.5 for each in np.mgrid[window.row : window.row_stop, window.col : window.col_stop])
    col, row = (each.reshape(window.height, window.width) for each in direct(source, target, rows, cols))
    away = np.abs(found[0] - col)
    if locator.period:
        away = np.minimum(away % locator.period, -away % locator.period)
    # Corners that predict five places within the tolerance may err by half as much again between them.
    assert np.nanmax(away + np.abs(found[1] - row)) <= 1.5 * tolerance + 1e-5
    assert np.isfinite(found).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 500), st.integers(0, 560), st.integers(1, 60), st.integers(1, 60))
def test_positions_do_not_depend_on_the_window(row, col, height, width):
    part = Window(row, col, height, width).intersect(DEGREES.window)
    locator = positions.Locator(UTM, DEGREES)
    whole = spread(locator.mesh(DEGREES.window, 0.05), DEGREES.window)
    found = spread(locator.mesh(part, 0.05), part)
    np.testing.assert_array_equal(found, whole[:, part.row : part.row_stop, part.col : part.col_stop])


def test_a_source_around_the_globe_wraps_and_a_part_of_it_does_not():
    whole = positions.Locator(WORLD, POLAR)
    assert whole.wraps
    assert whole.period == 720
    part = positions.Locator(Grid(crs=WORLD.crs, transform=WORLD.transform, shape=(360, 700)), POLAR)
    assert not part.wraps
    assert part.period == pytest.approx(720)
    assert positions.Locator(UTM, DEGREES).period == 0


def test_longitudes_are_counted_from_where_the_source_lies():
    pacific = Grid(crs="EPSG:4326", transform=(0.01, 0.0, 179.0, 0.0, -0.01, 1.0), shape=(200, 200))
    beyond = Grid(crs="EPSG:4326", transform=(0.01, 0.0, -180.0, 0.0, -0.01, 1.0), shape=(200, 100))
    x, _ = positions.Locator(pacific, beyond).locate(np.array([10.5]), np.array([0.5]))
    assert x[0] == pytest.approx(100.5)


def test_the_other_side_of_a_globe_seen_from_afar_has_no_place():
    seen = Grid(crs="+proj=ortho +lat_0=0 +lon_0=0", transform=(1e4, 0.0, -6e6, 0.0, -1e4, 6e6), shape=(1200, 1200))
    far = Grid(crs="EPSG:4326", transform=(1.0, 0.0, 80.0, 0.0, -1.0, 10.0), shape=(20, 20))
    x, y = positions.Locator(seen, far).locate(np.full(20, 9.5), np.arange(20) + 0.5)
    assert np.isfinite(x).tolist() == [True] * 10 + [False] * 10
    assert np.isfinite(y).tolist() == [True] * 10 + [False] * 10


def test_moved_points_are_projs_and_nowhere_is_nan():
    x, y = positions.moved("EPSG:4326", "EPSG:32632", np.array([9.0, 12.0]), np.array([46.0, 47.0]))
    known = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True).transform([9.0, 12.0], [46.0, 47.0])
    np.testing.assert_allclose([x, y], known)
    x, _ = positions.moved("EPSG:4326", "EPSG:3857", np.array([0.0]), np.array([95.0]))
    assert np.isnan(x).all()


@pytest.mark.parametrize(
    ("crs", "expected"),
    [("EPSG:4326", 360.0), ("EPSG:3857", 2 * np.pi * 6378137), ("EPSG:32632", 0.0), ("EPSG:3413", 0.0),
     ("EPSG:4807", 400.0), ("ESRI:54034", 2 * np.pi * 6378137)],
)  # fmt: skip
def test_how_far_x_goes_round_the_globe(crs, expected):
    assert positions.around(crs) == pytest.approx(expected, rel=1e-6)
