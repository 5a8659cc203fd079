"""All attack families as one group, and paired changes between conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from seawall.artifacts.audit import AuditChange
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import ATTACK, POOLED
from seawall.config.eval import EvalConfig
from seawall.evaluation.compare import compare

Samples = Sequence[Sample]


def paired_changes(
    found: Mapping[str, Samples], pairs: Iterable[tuple[str, str]], config: EvalConfig
) -> list[AuditChange]:
    """For each (condition, reference) the paired difference in every group, all attack families pooled too."""
    rows = []
    for name, reference in pairs:
        sides = [with_pooled(found[one]) for one in (reference, name)]
        for group, one in compare(*sides, resamples=config.bootstrap, seed=config.seed).items():
            moved = one.change
            rows.append(AuditChange(name, reference, group, moved.difference, moved.low, moved.high, moved.p))
    return rows


def with_pooled(samples: Samples) -> list[Sample]:
    """The samples, and once more those of all attack families as one group."""
    attacks = [one for one in samples if one.group.startswith(ATTACK)]
    return [*(replace(one, id=f"{POOLED}/{one.id}", group=POOLED) for one in attacks), *samples]
