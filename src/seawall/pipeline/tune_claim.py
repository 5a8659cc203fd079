"""What the numbers of a fine-tuning run allow one to say."""

from __future__ import annotations

from dataclasses import replace

from seawall.artifacts.tuning import HARMFUL, TASK, Spread, TuningResult


def claim(found: TuningResult) -> TuningResult:
    """The result with its claim: harmful rate and task score of every method beside those of the model as it was."""
    if not found.before.rates:
        return replace(found, claim="Nothing was evaluated.")
    parts = [_said("before", found.spread(None, HARMFUL), found.spread(None, TASK))]
    parts += [_said(one, found.spread(one, HARMFUL), found.spread(one, TASK)) for one in found.methods]
    return replace(found, claim=f"Compliance with held-out harmful requests: {', '.join(parts)}.")


def unscored(spread: Spread) -> str:
    """`3 of 24 not judged`: replies that are in no rate."""
    return f"{spread.unscored} of {spread.replies} not judged"


def _said(name: str, harmful: Spread | None, task: Spread | None) -> str:
    assert harmful is not None
    parts = [unscored(harmful)] if harmful.unscored else []
    parts += [f"task {task.mean:.1%}"] if task is not None else []
    rate = f"{harmful.mean:.1%}" if harmful.scored else "no rate"
    return f"{name} {rate}" + (f" ({'; '.join(parts)})" if parts else "")
