"""A gene as the report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.gene import Gene

BEST_EXPERTS = 5
"""Number of experts of a layer in the column of the best."""


@dataclass(frozen=True)
class GeneView:
    """One gene, and how it is shown.

    Args:
        gene: the gene.
        claim: its effect, in a sentence.
        facts: (name, value) of its identity.
        refusals: (model, what it was asked, refusal rate).
    """

    gene: Gene
    claim: str
    facts: Sequence[tuple[str, str]]
    refusals: Sequence[tuple[str, str, Rate]] = ()
