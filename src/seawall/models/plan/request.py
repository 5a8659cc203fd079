"""What is planned for: a model, a recipe, its prompts, and the settings that trade memory for time."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.config.audit import AUDITS
from seawall.config.recipe import Recipe
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import DataSizes
from seawall.models.plan.training import MemorySettings

SAMPLE_BYTES = 8
"""Bytes in a samples file per generated token: its text, and a share of the prompt and the verdict."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is planned for.

    Attributes:
        shapes: of the model.
        recipe: the settings.
        sizes: of the prompts.
        memory: settings of the repair that trade memory for time.
        context: memory that a library takes on the device; 0 on the CPU.
        device_memory: of one GPU, of which a vLLM server takes a share; 0 on the CPU.
        audits: that `seawall audit` is asked for; all of them otherwise.
    """

    shapes: ModelShapes
    recipe: Recipe
    sizes: DataSizes
    memory: MemorySettings
    context: int = 0
    device_memory: int = 0
    audits: tuple[str, ...] = AUDITS


def memory_settings(recipe: Recipe) -> MemorySettings:
    """The repair's memory settings; those that the recipe's section lacks have their defaults."""
    repair = recipe.repair.model_dump()
    return MemorySettings(
        gradient_checkpointing=repair.get("gradient_checkpointing", False),
        optimizer=repair.get("optimizer", "adamw"),
        micro_batch_size=repair.get("micro_batch_size"),
    )
