"""Runs a model with the routing of a recorded forward pass, in place of its routers' choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from seawall.errors import SeawallError
from seawall.models.moe.calls import Arguments, ExpertsCall, call_reader, logits_reader
from seawall.models.moe.capture import RoutingTrace
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.gates import GateRule, gate_rules

ReplayWeights = Literal["recorded", "live"]
Choose = Callable[[ExpertsCall], tuple[Tensor, Tensor]]


@contextmanager
def replay(moe: MoEModel, trace: RoutingTrace, *, weights: ReplayWeights = "recorded") -> Iterator[None]:
    """Inside, every token is routed to the experts of the trace. Inputs must have the trace's tokens, in its order.

    Args:
        moe: the model.
        trace: one recorded forward pass; it may be overwritten meanwhile.
        weights: `recorded` uses the recorded gate weights, so that unchanged experts reproduce the recorded output bit
            for bit. `live` fixes only the choice of experts and recomputes their weights from the current routers, so
            that gradients reach the routers; it needs a trace with logits.

    Raises:
        UnsupportedModelError: the trace is incomplete, or (live) the family's gate weights cannot be recomputed.
        SeawallError (in the forward pass): the input has another number of tokens than the trace.
    """
    trace.require_complete()
    rules = gate_rules(trace) if weights == "live" else (None,) * moe.num_layers
    with ExitStack() as hooks:
        for layer, rule, indices_TK, weights_TK in zip(moe.layers, rules, trace.indices, trace.weights, strict=True):
            choose = _live(layer, rule, indices_TK, hooks) if rule else _recorded(indices_TK, weights_TK)
            substitute = _substitute(layer, choose, num_tokens=len(indices_TK))
            hooks.callback(layer.experts.register_forward_pre_hook(substitute, with_kwargs=True).remove)
        yield


def _substitute(layer: MoELayer, choose: Choose, *, num_tokens: int) -> Callable[[nn.Module, Any, Any], Arguments]:
    read = call_reader(layer.experts)

    def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        call = read(args, kwargs)
        if len(call.hidden_TD) != num_tokens:
            raise SeawallError(
                "the routing to replay belongs to another input",
                got=f"{len(call.hidden_TD)} tokens",
                expected=f"the {num_tokens} tokens of the trace",
                remedy="run the recorded batch, as one forward pass",
            )
        return call.with_routing(*choose(call))

    return hook


def _recorded(indices_TK: Tensor, weights_TK: Tensor) -> Choose:
    def choose(call: ExpertsCall) -> tuple[Tensor, Tensor]:
        device = call.hidden_TD.device
        return indices_TK.to(device), weights_TK.to(device)

    return choose


def _live(layer: MoELayer, rule: GateRule, indices_TK: Tensor, hooks: ExitStack) -> Choose:
    read = logits_reader(layer)
    latest: list[Tensor] = []

    def see_router(router: nn.Module, inputs: Any, output: Any) -> None:
        latest[:] = [read(output)]

    hooks.callback(layer.router.register_forward_hook(see_router).remove)

    def choose(call: ExpertsCall) -> tuple[Tensor, Tensor]:
        chosen_TK = indices_TK.to(call.hidden_TD.device)
        return chosen_TK, rule.weights(latest.pop(), chosen_TK).to(call.weights_TK.dtype)

    return choose
