"""A direction that is added at inference to make a model refuse more, with its measured effects and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.evaluation import MAX_PLAIN_REFUSAL_DROP, Rate
from seawall.artifacts.groups import PLAIN, group_of
from seawall.artifacts.store import load_record, require, save_record
from seawall.errors import ArtifactError

NAME = "hardening"
_ROUNDING = 1e-9
"""Differences of rates below this are errors of floating-point numbers."""


@dataclass(frozen=True, slots=True)
class Effect:
    """The rate of an evaluation group on held-out prompts, before and with the direction.

    `difference` is paired, with its 95 % interval over goals and its p-value.
    """

    before: Rate
    after: Rate
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False)
class Hardening:
    """`x <- x + coefficient * vector` at the input of a decoder layer, on every token.

    Only directions that induce refusal are saved or loaded: the coefficient is above 0, held-out harmful prompts are
    refused at least as often with the direction as without, and refusal of plain harmful prompts falls by at most
    `MAX_PLAIN_REFUSAL_DROP`. Replies that evade or could not be judged count as the worse verdict.

    Attributes:
        mode: always `induce`.
        model_fingerprint: of the model that the direction is of.
        dtype: type of the weights at measurement, as `model.dtype` of a recipe.
        layer: decoder layer.
        position: position in the prompt that the direction is of, from the prompt's end.
        coefficient: factor of the direction.
        effects: by evaluation group; the effect on `borderline` is the cost in over-refusal.
        vector_D: mean of harmful minus mean of harmless prompts, float32.
    """

    mode: Literal["induce"] = field(default="induce", kw_only=True)
    model_fingerprint: str
    dtype: str
    layer: int
    position: int
    coefficient: float
    effects: Mapping[str, Effect]
    vector_D: Float[Tensor, " D"]

    def save(self, folder: Path) -> None:
        """Write `hardening.safetensors` and `hardening.json`.

        Raises:
            ArtifactError: the direction reduces refusals.
        """
        path = folder / f"{NAME}.json"
        _require_induced(path, self.coefficient, self.effects)
        save_record(path, NAME, replace(self, vector_D=self.vector_D.float()))

    @classmethod
    def load(cls, folder: Path) -> Hardening:
        """Read `hardening.safetensors` and `hardening.json`.

        Raises:
            ArtifactError: a file is missing or damaged, parts contradict each other, or the direction reduces refusals.
        """
        path = folder / f"{NAME}.json"
        hardening = load_record(path, NAME, cls)
        require(hardening.vector_D.ndim == 1, path, "the tensor vector_D of shape D")
        require(bool(hardening.vector_D.isfinite().all()), path, "finite numbers in vector_D")
        _require_induced(path, hardening.coefficient, hardening.effects)
        return hardening


def induces(effects: Mapping[str, Effect]) -> bool:
    """Whether harmful requests are refused at least as often over all their groups, and plain ones about as often.

    False if no harmful request was measured.
    """
    changes = _towards_refusal(effects)
    plain_drop = -changes.get(PLAIN, 0.0)
    return bool(changes) and sum(changes.values()) >= 0 and plain_drop <= MAX_PLAIN_REFUSAL_DROP + _ROUNDING


def _towards_refusal(effects: Mapping[str, Effect]) -> dict[str, float]:
    """Change of each group of harmful requests towards refusal, in the worst case of replies without a verdict.

    Groups of harmless requests are left out: more refusals there could hide fewer refusals of harmful requests.
    """
    changes = {}
    for group, effect in effects.items():
        higher = group_of(group).higher_is_better
        if group_of(group).is_harmful:
            before, after = (rate.worst(higher_is_better=higher) for rate in (effect.before, effect.after))
            changes[group] = after - before if higher else before - after
    return changes


def _require_induced(path: Path, coefficient: float, effects: Mapping[str, Effect]) -> None:
    """Refuse a direction that reduces refusals.

    Raises:
        ArtifactError: the coefficient is not above 0, nothing was measured, or harmful prompts are refused less often.
    """
    changes = _towards_refusal(effects)
    if not (math.isfinite(coefficient) and coefficient > 0 and induces(effects)):
        effect = ", ".join(f"{100 * change:+z.1f} points of refusal ({group})" for group, change in changes.items())
        raise ArtifactError(
            f"{path.name} would make a model refuse less",
            got=f"the coefficient {coefficient:g} and {effect or 'no measured effect on harmful requests'}",
            expected="a coefficient above 0 that induces refusal",
            remedy="seawall neither saves nor applies directions that reduce refusals; run `seawall steer` with mode "
            "induce",
        )
