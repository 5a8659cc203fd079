"""LoRA adapters of PEFT read as what they add to each weight matrix, without the model's weights."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.models.adapter import CONFIG, check_adapter, reading_adapter, require_sizes, require_whole
from seawall.models.checkpoint import read_json
from seawall.models.updates import LowRankUpdate, adapter_updates

_FACTOR = re.compile(r"(?<=\.lora_[AB])(?=\.weight$)")
_NAME = "default"


def adapter_factors(model: PreTrainedModel, folder: Path) -> list[LowRankUpdate]:
    """What an adapter adds to each weight matrix, as factors on the CPU, by the names of the model without it.

    Args:
        model: the model that the adapter was trained on, on the meta device; it gets the adapter's modules.
        folder: what PEFT's `save_pretrained` left, as safetensors.

    Raises:
        SeawallError: PEFT is not installed.
        ConfigError: no such folder, or no adapter in it.
        UnsupportedModelError: no LoRA adapter, one in pickle files, one that does not fit the model, or one that
            changes more than weight matrices or not by a product of two factors.
        ArtifactError: damaged files, or an adapter that fits in part.
    """
    check_adapter(folder)
    _require_matrices_alone(folder)
    peft = importlib.import_module("peft")
    with reading_adapter(model, folder):
        wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(folder)), _NAME)
        require_sizes(wrapped, folder)
        # PEFT's own loading would move the factors to where the weights are.
        read = peft.load_peft_weights(str(folder), device="cpu")
        weights = {_FACTOR.sub(f".{_NAME}", name): tensor for name, tensor in read.items()}
        found = wrapped.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in found.missing_keys if ".lora_" in name]
    require_whole(wrapped, folder, missing=missing, unexpected=found.unexpected_keys)
    return adapter_updates(wrapped)


def _require_matrices_alone(folder: Path) -> None:
    """Refuse, by its configuration, an adapter that changes biases or whole modules, or is no plain product."""
    settings = read_json(folder / CONFIG)
    modules = settings.get("modules_to_save") or []
    asked = {
        "biases": settings.get("bias", "none") != "none" or settings.get("lora_bias", False),
        f"modules_to_save {', '.join(map(str, modules))}": bool(modules),
        "DoRA": settings.get("use_dora", False),
    }
    found = next((what for what, there in asked.items() if there), None)
    if found is not None:
        raise UnsupportedModelError(
            f"the adapter in {folder} changes more than products of two factors of weight matrices",
            got=found,
            expected="plain LoRA of linear layers or stacked experts",
            remedy="merge it, and name the merged checkpoint instead",
        )
