"""Evaluations as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from seawall.artifacts.evaluation import SIGNIFICANT, CapabilityScore, Contrast, Difference, EvalResult, Rate
from seawall.artifacts.groups import CAPABILITY, NONE_SCORED, WRAPPING, group_name

NamedResults = Sequence[tuple[str, EvalResult]]
"""("before" or "after", evaluation)."""


def headline_table(rates: NamedResults, changes: Mapping[str, Difference]) -> Table:
    """One row per group, one column per evaluation: rates with 95 % intervals, and their paired change.

    Args:
        rates: the evaluations.
        changes: after minus before of every group (and `wrapping:MEASURE`, `capability:TASK METRIC`) on the same
            prompts; empty for a single evaluation.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("measure", overflow="fold")
    for name, _ in rates:
        table.add_column(name, justify="right", no_wrap=True)
    if changes:
        table.add_column("points", justify="right", no_wrap=True)
    groups: Mapping[str, Rate] = rates[0][1].groups
    for group in groups:
        moved = [_change(changes[group])] if changes else []
        table.add_row(_named(group, rates), *[_rate(result.groups.get(group)) for _, result in rates], *moved)
    for measure, contrasts in _wrapping(rates).items():
        key = f"{WRAPPING}{measure}"
        moved = [_change(changes[key]) if key in changes else ""] if changes else []
        table.add_row(group_name(key), *map(_points, contrasts), *moved)
    if rates[0][1].gold_loss is not None:
        table.add_row("loss on gold answers", *[f"{result.gold_loss:.4f}" for _, result in rates])
    for row in zip(*[result.capability for _, result in rates], strict=True):
        name = f"{row[0].task} {row[0].metric}"
        moved = [_change(changes[f"{CAPABILITY}{name}"])] if changes else []
        table.add_row(name, *map(_score, row), *moved)
    return table


def length_table(result: EvalResult) -> Table:
    """One row per group, one column per length at which replies were judged."""
    table = Table(box=None, pad_edge=False)
    table.add_column("reply length, tokens", no_wrap=True)
    for length in next(iter(result.lengths.values())):
        table.add_column(str(length), justify="right")
    for group, rates in result.lengths.items():
        table.add_row(group_name(group), *map(_rate, rates.values()))
    return table


def _named(group: str, rates: NamedResults) -> str:
    """The group's name, with the number of replies of each evaluation that evade and that could not be judged."""
    sides = [result.groups[group] for _, result in rates if group in result.groups]
    counts = {"evade": [side.evades for side in sides], "unscored": [side.unscored for side in sides]}
    told = [f"{'/'.join(map(str, count))} {word}" for word, count in counts.items() if any(count)]
    return group_name(group) + (f" ({', '.join(told)})" if told else "")


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.rate is None:
        return NONE_SCORED
    return f"{rate.rate:6.1%} [{100 * rate.low:.1f}\u2013{100 * rate.high:.1f}]"


def p_text(p: float) -> str:
    """`p=.012`, `p<.001`."""
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("=0", "=")


def _wrapping(rates: NamedResults) -> dict[str, list[Contrast]]:
    """The measures of every evaluation; empty where an evaluation lacks them."""
    measured = [result.wrapping.measures() for _, result in rates if result.wrapping is not None]
    if len(measured) < len(rates):
        return {}
    return {name: [measures[name] for measures in measured] for name in measured[0]}


def _points(contrast: Contrast) -> str:
    """A difference of rates in points."""
    if contrast.difference is None:
        return NONE_SCORED
    low, high = (f"{100 * end:+z.1f}" for end in (contrast.low, contrast.high))
    return f"{100 * contrast.difference:+6.1f} [{low} to {high}]"


def nothing_scored(rates: NamedResults) -> str | None:
    """A line that names the groups of which no reply could be judged; None where every group has a rate."""
    empty = [
        f"{group_name(group)} ({name}: {rate.n} replies)"
        for name, result in rates
        for group, rate in result.groups.items()
        if rate.rate is None
    ]
    return f"nothing could be scored, so there is no rate: {', '.join(empty)}" if empty else None


def _change(moved: Difference) -> str:
    """The change in points with its p-value; `unclear` where the interval holds 0 despite a small p-value."""
    disagrees = moved.p < SIGNIFICANT and not moved.is_clear
    return f"{100 * moved.difference:+z.1f}, {p_text(moved.p)}" + (", unclear" if disagrees else "")


def _score(score: CapabilityScore) -> str:
    return f"{score.score:6.1%} \u00b1 {100 * score.stderr:.1f}"
