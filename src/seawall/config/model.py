"""The model of a recipe, and how it is loaded."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, str | int] | None = Field(
        default=None,
        description="Placement over several GPUs: null or `auto` takes one GPU where the verb's planned memory fits "
        "it, else all within limits that leave room for the work; another rule, or a device by module name, is handed "
        "to transformers.",
    )
    max_memory: dict[str, str | int] = Field(
        default={},
        description='Memory for weights by GPU, handed to transformers with `device_map`: `{"0": 60GiB, "1": 60GiB}`. '
        "Leave room for training and the cache.",
    )
    fsdp: bool = Field(
        default=False,
        description="Shard the frozen weights over the processes of a launch (FSDP2), so that each device holds a part "
        "of them; for `seawall repair` after a finished `seawall select` (docs/launch.md).",
    )
    dequantize: bool = Field(
        default=False,
        description="Turn MXFP4 or FP8 weights into bfloat16 once, as a copy in seawall's cache, so that they can be "
        "repaired; false takes them as they are, for eval, profile and steer.",
    )
    experts_implementation: Literal["eager", "sorted", "batched_mm", "grouped_mm"] | None = Field(
        default=None,
        description="Implementation of the experts in transformers; null lets transformers choose. `sorted` is "
        "seawall's: the numbers of `eager` to the bit, faster on a CPU where experts are small.",
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

    @field_validator("max_memory", mode="before")
    @classmethod
    def _device_names(cls, limits: Any) -> Any:
        """YAML reads the number of a GPU as a number, JSON as text."""
        return {str(key): value for key, value in limits.items()} if isinstance(limits, dict) else limits

    @model_validator(mode="after")
    def _one_placement(self) -> ModelConfig:
        if (self.device_map is not None or self.max_memory) and self.device != "auto":
            raise wrong("device=auto with device_map or max_memory, which choose the devices")
        if self.fsdp and (self.device != "auto" or self.device_map is not None or self.max_memory):
            raise wrong("device=auto, device_map=null and max_memory={} with fsdp, which gives each process a device")
        return self

    @model_validator(mode="after")
    def _revision_of_the_hub(self) -> ModelConfig:
        if self.id in EMBEDDED and self.revision is not None:
            raise wrong(f"no revision with {self.id}, which comes with seawall")
        return self

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
