"""Checkpoints of large models at their true shapes: configuration, headers and index, in files without content."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig, PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

INDEX = "model.safetensors.index.json"
_SHARD = 40 * 10**9
"""Bytes of weights in a file."""


def olmoe_1b_7b() -> PreTrainedConfig:
    """allenai/OLMoE-1B-7B-0125-Instruct (arXiv 2409.02060, table 1): 6.9 B parameters, 1.3 B used per token."""
    return OlmoeConfig(
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
        eos_token_id=None,
        architectures=["OlmoeForCausalLM"],
        dtype="bfloat16",
    )


def qwen3_30b_a3b() -> PreTrainedConfig:
    """Qwen/Qwen3-30B-A3B (arXiv 2505.09388, table 2): 30.5 B parameters, 3.3 B used per token."""
    return _qwen3(2048, 768, layers=48, heads=32, inner=6144)


def qwen3_235b_a22b() -> PreTrainedConfig:
    """Qwen/Qwen3-235B-A22B (arXiv 2505.09388, table 2): 235 B parameters, 22 B used per token."""
    return _qwen3(4096, 1536, layers=94, heads=64, inner=12288)


def _qwen3(width: int, expert: int, *, layers: int, heads: int, inner: int) -> PreTrainedConfig:
    return Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        moe_intermediate_size=expert,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        architectures=["Qwen3MoeForCausalLM"],
        dtype="bfloat16",
    )


def qwen2_5_1_5b() -> PreTrainedConfig:
    """Qwen/Qwen2.5-1.5B-Instruct (arXiv 2412.15115, table 1): dense, 1.54 B parameters."""
    return Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
    )


def write_sparse(folder: Path, config: PreTrainedConfig) -> Path:
    """A checkpoint in bfloat16 whose files have their true length and no content."""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in _stored(config):
        if filled > _SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += 2 * math.prod(shape)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")
    return folder


def _stored(config: PreTrainedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as published: every expert in tensors of its own."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        prefix, _, last = name.rpartition(".")
        if parameter.ndim < 3:
            yield name, shape
        elif last == "gate_up_proj":
            for expert, part in ((e, p) for e in range(shape[0]) for p in ("gate_proj", "up_proj")):
                yield f"{prefix}.{expert}.{part}.weight", (shape[1] // 2, shape[2])
        else:
            for expert in range(shape[0]):
                yield f"{prefix}.{expert}.{last}.weight", shape[1:]


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
