"""Audits as terminal tables."""

from __future__ import annotations

from rich.table import Table

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.groups import POOLED, group_name, rate_text
from seawall.methods.audit.methods import audit_view
from seawall.methods.audit.patching import ATTACK_REFUSAL

_NAMES = {
    ATTACK_REFUSAL: "attacks refused",
    POOLED: "attack success",
    "generated": "generated tokens",
    "prompt": "prompt tokens",
}


def audit_table(result: AuditResult) -> Table:
    """One row per condition, one column per group of the page."""
    view = audit_view(result)
    table = Table(box=None, pad_edge=False, title=view.title, title_justify="left")
    table.add_column("condition", overflow="fold")
    if view.amount is not None:
        table.add_column(view.amount, justify="right")
    for group in view.groups:
        table.add_column(_NAMES.get(group) or group_name(group), justify="right")
    for condition in result.conditions:
        amount = [] if view.amount is None else [str(condition.amount)]
        table.add_row(view.label(condition), *amount, *(rate_text(condition.rates[group]) for group in view.groups))
    return table
