"""What the report is given of a gene, as plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate


@dataclass(frozen=True)
class GeneRow:
    """One decoder layer: differences of the two models, of what it writes and of its output, by kind of prompt."""

    layer: int
    harmful: float
    benign: float
    stream_harmful: float
    stream_benign: float
    held: bool


@dataclass(frozen=True)
class GeneExpertRow:
    """The experts of one decoder layer: how many a gene keeps of how many, and what share of the squared norm of their
    updates and of the gate weight on harmful requests (None: not measured) that is; the best first.
    """

    layer: int
    kept: int
    experts: int
    norm_share: float
    used_share: float | None
    best: Sequence[int]


@dataclass(frozen=True)
class GeneRecoveryRow:
    """Held-out divergence with a share of each layer's experts alone, in nats per token."""

    share: float
    by: str
    harmful: float
    benign: float


@dataclass(frozen=True)
class GeneCurve:
    """Held-out divergence after an update, in nats per token."""

    step: int
    harmful: float
    benign: float


@dataclass(frozen=True)
class GeneView:
    """One gene.

    Args:
        claim: what came out, in a sentence.
        facts: (name, value) of what it is.
        layers: every scored layer; may be empty.
        curve: from before the first update on; may be empty.
        refusals: (who, how often harmful held-out requests are refused).
        experts: every layer whose stacks of experts it changes; may be empty.
        recovery: what some experts alone do; may be empty.
    """

    claim: str
    facts: Sequence[tuple[str, str]]
    layers: Sequence[GeneRow]
    curve: Sequence[GeneCurve]
    refusals: Sequence[tuple[str, Rate]] = ()
    experts: Sequence[GeneExpertRow] = ()
    recovery: Sequence[GeneRecoveryRow] = ()
