"""The full difference of alignment V = W_aligned - W_base, streamed, and what Safe LoRA takes of it (arXiv 2405.16833).

With C = V V^T / ||V||_F the projected update is (C B) A. C B = V (V^T B) / ||V||_F needs one V at a time and neither C
nor its decomposition, so no direction is left out: a truncated anchor has other cosines, and projects other matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seawall.errors import ConfigError
from seawall.methods.tune.anchor import difference, require_same_model
from seawall.models.files.stream import CheckpointOutline, Part, WeightReader, matrices, reading
from seawall.models.lora.updates import LowRankUpdate


class AlignmentDifference(NamedTuple):
    """The two checkpoints whose difference is V; the adapter was trained on the first."""

    aligned: CheckpointOutline
    base: CheckpointOutline

    @torch.no_grad()
    def inside(self, updates: Sequence[LowRankUpdate]) -> dict[str, Tensor]:
        """C B (..., rows, r) of every update, float32 on the CPU; 0 where V is 0.

        Both checkpoints are read once; memory holds one tensor or expert slice of each, and the results.

        Raises:
            ConfigError: an update of something else than a linear layer or a stack of experts.
            ArtifactError: the checkpoints are of different models, damaged, or not finite.
        """
        available = matrices(self.aligned.model)
        lacking = [update.name for update in updates if update.name not in available]
        if lacking:
            raise ConfigError(
                f"Safe LoRA does not project {lacking[0]}",
                expected="an adapter of linear layers or stacked experts, no router and no embedding",
            )
        selected = {update.name: available[update.name] for update in updates}
        require_same_model(self.aligned, self.base, selected)
        factors = {update.name: update.factors()[0].detach().float().cpu() for update in updates}
        results = {name: torch.zeros_like(factors[name]) for name in selected}
        with reading(self.aligned) as ours, reading(self.base) as theirs:
            for part in self._parts(set(selected)):
                for name, V in _differences(part, (ours, theirs), set(selected)):
                    turned = V.mT if selected[name].transposed else V
                    index = ... if part.expert is None else part.expert
                    results[name][index] = _inside(turned, factors[name][index])
        return results

    def _parts(self, names: set[str]) -> list[Part]:
        sources = self.aligned.sources
        return [
            part for part in sources if part in self.base.sources and (part.name in names or self.aligned.cut(part))
        ]


def _differences(
    part: Part, readers: tuple[WeightReader, WeightReader], names: set[str]
) -> Iterator[tuple[str, Tensor]]:
    ours, theirs = (reader.read(part) for reader in readers)
    for name in sorted(ours.keys() & names):
        yield name, difference(name, ours.pop(name), theirs.pop(name))


def _inside(V: Tensor, B: Tensor) -> Tensor:
    """V V^T B / ||V||_F for V (..., rows, columns) and B (..., rows, r)."""
    norm = torch.linalg.matrix_norm(V)[..., None, None].clamp_min(torch.finfo(torch.float32).tiny)
    inside: Tensor = V @ (V.mT @ B) / norm
    return inside
