"""The call `experts(hidden_TD, indices_TK, weights_TK)`: reading it, changing it, and replacing a module's forward."""

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
        hidden_TD: the tokens' hidden states.
        indices_TK: the experts of each token.
        weights_TK: their gate weights.
        extra: arguments after these three, which seawall passes on unchanged.
    """

    hidden_TD: Tensor
    indices_TK: Tensor
    weights_TK: Tensor
    extra: Arguments

    def with_routing(self, indices_TK: Tensor, weights_TK: Tensor) -> Arguments:
        """The call with other routing, in the form that a forward pre-hook returns."""
        positional, named = self.extra
        return (self.hidden_TD, indices_TK, weights_TK, *positional), named


def call_reader(experts: nn.Module) -> Callable[[tuple[Any, ...], Mapping[str, Any]], ExpertsCall]:
    """A function that parses the arguments of this module's calls, given by position or by name.

    Raises (at a call):
        UnsupportedModelError: the weights are not one per chosen expert, or the tokens are not flattened.
    """
    names = call_arguments(experts)[:CALL_ARGUMENTS]
    class_name = type(experts).__name__

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExpertsCall:
        by_name = names[len(args) :]
        hidden_TD, indices_TK, weights_TK = (*args[:CALL_ARGUMENTS], *(kwargs[name] for name in by_name))
        if hidden_TD.ndim != 2 or indices_TK.ndim != 2 or indices_TK.shape != weights_TK.shape:
            raise UnsupportedModelError(
                f"{class_name} is called with arguments that seawall does not support",
                got=f"hidden {_shape(hidden_TD)}, indices {_shape(indices_TK)}, weights {_shape(weights_TK)}",
                expected="hidden (T, D), indices (T, K) and one weight per index (T, K)",
                remedy="upgrade transformers to 5.17 or newer, which passes one weight per chosen expert",
            )
        extra = {key: value for key, value in kwargs.items() if key not in by_name}
        return ExpertsCall(hidden_TD, indices_TK, weights_TK, (args[CALL_ARGUMENTS:], extra))

    return read


def logits_reader(layer: MoELayer) -> Callable[[Any], Tensor]:
    """A function from the router's output to logits (T, E).

    Some routers (Gemma 4) return probabilities; their logarithm serves as logits. The first output decides which, so
    that an accelerator synchronises only once.
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
    """The hidden states in the arguments of a decoder layer or feed-forward block, given by position or by name."""
    hidden_BTD: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden_BTD


def with_hidden_input(hidden_BTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The call with other hidden states, in the form that a forward pre-hook returns."""
    return ((hidden_BTD, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden_BTD})


def _sums_to_one(scores_TE: Tensor) -> bool:
    return bool((scores_TE >= 0).all() and (scores_TE.sum(dim=-1) - 1).abs().max() < 0.01)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


@final
class ByToken:
    """A forward that computes each token on its own, whatever else is in the pass, as experts and routers do."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        """Marks a forward."""
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it."""
        return self._forward(*args, **kwargs)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `forward` replaces the module's own; hooks on the module keep working.

    The instance attribute hides the method of the class. One that exists already (Accelerate's device placement sets
    it) is restored on exit.
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
    """A shallow copy that shares parameters and children, without hooks and without a forward of `replaced_forward`.

    Replacing the copy's parameters leaves the original's unchanged.
    """
    twin = copy.copy(module)
    attributes = vars(twin)
    attributes["_parameters"] = dict(attributes["_parameters"])
    attributes.update({key: OrderedDict() for key in _HOOKS})
    attributes.pop("forward", None)
    return twin


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, no parameter of the module takes a gradient; each parameter's flag is restored on exit."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
