"""Which layers of a gene to keep, by how differently two models answer harm and all else. SafeGene, step (b).

Shapes: `L` decoder layers, `R` positions of one reply, `D` model width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.artifacts.gene import Gene, GeneLayer
from seawall.config.gene import Keep
from seawall.data.batching import collate
from seawall.errors import ConfigError
from seawall.methods.gene.lessons import Lesson, buckets
from seawall.models.forward import run_model
from seawall.models.hidden.residual import decoder_layers

POSITIONS = 16
"""Positions per reply that are compared: where its first token is decided, and on."""
_INPUT = -1
"""Stands for the embeddings where layers are numbered."""


@torch.no_grad()
def layer_outputs(model: PreTrainedModel, lessons: Sequence[Lesson], pad_id: int, *, batch_size: int) -> list[Tensor]:
    """The residual stream where the first tokens of each reply are predicted, (L + 1, R, D) per lesson: the first
    decoder layer's input, and the output of every one.
    """
    found: dict[int, Tensor] = {}
    blocks = decoder_layers(model)
    for positions in buckets(lessons, batch_size):
        rows = [lessons[at].encoded for at in positions]
        outputs: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            hooks.callback(blocks[0].register_forward_pre_hook(_input_recorder(outputs), with_kwargs=True).remove)
            for layer, block in enumerate(blocks):
                hooks.callback(block.register_forward_hook(_recorder(outputs, layer)).remove)
            run_model(model, collate(rows, pad_id, side="left"), keep=1)
        for at, row in enumerate(rows):
            start = -1 - row.response_tokens
            stop = min(start + POSITIONS, -1)
            kept = [outputs[layer][at, start:stop].float().cpu() for layer in range(_INPUT, len(blocks))]
            found[positions[at]] = torch.stack(kept)
    return [found[at] for at in range(len(lessons))]


def contrast(
    aligned: Sequence[Tensor], degraded: Sequence[Tensor], harmful_prompts: Sequence[bool]
) -> tuple[GeneLayer, ...]:
    """The differences of two models by layer, from `layer_outputs` of the same lessons.

    What a layer writes is its output less its input; what embeddings differ by is no layer's.
    """
    own, stream = [], []
    for ours, theirs in zip(aligned, degraded, strict=True):
        difference = ours - theirs
        difference_LRD, written_LRD = difference[1:], difference.diff(dim=0)
        norm_LR = ours[1:].norm(dim=-1)
        own.append((written_LRD.norm(dim=-1) / norm_LR).mean(-1))
        stream.append((difference_LRD.norm(dim=-1) / norm_LR).mean(-1))
    mask = torch.tensor(list(harmful_prompts))
    means = [torch.stack(side)[kind].mean(0).tolist() for side in (own, stream) for kind in (mask, ~mask)]
    numbers = zip(*means, strict=True)
    return tuple(
        GeneLayer(layer, harmful, benign, stream_harmful, stream_benign, selected=True)
        for layer, (harmful, benign, stream_harmful, stream_benign) in enumerate(numbers)
    )


def select_layers(
    layers: Sequence[GeneLayer], held: Sequence[int], keep: Keep, fraction: float, *, seed: int = 0
) -> tuple[int, ...]:
    """The decoder layers to keep, ascending.

    Args:
        layers: with scores; those that `keep` needs none of may be missing.
        held: the layers to choose from.
        keep: `top` (the best by what they write themselves), `stream` (the best by their output), `random` (as many,
            drawn) or `all`.
        fraction: share of `held`, at least one layer.
        seed: of the draw.

    Raises:
        ConfigError: there are no scores.
    """
    count = max(1, round(fraction * len(held)))
    if keep == "all":
        return tuple(sorted(held))
    if keep == "random":
        return tuple(sorted(random.Random(f"seawall layers {seed}").sample(sorted(held), count)))
    scores = {one.layer: one.stream_score if keep == "stream" else one.score for one in layers}
    if not scores:
        raise ConfigError(
            "the gene has no layer scores", remedy="choose --keep random or all, or a gene that was extracted"
        )
    return tuple(sorted(sorted(held, key=lambda layer: (-scores[layer], layer))[:count]))


def with_layers(gene: Gene, layers: Sequence[int], *, made: str) -> Gene:
    """The gene on some of its layers alone; what was measured of the whole gene does not hold for it."""
    kept = set(layers)
    points = {name: one for name, one in gene.points.items() if one.layer in kept}
    return replace(
        gene,
        points=points,
        factors={name: gene.factors[name] for name in points},
        layers=tuple(replace(one, selected=one.layer in kept) for one in gene.layers),
        experts=tuple(one for one in gene.experts if one.layer in kept),
        recovery=(),
        curve=(),
        refusals={},
        made=made,
        parents=(gene.fingerprint,),
    )


def _input_recorder(outputs: dict[int, Tensor]) -> Callable[..., None]:
    def hook(block: nn.Module, args: Any, kwargs: Any) -> None:
        outputs[_INPUT] = args[0] if args else kwargs["hidden_states"]

    return hook


def _recorder(outputs: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def hook(block: nn.Module, args: Any, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    return hook
