"""LoRA adapters of PEFT, merged into the model that they were trained on."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import ArtifactError, ConfigError, SeawallError, UnsupportedModelError
from seawall.models.files.checkpoint import read_json
from seawall.models.files.load import library_errors
from seawall.models.lora.updates import LowRankUpdate, adapter_updates

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.weight$)")
_OWN_MODEL = "name the model that it was trained on"


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
    with reading_adapter(model, folder):
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        wrapped = peft.PeftModel(model, settings, "default")
        require_sizes(wrapped, folder)
        found = wrapped.load_adapter(
            str(folder),
            "default",
            torch_device=str(model.device),
            key_mapping=getattr(model, "_checkpoint_conversion_mapping", {}),
        )
    require_whole(wrapped, folder, missing=found.missing_keys, unexpected=found.unexpected_keys)
    return wrapped


@contextmanager
def reading_adapter(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """What PEFT raises for an adapter that does not fit is one line, which says what the model has to adapt.

    Raises:
        UnsupportedModelError: PEFT cannot put the adapter on the model.
    """
    layers = sorted({name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, nn.Linear)})
    what, expected = f"the adapter in {folder} does not fit the model", f"layers of this model: {', '.join(layers)}"
    with library_errors(what, expected=expected, remedy=_OWN_MODEL), warnings.catch_warnings():
        # PEFT asks transformers for a property under its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def require_sizes(wrapped: Any, folder: Path) -> None:
    """Refuse, by the header of its file, factors of another size than the adapter's settings make in this model.

    Args:
        wrapped: PEFT's model, made by these settings.
        folder: the adapter's.

    Raises:
        ArtifactError: another rank, or a model of other shapes.
    """
    wanted = {name: tuple(one.shape) for name, one in _factors(wrapped).items()}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        held = {plain_factor(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(held.keys() & wanted.keys()):
        if held[name] == wanted[name]:
            continue
        side = 1 if name.endswith("lora_A.weight") else 0
        ranked = held[name][side] == wanted[name][side]
        raise ArtifactError(
            f"the adapter in {folder} "
            + (f"has another rank than its {CONFIG} says" if ranked else "is for a model of other shapes"),
            got=f"{name} of {held[name]}",
            expected=f"{wanted[name]}",
            remedy=f"restore its {CONFIG}, or name the model that has as many experts as the one it was trained on"
            if ranked
            else _OWN_MODEL,
        )


def require_whole(wrapped: Any, folder: Path, *, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse an adapter that adapts other modules than its settings make in this model.

    Args:
        wrapped: PEFT's model, made by these settings.
        folder: the adapter's.
        missing: names of factors that the file lacks.
        unexpected: names in the file that have no place.

    Raises:
        ArtifactError: there are such names.
    """
    wrong = [*missing, *unexpected]
    if not wrong:
        return
    factors = _factors(wrapped)
    modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in factors})
    raise ArtifactError(
        f"the adapter in {folder} fits the model only in part",
        got=f"{len(missing)} tensors missing, {len(unexpected)} without a place, {plain_factor(wrong[0])} first",
        expected=f"{len(factors)} tensors, of {', '.join(modules)}, which its {CONFIG} makes in this model",
        remedy=f"{_OWN_MODEL}, or restore its {CONFIG}",
    )


def plain_factor(name: str) -> str:
    """The name of a factor in the model without PEFT's prefix and the adapter's name."""
    return _FACTOR.sub("", name).removeprefix("base_model.model.")


def _factors(wrapped: Any) -> dict[str, Tensor]:
    return {plain_factor(name): one for name, one in wrapped.state_dict().items() if _FACTOR.search(name)}


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
            remedy="save it with safe_serialization=True (pickle files are never read); where `seawall tune` removed "
            "them (tune.keep_contaminated: false), train it again",
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


_PLACE_OF_NAME = re.compile(r"(?<=\.lora_[AB])(?=\.weight$)")
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
        weights = {_PLACE_OF_NAME.sub(f".{_NAME}", name): tensor for name, tensor in read.items()}
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
