"""Models of the shapes of published ones, with random weights, and one training step of each side of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import OlmoeConfig, PreTrainedConfig, PreTrainedModel, Qwen3MoeConfig

from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.plan.slices import Clock, random_model

SHAPES: dict[str, dict[str, Any]] = {
    "olmoe": {"width": 2048, "expert": 1024, "layers": 16, "heads": 16, "key_heads": 16, "experts": 64, "size": 50304},
    "qwen3-30b": {
        "width": 2048,
        "expert": 768,
        "layers": 48,
        "heads": 32,
        "key_heads": 4,
        "experts": 128,
        "size": 151936,
    },
    "small": {"width": 256, "expert": 128, "layers": 8, "heads": 4, "key_heads": 4, "experts": 32, "size": 8192},
}
"""Shapes of allenai/OLMoE-1B-7B-0125, Qwen/Qwen3-30B-A3B, and a model that trains on two cores."""


@dataclass(frozen=True)
class Setting:
    """One model and its batch."""

    shape: str
    layers: int
    vocabulary: int
    rows: int
    length: int
    device: torch.device
    dtype: str
    fraction: float
    repeats: int
    num_experts: int | None = None

    @property
    def clock(self) -> Clock:
        """Processor time on a CPU, whose cores other processes share."""
        return time.process_time if self.device.type == "cpu" else time.perf_counter

    def config(self) -> PreTrainedConfig:
        """The configuration at full depth."""
        shape = SHAPES[self.shape]
        settings: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": shape["width"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["key_heads"],
            "num_experts": self.num_experts or shape["experts"],
            "num_experts_per_tok": 8,
            "pad_token_id": 0,
            "eos_token_id": None,
        }
        if self.shape == "qwen3-30b":
            return Qwen3MoeConfig(
                moe_intermediate_size=shape["expert"],
                intermediate_size=6144,
                head_dim=128,
                norm_topk_prob=True,
                **settings,
            )
        return OlmoeConfig(intermediate_size=shape["expert"], **settings)

    def model(self, layers: int | None = None) -> PreTrainedModel:
        """The first layers with random weights."""
        return random_model(self.config(), layers or self.layers, device=self.device, dtype=self.dtype)

    def selected(self, moe: MoEModel) -> list[list[int]]:
        """The same share of every layer's experts, at even distances."""
        count = max(1, round(self.fraction * moe.num_experts))
        return [[index * moe.num_experts // count for index in range(count)]] * moe.num_layers

    def ids(self, model: PreTrainedModel) -> Tensor:
        """One batch of random tokens (B, T)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(1, self.vocabulary, (self.rows, self.length), generator=generator).to(model.device)


@contextmanager
def training_side(
    setting: Setting, model: PreTrainedModel, side: str
) -> Iterator[tuple[list[nn.Parameter], Callable[[], None]]]:
    """The trained parameters of a side, and one step of it."""
    moe, ids_BT = find_moe(model), setting.ids(model)
    with ExitStack() as stack:
        model.requires_grad_(False)
        if side == "subset":
            parameters = list(stack.enter_context(trainable_experts(moe, setting.selected(moe))).parameters())
        else:
            stacks = [layer.parameter(name) for layer in moe.layers for name in layer.weights]
            parameters = {"bound": [], "stack": stacks, "full": list(model.parameters())}[side]
            for parameter in parameters:
                parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=1e-6) if parameters else None
        embedded = model.get_input_embeddings()(ids_BT).detach()

        def step() -> None:
            inputs: dict[str, Tensor] = {"input_ids": ids_BT}
            if side == "bound":
                inputs = {"inputs_embeds": embedded.clone().requires_grad_(True)}
            model(**inputs, labels=ids_BT, use_cache=False).loss.backward()
            if optimizer is not None:
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        yield parameters, step
        model.requires_grad_(False)
