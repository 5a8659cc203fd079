"""The planted models are what they say: every search that is tested on them rests on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from planted_refusal import (
    ANSWER,
    ANSWER_TOKEN,
    ATTENTION,
    EXPERT,
    REFUSAL,
    REFUSAL_TOKEN,
    ROUTED_APART,
    harmful,
    harmless,
    refusing_by_attention,
    refusing_by_expert,
    refusing_tokenizer,
)
from seawall.data.templating import encode_prompt
from seawall.data.types import Messages
from seawall.evaluation.judges.keyword import KeywordJudge
from seawall.models.generate import generate
from seawall.models.hidden.intervene import Site, ablated
from seawall.models.hidden.residual import capture_residual
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe

TOKENIZER = refusing_tokenizer()
BUILDERS = (refusing_by_expert, refusing_by_attention)


@cache
def _model(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    return build()


def _batch(prompts: Sequence[Messages]) -> dict[str, Tensor]:
    """Tokens and mask, padded on the left."""
    rows = [encode_prompt(TOKENIZER, prompt) for prompt in prompts]
    width = max(map(len, rows))
    tokens_BT = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {
        "input_ids": tokens_BT,
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(-1) - 1).clamp(min=0),
    }


def _last_logits(model: PreTrainedModel, prompts: Sequence[Messages]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**_batch(prompts)).logits
    return logits[:, -1]


def _refused(model: PreTrainedModel, prompts: Sequence[Messages]) -> float:
    return (_last_logits(model, prompts).argmax(-1) == REFUSAL_TOKEN).float().mean().item()


def _direction(model: PreTrainedModel, layer: int) -> Tensor:
    means = []
    for prompts in (harmful(10), harmless(10)):
        with torch.no_grad(), capture_residual(model, [layer]) as trace:
            model(**_batch(prompts))
        means.append(trace.inputs[layer][:, -1].mean(0))
    return means[0] - means[1]


@pytest.mark.parametrize("build", BUILDERS)
def test_marked_prompts_are_refused_and_others_answered(build: Callable[[], PreTrainedModel]) -> None:
    model, judge = _model(build), KeywordJudge()
    for prompts, reply, label in ((harmful(50), REFUSAL, "refused"), (harmless(50), ANSWER, "complied")):
        replies = [reply.answer for reply in generate(model, TOKENIZER, prompts, max_new_tokens=4, batch_size=25)]
        assert set(replies) == {reply}
        assert {verdict.label for verdict in judge(prompts, replies)} == {label}
    assert len({prompt[0].content for prompt in harmful(50) + harmless(50)}) == 100


@pytest.mark.parametrize(
    ("build", "writer", "other"),
    [(refusing_by_expert, "mlp", "attention"), (refusing_by_attention, "attention", "mlp")],
)
def test_refusal_goes_with_what_its_writer_writes(
    build: Callable[[], PreTrainedModel], writer: Site, other: Site
) -> None:
    model = _model(build)
    direction_D = _direction(model, 4)
    for sites, share in (((writer,), 0.0), ((other,), 1.0), (("residual",), 0.0)):
        with ablated(model, direction_D, sites=sites):
            assert _refused(model, harmful(20)) == share, sites


@pytest.mark.parametrize(("build", "layer"), [(refusing_by_expert, EXPERT[0]), (refusing_by_attention, ATTENTION)])
def test_no_direction_below_the_writer_stops_the_refusal(build: Callable[[], PreTrainedModel], layer: int) -> None:
    model = _model(build)
    with ablated(model, _direction(model, layer)):
        assert _refused(model, harmful(20)) == 1.0


@pytest.mark.parametrize(
    ("build", "apart"), [(refusing_by_expert, (EXPERT, *ROUTED_APART)), (refusing_by_attention, ROUTED_APART)]
)
def test_routing_differs_for_experts_with_and_without_a_part_in_it(
    build: Callable[[], PreTrainedModel], apart: Sequence[tuple[int, int]]
) -> None:
    moe = find_moe(_model(build))
    difference_LE = _top_1(moe, harmful(20)) - _top_1(moe, harmless(20))
    for layer, expert in apart:
        assert difference_LE[layer, expert] > 0.2, (layer, expert)


def _top_1(moe: MoEModel, prompts: Sequence[Messages]) -> Tensor:
    """How often each expert is the first choice over the last 5 tokens (L, E)."""
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model(**_batch(prompts))
    first = [logits_TE.view(len(prompts), -1, moe.num_experts)[:, -5:].argmax(-1) for logits_TE in trace.logits]
    return torch.nn.functional.one_hot(torch.stack(first), moe.num_experts).float().mean((1, 2))


@pytest.mark.parametrize("build", BUILDERS)
def test_the_margin_is_clear(build: Callable[[], PreTrainedModel]) -> None:
    model = _model(build)
    for prompts, first, second in (
        (harmful(20), REFUSAL_TOKEN, ANSWER_TOKEN),
        (harmless(20), ANSWER_TOKEN, REFUSAL_TOKEN),
    ):
        logits_BV = _last_logits(model, prompts)
        assert (logits_BV[:, first] - logits_BV[:, second]).min() > 2
