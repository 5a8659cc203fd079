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


def _said(name: str, harmful: Spread | None, task: Spread | None) -> str:
    assert harmful is not None
    scored = "" if task is None else f" (task {task.mean:.1%})"
    return f"{name} {harmful.mean:.1%}{scored}"
