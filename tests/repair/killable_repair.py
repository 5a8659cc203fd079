"""A repair in a process of its own that ends itself, for real, at a given point.

Usage: killable_repair.py FOLDER [POINT COUNT]. It ends at the COUNT-th POINT: `update` (after an update), `validate`
(before a measurement), `measured` (after one), `writing` (checkpoint written but not yet in its place). What a repair
that was not ended leaves goes to FOLDER/model.safetensors and FOLDER/rows.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from small_repair import BEFORE, config, run_repair, small_model, state

import seawall.repair.checkpoint
import seawall.repair.run
from seawall.repair import ValidationScores
from seawall.runs.files import publish


class Ender:
    """Counts points and ends the process at one of them."""

    def __init__(self, point: str, count: int) -> None:
        self._point = point
        self._left = count

    def reach(self, point: str) -> None:
        """May not return."""
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, point: str = "never", count: str = "1") -> None:
    """One attempt."""
    ender = Ender(point, int(count))

    def report(row: dict[str, Any]) -> None:
        ender.reach("measured" if row["phase"] == "validation" else "update")

    def validate() -> ValidationScores:
        ender.reach("validate")
        return BEFORE

    def publish_or_end(scratch: Path, path: Path) -> None:
        ender.reach("writing")
        publish(scratch, path)

    vars(seawall.repair.checkpoint)["publish"] = publish_or_end
    vars(seawall.repair.run)["CHECKPOINT_EVERY"] = 3
    moe = small_model(num_hidden_layers=2)
    settings = config(weight_decay=0.1, expert={"lr": 1e-2, "routing": "replay"})
    result = run_repair(moe, folder / "checkpoints", settings, validate=validate, report=report, selected=None)
    save_file(state(moe), folder / "model.safetensors")
    (folder / "rows.json").write_text(json.dumps([result.chosen, result.progress.rows]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
