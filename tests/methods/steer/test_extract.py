"""Directions are differences in means over the prompts that count, whatever the batches; one side alone is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluators import TOKENS, prompts, target
from torch import Tensor

from families import FAMILIES, tiny_tokenizer
from seawall.data.types import user
from seawall.errors import DataError
from seawall.methods.steer.extract import extract
from seawall.methods.steer.score import refusal_score
from seawall.methods.steer.target import Prompt, TargetModel, encode_prompts
from seawall.models.hidden.expert_outputs import expert_outputs
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe

POSITIONS = (-3, -1)


def split(subject: TargetModel) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of both sides, each with some of the wrong sign."""
    some = prompts(16, seed=3)
    scores = [_alone(subject, one)[0] for one in some]
    positive = [one for one, score in zip(some, scores, strict=True) if score > 0]
    negative = [one for one, score in zip(some, scores, strict=True) if score < 0]
    assert min(len(positive), len(negative)) >= 3
    return [*positive[2:], *negative[:2]], [*negative[2:], *positive[:2]]


def _alone(subject: TargetModel, prompt: Prompt) -> tuple[float, Tensor]:
    """Refusal score and block inputs (N, P, D) of one prompt by itself, through transformers' own hidden states."""
    with torch.no_grad():
        output = subject.model(input_ids=torch.tensor([prompt.token_ids]), output_hidden_states=True)
    hidden_NPD = torch.stack([layer[0, POSITIONS] for layer in output.hidden_states[:-1]])
    return refusal_score(output.logits[:, -1], TOKENS).item(), hidden_NPD.double()


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "llama"])
def test_directions_are_differences_of_means_over_the_prompts_that_count(family: str) -> None:
    subject = target(family, batch_size=16)
    harmful, harmless = split(subject)
    found = extract(subject, harmful, harmless, positions=POSITIONS)
    means = []
    for prompts_of_side, sign in ((harmful, 1), (harmless, -1)):
        alone = [_alone(subject, one) for one in prompts_of_side]
        means.append(torch.stack([hidden for score, hidden in alone if sign * score > 0]).mean(0))
    assert torch.allclose(found.layer_NPD.double(), means[0] - means[1], atol=1e-4)
    assert [one.used for one in found.prompts] == [True] * (len(harmful) - 2) + [False] * 2 + [True] * (
        len(harmless) - 2
    ) + [False] * 2
    assert [one.prompt for one in found.prompts] == [one.text for one in (*harmful, *harmless)]
    assert found.count("harmful", used=False) == 2


def test_batches_do_not_matter() -> None:
    subject = target()
    harmful, harmless = split(subject)
    one = extract(replace(subject, batch_size=1), harmful, harmless, positions=POSITIONS)
    many = extract(replace(subject, batch_size=64), harmful, harmless, positions=POSITIONS)
    assert torch.allclose(one.layer_NPD, many.layer_NPD, atol=1e-5)
    assert torch.equal(one.routing_difference_LE, many.routing_difference_LE)


@pytest.mark.parametrize("family", FAMILIES)
def test_routing_differences_are_of_first_choices_at_the_positions(family: str) -> None:
    subject = target(family, batch_size=16)
    harmful, harmless = split(subject)
    found = extract(subject, harmful, harmless, positions=POSITIONS)
    shares_LE = [_first_choices(subject, side, sign) for side, sign in ((harmful, 1), (harmless, -1))]
    assert torch.allclose(found.routing_difference_LE, shares_LE[0] - shares_LE[1])
    assert found.routing_difference_LE.abs().max() > 0.1
    assert found.moe_layers == tuple(layer.decoder_layer for layer in find_moe(subject.model).layers)


def _first_choices(subject: TargetModel, rows: list[Prompt], sign: int) -> Tensor:
    """Share of the tokens at the positions whose largest gate weight each expert has, prompt by prompt."""
    assert subject.moe is not None
    kept = [one for one in rows if sign * _alone(subject, one)[0] > 0]
    found_LE = torch.zeros(subject.moe.num_layers, subject.moe.num_experts, dtype=torch.float64)
    for one in kept:
        with capture(subject.moe) as trace, torch.no_grad():
            subject.model(input_ids=torch.tensor([one.token_ids]))
        for layer, (indices_TK, weights_TK) in enumerate(zip(trace.indices, trace.weights, strict=True)):
            for position in POSITIONS:
                found_LE[layer, indices_TK[position, weights_TK[position].argmax()]] += 1
    return found_LE / (len(kept) * len(POSITIONS))


def test_a_dense_model_has_directions_of_layers_alone() -> None:
    subject = target("llama")
    found = extract(subject, *split(subject), positions=POSITIONS)
    assert (found.candidates, found.moe_layers, found.expert_CPD.numel()) == ((), (), 0)
    assert found.num_layers == subject.num_layers


def test_progress_counts_prompts() -> None:
    subject, seen = target(), list[tuple[int, int]]()
    harmful, harmless = split(subject)
    extract(subject, harmful, harmless, positions=POSITIONS, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (min(16, len(harmful)), 2 * (len(harmful) + len(harmless)))
    assert seen[-1] == (seen[0][1],) * 2


def _refused(harmful: list[Prompt], harmless: list[Prompt], positions: tuple[int, ...] = POSITIONS) -> str:
    with pytest.raises(DataError) as caught:
        extract(target(), harmful, harmless, positions=positions)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_prompts_that_cannot_be_compared_are_refused() -> None:
    harmful, harmless = split(target())
    assert "there are no harmful prompts" in _refused([], harmless)
    assert "there are no harmless prompts" in _refused(harmful, [])
    assert "has a refusal to extract a direction from" in _refused(harmless[:-2], harmless)
    assert "refuses every harmless prompt" in _refused(harmful, harmful[:-2])
    said = _refused(harmful, harmless, (-7, -1))
    assert "a position lies outside the templated prompt; got positions -7, -1; expected -6 to -1" in said


def test_logits_that_are_not_finite_are_refused() -> None:
    subject = target()
    harmful, harmless = split(subject)
    with torch.no_grad():
        subject.model.get_output_embeddings().weight[0] = torch.nan
    with pytest.raises(DataError, match="the model's logits are not finite; got nan after the prompt 'prompt"):
        extract(subject, harmful, harmless, positions=POSITIONS)


def test_prompts_go_through_the_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    (found,) = encode_prompts(tokenizer, [user("Hi")])
    assert found.text == "Hi"
    assert tokenizer.decode(list(found.token_ids)).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_directions_of_experts_are_differences_of_means_too(family: str) -> None:
    subject = target(family, batch_size=16)
    assert subject.moe is not None
    harmful, harmless = split(subject)
    found = extract(subject, harmful, harmless, positions=POSITIONS)
    assert found.candidates == tuple((layer, expert) for layer in range(3) for expert in range(8))
    for layer, expert in ((0, 1), (2, 6)):
        means = []
        for rows, sign in ((harmful, 1), (harmless, -1)):
            kept = [one for one in rows if sign * _alone(subject, one)[0] > 0]
            means.append(torch.stack([_by_itself(subject.moe, layer, expert, one) for one in kept]).mean(0))
        assert torch.allclose(found.expert_CPD[8 * layer + expert], means[0] - means[1], atol=1e-3)
    assert extract(subject, harmful, harmless, positions=POSITIONS, experts=False).candidates == ()


def _by_itself(moe: MoEModel, layer: int, expert: int, prompt: Prompt) -> Tensor:
    """The expert's own output (P, D), for one prompt by itself."""
    seen: list[Tensor] = []
    with expert_outputs(
        moe, {layer: [expert]}, positions=POSITIONS, sink=lambda at, which, output_XBPD: seen.append(output_XBPD)
    ):
        with torch.no_grad():
            moe.model(input_ids=torch.tensor([prompt.token_ids]))
    return seen[0][0, 0]
