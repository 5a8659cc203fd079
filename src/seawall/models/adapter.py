"""LoRA adapters of PEFT: merged into the model that they were trained on, or read as what they add to its weights."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from seawall.errors import ArtifactError, ConfigError, SeawallError, UnsupportedModelError
from seawall.models.checkpoint import read_json
from seawall.models.load import library_errors
from seawall.models.updates import LowRankUpdate, trainable_updates

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"(?<=\.lora_[AB])(?=\.weight$)")
_NAME = "default"


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with an adapter's changes added to its weights, in their own type; `model` itself is changed.

    In 16-bit types the sum is rounded: it is then the merged model that is measured, not base and adapter side by side.

    Args:
        model: the model that the adapter was trained on.
        folder: what PEFT's `save_pretrained` left, as safetensors.

    Raises:
        SeawallError: PEFT is not installed.
        ConfigError: no such folder, or no adapter in it.
        UnsupportedModelError: no LoRA adapter, one in pickle files, or one that does not fit the model.
        ArtifactError: damaged files, or an adapter that fits in part.
    """
    check_adapter(folder)
    peft = _peft()
    with _fitting(folder):
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        wrapped = peft.PeftModel(model, settings, _NAME)
        found = wrapped.load_adapter(
            str(folder),
            _NAME,
            torch_device=str(model.device),
            key_mapping=getattr(model, "_checkpoint_conversion_mapping", {}),
        )
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    _require_whole(folder, found.missing_keys, found.unexpected_keys)
    return merged.requires_grad_(True).eval()


def adapter_updates(model: PreTrainedModel, folder: Path) -> list[LowRankUpdate]:
    """What an adapter adds to each weight matrix, as factors on the CPU, by the names of the model without it.

    Args:
        model: the model that the adapter was trained on, on the meta device; it gets the adapter's modules.
        folder: what PEFT's `save_pretrained` left, as safetensors.

    Raises:
        SeawallError: as `merge_adapter`.
        UnsupportedModelError: also one that changes more than weight matrices, or not by a product of two factors.
    """
    check_adapter(folder)
    _require_matrices_alone(folder)
    peft = _peft()
    with _fitting(folder):
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = False
        wrapped = peft.PeftModel(model, settings, _NAME)
        # PEFT's own loading would move the factors to where the weights are.
        weights = {_FACTOR.sub(f".{_NAME}", name): tensor for name, tensor in _weights(peft, folder).items()}
        found = wrapped.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in found.missing_keys if ".lora_" in name]
    _require_whole(folder, missing, found.unexpected_keys)
    return [one for one in trainable_updates(wrapped) if isinstance(one, LowRankUpdate)]


def _weights(peft: Any, folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = peft.load_peft_weights(str(folder), device="cpu")
    return weights


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


def _require_whole(folder: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    wrong = [*missing, *unexpected]
    if wrong:
        raise ArtifactError(
            f"the adapter in {folder} fits the model only in part",
            got=f"{len(missing)} tensors missing, {len(unexpected)} without a place, {wrong[0]} first",
            remedy="name the model that it was trained on",
        )


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    with library_errors(f"the adapter in {folder} does not fit the model"), warnings.catch_warnings():
        # PEFT asks transformers for a property under its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def check_adapter(folder: Path) -> None:
    """Refuse what cannot be merged, before a model is loaded for it.

    Raises:
        SeawallError: as `merge_adapter` does.
    """
    if not folder.is_dir():
        raise ConfigError(f"adapter folder {folder} does not exist", remedy="check the path (--adapter)")
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds no adapter", got=f"no {CONFIG}", expected="what PEFT's save_pretrained wrote"
        )
    kind = read_json(folder / CONFIG).get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"the adapter in {folder} cannot be merged", got=f"peft_type {kind}", expected="LORA"
        )
    if not (folder / WEIGHTS).is_file():
        raise UnsupportedModelError(
            f"the adapter in {folder} has no safetensors weights",
            expected=WEIGHTS,
            remedy="save it with safe_serialization=True; pickle files are never read",
        )
    _peft()


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise SeawallError("adapters need PEFT, which is not installed", remedy="pip install 'seawall[tune]'") from None
