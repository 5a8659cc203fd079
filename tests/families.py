"""Tiny random models of eleven families of mixture-of-experts models, and a tiny chat tokenizer. No downloads."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 272
NUM_EXPERTS = 8
TOP_K = 2
WIDTH = 32
EXPERT_WIDTH = 16
NUM_LAYERS = 3

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")

# A wide initialisation: routing must differ between tokens, and logits must react to a change of routing.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
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
_ROUTED = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K}
_LOCAL = {"num_local_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K}
_NARROW = {"intermediate_size": 2 * EXPERT_WIDTH, "moe_intermediate_size": EXPERT_WIDTH}
_DEEPSEEK = {"n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K, "first_k_dense_replace": 1, **_NARROW}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**_ROUTED, **_NARROW, "shared_expert_intermediate_size": EXPERT_WIDTH},
    "qwen3_moe": {**_ROUTED, **_NARROW, "norm_topk_prob": True, "head_dim": 8},
    "olmoe": {**_ROUTED, "intermediate_size": EXPERT_WIDTH},
    "mixtral": {**_LOCAL, "intermediate_size": EXPERT_WIDTH},
    "deepseek_v3": {
        **_DEEPSEEK,
        "num_hidden_layers": NUM_LAYERS + 1,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
    },
    "glm4_moe": {**_DEEPSEEK, "num_hidden_layers": NUM_LAYERS + 1, "head_dim": 8, "routed_scaling_factor": 1.5},
    "gpt_oss": {
        **_LOCAL,
        "intermediate_size": EXPERT_WIDTH,
        "head_dim": 8,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "minimax_m2": {**_LOCAL, "intermediate_size": EXPERT_WIDTH, "head_dim": 8},
    "ernie4_5_moe": {
        "moe_num_experts": NUM_EXPERTS,
        "moe_k": TOP_K,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "num_hidden_layers": NUM_LAYERS + 1,
        **_NARROW,
    },
    "phimoe": {**_LOCAL, "intermediate_size": EXPERT_WIDTH},
    "hunyuan_v1_moe": {
        "num_experts": NUM_EXPERTS,
        "moe_topk": TOP_K,
        "intermediate_size": EXPERT_WIDTH,
        "head_dim": 8,
    },
}
"""Family -> what its configuration needs beyond the common sizes. Three are dense in their first decoder layer."""

UNUSUAL: dict[str, dict[str, Any]] = {
    "nemotron_h": {
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "num_hidden_layers": NUM_LAYERS + 1,
        "layers_block_type": ["moe", "attention", "moe", "moe"],
        "moe_shared_expert_intermediate_size": EXPERT_WIDTH,
        "head_dim": 8,
        **_NARROW,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": NUM_EXPERTS,
        "top_k_experts": TOP_K,
        "head_dim": 8,
        "global_head_dim": 8,
        "layer_types": ["full_attention"] * NUM_LAYERS,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        **_NARROW,
    },
    "deepseek_v2": {
        **_DEEPSEEK,
        "num_hidden_layers": NUM_LAYERS + 1,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
    },
}
"""Beyond the eleven: experts without a gate matrix, a router that gives out probabilities, groups of experts."""

REFUSED: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 2 * EXPERT_WIDTH},
    "llama4_text": {**_LOCAL, "intermediate_size": EXPERT_WIDTH, "intermediate_size_mlp": EXPERT_WIDTH, "head_dim": 8},
}
"""Models that seawall refuses: a dense one, and one whose experts take a single argument."""

RETURNING: dict[str, dict[str, Any]] = {
    "glm_moe_dsa": {
        **_DEEPSEEK,
        "num_hidden_layers": NUM_LAYERS + 1,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "index_topk": 4,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "indexer_types": ["full", "shared", "full", "shared"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
}
"""Models whose decoder layers hand on more than hidden states: here the tokens that an indexer chose."""

BESIDE: dict[str, dict[str, Any]] = {
    "granitemoeshared": {**_LOCAL, "intermediate_size": EXPERT_WIDTH, "shared_intermediate_size": EXPERT_WIDTH},
    "afmoe": {
        **_DEEPSEEK,
        "num_hidden_layers": NUM_LAYERS + 1,
        "num_experts": NUM_EXPERTS,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "head_dim": 8,
        "layer_types": ["full_attention"] * (NUM_LAYERS + 1),
    },
    "inkling_text": {
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": EXPERT_WIDTH,
        "intermediate_size": EXPERT_WIDTH,
        "head_dim": 8,
        "mlp_layer_types": ["sparse"] * NUM_LAYERS,
        "layer_types": ["hybrid"] * NUM_LAYERS,
    },
}
"""Models with a shared MLP beside the block of routed experts, or with a stack of shared experts or a bias in it."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny(family: str, seed: int = 0, *, implementation: str = "grouped_mm", **overrides: Any) -> PreTrainedModel:
    """A random model of a family in evaluation mode: 3 MoE layers, E=8, K=2, D=32, every parameter away from zero."""
    config = CONFIG_MAPPING[family](
        **{**_COMMON, **{**FAMILIES, **UNUSUAL, **RETURNING, **REFUSED, **BESIDE}[family], **overrides}
    )
    dispatched = {} if family in REFUSED else {"experts_implementation": implementation}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, **dispatched)
        _fill_zeros(model)
    return model.eval()


def _fill_zeros(model: torch.nn.Module) -> None:
    """Biases start at zero in most families; a test that never sees them at work would prove nothing about them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith("bias"):
                tensor.normal_(std=0.1)


def checkpoint_activations(model: PreTrainedModel, *, reentrant: bool = False) -> None:
    """Turns gradient checkpointing on, and the training mode that it needs."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()


def random_ids(batch: int = 3, length: int = 11, seed: int = 0) -> torch.Tensor:
    """Token ids (batch, length) for a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: any text round-trips, and it has a ChatML template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
