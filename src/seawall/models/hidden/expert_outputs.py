"""Outputs of single experts, each alone and without its gate weight, and of the shared expert beside them.

Legend: B rows of the batch, T tokens, P selected positions, D model width, K experts per token, X experts of one call,
S = B * P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.hidden.sublayers import decoder_blocks, first_output, has_matrix, is_projection
from seawall.models.moe.calls import ExpertsCall, bare_copy, call_reader
from seawall.models.moe.find import MoELayer, MoEModel

ExpertSink = Callable[[int, tuple[int, ...], Tensor], None]
"""Called with (MoE layer, experts, outputs (X, B, P, D)): the output of each expert alone, at gate weight 1."""
SharedSink = Callable[[int, Tensor], None]
"""Called with (MoE layer, output (B, P, D)): the MoE block's output without its routed experts."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest relative error of the sum of a token's experts against the layer's own; .05 in half precision."""


@contextmanager
def expert_outputs(
    moe: MoEModel,
    experts: Mapping[int, Sequence[int]],
    *,
    positions: Sequence[int],
    sink: ExpertSink,
    shared_sink: SharedSink | None = None,
) -> Iterator[None]:
    """Inside, every forward pass also reports what single experts give for the tokens at some positions.

    Each expert is called alone, at gate weight 1, on the hidden states that the layer's experts receive: the routed
    part of that expert, without the shared expert. Nothing below a layer depends on the choice of experts in it, so one
    pass serves all layers and experts. The pass itself, and recordings of it, are unchanged.

    In every pass the layer's own output for some tokens is compared with the sum of its chosen experts, each called
    alone and times its gate weight. So an expert that is not the chosen one cannot pass for it.

    Args:
        moe: the model, in evaluation mode.
        experts: MoE layer -> experts to call, one after the other.
        positions: token positions of each row, counted from either end as in `hidden[:, positions]`.
        sink: receives the outputs of a layer as it runs, in the order of `experts`, in one or several parts with no
            more tokens than the pass itself. It must not keep all of them.
        shared_sink: receives the part of the block's output that no router weighs, in layers with a shared expert.

    Raises:
        UnsupportedModelError: the MoE blocks cannot be identified, or (in the forward pass) the experts called alone do
            not add up to the layer's output.
        ConfigError: the model lacks a layer or an expert, or (in the forward pass) a position is outside the prompt.
    """
    assert not moe.model.training
    blocks = decoder_blocks(moe.model)
    _require_in_range(moe, experts)
    with ExitStack() as hooks:
        for index, layer_experts in experts.items():
            layer = moe.layers[index]
            block = blocks[layer.decoder_layer].mlp
            shared = shared_sink if has_shared_expert(layer, block) else None
            observer = _Observer(layer, tuple(layer_experts), tuple(positions), sink, shared)
            hooks.callback(layer.experts.register_forward_hook(observer.see_experts, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(observer.see_block).remove)
        yield


def has_shared_expert(layer: MoELayer, block: nn.Module) -> bool:
    """Whether the MoE block has weights beside the router and the routed experts, as shared experts are.

    A single matrix is none: every routed expert's input or output passes it (Nemotron-H).
    """
    parts = [child for child in block.children() if child not in (layer.router, layer.experts)]
    beside = [child for child in parts if layer.router not in list(child.modules()) and not is_projection(child)]
    return any(map(has_matrix, beside))


@final
class _Observer:
    """The hooks at one MoE block: the call of its experts, then the block's output."""

    def __init__(
        self,
        layer: MoELayer,
        experts: tuple[int, ...],
        positions: tuple[int, ...],
        sink: ExpertSink,
        shared_sink: SharedSink | None,
    ) -> None:
        self._layer, self._experts, self._positions = layer, experts, positions
        self._sink, self._shared_sink = sink, shared_sink
        self._read, self._twin = call_reader(layer.experts), bare_copy(layer.experts)
        self._seen: tuple[ExpertsCall, Tensor] | None = None

    def see_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self._seen = self._read(args, kwargs), output.detach()

    @torch.no_grad()
    def see_block(self, block: nn.Module, inputs: Any, output: Any) -> None:
        assert self._seen is not None
        (call, routed_TD), block_BTD = self._seen, first_output(output).detach()
        self._seen = None
        rows, length, width = block_BTD.shape
        _require_positions(self._positions, length)
        if routed_TD.shape != (rows * length, width):
            raise UnsupportedModelError(
                f"the experts of MoE layer {self._layer.index} do not write to the residual stream themselves",
                got=f"outputs {tuple(routed_TD.shape)}",
                expected=f"({rows * length}, {width}), one per token, as wide as the model",
            )
        self._require_sum(call, routed_TD)
        shape = (rows, len(self._positions), width)
        columns = torch.tensor([position % length for position in self._positions], device=block_BTD.device)
        rows_S = (torch.arange(rows, device=columns.device)[:, None] * length + columns).flatten()
        chunk_size = max(1, length // max(1, len(self._positions)))
        for start in range(0, len(self._experts), chunk_size):
            chunk = self._experts[start : start + chunk_size]
            outputs = self._alone(call, rows_S.repeat(len(chunk)), _repeated(chunk, rows_S))
            self._sink(self._layer.index, chunk, outputs.view(len(chunk), *shape))
        if self._shared_sink is not None:
            shared_SD = block_BTD.flatten(0, 1)[rows_S].float() - routed_TD[rows_S].float()
            self._shared_sink(self._layer.index, shared_SD.view(shape))

    def _alone(self, call: ExpertsCall, tokens_R: Tensor, experts_R: Tensor) -> Tensor:
        """The output of one expert for each of R tokens, at gate weight 1 (R, D)."""
        positional, named = call.extra
        ones_R1 = torch.ones(len(tokens_R), 1, dtype=call.weights_TK.dtype, device=call.weights_TK.device)
        output: Tensor = self._twin(call.hidden_TD[tokens_R], experts_R[:, None], ones_R1, *positional, **named)
        return output

    def _require_sum(self, call: ExpertsCall, routed_TD: Tensor) -> None:
        """The experts that the router chose for the last tokens, each called alone, add up to the layer's output."""
        top_k = call.indices_TK.shape[1]
        last_S = torch.arange(len(routed_TD), device=routed_TD.device)[-len(self._positions) :]
        indices_R = call.indices_TK[last_S].flatten()
        alone_RD = self._alone(call, last_S.repeat_interleave(top_k), indices_R).float()
        weighted_RD = alone_RD * call.weights_TK[last_S].flatten().float()[:, None]
        own_SD = routed_TD[last_S].float()
        error = (weighted_RD.view(len(last_S), top_k, -1).sum(1) - own_SD).norm() / own_SD.norm().clamp_min(1e-12)
        tolerance = _TOLERANCE.get(routed_TD.dtype, 0.05)
        if not error <= tolerance:
            raise UnsupportedModelError(
                f"the experts of MoE layer {self._layer.index} called alone are not those that its router chose",
                got=f"a sum that differs from the layer's output by {error.item():.2g} of its length",
                expected=f"at most {tolerance:g}",
                remedy="steer without experts (steer.experts=false)",
            )


def _repeated(experts: tuple[int, ...], tokens_S: Tensor) -> Tensor:
    """Each expert for every token: (X * S,), expert by expert."""
    return torch.tensor(experts, device=tokens_S.device).repeat_interleave(len(tokens_S))


def _require_in_range(moe: MoEModel, experts: Mapping[int, Iterable[int]]) -> None:
    for layer, layer_experts in experts.items():
        if not 0 <= layer < moe.num_layers:
            raise ConfigError(f"MoE layer {layer} does not exist", expected=f"0 to {moe.num_layers - 1}")
        unknown = [expert for expert in layer_experts if not 0 <= expert < moe.num_experts]
        if unknown:
            raise ConfigError(f"expert {unknown[0]} does not exist", expected=f"0 to {moe.num_experts - 1}")


def _require_positions(positions: Sequence[int], length: int) -> None:
    outside = [position for position in positions if not -length <= position < length]
    if outside:
        raise ConfigError(
            f"token position {outside[0]} lies outside the prompt",
            got=f"a batch of {length} tokens",
            expected=f"{-length} to {length - 1}",
        )
