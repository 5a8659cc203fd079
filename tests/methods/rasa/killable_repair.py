"""Repairs in processes of their own that end themselves, for real, at a given point.

Usage: killable_repair.py WHOLE FOLDER [POINT:COUNT ...]. Makes one attempt after the other at the same repair, each in
a new process that ends itself at the COUNT-th POINT: `update` (after an update), `validate` (before a measurement),
`measured` (after one), `writing` (checkpoint written but not yet in its place). The last attempt is not ended; what it
leaves goes to FOLDER/model.safetensors and FOLDER/rows.json. An attempt before all of them, which is not ended either,
leaves its own in WHOLE. The exit statuses are printed as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from small_repair import BEFORE, config, run_repair, small_model, state

import seawall.methods.rasa.repair.checkpoint
import seawall.methods.rasa.repair.run
from seawall.methods.rasa.repair import ValidationScores
from seawall.runs.files import publish


class Ender:
    """Counts points and ends the process at one of them."""

    def __init__(self, ending: str) -> None:
        self._point, _, count = ending.partition(":")
        self._left = int(count or 1)

    def reach(self, point: str) -> None:
        """May not return."""
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(folder: Path, ending: str) -> None:
    """One repair, or what is left of it."""
    ender = Ender(ending)

    def report(row: dict[str, Any]) -> None:
        ender.reach("measured" if row["phase"] == "validation" else "update")

    def validate() -> ValidationScores:
        ender.reach("validate")
        return BEFORE

    def publish_or_end(scratch: Path, path: Path) -> None:
        ender.reach("writing")
        publish(scratch, path)

    vars(seawall.methods.rasa.repair.checkpoint)["publish"] = publish_or_end
    vars(seawall.methods.rasa.repair.run)["CHECKPOINT_EVERY"] = 3
    moe = small_model()
    settings = config(weight_decay=0.1, expert={"lr": 1e-2, "routing": "replay"})
    result = run_repair(moe, folder / "checkpoints", settings, validate=validate, report=report)
    save_file(state(moe), folder / "model.safetensors")
    (folder / "rows.json").write_text(json.dumps([result.chosen, result.progress.rows]), encoding="utf-8")


def in_new_process(folder: Path, ending: str) -> int:
    """Exit status of an attempt; negative for the signal that ended it. Forked: importing torch takes seconds."""
    process = os.fork()
    if process == 0:
        attempt(folder, ending)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    gc.freeze()
    whole, folder = (Path(argument) for argument in sys.argv[1:3])
    statuses = [in_new_process(whole, "never")]
    statuses += [in_new_process(folder, ending) for ending in (*sys.argv[3:], "never")]
    sys.stdout.write(json.dumps(statuses))
