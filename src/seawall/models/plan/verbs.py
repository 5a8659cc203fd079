"""Each verb as stages, from a recipe and the numbers of its prompts.

Every reply is taken to reach its limit, every pair to be kept, and every round to run.
"""

from __future__ import annotations

from collections.abc import Callable

from seawall.models.plan.engines import reply_moments
from seawall.models.plan.memory import logit_bytes
from seawall.models.plan.repair import expert_parameters, repair_stages
from seawall.models.plan.request import SAMPLE_BYTES, Request
from seawall.models.plan.shapes import require_moe
from seawall.models.plan.stages import Decoding, Moment, Stage, Work, generation
from seawall.models.plan.training import MemorySettings, Training, training_moments


def run_stages(request: Request) -> tuple[Stage, ...]:
    """`seawall run`: profile, select, eval twice, repair, export."""
    require_moe(request.shapes, "run")
    return (
        *profile_stages(request),
        *select_stages(request),
        *eval_stages(request, "eval-before"),
        *repair_stages(request),
        *eval_stages(request, "eval-after"),
        *export_stages(request),
    )


def profile_stages(request: Request) -> tuple[Stage, ...]:
    """Replies to every goal plainly and by attack, and a pass that counts their routing (RASA, section 3.1)."""
    require_moe(request.shapes, "profile")
    profile, sizes = request.recipe.profile, request.sizes
    batch = Decoding(profile.batch_size, sizes.longest_prompt, profile.max_new_tokens, ("profile.batch_size",))
    prompts = sizes.train_goals + sizes.pairs
    counted = Work(forward=prompts * (sizes.prompt_tokens + profile.max_new_tokens))
    work = generation(prompts, batch, sizes.prompt_tokens)
    return (
        Stage(
            "profile",
            tuple(reply_moments(request, request.recipe.engine, batch, {})),
            work + counted,
            disk={"replies": SAMPLE_BYTES * work.generated},
        ),
    )


def select_stages(request: Request) -> tuple[Stage, ...]:
    """Scores of the experts, from the profile alone; the sensitivity takes a backward pass to the gate weights."""
    require_moe(request.shapes, "select")
    if request.recipe.select.score != "sensitivity":
        return (Stage("select", (_loaded(request, "scores"),)),)
    sizes, repair = request.sizes, request.recipe.repair
    gates = Training(
        parameters=0,
        rows=repair.batch_size,
        length=sizes.longest_prompt + sizes.response_tokens,
        positions=sizes.response_tokens + 1,
        layers=request.shapes.layers,
        settings=("repair.micro_batch_size",),
    )
    work = Work(trained=sizes.pairs * (sizes.prompt_tokens + sizes.response_tokens))
    plain = MemorySettings(micro_batch_size=request.memory.micro_batch_size)
    return (Stage("select", training_moments(request.shapes, gates, plain, context=request.context), work),)


def eval_stages(request: Request, name: str = "eval") -> tuple[Stage, ...]:
    """Replies to the test prompts, and the loss on gold answers."""
    config, sizes = request.recipe.eval, request.sizes
    batch = Decoding(config.forward_rows, sizes.longest_prompt, config.longest, ("eval.batch_size",))
    work = generation(sizes.evaluated, batch, sizes.prompt_tokens)
    gold = config.forward_rows * (sizes.prompt_tokens + sizes.response_tokens) if config.gold and sizes.gold else 0
    logits = {"weights": request.shapes.weights, "logits": logit_bytes(request.shapes, gold, copies=0)}
    return (
        Stage(
            name,
            (
                *reply_moments(request, config.engine, batch, {}),
                Moment("gold answers", logits | {"library context": request.context}, batch.settings),
            ),
            work + Work(forward=sizes.gold * (sizes.prompt_tokens + sizes.response_tokens) if gold else 0),
            disk={"samples": SAMPLE_BYTES * work.generated},
        ),
    )


def export_stages(request: Request) -> tuple[Stage, ...]:
    """Delta and checkpoint; the logits are compared after the model's memory is free.

    A checkpoint is written and hashed; to verify it, it is read once more, and loaded by a fresh process.
    """
    moe, export = require_moe(request.shapes, "export"), request.recipe.export
    repair = request.recipe.repair
    changed = expert_parameters(request, moe) + moe.router_parameters * (
        repair.router.enabled and repair.parameters != "full"
    )
    slices = request.shapes.element_bytes * changed
    disk = {
        "delta": slices if export.delta else 0,
        "checkpoint": request.shapes.weights if export.checkpoint else 0,
    }
    files = disk["delta"] + disk["checkpoint"] * (4 if export.verify else 2)
    return (
        Stage(
            "export",
            (_loaded(request, "export"),),
            Work(files=files, processes=int(export.checkpoint and export.verify)),
            host={"changed slices": 2 * slices},
            disk=disk,
        ),
    )


def _loaded(request: Request, name: str) -> Moment:
    return Moment(name, {"weights": request.shapes.weights, "library context": request.context})


RASA: dict[str, Callable[[Request], tuple[Stage, ...]]] = {
    "run": run_stages,
    "profile": profile_stages,
    "select": select_stages,
    "repair": repair_stages,
    "eval": eval_stages,
}
"""The verbs of the main job."""
