"""Loading a model with the artifact that `seawall steer` left in mode `induce`."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.hardening import Hardening
from seawall.artifacts.store import require_model
from seawall.config.model import ModelConfig
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.hidden.harden import harden
from seawall.shell.model import open_checkpoint


def load_hardened(config: ModelConfig, steering: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, with the direction of a hardening added for as long as the model lives.

    Args:
        config: the model, as in a recipe.
        steering: the folder `steer/hardening` of a run; None loads the model as it is.

    Raises:
        ArtifactError: the hardening is missing, damaged, or of another model.
        SeawallError: the model cannot be loaded.
    """
    if steering is None:
        return open_checkpoint(config).load()
    found = Hardening.load(steering)
    config = config.model_copy(update={"dtype": found.dtype}) if config.dtype == "auto" else config
    model, tokenizer = open_checkpoint(config).load()
    require_model(found.model_fingerprint, expected=model_fingerprint(model), artifact="hardening")
    harden(model, found.vector_D, layer=found.layer, coefficient=found.coefficient)
    return model, tokenizer
