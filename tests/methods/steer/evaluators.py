"""A evaluator on a tiny random model, with directions of its own, for tests of the search."""

from __future__ import annotations

import torch

from families import random_ids, tiny
from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringMode
from seawall.methods.steer.evaluator import CandidateEvaluator
from seawall.methods.steer.target import Prompt, TargetModel
from seawall.models.moe.find import find_moe

TOKENS = tuple(range(136))
"""Half of the vocabulary: a random model then scores some prompts above 0 and some below."""


def target(family: str = "qwen3_moe", *, batch_size: int = 64) -> TargetModel:
    model = tiny(family)
    return TargetModel(model, None if family == "llama" else find_moe(model), "sha256:0", TOKENS, batch_size)


def prompts(count: int, seed: int) -> list[Prompt]:
    rows = random_ids(count, 12, seed).tolist()
    return [Prompt(f"prompt {at}", tuple(row[: 6 + at % 6])) for at, row in enumerate(rows)]


def random_directions_of(subject: TargetModel, positions: tuple[int, ...] = (-2, -1)) -> Directions:
    """Directions that nothing was measured for."""
    generator = torch.Generator().manual_seed(11)
    width = subject.model.config.hidden_size
    layers, experts = (0, 0) if subject.moe is None else (subject.moe.num_layers, subject.moe.num_experts)
    return Directions(
        model_fingerprint=subject.fingerprint,
        positions=positions,
        refusal_tokens=subject.refusal_tokens,
        candidates=tuple(divmod(at, experts) for at in range(layers * experts)),
        moe_layers=() if subject.moe is None else tuple(layer.decoder_layer for layer in subject.moe.layers),
        prompts=(),
        layer_NPD=torch.randn(subject.num_layers, len(positions), width, generator=generator),
        expert_CPD=torch.randn(layers * experts, len(positions), width, generator=generator),
        routing_difference_LE=torch.rand(layers, experts, generator=generator, dtype=torch.float64) / 5,
    )


def evaluator(
    family: str = "qwen3_moe", *, mode: SteeringMode = "suppress", resume: bool = True, batch_size: int = 64
) -> CandidateEvaluator:
    subject = target(family, batch_size=batch_size)
    moved, harmless = prompts(11, seed=3), prompts(13, seed=4)
    return CandidateEvaluator(
        subject, random_directions_of(subject), mode, moved=moved, harmless=harmless, resume=resume, any_score=True
    )
