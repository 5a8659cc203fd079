"""Opening the model of a recipe, the embedded one included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.engine import EngineConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.errors import ConfigError
from seawall.lab.build import lab_model_folder, original_model_folder
from seawall.models.files.fingerprint import model_fingerprint, tokenizer_fingerprint
from seawall.models.files.open import Checkpoint
from seawall.models.moe.find import MoEModel, find_moe, find_moe_if_any

_EMBEDDED: Mapping[str, Callable[[], Path]] = {LAB: lab_model_folder, LAB_ORIGINAL: original_model_folder}


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model and what every stage needs of it.

    Attributes:
        model, tokenizer: in evaluation mode.
        fingerprint: of its weights.
        wording: fingerprint of its vocabulary and chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    wording: str

    @cached_property
    def moe_if_any(self) -> MoEModel | None:
        """The mixture-of-experts layers; None where the model is dense.

        Raises:
            UnsupportedModelError: it has experts that seawall cannot reach.
        """
        return find_moe_if_any(self.model)

    @property
    def moe(self) -> MoEModel:
        """The mixture-of-experts layers.

        Raises:
            UnsupportedModelError: the model is dense, or it has experts that seawall cannot reach.
        """
        return find_moe(self.model) if self.moe_if_any is None else self.moe_if_any


def open_checkpoint(config: ModelConfig) -> Checkpoint:
    """The checkpoint of a model; an embedded one is built where it is not there yet."""
    folder = _EMBEDDED.get(config.id)
    return Checkpoint(config if folder is None else config.model_copy(update={"id": str(folder())}))


def open_model(checkpoint: Checkpoint) -> OpenModel:
    """Loads a causal language model, dense or not.

    Raises:
        SeawallError: it cannot be loaded.
    """
    model, tokenizer = checkpoint.load()
    return OpenModel(model, tokenizer, model_fingerprint(model), tokenizer_fingerprint(tokenizer))


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
