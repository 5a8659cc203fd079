from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import config_of, write_checkpoint
from families import FAMILIES, random_ids, tiny
from seawall.config.recipe import Recipe
from seawall.errors import UnsupportedModelError
from seawall.models.files.inspect import ModelSummary, MoESummary, inspect_model
from seawall.models.files.plan import (
    DataSizes,
    Rates,
    Workload,
    activation_bytes,
    cache_bytes,
    plan_memory,
    rates_from_flops,
    recipe_workload,
    run_seconds,
)

MOE = MoESummary(
    layers=3,
    first_layer=1,
    experts=8,
    top_k=2,
    shared_experts=1,
    expert_tensors=(),
    expert_parameters=3 * 10 * 4,
    shared_parameters=3 * 10 * 4,
    router_parameters=3 * 8 * 10,
    attention_parameters=400,
)
SUMMARY = ModelSummary(
    id="hand",
    architecture="Hand",
    family="hand",
    parameters=10_000,
    active_parameters=10_000 - 3 * 6 * 120,
    decoder_layers=4,
    width=10,
    vocabulary=100,
    cache_elements=8,
    moe=MOE,
    dtype="bfloat16",
    bytes_on_disk=20_000,
    tokenizer=True,
    chat_template=True,
    refusals=(),
)
WORK = Workload(
    element_bytes=2,
    trained_parameters=500,
    trained_layers=3,
    training_rows=2,
    generation_rows=5,
    training_length=7,
    generation_length=11,
    generated_tokens=1000,
    forward_tokens=2000,
    trained_tokens=3000,
    checkpoints=3,
    delta=True,
    export=True,
)
SIZES = DataSizes(
    train_goals=20,
    validation_prompts=30,
    test_goals=10,
    test_prompts=40,
    seen_families=2,
    unseen_families=3,
    prompt_tokens=50,
    response_tokens=14,
)


def _recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(sections)


def test_every_number_by_hand() -> None:
    plan = plan_memory(SUMMARY, WORK, Rates(generate=10, forward=100, train=50))
    assert plan.weights == 20_000
    assert plan.trainable == 2_000
    assert plan.gradients == 2_000
    assert plan.optimizer == 4_000
    # 14 tokens x (3 layers x ((8 + 4) x 10 + 2 x 8 + 4 x 12) x 2 bytes + 100 x (2 + 8))
    assert plan.activations == 14 * (3 * (120 + 16 + 48) * 2 + 1000) == 29_456
    assert plan.cache == 5 * 11 * 4 * 8 * 2 == 3_520
    assert plan.run_folder == 3 * 6_000 + 1_000 + 8_000
    assert plan.export == 20_000
    assert plan.seconds == 100 + 20 + 60
    assert plan.training_peak == 20_000 + 2_000 + 2_000 + 4_000 + 29_456
    assert plan.generation_peak == 20_000 + 2_000 + 4_000 + 3_520
    assert plan.peak == plan.training_peak
    assert plan.disk == 27_000 + 20_000


def test_what_is_not_written_takes_no_disk_and_no_rate_gives_no_time() -> None:
    plan = plan_memory(SUMMARY, replace(WORK, checkpoints=0, delta=False, export=False, generated_tokens=0))
    assert plan.disk == 0
    assert plan.seconds is None


@pytest.mark.parametrize(
    "summary", [replace(SUMMARY, width=0), replace(SUMMARY, vocabulary=0), replace(SUMMARY, decoder_layers=-1)]
)
def test_sizes_that_make_no_model_are_one_line(summary: ModelSummary) -> None:
    with pytest.raises(UnsupportedModelError, match=r"the sizes in config\.json make no model"):
        plan_memory(summary, WORK)


def test_generation_can_be_the_peak() -> None:
    plan = plan_memory(SUMMARY, replace(WORK, generation_rows=1000))
    assert plan.peak == plan.generation_peak > plan.training_peak


def test_rates_from_operations_per_second() -> None:
    rates = rates_from_flops(SUMMARY, 2 * SUMMARY.active_parameters * 48)
    assert (rates.forward, rates.train, rates.generate) == (48, 16, 6)
    assert run_seconds(WORK, rates) == pytest.approx(1000 / 6 + 2000 / 48 + 3000 / 16)


def test_the_work_of_a_recipe_by_hand() -> None:
    recipe = _recipe(
        profile={"max_new_tokens": 9, "batch_size": 4},
        select={"k": 0.25},
        repair={"rounds": 2, "batch_size": 16, "retain": {"per_batch": 4}},
        eval={"max_new_tokens": 5, "batch_size": 6},
    )
    work = recipe_workload(SUMMARY, recipe, SIZES)
    profiled, evaluated, validated = 20 * 3, 2 * (10 * 6 + 40), 2 * 30
    updates = 3  # 40 pairs in batches of 16
    assert work == Workload(
        element_bytes=2,
        trained_parameters=6 * 120 + 240,
        trained_layers=3,
        training_rows=20,
        generation_rows=6,
        training_length=64,
        generation_length=59,
        generated_tokens=profiled * 9 + (validated + evaluated) * 5,
        forward_tokens=50 * (2 * profiled + validated + evaluated) + profiled * 9,
        trained_tokens=64 * 2 * updates * (20 + 32),
        checkpoints=2,
        delta=True,
        export=True,
    )


@pytest.mark.parametrize(("micro", "rows"), [(None, 20), (8, 8), (64, 20)])
def test_a_micro_batch_bounds_the_rows_of_a_forward_pass(micro: int | None, rows: int) -> None:
    recipe = _recipe(repair={"batch_size": 16, "micro_batch_size": micro, "retain": {"per_batch": 4}})
    assert recipe_workload(SUMMARY, recipe, SIZES).training_rows == rows


def test_twins_are_answered_once_and_go_into_every_update() -> None:
    plain, twins = (
        recipe_workload(SUMMARY, _recipe(repair={"batch_size": 16, "retain": {"per_batch": 4, "twins": count}}), SIZES)
        for count in (0, 2)
    )
    assert (plain.training_rows, twins.training_rows) == (20, 52)
    pairs = SIZES.train_goals * SIZES.seen_families
    assert twins.generated_tokens - plain.generated_tokens == 2 * pairs * _recipe().eval.max_new_tokens


@pytest.mark.parametrize(
    ("sections", "trained"),
    [
        ({"select": {"k": 5}}, 5 * 120 + 240),
        ({"select": {"k": 1000}}, 24 * 120 + 240),
        ({"select": {"k": 0.001}}, 120 + 240),
        ({"repair": {"parameters": "all_experts"}}, 24 * 120 + 240),
        ({"repair": {"parameters": "full"}}, 10_000),
        ({"repair": {"parameters": "shared"}}, 3 * 120 + 240),
        ({"repair": {"expert": {"attention_lr": 1e-4}}}, 3 * 120 + 3 * 400 + 240),
        ({"repair": {"router": {"enabled": False}}}, 3 * 120),
        ({"repair": {"expert": {"enabled": False}}}, 240),
    ],
)
def test_what_trains_follows_the_recipe(sections: dict[str, Any], trained: int) -> None:
    assert recipe_workload(SUMMARY, _recipe(**sections), SIZES).trained_parameters == trained


def test_limits_on_steps_and_switched_off_steps_count() -> None:
    base = recipe_workload(SUMMARY, _recipe(), SIZES).trained_tokens
    capped = recipe_workload(SUMMARY, _recipe(repair={"expert": {"max_steps": 1}}), SIZES).trained_tokens
    assert base - capped == 64 * 3 * 2 * 20
    off = recipe_workload(SUMMARY, _recipe(repair={"router": {"enabled": False}}), SIZES).trained_tokens
    assert base - off == 64 * 3 * 3 * 32


def test_full_training_goes_through_every_layer_in_the_asked_type() -> None:
    work = recipe_workload(SUMMARY, _recipe(model={"dtype": "float32"}, repair={"parameters": "full"}), SIZES)
    assert (work.trained_layers, work.element_bytes) == (4, 4)


def test_a_model_that_is_refused_cannot_be_planned_for() -> None:
    summary = replace(SUMMARY, moe=None, refusals=("it is dense",))
    with pytest.raises(UnsupportedModelError, match="refused: it is dense"):
        plan_memory(summary, WORK)
    with pytest.raises(UnsupportedModelError):
        recipe_workload(summary, _recipe(), SIZES)


WIDER = {
    "hidden_size": 128,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 32),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_as_large_as_what_autograd_saves(tmp_path: Path, family: str) -> None:
    settings = FAMILIES[family]
    overrides: dict[str, Any] = {key: value for key, value in WIDER.items() if key in {"hidden_size", *settings}}
    overrides["intermediate_size"] = 4 * settings["intermediate_size"]
    model = tiny(family, **overrides)
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", family, **overrides)))
    assert summary.moe is not None
    work = replace(WORK, element_bytes=4, trained_layers=summary.decoder_layers, training_rows=4, training_length=32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    ids = random_ids(4, 32)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    measured = sum(storage.nbytes() for storage in saved.values())
    assert 0.7 < activation_bytes(summary, summary.moe, work) / measured < 1.3


def test_the_cache_of_a_full_batch(tmp_path: Path) -> None:
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", "qwen3_moe")))
    with torch.no_grad():
        cache = tiny("qwen3_moe")(random_ids(5, 11), use_cache=True).past_key_values
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(summary, replace(WORK, element_bytes=4)) == measured
