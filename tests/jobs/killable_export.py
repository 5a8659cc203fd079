"""Goes on with a run in processes of their own that end themselves, for real, at given moments of Export.

Usage: killable_export.py RECIPE FOLDER [MOMENT:SIGNAL ...]. The moments: `delta` (the delta's tensors are written),
`weights` (the checkpoint is written, its hashes are not), `probed` (before the fresh process starts), `fresh` (while it
runs), `moving` (one file of the checkpoint is in its place), `card` (everything but the marker is written). The last
attempt is not ended. The exit statuses are printed as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import seawall.artifacts.store
import seawall.jobs.export
import seawall.models.files.parity
import seawall.models.files.save
import seawall.runs.stage
from commands import FreshModules
from seawall.cli.app import run as run_command


def end(module: Any, name: str, number: int, *, when: Callable[..., bool] = lambda *_: True) -> None:
    """Sends this process a signal where it calls a module's function."""
    original = vars(module)[name]

    def function(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    vars(module)[name] = function


class EndingSubprocess:
    """Starts the fresh process, then ends this one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def run(self, command: list[str], **settings: Any) -> None:
        del settings
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            os.kill(os.getpid(), self._number)


def end_while_moving(number: int) -> None:
    """Sends this process a signal before the second file of the checkpoint is moved."""
    moved: list[Path] = []
    rename = Path.rename

    def counted(path: Path, target: Path) -> Path:
        if path.parent.name == "checkpoint":
            if moved:
                os.kill(os.getpid(), number)
            moved.append(path)
        return rename(path, target)

    vars(seawall.jobs.export)["Path"].rename = counted


def arm(moment: str, number: int) -> None:
    """Ends this process when it comes to a moment."""
    if moment == "delta":
        end(seawall.artifacts.store, "save_document", number, when=lambda path, *_: path.parent.name == "delta.partial")
    elif moment == "weights":
        end(seawall.models.files.save, "hash_files", number)
    elif moment == "probed":
        end(seawall.jobs.export, "compare_in_fresh_process", number)
    elif moment == "fresh":
        vars(seawall.models.files.parity)["subprocess"] = EndingSubprocess(number)
    elif moment == "moving":
        end_while_moving(number)
    else:
        end(seawall.runs.stage, "flush_tree", number, when=lambda folder: folder.name == "model.partial")


def attempt(recipe: str, folder: str, ending: str | None) -> int:
    """Exit status of an attempt; negative for the signal that ended it. Forked: importing torch takes seconds."""
    process = os.fork()
    if process == 0:
        vars(seawall.models.files.parity)["subprocess"] = FreshModules()
        if ending is not None:
            moment, _, number = ending.partition(":")
            arm(moment, int(number))
        sys.argv = ["seawall", "run", recipe, "--output", folder, "--json"]
        try:
            run_command()
        except SystemExit as exit_:
            os._exit(int(exit_.code or 0))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    gc.freeze()
    with Path(os.devnull).open("w") as nowhere:
        output, out = os.dup(1), nowhere.fileno()
        os.dup2(out, 1)  # the runs print their summary
        statuses = [attempt(sys.argv[1], sys.argv[2], ending) for ending in (*sys.argv[3:], None)]
        os.write(output, json.dumps(statuses).encode())
