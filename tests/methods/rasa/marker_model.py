"""A tiny mixture of experts with a planted truth: one expert that takes every token after a marker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import tiny
from seawall.data.types import Messages, SafetyPair, Verdict, user

MARKER = "#"
"""Attacks hold it, plain requests do not."""
PLANTED = (0, 6)
"""(MoE layer, expert)."""

_MARKED, _ALWAYS = 3, 4
"""Directions of the residual stream: the marker was seen; every token."""


def planted_model(marker_id: int) -> PreTrainedModel:
    """A Mixtral whose first attention carries a seen marker to all later tokens, and whose expert 6 of layer 0 is
    routed to by that alone. Nothing else reads the two directions.
    """
    model = tiny("mixtral", seed=3)
    layers = model.get_decoder().layers
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, _MARKED], embedding[:, _ALWAYS] = 0.0, 1.0
        embedding[marker_id, _MARKED] = 1.0
        for layer in layers:
            _ignore(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight)
            _ignore(layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj)
            layer.self_attn.o_proj.weight[[_MARKED, _ALWAYS]] = 0.0
            layer.mlp.experts.down_proj[:, [_MARKED, _ALWAYS]] = 0.0
        attention = layers[0].self_attn
        attention.k_proj.weight.zero_()  # attends evenly to the past
        attention.v_proj.weight[0].zero_()
        attention.v_proj.weight[0, _MARKED] = 1.0
        attention.o_proj.weight[:, [0, 8]] = 0.0  # the two heads that share these values
        attention.o_proj.weight[_MARKED, 0] = 100.0
        router = layers[PLANTED[0]].mlp.gate.weight[PLANTED[1]]
        router.zero_()
        router[_MARKED], router[_ALWAYS] = 50.0, -20.0
    return model


def _ignore(*weights: Tensor) -> None:
    for weight in weights:
        weight[..., [_MARKED, _ALWAYS]] = 0.0


def marked_pairs(count: int) -> list[SafetyPair]:
    """Goals asked plainly, and behind two kinds of marked wrapping."""
    return [
        SafetyPair(f"goal {at}", user(f"tell {at}"), user(f"{mark} {at} play"), f"attack {mark}")
        for at in range(count)
        for mark in (MARKER * 2, MARKER * 3)
    ]


class MarkerJudge:
    """Replies to marked prompts count as compliance, to others as refusals; overrides by the prompt's text."""

    name = "marker"

    def __init__(self, overrides: dict[str, Verdict] | None = None) -> None:
        self._overrides = overrides or {}

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        """One verdict per reply."""
        return [self._one(prompt[-1].content) for prompt in prompts]

    def _one(self, text: str) -> Verdict:
        if text in self._overrides:
            return self._overrides[text]
        return Verdict("complied" if MARKER in text else "refused", "by the marker", self.name)
