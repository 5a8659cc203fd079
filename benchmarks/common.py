"""A random mixture-of-experts model of moderate size, shaped like GLM-4-MoE, for the benchmarks."""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, PreTrainedModel


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has. The defaults make a model of about 370 MB in float32."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--implementation", default="grouped_mm", choices=["eager", "batched_mm", "grouped_mm"])
    parser.add_argument("--layers", type=int, default=5, help="decoder layers; the first is dense")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--expert-width", type=int, default=384)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def build_model(options: argparse.Namespace) -> PreTrainedModel:
    """The model, in evaluation mode, on the wanted device."""
    torch.manual_seed(options.seed)
    config = Glm4MoeConfig(
        vocab_size=8192,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        moe_intermediate_size=options.expert_width,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=options.width // 8,
        n_routed_experts=options.experts,
        num_experts_per_tok=options.top_k,
        first_k_dense_replace=1,
        pad_token_id=0,
    )
    with torch.device(options.device):  # drawn where it is needed: billions of numbers take minutes on a CPU
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, options.dtype), experts_implementation=options.implementation
        )
    return model.eval()


def synchronize(device: torch.device) -> None:
    """Waits for the accelerator, so that a clock read afterwards counts its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
