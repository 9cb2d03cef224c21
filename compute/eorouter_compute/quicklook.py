"""Arrays to small pictures: PNG previews with missing pixels transparent, and the colours behind them.

The colour tables are our own: a few stops each, chosen to keep lightness monotonic (sequential) or symmetric
(diverging), and open to callers that draw a legend.
"""

import struct
import zlib
from typing import Literal, NamedTuple

import numpy as np

SIDE_MAX = 1024
"""Longest side of a picture, in pixels."""

Style = Literal["rgb", "gray", "index", "change", "terrain", "heat", "class"]

_STOPS: dict[str, tuple[tuple[float, str], ...]] = {
    "gray": ((0.0, "#000000"), (1.0, "#ffffff")),
    "index": ((0.0, "#6b4423"), (0.25, "#c8a05a"), (0.5, "#f6efc7"), (0.75, "#6fae4e"), (1.0, "#0b4d23")),
    "change": ((0.0, "#7a1b3c"), (0.25, "#d9706b"), (0.5, "#f7f4ef"), (0.75, "#5f9fc4"), (1.0, "#12406e")),
    "terrain": ((0.0, "#1f5a4a"), (0.25, "#7fa65a"), (0.5, "#dccb86"), (0.75, "#9a6b46"), (1.0, "#f4f1ee")),
    "heat": ((0.0, "#160a2c"), (0.25, "#5d1a6b"), (0.5, "#b8365d"), (0.75, "#f08a3c"), (1.0, "#fbf3b4")),
}
_CLASSES = (
    "#4477aa", "#ee8866", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#8c6d46", "#bbcc33", "#9970ab", "#d6604d",
    "#44bb99", "#7a7a7a", "#ddaa33", "#1b5e8a", "#ffaabb", "#5a7d2a",
)  # fmt: skip


class Entry(NamedTuple):
    """One row of a legend: a value and its colour as #rrggbb."""

    value: float
    color: str


def color_table(style: Style, count: int = 256) -> np.ndarray:
    """The colours of a style as (count, 3) uint8: a ramp, or for "class" the cycle of class colours."""
    if style == "class":
        return np.array([_rgb(_CLASSES[number % len(_CLASSES)]) for number in range(count)], np.uint8)
    if style == "rgb":
        raise ValueError("rgb has no colour table")
    at = [stop for stop, _ in _STOPS[style]]
    colors = np.array([_rgb(color) for _, color in _STOPS[style]], float)
    x = np.linspace(0.0, 1.0, count)
    return np.stack([np.rint(np.interp(x, at, colors[:, channel])) for channel in range(3)], axis=1).astype(np.uint8)


def legend(style: Style, low: float, high: float, count: int = 5) -> tuple[Entry, ...]:
    """`count` values from `low` to `high` with their colours; for "class" every whole number between them."""
    if style == "class":
        table = color_table("class")
        return tuple(Entry(v, _hex(table[int(v) % len(table)])) for v in range(int(low), int(high) + 1))
    table = color_table(style, count)
    return tuple(Entry(float(v), _hex(c)) for v, c in zip(np.linspace(low, high, count), table, strict=True))


def stretch(pixels: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """The 2nd and 98th percentile of the valid pixels; (0, 1) where there are none, twice the value of a constant."""
    values = pixels[valid & np.isfinite(pixels)]
    if not values.size:
        return 0.0, 1.0
    places = np.array([0.02, 0.98]) * (values.size - 1)
    below = places.astype(np.int64)
    ends = np.array([_neighbours(values, int(place)) for place in below], np.float64)
    one, other = ends[:, 0], ends[:, 1]
    # Twice half the way: the whole one, from one end of float64 to the other, is more than it holds.
    half = (other / 2 - one / 2) * (places - below)
    low, high = one + half + half
    return float(low), float(high)


def _neighbours(values: np.ndarray, place: int) -> tuple[float, float]:
    """The numbers at `place` and behind it, were the values sorted; two such cost a third of sorting a preview."""
    ranked = np.partition(values, place)
    return ranked[place], ranked[place + 1 :].min() if place + 1 < values.size else ranked[place]


def render(
    pixels: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    style: Style | None = None,
    limits: tuple[float, float] | None = None,
) -> bytes:
    """Draw pixels (band, y, x) as a PNG with transparency.

    Args:
        pixels: one band, or at least three for "rgb".
        valid: (y, x) or (band, y, x); a pixel is transparent when no drawn band has data there.
        style: by default "rgb" for three bands and more, else "gray".
        limits: values of the first and last colour, as of `levels`; by default the 2 % and 98 % percentiles, per band
            for "rgb".
    """
    step = max(-(-max(pixels.shape[1:]) // SIDE_MAX), 1)
    pixels = pixels[:, ::step, ::step]
    if valid is None:
        valid = np.ones(pixels.shape, np.bool_)
    else:
        valid = np.broadcast_to(valid[..., ::step, ::step], pixels.shape)
    if pixels.dtype.kind == "f":
        valid = valid & np.isfinite(pixels)
    style = style or ("rgb" if pixels.shape[0] >= 3 else "gray")
    if style == "rgb":
        shown = valid[:3].any(axis=0)
        picture = np.zeros((*pixels.shape[1:], 4), np.uint8)
        for channel in range(3):
            low, high = limits or stretch(pixels[channel], valid[channel])
            picture[..., channel] = np.where(shown, levels(pixels[channel], low, high, 255), 0)
        picture[..., 3] = np.where(shown, 255, 0)
        return png(picture, None)
    # Place 0 of the palette is transparent; a class, or a step of the ramp, has one of the others.
    shown = valid[0]
    if style == "class":
        places = (np.where(shown, pixels[0], 0) % len(_CLASSES)).astype(np.int64)
    else:
        low, high = limits or stretch(pixels[0], shown)
        places = levels(pixels[0], low, high, 254)
    return png(np.where(shown, places + 1, 0).astype(np.uint8), color_table(style, 255))


def levels(band: np.ndarray, low: float, high: float, top: int) -> np.ndarray:
    """Pixels as uint8 from 0 at `low` to `top` at `high`, also where these are alike or the ends of what floats hold.

    What equals both ends lies in the middle, as all of a constant picture does.
    """
    if band.dtype.kind in "iu" and band.dtype.itemsize <= 2 and band.size > 1 << 8 * band.dtype.itemsize:
        # Worked out once for every number there can be, and looked up.
        bits = np.dtype(f"u{band.dtype.itemsize}")
        every = np.arange(1 << 8 * bits.itemsize, dtype=np.uint32).astype(bits).view(band.dtype)
        return _levels(every, low, high, top)[band.view(bits)]
    return _levels(band, low, high, top)


def _levels(band: np.ndarray, low: float, high: float, top: int) -> np.ndarray:
    if not low < high:
        values = band.astype(np.float64)
        return np.where(values < low, 0, np.where(values > low, top, np.rint(top / 2))).astype(np.uint8)
    largest = max(abs(low), abs(high))
    # Brought to magnitudes near 1 by a power of two, which costs no digit, the range neither overflows nor vanishes.
    exponent = 0 if 1e-250 < largest < 1e250 else -int(np.frexp(largest)[1])
    begin, end = np.ldexp(low, exponent), np.ldexp(high, exponent)
    values = np.ldexp(band.astype(np.float64), exponent) if exponent else band
    with np.errstate(over="ignore", invalid="ignore"):
        place = np.subtract(values, begin, dtype=np.float64)
        place *= top / (end - begin)
    np.fmax(place, 0.0, out=place)  # of NaN, too
    np.minimum(place, top, out=place)
    return np.rint(place, out=place).astype(np.uint8)


def png(picture: np.ndarray, colors: np.ndarray | None) -> bytes:
    """A PNG of (y, x, 4) RGBA, or of (y, x) places in a palette whose place 0, before `colors`, is transparent.

    Written here because a palette and ISA-L make the picture smaller, and fifteen times sooner than libpng does
    (W3C PNG, third edition, sections 9 and 11).
    """
    from isal import isal_zlib

    height, width = picture.shape[:2]
    lines = np.empty((height, 1 + picture[0].size), np.uint8)
    if colors is None:
        lines[:, 0] = 1  # filter "sub"
        lines[:, 1:5] = picture[:, 0]
        lines[:, 5:] = (picture[:, 1:] - picture[:, :-1]).reshape(height, -1)
    else:
        lines[:, 0] = 0
        lines[:, 1:] = picture
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6 if colors is None else 3, 0, 0, 0))]
    if colors is not None:
        chunks += [(b"PLTE", bytes(3) + colors.tobytes()), (b"tRNS", b"\0")]
    chunks += [(b"IDAT", isal_zlib.compress(lines, 3)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _hex(color: np.ndarray) -> str:
    return "#" + "".join(f"{int(channel):02x}" for channel in color)
