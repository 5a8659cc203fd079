"""The model of a recipe, and how it is loaded."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from seawall.config.base import StrictModel, wrong

LAB = "lab"
LAB_ORIGINAL = "lab-original"
EMBEDDED = (LAB, LAB_ORIGINAL)
"""Names in place of a folder or Hub id: the embedded model, and the same model before its training to refuse."""
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


class ModelConfig(StrictModel):
    """A model and how to load it."""

    id: str = Field(
        default=LAB,
        min_length=1,
        description="`lab` (the embedded model), `lab-original` (the same before its training to refuse), a Hub id, or "
        "a local folder.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit on the Hub; a commit makes runs repeatable."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of the loaded weights; `auto` keeps the checkpoint's own."
    )
    device: str = Field(
        default="auto",
        description="`auto` (the first accelerator, else the CPU), `cpu`, `mps`, `cuda`, `cuda:1` or `xpu`.",
    )
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm"] | None = Field(
        default=None, description="Implementation of the experts in transformers; null lets transformers choose."
    )
    template: str | None = Field(
        default=None, min_length=1, description="Name of one of the tokenizer's chat templates; null takes the default."
    )
    template_options: dict[str, str | bool | int | float] = Field(
        default={},
        description="Variables of the chat template, such as `{enable_thinking: true}` or `{reasoning_effort: high}`; "
        "`enable_thinking` is false unless set here.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code from the checkpoint's repository. Only for authors you trust."
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        return known_device(device)


def known_device(device: str) -> str:
    """Validates the name of a device and returns it.

    Raises:
        PydanticCustomError: the name is no device of PyTorch.
    """
    if not _DEVICE.fullmatch(device):
        raise wrong("auto, cpu, mps, cuda, cuda:N, xpu or xpu:N")
    return device
