"""How the refusal loss of attacks moves with the gate weights of each expert (arXiv 2610.02910).

Legend: P pairs, B rows of a batch, T tokens of its longest row, L MoE layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.templating import encode_example
from seawall.data.types import Exchange
from seawall.models.forward import run
from seawall.models.moe.calls import Arguments, call_reader, frozen
from seawall.models.moe.capture import stacked
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.replicas import shared_buckets
from seawall.train.losses import response_cross_entropy

Progress = Callable[[int, int], None]
Gates = list[tuple[Tensor, Tensor]]
"""By MoE layer: the experts of each token (T, K), and zeros added to their gate weights, which take gradients."""


def refusal_sensitivity(
    moe: MoEModel,
    tokenizer: PreTrainedTokenizerBase,
    refusals: Sequence[Exchange],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Float[Tensor, "P L E"]:
    """Sum over the tokens that choose an expert of `|d loss / d gate weight|`, for each attack, layer and expert.

    The loss is the mean cross-entropy of a refusal, given the attack; a token's gate weight also acts through the
    routing of the layers above. Magnitudes are summed, so that effects of opposite sign do not cancel: an expert that
    works against the refusal is as safety-critical as one that works for it.

    Args:
        moe: the model; its weights take no gradient.
        tokenizer: of the model.
        refusals: P attacks with a refusal each.
        batch_size: attacks per forward and backward pass.
        progress: called after each pass with (attacks measured, P).
    """
    rows = [encode_example(tokenizer, exchange) for exchange in refusals]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    sensitivity_PLE = torch.zeros(len(rows), moe.num_layers, moe.num_experts)
    count = 0
    buckets = length_buckets([len(row.input_ids) for row in rows], batch_size)

    def batch_of(positions: list[int]) -> Batch:
        return collate([rows[position] for position in positions], pad_id)

    for positions, rows_BLE in shared_buckets(moe, _batch_sensitivity, batch_of, buckets):
        sensitivity_PLE[positions] = rows_BLE
        count += len(positions)
        if progress is not None:
            progress(count, len(rows))
    return sensitivity_PLE


def _batch_sensitivity(moe: MoEModel, batch: Batch) -> Tensor:
    rows, width = batch.input_ids_BT.shape
    with torch.enable_grad(), frozen(moe.model), _differentiable_gates(moe) as gates:
        logits_BTV = run(moe, batch, keep=width)
        loss_B = response_cross_entropy(logits_BTV, batch.labels_BT.to(logits_BTV.device))
        # Rows are independent, so the gradient of the sum holds each row's own.
        gradients = torch.autograd.grad(loss_B.sum(), [shift_TK for _, shift_TK in gates])
    layers = []
    for (indices_TK, _), gradient_TK in zip(gates, gradients, strict=True):
        magnitude_TE = torch.zeros(len(indices_TK), moe.num_experts, device=gradient_TK.device)
        magnitude_TE.scatter_add_(1, indices_TK, gradient_TK.float().abs())
        layers.append(magnitude_TE.view(rows, width, -1).sum(1))
    return stacked(layers, dim=1).cpu()


@contextmanager
def _differentiable_gates(moe: MoEModel) -> Iterator[Gates]:
    """Inside, zeros with a gradient are added to the gate weights; one entry per MoE layer, in forward order."""
    gates: Gates = []
    with ExitStack() as hooks:
        for layer in moe.layers:
            handle = layer.experts.register_forward_pre_hook(_shifted(layer, gates), with_kwargs=True)
            hooks.callback(handle.remove)
        yield gates


def _shifted(layer: MoELayer, gates: Gates) -> Callable[[nn.Module, Any, Any], Arguments]:
    read = call_reader(layer.experts)

    def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        call = read(args, kwargs)
        shift_TK = torch.zeros_like(call.weights_TK, requires_grad=True)
        gates.append((call.indices_TK, shift_TK))
        return call.with_routing(call.indices_TK, call.weights_TK + shift_TK)

    return hook
