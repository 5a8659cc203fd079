"""A direction that is added at inference to make a model refuse more, with its measured effects and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import group_of
from seawall.artifacts.store import load_record, require, save_record
from seawall.errors import ArtifactError

NAME = "hardening"


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

    Only directions that induce refusal are saved or loaded: the coefficient is above 0, and held-out harmful prompts
    are refused at least as often with the direction as without.

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
    """Whether harmful requests, over all their groups, are refused at least as often; False if none was measured."""
    changes = _towards_refusal(effects)
    return bool(changes) and sum(changes) >= 0


def _towards_refusal(effects: Mapping[str, Effect]) -> list[float]:
    """Change of each group of harmful requests towards refusal.

    Groups of harmless requests are left out: more refusals there could hide fewer refusals of harmful requests.
    """
    harmful = {group: effect.difference for group, effect in effects.items() if group_of(group).is_harmful}
    return [difference * (1 if group_of(group).higher_is_better else -1) for group, difference in harmful.items()]


def _require_induced(path: Path, coefficient: float, effects: Mapping[str, Effect]) -> None:
    """Refuse a direction that reduces refusals.

    Raises:
        ArtifactError: the coefficient is not above 0, nothing was measured, or harmful prompts are refused less often.
    """
    changes = _towards_refusal(effects)
    if not (math.isfinite(coefficient) and coefficient > 0 and induces(effects)):
        effect = f"{100 * sum(changes) / len(changes):+.1f} points of refusal" if changes else "no measured effect"
        raise ArtifactError(
            f"{path.name} would make a model refuse less",
            got=f"the coefficient {coefficient:g} and {effect}, mean over groups of harmful requests",
            expected="a coefficient above 0 that induces refusal",
            remedy="seawall neither saves nor applies directions that reduce refusals; run `seawall steer` with mode "
            "induce",
        )
