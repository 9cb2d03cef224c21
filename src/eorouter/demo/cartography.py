"""Maps of the report: a picture, outlines to point at, a frame with coordinates, scale bar, north arrow and legend.

Drawn as SVG by hand: text and outlines stay sharp on paper and take the page's ink colour on dark screens, and each
field names itself when pointed at, without a script.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from PIL import Image

from eorouter.demo.story import View, Zone

NDVI_RANGE = (0.0, 0.9)
NDVI_COLOURS: Colormap = LinearSegmentedColormap.from_list(
    # From bare soil to closed canopy, lighter to darker throughout, so that it survives grey printing and every kind of
    # colour vision; water and built-up land (below zero) take the blue-grey.
    "ndvi",
    ["#f6efdc", "#dfe2a6", "#a9cb74", "#5fa653", "#23753f", "#06402b"],
).with_extremes(under="#8fa9b8", over="#06402b", bad="#00000000")

_SIZE = 1000.0  # width of the picture in SVG units; everything else follows
_MARGIN = {"left": 64.0, "right": 12.0, "top": 12.0, "bottom": 46.0}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """From map coordinates to the picture. Bounds are (west, south, east, north)."""

    bounds: tuple[float, float, float, float]

    @property
    def metres_per_unit(self) -> float:
        """Ground length of one SVG unit."""
        return (self.bounds[2] - self.bounds[0]) / _SIZE

    @property
    def height(self) -> float:
        """Height of the picture in SVG units."""
        return (self.bounds[3] - self.bounds[1]) / self.metres_per_unit

    def x(self, easting: float) -> float:
        """Horizontal place of an easting."""
        return (easting - self.bounds[0]) / self.metres_per_unit

    def y(self, northing: float) -> float:
        """Vertical place of a northing; down is south."""
        return (self.bounds[3] - northing) / self.metres_per_unit

    def path(self, rings: Iterable[np.ndarray]) -> str:
        """Path data of a polygon's rings."""
        parts = []
        for ring in rings:
            points = " ".join(f"{self.x(float(east)):.1f},{self.y(float(north)):.1f}" for east, north in ring)
            parts.append(f"M{points}Z")
        return "".join(parts)


def picture(pixels: np.ndarray, *, longest: int = 900) -> str:
    """A picture (y, x, RGB or RGBA) as a data address (WebP keeps clear pixels clear), `longest` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def ndvi_picture(ndvi: np.ndarray, *, longest: int = 900) -> str:
    """NDVI in the legend's colours (PNG with transparency where nothing valid was seen) as a data address."""
    step = max(1, math.ceil(max(ndvi.shape) / longest))
    low, high = NDVI_RANGE
    scaled = (ndvi[::step, ::step] - low) / (high - low)
    rgba = NDVI_COLOURS(np.ma.masked_invalid(scaled), bytes=True)
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(rgba))
    image.quantize(128, Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def colour_of(ndvi: float) -> str:
    """The legend's colour of a value."""
    low, high = NDVI_RANGE
    red, green, blue, _ = NDVI_COLOURS((ndvi - low) / (high - low), bytes=True)
    return f"#{red:02x}{green:02x}{blue:02x}"


def draw(
    name: str,
    view: View,
    href: str,
    zones: Sequence[Zone],
    *,
    description: str,
    value_of: Callable[[Zone], float | None],
    label_of: Callable[[Zone], str],
    is_coloured: bool,
) -> str:
    """A whole map as one SVG element.

    Args:
        name: of this map, unlike those of the page's others.
        view: the grid that the picture lies on.
        href: the picture, as a data address.
        zones: fields to outline.
        description: what the map shows, for those who do not see it.
        value_of: NDVI of a field; None draws it hatched.
        label_of: what a field says when pointed at.
        is_coloured: give the outlines the colour of their value; otherwise they are hairlines.
    """
    frame = Frame(bounds=view.bounds)
    width = _MARGIN["left"] + _SIZE + _MARGIN["right"]
    height = _MARGIN["top"] + frame.height + _MARGIN["bottom"]
    return "".join(
        [
            f'<svg class="map" role="img" aria-label="{escape(description)}" viewBox="0 0 {width:.0f} {height:.0f}">',
            f'<g transform="translate({_MARGIN["left"]:.0f} {_MARGIN["top"]:.0f})">',
            f'<clipPath id="{name}-frame"><rect width="{_SIZE:.0f}" height="{frame.height:.1f}"/></clipPath>',
            f'<rect class="nodata" width="{_SIZE:.0f}" height="{frame.height:.1f}" fill="url(#hatch)"/>',
            f'<image width="{_SIZE:.0f}" height="{frame.height:.1f}" preserveAspectRatio="none" href="{href}"/>',
            f'<g clip-path="url(#{name}-frame)">',
            *_outlines(frame, zones, value_of, label_of, is_coloured=is_coloured),
            "</g>",
            f'<rect width="{_SIZE:.0f}" height="{frame.height:.1f}" class="frame"/>',
            *_graticule(frame),
            _scale_bar(frame),
            _north(),
            "</g></svg>",
        ]
    )


def legend() -> str:
    """Colour ramp of NDVI, with the sign for missing data."""
    low, high = NDVI_RANGE
    stops = "".join(
        f'<stop offset="{part / 20:.0%}" stop-color="{colour_of(low + (high - low) * part / 20)}"/>'
        for part in range(21)
    )
    ticks = "".join(
        f'<text x="{60 + 300 * (value - low) / (high - low):.0f}" y="44" text-anchor="middle">{value:.1f}</text>'
        for value in np.arange(low, high + 0.01, 0.3)
    )
    return (
        '<svg class="legend" role="img" aria-label="Legend: NDVI from 0.0, pale, to 0.9, dark green; below zero '
        'blue-grey; no valid observation hatched" viewBox="0 0 560 52">'
        f'<defs><linearGradient id="ramp">{stops}</linearGradient></defs>'
        '<text x="0" y="21">NDVI</text>'
        f'<rect x="60" y="6" width="300" height="20" fill="url(#ramp)" class="frame-thin"/>{ticks}'
        '<rect x="385" y="6" width="26" height="20" fill="#8fa9b8" class="frame-thin"/>'
        '<text x="398" y="44" text-anchor="middle">&lt; 0</text>'
        '<rect x="440" y="6" width="26" height="20" fill="url(#hatch)" class="frame-thin"/>'
        '<text x="453" y="44" text-anchor="middle">not seen</text></svg>'
    )


def hatch() -> str:
    """The hatching that stands for missing data; put once at the top of the page."""
    return (
        '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
        '<pattern id="hatch" width="9" height="9" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="9" height="9" class="hatch-ground"/><rect width="2.5" height="9" class="hatch-line"/>'
        "</pattern></defs></svg>"
    )


def _outlines(
    frame: Frame,
    zones: Sequence[Zone],
    value_of: Callable[[Zone], float | None],
    label_of: Callable[[Zone], str],
    *,
    is_coloured: bool,
) -> Iterable[str]:
    for zone in zones:
        value = value_of(zone)
        data = frame.path(zone.rings)
        dash = ' stroke-dasharray="5 5"' if value is None else ""
        title = f"<title>{escape(label_of(zone))}</title>"
        if is_coloured:
            # A light casing under a coloured line keeps the outline readable on bright and on dark ground.
            stroke = "#8a8a84" if value is None else colour_of(value)
            yield f'<path d="{data}" class="casing"/>'
            yield f'<path d="{data}" class="outline" stroke="{stroke}"{dash}>{title}</path>'
        else:
            yield f'<path d="{data}" class="outline hairline"{dash}>{title}</path>'


def _graticule(frame: Frame) -> Iterable[str]:
    """Ticks and labels in kilometres of easting and northing, at round values."""
    west, south, east, north = frame.bounds
    step = _round_step((east - west) / 4)
    digits = 0 if step >= 1000 else 1 if step >= 100 else 2
    for easting in np.arange(math.ceil(west / step) * step, east, step):
        x, bottom = frame.x(float(easting)), frame.height
        yield f'<path d="M{x:.1f},{bottom:.1f}v8" class="tick"/>'
        yield (
            f'<text x="{x:.1f}" y="{bottom + 28:.1f}" text-anchor="middle" class="coordinate">'
            f"{easting / 1000:.{digits}f}</text>"
        )
    for northing in np.arange(math.ceil(south / step) * step, north, step):
        y = frame.y(float(northing))
        yield f'<path d="M0,{y:.1f}h-8" class="tick"/>'
        yield (
            f'<text transform="translate(-16 {y:.1f}) rotate(-90)" text-anchor="middle" class="coordinate">'
            f"{northing / 1000:.{digits}f}</text>"
        )


def _scale_bar(frame: Frame) -> str:
    length_m = _round_step((frame.bounds[2] - frame.bounds[0]) / 5)
    units = length_m / frame.metres_per_unit
    label = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    left, top = 22.0, frame.height - 50
    return (
        f'<g><rect x="{left - 12:.0f}" y="{top - 8:.0f}" width="{units + 24:.1f}" height="44" rx="5" class="plate"/>'
        f'<rect x="{left}" y="{top + 22:.1f}" width="{units:.1f}" height="7" fill="#fff" stroke="#111"/>'
        f'<rect x="{left}" y="{top + 22:.1f}" width="{units / 2:.1f}" height="7" fill="#111"/>'
        f'<text x="{left + units / 2:.1f}" y="{top + 15:.1f}" text-anchor="middle" class="plate-text">{label}</text>'
        "</g>"
    )


def _north() -> str:
    return (
        f'<g transform="translate({_SIZE - 34:.0f} 14)">'
        '<rect x="-20" y="-4" width="40" height="62" rx="5" class="plate"/>'
        '<path d="M0,2 L9,32 L0,25 L-9,32Z" fill="#111"/>'
        '<text y="51" text-anchor="middle" class="plate-text">N</text></g>'
    )


def _round_step(about: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten at or below."""
    power = 10.0 ** math.floor(math.log10(about))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= about)
