"""The truth that was planted is found: one expert's refusal in that expert, attention's refusal in attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from evaluators import evaluator, prompts
from transformers import PreTrainedModel

import planted_refusal as planted
from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.data.types import Messages, Verdict, VerdictLabel
from seawall.errors import ConfigError, DataError
from seawall.methods.steer.choose import CONSTRAINED, EXPERT, LAYER, ExpertSearch, SearchOutcome, choose_layer
from seawall.methods.steer.conditions import Condition, conditions, harmless_kl
from seawall.methods.steer.evaluator import CandidateEvaluator
from seawall.methods.steer.extract import extract
from seawall.methods.steer.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.methods.steer.reasons import by_score
from seawall.methods.steer.score import refusal_tokens
from seawall.methods.steer.search import refusal_judge
from seawall.methods.steer.target import TargetModel, encode_prompts
from seawall.models.generate import generate
from seawall.models.moe.find import find_moe

TOKENIZER = planted.refusing_tokenizer()
POSITIONS = (-1,)
HARMFUL, HARMLESS = (encode_prompts(TOKENIZER, some(50)) for some in (planted.harmful, planted.harmless))
LAYERS = LayerLimits(1.0, 0.5, 0.2, pruned=True)
LIMITS = SearchLimits((2.0, 16.0), 2.0, 0.025, 6, 3, pruned=True)
OPTIONS = ExpertOptions(threshold=0.3, random_experts=1000, pairs=2, triples=1, seed=0)
"""All experts are searched: those below the threshold as the control."""
SINGLES = replace(OPTIONS, random_experts=0)


class Exact:
    """A judge that knows the two replies of the planted models."""

    name = "exact"

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        assert len(prompts) == len(responses)
        return [Verdict(_label(response), "", self.name) for response in responses]


def _label(response: str) -> VerdictLabel:
    labels: dict[str, VerdictLabel] = {planted.REFUSAL: "refused", planted.ANSWER: "complied"}
    return labels.get(response, "unscored")


@dataclass(frozen=True, eq=False)
class Study:
    """A planted model, and everything that was found in it."""

    target: TargetModel
    directions: Directions
    evaluator: CandidateEvaluator
    found: SearchOutcome

    def refused(self, condition: Condition) -> float:
        """Share of refused replies on prompts that nothing was chosen on."""
        model = self.target.model
        with condition.enter():
            replies = generate(model, TOKENIZER, planted.harmful(50)[42:], max_new_tokens=3, batch_size=8)
        return sum(reply.answer == planted.REFUSAL for reply in replies) / len(replies)

    def choice(self, name: str) -> SteeringCandidate:
        """What was chosen under that name."""
        chosen = self.found.choice(name)
        assert chosen is not None
        return chosen

    def conditions(self) -> dict[str, Condition]:
        found = conditions(self.target, self.directions, self.found, "suppress", random_seeds=range(3))
        assert len({one.name for one in found}) == len(found)
        return {one.name: one for one in found}


def study(model: PreTrainedModel, mode: SteeringMode = "suppress", options: ExpertOptions = OPTIONS) -> Study:
    replies = generate(model, TOKENIZER, planted.harmful(8), max_new_tokens=3, batch_size=8)
    tokens = refusal_tokens(
        [reply.token_ids[0] for reply in replies], [reply.answer == planted.REFUSAL for reply in replies]
    )
    assert tokens == (planted.REFUSAL_TOKEN,)
    subject = TargetModel(model, find_moe(model), "sha256:0", tokens, 192)
    directions = extract(subject, HARMFUL[:14], HARMLESS[:14], positions=POSITIONS)
    moved = HARMFUL[30:39] if mode == "suppress" else HARMLESS[30:39]
    evaluator = CandidateEvaluator(subject, directions, mode, moved=moved, harmless=HARMLESS[30:39])
    found = SearchOutcome()
    layer = choose_layer(
        CandidateEvaluator(subject, directions, "suppress", moved=HARMFUL[30:39], harmless=HARMLESS[30:39]),
        LAYERS,
        found,
    )
    ask = refusal_judge(evaluator, TOKENIZER, Exact(), max_new_tokens=LIMITS.judged_tokens)
    prompts = (planted.harmful if mode == "suppress" else planted.harmless)(39)[30:]
    ExpertSearch(evaluator, ask, prompts, LIMITS, options, found).run(layer)
    return Study(subject, directions, evaluator, found)


@pytest.fixture(scope="module")
def by_expert() -> Study:
    return study(planted.refusing_by_expert())


@pytest.fixture(scope="module")
def by_attention() -> Study:
    return study(planted.refusing_by_attention(), options=SINGLES)


def test_the_planted_expert_is_the_first_of_all(by_expert: Study) -> None:
    assert by_expert.choice(EXPERT).experts == (planted.EXPERT,)
    singles = [one for one in by_expert.found.candidates if one.family in ("expert", "random_expert")]
    ranked = by_score(singles, "suppress")
    others = next(one for one in ranked if one.experts != (planted.EXPERT,))
    assert ranked[0].experts == (planted.EXPERT,)
    assert (ranked[0].refusal_score or 0) < 0 < (others.refusal_score or 0)
    # Not by its routing: other experts, without a part in refusal, differ as much.
    assert {planted.EXPERT, *planted.ROUTED_APART} <= set(by_expert.directions.above(0.5))


def test_without_any_pruning_it_is_the_same_expert(by_expert: Study) -> None:
    evaluator = by_expert.evaluator
    whole = CandidateEvaluator(
        evaluator.target, evaluator.directions, "suppress", moved=HARMFUL[30:39], harmless=HARMLESS[30:39], resume=False
    )
    limits = SearchLimits(LIMITS.coefficients, LIMITS.max_kl, 1.0, 1, 3, pruned=False)
    search = ExpertSearch(whole, lambda one, prompts: [], [], limits, OPTIONS, SearchOutcome())
    layer = by_expert.choice(LAYER)
    singles = search.singles(whole.directions.above(OPTIONS.threshold), layer.layer, layer.position)
    best = by_score(singles, "suppress")[0]
    chosen = by_expert.choice(EXPERT)
    assert (best.experts, best.position, best.coefficient) == (chosen.experts, chosen.position, chosen.coefficient)
    assert search.outcome.cost == search.outcome.full_cost == by_expert.found.full_cost
    assert by_expert.found.cost < by_expert.found.full_cost / 2


def test_everything_that_was_chosen_holds_on_new_prompts(by_expert: Study) -> None:
    found = by_expert.conditions()
    refused = {name: by_expert.refused(one) for name, one in found.items()}
    for name in ("expert", "expert-top-k", "pair", "triple", "all-experts", "all-experts-top-k", "ablated-everywhere"):
        assert refused[name] == 0, name
    assert refused["layer"] < 0.5
    assert refused["random-expert"] == 1
    # In 64 dimensions a random direction may be not far from a planted one.
    assert sum(refused[f"random-direction-{at}"] for at in range(1, 4)) >= 1.5
    divergence = {name: harmless_kl(by_expert.target, HARMLESS[42:], one) for name, one in found.items()}
    assert divergence.pop("layer-strength") < LIMITS.max_kl + 0.5  # its coefficient is chosen under the experts' cap
    assert max(value for name, value in divergence.items() if found[name].series != "control") < 1


def test_refusal_that_an_expert_writes_is_in_the_mlp(by_expert: Study) -> None:
    refused = {name: by_expert.refused(one) for name, one in by_expert.conditions().items() if one.series == "site"}
    assert refused["ablated-mlp"] == refused["ablated-both"] == 0
    assert refused["ablated-attention"] == 1


def test_refusal_that_attention_writes_is_in_attention_and_no_expert_moves_it(by_attention: Study) -> None:
    refused = {name: by_attention.refused(one) for name, one in by_attention.conditions().items()}
    assert refused["ablated-attention"] == refused["ablated-both"] == refused["layer"] == 0
    assert refused["ablated-mlp"] == 1
    for name in ("expert", "expert-constrained", "pair", "triple", "all-experts"):
        assert refused[name] == 1, name
    assert by_attention.choice(LAYER).layer > planted.ATTENTION


def test_experts_below_the_threshold_go_through_the_same_search(by_expert: Study) -> None:
    rows = [one for one in by_expert.found.candidates if one.family == "random_expert"]
    drawn = {one.experts[0] for one in rows}
    assert drawn == set(by_expert.directions.below(OPTIONS.threshold))
    assert drawn | set(by_expert.directions.above(OPTIONS.threshold)) == set(by_expert.directions.candidates)
    assert len(rows) == len(drawn) * len(POSITIONS) * len(LIMITS.coefficients)
    assert by_expert.choice("random_expert").judged == 9
    constrained, layer = by_expert.choice(CONSTRAINED), by_expert.choice(LAYER)
    assert (constrained.layer, constrained.position) == (layer.layer, layer.position)


def test_refusal_can_be_induced() -> None:
    found = study(planted.refusing_by_attention(), "induce", replace(SINGLES, pairs=0, triples=0))
    layer = found.choice(LAYER)
    every = conditions(found.target, found.directions, found.found, "induce", random_seeds=[0])
    named = {one.name: one for one in every}
    with named["layer"].enter():
        replies = generate(found.target.model, TOKENIZER, planted.harmless(50)[42:], max_new_tokens=3, batch_size=8)
    assert all(reply.answer == planted.REFUSAL for reply in replies)
    assert (layer.induced_score or 0) > 0
    assert not any(name.startswith("ablated") for name in named)
    best = found.choice(EXPERT)
    assert (best.refusal_score or -100) > found.evaluator.original_score("moved")


def test_a_coefficient_that_breaks_the_logits_is_one_line(by_expert: Study) -> None:
    found = SearchOutcome(list(by_expert.found.candidates), dict(by_expert.found.chosen))
    at = found.chosen[LAYER]
    found.candidates[at] = replace(found.candidates[at], coefficient=float("inf"))
    broken = conditions(by_expert.target, by_expert.directions, found, "suppress", random_seeds=[])[0]
    with pytest.raises(ConfigError) as caught:
        harmless_kl(by_expert.target, HARMLESS[:3], broken)
    assert str(caught.value).startswith("the change 'layer' gives logits that are not finite; got a divergence of nan")
    assert "\n" not in str(caught.value)


def test_a_model_that_refuses_nothing_is_one_line() -> None:
    model = planted.refusing_by_expert()
    with torch.no_grad():
        model.get_output_embeddings().weight[planted.REFUSAL_TOKEN] = 0
    subject = TargetModel(model, find_moe(model), "sha256:0", (planted.REFUSAL_TOKEN,), 32)
    with pytest.raises(DataError) as caught:
        extract(subject, HARMFUL[:5], HARMLESS[:5], positions=POSITIONS)
    assert str(caught.value).startswith(
        "no harmful prompt has a refusal to extract a direction from; got refusal scores from -"
    )
    assert "\n" not in str(caught.value)


def test_nothing_stays_on_the_model(by_expert: Study) -> None:
    fresh = planted.refusing_by_expert()
    ids = torch.tensor([HARMFUL[0].token_ids])
    with torch.no_grad():
        assert torch.equal(fresh(input_ids=ids).logits, by_expert.target.model(input_ids=ids).logits)


def test_a_dense_model_has_its_layers_and_halves_alone() -> None:
    subject, limits = evaluator("llama"), replace(LAYERS, max_kl=3.0)
    found = SearchOutcome()
    choose_layer(subject, limits, found)
    named = conditions(subject.target, subject.directions, found, "suppress", random_seeds=[0])
    assert [one.name for one in named] == [
        "layer",
        *(f"ablated-{where}" for where in ("attention", "mlp", "both", "everywhere")),
        *(f"layer-{where}" for where in ("attention", "mlp", "both")),
        "random-direction-1",
    ]
    assert all(harmless_kl(subject.target, prompts(5, seed=8), one) > 0 for one in named)
