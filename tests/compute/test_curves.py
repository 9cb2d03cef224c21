"""Charts as an XML parser sees them: every value at its place, text that cannot break out, rules at round numbers."""

from datetime import date, timedelta
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter_compute import curves

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def dots(document: bytes, colour: str) -> np.ndarray:
    """Centres (n, 2) of the dots of one colour."""
    found = [node for node in ET.fromstring(document).iter(f"{SVG}circle") if node.get("fill") == colour]
    return np.array([[float(node.get("cx", NAN)), float(node.get("cy", NAN))] for node in found]).reshape(-1, 2)


def texts(document: bytes) -> list[str]:
    return [node.text or "" for node in ET.fromstring(document).iter(f"{SVG}text")]


def colour_of(document: bytes, place: int) -> str:
    paths = [node for node in ET.fromstring(document).iter(f"{SVG}path") if node.get("stroke-width") == "1.8"]
    return paths[place].get("stroke", "")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_even_and_within(low, span):
    found = curves.ticks(low, low + span)
    steps = np.diff(found)
    assert 2 <= len(found) <= 13
    assert found[0] >= low - 1e-8
    assert found[-1] <= low + span + 1e-8
    assert np.ptp(steps) <= 1e-6 * steps.max() + 1e-9
    digits = f"{steps[0]:.3e}".partition("e")[0]
    assert digits in {"1.000", "2.000", "5.000", "9.999", "10.000"} or abs(low) > 1e6 * span


def test_values_stand_where_day_and_number_say():
    days = [date(2024, 1, 1) + timedelta(days=n) for n in (0, 10, 40)]
    document = curves.draw(days, {"a": [0.0, 1.0, 0.5]}, title="t")
    (x0, y0), (x1, y1), (x2, y2) = dots(document, colour_of(document, 0))
    assert (x1 - x0) / (x2 - x0) == pytest.approx(10 / 40, abs=1e-3)
    assert y1 < y2 < y0
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=1e-3)


def test_what_is_missing_has_no_dot_and_is_bridged():
    days = [date(2024, 1, 1) + timedelta(days=n) for n in range(4)]
    document = curves.draw(days, {"a": [1.0, NAN, float("inf"), 2.0]}, title="t")
    assert len(dots(document, colour_of(document, 0))) == 2
    path = next(node for node in ET.fromstring(document).iter(f"{SVG}path") if node.get("stroke-width") == "1.8")
    assert path.get("d", "").count("L") == 1


def test_smooth_lines_are_drawn_through_the_measured_dots():
    days = [date(2024, 1, 1) + timedelta(days=n) for n in range(3)]
    plain = curves.draw(days, {"a": [0.0, 4.0, 0.0]}, title="t")
    smooth = curves.draw(days, {"a": [0.0, 4.0, 0.0]}, title="t", lines={"a": [1.0, 1.0, 1.0]})
    assert np.array_equal(dots(plain, colour_of(plain, 0)), dots(smooth, colour_of(smooth, 0)))
    path = next(node for node in ET.fromstring(smooth).iter(f"{SVG}path") if node.get("stroke-width") == "1.8")
    heights = {point.split()[1] for point in path.get("d", "").replace("M", "L").split("L") if point}
    assert len(heights) == 1


@pytest.mark.parametrize("name", ["</text><script>alert(1)</script>", "a & b", 'x" onload="y'])
def test_names_and_titles_stay_text(name):
    document = curves.draw([date(2024, 1, 1)], {name: [1.0]}, title=name)
    root = ET.fromstring(document)
    assert {node.tag for node in root.iter()} <= {f"{SVG}{tag}" for tag in ("svg", "title", "text", "path", "circle")}
    assert name in texts(document)
    assert name[:18] in texts(document)


def test_more_curves_than_can_be_told_apart_are_counted():
    many = {f"zone {n}": [float(n), 1.0] for n in range(curves.CURVES_MAX + 7)}
    document = curves.draw([date(2024, 1, 1), date(2024, 2, 1)], many, title="t")
    assert "and 7 more" in texts(document)
    assert sum(text.startswith("zone") for text in texts(document)) == curves.CURVES_MAX


@pytest.mark.parametrize("values", [[NAN, NAN], [3.0, 3.0], [0.0, 0.0]])
def test_nothing_and_one_number_alike_have_a_chart(values):
    ET.fromstring(curves.draw([date(2024, 1, 1), date(2024, 1, 9)], {"a": values}, title="t"))
    ET.fromstring(curves.draw([date(2024, 1, 1)], {}, title="t"))


@given(st.dates(), st.integers(0, 20_000) | st.integers(0, 3_700_000))
def test_rules_of_days_are_few_inside_and_ascend(first, span):
    last = first + timedelta(days=min(span, (date.max - first).days))
    span = (last - first).days
    found = [day for day, _ in curves._dates(first, last)]
    assert found == sorted(set(found))
    assert len(found) <= 13
    assert all(first <= day <= last for day in found)
    assert found or span > 45


def test_the_same_numbers_are_the_same_bytes():
    days = [date(2024, 1, 1), date(2025, 1, 1)]
    assert curves.draw(days, {"a": [1.0, 2.0]}, title="t") == curves.draw(days, {"a": [1.0, 2.0]}, title="t")
