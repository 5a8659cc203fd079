"""The call `experts(hidden_TD, indices_TK, weights_TK)`: reading it, changing it, and standing in for a forward."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from seawall.errors import UnsupportedModelError
from seawall.models.moe.find import CALL_ARGUMENTS, MoELayer, call_arguments

_HOOKS = {key for key, value in vars(nn.Module()).items() if "_hooks" in key and isinstance(value, dict)}
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@final
@dataclass(frozen=True, eq=False)
class ExpertsCall:
    """The arguments of one call of a stack of experts.

    Attributes:
        hidden_TD: what the experts transform.
        indices_TK: which experts each token goes to.
        weights_TK: how much each of them counts.
        rest: arguments after these three, which seawall passes on untouched.
    """

    hidden_TD: Tensor
    indices_TK: Tensor
    weights_TK: Tensor
    rest: Arguments

    def with_routing(self, indices_TK: Tensor, weights_TK: Tensor) -> Arguments:
        """The same call with other routing, as a forward pre-hook returns it."""
        positional, named = self.rest
        return (self.hidden_TD, indices_TK, weights_TK, *positional), named


def call_reader(experts: nn.Module) -> Callable[[tuple[Any, ...], Mapping[str, Any]], ExpertsCall]:
    """A function that understands the arguments of this module's calls, by position or by name.

    Raises (at a call):
        UnsupportedModelError: the weights are not given per chosen expert, or tokens are not flattened.
    """
    names = call_arguments(experts)[:CALL_ARGUMENTS]
    class_name = type(experts).__name__

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExpertsCall:
        by_name = names[len(args) :]
        hidden_TD, indices_TK, weights_TK = (*args[:CALL_ARGUMENTS], *(kwargs[name] for name in by_name))
        if hidden_TD.ndim != 2 or indices_TK.ndim != 2 or indices_TK.shape != weights_TK.shape:
            raise UnsupportedModelError(
                f"{class_name} is called in a way that seawall does not know",
                got=f"hidden {_shape(hidden_TD)}, indices {_shape(indices_TK)}, weights {_shape(weights_TK)}",
                expected="hidden (T, D), indices (T, K) and one weight per index (T, K)",
                remedy="use a newer transformers (>= 5.17), where the weights come per chosen expert",
            )
        rest = {key: value for key, value in kwargs.items() if key not in by_name}
        return ExpertsCall(hidden_TD, indices_TK, weights_TK, (args[CALL_ARGUMENTS:], rest))

    return read


def logits_reader(layer: MoELayer) -> Callable[[Any], Tensor]:
    """A function that takes the router's output and gives logits (T, E).

    Some routers (Gemma 4) give out probabilities: these become their logarithm, whose softmax they are. The first
    output decides, so that an accelerator is asked once only.
    """
    probabilities: list[bool] = []

    def read(output: Any) -> Tensor:
        scores = output[layer.router_logits_index] if isinstance(output, tuple) else output
        scores_TE: Tensor = scores.reshape(-1, layer.num_experts)
        if not probabilities:
            probabilities.append(_sums_to_one(scores_TE.detach().float()))
        return scores_TE.clamp_min(torch.finfo(scores_TE.dtype).tiny).log() if probabilities[0] else scores_TE

    return read


def hidden_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a decoder layer or a feed-forward block is called with, by position or by name."""
    hidden_BTD: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden_BTD


def with_hidden_input(hidden_BTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The same call with other hidden states, as a forward pre-hook returns it."""
    return ((hidden_BTD, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden_BTD})


def _sums_to_one(scores_TE: Tensor) -> bool:
    return bool((scores_TE >= 0).all() and (scores_TE.sum(dim=-1) - 1).abs().max() < 0.01)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets `forward` stand in for the module's own; hooks on the module keep working. Restored on exit.

    An attribute of the instance hides the method of the class. It may hold a forward already (Accelerate's
    device placement does that), which is put back.
    """
    attributes = vars(module)
    previous = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if previous is None:
            del attributes["forward"]
        else:
            attributes["forward"] = previous


def bare_copy(module: nn.Module) -> nn.Module:
    """A shallow copy that shares parameters and children, but has no hooks and no forward put in by `replaced_forward`.

    Its parameters can be exchanged without touching the original's.
    """
    twin = copy.copy(module)
    attributes = vars(twin)
    attributes["_parameters"] = dict(attributes["_parameters"])
    attributes.update({key: OrderedDict() for key in _HOOKS})
    attributes.pop("forward", None)
    return twin


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of the module takes a gradient; each gets its own flag back on exit."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
