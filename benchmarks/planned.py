"""The plan's memory and time against what is measured."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from allocations import peak_bytes
from round_of_repair import planned_repair, repair_round
from shapes import Setting, training_side
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.models.files.inspect import summarize_moe
from seawall.models.moe.find import find_moe
from seawall.models.plan.memory import cache_bytes, logit_bytes, working_bytes
from seawall.models.plan.shapes import ELEMENT_BYTES, ModelShapes
from seawall.models.plan.slices import Load, Times, extrapolated, measure
from seawall.models.plan.training import MemorySettings, Training, training_moments


def plan(setting: Setting) -> dict[str, Any]:
    """The plan's memory and time of a training step and a decoding batch, against what is measured."""
    load = Load(setting.rows, setting.length, setting.rows, setting.length, 65, setting.fraction)
    small, large = (measure(setting.model(layers), load, setting.clock) for layers in (1, 2))
    predicted = extrapolated(small, large, 1, setting.layers)
    model = setting.model()
    measured = measure(model, load, setting.clock)
    return {"time": _compared(predicted, measured), "memory": _memory(setting, model)}


def _compared(predicted: Times, measured: Times) -> dict[str, dict[str, float]]:
    names = ("prefill", "step", "train", "update")
    pairs = zip(names, astuple(predicted), astuple(measured), strict=False)
    return {
        name: {"planned": round(plan, 4), "measured": round(value, 4), "ratio": round(plan / value, 3)}
        for name, plan, value in pairs
    }


def _memory(setting: Setting, model: PreTrainedModel) -> dict[str, dict[str, float]]:
    shapes, moe = _shapes(setting, model), find_moe(model)
    weights = list(model.parameters())
    with training_side(setting, model, "subset") as (parameters, step):
        step()
        peak = peak_bytes(model.device, step, [*weights, *parameters, *_moments(parameters)])
        trained = sum(value.numel() for value in parameters)
    training = Training(
        parameters=trained,
        rounded=trained,
        largest=max(value.numel() for value in parameters),
        rows=setting.rows,
        length=setting.length,
        positions=setting.length,
        layers=setting.layers,
        share=len(setting.selected(moe)[0]) / moe.num_experts,
    )
    context = 1 if setting.device.type == "cuda" else 0
    moments = training_moments(shapes, training, MemorySettings(), context=context)
    planned = max(sum(moment.terms.values()) for moment in moments)
    ids_BT = setting.ids(model)
    with torch.no_grad():
        decoding = peak_bytes(model.device, lambda: model(input_ids=ids_BT, use_cache=True, logits_to_keep=1), weights)
    tokens = setting.rows * setting.length
    prefill = shapes.weights + cache_bytes(shapes, setting.rows, setting.length)
    prefill += working_bytes(shapes, tokens) + logit_bytes(shapes, setting.rows, copies=0)
    whole = peak_bytes(model.device, lambda: repair_round(model, setting.fraction, setting.clock), weights)
    sides = {
        "training": (planned, peak),
        "prefill": (prefill, decoding),
        "repair": (planned_repair(shapes, setting.fraction).peak, whole),
    }
    return {
        name: {"planned": plan, "measured": value, "ratio": round(plan / value, 3)}
        for name, (plan, value) in sides.items()
    }


def _moments(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Stand-ins of AdamW's moments, which exist before the measured step: two per parameter."""
    return [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]


def _shapes(setting: Setting, model: PreTrainedModel) -> ModelShapes:
    text, parameters = model.config, sum(value.numel() for value in model.parameters())
    head = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
    query, keys = text.num_attention_heads * head, 2 * text.num_key_value_heads * head
    moe = summarize_moe(find_moe(model))
    return ModelShapes(
        parameters=parameters,
        active_parameters=parameters - moe.idle_parameters,
        layers=setting.layers,
        width=text.hidden_size,
        vocabulary=setting.vocabulary,
        query=query,
        keys=keys,
        cache=keys,
        normed=query + keys // 2,
        feed_forward=text.intermediate_size,
        element_bytes=ELEMENT_BYTES[setting.dtype],
        moe=moe,
    )
