"""Experiment trackers of a training, by Accelerate: TensorBoard, trackio, Weights & Biases and others.

A tracker gets numbers and nothing else: no prompt, no reply, no setting. What it sends where is its own configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from seawall.errors import ConfigError, SeawallError

Track = Callable[[Mapping[str, Any]], None]
"""Takes a row of the repair's progress: `phase`, `round`, `step` of an update, and numbers."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that Accelerate does not know, or whose package is not installed.

    Raises:
        ConfigError: names the first of them.
    """
    builtin = sorted(str(kind) for kind in LoggerType.list() if str(kind) != "all")
    installed = {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError("repair.trackers names an unknown tracker", got=name, expected=", ".join(builtin))
        if name in builtin and name not in installed:
            raise ConfigError(
                f"repair.trackers: {name} is not installed",
                remedy=f"pip install {name}, or leave it out; `seawall export tracker` writes the files afterwards",
            )


@contextmanager
def tracking(names: Sequence[str], project: str, folder: Path) -> Iterator[Track]:
    """Inside, rows go to the trackers, with the number of updates so far as step.

    Numbers are named as by `numbers_of`: `expert/loss`, `router/lr`, `validation/attack_success`.

    Args:
        names: trackers by Accelerate's names; none makes no folder and loads no package.
        project: name of the run in the trackers.
        folder: for the files of trackers that write some.

    Raises:
        ConfigError: a tracker is unknown or not installed.
        SeawallError: a tracker cannot be started.
    """
    require_trackers(names)
    with ExitStack() as stack:
        started = [_started(name, project, folder) for name in names]
        for tracker in started:
            stack.callback(tracker.finish)
        updates: dict[str, int] = {}

        def track(row: Mapping[str, Any]) -> None:
            phase = str(row["phase"])
            if "step" in row:
                updates[phase] = int(row["step"])
            for tracker in started:
                tracker.log(numbers_of(row), step=sum(updates.values()))

        yield track


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row for a tracker, as `PHASE/NAME`; without the round and the step, which place it."""
    return {f"{row['phase']}/{name}": float(value) for name, value in row.items() if _is_number(name, value)}


def _is_number(name: str, value: object) -> bool:
    return name not in ("step", "round") and isinstance(value, int | float) and not isinstance(value, bool)


def _started(name: str, project: str, folder: Path) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    PartialState()  # trackers log by Accelerate's logger, which needs it
    try:
        tracker: Any = kind(project, str(folder)) if kind.requires_logging_directory else kind(project)
        tracker.start()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        got = f"{type(error).__name__}: {error}"
        raise SeawallError(f"the tracker {name} cannot be started", got=got, remedy="leave it out") from error
    return tracker
