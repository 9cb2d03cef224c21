"""`python -m benchmarks`: run the rows, print the table, keep the numbers."""

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from benchmarks import curves, load, report, service
from benchmarks.data import SIDES
from benchmarks.harness import Measured, machine, measure, not_run
from benchmarks.rows import ROWS

ROOT = Path(__file__).resolve().parent.parent
EVERY = [*ROWS, *service.ROWS, *load.ROWS]


def arguments() -> argparse.Namespace:
    """What the caller wants."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="ids of rows separated by commas, or texts in them")
    parser.add_argument("--size", choices=SIDES, default="tile", help="side of the scenes")
    parser.add_argument("--pairs", type=int, default=5, help="counted pairs of runs (default 5)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    parser.add_argument(
        "--curves", action="store_true", help="also time and memory against pixels, zones, dates, workers"
    )
    parser.add_argument("--folder", type=Path, default=Path("bench-output"), help="where scenes and outputs are kept")
    parser.add_argument(
        "--readme", type=Path, nargs="+", help="run nothing: draw the table of --json into these pages, and --plot"
    )
    return parser.parse_args()


def main() -> int:
    """Run; exit status 1 when a row could not be run or disagrees with its peer."""
    options = arguments()
    console = Console(width=max(Console().width, 150))
    if options.readme:
        return redraw(options, console)
    chosen = rows_like(options.only)
    if not chosen:
        ids = dict.fromkeys(row.id for row in EVERY)
        console.print(f"No row's id contains {options.only!r}. There are: {', '.join(ids)}.")
        return 2
    folder, side = options.folder.absolute(), SIDES[options.size]
    measured: list[Measured] = []
    document: dict[str, Any] = {"machine": machine() | {"size": options.size, "pairs": options.pairs}}
    for row in chosen:
        console.print(f"{row.id} against {row.peer} …")
        measured.append(run(row, folder, side, options.pairs))
        if measured[-1].note:
            console.print(f"[red]{measured[-1].note}", markup=True)
        document["rows"] = measured
        keep(document, options.json)
    if options.curves:
        for name, points in curves.measure(folder, side, console.print):
            document.setdefault("curves", {})[name] = points
            keep(document, options.json)
    console.print(report.table(measured, document["machine"]))
    if options.plot:
        report.plot(measured, document.get("curves", {}), options.plot)
    return 0 if all(row.agrees for row in measured) else 1


def rows_like(only: str) -> list[Any]:
    """Rows of the ids named, separated by commas; a text that is no id means all ids that contain it."""
    ids = {row.id for row in EVERY}
    wanted = [part.strip() for part in only.split(",")]
    return [row for row in EVERY if any(part == row.id if part in ids else part in row.id for part in wanted)]


def run(row: Any, folder: Path, side: int, pairs: int) -> Measured:
    """Measure a row; one that raises is one that could not be run, and the others go on."""
    try:
        if isinstance(row, service.ServiceRow):
            return service.measure(row, folder, side, pairs)
        return measure(row, folder, side, pairs)
    except Exception as error:  # noqa: BLE001 - an hour of other rows must not be lost; said in red, and in the exit status
        return not_run(row.id, row.peer, row.floor, f"{type(error).__name__}: {error}")


def keep(document: dict[str, Any], path: Path | None) -> None:
    """Write what is known so far."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def redraw(options: argparse.Namespace, console: Console) -> int:
    """Draw what was recorded into the pages."""
    recorded = report.load(options.json or ROOT / "benchmarks" / "recorded.json")
    for page in options.readme:
        text = page.read_text()
        if report.START not in text and "## The house" in text:
            place = f"## Speed\n\n{report.START}\n{report.END}\n\n![Times faster](docs/benchmarks.png)\n\n"
            text = text.replace("## The house", place + "## The house")
        page.write_text(report.drawn(text, recorded, is_short=page.name == "README.md"))
        console.print(f"{page} has {len(recorded.rows)} rows")
    if options.plot:
        report.plot(recorded.rows, recorded.curves, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
