"""Trainers of tiny models on the CPU, whose steps are plain gradient descent unless a test says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainingArguments

from families import random_ids

LR = 0.01


def trainer_of(
    model: Any, folder: Path, *, kind: type[Trainer] = Trainer, model_init: Any = None, **settings: Any
) -> Trainer:
    rows = [{"input_ids": row, "labels": row} for row in random_ids(8, 6)]
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(str(folder), **{**defaults, **settings})
    return kind(model=model, args=arguments, train_dataset=rows, model_init=model_init)


def trained(model: Any) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


class MeanPerBatch(Trainer):  # type: ignore[misc]
    """A trainer whose loss is a mean over each batch, which `training_step` divides: every older subclass."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return super().compute_loss(model, inputs, return_outputs)
