"""The few examples of a graft as batches and as a loss: refusals and the task's examples weigh alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from seawall.config.gene import GeneGraft
from seawall.data.batching import epoch_batches
from seawall.genes.lessons import Lesson, cross_entropy
from seawall.train.loop import Losses


def shot_batches(shots: Sequence[Lesson], config: GeneGraft, seed: int) -> list[list[int]]:
    """Positions in batches with both kinds in each, for `config.steps` updates."""
    half = max(1, config.batch_size // 2)
    sides = [[at for at, one in enumerate(shots) if one.harmful is kind] for kind in (True, False)]
    found: list[list[int]] = []
    epoch = 0
    while len(found) < config.steps:
        parts = [
            [[side[at] for at in some] for some in epoch_batches([1] * len(side), half, seed=seed, epoch=epoch)]
            for side in sides
        ]
        found += [left + right for left, right in zip(*parts, strict=False)]
        epoch += 1
    return found[: config.steps]


def shot_loss(model: PreTrainedModel, shots: Sequence[Lesson], positions: Sequence[int], pad_id: int) -> Losses:
    """The mean of both kinds' mean cross-entropies, whatever their numbers, and each of these for the log."""
    harmful = torch.tensor([shots[at].harmful for at in positions])
    loss_B = cross_entropy(model, [shots[at].encoded for at in positions], pad_id).cpu()
    sides = {"refusal_loss": loss_B[harmful], "task_loss": loss_B[~harmful]}
    parts = {name: float(side.detach().mean()) for name, side in sides.items() if len(side)}
    return torch.stack([side.mean() for side in sides.values() if len(side)]).mean(), parts
