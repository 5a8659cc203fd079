"""Accelerate in one process: what a repair trains is small, and a large model is spread by its device map."""

from __future__ import annotations

import os

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from seawall.errors import ConfigError


def one_process() -> Accelerator:
    """The accelerator of this process.

    Precision is decided by the model's weights and the float32 copies that train, so settings that `accelerate config`
    left in the environment (mixed precision, gradient accumulation) are not taken up: they would change the numbers.

    Raises:
        ConfigError: several processes were launched; each would train the whole and write the same files.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ConfigError(
            "seawall runs in one process",
            got=f"{processes} processes",
            expected="one",
            remedy="start it without accelerate launch or torchrun; model.device: auto uses what the machine has",
        )
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
