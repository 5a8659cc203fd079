"""Which model is worked on, and how it is loaded."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from seawall.config.base import StrictModel, wrong

LAB = "lab"
LAB_ORIGINAL = "lab-original"
EMBEDDED = (LAB, LAB_ORIGINAL)
"""The embedded model, and the same before it was taught to refuse: names in place of a folder or a Hub id."""
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


class ModelConfig(StrictModel):
    """The model under repair."""

    id: str = Field(
        default=LAB,
        min_length=1,
        description="`lab` (the embedded model), `lab-original` (the same before it was taught to refuse), a Hub id, "
        "or a local folder.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit on the Hub. Pin a commit for a repeatable run."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of the loaded weights; `auto` keeps the checkpoint's own."
    )
    device: str = Field(
        default="auto",
        description="`auto` takes the first accelerator, else the CPU. Or `cpu`, `mps`, `cuda`, `cuda:1`, `xpu`.",
    )
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm"] | None = Field(
        default=None, description="How transformers computes the experts; none lets transformers choose."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the checkpoint. Only for authors you trust."
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        return known_device(device)


def known_device(device: str) -> str:
    """The name of a device as it is, for a validator to call.

    Raises:
        PydanticCustomError: it cannot be one.
    """
    if not _DEVICE.fullmatch(device):
        raise wrong("auto, cpu, mps, cuda, cuda:N, xpu or xpu:N")
    return device
