"""The headline of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from seawall.artifacts.evaluation import EvalResult, Rate
from seawall.evaluation.suite import ATTACK

Named = Sequence[tuple[str, EvalResult]]
"""("before" or "after", its evaluation)."""


def headline_table(rates: Named) -> Table:
    """One row per group, one column per evaluation; rates with their 95 % intervals."""
    table = Table(box=None, pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for name, _ in rates:
        table.add_column(name, justify="right")
    groups: Mapping[str, Rate] = rates[0][1].groups
    for group in groups:
        table.add_row(group_name(group), *[_rate(result.groups.get(group)) for _, result in rates])
    if rates[0][1].gold_loss is not None:
        table.add_row("loss on gold answers", *[f"{result.gold_loss:.4f}" for _, result in rates])
    return table


def length_table(result: EvalResult) -> Table:
    """One row per group, one column per length at which replies were judged."""
    table = Table(box=None, pad_edge=False)
    table.add_column("after so many tokens", no_wrap=True)
    for length in next(iter(result.lengths.values())):
        table.add_column(str(length), justify="right")
    for group, rates in result.lengths.items():
        table.add_row(group_name(group), *map(_rate, rates.values()))
    return table


def group_name(group: str) -> str:
    """What a group measures, in words."""
    names = {
        "plain": "plain refusal",
        "borderline": "over-refusal",
        "benign": "benign compliance",
        "wrapped": "compliance, wrapped",
        "gold": "loss on gold answers",
    }
    if group.startswith(ATTACK):
        return f"attack: {group.removeprefix(ATTACK)}"
    return names.get(group, group)


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    unscored = f"  {rate.unscored} unscored" if rate.unscored else ""
    return f"{rate.rate:6.1%} [{rate.low:.1%}, {rate.high:.1%}]{unscored}"
