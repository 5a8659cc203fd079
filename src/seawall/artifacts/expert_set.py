"""The selected experts, with the scores that chose them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import load_artifact, save_artifact

NAME = "experts"


@dataclass(frozen=True)
class ExpertSet:
    """Experts to repair.

    Attributes:
        model_fingerprint: of the model that was profiled.
        method: how they were chosen.
        k: how many were asked for.
        layers: expert indices of each MoE layer, ascending.
        scores_LE: the score of every expert (attack minus anchor).
        stability: mean Jaccard similarity of bootstrap selections with this one; None where it was not measured.
        inclusion_LE: share of bootstrap selections that hold each expert; None likewise.
    """

    model_fingerprint: str
    method: str
    k: int
    layers: tuple[tuple[int, ...], ...]
    scores_LE: Float[Tensor, "L E"]
    stability: float | None = None
    inclusion_LE: Float[Tensor, "L E"] | None = None

    @property
    def count(self) -> int:
        """How many experts are selected."""
        return sum(len(layer) for layer in self.layers)

    @property
    def total(self) -> int:
        """How many routed experts the model has."""
        return self.scores_LE.numel()

    def save(self, folder: Path) -> None:
        """Writes `experts.safetensors` and `experts.json`."""
        tensors = {"scores_LE": self.scores_LE}
        if self.inclusion_LE is not None:
            tensors["inclusion_LE"] = self.inclusion_LE
        written = {
            "model_fingerprint": self.model_fingerprint,
            "method": self.method,
            "k": self.k,
            "layers": [list(layer) for layer in self.layers],
            "stability": self.stability,
        }
        save_artifact(folder, NAME, written, tensors)

    @classmethod
    def load(cls, folder: Path) -> ExpertSet:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        document, tensors = load_artifact(folder, NAME)
        return cls(
            model_fingerprint=document["model_fingerprint"],
            method=document["method"],
            k=document["k"],
            layers=tuple(tuple(layer) for layer in document["layers"]),
            scores_LE=tensors["scores_LE"],
            stability=document["stability"],
            inclusion_LE=tensors.get("inclusion_LE"),
        )
