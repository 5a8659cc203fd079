"""Opening a guard that writes its answer: a causal language model whose chat template may be missing."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.config.model import ModelConfig
from seawall.data.templating import check_chat_template
from seawall.models.checkpoint import read_config
from seawall.models.hub import locate
from seawall.models.load import load_architecture, load_weights, open_tokenizer, require_plain_weights

_NO_LIMIT = 1_000_000


def load_writer(config: ModelConfig, *, chat: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode on its device, and its tokenizer.

    Args:
        config: which model.
        chat: whether it is asked in its own chat template.

    Raises:
        ConfigError: no such model, dtype or device.
        UnsupportedModelError: no causal language model, or one that cannot be loaded.
        DataError: it has no chat template, and needs one.
        ArtifactError: damaged or incomplete files.
    """
    folder = locate(config)
    architecture = load_architecture(folder, config)
    require_plain_weights(folder, read_config(folder))
    tokenizer = open_tokenizer(folder, config)
    if chat:
        check_chat_template(tokenizer)
    return load_weights(folder, architecture, config), tokenizer


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model can read; where nothing says so, a million."""
    configured = model.config.get_text_config()
    positions = getattr(configured, "max_position_embeddings", None) or _NO_LIMIT
    return int(min(positions, tokenizer.model_max_length, _NO_LIMIT))
