"""The selected experts, with the scores behind the selection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.store import load_record, require, save_record

NAME = "experts"


@dataclass(frozen=True, eq=False)
class ExpertSet:
    """Experts to repair. L MoE layers, E experts per layer.

    Attributes:
        model_fingerprint: of the profiled model.
        method: of selection.
        k: number of experts to select, from the recipe.
        layers: expert indices of each MoE layer, ascending.
        stability: mean Jaccard similarity of bootstrap selections with this one; None if not measured.
        scores_LE: the score of every expert (attack minus anchor; of the attacks alone for `sensitivity`).
        inclusion_LE: share of bootstrap selections that contain each expert; None if not measured.
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
        """Number of selected experts."""
        return sum(len(layer) for layer in self.layers)

    @property
    def total(self) -> int:
        """Number of routed experts of the model."""
        return self.scores_LE.numel()

    def save(self, folder: Path) -> None:
        """Write `experts.safetensors` and `experts.json`."""
        save_record(folder / f"{NAME}.json", NAME, self)

    @classmethod
    def load(cls, folder: Path) -> ExpertSet:
        """Read `experts.safetensors` and `experts.json`.

        Raises:
            ArtifactError: a file is missing or damaged, or parts contradict each other.
        """
        path = folder / f"{NAME}.json"
        experts = load_record(path, NAME, cls)
        shape_LE = experts.scores_LE.shape
        require(len(shape_LE) == 2 and shape_LE[0] == len(experts.layers), path, "scores of shape L x E for L layers")
        same_shape = experts.inclusion_LE is None or experts.inclusion_LE.shape == shape_LE
        require(same_shape, path, "inclusion_LE as large as scores_LE")
        valid = all(_ascending(layer, shape_LE[1]) for layer in experts.layers)
        require(valid, path, f"ascending expert indices below {shape_LE[1]} in every layer")
        return experts


def _ascending(indices: tuple[int, ...], size: int) -> bool:
    return list(indices) == sorted(set(indices)) and all(0 <= index < size for index in indices)
