from __future__ import annotations

import pytest
import torch

from families import FAMILIES, UNUSUAL, random_ids, tiny, tiny_tokenizer
from seawall.data.types import user
from seawall.models.generate import generate
from seawall.models.moe.capture import capture
from seawall.models.moe.exchange import exchanged, routed_as
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.routers import router_parameters
from seawall.models.slices import Slices, full_slices
from watching import watching

PROMPTS = [user(text) for text in ("Hi", "Tell me about boats", "Count", "What is the tallest tree in the world?")]


def _replies(moe: MoEModel) -> list[tuple[int, ...]]:
    found = generate(moe.model, tiny_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=3)
    return [reply.token_ids for reply in found]


def _changed(moe: MoEModel, *, experts: bool) -> dict[str, Slices]:
    """Other values of the routers, and of every other expert if asked for."""
    stacks = [layer.full_name(weight) for layer in moe.layers for weight in layer.weights] if experts else []
    generator, state = torch.Generator().manual_seed(3), moe.model.state_dict()

    def other(name: str, indices: tuple[int, ...] | None) -> Slices:
        values = Slices.copied(state[name], indices).tensor
        return Slices(indices, values + state[name].std() * torch.randn(values.shape, generator=generator))

    chosen = {name: tuple(range(0, len(state[name]), 2)) for name in stacks}
    return {**{name: other(name, None) for name in router_parameters(moe)}, **{n: other(n, chosen[n]) for n in stacks}}


def _original(moe: MoEModel) -> dict[str, Slices]:
    return {name: Slices.copied(tensor, None) for name, tensor in moe.model.state_dict().items()}


@pytest.mark.parametrize("family", sorted({*FAMILIES, *UNUSUAL} - {"nemotron_h"}))
def test_with_other_routers_alone_the_original_routing_gives_the_original_replies(family: str) -> None:
    moe = find_moe(tiny(family))
    before, original = _replies(moe), _original(moe)
    with exchanged(moe.model, _changed(moe, experts=False)):
        assert _replies(moe) != before
        with routed_as(moe, original):
            assert _replies(moe) == before
    assert _replies(moe) == before


@pytest.mark.parametrize("family", ["glm4_moe", "gpt_oss"])
def test_with_other_experts_each_token_goes_where_the_original_sends_that_very_text(family: str) -> None:
    moe = find_moe(tiny(family))
    original = _original(moe)
    with torch.no_grad(), capture(moe) as wanted:
        moe.model(random_ids())
    plain = [indices.clone() for indices in wanted.indices]
    with exchanged(moe.model, _changed(moe, experts=True)), torch.no_grad():
        with capture(moe) as own:
            changed = moe.model(random_ids()).logits
        assert not all(torch.equal(one, two) for one, two in zip(own.indices, plain, strict=True))
        with routed_as(moe, original), watching(moe) as seen:
            rerouted = moe.model(random_ids()).logits
        assert len(seen) == 2 * moe.num_layers
        used = [call.indices_TK for call, _ in seen[moe.num_layers :]]
        assert all(torch.equal(one, two) for one, two in zip(used, plain, strict=True))
        assert not torch.equal(rerouted, changed)
        with routed_as(moe, full_slices(moe.model.state_dict())):
            torch.testing.assert_close(moe.model(random_ids()).logits, changed)


def test_a_cached_reply_is_routed_as_the_whole_text_at_once() -> None:
    moe = find_moe(tiny("qwen3_moe"))
    original = _original(moe)
    with exchanged(moe.model, _changed(moe, experts=True)), routed_as(moe, original), torch.no_grad():
        for reply in generate(moe.model, tiny_tokenizer(), PROMPTS, max_new_tokens=8, batch_size=2):
            ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
            logits = moe.model(ids, use_cache=False).logits[0, len(reply.prompt_ids) - 1 : -1]
            assert tuple(logits.argmax(-1).tolist()) == reply.token_ids


def test_everything_comes_back_even_after_an_error() -> None:
    moe = find_moe(tiny("olmoe"))
    original = _original(moe)
    with pytest.raises(RuntimeError, match="stop"):
        with exchanged(moe.model, _changed(moe, experts=True)), routed_as(moe, original):
            raise RuntimeError("stop")
    state = moe.model.state_dict()
    assert all(torch.equal(state[name], values) for name, (_, values) in original.items())
    assert "forward" not in vars(moe.model)
    assert not any(vars(module)["_forward_pre_hooks"] for module in moe.model.modules())
