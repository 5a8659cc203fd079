"""Trains selected routed experts as small copies, and leaves every other weight bit-identical.

Masking the gradient of the full stack is not enough: AdamW's weight decay moves masked slices too (9.5 % measured at
learning rate 1e-2, decay 0.1, 100 steps), and gradients and optimizer state stay as large as the stack. Here each
layer's forward splits its token-expert rows: rows of selected experts go to a copy of the experts module that holds
only the S selected slices, all other rows to the frozen stack. Every row is computed once, so a forward pass costs as
much as the plain model's, and gradients, optimizer state and the saved change are proportional to S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seawall.errors import SeawallError
from seawall.models.moe.by_expert import computes_sorted, split_forward
from seawall.models.moe.calls import ByToken, ExpertsCall, bare_copy, call_reader, frozen, replaced_forward
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
class TrainableExperts(TrainableCopies):
    """The copies of the selected experts; each is named after its stack and has shape (S, ...).

    Attributes:
        bypassed: whether the model computes with its own stacks in place of the copies.
    """

    bypassed: bool = False

    @contextmanager
    def written(self) -> Iterator[None]:
        """Inside, the model computes with its own stacks, which hold the rounded copies, as after the end of training.

        The stacks' former bits are restored on exit.
        """
        try:
            self.write_back()
            self.bypassed = True
            yield
        finally:
            self.bypassed = False
            self.revert()


@contextmanager
def trainable_experts(
    moe: MoEModel, selected: Sequence[Sequence[int]], *, master_dtype: torch.dtype = torch.float32
) -> Iterator[TrainableExperts]:
    """Inside, only the selected experts train, as copies with which the model computes.

    The model's own parameters take no gradient. Leaving the block, normally or by an error, restores the model; only
    `write_back` keeps the trained values. Works with gradient checkpointing.

    Args:
        moe: the model.
        selected: the experts to train, for each MoE layer; a layer may have none.
        master_dtype: dtype of the copies; the forward pass rounds them to the model's dtype.

    Raises:
        SeawallError: no expert is selected, or the selection does not fit the model.
        UnsupportedModelError: the experts are quantised or not in memory.
    """
    chosen = _checked(moe, selected)
    copies = TrainableExperts(
        [part for layer in moe.layers for part in _parts(layer, chosen[layer.index])], master_dtype
    )
    with ExitStack() as changes:
        changes.enter_context(frozen(moe.model))
        for layer in moe.layers:
            if chosen[layer.index]:
                forward = _RowSplit(layer, chosen[layer.index], copies)
                changes.enter_context(replaced_forward(layer.experts, ByToken(forward)))
        yield copies


def _checked(moe: MoEModel, selected: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    chosen = tuple(tuple(sorted(set(layer))) for layer in selected)
    remedy = "select experts of this model"
    if len(chosen) != moe.num_layers:
        raise SeawallError(
            "the selected experts do not fit the model",
            got=f"{len(chosen)} layers",
            expected=f"{moe.num_layers} MoE layers",
            remedy=remedy,
        )
    unknown = next((expert for layer in chosen for expert in layer if not 0 <= expert < moe.num_experts), None)
    if unknown is not None:
        expected = f"experts from 0 to {moe.num_experts - 1}"
        raise SeawallError("the selected experts do not fit the model", got=unknown, expected=expected, remedy=remedy)
    if not any(chosen):
        raise SeawallError("no expert is selected", expected="at least one expert in one layer", remedy=remedy)
    return chosen


def _parts(layer: MoELayer, experts: tuple[int, ...]) -> list[Part]:
    names = layer.weights if experts else ()
    return [Part(layer.full_name(name), layer.parameter(name), experts) for name in names]


@final
class _RowSplit:
    """A layer's forward inside `trainable_experts`.

    Both halves are called with one expert per row (K = 1) of weight 1. The gate weights are applied here, and the K
    rows of a token summed in order, as in transformers' batched and grouped implementations.
    """

    def __init__(self, layer: MoELayer, experts: tuple[int, ...], copies: TrainableExperts) -> None:
        self._copies = copies
        self._read = call_reader(layer.experts)
        self._frozen: Callable[..., Any] = layer.experts.forward
        self._sorted = layer.experts if computes_sorted(layer.experts) else None
        self._small = _narrowed(layer.experts, len(experts))
        self._masters = {name: copies.get(layer.full_name(name)) for name in layer.weights}
        self._dtypes = {name: layer.parameter(name).dtype for name in layer.weights}
        # One entry more than there are experts: expert parallelism marks rows of other devices with the index E.
        self._copy_index_E = torch.full((layer.num_experts + 1,), -1, dtype=torch.long)
        self._copy_index_E[list(experts)] = torch.arange(len(experts))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._frozen(*args, **kwargs) if self._copies.bypassed else self._split(*args, **kwargs)

    def _split(self, *args: Any, **kwargs: Any) -> Tensor:
        call = self._read(args, kwargs)
        ids_R = call.indices_TK.reshape(-1)
        self._copy_index_E = self._copy_index_E.to(ids_R.device)
        if self._sorted is not None:
            total_TD, any_copy = split_forward(self._sorted, call, self._copy_index_E, self._rounded())
            return total_TD if any_copy else total_TD + self._zero().to(total_TD.dtype)
        copy_index_R = self._copy_index_E[ids_R]
        frozen_rows, small_rows = (copy_index_R < 0).nonzero().squeeze(1), (copy_index_R >= 0).nonzero().squeeze(1)
        order_R = torch.cat([frozen_rows, small_rows])
        hidden_RD = call.hidden_TD.index_select(0, order_R // call.indices_TK.shape[1])
        frozen_RD, small_RD = hidden_RD[: len(frozen_rows)], hidden_RD[len(frozen_rows) :]
        outputs = []
        if len(frozen_rows):
            outputs.append(self._frozen(*_single(call, frozen_RD, ids_R[frozen_rows])))
        if len(small_rows):
            outputs.append(self._trained(*_single(call, small_RD, copy_index_R[small_rows])))
        total_TD = _combine(torch.cat(outputs), order_R, call)
        return total_TD if len(small_rows) else total_TD + self._zero().to(total_TD.dtype)

    def _trained(self, *args: Any) -> Tensor:
        output: Tensor = functional_call(self._small, self._rounded(), args)
        return output

    def _rounded(self) -> dict[str, Tensor]:
        """The copies in the model's dtype."""
        return {name: master.to(self._dtypes[name]) for name, master in self._masters.items()}

    def _zero(self) -> Tensor:
        """A zero that depends on the copies, so that a batch without selected experts still has a (zero) gradient."""
        return torch.stack([master.flatten()[0] for master in self._masters.values()]).sum() * 0.0


def _single(call: ExpertsCall, hidden_RD: Tensor, ids_R: Tensor) -> tuple[Any, ...]:
    """Arguments of a call with one expert of weight 1 per row."""
    ones_R1 = torch.ones(len(ids_R), 1, dtype=call.weights_TK.dtype, device=hidden_RD.device)
    return hidden_RD, ids_R.unsqueeze(1), ones_R1


def _combine(output_RD: Tensor, order_R: Tensor, call: ExpertsCall) -> Tensor:
    """Sorts the rows back into token order, and sums each token's K rows weighted by gate weight."""
    row_of_R = torch.empty_like(order_R)
    row_of_R[order_R] = torch.arange(len(order_R), device=order_R.device)
    weighted_RD = output_RD.index_select(0, row_of_R) * call.weights_TK.reshape(-1, 1)
    num_tokens, top_k = call.indices_TK.shape
    return weighted_RD.view(num_tokens, top_k, -1).sum(dim=1).to(call.hidden_TD.dtype)


def _narrowed(experts: nn.Module, num_experts: int) -> nn.Module:
    """A copy of an experts module with a smaller `num_experts`, whose parameters `functional_call` supplies."""
    small = bare_copy(experts)
    vars(small)["num_experts"] = num_experts
    return small
