"""The AdamWs of a training by their setting: PyTorch's, and bitsandbytes' with 8-bit or paged moments.

Dettmers et al. 2021 (arXiv 2110.02861).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seawall.config.repair import OptimizerName
from seawall.errors import ConfigError

LIBRARY = "bitsandbytes"
CLASSES: dict[OptimizerName, str] = {"adamw_8bit": "AdamW8bit", "adamw_offload": "PagedAdamW32bit"}
"""Setting -> class of bitsandbytes. Paged moments move to the CPU's memory when the GPU's runs out."""
_DEVICES: dict[OptimizerName, tuple[str, ...]] = {"adamw_8bit": ("cuda", "xpu", "cpu"), "adamw_offload": ("cuda",)}
_CONSTANTS = ("qmap1", "qmap2")
"""Tables of the 8-bit code, equal for all parameters; a new state has them."""


def require_optimizer(name: OptimizerName, device: str | None = None) -> None:
    """Refuses an optimizer whose library or device is missing.

    Args:
        name: `repair.optimizer`.
        device: type of the device that holds the parameters; None checks the library alone.

    Raises:
        ConfigError: bitsandbytes is not installed, or the optimizer does not work on this device.
    """
    if name not in CLASSES:
        return
    if find_spec(LIBRARY) is None:
        raise ConfigError(
            f"repair.optimizer={name} needs a library that is not installed",
            got=f"no {LIBRARY}",
            remedy="pip install 'seawall[memory]', or set repair.optimizer=adamw",
        )
    if device is not None and device not in _DEVICES[name]:
        raise ConfigError(
            f"repair.optimizer={name} does not work on this device",
            got=device,
            expected=" or ".join(_DEVICES[name]),
            remedy="set repair.optimizer=adamw",
        )


def make_optimizer(
    name: OptimizerName, groups: Iterable[Mapping[str, Any]], *, lr: float, weight_decay: float
) -> Optimizer:
    """AdamW over groups of parameters.

    Raises:
        ConfigError: as `require_optimizer`.
    """
    settings = [dict(group) for group in groups]
    if name not in CLASSES:
        return torch.optim.AdamW(settings, lr=lr, weight_decay=weight_decay)
    for device in {parameter.device.type for group in settings for parameter in group["params"]}:
        require_optimizer(name, device)
    optim: Any = importlib.import_module(f"{LIBRARY}.optim")
    adamw: Optimizer = getattr(optim, CLASSES[name])(settings, lr=lr, weight_decay=weight_decay)
    return adamw


def saved_state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state of a parameter for a checkpoint; empty before its first update."""
    state = optimizer.state[parameter]
    return {key: torch.as_tensor(value).detach() for key, value in state.items() if key not in _CONSTANTS}


def restore_state(optimizer: Optimizer, parameter: nn.Parameter, saved: Mapping[str, Tensor]) -> None:
    """Loads a state of `saved_state`, into the optimizer's own memory where it pages its moments."""
    if isinstance(optimizer, torch.optim.AdamW):
        # AdamW counts its steps on the CPU, on whatever device the parameter is.
        optimizer.state[parameter].update(
            {key: value.clone().to("cpu" if key == "step" else parameter.device) for key, value in saved.items()}
        )
        return
    library: Any = optimizer
    group, parameter_index, group_index = _place(optimizer, parameter)
    library.init_state(group, parameter, group_index, parameter_index)
    state = optimizer.state[parameter]
    for key, value in saved.items():
        if key == "step":
            state[key] = int(value)
        else:
            state[key].copy_(value)


def _place(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[dict[str, Any], int, int]:
    """The parameter's group, its index in the group, and the group's index."""
    return next(
        (group, index, group_index)
        for group_index, group in enumerate(optimizer.param_groups)
        for index, candidate in enumerate(group["params"])
        if candidate is parameter
    )
