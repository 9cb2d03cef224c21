"""`python -m benchmarks`: run the rows, print the table, keep the numbers."""

import argparse
import statistics
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.data import SIDES
from benchmarks.harness import Measured, machine, measure
from benchmarks.rows import ROWS


def table(rows: list[Measured]) -> Table:
    """The rows as people read them."""
    shown = Table(title="eorouter against its peers", caption=" · ".join(f"{k} {v}" for k, v in machine().items()))
    for heading in (
        "work",
        "peer",
        "ours s",
        "peer s",
        "ratio",
        "min … max",
        "floor",
        "Mpx/s",
        "MB ours/peer",
        "× bound",
    ):
        shown.add_column(heading, justify="left" if heading in {"work", "peer"} else "right")
    for row in rows:
        ratios = [b / a for a, b in zip(row.ours_s, row.peer_s, strict=True)]
        ours = statistics.median(row.ours_s)
        ratio = f"{row.ratio_median:.1f}×" if row.agrees else "disagrees"
        colour = "green" if row.agrees and row.ratio_median >= row.floor else "red"
        shown.add_row(
            row.id, row.peer, f"{ours:.2f}", f"{statistics.median(row.peer_s):.2f}", f"[{colour}]{ratio}",
            f"{min(ratios):.1f} … {max(ratios):.1f}", f"{row.floor:.1f}×", f"{row.mpixel_per_s:.0f}",
            f"{row.peak_rss_mb:.0f} / {row.peer_peak_rss_mb:.0f}", f"{ours / row.bound_s:.1f}",
        )  # fmt: skip
    return shown


def plot(rows: list[Measured], target: Path) -> None:
    """One bar per row: how many times faster than the peer, with the floor as a mark."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.6 * len(rows) + 1.5), layout="constrained")
    labels = [f"{row.id}\nvs {row.peer.split('(')[0].strip()}" for row in rows]
    axes.barh(labels, [row.ratio_median for row in rows], color="#2a6f97")
    for place, row in enumerate(rows):
        axes.plot([row.floor, row.floor], [place - 0.4, place + 0.4], color="#c1121f", linewidth=2)
        axes.text(row.ratio_median, place, f" {row.ratio_median:.1f}×", va="center")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the peer (red: floor)")
    figure.savefig(target, dpi=120)


def main() -> int:
    """Run; exit status 1 when a row disagrees with its peer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose id contains this text")
    parser.add_argument("--size", choices=SIDES, default="tile", help="side of the scenes")
    parser.add_argument("--pairs", type=int, default=5, help="counted pairs of runs (default 5)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument("--folder", type=Path, default=Path("bench-output"), help="where scenes and outputs are kept")
    options = parser.parse_args()
    console, measured = Console(width=max(Console().width, 150)), []
    for row in (row for row in ROWS if options.only in row.id):
        console.print(f"{row.id} against {row.peer} …")
        measured.append(measure(row, options.folder.absolute(), SIDES[options.size], options.pairs))
        if measured[-1].note:
            console.print(f"[red]{measured[-1].note}")
    console.print(table(measured))
    if options.json:
        options.json.write_bytes(
            msgspec.json.format(msgspec.json.encode({"machine": machine(), "rows": measured}), indent=2)
        )
    if options.plot and measured:
        plot(measured, options.plot)
    return 0 if all(row.agrees for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
