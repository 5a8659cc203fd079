"""Tiny random dense models, for what works without experts too. Four of the families put a norm behind each half."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import EXPERT_WIDTH, NUM_LAYERS, VOCABULARY, WIDTH

DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "olmo2": {},
    "glm4": {"head_dim": 8},
}
"""Family -> what its configuration needs beyond the common sizes."""


_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * EXPERT_WIDTH,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def dense(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model in evaluation mode: 3 layers, D=32, norms away from one and biases away from zero."""
    config = CONFIG_MAPPING[family](**{**_COMMON, **DENSE.get(family, {}), **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        for vector in vectors:
            vector.data.add_(torch.randn_like(vector), alpha=0.1)
    return model.eval()
