"""`seawall audit` as stages: the conditions of both models, and the fine-tuning of the tamper audit."""

from __future__ import annotations

from dataclasses import replace

from seawall.models.files.inspect import MoESummary
from seawall.models.plan.engines import reply_moments
from seawall.models.plan.repair import repair_trainings
from seawall.models.plan.request import SAMPLE_BYTES, Request
from seawall.models.plan.shapes import require_moe
from seawall.models.plan.stages import Decoding, Stage, Work, decoding_moments, generation
from seawall.models.plan.training import MemorySettings, Training, training_moments

CONDITIONS = {"routing_shortcut": 3, "patching": 6, "silencing": 8}
"""Assumed numbers of conditions, each of which asks its prompts once."""
_TAMPER, _LOCALISATION = "tamper", "localisation"
_REPLAYING = {"routing_shortcut", "patching"}
"""Audits with conditions in which the routing of the other model is replayed."""


def audit_stages(request: Request) -> tuple[Stage, ...]:
    """Conditions and tamper audit, of the audits that are asked for.

    The changed slices of either model are kept beside the weights; full stacks, where its routing is replayed and
    slices of them changed.
    """
    moe = require_moe(request.shapes, "audit")
    recipe, sizes, shapes = request.recipe, request.sizes, request.shapes
    first = repair_trainings(request, moe)[0]
    slices = {"changed slices of the repair": 2 * shapes.element_bytes * (first.parameters + first.idle)}
    replayed = {"stacks of the replayed routing": shapes.element_bytes * shapes.stacked}
    cut = recipe.repair.expert.enabled and recipe.repair.parameters in ("selected", "all_experts")
    beside = slices | replayed if cut and _REPLAYING & set(request.audits) else slices
    batch = Decoding(recipe.eval.forward_rows, sizes.longest_prompt, recipe.eval.max_new_tokens, ("eval.batch_size",))
    decoded = decoding_moments(shapes, batch, beside, context=request.context)
    localised = () if recipe.engine.kind == "transformers" else reply_moments(request, recipe.engine, batch, beside)
    work = generation(_conditions(request), batch, sizes.prompt_tokens)
    if _LOCALISATION in request.audits:
        work += Work(forward=4 * recipe.audit.localisation.twins * sizes.prompt_tokens)
    conditions = Stage("conditions", (*decoded, *localised), work, disk={"samples": SAMPLE_BYTES * work.generated})
    stages = () if set(request.audits) == {_TAMPER} else (conditions,)
    if _TAMPER not in request.audits:
        return stages
    tamper, attack = recipe.audit.tamper, _attack(request, moe)
    memory = MemorySettings(
        gradient_checkpointing=tamper.model_dump().get("gradient_checkpointing", False),
        micro_batch_size=request.memory.micro_batch_size,
    )
    # Two models, every sweep; both are evaluated after each number of updates but 0.
    runs, updates = 2 * len(tamper.sweeps), tamper.steps[-1]
    trained = updates * tamper.batch_size * (sizes.prompt_tokens + sizes.response_tokens)
    prompts = runs * (len(tamper.steps) - 1) * _prompts(request, tamper.goals)
    tampering = generation(prompts, batch, sizes.prompt_tokens) + Work(trained=runs * trained, updates=runs * updates)
    trainings = training_moments(shapes, attack, memory, slices, context=request.context)
    return (
        *stages,
        Stage(
            _TAMPER,
            trainings,
            replace(tampering, updated=attack.parameters),
            disk={"samples": SAMPLE_BYTES * tampering.generated},
        ),
    )


def _conditions(request: Request) -> int:
    """Prompts of all conditions."""
    audit = request.recipe.audit
    counts = {
        **{name: CONDITIONS[name] * _prompts(request, getattr(audit, name).goals) for name in CONDITIONS},
        "steering": 2 * len(audit.steering.amounts) * _prompts(request, audit.steering.goals),
    }
    return sum(count for name, count in counts.items() if name in request.audits)


def _prompts(request: Request, goals: int | None) -> int:
    """Prompts of a condition: goals plainly and under every attack, and as many borderline requests."""
    sizes = request.sizes
    return min(sizes.test_goals, goals or sizes.test_goals) * (2 + sizes.seen_families + sizes.unseen_families)


def _attack(request: Request, moe: MoESummary) -> Training:
    """The fine-tuning: an update of every matrix by low-rank factors, merged in every pass, or all experts."""
    shapes, sizes, tamper = request.shapes, request.sizes, request.recipe.audit.tamper
    experts = tamper.trained == "experts"
    adapter = shapes.low_rank(tamper.lora_rank)
    matrices = shapes.parameters - shapes.vocabulary * shapes.width
    return Training(
        parameters=shapes.stacked if experts else adapter,
        rounded=shapes.stacked if experts else 0,
        merged=0 if experts else matrices,
        largest=round(2 / 3 * moe.experts * moe.expert_parameters) if experts else adapter // shapes.layers,
        rows=tamper.batch_size,
        length=sizes.longest_prompt + sizes.response_tokens,
        positions=sizes.response_tokens + 1,
        layers=shapes.layers,
        share=1.0,
        full=not experts,
        settings=("repair.micro_batch_size", "audit.tamper.batch_size", "audit.tamper.trained"),
    )
