"""What the report is given of steering, as plain Python. Legend: `N` decoder layers, `P` positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seawall.artifacts.evaluation import Rate
from seawall.report.audits import AuditView


@dataclass(frozen=True)
class LayerGrid:
    """What the direction of each layer and position does to the refusal score.

    Args:
        values_NP: change of the mean score, below 0 for less refusal; None where it was not measured.
        positions: of the prompt's tokens, counted from its end.
        chosen: (layer, place in `positions`) of the chosen one.
        dropped: (layer, place) -> why it could not be chosen.
    """

    values_NP: Sequence[Sequence[float | None]]
    positions: Sequence[int]
    chosen: tuple[int, int] | None = None
    dropped: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One mark of a scatter; `label` says what it is, `series` names its kind."""

    label: str
    series: str
    x: float
    y: float
    chosen: bool = False


@dataclass(frozen=True)
class Scatter:
    """Marks over two measured axes.

    Args:
        title: for those who cannot see it, with what it shows.
        x, y: what the axes are.
        series: the reader's name of every kind of mark, at most four, in the order of their colours.
        points: the marks.
        limit: a value of x up to which something could be chosen, drawn as a line.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, str]
    points: Sequence[Point]
    limit: float | None = None


@dataclass(frozen=True)
class ShareRow:
    """How much of the layer-level effect something recovers, as a fraction; None where there is no clear effect."""

    label: str
    share: Rate | None
    paper: float | None = None


@dataclass(frozen=True)
class TriedRow:
    """A candidate of the search as a row of a table."""

    label: str
    position: int
    coefficient: str
    score: float | None
    kl: float | None
    refused: float | None
    verdict: str


@dataclass(frozen=True)
class SteeringView:
    """One measurement of steering.

    Args:
        mode: `suppress` or `induce`.
        question: how it was done, with its controls.
        claim: what the numbers allow one to say.
        facts: (name, value) of what was extracted and searched.
        grid: by layer and position.
        conditions: the model under each change, on held-out prompts.
        kls: harmless divergence of each condition, in their order; None where it was not measured.
        routing: effect of each expert by its routing difference; None for a dense model.
        routing_note: what that scatter says, with its rank correlation.
        side_effect: effect by harmless divergence.
        shares: what one expert recovers.
        tried: the best candidates of the search.
        hardening: what the artifact costs, in a sentence; empty where there is none.
    """

    mode: str
    question: str
    claim: str
    facts: Sequence[tuple[str, str]]
    grid: LayerGrid
    conditions: AuditView
    kls: Sequence[float | None]
    side_effect: Scatter
    routing: Scatter | None = None
    routing_note: str = ""
    shares: Sequence[ShareRow] = ()
    tried: Sequence[TriedRow] = ()
    hardening: str = ""
