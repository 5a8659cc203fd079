"""Refuses inputs that contradict each other, so that no page certifies a model with two different numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seawall.artifacts.groups import ATTACK, GROUPS
from seawall.errors import ArtifactError
from seawall.report.inputs import GroupRow, ReportInputs


def check(inputs: ReportInputs) -> None:
    """Compares the rates of the evaluation with those of `summary.json`, and the sizes of the two charts of layers.

    Raises:
        ArtifactError: two parts of the run contradict each other.
    """
    _check_layers(inputs)
    for row in inputs.groups:
        rates = _summary_rates(inputs.summary, row)
        for when, rate in (("before", row.before), ("after", row.after)):
            if rate is not None and rates is not None and not _agree(rates[when]["rate"], rate.rate):
                raise ArtifactError(
                    f"summary.json and the samples disagree on {row.group} {when} the repair",
                    got=f"a rate of {rate.rate} from the samples",
                    expected=f"{rates[when]['rate']} as in summary.json",
                    remedy="run the evaluation again",
                )


def _agree(first: float | None, second: float | None) -> bool:
    """Whether two rates are the same; None where no reply was scored."""
    return first == second if first is None or second is None else math.isclose(first, second)


def _summary_rates(summary: Mapping[str, Any], row: GroupRow) -> Mapping[str, Any] | None:
    if row.is_attack:
        return summary.get("attacks", {}).get(row.group.removeprefix(ATTACK)) or None
    return summary.get(GROUPS[row.group].summary) or None


def _check_layers(inputs: ReportInputs) -> None:
    experts, drift = inputs.experts, inputs.drift
    if experts is not None and drift and len(drift) != len(experts.layers):
        raise ArtifactError(
            "the routing drift cannot be shown",
            got=f"{len(drift)} layers",
            expected=f"{len(experts.layers)} layers as the selected experts have",
            remedy="run profile, select and repair again",
        )
