"""The numbers as people read them: on the console, in pages between two marks, and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from benchmarks.harness import NO_PEER, Measured

START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
HEADINGS = ("work", "peer", "ours s", "peer s", "ratio", "min … max", "floor", "Mpx/s", "MB ours/peer", "× bound")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a curve; `x` is what the curve is drawn against."""

    x: float
    seconds: float
    peak_rss_mb: float = 0.0


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the harness as it was written down."""

    machine: dict[str, Any]
    rows: list[Measured]
    curves: dict[str, list[Point]] = {}


def load(path: Path) -> Recorded:
    """Read a run."""
    return msgspec.json.decode(path.read_bytes(), type=Recorded)


def cells(row: Measured) -> list[str]:
    """One line of the table, as text; `HEADINGS` are its columns."""
    if not row.ours_s:
        return [row.id, row.peer, "not run", "", "", "", f"{row.floor:.2g}×", "", "", ""]
    ours = statistics.median(row.ours_s)
    if row.peer == NO_PEER:
        # Without a peer the ratio is the measured value over the wanted one; what was measured says more.
        return [
            row.id,
            row.shown,
            _seconds(ours),
            "",
            f"{row.ratio_median:.2f}×" if row.floor else "",
            "",
            f"{row.floor:.2f}×" if row.floor else "",
            "",
            _mb(row),
            "",
        ]
    ratios = [b / a for a, b in zip(row.ours_s, row.peer_s, strict=True)]
    return [
        row.id, row.peer, _seconds(ours), _seconds(statistics.median(row.peer_s)),
        f"{row.ratio_median:.1f}×" if row.agrees else "disagrees", f"{min(ratios):.1f} … {max(ratios):.1f}",
        f"{row.floor:.1f}×", f"{row.mpixel_per_s:.0f}", _mb(row),
        f"{ours / row.bound_s:.1f}" if row.bound_s else "",
    ]  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.995 else f"{value:.3f}"


def _mb(row: Measured) -> str:
    if not row.peak_rss_mb:
        return ""
    return f"{row.peak_rss_mb:.0f}" + (f" / {row.peer_peak_rss_mb:.0f}" if row.peer_peak_rss_mb else "")


def table(rows: Sequence[Measured], machine: Mapping[str, Any]) -> Table:
    """For the console."""
    shown = Table(title="eorouter against its peers", caption=" · ".join(f"{k} {v}" for k, v in machine.items()))
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in {"work", "peer"} else "right", no_wrap=heading == "work")
    for row in rows:
        line = cells(row)
        absent = "" if row.ours_s else "absent"  # a row without a floor has no ratio
        line[4] = f"[{'green' if row.is_met else 'red'}]{line[4] or absent}"
        shown.add_row(*line)
    return shown


def markdown(recorded: Recorded, *, is_short: bool) -> str:
    """The same for a page; the short form leaves out all but the times and the ratio."""
    machine = recorded.machine
    kept = (0, 1, 2, 3, 4, 6) if is_short else tuple(range(len(HEADINGS)))
    lines = [
        "| " + " | ".join(HEADINGS[place] for place in kept) + " |",
        "|" + "|".join("---" if place < 2 else "---:" for place in kept) + "|",
    ]
    for row in recorded.rows:
        line = cells(row)
        if not row.is_met:
            line[4] = f"**{line[4] or 'absent'}**"  # a row without a floor is always met
        lines.append("| " + " | ".join(line[place] for place in kept) + " |")
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}; size `{machine.get('size', 'tile')}`, {machine['taken']}. "
        "Ratios are pair by pair; bold ones miss their floor.",
    ]
    return "\n".join(lines)


def drawn(page: str, recorded: Recorded, *, is_short: bool) -> str:
    """The page with the table between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the page has no place for the table: put {START} and {END} on lines of their own")
    return f"{before}{START}\n\n{markdown(recorded, is_short=is_short)}\n\n{END}{after}"


def plot(rows: Sequence[Measured], curves: Mapping[str, Sequence[Point]], target: Path) -> None:
    """One bar per row: how many times faster than the peer, with the floor as a mark; the curves below."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row.ours_s and row.peer != NO_PEER]
    height = 0.42 * max(len(shown), 4) + 1.2
    figure = plt.figure(figsize=(10, height + (3.0 if curves else 0)), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[height, 3.0]) if curves else [figure]
    _bars(parts[0].subplots(), shown)
    if curves:
        _curves(parts[1], curves)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _bars(axes: Any, rows: Sequence[Measured]) -> None:
    labels = [f"{row.id} · {row.peer.split('(')[0].strip(' ,')}" for row in rows]
    places = range(len(rows))
    axes.barh(
        places, [row.ratio_median for row in rows], color=["#2a6f97" if row.is_met else "#b08968" for row in rows]
    )
    for place, row in enumerate(rows):
        axes.plot([row.floor, row.floor], [place - 0.4, place + 0.4], color="#c1121f", linewidth=2)
        axes.text(row.ratio_median, place, f" {row.ratio_median:.1f}×", va="center", fontsize=9)
    axes.set_yticks(places, labels, fontsize=9)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    marks = [0.5, 1, 2, 3, 5, 10, 20, 50, 100]
    axes.set_xticks(marks, [f"{mark:g}×" for mark in marks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.5, 1.25 * max([10.0, *(max(row.ratio_median, row.floor) for row in rows)]))
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the peer (red: floor)")
    axes.spines[["top", "right"]].set_visible(False)


def _curves(part: Any, curves: Mapping[str, Sequence[Point]]) -> None:
    all_axes = part.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, points) in zip(all_axes, curves.items(), strict=True):
        xs = [point.x for point in points]
        axes.plot(xs, [point.seconds for point in points], marker="o", color="#2a6f97")
        axes.set_xlabel(name)
        axes.set_ylabel("seconds", color="#2a6f97")
        if name != "workers":
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_ylim(bottom=None if name != "workers" else 0)
        if any(point.peak_rss_mb for point in points):
            memory = axes.twinx()
            memory.plot(xs, [point.peak_rss_mb for point in points], marker="s", color="#c1121f", linewidth=1)
            memory.set_ylim(0, 1.4 * max(point.peak_rss_mb for point in points))
            memory.set_ylabel("peak MB", color="#c1121f")
