"""What a training writes down of itself in its stage, and what the stage is called."""

from __future__ import annotations

from pathlib import Path

from seawall.artifacts.store import load_document, save_document
from seawall.artifacts.tuning import TuningRow
from seawall.config.tune import TuneMethod

ANCHOR = "tune/anchor"
"""The stage of the anchor."""
_FILE, _KIND = "training.json", "training"


def stage_name(method: TuneMethod, seed: int) -> str:
    """The stage of a training."""
    return f"tune/{method}-seed{seed}"


def write_row(folder: Path, row: TuningRow) -> None:
    """Write a training's row, which has no rates yet."""
    save_document(folder / _FILE, _KIND, row.document())


def read_row(folder: Path) -> TuningRow:
    """Read what `write_row` wrote.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    return TuningRow.parsed(folder / _FILE, load_document(folder / _FILE, _KIND))
