"""The one training loop: AdamW on named parameters, with a loss that a stage supplies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, final

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seawall.errors import SeawallError

Item = TypeVar("Item")
Losses = tuple[Tensor, dict[str, float]]
"""The loss to minimise, and its parts for the log."""


@dataclass(frozen=True)
class Settings:
    """AdamW without a schedule."""

    lr: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@final
class Trainer(Generic[Item]):
    """Steps an optimizer over batches. Parameters are named, so that its state can be saved without pickle."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: Settings, accelerator: Accelerator) -> None:
        self._parameters = dict(parameters)
        self._settings = settings
        self._accelerator = accelerator
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.steps = 0

    def fit(
        self, batches: Iterable[Item], loss: Callable[[Item], Losses], log: Callable[[dict[str, float]], None]
    ) -> None:
        """One update per batch.

        Raises:
            SeawallError: the loss is not finite; the parameters are those before this step.
        """
        for item in batches:
            total, parts = loss(item)
            value = float(total.detach())
            if not math.isfinite(value):
                raise SeawallError(
                    f"the training loss is not finite at step {self.steps + 1}",
                    got=value,
                    remedy="lower the learning rate of this step; finished rounds are kept",
                )
            self._accelerator.backward(total)
            norm = self._accelerator.clip_grad_norm_(list(self._parameters.values()), self._settings.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.steps += 1
            log({"step": self.steps, "loss": value, "gradient_norm": float(norm), **parts})

    def save(self, path: Path) -> None:
        """Writes the optimizer's moments and the step count to `path` (safetensors)."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
        save_file(tensors, path, metadata={"steps": json.dumps(self.steps)})

    def load(self, path: Path, *, steps: int) -> None:
        """Takes up the moments that `save` wrote; the next step is the one that would have followed."""
        for full_name, value in load_file(path).items():
            key, _, name = full_name.partition("/")
            parameter = self._parameters[name]
            device = "cpu" if key == "step" else parameter.device
            self._optimizer.state[parameter][key] = value.to(device)
        self.steps = steps
