"""Refusal directions: mean differences between harmful and harmless prompts, per layer and per expert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from seawall.artifacts.store import load_record, require, require_model, save_record

NAME = "directions"
Place = tuple[int, int]
"""(MoE layer, expert)."""
PromptSide = Literal["harmful", "harmless"]
"""The mean that a prompt belongs to."""
ExpertPart = Literal["block", "routed"]
"""What an expert's direction was measured on: the output of its MoE block, or its own."""


class ScoredPrompt(NamedTuple):
    """A prompt and the model's refusal score; `used` in its side's mean if above 0 (harmful) or below (harmless)."""

    side: PromptSide
    prompt: str
    score: float
    used: bool


@dataclass(frozen=True, eq=False)
class Directions:
    """Differences in means, harmful minus harmless, at the last positions of the templated prompt.

    N decoder layers, P positions, D width, C experts with a direction, L MoE layers, E experts per layer; C, L and E
    are 0 for a dense model. arXiv 2606.04160; the layers' directions after Arditi et al., arXiv 2406.11717.

    Attributes:
        model_fingerprint: of the model that the directions are of.
        positions: counted from the prompt's end, ascending: -5 to -1.
        refusal_tokens: first tokens of the model's refusals.
        candidates: the C experts with a direction.
        moe_layers: the decoder layer of each MoE layer.
        prompts: every scored prompt, used or not.
        layer_NPD: of the residual stream at each decoder layer's input.
        expert_CPD: of the output of that expert alone, without its gate weight (`expert_part` "routed"). Directions of
            earlier versions are of the MoE block's output where the router chose that expert alone ("block"): where a
            family has a shared expert, nearly the shared expert's direction.
        routing_difference_LE: rate at which an expert is a token's first choice, harmful minus harmless prompts, over
            the tokens at these positions.
        shared_LPD: of the part of each MoE block's output that no router weighs; None without shared experts.
        logits_D: mean gradient of the refusal score of harmful prompts in the last layer's output: the direction that
            moves the logits of the refusal tokens through the final norm and the output layer alone; None in
            directions of earlier versions.
        expert_part: see `expert_CPD`.
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
    shared_LPD: Float[Tensor, "L P D"] | None = None
    logits_D: Float[Tensor, " D"] | None = None
    expert_part: Annotated[ExpertPart, Field(exclude_if=lambda part: part == "block")] = "block"

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

    def of_shared(self, moe_layer: int, position: int) -> Tensor | None:
        """The direction (D,) of a layer's shared expert; None where there is none."""
        return None if self.shared_LPD is None else self.shared_LPD[moe_layer, self.positions.index(position)]

    def above(self, threshold: float) -> tuple[Place, ...]:
        """Experts whose routing difference is at least the threshold, largest first."""
        places = [place for place in self.candidates if self.difference(place) >= threshold]
        return tuple(sorted(places, key=lambda place: (-self.difference(place), place)))

    def below(self, threshold: float) -> tuple[Place, ...]:
        """Experts whose routing difference is below the threshold, by layer."""
        return tuple(sorted(place for place in self.candidates if self.difference(place) < threshold))

    def difference(self, place: Place) -> float:
        """Absolute routing difference of an expert."""
        return abs(float(self.routing_difference_LE[place]))

    def count(self, side: PromptSide, *, used: bool) -> int:
        """Number of prompts of a side that are used in its mean, or that are not."""
        return sum(prompt.side == side and prompt.used == used for prompt in self.prompts)

    def save(self, folder: Path) -> None:
        """Write `directions.safetensors` and `directions.json`."""
        save_record(folder / f"{NAME}.json", NAME, self)

    @classmethod
    def load(cls, folder: Path, *, fingerprint: str | None = None) -> Directions:
        """Read `directions.safetensors` and `directions.json`.

        Args:
            folder: of the two files.
            fingerprint: of the current model, if there is one.

        Raises:
            ArtifactError: a file is missing or damaged, parts contradict each other, or the model is another one.
        """
        path = folder / f"{NAME}.json"
        directions = load_record(path, NAME, cls, later=("expert_part",))
        _check_layers(path, directions)
        _check_experts(path, directions)
        if fingerprint is not None:
            require_model(directions.model_fingerprint, expected=fingerprint, artifact="set of directions")
        return directions


def _check_layers(path: Path, read: Directions) -> None:
    ranks = (read.layer_NPD.ndim, read.expert_CPD.ndim, read.routing_difference_LE.ndim)
    require(ranks == (3, 3, 2), path, "tensors of shapes N x P x D, C x P x D and L x E")
    width = read.layer_NPD.shape[-1]
    require(read.logits_D is None or read.logits_D.shape == (width,), path, "logits_D of D numbers")
    ascending = list(read.positions) == sorted(set(read.positions)) and all(position < 0 for position in read.positions)
    require(ascending and len(read.positions) == read.layer_NPD.shape[1], path, "P positions, negative and ascending")


def _check_experts(path: Path, read: Directions) -> None:
    shape = (len(read.candidates), *read.layer_NPD.shape[1:])
    require(tuple(read.expert_CPD.shape) == shape, path, "expert_CPD of C x P x D for C candidates")
    layers, experts = read.routing_difference_LE.shape
    shared = None if read.shared_LPD is None else tuple(read.shared_LPD.shape)
    require(shared in (None, (layers, *shape[1:])), path, "shared_LPD of L x P x D")
    within = all(0 <= layer < layers and 0 <= expert < experts for layer, expert in read.candidates)
    require(within and len(set(read.candidates)) == len(read.candidates), path, "distinct experts within L x E")
    decoder = all(0 <= layer < read.num_layers for layer in read.moe_layers)
    require(decoder and len(read.moe_layers) == layers, path, "a decoder layer below N for each of L MoE layers")
