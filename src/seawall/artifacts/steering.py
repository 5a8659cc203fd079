"""Results of steering: every candidate of the search, the chosen ones, and the model under the chosen changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from seawall.artifacts.audit import AuditChange, AuditFigure, find_change, require_own_conditions
from seawall.artifacts.directions import Place
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import load_record, require, save_record

NAME = "steering.json"
STEER, HARDENING = "steer", "hardening"
"""The stage of `seawall steer`, and its folder for `seawall.load`."""
_KIND = "steering"

SteeringMode = Literal["suppress", "induce"]
"""Whether refusal is suppressed or induced."""
SteeringFamily = Literal["layer", "layer_strength", "expert", "random_expert", "all_experts", "pair", "triple"]
"""Owner of a candidate's direction: the residual stream (selected by its ablation; at the coefficients and under the
cap of the search for experts), one expert, a control, all experts of a layer, several."""


@dataclass(frozen=True, slots=True)
class SteeringCandidate:
    """One direction at one coefficient, with its effects on the prompts of the search.

    Attributes:
        family: owner of the direction.
        layer: decoder layer.
        experts: (MoE layer, expert) of each expert; empty for the residual stream.
        position: position of the direction, from the prompt's end.
        coefficient: factor of the direction, subtracted (suppress) or added (induce). A layer's direction is ablated
            without a coefficient: there it is that of the check by addition.
        prompts: number of prompts behind the refusal score, or without one behind the divergence; 0 if not measured.
        refusal_score: mean over the prompts whose refusal is to change, with the direction applied.
        harmless_kl: mean KL divergence of the next token on harmless prompts, original from changed, in nats.
        induced_score: mean refusal score of harmless prompts with the direction added.
        refused: share of refused replies in the second stage; None for candidates dropped before it.
        judged: number of replies behind `refused`.
        kept: whether it passed all checks, on all prompts.
        reason: of dropping it; empty if kept.
    """

    family: SteeringFamily
    layer: int
    experts: tuple[Place, ...]
    position: int
    coefficient: float
    prompts: int = 0
    refusal_score: float | None = None
    harmless_kl: float | None = None
    induced_score: float | None = None
    refused: float | None = None
    judged: int = 0
    kept: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SteeringCondition:
    """The model under a change, on held-out prompts.

    Attributes:
        name: names its samples: `samples/NAME.jsonl`.
        series: kind of change: `reference`, `layer`, `expert`, `site`, `control`, ...
        rates: by evaluation group.
        harmless_kl: KL divergence on held-out harmless prompts, in nats; None for the reference.
    """

    name: str
    series: str
    rates: Mapping[str, Rate]
    harmless_kl: float | None = None

    @property
    def amount(self) -> None:
        """None: conditions of steering differ in kind, where those of an audit may differ in amount."""
        return None


@dataclass(frozen=True, slots=True)
class SteeringResult:
    """One steering audit.

    Attributes:
        model_fingerprint: of the model.
        mode: whether refusal was suppressed or induced.
        candidates: of the search, controls included.
        chosen: name of a choice (`layer`, `expert`, `expert-constrained`, ...) -> its index in `candidates`.
        conditions: in the order of the report.
        changes: paired differences between conditions.
        figures: further numbers by name.
        claim: the conclusion that the numbers support, in a sentence or two.
        verdict: where refusal lies, by the controls (`methods.steer.verdict`); empty in results of earlier versions.
    """

    model_fingerprint: str
    mode: SteeringMode
    candidates: tuple[SteeringCandidate, ...]
    chosen: Mapping[str, int]
    conditions: tuple[SteeringCondition, ...] = ()
    changes: tuple[AuditChange, ...] = ()
    figures: Mapping[str, AuditFigure] = field(default_factory=dict)
    claim: str = ""
    verdict: Annotated[str, Field(exclude_if=lambda verdict: not verdict)] = ""

    def choice(self, name: str) -> SteeringCandidate | None:
        """The candidate chosen under that name; None if there is none."""
        return self.candidates[self.chosen[name]] if name in self.chosen else None

    def of_family(self, family: SteeringFamily) -> list[SteeringCandidate]:
        """All candidates of a family, in their order."""
        return [candidate for candidate in self.candidates if candidate.family == family]

    def condition(self, name: str) -> SteeringCondition:
        """The condition of that name."""
        return next(condition for condition in self.conditions if condition.name == name)

    def change(self, condition: str, reference: str, group: str) -> AuditChange | None:
        """The difference between two conditions in a group; None if not measured."""
        return find_change(self.changes, condition, reference, group)

    def save(self, folder: Path) -> None:
        """Write `steering.json`."""
        save_record(folder / NAME, _KIND, self)

    @classmethod
    def load(cls, folder: Path) -> SteeringResult:
        """Read `steering.json`.

        Raises:
            ArtifactError: the file is missing or damaged, or names an unknown candidate or condition.
        """
        path = folder / NAME
        result = load_record(path, _KIND, cls, later=("verdict",))
        require_own_conditions(path, [condition.name for condition in result.conditions], result.changes)
        count = len(result.candidates)
        valid = all(0 <= index < count for index in result.chosen.values())
        require(valid, path, f"choices among its {count} candidates")
        return result
