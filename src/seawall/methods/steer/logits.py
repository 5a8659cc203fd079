"""The direction that moves the logits of the refusal tokens and nothing else of the model: the decoy of a direction.

Legend: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.artifacts.directions import Directions
from seawall.data.batching import Batch
from seawall.methods.steer.score import refusal_score
from seawall.methods.steer.target import Prompt, TargetModel, shared
from seawall.models.forward import run_model
from seawall.models.hidden.norms import norm_scale, readers_of
from seawall.models.hidden.residual import decoder_layers
from seawall.models.hidden.sublayers import first_output
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import model_of


def logits_direction(target: TargetModel, prompts: Sequence[Prompt]) -> Float[Tensor, " D"]:
    """Mean gradient of the refusal score through the output layer and the final norm's weight (D,), on the CPU.

    The gradient in the output layer's input, at the last token, times the final norm's weight: the direction of the
    residual stream that makes the refusal tokens likelier than others directly, whatever the model decides. How the
    norm's length reacts is left out: there every direction would lower every logit. A direction whose effect is this
    one's says nothing of where refusal lies (arXiv 2609.16204, 2608.18093).

    Args:
        target: the model.
        prompts: prompts that it refuses.
    """
    sums_D: Tensor | None = None
    for _, row_D in shared(target, prompts, partial(_gradient_sum, tokens=target.refusal_tokens)):
        sums_D = row_D if sums_D is None else sums_D + row_D
    assert sums_D is not None
    return (sums_D / len(prompts)).float()


def without_logits(directions: Directions) -> Directions:
    """The layers' directions without their component along the refusal tokens' logits.

    A direction that lies in it altogether has length 0 then.
    """
    assert directions.logits_D is not None
    unit_D = torch.nn.functional.normalize(directions.logits_D.double(), dim=0)
    layer_NPD = directions.layer_NPD.double()
    left_NPD = layer_NPD - (layer_NPD @ unit_D)[..., None] * unit_D
    return replace(directions, layer_NPD=left_NPD.float())


def logits_alone(directions: Directions) -> Directions:
    """In place of every layer's direction that of the refusal tokens' logits, as long as the one that it replaces."""
    assert directions.logits_D is not None
    unit_D = torch.nn.functional.normalize(directions.logits_D.double(), dim=0)
    length_NP1 = directions.layer_NPD.double().norm(dim=-1, keepdim=True)
    return replace(directions, layer_NPD=(length_NP1 * unit_D).float())


def cosine(directions: Directions, layer: int, position: int) -> float:
    """Cosine of a layer's direction and the direction of the refusal tokens' logits; 0 where either has no length."""
    assert directions.logits_D is not None
    direction_D = directions.of_layer(layer, position).double()
    return float(torch.nn.functional.cosine_similarity(direction_D, directions.logits_D.double(), dim=0))


def _gradient_sum(subject: PreTrainedModel | MoEModel, batch: Batch, *, tokens: tuple[int, ...]) -> Tensor:
    """Sum of the rows' gradients of the refusal score in the output layer's input, times the final norm's weight (D,).

    Computed by any process of a launch.
    """
    model = model_of(subject)
    output_layer, last_layer = model.get_output_embeddings(), decoder_layers(model)[-1]
    assert isinstance(output_layer, nn.Module)
    leaves, last = list[Tensor](), list[Tensor]()

    def as_leaf(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves.append(args[0].detach().requires_grad_())
        return (leaves[-1], *args[1:])

    def see_layer(layer: nn.Module, inputs: Any, output: Any) -> None:
        last.append(first_output(output))

    with ExitStack() as hooks:
        hooks.callback(output_layer.register_forward_pre_hook(as_leaf).remove)
        hooks.callback(last_layer.register_forward_hook(see_layer).remove)
        norms = hooks.enter_context(readers_of(model, last))
        with torch.enable_grad():
            logits_BV = run_model(model, batch, keep=1)[:, -1]
            score = refusal_score(logits_BV, tokens).sum()
            (gradient_BTD,) = torch.autograd.grad(score, leaves[-1:])
    width = gradient_BTD.shape[-1]
    weight_D = norm_scale(norms[0], last[-1]) if norms else torch.ones(width, dtype=torch.float64)
    return (gradient_BTD[:, -1].double().sum(0) * weight_D.to(gradient_BTD.device)).cpu()
