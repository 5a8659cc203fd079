"""Fine-tuning as the terminal and the report show it, in the reader's words."""

from __future__ import annotations

from rich.table import Table

from seawall.artifacts.tuning import ATTACK, HARMFUL, TASK, Spread, TuningResult
from seawall.config.tune import TuneMethod
from seawall.evaluation.suite import BENIGN, BORDERLINE

SHOWN = (HARMFUL, ATTACK, BORDERLINE, BENIGN, TASK)
_HEADS = {
    HARMFUL: "harmful rate",
    ATTACK: "attack success",
    BORDERLINE: "over-refusal",
    BENIGN: "benign compliance",
    TASK: "task score",
}
_METHODS: dict[TuneMethod | None, str] = {
    None: "before",
    "sft": "plain LoRA (sft)",
    "asft": "AsFT (asft)",
    "reference": "AsFT, the authors' projector (reference)",
    "l2": "no direction is safe (l2, control)",
    "random": "random directions (random, control)",
    "safelora": "projected afterwards (safelora)",
    "mixing": "safe rows mixed in (mixing)",
}


def method_name(method: TuneMethod | None) -> str:
    """What a method is, in a few words."""
    return _METHODS[method]


def tuning_table(found: TuningResult) -> Table:
    """One row per method: means over seeds with their intervals."""
    groups = [name for name in SHOWN if name in found.figures]
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for group in groups:
        table.add_column(_HEADS[group], justify="right")
    table.add_column("seeds", justify="right")
    for method in (None, *found.methods):
        spreads = [_text(found.spread(method, group)) for group in groups]
        table.add_row(method_name(method), *spreads, "" if method is None else str(len(found.of_method(method))))
    return table


def _text(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.mean:.1%} [{spread.low:.1%}, {spread.high:.1%}]"
