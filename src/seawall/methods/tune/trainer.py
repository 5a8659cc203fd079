"""TRL's `SFTTrainer` that stops at a loss that is not finite. Importing this module imports TRL."""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer

from seawall.errors import SeawallError


class CheckedTrainer(SFTTrainer):  # type: ignore[misc]
    """Stops at the first loss that is not finite, before the optimizer step."""

    def compute_loss(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The parent's loss.

        Raises:
            SeawallError: the loss is not finite.
        """
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = result[0] if return_outputs else result
        if not bool(loss.isfinite()):
            raise SeawallError(
                "the loss is not a finite number",
                got=f"{float(loss)} after {self.state.global_step} steps",
                remedy="checkpoints and finished methods stay; lower tune.lr, or find the rows that break it",
            )
        return result
