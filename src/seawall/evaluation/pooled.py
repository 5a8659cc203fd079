"""Paired changes between conditions, with all attack families pooled as a further group."""

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
    samples: Mapping[str, Samples], pairs: Iterable[tuple[str, str]], config: EvalConfig
) -> list[AuditChange]:
    """For each pair (condition, reference), the paired difference in every group, pooled attacks included."""
    rows = []
    for name, reference in pairs:
        sides = [with_pooled(samples[comparison]) for comparison in (reference, name)]
        for group, comparison in compare(*sides, resamples=config.bootstrap, seed=config.seed).items():
            change = comparison.change
            rows.append(AuditChange(name, reference, group, change.difference, change.low, change.high, change.p))
    return rows


def with_pooled(samples: Samples) -> list[Sample]:
    """The samples, with those of all attack families repeated as one group."""
    attacks = [sample for sample in samples if sample.group.startswith(ATTACK)]
    return [*(replace(sample, id=f"{POOLED}/{sample.id}", group=POOLED) for sample in attacks), *samples]
