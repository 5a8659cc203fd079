"""Stages and work of every verb, by hand where the recipe decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plan_shapes import DENSE, MOE, SHAPES
from seawall.config.recipe import Recipe
from seawall.errors import UnsupportedModelError
from seawall.models.plan.methods import VERBS, adapter_elements
from seawall.models.plan.rates import Rates, rates_from_flops, seconds
from seawall.models.plan.repair import expert_parameters, repair_trainings
from seawall.models.plan.request import Request, memory_settings
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import DataSizes, Stage, Work
from seawall.models.plan.training import MemorySettings, Training, training_moments

SIZES = DataSizes(
    train_goals=20,
    validation_prompts=30,
    test_goals=10,
    test_prompts=40,
    seen_families=2,
    unseen_families=3,
    retained=15,
    gold=12,
    task_rows=64,
    prompt_tokens=50,
    longest_prompt=70,
    response_tokens=14,
)


def _request(shapes: ModelShapes = SHAPES, memory: MemorySettings | None = None, **sections: Any) -> Request:
    recipe = Recipe.model_validate(sections)
    return Request(shapes, recipe, SIZES, memory or memory_settings(recipe))


def _stages(verb: str, **sections: Any) -> dict[str, Stage]:
    return {stage.name: stage for stage in VERBS[verb](_request(**sections))}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_memory_and_work(verb: str) -> None:
    stages = VERBS[verb](_request())
    for stage in stages:
        assert stage.moments
        assert all(moment.terms["weights"] > 0 for moment in stage.moments)
        assert all(size >= 0 for moment in stage.moments for size in moment.terms.values())
    assert verb == "select" or sum((stage.work for stage in stages), Work()) != Work()


@pytest.mark.parametrize("verb", ["eval", "steer", "gene extract", "gene graft", "tune", "landscape"])
def test_dense_models_have_plans_of_the_verbs_that_take_them(verb: str) -> None:
    assert VERBS[verb](_request(DENSE))


@pytest.mark.parametrize("verb", ["run", "profile", "select", "repair", "audit"])
def test_verbs_of_experts_refuse_dense_models(verb: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{verb} needs a mixture-of-experts model"):
        VERBS[verb](_request(DENSE))


def test_the_work_of_the_main_job_by_hand() -> None:
    stages = _stages(
        "run",
        profile={"max_new_tokens": 9, "batch_size": 4},
        repair={"rounds": 2, "batch_size": 16, "retain": {"per_batch": 4}},
        eval={"max_new_tokens": 5, "batch_size": 6},
    )
    profiled, evaluated = 20 * 3, 10 * 6 + 40
    assert stages["profile"].work == Work(generated=profiled * 9, forward=profiled * (50 + 50 + 9))
    measured = Work(generated=evaluated * 5, forward=evaluated * 50 + 12 * 64)
    assert stages["eval-before"].work == stages["eval-after"].work == measured
    answered, updates = 15 + 3 * 30, 3  # 40 pairs in batches of 16
    assert stages["repair"].work == Work(
        generated=answered * 5,
        forward=answered * 50 + 2 * updates * 16 * 50,
        trained=2 * updates * (20 * 64 + 16 * 50),
        updates=2 * updates * 2,
        updated=3 * 120,
    )
    trained = 3 * 120 + 240
    assert stages["repair"].disk["checkpoints"] == 3 * 4 * trained + 2 * 8 * trained
    assert stages["export"].disk == {"delta": 2 * trained, "checkpoint": 20_000}


def test_memory_of_a_repair_by_hand() -> None:
    request = _request(select={"k": 0.25}, repair={"batch_size": 16, "micro_batch_size": 4, "retain": {"per_batch": 4}})
    backward, update = training_moments(
        SHAPES, repair_trainings(request, MOE)[0], request.memory, context=request.context
    )
    trained = 6 * 120
    assert backward.terms["weights"] == 20_000
    assert backward.terms["trainable copies"] == 4 * (trained + 240)
    assert backward.terms["optimizer state"] == 8 * (trained + 240)
    assert backward.terms["gradients"] == update.terms["gradients"] == 4 * trained
    assert backward.terms["rounded copies"] == 2 * trained
    assert backward.terms["logits"] == 4 * 15 * 100 * 14
    assert update.terms["update"] == 2 * 4 * round(2 / 3 * 0.25 * 8 * 120)


def test_one_pass_has_no_gradients_before_its_backward_pass() -> None:
    training = Training(parameters=500, rows=4, length=10, positions=5, layers=3)
    backward, update = training_moments(SHAPES, training, MemorySettings(), context=0)
    assert (backward.terms["gradients"], update.terms["gradients"]) == (0, 2000)


def test_memory_settings_take_less() -> None:
    training = Training(parameters=5000, rounded=5000, rows=8, length=100, positions=5, layers=3, share=0.25)
    settings = (
        MemorySettings(micro_batch_size=4),
        MemorySettings(micro_batch_size=4, gradient_checkpointing=True),
        MemorySettings(micro_batch_size=4, gradient_checkpointing=True, optimizer="adamw_8bit"),
        MemorySettings(micro_batch_size=4, gradient_checkpointing=True, optimizer="adamw_offload"),
        MemorySettings(micro_batch_size="auto", gradient_checkpointing=True, optimizer="adamw_offload"),
    )
    peaks = [
        max(sum(moment.terms.values()) for moment in training_moments(SHAPES, training, memory, context=1))
        for memory in settings
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


@pytest.mark.parametrize(
    ("sections", "trained"),
    [
        ({"select": {"k": 5}}, 5 * 120),
        ({"select": {"k": 1000}}, 24 * 120),
        ({"select": {"k": 0.001}}, 120),
        ({"repair": {"parameters": "all_experts"}}, 24 * 120),
        ({"repair": {"parameters": "full"}}, 10_000),
        ({"repair": {"parameters": "shared"}}, 3 * (120 + 10)),
        ({"repair": {"expert": {"attention_lr": 1e-4}}}, 3 * 120 + 3 * 400),
    ],
)
def test_what_trains_follows_the_recipe(sections: dict[str, Any], trained: int) -> None:
    expert, router = repair_trainings(_request(**sections), MOE)
    assert (expert.parameters, router.parameters) == (trained, 240)
    full = sections.get("repair", {}).get("parameters") == "full"
    assert (expert.idle, router.idle) == ((0, trained - 240) if full else (240, trained))
    assert expert.layers == (4 if full else 3)


def test_attention_beside_shared_experts_trains_in_layers_that_have_one() -> None:
    request = _request(repair={"parameters": "shared", "expert": {"attention_lr": 1e-4}})
    fewer = replace(MOE, beside_parameters=2 * 130, beside_layers=2)
    assert expert_parameters(request, MOE) == 3 * 130 + 3 * 400
    assert expert_parameters(request, fewer) == 2 * 130 + 2 * 400


def test_a_model_without_shared_experts_has_no_plan_of_their_repair() -> None:
    request = _request(repair={"parameters": "shared"})
    shapes = replace(SHAPES, moe=replace(MOE, shared_experts=0, shared_parameters=0, beside_parameters=0))
    with pytest.raises(UnsupportedModelError, match=r"shared experts.*repair\.parameters"):
        VERBS["run"](replace(request, shapes=shapes))


def test_a_step_that_is_off_does_not_train() -> None:
    (router,) = repair_trainings(_request(repair={"expert": {"enabled": False}}), MOE)
    assert (router.parameters, router.idle) == (240, 0)
    (expert,) = repair_trainings(_request(repair={"router": {"enabled": False}}), MOE)
    assert expert.idle == 0


def test_limits_on_steps_and_switched_off_steps_count() -> None:
    base = _stages("repair")["repair"].work.trained
    capped = _stages("repair", repair={"expert": {"max_steps": 1}})["repair"].work.trained
    assert base - capped == 64 * 3 * 2 * 20
    off = _stages("repair", repair={"router": {"enabled": False}})["repair"].work.trained
    assert base - off == 50 * 3 * 3 * 16


def test_twins_are_answered_once_and_go_into_every_update() -> None:
    plain, twins = (_request(repair={"batch_size": 16, "retain": {"per_batch": 4, "twins": count}}) for count in (0, 2))
    assert [repair_trainings(request, MOE)[0].rows for request in (plain, twins)] == [20, 52]
    generated = [VERBS["repair"](request)[0].work.generated for request in (plain, twins)]
    assert generated[1] - generated[0] == 2 * 40 * plain.recipe.eval.max_new_tokens


def test_teacher_outputs_are_kept_where_the_recipe_needs_them() -> None:
    host = {
        name: _stages("repair", repair=repair)["repair"].host["teacher outputs"]
        for name, repair in {
            "plain": {},
            "kl": {"retain": {"loss": "kl"}},
            "replay": {"expert": {"routing": "replay"}},
        }.items()
    }
    rows = 40 + 15
    hidden = rows * 64 * 2 * 10  # the first MoE layer is the second decoder layer
    assert host["plain"] == hidden
    assert host["kl"] == hidden + rows * 14 * 64 * 8
    assert host["replay"] == hidden + rows * 64 * 8 * 2 * 3


def test_offloaded_state_is_on_the_host() -> None:
    (stage,) = VERBS["repair"](_request(memory=MemorySettings(optimizer="adamw_offload")))
    assert stage.host["offloaded optimizer"] == 8 * (3 * 120 + 240)
    assert stage.moments[0].terms["optimizer state"] == 0


def test_a_tamper_audit_of_all_experts_takes_more_than_one_of_adapters() -> None:
    wide = replace(SHAPES, parameters=20_000, stacked=10_000)
    lora, experts = (
        VERBS["audit"](_request(wide, audit={"tamper": {"trained": kind}}))[1].moments[1]
        for kind in ("lora", "experts")
    )
    assert experts.terms["optimizer state"] == 8 * 10_000
    slices = 2 * 2 * (3 * 120 + 240)  # of both models, in 2 bytes: the experts and routers that the repair trains
    assert lora.terms["changed slices of the repair"] == experts.terms["changed slices of the repair"] == slices


@pytest.mark.parametrize(
    ("audit", "repair", "stacks"),
    [("patching", {}, 20_000), ("silencing", {}, None), ("patching", {"parameters": "shared"}, None)],
)
def test_full_stacks_are_held_where_routing_is_replayed(audit: str, repair: dict[str, Any], stacks: int | None) -> None:
    request = replace(_request(replace(SHAPES, parameters=20_000, stacked=10_000), repair=repair), audits=(audit,))
    (conditions,) = VERBS["audit"](request)
    assert conditions.moments[0].terms.get("stacks of the replayed routing") == stacks


def test_elements_of_adapters_are_shared_by_matrices_with_one_input() -> None:
    assert adapter_elements(DENSE, ("q_proj", "v_proj")) == 10
    assert adapter_elements(DENSE, ("q_proj", "v_proj"), dropout=True) == 20
    assert adapter_elements(DENSE, None) == 10 + 12 + 10 + 20


def test_rates_from_operations_per_second() -> None:
    rates = rates_from_flops(SHAPES, 2 * SHAPES.active_parameters * 48, rows=8)
    fast = rates_from_flops(SHAPES, 2 * SHAPES.active_parameters * 48e6, rows=8)
    assert fast.generate == pytest.approx(8 / (4 * 1.5e-3))
    assert (rates.forward, rates.train, rates.generate) == (48, 16, 6)
    work = Work(generated=1000, forward=2000, trained=3000, updates=4, updated=50)
    assert seconds(work, rates) == pytest.approx(1000 / 6 + 2000 / 48 + 3000 / 16)
    assert seconds(work, Rates(10, 100, 50, update=20)) == pytest.approx(100 + 20 + 60 + 10)
