"""What the demonstration says while it works: live bars on a terminal, plain lines in a pipe or a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_STEP_S = 5.0


class Bars:
    """Progress of several things at once; a thing is named by its label."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console = console
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def show(self, label: str, done: float, total: float, detail: str) -> None:
        """Say how far a thing is; `done` equal to `total` is its end. A total of 0 is not known yet."""
        if self._progress is not None:
            if label not in self._tasks:
                self._tasks[label] = self._progress.add_task(label, total=None, detail="")
            self._progress.update(self._tasks[label], completed=done, total=total or None, detail=detail)
            return
        is_end = total > 0 and done >= total
        previous = self._told.get(label)
        now = time.monotonic()
        if previous == float("inf") or (not is_end and previous is not None and now - previous < _PLAIN_STEP_S):
            return
        if previous is not None or is_end:
            share = f"{done / total:4.0%}" if total else "    "
            self._console.print(f"  {share}  {label}  {detail}", highlight=False)
        self._told[label] = float("inf") if is_end else now


class Teller:
    """Everything that is printed goes through here."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._start = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin a part of the story; says how long it has been going on."""
        self.console.print(f"\n[bold green]{title}[/]  [dim]{time.monotonic() - self._start:.1f} s[/]")

    def say(self, text: str) -> None:
        """A line; its text is taken as it is."""
        self.console.print(f"  {text}", markup=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table."""
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, 160)
        self.console.print(table)

    @contextmanager
    def bars(self) -> Iterator[Bars]:
        """Bars that move while the block lasts."""
        if not self.console.is_terminal:
            yield Bars(self.console, None)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=32, complete_style="green", finished_style="green"),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("[dim]{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bars(self.console, progress)
