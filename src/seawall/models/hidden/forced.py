"""What each expert alone makes of the tokens: the output of a MoE block whose router is forced to choose one expert.

Legend: B rows of the batch, T positions, P of them chosen, D model width, E routed experts of a layer, K experts per
token, X experts asked for at once, S = B * P, N = X * S.
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
"""Added to the router's logit of the forced expert, and taken from those of all others."""

ForcedSink = Callable[[int, tuple[int, ...], Tensor], None]
"""Takes (MoE layer, experts, block outputs (X, B, P, D)): what the block gives when each of these experts is forced."""


@contextmanager
def expert_block_outputs(
    moe: MoEModel, experts: Mapping[int, Sequence[int]], *, positions: Sequence[int], sink: ForcedSink
) -> Iterator[None]:
    """Inside, every forward pass also hands over what its MoE blocks would give if one expert were forced.

    Forced means a bias on the router's logits, +100 for the expert and -100 for the others, in that layer only. What
    becomes of such logits is left to the family's own router: in nearly all the expert alone remains, with its full
    gate weight (1, or the family's scaling factor); PhiMoE's second choice keeps its weight. Shared experts add their
    part as always. Nothing below a layer depends on the forcing, so one pass serves all layers and experts; what the
    pass itself gives is not changed, and nothing that records or changes it (`capture`, `added`) sees the extra work.

    Args:
        moe: the model, in evaluation mode.
        experts: MoE layer -> experts to force, one after the other.
        positions: which tokens of each row, counted from either end as in `hidden[:, positions]`.
        sink: given the outputs of a layer as it runs, in the order asked for and in one or several parts: no more
            tokens at once than the pass itself has. It must not keep them all.

    Raises:
        UnsupportedModelError: the MoE blocks cannot be told, or (in the forward pass) the logits are not one product
            of the router with the tokens, so that they cannot be biased.
        ConfigError: a layer or an expert that the model does not have, or (in the forward pass) a position outside
            the prompt.
    """
    assert not moe.model.training
    blocks = decoder_blocks(moe.model)
    _require_known(moe, experts)
    with ExitStack() as hooks:
        for index, asked in experts.items():
            layer = moe.layers[index]
            block = blocks[layer.decoder_layer].mlp
            forcing = hooks.enter_context(_forcing(layer, block))
            hook = _observer(forcing, tuple(asked), positions, sink)
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
        at_once = max(1, length // max(1, len(positions)))
        for start in range(0, len(experts), at_once):
            some = experts[start : start + at_once]
            sink(forcing.layer.index, some, forcing.outputs(tokens_BPD, some))

    return hook


@contextmanager
def _forcing(layer: MoELayer, block: nn.Module) -> Iterator[_Forcing]:
    """A copy of the block without hooks, whose router is biased. It shares every tensor with the original."""
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
        """What the block gives for these tokens when each of the experts is forced (X, B, P, D)."""
        shape = (len(experts), *tokens_BPD.shape)
        forced_X = torch.tensor(experts, device=tokens_BPD.device)
        bias_XE = torch.full((len(experts), self.layer.num_experts), -FORCING_BIAS, device=tokens_BPD.device)
        bias_XE.scatter_(1, forced_X[:, None], FORCING_BIAS)
        self._bias_NE = bias_XE.repeat_interleave(tokens_BPD.shape[:2].numel(), dim=0)
        tokens_XSD = tokens_BPD.flatten(0, 1).expand(len(experts), -1, -1)
        return first_output(self._twin(tokens_XSD.contiguous())).reshape(shape)

    def biased_router(self, *args: Any, **kwargs: Any) -> Any:
        """The family's own router, with other logits."""
        with _BiasedLogits(self._bias_NE) as biased:
            output = self._router_forward(*args, **kwargs)
        if biased.count != 1:
            raise UnsupportedModelError(
                f"the router of MoE layer {self.layer.index} ({type(self.layer.router).__name__}) cannot be forced",
                got=f"{biased.count} products of the tokens with a weight of {self.layer.num_experts} rows",
                expected="one, its logits",
            )
        return output

    def only_used_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The same call without choices whose weight vanished: K-1 of K cost nothing."""
        call = self._read(args, kwargs)
        weights_TK, order_TK = call.weights_TK.sort(dim=-1, descending=True)
        used = max(1, int((weights_TK > torch.finfo(torch.float32).tiny).any(0).sum()))
        return call.with_routing(call.indices_TK.gather(1, order_TK)[:, :used], weights_TK[:, :used])


@final
class _BiasedLogits(TorchFunctionMode):
    """Inside, a bias is added to what a linear map of the tokens to E numbers gives, and it is counted how often."""

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
    """A copy of a module and all its children that shares the parameters and has no hooks."""
    twin = bare_copy(module)
    vars(twin)["_modules"] = {name: child and _bare_tree(child) for name, child in vars(module)["_modules"].items()}
    return twin


def _name_in(block: nn.Module, part: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in block.named_modules()}
    return names[part]


def _require_known(moe: MoEModel, experts: Mapping[int, Iterable[int]]) -> None:
    for layer, asked in experts.items():
        if not 0 <= layer < moe.num_layers:
            raise ConfigError(f"MoE layer {layer} does not exist", expected=f"0 to {moe.num_layers - 1}")
        wrong = [expert for expert in asked if not 0 <= expert < moe.num_experts]
        if wrong:
            raise ConfigError(f"expert {wrong[0]} does not exist", expected=f"0 to {moe.num_experts - 1}")


def _require_positions(positions: Sequence[int], length: int) -> None:
    wrong = [position for position in positions if not -length <= position < length]
    if wrong:
        raise ConfigError(
            f"token position {wrong[0]} lies outside the prompt",
            got=f"a batch of {length} tokens",
            expected=f"{-length} to {length - 1}",
        )
