"""Charts of the report, by matplotlib, as SVG that takes the page's ink colour: readable on paper, light and dark."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from html import escape
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from eorouter.demo.story import Story

_INK = "#0a0b0c"  # stands for the page's ink while drawing; replaced by currentColor in the SVG
# Okabe and Ito 2008, "Color universal design": told apart by every kind of colour vision; with a marker each besides.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_MARKERS = ("o", "s", "^", "D", "v", "p", "h", "<")
_NARROW = (6.4, 3.0)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "eorouter",
    "font.family": "sans-serif",
    "font.size": 11.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def style_of(crops: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each crop, the same on every chart."""
    return dict(zip(crops, zip(cycle(_COLOURS), cycle(_MARKERS), strict=False), strict=False))


def curves(story: Story) -> str:
    """NDVI of each crop over time, as measured (points) and as put into the scenes (lines)."""

    def paint(axes: Axes) -> None:
        times = [day.at for day in story.days]
        for crop, (colour, marker) in style_of(story.crops).items():
            truth = story.truth.get(crop, ())
            if truth:
                axes.plot(_dates(at for at, _ in truth), [value for _, value in truth], color=colour, lw=1.6, alpha=0.7)
            means = [(at, story.crop_mean(crop, at)) for at in times]
            seen = [(at, mean) for at, mean in means if mean is not None]
            axes.errorbar(
                _dates(at for at, _ in seen), [mean for _, mean in seen],
                yerr=[_spread(story, crop, at) for at, _ in seen],
                color=colour, fmt=marker if truth else marker + "-", ms=6, lw=1.4, elinewidth=1.0, capsize=2.5,
                label=crop.replace("_", " "), mec="white", mew=0.6,
            )  # fmt: skip
        axes.xaxis_date()
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.set(ylabel="NDVI (no unit)", ylim=(min(-0.02, axes.get_ylim()[0]), 1.0))
        title = "points: measured" + ("\nlines: put in" if story.truth else "")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title=title, alignment="left")

    return _drawn("curves", f"NDVI over time for {_sentence(story.crops).replace('_', ' ')}.", (10.0, 3.9), paint)


def visibility(story: Story) -> str:
    """How much of the fields was valid in each acquisition, and how cloudy the scene says it was."""

    def paint(axes: Axes) -> None:
        places = np.arange(len(story.days))
        valid = [story.valid_fraction(day.at) * 100 for day in story.days]
        clouds = [None if day.cloud_fraction is None else day.cloud_fraction * 100 for day in story.days]
        axes.bar(places - 0.2, valid, 0.38, color="#3f8f5a", label="fields: valid")
        if any(cloud is not None for cloud in clouds):
            heights = [cloud or 0.0 for cloud in clouds]
            axes.bar(places + 0.2, heights, 0.38, color="#8fa9b8", label="scene: cloud")
        for place, value in zip(places, valid, strict=True):
            axes.annotate(f"{value:.0f}", (place - 0.2, value), (0, 3), textcoords="offset points", ha="center", size=9)
        axes.set(ylabel="%", ylim=(0, 112), yticks=(0, 25, 50, 75, 100))
        axes.set_xticks(places, [f"{day.at:%d %b}" for day in story.days])
        axes.grid(visible=False, axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)

    return _drawn("visibility", "Valid part of the fields, and cloud cover, for each acquisition.", _NARROW, paint)


def histograms(story: Story) -> str:
    """Distribution of NDVI over all valid pixels, an outline for each acquisition."""

    def paint(axes: Axes) -> None:
        edges = np.linspace(-0.2, 1.0, 61)
        shades = mpl.colormaps["plasma"](np.linspace(0.3, 0.85, max(1, len(story.days))))
        for day, shade in zip(story.days, shades, strict=True):
            valid = day.ndvi[np.isfinite(day.ndvi)]
            if valid.size:
                share = np.histogram(valid, edges)[0] / valid.size * 100
                axes.stairs(share, edges, color=shade, lw=1.5, label=f"{day.at:%d %b}")
        axes.set(xlabel="NDVI (no unit)", ylabel="% of valid pixels", xlim=(-0.2, 1.0))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9.5)

    return _drawn("histograms", "Histogram of NDVI over all valid pixels, for each acquisition.", _NARROW, paint)


def _spread(story: Story, crop: str, at: datetime) -> float:
    """Standard deviation between the fields of a crop."""
    means = [reading.mean for reading in story.of_crop(crop, at) if reading.is_trusted and reading.mean is not None]
    return float(np.std(means)) if len(means) > 1 else 0.0


def _dates(times: Iterable[datetime]) -> list[float]:
    return [float(date2num(at)) for at in times]


def _sentence(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def _drawn(name: str, description: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """A chart as an element of the page: no prologue, no fixed size, ids of its own, the page's ink."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    opening = text[text.index("<svg") :]
    inner = opening[opening.index(">") + 1 :]
    inner = inner.replace("http://www.w3.org/", "")  # names of namespaces, needless inside a page
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'id="', f'id="{name}-', inner)
    inner = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inner)
    view_box = re.search(r'viewBox="[^"]+"', opening)
    return (
        f'<svg class="chart" role="img" aria-label="{escape(description)}" {view_box.group() if view_box else ""}>'
        + inner.replace(_INK, "currentColor")
    )
