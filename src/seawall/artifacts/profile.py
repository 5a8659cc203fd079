"""The expert profile: where the tokens of successful jailbreaks and of the plain requests go."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import load_artifact, save_artifact

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


@dataclass(frozen=True)
class ExpertProfile:
    """Routing counts by pair. P kept pairs, L MoE layers, E experts per layer.

    For each side (`attack`, `anchor`) and for generated and `prompt` tokens: how many tokens were counted, how many of
    them had each expert in their top-k, and the sum of the gate weights that each expert got.
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
        """Writes `profile.safetensors` and `profile.json`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name in _TENSORS}
        written = {
            "model_fingerprint": self.model_fingerprint,
            "top_k": self.top_k,
            "pairs": [list(pair) for pair in self.pairs],
            "dropped": [list(pair) for pair in self.dropped],
        }
        save_artifact(folder, NAME, written, tensors)

    @classmethod
    def load(cls, folder: Path) -> ExpertProfile:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        document, tensors = load_artifact(folder, NAME)
        return cls(
            model_fingerprint=document["model_fingerprint"],
            top_k=document["top_k"],
            pairs=tuple(PairRecord(*pair) for pair in document["pairs"]),
            dropped=tuple(DroppedPair(*pair) for pair in document["dropped"]),
            **tensors,
        )


_TENSORS = frozenset(field.name for field in fields(ExpertProfile) if field.name.endswith(("_P", "_PLE")))
