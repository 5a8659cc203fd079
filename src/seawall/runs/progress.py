"""Progress for people: a bar on a terminal, one line a minute elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_EVERY = 60.0


class Reporter(Protocol):
    """Where stages tell what they do."""

    def stage(self, title: str) -> None:
        """A stage begins."""
        ...

    def step(self, what: str, done: int, total: int) -> None:
        """Part of a stage moved on."""
        ...

    def say(self, text: str) -> None:
        """A line worth reading."""
        ...


@final
class Quiet:
    """Says nothing: for `--json` and for use as a library."""

    def stage(self, title: str) -> None:
        """Nothing."""

    def step(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@final
class TerminalReporter:
    """A bar with the remaining time on a terminal; elsewhere a line when a part begins, each minute, and at its end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> TerminalReporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, title: str) -> None:
        """Prints the title with the time since the start."""
        self._clear()
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        self._console.print(f"[dim]{minutes:02d}:{seconds:02d}[/dim] [bold]{title}[/bold]")

    def step(self, what: str, done: int, total: int) -> None:
        """Moves the bar, or prints a line when one is due."""
        if what != self._what:
            self._clear()
            self._what = what
            self._task = self._bar.add_task(what, total=total)
            self._told = time.monotonic()
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        due = time.monotonic() - self._told > _EVERY
        if not self._console.is_terminal and due and done < total:
            self._told = time.monotonic()
            self._console.print(f"  {what}: {done} of {total}", markup=False)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(f"  {text}", markup=False)
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task, self._what = None, ""
