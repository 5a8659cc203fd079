"""The verdict against the recipe's bounds, in a sentence, from `gate` of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seawall.artifacts.groups import ATTACK, GOLD, NONE_SCORED, group_name
from seawall.report.wording import amount, percent, plain_name

UNSET = (
    "This page gives no verdict. Set bounds in the recipe's section gate, such as max_asr: 0.1, and run the recipe "
    "again; or check this run with seawall gate RUN --max-asr 0.1."
)


@dataclass(frozen=True, slots=True)
class BoundsVerdict:
    """Whether a run keeps its recipe's bounds.

    Args:
        text: the verdict in a few words: `Passes 4 of 5 bounds`.
        reasons: a sentence for each bound that fails, or that was not checked.
        effect: `better` where all hold, `worse` where one does not, `unclear` without bounds.
    """

    text: str
    reasons: tuple[str, ...] = ()
    effect: str = "unclear"


def bounds_verdict(summary: Mapping[str, Any]) -> BoundsVerdict:
    """The verdict of a run; says how to set bounds where there are none."""
    gate = summary.get("gate")
    if not gate:
        return BoundsVerdict("No bounds are set", (UNSET,))
    bounds = list(gate["bounds"])
    if gate["problem"]:
        return BoundsVerdict(f"{amount(len(bounds), 'bound')} not checked", (f"{gate['problem']}.",), "worse")
    failed = {name: [row for row in gate["checks"] if row["bound"] == name and not row["passed"]] for name in bounds}
    reasons = tuple(f"Fails {name}: {'; '.join(map(_reason, rows))}." for name, rows in failed.items() if rows)
    passed = len(bounds) - len(reasons)
    if not reasons:
        return BoundsVerdict(f"Passes {'its bound' if passed == 1 else f'all {passed} bounds'}", effect="better")
    return BoundsVerdict(f"Passes {passed} of {amount(len(bounds), 'bound')}", reasons, "worse")


def _reason(row: Mapping[str, Any]) -> str:
    """One check that fails: group, estimate, deciding end of the interval, limit."""
    measured = NONE_SCORED if row["measured"] is None else percent(row["measured"])
    end = "not a number" if row["decisive"] is None else percent(row["decisive"])
    side = "down to" if row["bound"].startswith("min_") else "up to"
    return f"{_name(row['group'])} {measured}, {side} {end} in the 95% interval, limit {percent(row['limit'])}"


def _name(group: str) -> str:
    if group.startswith(ATTACK):
        return plain_name(group.removeprefix(ATTACK))
    return group_name(GOLD) if group == GOLD else group_name(group)
