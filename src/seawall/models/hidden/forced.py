"""Outputs of single experts: the output of a MoE block whose router is forced to choose one expert.

Legend: B rows of the batch, T positions, P selected positions, D model width, E routed experts of a layer, K experts
per token, X experts forced in one call, S = B * P, N = X * S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.hidden.sublayers import decoder_blocks, first_output
from seawall.models.moe.calls import Arguments, bare_copy, call_reader, hidden_input, replaced_forward
from seawall.models.moe.find import MoELayer, MoEModel

FORCING_BIAS = 100.0
"""Added to the router's logit of the forced expert, and subtracted from those of all other experts."""

ForcedSink = Callable[[int, tuple[int, ...], Tensor], None]
"""Called with (MoE layer, experts, block outputs (X, B, P, D)): the block's output with each of the experts forced."""


@contextmanager
def expert_block_outputs(
    moe: MoEModel, experts: Mapping[int, Sequence[int]], *, positions: Sequence[int], sink: ForcedSink
) -> Iterator[None]:
    """Inside, every forward pass also reports the outputs that its MoE blocks would have with one expert forced.

    Forcing biases the router's logits in that layer alone: +100 for the expert, -100 for the others. The family's own
    router then decides: in nearly all families the expert alone remains, with full gate weight (1, or the family's
    scaling factor); PhiMoE's second choice keeps its weight. Shared experts contribute as usual. Nothing below a layer
    depends on the forcing, so one pass serves all layers and experts. The pass itself is unchanged, and recording or
    changing it (`capture`, `added`) is unaffected by the extra computation.

    Args:
        moe: the model, in evaluation mode.
        experts: MoE layer -> experts to force, one after the other.
        positions: token positions of each row, counted from either end as in `hidden[:, positions]`.
        sink: receives the outputs of a layer as it runs, in the order of `experts`, in one or several parts with no
            more tokens than the pass itself. It must not keep all of them.

    Raises:
        UnsupportedModelError: the MoE blocks cannot be identified, or (in the forward pass) the router's logits are not
            one product of its weight with the tokens, so that they cannot be biased.
        ConfigError: the model lacks a layer or an expert, or (in the forward pass) a position is outside the prompt.
    """
    assert not moe.model.training
    blocks = decoder_blocks(moe.model)
    _require_in_range(moe, experts)
    with ExitStack() as hooks:
        for index, forced_experts in experts.items():
            layer = moe.layers[index]
            block = blocks[layer.decoder_layer].mlp
            forcing = hooks.enter_context(_forcing(layer, block))
            hook = _observer(forcing, tuple(forced_experts), positions, sink)
            hooks.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _observer(
    forcing: _Forcing, experts: tuple[int, ...], positions: Sequence[int], sink: ForcedSink
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_BTD = hidden_input(args, kwargs).detach()
        length = hidden_BTD.shape[1]
        _require_positions(positions, length)
        tokens_BPD = hidden_BTD[:, list(positions)]
        chunk_size = max(1, length // max(1, len(positions)))
        for start in range(0, len(experts), chunk_size):
            chunk = experts[start : start + chunk_size]
            sink(forcing.layer.index, chunk, forcing.outputs(tokens_BPD, chunk))

    return hook


@contextmanager
def _forcing(layer: MoELayer, block: nn.Module) -> Iterator[_Forcing]:
    """A copy of the block without hooks and with a biased router; it shares every tensor with the original."""
    twin = _bare_tree(block)
    router = twin.get_submodule(_name_in(block, layer.router))
    experts = twin.get_submodule(_name_in(block, layer.experts))
    forcing = _Forcing(layer, twin, router.forward)
    experts.register_forward_pre_hook(forcing.only_used_experts, with_kwargs=True)
    with replaced_forward(router, forcing.biased_router):
        yield forcing


@final
class _Forcing:
    """The forced passes of one MoE block."""

    def __init__(self, layer: MoELayer, twin: nn.Module, router_forward: Callable[..., Any]) -> None:
        self.layer = layer
        self._twin = twin
        self._router_forward = router_forward
        self._read = call_reader(layer.experts)
        self._bias_NE = torch.zeros(0)

    @torch.no_grad()
    def outputs(self, tokens_BPD: Tensor, experts: tuple[int, ...]) -> Tensor:
        """The block's outputs for the tokens with each of the experts forced (X, B, P, D)."""
        shape = (len(experts), *tokens_BPD.shape)
        forced_X = torch.tensor(experts, device=tokens_BPD.device)
        bias_XE = torch.full((len(experts), self.layer.num_experts), -FORCING_BIAS, device=tokens_BPD.device)
        bias_XE.scatter_(1, forced_X[:, None], FORCING_BIAS)
        self._bias_NE = bias_XE.repeat_interleave(tokens_BPD.shape[:2].numel(), dim=0)
        tokens_XSD = tokens_BPD.flatten(0, 1).expand(len(experts), -1, -1)
        return first_output(self._twin(tokens_XSD.contiguous())).reshape(shape)

    def biased_router(self, *args: Any, **kwargs: Any) -> Any:
        """The family's own router, with biased logits."""
        with _BiasedLogits(self._bias_NE) as biased:
            output = self._router_forward(*args, **kwargs)
        if biased.count != 1:
            raise UnsupportedModelError(
                f"the router of MoE layer {self.layer.index} ({type(self.layer.router).__name__}) cannot be forced",
                got=f"{biased.count} products of the tokens with a weight of {self.layer.num_experts} rows",
                expected="exactly one, which gives the logits",
            )
        return output

    def only_used_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The same call without the experts whose weight is zero, so that K-1 of K experts are not computed."""
        call = self._read(args, kwargs)
        weights_TK, order_TK = call.weights_TK.sort(dim=-1, descending=True)
        used = max(1, int((weights_TK > torch.finfo(torch.float32).tiny).any(0).sum()))
        return call.with_routing(call.indices_TK.gather(1, order_TK)[:, :used], weights_TK[:, :used])


@final
class _BiasedLogits(TorchFunctionMode):
    """Inside, a bias is added to the output of linear maps from the tokens to E numbers; `count` says how many ran."""

    def __init__(self, bias_NE: Tensor) -> None:
        super().__init__()
        self._bias_NE = bias_NE
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not nn.functional.linear or output.shape[-1] != self._bias_NE.shape[1]:
            return output
        self.count += 1
        return output + self._bias_NE.to(output.dtype).view(output.shape)


def _bare_tree(module: nn.Module) -> nn.Module:
    """A copy of a module and its children that shares the parameters and has no hooks."""
    twin = bare_copy(module)
    vars(twin)["_modules"] = {name: child and _bare_tree(child) for name, child in vars(module)["_modules"].items()}
    return twin


def _name_in(block: nn.Module, part: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in block.named_modules()}
    return names[part]


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
