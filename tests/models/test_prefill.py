from __future__ import annotations

import pytest
import torch
from torch import Tensor

from families import FAMILIES, UNUSUAL, tiny
from seawall.models import prefill
from seawall.models.decoding import Decoding, TokenIds
from seawall.models.generate import decode_batch
from seawall.models.greedy import GreedyBatch
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import find_moe
from seawall.models.moe.routers import trainable_routers
from seawall.models.prefill import can_share, plan_of

BEGINNING = tuple(range(10, 22))
OTHER = tuple(range(40, 47))
PROMPTS: list[TokenIds] = [
    *((*BEGINNING, 30 + row, *range(50, 50 + row)) for row in range(15)),
    (3, 4),
    *((*OTHER, 60 + row) for row in range(3)),
    (9,),
    (*OTHER, 61),
    BEGINNING,
]
"""More rows than one pass has, two beginnings, prompts without one, equal prompts, and a prompt that is a beginning."""
DECODING = Decoding(max_new_tokens=4, eos_ids=frozenset(), pad_id=0)


def _shares(batch: GreedyBatch) -> bool:
    return batch._begun is not None


def test_a_row_keeps_a_token_of_its_own() -> None:
    plan = plan_of(PROMPTS)
    assert plan is not None
    assert set(plan.beginnings) == {BEGINNING[:-1], OTHER}
    for prompt, (index, length) in zip(PROMPTS, plan.of_row, strict=True):
        assert length < len(prompt)
        assert prompt[:length] == plan.beginnings[index][:length]
        assert length in (0, len(plan.beginnings[index]))
    assert [length for _, length in plan.of_row] == [11] * 15 + [0] + [7] * 3 + [0, 7, 11]


def test_the_plan_counts_the_tokens_of_its_passes() -> None:
    prompts = [(*range(20), 30 + row) for row in range(12)]
    plan = plan_of(prompts)
    assert plan is not None
    assert plan.tokens == (20 + prefill._PASS) + (12 * 1 + prefill._PASS)


@pytest.mark.parametrize(
    "prompts",
    [
        [(1, 2, 3, 4, 5, 6)],
        [(row, *range(20)) for row in range(30)],
        [(1, 2, 3, row) for row in range(30)],
        [(*range(10), 30), (*range(10), 31)],
    ],
    ids=["a single prompt", "nothing in common", "too short a beginning", "fewer tokens than a pass costs"],
)
def test_nothing_is_shared_where_it_does_not_pay(prompts: list[TokenIds]) -> None:
    assert plan_of(prompts) is None


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL, "llama"])
def test_replies_are_those_of_an_ordinary_first_pass(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    shared = decode_batch(model, PROMPTS, DECODING)
    monkeypatch.setattr("seawall.models.greedy.plan_of", lambda prompts: None)
    assert shared == decode_batch(model, PROMPTS, DECODING)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "glm4_moe", "llama"])
@torch.no_grad()
def test_cache_and_logits_are_those_of_an_ordinary_first_pass(family: str) -> None:
    model = tiny(family)
    ordinary, shared = (GreedyBatch(model, PROMPTS, 0, share=share) for share in (False, True))
    assert not _shares(ordinary)
    assert _shares(shared)
    mask_BT = ordinary._mask_BT.bool()
    assert ordinary.step() == shared.step()
    torch.testing.assert_close(shared.logits_BV, ordinary.logits_BV, rtol=0, atol=1e-5)
    for ours, expected in zip(shared._cache.layers, ordinary._cache.layers, strict=True):
        for name in ("keys", "values"):
            torch.testing.assert_close(_real(ours, name, mask_BT), _real(expected, name, mask_BT), rtol=0, atol=1e-5)


def _real(layer: object, name: str, mask_BT: Tensor) -> Tensor:
    """Keys or values of the tokens, without padding."""
    states_BHTD: Tensor = getattr(layer, name)
    return states_BHTD.transpose(1, 2)[mask_BT]


@torch.no_grad()
def test_a_hook_or_another_forward_keeps_the_passes_whole() -> None:
    model = tiny("glm4_moe")
    moe = find_moe(model)
    assert _shares(GreedyBatch(model, PROMPTS, 0, share=True))
    hook = moe.layers[1].router.register_forward_hook(lambda *_: None)
    assert not _shares(GreedyBatch(model, PROMPTS, 0, share=True))
    hook.remove()
    with trainable_experts(moe, [(1,), (), (2, 3)]), trainable_routers(moe):
        assert _shares(GreedyBatch(model, PROMPTS, 0, share=True))
    model.forward = model.forward
    assert not _shares(GreedyBatch(model, PROMPTS, 0, share=True))


def test_a_model_whose_numbers_differ_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(prefill, "_columns", lambda mask_BT, width: torch.zeros(len(mask_BT), width, dtype=torch.long))
    batch = GreedyBatch(model, PROMPTS, 0)
    assert not can_share(model, batch._forward)


def test_a_cache_of_another_kind_is_not_shared() -> None:
    model = tiny("gpt_oss")
    assert not can_share(model, GreedyBatch(model, PROMPTS, 0)._forward)
