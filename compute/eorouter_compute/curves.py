"""A chart of curves over time as SVG, drawn with the standard library: workers carry no plotting package.

Text and axes take the page's ink (`currentColor`), so a chart reads on paper, light and dark. The same numbers give the
same bytes.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from html import escape
from math import floor, isfinite, log10

CURVES_MAX = 12
"""Curves of one chart; more cannot be told apart."""

# Okabe and Ito 2008, "Color universal design": told apart by every kind of colour vision; dashes when they repeat.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 150, 34, 40


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them, 1, 2 or 5 times a power of ten apart."""
    raw = max(high - low, 1e-12) / count
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = floor(low / step)
    return [round((first + n) * step, 12) for n in range(count * 3) if low - 1e-9 <= (first + n) * step <= high + 1e-9]


def draw(
    days: Sequence[date],
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    lines: Mapping[str, Sequence[float]] | None = None,
) -> bytes:
    """Draw curves as an SVG document.

    Args:
        days: the day of every value, ascending.
        curves: values by name, NaN where there is none; points, joined where no value lies between them missing.
        title: stands above the chart.
        lines: smooth curves of the same names, drawn through the points instead of joining them.
    """
    shown = list(curves)[:CURVES_MAX]
    drawn = {name: (lines or curves)[name] for name in shown}
    numbers = [v for name in shown for row in (curves[name], drawn[name]) for v in row if isfinite(v)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    spread = high - low or abs(high) or 1.0
    low, high = low - 0.05 * spread, high + 0.05 * spread
    span = max((days[-1] - days[0]).days, 1)

    def x(day: date) -> float:
        return _LEFT + (day - days[0]).days / span * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="currentColor" role="img"><title>{escape(title)}</title>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    for value in ticks(low, high):
        parts.append(_rule(_LEFT, y(value), _WIDTH - _RIGHT, y(value)))
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for day, label in _dates(days[0], days[-1]):
        parts.append(_rule(x(day), _TOP, x(day), _HEIGHT - _BOTTOM))
        parts.append(f'<text x="{x(day):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    for number, name in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = "" if number < len(_COLOURS) else ' stroke-dasharray="6 3"'
        path = _path([(x(day), y(v)) if isfinite(v) else None for day, v in zip(days, drawn[name], strict=True)])
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        parts += [
            f'<circle cx="{x(day):.1f}" cy="{y(v):.1f}" r="2.4" fill="{colour}"/>'
            for day, v in zip(days, curves[name], strict=True)
            if isfinite(v)
        ]
        at = _TOP + 8 + 18 * number
        parts.append(f'<path d="M{_WIDTH - _RIGHT + 12} {at}h18" stroke="{colour}" stroke-width="2.4"{dash}/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 36}" y="{at + 4}">{escape(name[:18])}</text>')
    if len(curves) > len(shown):
        at = _TOP + 8 + 18 * len(shown)
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{at + 4}">and {len(curves) - len(shown)} more</text>')
    return "\n".join([*parts, "</svg>\n"]).encode()


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="currentColor" stroke-opacity=".13"/>'


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Straight pieces through the points; missing ones are bridged, as the dots show what is measured."""
    known = [point for point in points if point is not None]
    return "".join(f"{'L' if n else 'M'}{px:.1f} {py:.1f}" for n, (px, py) in enumerate(known))


def _dates(first: date, last: date) -> list[tuple[date, str]]:
    """Days that get a rule: years, months or days, at most ten or so."""
    span = (last - first).days
    if span <= 45:
        step = max(span // 6, 1)
        return [(first + timedelta(days=n), f"{first + timedelta(days=n):%d %b}") for n in range(0, span + 1, step)]
    months = next(m for m in (1, 2, 3, 6, 12, 24, 60, 120, 600, 1_200, 6_000, 12_000) if span / 30.4 / m <= 10)
    out, at = [], first.year * 12 + first.month - 1
    at += -at % months
    while at <= last.year * 12 + last.month - 1:
        day = date(at // 12, at % 12 + 1, 1)
        if day >= first:
            out.append((day, f"{day:%Y}" if months >= 12 else f"{day:%b %Y}" if day.month <= months else f"{day:%b}"))
        at += months
    return out
