"""The expert profile: where the tokens of successful jailbreaks and of the plain requests go."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import Fields, load_artifact, require, save_artifact

NAME = "profile"


class PairRecord(NamedTuple):
    """A kept pair: the model refused the goal asked plainly and answered this attack."""

    goal: str
    attack_name: str


class DroppedPair(NamedTuple):
    """A pair that was not kept, and why."""

    goal: str
    attack_name: str
    reason: str


@dataclass(frozen=True, eq=False)
class ExpertProfile:
    """Routing counts by pair. P kept pairs, L MoE layers, E experts per layer.

    For each side (`attack`, `anchor`) and for generated and `prompt` tokens: how many tokens were counted, how many of
    them had each expert in their top-k, and the sum of the gate weights that each expert got. RASA section 3.2.

    Attributes:
        model_fingerprint: of the profiled model.
        top_k: experts per token.
        pairs: the P kept pairs, in the order of the tensors' first dimension.
        dropped: the pairs that were not kept.
    """

    model_fingerprint: str
    top_k: int
    pairs: tuple[PairRecord, ...]
    dropped: tuple[DroppedPair, ...]
    attack_tokens_P: Float[Tensor, " P"]
    attack_counts_PLE: Float[Tensor, "P L E"]
    attack_mass_PLE: Float[Tensor, "P L E"]
    anchor_tokens_P: Float[Tensor, " P"]
    anchor_counts_PLE: Float[Tensor, "P L E"]
    anchor_mass_PLE: Float[Tensor, "P L E"]
    attack_prompt_tokens_P: Float[Tensor, " P"]
    attack_prompt_counts_PLE: Float[Tensor, "P L E"]
    attack_prompt_mass_PLE: Float[Tensor, "P L E"]
    anchor_prompt_tokens_P: Float[Tensor, " P"]
    anchor_prompt_counts_PLE: Float[Tensor, "P L E"]
    anchor_prompt_mass_PLE: Float[Tensor, "P L E"]

    def save(self, folder: Path) -> None:
        """Write `profile.safetensors` and `profile.json`."""
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            top_k=self.top_k,
            pairs=self.pairs,
            dropped=self.dropped,
        )
        save_artifact(folder, NAME, written, {name: getattr(self, name) for name in _TENSORS})

    @classmethod
    def load(cls, folder: Path) -> ExpertProfile:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or its parts do not fit each other.
        """
        read, tensors = load_artifact(folder, NAME, _Fields)
        path = folder / f"{NAME}.json"
        require(set(tensors) == set(_TENSORS), path, f"the tensors {', '.join(_TENSORS)}")
        shape_PLE = tensors["attack_counts_PLE"].shape
        require(len(shape_PLE) == 3 and shape_PLE[0] == len(read.pairs), path, "counts of shape P x L x E for P pairs")
        for name, tensor in tensors.items():
            expected = shape_PLE if name.endswith("_PLE") else shape_PLE[:1]
            require(
                tensor.is_floating_point() and tensor.shape == expected, path, f"{name} of {tuple(expected)} floats"
            )
        require(1 <= read.top_k <= shape_PLE[2], path, "a top_k of at least 1 and at most E")
        return cls(
            model_fingerprint=read.model_fingerprint,
            top_k=read.top_k,
            pairs=read.pairs,
            dropped=read.dropped,
            **tensors,
        )


_TENSORS = tuple(field.name for field in fields(ExpertProfile) if field.name.endswith(("_P", "_PLE")))


class _Fields(Fields):
    model_fingerprint: str
    top_k: int
    pairs: tuple[PairRecord, ...]
    dropped: tuple[DroppedPair, ...]
