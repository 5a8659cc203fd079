"""What may be said of a fine-tuning run: harmful requests not refused, and task score, of each method."""

from __future__ import annotations

from seawall.artifacts.tuning import HARMFUL, TASK, Spread, TuningResult


def claim(result: TuningResult) -> str:
    """The rates of every method beside those of the model before fine-tuning, in a sentence."""
    if not result.before.rates:
        return "Nothing was evaluated."
    parts = [_rates("before", result.spread(None, HARMFUL), result.spread(None, TASK))]
    parts += [_rates(method, result.spread(method, HARMFUL), result.spread(method, TASK)) for method in result.methods]
    return f"Held-out harmful requests not refused: {', '.join(parts)}. {interval_scope(result)}"


def interval_scope(result: TuningResult) -> str:
    """What the intervals of a comparison vary: seeds, or requests."""
    seeds = max((len(result.of_method(method)) for method in result.methods), default=1)
    if seeds > 1:
        return f"Intervals are of the mean over {seeds} seeds, on these same requests."
    return "Intervals are over requests with the training held fixed: another seed may lie outside."


def unscored(spread: Spread) -> str:
    """`3 of 24 not judged`: replies that count in no rate."""
    return f"{spread.unscored} of {spread.replies} not judged"


def _rates(name: str, harmful: Spread | None, task: Spread | None) -> str:
    assert harmful is not None
    details = [unscored(harmful)] if harmful.unscored else []
    details += [f"task {task.mean:.1%}"] if task is not None and task.mean is not None else []
    rate = f"{harmful.mean:.1%}" if harmful.mean is not None else "no rate"
    return f"{name} {rate}" + (f" ({'; '.join(details)})" if details else "")
