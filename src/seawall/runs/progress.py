"""Progress display: a bar on a terminal, a line per minute elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, final, runtime_checkable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from seawall.runs.console import PlainConsole
from seawall.runs.remaining import ExpectedStage, RemainingTime
from seawall.visible import visible_line

_SECONDS_BETWEEN_LINES = 60.0


class Reporter(Protocol):
    """Receives the progress of a run."""

    def stage(self, title: str) -> None:
        """Called when a stage begins."""
        ...

    def step(self, what: str, done: int, total: int) -> None:
        """Called as a part of a stage advances."""
        ...

    def say(self, text: str) -> None:
        """Called with a message for the user."""
        ...


@runtime_checkable
class Expecting(Protocol):
    """A reporter that shows the time left of a run."""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Called before the first stage."""
        ...


@final
class Quiet:
    """Shows nothing: for `--json` and for use as a library."""

    def stage(self, title: str) -> None:
        """Does nothing."""

    def step(self, what: str, done: int, total: int) -> None:
        """Does nothing."""

    def say(self, text: str) -> None:
        """Does nothing."""


@final
class TerminalReporter:
    """A progress bar with the remaining time on a terminal; elsewhere a line per stage and per minute."""

    def __init__(self, console: PlainConsole | None = None) -> None:
        self._console = console or PlainConsole(stderr=True)
        self._bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[run]}", style="dim", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._remaining = RemainingTime(())
        self._task: TaskID | None = None
        self._what = ""
        self._begun = self._last_line = time.monotonic()

    def __enter__(self) -> TerminalReporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Announces the stages of the run, for the time left."""
        self._remaining = RemainingTime(stages)

    def stage(self, title: str) -> None:
        """Prints the title with the elapsed time, and the number of the stage and the time left where known."""
        self._clear()
        is_expected = self._remaining.begin(title)
        texts = (self._remaining.place, self._remaining.text) if is_expected else ()
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        place = ", ".join(filter(None, texts))
        self._console.print(
            Text.assemble(
                *((f"{minutes:02d}:{seconds:02d}", "dim"), " ", (visible_line(title), "bold")),
                (f" ({place})" if place else "", "dim"),
            ),
            soft_wrap=not self._console.is_terminal,
        )

    def step(self, what: str, done: int, total: int) -> None:
        """Advances the bar, or prints a line once a minute."""
        self._remaining.step()
        text = self._remaining.text
        if what != self._what:
            self._clear()
            self._what = what
            self._task = self._bar.add_task(visible_line(what), total=total, run="")
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, run=f"run: {text}" if text else "")
        due = time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and due and done < total:
            self._last_line = time.monotonic()
            self._console.print(f"  {what}: {done} of {total}" + (f"; run: {text}" if text else ""))

    def say(self, text: str) -> None:
        """Prints the message."""
        self._console.print(f"  {text}", soft_wrap=not self._console.is_terminal)
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task, self._what = None, ""
