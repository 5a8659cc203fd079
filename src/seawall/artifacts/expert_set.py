"""The selected experts, with the scores that chose them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import Fields, load_artifact, require, save_artifact

NAME = "experts"


@dataclass(frozen=True, eq=False)
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
        """Write `experts.safetensors` and `experts.json`."""
        tensors = {"scores_LE": self.scores_LE}
        if self.inclusion_LE is not None:
            tensors["inclusion_LE"] = self.inclusion_LE
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            method=self.method,
            k=self.k,
            layers=self.layers,
            stability=self.stability,
        )
        save_artifact(folder, NAME, written, tensors)

    @classmethod
    def load(cls, folder: Path) -> ExpertSet:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or its parts do not fit each other.
        """
        read, tensors = load_artifact(folder, NAME, _Fields)
        path = folder / f"{NAME}.json"
        require("scores_LE" in tensors and set(tensors) <= {"scores_LE", "inclusion_LE"}, path, "the tensor scores_LE")
        shape_LE = tensors["scores_LE"].shape
        require(len(shape_LE) == 2 and shape_LE[0] == len(read.layers), path, "scores of shape L x E for L layers")
        require(
            all(tensor.shape == shape_LE for tensor in tensors.values()), path, "inclusion_LE as large as scores_LE"
        )
        fitting = all(_ascending(layer, shape_LE[1]) for layer in read.layers)
        require(fitting, path, f"ascending expert indices below {shape_LE[1]} in every layer")
        return cls(
            model_fingerprint=read.model_fingerprint,
            method=read.method,
            k=read.k,
            layers=read.layers,
            scores_LE=tensors["scores_LE"],
            stability=read.stability,
            inclusion_LE=tensors.get("inclusion_LE"),
        )


class _Fields(Fields):
    model_fingerprint: str
    method: str
    k: int
    layers: tuple[tuple[int, ...], ...]
    stability: float | None


def _ascending(indices: tuple[int, ...], size: int) -> bool:
    return list(indices) == sorted(set(indices)) and all(0 <= index < size for index in indices)
