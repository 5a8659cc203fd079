"""A direction that makes a model refuse more while it runs, with what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import group_of
from seawall.artifacts.store import Fields, load_artifact, require, save_artifact
from seawall.errors import ArtifactError

NAME = "hardening"


@dataclass(frozen=True, slots=True)
class Effect:
    """The rate of an evaluation group on held-out prompts, before and with the direction, and how far it moved.

    `difference` is paired, with its 95 % interval over goals.
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

    Only what induces refusal can be one: the coefficient is above 0, and refusals of harmful held-out prompts do not
    become fewer.

    Attributes:
        model_fingerprint: of the model that it was made from and fits.
        dtype: type of the weights that it was measured with, as `model.dtype` of a recipe.
        layer: decoder layer.
        position: token of the prompt, from its end, that the direction is from.
        coefficient: how much of the direction is added.
        effects: what it does, by evaluation group; that of `borderline` is its cost in over-refusal.
        vector_D: mean of harmful minus mean of harmless prompts, float32.
    """

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
            ArtifactError: it makes the model refuse less.
        """
        path = folder / f"{NAME}.json"
        _require_induced(path, self.coefficient, self.effects)
        written = _Fields(
            mode="induce",
            model_fingerprint=self.model_fingerprint,
            dtype=self.dtype,
            layer=self.layer,
            position=self.position,
            coefficient=self.coefficient,
            effects=dict(self.effects),
        )
        save_artifact(folder, NAME, written, {"vector_D": self.vector_D.float()})

    @classmethod
    def load(cls, folder: Path) -> Hardening:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, its parts do not fit each other, or it makes a model refuse less.
        """
        read, tensors = load_artifact(folder, NAME, _Fields)
        path = folder / f"{NAME}.json"
        require(set(tensors) == {"vector_D"} and tensors["vector_D"].ndim == 1, path, "the tensor vector_D of shape D")
        require(bool(tensors["vector_D"].isfinite().all()), path, "finite numbers in vector_D")
        _require_induced(path, read.coefficient, read.effects)
        return cls(
            model_fingerprint=read.model_fingerprint,
            dtype=read.dtype,
            layer=read.layer,
            position=read.position,
            coefficient=read.coefficient,
            effects=read.effects,
            vector_D=tensors["vector_D"],
        )


class _Fields(Fields):
    mode: Literal["induce"]
    model_fingerprint: str
    dtype: str
    layer: int
    position: int
    coefficient: float
    effects: dict[str, Effect]


def induces(effects: Mapping[str, Effect]) -> bool:
    """Whether harmful requests are refused no less, over all their groups, and some were asked."""
    moved = _towards_refusal(effects)
    return bool(moved) and sum(moved) >= 0


def _towards_refusal(effects: Mapping[str, Effect]) -> list[float]:
    """How far each group of harmful requests moved towards refusal.

    Of these alone: what also refuses harmless ones more could hide that harmful ones are refused less.
    """
    harmful = {group: effect.difference for group, effect in effects.items() if group_of(group).is_harmful}
    return [difference * (1 if group_of(group).higher_is_better else -1) for group, difference in harmful.items()]


def _require_induced(path: Path, coefficient: float, effects: Mapping[str, Effect]) -> None:
    """Refuse what takes refusals away.

    Raises:
        ArtifactError: the coefficient is not above 0, nothing was measured, or harmful prompts are refused less.
    """
    moved = _towards_refusal(effects)
    if not (math.isfinite(coefficient) and coefficient > 0 and induces(effects)):
        total = f"{100 * sum(moved) / len(moved):+.1f} points of refusal" if moved else "no measured effect"
        raise ArtifactError(
            f"{path.name} would make a model refuse less",
            got=f"the coefficient {coefficient:g} and {total}, mean over groups of harmful requests",
            expected="a coefficient above 0 that induces refusal",
            remedy="seawall writes and applies nothing that takes refusals away; run `seawall steer` with mode induce",
        )
