"""Opening the model of a recipe, the embedded one included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.engine import EngineConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.errors import ConfigError
from seawall.lab.build import lab_model_folder, original_model_folder
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.hub import locate, stated_licence
from seawall.models.files.load import load_model
from seawall.models.moe.find import MoEModel, find_moe

_EMBEDDED: Mapping[str, Callable[[], Path]] = {LAB: lab_model_folder, LAB_ORIGINAL: original_model_folder}


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model and what every stage asks of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    moe: MoEModel
    fingerprint: str
    licence: str | None = None


def located(config: ModelConfig) -> ModelConfig:
    """The same configuration with an embedded model's name replaced by its folder, which is built if need be."""
    folder = _EMBEDDED.get(config.id)
    return config if folder is None else config.model_copy(update={"id": str(folder())})


def open_model(config: ModelConfig) -> OpenModel:
    """Loads a mixture-of-experts model.

    Raises:
        SeawallError: it cannot be loaded, or it is no mixture of experts that seawall understands.
    """
    config = located(config)
    model, tokenizer = load_model(config)
    moe = find_moe(model)
    return OpenModel(model, tokenizer, moe, model_fingerprint(model), stated_licence(locate(config, weights=False)))


def require_loadable(engine: EngineConfig, refusal: str) -> None:
    """Refuse a model behind an endpoint, where its weights are needed.

    Args:
        engine: how the recipe has its model answer.
        refusal: what cannot be done with such a model.

    Raises:
        ConfigError: it is behind an endpoint.
    """
    if engine.kind != "transformers":
        raise ConfigError(
            refusal,
            got=f"eval.engine.kind={engine.kind}",
            expected="transformers",
            remedy="leave eval.engine out",
        )
