"""The experts implementation `sorted`: the numbers of `eager`, bit for bit, in fewer operations on a CPU.

`eager` looks up, gathers and adds up the rows of one expert after the other: a dozen small operations for each, and in
the backward pass a zero-padded gradient of all rows for each. Here the rows are sorted by expert once, so that an
expert's rows are a slice. Every product has the operands that it has in `eager`, and every sum its order.

Legend: T tokens, K experts per token, R = T * K rows, E experts, S trained copies of experts, D model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from seawall.models.moe.calls import ExpertsCall

NAME = "sorted"
_WEIGHTS = frozenset(("gate_up_proj", "down_proj"))
_ROWS_AT_ONCE = 1024
"""Beyond, the rows of all experts together leave the cache, and one expert after the other is faster."""


def experts_options(name: str | None) -> dict[str, str]:
    """The arguments with which transformers loads a model with this implementation; `sorted` is made known to it."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
    return {} if name is None else {"experts_implementation": name}


def computes_sorted(experts: nn.Module) -> bool:
    """Whether a module's own forward is this implementation, and its experts are of the kind that it computes."""
    config = getattr(experts, "config", None)
    chosen = getattr(config, "_experts_implementation", None) == NAME and "forward" not in vars(experts)
    return chosen and _is_plain(experts)


def sorted_experts(
    experts: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The forward of a stack of experts; `eager`'s own where gradients are recorded, or the experts are unusual."""
    recorded = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (hidden_TD, weights_TK, *experts.parameters())
    )
    if recorded or args or kwargs or not _is_plain(experts):
        eager = inspect.unwrap(type(experts).forward)
        output: Tensor = eager(experts, hidden_TD, indices_TK, weights_TK, *args, **kwargs)
        return output
    # As in `eager`, an expert's rows are in the order of their rank among the token's experts, then of tokens.
    ids_R, order_R = torch.sort(indices_TK.T.reshape(-1), stable=True)
    sizes = torch.bincount(ids_R, minlength=int(experts.num_experts)).tolist()
    compute = _together if len(ids_R) <= _ROWS_AT_ONCE else _one_by_one
    return compute(experts, hidden_TD, weights_TK, order_R, sizes)


def split_forward(
    experts: Any, call: ExpertsCall, copy_index_E: Tensor, copies: Mapping[str, Tensor]
) -> tuple[Tensor, bool]:
    """The forward of a stack of which some experts are computed by trained copies, with gradients.

    Args:
        experts: the frozen stack, for which `computes_sorted` is true.
        call: the arguments of its call.
        copy_index_E: the copy of each expert, -1 without one.
        copies: the copied slices (S, ...) by the name of their stack.

    Returns:
        (output (T, D), whether any row is computed by a copy).
    """
    ids_R, top_k = call.indices_TK.reshape(-1), call.indices_TK.shape[1]
    copy_R = copy_index_E[ids_R]
    is_copy_R = copy_R >= 0
    frozen = int(experts.num_experts)
    group_R = torch.where(is_copy_R, frozen + copy_R, ids_R)
    order_R = torch.sort(group_R, stable=True)[1]
    place_R = _inverse(order_R)
    # A token's gradient sums the rows of frozen experts first, then those of copies.
    ranks_TK = torch.sort(is_copy_R.view(-1, top_k), dim=1, stable=True)[1]
    rows_RD = _spread(call.hidden_TD, order_R // top_k, place_R.view(-1, top_k).gather(1, ranks_TK))
    weights = {name: [*getattr(experts, name).unbind(), *copies[name].unbind()] for name in _WEIGHTS}
    sizes = torch.bincount(group_R, minlength=len(weights["down_proj"])).tolist()
    output_RD = _reordered(_outputs(experts, rows_RD, sizes, weights), place_R, order_R)
    weighted_RD = output_RD * call.weights_TK.reshape(-1, 1)
    total_TD = weighted_RD.view(-1, top_k, weighted_RD.shape[1]).sum(dim=1).to(call.hidden_TD.dtype)
    return total_TD, bool(sum(sizes[frozen:]))


def _is_plain(experts: nn.Module) -> bool:
    """Whether the stack is gate and up projection in one, activation and down projection, all of it on this device."""
    flags = ("has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel")
    return (
        bool(getattr(experts, "has_gate", False) and getattr(experts, "is_concatenated", False))
        and not any(getattr(experts, flag, True) for flag in flags)
        and {name for name, _ in experts.named_parameters()} == _WEIGHTS
    )


def _outputs(experts: Any, rows_RD: Tensor, sizes: Sequence[int], weights: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """The output of every row, of rows sorted by expert: `sizes` rows of each, with the weights of each."""
    used = [index for index, size in enumerate(sizes) if size]
    lengths = [sizes[index] for index in used]

    def projected(rows: Tensor, name: str) -> Tensor:
        parts = zip(rows.split_with_sizes(lengths), used, strict=True)
        return torch.cat([linear(part, weights[name][index]) for part, index in parts])

    return projected(experts._apply_gate(projected(rows_RD, "gate_up_proj")), "down_proj")


def _together(experts: Any, hidden_TD: Tensor, weights_TK: Tensor, order_R: Tensor, sizes: Sequence[int]) -> Tensor:
    """All experts' rows in a few operations; a token's rows are summed in the order of experts."""
    tokens, top_k = weights_TK.shape
    weights = {name: getattr(experts, name).unbind() for name in _WEIGHTS}
    output_RD = _outputs(experts, hidden_TD.index_select(0, order_R % tokens), sizes, weights)
    weighted_RD = (output_RD * weights_TK.T.reshape(-1)[order_R, None]).to(hidden_TD.dtype)
    place_KT = torch.sort(_inverse(order_R).view(top_k, tokens), dim=0)[0]
    total_TD = weighted_RD.index_select(0, place_KT[0])
    for place_T in place_KT[1:]:
        total_TD += weighted_RD.index_select(0, place_T)
    return total_TD


def _one_by_one(experts: Any, hidden_TD: Tensor, weights_TK: Tensor, order_R: Tensor, sizes: Sequence[int]) -> Tensor:
    """One expert after the other."""
    token_R, gate_R1 = order_R % len(hidden_TD), weights_TK.T.reshape(-1)[order_R, None]
    up, down = (getattr(experts, name).unbind() for name in ("gate_up_proj", "down_proj"))
    total_TD = torch.zeros_like(hidden_TD)
    start = 0
    for index, size in enumerate(sizes):
        rows = slice(start, start + size)
        start += size
        if size:
            inner = experts._apply_gate(linear(hidden_TD.index_select(0, token_R[rows]), up[index]))
            weighted = linear(inner, down[index]) * gate_R1[rows]
            total_TD.index_add_(0, token_R[rows], weighted.to(total_TD.dtype))
    return total_TD


def _inverse(order_R: Tensor) -> Tensor:
    place_R = torch.empty_like(order_R)
    place_R[order_R] = torch.arange(len(order_R), device=order_R.device)
    return place_R


class _Spread(torch.autograd.Function):
    """One row for each of a token's experts; a token's gradient sums its rows in a given order."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return hidden_TD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (place_TK,), (gradient_RD,) = ctx.saved_tensors, gradients
        total_TD = gradient_RD.index_select(0, place_TK[:, 0])
        for place_T in place_TK.T[1:]:
            total_TD = total_TD + gradient_RD.index_select(0, place_T)
        return total_TD, None, None


class _Reordered(torch.autograd.Function):
    """The same rows in another order, whose gradient is a gather too."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, place_R: Tensor, order_R: Tensor) -> Tensor:
        ctx.save_for_backward(order_R)
        return rows_RD.index_select(0, place_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


_spread: Any = _Spread.apply
_reordered: Any = _Reordered.apply
