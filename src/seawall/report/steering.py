"""Steering as the report shows it. Legend: `N` decoder layers, `P` positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.report.audits import AuditView


@dataclass(frozen=True)
class LayerGrid:
    """Effect of each layer's direction at each position on the refusal score.

    Args:
        values_NP: change of the mean score, below 0 for less refusal; None if not measured.
        positions: of the prompt's tokens, counted from its end.
        chosen: (layer, index in `positions`) of the chosen direction.
        dropped: (layer, index) -> reason against the choice.
    """

    values_NP: Sequence[Sequence[float | None]]
    positions: Sequence[int]
    chosen: tuple[int, int] | None = None
    dropped: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One mark of a scatter plot; `series` is a key of the plot's series."""

    label: str
    series: str
    x: float
    y: float
    chosen: bool = False


@dataclass(frozen=True)
class Scatter:
    """Marks over two measured axes.

    Args:
        title: spoken text, with what the plot shows.
        x, y: names of the axes.
        series: reader's name of every kind of mark, at most four, in the order of their colours.
        points: the marks.
        limit: largest value of x that could be chosen, drawn as a line.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, str]
    points: Sequence[Point]
    limit: float | None = None


@dataclass(frozen=True)
class ShareRow:
    """Share of the layer-level effect that a change recovers, as a fraction; None without a clear effect."""

    label: str
    share: AuditFigure | None
    paper: float | None = None


@dataclass(frozen=True)
class CandidateRow:
    """A candidate of the search as a row of a table."""

    label: str
    candidate: SteeringCandidate
    outcome: str


@dataclass(frozen=True)
class SteeringView:
    """One steering audit, and how it is shown.

    Args:
        result: the audit.
        question: method and controls.
        facts: (name, value) of extraction and search.
        grid: by layer and position.
        conditions: the model under each change, on held-out prompts.
        side_effect: effect by harmless divergence.
        routing: effect of each expert by its routing difference; None for a dense model.
        routing_note: meaning of that scatter plot, with its rank correlation.
        shares: effects of single experts relative to the layer's.
        candidates: the best of the search.
        hardening: cost of the hardening artifact, in a sentence; empty without one.
    """

    result: SteeringResult
    question: str
    facts: Sequence[tuple[str, str]]
    grid: LayerGrid
    conditions: AuditView
    side_effect: Scatter
    routing: Scatter | None = None
    routing_note: str = ""
    shares: Sequence[ShareRow] = ()
    candidates: Sequence[CandidateRow] = ()
    hardening: str = ""
