"""Tiny models of families whose rows depend on the other rows of a batch, or on padding."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import VOCABULARY

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "pad_token_id": 0,
}
DEPENDENT: dict[str, dict[str, Any]] = {
    "minimax": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 16,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 8,
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "layer_types": ["heavily_compressed_attention"],
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}


def dependent(family: str) -> PreTrainedModel:
    """A random model of such a family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family](**{**_COMMON, **DEPENDENT[family]})
        return AutoModelForCausalLM.from_config(config).eval()
