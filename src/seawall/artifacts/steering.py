"""What steering found: every candidate that was tried, what was chosen, and the model under the chosen changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seawall.artifacts.audit import AuditChange, AuditFigure, find_change
from seawall.artifacts.directions import Place
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import Fields, load_document, parse_fields, require, save_document

NAME = "steering.json"
STEER, HARDENING = "steer", "hardening"
"""The stage of `seawall steer`, and the folder in it that `seawall.load` reads."""
_KIND = "steering"

SteeringMode = Literal["suppress", "induce"]
"""Which way refusal is moved."""
SteeringFamily = Literal["layer", "expert", "random_expert", "all_experts", "pair", "triple"]
"""What a candidate is a direction of: the residual stream, one expert, a control, all experts of a layer, several."""


@dataclass(frozen=True, slots=True)
class SteeringCandidate:
    """One direction at one coefficient, and what it did on the prompts of the search.

    Attributes:
        family: what it is.
        layer: decoder layer.
        experts: (MoE layer, expert) of each expert; empty for the residual stream.
        position: of the prompt's end, from which the direction is.
        coefficient: how much of it is taken away (suppress) or added (induce). For a layer's direction, whose ablation
            takes no coefficient: of the check by addition.
        prompts: how many prompts its refusal score is from, or where it has none, its divergence; 0 where it was not
            measured.
        refusal_score: mean over the prompts whose refusal is to be moved, with the change.
        harmless_kl: mean divergence of the next token on harmless prompts, original from changed, in nats.
        induced_score: mean refusal score of harmless prompts with the direction added.
        refused: share of refused replies in the second stage; None where it did not get there.
        judged: how many replies that share is of.
        kept: whether it passed all checks and the numbers are from all prompts.
        reason: why it was dropped; empty where it was kept.
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
        series: `reference`, `layer`, `expert`, `site`, `control`, ...; conditions that belong together.
        rates: by evaluation group.
        harmless_kl: on held-out harmless prompts; None for the reference.
    """

    name: str
    series: str
    rates: Mapping[str, Rate]
    harmless_kl: float | None = None


@dataclass(frozen=True, slots=True)
class SteeringResult:
    """One steering audit.

    Attributes:
        model_fingerprint: of the model.
        mode: which way refusal was moved.
        candidates: all that were tried, controls too.
        chosen: what was chosen by its name (`layer`, `expert`, `expert-constrained`, ...): its place in `candidates`.
        conditions: in the order in which they are shown.
        changes: paired differences between them.
        figures: further numbers by name.
        claim: what the numbers allow one to say, in a sentence or two.
    """

    model_fingerprint: str
    mode: SteeringMode
    candidates: tuple[SteeringCandidate, ...]
    chosen: Mapping[str, int]
    conditions: tuple[SteeringCondition, ...] = ()
    changes: tuple[AuditChange, ...] = ()
    figures: Mapping[str, AuditFigure] = field(default_factory=dict)
    claim: str = ""

    def choice(self, name: str) -> SteeringCandidate | None:
        """What was chosen under that name, where something was."""
        at = self.chosen.get(name)
        return None if at is None else self.candidates[at]

    def of_family(self, family: SteeringFamily) -> list[SteeringCandidate]:
        """All candidates of a family, in their order."""
        return [one for one in self.candidates if one.family == family]

    def condition(self, name: str) -> SteeringCondition:
        """The condition of that name."""
        return next(one for one in self.conditions if one.name == name)

    def change(self, condition: str, reference: str, group: str) -> AuditChange | None:
        """The difference between two conditions in a group, where it was taken."""
        return find_change(self.changes, condition, reference, group)

    def save(self, folder: Path) -> None:
        """Write `steering.json`."""
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            mode=self.mode,
            candidates=self.candidates,
            chosen=dict(self.chosen),
            conditions=self.conditions,
            changes=self.changes,
            figures=dict(self.figures),
            claim=self.claim,
        )
        save_document(folder / NAME, _KIND, written.model_dump())

    @classmethod
    def load(cls, folder: Path) -> SteeringResult:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or names a candidate or condition that it does not have.
        """
        path = folder / NAME
        read = parse_fields(path, load_document(path, _KIND), _Fields)
        names = {one.name for one in read.conditions}
        known = all({one.condition, one.reference} <= names for one in read.changes)
        require(known and len(names) == len(read.conditions), path, "changes between its own, distinct conditions")
        there = all(0 <= at < len(read.candidates) for at in read.chosen.values())
        require(there, path, f"choices among its {len(read.candidates)} candidates")
        return cls(
            model_fingerprint=read.model_fingerprint,
            mode=read.mode,
            candidates=read.candidates,
            chosen=read.chosen,
            conditions=read.conditions,
            changes=read.changes,
            figures=read.figures,
            claim=read.claim,
        )


class _Fields(Fields):
    model_fingerprint: str
    mode: SteeringMode
    candidates: tuple[SteeringCandidate, ...]
    chosen: dict[str, int]
    conditions: tuple[SteeringCondition, ...]
    changes: tuple[AuditChange, ...]
    figures: dict[str, AuditFigure]
    claim: str
