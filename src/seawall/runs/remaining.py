"""The time left of a run, from the relative costs of its stages and the time that the finished ones took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpectedStage:
    """A stage of a run.

    Attributes:
        title: beginning of the title that the stage reports.
        cost: in any unit that the stages of the run share.
        seconds: of work whose time does not follow from the cost, such as writing files.
    """

    title: str
    cost: float
    seconds: float = 0.0


class RemainingTime:
    """Estimates the time left.

    A stage that reports no step was skipped, or costs nothing: it counts neither for the speed nor as work left. The
    first stage with a cost must be over before there is an estimate.
    """

    def __init__(self, stages: Sequence[ExpectedStage], clock: Callable[[], float] = time.monotonic) -> None:
        self._stages, self._clock = tuple(stages), clock
        self._index, self._begun, self._has_steps = -1, clock(), False
        self._seconds = self._cost = 0.0

    def begin(self, title: str) -> bool:
        """A stage begins; if it is expected, the one before it is over. Returns whether it is."""
        later = range(self._index + 1, len(self._stages))
        index = next((index for index in later if title.startswith(self._stages[index].title)), None)
        if index is None:
            return False
        begun = self._clock()
        if self._has_steps:
            self._seconds += begun - self._begun
            self._cost += self._stages[self._index].cost
        self._index, self._begun, self._has_steps = index, begun, False
        return True

    def step(self) -> None:
        """The current stage does some work."""
        self._has_steps = True

    @property
    def place(self) -> str:
        """The number of the current stage: `stage 2 of 6`."""
        return f"stage {self._index + 1} of {len(self._stages)}"

    @property
    def seconds(self) -> float | None:
        """Seconds left; None as long as no stage with a cost is over."""
        if not self._cost or self._index < 0:
            return None
        speed = self._seconds / self._cost
        times = [speed * stage.cost + stage.seconds for stage in self._stages[self._index :]]
        return max(0.0, times[0] - (self._clock() - self._begun)) + sum(times[1:])

    @property
    def text(self) -> str:
        """The time left in words; empty where it is unknown."""
        seconds = self.seconds
        if seconds is None:
            return ""
        minutes = round(seconds / 60)
        if minutes < 1:
            return "less than a minute left"
        return f"about {minutes} min left" if minutes < 90 else f"about {seconds / 3600:.1f} h left"
