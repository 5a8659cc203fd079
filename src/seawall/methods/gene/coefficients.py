"""Step (c) of SafeGene: recalibrate a gene for a fine-tuned model, one coefficient per layer, on a few examples."""

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
"""Decoder layer -> factor of its update."""


def tune_coefficients(
    attached: AttachedAdapter,
    shots: Sequence[Shot],
    pad_id: int,
    config: GeneGraft,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> Coefficients:
    """Tunes the coefficients a_l of W_l = W_l(task) + a_l (alpha / r) B_l A_l by cross-entropy; weights are frozen.

    The loss is a weighted mean of the means over refusals, task examples (weight 1 each) and harmless replies
    (`config.harmless_weight`). Coefficients start at 1 and are clamped to [0, `config.ceiling`].

    Args:
        attached: the fine-tuned model with the gene attached.
        shots: refusals, task examples, and harmless replies to keep.
        pad_id: a token to pad with; padding is masked.
        config: updates, learning rate, and whether each layer has its own coefficient or all share one.
        seed: of the order of the shots.
        log: called after each update.

    Raises:
        SeawallError: a loss is not finite.
    """
    layers = sorted({point.layer for point in attached.points.values()})
    is_global = config.coefficients == "global"
    coefficients_N = nn.Parameter(torch.ones(1 if is_global else len(layers)))
    index_of = {layer: 0 if is_global else index for index, layer in enumerate(layers)}
    batches = shot_batches(shots, config, seed)
    settings = Settings(lr=config.lr, schedule="cosine", total_steps=len(batches), max_grad_norm=float("inf"))

    def loss(positions: list[int]) -> list[Losses]:
        coefficients = {layer: coefficients_N[index : index + 1] for layer, index in index_of.items()}
        with attached.scaled(coefficients):
            return [shot_loss(attached.model, shots, positions, pad_id, harmless_weight=config.harmless_weight)]

    def after(row: Row) -> None:
        coefficients_N.data.clamp_(0.0, config.ceiling)
        log(row)

    attached.model.requires_grad_(False)
    Trainer[list[int]]({"coefficients": coefficients_N}, settings, one_process()).fit(batches, loss, after)
    return {layer: float(coefficients_N[index].detach()) for layer, index in index_of.items()}


def with_coefficients(gene: Gene, coefficients: Mapping[int, float], *, origin: str) -> Gene:
    """The gene with the coefficients multiplied into its factors; layers with coefficient 0 are dropped.

    Args:
        gene: the gene.
        coefficients: of each of its decoder layers.
        origin: how the result was made, for people (`Gene.made`).

    Raises:
        NothingToGraftError: all coefficients are 0.
        ConfigError: the gene's updates are 0 in every layer with a coefficient above 0.
    """
    points = {name: point for name, point in gene.points.items() if coefficients[point.layer]}
    if not points:
        raise NothingToGraftError(
            "all tuned coefficients are 0, so the graft would change nothing",
            remedy="use another gene, or more shots",
        )
    if not any(bool(gene.factors[name].B.any()) and bool(gene.factors[name].A.any()) for name in points):
        raise ConfigError(
            "the gene's updates are all 0, so the graft would change nothing",
            got=f"{len(points)} weight matrices with zero factors",
            remedy="use another gene, or compose it with weights above 0",
        )
    factors = {
        name: Factors(gene.factors[name].B * coefficients[point.layer], gene.factors[name].A)
        for name, point in points.items()
    }
    return replace(gene, points=points, factors=factors, made=origin, parents=(gene.fingerprint,))
