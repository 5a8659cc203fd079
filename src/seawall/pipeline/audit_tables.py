"""Audits as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.evaluation import Rate
from seawall.pipeline.audit_bench import POOLED
from seawall.pipeline.audit_views import audit_view
from seawall.pipeline.headline import NONE_SCORED, group_name

_NAMES = {POOLED: "attack success", "generated": "generated tokens", "prompt": "prompt tokens"}


def audit_table(found: AuditResult) -> Table:
    """One row per condition, one column per group that the report shows."""
    view = audit_view(found)
    table = Table(box=None, pad_edge=False, title=view.title, title_justify="left")
    table.add_column("condition", overflow="fold")
    if view.amount is not None:
        table.add_column(view.amount, justify="right")
    for group in view.groups:
        table.add_column(_NAMES.get(group) or group_name(group), justify="right")
    for row, condition in zip(view.rows, found.conditions, strict=True):
        amount = [] if view.amount is None else [str(row.amount)]
        table.add_row(row.label, *amount, *(rate_text(condition.rates[group]) for group in view.groups))
    return table


def rate_text(rate: Rate) -> str:
    """A rate with its interval, and how many replies it leaves out."""
    if rate.unscored == rate.n:
        return NONE_SCORED
    unscored = f" ({rate.unscored} unscored)" if rate.unscored else ""
    return f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]{unscored}"
