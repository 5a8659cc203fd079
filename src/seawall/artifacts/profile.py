"""The expert profile: routing of the tokens of successful jailbreaks, and of the same requests asked plainly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import load_record, record_tensors, require, save_record

NAME = "profile"


class PairRecord(NamedTuple):
    """A profiled pair: the model refuses the goal asked plainly and answers this attack."""

    goal: str
    attack_name: str


class DroppedPair(NamedTuple):
    """A pair left out of the profile, and the reason."""

    goal: str
    attack_name: str
    reason: str


@dataclass(frozen=True, eq=False)
class ExpertProfile:
    """Routing counts by pair. P pairs, L MoE layers, E experts per layer. RASA section 3.2.

    For each side (`attack`; `anchor`, the plain request) and for generated and `prompt` tokens: `tokens` is the number
    of tokens, `counts` the number of them with each expert in their top-k, `mass` the sum of each expert's gate
    weights.

    Attributes:
        model_fingerprint: of the profiled model.
        top_k: experts per token.
        pairs: the P profiled pairs, in the order of the tensors' first dimension.
        dropped: the pairs left out.
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
        save_record(folder / f"{NAME}.json", NAME, self)

    @classmethod
    def load(cls, folder: Path) -> ExpertProfile:
        """Read `profile.safetensors` and `profile.json`.

        Raises:
            ArtifactError: a file is missing or damaged, or parts contradict each other.
        """
        path = folder / f"{NAME}.json"
        profile = load_record(path, NAME, cls)
        shape = profile.attack_counts_PLE.shape
        require(len(shape) == 3 and shape[0] == len(profile.pairs), path, "counts of shape P x L x E for P pairs")
        for name, tensor in record_tensors(profile).items():
            expected = shape if name.endswith("_PLE") else shape[:1]
            valid = tensor.is_floating_point() and tensor.shape == expected
            require(valid, path, f"{name} of {tuple(expected)} floats")
        require(1 <= profile.top_k <= shape[2], path, "a top_k of at least 1 and at most E")
        return profile
