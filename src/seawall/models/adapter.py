"""LoRA adapters of PEFT, merged into the model that they were trained on."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from seawall.errors import ArtifactError, ConfigError, SeawallError, UnsupportedModelError
from seawall.models.checkpoint import read_json
from seawall.models.load import library_errors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


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
    return merge_put_on(put_on(model, folder), folder)


def merge_put_on(wrapped: Any, folder: Path) -> PreTrainedModel:
    """What `merge_adapter` makes, of a model that `put_on` has put an adapter on, with its factors as they are now.

    Raises:
        UnsupportedModelError: the sum is not finite, or PEFT cannot merge it.
    """
    with library_errors(f"the adapter in {folder} does not fit the model"):
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    return merged.requires_grad_(True).eval()


def put_on(model: PreTrainedModel, folder: Path) -> Any:
    """PEFT's model of an adapter beside the weights of `model`, which is changed to hold it; nothing of it trains.

    Raises:
        SeawallError: as `merge_adapter` does.
    """
    check_adapter(folder)
    peft = require_peft()
    with library_errors(f"the adapter in {folder} does not fit the model"), warnings.catch_warnings():
        # PEFT asks transformers for a property under its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        wrapped = peft.PeftModel(model, settings, "default")
        found = wrapped.load_adapter(
            str(folder),
            "default",
            torch_device=str(model.device),
            key_mapping=getattr(model, "_checkpoint_conversion_mapping", {}),
        )
    wrong = [*found.missing_keys, *found.unexpected_keys]
    if wrong:
        raise ArtifactError(
            f"the adapter in {folder} fits the model only in part",
            got=f"{len(found.missing_keys)} tensors missing, {len(found.unexpected_keys)} without a place, "
            f"{wrong[0]} first",
            remedy="name the model that it was trained on",
        )
    return wrapped


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
    require_peft()


def require_peft() -> Any:
    """The module `peft`.

    Raises:
        SeawallError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise SeawallError("adapters need PEFT, which is not installed", remedy="pip install 'seawall[tune]'") from None
