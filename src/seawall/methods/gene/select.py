"""Step (b) of SafeGene: score decoder layers by how much more two models differ on harmful prompts; keep the best.

Shapes: `L` decoder layers, `R` positions of one reply, `D` model width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.artifacts.gene import Gene, GeneLayer
from seawall.config.gene import Keep
from seawall.data.batching import collate
from seawall.data.templating import Encoded
from seawall.errors import ConfigError
from seawall.methods.gene.examples import Example, buckets
from seawall.models.forward import run_model
from seawall.models.hidden.residual import decoder_layers
from seawall.models.replicas import shared_buckets

POSITIONS = 16
"""Positions compared per reply, from the one that predicts its first token."""
_INPUT = -1
"""The layer number of the embeddings."""


def layer_outputs(model: PreTrainedModel, examples: Sequence[Example], pad_id: int, *, batch_size: int) -> list[Tensor]:
    """Residual stream at the positions that predict the first tokens of each reply: (L + 1, R, D) per example.

    Index 0 is the input of the first decoder layer, index l + 1 the output of layer l.
    """

    def rows_of(positions: list[int]) -> list[Encoded]:
        return [examples[position].encoded for position in positions]

    read = partial(_layer_outputs, pad_id=pad_id)
    hidden: dict[int, Tensor] = {}
    for positions, outputs in shared_buckets(model, read, rows_of, buckets(examples, batch_size)):
        hidden.update(zip(positions, outputs, strict=True))
    return [hidden[position] for position in range(len(examples))]


@torch.no_grad()
def _layer_outputs(model: PreTrainedModel, rows: Sequence[Encoded], *, pad_id: int) -> list[Tensor]:
    outputs: dict[int, Tensor] = {}
    blocks = decoder_layers(model)
    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(_input_recorder(outputs), with_kwargs=True).remove)
        for layer, block in enumerate(blocks):
            hooks.callback(block.register_forward_hook(_recorder(outputs, layer)).remove)
        run_model(model, collate(rows, pad_id, side="left"), keep=1)
    hidden = []
    for index, row in enumerate(rows):
        start = -1 - row.response_tokens
        stop = min(start + POSITIONS, -1)
        layers_RD = [outputs[layer][index, start:stop].float().cpu() for layer in range(_INPUT, len(blocks))]
        hidden.append(torch.stack(layers_RD))
    return hidden


def contrast(
    aligned: Sequence[Tensor], degraded: Sequence[Tensor], harmful_prompts: Sequence[bool]
) -> tuple[GeneLayer, ...]:
    """s_l = E_harmful ||difference|| / ||h_l|| - E_benign(...) by layer, from `layer_outputs` of the same examples.

    Measured twice: of what the layer writes (its output minus its input), and of its output.
    """
    written, stream = [], []
    for ours, theirs in zip(aligned, degraded, strict=True):
        difference = ours - theirs
        difference_LRD, written_LRD = difference[1:], difference.diff(dim=0)
        norm_LR = ours[1:].norm(dim=-1)
        written.append((written_LRD.norm(dim=-1) / norm_LR).mean(-1))
        stream.append((difference_LRD.norm(dim=-1) / norm_LR).mean(-1))
    mask = torch.tensor(list(harmful_prompts))
    means = [torch.stack(side)[kind].mean(0).tolist() for side in (written, stream) for kind in (mask, ~mask)]
    return tuple(
        GeneLayer(layer, harmful, benign, stream_harmful, stream_benign, selected=True)
        for layer, (harmful, benign, stream_harmful, stream_benign) in enumerate(zip(*means, strict=True))
    )


def select_layers(
    layers: Sequence[GeneLayer], candidates: Sequence[int], keep: Keep, fraction: float, *, seed: int = 0
) -> tuple[int, ...]:
    """The decoder layers to keep, ascending.

    Args:
        layers: scores; `random` and `all` need none.
        candidates: the layers to choose from.
        keep: `top` (highest contrast of what the layer writes), `stream` (highest contrast of its output), `random`
            (the same number, drawn) or `all`.
        fraction: share of `candidates`; at least one layer is kept.
        seed: of the draw.

    Raises:
        ConfigError: there are no scores.
    """
    count = max(1, round(fraction * len(candidates)))
    if keep == "all":
        return tuple(sorted(candidates))
    if keep == "random":
        return tuple(sorted(random.Random(f"seawall layers {seed}").sample(sorted(candidates), count)))
    scores = {layer.layer: layer.stream_score if keep == "stream" else layer.score for layer in layers}
    if not scores:
        raise ConfigError(
            "the gene has no layer scores", remedy="choose --keep random or all, or select from an extracted gene"
        )
    return tuple(sorted(sorted(candidates, key=lambda layer: (-scores[layer], layer))[:count]))


def with_layers(gene: Gene, layers: Sequence[int], *, origin: str) -> Gene:
    """The gene on these decoder layers alone; measurements of the original gene are dropped."""
    selected = set(layers)
    points = {name: point for name, point in gene.points.items() if point.layer in selected}
    return replace(
        gene,
        points=points,
        factors={name: gene.factors[name] for name in points},
        layers=tuple(replace(layer, selected=layer.layer in selected) for layer in gene.layers),
        experts=tuple(record for record in gene.experts if record.layer in selected),
        recovery=(),
        curve=(),
        refusals={},
        made=origin,
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
