"""What is measured in rows of one resumed pass is what single whole passes give, and its cost is counted."""

from __future__ import annotations

import math

import pytest
import torch
from evaluators import TOKENS, evaluator, prompts, random_directions_of, target

from seawall.artifacts.steering import SteeringCandidate
from seawall.data.batching import Batch
from seawall.errors import DataError
from seawall.methods.steer.evaluator import SCREENING, CandidateEvaluator
from seawall.methods.steer.interventions import Intervention, applied, expert_intervention
from seawall.methods.steer.score import divergence, refusal_score
from seawall.methods.steer.target import Prompt, batches, last_logits
from seawall.models.hidden.intervene import Addition, ablated, added


def by_hand(subject: CandidateEvaluator, candidate: SteeringCandidate) -> tuple[float, float]:
    """(score on the moved prompts, divergence on the harmless ones), by whole passes with this change alone."""
    model = subject.target.model
    (_, moved), (_, harmless) = (next(batches(prompts(*some), 64)) for some in ((11, 3), (13, 4)))
    original_BV = last_logits(model, harmless)
    with applied(subject.target, subject.directions, candidate, subject.mode):
        score_B = refusal_score(last_logits(model, moved), subject.target.refusal_tokens)
        kl_B = divergence(original_BV, last_logits(model, harmless))
    return score_B.mean().item(), kl_B.mean().item()


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "hunyuan_v1_moe"])
def test_rows_of_resumed_passes_measure_what_single_passes_do(family: str) -> None:
    subject = evaluator(family)
    interventions = [
        expert_intervention(subject.directions, "expert", [(0, 3)], -1),
        expert_intervention(subject.directions, "expert", [(2, 1)], -2),
        expert_intervention(subject.directions, "pair", [(1, 0), (2, 5)], -1),
        expert_intervention(subject.directions, "pair", [(1, 0), (1, 7)], -1),
    ]
    candidates = [intervention.candidate(coefficient) for intervention in interventions for coefficient in (0.5, 20.0)]
    subject.measure(candidates, "score")
    subject.measure(candidates, "kl")
    for one in candidates:
        score, kl = by_hand(subject, one)
        assert subject.mean(one, "score") == pytest.approx(score, abs=1e-3)
        assert subject.mean(one, "kl") == pytest.approx(kl, abs=1e-3)
    assert max(subject.mean(one, "kl") for one in candidates) > 0.01


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_layers_are_ablated_everywhere_and_added_to_harmless_prompts(family: str) -> None:
    subject = evaluator(family)
    candidate = Intervention("layer", 2, (), -1).candidate(1.5)
    for number in ("score", "kl", "induced"):
        subject.measure([candidate], number)
    direction_D, model = subject.directions.of_layer(2, -1), subject.target.model
    (_, moved), (_, harmless) = (next(batches(prompts(*some), 64)) for some in ((11, 3), (13, 4)))
    original_BV = last_logits(model, harmless)
    with ablated(model, direction_D):
        score = refusal_score(last_logits(model, moved), subject.target.refusal_tokens).mean().item()
        kl = divergence(original_BV, last_logits(model, harmless)).mean().item()
    with added(model, [Addition(2, direction_D, 1.5)]):
        induced = refusal_score(last_logits(model, harmless), subject.target.refusal_tokens).mean().item()
    found = [subject.mean(candidate, "score"), subject.mean(candidate, "kl"), subject.mean(candidate, "induced")]
    assert found == pytest.approx([score, kl, induced], abs=1e-3)


def test_nothing_is_measured_twice_and_what_runs_is_counted() -> None:
    subject = evaluator()
    intervention = expert_intervention(subject.directions, "expert", [(1, 3)], -1)
    candidate, layers = intervention.candidate(1.0), subject.target.num_layers - intervention.layer
    subject.measure([candidate], "kl", ["screening"])
    assert (subject.passes, subject.count(candidate, "kl")) == (SCREENING * layers, SCREENING)
    subject.measure([candidate, candidate], "kl")
    assert (subject.passes, subject.count(candidate, "kl")) == (13 * layers, 13)
    subject.measure([candidate], "kl")
    assert subject.passes == 13 * layers
    assert subject.count(candidate, "score") == 0
    whole = evaluator(resume=False)
    whole.measure([candidate], "kl")
    assert whole.passes == 13 * subject.target.num_layers
    assert whole.mean(candidate, "kl") == pytest.approx(subject.mean(candidate, "kl"), abs=1e-5)


def test_progress_counts_candidates_on_batches() -> None:
    subject, seen = evaluator(batch_size=8), list[tuple[str, int, int]]()
    subject.progress = lambda what, done, total: seen.append((what, done, total))
    interventions = [expert_intervention(subject.directions, "expert", [(layer, 1)], -1) for layer in range(3)]
    subject.measure([intervention.candidate(1.0) for intervention in interventions], "kl")
    assert seen == [("harmless divergence", done, 3) for done in (1, 2, 3, 1, 2, 3)]


def test_modes_go_opposite_ways() -> None:
    down, up = evaluator(mode="suppress"), evaluator(mode="induce")
    candidate = expert_intervention(down.directions, "expert", [(2, 3)], -1)
    mirrored = [(down, candidate.candidate(8.0)), (up, candidate.candidate(-8.0))]
    for subject, one in mirrored:
        subject.measure([one], "score")
    assert down.mean(mirrored[0][1], "score") == pytest.approx(up.mean(mirrored[1][1], "score"))
    up.measure([candidate.candidate(8.0)], "score")
    assert abs(up.mean(candidate.candidate(8.0), "score") - down.mean(candidate.candidate(8.0), "score")) > 0.01


def test_a_coefficient_that_breaks_the_logits_shows_in_its_own_numbers_alone() -> None:
    subject = evaluator()
    intervention = expert_intervention(subject.directions, "expert", [(1, 3)], -1)
    subject.measure([intervention.candidate(1.0), intervention.candidate(math.inf)], "kl")
    assert math.isnan(subject.mean(intervention.candidate(math.inf), "kl"))
    assert subject.mean(intervention.candidate(1.0), "kl") < 10


def test_a_side_without_prompts_is_refused() -> None:
    subject = evaluator()
    with pytest.raises(DataError, match="there are no harmless prompts to search with"):
        CandidateEvaluator(subject.target, subject.directions, "suppress", moved=prompts(2, seed=0), harmless=[])


def test_prompts_count_where_the_model_refuses_and_where_it_answers() -> None:
    subject = target()
    some = prompts(16, seed=3)
    scores = [refusal_score(last_logits(subject.model, batch), TOKENS).item() for _, batch in _one_by_one(some)]
    refused = [one for one, score in zip(some, scores, strict=True) if score > 0]
    answered = [one for one in some if one not in refused]
    assert min(len(refused), len(answered)) > 2
    directions = random_directions_of(subject)
    suppressing = CandidateEvaluator(subject, directions, "suppress", moved=some, harmless=some)
    assert suppressing.num_prompts == len(some)
    assert suppressing.original_score("moved") > 0 > suppressing.original_score("harmless")
    # Attacks, whose refusal is to be induced, count whatever their score.
    inducing = CandidateEvaluator(subject, directions, "induce", moved=some, harmless=some)
    assert inducing.num_prompts == len(some) + len(answered)
    assert inducing.original_score("moved") == pytest.approx(sum(scores) / len(scores), abs=1e-3)
    with pytest.raises(DataError, match="no harmful prompt has a refusal to extract a direction from"):
        CandidateEvaluator(subject, directions, "suppress", moved=answered, harmless=answered)


def _one_by_one(some: list[Prompt]) -> list[tuple[list[int], Batch]]:
    return [found for one in some for found in batches([one], 1)]


def test_the_original_score_is_that_of_plain_passes() -> None:
    subject = evaluator()
    ((_, batch),) = batches(prompts(11, seed=3), 64)
    expected = refusal_score(last_logits(target().model, batch), subject.target.refusal_tokens).mean().item()
    assert subject.original_score("moved") == pytest.approx(expected, abs=1e-4)
    assert subject.num_prompts == 24
    assert torch.is_grad_enabled()
