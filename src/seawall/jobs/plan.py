"""`seawall plan`: memory, disk and time of a verb, from the model's configuration, the recipe and its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig

from seawall.config.audit import AUDITS, AuditName
from seawall.config.load import change_recipe
from seawall.config.recipe import Recipe
from seawall.config.repair import RepairConfig
from seawall.data.sets import Prompts
from seawall.errors import ConfigError
from seawall.models.files.inspect import EXPERT_VERBS, ModelSummary, inspect_model
from seawall.models.files.open import Checkpoint
from seawall.models.files.placement import requested_device
from seawall.models.memory import total_memory
from seawall.models.plan.engines import VLLM_SHARE
from seawall.models.plan.memory import CONTEXT_BYTES
from seawall.models.plan.methods import VERBS
from seawall.models.plan.rates import Rates, rates_from_flops
from seawall.models.plan.repair import repair_trainings
from seawall.models.plan.request import Request, memory_settings
from seawall.models.plan.slices import Load, measured_rates
from seawall.models.plan.verdict import Budget, Changes, Plan, Verdict, judge_plan, parse_memory
from seawall.shell.model import open_checkpoint
from seawall.shell.planned import plan_request, require_planned

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
    audits: Sequence[AuditName] = AUDITS,
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
        audits: that `audit` is planned with.

    Raises:
        SeawallError: the model, the prompts or an argument cannot be used.
    """
    if recipe.model.fsdp:
        raise ConfigError("a plan counts whole weights", got="model.fsdp=true", expected="false")
    checkpoint = open_checkpoint(recipe.model)
    summary = inspect_model(checkpoint.config)
    verb = _verb(recipe, summary) if verb is None else _known_verb(verb)
    require_planned(summary, verb)
    budget = _budget(recipe, memory, devices)
    context = 0 if budget.name == _MACHINE else CONTEXT_BYTES
    request, architecture = plan_request(recipe, summary, checkpoint, context=context, prompts=prompts)
    request = replace(request, device_memory=budget.memory, audits=tuple(audits))
    rates = None if tflops is None else rates_from_flops(request.shapes, tflops * 1e12, rows=recipe.eval.forward_rows)
    if measure:
        rates = _measured(request, architecture)
    plan = _plan(request, verb, budget.devices, rates)
    if memory is None and devices is None and plan.peak > budget.memory:
        budget = replace(budget, devices=_sharing(recipe))
        plan = replace(plan, devices=budget.devices)
    changed, ladder = partial(_changed, request, verb, budget.devices), partial(_ladder, request, verb)
    verdict = judge_plan(plan, budget, changed, ladder)
    return Estimate(plan, verdict)


def verb_peaks(checkpoint: Checkpoint, summary: ModelSummary) -> dict[str, int]:
    """Peak memory of every verb that works on a model, in bytes on one device, by the plan of the default settings.

    Args:
        checkpoint: the model.
        summary: of the model; seawall supports it.
    """
    recipe = Recipe(model=checkpoint.config)
    context = 0 if requested_device(recipe.model.device).type == "cpu" else CONTEXT_BYTES
    request, _ = plan_request(recipe, summary, checkpoint, context=context)
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


def _plan(request: Request, verb: str, devices: int, rates: Rates | None = None) -> Plan:
    return Plan(verb, VERBS[verb](request), request.shapes, devices, rates)


_MACHINE = "this machine's memory"


def _budget(recipe: Recipe, memory: str | None, devices: int | None) -> Budget:
    """The devices that are named, else those of this machine: several where the recipe shares the model's layers."""
    if memory is not None:
        amount = parse_memory(memory)
        name = "a GPU" if devices in (None, 1) else f"{devices} GPUs"
        return Budget(amount, devices or 1, f"{name} of {memory}")
    device = requested_device(recipe.model.device)
    if device.type == "cpu":
        return Budget(total_memory(device), 1, _MACHINE)
    automatic = recipe.model.device_map in (None, "auto") and not recipe.model.max_memory
    return Budget(total_memory(device), devices or (1 if automatic else _sharing(recipe)))


def _sharing(recipe: Recipe) -> int:
    """Number of this machine's GPUs that can share the recipe's model."""
    return max(1, torch.cuda.device_count()) if recipe.model.device == "auto" else 1


def _document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a document; the evaluations' engine follows the recipe's where it is the same."""
    excluded: Any = {"eval": {"engine"}} if recipe.eval.engine == recipe.engine else None
    return recipe.model_dump(mode="json", exclude=excluded)


def _changed(request: Request, verb: str, devices: int, changes: Changes) -> Plan:
    """The plan under changes of the recipe."""
    document, settings = _document(request.recipe), [f"{key}={value}" for key, value in changes]
    recipe = change_recipe(document, settings, where="the recipe", section=None)
    return _plan(replace(request, recipe=recipe, memory=memory_settings(recipe)), verb, devices)


def _ladder(request: Request, verb: str, key: str) -> list[str]:
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
    if section.endswith("engine") and name == "memory":
        shares = [share for share in _SHARES if float(share) < (value or VLLM_SHARE)]
        return [share for share in shares if _is_valid(request, verb, key, share)]
    powers = [str(2**power) for power in range(23, -1, -1) if isinstance(value, int) and 2**power < value]
    return [power for power in powers if _is_valid(request, verb, key, power)]


def _is_valid(request: Request, verb: str, key: str, value: str) -> bool:
    """Whether a setting may have this value: some batches have a minimum, and vLLM needs room for the weights."""
    try:
        _changed(request, verb, 1, ((key, value),))
    except ConfigError:
        return False
    return True


_SHARES = ("0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2")
"""Shares of a GPU for vLLM."""
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
    share, shared, rows, positions = 0.0, False, recipe.tune.batch_size, sizes.response_tokens + 1
    if shapes.moe is not None:
        step = repair_trainings(request, shapes.moe)[0]
        automatic = request.memory.micro_batch_size == "auto"
        rows = min(_AUTOMATIC_ROWS, step.rows) if automatic else request.memory.rows(step.rows)
        share, shared, positions = step.share, step.shared, step.positions
    load = Load(
        rows=recipe.eval.forward_rows,
        prompt_tokens=sizes.prompt_tokens,
        training_rows=rows,
        training_tokens=sizes.prompt_tokens + sizes.response_tokens,
        positions=positions,
        share=share,
        shared=shared,
    )
    dtypes = {4: "float32", 2: "bfloat16"}
    return measured_rates(
        architecture,
        load,
        device=requested_device(recipe.model.device),
        dtype=dtypes[shapes.element_bytes],
        implementation=recipe.model.experts_implementation,
    )
