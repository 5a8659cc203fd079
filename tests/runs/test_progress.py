"""The time left of a run, and what a log (no terminal) shows of a long stage."""

from __future__ import annotations

import io

import pytest

from seawall.runs import progress
from seawall.runs.console import PlainConsole
from seawall.runs.progress import Expecting, Quiet, TerminalReporter
from seawall.runs.remaining import ExpectedStage, RemainingTime

STAGES = (ExpectedStage("Profile", 1.0), ExpectedStage("Select", 0.0), ExpectedStage("Repair", 4.0))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


def test_the_speed_of_finished_stages_gives_the_time_of_the_others() -> None:
    clock = Clock()
    remaining = RemainingTime(STAGES, clock)
    assert remaining.begin("Profile: which experts?")
    remaining.step()
    assert not remaining.begin("Loading lab")
    clock.now = 60.0
    assert remaining.text == ""  # no stage is over
    assert remaining.begin("Select: the experts")
    assert (remaining.place, remaining.seconds, remaining.text) == ("stage 2 of 3", 240.0, "about 4 min left")
    assert remaining.begin("Repair: the experts")
    clock.now = 120.0
    assert remaining.seconds == 180.0
    clock.now = 900.0
    assert remaining.text == "less than a minute left"


def test_a_skipped_stage_says_nothing_of_the_speed() -> None:
    clock = Clock()
    remaining = RemainingTime(STAGES, clock)
    remaining.begin("Profile")
    clock.now = 1.0
    remaining.begin("Repair")
    assert remaining.seconds is None


def test_files_take_their_own_time_at_any_speed() -> None:
    clock = Clock()
    remaining = RemainingTime((*STAGES, ExpectedStage("Export", 0.0, seconds=90.0)), clock)
    remaining.begin("Profile")
    remaining.step()
    clock.now = 60.0
    remaining.begin("Repair")
    assert remaining.seconds == 240.0 + 90.0
    remaining.begin("Export: delta")
    clock.now = 90.0
    assert remaining.seconds == 60.0


def test_long_runs_are_told_in_hours() -> None:
    clock = Clock()
    remaining = RemainingTime(STAGES, clock)
    remaining.begin("Profile")
    remaining.step()
    clock.now = 3600.0
    remaining.begin("Repair")
    assert remaining.text == "about 4.0 h left"


def test_a_log_has_a_line_a_minute_however_often_the_step_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, file = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with TerminalReporter(PlainConsole(file=file)) as reporter:
        for number in range(10):
            clock.now += 20.0
            reporter.step(f"condition {number}", 1, 2)
    assert file.getvalue().splitlines() == [f"  condition {number}: 1 of 2" for number in (3, 7)]


def test_stage_lines_of_a_log_are_not_wrapped() -> None:
    file, title = io.StringIO(), "Profile: " + "which experts? " * 20
    reporter = TerminalReporter(PlainConsole(file=file, width=40))
    assert isinstance(reporter, Expecting)
    assert not isinstance(Quiet(), Expecting)
    reporter.expect(STAGES)
    reporter.stage(title.strip())
    reporter.stage("Report")
    first, second = file.getvalue().splitlines()
    assert first.endswith("which experts? (stage 1 of 3)")
    assert second.endswith("Report")
