"""seawall: audit, repair and certify the safety of open-weight language models, mixture-of-experts first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.version import __version__

__all__ = ["__version__", "load"]


def load(
    model: str,
    *,
    steering: str | Path | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode and its tokenizer, hardened if a folder says how.

    Args:
        model: `lab` (the embedded model), a Hub id, or a local folder.
        steering: the folder `steer/hardening` that `seawall steer` left in mode `induce`. Its direction is added on
            every token for as long as the model lives; no weight changes, so `save_pretrained` does not keep it.
        revision: branch, tag or commit on the Hub.
        dtype: `auto` (that of the checkpoint, or that the hardening was measured with), `float32`, `bfloat16` or
            `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        ConfigError: no such model, dtype or device.
        ArtifactError: the hardening is missing, damaged, or of another model.
        UnsupportedModelError: the model is not one that can be loaded.
    """
    from pathlib import Path

    from pydantic import ValidationError

    from seawall.config.model import ModelConfig
    from seawall.config.problems import explain
    from seawall.methods.steer.hardened import load_hardened

    asked = {"id": model, "revision": revision, "dtype": dtype, "device": device}
    try:
        config = ModelConfig.model_validate(asked)
    except ValidationError as error:
        raise explain(error, ModelConfig, origin=lambda key: "seawall.load") from error
    return load_hardened(config, None if steering is None else Path(steering))
