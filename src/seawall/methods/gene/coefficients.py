"""How much of a gene a fine-tuned model needs: one number per layer, from a few examples. SafeGene, step (c)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from seawall.artifacts.adapter import Factors
from seawall.artifacts.gene import Gene
from seawall.config.gene import GeneGraft
from seawall.distributed.process import one_process
from seawall.errors import ConfigError, NothingToGraftError
from seawall.methods.gene.shots import Shot, shot_batches, shot_loss
from seawall.models.lora.attach import AttachedAdapter
from seawall.train.loop import Losses, Row, Settings, Trainer

Coefficients = dict[int, float]
"""Decoder layer -> what its update is multiplied with."""


def tune_coefficients(
    attached: AttachedAdapter,
    shots: Sequence[Shot],
    pad_id: int,
    config: GeneGraft,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> Coefficients:
    """The coefficients that lower the cross-entropy of the shots; no weight changes.

    Refusals and the task weigh alike whatever their numbers, harmless replies by `config.harmless_weight`. Coefficients
    start at 1 and stay within 0 and `config.ceiling`.

    Args:
        attached: the task's model with the gene on it.
        shots: refusals, examples of the task, and harmless replies that are to stay.
        pad_id: any token; it is masked.
        config: how to tune; `coefficients` says whether each layer has its own or all have one.
        seed: of the order.
        log: told after every update.

    Raises:
        SeawallError: a loss is not finite.
    """
    layers = sorted({point.layer for point in attached.points.values()})
    one_for_all = config.coefficients == "global"
    numbers = nn.Parameter(torch.ones(1 if one_for_all else len(layers)))
    own = {layer: 0 if one_for_all else at for at, layer in enumerate(layers)}
    batches = shot_batches(shots, config, seed)
    settings = Settings(lr=config.lr, schedule="cosine", total_steps=len(batches), max_grad_norm=float("inf"))

    def loss(positions: list[int]) -> list[Losses]:
        coefficients = {layer: numbers[at : at + 1] for layer, at in own.items()}
        with attached.scaled(coefficients):
            return [shot_loss(attached.model, shots, positions, pad_id, harmless_weight=config.harmless_weight)]

    def after(row: Row) -> None:
        numbers.data.clamp_(0.0, config.ceiling)
        log(row)

    attached.model.requires_grad_(False)
    Trainer[list[int]]({"coefficients": numbers}, settings, one_process()).fit(batches, loss, after)
    return {layer: float(numbers[at].detach()) for layer, at in own.items()}


def with_coefficients(gene: Gene, coefficients: Mapping[int, float], *, made: str) -> Gene:
    """The gene with the coefficients in its factors; layers whose coefficient is 0 are left out.

    Raises:
        NothingToGraftError: all coefficients are 0.
        ConfigError: all updates of the gene in the other layers are.
    """
    points = {name: one for name, one in gene.points.items() if coefficients[one.layer]}
    if not points:
        raise NothingToGraftError(
            "all coefficients came out as 0, so nothing of the gene would be grafted",
            remedy="use another gene, or more shots",
        )
    if not any(bool(gene.factors[name].B.any()) and bool(gene.factors[name].A.any()) for name in points):
        raise ConfigError(
            "the gene's updates are all 0, so nothing of it would be grafted",
            got=f"{len(points)} weight matrices whose factors are 0",
            remedy="use another gene, or weights above 0 where it is composed",
        )
    factors = {
        name: Factors(gene.factors[name].B * coefficients[point.layer], gene.factors[name].A)
        for name, point in points.items()
    }
    return replace(gene, points=points, factors=factors, made=made, parents=(gene.fingerprint,))
