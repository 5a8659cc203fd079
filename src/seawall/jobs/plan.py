"""`seawall plan`: memory, disk and time of a verb, from the model's configuration, the recipe and its prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedConfig

from seawall.config.load import change_recipe
from seawall.config.recipe import Recipe
from seawall.config.repair import RepairConfig
from seawall.data.customer_messages import customer_messages
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.templating import encode_prompt
from seawall.data.types import Messages
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.evaluation.suite import build_suite
from seawall.models.files.inspect import EXPERT_VERBS, ModelSummary, inspect_model, meta_model
from seawall.models.files.load import load_architecture
from seawall.models.files.open import Checkpoint
from seawall.models.files.placement import requested_device
from seawall.models.memory import total_memory
from seawall.models.plan.memory import CONTEXT_BYTES
from seawall.models.plan.methods import VERBS
from seawall.models.plan.rates import Rates, rates_from_flops
from seawall.models.plan.repair import repair_trainings
from seawall.models.plan.request import Request, memory_settings
from seawall.models.plan.shapes import model_shapes
from seawall.models.plan.slices import Load, measured_rates
from seawall.models.plan.stages import DataSizes
from seawall.models.plan.verdict import Budget, Changes, Plan, Verdict, judge_plan, parse_memory
from seawall.shell.model import open_checkpoint

_SAMPLED = 64
"""Number of prompts that are tokenised for their lengths."""
_AUTOMATIC_ROWS = 4
"""Rows of the measured training pass where `repair.micro_batch_size` is `auto`."""
_OWN_SECTION = {"tune": "tune", "steer": "steer", "landscape": "landscape", "gene": "gene extract"}
"""Sections of a recipe whose verb is planned where the recipe sets the section and no section of `seawall run`."""


@dataclass(frozen=True)
class Estimate:
    """The plan of a verb and its verdict, as `--json` prints them."""

    plan: Plan
    verdict: Verdict

    def as_document(self) -> dict[str, Any]:
        """The plan, with `fits`, `memory`, `verdict` and `settings`."""
        return {
            **self.plan.as_document(),
            "memory": self.verdict.budget.memory,
            "fits": self.verdict.fits,
            "verdict": self.verdict.text,
            "settings": list(self.verdict.settings),
        }


def plan_recipe(
    recipe: Recipe,
    *,
    verb: str | None = None,
    memory: str | None = None,
    devices: int | None = None,
    tflops: float | None = None,
    measure: bool = False,
    prompts: Prompts | None = None,
) -> Estimate:
    """Memory, disk and, with a rate, time of a verb, and whether it fits.

    Args:
        recipe: model, prompts and settings.
        verb: one of `VERBS`; None takes that of the recipe's own section, else `run`, or `eval` for a dense model.
        memory: of each device, such as `24GB`; None takes this machine's.
        devices: number of GPUs that share the layers; None takes 1, or this machine's number.
        tflops: the device's rate in 1e12 operations per second, for an estimate of the time.
        measure: measure the rates on this machine, on random weights of the same shapes.
        prompts: of the recipe, where they were read before.

    Raises:
        SeawallError: the model, the prompts or an argument cannot be used.
    """
    checkpoint = open_checkpoint(recipe.model)
    summary = inspect_model(checkpoint.config)
    verb = _verb(recipe, summary) if verb is None else _known_verb(verb)
    architecture = _architecture(checkpoint, summary, verb)
    shapes = model_shapes(
        summary,
        meta_model(architecture, checkpoint.config),
        recipe.model.dtype,
        recipe.model.experts_implementation,
    )
    budget = _budget(recipe, memory, devices)
    context = 0 if budget.name == _MACHINE else CONTEXT_BYTES
    request = Request(shapes, recipe, _sizes(recipe, checkpoint, summary, prompts), memory_settings(recipe), context)
    rates = None if tflops is None else rates_from_flops(shapes, tflops * 1e12, rows=recipe.eval.forward_rows)
    if measure:
        rates = _measured(request, architecture)
    plan = _plan(request, verb, budget.devices, rates)
    verdict = judge_plan(plan, budget, partial(_changed, request, verb, budget.devices), partial(_ladder, request))
    return Estimate(plan, verdict)


def verb_peaks(checkpoint: Checkpoint, summary: ModelSummary) -> dict[str, int]:
    """Peak memory of every verb that works on a model, in bytes on one device, by the plan of the default settings.

    Args:
        checkpoint: the model.
        summary: of the model; seawall supports it.
    """
    recipe = Recipe(model=checkpoint.config)
    model = meta_model(_architecture(checkpoint, summary, "eval"), checkpoint.config)
    shapes = model_shapes(summary, model, recipe.model.dtype, recipe.model.experts_implementation)
    context = 0 if requested_device(recipe.model.device).type == "cpu" else CONTEXT_BYTES
    request = Request(shapes, recipe, _sizes(recipe, checkpoint, summary), memory_settings(recipe), context)
    verbs = [verb for verb in VERBS if summary.moe is not None or verb not in EXPERT_VERBS]
    return {verb: _plan(request, verb, 1).peak for verb in verbs}


def _verb(recipe: Recipe, summary: ModelSummary) -> str:
    document = recipe.model_dump(exclude_unset=True)
    named = {section for section, value in document.items() if isinstance(value, dict) and value.keys() - {"seed"}}
    if not named & {"profile", "select", "repair"}:
        for section, verb in _OWN_SECTION.items():
            if section in named:
                return verb
    return "run" if summary.moe is not None else "eval"


def _known_verb(verb: str) -> str:
    if verb not in VERBS:
        raise ConfigError("unknown verb", got=verb, expected=", ".join(VERBS))
    return verb


def _architecture(checkpoint: Checkpoint, summary: ModelSummary, verb: str) -> PreTrainedConfig:
    """The model's configuration; refuses what seawall cannot work on."""
    if not summary.architecture or (summary.moe is None and verb in EXPERT_VERBS):
        raise UnsupportedModelError(f"no plan of {verb} for model {summary.id}", got=summary.verdict)
    return load_architecture(checkpoint.small_files, checkpoint.config)


def _plan(request: Request, verb: str, devices: int, rates: Rates | None = None) -> Plan:
    return Plan(verb, VERBS[verb](request), request.shapes, devices, rates)


_MACHINE = "this machine's memory"


def _budget(recipe: Recipe, memory: str | None, devices: int | None) -> Budget:
    """The devices that are named, else those of this machine."""
    if memory is not None:
        amount = parse_memory(memory)
        name = "a GPU" if devices in (None, 1) else f"{devices} GPUs"
        return Budget(amount, devices or 1, f"{name} of {memory}")
    device = requested_device(recipe.model.device)
    if device.type == "cpu":
        return Budget(total_memory(device), 1, _MACHINE)
    shared = recipe.model.device == "auto" and device.type == "cuda"
    return Budget(total_memory(device), devices or (torch.cuda.device_count() if shared else 1))


def _changed(request: Request, verb: str, devices: int, changes: Changes) -> Plan:
    """The plan under changes of the recipe."""
    document, settings = request.recipe.model_dump(mode="json"), [f"{key}={value}" for key, value in changes]
    recipe = change_recipe(document, settings, where="the recipe", section=None)
    return _plan(replace(request, recipe=recipe, memory=memory_settings(recipe)), verb, devices)


def _ladder(request: Request, key: str) -> list[str]:
    """Values of a setting that take ever less memory, gentlest first."""
    section, _, name = key.rpartition(".")
    document: Any = request.recipe.model_dump()
    for part in section.split("."):
        document = document[part]
    value = document.get(name)
    if section == "repair" and name not in RepairConfig.model_fields:
        return []
    if name in _FIXED:
        fixed, current = _FIXED[name], str(value).lower()
        return list(fixed[fixed.index(current) + 1 :] if current in fixed else fixed)
    if name == "micro_batch_size":
        value = value or request.recipe.repair.batch_size * 2
    powers = [str(2**power) for power in range(12, -1, -1) if isinstance(value, int) and 2**power < value]
    return [power for power in powers if _is_valid(request, key, power)]


def _is_valid(request: Request, key: str, value: str) -> bool:
    """Whether a setting may have this value: some batches have a minimum."""
    try:
        change_recipe(request.recipe.model_dump(mode="json"), [f"{key}={value}"], where="the recipe", section=None)
    except ConfigError:
        return False
    return True


_FIXED: dict[str, tuple[str, ...]] = {
    "gradient_checkpointing": ("true",),
    "optimizer": ("adamw", "adamw_8bit", "adamw_offload"),
    "trained": ("lora",),
    "verify": ("false",),
    "targets": (),
}


def _measured(request: Request, architecture: PreTrainedConfig) -> Rates:
    """Rates of the recipe's own batches on this machine."""
    recipe, sizes, shapes = request.recipe, request.sizes, request.shapes
    share, rows, positions = 0.0, recipe.tune.batch_size, sizes.response_tokens + 1
    if shapes.moe is not None:
        step = repair_trainings(request, shapes.moe)[0]
        automatic = request.memory.micro_batch_size == "auto"
        rows = min(_AUTOMATIC_ROWS, step.rows) if automatic else request.memory.rows(step.rows)
        share, positions = step.share, step.positions
    load = Load(
        rows=recipe.eval.forward_rows,
        prompt_tokens=sizes.prompt_tokens,
        training_rows=rows,
        training_tokens=sizes.prompt_tokens + sizes.response_tokens,
        positions=positions,
        share=share,
    )
    dtypes = {4: "float32", 2: "bfloat16"}
    return measured_rates(
        architecture,
        load,
        device=requested_device(recipe.model.device),
        dtype=dtypes[shapes.element_bytes],
        implementation=recipe.model.experts_implementation,
    )


def _sizes(recipe: Recipe, checkpoint: Checkpoint, summary: ModelSummary, prompts: Prompts | None = None) -> DataSizes:
    """Numbers of the recipe's prompts, and their lengths where the model has a tokenizer with a chat template."""
    prompts = load_prompts(recipe.data) if prompts is None else prompts
    validation = build_suite(prompts, "validation", unseen=False, gold=False)
    with_attacks = recipe.eval.groups is None or "attacks" in recipe.eval.groups
    wrapped = (prompts.wrapped("test"), prompts.wrapped_borderline("test")) if with_attacks else ()
    task = recipe.tune.task.train
    sizes = DataSizes(
        train_goals=len(prompts.goals.train),
        validation_prompts=len(validation.prompts()),
        test_goals=len(prompts.goals.test),
        test_prompts=sum(map(len, (prompts.benign.test, prompts.borderline.test, *wrapped))),
        seen_families=len(prompts.seen_families) if with_attacks else 0,
        unseen_families=len(prompts.unseen_families) if with_attacks else 0,
        retained=len(prompts.retain) + len(prompts.retain_wrapped),
        gold=len(prompts.gold),
        task_rows=len(customer_messages().train) if task is None or not Path(task).is_file() else len(load_task(task)),
    )
    # Retained answers reach the limit of the evaluation; refusals are texts of the recipe.
    sizes = replace(sizes, response_tokens=max(sizes.response_tokens, recipe.eval.max_new_tokens))
    if not summary.chat_template:
        return sizes
    tokenizer = checkpoint.tokenizer
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in _sample(prompts)]
    refusals = [len(tokenizer(text)["input_ids"]) + 1 for text in prompts.refusals]
    return replace(
        sizes,
        prompt_tokens=round(fmean(lengths)),
        longest_prompt=max(lengths),
        response_tokens=max((*refusals, recipe.eval.max_new_tokens)),
    )


def _sample(prompts: Prompts) -> list[Messages]:
    """Prompts of the evaluation at even distances."""
    rows = [row.prompt for row in build_suite(prompts, gold=False).prompts()]
    step = max(1, len(rows) // _SAMPLED)
    return rows[::step]
