"""The plan of a verb, whether it fits a device, and the settings with which it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seawall.errors import ConfigError
from seawall.models.plan.rates import Rates, seconds
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import Moment, Stage

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory of each device, in bytes, their number, and their name."""

    memory: int
    devices: int = 1
    name: str = "this GPU"


@dataclass(frozen=True, slots=True)
class Plan:
    """The needs of a verb: memory and disk in bytes, time in seconds.

    Attributes:
        verb: the verb.
        stages: its stages, in order.
        shapes: of the model.
        devices: number of devices that share the layers.
        rates: by which time is computed; None where none is known.
    """

    verb: str
    stages: tuple[Stage, ...]
    shapes: ModelShapes
    devices: int = 1
    rates: Rates | None = None

    @property
    def largest(self) -> tuple[Stage, Moment]:
        """The stage and the moment with the most memory on one device."""
        moments = ((stage, stage.largest(self.devices, self.shapes.layers)) for stage in self.stages)
        return max(moments, key=lambda pair: sum(self.terms(pair[1]).values()))

    def terms(self, moment: Moment) -> dict[str, int]:
        """The terms of a moment on the fullest device, without those of size 0."""
        return {name: size for name, size in moment.on_device(self.devices, self.shapes.layers).items() if size}

    def stage_peak(self, stage: Stage) -> int:
        """Peak memory of a stage on the fullest device."""
        return sum(self.terms(stage.largest(self.devices, self.shapes.layers)).values())

    def stage_seconds(self, stage: Stage) -> float | None:
        """Time of a stage; None where no rate is known."""
        return None if self.rates is None else seconds(stage.work, self.rates)

    @property
    def peak(self) -> int:
        """Peak memory of the fullest device."""
        return max(map(self.stage_peak, self.stages))

    @property
    def host(self) -> int:
        """Largest additional memory of a stage on the host."""
        return max(sum(stage.host.values()) for stage in self.stages)

    @property
    def disk(self) -> int:
        """Disk space of all stages."""
        return sum(size for stage in self.stages for size in stage.disk.values())

    @property
    def seconds(self) -> float | None:
        """Time of all stages; None where no rate is known."""
        return None if self.rates is None else sum(seconds(stage.work, self.rates) for stage in self.stages)

    def as_document(self) -> dict[str, Any]:
        """The plan as JSON: totals, terms of the largest moment, and the stages."""
        stage, moment = self.largest
        return {
            "verb": self.verb,
            "weights": self.shapes.weights,
            "peak": self.peak,
            "peak_stage": stage.name,
            "peak_moment": moment.name,
            "terms": self.terms(moment),
            "host": self.host,
            "disk": self.disk,
            "seconds": self.seconds,
            "devices": self.devices,
            "stages": [
                {
                    "name": stage.name,
                    "peak": self.stage_peak(stage),
                    "seconds": self.stage_seconds(stage),
                    "host": dict(stage.host),
                    "disk": dict(stage.disk),
                }
                for stage in self.stages
            ],
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a plan fits a budget.

    Attributes:
        fits: whether the peak is within the device's memory.
        peak: of the plan.
        budget: the device.
        settings: changes of the recipe with which it fits, in `--set` notation; empty where it fits or where no
            setting is enough.
    """

    fits: bool
    peak: int
    budget: Budget
    settings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The verdict in one line."""
        amounts = f"{self.peak / GIB:.1f} of {self.budget.memory / GIB:.1f} GiB"
        if self.budget.devices > 1:
            amounts += f" on the fullest of {self.budget.devices}"
        if self.fits:
            return f"fits {self.budget.name} ({amounts})"
        if self.settings:
            return f"does not fit {self.budget.name} ({amounts}): set {' '.join(self.settings)}"
        return f"does not fit {self.budget.name} ({amounts}), with no setting: use more or larger devices"


Change = tuple[str, str]
"""A key of the recipe, and its new value."""
Changes = tuple[Change, ...]


def judge_plan(
    plan: Plan, budget: Budget, changed: Callable[[Changes], Plan], ladder: Callable[[str], Sequence[str]]
) -> Verdict:
    """Whether a plan fits, and where it does not, settings with which it does.

    The settings of the largest moment are changed in turn, as far as they go, until the plan fits; then each is taken
    back as far as the plan still fits.

    Args:
        plan: of the recipe as it is.
        budget: the device.
        changed: the plan under changes of the recipe.
        ladder: values of a setting that take ever less memory, from the first to try.
    """
    changes: dict[str, str] = {}
    tried: set[str] = set()
    current = plan
    while current.peak > budget.memory:
        keys = [key for key in current.largest[1].settings if key not in tried and ladder(key)]
        if not keys:
            return Verdict(False, plan.peak, budget)
        tried.add(keys[0])
        lowered = {**changes, keys[0]: ladder(keys[0])[-1]}
        smaller = changed(tuple(lowered.items()))
        if smaller.peak < current.peak:
            changes, current = lowered, smaller
    for key in tuple(changes):
        unchanged = {name: value for name, value in changes.items() if name != key}
        gentler = [unchanged, *({**changes, key: value} for value in ladder(key))]
        changes = next(option for option in gentler if changed(tuple(option.items())).peak <= budget.memory)
    return Verdict(not changes, plan.peak, budget, tuple(f"{key}={value}" for key, value in changes.items()))


def parse_memory(text: str) -> int:
    """Bytes of an amount such as 24GB (powers of 1000) or 22.5GiB (powers of 1024).

    Raises:
        ConfigError: the text is no such amount.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError("unknown amount of memory", got=text, expected="a number with GB or GiB, such as 24GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
