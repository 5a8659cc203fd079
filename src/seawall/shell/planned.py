"""What a plan is made of, read from a recipe without loading a weight; and the placement that follows from a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from accelerate import PartialState
from transformers import PreTrainedConfig

from seawall.config.model import ModelConfig
from seawall.config.recipe import Recipe
from seawall.data.attacks import further_turns
from seawall.data.customer_messages import customer_messages
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.templating import encode_prompt
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.evaluation.suite import EvalPrompt, build_suite
from seawall.models.files.inspect import EXPERT_VERBS, ModelSummary, inspect_model, meta_model
from seawall.models.files.load import load_architecture
from seawall.models.files.open import Checkpoint
from seawall.models.memory import free_memory
from seawall.models.plan.memory import CONTEXT_BYTES
from seawall.models.plan.methods import VERBS
from seawall.models.plan.placement import place
from seawall.models.plan.request import Request, memory_settings
from seawall.models.plan.shapes import model_shapes
from seawall.models.plan.stages import DataSizes
from seawall.models.plan.verdict import Plan
from seawall.shell.model import open_checkpoint

_SAMPLED = 64
"""Number of prompts that are tokenised for their lengths."""


def plan_request(
    recipe: Recipe, summary: ModelSummary, checkpoint: Checkpoint, *, context: int, prompts: Prompts | None = None
) -> tuple[Request, PreTrainedConfig]:
    """What is planned for, and the model's architecture.

    Args:
        recipe: model, prompts and settings.
        summary: of the model.
        checkpoint: of the model.
        context: bytes that a library takes on the device.
        prompts: of the recipe, where they were read before.

    Raises:
        SeawallError: the model or the prompts cannot be used.
    """
    architecture = load_architecture(checkpoint.small_files, checkpoint.config)
    model = meta_model(architecture, checkpoint.config)
    shapes = model_shapes(summary, model, recipe.model.dtype, recipe.model.experts_implementation)
    sizes = _sizes(recipe, checkpoint, summary, prompts)
    return Request(shapes, recipe, sizes, memory_settings(recipe), context), architecture


def require_planned(summary: ModelSummary, verb: str) -> None:
    """Refuses a model that seawall cannot work on.

    Raises:
        UnsupportedModelError: it cannot, or not by this verb.
    """
    if not summary.architecture or (summary.moe is None and verb in EXPERT_VERBS):
        raise UnsupportedModelError(f"no plan of {verb} for model {summary.id}", got=summary.verdict)


def placed_model(
    recipe: Recipe, verbs: Sequence[str], prompts: Prompts | None = None, *, say: Callable[[str], None]
) -> ModelConfig:
    """The recipe's model with its placement: `auto` follows from the plan where several GPUs are here.

    Settings of the recipe, and the device of a process of a launch, stay as they are. A model that cannot be planned
    is placed by the size of its weights alone.

    Args:
        recipe: model, prompts and settings.
        verbs: whose memory counts: names of `VERBS`, the command's own last.
        prompts: of the recipe, where they were read before.
        say: receives the decision in one sentence.
    """
    config = recipe.model
    automatic = config.device == "auto" and config.device_map in (None, "auto") and not config.max_memory
    count = torch.cuda.device_count() if automatic and torch.cuda.is_available() else 1
    if count == 1 or PartialState().num_processes > 1:
        return config
    return place_model(recipe, verbs, prompts, free=_free_memories(count), say=say)


def _free_memories(count: int) -> list[int]:
    return [free_memory(torch.device("cuda", index)) for index in range(count)]


def place_model(
    recipe: Recipe,
    verbs: Sequence[str],
    prompts: Prompts | None = None,
    *,
    free: Sequence[int],
    say: Callable[[str], None],
) -> ModelConfig:
    """`placed_model` on GPUs with so many free bytes."""
    config = recipe.model
    try:
        placement = place(_plan(recipe, verbs, prompts, memory=max(free)), free)
    except SeawallError as error:
        say(f"placed by the size of its weights, because there is no plan of {verbs[-1]}: {error}")
        return config
    say(placement.text)
    return config.model_copy(update={"device_map": placement.device_map, "max_memory": placement.max_memory})


def _plan(recipe: Recipe, verbs: Sequence[str], prompts: Prompts | None, *, memory: int) -> Plan:
    """The plan of several verbs that one process runs on one loaded model, on GPUs of so many bytes."""
    checkpoint = open_checkpoint(recipe.model)
    summary = inspect_model(checkpoint.config)
    for verb in verbs:
        require_planned(summary, verb)
    request, _ = plan_request(recipe, summary, checkpoint, context=CONTEXT_BYTES, prompts=prompts)
    request = replace(request, device_memory=memory)
    return Plan(verbs[-1], tuple(stage for verb in verbs for stage in VERBS[verb](request)), request.shapes)


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
        unseen_families=sum(_replies(prompts, family) for family in prompts.unseen_families) if with_attacks else 0,
        retained=len(prompts.retain) + len(prompts.retain_wrapped),
        gold=len(prompts.gold),
        task_rows=len(customer_messages().train) if task is None or not Path(task).is_file() else len(load_task(task)),
    )
    # Retained answers reach the limit of the evaluation; refusals are texts of the recipe.
    sizes = replace(sizes, response_tokens=max(sizes.response_tokens, recipe.eval.max_new_tokens))
    if not summary.chat_template:
        return sizes
    tokenizer = checkpoint.tokenizer
    lengths = [
        len(encode_prompt(tokenizer, row.prompt))
        + sum(recipe.eval.max_new_tokens + len(tokenizer(turn)["input_ids"]) for turn in row.turns)
        for row in _sample(prompts)
    ]
    refusals = [len(tokenizer(text)["input_ids"]) + 1 for text in prompts.refusals]
    return replace(
        sizes,
        prompt_tokens=round(fmean(lengths)),
        longest_prompt=max(lengths),
        response_tokens=max((*refusals, recipe.eval.max_new_tokens)),
    )


def _replies(prompts: Prompts, family: str) -> int:
    """Replies to one goal under a family of attacks: several where the attack is live."""
    return 1 + len(further_turns(family, prompts.goals.all[0].text))


def _sample(prompts: Prompts) -> list[EvalPrompt]:
    """Prompts of the evaluation at even distances."""
    rows = build_suite(prompts, gold=False).prompts()
    step = max(1, len(rows) // _SAMPLED)
    return rows[::step]
