"""Refuses inputs that contradict themselves: a page that certifies a model must not show two different truths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seawall.artifacts.groups import ATTACK, GROUPS
from seawall.errors import ArtifactError
from seawall.report.inputs import GroupRow, ReportInputs


def check(inputs: ReportInputs) -> None:
    """Compares shapes, and the rates of the evaluation with those of `summary.json`.

    Raises:
        ArtifactError: two parts of the run contradict each other.
    """
    _check_shapes(inputs)
    for row in inputs.groups:
        said = _summary_rates(inputs.summary, row)
        for when, interval in (("before", row.before), ("after", row.after)):
            if interval is not None and said is not None and not math.isclose(said[when]["rate"], interval.rate):
                raise ArtifactError(
                    f"summary.json and the samples disagree on {row.group} {when} the repair",
                    got=f"a rate of {interval.rate} from the samples",
                    expected=f"{said[when]['rate']} as in summary.json",
                    remedy="run the evaluation again",
                )


def _summary_rates(summary: Mapping[str, Any], row: GroupRow) -> Mapping[str, Any] | None:
    if row.is_attack:
        found = summary.get("attacks", {}).get(row.group.removeprefix(ATTACK))
    else:
        found = summary.get(GROUPS[row.group].summary)
    return found or None


def _check_shapes(inputs: ReportInputs) -> None:
    layers = len(inputs.gaps)
    sizes = {
        "the selected experts": len(inputs.selected),
        "the routing drift": len(inputs.drift) or layers,
    }
    for what, size in sizes.items():
        if size != layers:
            _refuse(what, f"{size} layers", f"{layers} layers as the activation gap has")
    experts = {len(row) for row in inputs.gaps}
    if len(experts) > 1:
        _refuse("the activation gap", f"rows of {sorted(experts)} experts", "the same number in every layer")
    largest = max((expert for layer in inputs.selected for expert in layer), default=-1)
    if largest >= max(experts, default=0):
        _refuse("the selected experts", f"expert {largest}", f"at most {max(experts, default=0) - 1}")


def _refuse(what: str, got: str, expected: str) -> None:
    raise ArtifactError(
        f"{what} cannot be shown", got=got, expected=expected, remedy="run profile, select and repair again"
    )
