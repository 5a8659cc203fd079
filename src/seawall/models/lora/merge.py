"""LoRA adapters of PEFT, merged into the model that they were trained on."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.errors import ArtifactError, ConfigError, SeawallError, UnsupportedModelError
from seawall.models.files.checkpoint import read_json
from seawall.models.files.load import library_errors
from seawall.models.files.open import Checkpoint
from seawall.models.lora.biases import missing_biases
from seawall.models.lora.merged import (
    LostInRoundingError,
    probed_effect,
    require_known_base,
    require_own_weights,
    require_same_logits,
    require_survival,
)
from seawall.models.lora.updates import LowRankUpdate, adapter_updates

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.weight$)")
_OWN_MODEL = "name the model that the adapter was trained on"


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Adds an adapter's update to the model's weights, in the weights' own type, and returns the model.

    `model` is changed in place. In 16-bit types the sum is rounded; a merge that would lose the adapter is refused
    before the model is changed.

    Args:
        model: the model that the adapter was trained on.
        folder: the folder that PEFT's `save_pretrained` wrote, with safetensors weights.

    Raises:
        SeawallError: PEFT is not installed.
        ConfigError: the folder does not exist, or holds no adapter.
        UnsupportedModelError: the adapter is not LoRA, is pickled, or does not fit the model.
        LostInRoundingError: the weights' type is too coarse for the update.
        ArtifactError: the files are damaged, or the adapter fits the model only in part.
    """
    return merge_attached(attach_saved_adapter(model, folder), folder)


def load_merged(
    checkpoint: Checkpoint, folder: Path, say: Callable[[str], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a checkpoint with an adapter merged; in float32 where the checkpoint's type would lose the adapter.

    `say` receives a sentence where float32 is used.

    Raises:
        SeawallError: as `merge_adapter`, and as `Checkpoint.load`.
    """
    model, tokenizer = checkpoint.load()
    try:
        return merge_adapter(model, folder), tokenizer
    except LostInRoundingError as error:
        say(f"loading in float32: {error}")
    del model
    model, tokenizer = checkpoint.load(dtype="float32")
    return merge_adapter(model, folder), tokenizer


def merge_attached(wrapped: Any, folder: Path) -> PreTrainedModel:
    """Merges the current factors of an attached adapter into the model's weights and returns the model.

    Args:
        wrapped: PEFT's model, from `attach_saved_adapter`.
        folder: the adapter's folder, for messages.

    Raises:
        UnsupportedModelError: the sum is not finite, PEFT cannot merge it, or the merged model is another than the one
            with the adapter attached.
        LostInRoundingError: the weights' type is too coarse for the update.
        ArtifactError: the adapter changes nothing.
    """
    require_own_weights(wrapped, folder)
    require_survival(wrapped, folder)
    adapted, plain = probed_effect(wrapped, folder)
    with library_errors(f"the adapter in {folder} does not fit the model"):
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    require_same_logits(merged, adapted, plain, folder)
    return merged.requires_grad_(True).eval()


def attach_saved_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """Attaches a saved adapter to `model`, frozen, and returns PEFT's model around it.

    Raises:
        SeawallError: as `merge_adapter`.
    """
    check_adapter(folder)
    peft = require_peft()
    with reading_adapter(model, folder):
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        wrapped = peft.PeftModel(model, settings, "default")
        require_factor_shapes(wrapped, folder)
        loading = wrapped.load_adapter(
            str(folder),
            "default",
            torch_device=str(model.device),
            key_mapping=getattr(model, "_checkpoint_conversion_mapping", {}),
        )
    missing = [*loading.missing_keys, *missing_biases(wrapped, folder / WEIGHTS)]
    require_all_factors(wrapped, folder, missing=missing, unexpected=loading.unexpected_keys)
    return wrapped


@contextmanager
def reading_adapter(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Turns PEFT's errors about an adapter that does not fit into one line that lists the model's linear layers.

    Raises:
        UnsupportedModelError: PEFT cannot attach the adapter to the model.
    """
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    layers = sorted({name.rpartition(".")[2] for name in linear})
    what, expected = f"the adapter in {folder} does not fit the model", f"layers of this model: {', '.join(layers)}"
    with library_errors(what, expected=expected, remedy=_OWN_MODEL), silence_peft():
        yield


@contextmanager
def silence_peft() -> Iterator[None]:
    """Hides two warnings of PEFT: on a property's former name, and on tied weights, which merging checks itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", ".*tie_word_embeddings", UserWarning)
        yield


def require_factor_shapes(wrapped: Any, folder: Path) -> None:
    """Checks the shapes of the saved factors against those that the adapter's configuration makes in this model.

    Reads only the header of the file.

    Args:
        wrapped: PEFT's model, made from the adapter's configuration.
        folder: the adapter's folder.

    Raises:
        ArtifactError: a factor has another rank, or belongs to a model of other shapes.
    """
    expected = {name: tuple(factor.shape) for name, factor in _factors(wrapped).items()}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        stored = {plain_factor(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(stored.keys() & expected.keys()):
        if stored[name] == expected[name]:
            continue
        width_axis = 1 if name.endswith("lora_A.weight") else 0
        only_rank_differs = stored[name][width_axis] == expected[name][width_axis]
        raise ArtifactError(
            f"the adapter in {folder} "
            + (f"has another rank than its {CONFIG} says" if only_rank_differs else "is for a model of other shapes"),
            got=f"{name} of {stored[name]}",
            expected=f"{expected[name]}",
            remedy=f"restore its {CONFIG}, or name a model with the number of experts that the adapter was trained on"
            if only_rank_differs
            else _OWN_MODEL,
        )


def require_all_factors(wrapped: Any, folder: Path, *, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Checks that the saved factors are exactly those that the adapter's configuration makes in this model.

    Args:
        wrapped: PEFT's model, made from the adapter's configuration.
        folder: the adapter's folder.
        missing: factors of `wrapped` that the file lacks.
        unexpected: tensors of the file that `wrapped` lacks.

    Raises:
        ArtifactError: `missing` or `unexpected` is not empty.
    """
    mismatched = [*missing, *unexpected]
    if not mismatched:
        return
    factors = _factors(wrapped)
    modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in factors})
    raise ArtifactError(
        f"the adapter in {folder} fits the model only in part",
        got=f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {plain_factor(mismatched[0])} first",
        expected=f"the {len(factors)} tensors that its {CONFIG} makes in this model, of {', '.join(modules)}",
        remedy=f"{_OWN_MODEL}, or restore its {CONFIG}",
    )


def plain_factor(name: str) -> str:
    """The name of a factor in the model without PEFT's prefix and the adapter's name."""
    return _FACTOR.sub("", name).removeprefix("base_model.model.")


def _factors(wrapped: Any) -> dict[str, Tensor]:
    return {plain_factor(name): tensor for name, tensor in wrapped.state_dict().items() if _FACTOR.search(name)}


def check_adapter(folder: Path) -> None:
    """Checks the folder of an adapter before a model is loaded for it.

    Raises:
        SeawallError: as `merge_adapter`.
    """
    if not folder.is_dir():
        raise ConfigError(f"adapter folder {folder} does not exist", remedy="check the path (--adapter)")
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds no adapter", got=f"no {CONFIG}", expected="a folder that PEFT's save_pretrained wrote"
        )
    settings = read_json(folder / CONFIG)
    if (kind := settings.get("peft_type")) != "LORA":
        raise UnsupportedModelError(
            f"the adapter in {folder} cannot be merged", got=f"peft_type {kind}", expected="LORA"
        )
    require_known_base(settings, folder)
    if not (folder / WEIGHTS).is_file():
        raise UnsupportedModelError(
            f"the adapter in {folder} has no safetensors weights",
            expected=WEIGHTS,
            remedy="save the adapter with safe_serialization=True (pickle files are never read); if `seawall tune` "
            "removed the weights (tune.keep_contaminated: false), train it again",
        )
    require_peft()


def require_peft() -> Any:
    """The module `peft`; SeawallError where it is not installed."""
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise SeawallError("adapters need PEFT, which is not installed", remedy="pip install 'seawall[tune]'") from None


_BEFORE_WEIGHT = re.compile(r"(?<=\.lora_[AB])(?=\.weight$)")
"""Where PEFT inserts the adapter's name into the name of a factor."""
_NAME = "default"


def adapter_factors(model: PreTrainedModel, folder: Path) -> list[LowRankUpdate]:
    """The low-rank updates of a saved adapter, on the CPU, named after the parameters of the model without the adapter.

    Args:
        model: the model that the adapter was trained on, on the meta device; PEFT adds its modules to it.
        folder: the folder that PEFT's `save_pretrained` wrote, with safetensors weights.

    Raises:
        SeawallError: PEFT is not installed.
        ConfigError: the folder does not exist, or holds no adapter.
        UnsupportedModelError: the adapter is not plain LoRA of weight matrices, is pickled, or does not fit the model.
        ArtifactError: the files are damaged, or the adapter fits the model only in part.
    """
    check_adapter(folder)
    _require_matrices_alone(folder)
    peft = importlib.import_module("peft")
    with reading_adapter(model, folder):
        wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(folder)), _NAME)
        require_factor_shapes(wrapped, folder)
        # PEFT's own loading would move the factors to where the weights are.
        saved = peft.load_peft_weights(str(folder), device="cpu")
        weights = {_BEFORE_WEIGHT.sub(f".{_NAME}", name): tensor for name, tensor in saved.items()}
        loading = wrapped.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in loading.missing_keys if ".lora_" in name]
    require_all_factors(wrapped, folder, missing=missing, unexpected=loading.unexpected_keys)
    return adapter_updates(wrapped)


def _require_matrices_alone(folder: Path) -> None:
    """Refuses, by its configuration, an adapter that trains biases or whole modules, or is a variant of LoRA."""
    settings = read_json(folder / CONFIG)
    modules = settings.get("modules_to_save") or []
    features = {
        "biases": settings.get("bias", "none") != "none" or settings.get("lora_bias", False),
        f"modules_to_save {', '.join(map(str, modules))}": bool(modules),
        "DoRA": settings.get("use_dora", False),
    }
    unsupported = next((feature for feature, enabled in features.items() if enabled), None)
    if unsupported is not None:
        raise UnsupportedModelError(
            f"the adapter in {folder} is not plain LoRA of weight matrices",
            got=unsupported,
            expected="plain LoRA of linear layers or stacked experts",
            remedy="merge the adapter into its model, and name the merged checkpoint instead",
        )
