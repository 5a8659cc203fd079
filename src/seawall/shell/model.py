"""The model of a recipe, which may be the embedded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.data.rendering import clock_notice
from seawall.lab.build import lab_model_folder, original_model_folder
from seawall.models.decoding import greedy_notice
from seawall.models.files.fingerprint import (
    WeightDigests,
    rendering_fingerprint,
    tokenizer_fingerprint,
)
from seawall.models.files.open import Checkpoint
from seawall.models.greedy import batching_notice
from seawall.models.moe.find import MoEModel, find_moe, find_moe_if_any

_EMBEDDED: Mapping[str, Callable[[], Path]] = {LAB: lab_model_folder, LAB_ORIGINAL: original_model_folder}


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A loaded model with its fingerprints.

    Attributes:
        model: in evaluation mode.
        tokenizer: of the model.
        digests: of the weights' tensors; their fingerprint is that of the current weights.
        fingerprint: of the weights as they were loaded.
        wording: fingerprint of vocabulary and chat template.
        rendered: fingerprint of the rendered probe prompts.
        settings: fingerprint of the model's configuration and of its generation settings.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digests: WeightDigests
    fingerprint: str
    wording: str
    rendered: str
    settings: str

    @cached_property
    def moe_if_any(self) -> MoEModel | None:
        """The MoE layers; None for a dense model.

        Raises:
            UnsupportedModelError: the model has experts that seawall cannot reach.
        """
        return find_moe_if_any(self.model)

    @property
    def moe(self) -> MoEModel:
        """The MoE layers.

        Raises:
            UnsupportedModelError: the model is dense, or has experts that seawall cannot reach.
        """
        return find_moe(self.model) if self.moe_if_any is None else self.moe_if_any


def open_checkpoint(config: ModelConfig) -> Checkpoint:
    """The checkpoint of a model; an embedded model is built at first use."""
    folder = _EMBEDDED.get(config.id)
    return Checkpoint(config if folder is None else config.model_copy(update={"id": str(folder())}))


def load_recipe_model(config: ModelConfig, as_stored: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a configuration and its tokenizer, for a process that only computes."""
    return open_checkpoint(config).load(as_stored=as_stored)


def open_model(checkpoint: Checkpoint, *, as_stored: bool = False) -> OpenModel:
    """Loads a causal language model, dense or MoE.

    Args:
        checkpoint: the model's files.
        as_stored: whether quantised weights are taken as they are.

    Raises:
        SeawallError: the model cannot be loaded.
    """
    model, tokenizer = checkpoint.load(as_stored=as_stored)
    wording, rendered = tokenizer_fingerprint(tokenizer), rendering_fingerprint(tokenizer)
    digests = WeightDigests(model)
    return OpenModel(model, tokenizer, digests, digests.fingerprint(), wording, rendered, checkpoint.settings)


def computing(model: PreTrainedModel) -> dict[str, str]:
    """What numbers of one model depend on: kind of device, type of the weights, implementation of the experts."""
    experts = getattr(model.config, "_experts_implementation", None)
    return {"device": model.device.type, "dtype": str(model.dtype), "experts": str(experts)}


def measurement_notices(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> list[str]:
    """What is pinned or done differently so that a measurement is right, one line each, for the user."""
    lines = (clock_notice(tokenizer), batching_notice(model, max_new_tokens), greedy_notice(model))
    return [line for line in lines if line is not None]
