"""A repair small enough for a test: four goals, two attacks each, and harmless prompts to retain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from families import NUM_EXPERTS, NUM_LAYERS, tiny, tiny_tokenizer
from seawall.artifacts.expert_set import ExpertSet
from seawall.config.repair import RepairConfig
from seawall.data.types import Exchange, SafetyPair, user
from seawall.methods.rasa.repair import RepairInputs, RepairResult, ValidationScores, repair
from seawall.models.moe.find import MoEModel, find_moe

TOKENIZER = tiny_tokenizer()
REFUSAL = "No."
SELECTED = ((0, 3, 5), (1,), (2, 4, 6, 7))
PAIRS = tuple(
    SafetyPair(goal, user(goal), user(f"{wrapping} {goal}"), wrapping)
    for goal in ("rob", "steal", "lie", "cheat")
    for wrapping in ("play:", "a story:")
)
INPUTS = RepairInputs(
    pairs=PAIRS,
    refusals=[Exchange(pair.attack, REFUSAL, pair.goal) for pair in PAIRS],
    retain=[Exchange(user(text), "Yes") for text in ("sing", "cook", "draw a cat")],
)
BEFORE = ValidationScores(attack_success=1.0, plain_refusal=1.0, over_refusal=0.1, benign_refusal=0.0)
"""Scores of the unrepaired model."""


def improving() -> Callable[[], ValidationScores]:
    """A validation in which every round halves the attacks' success."""
    scores = iter([BEFORE])
    return lambda: next(scores, replace(BEFORE, attack_success=0.5))


Row = dict[str, Any]


def config(**settings: Any) -> RepairConfig:
    """Two rounds of four updates of each step."""
    fast = {"lr": 1e-2}
    defaults: dict[str, Any] = {
        "rounds": 2,
        "batch_size": 2,
        "expert": fast,
        "router": fast,
        "retain": {"per_batch": 1},
    }
    return RepairConfig.model_validate({**defaults, **settings})


def small_model(family: str = "glm4_moe", **overrides: Any) -> MoEModel:
    """A random model, calm enough to train."""
    return find_moe(tiny(family, **{"initializer_range": 0.1, **overrides}))


def experts(layers: tuple[tuple[int, ...], ...] = SELECTED) -> ExpertSet:
    """A selection."""
    scores = torch.zeros(NUM_LAYERS, NUM_EXPERTS)
    count = sum(len(layer) for layer in layers)
    return ExpertSet("sha256:tiny", "frequency", count, layers, scores)


def run_repair(
    moe: MoEModel,
    scratch: Path,
    settings: RepairConfig,
    *,
    inputs: RepairInputs = INPUTS,
    selected: ExpertSet | None = None,
    validate: Callable[[], ValidationScores] | None = None,
    report: Callable[[Row], None] = lambda row: None,
) -> RepairResult:
    """`repair` with the defaults of these tests."""
    measure = validate or improving()
    return repair(
        moe, TOKENIZER, inputs, selected or experts(), settings, validate=measure, scratch=scratch, report=report
    )


def state(moe: MoEModel) -> dict[str, Tensor]:
    """A copy of the model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in moe.model.state_dict().items()}


def changed(moe: MoEModel, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are no longer what they were."""
    return {name for name, tensor in state(moe).items() if not torch.equal(tensor, before[name])}
