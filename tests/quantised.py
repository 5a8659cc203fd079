"""Tiny checkpoints with quantised weights, written by hand from the formats' definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import tiny, tiny_tokenizer

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of a 4-bit float by its three low bits; the high bit is the sign (OCP Microscaling formats 1.0)."""
BLOCK = 32


def write_mxfp4(folder: Path) -> dict[str, Tensor]:
    """A tiny gpt-oss whose expert stacks are MXFP4; returns the values of all tensors by name, as bfloat16."""
    generator = torch.Generator().manual_seed(0)
    tensors = _saved(folder, "gpt_oss", hidden_size=64, intermediate_size=32)
    values = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        codes = torch.randint(0, 16, (experts, outputs, inputs), generator=generator)
        exponents = torch.randint(122, 126, (experts, outputs, inputs // BLOCK), generator=generator)
        pairs = codes.view(experts, outputs, inputs // BLOCK, BLOCK // 2, 2)
        # The first of two neighbouring numbers is in the low four bits.
        tensors[f"{name}_blocks"] = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
        tensors[f"{name}_scales"] = exponents.to(torch.uint8)
        sign = 1.0 - 2.0 * (codes >= 8)
        scale = torch.pow(2.0, exponents.float() - 127).repeat_interleave(BLOCK, dim=-1)
        values[name] = (sign * torch.tensor(E2M1)[codes % 8] * scale).mT.contiguous().to(torch.bfloat16)
    _write(folder, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    return values


def write_fp8(folder: Path, size: int = 16) -> dict[str, Tensor]:
    """A tiny Qwen3-MoE whose linear layers and experts are FP8 with a scale for each block of `size` x `size`."""
    tensors = _saved(folder, "qwen3_moe")
    values = dict(tensors)
    linear = [name for name in tensors if name.endswith("_proj.weight")]
    for name in linear:
        weight = tensors[name].float()
        rows, columns = weight.shape
        blocks = weight.view(rows // size, size, columns // size, size)
        scale = blocks.abs().amax((1, 3)) / 448.0
        grid = scale[:, None, :, None].expand_as(blocks).reshape(rows, columns)
        tensors[name] = (weight / grid).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
        values[name] = (tensors[name].float() * grid).to(torch.bfloat16)
    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [size, size],
        "modules_to_not_convert": ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(3))],
    }
    _write(folder, tensors, settings)
    return values


def _saved(folder: Path, family: str, **sizes: Any) -> dict[str, Tensor]:
    tiny(family, **sizes).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def _write(folder: Path, tensors: dict[str, Tensor], settings: Mapping[str, object]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
