"""Tiny models whose refusal is written in a known place by construction: the truths that the verdict must name.

A Glm4Moe of six layers (sigmoid router, shared expert), untrained. It refuses prompts with a marker
(`planted_refusal.harmful`) and answers others. Attention of layer 0 carries `harm` and `kind` (plus or minus, by the
marker) to later tokens. In layer `WRITER` one part writes `feature`; the last layer's shared expert reads it and makes
the refusal's token likely. In the decoy, attention writes the token's own direction instead, which no part reads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from families import tiny
from planted_refusal import ANSWER_TOKEN, REFUSAL_TOKEN, refusing_tokenizer

Place = Literal["routed", "shared", "attention", "decoy"]
WRITER, EXPERT = 2, (1, 5)
"""The decoder layer that writes, and the routed expert (MoE layer, expert) of it."""
_WIDTH, _HEAD = 64, 16
_HARM, _KIND, _FEATURE, _ALWAYS, _END, _TOKEN = range(6)
_PLANTED = [_HARM, _KIND, _FEATURE, _ALWAYS, _END, _TOKEN]


def refusing_in(place: Place) -> PreTrainedModel:
    """The model whose refusal is written in that place."""
    model = _answering()
    layers = model.get_decoder().layers
    _carry(layers[0].self_attn, {_HARM: (_HARM, 12.0), _KIND: (_KIND, 12.0)})
    moe = layers[WRITER].mlp
    if place == "routed":
        # Among the chosen for every token, and the first for a marker's: taking `harm` away does not stop the writing.
        moe.gate.weight.data[EXPERT[1]], moe.gate.weight.data[0] = (
            _row({_ALWAYS: 1.2, _HARM: 3.0}),
            _row({_ALWAYS: 1.6}),
        )
        experts = moe.experts
        _write_where_kind(experts.gate_up_proj.data[EXPERT[1]], experts.down_proj.data[EXPERT[1]])
    elif place == "shared":
        shared = moe.shared_experts
        gate_up = torch.cat([shared.gate_proj.weight.data, shared.up_proj.weight.data])
        _write_where_kind(gate_up, shared.down_proj.weight.data)
        shared.gate_proj.weight.data, shared.up_proj.weight.data = gate_up.chunk(2)
    else:
        _carry(layers[WRITER].self_attn, {_HARM: (_TOKEN if place == "decoy" else _FEATURE, 4.0)})
    if place != "decoy":
        reader = layers[-1].mlp.shared_experts
        reader.gate_proj.weight.data[0], reader.up_proj.weight.data[0] = (
            _row({_FEATURE: 4.0, _ALWAYS: -6.0}),
            _row({_ALWAYS: 1.0}),
        )
        reader.down_proj.weight.data[:, 0] = _row({_TOKEN: 3.0})
    return model


def _answering() -> PreTrainedModel:
    """A random model that answers everything: quiet layers that neither read nor write the planted directions."""
    model = tiny("glm4_moe", seed=5, hidden_size=_WIDTH, num_hidden_layers=6, head_dim=_HEAD)
    with torch.no_grad():
        for name, tensor in model.get_decoder().layers.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.zero_()
            elif tensor.ndim > 1 and name.removesuffix(".weight").endswith(("o_proj", "down_proj")):
                tensor.mul_(0.03)[..., _PLANTED, :] = 0.0
            elif tensor.ndim > 1:
                tensor.mul_(0.3 if name.endswith("gate.weight") else 1.0)[..., _PLANTED] = 0.0
        _write_tokens(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return model


def _write_tokens(embedding_VD: Tensor, output_VD: Tensor) -> None:
    tokenizer = refusing_tokenizer()
    # What tokens say of themselves is longer than what is planted, so that a random vector as long breaks no reply.
    embedding_VD.mul_(3.0)[:, _PLANTED] = 0.0
    embedding_VD[:, _ALWAYS] = 1.0
    for marker, kind in (("#", 1.0), ("%", -1.0)):
        embedding_VD[tokenizer.convert_tokens_to_ids(marker), [_HARM, _KIND]] = torch.tensor([1.0, kind])
    embedding_VD[[REFUSAL_TOKEN, ANSWER_TOKEN], _END] = 12.0
    output_VD.mul_(0.1)[:, _PLANTED] = 0.0
    output_VD[ANSWER_TOKEN, _ALWAYS] = 8.0
    output_VD[REFUSAL_TOKEN, _TOKEN] = 8.0
    output_VD[tokenizer.eos_token_id, _END] = 10.0


def _carry(attention: nn.Module, carried: dict[int, tuple[int, float]]) -> None:
    """Every token looks at all tokens so far alike, and gets `amount` times the mean of a direction in another."""
    key, value, output = (attention.get_parameter(f"{name}_proj.weight").data for name in "kvo")
    key.zero_()
    output[:, : 2 * _HEAD], value[: len(carried)] = 0.0, 0.0
    for index, (source, (goal, amount)) in enumerate(carried.items()):
        value[index, source] = 1.0
        output[goal, [index, _HEAD + index]] = amount / 2


def _write_where_kind(gate_up: Tensor, down: Tensor) -> None:
    """Two neurons of one MLP write `feature` where `kind` is not 0, whichever its sign."""
    half = len(gate_up) // 2
    for neuron, sign in enumerate((1.0, -1.0)):
        gate_up[neuron], gate_up[half + neuron] = _row({_KIND: 5.0 * sign}), _row({_ALWAYS: 1.0})
        down[:, neuron] = _row({_FEATURE: 0.6})


def _row(values: dict[int, float]) -> Tensor:
    row = torch.zeros(_WIDTH)
    row[list(values)] = torch.tensor(list(values.values()))
    return row
