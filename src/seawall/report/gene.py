"""What the report is given of a gene, as plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.report.inputs import Interval


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
    """

    claim: str
    facts: Sequence[tuple[str, str]]
    layers: Sequence[GeneRow]
    curve: Sequence[GeneCurve]
    refusals: Sequence[tuple[str, Interval]] = ()
