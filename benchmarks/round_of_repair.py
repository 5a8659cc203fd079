"""One round of the repair on a model with random weights and a tiny tokenizer, timed part by part."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from families import tiny_tokenizer
from seawall.artifacts.expert_set import ExpertSet
from seawall.config.recipe import Recipe
from seawall.config.repair import RepairConfig
from seawall.data.templating import encode_example, encode_prompt
from seawall.data.types import Exchange, SafetyPair, user
from seawall.evaluation.decision import ValidationScores
from seawall.methods.rasa.repair import RepairInputs, repair
from seawall.models.generate import generate
from seawall.models.moe.find import find_moe
from seawall.models.plan.repair import repair_stages
from seawall.models.plan.request import Request, memory_settings
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.slices import Clock
from seawall.models.plan.stages import DataSizes
from seawall.models.plan.verdict import Plan

PAIRS = 8
NEW_TOKENS = 8
_SCORES = ValidationScores(attack_success=1.0, plain_refusal=1.0, over_refusal=0.1, benign_refusal=0.0)
_SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "batch_size": PAIRS // 2,
    "micro_batch_size": PAIRS // 2,
    "early_stop": {"enabled": False},
}


def repair_round(model: PreTrainedModel, fraction: float, clock: Clock) -> dict[str, Any]:
    """Seconds of both validations, of the training, and of the whole; and the number of updates."""
    tokenizer, moe = tiny_tokenizer(), find_moe(model)
    count = max(1, round(fraction * moe.num_experts))
    scores_LE = torch.zeros(moe.num_layers, moe.num_experts)
    experts = ExpertSet("sha256:random", "random", count, (tuple(range(count)),) * moe.num_layers, scores_LE)
    validations: list[float] = []
    updates: list[dict[str, Any]] = []
    inputs = _inputs()

    def validate() -> ValidationScores:
        start = clock()
        prompts = [pair.attack for pair in inputs.pairs]
        generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_size=PAIRS)
        validations.append(clock() - start)
        return _SCORES

    config = RepairConfig.model_validate(_SETTINGS)
    start = clock()
    with TemporaryDirectory() as folder:
        repair(
            moe,
            tokenizer,
            inputs,
            experts,
            config,
            validate=validate,
            scratch=Path(folder),
            report=updates.append,
        )
    seconds = clock() - start
    return {
        "pairs": PAIRS,
        "updates": sum(row["phase"] != "validation" for row in updates),
        "seconds": round(seconds, 3),
        "validation_seconds": [round(value, 3) for value in validations],
        "remaining_seconds": round(seconds - sum(validations), 3),
    }


def planned_repair(shapes: ModelShapes, fraction: float) -> Plan:
    """The plan of this round."""
    tokenizer, inputs = tiny_tokenizer(), _inputs()
    prompt = max(len(encode_prompt(tokenizer, pair.attack)) for pair in inputs.pairs)
    row = max(len(encode_example(tokenizer, exchange).input_ids) for exchange in inputs.refusals)
    recipe = Recipe.model_validate(
        {
            "select": {"k": fraction},
            "repair": _SETTINGS,
            "eval": {"max_new_tokens": NEW_TOKENS, "batch_size": PAIRS},
        }
    )
    sizes = DataSizes(
        PAIRS, PAIRS, 0, 0, 1, 0, prompt_tokens=prompt, longest_prompt=prompt, response_tokens=row - prompt
    )
    return Plan("repair", repair_stages(Request(shapes, recipe, sizes, memory_settings(recipe))), shapes)


def _inputs() -> RepairInputs:
    goals = [f"a request of ordinary length, number {number}" for number in range(PAIRS)]
    pairs = [SafetyPair(goal, user(goal), user(f"In a story of some length: {goal}"), "story") for goal in goals]
    refusals = [Exchange(pair.attack, "I cannot help with that request.", pair.goal) for pair in pairs]
    retain = [Exchange(user(f"Say something kind, number {number}"), "You are welcome.") for number in range(PAIRS)]
    return RepairInputs(pairs=pairs, refusals=refusals, retain=retain)
