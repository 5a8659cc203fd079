"""Refusal directions: how harmful prompts differ from harmless ones, in each layer and in each forced expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import Fields, load_artifact, require, require_model, save_artifact

NAME = "directions"
_TENSORS = ("layer_NPD", "expert_CPD", "routing_difference_LE")
Place = tuple[int, int]
"""(MoE layer, expert)."""
PromptSide = Literal["harmful", "harmless"]
"""Which of the two means a prompt belongs to."""


class ScoredPrompt(NamedTuple):
    """A prompt, and the model's refusal score on it; harmful ones are kept above 0, harmless ones below."""

    side: PromptSide
    prompt: str
    score: float
    kept: bool


@dataclass(frozen=True, eq=False)
class Directions:
    """Differences in means, harmful minus harmless, at the last positions of the templated prompt.

    N decoder layers, P positions, D width, C experts with a direction, L MoE layers, E experts per layer; C, L and E
    are 0 for a dense model. arXiv 2606.04160; the layers' directions after Arditi et al., arXiv 2406.11717.

    Attributes:
        model_fingerprint: of the model that they were taken from.
        positions: counted from the prompt's end, ascending: -5 to -1.
        refusal_tokens: the tokens that open the model's refusals.
        candidates: the C experts with a direction.
        moe_layers: the decoder layer of each MoE layer.
        prompts: every prompt that was looked at.
        layer_NPD: of the residual stream at each decoder layer's input.
        expert_CPD: of the MoE block's output where that expert alone is chosen.
        routing_difference_LE: how much more often an expert is a token's first choice in harmful prompts (share of
            the tokens at these positions).
    """

    model_fingerprint: str
    positions: tuple[int, ...]
    refusal_tokens: tuple[int, ...]
    candidates: tuple[Place, ...]
    moe_layers: tuple[int, ...]
    prompts: tuple[ScoredPrompt, ...]
    layer_NPD: Float[Tensor, "N P D"]
    expert_CPD: Float[Tensor, "C P D"]
    routing_difference_LE: Float[Tensor, "L E"]

    @property
    def num_layers(self) -> int:
        """N, the number of decoder layers."""
        return self.layer_NPD.shape[0]

    def of_layer(self, layer: int, position: int) -> Tensor:
        """The direction (D,) at a decoder layer's input."""
        return self.layer_NPD[layer, self.positions.index(position)]

    def of_expert(self, place: Place, position: int) -> Tensor:
        """The direction (D,) of an expert."""
        return self.expert_CPD[self.candidates.index(place), self.positions.index(position)]

    def above(self, threshold: float) -> tuple[Place, ...]:
        """The experts whose routing differs by at least so much, the most first."""
        return tuple(place for place in self._by_difference() if self.difference(place) >= threshold)

    def below(self, threshold: float) -> tuple[Place, ...]:
        """The other experts, by layer."""
        return tuple(sorted(place for place in self._by_difference() if self.difference(place) < threshold))

    def difference(self, place: Place) -> float:
        """How far an expert's routing differs, either way."""
        return abs(float(self.routing_difference_LE[place]))

    def mean_score(self, side: PromptSide, *, kept: bool) -> float | None:
        """Mean refusal score of a side's kept (or other) prompts; None where there are none."""
        scores = [one.score for one in self.prompts if one.side == side and one.kept == kept]
        return fmean(scores) if scores else None

    def count(self, side: PromptSide, *, kept: bool) -> int:
        """How many prompts of a side were kept, or were not."""
        return sum(one.side == side and one.kept == kept for one in self.prompts)

    def _by_difference(self) -> Sequence[Place]:
        return sorted(self.candidates, key=lambda place: (-self.difference(place), place))

    def save(self, folder: Path) -> None:
        """Write `directions.safetensors` and `directions.json`."""
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            positions=self.positions,
            refusal_tokens=self.refusal_tokens,
            candidates=self.candidates,
            moe_layers=self.moe_layers,
            prompts=self.prompts,
        )
        save_artifact(folder, NAME, written, {name: getattr(self, name) for name in _TENSORS})

    @classmethod
    def load(cls, folder: Path, *, fingerprint: str | None = None) -> Directions:
        """Read what `save` wrote.

        Args:
            folder: where.
            fingerprint: of the model at hand, where there is one.

        Raises:
            ArtifactError: it is missing, damaged, its parts do not fit each other, or it is of another model.
        """
        read, tensors = load_artifact(folder, NAME, _Fields)
        path = folder / f"{NAME}.json"
        _check(path, read, tensors)
        if fingerprint is not None:
            require_model(read.model_fingerprint, wanted=fingerprint, what="set of directions")
        return cls(
            model_fingerprint=read.model_fingerprint,
            positions=read.positions,
            refusal_tokens=read.refusal_tokens,
            candidates=read.candidates,
            moe_layers=read.moe_layers,
            prompts=read.prompts,
            **tensors,
        )


class _Fields(Fields):
    model_fingerprint: str
    positions: tuple[int, ...]
    refusal_tokens: tuple[int, ...]
    candidates: tuple[Place, ...]
    moe_layers: tuple[int, ...]
    prompts: tuple[ScoredPrompt, ...]


def _check(path: Path, read: _Fields, tensors: dict[str, Tensor]) -> None:
    require(set(tensors) == set(_TENSORS), path, f"the tensors {', '.join(_TENSORS)}")
    layer_NPD, expert_CPD, difference_LE = (tensors[name] for name in _TENSORS)
    ranks = (layer_NPD.ndim, expert_CPD.ndim, difference_LE.ndim)
    require(ranks == (3, 3, 2), path, "tensors of shapes N x P x D, C x P x D and L x E")
    ascending = list(read.positions) == sorted(set(read.positions)) and all(at < 0 for at in read.positions)
    require(ascending and len(read.positions) == layer_NPD.shape[1], path, "P positions, negative and ascending")
    wanted = (len(read.candidates), *layer_NPD.shape[1:])
    require(tuple(expert_CPD.shape) == wanted, path, "expert_CPD of C x P x D for C candidates")
    layers, experts = difference_LE.shape
    fitting = all(0 <= layer < layers and 0 <= expert < experts for layer, expert in read.candidates)
    require(fitting and len(set(read.candidates)) == len(read.candidates), path, "distinct experts within L x E")
    places = all(0 <= layer < layer_NPD.shape[0] for layer in read.moe_layers)
    require(places and len(read.moe_layers) == layers, path, "a decoder layer below N for each of L MoE layers")
