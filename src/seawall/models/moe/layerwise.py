"""Computes with other tensors in place of a model's parameters, made anew for each decoder layer.

Tensors that are computed from trained ones (rounded copies, low-rank sums) then exist for one layer at a time under
gradient checkpointing, which repeats the computation of a layer, tensors included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.calls import bare_copy, replaced_forward

Tensors = Callable[[Collection[str]], Mapping[str, Tensor]]
"""(names in the state dict) -> the tensors to compute with."""


@final
@dataclass
class Substitution:
    """Tensors in place of a model's parameters.

    Attributes:
        bypassed: whether the model computes with its own parameters after all.
    """

    bypassed: bool = False


@contextmanager
def computed_with(model: PreTrainedModel, names: Collection[str], tensors: Tensors) -> Iterator[Substitution]:
    """Inside, the model computes with `tensors` in place of these parameters.

    Args:
        model: any model with one stack of decoder layers.
        names: parameters by their names in the state dict; tied ones once.
        tensors: called in each forward pass with the names of one layer, and with those outside of all layers.
    """
    substitution = Substitution()
    with ExitStack() as changes:
        for module, aliases in _owners(model, names).items():
            if aliases:
                forward = _forward(module, aliases, tensors, substitution)
                changes.enter_context(replaced_forward(module, forward))
        yield substitution


def _owners(model: PreTrainedModel, names: Collection[str]) -> dict[nn.Module, dict[str, str]]:
    """Decoder layer or model -> name in this module -> name in the state dict, for the parameters to replace.

    A parameter that several layers share belongs to each of them.
    """
    canonical = {id(model.get_parameter(name)): name for name in names}
    paths = {id(module): path for path, module in model.named_modules()}
    blocks = {f"{paths[id(block)]}.": block for block in decoder_layers(model)}
    owners: dict[nn.Module, dict[str, str]] = {model: {}, **{block: {} for block in blocks.values()}}
    for alias, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in canonical:
            continue
        prefix = next((prefix for prefix in blocks if alias.startswith(prefix)), "")
        owners[blocks.get(prefix, model)][alias.removeprefix(prefix)] = canonical[id(parameter)]
    return owners


def _forward(
    module: nn.Module, aliases: Mapping[str, str], tensors: Tensors, substitution: Substitution
) -> Callable[..., Any]:
    own, plain = module.forward, bare_copy(module)
    device = next(module.parameters()).device
    needed = dict.fromkeys(aliases.values())

    def forward(*args: Any, **kwargs: Any) -> Any:
        if substitution.bypassed:
            return own(*args, **kwargs)
        values = tensors(needed.keys())
        # The copy lacks Accelerate's hook, which moves a layer's inputs to its device.
        args, kwargs = send_to_device((args, kwargs), device)
        return functional_call(plain, {alias: values[name] for alias, name in aliases.items()}, args, kwargs)

    return forward
