"""The few examples of a graft as batches and as a loss: refusals, the task, and harmless replies that are to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from seawall.config.gene import GeneGraft
from seawall.data.batching import epoch_batches
from seawall.data.templating import Encoded
from seawall.genes.lessons import cross_entropy
from seawall.train.loop import Losses

Side = Literal["refusal", "task", "harmless"]
"""A refusal of a harmful request, an example of the task, or the task's model's own reply to a harmless request."""
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True, slots=True)
class Shot:
    """A prompt with the reply that is wanted."""

    encoded: Encoded
    side: Side


def shot_batches(shots: Sequence[Shot], config: GeneGraft, seed: int) -> list[list[int]]:
    """Positions in batches with every side in each, for `config.steps` updates."""
    each = max(1, config.batch_size // 2)
    by_side = [[at for at, one in enumerate(shots) if one.side == side] for side in SIDES]
    sides = [positions for positions in by_side if positions]
    found: list[list[int]] = []
    epoch = 0
    while len(found) < config.steps:
        parts = [
            [[side[at] for at in some] for some in epoch_batches([1] * len(side), each, seed=seed, epoch=epoch)]
            for side in sides
        ]
        found += [[at for part in row for at in part] for row in zip(*parts, strict=False)]
        epoch += 1
    return found[: config.steps]


def shot_loss(
    model: PreTrainedModel, shots: Sequence[Shot], positions: Sequence[int], pad_id: int, *, harmless_weight: float
) -> Losses:
    """The weighted mean of the sides' mean cross-entropies, whatever their numbers, and each of these for the log.

    Args:
        model: in any mode.
        shots: of any sides.
        positions: those of this batch.
        pad_id: any token; it is masked.
        harmless_weight: of the harmless side; the others weigh 1.
    """
    loss_B = cross_entropy(model, [shots[at].encoded for at in positions], pad_id).cpu()
    masks = {side: torch.tensor([shots[at].side == side for at in positions]) for side in SIDES}
    means = {f"{side}_loss": loss_B[mask].mean() for side, mask in masks.items() if bool(mask.any())}
    weights = {name: harmless_weight if name == "harmless_loss" else 1.0 for name in means}
    total = torch.stack([weights[name] * one for name, one in means.items()]).sum() / sum(weights.values())
    return total, {name: float(one.detach()) for name, one in means.items()}
