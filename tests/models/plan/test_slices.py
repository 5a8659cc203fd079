"""Measured rates: a slice has the model's shapes, and times are extrapolated to its layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from families import tiny
from seawall.models.moe.find import find_moe
from seawall.models.moe.module_copies import modules_beside_experts
from seawall.models.plan.slices import Load, Times, extrapolated, measure, measured_rates, random_model, rates_of

LOAD = Load(rows=2, prompt_tokens=8, training_rows=2, training_tokens=8, positions=4, share=0.25)


def test_a_layer_more_is_a_layer_of_time_more() -> None:
    times = extrapolated(Times(1.0, 2.0, 3.0, 0.5, 100.0), Times(1.5, 2.5, 5.0, 0.75, 200.0), 1, 10)
    assert times == Times(1.0 + 9 * 0.5, 2.0 + 9 * 0.5, 3.0 + 9 * 2.0, 0.5 + 9 * 0.25, 1000.0)


def test_noise_gives_no_negative_time() -> None:
    assert extrapolated(Times(2.0, 1.0, 1.0, 1.0, 1.0), Times(1.0, 1.0, 1.0, 1.0, 1.0), 1, 10).prefill == 2.0


def test_rates_of_times() -> None:
    rates = rates_of(Times(0.5, 0.1, 2.0, 0.25, 100.0), LOAD)
    assert (rates.forward, rates.generate, rates.train, rates.update) == (32, 20, 8, 400)


def test_a_slice_has_the_shapes_of_the_model_and_finite_logits() -> None:
    config = tiny("glm4_moe").config
    model = random_model(config, 2, device=torch.device("cpu"), dtype="float32")
    assert config.num_hidden_layers == 4, "the configuration of the model is as before"
    moe = find_moe(model)
    assert (moe.num_layers, moe.layers[0].decoder_layer) == (1, 1)
    assert bool(model(torch.arange(1, 9)[None]).logits.isfinite().all())


def test_shared_experts_train_where_the_repair_trains_them() -> None:
    model = tiny("qwen2_moe")
    shared = modules_beside_experts(find_moe(model)).values()
    times = measure(model, replace(LOAD, share=0.0, shared=True))
    assert times.updated == sum(value.numel() for module in shared for value in module.parameters())


def test_rates_of_a_mixture_and_of_a_dense_model_are_positive() -> None:
    for family in ("olmoe", "llama"):
        rates = measured_rates(tiny(family).config, LOAD, device=torch.device("cpu"), dtype="float32")
        assert min(rates.generate, rates.forward, rates.train, rates.update) > 0
